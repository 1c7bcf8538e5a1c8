package trust

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// person has a key that is never where the repository is.
type person struct {
	name string
	key  ed25519.PrivateKey
}

func newPerson(name string) person {
	return person{name, ed25519.NewKeyFromSeed(fmt.Appendf(nil, "%-32s", name))}
}

func (p person) named() NamedKey { return NamedKey{p.key.Public().(ed25519.PublicKey), p.name} }

func named(ps ...person) []NamedKey {
	var out []NamedKey
	for _, p := range ps {
		out = append(out, p.named())
	}
	return out
}

// sign gives p's signature to each draft that it can sign.
func (p person) sign(t *testing.T, r *Repo, now time.Time) {
	t.Helper()
	id, err := KeyOf(p.key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range []string{metadata.ROOT, metadata.TARGETS} {
		if !r.Signs(role, id) {
			continue
		}
		digest, keyID, sig, err := r.SignDraft(role, p.key)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.AddSignature(t.Context(), role, digest, keyID, sig, now); err != nil && !errors.Is(err, ErrPending) {
			t.Fatal(err)
		}
	}
}

var alice, bob, carol, dave, erin = newPerson("alice"), newPerson("bob"), newPerson("carol"), newPerson("dave"), newPerson("erin")

// offlineRepo has root keys alice, bob and carol (2 needed), targets keys dave
// and erin (both needed), and online keys in its folder.
func offlineRepo(t *testing.T) (*slot.Mem, *Repo) {
	t.Helper()
	f := slot.NewMem()
	err := Init(f, InitOptions{Domain: "skein.local", Keys: map[string][]NamedKey{"root": named(alice, bob, carol), "targets": named(dave, erin)},
		Thresholds: map[string]int{"root": 2, "targets": 2}}, start)
	if !errors.Is(err, ErrPending) {
		t.Fatal(err)
	}
	r, err := openRepo(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []person{alice, dave, bob} {
		p.sign(t, r, start)
		if s := r.Status(); s.Roles[0].Version != 0 || len(s.Drafts) != 2 {
			t.Fatalf("published before erin signed: %+v", s)
		}
	}
	erin.sign(t, r, start)
	if s := r.Status(); len(s.Drafts) != 0 || s.Roles[0].Version != 1 || s.Roles[3].Version != 1 {
		t.Fatalf("not published: %+v", s)
	}
	return f, r
}

// offlineWorld is a device beside it.
func offlineWorld(t *testing.T) *world {
	t.Helper()
	_, r := offlineRepo(t)
	w := &world{t: t, repo: r, mem: slot.NewMem(), anchor: r.Root(), now: start, over: map[string][]byte{}}
	var err error
	if w.client, err = NewClient(w.mem, w.anchor); err != nil {
		t.Fatal(err)
	}
	w.mustRefresh()
	return w
}

// pend lists a release, which then waits.
func (w *world) pend() string {
	w.t.Helper()
	w.count++
	path := fmt.Sprintf("releases/meter/%d", w.count)
	err := w.repo.AddTarget(w.t.Context(), path, 100+int64(w.count), ota.DigestOf([]byte(path)), TargetCustom{Counter: w.count}, w.now)
	if !errors.Is(err, ErrPending) {
		w.t.Fatalf("listed without its signatures: %v", err)
	}
	return path
}

// TestDraftShowsOnlyWhatChanges: a release that was listed in this process is
// no change of the next draft.
func TestDraftShowsOnlyWhatChanges(t *testing.T) {
	w := offlineWorld(t)
	w.pend()
	dave.sign(t, w.repo, w.now)
	erin.sign(t, w.repo, w.now)
	w.pend()
	drafts := w.repo.Status().Drafts
	if len(drafts) != 1 || len(drafts[0].Changes) != 1 || drafts[0].Changes[0].Sign != "+" {
		t.Fatalf("%+v", drafts)
	}
}

func TestOfflineRelease(t *testing.T) {
	w := offlineWorld(t)
	one, two := w.pend(), w.pend()
	for _, path := range []string{one, two} {
		if _, err := w.repo.Target(path); !errors.Is(err, ErrUnknownTarget) {
			t.Errorf("%s: %v", path, err)
		}
	}
	drafts := w.repo.Status().Drafts
	if len(drafts) != 1 || drafts[0].Role != "targets" || drafts[0].Needs[0].Signed() != 0 || drafts[0].Needs[0].Threshold != 2 {
		t.Fatalf("%+v", drafts)
	}
	text := fmt.Sprint(drafts[0].Changes)
	for _, want := range []string{"+ release meter/1, counter 1, 101 bytes, sha256:", "+ release meter/2, counter 2, 102 bytes"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in %s", want, text)
		}
	}
	dave.sign(t, w.repo, w.now)
	w.mustRefresh()
	if _, err := w.client.Target(one); err == nil {
		t.Error("a device knows it with one signature of two")
	}
	// A restart in between keeps the signature.
	var err error
	if w.repo, err = openRepo(w.repo.files); err != nil {
		t.Fatal(err)
	}
	erin.sign(t, w.repo, w.now)
	w.mustRefresh()
	for _, path := range []string{one, two} {
		if _, err := w.client.Target(path); err != nil {
			t.Error(err)
		}
	}
	if err := w.repo.AddTarget(t.Context(), one, 101, ota.DigestOf([]byte(one)), TargetCustom{Counter: 1}, w.now); err != nil {
		t.Errorf("listed again: %v", err)
	}
}

// TestChangedDraft: signatures are for what was looked at.
func TestChangedDraft(t *testing.T) {
	w := offlineWorld(t)
	w.pend()
	digest, id, sig, err := w.repo.SignDraft("targets", dave.key)
	if err != nil {
		t.Fatal(err)
	}
	erin.sign(t, w.repo, w.now)
	w.pend()
	if s := w.repo.Status().Drafts[0]; s.Needs[0].Signed() != 0 {
		t.Error("a signature over other content is kept")
	}
	if err := w.repo.AddSignature(t.Context(), "targets", digest, id, sig, w.now); !errors.Is(err, ErrDraftChanged) {
		t.Errorf("late signature: %v", err)
	}
}

func TestSignatureRefusals(t *testing.T) {
	w := offlineWorld(t)
	w.pend()
	digest, id, sig, err := w.repo.SignDraft("targets", dave.key)
	if err != nil {
		t.Fatal(err)
	}
	add := func(role string, d ota.Digest, id string, sig []byte) error {
		return w.repo.AddSignature(t.Context(), role, d, id, sig, w.now)
	}
	flipped := slices.Clone(sig)
	flipped[3] ^= 1
	erinID, _ := KeyOf(erin.named().Key)
	aliceID, _ := KeyOf(alice.named().Key)
	for name, tt := range map[string]struct {
		err  error
		want error
	}{
		"changed":          {add("targets", digest, id, flipped), ErrBadSignature},
		"under other key":  {add("targets", digest, erinID, sig), ErrBadSignature},
		"of a root key":    {add("targets", digest, aliceID, ed25519.Sign(alice.key, []byte("x"))), ErrBadSignature},
		"of a stranger":    {add("targets", digest, "ab", sig), ErrBadSignature},
		"nothing to sign":  {add("root", digest, id, sig), ErrDraftChanged},
		"snapshot by hand": {add("snapshot", digest, id, sig), ErrBadSignature},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%s: %v", name, tt.err)
		}
	}
	if n := w.repo.Status().Drafts[0].Needs[0].Signed(); n != 0 {
		t.Fatalf("%d signatures counted", n)
	}
	// One key twice is one signature.
	for range 3 {
		if err := add("targets", digest, id, sig); !errors.Is(err, ErrPending) {
			t.Fatal(err)
		}
	}
	if n := w.repo.Status().Drafts[0].Needs[0].Signed(); n != 1 {
		t.Errorf("%d signatures counted, want 1", n)
	}
	if _, _, _, err := w.repo.SignDraft("targets", alice.key); !errors.Is(err, ErrBadSignature) {
		t.Errorf("alice signs targets: %v", err)
	}
}

