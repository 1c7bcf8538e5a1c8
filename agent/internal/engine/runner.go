package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// Exit is how a command ended.
type Exit struct {
	Code   int    // exit status, -1 when a signal ended it
	Signal string // its name
	OOM    bool   // the kernel ended it for memory
}

// Runner runs one command to its end where TensorRT is: on the host, or in the
// container of the JetPack or of the server. Files lie at the same paths there.
// When ctx ends the command and all it started are killed. An error is only for
// what could not be started.
type Runner interface {
	Run(ctx context.Context, argv []string, out io.Writer) (Exit, error)
}

// HostRunner runs commands as children of this process.
type HostRunner struct{}

const killDelay = 2 * time.Second

// Run implements Runner.
func (HostRunner) Run(ctx context.Context, argv []string, out io.Writer) (Exit, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = killDelay // a grandchild may hold the pipe
	ownGroup(cmd)
	err := cmd.Run()
	if err == nil {
		return Exit{}, nil
	}
	state, ok := errors.AsType[*exec.ExitError](err)
	if !ok && !errors.Is(err, exec.ErrWaitDelay) {
		return Exit{Code: -1}, fmt.Errorf("start %s: %w", argv[0], err)
	}
	e := Exit{Code: cmd.ProcessState.ExitCode()}
	if ok {
		e.Signal = signalOf(state)
	}
	// A kill that nobody here asked for is the kernel's, for memory.
	e.OOM = e.Signal == "killed" && ctx.Err() == nil
	return e, nil
}
