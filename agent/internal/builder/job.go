package builder

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/engine"
	"github.com/skein-fleet/skein/ota"
	recipes "github.com/skein-fleet/skein/ota/engine"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// job is one lease being worked on.
type job struct {
	c      *Config
	lease  wire.BuildLease
	dir    string
	log    *buildLog
	cancel context.CancelCauseFunc
	expiry *time.Timer
	done   chan *wire.Build // gets the result once

	mu      sync.Mutex // guards what follows
	step    string
	percent uint8
	message string
	token   string // of uploads: a newer lease has a newer one
}

// failure is a job that failed, by class.
type failure struct {
	class string
	err   error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func failed(class string, err error) error { return &failure{class, err} }

// newJob starts the work. The lease's end is counted by this machine's
// monotonic clock.
func newJob(ctx context.Context, c *Config, lease wire.BuildLease, life time.Duration) *job {
	ctx, cancel := context.WithCancelCause(ctx)
	j := &job{c: c, lease: lease, dir: filepath.Join(c.Dir, "job"), cancel: cancel, expiry: time.NewTimer(life), done: make(chan *wire.Build, 1), step: "fetch", token: lease.Work.Token}
	var err error
	if err = os.MkdirAll(j.dir, 0o700); err == nil {
		j.log, err = openLog(filepath.Join(j.dir, "log"))
	}
	go func() {
		m := &wire.Build{Kind: wire.BuildDone, Job: lease.Job, Attempt: lease.Attempt, Step: "upload", Percent: 100}
		if err == nil {
			m.Record, err = j.run(ctx)
		} else {
			err = failed(wire.BuildTransfer, fmt.Errorf("make a folder for the build: %w", err))
		}
		if err != nil {
			m.Kind, m.Record, m.Class, m.Message = wire.BuildFailed, nil, classOf(ctx, err), clip(err.Error())
			m.Step, m.Percent = j.at()
		}
		j.done <- m
		close(j.done)
	}()
	return j
}

// close forgets all of the job.
func (j *job) close() {
	j.expiry.Stop()
	j.cancel(nil)
	if j.log != nil {
		_ = j.log.file.Close()
	}
	_ = os.RemoveAll(j.dir) // the next start clears it
}

func clip(s string) string { return s[:min(len(s), 1<<10)] }

// classOf says who should do better.
func classOf(ctx context.Context, err error) string {
	if f, ok := errors.AsType[*failure](err); ok && ctx.Err() == nil {
		return f.class
	}
	switch {
	case ctx.Err() != nil:
		return wire.BuildStopped
	case errors.Is(err, engine.ErrMemory):
		return wire.BuildMemory
	case errors.Is(err, engine.ErrCannotBuild):
		return wire.BuildUnsupported
	case errors.Is(err, slot.ErrDiskFull):
		return wire.BuildBusy
	}
	return wire.BuildTool
}

func (j *job) now(step string, percent uint8, format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.step, j.percent, j.message = step, percent, fmt.Sprintf(format, args...)
	j.log.say("%s: %s", step, j.message)
}

func (j *job) at() (string, uint8) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.step, j.percent
}

func (j *job) renew(token string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.token = token
}

func (j *job) heartbeat() wire.Build {
	j.mu.Lock()
	defer j.mu.Unlock()
	return wire.Build{Kind: wire.BuildHeartbeat, Job: j.lease.Job, Attempt: j.lease.Attempt, Step: j.step, Percent: j.percent, Message: j.message}
}

// order is what a lease asks for, checked.
type order struct {
	work    *wire.BuildWork
	recipe  recipes.Recipe
	target  ota.Target // of the engine
	probed  ota.Target // of this device
	golden  *manifest.Golden
	plan    string // what is uploaded
	whole   string // what runs: the plan, with its weights
	command []string
	built   engine.Result
}

