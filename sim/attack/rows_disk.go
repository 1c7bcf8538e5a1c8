package attack

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

const minutes = 5 * time.Minute

// diskAttacks are those of somebody who can write to the device's disk, or take
// its power.
func diskAttacks() []Attack {
	const again = "staged files are hashed right before they are loaded and right after"
	return []Attack{
		{Name: "swap-before-load", Row: "verify-then-use race", Class: trust.ClassTampered, Refuser: again,
			device: func(o *deviceOptions) { o.hook = once(ota.StepLoad, swapStaged) }, strike: armed},
		{Name: "swap-during-load", Row: "verify-then-use race", Class: trust.ClassTampered, Refuser: again,
			device: func(o *deviceOptions) {
				o.onLoad = func(d *device, w runtime.Workload) {
					if d.armed.CompareAndSwap(true, false) {
						d.note(swapFile(d, filepath.Join(w.Dir, w.ModelFile)))
					}
				}
			}, strike: armed},
		{Name: "swap-blob-after-verify", Row: "verify-then-use race", Class: trust.ClassTampered, Refuser: again,
			device: func(o *deviceOptions) { o.hook = once(ota.StepStage, swapBlob) }, strike: armed},
		{Name: "swap-at-rest", Row: "verify-then-use race", Class: trust.ClassTampered, Refuser: again + "; what was changed while the device was off is laid out again from its blobs",
			strike: swapAtRest},
		{Name: "symlink-out", Row: "path traversal", Class: trust.ClassPath, Refuser: "no name and no link leads out of the state folder",
			strike: symlinkOut, mayAlter: []string{"state/partial"},
			lift: func(_ context.Context, s *scene) error { return os.Remove(filepath.Join(s.d.state(), "partial")) }},
		{Name: "interrupted-write", Row: "interrupted write", Class: "the agent ended 3 times", where: "the failure of the update", Refuser: "each step is in the journal before it runs; three ends past the load undo the update",
			device: func(o *deviceOptions) { o.hook = killer }, strike: interrupted, named: afterThree},
	}
}

// armed lets the attack wait for the honest release to be assigned.
func armed(ctx context.Context, s *scene) error {
	s.d.armed.Store(true)
	if err := s.bait(ctx); err != nil {
		return err
	}
	err := s.until(ctx, func() (bool, error) { return !s.d.armed.Load(), nil })
	return errors.Join(err, s.d.noted())
}

// once is a hook that does something before a step, once armed.
func once(step ota.Step, do func(d *device) error) func(*device, ota.Step, wire.StepState) {
	return func(d *device, at ota.Step, st wire.StepState) {
		if at == step && st == wire.StepStarted && d.armed.CompareAndSwap(true, false) {
			d.note(do(d))
		}
	}
}

// swapFile puts the attacker's model in the place of another.
func swapFile(d *device, path string) error {
	evil, err := d.w.model(66)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return err
	}
	if err := os.WriteFile(path+".evil", evil, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".evil", path)
}

// swapStaged changes the model that is staged and does not run.
func swapStaged(d *device) error {
	s, err := d.take()
	if err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(d.state(), "staged", "*", "model.onnx"))
	if err != nil {
		return err
	}
	for _, p := range found {
		if !strings.Contains(p, s.state.Current.Release.Hex()[:16]) && (s.state.Previous == nil || !strings.Contains(p, s.state.Previous.Release.Hex()[:16])) {
			return swapFile(d, p)
		}
	}
	return fmt.Errorf("nothing new is staged: %q", found)
}

// swapBlob changes the model's blob after it was verified.
func swapBlob(d *device) error {
	m, err := d.w.manifest(bait)
	if err != nil {
		return err
	}
	l, _, err := m.Weights()
	if err != nil {
		return err
	}
	return swapFile(d, filepath.Join(d.state(), "blobs", "sha256", l.Digest.Hex()[:2], l.Digest.Hex()))
}

// swapAtRest changes the model that runs while the device is off.
func swapAtRest(_ context.Context, s *scene) error {
	snap, err := s.d.take()
	if err != nil {
		return err
	}
	if err := s.d.halt(); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(s.d.state(), "staged", snap.state.Current.Release.Hex()[:16]+"*", snap.state.Current.Model))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("the staged model: %q, %v", found, err)
	}
	if err := swapFile(s.d, found[0]); err != nil {
		return err
	}
	return s.d.reboot()
}

// symlinkOut makes the folder of partial downloads a link out of the state
// folder.
func symlinkOut(ctx context.Context, s *scene) error {
	partial := filepath.Join(s.d.state(), "partial")
	out, err := os.MkdirTemp(filepath.Dir(s.d.dir), "outside-*")
	if err != nil {
		return err
	}
	s.outside = out
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if err := os.Symlink(out, partial); err != nil {
		return err
	}
	return s.bait(ctx)
}

