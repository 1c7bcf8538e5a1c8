package agent

import (
	"path"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry/spool"
)

// TestRebootWithoutCable: the board starts without any network, serves what is
// committed within seconds, and goes on so for a day.
func TestRebootWithoutCable(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		files := d.opts.Files.(*slot.Mem).Crash(0)
		w.unplug(true)
		again := w.boot(files, func(o *Options) { o.Host = &board{files: files, clock: time.Now, start: 7} })
		settle(5 * time.Second)
		bias(t, again, 1, "5 s after the start")
		settle(24 * time.Hour)
		bias(t, again, 1, "a day later")
		if err := again.runtime.Unload(t.Context(), again.state.Get().Current.WorkloadID()); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		bias(t, again, 1, "after its server ended")
		if err := again.stop(t); err != nil {
			t.Error(err)
		}
	})
}

// stepped is a clock that somebody else sets.
type stepped struct{ by atomic.Int64 }

func (s *stepped) now() time.Time { return time.Now().Add(time.Duration(s.by.Load())) }

// back1970 steps to 1970, as a real-time clock without a battery does when its
// driver comes up some seconds into the start.
func (s *stepped) back1970() { s.by.Store(int64(time.Unix(0, 0).Sub(time.Now()))) }

// TestClockStepsBack: the clock is right at first, falls to 1970 13.5 s into the
// start, in the middle of an update, and is set right ten minutes later. Nothing
// that runs is harmed, no allowance is granted twice, no hold and no window lasts
// longer, and what is refused stays refused.
func TestClockStepsBack(t *testing.T) {
	const perDay = 1 << 20
	for _, when := range []time.Duration{13500 * time.Millisecond, 60 * time.Second} {
		w, base := standard(t)
		w.big(3 << 19)
		var c stepped
		policy := wire.Policy{Zone: "UTC", Allowances: []wire.Allowance{{Class: wire.Unmetered, Period: wire.PerDay, Bytes: perDay}}}
		on(t, w, base, func(t *testing.T, d *device) { // 10 s have passed
			before := w.got().fetched
			w.want(2, "9", under(policy))
			if _, _, err := d.holdOff("line-3", "a batch runs", 30*time.Minute); err != nil {
				t.Fatal(err)
			}
			settle(when - 10*time.Second)
			c.back1970()
			settle(5 * time.Minute)
			bias(t, d, 1, "with a clock in 1970")
			if !hasCondition(w.last(), health.ClockDoubtful) {
				t.Errorf("%+v", w.last().Conditions)
			}
			if n := w.got().fetched - before; n > perDay+64<<10 {
				t.Errorf("%d bytes of an allowance of %d", n, perDay)
			}
			if now := d.now(); now.Before(bubbleStart) || now.After(bubbleStart.Add(time.Hour)) {
				t.Errorf("judged at %s", now)
			}
			if n := len(d.budget.Holds()); n != 1 {
				t.Errorf("%d holds", n)
			}
			settle(5 * time.Minute)
			c.by.Store(0)
			settle(time.Minute)
			if hasCondition(w.last(), health.ClockDoubtful) {
				t.Errorf("%+v", w.last().Conditions)
			}
			if n := w.got().fetched - before; n > perDay+64<<10 {
				t.Errorf("%d bytes of an allowance of %d", n, perDay)
			}
			settle(25 * time.Minute)
			if n := len(d.budget.Holds()); n != 0 {
				t.Errorf("%d holds outlast their time", n)
			}
			w.want(3, "2") // without the policy
			settle(3 * time.Minute)
			bias(t, d, 2, "after it")
		}, func(o *Options) {
			o.Now = c.now
			o.Host = &board{files: o.Files, clock: c.now}
		})
	}
}

// TestWeeksOffline: three weeks without a link keep telemetry and events within
// their bounds, the disk within its, and what is worth most comes when the link
// does.
func TestWeeksOffline(t *testing.T) {
	if testing.Short() {
		t.Skip("three weeks take some seconds")
	}
	const bound = 1 << 20
	w, base := standard(t)
	var sp spool.Spool
	on(t, w, base, func(t *testing.T, d *device) {
		files := d.opts.Files.(*slot.Mem)
		settle(time.Minute)
		d.link.SetOnline(false)
		w.unplug(true)
		used := usedBy(t, files, ".")
		for range 21 {
			settle(24 * time.Hour)
			if err := d.runtime.Unload(t.Context(), d.state.Get().Current.WorkloadID()); err != nil { // something happens each day
				t.Fatal(err)
			}
		}
		settle(time.Minute)
		bias(t, d, 1, "after three weeks")
		if s := sp.Stats(); s.Bytes > bound || s.Bytes < bound/4 || s.Dropped == 0 {
			t.Errorf("the spool holds %d bytes of %d, %d dropped", s.Bytes, bound, s.Dropped)
		}
		if grown := usedBy(t, files, ".") - used; grown > 256<<10 {
			t.Errorf("state grew by %d bytes", grown)
		}
		if !d.board.Holds(health.SpoolDropping) {
			t.Error("that telemetry was thinned is not said")
		}
		blocks, events := len(w.got().blocks), len(w.got().events)
		w.unplug(false)
		d.link.SetOnline(true)
		settle(30 * time.Minute)
		if n := len(w.got().blocks) - blocks; n < 100 {
			t.Errorf("%d blocks came", n)
		}
		crashes := 0
		for _, e := range w.got().events[events:] {
			if e.Kind == "crash" {
				crashes++
			}
		}
		if crashes != 21 {
			t.Errorf("%d events of crashes came, want 21", crashes)
		}
		if s := sp.Stats(); s.Bytes > bound/4 {
			t.Errorf("%d bytes still wait", s.Bytes)
		}
	}, func(o *Options) {
		sp = spool.NewMemory(SpoolOptions(bound))
		o.Spool = sp
	})
}

// usedBy is how many bytes the files below a folder hold.
func usedBy(t *testing.T, f slot.Files, dir string) (n int) {
	t.Helper()
	entries, err := f.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			n += usedBy(t, f, name)
			continue
		}
		raw, err := f.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		n += len(raw)
	}
	return n
}
