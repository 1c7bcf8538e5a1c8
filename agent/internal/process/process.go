// Package process launches model servers as local processes, for hosts without
// containers. It owns the processes: each is the leader of a group of its own,
// ends with the agent, and leaves none of its group behind. Their life as
// servers is package serving's. Only the root of the agent module and its
// command import it.
package process

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime"
)

// Options configure a Launcher.
type Options struct {
	Logger *slog.Logger
	// StopTimeout is the time between SIGTERM and SIGKILL at Close, 10 s when 0.
	StopTimeout time.Duration
}

// Launcher implements serving.Launcher.
type Launcher struct {
	opts Options

	mu      sync.Mutex // guards what follows
	running map[*instance]bool
	closed  bool
}

var _ serving.Launcher = (*Launcher)(nil)

// New returns a launcher; it starts nothing.
func New(o Options) *Launcher {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.StopTimeout = cmp.Or(o.StopTimeout, 10*time.Second)
	return &Launcher{opts: o, running: map[*instance]bool{}}
}

// instance is one process group.
type instance struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	exit serving.Exit  // set before done is closed
	out  *lines

	mu      sync.Mutex // guards stopped
	stopped bool       // by us
}

// Launch starts a process.
func (l *Launcher) Launch(ctx context.Context, s serving.Spec) (serving.Instance, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(s.Args) == 0 {
		return nil, fmt.Errorf("%w: %w", runtime.ErrIncompatible, serving.ErrNoCommand)
	}
	cmd := exec.Command(s.Args[0], s.Args[1:]...)
	cmd.SysProcAttr = childAttributes()
	if spec := s.Workload.Spec; spec != nil && spec.User != "" {
		if err := runAs(cmd.SysProcAttr, spec.User); err != nil {
			return nil, fmt.Errorf("%w: %w", runtime.ErrIncompatible, err)
		}
	}
	cmd.Env = append(cmd.Environ(), s.Env...)
	out := &lines{log: l.opts.Logger.With("workload", s.Workload.ID)}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second // for output that a child of it holds open
	i := &instance{cmd: cmd, done: make(chan struct{}), out: out}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("the launcher of processes is closed")
	}
	kills := oomKills()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Args[0], err)
	}
	l.running[i] = true
	go func() {
		err := cmd.Wait()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it left behind in its group
		i.exit = i.ended(err, kills)
		l.mu.Lock()
		delete(l.running, i)
		l.mu.Unlock()
		close(i.done)
	}()
	return i, nil
}

// Adopt finds nothing: processes end with the agent.
func (l *Launcher) Adopt(context.Context) ([]serving.Adopted, error) { return nil, nil }

// Outlives says so.
func (l *Launcher) Outlives(runtime.Workload) bool { return false }

// Close ends all processes.
func (l *Launcher) Close() error {
	l.mu.Lock()
	l.closed = true
	var all []*instance
	for i := range l.running {
		all = append(all, i)
	}
	l.mu.Unlock()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for n, i := range all {
		wg.Go(func() { errs[n] = i.Stop(context.Background(), l.opts.StopTimeout) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ended tells how it did. A kill that nobody here asked for, while the kernel
// counted one for memory, is one.
func (i *instance) ended(err error, kills int64) serving.Exit {
	e := serving.Exit{Tail: i.out.tail()}
	ps := i.cmd.ProcessState
	if ps == nil {
		e.Code, e.Err = -1, err
		return e
	}
	e.Code = ps.ExitCode()
	if ru, ok := ps.SysUsage().(*syscall.Rusage); ok {
		e.Peak = int64(ru.Maxrss) << 10
	}
	ws, ok := ps.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() {
		return e
	}
	e.Signal = ws.Signal().String()
	i.mu.Lock()
	defer i.mu.Unlock()
	e.OOM = ws.Signal() == syscall.SIGKILL && !i.stopped && oomKills() > kills
	return e
}

func (i *instance) Done() <-chan struct{} { return i.done }

func (i *instance) Exit() serving.Exit {
	select {
	case <-i.done:
		return i.exit
	default:
		return serving.Exit{Err: errors.New("it has not ended")}
	}
}

// Stop asks with SIGTERM, and after grace with SIGKILL.
func (i *instance) Stop(ctx context.Context, grace time.Duration) error {
	i.mu.Lock()
	i.stopped = true
	i.mu.Unlock()
	select {
	case <-i.done:
		return nil
	default:
	}
	_ = syscall.Kill(-i.cmd.Process.Pid, syscall.SIGTERM) // it may just have ended
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-i.done:
		return nil
	case <-timer.C:
	case <-ctx.Done():
	}
	_ = syscall.Kill(-i.cmd.Process.Pid, syscall.SIGKILL)
	<-i.done
	return nil
}

// Usage sums over the group. Pages that its processes share count for each.
func (i *instance) Usage(context.Context) (serving.Usage, error) {
	select {
	case <-i.done:
		return serving.Usage{}, errors.New("the process has ended")
	default:
	}
	return groupUsage(i.cmd.Process.Pid)
}

// runAs makes a command run as UID or UID:GID.
func runAs(attr *syscall.SysProcAttr, user string) error {
	uid, gid, both := strings.Cut(user, ":")
	if !both {
		gid = uid
	}
	u, err1 := strconv.ParseUint(uid, 10, 32)
	g, err2 := strconv.ParseUint(gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("user %q: %w", user, err)
	}
	if int(u) == os.Geteuid() && int(g) == os.Getegid() {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("user %q: only an agent that runs as root can start servers as another user", user)
	}
	attr.Credential = &syscall.Credential{Uid: uint32(u), Gid: uint32(g)}
	return nil
}
