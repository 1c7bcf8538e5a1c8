package serving

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Options configure a Runtime. Launcher and Dir are required.
type Options struct {
	Launcher Launcher
	// Dir holds what dialects write for their servers; nothing in it outlives
	// its server.
	Dir string
	// Command serves workloads that name no image and no command of their own;
	// TritonCommand those of them that want Triton.
	Command, TritonCommand []string
	// Dialects by the name of the server; KServe v2 is always there.
	Dialects map[string]Dialect
	Logger   *slog.Logger
	// Memory returns how many bytes could be had now and how many there are,
	// zero when that is not known. nil knows nothing.
	Memory func() (available, total int64)
	// StopTimeout is the time between asking and forcing a server to end, and
	// the longest wait for the requests that it has, 10 s when 0.
	StopTimeout time.Duration
	// ReadyEvery is the time between two looks at a starting server, 100 ms when
	// 0; ReadyTimeout bounds a start by itself, 10 minutes when 0.
	ReadyEvery, ReadyTimeout time.Duration
	// LookEvery is the time between two looks at a running one, 10 s when 0.
	LookEvery time.Duration
	// RestartMin is the first wait before a server is started again, 1 s when 0;
	// it doubles up to a minute.
	RestartMin time.Duration
	// Settled is the age at which a server's memory becomes what growth is
	// counted from, a minute when 0.
	Settled time.Duration
}

// ErrNoCommand is returned for a workload without image or command, where the
// device has no command for such.
var ErrNoCommand = errors.New("the workload names no image and no command, and the device has no command for such")

var errClosed = errors.New("the runtime is closed")

// Runtime implements runtime.Runtime, runtime.Endpoints, runtime.Describer,
// runtime.Watcher and runtime.Reporter.
type Runtime struct {
	opts  Options
	plain *http.Client
	h2c   *http.Client
	ports portBook

	adopting sync.Mutex // held while Adopt looks

	mu      sync.Mutex // guards what follows
	servers map[string]*server
	// left are servers that run and that nobody has loaded, by workload.
	left    map[string][]Adopted
	adopted bool // left is complete
	// adoptErr was last logged.
	adoptErr string
	serving  string
	closed   bool
	watch    func(runtime.Event)
}

// New returns a runtime with nothing loaded; it starts nothing.
func New(o Options) *Runtime {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Memory == nil {
		o.Memory = func() (int64, int64) { return 0, 0 }
	}
	o.StopTimeout = cmp.Or(o.StopTimeout, 10*time.Second)
	o.ReadyEvery = cmp.Or(o.ReadyEvery, 100*time.Millisecond)
	o.ReadyTimeout = cmp.Or(o.ReadyTimeout, 10*time.Minute)
	o.LookEvery = cmp.Or(o.LookEvery, 10*time.Second)
	o.RestartMin = cmp.Or(o.RestartMin, time.Second)
	o.Settled = cmp.Or(o.Settled, time.Minute)
	h2 := new(http.Protocols)
	h2.SetUnencryptedHTTP2(true)
	return &Runtime{
		opts: o, servers: map[string]*server{}, left: map[string][]Adopted{}, watch: func(runtime.Event) {},
		plain: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second}},
		h2c:   &http.Client{Transport: &http.Transport{Protocols: h2, IdleConnTimeout: 30 * time.Second}},
	}
}

// Watch tells f of events from now on.
func (r *Runtime) Watch(f func(runtime.Event)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watch = f
}

func (r *Runtime) emit(id, kind, format string, args ...any) {
	e := runtime.Event{Time: time.Now(), Workload: id, Kind: kind, Message: fmt.Sprintf(format, args...)}
	r.opts.Logger.Info("model server", "workload", id, "event", kind, "message", e.Message)
	r.mu.Lock()
	f := r.watch
	r.mu.Unlock()
	f(e)
}

func (r *Runtime) dialect(w runtime.Workload) (Dialect, error) {
	name := ServerOf(w)
	if d := r.opts.Dialects[name]; d != nil {
		return d, nil
	}
	if name == manifest.ServerV2 {
		return V2{}, nil
	}
	return nil, fmt.Errorf("%w: this device drives no server of the kind %q", runtime.ErrIncompatible, name)
}

