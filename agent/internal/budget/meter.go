package budget

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
)

type exemptKey struct{}

// Exempt marks transfers that no allowance may hold up: the committed release
// is brought back by them.
func (g *Gate) Exempt(ctx context.Context) context.Context {
	return context.WithValue(ctx, exemptKey{}, true)
}

// Meter is s with its bytes counted against the allowances and at the policy's
// rate: for ways that go through the default route.
func (g *Gate) Meter(s fetch.Source) fetch.Source {
	return fetch.Limit(metered{s, g}, &g.bucket)
}

type metered struct {
	fetch.Source
	g *Gate
}

// piece is the most that is counted for one read.
const piece = 64 << 10

// Open implements fetch.Source. It asks for no more than may come, so that
// nothing lies in the network that was not counted.
func (m metered) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	exempt := ctx.Value(exemptKey{}) != nil
	want := length
	if !exempt {
		left, err := m.g.openable()
		if err != nil {
			return nil, asLater(err)
		}
		if left >= 0 {
			want = min(want, left)
		}
	}
	r, err := m.Source.Open(ctx, d, offset, want)
	if err != nil {
		return nil, err
	}
	return &meteredReader{ReadCloser: r, g: m.g, exempt: exempt, left: want, short: want < length}, nil
}

// Blame implements fetch.Blamer.
func (m metered) Blame(d ota.Digest) { fetch.Blame(m.Source, d) }

// openable returns how many bytes may come now, -1 for no bound.
func (g *Gate) openable() (int64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.plan.now {
		return -1, nil
	}
	now, doubtful := g.cfg.Clock()
	left, hold := g.left(g.class(now), now, doubtful)
	if hold != nil {
		g.wake() // a download that goes on must be told
		return 0, hold
	}
	return left, nil
}

type meteredReader struct {
	io.ReadCloser
	g      *Gate
	exempt bool
	left   int64 // of what was asked for
	short  bool  // less was asked for than the caller wanted
	passed int64 // of what was passed over, counted
}

// Read implements io.Reader.
func (r *meteredReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	c, err := r.g.take(int64(min(len(p), piece)), r.exempt)
	if err != nil {
		return 0, asLater(err)
	}
	got, err := r.ReadCloser.Read(p[:c.n])
	r.g.giveBack(c, c.n-int64(got))
	r.left -= int64(got)
	if passed := r.PassedOver(); passed > r.passed { // came and was not asked for
		if _, terr := r.g.take(passed-r.passed, true); terr != nil {
			err = errors.Join(err, terr)
		}
		r.passed = passed
	}
	if errors.Is(err, io.EOF) && r.short && r.left <= 0 {
		// All that may come has: the next Open says what to wait for.
		if _, held := r.g.openable(); held != nil {
			return got, asLater(held)
		}
	}
	return got, err
}

// PassedOver forwards that of the body.
func (r *meteredReader) PassedOver() int64 {
	if p, ok := r.ReadCloser.(interface{ PassedOver() int64 }); ok {
		return p.PassedOver()
	}
	return 0
}

// asLater makes a hold an error that is no fault of the source.
func asLater(err error) error {
	if h, ok := errors.AsType[*Hold](err); ok {
		return &fetch.RetryAfter{Wait: lookEvery, Err: fmt.Errorf("the policy: %w", h)}
	}
	return err
}
