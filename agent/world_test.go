package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry"
)

// bubbleStart is when the fake clock of a synctest bubble starts.
var bubbleStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

const (
	testTarget = "linux/arm64;sm=8.7;ort=1"
	tenant     = "default"
)

// world is a control plane reduced to what a device sees of it.
type world struct {
	t        testing.TB
	id       *Identity
	repo     *trust.Repo
	director *trust.Signer
	blobs    *blob.Store
	releases map[string]wire.ReleaseRef

	mu       sync.Mutex // guards what follows
	metadata trust.MetadataSource
	source   fetch.Source
	wanted   wire.Desired // sent while the device does not hold it
	raw      []byte       // wanted, signed
	digest   []byte
	reports  []wire.Report
	hellos   []wire.Hello
	events   []wire.Event
	blocks   []wire.Telemetry
	crashes  []wire.Crash
	link     *MemoryLink
	fetched  int64
	offline  bool
}

// unplug takes blobs and metadata away, or gives them back.
func (w *world) unplug(yes bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.offline = yes
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, releases: map[string]wire.ReleaseRef{}, blobs: blob.NewStore(slot.NewMem())}
	dir := t.TempDir()
	if _, err := trust.InitDev(dir, "skein.local", bubbleStart); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.repo, err = trust.OpenRepo(dir); err != nil {
		t.Fatal(err)
	}
	if w.director, err = w.repo.DirectorSigner(); err != nil {
		t.Fatal(err)
	}
	w.metadata = w.repo.Source()
	w.source = w
	w.id = newIdentity(t, w.repo.Root())
	return w
}

// newIdentity makes a device certificate under a CA of its own.
func newIdentity(t testing.TB, root []byte) *Identity {
	t.Helper()
	device := wire.FormatDeviceID([16]byte{7})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(wire.SpiffeID("skein.local", tenant, device))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: bubbleStart.Add(-time.Hour),
		NotAfter: bubbleStart.AddDate(1, 0, 0), URIs: []*url.URL{uri}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	seal, _, err := trust.NewSealKey()
	if err != nil {
		t.Fatal(err)
	}
	return &Identity{DeviceID: device, Tenant: tenant, Name: "cam-1", Key: key, Certificate: [][]byte{der}, CA: [][]byte{der},
		TrustRoot: root, SealKey: seal, MQTTAddress: "skein.local:8883", BlobURL: "https://skein.local:8443", ServerURL: "https://skein.local:8443"}
}

// model is what fakeRuntime runs: output = 2 × input + Bias.
type model struct {
	Bias      float32 `json:"bias"`
	Fault     string  `json:"fault,omitempty"` // incompatible, capacity, crash
	CrashPast int     `json:"crash_past,omitempty"`
	Pad       []byte  `json:"pad,omitempty"`
	L4T       string  `json:"l4t,omitempty"` // the only one that it loads on
}

func golden(bias float32) manifest.Golden {
	g := manifest.Golden{Version: 1, Input: "x", Shape: []int64{1, 3}, Tolerance: manifest.Tolerance{Abs: 1e-3}, MinLabelAgreement: 1}
	for i := range 4 {
		in := []float32{float32(i), 1, -1}
		c := manifest.GoldenCase{Input: in}
		for _, v := range in {
			c.Output = append(c.Output, 2*v+bias)
		}
		for k, v := range c.Output {
			if v > c.Output[c.Label] {
				c.Label = k
			}
		}
		g.Cases = append(g.Cases, c)
	}
	return g
}

type releaseOptions struct {
	counter uint64
	soak    time.Duration
	golden  float32 // bias that the golden set expects
	target  string
	params  []manifest.ParamDecl
	name    string                // "meter" when empty
	extra   []manifest.Descriptor // stored files beside the model
	savings map[ota.Digest]manifest.Savings
	// machine are layers by target; further are targets with engines of their own.
	machine map[string][]manifest.Descriptor
	further map[string]model
	auto    bool // listed by the auto role of meter, with no hand
}

