package stream

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/proto/wire"
)

// line is a way between a device and a server in simulated time: it has a
// rate, a delay, and loses, doubles and delays messages as told.
type line struct {
	rng                 *rand.Rand
	delay               time.Duration // one way
	rate                float64       // bytes per second down; 0: no limit
	lose, double, shift float64       // shares of messages
	loseUp              float64
	change              func(l *line, sent int64) // after so many bytes down
	total               int64                     // bytes sent down
	free                time.Time                 // when the way down is free again
	last                time.Time                 // arrival of the newest, for order
	events              []event
	n                   int
	lost, sent          int64 // blocks
}

// event is a message that arrives.
type event struct {
	at time.Time
	n  int
	up *wire.Get
	c  *wire.Chunk
}

func (l *line) add(at time.Time, e event) {
	l.n++
	e.at, e.n = at, l.n
	i, _ := slices.BinarySearchFunc(l.events, e, func(a, b event) int {
		return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.n, b.n))
	})
	l.events = slices.Insert(l.events, i, e)
}

func (l *line) chance(p float64) bool { return p > 0 && l.rng.Float64() < p }

func (l *line) up(now time.Time, g *wire.Get) {
	if l.chance(l.loseUp) {
		return
	}
	at := now.Add(l.delay)
	if l.chance(l.shift) {
		at = at.Add(time.Duration(l.rng.Float64() * float64(3*l.delay)))
	}
	l.add(at, event{up: g})
	if l.chance(l.double) {
		l.add(at.Add(l.delay/2), event{up: g})
	}
}

func (l *line) down(now time.Time, c *wire.Chunk, blocks int64) {
	l.sent += blocks
	if l.total += int64(len(c.Data)); l.change != nil {
		l.change(l, l.total)
	}
	at := now
	if l.rate > 0 {
		if l.free.Before(now) {
			l.free = now
		}
		l.free = l.free.Add(time.Duration(float64(len(c.Data)) / l.rate * 1e9))
		at = l.free
	}
	if l.chance(l.lose) {
		l.lost += blocks
		return
	}
	at = at.Add(l.delay)
	if l.chance(l.shift) {
		at = at.Add(time.Duration(l.rng.Float64() * float64(3*l.delay)))
	}
	l.add(at, event{c: c})
	if l.chance(l.double) {
		l.add(at.Add(l.delay/2), event{c: c})
	}
}

// transfer runs a whole stream over the line and returns what came and when.
func transfer(t interface{ Fatalf(string, ...any) }, l *line, data []byte, cfg Config) (got []byte, took time.Duration, st Stats) {
	start := time.Unix(1700000000, 0)
	now := start
	r, err := NewReceiver(cfg)
	if err != nil {
		t.Fatalf("receiver: %v", err)
	}
	var s *Sender
	sum := sha256.Sum256(data)
	buf := make([]byte, 64<<10)
	busy := time.Time{} // when the server may send again: the queue before it is short
	for steps := 0; !r.Done(); steps++ {
		if steps > 2_000_000 || now.Sub(start) > 24*time.Hour {
			t.Fatalf("no end: %+v after %s", r.Stats(), now.Sub(start))
		}
		for {
			n := r.Read(buf)
			if n == 0 {
				break
			}
			got = append(got, buf[:n]...)
		}
		for g := r.Next(now); g != nil; g = r.Next(now) {
			l.up(now, g)
		}
		// The server sends while the line has room.
		for s != nil && !now.Before(busy) {
			p, ok := s.Next()
			if !ok {
				break
			}
			c := &wire.Chunk{Stream: cfg.Stream, Seq: p.Seq, First: p.First, Data: data[p.Offset : p.Offset+p.Length], Size: int64(len(data))}
			if cfg.Name != "" {
				c.Tag = sum[:8]
			}
			l.down(now, c, int64(blocksOf(p.Length, r.block)))
			if l.rate > 0 && l.free.Sub(now) > 20*time.Millisecond {
				busy = l.free.Add(-10 * time.Millisecond)
			}
		}
		// On to what comes next.
		next := r.Deadline()
		if s != nil && s.Waiting() > 0 && (next.IsZero() || busy.Before(next)) {
			next = busy
		}
		if len(l.events) > 0 && (next.IsZero() || !l.events[0].at.After(next)) {
			e := l.events[0]
			l.events = l.events[1:]
			now = e.at
			if e.up != nil {
				if s == nil {
					if s, err = NewSender(e.up, int64(len(data))); err != nil {
						t.Fatalf("sender: %v", err)
					}
				}
				if err := s.Ask(e.up); err != nil {
					t.Fatalf("ask: %v", err)
				}
			} else if err := r.Take(now, e.c); err != nil || r.Err() != nil {
				t.Fatalf("take: %v, %v", err, r.Err())
			}
			continue
		}
		if next.After(now) {
			now = next
		}
		if r.Done() {
			break
		}
	}
	return got, now.Sub(start), r.Stats()
}

