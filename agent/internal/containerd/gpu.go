package containerd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/skein-fleet/skein/agent/runtime"
)

const (
	gpuKind    = "nvidia.com/gpu"
	gpuAll     = gpuKind + "=all"
	nvidiaShim = "/usr/bin/nvidia-container-runtime"
)

// gpu is how a container comes to its GPU: by CDI, by the NVIDIA runtime of
// older JetPacks, or not at all.
type gpu struct {
	cache   *cdi.Cache
	devices []string // CDI names
	shim    string   // path of the runtime instead of runc, empty for runc
}

// findGPU decides for "", "all", "none" or a CDI device. The specification is
// read here: daemons before 1.7 know nothing of CDI, later ones need it enabled.
func (l *Launcher) findGPU(want string) (gpu, error) {
	if want == "none" {
		return gpu{}, nil
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(l.opts.CDIDirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return gpu{}, fmt.Errorf("read CDI specifications: %w", err)
	}
	all := gpuDevices(cache)
	named := want != "" && want != "all"
	switch {
	case named && cache.GetDevice(want) != nil:
		return gpu{cache: cache, devices: []string{want}}, nil
	case named && len(all) > 0:
		return gpu{}, fmt.Errorf("%w: no device %s here; CDI specifications have %s", runtime.ErrIncompatible, want, strings.Join(all, ", "))
	case slices.Contains(all, gpuAll) && !named:
		return gpu{cache: cache, devices: []string{gpuAll}}, nil
	case len(all) > 0 && !named:
		return gpu{cache: cache, devices: all}, nil
	case l.tegra() && exists(filepath.Join(l.opts.HostRoot, nvidiaShim)) && (!named || strings.HasPrefix(want, gpuKind+"=")):
		return gpu{shim: nvidiaShim}, nil
	case want == "":
		return gpu{}, nil
	}
	return gpu{}, fmt.Errorf("%w: the workload wants a GPU (%s), and this host offers none to containers: no CDI specification in %s names %s%s; "+
		"nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml makes one", runtime.ErrIncompatible, want, strings.Join(l.opts.CDIDirs, ", "), gpuKind, cdiErrors(cache))
}

func gpuDevices(c *cdi.Cache) []string {
	var out []string
	for _, d := range c.ListDevices() {
		if strings.HasPrefix(d, gpuKind+"=") {
			out = append(out, d)
		}
	}
	return out
}

// cdiErrors says which specifications cannot be read.
func cdiErrors(c *cdi.Cache) string {
	var out []string
	for path, errs := range c.GetErrors() {
		for _, err := range errs {
			out = append(out, fmt.Sprintf("%s: %v", path, err))
		}
	}
	if len(out) == 0 {
		return ""
	}
	slices.Sort(out)
	return " (" + strings.Join(out, "; ") + ")"
}

// tegra says whether the host is a Jetson.
func (l *Launcher) tegra() bool {
	if exists(filepath.Join(l.opts.HostRoot, "etc/nv_tegra_release")) {
		return true
	}
	b, err := os.ReadFile(filepath.Join(l.opts.HostRoot, "proc/device-tree/compatible"))
	return err == nil && bytes.Contains(b, []byte("nvidia,tegra"))
}

// apply puts the GPU into a specification.
func (g gpu) apply(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	if g.shim != "" {
		for k, v := range map[string]string{"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "all"} {
			s.Process.Env = slices.DeleteFunc(s.Process.Env, func(e string) bool { return strings.HasPrefix(e, k+"=") })
			s.Process.Env = append(s.Process.Env, k+"="+v)
		}
		return nil
	}
	if len(g.devices) == 0 {
		return nil
	}
	for _, d := range g.devices {
		if _, _, _, err := parser.ParseQualifiedName(d); err != nil {
			return fmt.Errorf("CDI device %s: %w", d, err)
		}
	}
	if missing, err := g.cache.InjectDevices((*specs.Spec)(s), g.devices...); err != nil {
		return fmt.Errorf("give the container %s by CDI: %w (not found: %v)", strings.Join(g.devices, ", "), err, missing)
	}
	return nil
}
