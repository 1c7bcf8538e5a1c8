package rollout

import (
	"strings"
	"testing"
	"time"
)

// TestWindows: devices outside their window are offered nothing and hold
// nobody up; those that wait hold no slot, do not time out, and go on with the
// time that was left.
func TestWindows(t *testing.T) {
	spec := simple()
	spec.Waves[0].Ramp = Ramp{Kind: RampFixed, Initial: 1}
	fleet := devices(4)
	fleet[0].Outside = "its download window opens at 22:00"
	w := newWorld(spec, fleet, map[string]temper{"d002": stuck})
	w.actors["d001"].waits = 300 // over half an hour, the timeout is 10 minutes
	w.actors["d002"].waits = 120
	w.run(150)
	if w.state.Exec["d003"].Status != Done {
		t.Errorf("d003 is held up: %+v", w.state.Exec["d003"])
	}
	if e := w.state.Exec["d001"]; e.Status != Accepted || e.Waits == "" {
		t.Errorf("d001: %+v", e)
	}
	if e := w.state.Exec["d002"]; e.Status != Accepted {
		t.Errorf("d002 timed out on the time in which it waited: %+v", e)
	}
	if e := w.state.Exec["d000"]; e.Status != Queued {
		t.Errorf("d000: %+v", e)
	}
	said := func(id, want string) {
		t.Helper()
		lines := Explain(w.spec, w.state, w.fleet, w.evidence(), w.now, id)
		if !strings.Contains(strings.Join(lines, "\n"), want) {
			t.Errorf("explain %s: %q, want %q", id, lines, want)
		}
	}
	said("d000", "its download window opens at 22:00")
	said("d001", "waits for its window; it holds no slot and does not time out meanwhile")
	w.setOutside("d000", "")
	w.run(60)
	said("", "wait for a window or an allowance")
	w.run(200)
	if w.state.Phase != Succeeded {
		t.Errorf("ended %s: %s", w.state.Phase, w.state.Reason)
	}
	if e := w.state.Exec["d002"]; e.Class != "TIMED_OUT" {
		t.Errorf("d002 went on and hung: %+v", e)
	}
	// One that said until when it waits and then went away is not waited for.
	w = newWorld(spec, devices(1), nil)
	w.actors["d000"].waits = 1000
	w.run(20)
	w.setOnline("d000", false)
	w.run(int(15 * time.Minute / w.tick))
	if e := w.state.Exec["d000"]; e.Class != "TIMED_OUT" {
		t.Errorf("offline while it waited: %+v", e)
	}
}

func (w *world) setOutside(id, why string) {
	for i := range w.fleet {
		if w.fleet[i].ID == id {
			w.fleet[i].Outside = why
		}
	}
}
