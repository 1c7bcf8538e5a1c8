package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/trust"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/proto/wire"
)

// TestHostileDesired says desired states to a device in the control plane's
// place: none is applied, each refusal names the attack, and the next honest
// desired state is.
func TestHostileDesired(t *testing.T) {
	t.Parallel()
	s := start(t)
	first := s.release("v1", version{bias: 1})
	second := s.release("v2", version{bias: 2})
	d := s.boot("v1")
	s.settle(d, "v2")
	director := s.director()
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := trust.NewSigner(ecKey)
	if err != nil {
		t.Fatal(err)
	}
	index, err := ota.ParseDigest(first.GetDigest())
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.op.Releases.GetRelease(t.Context(), &releasev1.GetReleaseRequest{Release: "meter@v1"})
	if err != nil {
		t.Fatal(err)
	}
	length := int64(len(r.GetIndex()))
	// honestly is what the control plane would say next: v1 again.
	honestly := func() wire.Desired {
		g := d.status().Held
		return wire.Desired{Device: d.id, Tenant: "default", Generation: wire.Generation{Epoch: g.Epoch, Counter: g.Counter + 1},
			IssuedAt: time.Now().Unix(), ExpiresAt: time.Now().Add(time.Hour).Unix(), RollbackAllowed: true,
			Release: &wire.ReleaseRef{Target: "releases/meter/v1", Digest: index.Sum(), Length: length, Counter: first.GetCounter()}}
	}
	sign := func(by *trust.Signer, aad string, change func(*wire.Desired)) []byte {
		w := honestly()
		change(&w)
		payload, err := wire.Marshal(&w)
		if err != nil {
			t.Fatal(err)
		}
		if by == nil {
			return payload
		}
		msg, err := trust.Sign(by, aad, payload)
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
	none := func(*wire.Desired) {}
	cases := []struct {
		name   string
		attack string
		say    func() []byte
	}{
		{"unsigned", "unsigned", func() []byte { return sign(nil, "", none) }},
		{"junk", "unsigned", func() []byte { return []byte("junk") }},
		{"wrong key", "arbitrary-signature", func() []byte { return sign(stranger, wire.AADDesired, none) }},
		{"signed as a command", "arbitrary-signature", func() []byte { return sign(director, wire.AADCmd, none) }},
		{"one bit changed", "arbitrary-signature", func() []byte {
			b := sign(director, wire.AADDesired, none)
			b[len(b)-1] ^= 1
			return b
		}},
		{"another device", "wrong-device", func() []byte {
			return sign(director, wire.AADDesired, func(w *wire.Desired) { w.Device = wire.FormatDeviceID([16]byte{1}) })
		}},
		{"another tenant", "wrong-device", func() []byte { return sign(director, wire.AADDesired, func(w *wire.Desired) { w.Tenant = "other" }) }},
		{"expired", "expired", func() []byte {
			return sign(director, wire.AADDesired, func(w *wire.Desired) { w.ExpiresAt = time.Now().Add(-time.Hour).Unix() })
		}},
		{"old generation", "replay", func() []byte {
			return sign(director, wire.AADDesired, func(w *wire.Desired) { w.Generation = wire.Generation{Epoch: 1, Counter: 1} })
		}},
		{"replayed", "replay", func() []byte { return d.tap.desired()[0] }},
		{"other content in the generation held", "replay", func() []byte {
			return sign(director, wire.AADDesired, func(w *wire.Desired) { w.Generation = d.status().Held })
		}},
		{"release that the image repository does not list", "director-image-disagreement", func() []byte {
			return sign(director, wire.AADDesired, func(w *wire.Desired) { w.Release.Target = w.Release.Target + "-evil" })
		}},
		{"content that the image repository does not list", "director-image-disagreement", func() []byte {
			return sign(director, wire.AADDesired, func(w *wire.Desired) { w.Release.Digest = make([]byte, 32) })
		}},
		{"release counter turned up", "director-image-disagreement", func() []byte {
			return sign(director, wire.AADDesired, func(w *wire.Desired) { w.Release.Counter += 100 })
		}},
		{"older release", "rollback", func() []byte {
			return sign(director, wire.AADDesired, func(w *wire.Desired) { w.RollbackAllowed = false })
		}},
	}
	for _, c := range cases {
		held, before := d.status().Held, s.count(d.id, "refused", c.attack, "")
		var said time.Time
		until(t, c.name+": the refusal "+c.attack+" at the control plane", func() bool {
			// An honest one that comes at the same moment takes its place: the
			// device looks at the newest only.
			if time.Since(said) > 3*time.Second {
				d.tap.say(wire.DownDesired, c.say())
				said = time.Now()
			}
			return s.count(d.id, "refused", c.attack, "") > before
		})
		if st := d.status(); st.Held != held || st.RunningName != "meter@v2" {
			t.Errorf("%s: holds %v (before: %v), runs %s", c.name, st.Held, held, st.RunningName)
		}
		if n := d.app.bias.Load(); n != 2 {
			t.Errorf("%s: the model of bias %d answers", c.name, n)
		}
		d.serves()
		// The next honest desired state is taken, and the condition goes.
		s.note(d, c.name)
		until(t, c.name+": the condition to go", func() bool { return d.condition("trust-refused") == "" })
	}
	// The condition holds until the next honest message, which may be near.
	n := 0
	until(t, "the condition trust-refused at the control plane", func() bool {
		if n++; d.condition("trust-refused") == "" {
			d.tap.say(wire.DownDesired, fmt.Appendf(nil, "junk %d", n))
		}
		return s.condition(d.id, "trust-refused") != ""
	})
	if second.GetCounter() <= first.GetCounter() {
		t.Errorf("counters %d, %d", first.GetCounter(), second.GetCounter())
	}
	s.release("v3", version{bias: 3})
	s.settle(d, "v3")
	d.serves()
	s.kept(d)
}
