package containerd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/internal/containerd/containerdtest"
	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// lab is a daemon with the test image and launchers on it.
type lab struct {
	*testing.T
	*containerdtest.Daemon
	blobs containerdtest.Blobs
	img   manifest.Image
	opts  Options
}

func newLab(t *testing.T) *lab { return labOn(t, containerdtest.Start(t)) }

func labOn(t *testing.T, d *containerdtest.Daemon) *lab {
	b := containerdtest.Blobs{}
	return &lab{T: t, Daemon: d, blobs: b, img: containerdtest.ServerImage(t, b), opts: Options{
		Socket: d.Socket, RuncRoot: d.Runc, Dir: filepath.Join(d.Dir, "logs"), Logger: slog.New(slog.DiscardHandler),
	}}
}

func (l *lab) launcher() *Launcher {
	l.Helper()
	c, err := New(l.opts)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { c.Close() })
	return c
}

func (l *lab) ready() *Launcher {
	l.Helper()
	c := l.launcher()
	if err := c.EnsureImage(l.Context(), l.img, false, l.blobs.Open); err != nil {
		l.Fatal(err)
	}
	return c
}

func (l *lab) spec(name string, args ...string) serving.Spec {
	return serving.Spec{Name: name, Args: args, Labels: map[string]string{"k": "v"},
		Workload: runtime.Workload{ID: name, Spec: &manifest.Workload{Image: &l.img}}}
}

func (l *lab) start(c *Launcher, s serving.Spec) serving.Instance {
	l.Helper()
	i, err := c.Launch(l.Context(), s)
	if err != nil {
		l.Fatal(err)
	}
	return i
}

func (l *lab) stop(i serving.Instance) {
	l.Helper()
	if err := i.Stop(l.Context(), 10*time.Second); err != nil {
		l.Fatal(err)
	}
}

// ended waits for the end of a container.
func (l *lab) ended(i serving.Instance) serving.Exit {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), time.Minute)
	defer cancel()
	select {
	case <-i.Done():
	case <-ctx.Done():
		l.Fatal("it does not end")
	}
	return i.Exit()
}

// until waits for something that takes a while.
func (l *lab) until(what string, f func() bool) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-ctx.Done():
			l.Fatal("not in a minute: " + what)
		case <-tick.C:
		}
	}
}

