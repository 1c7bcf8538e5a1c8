package load

import (
	"context"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

func (m *member) nextID() wire.MessageID { return wire.MessageID{Boot: m.boot, Counter: m.ids.Add(1)} }

func (f *Fleet) publish(m *member, kind wire.Kind, payload []byte) error {
	d := m.dev.Load()
	if d == nil {
		return fmt.Errorf("publish as %s: not connected", m.id.Name)
	}
	f.stats.Published.Add(1)
	if err := d.Publish(kind, payload, time.Now()); err != nil {
		return fmt.Errorf("publish as %s: %w", m.id.Name, err)
	}
	return nil
}

// send marshals and publishes.
func (f *Fleet) send(m *member, kind wire.Kind, v any) error {
	b, err := wire.Marshal(v)
	if err != nil {
		return err
	}
	return f.publish(m, kind, b)
}

// Greet sends presence, hello and a full report for every device, as an agent
// does on a new connection, so many devices per second.
func (f *Fleet) Greet(ctx context.Context, perSecond int) {
	start := time.Now()
	f.each(ctx, 0, func(ctx context.Context, i int) error {
		if !sleep(ctx, time.Until(start.Add(time.Duration(i)*time.Second/time.Duration(perSecond)))) {
			return ctx.Err()
		}
		m := f.members[i]
		if err := f.send(m, wire.UpPresence, &wire.Presence{ID: m.nextID(), Connection: 1, Online: true}); err != nil {
			return err
		}
		hello := &wire.Hello{ID: m.nextID(), Target: f.o.Target, Capability: wire.CapabilityVersion,
			Clock: wire.Clock{UnixMilli: time.Now().UnixMilli()}, Agent: "load", Hardware: "wire-level load"}
		if err := f.send(m, wire.UpHello, hello); err != nil {
			return err
		}
		return f.Report(i, true)
	})
}

// Report sends one signed report of device i: its state, or a heartbeat.
func (f *Fleet) Report(i int, full bool) error {
	m := f.members[i]
	r := &wire.Report{ID: m.nextID(), Counter: m.report.Add(1)}
	if full {
		r.Full = &wire.Reported{Phase: wire.PhaseIdle, Target: f.o.Target}
	}
	b, err := wire.Marshal(r)
	if err != nil {
		return err
	}
	signed, err := trust.Sign(m.signer, wire.AADReport, b)
	if err != nil {
		return err
	}
	return f.publish(m, wire.UpReport, signed)
}

// Event sends one event of device i; it is acknowledged when it is stored.
func (f *Fleet) Event(i int) error {
	m := f.members[i]
	return f.send(m, wire.UpEvent, &wire.Event{ID: m.nextID(), Time: time.Now().UnixMilli(), Kind: "link", Message: "load"})
}

// Cruise lets every device send one report per interval, evenly spread, until
// ctx ends.
func (f *Fleet) Cruise(ctx context.Context, interval time.Duration) {
	start := time.Now()
	for n := 0; ; n++ {
		due := start.Add(time.Duration(float64(interval) * float64(n) / float64(f.o.Devices)))
		if !sleep(ctx, time.Until(due)) {
			return
		}
		if err := f.Report(n%f.o.Devices, true); err != nil {
			f.stats.fail(err)
		}
	}
}

// Burst lets every device send one message at once, as fast as they can, and
// returns when all are acknowledged, or ctx ends.
func (f *Fleet) Burst(ctx context.Context, one func(i int) error) time.Duration {
	before := f.stats.Acked.Load()
	start := time.Now()
	f.each(ctx, 0, func(_ context.Context, i int) error { return one(i) })
	for f.stats.Acked.Load() < before+int64(f.o.Devices) && ctx.Err() == nil {
		sleep(ctx, time.Millisecond)
	}
	return time.Since(start)
}

// Settled waits until everything published is acknowledged.
func (f *Fleet) Settled(ctx context.Context) error {
	for f.stats.Acked.Load() < f.stats.Published.Load() {
		if !sleep(ctx, 10*time.Millisecond) {
			return fmt.Errorf("%d of %d messages are not acknowledged: %w", f.stats.Published.Load()-f.stats.Acked.Load(), f.stats.Published.Load(), ctx.Err())
		}
	}
	return nil
}

// sleep waits; false when ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
