package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/builder"
	"github.com/skein-fleet/skein/agent/internal/engine"
	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/reconcile"
	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/internal/target"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	recipes "github.com/skein-fleet/skein/ota/engine"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry"
)

// EngineRunner runs commands where TensorRT is; EngineExit is how one ended.
type (
	EngineRunner = engine.Runner
	EngineExit   = engine.Exit
)

// EngineOptions say how TensorRT is reached.
type EngineOptions struct {
	// Runner runs trtexec: nil as a child on the host.
	Runner  EngineRunner
	Trtexec string   // path; empty is where JetPack puts it
	Refit   []string // command that puts weights into a stripped plan; empty is Python's TensorRT
	Image   string   // digest of the image that Runner runs it in, for records
	// Dir is a scratch folder of the operating system; empty is below Files, and
	// one that must be given where Files are in memory.
	Dir string
	// Trial bounds a trial load; 0 means 2 minutes. Measure is how long a new
	// engine is timed; 0 means 5 s.
	Trial, Measure time.Duration
}

// DefaultTrtexec is where JetPack puts it.
const DefaultTrtexec = engine.DefaultTrtexec

const (
	trialTimeout  = 2 * time.Minute
	softwareFor   = 10 * time.Minute // what is installed does not change often
	buildReserve  = 256 << 20        // bytes of memory that a build leaves to others
	uploadTimeout = 30 * time.Minute
)

// engineCheck judges plans for the executor.
type engineCheck struct {
	a    *Agent
	tool *engine.Tool

	mu    sync.Mutex // guards what follows
	found target.Software
	at    time.Time
}

// engines returns what judges plans, and makes the builder.
func (a *Agent) engines() reconcile.Engines {
	o := a.opts.Engines
	c := &engineCheck{a: a}
	if o == nil {
		return c // records are checked all the same
	}
	runner := o.Runner
	if runner == nil {
		runner = engine.HostRunner{}
	}
	c.tool = &engine.Tool{Runner: runner, Trtexec: o.Trtexec, Refit: o.Refit, Reserve: buildReserve, Available: a.freeMemory}
	dir := cmp.Or(o.Dir, a.opts.Files.Path("build"))
	if dir == "" {
		return c
	}
	a.builder = builder.New(builder.Config{
		Device: a.identity.Load().DeviceID, Probe: c.probe, Tool: c.tool, Dir: dir, Blobs: buildBlobs{a}, Server: buildServer{a}, Headroom: buildHeadroom{a},
		Power: a.watts, Upload: a.uploadBuild, Image: o.Image, Now: a.now, Logger: a.log, MeasureFor: o.Measure,
		Send: func(ctx context.Context, m *wire.Build) error {
			m.ID = a.ids.next()
			return a.send(ctx, wire.UpBuild, m)
		},
		Sign: func(r wire.EngineRecord) ([]byte, error) { return recipes.Sign(a.signer, r) },
	})
	return c
}

// buildLoop follows leases.
func (a *Agent) buildLoop(ctx context.Context) error {
	if a.builder == nil {
		return nil
	}
	if err := a.builder.Run(ctx); err != nil {
		a.noteDisk(err) // the rest of the agent does not need it
		a.log.Warn("nothing is built here", "error", err)
	}
	return nil
}

// lease verifies one lease and hands it on.
func (a *Agent) lease(ctx context.Context, raw []byte) {
	if a.builder == nil {
		return
	}
	l, err := a.verifyLease(ctx, raw)
	if err != nil {
		a.log.Warn("build lease refused", "error", err)
		if !errors.Is(err, errLater) {
			a.tellRefusal(attackClass(err), "build lease: "+err.Error())
		}
		return
	}
	a.builder.Lease(*l)
}