// empty checks that nothing is left but images.
func (l *lab) empty(c *Launcher) {
	l.Helper()
	ctx, cl, err := c.dial(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	all, err := cl.Containers(ctx)
	if err != nil {
		l.Fatal(err)
	}
	if len(all) > 0 {
		l.Errorf("%d containers are left", len(all))
	}
	if s := l.active(c); len(s) > 0 {
		l.Errorf("writable snapshots are left: %v", s)
	}
	leases, err := cl.LeasesService().List(ctx)
	if err != nil {
		l.Fatal(err)
	}
	if len(leases) > 0 {
		l.Errorf("leases are left: %v", leases)
	}
	l.until("shims end", func() bool { return len(l.Shims()) == 0 })
	if m := l.Mounts(); len(m) > 0 {
		l.Errorf("mounts are left: %v", m)
	}
	if logs, _ := filepath.Glob(filepath.Join(l.opts.Dir, "*")); len(logs) > 0 {
		l.Errorf("logs are left: %v", logs)
	}
}

func TestLaunchAndStop(t *testing.T) {
	l := newLab(t)
	c := l.ready()
	i := l.start(c, l.spec("a", "print", "30"))
	l.until("it writes", func() bool { return len(i.(*instance).log.tail()) == tailLines })
	u, err := i.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if u.Memory <= 0 || u.CPU <= 0 || u.OOMKill != 0 {
		t.Errorf("usage %+v", u)
	}
	if _, err := c.Launch(t.Context(), l.spec("a")); err == nil {
		t.Error("a second one of the same name starts")
	}
	l.stop(i)
	if e := i.Exit(); e.Code != 0 || e.Signal != "" || e.OOM || len(e.Tail) == 0 || !strings.HasPrefix(e.Tail[len(e.Tail)-1], "waiting") {
		t.Errorf("exit %+v", e)
	}
	l.stop(i)
	l.empty(c)
}

func TestStubborn(t *testing.T) {
	l := newLab(t)
	c := l.ready()
	i := l.start(c, l.spec("a", "stubborn"))
	l.until("it runs", func() bool { return len(i.(*instance).log.tail()) > 0 })
	if err := i.Stop(t.Context(), 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if e := i.Exit(); e.Signal != "SIGKILL" || e.Code != -1 || e.OOM {
		t.Errorf("exit %+v", e)
	}
	l.empty(c)
}

func TestExits(t *testing.T) {
	l := newLab(t)
	c := l.ready()
	e := l.ended(l.start(c, l.spec("a", "exit", "65")))
	if e.Code != 65 || !slices.Equal(e.Tail, []string{"ending with 65"}) {
		t.Errorf("exit %+v", e)
	}
	s := l.spec("b")
	s.Workload.Spec.WritableRoot = true
	img := containerdtest.Image(t, l.blobs, configOf("/nothing"), goarch, containerdtest.ServerLayer(t))
	s.Workload.Spec.Image = &img
	if err := c.EnsureImage(t.Context(), img, false, l.blobs.Open); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Launch(t.Context(), s); !errors.Is(err, runtime.ErrIncompatible) {
		t.Errorf("a program that is not there: %v", err)
	}
	l.empty(c)
}

func TestOOM(t *testing.T) {
	l := newLab(t)
	c := l.ready()
	s := l.spec("a", "hog", "200")
	s.Workload.Spec.Resources = manifest.Resources{MemoryMiB: 32, CPUs: 1, Pids: 64}
	e := l.ended(l.start(c, s))
	if !e.OOM || e.Limit != 32<<20 || e.Peak < 24<<20 || e.Peak > 40<<20 {
		t.Errorf("exit %+v", e)
	}
	l.empty(c)
}

func TestAdopt(t *testing.T) {
	l := newLab(t)
	first := l.ready()
	i := l.start(first, l.spec("a", "wait"))
	pid := i.(*instance).pid
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := l.launcher()
	found, err := second.Adopt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found[0].Name != "a" || found[0].Labels["k"] != "v" || time.Since(found[0].Started) > time.Hour {
		t.Fatalf("adopted %+v", found)
	}
	if got := found[0].Instance.(*instance).pid; got != pid {
		t.Errorf("process %d, was %d", got, pid)
	}
	if again, err := second.Adopt(t.Context()); err != nil || len(again) != 0 {
		t.Errorf("adopted again: %v %v", again, err)
	}
	if out, exit, err := second.Exec(t.Context(), "a", []string{"/server", "exit", "7"}); err != nil || exit.Code != 7 || string(out) != "ending with 7\n" {
		t.Errorf("exec: %q %+v %v", out, exit, err)
	}
	l.stop(found[0].Instance)
	l.empty(second)
}

func TestDaemonRestarts(t *testing.T) {
	l := newLab(t)
	c := l.ready()
	i := l.start(c, l.spec("a", "wait"))
	l.Down()
	if _, err := c.Launch(t.Context(), l.spec("b", "wait")); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("start without a daemon: %v", err)
	}
	select {
	case <-i.Done():
		t.Fatalf("it ended with the daemon: %+v", i.Exit())
	default:
	}
	l.Up()
	u, err := i.Usage(t.Context())
	l.until("it answers again", func() bool { u, err = i.Usage(t.Context()); return err == nil })
	if u.Memory == 0 {
		t.Errorf("usage %+v", u)
	}
	l.stop(i)
	if e := i.Exit(); e.Code != 0 || e.Err != nil {
		t.Errorf("exit %+v", e)
	}
	l.empty(c)
}

func TestDaemonDownAtBoot(t *testing.T) {
	l := newLab(t)
	l.Down()
	c := l.launcher()
	if _, err := c.Adopt(t.Context()); !errors.Is(err, ErrNoDaemon) || !strings.Contains(fmt.Sprint(err), l.Socket) {
		t.Errorf("adopt: %v", err)
	}
	if err := c.EnsureImage(t.Context(), l.img, false, l.blobs.Open); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("ensure image: %v", err)
	}
	l.Up()
	l.until("it connects", func() bool { _, err := c.Adopt(t.Context()); return err == nil })
	if err := c.EnsureImage(t.Context(), l.img, false, l.blobs.Open); err != nil {
		t.Fatal(err)
	}
	l.stop(l.start(c, l.spec("a", "wait")))
	l.empty(c)
}

func TestRunOnce(t *testing.T) {
	l := newLab(t)
	c := l.ready()
	var out strings.Builder
	e, err := c.RunOnce(t.Context(), serving.Command{Name: "once", Image: l.img, Args: []string{"/server", "exit", "3"}, Output: &out})
	if err != nil || e.Code != 3 || out.String() != "ending with 3\n" {
		t.Errorf("%+v %v %q", e, err, out.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	seen := make(chan struct{}, 1)
	go func() {
		_, err := c.RunOnce(ctx, serving.Command{Name: "once", Image: l.img, Args: []string{"/server", "wait"}, Grace: time.Second, Output: writer(func() {
			select {
			case seen <- struct{}{}:
			default:
			}
		})})
		ended <- err
	}()
	<-seen
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	l.empty(c)
}

type writer func()

func (w writer) Write(p []byte) (int, error) { w(); return len(p), nil }

func TestSweep(t *testing.T) {
	l := newLab(t)
	c := l.ready()
	ctx, cl, err := c.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.orphans(ctx, cl); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.empty(c)
	if err := c.KeepImages(t.Context(), []ota.Digest{}); err != nil {
		t.Fatal(err)
	}
	if n := l.snapshots(c); n != 0 {
		t.Errorf("%d snapshots are left when no image is", n)
	}
}
