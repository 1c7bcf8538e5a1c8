package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/runtime/mock"
	"github.com/skein-fleet/skein/ota/slot"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/sim/plane"
)

// SiteOptions describe a site behind one thin line.
type SiteOptions struct {
	Devices   int
	KiB       int      // of the artifact
	Bandwidth int64    // of the line, bytes per second and direction
	Skeind    []string // command that starts skeind
	Dir       string   // for the data; empty: a temporary folder
	Progress  func(format string, args ...any)
}

const (
	siteCopiesGoal = 1.1
	siteTimeout    = 10 * time.Minute
	siteAtOnce     = 32 // enrolments, assignments
)

// Site lets all devices of a site install one release over a line that they
// share, one of them being the site's cache, and counts the copies of it that
// came over the line.
func Site(ctx context.Context, o SiteOptions) (figures []Figure, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, siteTimeout, fmt.Errorf("not done after %s", siteTimeout))
	defer cancel()
	dir, err := os.MkdirTemp(o.Dir, "skein-bench-site-")
	if err != nil {
		return nil, fmt.Errorf("make a data folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &agentRun{o: AgentOptions{Skeind: o.Skeind, Progress: o.Progress}, dir: dir}
	if r.plane, err = plane.Child(ctx, o.Skeind, filepath.Join(dir, "skeind")); err != nil {
		return nil, err
	}
	defer r.plane.Close()
	release, err := r.largeRelease(ctx, int64(o.KiB)<<10, streamTarget)
	if err != nil {
		return nil, err
	}
	s := &siteRun{run: r, o: o, line: &sharedLine{rate: o.Bandwidth}}
	if err := s.enroll(ctx); err != nil {
		return nil, err
	}
	actx, stop := context.WithCancel(ctx)
	var agents sync.WaitGroup
	defer agents.Wait()
	defer stop()
	var failed atomic.Pointer[error]
	for _, a := range s.agents {
		agents.Go(func() {
			if err := a.Run(actx); err != nil {
				failed.Store(&err)
			}
		})
	}
	if err := s.install(ctx, release, &failed); err != nil {
		return r.figures, err
	}
	return r.figures, s.measure()
}

// siteRun is the devices of one site; the first is the cache.
type siteRun struct {
	run    *agentRun
	o      SiteOptions
	line   *sharedLine
	agents []*agent.Agent
	ids    []string
	blobs  atomic.Int64 // bytes of blobs that came over the line
	took   time.Duration
	before int64 // bytes on the line before the release was assigned
}

// each runs do for all devices, some at once, until one fails.
func (s *siteRun) each(ctx context.Context, do func(ctx context.Context, n int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := atomic.Int64{}
	var wg sync.WaitGroup
	for range siteAtOnce {
		wg.Go(func() {
			for n := int(next.Add(1)) - 1; n < s.o.Devices && ctx.Err() == nil; n = int(next.Add(1)) - 1 {
				if err := do(ctx, n); err != nil {
					cancel(fmt.Errorf("device %d: %w", n+1, err))
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (s *siteRun) enroll(ctx context.Context) error {
	claim, err := s.run.plane.Operator().Claim(ctx, s.o.Devices, map[string]string{"site": "factory"})
	if err != nil {
		return err
	}
	s.o.Progress("%d devices enrol", s.o.Devices)
	s.agents, s.ids = make([]*agent.Agent, s.o.Devices), make([]string, s.o.Devices)
	return s.each(ctx, func(ctx context.Context, n int) error {
		files := slot.NewMem()
		name := fmt.Sprintf("cam-%04d", n+1)
		id, err := agent.Enroll(ctx, agent.EnrollOptions{ServerURL: s.run.plane.DeviceURL, Claim: claim, Name: name, Serial: name, Target: streamTarget, Files: files})
		if err != nil {
			return err
		}
		s.ids[n] = id.DeviceID
		o := agent.Options{
			Identity: id, Dial: s.line.dial, WrapHTTP: s.wrap, WrapLink: func(l agent.Link) agent.Link { return chunkLink{l, s} }, Host: streamHost{}, Files: files,
			Runtime: mock.New(mock.Options{}), Logger: slog.New(slog.DiscardHandler), TelemetryEvery: time.Hour, BlockEvery: time.Hour, CheckEvery: time.Minute, SoakEvery: time.Second,
		}
		if n == 0 {
			o.PeerListen = "127.0.0.1:0"
		}
		s.agents[n], err = agent.New(o)
		return err
	})
}

// poll looks once a second until done.
func (s *siteRun) poll(ctx context.Context, failed *atomic.Pointer[error], what string, done func() (ok bool, progress string)) error {
	for i := 0; ; i++ {
		ok, progress := done()
		if ok {
			return nil
		}
		if i%10 == 9 {
			s.o.Progress("waiting for %s: %s", what, progress)
		}
		if err := failed.Load(); err != nil {
			return fmt.Errorf("an agent ended: %w", *err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: waited for %s: %s", context.Cause(ctx), what, progress)
		case <-time.After(time.Second):
		}
	}
}

// install makes the cache, assigns the release to all and waits until all run it.
func (s *siteRun) install(ctx context.Context, release string, failed *atomic.Pointer[error]) error {
	op := s.run.plane.Operator()
	err := s.poll(ctx, failed, "the devices to be online", func() (bool, string) {
		devices, err := op.Devices(ctx, "state=online")
		return err == nil && len(devices) >= s.o.Devices, fmt.Sprintf("%d are", len(devices))
	})
	if err != nil {
		return err
	}
	if _, err := op.Fleet.LabelDevice(ctx, &fleetv1.LabelDeviceRequest{Device: s.ids[0], Grant: []string{"cache"}}); err != nil {
		return fmt.Errorf("make a cache: %w", err)
	}
	err = s.poll(ctx, failed, "the cache to serve", func() (bool, string) {
		r, err := op.Fleet.GetDevice(ctx, &fleetv1.GetDeviceRequest{Device: s.ids[0]})
		return err == nil && len(r.GetDevice().GetServes()) > 0, ""
	})
	if err != nil {
		return err
	}
	s.o.Progress("all are online, the release is assigned")
	start := time.Now()
	s.before = s.line.bytes.Load()
	err = s.each(ctx, func(ctx context.Context, n int) error {
		_, err := op.Fleet.AssignRelease(ctx, &fleetv1.AssignReleaseRequest{Device: s.ids[n], Release: release})
		return err
	})
	if err != nil {
		return fmt.Errorf("assign the release: %w", err)
	}
	err = s.poll(ctx, failed, "all to run it", func() (bool, string) {
		n, last := 0, ""
		for _, a := range s.agents {
			if st := a.Status(); st.Running == release {
				n++
			} else {
				last = fmt.Sprintf("%s %q", st.Summary, st.Reasons)
			}
		}
		return n == s.o.Devices, fmt.Sprintf("%d do, the last: %s", n, last)
	})
	s.took = time.Since(start)
	return err
}

// measure makes the figures.
func (s *siteRun) measure() error {
	by := map[string]int64{}
	var whole int64 // what a device needs
	for _, a := range s.agents {
		st := a.Status()
		if whole == 0 || st.BytesFetched < whole {
			whole = st.BytesFetched
		}
		for _, src := range st.Sources {
			by[src.Name] += src.Bytes
		}
	}
	if whole < int64(s.o.KiB)<<10 {
		return fmt.Errorf("a device fetched %d bytes of an artifact of %d KiB", whole, s.o.KiB)
	}
	r := s.run
	r.add(figure("site.devices", float64(s.o.Devices), "devices"))
	r.add(figure("site.uplink_copies", float64(s.blobs.Load())/float64(whole), "copies").atMost(siteCopiesGoal))
	r.add(figure("site.uplink_all", float64(s.line.bytes.Load()-s.before)/1e6, "MB"))
	r.add(figure("site.by_peer", float64(by["peer"])/1e6, "MB"))
	r.add(figure("site.without_cache", float64(whole)*float64(s.o.Devices)/1e6, "MB"))
	r.add(figure("site.installed_after", s.took.Seconds(), "s"))
	return nil
}

// wrap counts the bytes of blobs that come by HTTPS.
func (s *siteRun) wrap(next http.RoundTripper) http.RoundTripper { return blobCounter{next, &s.blobs} }

type blobCounter struct {
	http.RoundTripper
	n *atomic.Int64
}

// RoundTrip implements http.RoundTripper.
func (c blobCounter) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(r)
	if err == nil && strings.Contains(r.URL.Path, "/blobs/") {
		resp.Body = countedBody{resp.Body, c.n}
	}
	return resp, err
}

// CloseIdleConnections passes on what the agent asks for.
func (c blobCounter) CloseIdleConnections() {
	if t, ok := c.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

// Read implements io.Reader.
func (b countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// chunkLink counts what comes over the device link in place of HTTPS.
type chunkLink struct {
	agent.Link
	s *siteRun
}

// Run implements agent.Link.
func (l chunkLink) Run(ctx context.Context, h agent.LinkHandler) error {
	deliver := h.Message
	h.Message = func(kind wire.Kind, payload []byte) {
		if kind == wire.DownChunk {
			l.s.blobs.Add(int64(len(payload)))
		}
		deliver(kind, payload)
	}
	return l.Link.Run(ctx, h)
}

// sharedLine is the line of a site: all connections over it share its rate.
type sharedLine struct {
	rate  int64
	bytes atomic.Int64

	mu       sync.Mutex // guards what follows
	up, down time.Time  // when all so far has passed
}

func (l *sharedLine) dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return lineConn{c, l}, nil
}

// pass waits until n more bytes have passed in one direction.
func (l *sharedLine) pass(free *time.Time, n int) {
	if n <= 0 {
		return
	}
	l.bytes.Add(int64(n))
	l.mu.Lock()
	now := time.Now()
	if free.Before(now) {
		*free = now
	}
	*free = free.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
	wait := free.Sub(now)
	l.mu.Unlock()
	time.Sleep(wait)
}

type lineConn struct {
	net.Conn
	line *sharedLine
}

// Read implements net.Conn.
func (c lineConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p[:min(len(p), 4<<10)])
	c.line.pass(&c.line.down, n)
	return n, err
}

// Write implements net.Conn.
func (c lineConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.line.pass(&c.line.up, n)
	return n, err
}
