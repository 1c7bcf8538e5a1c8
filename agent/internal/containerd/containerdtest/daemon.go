// Package containerdtest starts a containerd daemon of its own for tests, with
// its own root, state and socket, and makes images for it from a static Go
// binary. It leaves no process, mount or file behind. Tests import it.
package containerdtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Daemon is a containerd that belongs to one test.
type Daemon struct {
	Dir    string // short, for sockets in it
	Socket string
	Root   string // where it keeps content and layers
	Runc   string // state of runc

	t   testing.TB
	cmd *exec.Cmd
	log *os.File
}

// Start runs a daemon for the length of a test. The test is skipped where none
// can run, unless SKEIN_NEED_CONTAINERD says that it must.
func Start(t testing.TB) *Daemon { return start(t, "") }

// StartOn runs a daemon that keeps its data below root.
func StartOn(t testing.TB, root string) *Daemon { return start(t, root) }

func start(t testing.TB, root string) *Daemon {
	t.Helper()
	if testing.Short() {
		t.Skip("containers are not started in short tests")
	}
	if why := cannot(); why != "" {
		if os.Getenv("SKEIN_NEED_CONTAINERD") != "" {
			t.Fatal("containerd is needed: " + why)
		}
		t.Skip(why)
	}
	dir, err := os.MkdirTemp("/tmp", "skc")
	if err != nil {
		t.Fatal(err)
	}
	// Root of a container in a user namespace goes through it.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	d := &Daemon{Dir: dir, Socket: filepath.Join(dir, "c.sock"), Root: filepath.Join(dir, "root"), Runc: filepath.Join(dir, "runc"), t: t}
	if root != "" {
		d.Root = root
	}
	t.Cleanup(d.cleanup)
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = %q
[ttrpc]
  address = %q
`, d.Root, filepath.Join(dir, "s"), d.Socket, d.Socket+".ttrpc")
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Up()
	return d
}

// cannot says why no daemon runs here.
func cannot() string {
	if os.Geteuid() != 0 {
		return "containerd needs root"
	}
	for _, p := range []string{"containerd", "runc", "containerd-shim-runc-v2"} {
		if _, err := exec.LookPath(p); err != nil {
			return p + " is not installed (apt-get install containerd runc)"
		}
	}
	return ""
}

// Up starts the daemon and waits until it answers.
func (d *Daemon) Up() {
	d.t.Helper()
	if err := d.TryUp(); err != nil {
		d.t.Fatal(err)
	}
}

// TryUp starts the daemon and waits until it listens.
func (d *Daemon) TryUp() error {
	log, err := os.OpenFile(filepath.Join(d.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	d.log = log
	d.cmd = exec.Command("containerd", "--config", filepath.Join(d.Dir, "config.toml"))
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := net.Dial("unix", d.Socket)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd does not listen: %w\n%s", err, d.Log())
		case <-tick.C:
		}
	}
}

// Down kills the daemon; containers go on.
func (d *Daemon) Down() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
	d.log.Close()
	d.cmd = nil
	_ = os.Remove(d.Socket)
}

// Log is what the daemon wrote.
func (d *Daemon) Log() string {
	b, err := os.ReadFile(filepath.Join(d.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4000):])
}

// Shims are the process ids of the shims of this daemon.
func (d *Daemon) Shims() []int {
	return processes(func(args []string) bool {
		return strings.Contains(args[0], "containerd-shim") && slices.Contains(args, d.Socket)
	})
}

// processes are those whose words match.
func processes(match func(args []string) bool) []int {
	entries, _ := os.ReadDir("/proc")
	var out []int
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(b) == 0 {
			continue
		}
		if match(strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")) {
			out = append(out, pid)
		}
	}
	return out
}

// Mounts are the mounts below the daemon's folders.
func (d *Daemon) Mounts() []string {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		d.t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 1 && f[1] != d.Root && (strings.HasPrefix(f[1], d.Dir+"/") || strings.HasPrefix(f[1], d.Root+"/")) {
			out = append(out, f[1])
		}
	}
	return out
}

func (d *Daemon) cleanup() {
	if d.t.Failed() {
		d.t.Log("containerd wrote: " + d.Log())
	}
	// Shims end with their containers; runc's state names their processes.
	d.killContainers()
	d.Down()
	for _, pid := range d.Shims() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, m := range slices.Backward(d.Mounts()) {
		_ = syscall.Unmount(m, syscall.MNT_DETACH)
	}
	if err := os.RemoveAll(d.Dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.t.Errorf("remove the daemon's folder: %v", err)
	}
}

// killContainers ends what runs in containers of this daemon.
func (d *Daemon) killContainers() {
	namespaces, _ := os.ReadDir(d.Runc)
	for _, ns := range namespaces {
		root := filepath.Join(d.Runc, ns.Name())
		ids, _ := os.ReadDir(root)
		for _, id := range ids {
			cmd := exec.Command("runc", "--root", root, "delete", "--force", id.Name())
			cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
			_ = cmd.Run()
		}
	}
}
