package bench

import (
	"bytes"
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
	"math/big"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent"
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

// powerWorld is a control plane as a device sees it: signed releases 1 and 2,
// their bytes, and the desired state that asks for one of them.
type powerWorld struct {
	id       *agent.Identity
	repo     *trust.Repo
	director *trust.Signer
	blobs    *blob.Store
	refs     map[int]wire.ReleaseRef
	start    time.Time
}

const (
	powerTenant = "default"
	powerPad    = 900 << 10 // of a model: some chunks long
)

func newPowerWorld(ctx context.Context, dir string) (*powerWorld, error) {
	w := &powerWorld{blobs: blob.NewStore(slot.NewMem()), refs: map[int]wire.ReleaseRef{}, start: time.Now()}
	if _, err := trust.InitDev(dir, "skein.local", w.start); err != nil {
		return nil, err
	}
	var err error
	if w.repo, err = trust.OpenRepo(dir); err != nil {
		return nil, err
	}
	if w.director, err = w.repo.DirectorSigner(); err != nil {
		return nil, err
	}
	if w.id, err = powerIdentity(w.repo.Root(), w.start); err != nil {
		return nil, err
	}
	for n := 1; n <= 2; n++ {
		if err := w.release(ctx, n); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// powerIdentity makes a device certificate under a CA of its own.
func powerIdentity(root []byte, now time.Time) (*agent.Identity, error) {
	device := wire.FormatDeviceID([16]byte{9})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	uri, err := url.Parse(wire.SpiffeID("skein.local", powerTenant, device))
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.AddDate(1, 0, 0), URIs: []*url.URL{uri}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	seal, _, err := trust.NewSealKey()
	if err != nil {
		return nil, err
	}
	return &agent.Identity{DeviceID: device, Tenant: powerTenant, Name: "bench", Key: key, Certificate: [][]byte{der}, CA: [][]byte{der},
		TrustRoot: root, SealKey: seal, MQTTAddress: "skein.local:8883", BlobURL: "https://skein.local:8443", ServerURL: "https://skein.local:8443"}, nil
}

// powerModel is what powerRuntime runs: output = input + Bias.
type powerModel struct {
	Bias float32 `json:"bias"`
	Pad  []byte  `json:"pad"`
}

func (w *powerWorld) release(ctx context.Context, n int) error {
	put := func(_ context.Context, mediaType string, data []byte) (manifest.Descriptor, error) {
		d, err := w.blobs.PutBytes(data)
		return manifest.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, err
	}
	pad := make([]byte, powerPad)
	_, _ = rand.Read(pad) // never fails
	raw, err := json.Marshal(powerModel{float32(n), pad})
	if err != nil {
		return err
	}
	weights, err := put(ctx, manifest.MediaWeights, raw)
	if err != nil {
		return err
	}
	g := manifest.Golden{Version: 1, Input: "x", Shape: []int64{1, 1}, Tolerance: manifest.Tolerance{Abs: 1e-3}}
	for i := range 3 {
		g.Cases = append(g.Cases, manifest.GoldenCase{Input: []float32{float32(i)}, Output: []float32{float32(i + n)}})
	}
	if raw, err = g.Marshal(); err != nil {
		return err
	}
	golden, err := put(ctx, manifest.MediaGolden, raw)
	if err != nil {
		return err
	}
	b := manifest.Build{Release: manifest.Release{Name: "meter", Version: fmt.Sprint(n), Counter: uint64(n), Model: "meter", ModelVersion: int64(n), Soak: 20 * time.Millisecond},
		Targets: []ota.Target{{OS: "linux", Arch: "arm64"}}, ONNX: weights, Golden: golden}
	ix, _, _, err := b.Write(ctx, put)
	if err != nil {
		return err
	}
	ref := wire.ReleaseRef{Target: fmt.Sprintf("releases/meter/%d", n), Digest: ix.Digest.Sum(), Length: ix.Size, Counter: uint64(n)}
	w.refs[n] = ref
	return w.repo.AddTarget(ctx, ref.Target, ix.Size, ix.Digest, trust.TargetCustom{Counter: ref.Counter}, w.start)
}

// wanted is the signed desired state that asks for a release.
func (w *powerWorld) wanted(n int) (raw, digest []byte, err error) {
	ref := w.refs[n]
	payload, err := wire.Marshal(&wire.Desired{Device: w.id.DeviceID, Tenant: powerTenant, Generation: wire.Generation{Epoch: 1, Counter: uint64(n)},
		IssuedAt: w.start.Unix(), ExpiresAt: w.start.AddDate(0, 0, 7).Unix(), Release: &ref})
	if err != nil {
		return nil, nil, err
	}
	sum := sha256.Sum256(payload)
	raw, err = trust.Sign(w.director, wire.AADDesired, payload)
	return raw, sum[:], err
}

// powerDevice is the real agent on a disk that can lose its power.
type powerDevice struct {
	*agent.Agent
	w       *powerWorld
	runtime *powerRuntime
	link    *agent.MemoryLink
	fetched *atomic.Int64
	offline *atomic.Bool
	cancel  context.CancelFunc
	ended   chan error

	mu       sync.Mutex // guards what follows
	want     int
	raw      []byte
	digest   []byte
	reported *wire.Reported
}

// boot starts an agent; an error of the disk is slot.ErrCut.
func (w *powerWorld) boot(files *slot.Mem, want int, bootID uint64, point func(string)) (*powerDevice, error) {
	d := &powerDevice{w: w, runtime: &powerRuntime{files: files, loaded: map[string]float32{}}, fetched: &atomic.Int64{}, offline: &atomic.Bool{}, ended: make(chan error, 1)}
	var err error
	if d.raw, d.digest, err = w.wanted(want); err != nil {
		return nil, err
	}
	d.want = want
	d.link = agent.NewMemoryLink(d.receive)
	d.Agent, err = agent.New(agent.Options{
		Identity: w.id, Link: d.link, Host: powerHost{bootID}, Runtime: d.runtime, Files: files, Blobs: d, Metadata: d.metadata,
		TelemetryEvery: time.Hour, BlockEvery: time.Hour, CheckEvery: 20 * time.Millisecond, SoakEvery: 5 * time.Millisecond, PointHook: point,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	go func() { d.ended <- d.Agent.Run(ctx) }()
	return d, nil
}

func (d *powerDevice) stop() error {
	d.cancel()
	return <-d.ended
}

func (d *powerDevice) metadata(ctx context.Context, name string) ([]byte, error) {
	if d.offline.Load() {
		return nil, errors.New("no network")
	}
	return d.w.repo.Source()(ctx, name)
}

// Open implements fetch.Source and counts what is taken.
func (d *powerDevice) Open(ctx context.Context, digest ota.Digest, offset, length int64) (io.ReadCloser, error) {
	if d.offline.Load() {
		return nil, errors.New("no network")
	}
	r, _, err := d.w.blobs.Open(ctx, digest)
	if err != nil {
		return nil, fetch.ErrNotFound
	}
	if _, err := r.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return &countedReader{io.LimitReader(r, length), r, d.fetched}, nil
}

// countedReader gives pieces as a network does and counts them.
type countedReader struct {
	r io.Reader
	io.Closer
	n *atomic.Int64
}

func (c *countedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p[:min(len(p), 16<<10)])
	c.n.Add(int64(n))
	return n, err
}

// receive is the control plane's side of the link.
func (d *powerDevice) receive(kind wire.Kind, payload []byte) error {
	var held wire.Held
	switch kind {
	case wire.UpHello:
		var h wire.Hello
		if err := wire.Unmarshal(payload, &h); err != nil {
			return err
		}
		held = h.Held
	case wire.UpReport:
		signed, err := trust.Verify([]crypto.PublicKey{d.w.id.Key.Public()}, wire.AADReport, payload)
		if err != nil {
			return err
		}
		var r wire.Report
		if err := wire.Unmarshal(signed, &r); err != nil {
			return err
		}
		held = r.Held
		if r.Full != nil {
			d.mu.Lock()
			d.reported = r.Full
			d.mu.Unlock()
		}
	default:
		return nil
	}
	if held.Generation.Counter < uint64(d.want) || !bytes.Equal(held.Digest, d.digest) {
		d.link.Deliver(wire.DownDesired, d.raw)
	}
	return nil
}

// done says that the device ended where it should: the release is committed,
// answers, and is reported.
func (d *powerDevice) done(release int) bool {
	st := d.Status()
	d.mu.Lock()
	r := d.reported
	d.mu.Unlock()
	got, err := d.runtime.answer()
	return err == nil && got == float32(release) && st.Phase == wire.PhaseIdle && d.runtime.count() == 1 &&
		r != nil && bytes.Equal(r.Running, d.w.refs[release].Digest) && r.Phase == wire.PhaseIdle
}

type powerHost struct{ boot uint64 }

func (h powerHost) Facts(context.Context) (agent.Facts, error) {
	return agent.Facts{Target: ota.Target{OS: "linux", Arch: "arm64"}, Hardware: "twin", Serial: "1", BootID: h.boot}, nil
}
func (powerHost) Readings(context.Context) ([]telemetry.Reading, error) { return nil, nil }
func (powerHost) DefaultInterface() (string, error)                     { return "eth0", nil }
func (powerHost) DiskFree() (int64, error)                              { return 1 << 40, nil }

// powerRuntime runs models that it reads from the staged files.
type powerRuntime struct {
	files *slot.Mem

	mu      sync.Mutex // guards what follows
	loaded  map[string]float32
	serving string
}

func (r *powerRuntime) Load(_ context.Context, w runtime.Workload) error {
	raw, err := r.files.ReadFile(w.Dir + "/" + w.ModelFile)
	if err != nil {
		return err
	}
	var m powerModel
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("%w: %w", runtime.ErrIncompatible, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.loaded[w.ID] = m.Bias
	return nil
}

func (r *powerRuntime) Switch(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.loaded[id]; !ok {
		return runtime.ErrNotLoaded
	}
	r.serving = id
	return nil
}

func (r *powerRuntime) Unload(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.loaded, id)
	if r.serving == id {
		r.serving = ""
	}
	return nil
}

func (r *powerRuntime) List(context.Context) (out []runtime.Status, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id := range r.loaded {
		out = append(out, runtime.Status{ID: id, Ready: true, Serving: id == r.serving})
	}
	return out, nil
}

func (r *powerRuntime) Infer(_ context.Context, id string, req runtime.Request) (runtime.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if id == "" {
		id = r.serving
	}
	bias, ok := r.loaded[id]
	if !ok {
		return runtime.Response{}, runtime.ErrNotLoaded
	}
	out := runtime.Tensor{Name: "y", Shape: req.Inputs[0].Shape}
	for _, v := range req.Inputs[0].Data {
		out.Data = append(out.Data, v+bias)
	}
	return runtime.Response{Outputs: []runtime.Tensor{out}}, nil
}

func (r *powerRuntime) answer() (float32, error) {
	resp, err := r.Infer(context.Background(), "", runtime.Request{Inputs: []runtime.Tensor{{Shape: []int64{1, 1}, Data: []float32{0}}}})
	if err != nil {
		return 0, err
	}
	return resp.Outputs[0].Data[0], nil
}

func (r *powerRuntime) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.loaded)
}
