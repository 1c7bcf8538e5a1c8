package selfupdate

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/skein-fleet/skein/ota/slot"
)

// SlotVariable tells the agent which slot it runs from, and that a supervisor
// starts it again.
const SlotVariable = "SKEIN_AGENT_SLOT"

// ExitHandover is the exit status by which an agent asks to be started again
// at once, from the slot that the record names now.
const ExitHandover = 10

// Supervisor starts the agent and watches a new one.
type Supervisor struct {
	Files slot.Files
	// Factory is the path of the installed binary, Args what follows it.
	Factory string
	Args    []string
	// Deadline is how long a binary on trial may take to check in, 5 min when 0.
	Deadline time.Duration
	// StopTimeout is the time between SIGTERM and SIGKILL, 30 s when 0.
	StopTimeout time.Duration
	// RestartMin is the first pause after an agent ended by itself, 2 s when 0.
	RestartMin time.Duration
	Out, Err   io.Writer
	Logger     *slog.Logger
	// Env is added to the agent's environment. Alive, when set, is called when an
	// agent starts and when it has ended, and before a pause.
	Env   []string
	Alive func(status string)
}

const (
	restartMax = time.Minute
	steadyRun  = 5 * time.Minute // after which the pauses begin anew
	maxTail    = 600             // of what a failed agent said last
)

// Run starts the agent again whenever it ends, until ctx ends.
func (v *Supervisor) Run(ctx context.Context) error {
	v.Deadline = cmp.Or(v.Deadline, 5*time.Minute)
	v.StopTimeout = cmp.Or(v.StopTimeout, 30*time.Second)
	v.RestartMin = cmp.Or(v.RestartMin, 2*time.Second)
	if v.Logger == nil {
		v.Logger = slog.New(slog.DiscardHandler)
	}
	if v.Alive == nil {
		v.Alive = func(string) {}
	}
	slots, err := Open(v.Files)
	if err != nil {
		return err
	}
	pause := v.RestartMin
	for {
		started := time.Now()
		again, err := v.once(ctx, slots)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil { // nothing but the disk can be the cause: the next try may work
			v.Logger.Error("supervise", "error", err)
		}
		if again {
			pause = v.RestartMin
			continue
		}
		if time.Since(started) > steadyRun {
			pause = v.RestartMin
		}
		v.Alive("the agent ended and is started again in " + pause.String())
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		pause = min(2*pause, restartMax)
	}
}

// once starts what the record names and waits until it ends; again says that
// it asked to be started again.
func (v *Supervisor) once(ctx context.Context, slots *Slots) (again bool, err error) {
	if err := slots.reload(); err != nil {
		return false, err
	}
	name, err := slots.Choose(ctx, time.Now())
	if note := slots.Record().Note; note != "" {
		v.Logger.Warn("another agent than the active one may run", "note", note)
	}
	if err != nil {
		v.Logger.Error("the agent's slots", "error", err)
		name = Factory // it serves what is committed
	}
	trial := slots.Record().Trial != nil && name == slots.Record().Trial.Slot
	c, err := v.start(ctx, name)
	if err != nil {
		if trial {
			return true, slots.Ended(err.Error())
		}
		return false, fmt.Errorf("start the agent of slot %s: %w", name, err)
	}
	v.Alive("the agent of slot " + name + " starts")
	v.Logger.Info("agent started", "slot", name, "trial", trial, "pid", c.cmd.Process.Pid)
	late := v.watch(ctx, c, slots, trial)
	if ctx.Err() != nil {
		return false, nil
	}
	if late {
		cause := fmt.Sprintf("the new agent did not check in within %s", v.Deadline)
		v.Logger.Warn("the new agent is given up", "cause", cause)
		return true, slots.GiveUp(cause, time.Now())
	}
	again = c.code() == ExitHandover
	v.Logger.Info("agent ended", "slot", name, "status", c.code(), "again", again)
	if trial && !again {
		v.Logger.Warn("the new agent ended", "cause", c.cause())
		if err := slots.Ended(c.cause()); err != nil {
			return false, err
		}
		t := slots.Record().Trial
		return t == nil || t.TriesLeft == 0, nil // nothing is served meanwhile: what was before runs at once
	}
	return again, nil
}

// watch waits until the agent has ended. One on trial that does not check in
// in time is ended; then it reports late.
func (v *Supervisor) watch(ctx context.Context, c *child, slots *Slots, trial bool) (late bool) {
	var deadline <-chan time.Time
	if trial {
		timer := time.NewTimer(v.Deadline)
		defer timer.Stop()
		deadline = timer.C
	}
	select {
	case <-c.done:
		return false
	case <-ctx.Done():
	case <-deadline:
		if err := slots.reload(); err == nil {
			if t := slots.Record().Trial; t == nil || t.CheckedIn { // kept meanwhile, or in order
				select {
				case <-c.done:
					return false
				case <-ctx.Done():
				}
				break
			}
		}
		late = true
	}
	v.stop(c)
	return late
}

func (v *Supervisor) stop(c *child) {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(v.StopTimeout)
	defer timer.Stop()
	select {
	case <-c.done:
		return
	case <-timer.C:
	}
	_ = c.cmd.Process.Kill()
	<-c.done
}

// child is one run of the agent.
type child struct {
	cmd  *exec.Cmd
	tail *tail
	done chan struct{} // closed when it has ended
	err  error         // set before done is closed
}

func (v *Supervisor) start(ctx context.Context, name string) (*child, error) {
	path := v.Factory
	if name != Factory {
		path = v.Files.Path(file(name))
		if path == "" {
			return nil, errors.New("the state folder is not on a disk")
		}
		if err := os.Chmod(path, 0o700); err != nil {
			return nil, err
		}
	}
	c := &child{tail: &tail{next: v.Err}, done: make(chan struct{})}
	c.cmd = exec.Command(path, v.Args...)
	c.cmd.Env = append(os.Environ(), SlotVariable+"="+name)
	c.cmd.Env = append(c.cmd.Env, v.Env...)
	c.cmd.Stdout, c.cmd.Stderr = v.Out, c.tail
	c.cmd.SysProcAttr = childAttributes()
	c.cmd.WaitDelay = time.Second
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

func (c *child) code() int { return c.cmd.ProcessState.ExitCode() }

// cause says how it ended and what it said last.
func (c *child) cause() string {
	text := cmp.Or(c.err, errors.New("exit status 0")).Error()
	if said := c.tail.text(); said != "" {
		text += ": " + said
	}
	return text
}

// tail passes on what is written and keeps the end of it.
type tail struct {
	next io.Writer

	mu   sync.Mutex // guards last
	last []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.last = append(t.last, p...)
	if n := len(t.last) - 4*maxTail; n > 0 {
		t.last = append([]byte(nil), t.last[n:]...)
	}
	t.mu.Unlock()
	if t.next != nil {
		_, _ = t.next.Write(p) // a log that cannot be written does not end the agent
	}
	return len(p), nil
}

// text is the last line that says something.
func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.last), []byte("\n"))
	// Of a panic the first line tells, of anything else the last.
	for _, l := range lines {
		if bytes.HasPrefix(l, []byte("panic: ")) || bytes.HasPrefix(l, []byte("fatal error: ")) {
			return clip(l)
		}
	}
	return clip(lines[len(lines)-1])
}

func clip(b []byte) string { return string(b[:min(maxTail, len(b))]) }
