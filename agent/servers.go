package agent

import (
	"io"
	"log/slog"

	"github.com/skein-fleet/skein/agent/internal/containerd"
	"github.com/skein-fleet/skein/agent/internal/process"
	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/internal/triton"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota/manifest"
)

// ContainerOptions say which containerd is used, and what containers may have of
// the host.
type ContainerOptions = containerd.Options

// ServersOptions say how a host serves models. Dir is required.
type ServersOptions struct {
	// Dir holds what is written for servers; absolute.
	Dir string
	// Command serves workloads that name no image and no command; TritonCommand
	// those that want Triton. Without either, none is started as a process.
	Command, TritonCommand []string
	// Containers run workloads with an image; nil runs none.
	Containers *ContainerOptions
	Logger     *slog.Logger
	// Memory returns how many bytes could be had now and how many there are.
	Memory func() (available, total int64)
}

// Servers is a runtime whose workloads are model servers of their own. Close
// lets go of them: processes end, containers go on.
type Servers interface {
	runtime.Runtime
	runtime.Endpoints
	runtime.Images
	runtime.ImageRunner
	commandRunner
	runtime.Watcher
	runtime.Reporter
	io.Closer
}

// NewServers returns a runtime; it starts nothing and needs no containerd yet.
func NewServers(o ServersOptions) (Servers, error) {
	var l serving.ByImage
	if len(o.Command)+len(o.TritonCommand) > 0 {
		l.Plain = process.New(process.Options{Logger: o.Logger})
	}
	if o.Containers != nil {
		c, err := containerd.New(*o.Containers)
		if err != nil {
			return nil, err
		}
		l.Image = c
	}
	return serving.New(serving.Options{
		Launcher: l, Dir: o.Dir, Command: o.Command, TritonCommand: o.TritonCommand, Logger: o.Logger, Memory: o.Memory,
		Dialects: map[string]serving.Dialect{manifest.ServerTriton: triton.Dialect{}},
	}), nil
}
