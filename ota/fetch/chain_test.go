package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/slot"
)

// fake is a way to one blob that does as it is told.
type fake struct {
	data   []byte
	fail   error     // of Open
	healed time.Time // when that ends, if it does
	hang   bool      // Open waits for ctx
	breaks int       // the body ends with an error after so many bytes
	stall  bool      // the body waits for ctx after breaks bytes
	lie    bool
	slow   time.Duration // between two pieces of 1 KiB

	mu     sync.Mutex // guards what follows
	opened []int64
	gave   int64
}

func (f *fake) Open(ctx context.Context, _ ota.Digest, offset, length int64) (io.ReadCloser, error) {
	f.mu.Lock()
	f.opened = append(f.opened, offset)
	f.mu.Unlock()
	if f.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if f.fail != nil && (f.healed.IsZero() || time.Now().Before(f.healed)) {
		return nil, f.fail
	}
	return io.NopCloser(&fakeBody{f: f, ctx: ctx, rest: f.data[offset : offset+length]}), nil
}

type fakeBody struct {
	f    *fake
	ctx  context.Context
	rest []byte
	n    int
}

var errCut = errors.New("cut")

func (b *fakeBody) Read(p []byte) (int, error) {
	if b.f.breaks > 0 && b.n >= b.f.breaks {
		if b.f.stall {
			<-b.ctx.Done()
			return 0, b.ctx.Err()
		}
		return 0, errCut
	}
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	if b.f.slow > 0 {
		time.Sleep(b.f.slow) // of the bubble
		p = p[:min(len(p), 1<<10)]
	}
	if b.f.breaks > 0 {
		p = p[:min(len(p), b.f.breaks-b.n)]
	}
	n := copy(p, b.rest)
	if b.f.lie && n > 0 {
		p[0] ^= 1
	}
	b.rest, b.n = b.rest[n:], b.n+n
	b.f.mu.Lock()
	b.f.gave += int64(n)
	b.f.mu.Unlock()
	return n, nil
}

// fetched runs a Fetcher over the chain of ways and returns its error.
func fetched(t *testing.T, c *Chain, data []byte) error {
	t.Helper()
	f := &Fetcher{Store: blob.NewStore(slot.NewMem()), Source: c}
	err := f.Fetch(t.Context(), descriptor(data))
	if err == nil {
		r, _, oerr := f.Store.Open(t.Context(), descriptor(data).Digest)
		if oerr != nil {
			t.Fatal(oerr)
		}
		defer r.Close()
		if got, rerr := io.ReadAll(r); rerr != nil || !bytes.Equal(got, data) {
			t.Fatalf("stored %d bytes, %v", len(got), rerr)
		}
	}
	return err
}

func chainOf(ways ...Named) *Chain {
	return NewChain(time.Now, func() []Named { return ways })
}

func TestChainOrderAndFallOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := content(300 << 10)
		peer := &fake{data: data, breaks: 100 << 10}
		https := &fake{data: data}
		mqtt := &fake{data: data}
		c := chainOf(Named{Name: "peer", Source: peer}, Named{Name: "https", Source: https}, Named{Name: "mqtt", Source: mqtt})
		if err := fetched(t, c, data); err != nil {
			t.Fatal(err)
		}
		if peer.gave+https.gave != int64(len(data)) || len(mqtt.opened) != 0 {
			t.Errorf("peer gave %d, https %d, mqtt was asked %d times", peer.gave, https.gave, len(mqtt.opened))
		}
		if len(https.opened) != 1 || https.opened[0] != 100<<10 {
			t.Errorf("https was asked from %v, want from where the peer broke off", https.opened)
		}
		got := c.Bytes()
		if got["peer"] != 100<<10 || got["https"] != 200<<10 || got["mqtt"] != 0 {
			t.Errorf("counted %v", got)
		}
		if why := c.Avoided()["peer"]; !errors.Is(why, errCut) {
			t.Errorf("peer is avoided because of %v", why)
		}
	})
}

// A way that hangs is left after its patience, and asked again later.
func TestChainHangingWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := content(64 << 10)
		https := &fake{data: data, hang: true}
		mqtt := &fake{data: data}
		c := chainOf(Named{Name: "https", Source: https}, Named{Name: "mqtt", Source: mqtt})
		start := time.Now()
		for range 3 {
			if err := fetched(t, c, data); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d < patience || d > patience+time.Second {
			t.Errorf("three fetches took %s, want one patience of %s", d, patience)
		}
		if len(https.opened) != 1 || mqtt.gave != 3*int64(len(data)) {
			t.Errorf("https was asked %d times, mqtt gave %d", len(https.opened), mqtt.gave)
		}
		https.hang = false
		time.Sleep(failedMax)
		if err := fetched(t, c, data); err != nil || https.gave != int64(len(data)) {
			t.Errorf("after the back-off https gave %d, %v", https.gave, err)
		}
	})
}

// A body that stalls is cancelled by the Fetcher; the way is avoided.
func TestChainStalledBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := content(200 << 10)
		https := &fake{data: data, breaks: 50 << 10, stall: true}
		mqtt := &fake{data: data}
		c := chainOf(Named{Name: "https", Source: https}, Named{Name: "mqtt", Source: mqtt})
		if err := fetched(t, c, data); err != nil {
			t.Fatal(err)
		}
		if len(https.opened) != 1 || mqtt.gave != 150<<10 {
			t.Errorf("https was asked %d times, mqtt gave %d", len(https.opened), mqtt.gave)
		}
	})
}

