package attack

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// autoVersion is the version of the attacker's release in an auto role.
const autoVersion = trust.AutoVersion + "66"

// delegate makes a repository whose persons let releases of the product be made
// with no hand: weights alone, proven by golden sets that they chose.
func delegate(ctx context.Context, dir string) error {
	if _, err := trust.InitDev(dir, "skein.local", time.Now()); err != nil {
		return err
	}
	repo, err := trust.OpenRepo(dir)
	if err != nil {
		return err
	}
	key, err := repo.AutoKey(ctx)
	if err != nil {
		return err
	}
	p := trust.AutoPolicy{Model: product, Paths: []string{"releases/" + product + "/" + trust.AutoVersion + "*"}, MaxBytes: 8 << 20,
		Layers: []trust.LayerRule{{MediaType: manifest.MediaWeights, Formats: []string{"onnx"}, MaxBytes: 4 << 20}}}
	for _, n := range []int{bait, next} {
		g, err := golden(n)
		if err != nil {
			return err
		}
		p.Golden = append(p.Golden, ota.DigestOf(g))
	}
	return repo.Delegate(ctx, p, []trust.NamedKey{{Key: key}}, time.Now())
}

// takeBack is what persons do when the control plane and its signer were taken
// over: no key of theirs is lost, so all others are replaced, and nothing is
// made with no hand any more.
func takeBack(ctx context.Context, s *scene) error {
	if err := s.w.rotate(ctx, "snapshot", "timestamp", "director"); err != nil {
		return err
	}
	return s.w.away(ctx, func() error {
		repo, err := trust.OpenRepo(s.w.trustDir())
		if err != nil {
			return err
		}
		return repo.Undelegate(ctx, product, s.w.now())
	})
}

// putAuto lists an artifact in the auto role, signed with the stolen key of
// that role; snapshot and timestamp follow with theirs.
func (f *forgery) putAuto(set map[string][]byte, path string, content []byte, counter uint64, more func(m *metaFile)) error {
	role := trust.AutoRole(product)
	v := number(field(f.snap.Signed, "meta", role+".json"), "version")
	m, err := parseMeta(set[fmt.Sprintf("%d.auto%%2F%s.json", v, product)])
	if err != nil {
		return fmt.Errorf("the auto role: %w", err)
	}
	field(m.Signed, "targets")[path] = map[string]any{"length": len(content), "hashes": map[string]any{"sha256": ota.DigestOf(content).Hex()},
		"custom": map[string]any{"counter": counter}}
	if more != nil {
		more(m)
	}
	keys := map[string]ed25519.PrivateKey{}
	for id, k := range field(f.targets.Signed, "delegations", "keys") {
		key, _ := k.(map[string]any)
		public, _ := field(key, "keyval")["public"].(string)
		if stolen, ok := f.t.keys[public]; ok {
			keys[id] = stolen
		}
	}
	if len(keys) == 0 {
		return errors.New("the auto key was not stolen")
	}
	v = raise(m, 0)
	raw, err := m.sign(keys)
	if err != nil {
		return err
	}
	for _, name := range []string{"auto%2F" + product, "auto/" + product} { // quoted or not, as the asker asks
		f.files[fmt.Sprintf("%d.%s.json", v, name)] = raw
	}
	field(f.snap.Signed, "meta")[role+".json"] = entry(v, raw)
	return f.publish()
}

// takeover is a release in the auto role, and the metadata that lists it.
type takeover struct {
	*fake
	index []byte
	files map[string][]byte
}

// takesOver is a strike with all that a control plane and its signer know: the
// director's key, the blobs, the metadata folder, and the keys of snapshot,
// timestamp and the auto role. Targets and root keys are with persons.
func takesOver(change func(f *fake) error, more func(m *metaFile)) func(context.Context, *scene) error {
	return func(_ context.Context, s *scene) error {
		t, err := newTakeover(s, change, more)
		if err != nil {
			return err
		}
		s.onlyHTTPS()
		s.d.man.setAnswer(both(files(t.files), blobs(t.blobs)))
		return t.order(int64(len(t.index)))
	}
}

// newTakeover makes a changed release and lists it.
func newTakeover(s *scene, change func(f *fake) error, more func(m *metaFile)) (*takeover, error) {
	f, err := newFake(s)
	if err != nil {
		return nil, err
	}
	f.path = "releases/" + product + "/" + autoVersion
	field(f.index, "annotations")[manifest.AnnVersion] = autoVersion
	if err := change(f); err != nil {
		return nil, err
	}
	index, err := f.seal()
	if err != nil {
		return nil, err
	}
	f.put(index)
	set, err := s.w.metadata()
	if err != nil {
		return nil, err
	}
	forged, err := s.thief.forgeOn(set)
	if err != nil {
		return nil, err
	}
	return &takeover{fake: f, index: index, files: forged.files}, forged.putAuto(set, f.path, index, f.counter, more)
}