// release publishes a release and lists it in the image repository.
func (w *world) release(version string, m model, o releaseOptions) wire.ReleaseRef {
	w.t.Helper()
	ctx := context.Background()
	put := func(_ context.Context, mediaType string, data []byte) (manifest.Descriptor, error) {
		d, err := w.blobs.PutBytes(data)
		return manifest.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, err
	}
	onnx, err := json.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	weights, err := put(ctx, manifest.MediaWeights, onnx)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := golden(o.golden).Marshal()
	if err != nil {
		w.t.Fatal(err)
	}
	g, err := put(ctx, manifest.MediaGolden, raw)
	if err != nil {
		w.t.Fatal(err)
	}
	if o.target == "" {
		o.target = "linux/arm64"
	}
	target, err := ota.ParseTarget(o.target)
	if err != nil {
		w.t.Fatal(err)
	}
	b := manifest.Build{Release: manifest.Release{Name: cmp.Or(o.name, "meter"), Version: version, Counter: o.counter, Model: "meter", ModelVersion: int64(o.counter), Soak: o.soak, Parameters: o.params},
		Targets: []ota.Target{target}, ONNX: weights, Golden: g, Extra: o.extra, Savings: o.savings, Machine: o.machine, Engines: map[string]manifest.Descriptor{}}
	for text, m := range o.further {
		engine, err := json.Marshal(m)
		if err != nil {
			w.t.Fatal(err)
		}
		if b.Engines[text], err = put(ctx, manifest.MediaWeights, engine); err != nil {
			w.t.Fatal(err)
		}
		t, err := ota.ParseTarget(text)
		if err != nil {
			w.t.Fatal(err)
		}
		b.Targets = append(b.Targets, t)
	}
	ix, index, manifests, err := b.Write(ctx, put)
	if err != nil {
		w.t.Fatal(err)
	}
	ref := wire.ReleaseRef{Target: "releases/" + cmp.Or(o.name, "meter") + "/" + version, Digest: ix.Digest.Sum(), Length: ix.Size, Counter: o.counter}
	w.releases[version] = ref
	if o.auto {
		w.listAuto(index, manifests)
		return ref
	}
	if err := w.repo.AddTarget(ctx, ref.Target, ix.Size, ix.Digest, trust.TargetCustom{Counter: o.counter}, bubbleStart); err != nil {
		w.t.Fatal(err)
	}
	return ref
}

// Open makes world the source of blobs.
func (w *world) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	r, _, err := w.blobs.Open(ctx, d)
	if err != nil {
		return nil, fetch.ErrNotFound
	}
	if _, err := r.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	w.mu.Lock()
	w.fetched += length
	w.mu.Unlock()
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(r, length), r}, nil
}

// want makes the release of a version desired under a new generation.
func (w *world) want(generation uint64, version string, change ...func(*wire.Desired)) {
	w.t.Helper()
	d := wire.Desired{Device: w.id.DeviceID, Tenant: tenant, Generation: wire.Generation{Epoch: 1, Counter: generation},
		IssuedAt: bubbleStart.Unix(), ExpiresAt: bubbleStart.AddDate(0, 0, 7).Unix(), Rollout: "r1"}
	if version != "" {
		ref := w.releases[version]
		d.Release = &ref
	}
	for _, c := range change {
		c(&d)
	}
	raw, digest := w.sign(d)
	w.mu.Lock()
	w.wanted, w.raw, w.digest = d, raw, digest
	l := w.link
	w.mu.Unlock()
	if l != nil {
		l.Deliver(wire.DownDesired, raw)
	}
}

func (w *world) sign(d wire.Desired) (raw, digest []byte) {
	w.t.Helper()
	payload, err := wire.Marshal(&d)
	if err != nil {
		w.t.Fatal(err)
	}
	if raw, err = trust.Sign(w.director, wire.AADDesired, payload); err != nil {
		w.t.Fatal(err)
	}
	sum := sha256.Sum256(payload)
	return raw, sum[:]
}

// receive is the control plane's side of the link: it keeps what comes and
// sends the desired state again while the device does not hold it.
func (w *world) receive(kind wire.Kind, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var held *wire.Held
	switch kind {
	case wire.UpHello:
		var h wire.Hello
		w.decode(payload, &h)
		w.hellos = append(w.hellos, h)
		held = &h.Held
	case wire.UpReport:
		signed, err := trust.Verify([]crypto.PublicKey{w.id.Key.Public()}, wire.AADReport, payload)
		if err != nil {
			w.t.Errorf("report: %v", err)
			return nil
		}
		var r wire.Report
		w.decode(signed, &r)
		w.reports = append(w.reports, r)
		held = &r.Held
	case wire.UpEvent:
		var e wire.Event
		w.decode(payload, &e)
		w.events = append(w.events, e)
	case wire.UpTelemetry:
		var b wire.Telemetry
		w.decode(payload, &b)
		w.blocks = append(w.blocks, b)
	case wire.UpLog:
		var c wire.Crash
		w.decode(payload, &c)
		w.crashes = append(w.crashes, c)
	}
	if held != nil && w.raw != nil && (held.Generation.Compare(w.wanted.Generation) < 0 || !bytes.Equal(held.Digest, w.digest)) {
		w.link.Deliver(wire.DownDesired, w.raw)
	}
	return nil
}

