// Package stream serves blobs and trust metadata over the device link: it
// answers up/get with down/chunk. It owns what each device still waits for and
// in which order it is sent; the protocol is ota/stream's, who may read what is
// decided by the same Grants as over HTTPS.
//
// Invariants: Message never blocks the connection that it came by; what waits
// for one device and for all in the broker's queues is bounded; devices are
// served in turn, one message each; a device that reads slowly waits for itself
// alone. The façade imports it.
package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

// Link sends to devices. Send queues a message without waiting, or returns an
// error for a device without a session; Server.Sent is called when a message
// that it took has left or was dropped.
type Link interface {
	Send(device string, kind wire.Kind, payload []byte) error
}

// Blobs are the blobs themselves.
type Blobs interface {
	Open(ctx context.Context, d ota.Digest) (io.ReadSeekCloser, int64, error)
}

// Grants says whether a device may read a blob: nil, or why not.
type Grants interface {
	MayRead(ctx context.Context, device string, d ota.Digest) error
}

// Config of a Server. Link, Blobs, Grants and Metadata are required.
type Config struct {
	Link   Link
	Blobs  Blobs
	Grants Grants
	// Metadata returns one file of the trust repository, fs.ErrNotExist for
	// what is not there.
	Metadata func(name string) ([]byte, error)
	// Notice stores an event about a device whose request was refused.
	Notice   func(ctx context.Context, tenant, device, kind, message, attack string) error
	Logger   *slog.Logger
	Registry prometheus.Registerer

	Streams    int   // of one device: 4
	AllStreams int   // 512: each may have a file open
	Queued     int64 // bytes of one device in the broker's queue: 256 KiB
	AllQueued  int64 // of all: 64 MiB
	Rate       int64 // bytes per second of one device: 32 MiB
	AllRate    int64 // of all: 256 MiB
	Workers    int   // 2
	// Pace takes bytes for a device from rates that it shares with others and
	// returns how long the next must wait; nil shares nothing.
	Pace func(device string, bytes int) time.Duration
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	if c.Notice == nil {
		c.Notice = func(context.Context, string, string, string, string, string) error { return nil }
	}
	c.Streams = cmp.Or(c.Streams, 4)
	c.AllStreams = cmp.Or(c.AllStreams, 512)
	c.Queued = cmp.Or(c.Queued, 256<<10)
	c.AllQueued = cmp.Or(c.AllQueued, 64<<20)
	c.Rate = cmp.Or(c.Rate, 32<<20)
	c.AllRate = cmp.Or(c.AllRate, 256<<20)
	c.Workers = cmp.Or(c.Workers, 2)
}

const (
	maxRecent   = 16
	maxRequests = 32               // of one device that wait to be looked at; it asks again for more
	idleAfter   = 30 * time.Second // then a stream that nothing is asked of is closed
	busyWait    = 5 * time.Second  // what a refused device is told to wait
)

// Server answers requests of devices. Run does the work.
type Server struct {
	cfg     Config
	metrics *metrics

	mu       sync.Mutex // guards what follows
	turn     *sync.Cond // something may be in ready
	sessions map[string]uint64
	peers    map[string]*peer
	ready    []*peer // to be served, in turn
	queued   int64   // bytes in the broker's queues
	streams  int     // open, of all
	free     time.Time
	recent   []file // of metadata, so that streams of one file share its bytes
	stopped  bool
}

// state of a peer.
type state uint8

const (
	resting state = iota // nothing to do, or waiting for its queue or its rate
	inTurn               // in ready
	served               // by a worker
)

// peer is a device that has streams.
type peer struct {
	tenant, device string

	// guarded by Server.mu
	state    state
	done     bool // its session ended; whoever serves it closes it
	requests []*wire.Get
	more     bool  // its streams have blocks to send
	queued   int64 // bytes in the broker's queue
	free     time.Time
	timer    *time.Timer // wakes it when its rate allows, nil when none runs

	// of the worker that serves it
	streams []*source // next to be served first
}

// New returns a server that does nothing yet.
func New(c Config) (*Server, error) {
	if c.Link == nil || c.Blobs == nil || c.Grants == nil || c.Metadata == nil {
		return nil, errors.New("streams need Link, Blobs, Grants and Metadata")
	}
	c.setDefaults()
	s := &Server{cfg: c, sessions: map[string]uint64{}, peers: map[string]*peer{}}
	s.turn = sync.NewCond(&s.mu)
	s.metrics = newMetrics(c.Registry, s)
	return s, nil
}

