package blobs

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Limits are what the devices of a site, and all devices of a tenant, may take
// together, in bytes per second; zero for no limit.
type Limits struct {
	Site, Fleet int64
}

const (
	pacePiece = 16 << 10
	// leastShare is what one device gets at least: with less its transfer would
	// be given up as stalled, so that others wait outside meanwhile.
	leastShare = 8 << 10
	// busyMin and busyMax bound the time that a device is told to stay away.
	busyMin, busyMax = 5 * time.Second, 30 * time.Second
)

// Pacer shares the rates of sites and of the fleet among devices: each has one
// piece on its way at a time, and they come in turn. Its methods may be called
// from several goroutines.
type Pacer struct {
	// Of returns the tenant and site of a device, and what limits it now.
	of  func(device string) (tenant, site string, l Limits)
	now func() time.Time

	mu      sync.Mutex // guards what follows
	buckets map[string]*bucket
	turns   map[string]*turn // devices that are served
}

// bucket is one shared rate.
type bucket struct {
	l       *rate.Limiter
	devices int // that are served from it
}

// turn lets one piece of a device wait at a time.
type turn struct {
	sem   chan struct{}
	users int
	in    []*bucket
}

// NewPacer returns a Pacer; of is asked often.
func NewPacer(of func(device string) (tenant, site string, l Limits), now func() time.Time) *Pacer {
	return &Pacer{of: of, now: now, buckets: map[string]*bucket{}, turns: map[string]*turn{}}
}

// shared returns the buckets that limit a device now. p.mu is held.
func (p *Pacer) shared(device string) []*bucket {
	tenant, site, l := p.of(device)
	var out []*bucket
	for _, b := range []struct {
		key  string
		rate int64
	}{{tenant, l.Fleet}, {tenant + "\x00" + site, l.Site}} {
		if b.rate <= 0 {
			continue
		}
		have := p.buckets[b.key]
		if have == nil {
			have = &bucket{l: rate.NewLimiter(0, 0)}
			p.buckets[b.key] = have
		}
		if have.l.Limit() != rate.Limit(b.rate) {
			now := p.now()
			have.l.SetLimitAt(now, rate.Limit(b.rate))
			have.l.SetBurstAt(now, int(max(pacePiece, min(b.rate/4, 1<<20))))
		}
		out = append(out, have)
	}
	return out
}

// Reserve takes n bytes for a device and returns how long they have to wait.
func (p *Pacer) Reserve(device string, n int) time.Duration {
	wait, _ := p.reserve(device, n)
	return wait
}

func (p *Pacer) reserve(device string, n int) (wait time.Duration, all []*rate.Reservation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for _, b := range p.shared(device) {
		for left := n; left > 0; left -= pacePiece {
			r := b.l.ReserveN(now, min(left, pacePiece))
			wait, all = max(wait, r.DelayFrom(now)), append(all, r)
		}
	}
	return wait, all
}

// enter lets a device in, or says how long it should stay away because those
// that are served already leave it too little.
func (p *Pacer) enter(device string) (t *turn, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t = p.turns[device]; t != nil {
		t.users++
		return t, 0
	}
	in := p.shared(device)
	for _, b := range in {
		if float64(b.devices+1)*leastShare > float64(b.l.Limit()) {
			return nil, busyMin + rand.N(busyMax-busyMin)
		}
	}
	t = &turn{sem: make(chan struct{}, 1), users: 1, in: in}
	for _, b := range in {
		b.devices++
	}
	p.turns[device] = t
	return t, 0
}

func (p *Pacer) leave(device string, t *turn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.users--; t.users > 0 {
		return
	}
	for _, b := range t.in {
		b.devices--
	}
	delete(p.turns, device)
}

// wait returns when n bytes may go to the device.
func (p *Pacer) wait(ctx context.Context, device string, t *turn, n int) error {
	select {
	case t.sem <- struct{}{}:
		defer func() { <-t.sem }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	d, taken := p.reserve(device, n)
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		for _, r := range taken { // others may have it
			r.CancelAt(p.now())
		}
		return context.Cause(ctx)
	}
}

// serve lets next answer a device at its share of the rates.
func (p *Pacer) serve(w http.ResponseWriter, r *http.Request, device string, next func(http.ResponseWriter)) {
	t, wait := p.enter(device)
	if t == nil {
		w.Header().Set("Retry-After", strconv.Itoa(int(wait.Seconds())+1))
		fail(w, http.StatusServiceUnavailable, "TOOMANYREQUESTS", fmt.Sprintf("the rate of this site or fleet is shared out among other devices: come again in %s", wait.Round(time.Second)))
		return
	}
	defer p.leave(device, t)
	next(&pacedWriter{ResponseWriter: w, ctx: r.Context(), wait: func(ctx context.Context, n int) error { return p.wait(ctx, device, t, n) }})
}

// pacedWriter waits before each piece.
type pacedWriter struct {
	http.ResponseWriter
	ctx  context.Context
	wait func(context.Context, int) error
}

// Write implements io.Writer.
func (w *pacedWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		piece := b[:min(len(b), pacePiece)]
		if err := w.wait(w.ctx, len(piece)); err != nil {
			return n, fmt.Errorf("wait for the rate: %w", err)
		}
		m, err := w.ResponseWriter.Write(piece)
		n += m
		if err != nil {
			return n, err
		}
		b = b[len(piece):]
	}
	return n, nil
}

// Unwrap is for http.ResponseController.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
