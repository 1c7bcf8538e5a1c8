package build

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/engine"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

const (
	orin  = "linux/arm64;sm=8.7;trt=10.3.0.30;cuda=12.6;l4t=36.4.3;mem=8;dla=0;module=p3767-0005;mode=15W"
	orin2 = "linux/arm64;sm=8.7;trt=10.3.0.30;cuda=12.6;l4t=36.4.3;mem=8;dla=0;module=p3767-0005;mode=MAXN"
	thor  = "linux/arm64;sm=11.0;trt=10.13.3;cuda=13.0;l4t=38.2.0;mem=128;dla=0;module=p3834-0008;mode=MAXN"
	h100  = "linux/amd64;sm=9.0;trt=10.3.0;cuda=12.6;mem=80"
	cpu   = "linux/amd64;ort=1.22.0"
)

// testing is what *testing.T and *rapid.T share.
type testingT interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// world is a queue with a real store and real blobs, and devices of paper.
type world struct {
	mu       sync.Mutex
	now      time.Time
	devices  map[string]*fleet.View
	keys     map[string]ed25519.PrivateKey
	notices  []string
	answers  map[string]wire.BuildLease
	director *trust.Signer

	dir   string
	db    *store.DB
	files *slot.Dir
	blobs *blob.Store
	q     *Queue
	model store.ModelVersion
	ctx   context.Context
}

