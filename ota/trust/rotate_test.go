package trust

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

func TestRotate(t *testing.T) {
	for _, role := range []string{"root", "targets", "snapshot", "timestamp", "director"} {
		t.Run(role, func(t *testing.T) {
			w := newWorld(t)
			before, err := w.client.DirectorKeys()
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := w.repo.Rotate(t.Context(), role, w.now); err != nil {
					t.Fatal(err)
				}
			}
			path := w.release()
			w.mustRefresh()
			if _, err := w.client.Target(path); err != nil {
				t.Error(err)
			}
			after, err := w.client.DirectorKeys()
			if err != nil {
				t.Fatal(err)
			}
			if changed := !after[0].(ed25519.PublicKey).Equal(before[0]); changed != (role == "director") {
				t.Errorf("director's key changed: %v", changed)
			}
			s, err := w.repo.DirectorSigner()
			if err != nil {
				t.Fatal(err)
			}
			if !s.Public().(ed25519.PublicKey).Equal(after[0]) {
				t.Error("repository signs with a key that devices do not trust")
			}
			// A repository opened anew finds the keys again, and a device that
			// was given the first root arrives too.
			if w.repo, err = openRepo(w.repo.files); err != nil {
				t.Fatal(err)
			}
			path = w.release()
			for _, anchor := range [][]byte{w.anchor, w.repo.Root()} {
				if w.client, err = NewClient(slot.NewMem(), anchor); err != nil {
					t.Fatal(err)
				}
				w.mustRefresh()
				if _, err := w.client.Target(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestRevokedKey: what a key signs after its rotation is refused.
func TestRevokedKey(t *testing.T) {
	w := newWorld(t)
	keys, err := w.repo.keys.forRole(w.repo.root, metadata.TIMESTAMP)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.repo.Rotate(t.Context(), metadata.TIMESTAMP, w.now); err != nil {
		t.Fatal(err)
	}
	w.mustRefresh()
	m, err := metadata.Timestamp().FromBytes(w.meta("timestamp.json"))
	if err != nil {
		t.Fatal(err)
	}
	m.Signed.Version++
	if w.over["timestamp.json"], err = sign(m, keys...); err != nil {
		t.Fatal(err)
	}
	// Also when the root that revokes it is held back.
	w.over["2.root.json"] = nil
	w.attack(ClassArbitrary)
}

// TestFastForward: versions and the signed time were run up with stolen keys;
// rotating the keys brings devices back.
func TestFastForward(t *testing.T) {
	w := newWorld(t)
	const far = 1<<31 - 1
	honest := [2]int64{w.repo.snapshot.Signed.Version, w.repo.timestamp.Signed.Version}
	w.repo.snapshot.Signed.Version, w.repo.timestamp.Signed.Version = far, far
	if err := w.repo.signSnapshot(w.now.Add(300 * 24 * time.Hour)); err != nil {
		t.Fatal(err)
	}
	w.mustRefresh()
	if got := w.client.TrustedTime(); !got.After(w.now.Add(200 * 24 * time.Hour)) {
		t.Fatalf("trusted time %s: the attack did not take", got)
	}
	w.repo.snapshot.Signed.Version, w.repo.timestamp.Signed.Version = honest[0], honest[1]
	if err := w.repo.signSnapshot(w.now); err != nil {
		t.Fatal(err)
	}
	before := w.state()
	if err := w.refresh(); AttackClass(err) == "" {
		t.Fatalf("versions went back unnoticed: %v", err)
	}
	if w.state()[setFile] != before[setFile] {
		t.Error("refused, yet the set changed")
	}
	for _, role := range []string{metadata.SNAPSHOT, metadata.TIMESTAMP} {
		if err := w.repo.Rotate(t.Context(), role, w.now); err != nil {
			t.Fatal(err)
		}
	}
	path := w.release()
	w.mustRefresh()
	if _, err := w.client.Target(path); err != nil {
		t.Error(err)
	}
	if got := w.client.TrustedTime(); got.After(w.now) {
		t.Errorf("trusted time is still %s, now is %s", got, w.now)
	}
}

func TestEndlessRootRotation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const extra = 10
	for range maxRootRotations + extra {
		if err := w.repo.signRoot(w.now, nil); err != nil {
			t.Fatal(err)
		}
	}
	path := w.release()
	asked := 0
	count := func(ctx context.Context, name string) ([]byte, error) {
		asked++
		return w.source(ctx, name)
	}
	set := w.state()[setFile]
	if err := w.client.Refresh(t.Context(), count, w.now); AttackClass(err) != ClassRootWalk {
		t.Fatalf("got %v", err)
	}
	if asked != maxRootRotations || w.state()[setFile] != set || w.client.RootVersion() != maxRootRotations+1 {
		t.Errorf("asked for %d files, at root %d", asked, w.client.RootVersion())
	}
	w.mustRefresh()
	if _, err := w.client.Target(path); err != nil || w.client.RootVersion() != maxRootRotations+extra+1 {
		t.Errorf("at root %d: %v", w.client.RootVersion(), err)
	}
}

// TestRefreshAcrossPowerCuts kills a refresh over a root rotation at every
// operation: what is on disk is trusted before or after, never a mixture, and
// the next refresh arrives.
func TestRefreshAcrossPowerCuts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old := w.client.Targets()
	if err := w.repo.Rotate(t.Context(), metadata.TIMESTAMP, w.now); err != nil {
		t.Fatal(err)
	}
	path := w.release()
	for n := 0; ; n += stride(3) {
		mem := after(w.mem, false, 0)
		c, err := NewClient(mem, w.anchor)
		if err != nil {
			t.Fatal(err)
		}
		mem.FailAfter(n)
		err = c.Refresh(t.Context(), w.source, w.now)
		if err == nil {
			if n < 4 {
				t.Fatalf("refresh took %d operations", n)
			}
			return
		}
		if !errors.Is(err, slot.ErrCut) {
			t.Fatal(err)
		}
		for seed := range seeds(12) {
			c, err := NewClient(mem.Crash(seed), w.anchor)
			if err != nil {
				t.Fatalf("cut at %d, seed %d: %v", n, seed, err)
			}
			if got := c.Targets(); !slices.Equal(got, old) && !slices.Contains(got, path) {
				t.Errorf("cut at %d, seed %d: knows %v", n, seed, got)
			}
			if err := c.Refresh(t.Context(), w.source, w.now); err != nil {
				t.Errorf("cut at %d, seed %d: next refresh: %v", n, seed, err)
			}
			if _, err := c.Target(path); err != nil {
				t.Errorf("cut at %d, seed %d: %v", n, seed, err)
			}
		}
	}
}

// TestAddTargetAcrossPowerCuts: at every point devices find a whole set, and
// the repository can go on.
func TestAddTargetAcrossPowerCuts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for n := 0; ; n += stride(3) {
		mem := after(w.repo.files.(*slot.Mem), false, 0)
		repo, err := openRepo(mem)
		if err != nil {
			t.Fatal(err)
		}
		mem.FailAfter(n)
		err = repo.AddTarget(t.Context(), "releases/meter/9", 9, ota.DigestOf(nil), TargetCustom{Counter: 9}, w.now)
		if err == nil {
			return
		}
		for seed := range seeds(8) {
			repo, err := openRepo(mem.Crash(seed))
			if err != nil {
				t.Fatalf("cut at %d, seed %d: %v", n, seed, err)
			}
			c, err := NewClient(w.mem.Crash(seed), w.anchor)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Refresh(t.Context(), repo.Source(), w.now); err != nil {
				t.Errorf("cut at %d, seed %d: %v", n, seed, err)
			}
			if err := repo.AddTarget(t.Context(), "releases/meter/9", 9, ota.DigestOf(nil), TargetCustom{Counter: 9}, w.now); err != nil {
				t.Errorf("cut at %d, seed %d: %v", n, seed, err)
			}
			if err := c.Refresh(t.Context(), repo.Source(), w.now); err != nil {
				t.Errorf("cut at %d, seed %d: %v", n, seed, err)
			}
			if _, err := c.Target("releases/meter/9"); err != nil {
				t.Errorf("cut at %d, seed %d: %v", n, seed, err)
			}
		}
	}
}

// seeds is how many outcomes of a power cut are explored at each point.
func seeds(n uint64) uint64 {
	if testing.Short() {
		return 2
	}
	return n
}

func TestRepoRefusals(t *testing.T) {
	w := newWorld(t)
	add := func(path string, length int64, d ota.Digest, c TargetCustom) error {
		return w.repo.AddTarget(t.Context(), path, length, d, c, w.now)
	}
	d := ota.DigestOf(nil)
	if err := add("releases/meter/1", 5, d, TargetCustom{}); !errors.Is(err, ErrTargetExists) {
		t.Errorf("changed release: %v", err)
	}
	before := w.versions()
	if err := add("releases/meter/1", 101, ota.DigestOf([]byte("releases/meter/1")), TargetCustom{Counter: 1}); err != nil || w.versions() != before {
		t.Errorf("same again: %v, %s, was %s", err, w.versions(), before)
	}
	for _, path := range []string{"", ".", "..", "../x", "/x", "a/../b", "a//b", "a\\b", "a\x00", "a b", "ü", DirectorTarget, strings.Repeat("a", 600)} {
		if err := add(path, 1, d, TargetCustom{}); err == nil {
			t.Errorf("path %q was listed", path)
		}
	}
	for name, err := range map[string]error{
		"length": add("a", -1, d, TargetCustom{}), "digest": add("b", 1, "sha256:12", TargetCustom{}),
		"counter": add("c", 1, d, TargetCustom{Counter: 1 << 60}),
	} {
		if err == nil {
			t.Errorf("%s was listed", name)
		}
	}
	w.mustRefresh()
	for _, name := range []string{"", "keys/root.pem", "../keys", "0.root.json", "2.timestamp.json", "1.root.json/..", "99.root.json", "01.root.json"} {
		if _, err := w.repo.Metadata(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Metadata(%q): %v", name, err)
		}
	}
}

func TestRepoRefresh(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	before := string(w.meta("timestamp.json"))
	if err := w.repo.Refresh(w.now.Add(24 * time.Hour)); err != nil || string(w.meta("timestamp.json")) != before {
		t.Errorf("signed anew after a day: %v", err)
	}
	// A year of daily refreshes: a device that looks once a week never sees
	// anything expired, and old files go away.
	for day := range 400 {
		w.now = start.Add(time.Duration(day) * 24 * time.Hour)
		if err := w.repo.Refresh(w.now); err != nil {
			t.Fatal(err)
		}
		if day%7 == 0 {
			w.mustRefresh()
		}
		if left := w.repo.Expires().Sub(w.now); left < TimestampLife/2-time.Hour {
			t.Fatalf("day %d: %s left", day, left)
		}
	}
	files, err := w.repo.files.ReadDir(metaDir)
	if err != nil || len(files) > 2*keepVersions+6 {
		t.Errorf("%d files, %v", len(files), err)
	}
}

// TestOnlineKeysOnly: without root and targets keys releases cannot be listed,
// and timestamps are signed all the same.
func TestOnlineKeysOnly(t *testing.T) {
	w := newWorld(t)
	for id, key := range w.repo.keys {
		for _, role := range []string{metadata.ROOT, metadata.TARGETS} {
			if slices.Contains(w.repo.root.Signed.Roles[role].KeyIDs, id) {
				files, err := w.repo.files.ReadDir(keyDir)
				if err != nil {
					t.Fatal(err)
				}
				for _, f := range files {
					if strings.HasPrefix(f.Name(), role+"-") {
						if err := w.repo.files.Remove(keyDir + "/" + f.Name()); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
		}
		_ = key
	}
	var err error
	if w.repo, err = openRepo(w.repo.files); err != nil {
		t.Fatal(err)
	}
	if err := w.repo.AddTarget(t.Context(), "x", 1, ota.DigestOf(nil), TargetCustom{}, w.now); !errors.Is(err, ErrPending) {
		t.Errorf("listed without the targets key: %v", err)
	}
	if err := w.repo.Rotate(t.Context(), metadata.TIMESTAMP, w.now); !errors.Is(err, ErrNoKey) {
		t.Errorf("rotated without the root key: %v", err)
	}
	w.now = w.now.Add(6 * 24 * time.Hour)
	if err := w.repo.Refresh(w.now); err != nil {
		t.Fatal(err)
	}
	w.mustRefresh()
	if left := w.client.Expires().Sub(w.now); left < 6*24*time.Hour {
		t.Errorf("%s left", left)
	}
}

func TestInitDev(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "trust")
	s, err := InitDev(dir, "skein.local", start)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Keys) != 5 {
		t.Errorf("keys %q", s.Keys)
	}
	for _, k := range s.Keys {
		st, err := os.Stat(filepath.Join(dir, k))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", k, st.Mode(), err)
		}
	}
	if _, err := InitDev(dir, "other", start); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second time: %v", err)
	}
	r, err := OpenRepo(dir)
	if err != nil {
		t.Fatal(err)
	}
	if ota.DigestOf(r.Root()) != s.RootDigest {
		t.Error("root changed")
	}
	if _, err := OpenRepo(t.TempDir()); !errors.Is(err, ErrNoRepo) {
		t.Errorf("empty folder: %v", err)
	}
}

// TestStandardMetadata checks what other TUF readers rely on.
func TestStandardMetadata(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"root.json", "targets.json", "snapshot.json", "timestamp.json"} {
		var m struct {
			Signatures []struct{ KeyID, Sig string }
			Signed     struct {
				Type        string `json:"_type"`
				SpecVersion string `json:"spec_version"`
				Version     int
				Expires     string
				Consistent  bool `json:"consistent_snapshot"`
				Targets     map[string]struct{ Hashes map[string]string }
				Meta        map[string]struct {
					Length int
					Hashes map[string]string
				}
			}
		}
		if err := json.Unmarshal(w.meta(name), &m); err != nil {
			t.Fatal(err)
		}
		s := m.Signed
		if s.Type+".json" != name || !strings.HasPrefix(s.SpecVersion, "1.0.") || s.Version < 1 || len(m.Signatures) != 1 || s.Consistent != (name == "root.json") {
			t.Errorf("%s: %+v", name, m)
		}
		if _, err := time.Parse("2006-01-02T15:04:05Z", s.Expires); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for path, target := range s.Targets {
			if len(target.Hashes) != 1 || target.Hashes["sha256"] == "" {
				t.Errorf("%s: %s has hashes %v, want sha256 alone", name, path, target.Hashes)
			}
		}
		for file, mf := range s.Meta {
			if len(mf.Hashes) != 1 || mf.Length == 0 {
				t.Errorf("%s: %s: %+v", name, file, mf)
			}
		}
	}
}