func content(n int, seed uint64) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(b) // never fails
	return b
}

func blobConfig(data []byte, span int64) Config {
	sum := sha256.Sum256(data)
	return Config{Stream: 7, Digest: sum[:], Length: int64(len(data)), Span: span, Pace: &Pace{}}
}

// Whatever is lost, doubled or put out of order, the bytes come out exactly,
// and what is asked for again is bounded by what went wrong.
func TestAnyPattern(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.IntRange(1, 2<<20).Draw(rt, "size")
		data := content(size, 1)
		l := &line{
			rng:   rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 2)),
			delay: time.Duration(rapid.IntRange(0, 300).Draw(rt, "delay ms")) * time.Millisecond,
			rate:  float64(rapid.SampledFrom([]int{0, 5_000, 50_000, 1_000_000, 20_000_000}).Draw(rt, "rate")),
			lose:  rapid.Float64Range(0, 0.6).Draw(rt, "lose"), loseUp: rapid.Float64Range(0, 0.4).Draw(rt, "lose up"),
			double: rapid.Float64Range(0, 0.5).Draw(rt, "double"), shift: rapid.Float64Range(0, 0.5).Draw(rt, "shift"),
		}
		cfg := blobConfig(data, rapid.Int64Range(64<<10, 8<<20).Draw(rt, "span"))
		if rapid.Bool().Draw(rt, "file") {
			cfg.Digest, cfg.Name, cfg.Length, cfg.Most = nil, "1.root.json", 0, int64(size)
		} else if from := rapid.IntRange(0, size-1).Draw(rt, "offset"); from > 0 {
			cfg.Offset, cfg.Length = int64(from), int64(rapid.IntRange(1, size-from).Draw(rt, "length"))
		}
		got, _, st := transfer(rt, l, data, cfg)
		want := data[cfg.Offset:]
		if cfg.Length > 0 {
			want = want[:cfg.Length]
		}
		if !bytes.Equal(got, want) {
			rt.Fatalf("%d bytes came out, want %d", len(got), len(want))
		}
		blocks := (int64(len(want))-1)/(4<<10) + 1
		if most := 12*blocks + 400; st.Again > most {
			rt.Fatalf("%d of %d blocks were asked for again", st.Again, blocks)
		}
	})
}

// Where nothing is lost and the order is kept, nothing is asked for twice;
// where blocks are lost, those and no others.
func TestAgainIsLoss(t *testing.T) {
	data := content(16<<20, 3)
	for _, lose := range []float64{0, 0.01, 0.05, 0.2} {
		l := &line{rng: rand.New(rand.NewPCG(5, 5)), delay: 100 * time.Millisecond, rate: 3e6, lose: lose}
		got, _, st := transfer(t, l, data, blobConfig(data, 8<<20))
		if !bytes.Equal(got, data) {
			t.Fatalf("loss %v: wrong bytes", lose)
		}
		// The last blocks have none behind them by which a loss shows: then a
		// timeout asks for all on their way.
		if st.Again > l.lost+64 || st.Again < l.lost {
			t.Errorf("loss %v: %d blocks lost, %d asked for again", lose, l.lost, st.Again)
		}
		if st.Doubled > 64 {
			t.Errorf("loss %v: %d blocks came twice", lose, st.Doubled)
		}
	}
}

