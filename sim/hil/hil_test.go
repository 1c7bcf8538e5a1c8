package hil

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/skein-fleet/skein/sim/hil/line"
	"github.com/skein-fleet/skein/sim/scenario"
	"github.com/skein-fleet/skein/sim/virtual"
)

// TestCheck: a script that asks for what a process or a real board cannot have is
// refused by line.
func TestCheck(t *testing.T) {
	parse := func(text string) *scenario.Script {
		s, err := scenario.Parse(strings.NewReader("devices 1 mix orin-nano=1\n" + text))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	boards := Options{Boards: []string{"ssh://a@b"}}
	for _, c := range []struct {
		text string
		o    Options
		want string
	}{
		{"at 1s fault kill device=1", Options{}, ""},
		{"at 1s fault kill device=1", boards, ""},
		{"at 1s fault heat to=90", Options{}, ""},
		{"at 1s fault heat to=90", boards, "line 2: at 1s fault heat to=90 cannot be played"},
		{"at 1s fault clock1970", Options{}, "the clock is that of the machine"},
		{"at 1s fault diskfull free=0", Options{}, "the disk is that of the machine"},
		{"at 1s route wwan0", boards, "the routes of a real board"},
		{"at 1s release v1 os=39.2.0", boards, "operating system"},
	} {
		err := Check(parse(c.text), c.o)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q on %v: %v, want %q", c.text, c.o.Boards, err, c.want)
		}
	}
	s := parse("")
	s.Devices = 2
	if err := Check(s, boards); err == nil || !strings.Contains(err.Error(), "1 boards") {
		t.Errorf("more devices than boards: %v", err)
	}
}

func TestRemoteCommand(t *testing.T) {
	d := &Device{n: 3, dir: t.TempDir(), sockets: "/s", labels: map[string]string{"site": "it's"}, fleet: virtual.FleetOptions{ServerURL: "https://127.0.0.1:8443", Pace: virtual.Brisk()}}
	d.o.SSH = SSHOptions{Args: []string{"-i", "key"}, Dir: "/opt/h"}
	var err error
	if d.line, err = line.New("127.0.0.1:0", line.Options{}); err != nil {
		t.Fatal(err)
	}
	defer d.line.Close()
	r, err := newRemote(d, "ssh://root@orin-7:2222")
	if err != nil {
		t.Fatal(err)
	}
	cmd := strings.Join(r.command(t.Context(), r.forwards(), r.script()).Args, " ")
	for _, want := range []string{
		"ssh -o ExitOnForwardFailure=yes", " -i key -p 2222 -- root@orin-7 ", "-L /s/agent.sock:/opt/h/", "-L /s/agent-tap.sock:/opt/h/",
		"'--server' 'https://plane.skein.local:8443'", `'site=it'\''s'`, "HTTPS_PROXY=http://127.0.0.1:", "exec ./skein-agent 'run'",
	} {
		if !strings.Contains(cmd, want) {
			t.Errorf("%s\nlacks %q", cmd, want)
		}
	}
	for _, bad := range []string{"orin-7", "ssh://", "http://x", "ssh://-oProxyCommand=x", "ssh://h/path"} {
		if _, err := newRemote(d, bad); err == nil {
			t.Errorf("%q is taken for a board", bad)
		}
	}
}

// TestFindAgent says what to do where there is none.
func TestFindAgent(t *testing.T) {
	self := filepath.Join(t.TempDir(), "skein-sim")
	if _, _, err := FindAgent(self, "", "mips"); err == nil || !strings.Contains(err.Error(), "want amd64 or arm64") {
		t.Errorf("%v", err)
	}
	if _, _, err := FindAgent(self, filepath.Join(t.TempDir(), "none"), ""); err == nil || !strings.Contains(err.Error(), "--agent") {
		t.Errorf("%v", err)
	}
}
