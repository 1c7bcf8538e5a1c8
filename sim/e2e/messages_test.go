package e2e

import (
	"bytes"
	"errors"
	"testing"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/ota/trust"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/wire"
)

// report signs a report with the device's key.
func report(t *testing.T, id *agent.Identity, boot, message, counter uint64, held wire.Held, full *wire.Reported) []byte {
	t.Helper()
	signer, err := trust.NewSigner(id.Key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := wire.Marshal(&wire.Report{ID: wire.MessageID{Boot: boot, Counter: message}, Counter: counter, Held: held, Full: full})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := trust.Sign(signer, wire.AADReport, b)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// TestMalformedMessages: on every topic that a device may publish on, what is
// not a message is acknowledged, so that it never comes again, is an event
// where the topic is used, and costs neither the session nor anybody else.
func TestMalformedMessages(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	witness := s.boot("v1")
	used := map[wire.Kind]bool{wire.UpPresence: true, wire.UpHello: true, wire.UpReport: true, wire.UpEvent: true, wire.UpTelemetry: true}
	for _, kind := range []wire.Kind{wire.UpPresence, wire.UpHello, wire.UpReport, wire.UpEvent, wire.UpTelemetry,
		wire.UpDrift, wire.UpLog, wire.UpSample, wire.UpGet, wire.UpStream} {
		t.Run(string(kind), func(t *testing.T) {
			id := s.enroll().opts.Identity
			r := s.session(id)
			if err := r.hello(1, 1, wire.Generation{}); err != nil {
				t.Fatal(err)
			}
			for name, payload := range map[string][]byte{
				"empty": {}, "text": []byte("hello"), "wrong type": {0x83, 1, 2, 3}, "cut": {0xa2, 0x01}, "endless": {0xbf, 0x01, 0x02, 0xff},
				"duplicate key": {0xa2, 0x01, 0x01, 0x01, 0x02}, "deep": bytes.Repeat([]byte{0x81}, 10_000), "huge claim": {0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
				"at the limit": bytes.Repeat([]byte{0xff}, wire.MaxMessage), "over the limit": make([]byte, wire.MaxMessage+200),
			} {
				if err := r.publish(wire.Topic(r.id, kind), payload); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if used[kind] {
				until(t, "an event", func() bool {
					return s.count(r.id, "malformed", "", string(kind)) > 0 || s.count(r.id, "refused", "unsigned", "report") > 0
				})
			}
			if err := r.hello(1, 2, wire.Generation{}); err != nil {
				t.Errorf("honest hello afterwards: %v", err)
			}
			if d := s.get(r.id); d.GetState() != fleetv1.DeviceState_DEVICE_STATE_ONLINE || d.GetTarget() != testTarget {
				t.Errorf("device is %s, %s", d.GetState(), d.GetTarget())
			}
		})
	}
	if s.metric("skein_fleet_dropped_total", "unhandled-kind") == 0 {
		t.Error("messages on unused topics are not counted")
	}
	s.release("v2", version{bias: 2})
	s.settle(witness, "v2")
	witness.serves()
}

func TestOversizePacket(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.enroll().opts.Identity
	r := s.session(id)
	if err := r.publish(wire.Topic(r.id, wire.UpEvent), make([]byte, wire.MaxMessage+2048)); !errors.Is(err, errCut) {
		t.Errorf("oversize packet: %v", err)
	}
	s.awaitEvent(r.id, "oversize", "oversize", "closed")
	if err := s.session(id).hello(1, 1, wire.Generation{}); err != nil {
		t.Errorf("honest session afterwards: %v", err)
	}
}

// TestReplayedReport: a report counts once. The same one at once again is a
// repeat, as lost acknowledgements make them, and is counted; one from further
// back is an incident.
func TestReplayedReport(t *testing.T) {
	t.Parallel()
	s := start(t)
	id := s.enroll().opts.Identity
	r := s.session(id)
	say := func(b []byte) {
		t.Helper()
		if err := r.publish(wire.Topic(r.id, wire.UpReport), b); err != nil {
			t.Fatal(err)
		}
	}
	full := func(phase wire.Phase) *wire.Reported { return &wire.Reported{Phase: phase, Target: testTarget} }
	old := report(t, id, 1, 1, 1, wire.Held{}, full(wire.PhaseFailed))
	say(old)
	repeats := s.metric("skein_fleet_dropped_total", "repeat")
	say(old)
	if n := s.metric("skein_fleet_dropped_total", "repeat"); n != repeats+1 {
		t.Errorf("repeats counted: %v, then %v", repeats, n)
	}
	for n := uint64(2); n <= 80; n++ {
		say(report(t, id, 1, n, n, wire.Held{}, full(wire.PhaseIdle)))
	}
	say(old)
	s.awaitEvent(r.id, "refused", "replay", "counter 1 was overtaken by 80")
	// Signed by another device's key.
	other := s.enroll().opts.Identity
	say(report(t, other, 1, 81, 81, wire.Held{}, full(wire.PhaseFailed)))
	s.awaitEvent(r.id, "refused", "unsigned", "report")
	if p := s.get(r.id).GetPhase(); p != "idle" {
		t.Errorf("phase %s: the replay was taken", p)
	}
	// A thief who kept the report over a restart of the server.
	s.restart()
	r = s.session(id)
	say(old)
	until(t, "the replay after a restart", func() bool { return s.count(r.id, "refused", "replay", "") >= 2 })
	say(report(t, id, 1, 82, 82, wire.Held{}, full(wire.PhaseUpdating)))
	until(t, "the honest report", func() bool { return s.get(r.id).GetPhase() == "updating" })
}

// TestHelloFromTheFuture: a generation that was never given is adopted, told,
// and nothing is sent before a person confirms.
func TestHelloFromTheFuture(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	id := s.enroll().opts.Identity
	s.assign(id.DeviceID, "v1")
	r := s.session(id)
	if code, err := r.subscribe(wire.Topic(r.id, wire.DownDesired)); err != nil || code != 1 {
		t.Fatalf("subscribe: %d, %v", code, err)
	}
	held := wire.Generation{Epoch: 1, Counter: 41}
	if err := r.hello(1, 1, held); err != nil {
		t.Fatal(err)
	}
	s.awaitEvent(r.id, "generation-from-future", "", "1.41")
	if d := s.get(r.id); !d.GetGenerationFromFuture() || d.GetHeldGeneration().GetCounter() != 41 {
		t.Errorf("from future %v, holds %v", d.GetGenerationFromFuture(), d.GetHeldGeneration())
	}
	if err := s.tryAssign(r.id, ""); !has(err, "from the future") {
		t.Errorf("assign before a person confirms: %v", err)
	}
	s.restart() // the block outlives the process
	r = s.session(id)
	if code, err := r.subscribe(wire.Topic(r.id, wire.DownDesired)); err != nil || code != 1 {
		t.Fatalf("subscribe: %d, %v", code, err)
	}
	if err := r.hello(1, 2, held); err != nil {
		t.Fatal(err)
	}
	if err := s.tryAssign(r.id, ""); !has(err, "from the future") {
		t.Errorf("assign after a restart: %v", err)
	}
	resp, err := s.op.Fleet.ConfirmGeneration(t.Context(), &fleetv1.ConfirmGenerationRequest{Device: r.id})
	if err != nil {
		t.Fatal(err)
	}
	if g := resp.GetDevice().GetDesiredGeneration().GetCounter(); g != 42 {
		t.Errorf("next generation is %d, want held + 1", g)
	}
	if !s.audited("FleetService/ConfirmGeneration", "allowed", "") {
		t.Error("the confirmation is not in the audit log")
	}
	head, body, err := r.await(3) // PUBLISH: the first desired state, and only now
	if err != nil {
		t.Fatal(err)
	}
	if got := desiredIn(t, head, body); got.Generation != (wire.Generation{Epoch: 1, Counter: 42}) {
		t.Errorf("the device was sent %+v", got)
	}
	s.assign(r.id, "")
}
