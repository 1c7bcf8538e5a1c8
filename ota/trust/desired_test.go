package trust

import (
	"crypto"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

func TestCheckDesired(t *testing.T) {
	const device, tenant = "aaaaaaaaaaaaaaaaaaaaaaaaaa", "default"
	d := ota.DigestOf([]byte("index"))
	base := wire.Desired{Device: device, Tenant: tenant, Generation: wire.Generation{Epoch: 1, Counter: 5},
		IssuedAt: start.Unix(), ExpiresAt: start.Add(time.Hour).Unix(),
		Release: &wire.ReleaseRef{Target: "releases/meter/3", Digest: d.Sum(), Length: 10, Counter: 3}}
	image := TargetInfo{Path: "releases/meter/3", Length: 10, Digest: d, Custom: TargetCustom{Counter: 3}}
	held := wire.Generation{Epoch: 1, Counter: 4}
	type in struct {
		d       wire.Desired
		held    wire.Generation
		highest uint64
		image   TargetInfo
		now     time.Time
	}
	for name, c := range map[string]struct {
		change func(*in)
		class  string
	}{
		"good":                      {func(*in) {}, ""},
		"sent again":                {func(c *in) { c.held = c.d.Generation }, ""},
		"first after a restore":     {func(c *in) { c.held = wire.Generation{Epoch: 0, Counter: 99} }, ""},
		"nothing to run":            {func(c *in) { c.d.Release = nil; c.image = TargetInfo{} }, ""},
		"same release again":        {func(c *in) { c.highest = 3 }, ""},
		"rollback that is allowed":  {func(c *in) { c.highest = 4; c.d.RollbackAllowed = true }, ""},
		"another device":            {func(c *in) { c.d.Device = "bbbbbbbbbbbbbbbbbbbbbbbbbb" }, ClassWrongDevice},
		"another tenant":            {func(c *in) { c.d.Tenant = "other" }, ClassWrongDevice},
		"empty for another device":  {func(c *in) { c.d.Release = nil; c.d.Device = "" }, ClassWrongDevice},
		"older generation":          {func(c *in) { c.held.Counter = 6 }, ClassReplay},
		"older epoch":               {func(c *in) { c.held = wire.Generation{Epoch: 2} }, ClassReplay},
		"expired":                   {func(c *in) { c.now = start.Add(time.Hour) }, ClassExpired},
		"no expiry":                 {func(c *in) { c.d.ExpiresAt = 0 }, ClassExpired},
		"rollback":                  {func(c *in) { c.highest = 4 }, ClassRollback},
		"unknown to the repository": {func(c *in) { c.image = TargetInfo{} }, ClassDisagreement},
		"another path":              {func(c *in) { c.image.Path = "releases/meter/4" }, ClassDisagreement},
		"another digest":            {func(c *in) { c.image.Digest = ota.DigestOf(nil) }, ClassDisagreement},
		"another length":            {func(c *in) { c.image.Length++ }, ClassDisagreement},
		"another counter":           {func(c *in) { c.image.Custom.Counter++ }, ClassDisagreement},
		"no digest on either side":  {func(c *in) { c.image.Digest = "sha256:"; r := *c.d.Release; r.Digest = nil; c.d.Release = &r }, ClassDisagreement},
		"director alone, rollback allowed": {func(c *in) {
			c.d.RollbackAllowed = true
			c.image.Custom.Counter = 2
		}, ClassDisagreement},
	} {
		c0 := in{d: base, held: held, highest: 3, image: image, now: start}
		c.change(&c0)
		err := CheckDesired(c0.d, device, tenant, c0.held, c0.highest, c0.image, c0.now)
		if got := AttackClass(err); got != c.class || (err == nil) != (c.class == "") {
			t.Errorf("%s: class %q of %v, want %q", name, got, err, c.class)
		}
	}
}

// TestDirectorToDevice is the whole way: signed by the director, verified with
// the keys that came through the image repository.
func TestDirectorToDevice(t *testing.T) {
	w := newWorld(t)
	path := w.release()
	w.mustRefresh()
	info, err := w.client.Target(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := w.repo.DirectorSigner()
	if err != nil {
		t.Fatal(err)
	}
	payload, err := wire.Marshal(wire.Desired{Device: "d", Tenant: "t", ExpiresAt: w.now.Add(time.Hour).Unix(),
		Release: &wire.ReleaseRef{Target: path, Digest: info.Digest.Sum(), Length: info.Length, Counter: info.Custom.Counter}})
	if err != nil {
		t.Fatal(err)
	}
	msg, err := Sign(s, wire.AADDesired, payload)
	if err != nil {
		t.Fatal(err)
	}
	check := func(keys []crypto.PublicKey) error {
		got, err := Verify(keys, wire.AADDesired, msg)
		if err != nil {
			return err
		}
		var d wire.Desired
		if err := wire.UnmarshalCanonical(got, &d); err != nil {
			return err
		}
		info, err := w.client.Target(d.Release.Target)
		if err != nil {
			return err
		}
		return CheckDesired(d, "d", "t", wire.Generation{}, 0, info, w.now)
	}
	keys, err := w.client.DirectorKeys()
	if err != nil {
		t.Fatal(err)
	}
	if err := check(keys); err != nil {
		t.Error(err)
	}
	// After the director's key was replaced, what the old one signed is void.
	if err := w.repo.Rotate(t.Context(), "director", w.now); err != nil {
		t.Fatal(err)
	}
	w.mustRefresh()
	if keys, err = w.client.DirectorKeys(); err != nil {
		t.Fatal(err)
	}
	if err := check(keys); err == nil {
		t.Error("a revoked director still commands")
	}
}
