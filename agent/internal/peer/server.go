package peer

import (
	"cmp"
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/pki"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// ServerConfig is what a Server is made of.
type ServerConfig struct {
	Cache  *Cache
	Tenant string
	// TLS of this device; it takes devices of the tenant alone.
	Roots pki.Roots
	Now   pki.Now
	Cert  func() *tls.Certificate
	// Keys are the director's.
	Keys func() ([]crypto.PublicKey, error)
	// IndexSize returns the length of a release's index, 0 for unknown.
	IndexSize func(release ota.Digest) int64
	Logger    *slog.Logger
	// Stall is how long a client may take no byte; 0 means 30 s.
	Stall time.Duration
}

// Limits of a server.
const (
	maxConns = 1280
	// Transfers at a time; more wait. Siblings hold a place while the cache is
	// still fetching, so there is one for each device of a large site.
	maxTransfers = 1024
	maxOfOne     = 8 // transfers of one device, waiting ones included
	waitsFor     = 15 * time.Second
	headerTime   = 10 * time.Second
	idleTime     = 5 * time.Second
	pieceSize    = 16 << 10
)

// Server gives blobs to devices of the same tenant that show a grant.
type Server struct {
	cfg      ServerConfig
	closures closures
	slots    chan struct{}

	mu       sync.Mutex // guards what follows
	of       map[string]int
	closing  bool
	handlers sync.WaitGroup // joined when closing is set
}

// NewServer returns a server; it starts nothing.
func NewServer(c ServerConfig) *Server {
	c.Stall = cmp.Or(c.Stall, 30*time.Second)
	return &Server{
		cfg: c, slots: make(chan struct{}, maxTransfers), of: map[string]int{},
		closures: closures{cache: c.Cache, size: c.IndexSize, known: map[ota.Digest]*closure{}},
	}
}

// Serve answers on l, and lets the cache fetch, until ctx ends. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var cache sync.WaitGroup
	cache.Go(func() { s.cfg.Cache.Run(ctx) })
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+blobPath+"{digest}", s.blob) // and HEAD
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTime, IdleTimeout: idleTime, MaxHeaderBytes: 16 << 10,
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // HTTP/1.1
		ErrorLog:     slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelDebug),
		BaseContext:  func(net.Listener) context.Context { return ctx },
	}
	config := pki.PeerServer(s.cfg.Roots, s.cfg.Now, s.cfg.Cert, func(tenant, _ string) error {
		if tenant != s.cfg.Tenant {
			return fmt.Errorf("%w: it is of another tenant", pki.ErrPeer)
		}
		return nil
	})
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // nobody is left to hear of it
	err := srv.Serve(tls.NewListener(&limited{Listener: l, free: make(chan struct{}, maxConns)}, config))
	ended := !stop()
	cancel()
	_ = srv.Close()
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.handlers.Wait()
	cache.Wait()
	if ended && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve the site: %w", err)
}

// limited is a listener with so many connections at a time; more wait.
type limited struct {
	net.Listener
	free chan struct{}
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{c, sync.OnceFunc(func() { <-l.free })}, nil
}

type limitedConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// refusal is an answer other than a blob.
type refusal struct {
	status int
	error
}

func (r refusal) Unwrap() error { return r.error }

// begin reports whether a request is still answered; then handlers counts it.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.handlers.Add(1)
	}
	return !s.closing
}

func (s *Server) blob(w http.ResponseWriter, r *http.Request) {
	if !s.begin() {
		panic(http.ErrAbortHandler)
	}
	defer s.handlers.Done()
	tenant, device, err := pki.Device(*r.TLS)
	if err == nil {
		err = s.give(w, r, tenant, device)
	}
	if err == nil || r.Context().Err() != nil {
		return
	}
	status := http.StatusInternalServerError
	if re, ok := errors.AsType[refusal](err); ok {
		status = re.status
	}
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "2")
	}
	s.cfg.Logger.Debug("peer refused", "peer", device, "status", status, "error", err)
	http.Error(w, err.Error(), status)
}

