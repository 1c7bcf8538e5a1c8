package agent

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// The walk cuts the power at every journal step and at every operation on the
// disk during an update, starts the agent again on what the disk holds, and
// asks: does the device serve the old or the new release, proven, without the
// network; does it say so; does it reach the end when the network is back?

// committed returns a disk with release "1" committed, whole and durable.
func committed(t *testing.T, w *world, change ...func(*Options)) *slot.Mem {
	t.Helper()
	files := slot.NewMem()
	synctest.Test(t, func(t *testing.T) {
		d := w.boot(files, change...)
		w.want(1, "1")
		d.link.SetOnline(true)
		settle(time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 1 {
			t.Fatalf("answers %v, %v", got, err)
		}
		if err := d.stop(t); err != nil {
			t.Fatal(err)
		}
	})
	return files.Crash(0)
}

type walkWorld struct {
	*world
	base *slot.Mem
	// end is what the device must run in the end, and with which failure.
	end     float32
	failure ota.FailureClass
	// more changes the agent of a start of the machine.
	more func(o *Options, boot uint64)
}

func (w *walkWorld) change(boot uint64) func(*Options) {
	return func(o *Options) {
		if w.more != nil {
			w.more(o, boot)
		}
	}
}

func newWalk(t *testing.T, second model, end float32, failure ota.FailureClass) *walkWorld {
	w := newWorld(t)
	w.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1, soak: 3 * time.Second})
	w.release("2", second, releaseOptions{counter: 2, golden: 2, soak: 3 * time.Second})
	return &walkWorld{world: w, base: committed(t, w), end: end, failure: failure}
}

func (w *walkWorld) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.offline = false
	w.raw, w.link, w.reports, w.events, w.hellos, w.blocks = nil, nil, nil, nil, nil, nil
}

// cutAt runs the update to "2" on a copy of the base until cut has cut the
// power, or the update is over; it returns the disk as it was left.
func (w *walkWorld) cutAt(t *testing.T, cut func(files *slot.Mem, o *Options)) *slot.Mem {
	files := w.base.Crash(0)
	w.reset()
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		d, err := w.tryBoot(files, w.change(1), func(o *Options) { cut(files, o) })
		if errors.Is(err, slot.ErrCut) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		d.link.SetOnline(true)
		w.want(2, "2")
		settle(30 * time.Second)
		d.cancel()
		<-d.done // the error of a cut disk, or nil
	})
	return files
}

// restart starts on a disk after the cut and checks everything that is promised.
func (w *walkWorld) restart(t *testing.T, files *slot.Mem, boot uint64) {
	t.Helper()
	w.reset()
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		d := w.boot(files, w.change(boot))
		// Without the network first.
		w.unplug(true)
		settle(20 * time.Second)
		offline, err := d.runtime.answer()
		if err != nil || offline != 1 && offline != 2 {
			t.Errorf("offline after the cut: answers %v, %v", offline, err)
		}
		if w.end == 1 && offline != 1 {
			t.Errorf("offline after the cut the bad release serves")
		}
		w.unplug(false)
		w.want(2, "2")
		d.link.SetOnline(true)
		settle(5 * time.Minute)
		got, err := d.runtime.answer()
		if err != nil || got != w.end {
			t.Errorf("in the end: answers %v, %v, want %v", got, err, w.end)
		}
		if n := len(d.runtime.models()); n != 1 {
			t.Errorf("%d workloads loaded in the end", n)
		}
		s := d.state.Get()
		if s.Update != nil {
			t.Errorf("an update is still under way: %+v", s.Update)
		}
		r := w.last()
		version := fmt.Sprint(int(w.end))
		if string(r.Running) != string(w.releases[version].Digest) || r.Phase == wire.PhaseUpdating {
			t.Errorf("reported phase %s, running %x, want release %s", r.Phase, r.Running, version)
		}
		if r.FailureClass != string(w.failure) {
			t.Errorf("reported failure %q (%s), want %q", r.FailureClass, r.Failure, w.failure)
		}
		if w.failure != "" && string(r.FailedRelease) != string(w.releases["2"].Digest) {
			t.Errorf("reported failed release %x", r.FailedRelease)
		}
		if n := len(r.Journal); w.failure == "" && (n == 0 || r.Journal[n-1].Step != string(ota.StepCommit) || r.Journal[n-1].State != wire.StepDone) {
			t.Errorf("journal does not end in commit done: %+v", r.Journal)
		}
		if err := d.stop(t); err != nil {
			t.Error(err)
		}
	})
}

