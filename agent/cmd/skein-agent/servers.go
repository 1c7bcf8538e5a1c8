package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/internal/containerd"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/mock"
)

// serverOptions say how models are served.
type serverOptions struct {
	runtime                     string
	modelCommand, tritonCommand string
	socket, namespace           string
	snapshotter, runcRoot       string
	mounts, devices             []string
	userNS                      string
}

func serverFlags(c *cobra.Command, o *serverOptions) {
	f := c.Flags()
	f.StringVar(&o.runtime, "runtime", "auto", "what runs model servers: containerd, process, auto (containers where containerd is, processes too), or mock for a device without any")
	f.StringVar(&o.modelCommand, "model-command", "", "command that serves a model over KServe v2, as \"server --addr {addr} --dir {dir}\"")
	f.StringVar(&o.tritonCommand, "triton-command", "", "command that starts Triton, as tritonserver, for releases that ask for it and name no image")
	f.StringVar(&o.socket, "containerd", containerd.DefaultSocket, "socket of containerd")
	f.StringVar(&o.namespace, "containerd-namespace", containerd.DefaultNamespace, "namespace in it, which is this agent's alone")
	f.StringVar(&o.snapshotter, "containerd-snapshotter", "overlayfs", "snapshotter of containerd")
	f.StringVar(&o.runcRoot, "runc-root", "", "where runc keeps its state, when it is not this machine's first containerd")
	f.StringArrayVar(&o.mounts, "allow-mount", nil, "folder that containers may mount, with what is below it; PATH:rw also writable")
	f.StringArrayVar(&o.devices, "allow-device", nil, "device nodes that containers may have, as /dev/video* (the default)")
	f.StringVar(&o.userNS, "user-namespaces", containerd.UserNSAuto, "auto, on or off: containers in user namespaces of their own")
}

// newRuntime returns what runs model servers, and its end.
func newRuntime(o runOptions, log *slog.Logger) (runtime.Runtime, func() error, error) {
	s := o.servers
	switch s.runtime {
	case "mock":
		return mock.New(mock.Options{}), func() error { return nil }, nil
	case "auto", "containerd", "process":
	default:
		return nil, nil, fmt.Errorf("%w: --runtime %q: want auto, containerd, process or mock", errUsage, s.runtime)
	}
	dir, err := filepath.Abs(o.state)
	if err != nil {
		return nil, nil, err
	}
	logs := filepath.Join(dir, "containers")
	servers := agent.ServersOptions{Dir: filepath.Join(dir, "serving"), Logger: log,
		Memory: func() (int64, int64) { return memory(filepath.Join(o.root, "proc/meminfo")) }}
	if s.runtime != "containerd" {
		servers.Command, servers.TritonCommand = strings.Fields(s.modelCommand), strings.Fields(s.tritonCommand)
	}
	// Where containers ran before, they may run still.
	if s.runtime == "containerd" || s.runtime == "auto" && (exists(s.socket) || exists(logs)) {
		servers.Containers = &agent.ContainerOptions{
			Socket: s.socket, Namespace: s.namespace, Snapshotter: s.snapshotter, RuncRoot: s.runcRoot,
			Dir: logs, Mounts: s.mounts, Devices: s.devices, UserNS: s.userNS, Logger: log,
		}
	}
	if servers.Containers == nil && len(servers.Command)+len(servers.TritonCommand) == 0 {
		return nil, nil, fmt.Errorf("%w: nothing here serves models: give --model-command, start containerd (%s), or choose --runtime mock", errUsage, s.socket)
	}
	rt, err := agent.NewServers(servers)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	return rt, rt.Close, nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return !errors.Is(err, fs.ErrNotExist)
}

// memory reads how many bytes could be had and how many there are, zero when
// that cannot be read.
func memory(meminfo string) (available, total int64) {
	f, err := os.Open(meminfo)
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		switch {
		case err != nil:
		case name == "MemTotal":
			total = n << 10
		case name == "MemAvailable":
			available = n << 10
		}
	}
	return available, total
}
