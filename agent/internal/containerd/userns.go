package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// A user namespace maps the user of the workload and its groups to themselves,
// and root to a number that owns nothing. So files of images and of the host
// keep their owners and no layer is copied or shifted, while root of the
// container is nobody, and neither a set-uid program nor a hole in the runtime
// makes it the host's. A workload that is said to run as root, or that has a
// GPU (the hooks of both ways to it write into the container as root), has none.

// rootID is what root of a container is on the host.
const rootID = 2_000_000_000

// maxExtents is how many mappings kernels before 4.15 take.
const maxExtents = 5

// withUserNamespace is the last option: it must know all mounts.
func (l *Launcher) withUserNamespace(p *plan) oci.SpecOpts {
	return func(ctx context.Context, c oci.Client, r *containers.Container, s *oci.Spec) error {
		u := s.Process.User
		why := l.noUserNamespace()
		switch {
		case l.opts.UserNS == UserNSOff:
			return nil
		case why != nil:
		case u.UID == 0:
			why = errors.New("it runs as root")
		case p.gpu.shim != "" || len(p.gpu.devices) > 0:
			why = errors.New("it has a GPU")
		case len(u.AdditionalGids) > maxExtents-2:
			why = fmt.Errorf("its user is in %d groups", len(u.AdditionalGids))
		}
		if why != nil {
			if l.opts.UserNS == UserNSOn {
				return fmt.Errorf("no user namespace for the container, and this device's configuration asks for one: %w", why)
			}
			return nil
		}
		gids := []uint32{0}
		for _, g := range append([]uint32{u.GID}, u.AdditionalGids...) {
			if !slices.Contains(gids, g) {
				gids = append(gids, g)
			}
		}
		if err := oci.WithUserNamespace(mapping([]uint32{0, u.UID}), mapping(gids))(ctx, c, r, s); err != nil {
			return err
		}
		withoutRoot(s, p.w.Network != "none")
		return mountPoints(ctx, c, r, s)
	}
}

func mapping(ids []uint32) []specs.LinuxIDMapping {
	out := make([]specs.LinuxIDMapping, len(ids))
	for i, id := range ids {
		out[i] = specs.LinuxIDMapping{ContainerID: id, HostID: id, Size: 1}
		if id == 0 {
			out[i].HostID = rootID
		}
	}
	return out
}

// withoutRoot changes mounts that only root of the host may make.
func withoutRoot(s *oci.Spec, hostNetwork bool) {
	for i, m := range s.Mounts {
		switch {
		case m.Destination == "/dev/pts":
			s.Mounts[i].Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return strings.HasPrefix(o, "gid=") })
		case m.Destination == "/sys" && m.Type == "sysfs" && hostNetwork:
			// The network namespace is not the container's, so neither is its sysfs.
			s.Mounts[i] = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
		}
	}
}

// mountPoints makes what is mounted on, for root of the container cannot.
func mountPoints(ctx context.Context, c oci.Client, r *containers.Container, s *oci.Spec) error {
	mounts, err := c.SnapshotService(r.Snapshotter).Mounts(ctx, r.SnapshotKey)
	if err != nil {
		return fmt.Errorf("make mount points: %w", err)
	}
	err = mount.WithTempMount(ctx, mounts, func(dir string) error {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		for _, m := range s.Mounts {
			if below(m.Destination, "/dev", "/proc", "/sys", "/tmp", "/run") {
				continue // on a file system of the container itself
			}
			if err := mountPoint(root, strings.TrimPrefix(m.Destination, "/"), m); err != nil {
				return fmt.Errorf("%s: %w", m.Destination, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("make mount points in the container: %w", err)
	}
	return nil
}

func below(p string, dirs ...string) bool {
	return slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(p, d+"/") })
}

func mountPoint(root *os.Root, name string, m specs.Mount) error {
	if _, err := root.Stat(name); err == nil {
		return nil
	}
	if info, err := os.Stat(m.Source); m.Type == "bind" && err == nil && !info.IsDir() {
		if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		f, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}
	if err := root.MkdirAll(name, 0o755); err != nil || !slices.Contains(m.Options, "mode=1777") {
		return err
	}
	// runc gives what it mounts the mode of what was there.
	return root.Chmod(name, 0o777|os.ModeSticky)
}

var runcRE = regexp.MustCompile(`runc version (\d+)\.(\d+)`)

// noUserNamespace says why this host has none for containers, nil when it has.
func (l *Launcher) noUserNamespace() error {
	if !exists(filepath.Join(l.opts.HostRoot, "proc/self/ns/user")) {
		return errors.New("the kernel has no user namespaces")
	}
	b, err := os.ReadFile(filepath.Join(l.opts.HostRoot, "proc/sys/user/max_user_namespaces"))
	switch {
	case errors.Is(err, fs.ErrNotExist): // before 4.9 there is no such bound
	case err != nil:
		return fmt.Errorf("read how many user namespaces the kernel allows: %w", err)
	case string(bytes.TrimSpace(b)) == "0":
		return errors.New("the kernel is set to allow no user namespaces (user.max_user_namespaces)")
	}
	major, minor, err := runcVersion()
	if err != nil {
		return err
	}
	if major < 1 || major == 1 && minor < 1 {
		return fmt.Errorf("runc %d.%d cannot mount the agent's folders into one, 1.1 can", major, minor)
	}
	return nil
}

func runcVersion() (major, minor int, err error) {
	p, err := exec.LookPath("runc")
	if err != nil {
		for _, at := range []string{"/usr/sbin/runc", "/usr/bin/runc", "/usr/local/sbin/runc", "/usr/local/bin/runc"} {
			if exists(at) {
				p, err = at, nil
				break
			}
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("find runc: %w", err)
	}
	out, err := exec.Command(p, "--version").Output()
	if err != nil {
		return 0, 0, fmt.Errorf("ask runc for its version: %w", err)
	}
	m := runcRE.FindSubmatch(out)
	if m == nil {
		return 0, 0, fmt.Errorf("ask runc for its version: it says %.80q", out)
	}
	if major, err = strconv.Atoi(string(m[1])); err == nil {
		minor, err = strconv.Atoi(string(m[2]))
	}
	return major, minor, err
}
