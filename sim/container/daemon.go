// Package container gives simulations real containers: a containerd of their
// own, away from that of the host, and images made of a static program without
// a registry. It owns the daemon's folder and leaves nothing of it behind: no
// task, shim, mount or file. Packages of sim import it.
package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrUnavailable is returned where no containers can be run; it says why.
var ErrUnavailable = errors.New("no containers here")

// needed are the programs of Debian's containerd and runc.
var needed = []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc"}

// Available says what is missing to run containers, or nil.
func Available() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: containers are started by root: run it as root", ErrUnavailable)
	}
	for _, name := range needed {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w: %s is not installed: apt-get install containerd runc", ErrUnavailable, name)
		}
	}
	return nil
}

// Daemon is a containerd with root, state and socket of its own.
type Daemon struct {
	dir    string
	log    *os.File
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process has ended
}

// startTimeout bounds how long the daemon may take to answer.
const startTimeout = 30 * time.Second

// NewDaemon returns a daemon that works in dir; Start starts it.
func NewDaemon(dir string) *Daemon { return &Daemon{dir: dir} }

// Socket is where it listens.
func (d *Daemon) Socket() string { return filepath.Join(d.dir, "containerd.sock") }

// RuncRoot is where its runc keeps state.
func (d *Daemon) RuncRoot() string { return filepath.Join(d.dir, "runc") }

// config leaves out what Kubernetes needs and what takes other file systems.
const config = `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
address = %q
`

// Start starts it and returns when it answers.
func (d *Daemon) Start(ctx context.Context) (err error) {
	if err := os.MkdirAll(d.dir, 0o711); err != nil { // containers of other users pass through it
		return fmt.Errorf("start containerd: %w", err)
	}
	text := fmt.Sprintf(config, filepath.Join(d.dir, "root"), filepath.Join(d.dir, "state"), d.Socket())
	file := filepath.Join(d.dir, "config.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	if d.log, err = os.OpenFile(filepath.Join(d.dir, "containerd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	d.cmd = exec.Command("containerd", "--config", file)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	// A group of its own: an interrupt of the terminal is ours to pass on.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("start containerd: %w", err), d.log.Close())
	}
	d.exited = make(chan struct{})
	go func() {
		_ = d.cmd.Wait() // how it ended stands in its log
		close(d.exited)
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := d.answers(ctx); err != nil {
		return errors.Join(err, d.Stop())
	}
	return nil
}

func (d *Daemon) answers(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial("unix", d.Socket()); err == nil {
			c.Close()
			if _, err := d.ctr(ctx, "version"); err == nil {
				return nil
			}
		}
		select {
		case <-d.exited:
			raw, _ := os.ReadFile(d.log.Name())
			lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
			return fmt.Errorf("containerd ended at once: %s", lines[len(lines)-1])
		case <-ctx.Done():
			return fmt.Errorf("wait for containerd: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// Stop ends the daemon; its containers go on.
func (d *Daemon) Stop() error {
	if d.cmd == nil {
		return nil
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-d.exited:
	case <-time.After(20 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.exited
	}
	d.cmd = nil
	return d.log.Close()
}

func (d *Daemon) ctr(ctx context.Context, args ...string) ([]string, error) {
	out, err := exec.CommandContext(ctx, "ctr", append([]string{"--address", d.Socket()}, args...)...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return strings.Fields(string(out)), nil
}

// Tasks lists the containers that run, as namespace/id.
func (d *Daemon) Tasks(ctx context.Context) ([]string, error) {
	spaces, err := d.ctr(ctx, "namespaces", "ls", "-q")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, n := range spaces {
		ids, err := d.ctr(ctx, "-n", n, "tasks", "ls", "-q")
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			out = append(out, n+"/"+id)
		}
	}
	return out, nil
}

// PID is the first process of a task, namespace/id.
func (d *Daemon) PID(ctx context.Context, task string) (int, error) {
	n, id, _ := strings.Cut(task, "/")
	words, err := d.ctr(ctx, "-n", n, "tasks", "ls") // TASK PID STATUS in each line
	if err != nil {
		return 0, err
	}
	i := slices.Index(words, id)
	if i < 0 || i+1 == len(words) {
		return 0, fmt.Errorf("containerd runs no %s", task)
	}
	return strconv.Atoi(words[i+1])
}

// Kill ends a task, namespace/id, as the kernel or a person would.
func (d *Daemon) Kill(ctx context.Context, task string) error {
	n, id, _ := strings.Cut(task, "/")
	_, err := d.ctr(ctx, "-n", n, "tasks", "kill", "-s", "SIGKILL", id)
	return err
}

// closeTimeout bounds the cleaning up.
const closeTimeout = time.Minute

// Close ends all containers and the daemon, and removes what they left.
func (d *Daemon) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var errs []error
	if d.cmd != nil {
		tasks, err := d.Tasks(ctx)
		errs = append(errs, err)
		for _, t := range tasks {
			n, id, _ := strings.Cut(t, "/")
			_, err := d.ctr(ctx, "-n", n, "tasks", "rm", "--force", id)
			errs = append(errs, err)
		}
	}
	errs = append(errs, d.Stop(), d.endShims(ctx), d.unmount(), os.RemoveAll(d.dir))
	return errors.Join(errs...)
}

// shims are the processes that containerd left with our socket as an argument.
func (d *Daemon) shims() (out []int) {
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range entries {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(string(raw), "\x00")
		if strings.HasSuffix(args[0], "containerd-shim-runc-v2") && slices.Contains(args, d.Socket()) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
				out = append(out, pid)
			}
		}
	}
	return out
}

// endShims waits for shims to end, and ends those that do not.
func (d *Daemon) endShims(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for tries := 0; ; tries++ {
		left := d.shims()
		if len(left) == 0 {
			return nil
		}
		if tries == 100 {
			for _, pid := range left {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("shims %v go on", left)
		case <-tick.C:
		}
	}
}

// mounts below the folder, innermost first.
func (d *Daemon) mounts() ([]string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], d.dir+"/") {
			out = append(out, f[4])
		}
	}
	slices.Reverse(out)
	return out, nil
}

func (d *Daemon) unmount() error {
	all, err := d.mounts()
	errs := []error{err}
	for _, m := range all {
		if err := syscall.Unmount(m, syscall.MNT_DETACH); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	return errors.Join(errs...)
}
