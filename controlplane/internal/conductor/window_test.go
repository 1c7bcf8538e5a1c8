package conductor

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

// TestWaitingDevices: what waits for a window or an allowance of its policy
// does not time out, is explained, and goes on; what a rollout adds reaches the
// devices, and its way back waits for nothing.
func TestWaitingDevices(t *testing.T) {
	w := newWorld(t, 4)
	wait := true
	w.breaks = func(r ota.Digest, id string) string {
		switch {
		case wait && id == "d00" && r == digest("m@2"):
			return "wait"
		case !wait && r == digest("m@2"):
			return "golden"
		}
		return ""
	}
	spec := `{"release": "m@2", "waves": [{"name": "all", "timeout": {"device": "10m", "silent": "5m"}, "gate": {"success": {"minPct": 100}}}],
		"schedule": {"applyWindow": "02:00-05:00", "tz": "Europe/Paris"}}`
	s := w.start(spec, "patient")
	w.spin(3 * time.Hour)
	s, xs := w.get(s.ID)
	if s.Phase != "running" || s.Failed != 0 || s.Healthy != 3 {
		t.Fatalf("%+v %+v", s, xs)
	}
	lines, err := w.c.Explain(t.Context(), tenant, s.ID)
	if text := strings.Join(lines, "\n"); err != nil || !strings.Contains(text, "1 wait for a window or an allowance of their policy: its download waits: an allowance of bytes over metered links is used up until Wed 2026-11-25 00:00 CET") {
		t.Errorf("explain: %v, %v", text, err)
	}
	if text := strings.Join(w.c.ExplainDevice(t.Context(), tenant, "d00"), "\n"); !strings.Contains(text, "does not time out meanwhile") {
		t.Errorf("explain d00: %s", text)
	}
	for _, in := range w.log {
		if in.Release == digest("m@2") && in.Extra != (policy.Extra{Apply: "02:00-05:00", Zone: "Europe/Paris"}) {
			t.Errorf("what the rollout adds: %+v", in)
		}
	}
	wait = false
	w.spin(30 * time.Minute)
	if s, _ = w.get(s.ID); s.Phase != "rolled-back" {
		t.Errorf("%+v", s)
	}
	back := 0
	for _, in := range w.log {
		if in.Release == digest("m@1") {
			if back++; in.Extra != (policy.Extra{Now: true}) {
				t.Errorf("a way back that waits: %+v", in)
			}
		}
	}
	if back == 0 {
		t.Error("nothing went back")
	}
}

// TestOutsideTheWindow: no device is offered anything while its download window
// is closed; the world's clock begins at 08:00 UTC.
func TestOutsideTheWindow(t *testing.T) {
	w := newWorld(t, 4)
	w.policy = []policy.Setting{{Scope: policy.Fleet, Key: policy.DownloadWindow, Value: "Mon-Sun 12:00-16:00"}, {Scope: policy.Device, Subject: "d01", Key: policy.DownloadWindow, Value: "always"}}
	for _, id := range []string{"d00", "d02"} {
		w.dev[id].Transfer = &wire.PolicyState{Zone: "Europe/Paris"}
	}
	s := w.start(`{"release": "m@2", "waves": [{"name": "all"}]}`, "")
	w.spin(time.Hour)
	if diff := cmp.Diff(map[string]int{"m@1": 2, "m@2": 2}, w.running()); diff != "" { // d01, and d03 whose zone is not known
		t.Error(diff)
	}
	text := strings.Join(w.c.ExplainDevice(t.Context(), tenant, "d00"), "\n")
	if !strings.Contains(text, "outside the window in which it may download, (Mon-Sun 12:00-16:00 Europe/Paris), until Tue 2026-11-24 12:00 CET") {
		t.Errorf("explain: %s", text)
	}
	w.spin(time.Hour + 50*time.Minute)
	if n := w.running()["m@2"]; n != 2 {
		t.Errorf("%d before it opens", n)
	}
	w.spin(15 * time.Minute)
	if s, _ = w.get(s.ID); s.Healthy != 4 {
		t.Errorf("%+v", s)
	}
}