func (w *world) decode(payload []byte, v any) {
	if err := wire.Unmarshal(payload, v); err != nil {
		w.t.Errorf("message of the device: %v", err)
	}
}

// seen is a copy of what the device sent so far.
type seen struct {
	reports []wire.Report
	hellos  []wire.Hello
	events  []wire.Event
	blocks  []wire.Telemetry
	fetched int64
}

func (w *world) got() seen {
	w.mu.Lock()
	defer w.mu.Unlock()
	return seen{slices.Clone(w.reports), slices.Clone(w.hellos), slices.Clone(w.events), slices.Clone(w.blocks), w.fetched}
}

// last returns the newest full report.
func (w *world) last() *wire.Reported {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := len(w.reports) - 1; i >= 0; i-- {
		if w.reports[i].Full != nil {
			return w.reports[i].Full
		}
	}
	return new(wire.Reported)
}

func (w *world) event(attack string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e.Kind == "refused" && e.Attack == attack {
			return true
		}
	}
	return false
}

// board is a machine with a clock and a disk.
type board struct {
	files slot.Files
	clock func() time.Time
	start uint64       // of the machine, 99 when 0
	iface atomic.Value // string, of the default route
}

func (b *board) Facts(context.Context) (Facts, error) {
	target, err := ota.ParseTarget(testTarget)
	return Facts{Target: target, Hardware: "test board", Serial: "S1", BootID: cmp.Or(b.start, 99)}, err
}

func (b *board) Readings(context.Context) ([]telemetry.Reading, error) {
	now := b.clock()
	return []telemetry.Reading{
		{Series: telemetry.NewSeries(telemetry.GPUUtilization), Time: now, Value: 0.5},
		{Series: telemetry.NewSeries(telemetry.Temperature, "zone", "cpu"), Time: now, Value: 40 + float64(now.Second()%8)/8},
	}, nil
}

func (b *board) DefaultInterface() (string, error) {
	name, _ := b.iface.Load().(string)
	return name, nil
}

func (b *board) DiskFree() (int64, error) {
	if m, ok := b.files.(*slot.Mem); ok {
		if free := m.Free(); free < 0 || free > 1<<20 {
			return 1 << 40, nil
		}
		return 0, nil
	}
	return 1 << 40, nil
}

// fakeRuntime runs models in memory, reading them through Files as staged.
type fakeRuntime struct {
	files slot.Files
	room  atomic.Int32 // workloads that fit, 0 for any number
	l4t   string       // of the machine

	mu      sync.Mutex // guards what follows
	loaded  map[string]*loadedModel
	serving string
	unsafe  []string // workloads that served without ever having answered
	block   chan struct{}
}

type loadedModel struct {
	m        model
	params   map[string]string
	answered int
	down     bool
}

func newFakeRuntime(f slot.Files) *fakeRuntime {
	return &fakeRuntime{files: f, loaded: map[string]*loadedModel{}}
}

func (r *fakeRuntime) Load(ctx context.Context, w runtime.Workload) error {
	r.mu.Lock()
	block := r.block
	r.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.loaded[w.ID]; l != nil && !l.down {
		return nil
	}
	dir := w.Dir
	var raw []byte
	var err error
	if r.files.Path("x") == "" {
		raw, err = r.files.ReadFile(dir + "/" + w.ModelFile)
	} else {
		raw, err = os.ReadFile(dir + "/" + w.ModelFile)
	}
	if err != nil {
		return err
	}
	var m model
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("%w: %w", runtime.ErrIncompatible, err)
	}
	if m.L4T != "" && m.L4T != r.l4t {
		return fmt.Errorf("%w: engine made for L4T %s, here is %s", runtime.ErrIncompatible, m.L4T, r.l4t)
	}
	if m.Fault == "incompatible" {
		return fmt.Errorf("%w: operator Foo", runtime.ErrIncompatible)
	}
	if room := int(r.room.Load()); room > 0 && len(r.loaded) >= room {
		return runtime.ErrNoCapacity
	}
	r.loaded[w.ID] = &loadedModel{m: m, params: w.Params}
	return nil
}