func (a *Agent) verifyLease(ctx context.Context, raw []byte) (*wire.BuildLease, error) {
	payload, err := a.verify(ctx, wire.AADBuild, raw)
	if err != nil {
		return nil, err
	}
	var l wire.BuildLease
	if err := wire.UnmarshalCanonical(payload, &l); err != nil {
		return nil, &trust.Attack{Class: trust.ClassMalformed, Err: err}
	}
	id := a.identity.Load()
	if l.Device != id.DeviceID || l.Tenant != id.Tenant {
		return nil, &trust.Attack{Class: trust.ClassWrongDevice, Err: fmt.Errorf("it is for device %s of tenant %s", l.Device, l.Tenant)}
	}
	return &l, nil
}

// probe is the device's target with the software of the place where the tool
// runs: in a container that is its own, whatever the host has.
func (c *engineCheck) probe(ctx context.Context) (ota.Target, error) {
	c.a.refreshFacts(ctx)
	s, err := c.software(ctx)
	if err != nil {
		return ota.Target{}, err
	}
	if s.TensorRT == "" {
		return ota.Target{}, errors.New("there is no trtexec: install TensorRT's tools, or name its path or an image")
	}
	return withSoftware(c.a.facts().Target, target.Software{TensorRT: s.TensorRT, CUDA: s.CUDA})
}

func (c *engineCheck) software(ctx context.Context) (target.Software, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.a.opts.Now()
	if since := now.Sub(c.at); c.found.TensorRT != "" && since >= 0 && since < softwareFor {
		return c.found, nil
	}
	found, err := c.tool.Software(ctx)
	if err == nil {
		c.found, c.at = found, now
	}
	return found, err
}

