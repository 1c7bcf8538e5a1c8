package scenario

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/sim/fault"
	"github.com/skein-fleet/skein/sim/fault/shaper"
	"github.com/skein-fleet/skein/sim/jetson"
)

func TestParse(t *testing.T) {
	text := `
# comment
devices 20 mix nano=1,x86=2 seed 7
length 2m
network device=1-3 latency=40ms loss=1% bandwidth=2MB/s   # a line
at 5s fault cut device=3 for=10s
at 1s release v1
at 1s rollout v1 canary=2
at 2s release v2 defect=slow
at 2s rollout v2 waves=2,25%,10 soak=5s timeout=30s abort=20% to=nano
at 3s pause v2
at 4s restart broker down=1s
expect within 60s release v1 on 18
expect harmed <= 6
expect always not condition disk-full on device 4
expect release v2 on device 1,2
expect rollout v2 aborted
`
	got, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	s := time.Second
	want := &Script{
		Devices: 20, Mix: jetson.Mix{{Key: "nano", Count: 1}, {Key: "x86", Count: 2}}, Seed: 7, Length: 2 * time.Minute,
		Networks: []Network{{Line: 5, Devices: fault.Devices{Ranges: []fault.Range{{From: 1, To: 3}}},
			Profile: shaper.Profile{Latency: 40 * time.Millisecond, Loss: 0.01, Bandwidth: 2 << 20}}},
		Steps: []Step{
			{7, s, Release{Name: "v1"}},
			{8, s, Rollout{Release: "v1", Waves: []Size{{Count: 2}}}},
			{9, 2 * s, Release{Name: "v2", Defect: Slower}},
			{10, 2 * s, Rollout{Release: "v2", To: fault.Devices{Model: "nano"}, Waves: []Size{{Count: 2}, {Percent: 25}, {Count: 10}},
				Soak: 5 * s, Timeout: 30 * s, Abort: 0.2}},
			{11, 3 * s, Control{"pause", "v2"}},
			{12, 4 * s, Restart{"broker", s}},
			{6, 5 * s, Fault{fault.Fault{Kind: fault.Cut, Devices: fault.Devices{Ranges: []fault.Range{{From: 3, To: 3}}}, At: 5 * s, For: 10 * s}}},
		},
		Expects: []Expect{
			{Line: 13, When: Within, By: time.Minute, Cond: ReleaseOn{Release: "v1", Op: Equal, Count: 18}},
			{Line: 14, Cond: Count{Harmed, AtMost, 6}},
			{Line: 15, When: Always, Not: true, Cond: Health{"disk-full", fault.Devices{Ranges: []fault.Range{{From: 4, To: 4}}}}},
			{Line: 16, Cond: ReleaseOn{Release: "v2", Named: true, Devices: fault.Devices{Ranges: []fault.Range{{From: 1, To: 1}, {From: 2, To: 2}}}}},
			{Line: 17, Cond: RolloutState{"v2", "aborted"}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestErrorsNameTheLine(t *testing.T) {
	tests := map[string]string{
		"":                                              "no devices",
		"devices 0":                                     "line 1",
		"devices 5\ndevices 5":                          "line 2: devices stands twice",
		"devices 5 mix tx9":                             `tx9`,
		"devices 5 seed x":                              "seed",
		"devices 5 seed 1 seed 2":                       "twice",
		"devices 5\n\nfrobnicate":                       `line 3: unknown word "frobnicate"`,
		"devices 5\nat 5 release v1":                    "line 2: time",
		"devices 5\nat 1s explode":                      "unknown action",
		"devices 5\nat 1s fault melt":                   "kind",
		"devices 5\nat 1s fault cut at=3s":              "from the line",
		"devices 5\nat 1s release V1":                   "release NAME",
		"devices 5\nat 1s release v1 defect=ugly":       "wrong",
		"devices 5\nat 1s rollout v1":                   "line 2: release v1 is not made",
		"devices 5\nat 2s release v1\nat 1s abort v1":   "line 3: release v1 is not made before",
		"devices 5\nat 1s release v1\nat 2s release v1": "made twice",
		"devices 5\nat 1s release v1\nat 1s rollout v1 canary=2 waves=3": "either",
		"devices 5\nat 1s release v1\nat 1s rollout v1 waves=0":          "size",
		"devices 5\nat 1s release v1\nat 1s rollout v1 waves=200%":       "size",
		"devices 5\nexpect":                                 "CONDITION",
		"devices 5\nexpect within":                          "within TIME",
		"devices 5\nexpect joy = 1":                         "unknown condition",
		"devices 5\nexpect harmed < 1":                      "number",
		"devices 5\nexpect harmed <= -1":                    "number",
		"devices 5\nexpect release v1 on 3":                 "line 2: release v1 is never made",
		"devices 5\nexpect release v1 on 3.5":               "on COUNT",
		"devices 5\nexpect condition x":                     "condition NAME",
		"devices 5\nexpect rollout v1 happy":                "running|paused",
		"devices 5\nlength 1s\nat 2s restart skeind":        "line 3: happens at 2s",
		"devices 5\nlength 1s\nexpect within 2s harmed = 0": "line 3: within 2s",
		"devices 5\nnetwork":                                "latency",
		"devices 5\nnetwork speed=1":                        "bandwidth=",
		"devices 5\nnetwork latency=1s latency=1s":          "twice",
		"devices 5\n" + strings.Repeat("x", maxLine+1):      "line 2",
	}
	for text, want := range tests {
		s, err := Parse(strings.NewReader(text))
		if !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q read as %v, %v; want %q", text, s, err, want)
		}
	}
}

// strip takes the line numbers away, which printing does not keep.
func strip(s *Script) *Script {
	for i := range s.Networks {
		s.Networks[i].Line = 0
	}
	for i := range s.Steps {
		s.Steps[i].Line = 0
	}
	for i := range s.Expects {
		s.Expects[i].Line = 0
	}
	return s
}

func roundTrip(t *testing.T, s *Script) {
	t.Helper()
	text := s.String()
	again, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%s\n%v", text, err)
	}
	if diff := cmp.Diff(strip(s), strip(again)); diff != "" {
		t.Fatalf("%s\n%s", text, diff)
	}
}

// TestShippedScenarios holds that every scenario of the repository parses and
// expects something.
func TestShippedScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.scn")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Parse(f)
		f.Close()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(s.Expects) == 0 {
			t.Errorf("%s expects nothing", name)
		}
		roundTrip(t, s)
	}
}

