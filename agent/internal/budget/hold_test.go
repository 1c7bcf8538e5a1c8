package budget

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

func holdGate(t *testing.T, files slot.Files, clock func() (time.Time, bool)) *Gate {
	t.Helper()
	g, err := Open(Config{Files: files, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func wall() (time.Time, bool) { return time.Now(), false }

func TestHoldHoldsAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := holdGate(t, slot.NewMem(), wall)
		h, capped, err := g.HoldOff("line-3", "a batch runs", 10*time.Minute)
		if err != nil || capped || h.Until-h.Since != 600 {
			t.Fatalf("%+v %v %v", h, capped, err)
		}
		began := time.Now()
		if err := g.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d < 10*time.Minute || d > 11*time.Minute {
			t.Errorf("applied after %s", d)
		}
		if s := g.State(); s != nil {
			t.Errorf("%+v", s)
		}
	})
}

func TestHoldIsSaidAndReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := holdGate(t, slot.NewMem(), wall)
		if _, _, err := g.HoldOff("line-3", "a batch runs", 10*time.Minute); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- g.Apply(t.Context()) }()
		synctest.Wait()
		s := g.State()
		if s == nil || s.Waits != wire.WaitsForHold || len(s.Holds) != 1 || s.Holds[0].Owner != "line-3" || s.Until == 0 {
			t.Fatalf("%+v", s)
		}
		if w := g.Waits(); !strings.Contains(w.Error(), "line-3 holds it off: a batch runs") {
			t.Error(w)
		}
		if n, err := g.ReleaseHold("line-4"); n != 0 || err != nil {
			t.Errorf("%d %v", n, err)
		}
		if n, err := g.ReleaseHold("line-3"); n != 1 || err != nil {
			t.Errorf("%d %v", n, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Renewing, and other names, do not lengthen a series of holds.
func TestHoldCap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := holdGate(t, slot.NewMem(), wall)
		if err := g.Use(&wire.Policy{MaxHold: 1800}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if _, capped, err := g.HoldOff("a", "r", time.Hour); err != nil || !capped {
			t.Fatal(capped, err)
		}
		refused := 0
		for i := range 40 {
			time.Sleep(time.Minute)
			if _, _, err := g.HoldOff([]string{"a", "b"}[i%2], "r", time.Hour); errors.Is(err, ErrHold) {
				refused++
			}
		}
		if refused == 0 {
			t.Error("holds were renewed for ever")
		}
		if err := g.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d > 41*time.Minute {
			t.Errorf("held for %s", d)
		}
		// An update went through: a new series begins.
		if _, _, err := g.HoldOff("a", "r", time.Minute); err != nil {
			t.Error(err)
		}
		if err := g.Use(&wire.Policy{MaxHold: -1}); err != nil {
			t.Fatal(err)
		}
		if len(g.Holds()) != 0 {
			t.Error("a policy without holds leaves one")
		}
		if _, _, err := g.HoldOff("a", "r", time.Minute); !errors.Is(err, ErrHold) {
			t.Error(err)
		}
	})
}

func TestHoldSurvivesRestartAndClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files, now := slot.NewMem(), time.Now()
		clock := func() (time.Time, bool) { return now, false }
		g := holdGate(t, files, clock)
		if _, _, err := g.HoldOff("a", "r", 20*time.Minute); err != nil {
			t.Fatal(err)
		}
		for name, at := range map[string]struct {
			now  time.Time
			most time.Duration
		}{
			"five minutes later": {now.Add(5 * time.Minute), 15 * time.Minute},
			"in 1970":            {time.Unix(0, 0), 20 * time.Minute},
			"tomorrow":           {now.Add(24 * time.Hour), 0},
		} {
			g := holdGate(t, files, func() (time.Time, bool) { return at.now, false })
			began := time.Now()
			if err := g.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(began); d < at.most-time.Second || d > at.most+lookEvery {
				t.Errorf("%s: held for %s, want %s", name, d, at.most)
			}
		}
	})
}

func TestHoldYieldsToOperator(t *testing.T) {
	g := holdGate(t, slot.NewMem(), wall)
	if _, _, err := g.HoldOff("a", "r", time.Minute); err != nil {
		t.Fatal(err)
	}
	if g.ApplyHeld() == nil {
		t.Fatal("it is not held")
	}
	if err := g.Use(&wire.Policy{Now: true}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.Apply(ctx); err != nil {
		t.Error(err)
	}
}

func TestHoldRefuses(t *testing.T) {
	g := holdGate(t, slot.NewMem(), wall)
	for _, c := range []struct {
		owner, reason string
		d             time.Duration
	}{{"", "r", time.Minute}, {"a", "", time.Minute}, {"a", "r", 0}, {"a", "r", -time.Minute}, {strings.Repeat("a", 65), "r", time.Minute}, {"a\xff", "r", time.Minute}} {
		if _, _, err := g.HoldOff(c.owner, c.reason, c.d); !errors.Is(err, ErrHold) {
			t.Errorf("%q %q %s: %v", c.owner, c.reason, c.d, err)
		}
	}
	for i := range maxHolds + 1 {
		_, _, err := g.HoldOff(string(rune('a'+i)), "r", time.Minute)
		if (i == maxHolds) != errors.Is(err, ErrHold) {
			t.Errorf("hold %d: %v", i, err)
		}
	}
}
