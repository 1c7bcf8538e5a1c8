// Package host is the machine under the agent: what it is (the target that
// engines are bound to, hardware, serial, boot) and what it measures. It reads
// /proc, /sys and /etc below a root, which tests replace, and supervises
// tegrastats where it exists. What cannot be measured has no reading; it is
// never a zero. Only the root of the agent module and its command import it.
package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skein-fleet/skein/agent/internal/target"
	"github.com/skein-fleet/skein/telemetry"
	"github.com/skein-fleet/skein/telemetry/probe/nvml"
	"github.com/skein-fleet/skein/telemetry/probe/tegra"
)

// Options configure a Machine.
type Options struct {
	// Root is the root of the file system to look at; empty is /.
	Root string
	// StateDir is the folder whose file system DiskFree is about.
	StateDir string
	// Tegrastats is the command that prints tegrastats lines; empty means
	// tegrastats with an interval of one second, where it is installed.
	Tegrastats []string
	// NVML is the command that writes lines of package nvml; empty means
	// skein-nvml beside this program, where libnvidia-ml is. It is killed when it
	// says nothing for NVMLSilence, 10 s when 0.
	NVML        []string
	NVMLSilence time.Duration
	// Arch is the architecture, runtime.GOARCH when empty.
	Arch string
	// Run asks commands of the host (nvpmodel, nvidia-smi) what the machine is;
	// nil is Command where Root is /, and asks none elsewhere.
	Run    target.Run
	Logger *slog.Logger
	Now    func() time.Time
}

// Machine is a real host. Run keeps its probes going; Readings works without.
type Machine struct {
	opts Options
	prev cpuTimes

	mu     sync.Mutex // guards what follows and prev
	line   string     // newest tegrastats line
	lineAt time.Time
	gpus   nvml.Report // newest of skein-nvml
	gpusAt time.Time
}

// New returns the machine that the process runs on.
func New(o Options) *Machine {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Run == nil && o.Root == "/" {
		o.Run = Command
	}
	if o.Arch == "" {
		o.Arch = runtime.GOARCH
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Machine{opts: o}
}

func (m *Machine) path(name string) string { return filepath.Join(m.opts.Root, name) }

// text reads a small file without surrounding blanks and NULs, "" when absent.
func (m *Machine) text(name string) string {
	raw, err := os.ReadFile(m.path(name))
	if err != nil {
		return ""
	}
	return strings.Trim(string(raw), "\x00 \n\t")
}

// Facts says what the machine is.
func (m *Machine) Facts(ctx context.Context) (Facts, error) {
	i, err := target.Probe(ctx, target.Options{Root: m.opts.Root, Arch: m.opts.Arch, Run: m.opts.Run})
	if err != nil {
		return Facts{}, err
	}
	return Facts{Target: i.Target, Hardware: i.Model, Serial: i.Serial, BootID: m.bootID()}, nil
}

const commandTimeout = 10 * time.Second

// Command runs a command of the host for a short time.
func Command(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", name, err)
	}
	return out, nil
}

// CommandWith runs a command of the host with text on its standard input and
// returns all that it printed.
func CommandWith(ctx context.Context, stdin, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay, cmd.Stdin = time.Second, strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("run %s: %w", name, err)
	}
	return out, nil
}

func (m *Machine) bootID() uint64 {
	id := m.text("proc/sys/kernel/random/boot_id")
	if id == "" {
		return 0
	}
	sum := sha256.Sum256([]byte(id))
	return binary.BigEndian.Uint64(sum[:8])
}

// DiskFree returns the free bytes of the state folder's file system.
func (m *Machine) DiskFree() (int64, error) {
	dir := m.opts.StateDir
	if dir == "" {
		dir = m.opts.Root
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

const (
	lineLife   = 5 * time.Second
	restartMin = 2 * time.Second
	restartMax = 5 * time.Minute
)

// Run keeps tegrastats going until ctx ends; where it is not installed, it
// only waits.
func (m *Machine) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	if command := m.nvmlCommand(); len(command) > 0 {
		wg.Go(func() { m.keepNVML(ctx, command) })
	}
	command := m.opts.Tegrastats
	if len(command) == 0 {
		found, err := exec.LookPath("tegrastats")
		if err != nil {
			<-ctx.Done()
			return nil
		}
		command = []string{found, "--interval", "1000"}
	}
	m.keep(ctx, "tegrastats", func() error { return m.follow(ctx, command) })
	return nil
}

// errNoMore is returned by a child that is not to be started again.
var errNoMore = errors.New("nothing to read")

// keep runs a child again, after a pause that grows, until ctx ends.
func (m *Machine) keep(ctx context.Context, name string, run func() error) {
	for wait := restartMin; ; wait = min(2*wait, restartMax) {
		started := time.Now()
		err := run()
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errNoMore) {
			m.opts.Logger.Info(name+" is not started again", "cause", err)
			return
		}
		if time.Since(started) > restartMax {
			wait = restartMin
		}
		m.opts.Logger.Warn(name+" ended", "error", err, "again", wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// follow keeps the newest line of one run of tegrastats.
func (m *Machine) follow(ctx context.Context, command []string) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.WaitDelay = 2 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", command[0], err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", command[0], err)
	}
	// A grandchild that outlives the kill must not hold the read.
	stop := context.AfterFunc(ctx, func() { out.Close() })
	defer stop()
	err = tegra.Lines(ctx, out, func(line string, bad error) error {
		if bad == nil {
			m.mu.Lock()
			m.line, m.lineAt = line, m.opts.Now()
			m.mu.Unlock()
		}
		return nil
	})
	return errors.Join(err, cmd.Wait())
}

// Line is the newest line of tegrastats, or the load and memory where there is
// none, for people who look at what happened.
func (m *Machine) Line() string {
	m.mu.Lock()
	line, age := m.line, m.opts.Now().Sub(m.lineAt)
	m.mu.Unlock()
	if line != "" && age >= 0 && age < lineLife {
		return line
	}
	mem := m.meminfo()
	if len(mem) == 0 {
		return ""
	}
	return fmt.Sprintf("load %s, %d of %d MiB of memory available", m.text("proc/loadavg"), mem["MemAvailable"]>>10, mem["MemTotal"]>>10)
}

// Readings measures now.
func (m *Machine) Readings(context.Context) ([]telemetry.Reading, error) {
	now := m.opts.Now()
	m.mu.Lock()
	line, age := m.line, now.Sub(m.lineAt)
	m.mu.Unlock()
	p := &proc{m: m, now: now}
	p.disk()
	p.network()
	p.uptime()
	if line != "" && age >= 0 && age < lineLife {
		return m.withGPUs(append(p.out, tegra.Readings(line, now)...), now), nil
	}
	p.cpu()
	p.memory()
	p.thermal()
	return m.withGPUs(p.out, now), nil
}

// meminfo returns /proc/meminfo in KiB.
func (m *Machine) meminfo() map[string]uint64 {
	raw, err := os.ReadFile(m.path("proc/meminfo"))
	if err != nil {
		return nil
	}
	out := map[string]uint64{}
	for l := range bytes.Lines(raw) {
		name, rest, ok := strings.Cut(string(l), ":")
		if !ok {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		if n, err := strconv.ParseUint(fields[0], 10, 64); err == nil {
			out[name] = n
		}
	}
	return out
}
