package main

import "testing"

func TestWorthIt(t *testing.T) {
	for _, tt := range []struct {
		idle, used uint64
		want       bool
	}{{giveBackLeast - 1, 0, false}, {giveBackLeast, 0, true}, {giveBackLeast, 4 * giveBackLeast, true}, {giveBackLeast, 4*giveBackLeast + 4, false}} {
		if got := worthIt(tt.idle, tt.used); got != tt.want {
			t.Errorf("%d idle, %d used: %v", tt.idle, tt.used, got)
		}
	}
}
