package signer

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

var start = time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)

func person(name string) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(fmt.Appendf(nil, "%-32s", name))
}

func named(ks ...ed25519.PrivateKey) []trust.NamedKey {
	var out []trust.NamedKey
	for _, k := range ks {
		out = append(out, trust.NamedKey{Key: k.Public().(ed25519.PublicKey)})
	}
	return out
}

// setting is a signer behind a real socket, a repository that asks it, and a device.
type setting struct {
	t         *testing.T
	notaryDir *slot.Mem
	notary    *trust.Notary
	client    *Client
	repoDir   *slot.Mem
	repo      *trust.Repo
	device    *trust.Client
	public    map[string]ed25519.PublicKey
	people    []ed25519.PrivateKey
	stop      func()

	mu  sync.Mutex // guards now and log
	now time.Time
	log []trust.NotaryEntry
}

// days are fewer in the short suite, which runs under the race detector.
func days(n int) int {
	if testing.Short() {
		return n / 10
	}
	return n
}

func (s *setting) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

func (s *setting) entries(what string) []trust.NotaryEntry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.log), func(e trust.NotaryEntry) bool { return e.What != what })
}

func newSetting(t *testing.T) *setting {
	t.Helper()
	s := &setting{t: t, notaryDir: slot.NewMem(), repoDir: slot.NewMem(), now: start, public: map[string]ed25519.PublicKey{},
		people: []ed25519.PrivateKey{person("alice"), person("bob"), person("dave")}}
	pems, err := trust.InitNotary(s.notaryDir)
	if err != nil {
		t.Fatal(err)
	}
	for kind, b := range pems {
		block, _ := pem.Decode(b)
		pub, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		s.public[kind] = pub.(ed25519.PublicKey)
	}
	err = trust.Init(s.repoDir, trust.InitOptions{Domain: "skein.local", Keys: map[string][]trust.NamedKey{"root": named(s.people[:2]...), "targets": named(s.people[2]),
		"snapshot": {{Key: s.public["snapshot"]}}, "timestamp": {{Key: s.public["timestamp"]}}}, Thresholds: map[string]int{"root": 2}}, start)
	if !errors.Is(err, trust.ErrPending) {
		t.Fatal(err)
	}
	if s.repo, err = trust.OpenFiles(s.repoDir); err != nil {
		t.Fatal(err)
	}
	s.sign()
	if err := trust.AnchorNotary(s.notaryDir, s.repo.Root()); err != nil {
		t.Fatal(err)
	}
	s.serve()
	if err := s.repo.Refresh(start); err != nil {
		t.Fatal(err)
	}
	if s.device, err = trust.NewClient(slot.NewMem(), s.repo.Root()); err != nil {
		t.Fatal(err)
	}
	s.refresh()
	return s
}

// serve starts the signer, again when it runs already, and a repository that
// asks it.
func (s *setting) serve() {
	s.t.Helper()
	if s.stop != nil {
		s.stop()
	}
	var err error
	s.notary, err = trust.OpenNotary(s.notaryDir, s.clock, func(e trust.NotaryEntry) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.log = append(s.log, e)
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "signer") // t.TempDir is too long for a socket
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(dir, "s.sock")
	ln, err := Listen(path)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, s.notary) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, os.RemoveAll(dir)); err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(s.stop)
	if s.client, err = NewClient("unix://" + path); err != nil {
		s.t.Fatal(err)
	}
	if s.repo, err = trust.OpenFiles(s.repoDir, s.client); err != nil {
		s.t.Fatal(err)
	}
}

// sign has all people sign what waits.
func (s *setting) sign() {
	s.t.Helper()
	for _, p := range s.people {
		id, err := trust.KeyOf(p.Public().(ed25519.PublicKey))
		if err != nil {
			s.t.Fatal(err)
		}
		for _, role := range []string{"root", "targets"} {
			if !s.repo.Signs(role, id) {
				continue
			}
			d, id, sig, err := s.repo.SignDraft(role, p)
			if err != nil {
				s.t.Fatal(err)
			}
			if err := s.repo.AddSignature(s.t.Context(), role, d, id, sig, s.clock()); err != nil && !errors.Is(err, trust.ErrPending) {
				s.t.Fatal(err)
			}
		}
	}
}

func (s *setting) refresh(paths ...string) {
	s.t.Helper()
	if err := s.device.Refresh(s.t.Context(), s.repo.Source(), s.clock(), paths...); err != nil {
		s.t.Fatal(err)
	}
}

