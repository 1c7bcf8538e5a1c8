package blobs

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/slot"
)

// sink counts what a device got; it ends when it has enough.
type sink struct {
	http.ResponseWriter
	got *atomic.Int64
}

func (s sink) Write(b []byte) (int, error) {
	s.got.Add(int64(len(b)))
	return len(b), nil
}

type everybody struct{}

func (everybody) MayRead(context.Context, string, ota.Digest) error { return nil }

// paced is a server of one large blob to devices that name themselves.
func paced(t *testing.T, of func(string) (string, string, Limits)) (http.Handler, ota.Digest, *Pacer) {
	t.Helper()
	files := slot.NewMem()
	store := blob.NewStore(files)
	d, err := store.PutBytes(make([]byte, 8<<20))
	if err != nil {
		t.Fatal(err)
	}
	p := NewPacer(of, time.Now)
	s := New(Options{Files: files, Store: store, Pacer: p})
	return s.Devices(func(r *http.Request) (string, error) { return r.Header.Get("device"), nil }, everybody{}), d, p
}

func ask(ctx context.Context, h http.Handler, d ota.Digest, device string, got *atomic.Int64) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, "/v2/skein/blobs/"+string(d), nil).WithContext(ctx)
	r.Header.Set("device", device)
	w := httptest.NewRecorder()
	h.ServeHTTP(sink{w, got}, r)
	return w
}

// TestRatesAreShared: devices share the rate of their site and of the fleet
// evenly, however many connections one opens, over HTTPS and over the link.
func TestRatesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sites := map[string]string{"greedy": "lyon", "a": "lyon", "b": "turin", "c": "turin", "mqtt": "lyon"}
		h, d, p := paced(t, func(id string) (string, string, Limits) {
			return "default", sites[id], Limits{Site: map[string]int64{"lyon": 96 << 10}[sites[id]], Fleet: 512 << 10}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		got := map[string]*atomic.Int64{}
		for id := range sites {
			got[id] = new(atomic.Int64)
		}
		var wg sync.WaitGroup
		for _, id := range []string{"greedy", "greedy", "greedy", "greedy", "greedy", "a", "b", "c"} {
			wg.Go(func() { ask(ctx, h, d, id, got[id]) })
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				time.Sleep(p.Reserve("mqtt", 16<<10))
				got["mqtt"].Add(16 << 10)
			}
		})
		wg.Wait()
		for id, rate := range map[string]float64{"greedy": 32, "a": 32, "mqtt": 32, "b": 136.5, "c": 136.5} { // b and c have no more than 8 MiB to take
			want := min(rate*60*1024, 8<<20)
			if share := float64(got[id].Load()) / want; share < 0.85 || share > 1.2 {
				t.Errorf("%s got %d bytes, %.2f of its share", id, got[id].Load(), share)
			}
		}
	})
}

// TestTooManyAreSentAway with a time to come again, so that those who are in
// have enough to make progress; one that leaves makes room.
func TestTooManyAreSentAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, d, p := paced(t, func(string) (string, string, Limits) { return "default", "lyon", Limits{Site: 64 << 10} })
		ctx, cancel := context.WithCancelCause(t.Context())
		var wg sync.WaitGroup
		var in atomic.Int64
		for i := range 8 { // 8 KiB/s each
			wg.Go(func() { ask(ctx, h, d, strconv.Itoa(i), &in) })
		}
		synctest.Wait()
		w := ask(ctx, h, d, "late", new(atomic.Int64))
		after, err := strconv.Atoi(w.Header().Get("Retry-After"))
		if w.Code != http.StatusServiceUnavailable || err != nil || after < 5 || after > 31 {
			t.Errorf("%d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
		}
		wg.Go(func() { ask(ctx, h, d, "3", &in) }) // in already
		synctest.Wait()
		cancel(errors.New("the devices go"))
		wg.Wait()
		if len(p.turns) != 0 || p.buckets["default\x00lyon"].devices != 0 {
			t.Errorf("somebody is still in: %v", p.turns)
		}
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		var got atomic.Int64
		ask(ctx, h, d, "late", &got)
		if n := got.Load(); n < 500<<10 || n > 700<<10 {
			t.Errorf("alone it got %d bytes in 10 s at 64 KiB/s", n)
		}
	})
}

func TestWithoutLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, d, _ := paced(t, func(string) (string, string, Limits) { return "default", "lyon", Limits{} })
		var got atomic.Int64
		began := time.Now()
		if w := ask(t.Context(), h, d, "a", &got); w.Code != http.StatusOK || got.Load() != 8<<20 || time.Since(began) != 0 {
			t.Errorf("%d, %d bytes in %s", w.Code, got.Load(), time.Since(began))
		}
		r := httptest.NewRequest(http.MethodGet, "/v2/skein/blobs/"+strings.Repeat("x", 5), nil)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusBadRequest {
			t.Errorf("%d", w.Code)
		}
	})
}
