package state

import (
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota/slot"
)

// TestCounterOnFullDisk: reports go on while the disk is full, over restarts
// too, and no counter is given twice.
func TestCounterOnFullDisk(t *testing.T) {
	files := slot.NewMem()
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	var last uint64
	take := func(n int) {
		t.Helper()
		st, err := Open(files)
		if err != nil {
			t.Fatal(err)
		}
		c := NewCounter(st, func() time.Time { return now })
		for range n {
			now = now.Add(time.Second)
			got, err := c.Next()
			if err != nil {
				t.Fatal(err)
			}
			if got <= last {
				t.Fatalf("counter %d after %d", got, last)
			}
			last = got
		}
	}
	take(3)
	files.SetFree(0)
	take(5)
	take(5)
	files.SetFree(1 << 20)
	take(2000)
	take(3)
}