// The window fills the line, and no more: an answer waits little longer than
// the way takes.
func TestWindowFillsTheLine(t *testing.T) {
	for _, c := range []struct {
		name  string
		rate  float64
		delay time.Duration
		lose  float64
		size  int
		least float64 // share of the rate
	}{
		{"25 Mbit/s", 25e6 / 8, 100 * time.Millisecond, 0, 64 << 20, 0.90},
		{"25 Mbit/s, 5 % lost", 25e6 / 8, 100 * time.Millisecond, 0.05, 64 << 20, 0.85},
		{"100 Mbit/s, near", 100e6 / 8, 5 * time.Millisecond, 0.05, 64 << 20, 0.85},
		{"4 Mbit/s, for minutes", 4e6 / 8, 100 * time.Millisecond, 0.02, 64 << 20, 0.90},
		{"mobile", 1e6 / 8, 300 * time.Millisecond, 0.05, 4 << 20, 0.80},
		{"slow", 64e3 / 8, 400 * time.Millisecond, 0.02, 256 << 10, 0.60},
	} {
		data := content(c.size, 4)
		l := &line{rng: rand.New(rand.NewPCG(6, 6)), delay: c.delay, rate: c.rate, lose: c.lose}
		cfg := blobConfig(data, 8<<20)
		_, took, st := transfer(t, l, data, cfg)
		share := float64(c.size) / took.Seconds() / c.rate
		t.Logf("%s: %.1f %% of the line in %s, %d of %d blocks again, %d came twice, answers %s, at best %s",
			c.name, 100*share, took.Round(time.Millisecond), st.Again, st.Blocks, st.Doubled, cfg.Pace.smooth, cfg.Pace.least)
		if share < c.least {
			t.Errorf("%s: %.1f %% of the line used", c.name, 100*share)
		}
		if cfg.Pace.smooth > 4*(2*c.delay)+3*time.Second {
			t.Errorf("%s: answers take %s", c.name, cfg.Pace.smooth)
		}
	}
}

// A line that becomes fifty times slower, and fast again, is followed both
// ways: it stays full, answers do not wait long behind others, and hardly a
// block comes twice.
func TestWindowFollowsTheLine(t *testing.T) {
	data := content(24<<20, 9)
	const fast, slow = 3e6, 60e3
	for _, length := range []int64{2 << 20, 4 << 20} { // of the slow part
		cfg := blobConfig(data, 8<<20)
		var worst time.Duration
		l := &line{rng: rand.New(rand.NewPCG(7, 7)), delay: 100 * time.Millisecond, rate: fast, lose: 0.02, change: func(l *line, sent int64) {
			l.rate = fast
			if sent > 8<<20 && sent < 8<<20+length {
				l.rate = slow
			}
			if sent > 11<<20 { // what was asked for before is here
				worst = max(worst, cfg.Pace.smooth)
			}
		}}
		got, took, st := transfer(t, l, data, cfg)
		ideal := time.Duration(int64(len(data))-length)*time.Second/fast + time.Duration(length)*time.Second/slow
		t.Logf("took %s, at best %s, then answers took %s, %+v", took, ideal, worst, st)
		if !bytes.Equal(got, data) || took > ideal*12/10 || worst > 3*time.Second || st.Doubled > st.Blocks/50 {
			t.Errorf("%d bytes in %s, at best %s; answers took %s; %+v", len(got), took, ideal, worst, st)
		}
	}
}

// A connection that was lost costs what was on its way, asked for again.
func TestLostConnection(t *testing.T) {
	data := content(200<<10, 5)
	cfg := blobConfig(data, 1<<20)
	r, err := NewReceiver(cfg)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1700000000, 0)
	first := r.Next(now)
	if first == nil || r.Next(now) != nil {
		t.Fatal("want one request, then to wait")
	}
	asked := len(r.asked)
	r.Lost()
	again := r.Next(now)
	if again == nil || again.Base != first.Base || !bytes.Equal(again.Wanted, first.Wanted) || again.Seq != 2 || r.Stats().Again != int64(asked) {
		t.Errorf("asked for %+v, then for %+v", first, again)
	}
	if stop := r.Stop(); stop == nil || !stop.Stop || stop.Seq != 3 {
		t.Errorf("stop: %+v", stop)
	}
}

// What cannot be is refused, and the stream goes on.
func TestReceiverRefuses(t *testing.T) {
	data := content(100<<10, 6)
	now := time.Unix(1700000000, 0)
	good := func(c wire.Chunk) *wire.Chunk { return &c }
	full := wire.Chunk{Stream: 7, Seq: 1, First: 0, Data: data[:4<<10], Size: int64(len(data))}
	for name, c := range map[string]func(c wire.Chunk) *wire.Chunk{
		"a request that was not made": func(c wire.Chunk) *wire.Chunk { c.Seq = 2; return &c },
		"request 0":                   func(c wire.Chunk) *wire.Chunk { c.Seq = 0; return &c },
		"half a block":                func(c wire.Chunk) *wire.Chunk { c.Data = c.Data[:100]; return &c },
		"a block and a half":          func(c wire.Chunk) *wire.Chunk { c.Data = data[:6<<10]; return &c },
		"no data":                     func(c wire.Chunk) *wire.Chunk { c.Data = nil; return &c },
		"a block not asked for":       func(c wire.Chunk) *wire.Chunk { c.First = 1 << 40; return &c },
		"more than was asked for":     func(c wire.Chunk) *wire.Chunk { c.Data = append(bytes.Clone(data), data...); return &c },
		"a smaller blob":              func(c wire.Chunk) *wire.Chunk { c.Size = 50 << 10; return &c },
	} {
		r, err := NewReceiver(blobConfig(data, 1<<20))
		if err != nil {
			t.Fatal(err)
		}
		r.Next(now)
		before := len(r.data)
		if err := r.Take(now, c(full)); !errors.Is(err, ErrLie) || r.Err() != nil || len(r.data) != before {
			t.Errorf("%s: %v, stream %v", name, err, r.Err())
		}
		if err := r.Take(now, good(full)); err != nil || r.Read(make([]byte, 1<<20)) != 4<<10 {
			t.Errorf("%s: the honest block is not taken: %v", name, err)
		}
	}
}