// A transfer by a dear way goes over to a cheap one that works again, without
// a byte given out twice.
func TestChainImproves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := content(600 << 10)
		https := &fake{data: data, fail: errCut, healed: time.Now().Add(12 * time.Second)}
		mqtt := &fake{data: data, slow: 100 * time.Millisecond} // 60 s for all
		c := chainOf(Named{Name: "https", Source: https}, Named{Name: "mqtt", Source: mqtt})
		if err := fetched(t, c, data); err != nil {
			t.Fatal(err)
		}
		got := c.Bytes()
		if got["https"]+got["mqtt"] != int64(len(data)) || got["https"] == 0 || got["mqtt"] == 0 {
			t.Errorf("counted %v of %d", got, len(data))
		}
		if len(mqtt.opened) != 1 {
			t.Errorf("mqtt was opened at %v", mqtt.opened)
		}
	})
}

// Who gives wrong content is found out, avoided for long, and no longer asked
// while another has the blob.
func TestChainLiar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := content(100 << 10)
		peer := &fake{data: data, lie: true}
		https := &fake{data: data}
		c := chainOf(Named{Name: "peer", Key: "peer 1", Source: peer}, Named{Name: "https", Source: https})
		for range 3 {
			if err := fetched(t, c, data); err != nil {
				t.Fatal(err)
			}
			time.Sleep(liedMin / 5)
		}
		if len(peer.opened) != 1 {
			t.Errorf("the liar was asked %d times", len(peer.opened))
		}
		time.Sleep(liedMin)
		if err := fetched(t, c, data); err != nil || len(peer.opened) != 2 {
			t.Errorf("after its time the liar was asked %d times, %v", len(peer.opened), err)
		}
		time.Sleep(liedMin / 2) // doubled the second time, at least half of that
		if err := fetched(t, c, data); err != nil || len(peer.opened) != 2 {
			t.Errorf("after the second lie it was asked %d times, %v", len(peer.opened), err)
		}
	})
}

func TestChainErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := content(10)
		d := descriptor(data).Digest
		a, b := &fake{data: data, fail: ErrNotFound}, &fake{data: data, fail: ErrForbidden}
		c := chainOf(Named{Name: "peer", Source: a}, Named{Name: "https", Source: b})
		if _, err := c.Open(t.Context(), d, 0, 10); !permanent(err) {
			t.Errorf("nobody has it: %v", err)
		}
		b.fail = &RetryAfter{Wait: time.Minute, Err: errCut}
		_, err := c.Open(t.Context(), d, 0, 10)
		if ra, ok := errors.AsType[*RetryAfter](err); permanent(err) || !ok || ra.Wait != time.Minute {
			t.Errorf("one may have it later: %v", err)
		}
		if _, err := chainOf().Open(t.Context(), d, 0, 10); !errors.Is(err, ErrUnusable) {
			t.Errorf("no way at all: %v", err)
		}
		// What lacks one blob is still the first for another.
		a.fail = nil
		other := descriptor(content(11)).Digest
		r, err := c.Open(t.Context(), other, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || len(got) != 10 || c.Bytes()["peer"] != 10 {
			t.Errorf("read %d, %v, counted %v", len(got), err, c.Bytes())
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

// What the caller cancels is nobody's fault.
func TestChainCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := content(10)
		a, b := &fake{data: data, hang: true}, &fake{data: data}
		c := chainOf(Named{Name: "https", Source: a}, Named{Name: "mqtt", Source: b})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Open(ctx, descriptor(data).Digest, 0, 10); err == nil || len(b.opened) != 0 {
			t.Errorf("opened %d, %v", len(b.opened), err)
		}
		if len(c.Avoided()) != 0 {
			t.Errorf("avoided %v", c.Avoided())
		}
	})
}

// A cheap way that hangs when it is tried again holds the dear one up for not
// a moment.
func TestChainProbeNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := content(600 << 10)
		https := &fake{data: data, hang: true}
		mqtt := &fake{data: data, slow: 100 * time.Millisecond} // 60 s for all
		c := chainOf(Named{Name: "https", Source: https}, Named{Name: "mqtt", Source: mqtt})
		start := time.Now()
		if err := fetched(t, c, data); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > patience+61*time.Second {
			t.Errorf("it took %s", d)
		}
		if n := len(https.opened); n < 3 || n > 5 {
			t.Errorf("https was tried %d times", n)
		}
		if mqtt.gave != int64(len(data)) || len(mqtt.opened) != 1 {
			t.Errorf("mqtt gave %d in %d answers", mqtt.gave, len(mqtt.opened))
		}
	})
}

// TestChainGuilt: who gives one wrong byte and breaks off does not take the
// honest way with it.
func TestChainGuilt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := content(100 << 10)
		bad := &fake{data: data, lie: true, breaks: 1}
		good := &fake{data: data}
		c := chainOf(Named{Name: "https", Source: bad}, Named{Name: "mqtt", Source: good})
		var told []string
		c.Told = func(way string, _ ota.Digest) { told = append(told, way) }
		if err := fetched(t, c, data); err != nil {
			t.Fatal(err)
		}
		if len(told) != 1 || told[0] != "https" || c.Avoided()["mqtt"] != nil || c.Avoided()["https"] == nil {
			t.Errorf("blamed %q; avoided: %v", told, c.Avoided())
		}
	})
}