func (r *fakeRuntime) Switch(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.loaded[id]
	if l == nil {
		return runtime.ErrNotLoaded
	}
	if l.answered == 0 {
		r.unsafe = append(r.unsafe, id)
	}
	r.serving = id
	return nil
}

func (r *fakeRuntime) Unload(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.loaded, id)
	if r.serving == id {
		r.serving = ""
	}
	return nil
}

func (r *fakeRuntime) List(context.Context) ([]runtime.Status, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []runtime.Status
	for id, l := range r.loaded {
		out = append(out, runtime.Status{ID: id, Ready: !l.down, Serving: id == r.serving, Reason: map[bool]string{true: "crashed"}[l.down]})
	}
	return out, nil
}

func (r *fakeRuntime) Infer(_ context.Context, id string, req runtime.Request) (runtime.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if id == "" {
		id = r.serving
	}
	l := r.loaded[id]
	if l == nil || l.down {
		return runtime.Response{}, runtime.ErrNotLoaded
	}
	if l.answered++; l.m.CrashPast > 0 && l.answered > l.m.CrashPast {
		l.down = true
		return runtime.Response{}, errors.New("workload crashed")
	}
	out := runtime.Tensor{Name: "y", Shape: req.Inputs[0].Shape}
	for _, v := range req.Inputs[0].Data {
		out.Data = append(out.Data, 2*v+l.m.Bias)
	}
	return runtime.Response{Outputs: []runtime.Tensor{out}}, nil
}

// models returns a copy of what is loaded.
func (r *fakeRuntime) models() map[string]loadedModel {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]loadedModel{}
	for id, l := range r.loaded {
		out[id] = *l
	}
	return out
}

func (r *fakeRuntime) unproven() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.unsafe)
}

// answer asks the serving workload what 0 gives: its bias.
func (r *fakeRuntime) answer() (float32, error) {
	resp, err := r.Infer(context.Background(), "", runtime.Request{Inputs: []runtime.Tensor{{Name: "x", Shape: []int64{1, 1}, Data: []float32{0}}}})
	if err != nil {
		return 0, err
	}
	return resp.Outputs[0].Data[0], nil
}

// device is a running agent.
type device struct {
	*Agent
	runtime *fakeRuntime
	link    *MemoryLink
	cancel  context.CancelFunc
	done    chan error
}

// boot starts an agent on files; stop it in the same bubble.
func (w *world) boot(files slot.Files, change ...func(*Options)) *device {
	w.t.Helper()
	d, err := w.tryBoot(files, change...)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

// tryBoot is boot on a disk that may be cut already.
func (w *world) tryBoot(files slot.Files, change ...func(*Options)) (*device, error) {
	d := &device{runtime: newFakeRuntime(files), done: make(chan error, 1)}
	d.link = NewMemoryLink(w.receive)
	w.mu.Lock()
	w.link = d.link
	w.mu.Unlock()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("SKEIN_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	o := Options{
		Identity: w.id, Link: d.link, Host: &board{files: files, clock: time.Now}, Runtime: d.runtime, Files: files,
		Blobs: sourceFunc(w.open), Metadata: w.meta, Logger: log, TelemetryEvery: 10 * time.Second, CheckEvery: 10 * time.Second,
	}
	for _, c := range change {
		c(&o)
	}
	a, err := New(o)
	if err != nil {
		return nil, err
	}
	d.Agent = a
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	go func() { d.done <- a.Run(ctx) }()
	return d, nil
}

type sourceFunc func(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error)

func (f sourceFunc) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	return f(ctx, d, offset, length)
}

func (w *world) open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	w.mu.Lock()
	s, offline := w.source, w.offline
	w.mu.Unlock()
	if offline {
		return nil, errors.New("no network")
	}
	return s.Open(ctx, d, offset, length)
}

func (w *world) meta(ctx context.Context, name string) ([]byte, error) {
	w.mu.Lock()
	m, offline := w.metadata, w.offline
	w.mu.Unlock()
	if offline {
		return nil, errors.New("no network")
	}
	return m(ctx, name)
}

func (d *device) stop(t testing.TB) error {
	d.cancel()
	return <-d.done
}

// settle lets the device work for a while of fake time.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
