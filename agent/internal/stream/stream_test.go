package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/stream"
	"github.com/skein-fleet/skein/proto/wire"
)

var errOffline = errors.New("offline")

// server answers requests after a delay, in a synctest bubble.
type server struct {
	t     *testing.T
	blobs map[ota.Digest][]byte
	files map[string][]byte
	delay time.Duration
	lose  float64
	rng   *rand.Rand

	mu      sync.Mutex // guards what follows
	src     *Source
	down    bool // the link
	refuse  *wire.Chunk
	senders map[uint64]*stream.Sender
	gets    int
	stops   int
	due     time.Time // of the newest answer
	wg      sync.WaitGroup
}

func newServer(t *testing.T) *server {
	s := &server{t: t, blobs: map[ota.Digest][]byte{}, files: map[string][]byte{}, delay: 100 * time.Millisecond,
		rng: rand.New(rand.NewPCG(1, 1)), senders: map[uint64]*stream.Sender{}}
	n := uint64(0)
	s.src = New(Config{Publish: s.publish, NextID: func() wire.MessageID { n++; return wire.MessageID{Boot: 1, Counter: n} }})
	t.Cleanup(s.wg.Wait)
	return s
}

func (s *server) publish(ctx context.Context, kind wire.Kind, payload []byte) error {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		return errOffline
	}
	var g wire.Get
	if err := wire.UnmarshalCanonical(payload, &g); err != nil || kind != wire.UpGet || g.ID.Counter == 0 {
		s.t.Errorf("published %s, %v", kind, err)
	}
	s.wg.Go(func() {
		time.Sleep(s.delay) // of the bubble
		s.answer(&g)
	})
	select {
	case <-time.After(2 * s.delay):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *server) answer(g *wire.Get) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets++
	if g.Stop {
		s.stops++
	}
	data, ok := s.files[g.Name]
	if g.Name == "" {
		data, ok = s.blobs[ota.DigestFromSum([32]byte(g.Digest))]
	}
	if !ok || s.refuse != nil {
		c := wire.Chunk{Refused: wire.RefusedNotFound}
		if s.refuse != nil {
			c = *s.refuse
		}
		c.Stream, c.Seq = g.Stream, g.Seq
		s.send(&c)
		return
	}
	sender := s.senders[g.Stream]
	if sender == nil {
		var err error
		if sender, err = stream.NewSender(g, int64(len(data))); err != nil {
			s.t.Error(err)
			return
		}
		s.senders[g.Stream] = sender
	}
	if err := sender.Ask(g); err != nil {
		s.t.Error(err)
	}
	for p, ok := sender.Next(); ok; p, ok = sender.Next() {
		c := &wire.Chunk{Stream: g.Stream, Seq: p.Seq, First: p.First, Data: data[p.Offset:min(p.Offset+p.Length, int64(len(data)))], Size: int64(len(data))}
		if g.Name != "" {
			sum := sha256.Sum256(data)
			c.Tag = sum[:8]
		}
		s.send(c)
	}
}

// send delivers after the delay, or loses; s.mu is held.
func (s *server) send(c *wire.Chunk) {
	b, err := wire.Marshal(c)
	if err != nil {
		s.t.Error(err)
	}
	if s.down || s.rng.Float64() < s.lose {
		return
	}
	if at := time.Now().Add(s.delay); at.After(s.due) {
		s.due = at
	}
	s.due = s.due.Add(10 * time.Microsecond) // a link keeps the order
	time.AfterFunc(time.Until(s.due), func() { s.src.Message(b) })
}

func (s *server) link(up bool) {
	s.mu.Lock()
	s.down = !up
	s.mu.Unlock()
	if up {
		s.src.Reconnected()
	}
}

func content(n int) []byte {
	rng := rand.New(rand.NewPCG(9, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func (s *server) put(b []byte) ota.Digest {
	d := ota.DigestOf(b)
	s.blobs[d] = b
	return d
}

func TestRangesOverALossyLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.lose = 0.1
		data := content(3<<20 + 17)
		d := s.put(data)
		for _, span := range [][2]int64{{0, int64(len(data))}, {1234567, 500000}, {int64(len(data)) - 1, 1}} {
			r, err := s.src.Open(t.Context(), d, span[0], span[1])
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, data[span[0]:span[0]+span[1]]) {
				t.Errorf("%v: %d bytes, %v", span, len(got), err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
		st := s.src.Stats()
		if st.Again == 0 || st.Again > st.Blocks/4 || st.Lies != 0 || len(s.src.open) != 0 {
			t.Errorf("%+v, %d streams open", st, len(s.src.open))
		}
		if s.stops != 0 {
			t.Errorf("%d stops of streams that were read to the end", s.stops)
		}
	})
}

// A reader that is closed early stops the server and leaves nothing behind; a
// reader that does not read does not make the server send without end.
func TestCloseAndBackPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.src.cfg.Span = 256 << 10
		d := s.put(content(4 << 20))
		r, err := s.src.Open(t.Context(), d, 0, 4<<20)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := s.src.Stats().Blocks * stream.Block; n > 256<<10 {
			t.Errorf("%d bytes came for a reader that does not read", n)
		}
		if _, err := io.ReadFull(r, make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // some is asked for and on its way
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.stops != 1 || len(s.src.open) != 0 {
			t.Errorf("%d stops, %d open", s.stops, len(s.src.open))
		}
	})
}

