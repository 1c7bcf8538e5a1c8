package stream

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/stream"
	"github.com/skein-fleet/skein/proto/wire"
)

// world is what a Server sees: a link whose devices read at a rate of their
// own, blobs and grants.
type world struct {
	*Server
	t *testing.T

	mu      sync.Mutex // guards what follows
	blobs   map[ota.Digest][]byte
	files   map[string][]byte
	denied  map[ota.Digest]bool
	opened  int // files open now
	devices map[string]*device
	notices []string
	stop    context.CancelFunc
	wg      sync.WaitGroup
}

// device reads its queue, one message each tick; 0 never reads.
type device struct {
	tick    time.Duration
	queue   [][]byte
	most    int // bytes in the queue at most
	got     []*wire.Chunk
	running bool

	turn sync.Mutex // guards what follows
	recv *stream.Receiver
	data []byte
}

func newWorld(t *testing.T, c Config) *world {
	w := &world{t: t, blobs: map[ota.Digest][]byte{}, files: map[string][]byte{}, denied: map[ota.Digest]bool{}, devices: map[string]*device{}}
	c.Link, c.Blobs, c.Grants = w, w, w
	c.Metadata = func(name string) ([]byte, error) {
		if b, ok := w.files[name]; ok {
			return bytes.Clone(b), nil
		}
		return nil, fs.ErrNotExist
	}
	c.Notice = func(_ context.Context, tenant, device, kind, message, attack string) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.notices = append(w.notices, fmt.Sprintf("%s %s %s %s: %s", tenant, device, kind, attack, message))
		return nil
	}
	var err error
	if w.Server, err = New(c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w.stop = cancel
	w.wg.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) close() {
	w.stop()
	w.wg.Wait()
	if w.opened != 0 || w.streams != 0 || w.queued != 0 {
		w.t.Errorf("left behind: %d files, %d streams, %d bytes queued", w.opened, w.streams, w.queued)
	}
}

func (w *world) MayRead(_ context.Context, _ string, d ota.Digest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.denied[d] {
		return errors.New("no release of this device contains the blob")
	}
	return nil
}

type counted struct {
	*bytes.Reader
	w *world
}

func (c counted) Close() error {
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	c.w.opened--
	return nil
}

func (w *world) Open(_ context.Context, d ota.Digest) (io.ReadSeekCloser, int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b, ok := w.blobs[d]
	if !ok {
		return nil, 0, blob.ErrNotFound
	}
	w.opened++
	return counted{bytes.NewReader(b), w}, int64(len(b)), nil
}

func (w *world) Send(name string, kind wire.Kind, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := w.devices[name]
	if d == nil {
		return errors.New("offline")
	}
	if kind != wire.DownChunk || len(payload) > wire.MaxMessage {
		w.t.Errorf("%s of %d bytes", kind, len(payload))
	}
	d.queue = append(d.queue, payload)
	n := 0
	for _, b := range d.queue {
		n += len(b)
	}
	d.most = max(d.most, n)
	if d.tick > 0 && !d.running {
		d.running = true
		w.wg.Go(func() { w.read(name, d) })
	}
	return nil
}

// read takes what is queued for a device.
func (w *world) read(name string, d *device) {
	for {
		time.Sleep(d.tick)
		w.mu.Lock()
		if len(d.queue) == 0 {
			d.running = false
			w.mu.Unlock()
			return
		}
		b := d.queue[0]
		d.queue = d.queue[1:]
		c := new(wire.Chunk)
		if err := wire.UnmarshalCanonical(b, c); err != nil {
			w.t.Error(err)
		}
		d.got = append(d.got, c)
		w.mu.Unlock()
		w.Sent(name, len(b))
		w.step(name, d, c)
	}
}

// step drives a device's receiver.
func (w *world) step(name string, d *device, c *wire.Chunk) {
	d.turn.Lock()
	defer d.turn.Unlock()
	if d.recv == nil {
		return
	}
	if c != nil {
		if err := d.recv.Take(time.Now(), c); err != nil {
			w.t.Error(err)
		}
	}
	buf := make([]byte, 1<<20)
	for n := d.recv.Read(buf); n > 0; n = d.recv.Read(buf) {
		d.data = append(d.data, buf[:n]...)
	}
	for g := d.recv.Next(time.Now()); g != nil; g = d.recv.Next(time.Now()) {
		w.ask(name, g)
	}
}

func (w *world) ask(name string, g *wire.Get) {
	b, err := wire.Marshal(g)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.Message(w.t.Context(), "default", name, b); err != nil {
		w.t.Error(err)
	}
}

func (w *world) device(name string, tick time.Duration) *device {
	d := &device{tick: tick}
	w.mu.Lock()
	w.devices[name] = d
	w.mu.Unlock()
	w.Opened(name, uint64(len(w.devices)))
	return d
}

