package power

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/proto/wire"
)

// superConf is that of an Orin Nano super: id 0 is not the strongest mode.
const superConf = `# /etc/nvpmodel.conf
< PARAM TYPE=FILE NAME=CPU_ONLINE >
# < POWER_MODEL ID=9 NAME=OLD >
< POWER_MODEL ID=0 NAME=15W >
GPU MAX_FREQ 612000000
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< POWER_MODEL ID=7 NAME=7W >
< PM_CONFIG DEFAULT=1 >
`

func TestParseConf(t *testing.T) {
	want := Conf{Modes: []Mode{{0, "15W"}, {1, "25W"}, {2, "MAXN_SUPER"}, {7, "7W"}}, Default: 1}
	if d := cmp.Diff(want, ParseConf(superConf)); d != "" {
		t.Error(d)
	}
	if c := ParseConf("<POWER_MODEL ID=3 NAME=MODE_40W>"); len(c.Modes) != 1 || c.Default != -1 {
		t.Errorf("%+v", c)
	}
}

// The forms are those of the releases; the last two end with a number that is
// not the next line's.
func TestParseQuery(t *testing.T) {
	for in, want := range map[string]Query{
		"NV Power Mode: 25W\n1\n":            {Name: "25W", ID: 1},
		"NV Power Mode: MODE_40W\n3\n":       {Name: "MODE_40W", ID: 3},
		"NV Power Mode: MODE_15W_6CORE\n2\n": {Name: "MODE_15W_6CORE", ID: 2},
		"NV Power Mode: MAXN\n0\n":           {Name: "MAXN", ID: 0},
		"NVPM VERB: Config file: /etc/nvpmodel.conf\nNVPM VERB: parsing done for /etc/nvpmodel.conf\nNV Fan Mode:quiet\nNVPM VERB: Current mode: NV Power Mode: MODE_15W_6CORE\n2\n": {Name: "MODE_15W_6CORE", ID: 2, Fan: "quiet"},
		"NV Power Mode[1]: 120W\n": {Name: "120W", ID: -1},
		"NVPM WARN: fan mode is not set!\nNV Power Mode: MODE_30W\nNVPM WARN: x\n8\n": {Name: "MODE_30W", ID: 8},
	} {
		got, err := ParseQuery(in)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%q: %v\n%s", in, err, d)
		}
	}
	for _, in := range []string{"", "NVPM ERROR: Error opening /etc/nvpmodel.conf\n", "NV Fan Mode:quiet\n"} {
		if q, err := ParseQuery(in); err == nil {
			t.Errorf("%q: %+v", in, q)
		}
	}
}

func FuzzParseQuery(f *testing.F) {
	f.Add("NV Power Mode: 25W\n1\n")
	f.Add("NV Fan Mode:quiet\nNV Power Mode[1]: 120W")
	f.Fuzz(func(t *testing.T, in string) {
		if q, err := ParseQuery(in); err == nil && (q.Name == "" || strings.ContainsAny(q.Name, " \n")) {
			t.Errorf("%q: %+v", in, q)
		}
		ParseConf(in)
	})
}

// fakeBoard is nvpmodel, jetson_clocks and nvfancontrol over a tree of files.
type fakeBoard struct {
	t     *testing.T
	root  string
	asks  string // mode for which nvpmodel asks
	stays bool   // it says yes and changes nothing
	calls []string
}

func newFakeBoard(t *testing.T) *fakeBoard {
	f := &fakeBoard{t: t, root: t.TempDir()}
	f.write("etc/nvpmodel.conf", superConf)
	f.write("var/lib/nvpmodel/status", "pmode:0001")
	f.write("etc/nvfancontrol.conf", "POLLING_INTERVAL 2\n<FAN 1>\n\tFAN_PROFILE quiet {\n\t}\n\tFAN_PROFILE cool {\n\t}\n\tFAN_DEFAULT_PROFILE quiet\n")
	f.write("sys/class/devfreq/17000000.gpu/min_freq", "306000000\n")
	f.write("sys/class/devfreq/17000000.gpu/max_freq", "918000000\n")
	f.write("sys/class/thermal/thermal_zone0/type", "cv0-thermal\n") // without power: it has no temperature
	f.write("sys/class/thermal/thermal_zone1/type", "tj-thermal\n")
	f.write("sys/class/thermal/thermal_zone1/temp", "61500\n")
	f.write("sys/class/thermal/thermal_zone1/trip_point_0_type", "critical\n")
	f.write("sys/class/thermal/thermal_zone1/trip_point_0_temp", "104500\n")
	f.write("sys/class/thermal/thermal_zone1/trip_point_1_type", "passive\n")
	f.write("sys/class/thermal/thermal_zone1/trip_point_1_temp", "95000\n")
	f.write("sys/class/thermal/thermal_zone1/trip_point_2_type", "active\n")
	f.write("sys/class/thermal/thermal_zone1/trip_point_2_temp", "51000\n")
	f.write("sys/class/thermal/cooling_device0/type", "pwm-fan\n")
	f.write("sys/class/thermal/cooling_device0/cur_state", "2\n")
	f.write("sys/class/thermal/cooling_device1/type", "cpufreq-cpu0\n")
	f.write("sys/class/thermal/cooling_device1/cur_state", "0\n")
	f.write("sys/class/hwmon/hwmon2/oc1_event_cnt", "0\n")
	f.write("sys/class/hwmon/hwmon2/oc3_event_cnt", "27390\n")
	f.write("sys/class/hwmon/hwmon1/in1_label", "VDD_IN\n")
	f.write("sys/class/hwmon/hwmon1/in1_input", "4984\n")
	f.write("sys/class/hwmon/hwmon1/in2_label", "VDD_SOC\n")
	f.write("sys/class/hwmon/hwmon1/in2_input", "4950\n")
	return f
}

