package attack

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// serves lets the attacker answer with files while an honest release is wanted.
func serves(make func(s *scene) (map[string][]byte, error)) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		set, err := make(s)
		if err != nil {
			return err
		}
		s.d.man.setAnswer(files(set))
		return s.bait(ctx)
	}
}

// forges is serves with what a thief builds.
func forges(build func(s *scene, f *forgery) error) func(context.Context, *scene) error {
	return serves(func(s *scene) (map[string][]byte, error) {
		f, err := s.thief.forge(s.w)
		if err != nil {
			return nil, err
		}
		return f.files, build(s, f)
	})
}

// metadataAttacks are those on what the repository says, by whoever stands
// between it and the device, with no key or those that are online.
func metadataAttacks() []Attack {
	const state = "the device's trusted set moves forward only"
	return []Attack{
		{Name: "rollback-timestamp", Row: "rollback (metadata)", Class: trust.ClassRollback, Refuser: state + ": versions of the timestamp",
			strike: serves(func(s *scene) (map[string][]byte, error) { return s.w.first, nil })},
		{Name: "rollback-snapshot", Row: "rollback (metadata)", Class: trust.ClassRollback, Refuser: state + ": versions of the snapshot, with a stolen timestamp key", place: own, mayAlter: []string{onlySeen}, lift: rotateOnline,
			strike: forges(func(s *scene, f *forgery) error {
				old, err := s.thief.forgeOn(s.w.first)
				if err != nil {
					return err
				}
				v := number(old.snap.Signed, "version")
				field(f.ts.Signed, "meta")["snapshot.json"] = entry(v, old.snapRaw)
				f.files[fmt.Sprintf("%d.snapshot.json", v)] = old.snapRaw
				return f.putTimestamp(0)
			})},
		{Name: "rollback-targets", Row: "rollback (metadata)", Class: trust.ClassRollback, Refuser: state + ": versions of the targets, with stolen timestamp and snapshot keys", place: own, mayAlter: []string{onlySeen}, lift: rotateOnline,
			strike: forges(func(s *scene, f *forgery) error {
				old, err := s.thief.forgeOn(s.w.first)
				if err != nil {
					return err
				}
				f.putTargetsRaw(number(old.targets.Signed, "version"), old.listRaw)
				return f.publish()
			})},
		{Name: "freeze", Row: "freeze", Class: trust.ClassFreeze, Refuser: "a timestamp lives 7 days", place: own, strike: freeze},
		{Name: "fast-forward", Row: "fast-forward", Class: trust.ClassFastForward, Refuser: "root: rotated keys void what they signed",
			place: own, strike: fastForward, mayAlter: []string{"state/trust/"},
			lift: func(ctx context.Context, s *scene) error { return s.w.rotate(ctx, "timestamp", "snapshot") }},
		{Name: "mix-and-match-snapshot", Row: "mix-and-match", Class: trust.ClassMixAndMatch, Refuser: "the timestamp says version, length and hash of the snapshot", place: own,
			strike: mixes(func(old, now *forgery) map[string][]byte {
				return map[string][]byte{fmt.Sprintf("%d.snapshot.json", number(now.snap.Signed, "version")): old.snapRaw}
			}), mayAlter: []string{onlySeen}},
		{Name: "mix-and-match-targets", Row: "mix-and-match", Class: trust.ClassMixAndMatch, Refuser: "the snapshot says version, length and hash of the targets", place: own,
			strike: mixes(func(old, now *forgery) map[string][]byte {
				return map[string][]byte{fmt.Sprintf("%d.targets.json", number(now.targets.Signed, "version")): old.listRaw}
			}), mayAlter: []string{onlySeen}},
		{Name: "stolen-online-keys", Row: "arbitrary software", Class: trust.ClassArbitrary, Refuser: "only the targets key lists content", place: own, mayAlter: []string{onlySeen}, lift: rotateOnline,
			strike: forges(func(s *scene, f *forgery) error {
				_, key, err := ed25519.GenerateKey(rand.Reader)
				if err != nil {
					return err
				}
				keys, err := f.keysOf("targets")
				if err != nil {
					return err
				}
				for id := range keys {
					keys[id] = key // under the true name
				}
				f.list(s.w.releases[bait].path(), []byte("evil"), s.w.releases[bait].counter)
				if err := f.putTargets(0, keys); err != nil {
					return err
				}
				return f.publish()
			})},
		{Name: "unsigned-metadata", Row: "arbitrary software", Class: trust.ClassArbitrary, Refuser: "metadata counts with its signatures only",
			strike: forges(func(_ *scene, f *forgery) error {
				raise(f.ts, 0)
				raw, err := f.ts.sign(nil)
				f.files["timestamp.json"] = raw
				return err
			})},
		{Name: "forged-root", Row: "arbitrary software", Class: trust.ClassArbitrary, Refuser: "a root counts when the root before it signed it",
			strike: forges(func(_ *scene, f *forgery) error {
				pub, key, err := ed25519.GenerateKey(rand.Reader)
				if err != nil {
					return err
				}
				v := raise(f.root, 0)
				for role := range field(f.root.Signed, "roles") {
					r := field(f.root.Signed, "roles", role)
					ids, _ := r["keyids"].([]any)
					for _, id := range ids {
						field(f.root.Signed, "keys", fmt.Sprint(id), "keyval")["public"] = hex.EncodeToString(pub)
					}
				}
				keys := map[string]ed25519.PrivateKey{}
				ids, _ := field(f.root.Signed, "roles", "root")["keyids"].([]any)
				for _, id := range ids {
					keys[fmt.Sprint(id)] = key
				}
				raw, err := f.root.sign(keys)
				f.files[fmt.Sprintf("%d.root.json", v)] = raw
				return err
			})},
		{Name: "endless-metadata", Row: "endless data", Class: trust.ClassEndless, Refuser: "each file of metadata has a limit; no length is said",
			strike: endlessMetadata(-1)},
		{Name: "endless-metadata-declared", Row: "endless data", Class: trust.ClassEndless, Refuser: "each file of metadata has a limit; a length of 1 TiB is said",
			strike: endlessMetadata(1 << 40)},
		{Name: "malformed-metadata", Row: "arbitrary software", Class: trust.ClassMalformed, Refuser: "strict parsers",
			strike: serves(func(*scene) (map[string][]byte, error) {
				return map[string][]byte{"timestamp.json": []byte(`{"signed":{"_type":"timestamp","meta":[[[[]]]]},"signatures":{}}`)}, nil
			})},
		{Name: "duplicate-json-keys", Row: "bad input", Class: trust.ClassMalformed, Refuser: "metadata in which a key stands twice is refused, signed or not",
			strike: forges(func(_ *scene, f *forgery) error {
				if err := f.putTimestamp(0); err != nil {
					return err
				}
				// The signature is right for the last of the two, which is what most readers see.
				f.files["timestamp.json"] = bytes.Replace(f.files["timestamp.json"], []byte(`"version":`), []byte(`"version":1,"version":`), 1)
				return nil
			})},
		{Name: "time-1970", Row: "downgrade of time", Class: trust.ClassExpired, Refuser: "the trusted time is on disk and goes forward only", strike: time1970,
			device: func(o *deviceOptions) { o.ownLink = true },
			lift:   func(_ context.Context, s *scene) error { s.d.setClock(nil); return s.d.reboot() }},
	}
}