// Check implements reconcile.Engines.
func (c *engineCheck) Check(ctx context.Context, plan manifest.Descriptor, path string, made ota.Target, server *manifest.Workload) (string, error) {
	dev, tool, asked, err := c.place(ctx, path, server)
	if err != nil {
		return "", err
	}
	fit, reason := made.Fits(dev)
	if fit == ota.FitNone {
		return "", fmt.Errorf("%w: %s%s", runtime.ErrIncompatible, reason, asked)
	}
	said := "it has no signed record"
	seal, err := recipes.FromLayer(plan)
	if err != nil {
		return "", fmt.Errorf("%w: %w", reconcile.ErrRejected, err)
	}
	if seal != nil {
		if fit, reason, err = c.record(plan, seal, dev); err != nil {
			return "", fmt.Errorf("%w: %w", reconcile.ErrRejected, err)
		}
		said = "its record is signed and matches"
	}
	if fit != ota.FitOptimal && c.a.engineFit() == recipes.BindOptimal {
		return "", fmt.Errorf("%w: the policy wants engines tuned for this device: %s; have one built: skein engine build --optimal", reconcile.ErrRejected, reason)
	}
	c.a.board.Update(fit != ota.FitOptimal, health.EngineNotOptimal, health.Info, "the engine may be slower than one of this device's own: "+reason)
	trial, err := c.trial(ctx, tool, path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, %s fit%s, %s", said, fit, asked, trial), nil
}

// place is where a plan will be loaded: this device with the software of the
// server's image, whatever the host has, and what tries a plan there. asked says
// so in words.
func (c *engineCheck) place(ctx context.Context, path string, server *manifest.Workload) (dev ota.Target, tool *engine.Tool, asked string, err error) {
	dev = c.a.facts().Target
	once, ok := c.a.opts.Runtime.(commandRunner)
	if server == nil || server.Image == nil || !ok {
		return dev, c.tool, "", nil
	}
	tool = &engine.Tool{Runner: imageRunner{once: once, server: server, dir: filepath.Dir(path)}, Reserve: buildReserve, Available: c.a.freeMemory}
	found, err := tool.Software(ctx)
	switch {
	case ctx.Err() != nil:
		return dev, nil, "", err
	case err != nil || found.TensorRT == "":
		c.a.log.Info("the image does not say which TensorRT it has", "image", server.Image.Digest.Short(), "error", err)
		return dev, tool, " (its image does not say which TensorRT it has)", nil
	}
	if dev, err = withSoftware(dev, found); err != nil {
		return dev, nil, "", err
	}
	return dev, tool, " (its image has TensorRT " + found.TensorRT + ")", nil
}

// withSoftware returns a copy of t that has the software of another place.
func withSoftware(t ota.Target, s target.Software) (ota.Target, error) {
	t, err := ota.ParseTarget(t.String())
	if err != nil {
		return t, err
	}
	for k, v := range map[string]string{"trt": s.TensorRT, "cuda": s.CUDA, "ort": s.ONNXRuntime} {
		if v != "" {
			t.Attrs[k] = v
		}
	}
	return t, nil
}

// commandRunner is what a runtime with containers has.
type commandRunner interface {
	RunOnce(ctx context.Context, c serving.Command) (serving.Exit, error)
}

// imageRunner runs the tools of TensorRT in the image of a server, as its user,
// with the folder of the plan.
type imageRunner struct {
	once   commandRunner
	server *manifest.Workload
	dir    string
}

// Run implements engine.Runner.
func (r imageRunner) Run(ctx context.Context, argv []string, out io.Writer) (engine.Exit, error) {
	var dirs []string
	if filepath.IsAbs(r.dir) {
		dirs = append(dirs, r.dir)
	}
	e, err := r.once.RunOnce(ctx, serving.Command{
		Name: "engine-" + strings.ToLower(rand.Text()), Image: *r.server.Image, Args: argv, User: r.server.User, GPU: r.server.GPU,
		Dirs: dirs, Devices: r.server.Devices, Resources: r.server.Resources, Output: out, Grace: time.Second,
	})
	return engine.Exit{Code: e.Code, Signal: e.Signal, OOM: e.OOM}, err
}

// engineFit is what the policy of the desired state wants of engines.
func (a *Agent) engineFit() string {
	var d wire.Desired
	if err := wire.Unmarshal(a.state.Get().Desired, &d); err != nil || d.Policy == nil {
		return ""
	}
	return d.Policy.EngineFit
}

// record checks the control plane's word on a plan.
func (c *engineCheck) record(plan manifest.Descriptor, seal []byte, dev ota.Target) (ota.Fit, string, error) {
	keys, err := c.a.trust.DirectorKeys()
	if err != nil {
		return ota.FitNone, "", fmt.Errorf("learn the director's keys: %w", err)
	}
	id := c.a.identity.Load()
	s, err := recipes.Open(keys, id.Tenant, seal)
	if err != nil {
		return ota.FitNone, "", err
	}
	return s.CheckLoad(plan, id.DeviceID, dev)
}

// trial loads the plan in a child, where there is something to do it with.
func (c *engineCheck) trial(ctx context.Context, tool *engine.Tool, path string) (string, error) {
	if tool == nil || path == "" || !filepath.IsAbs(path) {
		return "not tried before", nil
	}
	timeout := trialTimeout
	if o := c.a.opts.Engines; o != nil {
		timeout = cmp.Or(o.Trial, timeout)
	}
	_, err := tool.Trial(ctx, path, timeout)
	switch {
	case err == nil:
		return "a trial load passed", nil
	case errors.Is(err, engine.ErrUnloadable):
		return "", fmt.Errorf("%w: trial load: %w", runtime.ErrIncompatible, err)
	case ctx.Err() != nil:
		return "", err
	}
	c.a.log.Info("no trial load", "error", err)
	return "no trial load: " + clipText(err.Error(), 200), nil
}

// Refit implements reconcile.Engines.
func (c *engineCheck) Refit(ctx context.Context, plan, weights, out string) error {
	if c.tool == nil {
		return errors.New("the plan is stripped of its weights, and nothing here puts them in")
	}
	return c.tool.RefitPlan(ctx, plan, weights, out, nil)
}

// refreshFacts looks again what the device is: power modes change, and with
// them what engines are optimal.
func (a *Agent) refreshFacts(ctx context.Context) {
	fresh, err := a.opts.Host.Facts(ctx)
	if err != nil {
		return
	}
	old := a.facts()
	if fresh.Target.String() == old.Target.String() {
		return
	}
	old.Target = fresh.Target
	a.known.Store(&old)
	a.log.Info("the device is another target now", "target", fresh.Target.String())
	a.wakeReport.set()
}

func (a *Agent) freeMemory() int64 {
	used, total := a.memory()
	return total - used
}

// watts is the power of the module now, 0 when it is not measured.
func (a *Agent) watts() float64 {
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	all, err := a.opts.Host.Readings(ctx)
	if err != nil {
		return 0
	}
	sum := 0.0
	for _, r := range all {
		switch name := r.Series.String(); {
		case name == telemetry.PowerTotal:
			return r.Value
		case strings.HasPrefix(name, telemetry.Power+"{"):
			sum += r.Value
		}
	}
	return sum
}

// buildHeadroom waits for a board that is fit for a build.
type buildHeadroom struct{ a *Agent }

func (h buildHeadroom) Headroom(ctx context.Context, step string) error {
	_, err := h.a.headroom(ctx, step)
	return err
}

// buildBlobs are the blobs of a lease, by all ways that the device has.
type buildBlobs struct{ a *Agent }

func (b buildBlobs) Fetch(ctx context.Context, d manifest.Descriptor) error {
	return b.a.fetcher.Fetch(ctx, d)
}

func (b buildBlobs) Open(ctx context.Context, d ota.Digest) (io.ReadCloser, error) {
	r, _, err := b.a.blobs.Open(ctx, d)
	return r, err
}

// buildServer answers golden sets with the device's own model server.
type buildServer struct{ a *Agent }

func (s buildServer) Answers(ctx context.Context, dir, file string, g *manifest.Golden) (out [][]float32, err error) {
	if s.a.state.Get().Update != nil {
		return nil, fmt.Errorf("%w while an update is under way", builder.ErrNoServer)
	}
	w := runtime.Workload{ID: "build-" + filepath.Base(dir), Model: "build", Version: "1", Dir: dir, ModelFile: file, Format: "plan"}
	if err := s.a.opts.Runtime.Load(ctx, w); err != nil {
		return nil, fmt.Errorf("%w: %w", builder.ErrNoServer, err)
	}
	defer func() { err = errors.Join(err, s.a.opts.Runtime.Unload(context.WithoutCancel(ctx), w.ID)) }()
	for i, c := range g.Cases {
		resp, err := s.a.opts.Runtime.Infer(ctx, w.ID, runtime.Request{ID: fmt.Sprintf("build-%d", i),
			Inputs: []runtime.Tensor{{Name: g.Input, Shape: slices.Clone(g.Shape), Data: slices.Clone(c.Input)}}})
		if err != nil {
			return nil, fmt.Errorf("golden case %d: %w", i, err)
		}
		if len(resp.Outputs) == 0 {
			return nil, fmt.Errorf("golden case %d: the answer has no output", i)
		}
		out = append(out, resp.Outputs[0].Data)
	}
	return out, nil
}

// uploadBuild puts a file at a path of the device port.
func (a *Agent) uploadBuild(ctx context.Context, path, token, file string) error {
	if a.http == nil {
		return errors.New("there is no device port to upload to")
	}
	ctx, cancel := context.WithTimeout(ctx, uploadTimeout)
	defer cancel()
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(file), err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(file), err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read %s: %w", filepath.Base(file), err)
	}
	digest := ota.DigestFromSum([sha256.Size]byte(h.Sum(nil)))
	url := strings.TrimSuffix(a.identity.Load().BlobURL, "/") + path + "?digest=" + string(digest)
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, io.NopCloser(f))
	if err != nil {
		return fmt.Errorf("upload to %s: %w", path, err)
	}
	req.ContentLength = n
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/octet-stream")
	resp, err := a.http.Do(req)
	if err != nil {
		return fmt.Errorf("upload to %s: %w", path, err)
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("upload to %s: %s: %.200s", path, resp.Status, said)
	}
	return nil
}
