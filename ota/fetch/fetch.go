// Package fetch brings blobs into the local store over a poor network: in
// ranges, resumed where the partial stands, never more than the signed length,
// hashed before they are visible.
//
// Invariants: no byte that arrived is asked for again unless the content was
// wrong; a transfer is given up for lack of progress, never for lack of time;
// memory use does not depend on the size of a blob. The agent imports it.
package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/manifest"
)

// What sources and Fetch return, wrapped.
var (
	ErrNotFound  = errors.New("source does not have the blob")
	ErrForbidden = errors.New("source does not give the blob to this device")
	// ErrUnusable is returned by sources that cannot give the blob, now or later.
	ErrUnusable = errors.New("source cannot give the blob")
	// ErrSlow is returned when data came slower than Fetcher.MinRate.
	ErrSlow = errors.New("transfer made no progress")
)

// Source gives ranges of blobs.
type Source interface {
	// Open returns length bytes of d from offset. The reader may end early or
	// give more; the caller checks. It ends with an error when ctx does. The
	// caller closes it. It returns ErrNotFound, ErrForbidden, or what a later
	// try may cure, possibly with a RetryAfter in its chain.
	Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error)
}

// RetryAfter is an error of a source that says when to try again.
type RetryAfter struct {
	Wait time.Duration
	Err  error
}

// Error implements error.
func (r *RetryAfter) Error() string { return fmt.Sprintf("%v (retry after %s)", r.Err, r.Wait) }

// Unwrap returns the cause.
func (r *RetryAfter) Unwrap() error { return r.Err }

// Fetcher fetches blobs from one source. Its methods may be called from
// several goroutines; fields are not changed after the first call.
type Fetcher struct {
	Store  *blob.Store
	Source Source
	// Progress is told about every piece that arrived; it must not block.
	Progress func(d ota.Digest, have, size int64)
	// MinRate in bytes per second and Window: an attempt that receives less
	// than MinRate over a Window is given up and tried anew. Zero means 1 KiB/s
	// over 30 s.
	MinRate int64
	Window  time.Duration
	// Attempts is how many attempts in a row may bring no new byte before
	// Fetch gives up; zero means 8. Attempts that bring bytes do not count.
	Attempts int
	// BaseWait and MaxWait bound the waits between attempts: full jitter, a
	// random time up to BaseWait doubled each time, at most MaxWait. Zero
	// means 1 s and 2 min.
	BaseWait, MaxWait time.Duration

	fetched atomic.Int64
}

const (
	maxRetryAfter  = 10 * time.Minute
	maxWrongHashes = 3 // wrong contents in one Fetch before it gives up: torn tail, wrong beginning, wrong source
)

// BytesFetched returns how many bytes came in since the Fetcher was made,
// those of wrong contents included.
func (f *Fetcher) BytesFetched() int64 { return f.fetched.Load() }

// Fetch returns when the blob of desc is in the store, whole and hashed. It
// resumes a partial, goes on after errors, and gives up when the source does
// not have the blob (ErrNotFound), refuses it (ErrForbidden), sends wrong
// content repeatedly (blob.ErrDigestMismatch), brings nothing in Attempts
// attempts, the disk fails, or ctx ends. What arrived stays for the next Fetch.
func (f *Fetcher) Fetch(ctx context.Context, desc manifest.Descriptor) error {
	return f.FetchFrom(ctx, desc, f.Remote())
}

// FetchFrom is Fetch with a source of its own, which may use Remote. It gives
// up too when that says ErrUnusable.
func (f *Fetcher) FetchFrom(ctx context.Context, desc manifest.Descriptor, from Source) error {
	if err := desc.Validate(); err != nil {
		return err
	}
	if err := f.fetch(ctx, desc, from); err != nil {
		return fmt.Errorf("fetch %s: %w", desc.Digest.Short(), err)
	}
	f.report(desc, desc.Size)
	return nil
}

func (f *Fetcher) fetch(ctx context.Context, desc manifest.Descriptor, from Source) error {
	barren, wrong := 0, 0
	for {
		if n, err := f.Store.Size(desc.Digest); err == nil && n == desc.Size {
			return nil
		}
		got, err := f.attempt(ctx, desc, from)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case permanent(err):
			return err
		case errors.Is(err, blob.ErrDigestMismatch):
			Blame(f.Source, desc.Digest)
			if wrong++; wrong >= maxWrongHashes {
				return err
			}
		case got > 0 && !(errors.Is(err, ErrSlow) && got < f.minRate()*int64(f.window()/time.Second)):
			barren = 0
		default:
			if barren++; barren >= cmp.Or(f.Attempts, 8) {
				return fmt.Errorf("no progress in %d attempts: %w", barren, err)
			}
		}
		if err := f.wait(ctx, max(barren-1, 0), err); err != nil {
			return err
		}
	}
}

func (f *Fetcher) minRate() int64        { return cmp.Or(f.MinRate, 1<<10) }
func (f *Fetcher) window() time.Duration { return cmp.Or(f.Window, 30*time.Second) }

func (f *Fetcher) report(desc manifest.Descriptor, have int64) {
	if f.Progress != nil {
		f.Progress(desc.Digest, have, desc.Size)
	}
}

// localError is an error of this machine, not of the source: trying again
// does not help.
type localError struct{ error }