// Message takes one payload of up/get. What is malformed or too much is
// dropped and told; the device asks again.
func (s *Server) Message(ctx context.Context, tenant, device string, payload []byte) error {
	g := new(wire.Get)
	if err := wire.Unmarshal(payload, g); err != nil {
		s.metrics.refused.WithLabelValues("malformed").Inc()
		return s.cfg.Notice(ctx, tenant, device, "malformed", fmt.Sprintf("%s, %d bytes: %v", wire.UpGet, len(payload), err), "")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil
	}
	p := s.peers[device]
	if p == nil {
		p = &peer{tenant: tenant, device: device}
		s.peers[device] = p
	}
	if len(p.requests) >= maxRequests {
		s.metrics.refused.WithLabelValues("flood").Inc()
		return nil
	}
	p.requests = append(p.requests, g)
	s.wake(p)
	return nil
}

// Opened notes a new session of a device; what the old one asked for is gone.
func (s *Server) Opened(device string, session uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[device] = session
	s.drop(device)
}

// Closed notes the end of a session; an older one's end changes nothing.
func (s *Server) Closed(device string, session uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[device] != session {
		return
	}
	delete(s.sessions, device)
	s.drop(device)
}

// drop forgets a device. s.mu is held.
func (s *Server) drop(device string) {
	p := s.peers[device]
	if p == nil {
		return
	}
	delete(s.peers, device)
	p.done = true
	s.queued -= p.queued
	if p.timer != nil {
		p.timer.Stop()
	}
	if p.state != served { // else the worker does it
		s.closeAll(p)
	}
	s.turn.Broadcast()
}

// closeAll ends the streams of a peer that nobody serves. s.mu is held.
func (s *Server) closeAll(p *peer) {
	for _, src := range p.streams {
		src.close()
	}
	s.streams -= len(p.streams)
	p.streams = nil
}

// Sent notes that a message of so many bytes has left for a device, or was
// dropped by its queue.
func (s *Server) Sent(device string, bytes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[device]
	if p == nil {
		return
	}
	n := min(int64(bytes), p.queued) // of an older session otherwise
	p.queued -= n
	s.queued -= n
	s.wake(p)
}

// wake puts a peer in line if there is something to do for it now. s.mu is held.
func (s *Server) wake(p *peer) {
	if p.state != resting || p.done || len(p.requests) == 0 && !p.more {
		return
	}
	if len(p.requests) == 0 { // requests are looked at in any case
		if p.queued > 0 && (p.queued >= s.cfg.Queued || s.queued >= s.cfg.AllQueued) {
			return // Sent wakes it
		}
		if wait := time.Until(p.free); wait > 0 {
			if p.timer == nil {
				p.timer = time.AfterFunc(wait, func() {
					s.mu.Lock()
					defer s.mu.Unlock()
					p.timer = nil
					s.wake(p)
				})
			}
			return
		}
	}
	p.state = inTurn
	s.ready = append(s.ready, p)
	s.turn.Signal()
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stopped = true
		s.turn.Broadcast()
	})
	defer stop()
	var wg sync.WaitGroup
	for range s.cfg.Workers {
		wg.Go(func() { s.work(ctx) })
	}
	tick := time.NewTicker(idleAfter / 2)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			s.sweep(time.Now())
		}
	}
	wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for device := range s.peers {
		s.drop(device)
	}
	return nil
}

// sweep closes streams that nothing is asked of any more, and forgets devices
// without any.
func (s *Server) sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for device, p := range s.peers {
		if p.state != resting || p.more || len(p.requests) > 0 {
			continue
		}
		kept := p.streams[:0]
		for _, src := range p.streams {
			if now.Sub(src.used) < idleAfter {
				kept = append(kept, src)
				continue
			}
			src.close()
			s.streams--
		}
		p.streams = kept
		if len(kept) == 0 && p.queued == 0 {
			delete(s.peers, device)
		}
	}
}

// work serves one peer after the other.
func (s *Server) work(ctx context.Context) {
	for {
		s.mu.Lock()
		for len(s.ready) == 0 && !s.stopped {
			s.turn.Wait()
		}
		if s.stopped {
			s.mu.Unlock()
			return
		}
		p := s.ready[0]
		s.ready = s.ready[1:]
		if p.done {
			s.mu.Unlock()
			continue
		}
		p.state = served
		requests := p.requests
		p.requests = nil
		s.mu.Unlock()

		s.serve(ctx, p, requests)

		s.mu.Lock()
		p.state = resting
		if p.done {
			s.closeAll(p)
		}
		s.wake(p)
		s.mu.Unlock()
	}
}