// run does the work and returns the signed record.
func (j *job) run(ctx context.Context) ([]byte, error) {
	started := j.c.Now()
	o, err := j.check(ctx)
	if err != nil {
		return nil, err
	}
	if err := j.fetch(ctx, o); err != nil {
		return nil, err
	}
	if j.c.Headroom != nil {
		j.now("build", 10, "waits for headroom")
		if err := j.c.Headroom.Headroom(ctx, "build"); err != nil {
			return nil, failed(wire.BuildBusy, err)
		}
	}
	r := wire.EngineRecord{Key: o.work.Key, Model: o.work.Model, Version: o.work.Version, ONNX: o.work.ONNX.Digest, Target: o.target.String(), Probed: o.probed.String(),
		TensorRT: o.probed.Attrs["trt"], SM: o.probed.Attrs["sm"], Mode: o.probed.Attrs["mode"], Device: j.c.Device, Started: started.Unix(),
		Image: j.c.Image, Job: j.lease.Job, Attempt: j.lease.Attempt}
	recipe := sha256.Sum256(o.work.Recipe)
	r.Recipe = recipe[:]
	if o.work.Golden != nil {
		r.Golden = o.work.Golden.Digest
	}
	if err := j.make(ctx, o, &r); err != nil {
		return nil, err
	}
	return j.deliver(ctx, o, &r)
}

// check reads the lease and refuses what is not for this device, before a byte
// is fetched.
func (j *job) check(ctx context.Context) (*order, error) {
	o := &order{work: j.lease.Work}
	var err error
	if o.recipe, err = recipes.ParseRecipe(o.work.Recipe); err != nil {
		return nil, failed(wire.BuildUnsupported, err)
	}
	if o.target, err = ota.ParseTarget(o.work.Target); err != nil {
		return nil, failed(wire.BuildMismatch, err)
	}
	if o.probed, err = j.c.Probe(ctx); err != nil {
		return nil, failed(wire.BuildTool, fmt.Errorf("find out what this device is: %w", err))
	}
	if reason, ok := o.recipe.Builds(o.target, o.probed); !ok {
		return nil, failed(wire.BuildMismatch, fmt.Errorf("this device does not build for %s: %s", o.target, reason))
	}
	recipe, err := o.recipe.Digest()
	if err != nil {
		return nil, failed(wire.BuildUnsupported, err)
	}
	golden := ota.Digest("")
	if o.work.Golden != nil {
		golden = digest(o.work.Golden.Digest)
	}
	if key := recipes.Key(recipes.VersionDigest(digest(o.work.ONNX.Digest), golden), recipe, o.target); !bytes.Equal(key.Sum(), o.work.Key) {
		return nil, failed(wire.BuildMismatch, errors.New("the engine's key is not that of model, recipe and target"))
	}
	return o, nil
}

func digest(sum []byte) ota.Digest {
	if len(sum) != sha256.Size {
		return ""
	}
	return ota.DigestFromSum([sha256.Size]byte(sum))
}

// fetch lays out what the tool reads.
func (j *job) fetch(ctx context.Context, o *order) error {
	j.now("fetch", 1, "model of %d bytes", o.work.ONNX.Length)
	get := func(b *wire.Blob, name string) error {
		if b == nil {
			return nil
		}
		if err := j.get(ctx, *b, filepath.Join(j.dir, name)); err != nil {
			return failed(wire.BuildTransfer, fmt.Errorf("fetch %s: %w", name, err))
		}
		return nil
	}
	err := cmp.Or(get(&o.work.ONNX, "model.onnx"), get(o.work.Golden, "golden.json"), get(o.work.Calibration, "calibration.cache"))
	for i := range o.work.Plugins {
		err = cmp.Or(err, get(&o.work.Plugins[i], fmt.Sprintf("plugin%d.so", i)))
	}
	if err != nil {
		return err
	}
	if err := get(o.work.TimingCache, "timing.cache"); err != nil {
		j.log.say("built without the timing cache: %v", err) // it only makes it faster
	}
	if o.work.Golden == nil {
		return nil
	}
	raw, err := os.ReadFile(filepath.Join(j.dir, "golden.json"))
	if err != nil {
		return failed(wire.BuildTransfer, fmt.Errorf("read the golden set: %w", err))
	}
	if o.golden, err = manifest.ParseGolden(raw); err != nil {
		return failed(wire.BuildUnsupported, err)
	}
	return nil
}

func (j *job) get(ctx context.Context, b wire.Blob, path string) (err error) {
	d := manifest.Descriptor{MediaType: manifest.MediaWeights, Digest: digest(b.Digest), Size: b.Length}
	if err := j.c.Blobs.Fetch(ctx, d); err != nil {
		return err
	}
	in, err := j.c.Blobs.Open(ctx, d.Digest)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, h), in); err != nil {
		return err
	}
	if !bytes.Equal(h.Sum(nil), b.Digest) {
		return fmt.Errorf("what the store holds is not %s", d.Digest.Short())
	}
	return nil
}

