package stream

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/skein-fleet/skein/proto/wire"
)

// Config of a Receiver. Either Digest or Name is set.
type Config struct {
	Stream uint64
	Digest []byte // sha256 of the blob
	Name   string // of a file of trust metadata
	Offset int64
	Length int64 // with Name 0: all of the file
	// Most bounds the length of a file.
	Most int64
	Span int64 // bytes kept out of order or unread at most
	Pace *Pace
}

// Stats count what came.
type Stats struct {
	Blocks  int64 // that were taken
	Again   int64 // that were asked for again
	Doubled int64 // that came once more than needed
}

// Receiver is the device's end of one stream. Its methods are not safe for
// concurrent use.
type Receiver struct {
	cfg   Config
	block int

	known  bool // how long the stream is
	length int64
	tag    []byte
	blocks uint64

	low, next uint64            // first block not given out, first never asked for
	data      map[uint64][]byte // that came, from low
	into      int               // bytes of low given out
	asked     map[uint64]ask    // on their way
	line      []ask             // the same in the order of asking; stale ones stay until they are first
	lost      []uint64          // to ask for again, ascending

	seq, order uint64
	late       [tolerance]uint64 // the highest orders that arrived, highest first
	delivered  int64
	heard      time.Time // last arrival or request
	arrived    time.Time // last arrival, or the first request
	silences   int       // timeouts since the last arrival
	lastSeq    uint64    // the newest request when the silence began
	err        error
	stats      Stats
}

// tolerance is how many later answers must come before one is taken for lost:
// some ways change the order.
const tolerance = 3

// ask is one block on its way.
type ask struct {
	block, seq, order uint64
	at                time.Time
	delivered         int64 // bytes that had come by then
}

// NewReceiver returns a stream that has asked for nothing yet.
func NewReceiver(c Config) (*Receiver, error) {
	if (len(c.Digest) == 0) == (c.Name == "") || c.Offset < 0 || c.Length < 0 || (c.Name == "") == (c.Length == 0) {
		return nil, fmt.Errorf("%w: stream of digest %x, name %q, %d+%d", ErrLie, c.Digest, c.Name, c.Offset, c.Length)
	}
	r := &Receiver{cfg: c, block: Block, blocks: 1, known: c.Name == "", length: c.Length, data: map[uint64][]byte{}, asked: map[uint64]ask{}}
	if r.known {
		r.blocks = blocksOf(c.Length, r.block)
	}
	return r, nil
}

// Stats returns what came so far.
func (r *Receiver) Stats() Stats { return r.stats }

// Err returns why the stream cannot go on.
func (r *Receiver) Err() error { return r.err }

// Done reports that all was given out.
func (r *Receiver) Done() bool { return r.known && r.low == r.blocks }

// Complete reports that nothing is to be asked for any more.
func (r *Receiver) Complete() bool {
	return r.known && r.next == r.blocks && len(r.asked) == 0 && len(r.lost) == 0
}

// spanBlocks is how many blocks from low may be asked for.
func (r *Receiver) spanBlocks() uint64 {
	return min(max(uint64(r.cfg.Span)/uint64(r.block), 4), MaxQueued/2)
}

// Next returns the request to send now, nil when there is none. It takes for
// lost what is overdue.
func (r *Receiver) Next(now time.Time) *wire.Get {
	if r.err != nil {
		return nil
	}
	if len(r.asked) > 0 && !now.Before(r.Deadline()) {
		if !r.overtaken() {
			if r.silences++; r.silences == 1 {
				r.lastSeq = r.seq
			}
		}
		r.Lost()
	}
	span := r.spanBlocks()
	end := min(r.blocks, r.low+span)
	run := int64(r.cfg.Pace.run())
	window := max(r.cfg.Pace.window()/int64(r.block), 2*run, 4)
	if r.silences > 0 {
		window = 4 // what does not answer is not asked for more
	}
	window = min(window, int64(span))
	room := window - int64(len(r.asked))
	if room >= 0 {
		r.cfg.Pace.isDrained(now)
	}
	fresh := int64(end - r.next)
	n := min(room, int64(len(r.lost))+fresh)
	if n <= 0 {
		return nil
	}
	urgent := len(r.asked) == 0 || len(r.lost) > 0 && r.lost[0] == r.low
	rest := int64(len(r.lost)) + int64(r.blocks-r.next)
	if !urgent && n < window/4 && n < rest {
		return nil // few at a time are not worth a message
	}
	if n < rest && n > run {
		n -= n % run // whole answers
	}
	return r.request(now, n)
}