// fetch lets a device fetch all of a blob.
func (w *world) fetch(name string, d *device, b []byte) {
	sum := sha256.Sum256(b)
	var err error
	d.recv, err = stream.NewReceiver(stream.Config{Stream: 1, Digest: sum[:], Length: int64(len(b)), Span: 1 << 20, Pace: &stream.Pace{}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.step(name, d, nil)
}

func (w *world) put(n int) []byte {
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	w.blobs[ota.DigestOf(b)] = b
	return b
}

// last returns the newest answer of a device.
func (w *world) last(d *device) wire.Chunk {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(d.got) == 0 {
		return wire.Chunk{}
	}
	return *d.got[len(d.got)-1]
}

// A device that does not read keeps nobody else waiting, and its share of the
// broker's memory is bounded.
func TestFairAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		defer w.close()
		b := w.put(3 << 20)
		stuck := w.device("stuck", 0)
		w.fetch("stuck", stuck, b)
		var all []*device
		for i := range 8 {
			name := fmt.Sprintf("device %d", i)
			d := w.device(name, time.Millisecond)
			w.fetch(name, d, b)
			all = append(all, d)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		for i, d := range all {
			if !bytes.Equal(d.data, b) || d.recv.Stats().Again != 0 {
				t.Errorf("device %d has %d bytes, %+v", i, len(d.data), d.recv.Stats())
			}
			if d.most > 256<<10+wire.MaxRun+1024 {
				t.Errorf("device %d: %d bytes were queued", i, d.most)
			}
		}
		if stuck.most == 0 || stuck.most > 256<<10+wire.MaxRun+1024 {
			t.Errorf("stuck device: %d bytes were queued", stuck.most)
		}
		w.Closed("stuck", 99) // an older or foreign session
		if len(w.peers) != 9 && w.peers["stuck"] == nil {
			t.Error("the end of another session ended this one")
		}
		w.Closed("stuck", 1)
		if w.peers["stuck"] != nil {
			t.Error("a device that is gone is still known")
		}
	})
}

// The rate of one device, and that of all together, hold.
func TestRates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Rate: 1 << 20, AllRate: 2 << 20})
		defer w.close()
		b := w.put(8 << 20)
		start := time.Now()
		done := func(d *device) time.Duration {
			finished := func() bool {
				d.turn.Lock()
				defer d.turn.Unlock()
				return d.recv.Done()
			}
			for !finished() {
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
				if time.Since(start) > 10*time.Minute {
					t.Fatal("no end")
				}
			}
			return time.Since(start)
		}
		one := w.device("one", 100*time.Microsecond)
		w.fetch("one", one, b)
		if d := done(one); d < 7500*time.Millisecond || d > 9*time.Second {
			t.Errorf("8 MiB at 1 MiB/s took %s", d)
		}
		start = time.Now()
		var all []*device
		for i := range 4 {
			name := fmt.Sprint(i)
			d := w.device(name, 100*time.Microsecond)
			w.fetch(name, d, b)
			all = append(all, d)
		}
		for _, d := range all {
			if took := done(d); took < 15*time.Second || took > 18*time.Second {
				t.Errorf("4 × 8 MiB at 2 MiB/s took %s", took)
			}
		}
	})
}

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		defer w.close()
		d := w.device("d", time.Millisecond)
		b := w.put(100 << 10)
		sum := sha256.Sum256(b)
		good := wire.Get{Stream: 1, Digest: sum[:], Length: 100 << 10, Block: 4096, Run: 1, Seq: 1, Wanted: []byte{1}}
		ask := func(change func(g *wire.Get)) wire.Chunk {
			g := good
			change(&g)
			w.ask("d", &g)
			time.Sleep(time.Second)
			synctest.Wait()
			return w.last(d)
		}
		if c := ask(func(*wire.Get) {}); c.Refused != 0 || !bytes.Equal(c.Data, b[:4096]) {
			t.Errorf("good request: %+v", c)
		}
		if c := ask(func(g *wire.Get) { g.Stream, g.Offset = 2, 1 }); c.Refused != wire.RefusedMalformed || !strings.Contains(c.Message, "range") {
			t.Errorf("past the end: %+v", c)
		}
		if c := ask(func(g *wire.Get) { g.Seq, g.Block = 2, 8192 }); c.Refused != wire.RefusedMalformed {
			t.Errorf("other blocks in the same stream: %+v", c)
		}
		if c := ask(func(g *wire.Get) { g.Stream, g.Wanted = 3, make([]byte, 2000) }); c.Refused != wire.RefusedMalformed || !strings.Contains(c.Message, "too much") {
			t.Errorf("long bitmap: %+v", c)
		}
		if c := ask(func(g *wire.Get) { g.Stream, g.Digest = 4, make([]byte, 32) }); c.Refused != wire.RefusedNotFound {
			t.Errorf("unknown blob: %+v", c)
		}
		if c := ask(func(g *wire.Get) { g.Stream, g.Digest, g.Length, g.Name = 5, nil, 0, "none.json" }); c.Refused != wire.RefusedNotFound {
			t.Errorf("unknown file: %+v", c)
		}
		// What a device may no longer read ends, also in the middle of a stream.
		w.denied[ota.DigestOf(b)] = true
		if c := ask(func(g *wire.Get) { g.Seq = 3 }); c.Refused != wire.RefusedForbidden {
			t.Errorf("withdrawn: %+v", c)
		}
		if len(w.notices) != 4 || !strings.HasPrefix(w.notices[0], "default d stream-refused malformed: ") {
			t.Errorf("notices %q", w.notices)
		}
		if err := w.Message(t.Context(), "default", "d", []byte{0xff}); err != nil || len(w.notices) != 5 {
			t.Errorf("rubbish: %v, notices %q", err, w.notices)
		}
	})
}

