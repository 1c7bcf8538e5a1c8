package link

import (
	"context"
	"sync"

	"github.com/skein-fleet/skein/proto/wire"
)

// Memory is a Link without a network: the test is the control plane. It starts
// offline.
type Memory struct {
	// Receive is called for every published message before Publish returns; an
	// error from it is what Publish returns. It is set before Run.
	Receive func(kind wire.Kind, payload []byte) error

	mu     sync.Mutex // guards what follows
	up     bool
	h      *Handler
	change chan struct{} // closed and replaced when up changes
}

// NewMemory returns an offline link.
func NewMemory(receive func(wire.Kind, []byte) error) *Memory {
	return &Memory{Receive: receive, change: make(chan struct{})}
}

// SetOnline plugs the cable in or out.
func (m *Memory) SetOnline(up bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.up != up {
		m.up = up
		close(m.change)
		m.change = make(chan struct{})
	}
}

// Deliver hands a message to the device. It is lost while the device is offline.
func (m *Memory) Deliver(kind wire.Kind, payload []byte) {
	m.mu.Lock()
	h, up := m.h, m.up
	m.mu.Unlock()
	if h != nil && up {
		h.Message(kind, payload)
	}
}

// Run follows SetOnline until ctx ends.
func (m *Memory) Run(ctx context.Context, h Handler) error {
	m.mu.Lock()
	m.h = &h
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.h = nil
		m.mu.Unlock()
	}()
	for connection := uint64(1); ; connection++ {
		if !m.await(ctx, true) {
			return nil
		}
		m.present(h, connection, true)
		connCtx, cancel := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { h.Connected(connCtx) })
		lost := m.await(ctx, false)
		cancel()
		wg.Wait()
		m.present(h, connection, false)
		if !lost {
			return nil
		}
		h.Disconnected(ErrOffline)
	}
}

func (m *Memory) present(h Handler, connection uint64, online bool) {
	id := wire.MessageID{Boot: h.Boot}
	if online {
		id = h.NextID()
	}
	b, err := wire.Marshal(&wire.Presence{ID: id, Connection: connection, Online: online})
	if err == nil && m.Receive != nil {
		_ = m.Receive(wire.UpPresence, b) // nobody waits for presence
	}
}

// await waits until the link is up or down; false when ctx ended first.
func (m *Memory) await(ctx context.Context, up bool) bool {
	for {
		m.mu.Lock()
		now, change := m.up, m.change
		m.mu.Unlock()
		if now == up {
			return true
		}
		select {
		case <-change:
		case <-ctx.Done():
			return false
		}
	}
}

// Publish hands a message to Receive.
func (m *Memory) Publish(ctx context.Context, kind wire.Kind, payload []byte) error {
	m.mu.Lock()
	up := m.up && m.h != nil
	m.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if !up {
		return ErrOffline
	}
	if m.Receive == nil {
		return nil
	}
	return m.Receive(kind, payload)
}
