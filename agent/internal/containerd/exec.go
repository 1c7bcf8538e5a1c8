package containerd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota/manifest"
)

// maxOutput bounds what is kept of a command's output.
const maxOutput = 1 << 20

// Exec runs a command in a container that runs, as its user, and returns what
// it wrote on both outputs. name is that of the server.
func (l *Launcher) Exec(ctx context.Context, name string, argv []string) ([]byte, serving.Exit, error) {
	out, exit, err := l.exec(ctx, name, argv)
	if err != nil {
		return out, exit, fmt.Errorf("run %s in container %s: %w", strings.Join(argv, " "), name, l.told(err))
	}
	return out, exit, nil
}

func (l *Launcher) exec(ctx context.Context, name string, argv []string) (_ []byte, exit serving.Exit, err error) {
	if len(argv) == 0 {
		return nil, exit, errors.New("no command")
	}
	ctx, c, err := l.dial(ctx)
	if err != nil {
		return nil, exit, err
	}
	container, err := c.LoadContainer(ctx, containerID(name))
	if err != nil {
		return nil, exit, err
	}
	spec, err := container.Spec(ctx)
	if err != nil {
		return nil, exit, err
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		return nil, exit, err
	}
	proc := *spec.Process
	proc.Args, proc.Terminal = argv, false
	random := make([]byte, 8)
	rand.Read(random) //nolint:errcheck // it never fails
	id := "exec-" + hex.EncodeToString(random)
	log := &output{path: l.logPath(container.ID() + "-" + id), max: maxOutput}
	defer os.Remove(log.path)
	p, err := task.Exec(ctx, id, &proc, cio.LogFile(log.path))
	if err != nil {
		return nil, exit, err
	}
	defer func() {
		clean, cancel := lasting(ctx)
		defer cancel()
		_, gone := p.Delete(clean, client.WithProcessKill)
		err = errors.Join(err, notFoundIsFine(gone))
	}()
	ended, err := p.Wait(ctx)
	if err != nil {
		return nil, exit, err
	}
	if err := p.Start(ctx); err != nil {
		return nil, exit, err
	}
	select {
	case <-ctx.Done():
		return nil, exit, ctx.Err()
	case status := <-ended:
		if err := status.Error(); err != nil {
			return nil, exit, err
		}
		exit = exitOf(int(status.ExitCode()))
	}
	// The shim has copied all output when it answers this.
	clean, cancel := lasting(ctx)
	defer cancel()
	if _, err := p.Delete(clean); notFoundIsFine(err) != nil {
		return nil, exit, err
	}
	out, err := lastBytes(log.path, maxOutput)
	return out, exit, err
}

// RunOnce runs a command to its end. When ctx ends before it does, it is
// stopped and ctx's error returned. The image is there already. Nothing of the
// container is left when it returns; one whose agent died is removed by Adopt.
func (l *Launcher) RunOnce(ctx context.Context, cmd serving.Command) (serving.Exit, error) {
	w := manifest.Workload{
		Image: &cmd.Image, User: cmd.User, GPU: cmd.GPU, Devices: cmd.Devices, Resources: cmd.Resources, Network: "none",
	}
	if cmd.Network != "" {
		w.Network = cmd.Network
	}
	s := serving.Spec{Name: cmd.Name, Args: cmd.Args, Env: cmd.Env, Dirs: cmd.Dirs, Workload: runtime.Workload{Spec: &w}}
	if len(cmd.Args) == 0 {
		return serving.Exit{}, fmt.Errorf("run once in container %s: no command", cmd.Name)
	}
	i, err := l.launch(ctx, s, argsReplaceAll, cmd.Outputs)
	if err != nil {
		return serving.Exit{}, fmt.Errorf("run once in container %s: %w", cmd.Name, err)
	}
	f := &follower{path: i.log.path, w: cmd.Output}
	defer f.close()
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-i.ended:
			f.more()
			close(i.read)
			select {
			case <-i.gone:
			case <-l.run.Done():
			}
			return i.Exit(), nil
		case <-ctx.Done():
			close(i.read)
			return serving.Exit{}, errors.Join(ctx.Err(), i.Stop(ctx, cmd.Grace))
		case <-l.run.Done():
			return serving.Exit{}, errors.New("the launcher of containers is closed")
		case <-tick.C:
			f.more()
		}
	}
}

const followEvery = 100 * time.Millisecond

// follower copies a growing log.
type follower struct {
	path string
	f    *os.File
	w    io.Writer
}

func (f *follower) more() {
	if f.w == nil {
		return
	}
	if f.f == nil {
		file, err := os.Open(f.path)
		if err != nil {
			return // nothing was written yet
		}
		f.f = file
	}
	if info, err := f.f.Stat(); err == nil {
		if at, err := f.f.Seek(0, io.SeekCurrent); err == nil && info.Size() < at {
			_, _ = f.f.Seek(0, io.SeekStart) // it was halved
		}
	}
	_, _ = io.Copy(f.w, f.f) // output that its reader does not take is lost
}

func (f *follower) close() {
	if f.f != nil {
		f.f.Close()
	}
}

// exitOf reads an exit status as the kernel's words.
func exitOf(code int) serving.Exit {
	if code > 128 && code <= 128+64 {
		return serving.Exit{Code: -1, Signal: signalName(syscall.Signal(code - 128))}
	}
	return serving.Exit{Code: code}
}
