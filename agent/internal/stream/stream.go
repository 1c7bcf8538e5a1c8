// Package stream brings blobs and trust metadata over the device link, for
// networks that let nothing else through. It owns the streams that are open,
// and what is known of the speed of the way; the protocol itself is
// ota/stream's.
//
// Invariants: Message never blocks the link; memory is Span a stream at most;
// a reader that is closed leaves no goroutine behind. The agent imports it.
package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/stream"
	"github.com/skein-fleet/skein/proto/wire"
)

// Config of a Source. Publish and NextID are required.
type Config struct {
	// Publish sends on the link and returns when the other side has it.
	Publish func(ctx context.Context, kind wire.Kind, payload []byte) error
	// NextID numbers messages.
	NextID func() wire.MessageID
	// Span is how many bytes of a stream are kept unread or out of order; 0
	// means 8 MiB.
	Span int64
}

const (
	defaultSpan = 8 << 20
	publishers  = 4 // requests of one stream that wait for their acknowledgement
	holdMin     = time.Second
	holdMax     = 15 * time.Second
	stopTime    = 2 * time.Second
	sameTries   = 3 // for a file that changes while it is read
)

// Stats count blocks of all streams.
type Stats struct {
	stream.Stats
	Lies int64 // messages that cannot be
}

// Source is the way to blobs over the link. It implements fetch.Source and, by
// Metadata, trust.MetadataSource.
type Source struct {
	cfg Config

	mu    sync.Mutex // guards what follows and the receivers
	pace  stream.Pace
	last  uint64 // number of the newest stream
	open  map[uint64]*reader
	stats Stats
}

// New returns a source over a link.
func New(c Config) *Source {
	if c.Span == 0 {
		c.Span = defaultSpan
	}
	return &Source{cfg: c, open: map[uint64]*reader{}}
}

// Stats returns what was received since the source was made.
func (s *Source) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	for _, r := range s.open {
		st.Stats = sum(st.Stats, r.recv.Stats())
	}
	return st
}

func sum(a, b stream.Stats) stream.Stats {
	return stream.Stats{Blocks: a.Blocks + b.Blocks, Again: a.Again + b.Again, Doubled: a.Doubled + b.Doubled}
}

// Message takes one payload of down/chunk.
func (s *Source) Message(payload []byte) {
	var c wire.Chunk
	err := wire.Unmarshal(payload, &c)
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.open[c.Stream]
	switch {
	case err != nil:
		s.stats.Lies++
		return
	case r == nil: // of a stream that was closed
		s.stats.Doubled++
		return
	}
	if r.recv.Take(time.Now(), &c) != nil {
		s.stats.Lies++
		return
	}
	r.arrived.set()
	r.wake.set()
}

// Reconnected tells that the link has a new connection: what was on its way is
// gone with the old one.
func (s *Source) Reconnected() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pace.Forget()
	for _, r := range s.open {
		r.recv.Lost()
		r.hold, r.failures = time.Time{}, 0
		r.wake.set()
	}
}

// Open implements fetch.Source. It returns when the first bytes are here.
func (s *Source) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	r, err := s.start(ctx, stream.Config{Digest: d.Sum(), Offset: offset, Length: length})
	if err == nil {
		err = r.await()
	}
	if err != nil {
		if r != nil {
			_ = r.Close()
		}
		return nil, fmt.Errorf("ask for %s over the link: %w", d.Short(), err)
	}
	return r, nil
}

// Metadata is a trust.MetadataSource: fs.ErrNotExist for what the server has
// not. It gives up with fetch.ErrSlow.
func (s *Source) Metadata(ctx context.Context, name string) ([]byte, error) {
	for try := 1; ; try++ {
		b, err := s.file(ctx, name)
		if errors.Is(err, stream.ErrChanged) && try < sameTries {
			continue
		}
		if errors.Is(err, fetch.ErrNotFound) {
			err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
		}
		if err != nil {
			return nil, fmt.Errorf("ask for %s over the link: %w", name, err)
		}
		return b, nil
	}
}

// file reads one file of metadata.
func (s *Source) file(ctx context.Context, name string) ([]byte, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(fetch.MetadataStall, func() {
		cancel(fmt.Errorf("%w: no byte of %s for %s", fetch.ErrSlow, name, fetch.MetadataStall))
	})
	defer stall.Stop()
	r, err := s.start(ctx, stream.Config{Name: name, Most: fetch.MaxMetadata})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(told{r, func() { stall.Reset(fetch.MetadataStall) }})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.recv.Tagged(b) {
		return nil, stream.ErrChanged
	}
	return b, nil
}

// told calls progress for each piece that arrived.
type told struct {
	io.Reader
	progress func()
}

// Read implements io.Reader.
func (t told) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	if n > 0 {
		t.progress()
	}
	return n, err
}

// start begins a stream; ctx bounds its life.
func (s *Source) start(ctx context.Context, c stream.Config) (*reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	c.Stream, c.Span, c.Pace = s.last, s.cfg.Span, &s.pace
	recv, err := stream.NewReceiver(c)
	if err != nil {
		return nil, err
	}
	r := &reader{s: s, id: c.Stream, recv: recv, wake: newSignal(), arrived: newSignal(), slots: make(chan struct{}, publishers)}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	s.open[r.id] = r
	r.work.Go(r.drive)
	return r, nil
}

// signal wakes one goroutine; many sets before it looks are one.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) set() {
	select {
	case s <- struct{}{}:
	default:
	}
}