func (s *setting) release(n uint64) string {
	s.t.Helper()
	path := fmt.Sprintf("releases/meter/%d", n)
	err := s.repo.AddTarget(s.t.Context(), path, 10, ota.DigestOf([]byte(path)), trust.TargetCustom{Counter: n}, s.clock())
	if !errors.Is(err, trust.ErrPending) {
		s.t.Fatal(err)
	}
	s.sign()
	return path
}

func (s *setting) file(name string) []byte {
	s.t.Helper()
	b, err := s.repo.Metadata(name)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

func TestPublishThroughSocket(t *testing.T) {
	s := newSetting(t)
	path := s.release(1)
	s.refresh()
	if _, err := s.device.Target(path); err != nil {
		t.Error(err)
	}
	// The signer starts anew, and without its state: versions go on.
	for _, lost := range []bool{false, true} {
		if lost {
			b, err := s.notaryDir.ReadFile("state.json")
			if err != nil {
				t.Fatal(err)
			}
			var st struct {
				Root []byte `json:"root"`
			}
			if err := json.Unmarshal(b, &st); err != nil {
				t.Fatal(err)
			}
			if err := s.notaryDir.Remove("state.json"); err != nil {
				t.Fatal(err)
			}
			if err := trust.AnchorNotary(s.notaryDir, st.Root); err != nil {
				t.Fatal(err)
			}
		}
		s.serve()
		s.release(map[bool]uint64{false: 2, true: 3}[lost])
		s.refresh()
	}
	for _, what := range []string{"snapshot", "timestamp"} {
		versions := []int64{}
		for _, e := range s.entries(what) {
			versions = append(versions, e.Version)
			if e.Digest == "" || e.Time != start {
				t.Errorf("log: %+v", e)
			}
		}
		if !slices.IsSorted(versions) || len(slices.Compact(slices.Clone(versions))) != len(versions) || len(versions) < 4 {
			t.Errorf("%s versions %v", what, versions)
		}
	}
	// Half a year of hourly looks.
	for range days(180) {
		s.mu.Lock()
		s.now = s.now.Add(24 * time.Hour)
		s.mu.Unlock()
		if err := s.repo.Refresh(s.clock()); err != nil {
			t.Fatal(err)
		}
		s.refresh()
		if left := s.repo.Status().Roles[3].Expires.Sub(s.clock()); left > trust.TimestampLife || left < trust.TimestampLife/2-24*time.Hour {
			t.Fatalf("timestamp lives another %s", left)
		}
	}
}

// TestHostileSkeind: what a control plane that was taken over may ask for.
func TestHostileSkeind(t *testing.T) {
	s := newSetting(t)
	s.release(1)
	old := s.file("targets.json")
	s.release(2)
	current := s.file("targets.json")
	publish := func(b []byte) error {
		_, err := s.client.Publish(t.Context(), trust.PublishRequest{Targets: b})
		return err
	}
	change := func(b []byte, f func(*metadata.Metadata[metadata.TargetsType])) []byte {
		m, err := metadata.Targets().FromBytes(b)
		if err != nil {
			t.Fatal(err)
		}
		f(m)
		out, err := m.ToBytes(false)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	evil := func(m *metadata.Metadata[metadata.TargetsType]) {
		m.Signed.Version++
		m.Signed.Targets["releases/evil/1"] = &metadata.TargetFiles{Length: 1, Hashes: metadata.Hashes{"sha256": ota.DigestOf(nil).Sum()}}
	}
	before := len(s.entries("snapshot")) + len(s.entries("timestamp"))
	for name, b := range map[string][]byte{
		"nothing":   nil,
		"unsigned":  change(current, func(m *metadata.Metadata[metadata.TargetsType]) { m.ClearSignatures() }),
		"changed":   change(current, evil),
		"older":     old,
		"root":      s.file("root.json"),
		"timestamp": s.file("timestamp.json"),
		"key twice": []byte(strings.Replace(string(current), `"targets":{`, `"targets":{},"targets":{`, 1)),
		"too long":  []byte(strings.Repeat(" ", 5_000_001) + "{}"),
	} {
		if err := publish(b); !errors.Is(err, trust.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// With all the signer's own keys, which must not count for targets.
	if err := publish(change(current, func(m *metadata.Metadata[metadata.TargetsType]) {
		evil(m)
		m.ClearSignatures()
		for _, k := range s.stolen() {
			signTargets(t, m, k)
		}
	})); !errors.Is(err, trust.ErrRefused) {
		t.Errorf("signed by online keys: %v", err)
	}
	if err := s.client.Roots(t.Context(), [][]byte{s.file("root.json")}); !errors.Is(err, trust.ErrRefused) {
		t.Errorf("the same root again: %v", err)
	}
	foreign := newSetting(t)
	if err := s.client.Roots(t.Context(), [][]byte{foreign.file("root.json")}); !errors.Is(err, trust.ErrRefused) {
		t.Errorf("a foreign root: %v", err)
	}
	if n := len(s.entries("snapshot")) + len(s.entries("timestamp")); n != before {
		t.Errorf("%d signatures were given", n-before)
	}
	if len(s.entries("refused")) < 10 {
		t.Errorf("%d refusals in the log", len(s.entries("refused")))
	}
	if err := publish(current); err != nil {
		t.Errorf("honest, after all that: %v", err)
	}
	// Years later: what persons signed has expired.
	s.mu.Lock()
	s.now = start.Add(2 * trust.TargetsLife)
	s.mu.Unlock()
	if err := publish(current); !errors.Is(err, trust.ErrRefused) {
		t.Errorf("expired targets: %v", err)
	}
}

func (s *setting) stolen() []ed25519.PrivateKey {
	s.t.Helper()
	files, err := s.notaryDir.ReadDir("keys")
	if err != nil {
		s.t.Fatal(err)
	}
	var out []ed25519.PrivateKey
	for _, f := range files {
		b, err := s.notaryDir.ReadFile("keys/" + f.Name())
		if err != nil {
			s.t.Fatal(err)
		}
		block, _ := pem.Decode(b)
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, key.(ed25519.PrivateKey))
	}
	return out
}

// ask sends bytes as they are and returns the answer.
func (s *setting) ask(b []byte) string {
	s.t.Helper()
	c, err := net.Dial("unix", s.client.path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(b); err != nil {
		s.t.Fatal(err)
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		s.t.Fatal(err)
	}
	out, err := io.ReadAll(c)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(out)
}

func TestHostileQuestions(t *testing.T) {
	s := newSetting(t)
	for name, q := range map[string]string{
		"sign bytes":     `{"op":"sign","role":"root","payload":"AAAA"}`,
		"unknown":        `{"op":"keys"}`,
		"more fields":    `{"op":"state","key":"x"}`,
		"two contents":   `{"op":"publish","publish":{"targets":"e30="},"list":{"role":"auto/x","index":"","manifests":[]}}`,
		"no content":     `{"op":"list"}`,
		"not json":       "GET / HTTP/1.1\r\n\r\n",
		"empty":          "",
		"cut":            `{"op":"pub`,
		"deep":           strings.Repeat("[", 100_000),
		"publish null":   `{"op":"publish","publish":null}`,
		"garbage in b64": `{"op":"publish","publish":{"targets":"%%%"}}`,
	} {
		if got := s.ask([]byte(q)); !strings.Contains(got, `"refused":true`) || strings.Contains(got, "published\":{") {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := s.ask([]byte(`{"op":"state"}`)); !strings.Contains(got, `"root_version":1`) {
		t.Errorf("honest question after these: %s", got)
	}
}

func TestListen(t *testing.T) {
	s := newSetting(t)
	if _, err := Listen(s.client.path); err == nil || !strings.Contains(err.Error(), "running") {
		t.Errorf("two signers: %v", err)
	}
	st, err := os.Stat(s.client.path)
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file); err == nil {
		t.Error("replaced a file")
	}
	for _, a := range []string{"", "tcp://127.0.0.1:1", "unix://relative", "/path"} {
		if _, err := NewClient(a); !errors.Is(err, ErrAddress) {
			t.Errorf("%q: %v", a, err)
		}
	}
}

// TestRootRotationThroughSocket: the signer follows roots, many at once too,
// and a rotation to another signer.
func TestRootRotationThroughSocket(t *testing.T) {
	s := newSetting(t)
	s.stop()
	for range days(150) { // while it is away
		if err := s.repo.EditRoot(t.Context(), nil, start); !errors.Is(err, trust.ErrPending) {
			t.Fatal(err)
		}
		s.sign()
	}
	s.serve()
	s.release(1)
	s.refresh()
	if st, err := s.client.State(t.Context()); err != nil || st.RootVersion != int64(1+days(150)) {
		t.Errorf("%+v, %v", st, err)
	}
	next := newSetting(t)
	edits := []trust.RootEdit{}
	for _, role := range []string{"snapshot", "timestamp"} {
		id, err := trust.KeyOf(s.public[role])
		if err != nil {
			t.Fatal(err)
		}
		edits = append(edits, trust.RootEdit{Role: role, Add: []trust.NamedKey{{Key: next.public[role]}}, Remove: []string{id}})
	}
	if err := s.repo.EditRoot(t.Context(), edits, start); !errors.Is(err, trust.ErrPending) {
		t.Fatal(err)
	}
	for _, p := range s.people[:2] {
		d, id, sig, err := s.repo.SignDraft("root", p)
		if err != nil {
			t.Fatal(err)
		}
		err = s.repo.AddSignature(t.Context(), "root", d, id, sig, start)
		if p.Equal(s.people[1]) && (err == nil || !strings.Contains(err.Error(), fmt.Sprintf("root %d", 2+days(150)))) && (err == nil || !strings.Contains(err.Error(), "keys")) {
			t.Fatalf("the old signer signs on: %v", err)
		}
	}
	// The other signer takes over.
	if err := next.notaryDir.Remove("state.json"); err != nil {
		t.Fatal(err)
	}
	if err := trust.AnchorNotary(next.notaryDir, s.repo.Root()); err != nil {
		t.Fatal(err)
	}
	s.notaryDir = next.notaryDir
	s.serve()
	if err := s.repo.Refresh(start); err != nil {
		t.Fatal(err)
	}
	path := s.release(2)
	s.refresh()
	if _, err := s.device.Target(path); err != nil {
		t.Error(err)
	}
}

// release bytes for the auto role.
type made struct {
	index     []byte
	manifests [][]byte
	golden    ota.Digest
}

func makeRelease(t *testing.T, version string, counter uint64, change func(*manifest.Build)) made {
	t.Helper()
	target, err := ota.ParseTarget("linux/arm64;sm=8.7")
	if err != nil {
		t.Fatal(err)
	}
	golden := ota.DigestOf([]byte("golden"))
	b := manifest.Build{Release: manifest.Release{Name: "meter", Version: version, Counter: counter, Model: "meter", ModelVersion: 1, Soak: time.Minute},
		Targets: []ota.Target{target}, ONNX: manifest.Descriptor{Digest: ota.DigestOf([]byte(version)), Size: 1000}, Golden: manifest.Descriptor{Digest: golden, Size: 6}}
	if change != nil {
		change(&b)
	}
	out := made{golden: golden}
	_, raw, _, err := b.Write(t.Context(), func(_ context.Context, mediaType string, data []byte) (manifest.Descriptor, error) {
		if mediaType == manifest.MediaManifest {
			out.manifests = append(out.manifests, data)
		}
		return manifest.Descriptor{MediaType: mediaType, Digest: ota.DigestOf(data), Size: int64(len(data))}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	out.index = raw
	return out
}

func (s *setting) delegate() trust.AutoPolicy {
	s.t.Helper()
	p := trust.AutoPolicy{Model: "meter", Paths: []string{"releases/meter/auto-*"}, MaxBytes: 5000, MinSoak: 30,
		Golden: []ota.Digest{ota.DigestOf([]byte("golden"))}, Layers: []trust.LayerRule{{MediaType: manifest.MediaWeights, Formats: []string{"onnx"}, MaxBytes: 4000}}}
	err := s.repo.Delegate(s.t.Context(), p, []trust.NamedKey{{Key: s.public["auto"]}}, s.clock())
	if !errors.Is(err, trust.ErrPending) {
		s.t.Fatal(err)
	}
	changes := fmt.Sprint(s.repo.Status().Drafts[0].Changes)
	for _, want := range []string{"policy for meter", "at most 5000 bytes", "delegation auto/meter of paths releases/meter/auto-*", "proven by golden set"} {
		if !strings.Contains(changes, want) {
			s.t.Errorf("a person is not told %q: %s", want, changes)
		}
	}
	s.sign()
	return p
}

func TestAutoRelease(t *testing.T) {
	s := newSetting(t)
	list := func(m made) error {
		return s.repo.List(t.Context(), trust.ListRequest{Role: "auto/meter", Index: m.index, Manifests: m.manifests}, s.clock())
	}
	if err := list(makeRelease(t, "auto-1", 1, nil)); !errors.Is(err, trust.ErrRefused) {
		t.Errorf("without a delegation: %v", err)
	}
	s.release(1)
	s.delegate()
	s.refresh()
	good := makeRelease(t, "auto-2", 2, nil)
	for range 2 { // again changes nothing
		if err := list(good); err != nil {
			t.Fatal(err)
		}
	}
	s.refresh("releases/meter/auto-2")
	info, err := s.device.Target("releases/meter/auto-2")
	if err != nil || info.Digest != ota.DigestOf(good.index) || info.Custom.Counter != 2 || info.Role != "auto/meter" || info.Policy == nil {
		t.Errorf("device: %+v, %v", info, err)
	}
	if n := len(s.entries("auto/meter")); n != 2 { // the empty one, then this
		t.Errorf("%d signatures of the role", n)
	}
	for name, m := range map[string]made{
		"counter again": makeRelease(t, "auto-3", 2, nil),
		"not an auto-":  makeRelease(t, "3", 3, nil),
		"other name":    makeRelease(t, "auto-3", 3, func(b *manifest.Build) { b.Name = "other" }),
		"other model":   makeRelease(t, "auto-3", 3, func(b *manifest.Build) { b.Model = "other" }),
		"too large":     makeRelease(t, "auto-3", 3, func(b *manifest.Build) { b.ONNX.Size = 4001 }),
		"no soak":       makeRelease(t, "auto-3", 3, func(b *manifest.Build) { b.Soak = time.Second }),
		"other golden":  makeRelease(t, "auto-3", 3, func(b *manifest.Build) { b.Golden.Digest = ota.DigestOf([]byte("easy")) }),
		"code": makeRelease(t, "auto-3", 3, func(b *manifest.Build) {
			b.Extra = []manifest.Descriptor{{MediaType: "application/vnd.skein.agent.v1", Digest: ota.DigestOf([]byte("rootkit")), Size: 9}}
		}),
		"container layer": makeRelease(t, "auto-3", 3, func(b *manifest.Build) {
			b.Extra = []manifest.Descriptor{{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: ota.DigestOf([]byte("rootkit")), Size: 9}}
		}),
		"other content":  makeRelease(t, "auto-2", 2, func(b *manifest.Build) { b.ONNX.Size = 1001 }),
		"no manifest":    {index: makeRelease(t, "auto-3", 3, nil).index},
		"other manifest": {index: makeRelease(t, "auto-3", 3, nil).index, manifests: makeRelease(t, "auto-4", 4, nil).manifests},
		"no index":       {},
	} {
		if err := list(m); !errors.Is(err, trust.ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.repo.List(t.Context(), trust.ListRequest{Role: "targets", Index: good.index, Manifests: good.manifests}, s.clock()); !errors.Is(err, trust.ErrRefused) {
		t.Errorf("in targets: %v", err)
	}
	// It lives on: the role is signed anew before it expires, after a restart too.
	s.serve()
	for range days(60) {
		s.mu.Lock()
		s.now = s.now.Add(24 * time.Hour)
		s.mu.Unlock()
		if err := s.repo.Refresh(s.clock()); err != nil {
			t.Fatal(err)
		}
		s.refresh("releases/meter/auto-2")
	}
	if _, err := s.device.Target("releases/meter/auto-2"); err != nil {
		t.Error(err)
	}
	if err := list(makeRelease(t, "auto-3", 3, nil)); err != nil {
		t.Fatal(err)
	}
	// Persons take it back.
	if err := s.repo.Undelegate(t.Context(), "meter", s.clock()); !errors.Is(err, trust.ErrPending) {
		t.Fatal(err)
	}
	s.sign()
	s.refresh("releases/meter/auto-3")
	if _, err := s.device.Target("releases/meter/auto-3"); !errors.Is(err, trust.ErrUnknownTarget) {
		t.Errorf("after the delegation was taken back: %v", err)
	}
	if err := list(makeRelease(t, "auto-4", 4, nil)); !errors.Is(err, trust.ErrRefused) {
		t.Errorf("listed all the same: %v", err)
	}
}

func signTargets(t *testing.T, m *metadata.Metadata[metadata.TargetsType], key ed25519.PrivateKey) {
	t.Helper()
	s, err := signatureOf(key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Sign(s); err != nil {
		t.Fatal(err)
	}
}

func signatureOf(key ed25519.PrivateKey) (signature.Signer, error) {
	return signature.LoadED25519Signer(key)
}
