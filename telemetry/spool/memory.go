package spool

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/skein-fleet/skein/proto/wire"
)

// Memory is the driver that forgets everything when the process ends.
type Memory struct {
	opts Options

	mu     sync.Mutex // guards what follows
	frames []memFrame // in order of seq; never holds acked frames
	next   uint64
	stats  Stats
	closed bool
}

type memFrame struct {
	Frame
	tried bool // offered to Thin
}

// NewMemory returns an empty spool.
func NewMemory(o Options) *Memory { return &Memory{opts: o} }

// Append adds a message at the end.
func (m *Memory) Append(kind wire.Kind, payload []byte) error {
	size := frameSize(kind, payload)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	if size > m.opts.maxBytes() {
		m.stats.Dropped++
		return fmt.Errorf("%w: %d bytes, bound %d", ErrTooLarge, size, m.opts.maxBytes())
	}
	m.makeRoom(size)
	m.next++
	m.frames = append(m.frames, memFrame{Frame: Frame{Seq: m.next, Kind: kind, Payload: bytes.Clone(payload)}})
	m.stats.Frames++
	m.stats.Bytes += size
	return nil
}

// makeRoom thins, then drops, the oldest until size fits. Caller holds mu.
func (m *Memory) makeRoom(size int64) {
	over := func() bool { return m.stats.Bytes+size > m.opts.maxBytes() }
	for i := 0; i < len(m.frames) && over() && m.opts.Thin != nil; i++ {
		f := &m.frames[i]
		if f.tried {
			continue
		}
		f.tried = true
		if thin, ok := m.opts.Thin(f.Kind, f.Payload); ok && len(thin) < len(f.Payload) {
			m.stats.Bytes -= int64(len(f.Payload) - len(thin))
			m.stats.Thinned++
			f.Payload = bytes.Clone(thin)
		}
	}
	for over() && len(m.frames) > 0 {
		m.stats.Dropped++
		m.removeAt(0)
	}
}

func (m *Memory) removeAt(i int) {
	m.stats.Bytes -= frameSize(m.frames[i].Kind, m.frames[i].Payload)
	m.stats.Frames--
	if i == 0 {
		m.frames[0] = memFrame{}
		m.frames = m.frames[1:]
		return
	}
	m.frames = append(m.frames[:i], m.frames[i+1:]...)
}

// Next returns the oldest message.
func (m *Memory) Next() (Frame, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return Frame{}, ErrClosed
	}
	if len(m.frames) == 0 {
		return Frame{}, ErrEmpty
	}
	f := m.frames[0].Frame
	f.Payload = bytes.Clone(f.Payload)
	return f, nil
}

// Ack forgets a message.
func (m *Memory) Ack(seq uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	for i := range m.frames {
		if m.frames[i].Seq == seq {
			m.removeAt(i)
			break
		}
	}
	return nil
}

// Stats returns the counts so far.
func (m *Memory) Stats() Stats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stats
}

// Close empties the spool.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed, m.frames = true, nil
	return nil
}