// rotateOnline replaces the keys that are online.
func rotateOnline(ctx context.Context, s *scene) error {
	return s.w.rotate(ctx, "timestamp", "snapshot")
}

// mixes shows files of yesterday under the names of today: an honest release is
// made in between.
func mixes(pick func(old, now *forgery) map[string][]byte) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		old, err := s.thief.forge(s.w)
		if err != nil {
			return err
		}
		if _, err := s.w.release(ctx, 1000+s.suite.next(), targetText); err != nil {
			return err
		}
		now, err := s.thief.forge(s.w)
		if err != nil {
			return err
		}
		s.d.man.setAnswer(files(pick(old, now)))
		return s.bait(ctx)
	}
}

// freeze lets a week pass: the control plane signs anew, the attacker goes on
// to show what was signed before.
func freeze(ctx context.Context, s *scene) error {
	set, err := s.w.metadata()
	if err != nil {
		return err
	}
	s.d.man.setAnswer(files(set))
	err = s.w.away(ctx, func() error {
		s.w.shift.Add(int64(8 * 24 * time.Hour))
		return nil
	})
	if err != nil {
		return err
	}
	return s.bait(ctx)
}

// fastForward runs the versions up with stolen online keys: the device takes
// that, for it cannot know, and then refuses what is honest.
func fastForward(ctx context.Context, s *scene) error {
	f, err := s.thief.forge(s.w)
	if err != nil {
		return err
	}
	const most = 1<<31 - 1
	if err := f.putSnapshot(most); err != nil {
		return err
	}
	if err := f.putTimestamp(most); err != nil {
		return err
	}
	asked := time.Now()
	s.d.man.setAnswer(files(f.files))
	by, err := stranger()
	if err != nil {
		return err
	}
	// What no known key has signed makes the device refresh its metadata.
	if err := s.order(by, s.desired(bait, nil)); err != nil {
		return err
	}
	err = s.until(ctx, func() (bool, error) {
		return len(s.d.man.requests(fmt.Sprintf("/tuf/%d.snapshot.json", most), asked)) > 0 && s.d.condition("trust-refused") != "", nil
	})
	if err != nil {
		return fmt.Errorf("the device did not take the metadata: %w", err)
	}
	s.d.man.gone()
	return s.bait(ctx)
}

