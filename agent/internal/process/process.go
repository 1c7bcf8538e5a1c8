// Package process is the runtime driver for hosts without containers: each
// workload is a local server process on a loopback port of its own, started by
// a configured command and spoken to in the KServe v2 protocol. It owns the
// processes: it waits for their readiness, starts them again with backoff when
// they end by themselves, lets requests finish before it stops one, and leaves
// none behind after Close. Only the root of the agent module and its command
// import it.
package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
)

// Exit statuses by which a server says why it cannot load its model (from
// sysexits): another one means that it may work at the next start.
const (
	ExitIncompatible = 65 // EX_DATAERR: the model cannot run here
	ExitNoCapacity   = 71 // EX_OSERR: not enough memory
)

// Options configure the driver.
type Options struct {
	// Command is the server and its arguments. {addr} is replaced by
	// 127.0.0.1:PORT, {dir}, {model-file}, {model}, {version} and {id} by those
	// of the workload. Parameters are in the environment, SKEIN_PARAM_KEY.
	Command []string
	Logger  *slog.Logger
	// StopTimeout is the time between SIGTERM and SIGKILL, 10 s when 0.
	StopTimeout time.Duration
	// ReadyEvery is the time between two looks at a starting server, 100 ms when 0.
	ReadyEvery time.Duration
}

// ErrNoCommand is returned by New without a command.
var ErrNoCommand = errors.New("no command for model servers is configured")

const (
	restartMin = time.Second
	restartMax = time.Minute
)

// Runtime is the driver.
type Runtime struct {
	opts   Options
	client *http.Client

	mu      sync.Mutex // guards what follows
	servers map[string]*server
	serving string
	closed  bool
}

// New returns a driver with nothing loaded.
func New(o Options) (*Runtime, error) {
	if len(o.Command) == 0 {
		return nil, ErrNoCommand
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.StopTimeout = cmp.Or(o.StopTimeout, 10*time.Second)
	o.ReadyEvery = cmp.Or(o.ReadyEvery, 100*time.Millisecond)
	return &Runtime{opts: o, servers: map[string]*server{}, client: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 30 * time.Second,
	}}}, nil
}

// server is one workload's process.
type server struct {
	w      runtime.Workload
	stop   context.CancelFunc // ends the process and its restarts
	ended  chan struct{}      // closed when both have ended
	flight sync.WaitGroup     // requests being answered

	mu     sync.Mutex // guards what follows
	client kserve.Client
	ready  bool
	reason string
}

// Load starts w and returns when it answers.
func (r *Runtime) Load(ctx context.Context, w runtime.Workload) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	old := r.servers[w.ID]
	closed := r.closed
	r.mu.Unlock()
	if closed {
		return errors.New("runtime is closed")
	}
	if old != nil {
		return r.await(ctx, old)
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	s := &server{w: w, stop: stop, ended: make(chan struct{}), reason: "starting"}
	child, err := r.start(run, s)
	if err != nil {
		stop()
		return err
	}
	if err := r.firstReady(ctx, s, child); err != nil {
		stop()
		<-child.done
		return err
	}
	r.mu.Lock()
	r.servers[w.ID] = s
	r.mu.Unlock()
	go r.supervise(run, s, child)
	return nil
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

// child is one run of the command.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // set before done is closed
}

// start runs the command; it ends with run.
func (r *Runtime) start(run context.Context, s *server) (*child, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	replace := strings.NewReplacer("{addr}", addr, "{dir}", s.w.Dir, "{model-file}", s.w.ModelFile, "{model}", s.w.Model, "{version}", s.w.Version, "{id}", s.w.ID)
	args := make([]string, len(r.opts.Command))
	for i, a := range r.opts.Command {
		args[i] = replace.Replace(a)
	}
	cmd := exec.CommandContext(run, args[0], args[1:]...)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = r.opts.StopTimeout
	cmd.SysProcAttr = childAttributes()
	cmd.Env = append(cmd.Environ(), environment(s.w.Params)...)
	out := &lineLog{log: r.opts.Logger.With("workload", s.w.ID)}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	c := &child{cmd: cmd, done: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it left behind in its group
		close(c.done)
	}()
	s.mu.Lock()
	s.client = kserve.Client{URL: "http://" + addr, HTTP: r.client}
	s.mu.Unlock()
	return c, nil
}

// firstReady waits until the server answers, or says why it cannot.
func (r *Runtime) firstReady(ctx context.Context, s *server, c *child) error {
	tick := time.NewTicker(r.opts.ReadyEvery)
	defer tick.Stop()
	var last error
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last answer: %w)", ctx.Err(), cmp.Or(last, errors.New("none")))
		case <-c.done:
			return exitCause(c)
		case <-tick.C:
		}
		s.mu.Lock()
		client := s.client
		s.mu.Unlock()
		look, cancel := context.WithTimeout(ctx, 5*time.Second)
		last = client.ModelReady(look, s.w.Model, s.w.Version)
		cancel()
		if last == nil {
			s.set(true, "")
			return nil
		}
	}
}

