package containerd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// Levels of findings.
const (
	LevelOK   = "ok"
	LevelWarn = "warn" // works, with less
	LevelFail = "fail" // containers cannot run
)

// Finding is one thing that was looked at on a host.
type Finding struct {
	Check  string // containerd, snapshotter, runc, cgroup, seccomp, user namespaces, gpu
	Level  string
	Detail string
	Mend   string // what to do, empty when ok
}

// Check looks at what containers need on this host, before enrolment or after.
func Check(ctx context.Context, o Options) []Finding {
	if o.Dir == "" {
		o.Dir = "/nonexistent" // nothing is written
	}
	l, err := New(o)
	if err != nil {
		return []Finding{{"containerd", LevelFail, err.Error(), "correct the configuration"}}
	}
	defer l.Close()
	out := l.checkDaemon(ctx)
	return append(out, checkRunc(), l.checkCgroup(), l.checkSeccomp(), l.checkUserNS(), l.checkGPU())
}

func (l *Launcher) checkDaemon(ctx context.Context) []Finding {
	if !exists(l.opts.Socket) {
		return []Finding{{"containerd", LevelFail, "no socket at " + l.opts.Socket, "apt-get install containerd; systemctl enable --now containerd"}}
	}
	ctx, c, err := l.dial(ctx)
	if err != nil {
		return []Finding{{"containerd", LevelFail, err.Error(), "systemctl restart containerd"}}
	}
	look, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, l.opts.Namespace), answerTimeout)
	defer cancel()
	v, err := c.Version(look)
	if err != nil {
		return []Finding{{"containerd", LevelFail, l.down(err).Error(), "systemctl restart containerd"}}
	}
	out := []Finding{{"containerd", LevelOK, "version " + v.Version, ""}}
	root := l.roots(look, c)[snapshotPlugin+l.opts.Snapshotter]
	if _, err := c.SnapshotService(l.opts.Snapshotter).Stat(look, "skein-check"); err != nil && strings.Contains(err.Error(), "not loaded") {
		return append(out, Finding{"snapshotter", LevelFail, l.opts.Snapshotter + ": " + err.Error(), "load the kernel module overlay, or choose the snapshotter native"})
	}
	detail := l.opts.Snapshotter
	if root != "" {
		detail += " at " + root
		if free, err := freeBytes(root); err == nil {
			detail += fmt.Sprintf(", %d MiB free", free>>20)
		}
		return append(out, Finding{"snapshotter", LevelOK, detail, ""})
	}
	return append(out, Finding{"snapshotter", LevelFail, detail + ": containerd does not have it, or does not say where it keeps layers, so that they cannot be synced",
		"load the kernel module overlay and restart containerd"})
}

func checkRunc() Finding {
	major, minor, err := runcVersion()
	if err != nil {
		return Finding{"runc", LevelFail, err.Error(), "apt-get install runc"}
	}
	return Finding{"runc", LevelOK, fmt.Sprintf("version %d.%d", major, minor), ""}
}

func (l *Launcher) checkCgroup() Finding {
	root := filepath.Join(l.opts.HostRoot, "sys/fs/cgroup")
	if b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers")); err == nil {
		var missing []string
		for _, want := range []string{"memory", "cpu", "pids"} {
			if !bytes.Contains(b, []byte(want)) {
				missing = append(missing, want)
			}
		}
		if len(missing) > 0 {
			return Finding{"cgroup", LevelWarn, "version 2 without " + strings.Join(missing, ", "), "limits of these do not work; a kernel with these controllers has them"}
		}
		return Finding{"cgroup", LevelOK, "version 2 with " + string(bytes.TrimSpace(b)), ""}
	}
	var missing []string
	for dir, file := range map[string]string{"memory": "memory.limit_in_bytes", "cpu": "cpu.cfs_quota_us", "pids": "", "devices": ""} {
		if !exists(filepath.Join(root, dir, file)) {
			missing = append(missing, strings.TrimSuffix(dir+"/"+file, "/"))
		}
	}
	switch {
	case len(missing) == 4:
		return Finding{"cgroup", LevelFail, "no cgroups at " + root, "mount cgroups; systemd does"}
	case len(missing) > 0:
		return Finding{"cgroup", LevelWarn, "version 1 without " + strings.Join(missing, ", "), "limits of these do not work; a kernel with these controllers has them"}
	}
	return Finding{"cgroup", LevelOK, "version 1", ""}
}

func (l *Launcher) checkSeccomp() Finding {
	b, err := os.ReadFile(filepath.Join(l.opts.HostRoot, "proc/self/status"))
	if err != nil || !bytes.Contains(b, []byte("Seccomp:")) {
		return Finding{"seccomp", LevelFail, "the kernel has no seccomp", "a kernel with CONFIG_SECCOMP_FILTER"}
	}
	return Finding{"seccomp", LevelOK, "the kernel has it", ""}
}

func (l *Launcher) checkUserNS() Finding {
	if err := l.noUserNamespace(); err != nil {
		level := LevelWarn
		if l.opts.UserNS == UserNSOn {
			level = LevelFail
		}
		return Finding{"user namespaces", level, err.Error(), "containers run as a user of the host that is not root; a newer kernel or runc adds the namespace"}
	}
	return Finding{"user namespaces", LevelOK, "used for what is not root and has no GPU (" + l.opts.UserNS + ")", ""}
}

func (l *Launcher) checkGPU() Finding {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(l.opts.CDIDirs...), cdi.WithAutoRefresh(false))
	if err == nil {
		if all := gpuDevices(cache); len(all) > 0 {
			return Finding{"gpu", LevelOK, "CDI has " + strings.Join(all, ", "), ""}
		}
		if broken := cdiErrors(cache); broken != "" {
			return Finding{"gpu", LevelWarn, "CDI specifications cannot be read" + broken, "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"}
		}
	}
	switch shim := exists(filepath.Join(l.opts.HostRoot, nvidiaShim)); {
	case l.tegra() && shim:
		return Finding{"gpu", LevelOK, "by the NVIDIA runtime, without CDI", ""}
	case l.tegra():
		return Finding{"gpu", LevelFail, "a Jetson whose GPU no container gets", "apt-get install nvidia-container-toolkit; nvidia-ctk cdi generate --mode=csv --output=/etc/cdi/nvidia.yaml"}
	}
	return Finding{"gpu", LevelOK, "none for containers", ""}
}
