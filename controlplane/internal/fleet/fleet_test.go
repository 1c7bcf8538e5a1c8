package fleet

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/controlplane/internal/vault"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

const tenant = "default"

// catalog is releases by digest.
type catalog map[ota.Digest][]manifest.ParamDecl

func (c catalog) Ref(_ context.Context, _ string, d ota.Digest) (wire.ReleaseRef, []manifest.ParamDecl, error) {
	decls, ok := c[d]
	if !ok {
		return wire.ReleaseRef{}, nil, store.ErrNotFound
	}
	return wire.ReleaseRef{Target: "releases/x/1", Digest: d.Sum(), Length: 1, Counter: 1}, decls, nil
}

// plain is a director whose signature is no more than the payload.
type plain struct{}

func (plain) Sign(_ string, payload []byte) ([]byte, error) { return payload, nil }

// wireTap is a link that remembers what was sent.
type wireTap struct {
	mu     sync.Mutex
	sent   map[string][]wire.Desired
	lose   func() bool
	kicked []string
}

func (w *wireTap) Publish(_ context.Context, device string, kind wire.Kind, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if kind != wire.DownDesired || w.lose != nil && w.lose() {
		return nil
	}
	var d wire.Desired
	if err := wire.Unmarshal(payload, &d); err != nil {
		return err
	}
	w.sent[device] = append(w.sent[device], d)
	return nil
}

func (w *wireTap) Kick(device string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kicked = append(w.kicked, device)
	return true
}

func (w *wireTap) last(device string) (wire.Desired, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := w.sent[device]
	if len(all) == 0 {
		return wire.Desired{}, 0
	}
	return all[len(all)-1], len(all)
}

type world struct {
	*Fleet
	db    *store.DB
	tap   *wireTap
	rel   catalog
	seals map[string][]byte
	count map[string]uint64
}

func newWorld(t *testing.T, dir string) *world {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(dir, "skein.db"))
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.New(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{db: db, tap: &wireTap{sent: map[string][]wire.Desired{}}, rel: catalog{}, seals: map[string][]byte{}, count: map[string]uint64{}}
	w.Fleet, err = New(Config{Store: db, Releases: w.rel, Director: plain{}, Vault: v})
	if err != nil {
		t.Fatal(err)
	}
	w.SetLink(w.tap)
	return w
}

// run starts the fleet and returns what stops it.
func (w *world) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.Run(ctx) })
	wg.Go(func() { _ = w.RunEvents(ctx) })
	return func() {
		cancel()
		wg.Wait()
		if err := w.Flush(t.Context()); err != nil {
			t.Error(err)
		}
		if err := w.db.Close(); err != nil {
			t.Error(err)
		}
	}
}

func (w *world) enrol(t *testing.T, name, site string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	priv, pub, err := trust.NewSealKey()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(spki)
	id := wire.FormatDeviceID([16]byte(sum[:16]))
	d := store.Device{Tenant: tenant, ID: id, Name: name, Labels: map[string]string{"site": site}, State: store.DeviceActive, SPKI: spki, SPKIHash: sum[:], SealKey: pub, Enrolled: time.Now()}
	if err := w.db.Update(t.Context(), func(tx *store.Tx) error { return tx.PutDevice(t.Context(), d) }); err != nil {
		t.Fatal(err)
	}
	if err := w.Enrolled(d, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	w.seals[id] = priv
	return id
}

func (w *world) hello(t *testing.T, id string, held wire.Held) {
	t.Helper()
	w.count[id]++
	b, err := wire.Marshal(&wire.Hello{ID: wire.MessageID{Boot: 1, Counter: w.count[id]}, Held: held, Target: "linux/amd64;ort=1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Message(t.Context(), tenant, id, wire.UpHello, b); err != nil {
		t.Fatal(err)
	}
}

func heldOf(t *testing.T, d wire.Desired) wire.Held {
	t.Helper()
	b, err := wire.Marshal(&d)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return wire.Held{Generation: d.Generation, Digest: sum[:]}
}

func release(n byte) ota.Digest { return ota.DigestOf([]byte{n}) }

// open returns the parameters of a desired state in clear.
func (w *world) open(t *testing.T, id string, d wire.Desired) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, p := range d.Params {
		v := p.Value
		if p.Secret {
			var err error
			if v, err = trust.Open(w.seals[id], trust.SealAAD(id, p.Key), v); err != nil {
				t.Fatal(err)
			}
		}
		out[p.Key] = string(v)
	}
	return out
}

// TestConvergesOverALossyLink loses a third of what is sent, and devices take
// what arrives: all hold what is wanted in the end, each within a few sendings.
func TestConvergesOverALossyLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, t.TempDir())
		stop := w.run(t)
		defer stop()
		n := 0
		w.tap.lose = func() bool { n++; return n%3 == 0 }
		w.rel[release(1)] = nil
		var ids []string
		for i := range 50 {
			ids = append(ids, w.enrol(t, fmt.Sprintf("d-%d", i), "lyon"))
		}
		for _, id := range ids {
			w.hello(t, id, wire.Held{})
		}
		d := release(1)
		for _, id := range ids {
			if err := w.SetDesired(t.Context(), tenant, id, &d, false, "r"); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		for range 30 {
			time.Sleep(10 * time.Second)
			left := 0
			for _, id := range ids {
				v, err := w.Get(tenant, id)
				if err != nil {
					t.Fatal(err)
				}
				if got, sent := w.tap.last(id); !v.Converged && sent > 0 {
					w.hello(t, id, heldOf(t, got))
				}
				if !v.Converged {
					left++
				}
			}
			if left == 0 {
				t.Logf("converged after %s, %d messages", time.Since(start), n)
				return
			}
		}
		t.Error("not converged after 5 minutes")
	})
}

func TestDesiredIsIssuedAnewBeforeItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, t.TempDir())
		stop := w.run(t)
		defer stop()
		id := w.enrol(t, "a", "lyon")
		w.rel[release(1)] = nil
		d := release(1)
		if err := w.SetDesired(t.Context(), tenant, id, &d, false, ""); err != nil {
			t.Fatal(err)
		}
		w.hello(t, id, wire.Held{})
		synctest.Wait()
		first, _ := w.tap.last(id)
		w.hello(t, id, heldOf(t, first))
		time.Sleep(3 * 24 * time.Hour)
		if _, n := w.tap.last(id); n != 1 {
			t.Fatalf("%d sendings within three days to a device that holds it", n)
		}
		time.Sleep(24 * time.Hour)
		again, n := w.tap.last(id)
		if n < 2 || again.Generation.Counter != first.Generation.Counter+1 || again.ExpiresAt <= first.ExpiresAt || !bytes.Equal(again.Release.Digest, first.Release.Digest) {
			t.Errorf("after %d sendings: %+v", n, again)
		}
	})
}

func TestParameters(t *testing.T) {
	w := newWorld(t, t.TempDir())
	defer w.run(t)()
	ctx := t.Context()
	a, b := w.enrol(t, "a", "lyon"), w.enrol(t, "b", "oslo")
	w.rel[release(1)] = []manifest.ParamDecl{{Key: "camera", Type: "string", Required: true}, {Key: "fps", Type: "int", Default: "10"}, {Key: "pass", Type: "secret"}}
	d := release(1)
	if err := w.SetDesired(ctx, tenant, a, &d, false, ""); !errors.Is(err, ErrParameter) {
		t.Fatalf("required parameter missing: %v", err)
	}
	set := func(ps ...Param) int {
		t.Helper()
		n, err := w.SetParameters(ctx, tenant, ps, nil)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	set(Param{Scope: ScopeFleet, Key: "camera", Value: "rtsp://all"}, Param{Scope: ScopeSite, Subject: "oslo", Key: "camera", Value: "rtsp://oslo"},
		Param{Scope: ScopeFleet, Key: "pass", Value: "hunter2", Secret: true})
	for _, id := range []string{a, b} {
		if err := w.SetDesired(ctx, tenant, id, &d, false, ""); err != nil {
			t.Fatal(err)
		}
		w.hello(t, id, wire.Held{})
	}
	params := func(id string) map[string]string {
		t.Helper()
		want, err := w.Get(tenant, id)
		if err != nil {
			t.Fatal(err)
		}
		w.tap.await(t, id, want.Wanted)
		got, _ := w.tap.last(id)
		if !bytes.Equal(want.WantedParamsDigest, manifest.ParamsDigest(w.clearParams(t, id, got))) {
			t.Errorf("digest of the parameters differs")
		}
		return w.open(t, id, got)
	}
	if diff := cmp.Diff(map[string]string{"camera": "rtsp://all", "fps": "10", "pass": "hunter2"}, params(a)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]string{"camera": "rtsp://oslo", "fps": "10", "pass": "hunter2"}, params(b)); diff != "" {
		t.Error(diff)
	}
	// One device's value makes one new generation; the same again makes none.
	if n := set(Param{Scope: ScopeDevice, Subject: b, Key: "fps", Value: "25"}); n != 1 {
		t.Errorf("%d new generations, want 1", n)
	}
	if n := set(Param{Scope: ScopeDevice, Subject: b, Key: "fps", Value: "25"}); n != 0 {
		t.Errorf("%d new generations for the same value", n)
	}
	if got := params(b)["fps"]; got != "25" {
		t.Errorf("fps %s", got)
	}
	// What does not fit changes nothing.
	if _, err := w.SetParameters(ctx, tenant, []Param{{Scope: ScopeFleet, Key: "fps", Value: "many"}}, nil); !errors.Is(err, ErrParameter) {
		t.Errorf("%v", err)
	}
	all, err := w.Parameters(tenant, b)
	if err != nil || len(all) != 4 || all[0].Key != "camera" || slices.ContainsFunc(all, func(p Param) bool { return p.Secret && p.Value != "" }) {
		t.Errorf("%+v, %v", all, err)
	}
	// Moving to another site changes the rendered value.
	if _, err := w.Label(ctx, tenant, a, Edit{Set: map[string]string{"site": "oslo"}}); err != nil {
		t.Fatal(err)
	}
	if got := params(a)["camera"]; got != "rtsp://oslo" {
		t.Errorf("camera after the move: %s", got)
	}
	// The secret rests encrypted.
	if err := w.db.View(ctx, func(tx *store.Tx) error {
		rows, err := tx.Parameters(ctx, tenant)
		for _, p := range rows {
			if bytes.Contains(p.Value, []byte("hunter2")) {
				t.Error("secret in clear in the store")
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}

	// A replacement gets name, site, values and release; the old one is cut off.
	c := w.enrol(t, "new", "spare")
	w.hello(t, c, wire.Held{})
	v, err := w.Replace(ctx, tenant, b, c)
	if err != nil || v.Name != "b" || v.Site() != "oslo" || v.WantedRelease != d {
		t.Fatalf("%+v, %v", v, err)
	}
	if diff := cmp.Diff(map[string]string{"camera": "rtsp://oslo", "fps": "25", "pass": "hunter2"}, params(c)); diff != "" {
		t.Error(diff)
	}
	if old, err := w.Get(tenant, b); err != nil || old.State != Revoked || old.ReplacedBy != c || !slices.Contains(w.tap.kicked, b) {
		t.Errorf("%+v, %v", old, err)
	}
	if found, err := w.Lookup(tenant, "b"); err != nil || found.ID != c {
		t.Errorf("the name leads to %s, %v", found.ID, err)
	}
}

func (w *world) clearParams(t *testing.T, id string, d wire.Desired) []wire.Param {
	t.Helper()
	var out []wire.Param
	for k, v := range w.open(t, id, d) {
		out = append(out, wire.Param{Key: k, Value: []byte(v)})
	}
	return out
}

// await waits until a generation was sent.
func (w *wireTap) await(t *testing.T, id string, g wire.Generation) {
	t.Helper()
	for range 1000 {
		if d, _ := w.last(id); d.Generation == g {
			return
		}
		<-time.After(5 * time.Millisecond)
	}
	t.Fatalf("generation %s was never sent to %s", g, id)
}

func TestStateSurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir)
	stop := w.run(t)
	id := w.enrol(t, "a", "lyon")
	w.rel[release(1)] = nil
	d := release(1)
	if err := w.SetDesired(t.Context(), tenant, id, &d, true, "r9"); err != nil {
		t.Fatal(err)
	}
	w.hello(t, id, wire.Held{Generation: wire.Generation{Epoch: 1, Counter: 1}, Digest: []byte{1}})
	before, err := w.Get(tenant, id)
	if err != nil {
		t.Fatal(err)
	}
	stop()

	w2 := newWorld(t, dir)
	maps.Copy(w2.rel, w.rel)
	if err := w2.Load(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	defer w2.run(t)()
	after, err := w2.Get(tenant, id)
	if err != nil {
		t.Fatal(err)
	}
	before.Online, before.State, before.CertNotAfter = false, Offline, time.Time{} // no certificate row in this world
	before.LastSeen, before.Enrolled = before.LastSeen.Truncate(time.Millisecond).UTC(), before.Enrolled.Truncate(time.Millisecond).UTC()
	if diff := cmp.Diff(before, after, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("-before +after:\n%s", diff)
	}
	if after.Wanted != (wire.Generation{Epoch: 1, Counter: 1}) || after.Rollout != "r9" || after.Converged {
		t.Errorf("%+v", after)
	}
}

// TestSeenDropsRepeatsAndNothingElse compares with a set, within the window.
func TestSeenDropsRepeatsAndNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s seen
		known := map[wire.MessageID]bool{}
		highest := map[uint64]uint64{}
		for _, step := range rapid.SliceOfN(rapid.IntRange(0, 200), 1, 200).Draw(t, "steps") {
			id := wire.MessageID{Boot: 1 + uint64(step)%2, Counter: uint64(step)/2 + 1}
			if highest[id.Boot] > id.Counter+63 {
				continue // beyond the window everything passes
			}
			if has := s.has(id); has != known[id] {
				t.Fatalf("has(%v) = %v, want %v", id, has, known[id])
			}
			if fresh := s.add(id); fresh == known[id] {
				t.Fatalf("add(%v) = %v, known before: %v", id, fresh, known[id])
			}
			known[id] = true
			highest[id.Boot] = max(highest[id.Boot], id.Counter)
		}
	})
}

