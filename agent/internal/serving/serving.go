// Package serving runs model servers and is the runtime of a real device. It
// owns their life: ports on loopback for each generation, readiness, restarts
// with back-off, switching between requests, draining, memory watermarks, and
// taking over those that ran before the agent started. How a server is started
// is a Launcher's (processes, containers); how one is asked for a model is a
// dialect's (KServe v2, Triton).
//
// Invariants: a request that was let in is answered by the server it was let in
// to; nothing serves that was not loaded and found ready; no server is left
// that List does not show. The root of the agent module and its command import
// it, and the drivers for their ports.
package serving

import (
	"context"
	"io"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Spec is one server to start: a workload with its ports filled in.
type Spec struct {
	// Name is unique among running servers, and stable: a server that is started
	// again for the same workload has it too. It is made of [a-z0-9-].
	Name     string
	Workload runtime.Workload
	// Args, Env are rendered: no placeholder is left.
	Args []string
	Env  []string // KEY=VALUE
	// Dirs are folders of the host that the server reads, each at the same path.
	Dirs []string
	// Labels are kept with the server and given back by Adopt.
	Labels map[string]string
}

// Launcher starts model servers.
type Launcher interface {
	// Launch starts a server. It returns runtime.ErrIncompatible for what can
	// never start here.
	Launch(ctx context.Context, s Spec) (Instance, error)
	// Adopt returns servers that outlived the agent that started them.
	Adopt(ctx context.Context) ([]Adopted, error)
	// Close lets go of all; servers that may outlive the agent go on.
	Close() error
}

// Instance is one running server.
type Instance interface {
	// Done is closed when it has ended; then Exit says how.
	Done() <-chan struct{}
	Exit() Exit
	// Stop ends it: politely, and after grace by force. It returns when it has
	// ended and nothing of it is left.
	Stop(ctx context.Context, grace time.Duration) error
	// Usage measures it now.
	Usage(ctx context.Context) (Usage, error)
}

// Adopted is a server found running.
type Adopted struct {
	Name     string
	Labels   map[string]string
	Started  time.Time
	Instance Instance
}

// Exit says how a server ended.
type Exit struct {
	Code   int // exit status, -1 when a signal ended it
	Signal string
	// OOM: the kernel ended it for memory; Peak and Limit are in bytes, 0 when unknown.
	OOM         bool
	Peak, Limit int64
	Tail        []string // its last lines
	Err         error    // why nothing is known
}

// Usage is what a server uses.
type Usage struct {
	CPU     time.Duration // since its start
	Memory  int64         // bytes
	Pids    int
	OOMKill int // times the kernel ended something in it for memory
}

// Command is one command in a container of its own, which ends with it.
type Command struct {
	Name  string // unique, [a-z0-9-]
	Image manifest.Image
	Args  []string // all words of the command: the image's entrypoint and command are not used
	Env   []string // KEY=VALUE
	User  string   // UID or UID:GID; empty is the image's, which must not be root
	GPU   string   // as in a workload
	// Dirs are folders of the host that it reads, each at the same path; Outputs
	// are those that it writes, which are given to its user.
	Dirs, Outputs []string
	Devices       []string
	Resources     manifest.Resources
	// Network is none when empty.
	Network string
	// Output gets what it writes, as it comes.
	Output io.Writer
	// Grace is the time between SIGTERM and SIGKILL when ctx ends.
	Grace time.Duration
}
