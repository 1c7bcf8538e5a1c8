package rollout

import (
	"slices"
	"strings"
	"testing"
)

func TestExplainDevice(t *testing.T) {
	spec := simple()
	spec.Waves[0].PerTarget = 1
	spec.Waves[0].Ramp.MaxInFlight = 1
	spec.Waves = append(spec.Waves, Wave{Name: "rest"})
	fleet := devices(9)
	fleet[8].Labels = map[string]string{"site": "nowhere"}
	spec.Selector = Selector{Match: []Requirement{{Label: "site", Op: NotEqual, Values: []string{"nowhere"}}}}
	w := newWorld(spec, fleet, all(fleet, slow))
	say := func(id string) string {
		return strings.Join(Explain(w.spec, w.state, w.fleet, w.evidence(), w.now, id), "; ")
	}
	if got := say("d000"); got != "the rollout has not started" {
		t.Error(got)
	}
	w.run(2)
	first, second := w.state.Waves[0].Members[0], w.state.Waves[0].Members[1]
	for id, want := range map[string]string{
		first:                       "accepted",
		second:                      "ramp: 1 devices are in flight, at most 1 may be",
		w.state.Waves[1].Members[0]: `queued in wave "rest", which waits for wave "all"`,
		"d008":                      "the selector (site!=nowhere) does not match",
		"x":                         "not in the fleet",
	} {
		if got := say(id); !strings.Contains(got, want) {
			t.Errorf("%s: %s; want …%s…", id, got, want)
		}
	}
	w.setOnline(second, false)
	if got := say(second); !strings.Contains(got, "offline (policy: skip") {
		t.Error(got)
	}
	w.do(Decision{Kind: Pause, Reason: "by ann"})
	if got := say(second); !strings.Contains(got, "paused: by ann") {
		t.Error(got)
	}
}

func TestPreview(t *testing.T) {
	spec := Default(v2)
	spec.Waves[1].Gate.Success.MinExecuted = 50
	spec.Waves[2].Budget = Budget{GroupBy: []string{"site"}, MinAvailable: Devices(20)}
	fleet := devices(24)
	fleet[0].Release, fleet[1].Incompatible, fleet[1].Online = v2, "no engine for sm=7.2", false
	out := Preview("r1", spec, fleet)
	if out.Selected != 24 || !slices.Equal(out.Already, []string{"d000"}) || len(out.Never) != 1 || out.Never[0].Device != "d001" {
		t.Errorf("%+v", out)
	}
	if n := out.Waves[0].Devices + out.Waves[1].Devices + out.Waves[2].Devices; n != 22 || len(out.Waves[0].Targets) != 3 {
		t.Errorf("%d devices in waves, %d targets in the canary", n, len(out.Waves[0].Targets))
	}
	all := strings.Join(out.Warnings, "\n")
	for _, want := range []string{"asks for 50 executed", "leaves nothing to update in 2 groups of up to 12 devices"} {
		if !strings.Contains(all, want) {
			t.Errorf("no warning …%s… in:\n%s", want, all)
		}
	}
	spec.Selector.Labels = map[string]string{"site": "mars"}
	if all := strings.Join(Preview("r1", spec, fleet).Warnings, "\n"); !strings.Contains(all, "matches no device") {
		t.Error(all)
	}
}
