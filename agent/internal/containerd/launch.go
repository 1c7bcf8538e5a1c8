package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	runc "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime"
)

// Labels of a container, beside those of the server.
const (
	labelName    = "dev.skein.name"    // of the server
	labelStarted = "dev.skein.started" // RFC 3339
	labelOnce    = "dev.skein.once"    // a command that ends with its caller
)

var idRE = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// maxID is the longest container id that containerd takes.
const maxID = 76

// containerID is the name of a server where containerd takes it, else one made of it.
func containerID(name string) string {
	if len(name) <= maxID && idRE.MatchString(name) {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "skein-" + hex.EncodeToString(sum[:16])
}

// Launch starts a server in a container of its own. Its image is there already.
func (l *Launcher) Launch(ctx context.Context, s serving.Spec) (serving.Instance, error) {
	i, err := l.launch(ctx, s, argsReplaceCommand, nil)
	if err != nil {
		return nil, fmt.Errorf("start container %s: %w", s.Name, err)
	}
	return i, nil
}

// argsMode says what the arguments of a workload replace.
type argsMode bool

const (
	argsReplaceCommand argsMode = false // the image's command; its entrypoint stays
	argsReplaceAll     argsMode = true  // entrypoint and command
)

func (l *Launcher) launch(ctx context.Context, s serving.Spec, mode argsMode, outputs []string) (*instance, error) {
	if s.Workload.Spec == nil || s.Workload.Spec.Image == nil {
		return nil, fmt.Errorf("%w: the workload names no container image", runtime.ErrIncompatible)
	}
	l.making.RLock()
	defer l.making.RUnlock()
	ctx, c, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	id := containerID(s.Name)
	l.mu.Lock()
	running := l.live[id]
	l.mu.Unlock()
	if running != nil {
		return nil, errors.New("it runs already")
	}
	// One that nobody claims is in the way.
	if err := l.remove(ctx, c, id); err != nil {
		return nil, err
	}
	img, err := l.image(ctx, c, s.Workload.Spec.Image.Digest)
	if err != nil {
		return nil, err
	}
	p, err := l.plan(s, mode, outputs)
	if err != nil {
		return nil, err
	}
	i, err := l.create(ctx, c, id, img, s, p)
	if err != nil {
		clean, cancel := lasting(ctx)
		defer cancel()
		return nil, errors.Join(l.told(err), l.remove(clean, c, id))
	}
	return i, nil
}

// create makes and starts a container; the caller removes what it left on an error.
func (l *Launcher) create(ctx context.Context, c *client.Client, id string, img client.Image, s serving.Spec, p *plan) (*instance, error) {
	started := time.Now()
	labels := maps.Clone(s.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[labelName], labels[labelStarted] = s.Name, started.UTC().Format(time.RFC3339Nano)
	if p.once {
		labels[labelOnce] = "1"
	}
	container, err := c.NewContainer(ctx, id,
		client.WithImage(img),
		client.WithSnapshotter(l.opts.Snapshotter),
		client.WithNewSnapshot(id, img),
		client.WithContainerLabels(labels),
		client.WithRuntime(shimRuntime, &runc.Options{BinaryName: p.gpu.shim, Root: l.opts.RuncRoot}),
		client.WithNewSpec(l.specOpts(img, p)...),
	)
	if err != nil {
		return nil, err
	}
	log, err := l.newLog(id)
	if err != nil {
		return nil, err
	}
	task, err := container.NewTask(ctx, cio.LogFile(log.path))
	if err != nil {
		return nil, startError(err)
	}
	exit, err := task.Wait(context.WithoutCancel(ctx))
	if err != nil {
		return nil, err
	}
	i := l.newInstance(id, task, log)
	if p.once {
		i.read = make(chan struct{})
	}
	if err := task.Start(ctx); err != nil {
		return nil, startError(err)
	}
	if !l.claim(i, exit) {
		return nil, errors.New("the launcher of containers is closed")
	}
	return i, nil
}

// neverStarts are runc's words for what no other try makes better.
var neverStarts = []string{"executable file not found", "exec format error", "no such file or directory: unknown", "permission denied: unknown"}

func startError(err error) error {
	for _, words := range neverStarts {
		if strings.Contains(err.Error(), words) {
			return fmt.Errorf("%w: %w", runtime.ErrIncompatible, err)
		}
	}
	return err
}

// remove ends and removes a container, its task, its snapshot and its log; one
// that is not there is no error.
func (l *Launcher) remove(ctx context.Context, c *client.Client, id string) error {
	container, err := c.LoadContainer(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
		if err := l.forgetTask(ctx, c, id); err != nil {
			return err
		}
		// A container that was not made can have left its snapshot.
		if err := c.SnapshotService(l.opts.Snapshotter).Remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove the snapshot %s: %w", id, l.told(err))
		}
		return l.removeLog(id)
	case err != nil:
		return fmt.Errorf("look for container %s: %w", id, l.told(err))
	}
	task, err := container.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, client.WithProcessKill)
	}
	if errdefs.IsNotFound(err) {
		err = l.forgetTask(ctx, c, id)
	}
	if err != nil {
		return fmt.Errorf("end container %s: %w", id, l.told(err))
	}
	if err := container.Delete(ctx, client.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove container %s: %w", id, l.told(err))
	}
	return l.removeLog(id)
}

// forgetTask removes a task that the daemon says is not there. When an agent
// dies while one is being deleted, its shim has deleted it and the daemon still
// lists it: no other can be made, and only this removes it.
func (l *Launcher) forgetTask(ctx context.Context, c *client.Client, id string) error {
	_, err := c.TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("forget task %s: %w", id, l.told(err))
	}
	return nil
}

func (l *Launcher) removeLog(id string) error {
	for _, p := range []string{l.logPath(id), l.logPath(id) + rotated} {
		if err := os.Remove(p); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("remove the log of container %s: %w", id, err)
		}
	}
	return nil
}

func (l *Launcher) logPath(id string) string { return filepath.Join(l.opts.Dir, id+".log") }
