package e2e

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/ota/slot"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/wire"
)

func TestSecondUseOfAToken(t *testing.T) {
	t.Parallel()
	s := start(t)
	claim := s.claim(1)
	use := func() (*agent.Identity, error) {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return agent.Enroll(ctx, agent.EnrollOptions{ServerURL: s.url, Claim: claim, Serial: "S9", Target: testTarget, Files: slot.NewMem()})
	}
	if _, err := use(); err != nil {
		t.Fatal(err)
	}
	if _, err := use(); !errors.Is(err, agent.ErrClaimRefused) || !has(err, "used up") {
		t.Fatalf("second use: %v", err)
	}
	if !s.audited("EnrollService/Enroll", "denied", "used up") {
		t.Error("no audit entry names the second use")
	}
	if devices, err := s.op.Devices(t.Context(), ""); err != nil || len(devices) != 1 {
		t.Errorf("%d devices, %v: want the first one alone", len(devices), err)
	}
	claim = s.claim(1)
	if _, err := use(); err != nil {
		t.Errorf("honest claim afterwards: %v", err)
	}
}

// TestForeignNames: a device reaches nothing that is not its own, whatever it
// says, and each attempt is an event of the device whose certificate it was.
func TestForeignNames(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	victim := s.boot("v1")
	topic := func(k wire.Kind) string { return wire.Topic(victim.id, k) }
	payload, err := wire.Marshal(&wire.Presence{ID: wire.MessageID{Boot: 1, Counter: 1}})
	if err != nil {
		t.Fatal(err)
	}
	subscribe := func(filter string) func(*raw) error {
		return func(r *raw) error {
			code, err := r.subscribe(filter)
			if err == nil && code != 0x80 {
				err = errors.New("subscribed")
			} else if err == nil {
				err = errCut // a refusal as good as a cut
			}
			return err
		}
	}
	for name, c := range map[string]struct {
		do    func(*raw) error // errCut is what is wanted
		event string
		fresh bool // do opens the session itself
	}{
		"publish up of another":       {do: func(r *raw) error { return r.publish(topic(wire.UpPresence), payload) }, event: "foreign-topic"},
		"publish down of another":     {do: func(r *raw) error { return r.publish(topic(wire.DownDesired), payload) }, event: "foreign-topic"},
		"publish own down":            {do: func(r *raw) error { return r.publish(wire.Topic(r.id, wire.DownDesired), payload) }, event: "foreign-topic"},
		"publish outside":             {do: func(r *raw) error { return r.publish("skein/2/x", payload) }, event: "foreign-topic"},
		"subscribe to another's down": {do: subscribe(topic(wire.DownDesired)), event: "foreign-topic"},
		"subscribe to everything":     {do: subscribe("#"), event: "foreign-topic"},
		"subscribe to all down":       {do: subscribe("skein/1/+/+/down/desired"), event: "foreign-topic"},
		"subscribe to own up":         {do: func(r *raw) error { return subscribe(wire.Topic(r.id, wire.UpReport))(r) }, event: "foreign-topic"},
		"shared subscription":         {do: subscribe("$share/g/" + topic(wire.DownDesired)), event: "foreign-topic"},
		"foreign client id": {fresh: true, event: "foreign-client-id", do: func(r *raw) error {
			return refused(r.connect(honest(victim.id)))
		}},
		"foreign will": {fresh: true, event: "foreign-will", do: func(r *raw) error {
			c := honest(r.id)
			c.WillFlag, c.WillQos, c.WillTopic, c.WillPayload = true, 1, topic(wire.UpPresence), payload
			return refused(r.connect(c))
		}},
		"retained will": {fresh: true, do: func(r *raw) error {
			c := honest(r.id)
			c.WillFlag, c.WillQos, c.WillRetain, c.WillTopic, c.WillPayload = true, 1, true, wire.Topic(r.id, wire.UpPresence), payload
			return refused(r.connect(c))
		}},
		"persistent session": {fresh: true, event: "persistent-session", do: func(r *raw) error {
			c := honest(r.id)
			c.Clean = false
			return refused(r.connect(c))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			id := s.enroll().opts.Identity
			r, err := s.dial(id)
			if err != nil {
				t.Fatal(err)
			}
			if !c.fresh {
				if code, err := r.connect(honest(r.id)); err != nil || code != 0 {
					t.Fatalf("connect: code %d, %v", code, err)
				}
			}
			if err := c.do(r); !errors.Is(err, errCut) {
				t.Fatalf("want a refusal, got %v", err)
			}
			until(t, "the event "+c.event, func() bool {
				if c.event == "" { // the protocol itself forbids it
					return true
				}
				for _, e := range s.events(id.DeviceID) {
					if e.GetKind() == c.event {
						return true
					}
				}
				return false
			})
			// The same device, honest again.
			if err := s.session(id).hello(1, 1, wire.Generation{}); err != nil {
				t.Errorf("honest session afterwards: %v", err)
			}
		})
	}
	victim.serves()
	if d := s.get(victim.id); d.GetState() != fleetv1.DeviceState_DEVICE_STATE_ONLINE {
		t.Errorf("the victim is %s", d.GetState())
	}
	s.release("v2", version{bias: 2})
	s.settle(victim, "v2")
	victim.serves()
}

