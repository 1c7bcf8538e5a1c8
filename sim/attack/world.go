package attack

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/controlplane"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/operator"
	"github.com/skein-fleet/skein/sim/plane"
)

const (
	product    = "meter"
	other      = "gate" // another team's product
	targetText = "linux/amd64;ort=1"
	otherBoard = "linux/arm64;sm=8.7"
	inputs     = 4
	padding    = 320 << 10 // of a model: enough for a chunk index
)

// The releases of product in a world; each model adds its own number to the sum
// of its inputs, so an answer tells which one gave it.
const (
	older   = 1
	running = 2 // what the victim runs when the attack begins
	bait    = 3 // honest, assigned while the attacker is at work
	next    = 4 // honest, assigned when the attacker is gone
	foreign = 5 // honest, for another board
)

// release is one honest release.
type release struct {
	number  int
	digest  ota.Digest
	length  int64
	counter uint64
	index   []byte
}

func (r *release) path() string { return fmt.Sprintf("releases/%s/%d", product, r.number) }

// world is a real control plane with its operator, and what a thief finds there.
type world struct {
	n     int
	dir   string
	place place
	log   *slog.Logger
	shift atomic.Int64 // of the control plane's clock and of its devices'
	claim string
	pad   string

	mu       sync.Mutex // guards what follows
	plane    *plane.Plane
	releases map[int]*release
	first    map[string][]byte // metadata of an earlier day, rightly signed
	devices  int
}

func newWorld(ctx context.Context, dir string, n int, p place, log *slog.Logger) (*world, error) {
	w := &world{n: n, dir: filepath.Join(dir, fmt.Sprintf("world-%d", n)), place: p, log: log, releases: map[int]*release{}}
	junk := make([]byte, padding/2)
	if _, err := rand.Read(junk); err != nil {
		return nil, err
	}
	w.pad = hex.EncodeToString(junk)
	if p == threshold {
		if err := twoOfTwo(w.trustDir()); err != nil {
			return nil, fmt.Errorf("make a repository that needs two keys: %w", err)
		}
	}
	if p == autoPlace {
		if err := delegate(ctx, w.trustDir()); err != nil {
			return nil, fmt.Errorf("make a repository that delegates: %w", err)
		}
	}
	if err := w.start(ctx); err != nil {
		return nil, err
	}
	if err := w.stock(ctx); err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

func (w *world) dataDir() string  { return filepath.Join(w.dir, "data") }
func (w *world) trustDir() string { return filepath.Join(w.dataDir(), "trust") }

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.shift.Load())) }

// start runs the control plane, at the same addresses as before.
func (w *world) start(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	old := w.plane
	p, err := plane.InProcess(ctx, w.dataDir(), "", w.log, func(c *controlplane.Config) {
		c.Resend, c.Now = 400*time.Millisecond, w.now
		if old != nil {
			c.HTTPAddr, c.DeviceAddr, c.MQTTAddr = strings.TrimPrefix(old.URL, "http://"), strings.TrimPrefix(old.DeviceURL, "https://"), old.MQTT
		}
	})
	if err != nil {
		return err
	}
	w.plane = p
	return nil
}

func (w *world) close() error { return w.plane.Close() }

// away stops the control plane, does what a person does meanwhile, and starts it.
func (w *world) away(ctx context.Context, do func() error) error {
	if err := w.plane.Close(); err != nil {
		return fmt.Errorf("stop the control plane: %w", err)
	}
	if err := do(); err != nil {
		return err
	}
	return w.start(ctx)
}

// rotate replaces keys of the repository, as a person does after a theft.
func (w *world) rotate(ctx context.Context, roles ...string) error {
	return w.away(ctx, func() error {
		repo, err := trust.OpenRepo(w.trustDir())
		if err != nil {
			return err
		}
		for _, role := range roles {
			if err := repo.Rotate(ctx, role, w.now()); err != nil {
				return err
			}
		}
		return nil
	})
}

func (w *world) op() *operator.Operator {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.plane.Operator()
}

// stock makes the honest releases, and keeps the metadata as it was after the
// first.
func (w *world) stock(ctx context.Context) (err error) {
	for _, n := range []int{older, running, bait, next, foreign} {
		target := targetText
		if n == foreign {
			target = otherBoard
		}
		if w.releases[n], err = w.release(ctx, n, target); err != nil {
			return err
		}
		if n == older {
			if w.first, err = w.metadata(); err != nil {
				return err
			}
		}
	}
	w.claim, err = w.op().Claim(ctx, 1000, map[string]string{"site": "lyon"})
	return err
}