// killer takes the power at the step that the attack names.
func killer(d *device, step ota.Step, st wire.StepState) {
	if st != wire.StepStarted {
		return
	}
	if at, _ := d.killAt.Load().(ota.Step); at == step {
		d.killAt.Store(ota.Step(""))
		d.kill()
		d.dead.Store(true)
	}
}

// interrupted takes the power at each step, and three times past the load.
func interrupted(ctx context.Context, s *scene) error {
	d := s.d
	steps := []ota.Step{ota.StepFetch, ota.StepVerify, ota.StepStage, ota.StepBuild, ota.StepLoad, ota.StepProve, ota.StepSwitch, ""}
	d.killAt.Store(steps[0])
	if err := s.bait(ctx); err != nil {
		return err
	}
	for i, step := range steps[:len(steps)-1] {
		if err := s.until(ctx, func() (bool, error) { return d.dead.Load(), nil }); err != nil {
			return fmt.Errorf("the update did not come to %s: %w", step, err)
		}
		if err := d.halt(); err != nil {
			return fmt.Errorf("end what ran at %s: %w", step, err)
		}
		if now, err := d.take(); err != nil || now.state.Current.Release != s.w.releases[running].digest {
			return fmt.Errorf("after a cut at %s the disk says that %+v is committed: %w", step, now, err)
		}
		d.dead.Store(false)
		d.killAt.Store(steps[i+1])
		if err := d.reboot(); err != nil {
			return fmt.Errorf("boot after a cut at %s: %w", step, err)
		}
	}
	return nil
}

// afterThree is the cause that the control plane knows.
func afterThree(ctx context.Context, s *scene) (bool, error) {
	v, err := s.w.device(ctx, s.d.id)
	return err == nil && strings.Contains(v.GetFailure(), s.a.Class), err
}

// trap is what an attack on the disk keeps in the device.
type trap struct {
	armed  atomic.Bool
	dead   atomic.Bool
	killAt atomic.Value // ota.Step
	err    atomic.Pointer[error]
}

// note keeps what kept the attacker from his work.
func (t *trap) note(err error) {
	if err != nil {
		t.err.CompareAndSwap(nil, &err)
	}
}

func (t *trap) noted() error {
	if err := t.err.Load(); err != nil {
		return *err
	}
	return nil
}

// reportAttacks are those on what the device says.
func reportAttacks() []Attack {
	refused := "the control plane counts reports"
	return []Attack{
		{Name: "replayed-report", Row: "replay of version report", Class: trust.ClassReplay, Refuser: refused, strike: replayedReport},
		{Name: "report-counter-twice", Row: "replay of version report", Class: trust.ClassReplay, Refuser: refused + "; the device's key is stolen", strike: counterTwice},
	}
}

// replayedReport says an old report again.
func replayedReport(ctx context.Context, s *scene) error {
	err := s.until(ctx, func() (bool, error) { return len(s.d.man.sent(wire.UpReport)) > 12, nil })
	if err != nil {
		return fmt.Errorf("the device does not report: %w", err)
	}
	return s.d.man.claim(ctx, wire.UpReport, s.d.man.sent(wire.UpReport)[0])
}

// counterTwice says, under a counter that was used, that the device runs the
// bait.
func counterTwice(ctx context.Context, s *scene) error {
	by, err := trust.NewSigner(s.d.identity.Key)
	if err != nil {
		return err
	}
	sent := s.d.man.sent(wire.UpReport)
	var newest wire.Report
	for _, raw := range slices.Backward(sent) {
		payload, err := trust.Verify(publicOf(s.d), wire.AADReport, raw)
		if err != nil {
			return err
		}
		if err := wire.Unmarshal(payload, &newest); err != nil {
			return err
		}
		break
	}
	st := s.d.status()
	lie := wire.Report{ID: wire.MessageID{Boot: 99, Counter: 1}, Held: newest.Held, Counter: newest.Counter,
		Full: &wire.Reported{Phase: wire.PhaseIdle, Running: s.w.releases[bait].digest.Sum(), RunningCounter: s.w.releases[bait].counter, Target: st.Target}}
	raw, err := sealed(by, wire.AADReport, &lie)
	if err != nil {
		return err
	}
	return s.d.man.claim(ctx, wire.UpReport, raw)
}

func publicOf(d *device) []crypto.PublicKey { return []crypto.PublicKey{d.identity.Key.Public()} }