func newWorld(t testingT, ctx context.Context, dir string) *world {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{ctx: ctx, dir: dir, now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC), devices: map[string]*fleet.View{}, keys: map[string]ed25519.PrivateKey{}, answers: map[string]wire.BuildLease{}}
	if w.director, err = trust.NewSigner(key); err != nil {
		t.Fatal(err)
	}
	w.open(t)
	onnx, err := w.blobs.PutBytes([]byte("an ONNX file"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(manifest.Golden{Version: 1, Input: "x", Shape: []int64{1}, MinLabelAgreement: 1, Tolerance: manifest.Tolerance{Abs: 0.01},
		Cases: []manifest.GoldenCase{{Input: []float32{1}, Output: []float32{0, 1}, Label: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	golden, err := w.blobs.PutBytes(raw)
	if err != nil {
		t.Fatal(err)
	}
	err = w.db.Update(ctx, func(tx *store.Tx) error {
		w.model, err = tx.AddModelVersion(ctx, store.ModelVersion{Tenant: store.DefaultTenant, Name: "meter", ONNX: string(onnx), ONNXSize: 12, Golden: string(golden),
			GoldenSize: int64(len(raw)), Created: w.now, CreatedBy: "t"})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// open opens, or after close opens again, what is durable.
func (w *world) open(t testingT) {
	t.Helper()
	var err error
	if w.db, err = store.Open(w.ctx, filepath.Join(w.dir, "skein.db")); err != nil {
		t.Fatal(err)
	}
	if w.files, err = slot.OpenDir(filepath.Join(w.dir, "blobs")); err != nil {
		t.Fatal(err)
	}
	w.blobs = blob.NewStore(w.files)
	w.q, err = New(Config{Store: w.db, Fleet: w, Models: w, Blobs: w.blobs, Link: w, Director: func() (*trust.Signer, error) { return w.director, nil },
		Allowed: func(string, ota.Digest) error { return fmt.Errorf("nobody signed it") }, Domain: "skein.test", Version: "v0", Now: w.time})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.q.Load(w.ctx); err != nil {
		t.Fatal(err)
	}
}

func (w *world) close(t testingT) {
	t.Helper()
	if err := w.db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.files.Close(); err != nil {
		t.Fatal(err)
	}
}

func (w *world) time() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	w.now = w.now.Add(d)
	w.mu.Unlock()
}

// add makes a device; builders are those whose name begins with b.
func (w *world) add(t testingT, name, target string) string {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	id := wire.FormatDeviceID([16]byte{byte(len(w.devices) + 1)})
	v := &fleet.View{Tenant: store.DefaultTenant, ID: id, Name: name, Target: target, State: fleet.Online, Online: true}
	if strings.HasPrefix(name, "b") {
		v.Capabilities = []string{Capability}
	}
	w.devices[id], w.keys[id] = v, key
	return id
}

func (w *world) Get(tenant, id string) (fleet.View, error) {
	v, ok := w.devices[id]
	if !ok || v.Tenant != tenant {
		return fleet.View{}, fleet.ErrUnknownDevice
	}
	return *v, nil
}

func (w *world) Snapshot(tenant string) []fleet.View {
	var out []fleet.View
	for _, v := range w.devices {
		if v.Tenant == tenant {
			out = append(out, *v)
		}
	}
	slices.SortFunc(out, func(a, b fleet.View) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func (w *world) Capable(tenant, capability string) []fleet.View {
	return slices.DeleteFunc(w.Snapshot(tenant), func(v fleet.View) bool { return !slices.Contains(v.Capabilities, capability) })
}

func (w *world) Key(_, id string) (crypto.PublicKey, error) {
	if k, ok := w.keys[id]; ok {
		return k.Public(), nil
	}
	return nil, fleet.ErrUnknownDevice
}

func (w *world) Noticed(_ context.Context, _, device, kind, message, _ string) error {
	w.notices = append(w.notices, kind+" "+device+" "+message)
	return nil
}

func (w *world) Version(ctx context.Context, tenant, text string) (store.ModelVersion, error) {
	if text != "meter" && text != "meter@1" {
		return store.ModelVersion{}, fmt.Errorf("model %q: %w", text, ErrUnknown)
	}
	return w.model, nil
}

func (w *world) Versions(context.Context, string, string) ([]store.ModelVersion, error) {
	return []store.ModelVersion{w.model}, nil
}

func (w *world) Publish(_ context.Context, device string, kind wire.Kind, signed []byte) error {
	payload, err := trust.Verify([]crypto.PublicKey{w.director.Public()}, wire.AADBuild, signed)
	if err != nil || kind != wire.DownBuild {
		return fmt.Errorf("%s: %w", kind, err)
	}
	var l wire.BuildLease
	if err := wire.UnmarshalCanonical(payload, &l); err != nil {
		return err
	}
	w.answers[device] = l
	return nil
}

// send brings a message in and returns the answer.
func (w *world) send(t testingT, device string, m wire.Build) wire.BuildLease {
	t.Helper()
	delete(w.answers, device)
	raw, err := wire.Marshal(&m)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.q.Message(w.ctx, store.DefaultTenant, device, raw); err != nil {
		t.Fatalf("%s of %s: %v", m.Kind, w.devices[device].Name, err)
	}
	w.deliver()
	return w.answers[device]
}

// deliver sends what waits in the outbox.
func (w *world) deliver() {
	for w.q.out.Len() > 0 {
		p, l, _ := w.q.out.Take()
		w.q.publish(w.ctx, l)
		w.q.out.Done(p)
	}
}

func (w *world) ask(t testingT, device string) wire.BuildLease {
	t.Helper()
	return w.send(t, device, wire.Build{Kind: wire.BuildAsk, Target: w.devices[device].Target})
}

// result uploads an engine of a lease and returns its record.
func (w *world) result(t testingT, device string, l wire.BuildLease, change ...func(*wire.EngineRecord)) []byte {
	t.Helper()
	plan := fmt.Appendf(nil, "engine of %s by %s, attempt %d", hex.EncodeToString(l.Work.Key[:4]), device, l.Attempt)
	put := func(b []byte, name string) wire.Blob {
		d, err := w.blobs.PutBytes(b)
		if err != nil {
			t.Fatal(err)
		}
		return wire.Blob{Digest: d.Sum(), Length: int64(len(b)), Name: name}
	}
	at, log, cache := put(plan, "plan"), put([]byte("[I] Engine built\n"), "build.log"), put([]byte("timings of "+device), "timing.cache")
	target, err := ota.ParseTarget(l.Work.Target)
	if err != nil {
		t.Fatal(err)
	}
	own, err := ota.ParseTarget(w.devices[device].Target)
	if err != nil {
		t.Fatal(err)
	}
	r := wire.EngineRecord{Key: l.Work.Key, Model: l.Work.Model, Version: l.Work.Version, ONNX: l.Work.ONNX.Digest, Golden: l.Work.Golden.Digest,
		Recipe: ota.DigestOf(l.Work.Recipe).Sum(), Target: l.Work.Target, Probed: own.String(), TensorRT: own.Attrs["trt"], SM: target.Attrs["sm"],
		Digest: at.Digest, Size: at.Length, LatencyP50: 1.2, LatencyP99: 1.4, Throughput: 800, Power: 7.5, Mode: own.Attrs["mode"],
		Proof: &wire.EngineProof{Cases: 1, Agreed: 1, MaxAbs: 0.001}, Device: device, Started: w.now.Unix() - 60, Finished: w.now.Unix(),
		Log: log, TimingCache: &cache, Command: []string{"trtexec", "--fp16"}, Job: l.Job, Attempt: l.Attempt}
	for _, f := range change {
		f(&r)
	}
	s, err := trust.NewSigner(w.keys[device])
	if err != nil {
		t.Fatal(err)
	}
	signed, err := engine.Sign(s, r)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func (w *world) finish(t testingT, device string, l wire.BuildLease, change ...func(*wire.EngineRecord)) wire.BuildLease {
	t.Helper()
	return w.send(t, device, wire.Build{Kind: wire.BuildDone, Job: l.Job, Attempt: l.Attempt, Record: w.result(t, device, l, change...)})
}

func (w *world) want(t testingT, recipe string, targets ...string) []Cell {
	t.Helper()
	cs, err := w.q.Build(w.ctx, Request{Tenant: store.DefaultTenant, Model: "meter@1", Recipe: recipe, Targets: targets, All: len(targets) == 0})
	if err != nil {
		t.Fatal(err)
	}
	w.deliver()
	return cs
}

func (w *world) matrix(t testingT, recipe string) map[string]Cell {
	t.Helper()
	cs, err := w.q.Matrix(w.ctx, store.DefaultTenant, "", recipe)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]Cell{}
	for _, c := range cs {
		out[c.Target] = c
	}
	return out
}

func isSum(b []byte, d string) bool { return bytes.Equal(b, ota.Digest(d).Sum()) }
