package budget

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// world is a device around a gate; synctest's clock begins on Saturday,
// 2000-01-01 00:00 UTC.
type world struct {
	t        *testing.T
	files    *slot.Mem
	offset   time.Duration // of the device's clock
	doubtful bool
	iface    string
	free     atomic.Bool
	holds    []string
	gate     *Gate
}

func (w *world) config() Config {
	return Config{
		Files:     w.files,
		Clock:     func() (time.Time, bool) { return time.Now().Add(w.offset), w.doubtful },
		Interface: func() (string, error) { return w.iface, nil },
		Free:      w.free.Load,
		Waiting: func(h *Hold) {
			text := ""
			if h != nil {
				text = h.Error()
			}
			w.holds = append(w.holds, text)
		},
	}
}

func newWorld(t *testing.T, p *wire.Policy) *world {
	t.Helper()
	w := &world{t: t, files: slot.NewMem(), iface: "eth0"}
	w.open(p)
	return w
}

func (w *world) open(p *wire.Policy) {
	w.t.Helper()
	g, err := Open(w.config())
	if err != nil {
		w.t.Fatal(err)
	}
	w.gate = g
	if err := g.Use(p); err != nil {
		w.t.Fatal(err)
	}
}

// blobs gives as many bytes as it is asked for, and counts them.
type blobs struct{ gave atomic.Int64 }

func (b *blobs) Open(_ context.Context, _ ota.Digest, _, length int64) (io.ReadCloser, error) {
	b.gave.Add(length)
	return io.NopCloser(bytes.NewReader(make([]byte, length))), nil
}

// read reads up to n bytes through the meter and returns how many came.
func (w *world) read(ctx context.Context, n int64) (int64, error) {
	r, err := w.gate.Meter(&blobs{}).Open(ctx, ota.DigestOf(nil), 0, n)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(io.Discard, r)
}

func windows(text string) []wire.Schedule { return []wire.Schedule{{Windows: text, Zone: "UTC"}} }

func perDay(n int64) []wire.Allowance {
	return []wire.Allowance{{Class: wire.Unmetered, Period: wire.PerDay, Bytes: n}}
}

func TestDownloadWaitsForItsWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &wire.Policy{Download: windows("Mon-Sun 22:00-23:00")})
		began := time.Now()
		ctx, stop, err := w.gate.Download(t.Context())
		if err != nil || time.Since(began) != 22*time.Hour {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}
		<-ctx.Done()
		h, ok := errors.AsType[*Hold](context.Cause(ctx))
		if !ok || h.Kind != wire.WaitsForDownloadWindow || time.Since(began) != 23*time.Hour {
			t.Fatalf("after %s: %v", time.Since(began), context.Cause(ctx))
		}
		stop()
		want := []string{"the download waits for its window (Mon-Sun 22:00-23:00 UTC), until Sat 2000-01-01 22:00 UTC", ""}
		if got := strings.Join(w.holds, "|"); got != strings.Join(want, "|") {
			t.Errorf("told %q", w.holds)
		}
	})
}

// TestNewPolicyIsFelt: what waits looks again when the policy changes, and what
// comes is ended by it.
func TestNewPolicyIsFelt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &wire.Policy{Apply: windows("Mon 00:00-01:00")})
		time.AfterFunc(90*time.Second, func() {
			if err := w.gate.Use(&wire.Policy{Apply: windows("Sat 00:00-01:00")}); err != nil {
				t.Error(err)
			}
		})
		began := time.Now()
		if err := w.gate.Apply(t.Context()); err != nil || time.Since(began) != 90*time.Second {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}
		ctx, stop, err := w.gate.Download(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		if err := w.gate.Use(&wire.Policy{Download: windows("Sun 00:00-01:00")}); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		// An operator's word waits for nothing.
		if err := w.gate.Use(&wire.Policy{Download: windows("Sun 00:00-01:00"), Apply: windows("Sun 00:00-01:00"), Now: true}); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		if err := w.gate.Apply(t.Context()); err != nil || time.Since(began) != 0 {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &wire.Policy{Apply: windows("Mon 00:00-01:00")})
		newer := errors.New("something newer is wanted")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Hour, func() { cancel(newer) })
		if err := w.gate.Apply(ctx); !errors.Is(err, newer) {
			t.Errorf("got %v", err)
		}
		if w.gate.Waits() != nil {
			t.Error("it still says that it waits")
		}
	})
}