// order makes the director name the release, with a length.
func (t *takeover) order(length int64) error {
	by, err := t.s.thief.director()
	if err != nil {
		return err
	}
	return t.s.order(by, t.s.desired(bait, func(w *wire.Desired) {
		w.Release = &wire.ReleaseRef{Target: t.path, Digest: ota.DigestOf(t.index).Sum(), Length: length, Counter: t.counter}
	}))
}

// confuse lets the device learn a delegated role, lets persons take the
// delegation back, and then names what the role listed.
func confuse(ctx context.Context, s *scene) error {
	t, err := newTakeover(s, func(*fake) error { return nil }, nil)
	if err != nil {
		return err
	}
	s.onlyHTTPS()
	s.d.man.setAnswer(both(files(t.files), blobs(t.blobs)))
	if err := t.order(1); err != nil { // refused, since the length is another; the role is held from then on
		return err
	}
	err = s.until(ctx, func() (bool, error) {
		classes, _, err := s.classes(ctx)
		return slices.Contains(classes, trust.ClassDisagreement), err
	})
	if err != nil {
		return fmt.Errorf("the device did not learn the role: %w", err)
	}
	if held, err := os.ReadFile(filepath.Join(s.d.dir, trustedSet)); err != nil || !strings.Contains(string(held), trust.AutoRole(product)) {
		return fmt.Errorf("the device does not hold the role: %w", err)
	}
	if err := errors.Join(s.w.rotate(ctx, "snapshot", "timestamp"), s.w.away(ctx, func() error {
		repo, err := trust.OpenRepo(s.w.trustDir())
		if err != nil {
			return err
		}
		return repo.Undelegate(ctx, product, s.w.now())
	})); err != nil {
		return err
	}
	if err := s.forget(ctx); err != nil {
		return err
	}
	role := map[string][]byte{} // alone is still shown
	for name, raw := range t.files {
		if strings.Contains(name, "auto") {
			role[name] = raw
		}
	}
	s.d.man.setAnswer(both(files(role), blobs(t.blobs)))
	return t.order(int64(len(t.index)))
}

// autoAttacks are those of somebody who took the control plane and the online
// signer over: no code that persons did not sign runs.
func autoAttacks() []Attack {
	adds := func(mediaType, title string) func(f *fake) error {
		return func(f *fake) error {
			code := []byte("#!/bin/sh\nid > /tmp/owned\n")
			f.layers = append(f.layers, layer(mediaType, title, f.put(code), len(code)))
			return nil
		}
	}
	row := func(name, class, refuser string, strike func(context.Context, *scene) error) Attack {
		return Attack{Name: name, Row: "control plane taken over", Class: class, Refuser: refuser + "; director, snapshot, timestamp and auto keys are stolen",
			strike: strike, place: autoPlace, mayAlter: stolen, lift: takeBack}
	}
	confusion := row("delegation-confusion", trust.ClassDisagreement, "a role that is held counts under the delegation of today", confuse)
	confusion.Row, confusion.lift = "delegation confusion", func(ctx context.Context, s *scene) error { return s.w.rotate(ctx, "director") }
	const policy = "the policy that persons signed names weights and golden sets, nothing else"
	return []Attack{
		confusion,
		row("auto-key-agent", trust.ClassUnauthorised, policy, takesOver(adds("application/vnd.skein.agent.v1", "skein-agent"), nil)),
		row("auto-key-container", trust.ClassUnauthorised, policy, takesOver(adds("application/vnd.oci.image.layer.v1.tar+gzip", "layer.tar.gz"), nil)),
		row("auto-key-script-as-weights", trust.ClassUnauthorised, policy, takesOver(adds(manifest.MediaWeights, "run.sh"), nil)),
		row("auto-key-golden", trust.ClassUnauthorised, policy, takesOver(func(f *fake) error {
			g, err := golden(66)
			if err != nil {
				return err
			}
			f.layers[1] = layer(manifest.MediaGolden, "golden.json", f.put(g), len(g))
			return nil
		}, nil)),
		row("auto-key-policy", trust.ClassUnauthorised, "a policy counts in the top-level targets alone",
			takesOver(adds("application/vnd.skein.agent.v1", "skein-agent"), func(m *metaFile) {
				field(m.Signed, "targets")[trust.PolicyTarget(product)] = map[string]any{"length": 2, "hashes": map[string]any{"sha256": ota.DigestOf([]byte("{}")).Hex()},
					"custom": map[string]any{"policy": map[string]any{"model": product, "paths": []any{"releases/*/*"}, "maxBytes": 1 << 30,
						"layers": []any{map[string]any{"mediaType": "application/vnd.skein.agent.v1", "digests": []any{string(ota.DigestOf([]byte("#!/bin/sh\nid > /tmp/owned\n")))}}},
						"golden": []any{}}}}
			})),
		row("auto-key-other-path", trust.ClassDisagreement, "the auto role may list only releases/"+product+"/auto-*",
			takesOver(func(f *fake) error {
				f.path = "releases/" + product + "/66"
				field(f.index, "annotations")[manifest.AnnVersion] = "66"
				return nil
			}, nil)),
	}
}
