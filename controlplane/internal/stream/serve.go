package stream

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/stream"
	"github.com/skein-fleet/skein/proto/wire"
)

// source is one open stream.
type source struct {
	id     uint64
	sender *stream.Sender
	file   io.ReadSeekCloser // of a blob
	data   []byte            // of a file of metadata
	tag    []byte            // of a file
	used   time.Time
}

// file is a file of metadata as it was read.
type file struct {
	sum  [sha256.Size]byte
	data []byte
}

// file returns a file of metadata. Its content is kept in memory once, however
// many devices read it.
func (s *Server) file(name string) (file, error) {
	data, err := s.cfg.Metadata(name)
	if err != nil {
		return file{}, err
	}
	f := file{sha256.Sum256(data), data}
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := slices.IndexFunc(s.recent, func(r file) bool { return r.sum == f.sum }); at >= 0 {
		return s.recent[at], nil
	}
	if len(s.recent) >= maxRecent {
		s.recent = slices.Delete(s.recent, 0, 1)
	}
	s.recent = append(s.recent, f)
	return f, nil
}

func (s *source) close() {
	if s.file != nil {
		_ = s.file.Close() // it was only read
	}
}

// read returns one piece.
func (s *source) read(p stream.Piece) ([]byte, error) {
	if s.file == nil {
		return s.data[p.Offset : p.Offset+p.Length], nil
	}
	if _, err := s.file.Seek(p.Offset, io.SeekStart); err != nil {
		return nil, err
	}
	b := make([]byte, p.Length)
	_, err := io.ReadFull(s.file, b)
	return b, err
}

// serve looks at the requests of a device and sends it one message.
func (s *Server) serve(ctx context.Context, p *peer, requests []*wire.Get) {
	for _, g := range requests {
		if err := s.take(ctx, p, g); err != nil {
			s.refuse(ctx, p, g, err)
		}
	}
	more := s.next(ctx, p)
	s.mu.Lock()
	defer s.mu.Unlock()
	p.more = more
}

var errBusy = errors.New("the server has no room for one more stream now")

// take gives one request to its stream, which it begins if need be.
func (s *Server) take(ctx context.Context, p *peer, g *wire.Get) error {
	if err := stream.Check(g); err != nil {
		return err
	}
	at := slices.IndexFunc(p.streams, func(src *source) bool { return src.id == g.Stream })
	if g.Stop {
		if at >= 0 {
			s.end(p, at)
		}
		return nil
	}
	if g.Name == "" {
		// At each request, not at the first alone: what a device may read changes.
		if err := s.cfg.Grants.MayRead(ctx, p.device, ota.DigestFromSum([sha256.Size]byte(g.Digest))); err != nil {
			if at >= 0 {
				s.end(p, at)
			}
			return fmt.Errorf("%w: %w", errForbidden, err)
		}
	}
	if at < 0 {
		src, err := s.begin(ctx, p, g)
		if err != nil {
			return err
		}
		p.streams = append(p.streams, src)
		at = len(p.streams) - 1
	}
	src := p.streams[at]
	src.used = time.Now()
	return src.sender.Ask(g)
}

var errForbidden = errors.New("not for this device")

// begin opens what g asks for.
func (s *Server) begin(ctx context.Context, p *peer, g *wire.Get) (*source, error) {
	if err := s.room(p); err != nil {
		return nil, err
	}
	src := &source{id: g.Stream}
	size := int64(0)
	var err error
	if g.Name != "" {
		var f file
		if f, err = s.file(g.Name); err == nil {
			src.data, src.tag, size = f.data, f.sum[:8], int64(len(f.data))
		}
	} else {
		src.file, size, err = s.cfg.Blobs.Open(ctx, ota.DigestFromSum([sha256.Size]byte(g.Digest)))
	}
	if err == nil {
		src.sender, err = stream.NewSender(g, size)
	}
	if err != nil {
		src.close()
		s.mu.Lock()
		s.streams--
		s.mu.Unlock()
		return nil, err
	}
	return src, nil
}

