package power

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// model is a Board.
type model struct {
	mu       sync.Mutex
	r        Reading
	asks     string // mode that needs a restart
	restarts int
	takes    bool // the restart brings the mode
}

func (m *model) Read(context.Context) (Reading, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.r, nil
}

func (m *model) SetMode(_ context.Context, name string, restart bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if name == m.asks && !restart {
		return ErrNeedsReboot
	}
	if restart {
		m.restarts++
	}
	if !restart || m.takes {
		m.r.Mode = name
	}
	return nil
}

func (m *model) SetClocks(_ context.Context, c wire.Clocks) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.r.Clocks = c
	return nil
}

func (m *model) SetFan(_ context.Context, p string) error { m.r.Fan = p; return nil }

func (m *model) zone(milli int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.r.Zones = []Zone{{"tj-thermal", milli, 95000}}
}

// bench is a manager over a model.
type bench struct {
	*Manager
	board      *model
	conditions *health.Board
	files      slot.Files
	busy, held string
	boot       uint64
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{board: &model{r: Reading{Mode: "25W", Modes: []string{"15W", "25W", "7W"}, Clocks: wire.ClocksDynamic, Fan: "quiet"}},
		files: slot.NewMem(), boot: 1, conditions: health.NewBoard(time.Now, func() {})}
	b.start(t)
	return b
}

func (b *bench) start(t *testing.T) {
	t.Helper()
	m, err := New(Config{Board: b.board, Files: b.files, Conditions: b.conditions, Logger: slog.New(slog.DiscardHandler),
		Busy: func() string { return b.busy }, Held: func() string { return b.held }, BootID: func() uint64 { return b.boot }})
	if err != nil {
		t.Fatal(err)
	}
	b.Manager = m
}

func (b *bench) lookAt(t *testing.T) {
	t.Helper()
	if err := b.Look(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) says(name string) string {
	for _, c := range b.conditions.Conditions() {
		if c.Name == name {
			return c.Message
		}
	}
	return ""
}

func TestWishIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx) }()
		synctest.Wait()
		if s := b.State(); s.Mode != "25W" || s.Wanted != "" {
			t.Errorf("%+v", s)
		}
		b.Use(&wire.PowerWish{Mode: "15W", Clocks: wire.ClocksLocked, Fan: "cool"})
		synctest.Wait()
		if s := b.State(); s.Mode != "15W" || s.Clocks != wire.ClocksLocked || s.Fan != "cool" || s.Wanted != "15W" {
			t.Errorf("%+v", s)
		}
		b.board.mu.Lock()
		b.board.r.Mode = "25W" // somebody else's hand, or a restart
		b.board.mu.Unlock()
		time.Sleep(20 * time.Second)
		if s := b.State(); s.Mode != "15W" {
			t.Errorf("%+v", s)
		}
		b.Use(&wire.PowerWish{Mode: "MAXN"})
		synctest.Wait()
		if s := b.says(health.PowerRefused); !strings.Contains(s, "it has 15W, 25W, 7W") {
			t.Errorf("%q", s)
		}
		b.Use(nil)
		synctest.Wait()
		if s := b.says(health.PowerRefused); s != "" || b.State().Mode != "15W" {
			t.Errorf("%q %+v", s, b.State())
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestNothingIsChangedWhileBusy(t *testing.T) {
	b := newBench(t)
	b.busy = "an update is under way"
	b.Use(&wire.PowerWish{Mode: "15W"})
	b.lookAt(t)
	if s := b.State(); s.Mode != "25W" || s.Wanted != "15W" {
		t.Errorf("%+v", s)
	}
}

// A mode that needs a restart of the machine gets one, when it is allowed.
func TestRestartForMode(t *testing.T) {
	b := newBench(t)
	b.board.asks, b.board.takes = "7W", true
	b.Use(&wire.PowerWish{Mode: "7W"})
	b.lookAt(t)
	if s := b.says(health.PowerNeedsReboot); !strings.Contains(s, "power-reboot=yes") || !b.State().NeedsReboot || b.board.restarts != 0 {
		t.Fatalf("%q %+v", s, b.State())
	}
	b.Use(&wire.PowerWish{Mode: "7W", Reboot: true})
	b.held = "it waits for the window in which releases may be applied"
	b.lookAt(t)
	if s := b.says(health.PowerNeedsReboot); !strings.Contains(s, b.held) || b.board.restarts != 0 {
		t.Fatalf("%q", s)
	}
	b.held = ""
	b.lookAt(t)
	if b.board.restarts != 1 {
		t.Fatalf("%d restarts", b.board.restarts)
	}
	b.boot = 2
	b.start(t)
	b.Use(&wire.PowerWish{Mode: "7W", Reboot: true})
	b.lookAt(t)
	if s := b.says(health.PowerNeedsReboot) + b.says(health.PowerRefused); s != "" || b.board.restarts != 1 {
		t.Errorf("%q, %d restarts", s, b.board.restarts)
	}
}

// A machine that comes back in another mode is not restarted again and again.
func TestRestartsOnce(t *testing.T) {
	b := newBench(t)
	b.board.asks = "7W"
	for range 5 {
		b.start(t)
		b.Use(&wire.PowerWish{Mode: "7W", Reboot: true})
		b.lookAt(t)
		b.lookAt(t)
		b.boot++
	}
	if s := b.says(health.PowerRefused); b.board.restarts != 1 || !strings.Contains(s, "it is not restarted again") {
		t.Errorf("%d restarts, %q", b.board.restarts, s)
	}
}

func TestHeadroom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.board.zone(60000)
		if note, err := b.Headroom(t.Context(), "load"); note != "" || err != nil {
			t.Errorf("a cool board: %q %v", note, err)
		}
		b.board.zone(94000)
		began := time.Now()
		go func() {
			time.Sleep(time.Minute)
			b.board.zone(80000)
		}()
		done := make(chan string, 1)
		go func() {
			note, err := b.Headroom(t.Context(), "load")
			if err != nil {
				t.Error(err)
			}
			done <- note
		}()
		time.Sleep(30 * time.Second)
		if s := b.says(health.WaitsForHeadroom); !strings.Contains(s, "load waits, at most 10m0s") || !strings.Contains(s, "tj-thermal is 1.0 K below its trip") {
			t.Errorf("%q", s)
		}
		note := <-done
		if d := time.Since(began); d < time.Minute || d > 70*time.Second || !strings.HasPrefix(note, "waited 1m") {
			t.Errorf("%s: %q", d, note)
		}
		if s := b.says(health.WaitsForHeadroom); s != "" {
			t.Errorf("still %q", s)
		}
		b.board.zone(96000)
		began = time.Now()
		note, err := b.Headroom(t.Context(), "load")
		if d := time.Since(began); err != nil || d != 10*time.Minute || !strings.HasPrefix(note, "began without headroom") {
			t.Errorf("%s: %q %v", d, note, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := b.Headroom(ctx, "load"); err == nil {
			t.Error("a context that ended is waited for")
		}
	})
}

