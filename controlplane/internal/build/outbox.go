package build

import (
	"context"
	"sync"

	"github.com/skein-fleet/skein/proto/wire"
)

// outbox holds the newest answer to each device; a stuck device holds one
// sender and nobody else.
type outbox struct {
	mu     sync.Mutex // guards all below
	cond   *sync.Cond
	newest map[place]wire.BuildLease
	order  []place
	busy   map[place]bool
	closed bool
}

func (o *outbox) init() {
	o.newest, o.busy = map[place]wire.BuildLease{}, map[place]bool{}
	o.cond = sync.NewCond(&o.mu)
}

func (o *outbox) put(p place, l wire.BuildLease) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, waits := o.newest[p]
	o.newest[p] = l
	if !waits && !o.busy[p] {
		o.order = append(o.order, p)
		o.cond.Signal()
	}
}

func (o *outbox) take() (p place, l wire.BuildLease, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.order) == 0 && !o.closed {
		o.cond.Wait()
	}
	if o.closed {
		return p, l, false
	}
	p, o.order = o.order[0], o.order[1:]
	l = o.newest[p]
	delete(o.newest, p)
	o.busy[p] = true
	return p, l, true
}

func (o *outbox) done(p place) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.busy, p)
	if _, waits := o.newest[p]; waits {
		o.order = append(o.order, p)
		o.cond.Signal()
	}
}

func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.cond.Broadcast()
}

func (o *outbox) run(ctx context.Context, send func(context.Context, wire.BuildLease)) {
	for {
		p, l, ok := o.take()
		if !ok {
			return
		}
		send(ctx, l)
		o.done(p)
	}
}