func TestTrustedTime(t *testing.T) {
	w := newWorld(t)
	if got := w.client.TrustedTime(); !got.Equal(w.now) {
		t.Errorf("after the first refresh %s, want %s", got, w.now)
	}
	for _, c := range []struct{ see, want time.Time }{
		{start.Add(-time.Hour), start},
		{start.Add(30 * time.Second), start},
		{start.Add(time.Hour), start.Add(time.Hour)},
		{start.Add(1000 * time.Hour), start.Add(TimestampLife - time.Hour)},
	} {
		if err := w.client.Observe(c.see); err != nil {
			t.Fatal(err)
		}
		if got := w.client.TrustedTime(); !got.Equal(c.want) {
			t.Errorf("saw %s: trusted time %s, want %s", c.see, got, c.want)
		}
	}
	again, err := NewClient(w.mem.Restart(), w.anchor)
	if err != nil || !again.TrustedTime().Equal(w.client.TrustedTime()) {
		t.Errorf("after a restart %s, %v", again.TrustedTime(), err)
	}
	w.mustRefresh() // what was observed does not make honest metadata look old
}

// TestSourceErrors: a source that is down is no attack and changes nothing.
func TestSourceErrors(t *testing.T) {
	down := errors.New("no route")
	for _, name := range []string{"2.root.json", "timestamp.json", "3.snapshot.json", "3.targets.json"} {
		w := newWorld(t)
		w.release()
		before := w.state()
		err := w.client.Refresh(t.Context(), func(ctx context.Context, file string) ([]byte, error) {
			if file == name {
				return nil, down
			}
			return w.source(ctx, file)
		}, w.now)
		if !errors.Is(err, down) || AttackClass(err) != "" || fmt.Sprint(w.state()) != fmt.Sprint(before) {
			t.Errorf("%s: %v", name, err)
		}
		w.mustRefresh()
	}
}

