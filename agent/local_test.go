package agent

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// TestApplicationHoldsUpdateOff: bytes come, nothing is put to work until the
// hold ends or is released, what is committed serves, and it is said everywhere.
func TestApplicationHoldsUpdateOff(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		if _, _, err := d.holdOff("line-3", "a batch runs", 20*time.Minute); err != nil {
			t.Fatal(err)
		}
		w.want(2, "2")
		settle(10 * time.Minute)
		s := w.transfer()
		if s.Waits != wire.WaitsForHold || len(s.Holds) != 1 || s.Until == 0 || w.last().Phase != wire.PhaseUpdating || w.last().Step != "stage" ||
			!hasCondition(w.last(), health.UpdateOnHold) || hasCondition(w.last(), health.WaitingForWindow) || !d.reason("line-3 holds updates off") {
			t.Errorf("%+v at %s, %q", s, w.last().Step, d.Status().Reasons)
		}
		bias(t, d, 1, "while it is held off")
		settle(15 * time.Minute)
		bias(t, d, 2, "after the hold")
		if r := w.last(); r.Policy != nil || hasCondition(r, health.UpdateOnHold) {
			t.Errorf("%+v %+v", r.Policy, r.Conditions)
		}
		// Going back is held off too, but not a rollback by the control plane.
		if _, _, err := d.holdOff("line-3", "the next batch", time.Hour); err != nil {
			t.Fatal(err)
		}
		w.want(3, "1", under(wire.Policy{Now: true}), func(d *wire.Desired) { d.RollbackAllowed = true })
		settle(2 * time.Minute)
		bias(t, d, 1, "by an operator's word")
		traces := d.timelines()
		if len(traces) < 2 || traces[0].Outcome != "committed" || len(traces[0].Lines) < 18 || traces[0].ID == traces[1].ID {
			t.Errorf("traces %+v", traces)
		}
	})
}

// powered is a board with power modes.
type powered struct {
	mu sync.Mutex // guards r
	r  PowerReading
}

func (p *powered) Read(context.Context) (PowerReading, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.r, nil
}

func (p *powered) SetMode(_ context.Context, name string, _ bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.r.Mode = name
	return nil
}

func (p *powered) SetClocks(_ context.Context, c wire.Clocks) error { p.r.Clocks = c; return nil }
func (p *powered) SetFan(_ context.Context, name string) error      { p.r.Fan = name; return nil }

func (p *powered) at(milli int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.r.Zones = []PowerZone{{Name: "tj-thermal", MilliC: milli, TripMilliC: 95000}}
}

// TestPowerByPolicy: the mode that the policy names is set and reported, again
// after a restart, and an update waits for a board that is too hot.
func TestPowerByPolicy(t *testing.T) {
	w, base := standard(t)
	p := &powered{r: PowerReading{Mode: "25W", Modes: []string{"15W", "25W"}, Clocks: wire.ClocksDynamic}}
	with := func(o *Options) { o.Power = p }
	on(t, w, base, func(t *testing.T, d *device) {
		slow := wire.Policy{Power: &wire.PowerWish{Mode: "15W"}}
		w.want(2, "1", under(slow))
		settle(time.Minute)
		if s := w.last().Power; s == nil || s.Mode != "15W" || s.Wanted != "15W" {
			t.Errorf("%+v", s)
		}
		p.SetMode(t.Context(), "25W", false) // as a restart of the machine does
		files := d.opts.Files.(*slot.Mem)
		if err := d.stop(t); err != nil {
			t.Fatal(err)
		}
		d2 := w.boot(files, with)
		d2.link.SetOnline(true)
		settle(time.Minute)
		if s := w.last().Power; s == nil || s.Mode != "15W" {
			t.Errorf("after a restart: %+v", s)
		}
		p.at(94500)
		w.want(3, "2", under(slow))
		settle(5 * time.Minute)
		if !hasCondition(w.last(), health.WaitsForHeadroom) || !d2.reason("tj-thermal is 0.5 K below its trip") {
			t.Errorf("%+v", w.last().Conditions)
		}
		bias(t, d2, 1, "while it is hot")
		p.at(70000)
		settle(time.Minute)
		bias(t, d2, 2, "when it has cooled down")
		if hasCondition(w.last(), health.WaitsForHeadroom) {
			t.Errorf("%+v", w.last().Conditions)
		}
		if err := d2.stop(t); err != nil {
			t.Error(err)
		}
		d.cancel, d.done = func() {}, make(chan error, 1)
		d.done <- nil
	}, with)
}

// TestCrashIsSentOnce: a start that was broken off is told by the next one,
// with what the board and the log said, once; a stop is not told.
func TestCrashIsSentOnce(t *testing.T) {
	w, base := standard(t)
	line := func() string { return "RAM 3000/7620MB tj@61C" }
	with := func(o *Options) {
		o.BoardLine, o.LastPanic = line, func() string { return "panic: index out of range" }
		o.LogTail = func(int) []string { return []string{"the last word"} }
	}
	on(t, w, base, func(t *testing.T, d *device) {
		w.mu.Lock()
		w.crashes = nil // the world's own start was broken off too
		w.mu.Unlock()
		settle(5 * time.Minute)
		files := d.opts.Files.(*slot.Mem).Crash(0) // the disk as the power cut leaves it
		for i := range 3 {
			n := w.boot(files, with, func(o *Options) { o.Host = &board{files: files, clock: time.Now, start: uint64(100 + i)} })
			n.link.SetOnline(true)
			settle(time.Minute)
			if err := n.stop(t); err != nil {
				t.Fatal(err)
			}
		}
		w.mu.Lock()
		got := w.crashes
		w.mu.Unlock()
		if len(got) != 1 || got[0].Kind != "machine" || len(got[0].Tegrastats) < 20 || !strings.Contains(got[0].Panic, "index out of range") ||
			len(got[0].Log) == 0 || len(got[0].Journal) == 0 {
			t.Errorf("%+v", got)
		}
	}, with)
}
