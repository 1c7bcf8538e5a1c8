package containerd

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota/manifest"
)

// plan is what a container gets, decided before anything is made.
type plan struct {
	id      string
	w       manifest.Workload
	args    []string
	mode    argsMode
	env     []string
	dirs    []string // read only
	outputs []string // writable
	gpu     gpu
	once    bool
}

// plan decides what s gets here, or says why it cannot have it.
func (l *Launcher) plan(s serving.Spec, mode argsMode, outputs []string) (*plan, error) {
	w := *s.Workload.Spec
	p := &plan{id: containerID(s.Name), w: w, args: s.Args, mode: mode, env: s.Env, outputs: outputs, once: mode == argsReplaceAll}
	p.dirs = slices.DeleteFunc(slices.Clone(s.Dirs), func(d string) bool { return d == "" })
	for _, d := range slices.Concat(p.dirs, outputs) {
		if !filepath.IsAbs(d) || filepath.Clean(d) != d || d == "/" {
			return nil, fmt.Errorf("folder %q of the workload: want an absolute, clean path", d)
		}
	}
	for _, m := range w.Mounts {
		if err := l.allowMount(m); err != nil {
			return nil, err
		}
	}
	for _, d := range w.Devices {
		if err := l.allowDevice(d); err != nil {
			return nil, err
		}
	}
	var err error
	p.gpu, err = l.findGPU(w.GPU)
	return p, err
}

// allowMount checks a mount against the device's own list. What a path leads to
// decides, so a link out of an allowed folder does not help.
func (l *Launcher) allowMount(m manifest.Mount) error {
	real, err := filepath.EvalSymlinks(m.Source)
	if err != nil {
		return fmt.Errorf("mount %s: %w", m.Source, err)
	}
	for _, allowed := range l.opts.Mounts {
		dir, writable := strings.CutSuffix(allowed, ":rw")
		if root, err := filepath.EvalSymlinks(dir); err == nil {
			dir = root
		}
		if (real == dir || strings.HasPrefix(real, strings.TrimSuffix(dir, "/")+"/")) && (writable || !m.Writable) {
			return nil
		}
	}
	how := "read-only"
	if m.Writable {
		how = "writable"
	}
	return fmt.Errorf("%w: this device does not let workloads mount %s %s (its own configuration lists what it does)", runtime.ErrIncompatible, m.Source, how)
}

func (l *Launcher) allowDevice(device string) error {
	if !slices.ContainsFunc(l.opts.Devices, func(pattern string) bool { ok, err := path.Match(pattern, device); return ok && err == nil }) {
		return fmt.Errorf("%w: this device does not let workloads have %s (its own configuration lists what it does)", runtime.ErrIncompatible, device)
	}
	if !exists(device) {
		return fmt.Errorf("the workload wants the device %s, which is not there", device)
	}
	return nil
}

// specOpts build the OCI specification, strictest first; the GPU comes last,
// for it adds devices, mounts and hooks of its own.
func (l *Launcher) specOpts(img client.Image, p *plan) []oci.SpecOpts {
	opts := []oci.SpecOpts{
		oci.WithDefaultSpec(),
		withProcess(img, p),
		oci.WithCapabilities(nil),
		oci.WithNoNewPrivileges,
		oci.WithCgroup(cgroupPath(l.opts.Namespace, p.id)),
		oci.WithoutMounts("/run", "/dev/shm"),
		oci.WithMounts([]specs.Mount{
			tmpfs("/dev/shm", "256m", "noexec"),
			tmpfs("/tmp", "256m"),
			tmpfs("/run", "16m", "noexec"),
		}),
		oci.WithDefaultUnixDevices,
		withNetwork(p.w.Network),
		l.withFolders(p),
		l.withLimits(p.w.Resources),
	}
	if !p.w.WritableRoot {
		opts = append(opts, oci.WithRootFSReadonly())
	}
	for _, d := range p.w.Devices {
		opts = append(opts, oci.WithDevices(d, d, "rw"), withDeviceGroup(d))
	}
	return append(opts,
		seccomp.WithDefaultProfile(),
		p.gpu.apply,
		withPaths,
		l.withUserNamespace(p),
	)
}

func tmpfs(at, size string, more ...string) specs.Mount {
	return specs.Mount{Destination: at, Type: "tmpfs", Source: "tmpfs", Options: append([]string{"nosuid", "nodev", "mode=1777", "size=" + size}, more...)}
}