// Load starts w, or takes over the server that runs for it already, and
// returns when it answers.
func (r *Runtime) Load(ctx context.Context, w runtime.Workload) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s, err := r.find(w.ID)
	if err != nil {
		return err
	}
	if s != nil {
		return r.await(ctx, s)
	}
	d, err := r.dialect(w)
	if err != nil {
		return err
	}
	if err := r.adopt(ctx); err != nil && r.outlives(w) {
		return err
	}
	s = &server{w: w, dialect: d, ended: make(chan struct{}), reason: "starting"}
	run, err := r.takeOver(ctx, s)
	if err != nil {
		return err
	}
	if run == nil {
		if err := r.admit(w); err != nil {
			return err
		}
		if run, err = r.start(ctx, s, serverName(w.ID)); err != nil {
			return err
		}
	}
	s.use(run)
	life, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	s.cancel = cancel
	r.mu.Lock()
	closed := r.closed
	if !closed {
		r.servers[w.ID] = s
	}
	r.mu.Unlock()
	if closed {
		cancel(nil)
	}
	go r.supervise(life, s)
	if closed {
		<-s.ended
		return errClosed
	}
	return nil
}

func (r *Runtime) find(id string) (*server, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errClosed
	}
	return r.servers[id], nil
}

// outlives says whether a server of w may have outlived an agent.
func (r *Runtime) outlives(w runtime.Workload) bool {
	o, ok := r.opts.Launcher.(interface{ Outlives(runtime.Workload) bool })
	return !ok || o.Outlives(w)
}

// await waits until a server that is loaded already is ready.
func (r *Runtime) await(ctx context.Context, s *server) error {
	tick := time.NewTicker(r.opts.ReadyEvery)
	defer tick.Stop()
	for {
		if ok, _ := s.state(); ok {
			return nil
		}
		select {
		case <-ctx.Done():
			_, reason := s.state()
			return fmt.Errorf("%w: %s", ctx.Err(), reason)
		case <-s.ended:
			return fmt.Errorf("%s was unloaded", s.w.ID)
		case <-tick.C:
		}
	}
}

// admit refuses what memory does not hold. A need that was declared is asked
// to be free beside what is loaded; with nothing loaded only one that the
// device could never hold is refused, since what else uses memory may give way.
func (r *Runtime) admit(w runtime.Workload) error {
	need := int64(cmp.Or(w.MemoryMiB, specOf(w).Resources.MemoryMiB)) << 20
	available, total := r.opts.Memory()
	if need == 0 || total == 0 {
		return nil
	}
	r.mu.Lock()
	others := len(r.servers) + len(r.left)
	r.mu.Unlock()
	switch {
	case need > total:
		return fmt.Errorf("%w: it needs %d MiB, the device has %d MiB", runtime.ErrNoCapacity, need>>20, total>>20)
	case others > 0 && need > available:
		return fmt.Errorf("%w: it needs %d MiB beside what is loaded, %d MiB of %d MiB can be had", runtime.ErrNoCapacity, need>>20, available>>20, total>>20)
	}
	return nil
}

// Switch sends requests without a workload to id.
func (r *Runtime) Switch(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.servers[id] == nil {
		return fmt.Errorf("switch to %s: %w", id, runtime.ErrNotLoaded)
	}
	r.serving = id
	return nil
}

// Unload stops id when the requests that it has are answered, or after
// StopTimeout. What ran for it unloaded is stopped too.
func (r *Runtime) Unload(ctx context.Context, id string) error {
	if err := r.stopLeft(ctx, id); err != nil {
		return err
	}
	r.mu.Lock()
	s := r.servers[id]
	delete(r.servers, id)
	if r.serving == id {
		r.serving = ""
	}
	r.mu.Unlock()
	if s == nil {
		return nil
	}
	r.drain(ctx, s.retire())
	s.cancel(nil)
	<-s.ended // bounded: force follows
	if s.stopErr == nil {
		return nil
	}
	r.mu.Lock() // it may run on: List goes on showing it
	r.left[id] = append(r.left[id], Adopted{Name: s.run.g.Name, Labels: s.run.labels, Instance: s.run.inst})
	r.mu.Unlock()
	return fmt.Errorf("unload %s: %w", id, s.stopErr)
}