func TestAllowance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &wire.Policy{Allowances: []wire.Allowance{
			{Class: wire.Unmetered, Period: wire.PerDay, Bytes: 1 << 20}, {Class: wire.Unmetered, Period: wire.PerMonth, Bytes: 5 << 19}}})
		for day, want := range []int64{1 << 20, 1 << 20, 1 << 19, 0} {
			n, err := w.read(t.Context(), 10<<20)
			h, held := errors.AsType[*Hold](err)
			if n != want || !held {
				t.Fatalf("day %d: %d bytes, %v", day, n, err)
			}
			until := time.Date(2000, 1, 2+day, 0, 0, 0, 0, time.UTC)
			if day >= 2 {
				until = time.Date(2000, 2, 1, 0, 0, 0, 0, time.UTC)
			}
			if !h.Until.Equal(until) || h.Kind != wire.WaitsForAllowance {
				t.Errorf("day %d: %v", day, h)
			}
			time.Sleep(24 * time.Hour)
		}
		began := time.Now() // 5 January
		_, stop, err := w.gate.Download(t.Context())
		if err != nil || time.Since(began) != 27*24*time.Hour {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		stop()
		if n, _ := w.read(t.Context(), 10<<20); n != 1<<20 {
			t.Errorf("in February %d", n)
		}
	})
}

// TestAllowanceEndsATransfer: the one that empties it ends the download, unless
// there are ways that no allowance counts.
func TestAllowanceEndsATransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &wire.Policy{Allowances: perDay(1 << 20)})
		w.free.Store(true)
		ctx, stop, err := w.gate.Download(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		if n, err := w.read(ctx, 2<<20); n != 1<<20 || err == nil {
			t.Fatalf("%d, %v", n, err)
		}
		synctest.Wait()
		if ctx.Err() != nil || w.gate.Waits() == nil || w.gate.Waits().Kind != wire.WaitsForAllowance {
			t.Fatalf("%v, waits for %v", context.Cause(ctx), w.gate.Waits())
		}
		w.free.Store(false)
		time.Sleep(2 * time.Minute)
		if _, ok := errors.AsType[*Hold](context.Cause(ctx)); !ok {
			t.Fatalf("without peers: %v", context.Cause(ctx))
		}
	})
}

// TestClassOfLink: each class has its own account, and a change of the route is
// seen in the middle of a transfer.
func TestClassOfLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &wire.Policy{Metered: []string{"wwan*", "ppp?"}, Allowances: []wire.Allowance{{Class: wire.Metered, Period: wire.PerDay, Bytes: 64 << 10}}})
		if n, err := w.read(t.Context(), 1<<20); n != 1<<20 || err != nil {
			t.Fatalf("over eth0 %d, %v", n, err)
		}
		for _, name := range []string{"wwan0", "ppp0", ""} {
			w.iface = name
			time.Sleep(24 * time.Hour)
			if n, err := w.read(t.Context(), 1<<20); n != 64<<10 || err == nil {
				t.Errorf("over %q %d, %v", name, n, err)
			}
		}
		w.iface = "eth0"
		time.Sleep(time.Minute)
		r, err := w.gate.Meter(&blobs{}).Open(t.Context(), ota.DigestOf(nil), 0, 10<<20)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, r, 1<<20); err != nil {
			t.Fatal(err)
		}
		w.iface = "wwan0"
		time.Sleep(25 * time.Hour)
		if n, err := io.Copy(io.Discard, r); n != 64<<10 || err == nil {
			t.Errorf("after the change %d, %v", n, err)
		}
		if s := w.gate.State(); s.Interface != "wwan0" || s.Class != wire.Metered || len(s.Used) != 1 || s.Used[0].Bytes != 64<<10 {
			t.Errorf("state %+v", s)
		}
	})
}

// TestDoubtfulClock grants nothing: no new day begins, also where the clock
// says so.
func TestDoubtfulClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &wire.Policy{Allowances: perDay(1 << 20)})
		if n, _ := w.read(t.Context(), 10<<20); n != 1<<20 {
			t.Fatal(n)
		}
		w.doubtful = true
		for _, w.offset = range []time.Duration{48 * time.Hour, -20 * 365 * 24 * time.Hour, 365 * 24 * time.Hour} {
			n, err := w.read(t.Context(), 10<<20)
			h, ok := errors.AsType[*Hold](err)
			if n != 0 || !ok || !h.Until.IsZero() || !strings.Contains(h.Error(), "doubtful") {
				t.Errorf("%s off: %d bytes, %v", w.offset, n, err)
			}
		}
		w.doubtful, w.offset = false, 24*time.Hour
		if n, _ := w.read(t.Context(), 10<<20); n != 1<<20 {
			t.Errorf("when it is right again: %d", n)
		}
		// Back and forth over the same two days grants neither again.
		for range 3 {
			for _, w.offset = range []time.Duration{0, 24 * time.Hour} {
				if n, _ := w.read(t.Context(), 10<<20); n != 0 {
					t.Errorf("%d bytes for jumping about", n)
				}
			}
		}
	})
}

func TestExemptIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &wire.Policy{Allowances: perDay(1 << 20)})
		if n, err := w.read(w.gate.Exempt(t.Context()), 3<<20); n != 3<<20 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		if n, err := w.read(t.Context(), 1); n != 0 || err == nil {
			t.Errorf("%d, %v", n, err)
		}
		w.open(&wire.Policy{Allowances: perDay(4 << 20)})
		if n, _ := w.read(t.Context(), 10<<20); n > 1<<20 || n < 1<<20-(64<<10) {
			t.Errorf("of 4 MiB after 3: %d", n)
		}
	})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &wire.Policy{Rate: 64 << 10})
		began := time.Now()
		if _, err := w.read(t.Context(), 640<<10); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("took %s", took)
		}
	})
}

// TestCutRefundsNothing: whatever is read, put back, cut and restarted, no more
// than the allowance comes in a day, and little of it is lost to cuts.
func TestCutRefundsNothing(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		limit := rapid.Int64Range(1, 4<<20).Draw(rt, "limit")
		files := slot.NewMem()
		now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
		open := func() *Gate {
			g, err := Open(Config{Files: files, Clock: func() (time.Time, bool) { return now, false }})
			if err != nil {
				rt.Fatal(err)
			}
			if err := g.Use(&wire.Policy{Allowances: perDay(limit)}); err != nil {
				rt.Fatal(err)
			}
			return g
		}
		g := open()
		came, cuts := map[string]int64{}, int64(0)
		rt.Repeat(map[string]func(*rapid.T){
			"read": func(t *rapid.T) {
				want := rapid.Int64Range(1, 1<<20).Draw(t, "want")
				c, err := g.take(want, false)
				if err != nil {
					if _, ok := errors.AsType[*Hold](err); !ok {
						t.Fatal(err)
					}
					// Held: what did not come was lost to cuts alone.
					day := now.Format("2006-01-02")
					if lost := limit - came[day]; lost > (cuts+1)*max(g.quantum(wire.Unmetered), 1<<20) {
						t.Fatalf("held with %d of %d unused after %d cuts", lost, limit, cuts)
					}
					return
				}
				got := rapid.Int64Range(0, c.n).Draw(t, "got")
				came[now.Format("2006-01-02")] += got
				g.giveBack(c, c.n-got)
			},
			"cut": func(t *rapid.T) {
				files = files.Crash(rapid.Uint64().Draw(t, "seed"))
				cuts++
				g = open()
			},
			"next day": func(*rapid.T) { now = now.Add(24 * time.Hour) },
			"back":     func(*rapid.T) { now = now.Add(-24 * time.Hour) },
			"": func(t *rapid.T) {
				for day, n := range came {
					if n > limit {
						t.Fatalf("%s: %d of %d came", day, n, limit)
					}
				}
			},
		})
	})
}

func TestCheck(t *testing.T) {
	for want, p := range map[string]*wire.Policy{
		"download window": {Download: windows("nonsense")},
		"apply window":    {Apply: []wire.Schedule{{Windows: "", Zone: "Mars"}}},
		"no time zone":    {Zone: "Mars"},
		"interfaces":      {Metered: []string{"[a"}},
		"allowance":       {Allowances: []wire.Allowance{{Class: 7, Period: 1}}},
		"bytes a second":  {Rate: 1},
		"reserve":         {Reserve: -1},
	} {
		if err := Check(p); !errors.Is(err, ErrPolicy) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if err := Check(nil); err != nil {
		t.Error(err)
	}
}

// TestDamagedAccount goes on from the copy of the day before.
func TestDamagedAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &wire.Policy{Allowances: perDay(1 << 20)})
		if _, err := w.read(t.Context(), 1000); err != nil {
			t.Fatal(err)
		}
		if err := w.files.WriteFile(fileName, []byte("{")); err != nil {
			t.Fatal(err)
		}
		w.open(&wire.Policy{Allowances: perDay(1 << 20)})
		if !w.gate.Damaged() || w.gate.State().Used[0].Bytes == 0 {
			t.Errorf("damaged %t, %+v", w.gate.Damaged(), w.gate.State())
		}
	})
}

var _ fetch.Blamer = metered{}