func exitCause(c *child) error {
	err := fmt.Errorf("the server ended before it was ready: %w", cmp.Or(c.err, errors.New("exit status 0")))
	exit, ok := errors.AsType[*exec.ExitError](c.err)
	if !ok {
		return err
	}
	switch exit.ExitCode() {
	case ExitIncompatible:
		return fmt.Errorf("%w: %w", runtime.ErrIncompatible, err)
	case ExitNoCapacity:
		return fmt.Errorf("%w: %w", runtime.ErrNoCapacity, err)
	}
	return err
}

// supervise starts the server again when it ends by itself.
func (r *Runtime) supervise(run context.Context, s *server, c *child) {
	defer close(s.ended)
	backoff := restartMin
	for {
		started := time.Now()
		<-c.done
		if run.Err() != nil {
			return
		}
		reason := fmt.Sprintf("the server ended: %v", cmp.Or(c.err, errors.New("exit status 0")))
		s.set(false, reason)
		r.opts.Logger.Warn("model server ended", "workload", s.w.ID, "cause", reason)
		if time.Since(started) > restartMax {
			backoff = restartMin
		}
		for ok := false; !ok; {
			timer := time.NewTimer(backoff)
			select {
			case <-run.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			backoff = min(2*backoff, restartMax)
			next, err := r.start(run, s)
			if err != nil {
				s.set(false, err.Error())
				continue
			}
			c, ok = next, true
		}
		if err := r.firstReady(run, s, c); err != nil {
			s.set(false, err.Error())
		}
	}
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

// Unload stops id when the requests that it has are answered.
func (r *Runtime) Unload(ctx context.Context, id string) error {
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
	drained := make(chan struct{})
	go func() {
		s.flight.Wait()
		close(drained)
	}()
	select {
	case <-drained:
	case <-time.After(r.opts.StopTimeout):
	case <-ctx.Done():
	}
	s.stop()
	<-s.ended // bounded by StopTimeout: SIGKILL follows SIGTERM
	return nil
}

// List returns what is loaded.
func (r *Runtime) List(context.Context) ([]runtime.Status, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]runtime.Status, 0, len(r.servers))
	for id, s := range r.servers {
		ready, reason := s.state()
		out = append(out, runtime.Status{ID: id, Ready: ready, Serving: id == r.serving, Reason: reason})
	}
	slices.SortFunc(out, func(a, b runtime.Status) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Infer runs one request on a server.
func (r *Runtime) Infer(ctx context.Context, id string, req runtime.Request) (runtime.Response, error) {
	r.mu.Lock()
	id = cmp.Or(id, r.serving)
	s := r.servers[id]
	if s != nil {
		s.flight.Add(1)
	}
	r.mu.Unlock()
	if s == nil {
		return runtime.Response{}, fmt.Errorf("infer on %q: %w", id, runtime.ErrNotLoaded)
	}
	defer s.flight.Done()
	s.mu.Lock()
	client := s.client
	s.mu.Unlock()
	resp, err := client.Infer(ctx, s.w.Model, s.w.Version, req)
	if st, ok := errors.AsType[*kserve.StatusError](err); ok && st.Status == http.StatusBadRequest && !errors.Is(err, runtime.ErrBadRequest) {
		err = fmt.Errorf("%w: %w", runtime.ErrBadRequest, err)
	}
	return resp, err
}

// Close stops everything.
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
		s.stop()
	}
	for _, s := range all {
		<-s.ended
	}
	r.client.CloseIdleConnections()
	return nil
}

// freeAddr finds a loopback port that is free now.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// environment turns parameters into variables; a key's other characters
// become underscores.
func environment(params map[string]string) []string {
	out := make([]string, 0, len(params))
	for k, v := range params {
		name := strings.Map(func(c rune) rune {
			if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
				return c
			}
			return '_'
		}, strings.ToLower(k))
		out = append(out, "SKEIN_PARAM_"+strings.ToUpper(name)+"="+v)
	}
	slices.Sort(out)
	return out
}

// lineLog writes a server's output to the log, line by line.
type lineLog struct {
	log *slog.Logger

	mu   sync.Mutex // guards rest
	rest []byte
}

const maxLogLine = 4 << 10

func (l *lineLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range p {
		if c != '\n' && len(l.rest) < maxLogLine {
			l.rest = append(l.rest, c)
			continue
		}
		if len(l.rest) > 0 {
			l.log.Info("model server", "line", string(l.rest))
		}
		l.rest = l.rest[:0]
	}
	return len(p), nil
}