func endlessMetadata(length int64) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		s.d.man.setAnswer(func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
			if fileOf(r) != "timestamp.json" {
				return next.RoundTrip(r)
			}
			return reply(r, http.StatusOK, io.MultiReader(strings.NewReader(`{"signed":"`), endless{}), length), nil
		})
		return s.bait(ctx)
	}
}

// endless gives bytes for ever.
type endless struct{}

// Read implements io.Reader.
func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// time1970 sets the clock back and shows a desired state whose time was over
// an hour ago.
func time1970(_ context.Context, s *scene) error {
	s.d.setClock(func(t time.Time) time.Time { return time.Unix(0, 0).Add(t.Sub(s.begun)) })
	if err := s.d.reboot(); err != nil {
		return err
	}
	by, err := s.thief.director()
	if err != nil {
		return err
	}
	d := s.desired(bait, func(d *wire.Desired) {
		d.IssuedAt, d.ExpiresAt = s.w.now().Add(-2*time.Hour).Unix(), s.w.now().Add(-time.Hour).Unix()
	})
	return s.order(by, d)
}

// keyAttacks are those with keys that should never be stolen.
func keyAttacks() []Attack {
	evil := func(s *scene, f *forgery) {
		f.list(s.w.releases[bait].path(), []byte("evil"), s.w.releases[bait].counter)
	}
	one := func(f *forgery) (map[string]ed25519.PrivateKey, error) {
		keys, err := f.keysOf("targets")
		if err != nil || len(keys) != 2 {
			return nil, fmt.Errorf("want two targets keys, there are %d: %v", len(keys), err)
		}
		for id := range keys {
			delete(keys, id)
			break
		}
		return keys, nil
	}
	return []Attack{
		{Name: "image-repository", Row: "image repository compromise", Class: trust.ClassDisagreement, Refuser: "the director names length, hash and counter; all keys of the repository are stolen",
			strike: forges(func(s *scene, f *forgery) error {
				keys, err := f.keysOf("targets")
				if err != nil {
					return err
				}
				evil(s, f)
				if err := f.putTargets(0, keys); err != nil {
					return err
				}
				return f.publish()
			}), mayAlter: []string{"state/trust/"},
			place: own, lift: func(ctx context.Context, s *scene) error { return s.w.rotate(ctx, "targets", "snapshot", "timestamp") }},
		{Name: "one-of-two-keys", Row: "arbitrary software", Class: trust.ClassArbitrary, Refuser: "two of two keys must sign the targets, one was stolen", place: threshold, mayAlter: []string{onlySeen}, lift: rotateOnline,
			strike: forges(func(s *scene, f *forgery) error {
				keys, err := one(f)
				if err != nil {
					return err
				}
				evil(s, f)
				if err := f.putTargets(0, keys); err != nil {
					return err
				}
				return f.publish()
			})},
		{Name: "duplicate-signature", Row: "duplicate keyid", Class: trust.ClassMalformed, Refuser: "one key signs once, or the file is refused", place: threshold, mayAlter: []string{onlySeen}, lift: rotateOnline,
			strike: forges(func(s *scene, f *forgery) error {
				keys, err := one(f)
				if err != nil {
					return err
				}
				evil(s, f)
				v := raise(f.targets, 0)
				if _, err := f.targets.sign(keys); err != nil {
					return err
				}
				f.targets.Signatures = append(f.targets.Signatures, f.targets.Signatures...)
				raw, err := canonical(f.targets)
				if err != nil {
					return err
				}
				f.putTargetsRaw(v, raw)
				return f.publish()
			})},
		{Name: "endless-root-rotation", Row: "arbitrary software", Class: trust.ClassRootWalk, Refuser: "at most 256 rotations at once, with a stolen root key", strike: endlessRoots,
			mayAlter: []string{"state/trust/root.json"}},
	}
}

