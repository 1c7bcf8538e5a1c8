package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
)

// Named is one way to bytes.
type Named struct {
	// Name is the kind of way, as reports say it: peer, https, mqtt, child.
	Name   string
	Source Source
	// Key tells ways of one name apart (several peers), so that each is judged
	// by itself; empty means Name.
	Key string
	// Patience is how long Open may take while another way is left to try;
	// zero means 15 s.
	Patience time.Duration
}

func (n Named) key() string { return cmp.Or(n.Key, n.Name) }

// Blamer is a Source that wants to know when what it gave was wrong.
type Blamer interface {
	// Blame is called when bytes of d had the wrong hash.
	Blame(d ota.Digest)
}

// Blame tells s that bytes of d were wrong, if s wants to know.
func Blame(s Source, d ota.Digest) {
	if b, ok := s.(Blamer); ok {
		b.Blame(d)
	}
}

const (
	patience     = 15 * time.Second
	failedMin    = 5 * time.Second // how long a way is avoided after it failed, doubled each time
	failedMax    = 10 * time.Minute
	liedMin      = 10 * time.Minute // after it gave wrong content
	liedMax      = 6 * time.Hour
	absentFor    = 30 * time.Second // after it said that it lacks this blob
	provenBytes  = 1 << 20          // what a way brings without a break makes its past good
	maxRemember  = 256              // ways, absences
	maxDelivered = 64               // blobs whose givers are known
)

// Chain is a Source made of several, tried in the order that list gives, which
// is by cost. One that failed, stalled or gave wrong content is avoided for a
// time that doubles, with jitter, and is still asked when nothing else works.
// A transfer by a dearer way goes over to a cheaper one when that one's time is
// up. Its methods may be called from several goroutines.
type Chain struct {
	now  func() time.Time
	list func() []Named
	// Told is called when a way that was trusted gave wrong content. It is set
	// before the first use.
	Told func(way string, d ota.Digest)

	mu        sync.Mutex // guards what follows
	ways      map[string]*way
	absent    map[absence]time.Time
	bytes     map[string]int64
	delivered map[ota.Digest][]string // keys of who gave bytes of it
	order     []ota.Digest            // of delivered, oldest first
}

// way is what is known of one source.
type way struct {
	failures, lies int
	until          time.Time // avoided until then
	last           error     // why
}

type absence struct {
	key  string
	blob ota.Digest
}

// NewChain returns the chain of what list gives at each Open.
func NewChain(now func() time.Time, list func() []Named) *Chain {
	return &Chain{
		now: now, list: list, ways: map[string]*way{}, absent: map[absence]time.Time{},
		bytes: map[string]int64{}, delivered: map[ota.Digest][]string{},
	}
}

// Bytes returns how many bytes each name brought since the chain was made.
func (c *Chain) Bytes() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.bytes)
}

// Avoided returns why each way is avoided now, by name: those that failed or
// lied, not those that only asked for patience.
func (c *Chain) Avoided() map[string]error {
	names := c.list()
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]error{}
	for _, n := range names {
		if w := c.ways[n.key()]; w != nil && c.now().Before(w.until) && w.last != nil {
			out[n.Name] = w.last
		}
	}
	return out
}

// Failed notes that the way with this key does not work, as somebody else saw
// who uses it too.
func (c *Chain) Failed(key string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.way(key)
	w.failures++
	w.last = err
	if until := c.later(failedMin, failedMax, w.failures); until.After(w.until) {
		w.until = until
	}
}

// Blame implements Blamer: all who gave bytes of d are avoided for long.
func (c *Chain) Blame(d ota.Digest) {
	for _, key := range c.blame(d) {
		if c.Told != nil {
			c.Told(key, d)
		}
	}
}

// blame returns the keys of those who were trusted until now.
func (c *Chain) blame(d ota.Digest) (trusted []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range c.guilty(c.delivered[d]) {
		w := c.way(key)
		if w.lies == 0 || !c.now().Before(w.until) {
			trusted = append(trusted, key)
		}
		w.lies++
		w.last = fmt.Errorf("bytes of %s were wrong", d.Short())
		w.until = c.later(liedMin, liedMax, w.lies)
	}
	delete(c.delivered, d)
	c.order = slices.DeleteFunc(c.order, func(o ota.Digest) bool { return o == d })
	return trusted
}

// guilty picks from those who gave bytes of what turned out wrong. Where some
// of them broke off and others brought it to its end, it was the former: else
// who gives one wrong byte and stalls would have the honest ways avoided with
// it. c.mu is held.
func (c *Chain) guilty(givers []string) []string {
	failed := slices.DeleteFunc(slices.Clone(givers), func(key string) bool {
		w := c.ways[key]
		return w == nil || w.failures == 0
	})
	if len(failed) == 0 {
		return givers
	}
	return failed
}