// request asks for n blocks, lost ones first.
func (r *Receiver) request(now time.Time, n int64) *wire.Get {
	r.seq++
	again := min(n, int64(len(r.lost)))
	want := append(make([]uint64, 0, n), r.lost[:again]...)
	r.lost = slices.Delete(r.lost, 0, int(again))
	r.stats.Again += again
	for ; int64(len(want)) < n; r.next++ {
		want = append(want, r.next)
	}
	g := &wire.Get{
		Stream: r.cfg.Stream, Digest: r.cfg.Digest, Name: r.cfg.Name, Offset: r.cfg.Offset, Length: r.cfg.Length,
		Block: r.block, Run: r.cfg.Pace.run(), Seq: r.seq, Base: want[0],
	}
	wanted := bitmap(make([]byte, (want[len(want)-1]-want[0])/8+1))
	for _, b := range want {
		wanted.set(b - want[0])
		r.order++
		a := ask{block: b, seq: r.seq, order: r.order, at: now, delivered: r.delivered}
		r.asked[b] = a
		r.line = append(r.line, a)
	}
	g.Wanted = wanted
	r.heard = now
	if r.arrived.IsZero() {
		r.arrived = now
	}
	return g
}

// Stop returns the request that ends the stream at the server, nil when the
// server has nothing left to send.
func (r *Receiver) Stop() *wire.Get {
	if len(r.asked) == 0 {
		return nil
	}
	r.seq++
	return &wire.Get{
		Stream: r.cfg.Stream, Digest: r.cfg.Digest, Name: r.cfg.Name, Offset: r.cfg.Offset, Length: r.cfg.Length,
		Block: r.block, Run: r.cfg.Pace.run(), Seq: r.seq, Stop: true,
	}
}

// Deadline is when Next should be called again if nothing arrives; zero when
// nothing is on its way.
func (r *Receiver) Deadline() time.Time {
	if len(r.asked) == 0 || r.err != nil {
		return time.Time{}
	}
	if r.overtaken() {
		return r.heard.Add(r.cfg.Pace.reordering())
	}
	return r.heard.Add(r.cfg.Pace.timeout(r.silences))
}

// overtaken reports that something came that was asked for after all that is
// still on its way: then that is late at most by what the way puts out of order.
func (r *Receiver) overtaken() bool {
	for i := len(r.line) - 1; i >= 0; i-- {
		if a := r.line[i]; r.asked[a.block].order == a.order {
			return a.order < r.late[0]
		}
	}
	return false
}

// Lost takes all that is on its way for lost, for example because the
// connection was.
func (r *Receiver) Lost() {
	for b := range r.asked {
		r.lost = append(r.lost, b)
	}
	slices.Sort(r.lost)
	clear(r.asked)
	r.line = r.line[:0]
	r.late = [tolerance]uint64{}
}

// Take takes what arrived. ErrLie leaves the stream as it was; Err tells what
// ends it.
func (r *Receiver) Take(now time.Time, c *wire.Chunk) error {
	if r.err != nil || c.Stream != r.cfg.Stream {
		return nil
	}
	if c.Seq == 0 || c.Seq > r.seq {
		return fmt.Errorf("%w: it answers request %d of %d", ErrLie, c.Seq, r.seq)
	}
	if c.Refused != 0 {
		r.err = &Refused{Why: c.Refused, Message: c.Message, Wait: time.Duration(min(max(c.Wait, 0), int64(time.Hour/time.Millisecond))) * time.Millisecond}
		return nil
	}
	if err := r.measure(c); err != nil {
		return err
	}
	parts, err := r.split(c)
	if err != nil {
		return err
	}
	if r.silences > 0 && c.Seq <= r.lastSeq {
		// It was on its way all the time: the line became slow.
		r.cfg.Pace.slack = max(r.cfg.Pace.slack, now.Sub(r.arrived))
	}
	r.heard, r.arrived, r.silences = now, now, 0
	newest := ask{}
	for i, part := range parts {
		if a := r.put(c.First+uint64(i), c.Seq, part); a.order > newest.order {
			newest = a
		}
	}
	if newest.order > 0 {
		r.cfg.Pace.answered(now, now.Sub(newest.at), r.delivered-newest.delivered)
		r.note(newest.order)
		r.findLost()
	}
	return nil
}