func TestDamagedState(t *testing.T) {
	for _, name := range []string{rootFile, setFile, timeFile} {
		for _, content := range []string{"", "{", "null", `{"timestamp":"e30=","snapshot":"e30=","targets":"e30="}`} {
			w := newWorld(t)
			if err := w.mem.WriteFile(name, []byte(content)); err != nil {
				t.Fatal(err)
			}
			var err error
			if w.client, err = NewClient(w.mem, w.anchor); err != nil {
				t.Fatalf("%s %q: %v", name, content, err)
			}
			w.mustRefresh()
			if len(w.client.Targets()) != 2 {
				t.Errorf("%s %q: targets %v", name, content, w.client.Targets())
			}
		}
	}
	if _, err := NewClient(slot.NewMem(), []byte("{}")); err == nil {
		t.Error("no root, yet a client")
	}
}

// FuzzRefresh: whatever bytes stand in for a file, nothing panics, nothing is
// applied, and the next honest refresh works.
func FuzzRefresh(f *testing.F) {
	mem := slot.NewMem()
	if _, err := initDev(mem, "d", start); err != nil {
		f.Fatal(err)
	}
	repo, err := openRepo(mem)
	if err != nil {
		f.Fatal(err)
	}
	files := []string{"2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"}
	for i, name := range []string{"root.json", "timestamp.json", "snapshot.json", "targets.json"} {
		b, err := repo.Metadata(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	f.Add(uint8(0), []byte(`{"signed":{"_type":"root","version":2,"roles":{"root":null},"keys":{"a":null}},"signatures":null}`))
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		name := files[int(which)%len(files)]
		honest, _ := repo.Metadata(name)
		c, err := NewClient(slot.NewMem(), repo.Root())
		if err != nil {
			t.Fatal(err)
		}
		err = c.Refresh(t.Context(), func(_ context.Context, file string) ([]byte, error) {
			if file == name {
				return b, nil
			}
			return repo.Metadata(file)
		}, start)
		if err == nil {
			if name == "1.snapshot.json" || name == "1.targets.json" {
				if string(b) != string(honest) {
					t.Fatalf("%s was accepted", name)
				}
			}
			return
		}
		if AttackClass(err) == "" || len(c.Targets()) != 0 {
			t.Fatalf("%v, targets %v", err, c.Targets())
		}
		if err := c.Refresh(t.Context(), repo.Source(), start); err != nil {
			t.Fatal(err)
		}
	})
}

