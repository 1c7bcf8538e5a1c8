// Package tap is the inference endpoint that applications on the device talk
// to: the KServe/Triton v2 protocol over HTTP/1.1 and gRPC on one unix socket
// or loopback port. It owns the forwarding to whatever serves, the limits on
// applications, the counters of their requests, and what is taken from them on
// the side: observations, samples, and a mirror to a challenger.
//
// Invariants: a request is answered by exactly one workload, pinned until its
// answer ended, so a switch drops and mixes none; a request that names a version
// is answered by that version or refused; no byte of an inference request is
// sent twice; model control is never forwarded; what is taken on the side never
// makes a request wait, and goes first when there is too much to do. Only the
// root of the agent module imports it.
package tap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
)

// Options configure a Tap. Endpoints and Listen are required.
type Options struct {
	// Endpoints is where requests go.
	Endpoints runtime.Endpoints
	// Loaded lists workloads that may be asked for by version beside the one
	// that serves: those that answer rightly. nil has none.
	Loaded func(ctx context.Context) []string
	// Listen is unix:PATH, or HOST:PORT on loopback.
	Listen string
	Logger *slog.Logger
	Limits Limits
	// Listening, when set, is called with the address once the tap answers.
	Listening func(addr net.Addr)
}

// Limits bound what applications may take. A zero field is its default.
type Limits struct {
	Concurrent int           // requests being answered, 64
	Queued     int           // requests that wait for one of those places, 256
	QueueTime  time.Duration // their longest wait, 1 s
	WaitServer time.Duration // longest wait for a server that is being started again, 2 s
	Body       int64         // bytes of a request, 64 MiB
	Memory     int64         // bytes held of all requests together, 96 MiB
	Conns      int           // open connections, 512
	BodyTime   time.Duration // for the whole body of a request, 1 min
	IdleTime   time.Duration // between two requests of a connection, 2 min
}

const (
	headerTime  = 10 * time.Second
	writeTime   = 30 * time.Second
	maxHeader   = 64 << 10
	maxStreams  = 128
	upstreamMax = 32 // idle connections kept to one server
)

func (l Limits) withDefaults() Limits {
	l.Concurrent = cmp.Or(l.Concurrent, 64)
	l.Queued = cmp.Or(l.Queued, 256)
	l.QueueTime = cmp.Or(l.QueueTime, time.Second)
	l.WaitServer = cmp.Or(l.WaitServer, 2*time.Second)
	l.Body = cmp.Or(l.Body, 64<<20)
	l.Memory = cmp.Or(l.Memory, 96<<20)
	l.Conns = cmp.Or(l.Conns, 512)
	l.BodyTime = cmp.Or(l.BodyTime, time.Minute)
	l.IdleTime = cmp.Or(l.IdleTime, 2*time.Minute)
	return l
}

// ErrAddress is returned for an address that the tap does not listen on.
var ErrAddress = errors.New("tap address")

// ErrInUse is returned when something else answers on the socket.
var ErrInUse = errors.New("something else answers on this socket")

// Tap is one endpoint. Make it with New, then call Run.
type Tap struct {
	opts  Options
	log   *slog.Logger
	gate  *gate
	plain *plainPool
	h2    *http.Transport
	stats *stats
	side  *side
}

// CheckAddress says whether the tap may listen on addr.
func CheckAddress(addr string) error {
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("%w %q: want an absolute path after unix:", ErrAddress, addr)
		}
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%w %q: want unix:PATH or HOST:PORT: %w", ErrAddress, addr, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("%w %q: %q is not loopback: requests to models are not authenticated, so the tap is not offered to the network", ErrAddress, addr, host)
	}
	return nil
}

// New prepares a tap; it starts nothing.
func New(o Options) (*Tap, error) {
	if err := CheckAddress(o.Listen); err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.Limits = o.Limits.withDefaults()
	t := &Tap{
		opts: o, log: o.Logger, stats: newStats(),
		gate:  newGate(o.Limits),
		plain: newPlainPool(upstreamMax),
		h2:    newH2(),
	}
	t.side = newSide(t)
	return t, nil
}

func newH2() *http.Transport {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return &http.Transport{
		Protocols: p, DisableCompression: true, IdleConnTimeout: 30 * time.Second,
		HTTP2:       &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 10 * time.Second, WriteByteTimeout: writeTime, MaxReadFrameSize: 1 << 18, MaxReceiveBufferPerStream: 1 << 20, MaxReceiveBufferPerConnection: 8 << 20},
		DialContext: (&net.Dialer{Timeout: dialTime}).DialContext,
	}
}

// Run listens and answers until ctx ends.
func (t *Tap) Run(ctx context.Context) error {
	l, err := listen(t.opts.Listen)
	if err != nil {
		return err
	}
	if f := t.opts.Listening; f != nil {
		f(l.Addr())
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { t.side.run(ctx) })
	err = t.serve(ctx, l)
	t.plain.close()
	t.h2.CloseIdleConnections()
	return err
}

func (t *Tap) serve(ctx context.Context, l net.Listener) error {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Handler: http.HandlerFunc(t.serveHTTP), Protocols: p,
		ReadHeaderTimeout: headerTime, IdleTimeout: t.opts.Limits.IdleTime, MaxHeaderBytes: maxHeader,
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReadFrameSize: 1 << 18, MaxReceiveBufferPerStream: 1 << 20, MaxReceiveBufferPerConnection: 4 << 20,
			SendPingTimeout: time.Minute, PingTimeout: 15 * time.Second, WriteByteTimeout: writeTime},
		ErrorLog: slog.NewLogLogger(t.log.Handler(), slog.LevelDebug),
	}
	f := &front{tap: t, conns: map[net.Conn]struct{}{}, h2: &handed{addr: l.Addr(), conns: make(chan net.Conn), ended: make(chan struct{})}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(f.h2); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
			t.log.Warn("serve HTTP/2", "error", err)
		}
	})
	err := f.run(ctx, &limitListener{Listener: l, free: make(chan struct{}, t.opts.Limits.Conns)})
	cancel()
	err = errors.Join(err, srv.Close())
	f.close()
	wg.Wait()
	if err != nil {
		return fmt.Errorf("serve the tap: %w", err)
	}
	return nil
}

// listen makes the unix socket anew, with mode 0660, or listens on loopback.
func listen(addr string) (net.Listener, error) {
	path, ok := strings.CutPrefix(addr, "unix:")
	if !ok {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("listen for applications: %w", err)
		}
		return l, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of the tap's socket: %w", err)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("listen for applications: %w: %s", ErrInUse, path)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&fs.ModeSocket == 0 {
		return nil, fmt.Errorf("listen for applications: %s is no socket: give another --tap", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the tap's old socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for applications: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for applications: %w", err), l.Close())
	}
	return l, nil
}

// serveHTTP takes requests of both protocols.
func (t *Tap) serveHTTP(w http.ResponseWriter, r *http.Request) {
	if isGRPC(r) {
		t.serveGRPC(w, r)
		return
	}
	t.servePlain(w, r)
}

func isGRPC(r *http.Request) bool {
	return r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc")
}
