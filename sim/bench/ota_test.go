package bench

import (
	"math"
	"os"
	"strings"
	"testing"
)

// TestUpdatesCostNoMoreThanOtherWays on small files, where headers count: each
// row is at most half a percent above the best other way, with the zstd program
// or without.
func TestUpdatesCostNoMoreThanOtherWays(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	figures, err := OTA(t.Context(), OTAOptions{MiB: 2, Dir: t.TempDir(), Self: self, Progress: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	rows, best := 0, math.Inf(1)
	for _, f := range figures {
		switch {
		case strings.HasSuffix(f.Name, ".full"):
			best = f.Value
		case strings.HasSuffix(f.Name, ".skein"):
			rows++
			if f.Value > best*1.005 {
				t.Errorf("%s", f)
			}
		default:
			best = min(best, f.Value)
		}
	}
	if rows != 5 {
		t.Errorf("%d rows", rows)
	}
	if last := figures[len(figures)-1]; last.Name != "ota.apply_memory_above_idle" || !last.OK || last.Value < 0.5 {
		t.Errorf("%s", last)
	}
}

func TestHalf(t *testing.T) {
	for f, want := range map[float32]uint16{0: 0, 1: 0x3c00, -2: 0xc000, 65504: 0x7bff, 1e6: 0x7c00, 0.1: 0x2e66, 2047.9: 0x6800, 1e-9: 0} {
		if got := half(f); got != want {
			t.Errorf("half(%v) = %#x, want %#x", f, got, want)
		}
	}
}
