package conductor

import (
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/rollout"
)

// watched soaks for longer than a device may be silent.
var watched = strings.Replace(quickSpec, `"soak":{"min":"1m"}`, `"soak":{"min":"10m"}`, 1)

// A control plane that was away for hours, killed or asleep, blames no device
// for the silence: nobody could hear them.
func TestAwayBlamesNobody(t *testing.T) {
	for _, killed := range []bool{true, false} {
		w := newWorld(t, 6)
		w.start(watched, "one")
		for range 100 { // until the canaries have switched, and are watched
			w.step()
			w.now = w.now.Add(10 * time.Second)
			if s, _ := w.get("one"); s.Waves[0].State == "soaking" {
				break
			}
		}
		w.now = w.now.Add(5 * time.Hour)
		for _, v := range w.dev {
			v.Online = false
		}
		if killed {
			w.restart()
		}
		if err := w.c.Step(t.Context()); err != nil { // before any device is back
			t.Fatal(err)
		}
		for _, v := range w.dev {
			v.Online = true
		}
		w.spin(time.Hour)
		if s, _ := w.get("one"); s.Phase != string(rollout.Succeeded) || s.Harmed != 0 {
			t.Errorf("killed %v: %s: %s", killed, s.Phase, s.Reason)
		}
	}
}

// A device that switches and is never heard again has not succeeded, whatever
// it said last.
func TestSilenceAfterTheSwitchIsAFailure(t *testing.T) {
	w := newWorld(t, 6)
	w.start(watched, "one")
	dead := ""
	for range 200 {
		w.live()
		for _, v := range w.dev {
			if dead == "" && v.Running == digest("m@2") {
				dead = v.ID
			}
			if v.ID == dead {
				v.Online, v.LastSeen = false, w.since[dead]
			}
		}
		if err := w.c.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.now = w.now.Add(10 * time.Second)
		if w.dev[dead] != nil && w.now.Sub(w.since[dead]) > 30*time.Minute {
			break
		}
	}
	_, xs := w.get("one")
	for _, x := range xs {
		if x.Device == dead && x.Class == ota.Silent {
			return
		}
	}
	t.Errorf("%s died after the switch: %+v", dead, xs)
}
