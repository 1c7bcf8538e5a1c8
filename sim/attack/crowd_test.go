package attack

import (
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// TestCrowd: 1,000 devices with the pauses that agents have come to a
// repository that is back after 20 minutes, in virtual time; 5,000 and an hour
// with SKEIN_SLOW. What asks in step is short.
func TestCrowd(t *testing.T) {
	t.Parallel()
	size, down := 1000, 20*time.Minute
	if os.Getenv("SKEIN_SLOW") != "" {
		size, down = 5000, time.Hour
	}
	synctest.Test(t, func(t *testing.T) {
		c := crowd{size: size, down: down, base: time.Second, most: 2 * time.Minute, slice: 10 * time.Second, room: size / 4}
		if err := c.measure(t.Context()); err != nil {
			t.Error(err)
		}
	})
	repo := &counter{crowd: quick, slices: map[int64]int{-1: 500, 0: 500, 1: 20}}
	if repo.judge(time.Second) == nil {
		t.Error("500 of 500 within a slice are taken for spread")
	}
	repo.slices = map[int64]int{0: 100}
	if repo.judge(time.Minute) == nil {
		t.Error("a minute is taken for soon")
	}
}
