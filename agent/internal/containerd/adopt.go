package containerd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"github.com/skein-fleet/skein/agent/internal/serving"
)

// Adopt returns the containers that run and were started by an agent before
// this one, and removes what has no use: containers that do not run, commands
// whose caller is gone, and leases, snapshots, half-written blobs and logs of
// tries that were cut off. What runs and nobody wants is the caller's to stop.
func (l *Launcher) Adopt(ctx context.Context) ([]serving.Adopted, error) {
	out, err := l.adopt(ctx)
	if err != nil {
		return out, fmt.Errorf("look for containers that run: %w", l.told(err))
	}
	return out, nil
}

func (l *Launcher) adopt(ctx context.Context) ([]serving.Adopted, error) {
	l.images.Lock() // what is being unpacked or started is not swept
	defer l.images.Unlock()
	l.making.Lock()
	defer l.making.Unlock()
	ctx, c, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	all, err := c.Containers(ctx)
	if err != nil {
		return nil, err
	}
	var out []serving.Adopted
	var errs []error
	for _, container := range all {
		l.mu.Lock()
		live := l.live[container.ID()]
		l.mu.Unlock()
		if live != nil {
			continue // started by this agent
		}
		a, err := l.takeOver(ctx, container)
		if err == nil && a == nil {
			err = l.remove(ctx, c, container.ID())
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if a != nil {
			out = append(out, *a)
		}
	}
	return out, errors.Join(append(errs, l.sweep(ctx, c))...)
}

// takeOver makes an instance of a container that runs; nil when it does not.
func (l *Launcher) takeOver(ctx context.Context, container client.Container) (*serving.Adopted, error) {
	info, err := container.Info(ctx)
	if err != nil {
		return nil, notFoundIsFine(err)
	}
	if info.Labels[labelOnce] != "" {
		return nil, nil
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		return nil, notFoundIsFine(err)
	}
	status, err := task.Status(ctx)
	if err != nil {
		return nil, notFoundIsFine(err)
	}
	if status.Status != client.Running && status.Status != client.Paused {
		return nil, nil
	}
	exit, err := task.Wait(namespaces.WithNamespace(l.run, l.opts.Namespace))
	if err != nil {
		return nil, err
	}
	i := l.newInstance(container.ID(), task, l.oldLog(container.ID()))
	if !l.claim(i, exit) {
		return nil, errors.New("the launcher of containers is closed")
	}
	started, err := time.Parse(time.RFC3339Nano, info.Labels[labelStarted])
	if err != nil {
		started = info.CreatedAt
	}
	labels := maps.Clone(info.Labels)
	name := labels[labelName]
	maps.DeleteFunc(labels, func(k, _ string) bool { return k == labelName || k == labelStarted })
	return &serving.Adopted{Name: name, Labels: labels, Started: started, Instance: i}, nil
}

// sweep removes what no container and no image uses. The namespace is ours, and
// no image is being prepared.
func (l *Launcher) sweep(ctx context.Context, c *client.Client) error {
	left, err := c.ContainerService().List(ctx)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, r := range left {
		used[r.ID], used[r.SnapshotKey] = true, true
	}
	l.mu.Lock()
	for id := range l.live {
		used[id] = true
	}
	l.mu.Unlock()
	return errors.Join(l.sweepSnapshots(ctx, c, used), l.sweepContent(ctx, c), l.sweepLeases(ctx, c), l.sweepLogs(used))
}

// sweepSnapshots removes writable layers; those of images are the collector's.
func (l *Launcher) sweepSnapshots(ctx context.Context, c *client.Client, used map[string]bool) error {
	sn := c.SnapshotService(l.opts.Snapshotter)
	var gone []string
	if err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted && !used[info.Name] {
			gone = append(gone, info.Name)
		}
		return nil
	}); err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for _, name := range gone {
		if err := notFoundIsFine(sn.Remove(ctx, name)); err != nil {
			return fmt.Errorf("remove the snapshot %s: %w", name, err)
		}
	}
	return nil
}

func (l *Launcher) sweepContent(ctx context.Context, c *client.Client) error {
	cs := c.ContentStore()
	half, err := cs.ListStatuses(ctx)
	if err != nil {
		return fmt.Errorf("list half-written blobs: %w", err)
	}
	for _, s := range half {
		if err := notFoundIsFine(cs.Abort(ctx, s.Ref)); err != nil {
			return fmt.Errorf("remove the half-written %s: %w", s.Ref, err)
		}
	}
	return nil
}

// sweepLeases removes leases and so lets the collector take what they kept.
func (l *Launcher) sweepLeases(ctx context.Context, c *client.Client) error {
	ls := c.LeasesService()
	all, err := ls.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for n, lease := range all {
		var opts []leases.DeleteOpt
		if n == len(all)-1 {
			opts = append(opts, leases.SynchronousDelete)
		}
		if err := ls.Delete(ctx, lease, opts...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove the lease %s: %w", lease.ID, err)
		}
	}
	return nil
}

func (l *Launcher) sweepLogs(used map[string]bool) error {
	entries, err := os.ReadDir(l.opts.Dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list logs of containers: %w", err)
	}
	for _, e := range entries {
		id, isLog := strings.CutSuffix(strings.TrimSuffix(e.Name(), rotated), ".log")
		if !isLog || used[id] {
			continue
		}
		if err := l.removeLog(id); err != nil {
			return err
		}
	}
	return nil
}