// measure holds what the answer says of the whole against what is known.
func (r *Receiver) measure(c *wire.Chunk) error {
	switch {
	case r.cfg.Name == "":
		if c.Size < r.cfg.Offset+r.length {
			return fmt.Errorf("%w: a blob of %d bytes, asked for %d+%d", ErrLie, c.Size, r.cfg.Offset, r.length)
		}
	case r.known:
		if c.Size != r.cfg.Offset+r.length || !bytes.Equal(c.Tag, r.tag) {
			r.err = fmt.Errorf("%s: %w", r.cfg.Name, ErrChanged)
		}
	case c.Size <= 0 || c.Size > r.cfg.Most || len(c.Tag) != 8:
		return fmt.Errorf("%w: a file of %d bytes, at most %d, tag of %d bytes", ErrLie, c.Size, r.cfg.Most, len(c.Tag))
	default:
		r.known, r.length, r.tag = true, c.Size-r.cfg.Offset, bytes.Clone(c.Tag)
		r.blocks = blocksOf(r.length, r.block)
	}
	return r.err
}

// split cuts an answer into its blocks.
func (r *Receiver) split(c *wire.Chunk) ([][]byte, error) {
	var parts [][]byte
	rest, b := c.Data, c.First
	for len(rest) > 0 {
		if b >= r.next || b >= r.blocks {
			return nil, fmt.Errorf("%w: block %d, asked for %d of %d", ErrLie, b, r.next, r.blocks)
		}
		n := int64(r.block)
		if b == r.blocks-1 {
			n = r.length - int64(b)*n
		}
		if int64(len(rest)) < n {
			return nil, fmt.Errorf("%w: %d bytes from block %d are no whole blocks", ErrLie, len(c.Data), c.First)
		}
		parts = append(parts, rest[:n:n])
		rest, b = rest[n:], b+1
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("%w: an answer without data", ErrLie)
	}
	return parts, nil
}

// put takes one block and returns the question that it answers, if it is on
// its way.
func (r *Receiver) put(b, seq uint64, part []byte) (a ask) {
	a, onWay := r.asked[b]
	if !onWay {
		i, missing := slices.BinarySearch(r.lost, b)
		if !missing {
			r.stats.Doubled++
			return a
		}
		r.lost = slices.Delete(r.lost, i, i+1) // late, not lost
	}
	delete(r.asked, b)
	r.data[b] = part
	r.stats.Blocks++
	r.delivered += int64(len(part))
	if a.seq != seq {
		return ask{}
	}
	return a
}

// note keeps the highest orders that arrived.
func (r *Receiver) note(order uint64) {
	for i, o := range r.late {
		if order > o {
			copy(r.late[i+1:], r.late[i:])
			r.late[i] = order
			return
		}
	}
}

// findLost takes for lost what was asked for before enough that arrived.
func (r *Receiver) findLost() {
	bound := r.late[tolerance-1]
	n := 0
	for ; n < len(r.line) && r.line[n].order < bound; n++ {
		a := r.line[n]
		if now, ok := r.asked[a.block]; ok && now.order == a.order {
			delete(r.asked, a.block)
			i, _ := slices.BinarySearch(r.lost, a.block)
			r.lost = slices.Insert(r.lost, i, a.block)
		}
	}
	r.line = slices.Delete(r.line, 0, n)
}

// Read gives out the next bytes in order, 0 when they are not here.
func (r *Receiver) Read(p []byte) int {
	total := 0
	for len(p) > 0 {
		part, ok := r.data[r.low]
		if !ok {
			break
		}
		n := copy(p, part[r.into:])
		total, p, r.into = total+n, p[n:], r.into+n
		if r.into == len(part) {
			delete(r.data, r.low)
			r.low, r.into = r.low+1, 0
		}
	}
	return total
}

// Tagged reports whether b is the file that the server meant; a blob has its
// digest for that.
func (r *Receiver) Tagged(b []byte) bool {
	sum := sha256.Sum256(b)
	return bytes.Equal(r.tag, sum[:8])
}