// TestRotateRootOffline: the next root needs both thresholds; a key that left
// signs no more.
func TestRotateRootOffline(t *testing.T) {
	w := offlineWorld(t)
	frank, grace := newPerson("frank"), newPerson("grace")
	edits := []RootEdit{{Role: "root", Add: named(frank, grace), Remove: []string{"alice", "bob"}, Threshold: 3}}
	if err := w.repo.EditRoot(t.Context(), edits, w.now); !errors.Is(err, ErrPending) {
		t.Fatal(err)
	}
	d := w.repo.Status().Drafts[0]
	if len(d.Needs) != 2 || d.Needs[0].Threshold != 2 || d.Needs[1].Threshold != 3 {
		t.Fatalf("%+v", d.Needs)
	}
	for _, want := range []string{`(\"alice\") of role root`, `(\"frank\") for role root`, "role root needs 3 of 3 keys, was 2 of 3"} {
		if text := fmt.Sprintf("%q", fmt.Sprint(d.Changes)); !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	// The new ones alone, then one of the old ones: carol counts on both sides.
	for _, p := range []person{frank, grace, carol} {
		p.sign(t, w.repo, w.now)
		if v := w.repo.Status().Roles[0].Version; v != 1 {
			t.Fatalf("root %d after %s", v, p.name)
		}
	}
	bob.sign(t, w.repo, w.now)
	if v := w.repo.Status().Roles[0].Version; v != 2 {
		t.Fatalf("root %d: %v", v, w.repo.Status().Drafts)
	}
	w.mustRefresh()
	if w.client.RootVersion() != 2 {
		t.Errorf("device at root %d", w.client.RootVersion())
	}
	if err := w.repo.EditRoot(t.Context(), nil, w.now); !errors.Is(err, ErrPending) {
		t.Fatal(err)
	}
	if _, _, _, err := w.repo.SignDraft("root", alice.key); !errors.Is(err, ErrBadSignature) {
		t.Errorf("revoked alice signs root 3: %v", err)
	}
}

// TestRotateTargetsOffline: root and targets change together, so that devices
// never meet a root whose targets nobody signed.
func TestRotateTargetsOffline(t *testing.T) {
	w := offlineWorld(t)
	path := w.pend()
	dave.sign(t, w.repo, w.now)
	erin.sign(t, w.repo, w.now)
	w.mustRefresh()
	frank := newPerson("frank")
	if err := w.repo.EditRoot(t.Context(), []RootEdit{{Role: "targets", Add: named(frank), Remove: []string{"dave", "erin"}, Threshold: 1}}, w.now); err == nil || !errors.Is(err, ErrPending) {
		t.Fatal(err)
	}
	if n := len(w.repo.Status().Drafts); n != 2 {
		t.Fatalf("%d drafts: targets must be signed anew", n)
	}
	alice.sign(t, w.repo, w.now)
	bob.sign(t, w.repo, w.now)
	if v := w.repo.Status().Roles[0].Version; v != 1 {
		t.Fatal("root is published before targets that it stands behind")
	}
	w.mustRefresh()
	frank.sign(t, w.repo, w.now)
	if s := w.repo.Status(); s.Roles[0].Version != 2 || len(s.Drafts) != 0 {
		t.Fatalf("%+v", s)
	}
	w.mustRefresh()
	if _, err := w.client.Target(path); err != nil {
		t.Error(err)
	}
	w.pend()
	if _, _, _, err := w.repo.SignDraft("targets", dave.key); !errors.Is(err, ErrBadSignature) {
		t.Errorf("revoked dave: %v", err)
	}
}

func TestEditRootRefusals(t *testing.T) {
	w := offlineWorld(t)
	for name, e := range map[string]RootEdit{
		"no such role":     {Role: "mirror", Threshold: 1},
		"no such key":      {Role: "root", Remove: []string{"zoe"}},
		"twice":            {Role: "root", Add: named(alice)},
		"threshold too":    {Role: "root", Threshold: 4},
		"negative":         {Role: "root", Threshold: -1},
		"fewer than asked": {Role: "root", Remove: []string{"alice", "bob"}},
	} {
		if err := w.repo.EditRoot(t.Context(), []RootEdit{e}, w.now); !errors.Is(err, ErrBadDraft) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(w.repo.Status().Drafts); n != 0 {
		t.Errorf("%d drafts are left", n)
	}
}

// TestPropose: what comes from a copy elsewhere.
func TestPropose(t *testing.T) {
	w := offlineWorld(t)
	copyOf := func() *Repo {
		files, err := w.repo.Files()
		if err != nil {
			t.Fatal(err)
		}
		f := slot.NewMem()
		for name, b := range files {
			if err := f.WriteFile(name, b); err != nil {
				t.Fatal(err)
			}
		}
		r, err := OpenFiles(f)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Anchored(w.anchor); err != nil {
			t.Fatal(err)
		}
		return r
	}
	stick := copyOf()
	frank := newPerson("frank")
	if err := stick.EditRoot(t.Context(), []RootEdit{{Role: "root", Add: named(frank)}}, w.now); !errors.Is(err, ErrPending) {
		t.Fatal(err)
	}
	alice.sign(t, stick, w.now)
	doc := stick.Status().Drafts[0].Metadata
	if err := w.repo.Propose(t.Context(), "root", doc, "sha256:"+ota.Digest(strings.Repeat("0", 64)), w.now); !errors.Is(err, ErrDraftChanged) {
		t.Errorf("made from another draft: %v", err)
	}
	if err := w.repo.Propose(t.Context(), "root", doc, "", w.now); !errors.Is(err, ErrPending) {
		t.Fatal(err)
	}
	if d := w.repo.Status().Drafts[0]; d.Needs[0].Signed() != 1 {
		t.Errorf("alice's signature is lost: %s", d)
	}
	bob.sign(t, w.repo, w.now)
	if w.repo.Status().Roles[0].Version != 2 {
		t.Error("not published")
	}
	w.mustRefresh()
	// Hostile proposals.
	evil := copyOf()
	if err := evil.EditRoot(t.Context(), nil, w.now); !errors.Is(err, ErrPending) {
		t.Fatal(err)
	}
	bad := func(change func(*metadata.Metadata[metadata.RootType])) []byte {
		m, err := clone(evil.draft.root)
		if err != nil {
			t.Fatal(err)
		}
		change(m)
		b, err := m.ToBytes(false)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	aliceID, _ := KeyOf(alice.named().Key)
	mallory, err := metadata.KeyFromPublicKey(newPerson("mallory").named().Key)
	if err != nil {
		t.Fatal(err)
	}
	for name, doc := range map[string][]byte{
		"version":        bad(func(m *metadata.Metadata[metadata.RootType]) { m.Signed.Version = 9 }),
		"domain":         bad(func(m *metadata.Metadata[metadata.RootType]) { m.Signed.UnrecognizedFields[domainField] = "evil" }),
		"no threshold":   bad(func(m *metadata.Metadata[metadata.RootType]) { m.Signed.Roles["root"].Threshold = 0 }),
		"key as another": bad(func(m *metadata.Metadata[metadata.RootType]) { m.Signed.Keys[aliceID] = mallory }),
		"key missing":    bad(func(m *metadata.Metadata[metadata.RootType]) { delete(m.Signed.Keys, aliceID) }),
		"not json":       []byte("{"),
		"a key twice":    []byte(strings.Replace(string(evil.Status().Drafts[0].Metadata), `"version":`, `"version":2,"version":`, 1)),
		"targets":        evil.Status().Drafts[0].Metadata[:10],
	} {
		if err := w.repo.Propose(t.Context(), "root", doc, "", w.now); !errors.Is(err, ErrBadDraft) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := len(w.repo.Status().Drafts); n != 0 {
		t.Errorf("%d drafts", n)
	}
	if err := w.repo.Propose(t.Context(), "root", evil.Status().Drafts[0].Metadata, "", w.now); !errors.Is(err, ErrPending) {
		t.Fatal(err)
	}
	if err := w.repo.Discard("root"); err != nil || len(w.repo.Status().Drafts) != 0 {
		t.Errorf("discard: %v", err)
	}
}

// TestAnchored: a copy that hides what is listed, or comes from another root, is
// found out by the root that a person keeps.
func TestAnchored(t *testing.T) {
	w := offlineWorld(t)
	if err := w.repo.EditRoot(t.Context(), nil, w.now); !errors.Is(err, ErrPending) {
		t.Fatal(err)
	}
	alice.sign(t, w.repo, w.now)
	carol.sign(t, w.repo, w.now)
	newest, err := w.repo.Anchored(w.anchor)
	if err != nil || string(newest) != string(w.repo.Root()) {
		t.Errorf("honest: %v", err)
	}
	_, foreign := offlineRepo(t)
	if _, err := foreign.Anchored(newest); err == nil {
		t.Error("a repository that is older than the root that is trusted")
	}
	other := newWorld(t)
	if _, err := other.repo.Anchored(w.anchor); err == nil {
		t.Error("another domain's repository")
	}
	// Targets that list a release which nobody signed, so that the next draft
	// would not show it.
	if err := putTarget(&w.repo.targets.Signed, "releases/evil/1", 1, ota.DigestOf(nil), TargetCustom{Counter: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.repo.Anchored(w.anchor); err == nil {
		t.Error("targets that nobody signed")
	}
}

// stride is between the operations at which the power is cut.
func stride(short int) int {
	if testing.Short() {
		return short
	}
	return 1
}

// TestDraftsAcrossPowerCuts cuts a rotation of root and targets at every
// operation: devices always find a whole set, no signature that returned is
// lost, and what was begun can be finished.
func TestDraftsAcrossPowerCuts(t *testing.T) {
	t.Parallel()
	frank := newPerson("frank")
	steps := func(r *Repo, now time.Time) error {
		err := r.EditRoot(t.Context(), []RootEdit{{Role: "targets", Add: named(frank), Remove: []string{"dave"}, Threshold: 2}}, now)
		if err != nil && !errors.Is(err, ErrPending) {
			return err
		}
		for _, p := range []person{alice, bob, erin, frank} {
			id, err := KeyOf(p.named().Key)
			if err != nil {
				return err
			}
			for _, role := range []string{"root", "targets"} {
				if !r.Signs(role, id) {
					continue
				}
				d, id, sig, err := r.SignDraft(role, p.key)
				if err != nil {
					return err
				}
				if err := r.AddSignature(t.Context(), role, d, id, sig, now); err != nil && !errors.Is(err, ErrPending) {
					return err
				}
			}
		}
		return nil
	}
	disk, r := offlineRepo(t)
	anchor := r.Root()
	for n := 0; ; n += stride(7) {
		mem := after(disk, false, 0)
		r, err := openRepo(mem)
		if err != nil {
			t.Fatal(err)
		}
		mem.FailAfter(n)
		err = steps(r, start)
		if err == nil {
			if n < 20 {
				t.Fatalf("a rotation took %d operations", n)
			}
			return
		}
		for seed := range seeds(4) {
			again, err := openRepo(mem.Crash(seed))
			if err != nil {
				t.Fatalf("cut at %d, seed %d: %v", n, seed, err)
			}
			check := func(what string) {
				c, err := NewClient(slot.NewMem(), anchor)
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Refresh(t.Context(), again.Source(), start); err != nil {
					t.Errorf("cut at %d, seed %d, %s: %v", n, seed, what, err)
				}
			}
			if err := again.Refresh(start); err != nil && !errors.Is(err, ErrPending) {
				t.Errorf("cut at %d, seed %d: %v", n, seed, err)
			}
			check("after the restart")
			if again.Status().Roles[0].Version == 1 {
				if len(again.Status().Drafts) == 0 {
					err = steps(again, start)
				} else {
					for _, p := range []person{alice, bob, erin, frank} {
						p.sign(t, again, start)
					}
				}
			}
			if err != nil || again.Status().Roles[0].Version != 2 || len(again.Status().Drafts) != 0 {
				t.Errorf("cut at %d, seed %d: not finished: %v, %+v", n, seed, err, again.Status().Drafts)
			}
			check("at the end")
		}
	}
}

// TestRefreshAsksPersons: what only a person can sign becomes a draft in time,
// and snapshot and timestamp go on without it.
func TestRefreshAsksPersons(t *testing.T) {
	w := offlineWorld(t)
	w.now = start.Add(TargetsLife - TargetsLife/3)
	if err := w.repo.Refresh(w.now); err != nil {
		t.Fatal(err)
	}
	d := w.repo.Status().Drafts
	if len(d) != 1 || d[0].Role != "targets" {
		t.Fatalf("%+v", d)
	}
	w.mustRefresh()
	before := d[0].Digest
	if err := w.repo.Refresh(w.now.Add(24 * time.Hour)); err != nil || w.repo.Status().Drafts[0].Digest != before {
		t.Errorf("the draft changes by itself: %v", err)
	}
	dave.sign(t, w.repo, w.now)
	erin.sign(t, w.repo, w.now)
	if got := w.repo.Status().Roles[1].Expires; !got.After(w.now.Add(TargetsLife - time.Hour)) {
		t.Errorf("targets expire %s", got)
	}
	w.mustRefresh()
}

// TestManyRootsOffline: more rotations than a device follows at once; each of
// them is reached in the end.
func TestManyRootsOffline(t *testing.T) {
	if testing.Short() {
		t.Skip("hundreds of signatures are slow under the race detector")
	}
	t.Parallel()
	w := offlineWorld(t)
	for range maxRootRotations + 2 {
		if err := w.repo.EditRoot(t.Context(), nil, w.now); !errors.Is(err, ErrPending) {
			t.Fatal(err)
		}
		alice.sign(t, w.repo, w.now)
		carol.sign(t, w.repo, w.now)
	}
	if err := w.refresh(); AttackClass(err) != ClassRootWalk {
		t.Fatalf("got %v", err)
	}
	w.mustRefresh()
	if w.client.RootVersion() != maxRootRotations+3 {
		t.Errorf("at root %d", w.client.RootVersion())
	}
}
