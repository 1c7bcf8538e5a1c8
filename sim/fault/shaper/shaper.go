// Package shaper makes a good network connection bad: latency, jitter,
// bandwidth, loss (as the stall of a retransmission), a black hole, a cut, and
// flipped bits, on any net.Conn. It owns the delay lines of the connections it
// wraps.
//
// Invariants: bytes keep their order and, unless Corrupt is set, their value;
// a hole loses nothing, as TCP would send again; a cut breaks connections as a
// reset does. Time passes only through timers, so it works under synctest;
// equal seeds and equal calls draw equal delays. Only sim imports it.
package shaper

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Profile describes a line. The zero value changes nothing.
type Profile struct {
	Latency   time.Duration // one way
	Jitter    time.Duration // added, evenly drawn from 0 to this
	Bandwidth int64         // bytes per second each way; 0 is unlimited
	Loss      float64       // share of segments that must be sent again
	Stall     time.Duration // what one retransmission costs; 200 ms when zero, doubled for each further loss
	Corrupt   float64       // share of kilobytes in which one bit flips
	Buffer    int           // bytes that one direction holds before writers wait; 64 KiB when zero
}

func (p Profile) buffer() int { return cmp.Or(p.Buffer, buffered) }

const (
	segment   = 1460
	buffered  = 64 << 10
	linger    = 5 * time.Second
	stallOnce = 200 * time.Millisecond
	stallMost = 6
)

// Link is the line of one device: every connection over it shares its profile
// and its fate. It is safe for concurrent use.
type Link struct {
	seed           uint64
	sent, received atomic.Int64
	stalls         atomic.Int64

	mu      sync.Mutex // guards what follows
	profile Profile
	down    bool
	open    chan struct{} // closed while bytes may pass
	holed   bool
	conns   map[*conn]bool
	made    uint64
}

// New returns a line with a profile; draws come from the seed.
func New(p Profile, seed uint64) *Link {
	open := make(chan struct{})
	close(open)
	return &Link{seed: seed, profile: p, open: open, conns: map[*conn]bool{}}
}

// Set changes the profile for bytes written or received from now on.
func (l *Link) Set(p Profile) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.profile = p
}

// Profile returns the profile in force.
func (l *Link) Profile() Profile {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.profile
}

// Cut breaks every connection and refuses new ones until Restore.
func (l *Link) Cut() {
	l.mu.Lock()
	l.down = true
	conns := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		c.reset()
	}
}

// Hole keeps connections but lets nothing pass until Restore; what was written
// meanwhile arrives then. Dials wait.
func (l *Link) Hole() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.holed {
		l.holed = true
		l.open = make(chan struct{})
	}
}

// Restore ends a cut and a hole.
func (l *Link) Restore() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = false
	if l.holed {
		l.holed = false
		close(l.open)
	}
}

// Sent is the number of bytes that left the device, Received of those that
// reached it, Stalls of retransmissions drawn.
func (l *Link) Sent() int64     { return l.sent.Load() }
func (l *Link) Received() int64 { return l.received.Load() }
func (l *Link) Stalls() int64   { return l.stalls.Load() }

// DialFunc is the shape of net.Dialer.DialContext.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Dial wraps a dial function: it costs a round trip, fails while the line is
// cut, and waits while it is a black hole.
func (l *Link) Dial(dial DialFunc) DialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		fail := func(err error) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: network, Err: err}
		}
		if err := wait(ctx, 2*l.Profile().Latency); err != nil {
			return fail(err)
		}
		_, open := l.state()
		select {
		case <-open:
		case <-ctx.Done():
			return fail(ctx.Err())
		}
		if down, _ := l.state(); down {
			return fail(syscall.ENETUNREACH)
		}
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return l.Wrap(c), nil
	}
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *Link) state() (down bool, open <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.down, l.open
}

// Wrap puts a connection of the device onto the line. Closing what it returns
// closes inner after what was written has left, at most 5 s later; Cut ends it
// at once, as a test in a synctest bubble may want to.
func (l *Link) Wrap(inner net.Conn) net.Conn {
	l.mu.Lock()
	l.made++
	c := &conn{Conn: inner, link: l, dead: make(chan struct{}), closed: make(chan struct{})}
	c.up.start(l.seed, 2*l.made)
	c.down.start(l.seed, 2*l.made+1)
	c.readBy.init()
	c.writeBy.init()
	down := l.down
	l.conns[c] = true
	l.mu.Unlock()
	go c.pumpUp()
	go c.pumpDown()
	if down {
		c.reset()
	}
	return c
}

// piece is a segment on its way.
type piece struct {
	due  time.Time
	data []byte
	err  error // the end of the stream
}

// line is one direction of a connection. Its mutex is never held together
// with the link's.
type line struct {
	mu      sync.Mutex // guards what follows
	rng     *rand.Rand
	pieces  []piece
	size    int
	last    time.Time     // due time of the newest piece
	free    time.Time     // when the line has sent all so far, for bandwidth
	changed chan struct{} // closed and replaced on every change
}

func (q *line) start(seed, n uint64) {
	q.rng = rand.New(rand.NewPCG(seed, n))
	q.changed = make(chan struct{})
}

// wake tells everybody who waits on q; mu is held.
func (q *line) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// add puts data onto the line in segments and counts the stalls drawn.
func (q *line) add(p Profile, data []byte, err error) (stalls int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for len(data) > 0 || err != nil {
		n := min(segment, len(data))
		part := append([]byte(nil), data[:n]...)
		data = data[n:]
		due := now
		if p.Bandwidth > 0 {
			if q.free.Before(now) {
				q.free = now
			}
			q.free = q.free.Add(time.Duration(float64(n) / float64(p.Bandwidth) * float64(time.Second)))
			due = q.free
		}
		due = due.Add(p.Latency)
		if p.Jitter > 0 {
			due = due.Add(time.Duration(q.rng.Int64N(int64(p.Jitter))))
		}
		stall := p.Stall
		if stall == 0 {
			stall = stallOnce
		}
		for i := 0; i < stallMost && p.Loss > 0 && n > 0 && q.rng.Float64() < p.Loss; i++ {
			due = due.Add(stall << i)
			stalls++
		}
		if p.Corrupt > 0 && n > 0 && q.rng.Float64() < p.Corrupt*float64(n)/1024 {
			part[q.rng.IntN(n)] ^= 1 << q.rng.IntN(8)
		}
		if due.Before(q.last) {
			due = q.last // order is kept, so one stall holds up all behind it
		}
		q.last = due
		q.pieces = append(q.pieces, piece{due: due, data: part})
		q.size += n
		if len(data) == 0 {
			if err != nil {
				q.pieces[len(q.pieces)-1].err = err
			}
			break
		}
	}
	q.wake()
	return stalls
}

// head returns the oldest piece, if any, how much is queued, and what to wait
// on for a change.
func (q *line) head() (p piece, ok bool, size int, changed <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pieces) > 0 {
		p, ok = q.pieces[0], true
	}
	return p, ok, q.size, q.changed
}

// take removes n bytes of the oldest piece, and it once nothing is left.
func (q *line) take(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	h := &q.pieces[0]
	h.data = h.data[n:]
	q.size -= n
	if len(h.data) == 0 && h.err == nil {
		q.pieces = q.pieces[1:]
	}
	q.wake()
}
