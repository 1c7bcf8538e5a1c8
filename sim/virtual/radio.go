package virtual

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/proto/wire"
)

// radio is the device's link with a fault, losing a share of the messages that
// come down, and with a memory of what the control plane has acknowledged. It
// outlives power cuts.
type radio struct {
	mu     sync.Mutex // guards all below
	rng    *rand.Rand
	rate   float64
	lost   int64
	events []wire.Event // acknowledged
}

func (r *radio) setLoss(rate float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rate = rate
}

func (r *radio) drops() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rate == 0 || r.rng.Float64() >= r.rate {
		return false
	}
	r.lost++
	return true
}

// acknowledged keeps an event that the control plane has taken.
func (r *radio) acknowledged(kind wire.Kind, payload []byte) {
	var e wire.Event
	if kind != wire.UpEvent || wire.Unmarshal(payload, &e) != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// wrap puts the radio around a link.
func (r *radio) wrap(l agent.Link) agent.Link { return &radioLink{Link: l, radio: r} }

type radioLink struct {
	agent.Link
	radio *radio
}

// Run implements agent.Link.
func (l *radioLink) Run(ctx context.Context, h agent.LinkHandler) error {
	deliver := h.Message
	h.Message = func(kind wire.Kind, payload []byte) {
		if !l.radio.drops() {
			deliver(kind, payload)
		}
	}
	return l.Link.Run(ctx, h)
}

// Publish implements agent.Link.
func (l *radioLink) Publish(ctx context.Context, kind wire.Kind, payload []byte) error {
	err := l.Link.Publish(ctx, kind, payload)
	if err == nil {
		l.radio.acknowledged(kind, payload)
	}
	return err
}

// SlowDown passes the control plane's wish on.
func (l *radioLink) SlowDown(d time.Duration) {
	if s, ok := l.Link.(interface{ SlowDown(time.Duration) }); ok {
		s.SlowDown(d)
	}
}
