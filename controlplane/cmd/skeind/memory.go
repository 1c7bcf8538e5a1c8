package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// giveBackEvery is how often idle memory is looked at.
	giveBackEvery = 30 * time.Second
	// giveBackLeast is the idle memory that is not worth a collection.
	giveBackLeast = 48 << 20
)

// giveBack returns memory to the host that a storm of connecting devices has
// left idle: handshakes need about twice what a quiet session does, and by
// itself the runtime keeps what it once had, since a quiet control plane
// rarely collects. It runs until ctx ends.
func giveBack(ctx context.Context) {
	tick := time.NewTicker(giveBackEvery)
	defer tick.Stop()
	samples := []metrics.Sample{{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		metrics.Read(samples)
		if worthIt(samples[0].Value.Uint64(), samples[1].Value.Uint64()) {
			debug.FreeOSMemory()
		}
	}
}

// worthIt says whether so much idle memory, beside so much in use, is worth a
// collection.
func worthIt(idle, used uint64) bool { return idle >= giveBackLeast && idle >= used/4 }