func TestSelector(t *testing.T) {
	v := View{ID: "abcdefgh", Name: "cam-1", State: Online, Target: "linux/arm64;sm=8.7", Hardware: "Orin Nano", Running: release(1), Labels: map[string]string{"site": "lyon", "ring": "early"}}
	for text, want := range map[string]bool{
		"":                                 true,
		"site=lyon":                        true,
		"site==lyon":                       true,
		"site=oslo":                        false,
		"site!=oslo":                       true,
		"none!=x":                          true,
		"site in (oslo,lyon)":              true,
		"site notin (oslo, lyon)":          false,
		"site,!shelf":                      true,
		"!site":                            false,
		"shelf":                            false,
		"state=online,hardware=Orin Nano":  true,
		"target=linux/arm64;sm=8.7":        true,
		"release=meter@3":                  true,
		"release=" + string(release(1)):    true,
		"release!=meter@3":                 false,
		"name in (cam-1,cam-2),ring=early": true,
		"serial":                           false,
	} {
		s, err := ParseSelector(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		s.ReleaseName = func(View) string { return "meter@3" }
		if got := s.Match(v); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
	for _, bad := range []string{"=x", ",", "a b", "site=lyon,", "a in", "!"} {
		if _, err := ParseSelector(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q was read: %v", bad, err)
		}
	}
}

func FuzzParseSelector(f *testing.F) {
	for _, s := range []string{"", "a=b", "a in (b,c),!d", "((", "a notin(", "=,!="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSelector(text)
		if err == nil {
			s.Match(View{Labels: map[string]string{"a": "b"}})
		}
	})
}

func TestSubscribeCoalesces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &Fleet{}
		ctx, cancel := context.WithCancel(t.Context())
		ch := f.Subscribe(ctx)
		for range 100 {
			f.notify("a")
			f.notify("b")
		}
		synctest.Wait()
		got := map[string]int{}
		for range 3 { // one may be on its way already when the burst comes
			select {
			case id := <-ch:
				got[id]++
			case <-time.After(time.Second):
			}
		}
		if got["a"] < 1 || got["b"] < 1 || got["a"]+got["b"] > 3 {
			t.Errorf("%v", got)
		}
		cancel()
		if _, open := <-ch; open {
			t.Error("channel is open after the end")
		}
		if len(f.subs.list) != 0 {
			t.Error("subscriber is kept")
		}
	})
}

func TestNatural(t *testing.T) {
	names := []string{"jetson-10", "jetson-2", "a", "jetson-1", "jetson-x", "jetson-002"}
	slices.SortFunc(names, natural)
	want := []string{"a", "jetson-1", "jetson-002", "jetson-2", "jetson-10", "jetson-x"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
}