// refused makes errCut of a CONNACK that refuses.
func refused(code byte, err error) error {
	if err == nil && code != 0 {
		return errCut
	}
	return err
}

func TestSecondSessionOnOneCertificate(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	d := s.boot("v1")
	thief := s.session(d.opts.Identity)
	s.awaitEvent(d.id, "second-session", "identity", "takes the place of a live one")
	// The honest device takes its place back, which is an incident again.
	until(t, "the thief's session to end", func() bool { return errors.Is(thief.publish(wire.Topic(d.id, wire.UpEvent), nil), errCut) })
	until(t, "two incidents", func() bool { return s.count(d.id, "second-session", "identity", "") >= 2 })
	d.serves()
	s.release("v2", version{bias: 2})
	s.settle(d, "v2")
	d.serves()
	s.kept(d)
}

func TestRevokedCertificate(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	d, other := s.boot("v1"), s.boot("v1")
	resp, err := s.op.Fleet.RevokeDevice(t.Context(), &fleetv1.RevokeDeviceRequest{Device: d.id, Reason: "stolen"})
	if err != nil || !resp.GetSessionEnded() {
		t.Fatalf("revoke: session ended %v, %v", resp.GetSessionEnded(), err)
	}
	until(t, "the device to say that its certificate is refused", func() bool {
		return d.status().Link != "connected" && d.condition("certificate-refused") != ""
	})
	r, err := s.dial(d.opts.Identity)
	if err == nil {
		err = refused(r.connect(packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: d.id}))
	}
	if !errors.Is(err, errCut) {
		t.Errorf("reconnect with a revoked certificate: %v", err)
	}
	if err := s.renew(d.opts.Identity); !has(err, "revoked") {
		t.Errorf("renew with a revoked certificate: %v", err)
	}
	if status, _ := s.fetch(d.opts.Identity, "/tuf/timestamp.json"); status != 401 {
		t.Errorf("trust metadata with a revoked certificate: status %d", status)
	}
	if st := s.get(d.id).GetState(); st != fleetv1.DeviceState_DEVICE_STATE_REVOKED {
		t.Errorf("state %s", st)
	}
	if !s.audited("FleetService/RevokeDevice", "allowed", d.id) {
		t.Error("the revocation is not in the audit log")
	}
	if err := s.tryAssign(d.id, "v1"); !has(err, "revoked") {
		t.Errorf("assign to a revoked device: %v", err)
	}
	// A session that says nothing ends too, and at once.
	silent := s.session(s.enroll().opts.Identity)
	if _, err := s.op.Fleet.RevokeDevice(t.Context(), &fleetv1.RevokeDeviceRequest{Device: silent.id}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, _, err := silent.await(packets.Pingresp); !errors.Is(err, errCut) || time.Since(began) > 5*time.Second {
		t.Errorf("the silent session of a revoked device: %v after %s", err, time.Since(began))
	}
	d.serves() // what runs goes on
	s.release("v2", version{bias: 2})
	s.settle(other, "v2")
}

func TestExpiredCertificateMayRenewOnly(t *testing.T) {
	t.Parallel()
	s := start(t, oldCA)
	s.release("v1", version{bias: 1})
	d := s.enroll()
	expired := *d.opts.Identity
	expired.Certificate = [][]byte{s.issue(&expired, time.Now().Add(-40*24*time.Hour), time.Now().Add(-10*24*time.Hour))}
	r, err := s.dial(&expired)
	if err == nil { // in TLS 1.3 the refusal may come with the first read
		err = refused(r.connect(honest(expired.DeviceID)))
	}
	if !errors.Is(err, errCut) && !has(err, "expired") {
		t.Errorf("MQTT with an expired certificate: %v", err)
	}
	for _, path := range []string{"/tuf/timestamp.json", "/v2/skein/blobs/sha256:" + zeros} {
		if status, body := s.fetch(&expired, path); status != 401 || !has(errors.New(body), "expired") {
			t.Errorf("%s with an expired certificate: %d %s", path, status, body)
		}
	}
	ancient := expired
	ancient.Certificate = [][]byte{s.issue(&ancient, time.Now().Add(-300*24*time.Hour), time.Now().Add(-200*24*time.Hour))}
	if err := s.renew(&ancient); !has(err, "expired") {
		t.Errorf("renew 200 days after the end: %v", err)
	}
	if err := s.renew(&expired); err != nil {
		t.Fatalf("renew with an expired certificate: %v", err)
	}
	if !s.audited("EnrollService/Renew", "allowed", expired.DeviceID) {
		t.Error("the renewal is not in the audit log")
	}
	// The agent that boots with it renews by itself and works.
	d.opts.Identity, d.opts.Link = &expired, nil
	d.run()
	s.settle(d, "v1")
	d.serves()
}