func TestOps(t *testing.T) {
	for _, tt := range []struct {
		op       Op
		measured float64
		want     bool
	}{{Equal, 3, true}, {Equal, 4, false}, {AtLeast, 3, true}, {AtLeast, 2, false}, {AtMost, 3, true}, {AtMost, 4, false}} {
		if got := tt.op.Holds(tt.measured, 3); got != tt.want {
			t.Errorf("%v %s 3 is %v", tt.measured, tt.op, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.scn")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add("devices 5\nnetwork bandwidth=1KB/s\nat 1s release v1\nat 1s rollout v1 waves=33.3%\nexpect always not harmed >= 1e3\nexpect release v1 on <= 2")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(strings.NewReader(text))
		if err != nil {
			return
		}
		roundTrip(t, s)
	})
}

// An archive holds one script, whose lines keep the numbers that they have in
// the archive.
func TestArchive(t *testing.T) {
	const script = "devices 3\nat 1s release v1\nexpect release v1 on all\n"
	write := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	s, err := ReadFile(write("good.txtar", "What it shows.\n\n-- scenario --\n"+script))
	if err != nil || s.Devices != 3 || s.Steps[0].Line != 5 || s.Expects[0].Line != 6 {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := ReadFile(write("plain.scn", script)); err != nil || s.Steps[0].Line != 2 {
		t.Errorf("%+v, %v", s, err)
	}
	for text, want := range map[string]string{
		script:                   "want one",
		"-- other --\n" + script: "want one",
		"-- scenario --\n" + script + "-- more --": "want one",
		"-- scenario --\nat x":                     "line 2",
		"-- scenario --\n":                         "no devices",
		strings.Repeat("x", maxFile+1):             "limit",
	} {
		if _, err := ReadFile(write("bad.txtar", text)); !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
}