func (j *job) path(name string) string { return filepath.Join(j.dir, name) }

// exists returns a path in the job's folder when something is there.
func (j *job) exists(name string) string {
	if st, err := os.Stat(j.path(name)); err != nil || st.Size() == 0 {
		return ""
	}
	return j.path(name)
}

// make builds, measures and proves: a stripped engine first, where the recipe
// asks for one, and the full one where that does not come to life or answers
// wrongly.
func (j *job) make(ctx context.Context, o *order, r *wire.EngineRecord) error {
	if o.recipe.Strip {
		err := j.attempt(ctx, o, r, false)
		if err == nil {
			r.Stripped = true
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		r.Fallback = clip(err.Error())
		j.log.say("a full engine is built instead: %v", err)
	}
	return j.attempt(ctx, o, r, true)
}

func (j *job) attempt(ctx context.Context, o *order, r *wire.EngineRecord, full bool) error {
	build := engine.Job{Recipe: o.recipe, TensorRT: recipes.Patch(o.probed.Attrs["trt"]), ONNX: j.path("model.onnx"), Plan: j.path("model.plan"),
		TimingCache: j.path("timing.cache"), Calibration: j.exists("calibration.cache"), Full: full, Log: j.log}
	for i := range o.work.Plugins {
		build.Plugins = append(build.Plugins, j.path(fmt.Sprintf("plugin%d.so", i)))
	}
	var err error
	if o.command, err = j.c.Tool.Args(build); err != nil {
		return failed(wire.BuildUnsupported, err)
	}
	j.now("build", 20, "TensorRT %s, %s", build.TensorRT, o.recipe)
	if o.built, err = j.c.Tool.Build(ctx, build); err != nil {
		return err
	}
	o.plan, o.whole = build.Plan, build.Plan
	if o.recipe.Strip && !full {
		o.whole = j.path("full.plan")
		if err := j.c.Tool.RefitPlan(ctx, o.plan, build.ONNX, o.whole, j.log); err != nil {
			return err
		}
	}
	if err := j.measure(ctx, o, r); err != nil {
		return err
	}
	return j.prove(ctx, o, r)
}

const (
	trialTimeout = 2 * time.Minute
	warmUp       = 500 * time.Millisecond
	powerEvery   = 250 * time.Millisecond
)

// measure loads the engine in a process of its own, and times it.
func (j *job) measure(ctx context.Context, o *order, r *wire.EngineRecord) error {
	j.now("measure", 70, "for %s", j.c.MeasureFor)
	if _, err := j.c.Tool.Trial(ctx, o.whole, trialTimeout); err != nil {
		return fmt.Errorf("load the new engine: %w", err)
	}
	watts := j.watch()
	m, err := j.c.Tool.Measure(ctx, o.whole, warmUp, j.c.MeasureFor, j.log)
	power := watts()
	if err != nil {
		return fmt.Errorf("measure the new engine: %w", err)
	}
	median := cmp.Or(m.Latency.Median, m.Latency.Mean)
	r.LatencyP50, r.LatencyP99, r.Throughput, r.Power = median, max(m.Latency.P(99), median), m.Throughput, power
	r.Warnings = nil
	if m.Variance > 0 {
		r.Warnings = append(r.Warnings, fmt.Sprintf("clocks were not locked: times vary by %.3g %%", m.Variance))
	}
	for _, b := range m.Bound {
		r.Warnings = append(r.Warnings, "throughput is bound by "+b)
	}
	if p := o.built.Placement; p != nil && len(p.Refused) > 0 {
		r.Warnings = append(r.Warnings, fmt.Sprintf("%d layers did not go to the DLA: %s", len(p.Refused), p.Refused[0]))
	}
	return nil
}

// watch averages the board's power until the function that it returns is called.
func (j *job) watch() func() float64 {
	if j.c.Power == nil {
		return func() float64 { return 0 }
	}
	stop, mean := make(chan struct{}), make(chan float64, 1)
	go func() {
		sum, n := j.c.Power(), 1
		tick := time.NewTicker(powerEvery)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				mean <- sum / float64(n)
				return
			case <-tick.C:
				sum, n = sum+j.c.Power(), n+1
			}
		}
	}()
	return func() float64 { close(stop); return <-mean }
}

