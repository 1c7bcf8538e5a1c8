// Package containerd starts model servers as containers: it is a launcher of
// package serving over the containerd daemon of the host, and keeps the images
// they start from. It owns one containerd namespace, what it makes there
// (images, content, snapshots, leases, containers) and a folder of log files.
//
// Images come from the agent's own blobs or from a registry, by digest. What is
// unpacked is trusted only after the file system it lies on was synced, for
// containerd does not sync it. A container shares the host's network, because
// the kernels of many boards lack what bridges need, and has nothing else of the
// host: no capability, no new privileges, containerd's seccomp profile, a root
// it cannot write, a user that is not root, and a user namespace where kernel
// and runtime allow one.
//
// Invariants: containers go on when the agent or the daemon ends, and are found
// again by Adopt; a container that ended leaves no task, snapshot, mount or log
// behind; nothing unpacked by an interrupted try is ever started; what is in
// the namespace without a use is removed by Adopt. The root of the agent module
// and its command import it.
package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime"
)

// Defaults.
const (
	DefaultSocket    = "/run/containerd/containerd.sock"
	DefaultNamespace = "skein"
	shimRuntime      = "io.containerd.runc.v2"
)

// Ways of using user namespaces.
const (
	UserNSAuto = "auto" // where kernel, runtime and workload allow it
	UserNSOn   = "on"   // always; what cannot have one does not start
	UserNSOff  = "off"
)

// ErrNoDaemon is returned while containerd does not answer.
var ErrNoDaemon = errors.New("containerd does not answer")

// Options configure a launcher.
type Options struct {
	Socket    string // DefaultSocket when empty
	Namespace string // DefaultNamespace when empty; one agent owns it
	// Dir holds log files of containers; absolute.
	Dir string
	// Snapshotter is overlayfs when empty.
	Snapshotter string
	// Mounts are folders of the host that a workload may mount, they and what is
	// below them. One that ends in ":rw" may be mounted writable.
	Mounts []string
	// Devices are patterns (path.Match) of the device nodes that a workload may
	// have. Nil allows cameras, /dev/video*.
	Devices []string
	// UserNS is UserNSAuto when empty.
	UserNS string
	// CDIDirs hold CDI specifications, /etc/cdi and /var/run/cdi when nil.
	CDIDirs []string
	// HostRoot is / when empty: where board, NVIDIA runtime, cgroups and kernel
	// settings are looked at.
	HostRoot string
	// RuncRoot is where runc keeps its state, its default when empty; two
	// daemons on one host need one each.
	RuncRoot string
	// LogBytes bounds the log of one container, 1 MiB when 0.
	LogBytes int64
	// Registry makes requests to registries; nil is http.DefaultClient.
	Registry *http.Client
	Logger   *slog.Logger
}

func (o Options) withDefaults() Options {
	o.Socket = cmp.Or(o.Socket, DefaultSocket)
	o.Namespace = cmp.Or(o.Namespace, DefaultNamespace)
	o.Snapshotter = cmp.Or(o.Snapshotter, "overlayfs")
	o.UserNS = cmp.Or(o.UserNS, UserNSAuto)
	o.HostRoot = cmp.Or(o.HostRoot, "/")
	o.LogBytes = cmp.Or(o.LogBytes, 1<<20)
	if o.Devices == nil {
		o.Devices = []string{"/dev/video*"}
	}
	if o.CDIDirs == nil {
		o.CDIDirs = []string{"/etc/cdi", "/var/run/cdi"}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Launcher runs containers. It implements serving.Launcher and runtime.Images.
type Launcher struct {
	opts Options
	run  context.Context // ends with Close
	stop context.CancelFunc
	wg   sync.WaitGroup

	images sync.Mutex   // one change of images at a time
	making sync.RWMutex // read while a container is being made, so that no sweep takes what it is made of

	mu     sync.Mutex // guards what follows
	client *client.Client
	live   map[string]*instance // by container id
	closed bool
}

var (
	_ serving.Launcher = (*Launcher)(nil)
	_ runtime.Images   = (*Launcher)(nil)
)

// New returns a launcher; it does not need the daemon yet.
func New(o Options) (*Launcher, error) {
	o = o.withDefaults()
	if !filepath.IsAbs(o.Dir) {
		return nil, fmt.Errorf("folder for logs of containers %q: want an absolute path", o.Dir)
	}
	switch o.UserNS {
	case UserNSAuto, UserNSOn, UserNSOff:
	default:
		return nil, fmt.Errorf("user namespaces %q: want auto, on or off", o.UserNS)
	}
	run, stop := context.WithCancel(context.Background())
	return &Launcher{opts: o, run: run, stop: stop, live: map[string]*instance{}}, nil
}

const answerTimeout = 5 * time.Second

// dial returns the client and a context of our namespace, when the daemon answers.
func (l *Launcher) dial(ctx context.Context) (context.Context, *client.Client, error) {
	c, err := l.connect()
	if err != nil {
		return ctx, nil, err
	}
	ctx = namespaces.WithNamespace(ctx, l.opts.Namespace)
	look, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if _, err := c.Version(look); err != nil {
		return ctx, nil, l.down(err)
	}
	return ctx, c, nil
}

func (l *Launcher) connect() (*client.Client, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("the launcher of containers is closed")
	}
	if l.client == nil {
		c, err := client.New(l.opts.Socket, client.WithDefaultNamespace(l.opts.Namespace), client.WithTimeout(answerTimeout),
			client.WithExtraDialOpts([]grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
				Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}, MinConnectTimeout: time.Second,
			})}))
		if err != nil {
			return nil, l.down(err)
		}
		l.client = c
	}
	return l.client, nil
}

// down says what to do when the daemon does not answer.
func (l *Launcher) down(err error) error {
	return fmt.Errorf("%w at %s: %w (systemctl status containerd says why)", ErrNoDaemon, l.opts.Socket, err)
}

// told adds what to do to an error of a daemon that went away.
func (l *Launcher) told(err error) error {
	if errdefs.IsUnavailable(err) && !errors.Is(err, ErrNoDaemon) {
		return l.down(err)
	}
	return err
}

// Close lets go of all containers; they go on.
func (l *Launcher) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	c := l.client
	l.mu.Unlock()
	l.stop()
	l.wg.Wait()
	if c == nil {
		return nil
	}
	if err := c.Close(); err != nil {
		return fmt.Errorf("close the connection to containerd: %w", err)
	}
	return nil
}

// cleanTimeout bounds what is cleaned up when the caller's context has ended.
const cleanTimeout = 30 * time.Second

// lasting is ctx without its end, for cleaning up.
func lasting(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
}
