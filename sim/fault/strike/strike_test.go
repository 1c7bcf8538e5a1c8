package strike

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/sim/fault"
)

// witness writes down what happens to it, and when.
type witness struct {
	n     int
	start time.Time
	mu    *sync.Mutex
	log   *[]string
}

func (w witness) Name() string { return fmt.Sprintf("d%d", w.n) }
func (w witness) Number() int  { return w.n }
func (w witness) say(what string, x fault.Fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*w.log = append(*w.log, fmt.Sprintf("%8s %s %s %s", time.Since(w.start), what, x.Kind, w.Name()))
}
func (w witness) Inject(x fault.Fault) { w.say("inject", x) }
func (w witness) Heal(x fault.Fault)   { w.say("heal", x) }

func run(ctx context.Context, x fault.Fault, seed uint64) []string {
	var log []string
	var mu sync.Mutex
	start := time.Now()
	On(ctx, []witness{{1, start, &mu, &log}, {2, start, &mu, &log}}, x, seed, func(string) {})
	slices.Sort(log)
	return log
}

func TestFaultBeginsAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := run(t.Context(), fault.Fault{Kind: fault.Cut, For: 5 * time.Second}, 1)
		if diff := cmp.Diff([]string{"      0s inject cut d1", "      0s inject cut d2", "      5s heal cut d1", "      5s heal cut d2"}, got); diff != "" {
			t.Error(diff)
		}
		if got := run(t.Context(), fault.Fault{Kind: fault.Cut}, 1); len(got) != 2 {
			t.Errorf("a fault without an end: %v", got)
		}
	})
}

// TestKills: each device is killed once in each span, at moments of its own
// that the seed repeats.
func TestKills(t *testing.T) {
	x := fault.Fault{Kind: fault.Kill, Times: 3, Every: 2 * time.Second}
	synctest.Test(t, func(t *testing.T) {
		a, b, c := run(t.Context(), x, 1), run(t.Context(), x, 1), run(t.Context(), x, 2)
		if len(a) != 6 {
			t.Fatalf("%v", a)
		}
		if diff := cmp.Diff(a, b); diff != "" {
			t.Errorf("equal seeds differ: %s", diff)
		}
		if cmp.Equal(a, c) {
			t.Error("another seed gives the same moments")
		}
	})
}

// TestStop: a run that ends strikes no more.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		got := run(ctx, fault.Fault{Kind: fault.Kill, Times: 100, Every: time.Second}, 1)
		if len(got) > 8 {
			t.Errorf("%d kills in three seconds", len(got))
		}
	})
}