// rootsAtOnce is how many rotations of the root a device follows before it
// refuses the next.
const rootsAtOnce = 256

// endlessRoots makes roots for ever; all are rightly signed.
func endlessRoots(ctx context.Context, s *scene) error {
	f, err := s.thief.forge(s.w)
	if err != nil {
		return err
	}
	keys, err := f.keysOf("root")
	if err != nil {
		return err
	}
	var mu sync.Mutex
	asked := 0 // roots that the device asked for
	s.d.man.setAnswer(func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		text, ok := strings.CutSuffix(fileOf(r), ".root.json")
		version, err := strconv.ParseInt(text, 10, 64)
		if !ok || err != nil {
			return next.RoundTrip(r)
		}
		mu.Lock()
		defer mu.Unlock()
		asked++
		raise(f.root, version)
		raw, err := f.root.sign(keys)
		if err != nil {
			return nil, err
		}
		return serve(r, raw), nil
	})
	if err := s.bait(ctx); err != nil {
		return err
	}
	// So many signatures take a busy machine longer than the suite waits for a
	// name: that begins when the device has asked for as many as it takes at once.
	// One that asks for ever is found short all the same.
	err = wait(ctx, 4*patience, func() (bool, error) {
		mu.Lock()
		defer mu.Unlock()
		return asked >= rootsAtOnce, nil
	})
	if errors.Is(err, errPatience) {
		return nil
	}
	return err
}

// twoOfTwo makes a repository in which two keys must sign the targets.
func twoOfTwo(dir string) error {
	if _, err := trust.InitDev(dir, "skein.local", time.Now()); err != nil {
		return err
	}
	root, err := os.ReadFile(filepath.Join(dir, "metadata", "1.root.json"))
	if err != nil {
		return err
	}
	w := &world{dir: filepath.Dir(filepath.Dir(dir))}
	t, err := newThief(w, 0)
	if err != nil {
		return err
	}
	m, err := parseMeta(root)
	if err != nil {
		return err
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	public := map[string]any{"keytype": "ed25519", "scheme": "ed25519", "keyval": map[string]any{"public": hex.EncodeToString(pub)}}
	form, err := canonical(public)
	if err != nil {
		return err
	}
	id := ota.DigestOf(form).Hex()
	field(m.Signed, "keys")[id] = public
	role := field(m.Signed, "roles", "targets")
	ids, _ := role["keyids"].([]any)
	role["keyids"], role["threshold"] = append(ids, id), json.Number("2")
	raise(m, 0)
	keys, err := (&forgery{t: t, root: m}).keysOf("root")
	if err != nil {
		return err
	}
	raw, err := m.sign(keys)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "keys", "targets-"+id[:12]+".pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600),
		os.WriteFile(filepath.Join(dir, "metadata", "2.root.json"), raw, 0o600))
}
