package serving

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Exit statuses by which a server says why it cannot load its model (from
// sysexits): another one means that it may work at the next start.
const (
	ExitIncompatible = 65 // EX_DATAERR: the model cannot run here
	ExitNoCapacity   = 71 // EX_OSERR: not enough memory
)

const (
	restartMax = time.Minute
	// hungLooks looks in a row without an answer start a server again.
	hungLooks = 6
)

// server is one loaded workload; its runs follow each other.
type server struct {
	w       runtime.Workload
	dialect Dialect
	cancel  context.CancelCauseFunc // ends the supervision; with errClosed the server may go on
	ended   chan struct{}           // closed when that has ended
	stopErr error                   // set before ended is closed

	mu       sync.Mutex // guards what follows
	run      *run
	ready    bool
	retired  bool
	reason   string
	restarts int
	lastExit string
	seen     runtime.Server // measured by the last look
}

// run is one start of a server.
type run struct {
	g       *Generation
	inst    Instance
	labels  map[string]string
	served  Served
	started time.Time
	flight  sync.WaitGroup // requests being answered

	// of the supervising goroutine
	baseline int64 // memory when it had settled
	silent   int   // looks in a row without an answer
}

func (r *run) endpoint() runtime.Endpoint {
	w := r.g.Workload
	e := runtime.Endpoint{ID: w.ID, Model: r.served.Model, Version: r.served.Version, ReleaseModel: w.Model, ReleaseVersion: w.Version}
	if r.g.HTTP {
		e.HTTP = r.g.Ports.HTTP
	}
	if r.g.GRPC {
		e.GRPC = r.g.Ports.GRPC
	}
	if r.g.Metrics {
		e.Metrics = r.g.Ports.Metrics
	}
	return e
}

func (s *server) state() (ready bool, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready, s.reason
}

func (s *server) set(ready bool, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready, s.reason = ready, reason
}

// use makes run the one that gets requests and returns the one before.
func (s *server) use(next *run) *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.run
	s.run, s.ready, s.reason, s.seen = next, true, "", runtime.Server{}
	return old
}

func (s *server) current() *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.run
}

// enter counts a request on the run that answers.
func (s *server) enter() (*run, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run == nil || !s.ready || s.retired {
		return nil, cmp.Or(s.reason, "it is being stopped")
	}
	s.run.flight.Add(1)
	return s.run, ""
}

// retire lets no request in any more.
func (s *server) retire() *run {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retired = true
	return s.run
}

// start launches a server for s and returns when it answers.
func (r *Runtime) start(ctx context.Context, s *server, name string) (_ *run, err error) {
	args, env := words(s.w, r.command(s.w))
	if len(args) == 0 && specOf(s.w).Image == nil {
		return nil, fmt.Errorf("%w: %w", runtime.ErrIncompatible, ErrNoCommand)
	}
	ports, err := r.ports.take()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.ports.giveBack(ports)
		}
	}()
	g := r.generation(s.w, name, ports)
	g.args, g.env = args, env
	if g.Folder, err = r.folder(name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(g.Folder))
		}
	}()
	g.HTTP, g.GRPC, g.Metrics = speaks(args, env)
	begin, err := s.dialect.Prepare(ctx, g)
	if err != nil {
		return nil, err
	}
	g.GRPC, g.Metrics = g.GRPC || begin.GRPC, g.Metrics || begin.Metrics
	g.Call = caller(g)
	labels := labelsOf(g)
	inst, err := r.opts.Launcher.Launch(ctx, render(g, begin, labels))
	if err != nil {
		return nil, err
	}
	one := &run{g: g, inst: inst, labels: labels, started: time.Now()}
	if one.served, err = r.firstReady(ctx, s.dialect, one); err != nil {
		return nil, errors.Join(err, r.stop(ctx, one))
	}
	return one, nil
}

func (r *Runtime) command(w runtime.Workload) []string {
	if ServerOf(w) == manifest.ServerTriton {
		return r.opts.TritonCommand
	}
	return r.opts.Command
}

func (r *Runtime) generation(w runtime.Workload, name string, p Ports) *Generation {
	return &Generation{Name: name, Workload: w, Ports: p, Client: r.plain, H2C: r.h2c, Every: r.opts.ReadyEvery}
}

// caller speaks HTTP where the server does, else gRPC.
func caller(g *Generation) Caller {
	if g.HTTP {
		return &kserve.Client{URL: "http://" + g.Ports.HTTP, HTTP: g.Client}
	}
	return kserve.NewGRPC(g.Ports.GRPC, g.H2C, nil)
}

