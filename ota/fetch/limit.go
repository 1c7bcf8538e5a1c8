package fetch

import (
	"context"
	"fmt"
	"io"
	"sync"

	"golang.org/x/time/rate"

	"github.com/skein-fleet/skein/ota"
)

// Limiter lets bytes pass at its pace; *rate.Limiter and *Bucket are ones.
type Limiter interface {
	// WaitN returns when n bytes may pass, or an error when ctx ends before.
	WaitN(ctx context.Context, n int) error
}

// limitPiece is the most bytes that are waited for at once.
const limitPiece = 16 << 10

// Limit is s at the pace of l: each piece of at most 16 KiB is waited for
// before it is read, so that what the network holds back is no more than a
// socket's buffer. Several sources may share l.
func Limit(s Source, l Limiter) Source { return limited{s, l} }

type limited struct {
	Source
	l Limiter
}

// Open implements Source.
func (s limited) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	r, err := s.Source.Open(ctx, d, offset, length)
	if err != nil {
		return nil, err
	}
	return &limitedReader{ReadCloser: r, ctx: ctx, l: s.l, left: length}, nil
}

// Blame implements Blamer.
func (s limited) Blame(d ota.Digest) { Blame(s.Source, d) }

type limitedReader struct {
	io.ReadCloser
	ctx  context.Context
	l    Limiter
	left int64 // of the range that was asked for
	paid int   // waited for and not read yet
}

// Read implements io.Reader.
func (r *limitedReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.paid == 0 && r.left > 0 { // what lies behind the range is the caller's to refuse
		n := int(min(int64(len(p)), limitPiece, r.left))
		if err := r.l.WaitN(r.ctx, n); err != nil {
			if cause := context.Cause(r.ctx); cause != nil {
				err = cause
			}
			return 0, fmt.Errorf("wait for the rate limit: %w", err)
		}
		r.paid = n
	}
	if r.left > 0 {
		p = p[:min(len(p), r.paid)]
	}
	n, err := r.ReadCloser.Read(p)
	r.paid, r.left = max(0, r.paid-n), max(0, r.left-int64(n))
	return n, err
}

// PassedOver forwards that of the body.
func (r *limitedReader) PassedOver() int64 { return passedOver(r.ReadCloser) }

// Bucket is a token bucket of bytes whose rate may change while it is used. The
// zero value lets everything pass.
type Bucket struct {
	mu sync.Mutex // guards l
	l  *rate.Limiter
}

// burstOf is a quarter of a second, and never less than a piece.
func burstOf(bytesPerSecond int64) int { return int(max(limitPiece, min(bytesPerSecond/4, 1<<20))) }

// Set changes the rate; zero lifts the limit.
func (b *Bucket) Set(bytesPerSecond int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case bytesPerSecond <= 0:
		b.l = nil
	case b.l == nil:
		b.l = rate.NewLimiter(rate.Limit(bytesPerSecond), burstOf(bytesPerSecond))
	case b.l.Limit() != rate.Limit(bytesPerSecond):
		b.l.SetLimit(rate.Limit(bytesPerSecond))
		b.l.SetBurst(burstOf(bytesPerSecond))
	}
}

// WaitN implements Limiter.
func (b *Bucket) WaitN(ctx context.Context, n int) error {
	for n > 0 {
		b.mu.Lock()
		l := b.l
		b.mu.Unlock()
		if l == nil {
			return ctx.Err()
		}
		piece := min(n, limitPiece)
		if err := l.WaitN(ctx, piece); err != nil {
			return err
		}
		n -= piece
	}
	return nil
}
