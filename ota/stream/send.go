package stream

import (
	"bytes"
	"fmt"

	"github.com/skein-fleet/skein/proto/wire"
)

// MaxQueued is how many blocks of one stream a server keeps in mind.
const MaxQueued = 8 * wire.MaxWanted

// Sender is the server's end of one stream: what it still has to send. Its
// methods are not safe for concurrent use.
type Sender struct {
	about  wire.Get // of the first request: what the stream is of
	size   int64    // of the whole blob or file
	length int64    // of the stream
	blocks uint64

	seen   uint64   // highest request
	before uint64   // bit i: request seen-i came
	queue  []wanted // in the order of asking
	queued map[uint64]struct{}
}

// wanted are blocks in a row.
type wanted struct{ seq, first, n uint64 }

// Piece is what to send next.
type Piece struct {
	Seq, First     uint64
	Offset, Length int64 // in the blob
}

// Check says whether a request can be one, whatever it is of.
func Check(g *wire.Get) error {
	switch {
	case (len(g.Digest) == 0) == (g.Name == ""):
		return fmt.Errorf("%w: want either a digest or a name", ErrLie)
	case g.Name == "" && len(g.Digest) != 32:
		return fmt.Errorf("%w: digest of %d bytes", ErrLie, len(g.Digest))
	case len(g.Name) > wire.MaxMetaName:
		return fmt.Errorf("%w: name of %d bytes", ErrLie, len(g.Name))
	case g.Offset < 0 || g.Length < 0 || g.Name == "" && g.Length == 0 || g.Name != "" && (g.Offset != 0 || g.Length != 0):
		return fmt.Errorf("%w: range %d+%d", ErrLie, g.Offset, g.Length)
	case g.Block < wire.MinBlock || g.Block > wire.MaxBlock || g.Run < 1 || g.Run > wire.MaxRun/g.Block:
		return fmt.Errorf("%w: answers of %d blocks of %d bytes", ErrTooMuch, g.Run, g.Block)
	case len(g.Wanted) > wire.MaxWanted:
		return fmt.Errorf("%w: a bitmap of %d bytes", ErrTooMuch, len(g.Wanted))
	case g.Seq == 0:
		return fmt.Errorf("%w: request 0", ErrLie)
	}
	return nil
}

// NewSender returns the stream that g begins, of a blob or file of size bytes.
// It does not take g itself: that is Ask.
func NewSender(g *wire.Get, size int64) (*Sender, error) {
	if err := Check(g); err != nil {
		return nil, err
	}
	s := &Sender{about: *g, size: size, length: g.Length, queued: map[uint64]struct{}{}}
	s.about.Wanted = nil
	if g.Name != "" {
		s.length = size
	}
	if g.Offset > size || s.length > size-g.Offset || s.length == 0 {
		return nil, fmt.Errorf("%w: range %d+%d of %d bytes", ErrLie, g.Offset, s.length, size)
	}
	s.blocks = blocksOf(s.length, g.Block)
	return s, nil
}

// Size is how long the whole blob or file is.
func (s *Sender) Size() int64 { return s.size }

// Same reports whether g is of the same bytes in the same blocks.
func (s *Sender) Same(g *wire.Get) bool {
	a := &s.about
	return bytes.Equal(a.Digest, g.Digest) && a.Name == g.Name && a.Offset == g.Offset && a.Length == g.Length && a.Block == g.Block
}

// Ask takes a request. A repeated one, and blocks that are queued already,
// change nothing.
func (s *Sender) Ask(g *wire.Get) error {
	if err := Check(g); err != nil {
		return err
	}
	if !s.Same(g) {
		return fmt.Errorf("%w: stream %d is of other bytes", ErrLie, g.Stream)
	}
	if s.repeated(g.Seq) {
		return nil
	}
	if g.Stop {
		s.queue, s.about.Seq = nil, g.Seq
		clear(s.queued)
		return nil
	}
	span := 8 * uint64(len(g.Wanted))
	if g.Base >= s.blocks {
		return fmt.Errorf("%w: block %d of %d", ErrLie, g.Base, s.blocks)
	}
	m := bitmap(g.Wanted)
	for i := range span {
		if !m.has(i) {
			continue
		}
		b := g.Base + i
		if b >= s.blocks {
			return fmt.Errorf("%w: block %d of %d", ErrLie, b, s.blocks)
		}
		if _, ok := s.queued[b]; ok {
			continue
		}
		if len(s.queued) >= MaxQueued {
			return fmt.Errorf("%w: %d blocks wait already", ErrTooMuch, len(s.queued))
		}
		s.queued[b] = struct{}{}
		if last := len(s.queue) - 1; last >= 0 && s.queue[last].seq == g.Seq && s.queue[last].first+s.queue[last].n == b {
			s.queue[last].n++
			continue
		}
		s.queue = append(s.queue, wanted{g.Seq, b, 1})
	}
	s.about.Run = g.Run
	return nil
}

// repeated notes a request and reports whether it came before; one that is far
// behind counts as such.
func (s *Sender) repeated(seq uint64) bool {
	if seq > s.seen {
		if d := seq - s.seen; d < 64 {
			s.before = s.before<<d | 1
		} else {
			s.before = 1
		}
		s.seen = seq
		return false
	}
	d := s.seen - seq
	if d >= 64 || s.before&(1<<d) != 0 {
		return true
	}
	s.before |= 1 << d
	return false
}

// Waiting is how many blocks are still to be sent.
func (s *Sender) Waiting() int { return len(s.queued) }

// Next returns what to send next and takes it off the queue.
func (s *Sender) Next() (Piece, bool) {
	if len(s.queue) == 0 {
		return Piece{}, false
	}
	w := &s.queue[0]
	n := min(w.n, uint64(s.about.Run))
	block := int64(s.about.Block)
	p := Piece{Seq: w.seq, First: w.first, Offset: s.about.Offset + int64(w.first)*block}
	p.Length = min(int64(n)*block, s.length-int64(w.first)*block)
	for b := w.first; b < w.first+n; b++ {
		delete(s.queued, b)
	}
	w.first, w.n = w.first+n, w.n-n
	if w.n == 0 {
		s.queue = s.queue[1:]
	}
	return p, true
}