// A link that is lost for some seconds costs what was on its way; one that is
// offline from the start is left at once for another way.
func TestLinkLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		data := content(2 << 20)
		d := s.put(data)
		r, err := s.src.Open(t.Context(), d, 0, int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		half := make([]byte, 1<<20)
		if _, err := io.ReadFull(r, half); err != nil {
			t.Fatal(err)
		}
		s.link(false)
		time.AfterFunc(20*time.Second, func() { s.link(true) })
		rest, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(append(half, rest...), data) {
			t.Fatalf("%d bytes, %v", len(rest), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		s.link(false)
		start := time.Now()
		if _, err := s.src.Open(t.Context(), d, 0, 10); !errors.Is(err, errOffline) || time.Since(start) > time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		d := ota.DigestOf([]byte("nobody has it"))
		if _, err := s.src.Open(t.Context(), d, 0, 10); !errors.Is(err, fetch.ErrNotFound) {
			t.Errorf("unknown blob: %v", err)
		}
		refuse := func(c *wire.Chunk) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.refuse = c
		}
		refuse(&wire.Chunk{Refused: wire.RefusedForbidden, Message: "no release of this device contains the blob"})
		if _, err := s.src.Open(t.Context(), d, 0, 10); !errors.Is(err, fetch.ErrForbidden) {
			t.Errorf("foreign blob: %v", err)
		}
		refuse(&wire.Chunk{Refused: wire.RefusedBusy, Wait: 2500})
		_, err := s.src.Open(t.Context(), d, 0, 10)
		if ra, ok := errors.AsType[*fetch.RetryAfter](err); !ok || ra.Wait != 2500*time.Millisecond {
			t.Errorf("busy: %v", err)
		}
	})
}

func TestMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.lose = 0.1
		s.files["targets.json"] = content(300 << 10)
		s.files["timestamp.json"] = content(400)
		for name, want := range s.files {
			if got, err := s.src.Metadata(t.Context(), name); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, %v", name, len(got), err)
			}
		}
		if _, err := s.src.Metadata(t.Context(), "2.root.json"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a root that is not there: %v", err)
		}
		// A server that never answers, an old one for example.
		s.mu.Lock()
		s.lose = 1
		s.mu.Unlock()
		start := time.Now()
		if _, err := s.src.Metadata(t.Context(), "timestamp.json"); !errors.Is(err, fetch.ErrSlow) {
			t.Errorf("no answer: %v", err)
		}
		if d := time.Since(start); d > fetch.MetadataStall+stopTime {
			t.Errorf("gave up after %s", d)
		}
	})
}

// A file that changes while it is read is read again, and never a mixture.
func TestMetadataChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		old, young := content(200<<10), content(200<<10+1)
		s.files["targets.json"] = old
		time.AfterFunc(450*time.Millisecond, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.files["targets.json"] = young
			clear(s.senders)
		})
		got, err := s.src.Metadata(t.Context(), "targets.json")
		if err != nil || !bytes.Equal(got, young) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// Rubbish, messages of closed streams and impossible ones change nothing.
func TestRubbish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		data := content(100 << 10)
		r, err := s.src.Open(t.Context(), s.put(data), 0, int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		s.src.Message([]byte{0xff})
		s.src.Message(nil)
		for _, c := range []*wire.Chunk{{Stream: 99, Seq: 1, Data: []byte{1}}, {Stream: 1, Seq: 77, Data: make([]byte, 4096), Size: 100 << 10}} {
			b, err := wire.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			s.src.Message(b)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, data) || s.src.Stats().Lies != 3 {
			t.Errorf("%d bytes, %v, %+v", len(got), err, s.src.Stats())
		}
	})
}

// A fetch that is killed again and again goes on where it stood: what comes
// twice is no more than what was on its way each time.
func TestKilledFetchResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.lose = 0.05
		s.src.cfg.Span = 512 << 10
		data := content(6 << 20)
		desc := manifest.Descriptor{MediaType: manifest.MediaWeights, Digest: s.put(data), Size: int64(len(data))}
		store := blob.NewStore(slot.NewMem())
		kills := 0
		for !store.Has(desc.Digest) {
			f := &fetch.Fetcher{Store: store, Source: s.src}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			err := f.Fetch(ctx, desc)
			cancel()
			if err != nil {
				kills++
			}
			if kills > 50 {
				t.Fatal(err)
			}
		}
		st := s.src.Stats()
		most := int64(len(data)/stream.Block) + int64(kills)*s.src.cfg.Span/stream.Block
		if kills < 2 || st.Blocks > most {
			t.Errorf("%d kills, %d blocks came, at most %d", kills, st.Blocks, most)
		}
		t.Logf("%d kills, %d blocks of %d, %+v", kills, st.Blocks, len(data)/stream.Block, st)
	})
}