// give answers one request, or returns why not. After the first byte it breaks
// off instead.
func (s *Server) give(w http.ResponseWriter, r *http.Request, tenant, device string) error {
	d, err := ota.ParseDigest(r.PathValue("digest"))
	if err != nil {
		return refusal{http.StatusNotFound, err}
	}
	keys, err := s.cfg.Keys()
	if err != nil {
		return refusal{http.StatusNotFound, fmt.Errorf("the director's keys are not known: %w", err)}
	}
	now, _ := s.cfg.Now()
	release, err := checkGrant(r.Header.Get(GrantHeader), keys, tenant, device, now)
	if err != nil {
		return refusal{http.StatusForbidden, err}
	}
	done, err := s.enter(r.Context(), device)
	if err != nil {
		return refusal{http.StatusServiceUnavailable, err}
	}
	defer done()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	blobs, err := s.closures.of(ctx, release)
	if err != nil {
		return refusal{http.StatusNotFound, err}
	}
	size, ok := blobs[d]
	if !ok {
		return refusal{http.StatusForbidden, fmt.Errorf("%w: %s is no blob of release %s", ErrGrant, d.Short(), release.Short())}
	}
	from, to, partial, err := byteRange(r.Header.Get("Range"), size)
	if err != nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", size))
		return refusal{http.StatusRequestedRangeNotSatisfiable, err}
	}
	return s.send(ctx, w, r, manifest.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: size}, from, to, partial)
}

func (s *Server) send(ctx context.Context, w http.ResponseWriter, r *http.Request, desc manifest.Descriptor, from, to int64, partial bool) error {
	var body io.ReadCloser
	if r.Method != http.MethodHead {
		var err error
		if body, err = s.cfg.Cache.Open(ctx, desc, from); err != nil {
			return refusal{http.StatusNotFound, err}
		}
		defer body.Close()
	}
	h := w.Header()
	h.Set("Content-Type", desc.MediaType)
	h.Set("Accept-Ranges", "bytes")
	h.Set("Content-Length", strconv.FormatInt(to-from, 10))
	status := http.StatusOK
	if partial {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, desc.Size))
		status = http.StatusPartialContent
	}
	w.WriteHeader(status)
	if body == nil {
		return nil
	}
	if err := s.copy(w, io.LimitReader(body, to-from), to-from); err != nil {
		s.cfg.Logger.Debug("transfer to a peer broke off", "blob", desc.Digest.Short(), "error", err)
		panic(http.ErrAbortHandler) // so that the client does not take it for the end
	}
	return nil
}

// copy writes n bytes; the client has Stall for each piece.
func (s *Server) copy(w http.ResponseWriter, r io.Reader, n int64) error {
	rc := http.NewResponseController(w)
	buf := make([]byte, pieceSize)
	for n > 0 {
		got, err := r.Read(buf)
		if got > 0 {
			if err := rc.SetWriteDeadline(time.Now().Add(s.cfg.Stall)); err != nil {
				return err
			}
			if _, err := w.Write(buf[:got]); err != nil {
				return err
			}
			if err := rc.Flush(); err != nil { // siblings see that it moves
				return err
			}
			n -= int64(got)
		}
		switch {
		case n <= 0:
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return rc.SetWriteDeadline(time.Time{})
}

// enter waits for a place among the transfers.
func (s *Server) enter(ctx context.Context, device string) (done func(), err error) {
	s.mu.Lock()
	if s.of[device] >= maxOfOne {
		s.mu.Unlock()
		return nil, fmt.Errorf("%d transfers of this device are under way", maxOfOne)
	}
	s.of[device]++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.of[device]--; s.of[device] == 0 {
			delete(s.of, device)
		}
	}
	t := time.NewTimer(waitsFor)
	defer t.Stop()
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots; leave() }, nil
	case <-t.C:
		leave()
		return nil, fmt.Errorf("%d transfers are under way", maxTransfers)
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}

// byteRange reads a header "bytes=A-B" or "bytes=A-" for a blob of a size.
func byteRange(header string, size int64) (from, to int64, partial bool, err error) {
	if header == "" {
		return 0, size, false, nil
	}
	bad := fmt.Errorf("range %.40q of a blob of %d bytes: want bytes=A-B", header, size)
	spec, ok := strings.CutPrefix(header, "bytes=")
	first, last, cut := strings.Cut(spec, "-")
	if !ok || !cut {
		return 0, 0, false, bad
	}
	a, err := strconv.ParseUint(first, 10, 62)
	if err != nil || int64(a) >= size {
		return 0, 0, false, bad
	}
	b := uint64(size - 1)
	if last != "" {
		if b, err = strconv.ParseUint(last, 10, 62); err != nil || b < a {
			return 0, 0, false, bad
		}
	}
	return int64(a), min(int64(b)+1, size), true, nil
}
