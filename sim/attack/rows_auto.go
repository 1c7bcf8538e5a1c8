package attack

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
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

// takesOver is a strike with all that a control plane and its signer know: the
// director's key, the blobs, the metadata folder, and the keys of snapshot,
// timestamp and the auto role. Targets and root keys are with persons.
func takesOver(change func(f *fake) error, more func(m *metaFile)) func(context.Context, *scene) error {
	return func(_ context.Context, s *scene) error {
		f, err := newFake(s)
		if err != nil {
			return err
		}
		f.path = "releases/" + product + "/" + autoVersion
		field(f.index, "annotations")[manifest.AnnVersion] = autoVersion
		if err := change(f); err != nil {
			return err
		}
		index, err := f.seal()
		if err != nil {
			return err
		}
		d := f.put(index)
		set, err := s.w.metadata()
		if err != nil {
			return err
		}
		forged, err := s.thief.forgeOn(set)
		if err != nil {
			return err
		}
		if err := forged.putAuto(set, f.path, index, f.counter, more); err != nil {
			return err
		}
		s.onlyHTTPS()
		s.d.man.setAnswer(both(files(forged.files), blobs(f.blobs)))
		by, err := s.thief.director()
		if err != nil {
			return err
		}
		return s.order(by, s.desired(bait, func(w *wire.Desired) {
			w.Release = &wire.ReleaseRef{Target: f.path, Digest: d.Sum(), Length: int64(len(index)), Counter: f.counter}
		}))
	}
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
	const policy = "the policy that persons signed names weights and golden sets, nothing else"
	return []Attack{
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