func TestReceiverFile(t *testing.T) {
	now := time.Unix(1700000000, 0)
	open := func() *Receiver {
		r, err := NewReceiver(Config{Stream: 1, Name: "timestamp.json", Most: 1000 << 10, Span: 1 << 20, Pace: &Pace{}})
		if err != nil {
			t.Fatal(err)
		}
		if g := r.Next(now); g == nil || g.Name != "timestamp.json" || len(g.Wanted) != 1 || g.Wanted[0] != 1 {
			t.Fatalf("first request %+v", g)
		}
		return r
	}
	data := content(40<<10, 7)
	sum := sha256.Sum256(data)
	first := &wire.Chunk{Stream: 1, Seq: 1, Data: data[:4<<10], Size: int64(len(data)), Tag: sum[:8]}

	r := open()
	if err := r.Take(now, &wire.Chunk{Stream: 1, Seq: 1, Data: data[:4<<10], Size: 2000 << 10, Tag: sum[:8]}); !errors.Is(err, ErrLie) {
		t.Errorf("too large a file: %v", err)
	}
	if err := r.Take(now, first); err != nil {
		t.Fatal(err)
	}
	if g := r.Next(now); g == nil || g.Base != 1 || !bytes.Equal(g.Wanted, []byte{0xff, 1}) {
		t.Fatalf("second request %+v", g)
	}
	if err := r.Take(now, &wire.Chunk{Stream: 1, Seq: 2, First: 1, Data: data[4<<10 : 32<<10], Size: int64(len(data)), Tag: sum[8:16]}); !errors.Is(err, ErrChanged) || !errors.Is(r.Err(), ErrChanged) {
		t.Errorf("another file: %v, %v", err, r.Err())
	}

	r = open()
	if err := r.Take(now, &wire.Chunk{Stream: 1, Seq: 1, Refused: wire.RefusedBusy, Message: "later", Wait: 1500}); err != nil {
		t.Error(err)
	}
	var refused *Refused
	if !errors.As(r.Err(), &refused) || refused.Wait != 1500*time.Millisecond || r.Next(now) != nil {
		t.Errorf("refused: %v", r.Err())
	}
}

