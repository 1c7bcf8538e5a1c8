package e2e

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/ota/trust/signer"
	artifactv1 "github.com/skein-fleet/skein/proto/gen/skein/artifact/v1"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	trustv1 "github.com/skein-fleet/skein/proto/gen/skein/trust/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/trust/v1/trustv1connect"
)

// keepers are people with keys that are never where the server is, and a signer
// with the online keys in a folder of its own.
type keepers struct {
	s      *server
	root   []ed25519.PrivateKey // two, both needed
	listed ed25519.PrivateKey   // of targets
	dir    string
	public map[string]ed25519.PublicKey
	stop   func()
}

func keeperKey(name string) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(fmt.Appendf(nil, "%-32s", name))
}

func publicOf(k ed25519.PrivateKey) trust.NamedKey {
	return trust.NamedKey{Key: k.Public().(ed25519.PublicKey)}
}

// newKeepers holds the ceremony for s, which has not run yet, and starts the
// signer.
func newKeepers(t *testing.T, s *server) *keepers {
	t.Helper()
	dir, err := os.MkdirTemp("", "keepers") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	k := &keepers{s: s, root: []ed25519.PrivateKey{keeperKey("alice"), keeperKey("bob")}, listed: keeperKey("dave"), dir: dir, public: map[string]ed25519.PublicKey{}, stop: func() {}}
	state, err := slot.OpenDir(filepath.Join(dir, "signer"))
	if err != nil {
		t.Fatal(err)
	}
	pems, err := trust.InitNotary(state)
	if err != nil {
		t.Fatal(err)
	}
	for kind, b := range pems {
		block, _ := pem.Decode(b)
		pub, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		k.public[kind] = pub.(ed25519.PublicKey)
	}
	folder, err := slot.OpenDir(filepath.Join(s.cfg.DataDir, "trust"))
	if err != nil {
		t.Fatal(err)
	}
	o := trust.InitOptions{Domain: "skein.local", Thresholds: map[string]int{"root": 2}, Keys: map[string][]trust.NamedKey{
		"root": {publicOf(k.root[0]), publicOf(k.root[1])}, "targets": {publicOf(k.listed)},
		"snapshot": {{Key: k.public["snapshot"]}}, "timestamp": {{Key: k.public["timestamp"]}}}}
	if err := trust.Init(folder, o, time.Now()); !errors.Is(err, trust.ErrPending) {
		t.Fatal(err)
	}
	repo, err := trust.OpenFiles(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, sign := range []struct {
		role string
		key  ed25519.PrivateKey
	}{{"root", k.root[0]}, {"targets", k.listed}, {"root", k.root[1]}} {
		d, id, sig, err := repo.SignDraft(sign.role, sign.key)
		if err != nil {
			t.Fatal(err)
		}
		if err := repo.AddSignature(t.Context(), sign.role, d, id, sig, time.Now()); err != nil && !errors.Is(err, trust.ErrPending) {
			t.Fatal(err)
		}
	}
	if err := errors.Join(trust.AnchorNotary(state, repo.Root()), state.Close(), folder.Close()); err != nil {
		t.Fatal(err)
	}
	s.cfg.Signer = "unix://" + filepath.Join(dir, "s.sock")
	k.serve()
	return k
}

// serve runs the signer on its socket.
func (k *keepers) serve() {
	t := k.s.t
	t.Helper()
	state, err := slot.OpenDir(filepath.Join(k.dir, "signer"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := trust.OpenNotary(state, time.Now, func(trust.NotaryEntry) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	ln, err := signer.Listen(filepath.Join(k.dir, "s.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- signer.Serve(ctx, ln, n) }()
	k.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, state.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(k.stop)
}

func (k *keepers) service() trustv1connect.TrustServiceClient {
	return trustv1connect.NewTrustServiceClient(&http.Client{Transport: bearer(k.s.token)}, k.s.http)
}

// copied is what a person gets to look at: a copy of the repository, checked
// against the root of the ceremony.
func (k *keepers) copied() *trust.Repo {
	t := k.s.t
	t.Helper()
	got, err := k.service().GetTrust(t.Context(), &trustv1.GetTrustRequest{Files: true})
	if err != nil {
		t.Fatal(err)
	}
	f := slot.NewMem()
	var first []byte
	for _, file := range got.GetFiles() {
		if err := f.WriteFile(file.GetName(), file.GetContent()); err != nil {
			t.Fatal(err)
		}
		if file.GetName() == "metadata/1.root.json" {
			first = file.GetContent()
		}
	}
	r, err := trust.OpenFiles(f)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Anchored(first); err != nil {
		t.Fatal(err)
	}
	return r
}

// sign signs the draft of targets and reports whether that published it.
func (k *keepers) sign() bool {
	t := k.s.t
	t.Helper()
	d, id, sig, err := k.copied().SignDraft("targets", k.listed)
	if err != nil {
		t.Fatal(err)
	}
	r, err := k.service().AddSignature(t.Context(), &trustv1.AddSignatureRequest{Role: "targets", Digest: string(d), KeyId: id, Signature: sig})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetPublished()
}

// TestOfflineKeys is a fleet whose keys lie where they should: root and targets
// with persons, snapshot, timestamp and auto in a signer, the director in
// skeind.
func TestOfflineKeys(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	k := newKeepers(t, s)
	s.run()
	if r := s.release("1", version{bias: 1}); r.GetPending() == "" {
		t.Error("a release that nobody signed is usable")
	}
	d := s.enroll().run()
	if err := s.tryAssign(d.id, "1"); !has(err, "skein trust sign") {
		t.Errorf("assigned: %v", err)
	}
	if !k.sign() {
		t.Error("not published")
	}
	s.settle(d, "1")

	// A draft outlives skeind, and its signature comes after.
	s.release("2", version{bias: 2})
	s.restart()
	if err := s.tryAssign(d.id, "2"); !has(err, "cannot be used yet") {
		t.Errorf("assigned: %v", err)
	}
	k.sign()
	s.settle(d, "2")

	// Without its signer skeind starts, serves and moves devices; what needs a
	// new signature waits.
	k.stop()
	s.restart()
	s.settle(d, "1")
	s.release("3", version{bias: 3})
	r := k.copied()
	digest, id, sig, err := r.SignDraft("targets", k.listed)
	if err != nil {
		t.Fatal(err)
	}
	add := &trustv1.AddSignatureRequest{Role: "targets", Digest: string(digest), KeyId: id, Signature: sig}
	if _, err := k.service().AddSignature(t.Context(), add); !has(err, "skein-signer does not answer") {
		t.Errorf("published without the signer: %v", err)
	}
	k.serve()
	s.restart()
	s.settle(d, "3")
	d.serves()
}

// TestAutoRelease is the closed loop: within the policy no hand is needed, and
// nothing else is possible.
func TestAutoRelease(t *testing.T) {
	t.Parallel()
	s := prepare(t)
	k := newKeepers(t, s)
	s.run()
	base := s.release("1", version{bias: 1})
	k.sign()
	d := s.boot("1")
	onnx, golden := s.golden(base)
	full, err := s.op.Releases.GetRelease(t.Context(), &releasev1.GetReleaseRequest{Release: "meter@1"})
	if err != nil {
		t.Fatal(err)
	}
	ix, err := manifest.ParseIndex(full.GetIndex())
	if err != nil {
		t.Fatal(err)
	}
	p := trust.AutoPolicy{Model: "meter", Paths: []string{"releases/meter/auto-*"}, MaxBytes: 1 << 20, Golden: []ota.Digest{golden},
		Parameters: []ota.Digest{ota.DigestOf([]byte(ix.Annotations[manifest.AnnParameters]))},
		Layers:     []trust.LayerRule{{MediaType: manifest.MediaWeights, Formats: []string{"onnx"}, MaxBytes: 1 << 20}}}
	edited := k.copied()
	if err := edited.Delegate(t.Context(), p, []trust.NamedKey{{Key: k.public["auto"]}}, time.Now()); !errors.Is(err, trust.ErrPending) {
		t.Fatal(err)
	}
	create := &releasev1.CreateReleaseRequest{Name: "meter", Model: base.GetModel() + "@1", Targets: []string{testTarget}, Auto: true, Parameters: base.GetParameters()}
	if _, err := s.op.Releases.CreateRelease(t.Context(), create); !has(err, "skein trust delegate") {
		t.Errorf("released with no policy: %v", err)
	}
	_, err = k.service().ProposeMetadata(t.Context(), &trustv1.ProposeMetadataRequest{Role: "targets", Metadata: edited.Status().Drafts[0].Metadata})
	if err != nil {
		t.Fatal(err)
	}
	k.sign()
	r, err := s.op.Releases.CreateRelease(t.Context(), create)
	if err != nil {
		t.Fatal(err)
	}
	if v := r.GetRelease().GetVersion(); v != "auto-2" || r.GetRelease().GetPending() != "" {
		t.Fatalf("made %s, pending %q", v, r.GetRelease().GetPending())
	}
	if _, err := s.op.Fleet.AssignRelease(t.Context(), &fleetv1.AssignReleaseRequest{Device: d.id, Release: "meter@auto-2"}); err != nil {
		t.Fatal(err)
	}
	s.settled(d, "auto-2")
	s.release("3", version{bias: 7}) // another golden set: model version 2
	create.Model = base.GetModel() + "@2"
	if _, err := s.op.Releases.CreateRelease(t.Context(), create); !has(err, "golden set") {
		t.Errorf("released beyond the policy: %v", err)
	}
	if onnx == "" || !strings.HasPrefix(s.get(d.id).GetRunningReleaseName(), "meter@auto-") {
		t.Error("the device left the release")
	}
}

// golden are the digests of the model's files of a release.
func (s *server) golden(r *releasev1.Release) (onnx, golden ota.Digest) {
	s.t.Helper()
	m, err := s.op.Models.GetModel(s.t.Context(), modelRequest(r))
	if err != nil {
		s.t.Fatal(err)
	}
	v := m.GetVersions()[0]
	return ota.Digest(v.GetOnnx().GetDigest()), ota.Digest(v.GetGolden().GetDigest())
}

func modelRequest(r *releasev1.Release) *artifactv1.GetModelRequest {
	return &artifactv1.GetModelRequest{Model: fmt.Sprintf("%s@%d", r.GetModel(), r.GetModelVersion())}
}