// Unwrap returns the cause.
func (l localError) Unwrap() error { return l.error }

func permanent(err error) bool {
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrForbidden) || errors.Is(err, ErrUnusable) {
		return true
	}
	_, local := errors.AsType[localError](err)
	return local
}

// attempt makes one transfer from where the partial stands and, when that
// completes it, finishes the blob.
func (f *Fetcher) attempt(ctx context.Context, desc manifest.Descriptor, from Source) (got int64, err error) {
	have, err := f.Store.Partial(desc.Digest)
	if err != nil {
		return 0, localError{err}
	}
	more := false // than the signed length was offered
	if have > desc.Size {
		// Left by a wrong descriptor of the same digest: Finish drops it.
		have = 0
		if err := f.Store.Finish(ctx, desc.Digest, desc.Size); err != nil && !errors.Is(err, blob.ErrTooLong) {
			return 0, localError{err}
		}
	}
	if have < desc.Size {
		got, err = f.transfer(ctx, desc, from, have)
		more = errors.Is(err, blob.ErrTooLong)
		// More than the signed length was offered and left unread; the hash
		// decides about what was read.
		if err != nil && !errors.Is(err, blob.ErrTooLong) {
			return got, err
		}
		if have+got < desc.Size {
			return got, fmt.Errorf("%w: answer ended at byte %d of %d", io.ErrUnexpectedEOF, have+got, desc.Size)
		}
	}
	err = f.Store.Finish(ctx, desc.Digest, desc.Size)
	switch {
	case err == nil || ctx.Err() != nil:
	case !errors.Is(err, blob.ErrDigestMismatch):
		err = localError{err}
	case more:
		err = fmt.Errorf("%w, and more was offered: %w", err, blob.ErrTooLong)
	}
	return got, err
}

// transfer appends what one answer of the source brings.
func (f *Fetcher) transfer(ctx context.Context, desc manifest.Descriptor, from Source, offset int64) (got int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	body := &counted{progress: func(n int64) { f.report(desc, offset+n) }}
	watch.Go(func() { f.watch(ctx, body.moved, cancel) })

	r, err := from.Open(ctx, desc.Digest, offset, desc.Size-offset)
	if err != nil {
		return 0, because(ctx, err)
	}
	body.r = r
	body.from.Store(&r)
	got, err = f.Store.Append(ctx, desc.Digest, offset, desc.Size, body)
	if cerr := r.Close(); err == nil && cerr != nil && got < desc.Size-offset {
		err = fmt.Errorf("close answer: %w", cerr)
	}
	switch {
	case err == nil || errors.Is(err, blob.ErrTooLong):
		return got, err
	case body.err != nil || ctx.Err() != nil:
		return got, because(ctx, err)
	case errors.Is(err, blob.ErrOffset):
		return got, err // another Fetch of the same blob was faster
	}
	return got, localError{err}
}

// because prefers the reason for which ctx was cancelled.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// watch cancels a transfer that brings too little.
func (f *Fetcher) watch(ctx context.Context, moved func() int64, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(f.window())
	defer tick.Stop()
	last := int64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := moved()
		if float64(now-last) < float64(f.minRate())*f.window().Seconds() {
			cancel(fmt.Errorf("%w: %d bytes in %s, want %d a second", ErrSlow, now-last, f.window(), f.minRate()))
			return
		}
		last = now
	}
}

// wait sleeps before the next attempt.
func (f *Fetcher) wait(ctx context.Context, attempt int, cause error) error {
	base, most := cmp.Or(f.BaseWait, time.Second), cmp.Or(f.MaxWait, 2*time.Minute)
	limit := most
	if attempt < 20 && base<<attempt < most {
		limit = base << attempt
	}
	pause := rand.N(limit + 1)
	if ra, ok := errors.AsType[*RetryAfter](cause); ok {
		pause += min(max(ra.Wait, 0), maxRetryAfter)
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// Remote is Source with its bytes counted in BytesFetched.
func (f *Fetcher) Remote() Source { return remote{f} }

type remote struct{ f *Fetcher }

// Open implements Source.
func (r remote) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	body, err := r.f.Source.Open(ctx, d, offset, length)
	if err != nil {
		return nil, err
	}
	return metered{body, &r.f.fetched}, nil
}

// Blame implements Blamer.
func (r remote) Blame(d ota.Digest) { Blame(r.f.Source, d) }

type metered struct {
	io.ReadCloser
	total *atomic.Int64
}

// Read implements io.Reader.
func (m metered) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	m.total.Add(int64(n))
	return n, err
}

// PassedOver forwards that of the body.
func (m metered) PassedOver() int64 { return passedOver(m.ReadCloser) }

// counted counts what a source brings and remembers its error.
type counted struct {
	r        io.Reader
	n        atomic.Int64
	from     atomic.Pointer[io.ReadCloser] // r, once it is open
	progress func(n int64)
	err      error
}

// moved is what came over the network, what was passed over included.
func (c *counted) moved() int64 {
	n := c.n.Load()
	if r := c.from.Load(); r != nil {
		n += passedOver(*r)
	}
	return n
}

// Read implements io.Reader.
func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if n > 0 {
		c.progress(c.n.Add(int64(n)))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		c.err = err
	}
	return n, err
}