// Streams beyond the limits are told to wait; idle ones give way.
func TestStreamLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Streams: 2, AllStreams: 3, Rate: 4096})
		defer w.close()
		b := w.put(1 << 20)
		sum := sha256.Sum256(b)
		a, c := w.device("a", time.Millisecond), w.device("c", time.Millisecond)
		get := func(name string, id uint64, wanted []byte) {
			w.ask(name, &wire.Get{Stream: id, Digest: sum[:], Length: 1 << 20, Block: 4096, Run: 1, Seq: 1, Wanted: wanted})
			time.Sleep(5 * time.Second)
			synctest.Wait()
		}
		much := bytes.Repeat([]byte{0xff}, 32)
		get("a", 1, much)
		get("a", 2, much)
		get("a", 3, much)
		if got := w.last(a); got.Stream == 3 && got.Refused == 0 {
			t.Errorf("third stream of a: %+v", got)
		}
		refusal := func(d *device, id uint64) (r wire.Refusal, wait int64) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, c := range d.got {
				if c.Stream == id && c.Refused != 0 {
					return c.Refused, c.Wait
				}
			}
			return 0, 0
		}
		if r, wait := refusal(a, 3); r != wire.RefusedBusy || wait < busyWait.Milliseconds() {
			t.Errorf("third stream of a: %s, wait %d", r, wait)
		}
		get("c", 1, []byte{1})
		get("c", 2, []byte{1})
		if r, _ := refusal(c, 2); r != wire.RefusedBusy {
			t.Errorf("fourth stream of all: %s", r)
		}
		w.ask("a", &wire.Get{Stream: 1, Digest: sum[:], Length: 1 << 20, Block: 4096, Run: 1, Seq: 2, Stop: true})
		time.Sleep(time.Second)
		synctest.Wait()
		get("c", 3, []byte{1})
		if got := w.last(c); got.Stream != 3 || len(got.Data) != 4096 {
			t.Errorf("after a stop there is room: %+v", got)
		}
		get("c", 4, []byte{1}) // 1 and 3 are idle: one gives way
		if got := w.last(c); got.Stream != 4 || len(got.Data) != 4096 {
			t.Errorf("an idle stream gives way: %+v", got)
		}
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		w.Server.mu.Lock()
		defer w.Server.mu.Unlock()
		if w.streams != 0 || len(w.peers) != 0 {
			t.Errorf("%d idle streams, %d devices are kept", w.streams, len(w.peers))
		}
	})
}

func TestMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		defer w.close()
		w.files["targets.json"] = w.put(200 << 10)
		for i := range 3 {
			name := fmt.Sprint(i)
			d := w.device(name, time.Millisecond)
			var err error
			d.recv, err = stream.NewReceiver(stream.Config{Stream: 1, Name: "targets.json", Most: 1 << 20, Span: 1 << 20, Pace: &stream.Pace{}})
			if err != nil {
				t.Fatal(err)
			}
			w.step(name, d, nil)
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if !bytes.Equal(d.data, w.files["targets.json"]) || !d.recv.Tagged(d.data) {
				t.Errorf("device %d has %d bytes", i, len(d.data))
			}
		}
		if len(w.recent) != 1 {
			t.Errorf("one file is kept %d times", len(w.recent))
		}
	})
}

// Any bytes as a request do no harm, and are answered within the limits.
func FuzzMessage(f *testing.F) {
	sum := sha256.Sum256(nil)
	b, err := wire.Marshal(&wire.Get{Stream: 1, Digest: sum[:], Length: 1000, Block: 1024, Run: 1, Seq: 1, Wanted: []byte{1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, Config{})
			defer w.close()
			w.blobs[ota.DigestFromSum(sum)] = make([]byte, 10_000)
			w.device("d", time.Microsecond)
			if err := w.Message(t.Context(), "default", "d", b); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
		})
	})
}
