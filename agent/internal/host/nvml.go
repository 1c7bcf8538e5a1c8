package host

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/skein-fleet/skein/telemetry"
	"github.com/skein-fleet/skein/telemetry/probe/nvml"
)

const (
	// nvmlSilence is how long skein-nvml may say nothing: then its driver hangs.
	nvmlSilence = 10 * time.Second
	nvmlLine    = 64 << 10
)

// nvmlLibraries are where the library is, as L4T and Debian put it.
var nvmlLibraries = []string{
	"usr/lib/aarch64-linux-gnu/libnvidia-ml.so.1", "usr/lib/aarch64-linux-gnu/nvidia/libnvidia-ml.so.1", "usr/lib/aarch64-linux-gnu/tegra/libnvidia-ml.so.1",
	"usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "usr/lib64/libnvidia-ml.so.1", "usr/lib/wsl/lib/libnvidia-ml.so.1",
}

// nvmlCommand is the child that reads NVML: as configured, else skein-nvml
// beside this program where the library is. Empty means none.
func (m *Machine) nvmlCommand() []string {
	if len(m.opts.NVML) > 0 {
		return m.opts.NVML
	}
	for _, name := range nvmlLibraries {
		if _, err := os.Stat(m.path(name)); err != nil {
			continue
		}
		self, err := os.Executable()
		if err != nil {
			return nil
		}
		program := filepath.Join(filepath.Dir(self), "skein-nvml")
		if _, err := os.Stat(program); err != nil {
			if program, err = exec.LookPath("skein-nvml"); err != nil {
				return nil
			}
		}
		return []string{program, "-library", m.path(name)}
	}
	return nil
}

// keepNVML keeps skein-nvml going until ctx ends. It is not started again
// where it says that there is nothing to read.
func (m *Machine) keepNVML(ctx context.Context, command []string) {
	m.keep(ctx, "skein-nvml", func() error {
		err := m.followNVML(ctx, command)
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && (exit.ExitCode() == nvml.ExitNoLibrary || exit.ExitCode() == nvml.ExitNoGPU) {
			return fmt.Errorf("%w: %w", errNoMore, err)
		}
		return err
	})
}

// followNVML keeps the newest report of one run. A child that is silent is
// killed; it may hang in a driver for good, so nobody waits for it long.
func (m *Machine) followNVML(ctx context.Context, command []string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.WaitDelay = 2 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", command[0], err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", command[0], err)
	}
	defer context.AfterFunc(ctx, func() { out.Close() })()
	silence := time.AfterFunc(m.nvmlSilence(), func() { cancel(errors.New("it said nothing: its driver hangs")) })
	defer silence.Stop()
	in := bufio.NewScanner(out)
	in.Buffer(make([]byte, 0, 4<<10), nvmlLine)
	for in.Scan() {
		r, perr := nvml.Parse(in.Bytes())
		if perr != nil {
			cancel(perr)
			break
		}
		silence.Reset(m.nvmlSilence())
		m.mu.Lock()
		m.gpus, m.gpusAt = r, m.opts.Now()
		m.mu.Unlock()
	}
	err = cmd.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return errors.Join(cause, err)
	}
	return errors.Join(in.Err(), err)
}

func (m *Machine) nvmlSilence() time.Duration {
	if m.opts.NVMLSilence > 0 {
		return m.opts.NVMLSilence
	}
	return nvmlSilence
}

// withGPUs adds what NVML says and no other probe did.
func (m *Machine) withGPUs(out []telemetry.Reading, now time.Time) []telemetry.Reading {
	m.mu.Lock()
	r, age := m.gpus, now.Sub(m.gpusAt)
	m.mu.Unlock()
	if len(r.GPUs) == 0 || age < 0 || age >= lineLife {
		return out
	}
	known := map[string]bool{}
	for _, x := range out {
		known[x.Series.String()] = true
	}
	for _, x := range r.Readings(now) {
		if !known[x.Series.String()] {
			out = append(out, x)
		}
	}
	return out
}