// model is the file whose answers are its number more than the sum of inputs.
func (w *world) model(n int) ([]byte, error) { return w.marked(n, fmt.Sprint(n)) }

// marked is the same in another file.
func (w *world) marked(n int, mark string) ([]byte, error) {
	weights := make([]float32, 2*inputs)
	for i := range inputs {
		weights[i] = 1
	}
	return meter.Linear(weights, []float32{float32(n), 0}, inputs, 1, map[string]string{"pad": w.pad, "mark": mark})
}

// golden is the golden set of the model of that number.
func golden(n int) ([]byte, error) {
	g := manifest.Golden{Version: 1, Input: meter.InputName, Shape: []int64{1, inputs}, Tolerance: manifest.Tolerance{Abs: 1e-3}, MinLabelAgreement: 1}
	for i := range 3 {
		g.Cases = append(g.Cases, manifest.GoldenCase{Input: []float32{float32(i), 1, 1, 1}, Output: []float32{float32(i + 3 + n), 0}})
	}
	return g.Marshal()
}

func (w *world) release(ctx context.Context, n int, target string) (*release, error) {
	onnx, err := w.model(n)
	if err != nil {
		return nil, err
	}
	g, err := golden(n)
	if err != nil {
		return nil, err
	}
	op := w.op()
	model, err := op.PushModel(ctx, product, onnx, g, fmt.Sprint(n))
	if err != nil {
		return nil, err
	}
	r, err := op.Release(ctx, &releasev1.CreateReleaseRequest{Name: product, Version: fmt.Sprint(n), Model: model, Targets: []string{target}})
	if err != nil {
		return nil, err
	}
	full, err := op.Releases.GetRelease(ctx, &releasev1.GetReleaseRequest{Release: fmt.Sprintf("%s@%d", product, n)})
	if err != nil {
		return nil, fmt.Errorf("read release %d: %w", n, err)
	}
	return &release{number: n, digest: ota.Digest(r.GetDigest()), length: int64(len(full.GetIndex())), counter: r.GetCounter(), index: full.GetIndex()}, nil
}

// blob reads from the control plane's disk.
func (w *world) blob(d ota.Digest) ([]byte, error) {
	return os.ReadFile(filepath.Join(w.dataDir(), "blobs", "blobs", "sha256", d.Hex()[:2], d.Hex()))
}

// manifest returns what the victim's board gets of a release.
func (w *world) manifest(n int) (*manifest.Manifest, error) {
	ix, err := manifest.ParseIndex(w.releases[n].index)
	if err != nil {
		return nil, err
	}
	raw, err := w.blob(ix.Manifests[0].Digest)
	if err != nil {
		return nil, err
	}
	return manifest.ParseManifest(raw)
}

// metadata copies what the repository serves.
func (w *world) metadata() (map[string][]byte, error) {
	dir := filepath.Join(w.trustDir(), "metadata")
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	for _, f := range files {
		raw, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return nil, err
		}
		out[f.Name()] = raw
	}
	return out, nil
}

// assign makes a release the wanted one of a device.
func (w *world) assign(ctx context.Context, device string, n int) error {
	_, err := w.op().Fleet.AssignRelease(ctx, &fleetv1.AssignReleaseRequest{Device: device, Release: fmt.Sprintf("%s@%d", product, n)})
	return err
}

func (w *world) device(ctx context.Context, id string) (*fleetv1.Device, error) {
	r, err := w.op().Fleet.GetDevice(ctx, &fleetv1.GetDeviceRequest{Device: id})
	if err != nil {
		return nil, fmt.Errorf("ask the control plane for the device: %w", err)
	}
	return r.GetDevice(), nil
}

func (w *world) events(ctx context.Context, id string) ([]*fleetv1.DeviceEvent, error) {
	r, err := w.op().Fleet.ListDeviceEvents(ctx, &fleetv1.ListDeviceEventsRequest{Device: id, Limit: 1000})
	if err != nil {
		return nil, fmt.Errorf("ask the control plane for events: %w", err)
	}
	return r.GetEvents(), nil
}