// drain waits for the requests that a run has.
func (r *Runtime) drain(ctx context.Context, run *run) {
	if run == nil {
		return
	}
	drained := make(chan struct{})
	go func() {
		run.flight.Wait()
		close(drained)
	}()
	timer := time.NewTimer(r.opts.StopTimeout)
	defer timer.Stop()
	select {
	case <-drained:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// List returns what is loaded and what else runs.
func (r *Runtime) List(ctx context.Context) ([]runtime.Status, error) {
	err := r.adopt(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && err.Error() != r.adoptErr { // what is loaded is known nevertheless
		r.adoptErr = err.Error()
		r.opts.Logger.Warn("servers that may run already", "error", err)
	}
	out := make([]runtime.Status, 0, len(r.servers))
	for id, s := range r.servers {
		ready, reason := s.state()
		out = append(out, runtime.Status{ID: id, Ready: ready, Serving: id == r.serving, Reason: reason})
	}
	for id := range r.left {
		if r.servers[id] == nil {
			out = append(out, runtime.Status{ID: id, Reason: leftReason})
		}
	}
	slices.SortFunc(out, func(a, b runtime.Status) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Acquire returns where id listens, or what serves, and keeps it from being
// stopped.
func (r *Runtime) Acquire(_ context.Context, id string) (runtime.Endpoint, func(), error) {
	run, release, err := r.pin(id)
	if err != nil {
		return runtime.Endpoint{}, nil, err
	}
	return run.endpoint(), release, nil
}

// pin finds a running server and counts a request on it.
func (r *Runtime) pin(id string) (*run, func(), error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	id = cmp.Or(id, r.serving)
	s := r.servers[id]
	if s == nil {
		return nil, nil, fmt.Errorf("%q: %w", id, runtime.ErrNotLoaded)
	}
	run, reason := s.enter()
	if run == nil {
		return nil, nil, fmt.Errorf("%q: %w: %s", id, runtime.ErrNotLoaded, reason)
	}
	return run, sync.OnceFunc(run.flight.Done), nil
}

// Infer runs one request on a server.
func (r *Runtime) Infer(ctx context.Context, id string, req runtime.Request) (runtime.Response, error) {
	run, release, err := r.pin(id)
	if err != nil {
		return runtime.Response{}, fmt.Errorf("infer on %w", err)
	}
	defer release()
	w := run.g.Workload
	if err := wellFormed(req); err != nil {
		return runtime.Response{}, fmt.Errorf("infer on %s: %w", w.ID, err)
	}
	resp, err := run.g.Call.Infer(ctx, run.served.Model, run.served.Version, kserve.Typed(req, run.served.Signature))
	if st, ok := errors.AsType[*kserve.StatusError](err); ok && st.Status == http.StatusBadRequest && !errors.Is(err, runtime.ErrBadRequest) {
		err = fmt.Errorf("%w: %w", runtime.ErrBadRequest, err)
	}
	if err != nil {
		return resp, err
	}
	if v := run.served.Version; v != "" && resp.ModelVersion != "" && resp.ModelVersion != v {
		return resp, fmt.Errorf("infer on %s: version %q answered, asked was %q", w.ID, resp.ModelVersion, v)
	}
	resp.ModelName, resp.ModelVersion = w.Model, w.Version
	return resp, nil
}

// wellFormed refuses what no server can take: they answer it differently.
func wellFormed(req runtime.Request) error {
	if len(req.Inputs) == 0 {
		return fmt.Errorf("%w: it has no input", runtime.ErrBadRequest)
	}
	for i, t := range req.Inputs {
		n := int64(1)
		for _, d := range t.Shape {
			if d < 0 || d > math.MaxInt32 || n*d > math.MaxInt32 {
				return fmt.Errorf("%w: input %q has shape %v", runtime.ErrBadRequest, t.Name, t.Shape)
			}
			n *= d
		}
		if n != int64(len(t.Data)) {
			return fmt.Errorf("%w: input %q has shape %v and %d values", runtime.ErrBadRequest, t.Name, t.Shape, len(t.Data))
		}
		if slices.ContainsFunc(req.Inputs[:i], func(o runtime.Tensor) bool { return o.Name == t.Name }) {
			return fmt.Errorf("%w: input %q is there twice", runtime.ErrBadRequest, t.Name)
		}
	}
	return nil
}

// Describe returns what the model of id takes and gives.
func (r *Runtime) Describe(_ context.Context, id string) (runtime.Signature, error) {
	run, release, err := r.pin(id)
	if err != nil {
		return runtime.Signature{}, err
	}
	defer release()
	return run.served.Signature, nil
}

// Close lets go of all: processes end, servers that may outlive the agent run on.
func (r *Runtime) Close() error {
	r.mu.Lock()
	r.closed = true
	all := make([]*server, 0, len(r.servers))
	for _, s := range r.servers {
		all = append(all, s)
	}
	clear(r.servers)
	r.mu.Unlock()
	for _, s := range all {
		s.cancel(errClosed)
	}
	for _, s := range all {
		<-s.ended
	}
	err := r.opts.Launcher.Close()
	r.plain.CloseIdleConnections()
	r.h2c.CloseIdleConnections()
	return err
}

// folder makes the empty folder of one start of a server.
func (r *Runtime) folder(name string) (string, error) {
	dir := filepath.Join(r.opts.Dir, name)
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o711)); err != nil {
		return "", fmt.Errorf("make the folder of a server: %w", err)
	}
	return dir, nil
}