// TestFullRepo: the list never grows past what devices read.
func TestFullRepo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	long := "releases/" + strings.Repeat("n", 400) + "/"
	if err := putTarget(&w.repo.targets.Signed, long+"0", 1, ota.DigestOf(nil), TargetCustom{Counter: 1}); err != nil {
		t.Fatal(err)
	}
	list := w.repo.targets.Signed.Targets
	for i := range MaxTargets {
		list[fmt.Sprint(long, i)] = list[long+"0"]
	}
	before := w.meta("timestamp.json")
	// Already over the number, with what putTarget left in memory only.
	if err := w.repo.AddTarget(t.Context(), "one/more", 1, ota.DigestOf(nil), TargetCustom{}, w.now); !errors.Is(err, ErrFull) {
		t.Errorf("by number: %v", err)
	}
	delete(w.repo.targets.Signed.Targets, "releases/meter/1")
	delete(w.repo.targets.Signed.Targets, DirectorTarget)
	if err := w.repo.settle(w.repo.signTargets(w.now)); !errors.Is(err, ErrFull) {
		t.Errorf("by size: %v", err)
	}
	if string(w.meta("timestamp.json")) != string(before) {
		t.Error("published all the same")
	}
	w.release()
	w.mustRefresh()
}

// TestKnownAcrossRotations: while the source is down after a rotation a device
// knows what was listed, unless the key that listed it was revoked; it does
// not matter whether it restarted.
func TestKnownAcrossRotations(t *testing.T) {
	for role, known := range map[string]bool{"timestamp": true, "snapshot": true, "targets": false, "root": true} {
		w := newWorld(t)
		if err := w.repo.Rotate(t.Context(), role, w.now); err != nil {
			t.Fatal(err)
		}
		w.over["timestamp.json"] = nil
		if err := w.refresh(); !errors.Is(err, fs.ErrNotExist) || w.client.RootVersion() != 2 {
			t.Fatalf("%s: at root %d, %v", role, w.client.RootVersion(), err)
		}
		again, err := NewClient(w.mem.Restart(), w.anchor)
		if err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]*Client{"same process": w.client, "restarted": again} {
			_, err := c.Target("releases/meter/1")
			_, keysErr := c.DirectorKeys()
			if (err == nil) != known || (keysErr == nil) != known {
				t.Errorf("%s rotated, %s: %v, %v", role, name, err, keysErr)
			}
		}
		clear(w.over)
		w.client = again
		w.mustRefresh()
		if _, err := again.Target("releases/meter/1"); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	}
}
