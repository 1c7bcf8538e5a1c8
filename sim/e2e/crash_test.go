package e2e

import (
	"fmt"
	"testing"
	"time"

	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	rolloutv1 "github.com/skein-fleet/skein/proto/gen/skein/rollout/v1"
	"github.com/skein-fleet/skein/proto/wire"
)

// TestBrokerRestart: devices outlive a restart of the server, come back by
// themselves, and what was acknowledged before is there.
func TestBrokerRestart(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	s.release("v2", version{bias: 2})
	devices := []*device{s.boot("v1"), s.boot("v1"), s.boot("v1")}
	s.stop()
	for _, d := range devices {
		until(t, "the device to notice", func() bool { return d.status().Link != "connected" && d.condition("link-offline") != "" })
		d.serves()
	}
	s.run()
	for _, d := range devices {
		until(t, "the device to come back", func() bool { return s.get(d.id).GetState() == fleetv1.DeviceState_DEVICE_STATE_ONLINE })
		until(t, "its report", func() bool { return s.runs(d.id, "v1") })
		s.kept(d)
		s.settle(d, "v2")
		d.serves()
	}
}

// TestAgentBrokenOff: what a start that was broken off leaves comes to the
// control plane once, and is kept there over restarts of both.
func TestAgentBrokenOff(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	d := s.boot("v1")
	crashes := func() []*fleetv1.Crash {
		r, err := s.op.Fleet.ListDeviceCrashes(t.Context(), &fleetv1.ListDeviceCrashesRequest{Device: d.id})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetCrashes()
	}
	d.stop()
	if n := len(crashes()); n != 0 {
		t.Fatalf("%d crashes of a device that never had one", n)
	}
	// As the power cut of another boot leaves the mark.
	mark := fmt.Sprintf(`{"boot":6,"version":"v0","begun":%d}`, time.Now().Add(-time.Minute).UnixMilli())
	if err := d.opts.Files.WriteFile("crash/mark.json", []byte(mark)); err != nil {
		t.Fatal(err)
	}
	d.run()
	until(t, "the crash at the control plane", func() bool { return len(crashes()) == 1 })
	d.stop()
	s.restart()
	d.run()
	until(t, "the device to come back", func() bool { return s.get(d.id).GetState() == fleetv1.DeviceState_DEVICE_STATE_ONLINE })
	all := crashes()
	if len(all) != 1 || all[0].GetKind() != "machine" || all[0].GetAgentVersion() != "v0" || all[0].GetReceived() == nil {
		t.Errorf("%v", all)
	}
	r, err := s.op.Fleet.GetDeviceCrash(t.Context(), &fleetv1.GetDeviceCrashRequest{Device: d.id, Number: all[0].GetNumber()})
	if err != nil || len(r.GetCrash().GetJournal()) == 0 {
		t.Errorf("%v %v", r, err)
	}
}

// TestKilledServer ends skeind with SIGKILL in the middle of a rollout, twice.
func TestKilledServer(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	kill := s.spawn()
	s.release("v1", version{bias: 1})
	var devices []*device
	for range 6 {
		devices = append(devices, s.enroll().run())
	}
	for _, d := range devices {
		s.settle(d, "v1")
	}
	s.release("v2", version{bias: 2})
	gate := map[string]any{"success": map[string]any{"minPct": 95}, "abort": []any{map[string]any{"failure": "ALL", "pct": 50, "minExecuted": 2}}}
	r, err := s.op.Start(t.Context(), "killed", map[string]any{"release": "meter@v2", "waves": []any{
		map[string]any{"name": "canary", "limit": 2, "soak": map[string]any{"min": "2s"}, "gate": gate},
		map[string]any{"name": "rest", "gate": gate},
	}})
	if err != nil {
		t.Fatal(err)
	}
	phase := func() *rolloutv1.Rollout {
		got, err := s.op.Rollouts.GetRollout(t.Context(), &rolloutv1.GetRolloutRequest{Rollout: r.GetId()})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetRollout()
	}
	moved := func() (n int) {
		for _, d := range devices {
			if d.status().RunningName == "meter@v2" {
				n++
			}
		}
		return n
	}
	for _, enough := range []int{1, 3} { // in the canary, in the rest
		until(t, "the rollout to move devices", func() bool { return moved() >= enough })
		// Acknowledged a moment before the end.
		if _, err := s.op.Fleet.LabelDevice(t.Context(), &fleetv1.LabelDeviceRequest{Device: devices[0].id, Set: map[string]string{"shelf": string(rune('0' + enough))}}); err != nil {
			t.Fatal(err)
		}
		kill()
		for _, d := range devices {
			d.serves()
		}
		kill = s.spawn()
		if got := s.get(devices[0].id).GetLabels()["shelf"]; got != string(rune('0'+enough)) {
			t.Errorf("an acknowledged label is %q after the kill", got)
		}
	}
	until(t, "the rollout to end", func() bool { return phase().GetPhase() == "succeeded" })
	for _, d := range devices {
		s.settled(d, "v2")
		d.serves()
		s.kept(d)
		if st := d.status(); st.Phase != wire.PhaseIdle {
			t.Errorf("device is %s", st.Phase)
		}
	}
	s.release("v3", version{bias: 3})
	s.settle(devices[0], "v3")
}
