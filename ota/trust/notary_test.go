package trust

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

var goldenDigest = ota.DigestOf([]byte("golden"))

func meterPolicy() AutoPolicy {
	return AutoPolicy{Model: "meter", Paths: []string{"releases/meter/auto-*"}, MaxBytes: 5000, Golden: []ota.Digest{goldenDigest},
		Layers: []LayerRule{{MediaType: manifest.MediaWeights, Formats: []string{"onnx"}, MaxBytes: 4000}}}
}

func autoRequest(t *testing.T, counter uint64) ListRequest {
	t.Helper()
	target, err := ota.ParseTarget("linux/arm64;sm=8.7")
	if err != nil {
		t.Fatal(err)
	}
	version := fmt.Sprintf("%s%d", AutoVersion, counter)
	req := ListRequest{Role: AutoRole("meter")}
	b := manifest.Build{Release: manifest.Release{Name: "meter", Version: version, Counter: counter, Model: "meter", ModelVersion: 1}, Targets: []ota.Target{target},
		ONNX: manifest.Descriptor{Digest: ota.DigestOf([]byte(version)), Size: 1000}, Golden: manifest.Descriptor{Digest: goldenDigest, Size: 6}}
	_, raw, _, err := b.Write(t.Context(), func(_ context.Context, mediaType string, data []byte) (manifest.Descriptor, error) {
		if mediaType == manifest.MediaManifest {
			req.Manifests = append(req.Manifests, data)
		}
		return manifest.Descriptor{MediaType: mediaType, Digest: ota.DigestOf(data), Size: int64(len(data))}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	req.Index = raw
	return req
}

// delegateDev delegates in a repository whose keys are all in its folder.
func delegateDev(t *testing.T, r *Repo) {
	t.Helper()
	key, err := r.AutoKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Delegate(t.Context(), meterPolicy(), []NamedKey{{Key: key}}, start); err != nil {
		t.Fatal(err)
	}
}

// TestListAcrossPowerCuts: at every point devices find a whole set, and the
// release can be listed again.
func TestListAcrossPowerCuts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	delegateDev(t, w.repo)
	req := autoRequest(t, 9)
	for n := 0; ; n += stride(5) {
		mem := after(w.repo.files.(*slot.Mem), false, 0)
		repo, err := openRepo(mem)
		if err != nil {
			t.Fatal(err)
		}
		mem.FailAfter(n)
		err = repo.List(t.Context(), req, w.now)
		if err == nil {
			if n < 6 {
				t.Fatalf("listing took %d operations", n)
			}
			return
		}
		for seed := range seeds(6) {
			repo, err := openRepo(mem.Crash(seed))
			if err != nil {
				t.Fatalf("cut at %d, seed %d: %v", n, seed, err)
			}
			c, err := NewClient(w.mem.Crash(seed), w.anchor)
			if err != nil {
				t.Fatal(err)
			}
			for _, again := range []bool{false, true} {
				if again {
					if err := repo.List(t.Context(), req, w.now); err != nil {
						t.Errorf("cut at %d, seed %d: %v", n, seed, err)
					}
				}
				if err := c.Refresh(t.Context(), repo.Source(), w.now, "releases/meter/auto-9"); err != nil {
					t.Errorf("cut at %d, seed %d: %v", n, seed, err)
				}
			}
			if info, err := c.Target("releases/meter/auto-9"); err != nil || info.Custom.Counter != 9 {
				t.Errorf("cut at %d, seed %d: %+v, %v", n, seed, info, err)
			}
		}
	}
}

// notaryWorld is a repository whose online keys are in a notary, and a device.
func notaryWorld(t *testing.T) (w *world, notaryDir *slot.Mem) {
	t.Helper()
	notaryDir = slot.NewMem()
	if _, err := InitNotary(notaryDir); err != nil {
		t.Fatal(err)
	}
	keys := map[string][]NamedKey{"root": named(alice), "targets": named(dave)}
	for _, role := range []string{"snapshot", "timestamp"} {
		k, err := keyOf(notaryDir, role)
		if err != nil {
			t.Fatal(err)
		}
		keys[role] = []NamedKey{{Key: k.Public().(ed25519.PublicKey)}}
	}
	f := slot.NewMem()
	if err := Init(f, InitOptions{Domain: "skein.local", Keys: keys}, start); !errors.Is(err, ErrPending) {
		t.Fatal(err)
	}
	repo, err := openRepo(f)
	if err != nil {
		t.Fatal(err)
	}
	alice.sign(t, repo, start)
	dave.sign(t, repo, start)
	if s := repo.Status(); s.Roles[0].Version != 1 || s.Roles[1].Version != 0 || len(s.Drafts) != 1 {
		t.Fatalf("%+v", s)
	}
	if err := AnchorNotary(notaryDir, repo.Root()); err != nil {
		t.Fatal(err)
	}
	w = &world{t: t, mem: slot.NewMem(), anchor: repo.Root(), now: start, over: map[string][]byte{}}
	w.repo = withNotary(t, f, notaryDir)
	if err := w.repo.Refresh(start); err != nil {
		t.Fatal(err)
	}
	if w.client, err = NewClient(w.mem, w.anchor); err != nil {
		t.Fatal(err)
	}
	w.mustRefresh()
	return w, notaryDir
}

func withNotary(t *testing.T, f, notaryDir slot.Files) *Repo {
	t.Helper()
	n, err := OpenNotary(notaryDir, func() time.Time { return start }, func(NotaryEntry) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	r, err := openRepo(f, n)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestNotaryAcrossPowerCuts cuts the power of both machines, the signer's and
// the repository's, at every operation of each, while a delegation is published
// and a release listed. Devices that saw anything in between go on.
func TestNotaryAcrossPowerCuts(t *testing.T) {
	t.Parallel()
	w, notaryDisk := notaryWorld(t)
	key, err := w.repo.AutoKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.repo.Delegate(t.Context(), meterPolicy(), []NamedKey{{Key: key}}, start); !errors.Is(err, ErrPending) {
		t.Fatal(err)
	}
	digest, id, sig, err := w.repo.SignDraft("targets", dave.key)
	if err != nil {
		t.Fatal(err)
	}
	filesDisk, req := w.repo.files.(*slot.Mem), autoRequest(t, 4)
	for _, whose := range []string{"signer", "repository"} {
		for n := 0; ; n += stride(7) {
			files, notaryDir := after(filesDisk, false, 0), after(notaryDisk, false, 0)
			repo := withNotary(t, files, notaryDir)
			cut := map[string]*slot.Mem{"signer": notaryDir, "repository": files}[whose]
			cut.FailAfter(n)
			err := repo.AddSignature(t.Context(), "targets", digest, id, sig, start)
			if err == nil {
				err = repo.List(t.Context(), req, start)
			}
			if err == nil {
				if n < 4 {
					t.Fatalf("%s: %d operations", whose, n)
				}
				break
			}
			for seed := range seeds(3) {
				fa, na := after(files, whose == "repository", seed), after(notaryDir, whose == "signer", seed)
				repo := withNotary(t, fa, na)
				c, err := NewClient(w.mem.Crash(seed), w.anchor)
				if err != nil {
					t.Fatal(err)
				}
				look := func(what string) {
					if err := c.Refresh(t.Context(), repo.Source(), start, "releases/meter/auto-4"); err != nil {
						t.Errorf("%s cut at %d, seed %d, %s: %v", whose, n, seed, what, err)
					}
				}
				look("before the restart")
				if err := repo.Refresh(start); err != nil && !errors.Is(err, ErrPending) {
					t.Errorf("%s cut at %d, seed %d: %v", whose, n, seed, err)
				}
				look("after it")
				if d := repo.Status().Drafts; len(d) > 0 && !d[0].Complete() {
					dave.sign(t, repo, start)
				}
				if err := repo.List(t.Context(), req, start); err != nil {
					t.Errorf("%s cut at %d, seed %d: list: %v", whose, n, seed, err)
				}
				look("at the end")
				if _, err := c.Target("releases/meter/auto-4"); err != nil {
					t.Errorf("%s cut at %d, seed %d: %v", whose, n, seed, err)
				}
			}
		}
	}
}

// after is a disk after the power cut of its machine, or as it was.
func after(m *slot.Mem, cut bool, seed uint64) *slot.Mem {
	if cut {
		return m.Crash(seed)
	}
	return m.Crash(0) // all that had returned is durable
}

// TestNotaryKeepsCount: versions only grow, whatever it is shown.
func TestNotaryKeepsCount(t *testing.T) {
	w, notaryDir := notaryWorld(t)
	key, err := keyOf(notaryDir, metadata.TIMESTAMP)
	if err != nil {
		t.Fatal(err)
	}
	n, err := OpenNotary(notaryDir, func() time.Time { return start }, func(NotaryEntry) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	targets := w.meta("targets.json")
	first, err := n.Publish(t.Context(), PublishRequest{Targets: targets})
	if err != nil {
		t.Fatal(err)
	}
	version := func(b []byte) int64 {
		m, err := metadata.Timestamp().FromBytes(b)
		if err != nil {
			t.Fatal(err)
		}
		return m.Signed.Version
	}
	// An older timestamp of its own, a newer one of somebody else's, and one of
	// its own that is far ahead, as after a loss of its state.
	forged, err := metadata.Timestamp().FromBytes(first.Timestamp)
	if err != nil {
		t.Fatal(err)
	}
	forged.Signed.Version = 1 << 40
	foreign, err := sign(forged, newPerson("mallory").key)
	if err != nil {
		t.Fatal(err)
	}
	own, err := sign(forged, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		shown []byte
		want  int64
	}{{w.meta("timestamp.json"), version(first.Timestamp) + 1}, {foreign, version(first.Timestamp) + 2}, {[]byte("junk"), version(first.Timestamp) + 3}, {own, 1<<40 + 1}} {
		p, err := n.Publish(t.Context(), PublishRequest{Targets: targets, Timestamp: tt.shown})
		if err != nil {
			t.Fatal(err)
		}
		if got := version(p.Timestamp); got != tt.want {
			t.Errorf("version %d, want %d", got, tt.want)
		}
	}
	if !isLog(t, notaryDir) {
		t.Error("a signature leaves although the log fails")
	}
}

// isLog reports whether a notary whose log fails hands nothing out.
func isLog(t *testing.T, dir *slot.Mem) bool {
	t.Helper()
	n, err := OpenNotary(dir, func() time.Time { return start }, func(NotaryEntry) error { return errors.New("disk full") })
	if err != nil {
		t.Fatal(err)
	}
	p, err := n.Publish(t.Context(), PublishRequest{Targets: n.state.Targets})
	return err != nil && p.Timestamp == nil
}
