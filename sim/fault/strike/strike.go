// Package strike lets faults happen to devices: it knows when a fault begins
// and ends and at which moments devices are killed, not how a device suffers.
// It owns no device; virtual and hil fleets use it.
//
// Invariant: equal seed, salt and devices give equal moments.
package strike

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/skein-fleet/skein/sim/fault"
)

// Device is what can suffer.
type Device interface {
	Name() string
	Number() int // in its fleet, from 1
	// Inject puts a fault onto the device now; a kill keeps it down for the
	// fault's Down. Heal ends a fault.
	Inject(fault.Fault)
	Heal(fault.Fault)
}

// On puts a fault onto devices, keeps it for its time, and ends it. It begins
// now, whatever its At, and returns when the fault is over or ctx has ended.
// note is told what happens. Devices that are killed several times are killed
// at moments of their own, drawn from seed.
func On[D Device](ctx context.Context, devices []D, x fault.Fault, seed uint64, note func(string)) {
	if x.Kind == fault.Kill {
		kill(ctx, devices, x, seed, note)
		return
	}
	note(fmt.Sprintf("fault %s begins on %s", x.Kind, names(devices)))
	for _, d := range devices {
		d.Inject(x)
	}
	if x.For == 0 {
		return
	}
	wait(ctx, x.For)
	for _, d := range devices {
		d.Heal(x)
	}
	note(fmt.Sprintf("fault %s ends on %s", x.Kind, names(devices)))
}

func kill[D Device](ctx context.Context, devices []D, x fault.Fault, seed uint64, note func(string)) {
	var wg sync.WaitGroup
	for _, d := range devices {
		rng := rand.New(rand.NewPCG(seed, uint64(d.Number())))
		wg.Go(func() {
			for range x.Times {
				// Once in each span of Every, and not all at the same moment.
				var rest time.Duration
				if x.Every > 0 {
					early := time.Duration(rng.Int64N(int64(x.Every)))
					rest = x.Every - early
					wait(ctx, early)
				}
				if ctx.Err() != nil {
					return
				}
				note("kill " + d.Name())
				d.Inject(x)
				wait(ctx, rest)
			}
		})
	}
	wg.Wait()
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// names lists devices for people, at most eight of them.
func names[D Device](devices []D) string {
	text := ""
	for i, d := range devices {
		if i == 8 {
			return fmt.Sprintf("%s and %d more", text, len(devices)-i)
		}
		if i > 0 {
			text += " "
		}
		text += d.Name()
	}
	return text
}