func (w *walkWorld) walk(t *testing.T, name string, cut func(files *slot.Mem, o *Options)) {
	left := w.cutAt(t, cut)
	for seed := range uint64(3) {
		ok := t.Run(fmt.Sprintf("%s power %d", name, seed), func(t *testing.T) { w.restart(t, left.Crash(seed), 2) })
		if !ok || testing.Short() {
			break
		}
	}
	t.Run(name+" kill", func(t *testing.T) { w.restart(t, left.Restart(), 1) })
}

// everyCut walks all steps and all disk operations of one update.
func (w *walkWorld) everyCut(t *testing.T, states ...wire.StepState) {
	for _, step := range ota.Steps {
		for _, state := range states {
			w.walk(t, fmt.Sprintf("%s %s", step, state), func(files *slot.Mem, o *Options) {
				o.StepHook = func(s ota.Step, st wire.StepState) {
					if s == step && st == state {
						files.FailAfter(0)
					}
				}
			})
		}
	}
	whole := w.cutAt(t, func(*slot.Mem, *Options) {})
	total := whole.Ops()
	stride := 1
	if testing.Short() {
		stride = 7
	}
	for n := 0; n <= total; n += stride {
		w.walk(t, fmt.Sprintf("operation %d of %d", n, total), func(files *slot.Mem, _ *Options) { files.FailAfter(n) })
	}
}

func TestPowerCutWalkGoodRelease(t *testing.T) {
	newWalk(t, model{Bias: 2}, 2, "").everyCut(t, wire.StepStarted, wire.StepDone)
}

func TestPowerCutWalkWrongRelease(t *testing.T) {
	newWalk(t, model{Bias: 7}, 1, ota.Failed).everyCut(t, wire.StepStarted, wire.StepUndone)
}

// TestDiskFullWalk fills the disk at every step and gives the space back later.
func TestDiskFullWalk(t *testing.T) {
	w := newWorld(t)
	w.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1})
	w.release("2", model{Bias: 2}, releaseOptions{counter: 2, golden: 2, soak: 3 * time.Second})
	base := committed(t, w)
	for _, step := range ota.Steps {
		for _, state := range []wire.StepState{wire.StepStarted, wire.StepDone} {
			t.Run(fmt.Sprintf("%s %s", step, state), func(t *testing.T) {
				files := base.Crash(0)
				ww := &walkWorld{world: w}
				ww.reset()
				synctest.Test(t, func(t *testing.T) {
					w.t = t
					filled := false
					d := w.boot(files, func(o *Options) {
						o.StepHook = func(s ota.Step, st wire.StepState) {
							if s == step && st == state && !filled {
								filled = true
								files.SetFree(0)
							}
						}
					})
					d.link.SetOnline(true)
					w.want(2, "2")
					settle(time.Minute)
					if !filled {
						t.Fatal("the step was not reached")
					}
					if got, err := d.runtime.answer(); err != nil || got != 1 && got != 2 {
						t.Errorf("on the full disk: answers %v, %v", got, err)
					}
					files.SetFree(-1)
					settle(3 * time.Minute)
					got, err := d.runtime.answer()
					r := w.last()
					if err != nil || string(r.Running) != string(w.releases[fmt.Sprint(int(got))].Digest) || r.Phase == wire.PhaseUpdating {
						t.Errorf("with space again: answers %v, %v; reported %s %x", got, err, r.Phase, r.Running)
					}
					if got == 1 && r.FailureClass != string(ota.Failed) {
						t.Errorf("the old release serves and no failure is reported: %+v", r)
					}
					w.want(3, "2") // the next try
					settle(2 * time.Minute)
					if got, err := d.runtime.answer(); err != nil || got != 2 {
						t.Errorf("the next try: answers %v, %v", got, err)
					}
					if err := d.stop(t); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}
