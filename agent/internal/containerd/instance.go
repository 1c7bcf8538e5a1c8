package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/skein-fleet/skein/agent/internal/serving"
)

// instance is one running container.
type instance struct {
	l    *Launcher
	id   string
	pid  uint32 // of its first process, on the host
	log  *output
	task client.Task

	ended chan struct{} // closed when its first process has ended
	read  chan struct{} // closed when its log may go; nil when nobody reads it
	done  chan struct{} // closed after exit was set
	exit  serving.Exit
	gone  chan struct{} // closed when nothing of it is left

	mu       sync.Mutex // guards what follows
	cleanErr error
}

func (l *Launcher) newInstance(id string, task client.Task, log *output) *instance {
	return &instance{l: l, id: id, pid: task.Pid(), log: log, task: task, ended: make(chan struct{}), done: make(chan struct{}), gone: make(chan struct{})}
}

// claim makes i one of ours and watches it; false when the launcher is closed.
func (l *Launcher) claim(i *instance, exit <-chan client.ExitStatus) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.live[i.id] = i
	l.wg.Go(func() { i.watch(exit) })
	return true
}

// Done is closed when the container has ended.
func (i *instance) Done() <-chan struct{} { return i.done }

// Exit says how it ended.
func (i *instance) Exit() serving.Exit {
	select {
	case <-i.done:
		return i.exit
	default:
		return serving.Exit{}
	}
}

// watch waits for the end, over restarts of the daemon, and cleans up.
func (i *instance) watch(exit <-chan client.ExitStatus) {
	ctx := namespaces.WithNamespace(i.l.run, i.l.opts.Namespace)
	tick := time.NewTicker(boundEvery)
	defer tick.Stop()
	var status client.ExitStatus
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			return // it goes on without us
		case <-tick.C:
			if err := i.log.bound(); err != nil {
				i.l.opts.Logger.Warn("bound the log of a container", "container", i.id, "error", err)
			}
		case status = <-exit:
			if status.Error() == nil {
				ended = true
				break
			}
			var ok bool
			if exit, ok = i.again(ctx); !ok {
				if ctx.Err() != nil {
					return
				}
				ended = true
			}
		}
	}
	close(i.ended)
	i.exit = i.describe(status)
	if i.read != nil {
		select {
		case <-i.read:
		case <-ctx.Done():
			return
		}
	}
	i.forget(ctx)
}

const (
	againMin = 50 * time.Millisecond
	againMax = 5 * time.Second
)

// again waits anew after the daemon went away. It returns false when the
// container has ended meanwhile and nobody knows how.
func (i *instance) again(ctx context.Context) (<-chan client.ExitStatus, bool) {
	pause := againMin
	for {
		select {
		case <-ctx.Done():
			return nil, false
		case <-time.After(pause):
		}
		pause = min(2*pause, againMax)
		task, err := i.load(ctx)
		if err == nil {
			exit, err := task.Wait(ctx)
			if err == nil {
				return exit, true
			}
			continue
		}
		if errdefs.IsNotFound(err) || (errdefs.IsUnavailable(err) && !alive(i.pid)) {
			return nil, false
		}
	}
}

// load asks the daemon for the task.
func (i *instance) load(ctx context.Context) (client.Task, error) {
	c, err := i.l.connect()
	if err != nil {
		return nil, err
	}
	look, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	container, err := c.LoadContainer(look, i.id)
	if err != nil {
		return nil, err
	}
	return container.Task(look, nil)
}

// alive says whether a process is there.
func alive(pid uint32) bool {
	_, err := os.Stat(filepath.Join("/proc", strconv.FormatUint(uint64(pid), 10)))
	return err == nil
}

// describe says how it ended, while its cgroup and log are there.
func (i *instance) describe(s client.ExitStatus) serving.Exit {
	e := serving.Exit{Tail: i.log.tail()}
	m := i.l.memory(i.id)
	e.Peak, e.Limit = m.peak, m.limit
	code := int(s.ExitCode())
	switch {
	case s.Error() != nil:
		e.Code, e.Err = -1, fmt.Errorf("the container ended while containerd was away: %w", s.Error())
	case code > 128 && code <= 128+64:
		e.Code, e.Signal = -1, signalName(syscall.Signal(code-128))
	default:
		e.Code = code
	}
	// A process of it that was ended for memory usually takes it along; one that
	// a server survived does not count when it ends in another way later.
	e.OOM = m.kills > 0 && (e.Signal == "SIGKILL" || e.Code != 0)
	return e
}

func signalName(sig syscall.Signal) string { return cmp.Or(unix.SignalName(sig), sig.String()) }

// forget removes what is left of a container that ended, then tells; while the
// daemon is away it tells first and removes later.
func (i *instance) forget(ctx context.Context) {
	err := i.clean(ctx)
	i.l.mu.Lock()
	delete(i.l.live, i.id)
	i.l.mu.Unlock()
	close(i.done)
	for pause := againMin; err != nil; pause = min(2*pause, againMax) {
		i.mu.Lock()
		i.cleanErr = err
		i.mu.Unlock()
		select {
		case <-ctx.Done():
			return // the next agent's Adopt does it
		case <-time.After(pause):
		}
		i.l.mu.Lock()
		next := i.l.live[i.id]
		i.l.mu.Unlock()
		if next != nil {
			break // Launch removed the rest to start it again
		}
		err = i.clean(ctx)
	}
	close(i.gone)
}

func (i *instance) clean(ctx context.Context) error {
	c, err := i.l.connect()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cleanTimeout)
	defer cancel()
	return i.l.remove(ctx, c, i.id)
}

// Stop ends the container politely, and after grace by force. It returns when
// nothing of it is left.
func (i *instance) Stop(ctx context.Context, grace time.Duration) error {
	if err := i.end(ctx, grace); err != nil {
		return fmt.Errorf("stop container %s: %w", i.id, err)
	}
	return nil
}

func (i *instance) end(ctx context.Context, grace time.Duration) error {
	clean, cancel := context.WithTimeout(namespaces.WithNamespace(context.WithoutCancel(ctx), i.l.opts.Namespace), grace+cleanTimeout)
	defer cancel()
	if err := i.signal(clean, syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-i.done:
	case <-timer.C:
	case <-ctx.Done():
	case <-i.l.run.Done():
		return errors.New("the launcher of containers is closed")
	}
	if err := i.signal(clean, syscall.SIGKILL, client.WithKillAll); err != nil {
		return err
	}
	select {
	case <-i.gone:
		return nil
	case <-i.l.run.Done():
		return errors.New("the launcher of containers is closed")
	case <-clean.Done():
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cleanErr != nil {
		return i.cleanErr
	}
	return errors.New("it does not end after SIGKILL")
}

// signal sends a signal to what still runs.
func (i *instance) signal(ctx context.Context, sig syscall.Signal, opts ...client.KillOpts) error {
	select {
	case <-i.done:
		return nil
	default:
	}
	if err := i.task.Kill(ctx, sig, opts...); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("send %s: %w", unix.SignalName(sig), i.l.told(err))
	}
	return nil
}