// Counters are judged by rate: one kind climbs in normal work.
func TestJudgeRates(t *testing.T) {
	start := time.Unix(1e9, 0)
	series := func(name string, perMinute uint64) []sample {
		var out []sample
		for i := range 12 {
			out = append(out, sample{start.Add(time.Duration(i) * time.Minute), Reading{OverCurrent: map[string]uint64{name: 5000 + uint64(i)*perMinute}}})
		}
		return out
	}
	for _, c := range []struct {
		name      string
		perMinute uint64
		throttled bool
	}{{"oc3", 456, false}, {"oc3", 2000, true}, {"oc1", 0, false}, {"oc1", 1, true}, {"oc2", 3, true}} {
		v := judge(series(c.name, c.perMinute))
		if got := len(v.Throttle) > 0; got != c.throttled || v.OverCurrent[0].PerHour != c.perMinute*60 {
			t.Errorf("%s at %d a minute: %+v", c.name, c.perMinute, v)
		}
	}
	reset := series("oc1", 0)
	reset[11].OverCurrent = map[string]uint64{"oc1": 0} // the counter began anew
	if v := judge(reset); len(v.Throttle) != 0 {
		t.Errorf("%+v", v)
	}
}

func TestJudgeHeatAndVoltage(t *testing.T) {
	one := func(r Reading) view { return judge([]sample{{time.Unix(1e9, 0), r}}) }
	v := one(Reading{Zones: []Zone{{"cpu-thermal", 60000, 99000}, {"tj-thermal", 70000, 95000}, {"odd", 200000, 0}}})
	if v.Zone != "tj-thermal" || v.Headroom != 25000 || len(v.Throttle) != 0 || v.busy() != "" {
		t.Errorf("%+v", v)
	}
	if v := one(Reading{Zones: []Zone{{"tj-thermal", 96000, 95000}}}); len(v.Throttle) != 1 || v.Throttle[0].Name != "heat" || v.busy() == "" {
		t.Errorf("%+v", v)
	}
	if v := one(Reading{Coolers: []string{"cpufreq-cpu0"}}); len(v.Throttle) != 1 || v.Throttle[0].Name != "heat" {
		t.Errorf("%+v", v)
	}
	for _, c := range []struct {
		rail Rail
		low  bool
	}{{Rail{"VDD_IN", 4984, 0}, false}, {Rail{"VDD_IN", 4700, 0}, true}, {Rail{"VIN", 19000, 0}, false}, {Rail{"VIN", 8000, 9000}, true}} {
		if v := one(Reading{Rails: []Rail{c.rail}}); (len(v.Throttle) == 1) != c.low {
			t.Errorf("%+v: %+v", c.rail, v)
		}
	}
}