// later is a time from now, doubled for each time it happened in a row, of
// which half is jitter.
func (c *Chain) later(least, most time.Duration, times int) time.Time {
	d := most
	if n := times - 1; n < 20 && least<<n < most {
		d = least << n
	}
	return c.now().Add(d/2 + rand.N(d/2+1))
}

// way returns what is known of key. c.mu is held.
func (c *Chain) way(key string) *way {
	w := c.ways[key]
	if w == nil {
		if len(c.ways) >= maxRemember {
			now := c.now()
			maps.DeleteFunc(c.ways, func(_ string, w *way) bool { return !now.Before(w.until) })
		}
		if len(c.ways) >= maxRemember {
			clear(c.ways)
		}
		w = &way{}
		c.ways[key] = w
	}
	return w
}

// candidate is a way to try now.
type candidate struct {
	Named
	rank    int // in the order of cost
	avoided bool
	lies    int
	until   time.Time
}

// candidates returns the ways in the order to try them: by cost, and those
// that are avoided last, liars behind all others.
func (c *Chain) candidates(d ota.Digest) []candidate {
	names := c.list()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	out := make([]candidate, len(names))
	for i, n := range names {
		out[i] = candidate{Named: n, rank: i}
		if w := c.ways[n.key()]; w != nil && now.Before(w.until) {
			out[i].avoided, out[i].lies, out[i].until = true, w.lies, w.until
		}
		if until := c.absent[absence{n.key(), d}]; now.Before(until) {
			out[i].avoided = true
			if until.After(out[i].until) {
				out[i].until = until
			}
		}
	}
	slices.SortStableFunc(out, func(a, b candidate) int {
		switch {
		case a.avoided != b.avoided:
			if b.avoided {
				return -1
			}
			return 1
		case !a.avoided:
			return 0
		}
		return cmp.Or(cmp.Compare(a.lies, b.lies), a.until.Compare(b.until))
	})
	return out
}

// Open implements Source.
func (c *Chain) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	tries := c.candidates(d)
	if len(tries) == 0 {
		return nil, fmt.Errorf("%w: there is no way to blobs", ErrUnusable)
	}
	r := &chainReader{c: c, ctx: ctx, blob: d, at: offset, end: offset + length}
	var later, never []error
	for i, t := range tries {
		err := r.open(t, i < len(tries)-1)
		switch {
		case err == nil:
			r.dueAgain()
			return r, nil
		case ctx.Err() != nil:
			return nil, err
		case errors.Is(err, ErrNotFound) || errors.Is(err, ErrForbidden) || errors.Is(err, ErrUnusable):
			never = append(never, err)
		default:
			later = append(later, err)
		}
	}
	if len(later) > 0 {
		// What one lacks, another may have: that is worth another try.
		return nil, allFailed(later)
	}
	return nil, allFailed(never)
}

// allFailed are the errors of all ways, in one line.
type allFailed []error

// Error implements error.
func (a allFailed) Error() string {
	texts := make([]string, len(a))
	for i, err := range a {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns all of them.
func (a allFailed) Unwrap() []error { return a }

// judge notes that an Open or a transfer of n bytes by this way ended with err.
func (c *Chain) judge(ctx context.Context, t candidate, d ota.Digest, n int64, err error) {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, ErrSlow) {
		return // the caller had enough, not the way
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrForbidden) || errors.Is(err, ErrUnusable) {
		if len(c.absent) >= maxRemember {
			clear(c.absent)
		}
		c.absent[absence{t.key(), d}] = c.later(absentFor, absentFor, 1)
		return
	}
	w := c.way(t.key())
	if n >= provenBytes {
		w.failures = 0
	}
	w.failures++
	w.last = err
	until := c.later(failedMin, failedMax, w.failures)
	if ra, ok := errors.AsType[*RetryAfter](err); ok { // it works, later
		w.failures--
		w.last = nil
		asked := max(0, min(ra.Wait, maxRetryAfter))
		until = c.now().Add(asked + rand.N(asked/4+time.Millisecond))
	}
	if until.After(w.until) {
		w.until = until
	}
}

// deliver counts bytes of d that came by this way.
func (c *Chain) deliver(t candidate, d ota.Digest, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes[t.Name] += int64(n)
	givers, known := c.delivered[d]
	if slices.Contains(givers, t.key()) {
		return
	}
	if !known {
		if len(c.order) >= maxDelivered {
			delete(c.delivered, c.order[0])
			c.order = c.order[1:]
		}
		c.order = append(c.order, d)
	}
	c.delivered[d] = append(givers, t.key())
}

// good notes that a way brought all that was asked for.
func (c *Chain) good(t candidate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.ways[t.key()]; w != nil {
		w.failures = 0
		if w.lies == 0 {
			delete(c.ways, t.key())
		}
	}
}