func labelsOf(g *Generation) map[string]string {
	l := map[string]string{labelWorkload: g.Workload.ID, labelFolder: g.Folder}
	if g.HTTP {
		l[labelHTTP] = g.Ports.HTTP
	}
	if g.GRPC {
		l[labelGRPC] = g.Ports.GRPC
	}
	if g.Metrics {
		l[labelMetrics] = g.Ports.Metrics
	}
	return maps.Clone(l)
}

// firstReady waits until the server answers, or says why it cannot.
func (r *Runtime) firstReady(ctx context.Context, d Dialect, one *run) (Served, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-one.inst.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	served, err := d.Await(ctx, one.g)
	select {
	case <-one.inst.Done(): // also when something else answers in its place
		return Served{}, one.inst.Exit().cause()
	default:
	}
	return served, err
}

// stop ends a run and removes what it left.
func (r *Runtime) stop(ctx context.Context, one *run) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*r.opts.StopTimeout+lookTime)
	defer cancel()
	// Servers wait for open connections, also for those that nothing uses.
	r.plain.CloseIdleConnections()
	r.h2c.CloseIdleConnections()
	if err := one.inst.Stop(ctx, r.opts.StopTimeout); err != nil {
		return fmt.Errorf("stop %s: %w", one.g.Name, err)
	}
	r.ports.giveBack(one.g.Ports)
	if one.g.Folder == "" {
		return nil
	}
	return os.RemoveAll(one.g.Folder)
}

// supervise looks after a server until its context ends.
func (r *Runtime) supervise(ctx context.Context, s *server) {
	defer close(s.ended)
	tick := time.NewTicker(r.opts.LookEvery)
	defer tick.Stop()
	backoff := r.opts.RestartMin
	for {
		one := s.current()
		select {
		case <-ctx.Done():
			if !errors.Is(context.Cause(ctx), errClosed) {
				s.stopErr = r.leave(ctx, s, one)
			}
			return
		case <-one.inst.Done():
			if time.Since(one.started) > restartMax {
				backoff = r.opts.RestartMin
			}
			r.ended(ctx, s, one, &backoff)
		case <-tick.C:
			r.look(ctx, s, one)
		}
	}
}

// leave stops a server for good.
func (r *Runtime) leave(ctx context.Context, s *server, one *run) error {
	polite, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTime)
	defer cancel()
	select {
	case <-one.inst.Done():
	default:
		if err := s.dialect.Leave(polite, one.g); err != nil {
			r.opts.Logger.Warn("take the model out of its server", "workload", s.w.ID, "error", err)
		}
	}
	return r.stop(ctx, one)
}

// ended starts a server again that ended by itself, with back-off.
func (r *Runtime) ended(ctx context.Context, s *server, one *run, backoff *time.Duration) {
	exit := one.inst.Exit()
	s.fell(exit)
	kind := runtime.EventExit
	if exit.OOM {
		kind = runtime.EventOOM
	}
	r.emit(s.w.ID, kind, "the server ended: %s", exit)
	if err := r.stop(ctx, one); err != nil { // what is left of it
		r.opts.Logger.Warn("clean up after a server", "workload", s.w.ID, "error", err)
	}
	for {
		timer := time.NewTimer(*backoff)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		*backoff = min(2*(*backoff), restartMax)
		if r.again(ctx, s, one.g.Name) {
			return
		}
	}
}

func (s *server) fell(exit Exit) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready, s.reason, s.lastExit = false, "the server ended: "+exit.String(), exit.String()
}

// again starts a server once more.
func (r *Runtime) again(ctx context.Context, s *server, name string) bool {
	ctx, cancel := context.WithTimeoutCause(ctx, r.opts.ReadyTimeout, fmt.Errorf("not ready after %s", r.opts.ReadyTimeout))
	defer cancel()
	next, err := r.start(ctx, s, name)
	if err != nil {
		s.set(false, "it does not start again: "+err.Error())
		return false
	}
	s.mu.Lock()
	s.restarts++
	n := s.restarts
	s.mu.Unlock()
	s.use(next)
	r.emit(s.w.ID, runtime.EventRestart, "the server answers again, after %d restarts", n)
	return true
}

// statusCode is the answer's, 0 without one.
func statusCode(err error) int {
	if st, ok := errors.AsType[*kserve.StatusError](err); ok {
		return st.Status
	}
	return 0
}

// alive says whether an error is an answer: a server that answers does not hang.
func alive(err error) bool {
	code := statusCode(err)
	return err == nil || code != 0 && code != http.StatusServiceUnavailable
}