// prove answers the golden set with the new engine: through a server where one
// loads plans, else by trtexec, a process for each case.
func (j *job) prove(ctx context.Context, o *order, r *wire.EngineRecord) error {
	r.Proof = nil
	if o.golden == nil {
		j.log.say("the version has no golden set: nothing is proven")
		return nil
	}
	j.now("prove", 80, "%d golden cases", len(o.golden.Cases))
	var outputs [][]float32
	err := ErrNoServer
	if j.c.Server != nil {
		outputs, err = j.c.Server.Answers(ctx, j.dir, filepath.Base(o.whole), o.golden)
	}
	if err != nil && ctx.Err() == nil {
		j.log.say("no server answers with the plan (%v): trtexec does, a process for each case", err)
		outputs, err = j.answers(ctx, o)
	}
	if err != nil {
		return fmt.Errorf("answer the golden set: %w", err)
	}
	score, err := o.golden.Compare(outputs)
	if err != nil {
		return failed(wire.BuildGolden, err)
	}
	r.Proof = &wire.EngineProof{Cases: int64(len(outputs)), Agreed: int64(score.Agreed), MaxAbs: score.MaxAbs}
	if err := recipes.Prove(*r, o.golden); err != nil {
		return failed(wire.BuildGolden, err)
	}
	return nil
}

func (j *job) answers(ctx context.Context, o *order) (out [][]float32, err error) {
	for i, c := range o.golden.Cases {
		a, err := j.c.Tool.Answer(ctx, o.whole, j.dir, o.golden.Input, c.Input)
		if err != nil {
			return nil, fmt.Errorf("case %d: %w", i, err)
		}
		out = append(out, a)
	}
	return out, nil
}

// deliver uploads what was made and signs what it is.
func (j *job) deliver(ctx context.Context, o *order, r *wire.EngineRecord) ([]byte, error) {
	j.now("upload", 90, "")
	plan, err := describe(o.plan, "plan")
	if err != nil {
		return nil, failed(wire.BuildTool, err)
	}
	if o.work.MaxBytes > 0 && plan.Length > o.work.MaxBytes {
		return nil, failed(wire.BuildUnsupported, fmt.Errorf("the engine has %d bytes, at most %d are taken", plan.Length, o.work.MaxBytes))
	}
	r.Digest, r.Size, r.Command, r.Finished = plan.Digest, plan.Length, o.command, j.c.Now().Unix()
	up := func(name, path string) error {
		j.mu.Lock()
		token := j.token
		j.mu.Unlock()
		if err := j.c.Upload(ctx, o.work.Upload+name, token, path); err != nil {
			return failed(wire.BuildTransfer, fmt.Errorf("upload %s: %w", name, err))
		}
		return nil
	}
	if err := up("plan", o.plan); err != nil {
		return nil, err
	}
	if path := j.exists("timing.cache"); path != "" {
		cache, err := describe(path, "timing.cache")
		if err != nil {
			return nil, failed(wire.BuildTool, err)
		}
		if err := up("cache", path); err != nil {
			return nil, err
		}
		r.TimingCache = &cache
	}
	j.log.say("engine of %d bytes, p50 %.4g ms, p99 %.4g ms", r.Size, r.LatencyP50, r.LatencyP99)
	// The log is what it is now; what follows is not in it.
	sealed := j.path("log.sealed")
	if err := j.log.copyTo(sealed); err != nil {
		return nil, failed(wire.BuildTool, err)
	}
	if r.Log, err = describe(sealed, "log"); err != nil {
		return nil, failed(wire.BuildTool, err)
	}
	if err := up("log", sealed); err != nil {
		return nil, err
	}
	signed, err := j.c.Sign(*r)
	if err != nil {
		return nil, failed(wire.BuildTool, err)
	}
	return signed, nil
}

// describe hashes a file.
func describe(path, name string) (wire.Blob, error) {
	f, err := os.Open(path)
	if err != nil {
		return wire.Blob{}, fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return wire.Blob{}, fmt.Errorf("read %s: %w", name, err)
	}
	return wire.Blob{Digest: h.Sum(nil), Length: n, Name: name}, nil
}