// withNetwork shares the host's network, or gives one with nothing in it.
func withNetwork(network string) oci.SpecOpts {
	return func(ctx context.Context, c oci.Client, r *containers.Container, s *oci.Spec) error {
		if network == "none" {
			return nil // the default specification has a network namespace, empty
		}
		opts := []oci.SpecOpts{oci.WithHostNamespace(specs.NetworkNamespace)}
		if exists("/etc/hosts") {
			opts = append(opts, oci.WithHostHostsFile)
		}
		if exists("/etc/resolv.conf") {
			opts = append(opts, oci.WithHostResolvconf)
		}
		return oci.ApplyOpts(ctx, c, r, s, opts...)
	}
}

// withFolders mounts folders of the agent and those of the host that were allowed.
func (l *Launcher) withFolders(p *plan) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		uid := s.Process.User.UID
		for _, d := range p.dirs {
			if uid != 0 {
				if err := letRead(d); err != nil {
					return err
				}
			}
			s.Mounts = append(s.Mounts, bind(d, d, false))
		}
		for _, d := range p.outputs {
			if err := os.Chown(d, int(uid), int(s.Process.User.GID)); err != nil {
				return fmt.Errorf("give a folder to the container: %w", err)
			}
			s.Mounts = append(s.Mounts, bind(d, d, true))
		}
		for _, m := range p.w.Mounts {
			s.Mounts = append(s.Mounts, bind(m.Source, m.Target, m.Writable))
		}
		return nil
	}
}

func bind(source, target string, writable bool) specs.Mount {
	options := []string{"rbind", "nosuid", "nodev", "ro"}
	if writable {
		options[3] = "rw"
	}
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: options}
}

// letRead lets a user of a container read what was staged. The agent's folder
// above it is closed to all but root, and stays so.
func letRead(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("let the container read its files: %w", err)
	}
	defer root.Close()
	var walk func(name string, info os.FileInfo) error
	walk = func(name string, info os.FileInfo) error {
		want := info.Mode().Perm()
		switch {
		case info.IsDir():
			want |= 0o055
		case info.Mode().IsRegular():
			want |= 0o044 | want>>3&0o011 | want>>6&0o011
		default:
			return nil
		}
		if want != info.Mode().Perm() {
			if err := root.Chmod(name, want); err != nil {
				return err
			}
		}
		if !info.IsDir() {
			return nil
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		entries, err := f.ReadDir(-1)
		f.Close()
		if err != nil {
			return err
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				return err
			}
			if err := walk(filepath.Join(name, e.Name()), info); err != nil {
				return err
			}
		}
		return nil
	}
	info, err := root.Lstat(".")
	if err == nil {
		err = walk(".", info)
	}
	if err != nil {
		return fmt.Errorf("let the container read its files: %w", err)
	}
	return nil
}

const cpuPeriod = 100_000 // µs

// withLimits bounds memory, CPU time and processes. Kernels of boards lack some
// controllers: without one for swap, memory alone is bounded; without a quota of
// CPU time, the share is.
func (l *Launcher) withLimits(r manifest.Resources) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		res := s.Linux.Resources
		root := filepath.Join(l.opts.HostRoot, "sys/fs/cgroup")
		v2 := exists(filepath.Join(root, "cgroup.controllers"))
		if r.MemoryMiB > 0 {
			limit := int64(r.MemoryMiB) << 20
			if !v2 && !exists(filepath.Join(root, "memory/memory.limit_in_bytes")) {
				return fmt.Errorf("%w: the workload wants a limit of memory, and this kernel has no memory controller", runtime.ErrIncompatible)
			}
			res.Memory = &specs.LinuxMemory{Limit: &limit}
			if v2 || exists(filepath.Join(root, "memory/memory.memsw.limit_in_bytes")) {
				res.Memory.Swap = &limit
			}
		}
		if r.CPUs > 0 {
			quota, period, shares := int64(r.CPUs*cpuPeriod), uint64(cpuPeriod), uint64(max(2, r.CPUs*1024))
			res.CPU = &specs.LinuxCPU{Shares: &shares}
			if v2 || exists(filepath.Join(root, "cpu/cpu.cfs_quota_us")) {
				res.CPU.Quota, res.CPU.Period = &quota, &period
			}
		}
		if r.Pids > 0 {
			pids := int64(r.Pids)
			res.Pids = &specs.LinuxPids{Limit: &pids}
		}
		return nil
	}
}

// withPaths hides more of the kernel than the default does.
func withPaths(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	for _, p := range []string{"/sys/firmware", "/proc/latency_stats", "/proc/scsi"} {
		if !slices.Contains(s.Linux.MaskedPaths, p) {
			s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, p)
		}
	}
	return nil
}