// room counts one more stream, for which an idle one of the same device may
// have to go.
func (s *Server) room(p *peer) error {
	if len(p.streams) >= s.cfg.Streams {
		idle := slices.IndexFunc(p.streams, func(src *source) bool { return src.sender.Waiting() == 0 })
		if idle < 0 {
			return fmt.Errorf("%w: this device has %d", errBusy, len(p.streams))
		}
		s.end(p, idle)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams >= s.cfg.AllStreams {
		return fmt.Errorf("%w: all devices have %d", errBusy, s.streams)
	}
	s.streams++
	return nil
}

// end closes the stream at place at.
func (s *Server) end(p *peer, at int) {
	p.streams[at].close()
	p.streams = slices.Delete(p.streams, at, at+1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams--
}

// next sends the next piece of the stream whose turn it is, if the device's
// queue and rate allow, and reports whether there is more to send.
func (s *Server) next(ctx context.Context, p *peer) (more bool) {
	at := slices.IndexFunc(p.streams, func(src *source) bool { return src.sender.Waiting() > 0 })
	if at < 0 {
		return false
	}
	if !s.mayBegin(ctx, p) {
		return true
	}
	src := p.streams[at]
	piece, _ := src.sender.Next()
	data, err := src.read(piece)
	if err != nil {
		s.cfg.Logger.Error("read blob for a device", "device", p.device, "err", err)
		s.refuse(ctx, p, &wire.Get{Stream: src.id, Seq: piece.Seq}, fmt.Errorf("%w: %w", blob.ErrNotFound, err))
		s.end(p, at)
		return true
	}
	c := &wire.Chunk{Stream: src.id, Seq: piece.Seq, First: piece.First, Data: data, Size: src.sender.Size(), Tag: src.tag}
	if s.send(p, c, len(data)) {
		s.metrics.bytes.Add(float64(len(data)))
	}
	src.used = time.Now()
	p.streams = append(slices.Delete(p.streams, at, at+1), src)
	return slices.ContainsFunc(p.streams, func(src *source) bool { return src.sender.Waiting() > 0 })
}

// mayBegin reports whether a device may get a message now, and waits while all
// devices together got too much.
func (s *Server) mayBegin(ctx context.Context, p *peer) bool {
	s.mu.Lock()
	now := time.Now()
	ok := !p.done && !now.Before(p.free) && (p.queued == 0 || p.queued < s.cfg.Queued && s.queued < s.cfg.AllQueued)
	wait := s.free.Sub(now)
	s.mu.Unlock()
	if !ok || wait <= 0 {
		return ok
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// send gives one message to the broker and counts it.
func (s *Server) send(p *peer, c *wire.Chunk, bytes int) bool {
	b, err := wire.Marshal(c)
	if err != nil {
		s.cfg.Logger.Error("encode for a device", "device", p.device, "err", err)
		return false
	}
	s.mu.Lock()
	if p.done {
		s.mu.Unlock()
		return false
	}
	p.queued += int64(len(b))
	s.queued += int64(len(b))
	now := time.Now()
	p.free = pace(p.free, now, bytes, s.cfg.Rate)
	if s.cfg.Pace != nil {
		if at := now.Add(s.cfg.Pace(p.device, bytes)); at.After(p.free) {
			p.free = at
		}
	}
	s.free = pace(s.free, now, bytes, s.cfg.AllRate)
	s.mu.Unlock()
	if err := s.cfg.Link.Send(p.device, wire.DownChunk, b); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.peers[p.device] == p {
			s.drop(p.device)
		}
		return false
	}
	s.metrics.sent.Inc()
	return true
}

// burst is how far a rate may be ahead.
const burst = 250 * time.Millisecond

// pace returns when the next message may go after one of so many bytes.
func pace(free, now time.Time, bytes int, rate int64) time.Time {
	if floor := now.Add(-burst); free.Before(floor) {
		free = floor
	}
	return free.Add(time.Duration(float64(bytes) / float64(rate) * float64(time.Second)))
}

// refuse answers a request that gets no blocks.
func (s *Server) refuse(ctx context.Context, p *peer, g *wire.Get, err error) {
	c := &wire.Chunk{Stream: g.Stream, Seq: g.Seq, Message: err.Error()}
	attack := ""
	switch {
	case errors.Is(err, errForbidden):
		c.Refused = wire.RefusedForbidden
	case errors.Is(err, errBusy):
		c.Refused, c.Wait = wire.RefusedBusy, (busyWait + rand.N(busyWait)).Milliseconds()
	case errors.Is(err, blob.ErrNotFound) || errors.Is(err, fs.ErrNotExist):
		c.Refused, c.Message = wire.RefusedNotFound, "it is not here"
	case errors.Is(err, stream.ErrLie) || errors.Is(err, stream.ErrTooMuch):
		c.Refused, attack = wire.RefusedMalformed, "malformed"
	default:
		s.cfg.Logger.Error("answer a device's request", "device", p.device, "err", err)
		c.Refused, c.Wait, c.Message = wire.RefusedBusy, busyWait.Milliseconds(), "the server cannot do it now"
	}
	s.metrics.refused.WithLabelValues(c.Refused.String()).Inc()
	if attack != "" || c.Refused == wire.RefusedForbidden {
		if err := s.cfg.Notice(ctx, p.tenant, p.device, "stream-refused", err.Error(), attack); err != nil {
			s.cfg.Logger.Error("store event", "device", p.device, "err", err)
		}
	}
	s.send(p, c, 0)
}

type metrics struct {
	sent, bytes prometheus.Counter
	refused     *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer, s *Server) *metrics {
	m := &metrics{
		sent:    prometheus.NewCounter(prometheus.CounterOpts{Name: "skein_stream_messages_total", Help: "Messages with blocks sent to devices."}),
		bytes:   prometheus.NewCounter(prometheus.CounterOpts{Name: "skein_stream_bytes_total", Help: "Bytes of blobs and metadata sent to devices over the link."}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "skein_stream_refused_total", Help: "Requests of devices that got no blocks, by reason."}, []string{"reason"}),
	}
	read := func(name, help string, v func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "skein_stream_" + name, Help: help}, func() float64 {
			s.mu.Lock()
			defer s.mu.Unlock()
			return v()
		})
	}
	reg.MustRegister(m.sent, m.bytes, m.refused,
		read("open", "Streams that are open.", func() float64 { return float64(s.streams) }),
		read("queued_bytes", "Bytes that wait in the queues of the broker.", func() float64 { return float64(s.queued) }))
	return m
}
