package fleet

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/proto/wire"
)

// work is what a sender shall look at for one device.
type work uint8

const (
	workDesired  work = 1 << iota // send the desired state if it is not held
	workReport                    // ask for a full report
	workSlowDown                  // ask to wait
	workWatch                     // ask for telemetry every second
)

// slowDownSeconds is what a device is asked to wait in a storm; devices jitter it.
const slowDownSeconds = 120

// watchSeconds is the lease of close watching.
const watchSeconds = 300

// queue holds devices to look at, each at most once; a device that is being
// worked on is not handed out a second time.
type queue struct {
	mu     sync.Mutex // guards all below
	cond   *sync.Cond
	order  []*twin
	todo   map[*twin]work
	busy   map[*twin]bool
	closed bool
}

func newQueue() *queue {
	q := &queue{todo: map[*twin]work{}, busy: map[*twin]bool{}}
	q.cond = sync.NewCond(&q.mu)
	return q
}

func (q *queue) add(tw *twin, w work) {
	q.mu.Lock()
	defer q.mu.Unlock()
	before := q.todo[tw]
	q.todo[tw] = before | w
	if before == 0 && !q.busy[tw] {
		q.order = append(q.order, tw)
		q.cond.Signal()
	}
}

// take blocks until there is work; ok is false when the queue is closed.
func (q *queue) take() (tw *twin, w work, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.order) == 0 && !q.closed {
		q.cond.Wait()
	}
	if q.closed {
		return nil, 0, false
	}
	tw = q.order[0]
	q.order[0] = nil
	q.order = q.order[1:]
	w = q.todo[tw]
	delete(q.todo, tw)
	q.busy[tw] = true
	return tw, w, true
}

func (q *queue) done(tw *twin) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.busy, tw)
	if q.todo[tw] != 0 {
		q.order = append(q.order, tw)
		q.cond.Signal()
	}
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.cond.Broadcast()
}

func (f *Fleet) sendLoop(ctx context.Context) {
	for {
		tw, w, ok := f.queue.take()
		if !ok {
			return
		}
		if err := f.serve(ctx, tw, w); err != nil && ctx.Err() == nil && !errors.Is(err, ErrOffline) {
			f.cfg.Logger.Warn("send to device", "device", tw.id, "error", err)
		}
		f.queue.done(tw)
	}
}

func (f *Fleet) serve(ctx context.Context, tw *twin, w work) error {
	var errs []error
	for kind, cmd := range map[work]wire.Cmd{
		workReport:   {Kind: wire.CmdReport},
		workSlowDown: {Kind: wire.CmdSlowDown, Seconds: slowDownSeconds},
		workWatch:    {Kind: wire.CmdWatch, Seconds: watchSeconds},
	} {
		if w&kind != 0 {
			errs = append(errs, f.command(ctx, tw, cmd))
		}
	}
	if w&workDesired != 0 {
		errs = append(errs, f.sendDesired(ctx, tw))
	}
	return errors.Join(errs...)
}

// sendDesired sends the desired state when the device does not hold it and the
// last sending is long enough ago.
func (f *Fleet) sendDesired(ctx context.Context, tw *twin) error {
	now := f.cfg.Now()
	tw.mu.Lock()
	soon := tw.wanted != nil && tw.reachable() && f.expiresSoon(tw.wanted)
	tw.mu.Unlock()
	if soon {
		if err := f.reissue(ctx, tw); err != nil {
			return err
		}
	}
	tw.mu.Lock()
	w, id := tw.wanted, tw.dev.ID
	if w == nil || tw.converged() || !tw.reachable() || now.Before(tw.sendAfter) {
		tw.mu.Unlock()
		return nil
	}
	tw.sentAt = now
	tw.sendAfter = now.Add(f.cfg.Resend + rand.N(f.cfg.Resend))
	tw.mu.Unlock()
	err := f.publish(ctx, id, wire.DownDesired, w.Payload)
	f.metrics.sent.WithLabelValues("desired", outcome(err)).Inc()
	return err
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "sent"
	case errors.Is(err, ErrOffline):
		return "offline"
	}
	return "failed"
}

// command signs and sends one command. Its counter is the time in microseconds,
// which grows over restarts too.
func (f *Fleet) command(ctx context.Context, tw *twin, c wire.Cmd) error {
	now := f.cfg.Now()
	tw.mu.Lock()
	active := tw.dev.State == store.DeviceActive
	c.Device = tw.dev.ID
	tw.mu.Unlock()
	if !active {
		return nil
	}
	c.Counter, c.ExpiresAt = uint64(now.UnixMicro()), now.Add(5*time.Minute).Unix()
	payload, err := wire.Marshal(&c)
	if err != nil {
		return err
	}
	signed, err := f.cfg.Director.Sign(wire.AADCmd, payload)
	if err != nil {
		return err
	}
	err = f.publish(ctx, c.Device, wire.DownCmd, signed)
	f.metrics.sent.WithLabelValues("cmd", outcome(err)).Inc()
	return err
}

func (f *Fleet) publish(ctx context.Context, device string, kind wire.Kind, payload []byte) error {
	f.mu.RLock()
	l := f.link
	f.mu.RUnlock()
	if l == nil {
		return ErrOffline
	}
	return l.Publish(ctx, device, kind, payload)
}

// Watch asks a device for telemetry every second for the next five minutes.
func (f *Fleet) Watch(tenant, device string) {
	if tw := f.find(tenant, device); tw != nil {
		f.queue.add(tw, workWatch)
	}
}

// WatchLease is how long one Watch holds.
const WatchLease = watchSeconds * time.Second

// sweep looks at every device: what is not held is sent again, what expires is
// issued anew.
func (f *Fleet) sweep() {
	now := f.cfg.Now()
	var online, converging int
	for _, tw := range f.all() {
		tw.mu.Lock()
		if tw.online {
			online++
		}
		look := tw.wanted != nil && tw.reachable()
		if look {
			differs := !tw.converged()
			if differs {
				converging++
			}
			look = differs && !now.Before(tw.sendAfter) || f.expiresSoon(tw.wanted)
		}
		tw.mu.Unlock()
		if look {
			f.queue.add(tw, workDesired)
		}
	}
	f.metrics.online.Set(float64(online))
	f.metrics.converging.Set(float64(converging))
}