// Requests that lie about offsets, lengths and blocks are refused by name.
func TestSenderRefuses(t *testing.T) {
	sum := sha256.Sum256(nil)
	good := wire.Get{Stream: 1, Digest: sum[:], Offset: 10, Length: 100 << 10, Block: 16 << 10, Run: 1, Seq: 1, Wanted: []byte{1}}
	const size = 200 << 10
	for name, c := range map[string]struct {
		change func(g *wire.Get)
		want   error
	}{
		"no digest":        {func(g *wire.Get) { g.Digest = nil }, ErrLie},
		"digest and name":  {func(g *wire.Get) { g.Name = "x" }, ErrLie},
		"short digest":     {func(g *wire.Get) { g.Digest = g.Digest[:31] }, ErrLie},
		"negative offset":  {func(g *wire.Get) { g.Offset = -1 }, ErrLie},
		"negative length":  {func(g *wire.Get) { g.Length = -1 }, ErrLie},
		"no length":        {func(g *wire.Get) { g.Length = 0 }, ErrLie},
		"past the end":     {func(g *wire.Get) { g.Offset = size - 1 }, ErrLie},
		"offset past it":   {func(g *wire.Get) { g.Offset = size + 1 }, ErrLie},
		"overflowing":      {func(g *wire.Get) { g.Offset, g.Length = 1<<62, 1<<62 }, ErrLie},
		"tiny blocks":      {func(g *wire.Get) { g.Block = 1 }, ErrTooMuch},
		"huge blocks":      {func(g *wire.Get) { g.Block = 1 << 20 }, ErrTooMuch},
		"long runs":        {func(g *wire.Get) { g.Run = 9 }, ErrTooMuch},
		"overflowing runs": {func(g *wire.Get) { g.Run = 1 << 50 }, ErrTooMuch},
		"no runs":          {func(g *wire.Get) { g.Run = 0 }, ErrTooMuch},
		"request 0":        {func(g *wire.Get) { g.Seq = 0 }, ErrLie},
		"a long bitmap":    {func(g *wire.Get) { g.Wanted = make([]byte, wire.MaxWanted+1) }, ErrTooMuch},
		"block past end":   {func(g *wire.Get) { g.Base = 7 }, ErrLie},
		"last past end":    {func(g *wire.Get) { g.Wanted = []byte{0x80} }, ErrLie},
		"base overflows":   {func(g *wire.Get) { g.Base = 1<<64 - 1 }, ErrLie},
		"file with range":  {func(g *wire.Get) { g.Digest, g.Name = nil, "x" }, ErrLie},
	} {
		g := good
		c.change(&g)
		s, err := NewSender(&g, size)
		if err == nil {
			err = s.Ask(&g)
		}
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	s, err := NewSender(&good, size)
	if err != nil {
		t.Fatal(err)
	}
	other := good
	other.Seq, other.Offset = 2, 20
	if err := s.Ask(&other); !errors.Is(err, ErrLie) {
		t.Errorf("another range under the same stream: %v", err)
	}
}

// A block is queued once however often it is asked for; a stop empties.
func TestSenderQueuesOnce(t *testing.T) {
	sum := sha256.Sum256(nil)
	g := wire.Get{Stream: 1, Digest: sum[:], Length: 100 << 10, Block: 16 << 10, Run: 4, Seq: 1, Wanted: []byte{0x7f}}
	s, err := NewSender(&g, 100<<10)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := s.Ask(&g); err != nil {
			t.Fatal(err)
		}
	}
	again := g
	again.Seq, again.Wanted = 2, []byte{0x05}
	if err := s.Ask(&again); err != nil || s.Waiting() != 7 {
		t.Fatalf("%d blocks wait, %v", s.Waiting(), err)
	}
	var got []Piece
	for p, ok := s.Next(); ok; p, ok = s.Next() {
		got = append(got, p)
	}
	want := []Piece{{1, 0, 0, 64 << 10}, {1, 4, 64 << 10, 36 << 10}}
	if !slices.Equal(got, want) {
		t.Errorf("sent %v, want %v", got, want)
	}
	late := again
	late.Seq = 3
	if err := s.Ask(&late); err != nil || s.Waiting() != 2 {
		t.Errorf("what was lost is queued again: %d, %v", s.Waiting(), err)
	}
	stop := g
	stop.Seq, stop.Wanted, stop.Stop = 4, nil, true
	if err := s.Ask(&stop); err != nil || s.Waiting() != 0 {
		t.Errorf("after a stop %d wait, %v", s.Waiting(), err)
	}
	if err := s.Ask(&again); err != nil || s.Waiting() != 0 {
		t.Errorf("an old request after the stop: %d, %v", s.Waiting(), err)
	}
}

// Any bytes as an answer or a request: no panic, bounded state, exact bytes.
func FuzzMessages(f *testing.F) {
	sum := sha256.Sum256(nil)
	c, err := wire.Marshal(&wire.Chunk{Stream: 7, Seq: 1, Data: make([]byte, 1000), Size: 1000})
	if err != nil {
		f.Fatal(err)
	}
	g, err := wire.Marshal(&wire.Get{Stream: 1, Digest: sum[:], Length: 1000, Block: 1024, Run: 1, Seq: 1, Wanted: []byte{1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c)
	f.Add(g)
	data := content(100<<10, 8)
	f.Fuzz(func(t *testing.T, b []byte) {
		now := time.Unix(1700000000, 0)
		r, err := NewReceiver(blobConfig(data, 64<<10))
		if err != nil {
			t.Fatal(err)
		}
		r.Next(now)
		var c wire.Chunk
		if wire.Unmarshal(b, &c) == nil {
			_ = r.Take(now, &c)
			if n := r.Read(make([]byte, 1<<20)); n > 64<<10 {
				t.Fatalf("%d bytes of an answer were taken", n)
			}
		}
		var g wire.Get
		if wire.Unmarshal(b, &g) != nil {
			return
		}
		s, err := NewSender(&g, 100<<10)
		if err != nil {
			return
		}
		_ = s.Ask(&g)
		for p, ok := s.Next(); ok; p, ok = s.Next() {
			if p.Offset < g.Offset || p.Length <= 0 || p.Length > wire.MaxRun || p.Offset+p.Length > 100<<10 {
				t.Fatalf("sends %+v for %+v", p, g)
			}
		}
	})
}
