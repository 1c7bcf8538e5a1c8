package fleet

import (
	"testing"

	"github.com/skein-fleet/skein/ota"
)

// TestAgain: wanting what is wanted changes nothing, unless another try is asked.
func TestAgain(t *testing.T) {
	w := newWorld(t, t.TempDir())
	id := w.enrol(t, "a", "lyon")
	w.rel[release(1)] = nil
	generation := func() uint64 {
		v, err := w.Get(tenant, id)
		if err != nil {
			t.Fatal(err)
		}
		return v.Wanted.Counter
	}
	for i, c := range []struct {
		again bool
		want  uint64
	}{{false, 1}, {false, 1}, {true, 2}, {false, 2}} {
		in := Intent{Device: id, Release: ota.Digest(release(1)), RollbackAllowed: true, Again: c.again}
		if err := w.SetDesiredAll(t.Context(), tenant, []Intent{in}); err != nil {
			t.Fatal(err)
		}
		if got := generation(); got != c.want {
			t.Errorf("step %d: generation %d, want %d", i, got, c.want)
		}
	}
}
