package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/skein-fleet/skein/agent"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/sim/container"
	"github.com/skein-fleet/skein/sim/operator"
)

// boxes are the devices whose models run in containers on this machine: the
// first ones of the fleet.
type boxes struct {
	o      Options
	daemon *container.Daemon
	image  container.Image

	mu   sync.Mutex // guards open
	open map[int]agent.Servers
}

// openBoxes starts containerd and makes an image of this program.
func openBoxes(ctx context.Context, o Options) (*boxes, error) {
	if err := container.Available(); err != nil {
		return nil, fmt.Errorf("--runtime containerd: %w", err)
	}
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	b := &boxes{o: o, daemon: container.NewDaemon(filepath.Join(o.DataDir, "containerd")), open: map[int]agent.Servers{}}
	if b.image, err = container.NewImage(program, "the demo's model server"); err != nil {
		return nil, err
	}
	// Containers in user namespaces pass through it as users of their own.
	if err := os.Chmod(o.DataDir, 0o711); err != nil {
		return nil, fmt.Errorf("let containers pass through the data folder: %w", err)
	}
	if err := b.daemon.Start(ctx); err != nil {
		return nil, errors.Join(err, b.daemon.Close())
	}
	return b, nil
}

// Close removes all of it.
func (b *boxes) Close() error { return b.daemon.Close() }

func (b *boxes) bytes() (n int64) {
	for _, x := range b.image.Blobs {
		n += x.Size
	}
	return n
}

// servers makes the runtime of a device, nil for those that are modelled.
func (b *boxes) servers(number int) func() (agent.Servers, error) {
	if b == nil || number > b.o.Containers {
		return nil
	}
	return func() (agent.Servers, error) {
		dir := filepath.Join(b.o.DataDir, "servers", fmt.Sprintf("%04d", number))
		s, err := agent.NewServers(agent.ServersOptions{Dir: dir, Logger: b.o.Logger.With("device", number), Containers: &agent.ContainerOptions{
			Socket: b.daemon.Socket(), RuncRoot: b.daemon.RuncRoot(), Namespace: fmt.Sprintf("skein-%d", number), Dir: filepath.Join(dir, "logs"), Logger: b.o.Logger,
		}})
		if err == nil {
			b.mu.Lock()
			b.open[number] = s
			b.mu.Unlock()
		}
		return s, err
	}
}

// serve gives a release the workload and the image, for this machine's target
// alone: the modelled boards have servers of their own.
func (b *boxes) serve(ctx context.Context, op *operator.Operator, req *releasev1.CreateReleaseRequest) error {
	if b == nil {
		return nil
	}
	var parts [][]byte
	for _, x := range append(b.image.Blobs, b.image.Manifest) {
		parts = append(parts, x.Data)
	}
	d, err := op.PushImage(ctx, parts...)
	if err != nil {
		return err
	}
	if req.Workload, err = json.Marshal(container.Workload()); err != nil {
		return fmt.Errorf("encode workload: %w", err)
	}
	req.Image, req.WorkloadTargets = string(d), []string{"linux/" + runtime.GOARCH}
	return nil
}

// check holds that each of the devices has one server, in a container, that it
// is ready and that containerd knows of no other.
func (b *boxes) check(ctx context.Context, say func(string, ...any)) error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var memory int64
	for number, s := range b.open {
		list, err := s.Servers(ctx)
		if err != nil {
			return err
		}
		if len(list) != 1 || list[0].Kind != "container" || list[0].State != "ready" || list[0].Image != b.image.Manifest.Digest {
			return fmt.Errorf("device %d should have one ready container: %+v", number, list)
		}
		memory += list[0].Memory
	}
	tasks, err := b.daemon.Tasks(ctx)
	if err != nil {
		return err
	}
	if len(tasks) != b.o.Containers {
		return fmt.Errorf("containerd runs %v: want one container for each of %d devices", tasks, b.o.Containers)
	}
	say("  %d devices answer from containers, %d MiB in all: %s", len(tasks), memory>>20, tasks)
	return nil
}
