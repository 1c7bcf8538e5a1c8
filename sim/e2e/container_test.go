package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota/manifest"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/sim/container"
)

// boxed is a device whose models run in containers of a containerd of its own.
type boxed struct {
	*device
	s      *server
	daemon *container.Daemon
	target string
	image  container.Image
	server agent.Servers
}

func (s *server) boxed() *boxed {
	s.t.Helper()
	if err := container.Available(); err != nil {
		s.t.Skip(err)
	}
	if testing.Short() {
		s.t.Skip("builds the model server, which takes a minute")
	}
	b := &boxed{s: s, target: "linux/" + goruntime.GOARCH, daemon: container.NewDaemon(filepath.Join(s.t.TempDir(), "containerd"))}
	raw := program(s.t.(*testing.T), "../cmd/skein-sim", "e2e", "")
	file := filepath.Join(s.t.TempDir(), "server")
	if err := os.WriteFile(file, raw, 0o755); err != nil {
		s.t.Fatal(err)
	}
	var err error
	if b.image, err = container.NewImage(file, "e2e"); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := b.daemon.Close(); err != nil {
			s.t.Error(err)
		}
	})
	if err := b.daemon.Start(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	b.device = s.enroll(func(o *agent.EnrollOptions) { o.Target = b.target })
	b.opts.Host = onTarget{b.device, b.target}
	return b
}

// onTarget is the device on this machine's target.
type onTarget struct {
	*device
	target string
}

// Facts implements agent.Host.
func (d onTarget) Facts(ctx context.Context) (agent.Facts, error) {
	f, err := d.device.Facts(ctx)
	f.Target.Arch, f.Target.Attrs = goruntime.GOARCH, map[string]string{}
	return f, err
}

// run boots it; stop ends the agent, and its containers go on.
func (b *boxed) run() {
	b.t.Helper()
	dir := filepath.Join(b.t.TempDir(), "servers")
	s, err := agent.NewServers(agent.ServersOptions{Dir: dir, Logger: logger(), Containers: &agent.ContainerOptions{
		Socket: b.daemon.Socket(), RuncRoot: b.daemon.RuncRoot(), Dir: filepath.Join(dir, "logs"), Logger: logger(),
		UserNS: "off", // folders of tests let no other user pass
	}})
	if err != nil {
		b.t.Fatal(err)
	}
	b.server = s
	b.opts.Runtime = s
	a, err := agent.New(b.opts)
	if err != nil {
		b.t.Fatal(err)
	}
	b.device.agent.Store(a)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			b.t.Errorf("agent: %v", err)
		}
	})
	wg.Go(func() { b.app.run(ctx, s) })
	b.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := s.Close(); err != nil {
			b.t.Error(err)
		}
	})
}

// release makes a release of a model in the image, with a workload.
func (b *boxed) release(name string, bias float32, change ...func(*manifest.Workload)) {
	b.t.Helper()
	w := container.Workload()
	for _, c := range change {
		c(&w)
	}
	raw, err := json.Marshal(w)
	if err != nil {
		b.t.Fatal(err)
	}
	var parts [][]byte
	for _, x := range append(b.image.Blobs, b.image.Manifest) {
		parts = append(parts, x.Data)
	}
	d, err := b.s.op.PushImage(b.t.Context(), parts...)
	if err != nil {
		b.t.Fatal(err)
	}
	b.s.release(name, version{bias: bias, targets: []string{b.target}, with: func(r *releasev1.CreateReleaseRequest) {
		r.Workload, r.Image = raw, string(d)
	}})
}

func (b *boxed) only() runtime.Server {
	b.t.Helper()
	list, err := b.server.Servers(b.t.Context())
	if err != nil || len(list) != 1 || list[0].Kind != "container" {
		b.t.Fatalf("servers %+v, %v: want one container", list, err)
	}
	return list[0]
}

// TestContainers: releases in real containers, with requests running through.
func TestContainers(t *testing.T) {
	s := start(t)
	b := s.boxed()
	b.run()
	b.release("1", 1)
	b.release("2", 2)
	s.settle(b.device, "1")
	b.serves()
	first := b.only()

	// Another version, and another, while an application asks: none is dropped.
	s.settle(b.device, "2")
	b.serves()
	if got := b.app.bias.Load(); got != 2 {
		t.Errorf("answers of release %d, want 2", got)
	}
	if now := b.only(); now.ID == first.ID {
		t.Errorf("%s still serves", now.ID)
	}

	// What exits at once is taken back with its cause, and nothing is dropped.
	b.release("exits", 3, func(w *manifest.Workload) { w.Args = []string{"no-such-command"} })
	b.fails("exits", "no-such-command")
	// So is what takes more memory than it may.
	b.release("eats", 4, func(w *manifest.Workload) { w.Resources.MemoryMiB = 6 })
	b.fails("eats", "ended it for memory")
	s.settle(b.device, "2")
	b.serves()

	// The agent ends and comes back: the container is the same, it is not
	// started again.
	b.stop()
	tasks, err := b.daemon.Tasks(t.Context())
	if err != nil || len(tasks) != 1 {
		t.Fatalf("with the agent away containerd runs %v, %v", tasks, err)
	}
	before, err := b.daemon.PID(t.Context(), tasks[0])
	if err != nil {
		t.Fatal(err)
	}
	b.run()
	s.settled(b.device, "2")
	b.serves()
	if after, err := b.daemon.PID(t.Context(), tasks[0]); err != nil || after != before {
		t.Errorf("process %d served before the agent ended, %d does now (%v): it was to be taken over", before, after, err)
	}
	b.only()

	// The machine starts without the network: containers are gone, the image is
	// here, and inference comes back.
	b.stop()
	for _, x := range tasks {
		if err := b.daemon.Kill(t.Context(), x); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.daemon.Stop(); err != nil {
		t.Fatal(err)
	}
	s.stop()
	if err := b.daemon.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.run()
	b.serves()
	b.stop()
}

// fails assigns a release that the device must take back, for a reason.
func (b *boxed) fails(name, cause string) {
	b.t.Helper()
	b.s.assign(b.id, name)
	var st agent.Status
	until(b.t, fmt.Sprintf("meter@%s to be taken back", name), func() bool {
		st = b.status()
		return st.Failure != "" && st.RunningName == "meter@2" && strings.Contains(st.Failure, cause)
	})
	b.serves()
}