func (f *fakeBoard) write(name, text string) {
	f.t.Helper()
	path := filepath.Join(f.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fakeBoard) run(_ context.Context, stdin, name string, args ...string) ([]byte, error) {
	f.calls = append(f.calls, strings.Join(append([]string{filepath.Base(name)}, args...), " "))
	t := &Tools{Root: f.root}
	c := t.conf()
	switch {
	case name == "nvpmodel" && args[0] == "-q":
		var id int
		for _, m := range c.Modes {
			if strings.HasSuffix(t.text(t.path("var/lib/nvpmodel/status")), "000"+string(rune('0'+m.ID))) {
				id = m.ID
			}
		}
		return []byte("NV Power Mode: " + c.Name(id) + "\n" + string(rune('0'+id)) + "\n"), nil
	case name == "nvpmodel" && args[0] == "-m":
		ask := f.asks != "" && c.Name(int(args[1][0]-'0')) == f.asks
		if ask && !strings.HasPrefix(stdin, "YES") {
			return []byte("NVPM WARN: Reboot required for changing to this power mode: " + args[1] + "\nNVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:\n"), errors.New("exit status 1")
		}
		if !f.stays {
			f.write("var/lib/nvpmodel/status", "pmode:000"+args[1])
		}
		if ask {
			return []byte("NVPM WARN: rebooting\n"), nil
		}
		return nil, nil
	case name == "jetson_clocks":
		if len(args) == 2 && args[0] == "--store" {
			f.write(clockStore, "saved\n")
		} else if len(args) == 2 {
			f.write("sys/class/devfreq/17000000.gpu/min_freq", "306000000\n")
		} else {
			f.write("sys/class/devfreq/17000000.gpu/min_freq", "918000000\n")
		}
		return nil, nil
	case name == "systemctl":
		return nil, nil
	}
	return nil, errors.New(name + ": not found")
}

func TestRead(t *testing.T) {
	f := newFakeBoard(t)
	tools := &Tools{Root: f.root, Run: f.run}
	if !tools.Present() || (&Tools{Root: t.TempDir()}).Present() {
		t.Error("present is wrong")
	}
	got, err := tools.Read(t.Context())
	want := Reading{Mode: "25W", Modes: []string{"15W", "25W", "MAXN_SUPER", "7W"}, Clocks: wire.ClocksDynamic, Fan: "quiet",
		Zones: []Zone{{"tj-thermal", 61500, 95000}}, OverCurrent: map[string]uint64{"oc1": 0, "oc3": 27390}, Rails: []Rail{{Name: "VDD_IN", MilliVolt: 4984}}}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v\n%s", err, d)
	}
}

func TestSetMode(t *testing.T) {
	f := newFakeBoard(t)
	f.asks = "7W"
	tools := &Tools{Root: f.root, Run: f.run, Restart: func(context.Context) error { f.calls = append(f.calls, "restart"); return nil }}
	if err := tools.SetMode(t.Context(), "MAXN_SUPER", false); err != nil {
		t.Error(err)
	}
	if r, err := tools.Read(t.Context()); err != nil || r.Mode != "MAXN_SUPER" {
		t.Errorf("%+v %v", r, err)
	}
	if err := tools.SetMode(t.Context(), "MAXN", false); !errors.Is(err, ErrUnknown) {
		t.Errorf("a mode of other modules: %v", err)
	}
	if err := tools.SetMode(t.Context(), "7W", false); !errors.Is(err, ErrNeedsReboot) {
		t.Errorf("%v", err)
	}
	if r, _ := tools.Read(t.Context()); r.Mode != "MAXN_SUPER" {
		t.Errorf("nvpmodel was told no and the mode is %s", r.Mode)
	}
	if err := tools.SetMode(t.Context(), "7W", true); err != nil || f.calls[len(f.calls)-1] != "restart" {
		t.Errorf("%v %q", err, f.calls)
	}
	f.asks, f.stays = "", true
	if err := tools.SetMode(t.Context(), "15W", false); err == nil || !strings.Contains(err.Error(), "the board says 7W after it") {
		t.Errorf("a tool that lies: %v", err)
	}
}

func TestSetClocksAndFan(t *testing.T) {
	f := newFakeBoard(t)
	tools := &Tools{Root: f.root, Run: f.run}
	if err := tools.SetClocks(t.Context(), wire.ClocksDynamic); !errors.Is(err, ErrUnsupported) {
		t.Errorf("nothing was stored: %v", err)
	}
	for _, c := range []wire.Clocks{wire.ClocksLocked, wire.ClocksDynamic} {
		if err := tools.SetClocks(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if r, _ := tools.Read(t.Context()); r.Clocks != c {
			t.Errorf("clocks are %s, want %s", r.Clocks, c)
		}
	}
	if err := tools.SetFan(t.Context(), "cool"); err != nil {
		t.Fatal(err)
	}
	if r, _ := tools.Read(t.Context()); r.Fan != "cool" {
		t.Errorf("fan %s", r.Fan)
	}
	if err := tools.SetFan(t.Context(), "loud"); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "quiet, cool") {
		t.Error(err)
	}
}
