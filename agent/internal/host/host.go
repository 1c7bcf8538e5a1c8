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
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/telemetry"
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
	// Arch is the architecture, runtime.GOARCH when empty.
	Arch   string
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
}

// New returns the machine that the process runs on.
func New(o Options) *Machine {
	if o.Root == "" {
		o.Root = "/"
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

// chips maps the last part of the device tree's compatible to the SM version.
var chips = map[string]string{
	"nvidia,tegra210": "5.3", "nvidia,tegra186": "6.2", "nvidia,tegra194": "7.2", "nvidia,tegra234": "8.7", "nvidia,tegra264": "11.0",
}

var (
	l4tRE  = regexp.MustCompile(`^# R(\d+) \(release\), REVISION: (\d+(?:\.\d+)?),`)
	coreRE = regexp.MustCompile(`(?m)^Version: (\d+(?:\.\d+){1,2})-\d+$`)
	trtRE  = regexp.MustCompile(`^libnvinfer\.so\.(\d+\.\d+\.\d+)$`)
	cudaRE = regexp.MustCompile(`"cuda"\s*:\s*{[^}]*"version"\s*:\s*"(\d+\.\d+)`)
)

// Facts says what the machine is.
func (m *Machine) Facts(context.Context) (Facts, error) {
	t := ota.Target{OS: "linux", Arch: m.opts.Arch, Attrs: map[string]string{}}
	f := Facts{Hardware: m.text("proc/device-tree/model"), Serial: m.text("proc/device-tree/serial-number"), BootID: m.bootID()}
	if sm, jetson := m.chip(); jetson {
		m.jetsonTarget(&t, sm)
	} else {
		t.Attrs["ort"] = "1" // a CPU host serves ONNX
		if f.Hardware == "" {
			f.Hardware = strings.TrimSpace(m.text("sys/class/dmi/id/sys_vendor") + " " + m.text("sys/class/dmi/id/product_name"))
		}
		if f.Serial == "" {
			f.Serial = m.text("sys/class/dmi/id/product_serial")
		}
	}
	// Reading back catches what a file put into an attribute.
	parsed, err := ota.ParseTarget(t.String())
	if err != nil {
		return Facts{}, fmt.Errorf("probe target: %w", err)
	}
	f.Target = parsed
	return f, nil
}

// chip looks at the device tree; the SM is empty for a Jetson not known here.
func (m *Machine) chip() (sm string, jetson bool) {
	for c := range strings.SplitSeq(m.text("proc/device-tree/compatible"), "\x00") {
		if sm, ok := chips[c]; ok {
			return sm, true
		}
		if strings.HasPrefix(c, "nvidia,tegra") {
			jetson = true
		}
	}
	return "", jetson || m.l4t() != ""
}

// l4t returns the release of the board support package, as in 36.4.4: from its
// own file, or from the version of its package where images leave that out.
func (m *Machine) l4t() string {
	first, _, _ := strings.Cut(m.text("etc/nv_tegra_release"), "\n")
	if g := l4tRE.FindStringSubmatch(first); g != nil {
		return g[1] + "." + g[2]
	}
	_, pkg, _ := strings.Cut("\n"+m.text("var/lib/dpkg/status"), "\nPackage: nvidia-l4t-core\n")
	pkg, _, _ = strings.Cut(pkg, "\n\n")
	if g := coreRE.FindStringSubmatch(pkg); g != nil {
		return g[1]
	}
	return ""
}

func (m *Machine) jetsonTarget(t *ota.Target, sm string) {
	set := func(key, value string) {
		if value != "" {
			t.Attrs[key] = value
		}
	}
	set("sm", sm)
	set("l4t", m.l4t())
	for _, dir := range []string{"usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu"} {
		entries, err := os.ReadDir(m.path(dir))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if g := trtRE.FindStringSubmatch(e.Name()); g != nil {
				set("trt", g[1])
			}
		}
	}
	if g := cudaRE.FindStringSubmatch(m.text("usr/local/cuda/version.json")); g != nil {
		set("cuda", g[1])
	}
	if kib := m.meminfo()["MemTotal"]; kib > 0 {
		set("mem", strconv.FormatUint(moduleGiB(kib), 10))
	}
	if sm == "7.2" || sm == "8.7" {
		dla := 0
		for _, n := range []string{"0", "1"} {
			if matches, _ := filepath.Glob(m.path("sys/devices/platform/*/*.nvdla" + n)); len(matches) > 0 {
				dla++
			}
		}
		set("dla", strconv.Itoa(dla))
	}
}

// moduleGiB rounds up what the kernel has to a size that modules are sold in:
// carve-outs take up to an eighth.
func moduleGiB(kib uint64) uint64 {
	gib := float64(kib) / (1 << 20)
	for _, size := range []uint64{2, 4, 8, 16, 32, 64, 128} {
		if gib <= float64(size) {
			return size
		}
	}
	return uint64(gib + 0.5)
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
	command := m.opts.Tegrastats
	if len(command) == 0 {
		found, err := exec.LookPath("tegrastats")
		if err != nil {
			<-ctx.Done()
			return nil
		}
		command = []string{found, "--interval", "1000"}
	}
	for wait := restartMin; ; wait = min(2*wait, restartMax) {
		started := time.Now()
		err := m.follow(ctx, command)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(started) > restartMax {
			wait = restartMin
		}
		m.opts.Logger.Warn("tegrastats ended", "error", err, "again", wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
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
		return append(p.out, tegra.Readings(line, now)...), nil
	}
	p.cpu()
	p.memory()
	p.thermal()
	return p.out, nil
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
