package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
)

// errPatience cancels an Open that takes too long while others are left.
var errPatience = errors.New("no answer in time")

// chainReader reads one range, by one way after the other.
type chainReader struct {
	c       *Chain
	ctx     context.Context
	blob    ota.Digest
	at, end int64

	by      candidate
	cancel  context.CancelCauseFunc // of body
	brought int64                   // by body
	due     time.Time               // when a cheaper way may be tried, zero: there is none
	probe   *probe                  // of a cheaper way, under way
	judged  bool

	mu     sync.Mutex // guards changes of what follows
	body   io.ReadCloser
	passed int64 // PassedOver of the bodies before
}

// open makes t the way for the rest of the range, or leaves all as it was.
func (r *chainReader) open(t candidate, others bool) error {
	ctx, cancel := context.WithCancelCause(r.ctx)
	var timer *time.Timer
	if others {
		timer = time.AfterFunc(cmp.Or(t.Patience, patience), func() { cancel(errPatience) })
	}
	body, err := t.Source.Open(ctx, r.blob, r.at, r.end-r.at)
	if timer != nil && !timer.Stop() && err == nil {
		err = errors.Join(errPatience, body.Close())
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", t.Name, because(ctx, err))
		cancel(nil)
		r.c.judge(r.ctx, t, r.blob, 0, err)
		return err
	}
	r.by, r.cancel, r.brought, r.judged = t, cancel, 0, false
	r.mu.Lock()
	defer r.mu.Unlock()
	r.passed += passedOver(r.body)
	r.body = body
	return nil
}

// dueAgain finds out when a way that is cheaper than this one may be tried again.
func (r *chainReader) dueAgain() {
	r.due = time.Time{}
	for _, t := range r.c.candidates(r.blob) {
		if t.rank < r.by.rank && t.avoided && (r.due.IsZero() || t.until.Before(r.due)) {
			r.due = t.until
		}
	}
}

// Read implements io.Reader.
func (r *chainReader) Read(p []byte) (int, error) {
	r.improve()
	n, err := r.body.Read(p)
	if n > 0 {
		r.at += int64(n)
		r.brought += int64(n)
		r.c.deliver(r.by, r.blob, n)
	}
	if r.judged {
		return n, err
	}
	switch {
	case r.at >= r.end:
		r.judged = true
		r.c.good(r.by)
	case err != nil:
		r.judged = true
		why := err
		if errors.Is(err, io.EOF) {
			why = io.ErrUnexpectedEOF
		} else {
			err = fmt.Errorf("%s: %w", r.by.Name, err)
		}
		r.c.judge(r.ctx, r.by, r.blob, r.brought, why)
	}
	return n, err
}

// probe asks a cheaper way for one byte, while the dearer one goes on.
type probe struct {
	way    candidate
	result chan error
	cancel context.CancelCauseFunc
}

// improve goes over to a cheaper way whose time is up, once a probe of it came
// back. It never waits for one.
func (r *chainReader) improve() {
	switch {
	case r.at >= r.end:
		return
	case r.probe != nil:
		select {
		case err := <-r.probe.result:
			way := r.probe.way
			r.probe = nil
			if err == nil {
				r.goOver(way)
			}
			r.dueAgain()
		default:
		}
	case !r.due.IsZero() && !r.c.now().Before(r.due):
		for _, t := range r.c.candidates(r.blob) {
			if !t.avoided && t.rank < r.by.rank {
				r.try(t)
				return
			}
		}
		r.dueAgain()
	}
}

// try begins a probe.
func (r *chainReader) try(t candidate) {
	ctx, cancel := context.WithCancelCause(r.ctx)
	p := &probe{way: t, result: make(chan error, 1), cancel: cancel}
	r.probe = p
	at := r.at
	go func() {
		timer := time.AfterFunc(cmp.Or(t.Patience, patience), func() { cancel(errPatience) })
		defer timer.Stop()
		body, err := t.Source.Open(ctx, r.blob, at, 1)
		if err == nil {
			_, err = io.ReadFull(body, make([]byte, 1))
			err = errors.Join(err, body.Close())
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", t.Name, because(ctx, err))
			if !errors.Is(context.Cause(ctx), errClosed) {
				r.c.judge(r.ctx, t, r.blob, 0, err)
			}
		}
		p.result <- err
	}()
}

// errClosed cancels the probe of a reader that is closed.
var errClosed = errors.New("reader was closed")

// goOver makes t the way, if it opens.
func (r *chainReader) goOver(t candidate) {
	body, cancel := r.body, r.cancel
	if r.open(t, true) == nil {
		_ = body.Close() // what it still had is not wanted
		cancel(nil)
	}
}

// Close implements io.Closer.
func (r *chainReader) Close() error {
	if r.probe != nil {
		r.probe.cancel(errClosed)
		<-r.probe.result
	}
	err := r.body.Close()
	r.cancel(nil)
	return err
}

// PassedOver is what came over the network and was not asked for.
func (r *chainReader) PassedOver() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.passed + passedOver(r.body)
}

// passer is a body of which some came over the network before what was asked for.
type passer interface{ PassedOver() int64 }

// passedOver is r's PassedOver, if it has one. Bodies that wrap others forward it.
func passedOver(r io.Reader) int64 {
	if p, ok := r.(passer); ok {
		return p.PassedOver()
	}
	return 0
}
