package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/stream"
	"github.com/skein-fleet/skein/proto/wire"
)

// reader is one open stream.
type reader struct {
	s      *Source
	id     uint64
	ctx    context.Context
	cancel context.CancelCauseFunc
	work   sync.WaitGroup // drive and the requests under way
	slots  chan struct{}
	once   sync.Once

	wake    signal // of drive: there may be something to ask for
	arrived signal // of Read

	// guarded by s.mu
	recv     *stream.Receiver
	hold     time.Time // no request before
	failures int       // of Publish, in a row
	offline  error     // the last failure of Publish, while nothing has arrived yet
}

// drive sends requests as the receiver wants them.
func (r *reader) drive() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for r.ctx.Err() == nil {
		g, next := r.next(time.Now())
		if g != nil {
			if !r.send(g) {
				return
			}
			continue
		}
		if next.IsZero() {
			next = time.Now().Add(time.Hour)
		}
		timer.Reset(time.Until(next))
		select {
		case <-r.ctx.Done():
		case <-r.wake:
		case <-timer.C:
		}
	}
}

// next returns the request to send now, or when to look again.
func (r *reader) next(now time.Time) (*wire.Get, time.Time) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	if now.Before(r.hold) {
		return nil, r.hold
	}
	g := r.recv.Next(now)
	if g != nil {
		g.ID = r.s.cfg.NextID()
	}
	return g, r.recv.Deadline()
}

// send publishes a request without waiting for its acknowledgement; false when
// the stream ends.
func (r *reader) send(g *wire.Get) bool {
	b, err := wire.Marshal(g)
	if err != nil {
		r.cancel(err)
		return false
	}
	select {
	case r.slots <- struct{}{}:
	case <-r.ctx.Done():
		return false
	}
	r.work.Go(func() {
		defer func() { <-r.slots }()
		if err := r.s.cfg.Publish(r.ctx, wire.UpGet, b); err != nil && r.ctx.Err() == nil {
			r.failed(err)
		} else {
			r.sent()
		}
	})
	return true
}

// failed notes that a request did not reach the server.
func (r *reader) failed(err error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.recv.Lost()
	r.hold = time.Now().Add(min(holdMin<<min(r.failures, 10), holdMax))
	r.failures++
	r.offline = err
	r.arrived.set()
	r.wake.set()
}

func (r *reader) sent() {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.failures = 0
}

// await waits for the first bytes, so that a refusal is an error of Open, and
// so that a link that is offline is left for another way at once.
func (r *reader) await() error {
	for {
		r.s.mu.Lock()
		err, here := r.recv.Err(), r.recv.Stats().Blocks > 0
		if err == nil {
			err = r.offline
		}
		r.s.mu.Unlock()
		switch {
		case here:
			return nil
		case err != nil:
			return translate(err)
		}
		select {
		case <-r.arrived:
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		}
	}
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		r.s.mu.Lock()
		n := r.recv.Read(p)
		err, done := r.recv.Err(), r.recv.Done()
		r.s.mu.Unlock()
		switch {
		case n > 0:
			r.wake.set() // there is room for more
			return n, nil
		case done:
			return 0, io.EOF
		case err != nil:
			return 0, translate(err)
		}
		select {
		case <-r.arrived:
		case <-r.ctx.Done():
			return 0, context.Cause(r.ctx)
		}
	}
}

// Close implements io.Closer. It tells the server to send nothing more.
func (r *reader) Close() error {
	r.once.Do(func() {
		r.cancel(errClosed)
		r.work.Wait()
		r.s.mu.Lock()
		g, quiet := r.recv.Stop(), r.failures > 0
		delete(r.s.open, r.id)
		r.s.stats.Stats = sum(r.s.stats.Stats, r.recv.Stats())
		if g != nil {
			g.ID = r.s.cfg.NextID()
		}
		r.s.mu.Unlock()
		if g == nil || quiet {
			return
		}
		if b, err := wire.Marshal(g); err == nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), stopTime)
			defer cancel()
			_ = r.s.cfg.Publish(ctx, wire.UpGet, b) // else it ends when it has sent what it was asked for
		}
	})
	return nil
}

var errClosed = errors.New("stream was closed")

// translate makes the errors of fetch from those of the protocol.
func translate(err error) error {
	refused, ok := errors.AsType[*stream.Refused](err)
	if !ok {
		return err
	}
	switch refused.Why {
	case wire.RefusedNotFound:
		return fmt.Errorf("%w: %w", fetch.ErrNotFound, err)
	case wire.RefusedForbidden:
		return fmt.Errorf("%w: %w", fetch.ErrForbidden, err)
	case wire.RefusedBusy:
		return &fetch.RetryAfter{Wait: refused.Wait, Err: err}
	}
	return err
}
