package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/selfupdate"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// Errors of the executor.
var (
	// ErrSuperseded is the cause with which the context of a running update is
	// cancelled when a newer desired state replaces it.
	ErrSuperseded = errors.New("superseded by a newer desired state")
	// ErrRejected marks what trying again cannot cure.
	ErrRejected = errors.New("release rejected")
	// ErrInterrupted is returned when the agent stops; the update goes on at
	// the next start.
	ErrInterrupted = errors.New("update interrupted")
)

// Executor carries out decisions. One goroutine uses it, but for Supersede and
// for Restore from within Tend.
type Executor struct {
	Config
	counted   int64            // bytes fetched that are in the state already
	countedBy map[string]int64 // the same by way
	renewed   map[ota.Digest]bool

	mu      sync.Mutex // guards what follows
	cancel  context.CancelCauseFunc
	running string  // workload of the update that runs its steps
	newest  *wanted // what Supersede was last told
}

// wanted is a workload with the generation that asks for it.
type wanted struct {
	workload   string
	generation wire.Generation
}

// NewExecutor returns an executor; it starts nothing.
func NewExecutor(c Config) *Executor {
	if c.Hook == nil {
		c.Hook = func(ota.Step, wire.StepState) {}
	}
	if c.BytesBy == nil {
		c.BytesBy = func() map[string]int64 { return nil }
	}
	if c.Point == nil {
		c.Point = func(string) {}
	}
	if c.Restart == nil {
		c.Restart = func(error) {}
	}
	if c.BootID == nil {
		c.BootID = func() uint64 { return 0 }
	}
	if c.Observe == nil {
		c.Observe = func(slot.Entry) {}
	}
	if c.Proven == nil {
		c.Proven = func(*state.Install, bool) {}
	}
	if c.Refused == nil {
		c.Refused = func(string, ota.Digest, string) {}
	}
	if c.Offer == nil {
		c.Offer = func([]manifest.Descriptor) {}
	}
	if c.Yield == nil {
		c.Yield = func(int64) bool { return false }
	}
	if c.Spent == nil {
		c.Spent = func(context.Context, ota.Digest) {}
	}
	if c.Waiting == nil {
		c.Waiting = func(error) {}
	}
	if c.Memory == nil {
		c.Memory = func() (int64, int64) { return 0, 0 }
	}
	if c.Gate == nil {
		c.Gate = openGate{}
	}
	if c.Reserve == nil {
		c.Reserve = func() int64 { return 0 }
	}
	if c.Tend == nil {
		c.Tend = func(context.Context) {}
	}
	orDefault := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
	}
	orDefault(&c.LoadTimeout, 10*time.Minute)
	orDefault(&c.ProveTimeout, 10*time.Minute)
	orDefault(&c.SoakEvery, time.Second)
	orDefault(&c.TendEvery, 15*time.Second)
	return &Executor{Config: c, renewed: map[ota.Digest]bool{}}
}

// undoTimeout bounds the way back, which does not end with the update's context.
const undoTimeout = 15 * time.Minute

// Do carries out one decision. It returns ErrInterrupted when ctx ended before
// an update reached its end; any other error means that the decision should be
// tried again later. A failed update is not an error: it was undone and its
// cause is in the state.
func (x *Executor) Do(ctx context.Context, d Decision) error {
	switch d.Kind {
	case Restore:
		return x.restore(ctx)
	case Unload:
		return x.Runtime.Unload(ctx, d.Workload)
	case UndoIt:
		return x.fail(ctx, d.Class, x.lastStep(), d.Reason)
	case Start:
		if err := x.begin(d.Install); err != nil {
			return err
		}
		return x.run(ctx)
	case Resume:
		return x.run(ctx)
	case Remove:
		return x.remove(ctx)
	case Adopt:
		return x.adopt(d.Install)
	case Hold, StayBack:
		return nil
	}
	return fmt.Errorf("unknown decision %q", d.Kind)
}

// Supersede ends a running update of another workload than the one that is
// wanted now, also one that is about to run; it is then undone.
func (x *Executor) Supersede(workload string, g wire.Generation) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.newest = &wanted{workload, g}
	if x.cancel != nil && x.running != workload {
		x.cancel(ErrSuperseded)
	}
}

// NoteStart is called once when the agent starts. An update that was past its
// load when the process ended has one attempt less; the last line of one that
// was committed is written if the power went between the two.
func (x *Executor) NoteStart() error {
	s := x.State.Get()
	u := s.Update
	if u == nil {
		return x.noteCommitted(s)
	}
	if u.Undoing {
		return nil
	}
	switch x.lastStep() {
	case ota.StepLoad, ota.StepProve, ota.StepSwitch, ota.StepSoak:
	default:
		// A system that ends before it gets so far counts too; its first start
		// was meant.
		if u.OS == nil || !u.OS.Switched {
			return nil
		}
	}
	return x.State.Change(func(s *state.State) {
		next := *s.Update
		next.Attempts++
		s.Update = &next
	})
}

func (x *Executor) noteCommitted(s state.State) error {
	entries := x.Journal.Entries()
	if len(entries) == 0 || s.Current == nil {
		return nil
	}
	last := entries[len(entries)-1]
	if last.Step != ota.StepCommit || last.State != wire.StepStarted || last.Release != s.Current.Release {
		return nil
	}
	return x.journal(&state.Update{ID: last.Update, Install: *s.Current}, ota.StepCommit, wire.StepDone, "")
}

// lastStep is the step of the newest journal line of the update under way.
func (x *Executor) lastStep() ota.Step {
	u := x.State.Get().Update
	entries := x.Journal.Entries()
	if u == nil || len(entries) == 0 || entries[len(entries)-1].Update != u.ID {
		return ""
	}
	return entries[len(entries)-1].Step
}

// begin makes the update durable before anything of it is done.
func (x *Executor) begin(i *state.Install) error {
	x.Point("begin:before-state")
	err := x.State.Change(func(s *state.State) {
		s.Updates++
		s.BytesFetched, s.Sources = 0, nil
		s.Update = &state.Update{ID: fmt.Sprintf("%s-%d", i.Generation, s.Updates), Install: *i}
	})
	if err != nil {
		return fmt.Errorf("begin update: %w", err)
	}
	x.counted, x.countedBy = x.Fetch.BytesFetched(), x.BytesBy()
	return nil
}

// countBytes adds what came from the network since the last time.
func (x *Executor) countBytes(s *state.State) {
	now := x.Fetch.BytesFetched()
	s.BytesFetched += now - x.counted
	x.counted = now
	by, sources := x.BytesBy(), map[string]int64{}
	maps.Copy(sources, s.Sources)
	for name, n := range by {
		if n > x.countedBy[name] {
			sources[name] += n - x.countedBy[name]
		}
	}
	x.countedBy = by
	if len(sources) > 0 {
		s.Sources = sources
	}
}

// attempt is one run of an update's steps.
type attempt struct {
	update  *state.Update
	install state.Install // filled by verify
	golden  *manifest.Golden
	params  map[string]string

	manifest manifest.Descriptor // found by verify
	stopped  time.Time           // when the old workload was unloaded to make room
}

type doFunc func(context.Context, *attempt) (note string, err error)

type stepFuncs struct {
	step    ota.Step
	touches bool // the runtime
	do      doFunc
	undo    func(context.Context, *state.Update) error
}

func (x *Executor) steps() []stepFuncs {
	nothing := func(context.Context, *state.Update) error { return nil }
	return []stepFuncs{
		{ota.StepFetch, false, x.doFetch, x.undoFetch},
		{ota.StepVerify, false, x.doVerify, nothing},
		{ota.StepStage, false, x.doStage, x.undoStage},
		{ota.StepBuild, false, x.doBuild, nothing},
		{ota.StepLoad, true, x.doLoad, x.undoLoad},
		{ota.StepProve, true, x.doProve, nothing},
		{ota.StepSwitch, true, x.doSwitch, x.undoSwitch},
		{ota.StepSoak, true, x.doSoak, nothing},
		{ota.StepCommit, true, x.doCommit, nothing},
	}
}

// run carries out the steps of the update under way. All steps are run again
// after a restart: each finds what is done already.
func (x *Executor) run(stop context.Context) error {
	u := x.State.Get().Update
	if err := x.freshJournal(u.ID); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stop)
	defer cancel(nil)
	x.setRunning(cancel, wanted{u.Install.WorkloadID(), u.Install.Generation})
	defer x.setRunning(nil, wanted{})
	a := &attempt{update: u, install: u.Install}
	if err := x.noteArrival(ctx, a); err != nil {
		return err
	}
	for _, s := range x.steps() {
		err := x.awaitApply(ctx, s.step, a)
		if err == nil {
			err = x.step(ctx, s, a)
		}
		switch {
		case err == nil:
			continue
		case stop.Err() != nil:
			// Best effort: the count of bytes is all that would be lost.
			_ = x.State.Change(func(s *state.State) { x.countBytes(s) })
			return fmt.Errorf("%w at %s: %w", ErrInterrupted, s.step, context.Cause(stop))
		case x.State.Get().Update == nil:
			// The commit is durable and what follows it is not: the clean-up
			// is decided anew.
			return err
		case errors.Is(context.Cause(ctx), ErrSuperseded):
			return x.fail(stop, ota.Superseded, s.step, ErrSuperseded.Error())
		}
		x.suspect(a.install.Release, err)
		return x.fail(stop, classOf(err), s.step, oneLine(err))
	}
	return nil
}

func (x *Executor) setRunning(cancel context.CancelCauseFunc, now wanted) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.cancel, x.running = cancel, now.workload
	// It may have been decided on before the newest was accepted; it may also be
	// the newest, of which Supersede is not told yet.
	if n := x.newest; cancel != nil && n != nil && n.workload != now.workload && n.generation.Compare(now.generation) > 0 {
		cancel(ErrSuperseded)
	}
}

// step journals and runs one step. An update that ends here (by ctx or by the
// process) leaves "started" as the last line.
func (x *Executor) step(ctx context.Context, s stepFuncs, a *attempt) error {
	if !x.underWay(a.update.ID, s.step) { // else each restart would make the journal longer
		x.Point(string(s.step) + ":before-started")
		if err := x.journal(a.update, s.step, wire.StepStarted, ""); err != nil {
			return err
		}
	}
	x.Point(string(s.step) + ":started")
	x.Hook(s.step, wire.StepStarted)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	do := s.do
	if !s.touches {
		do = x.tended(do)
	}
	note, err := do(ctx, a)
	if err != nil {
		return err
	}
	x.Hook(s.step, wire.StepDone)
	x.Point(string(s.step) + ":before-done")
	return x.journal(a.update, s.step, wire.StepDone, note)
}

func (x *Executor) journal(u *state.Update, step ota.Step, st wire.StepState, message string) error {
	e := slot.Entry{Update: u.ID, Step: step, State: st, Release: u.Install.Release, Message: message, Time: x.Now()}
	if err := x.Journal.Append(e); err != nil {
		return fmt.Errorf("journal %s %s: %w", step, st, err)
	}
	x.Observe(e)
	return nil
}

// freshJournal empties the journal when it is of another update.
func (x *Executor) freshJournal(id string) error {
	entries := x.Journal.Entries()
	if len(entries) == 0 || entries[len(entries)-1].Update == id {
		return nil
	}
	if err := x.Journal.Reset(); err != nil {
		return fmt.Errorf("begin update: %w", err)
	}
	return nil
}

// oneLine is an error's text for reports: joined errors come in lines.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// classOf grades the cause of a failure.
func classOf(err error) ota.FailureClass {
	for _, final := range []error{ErrRejected, runtime.ErrIncompatible, manifest.ErrNoTarget, manifest.ErrMalformed, manifest.ErrParam, selfupdate.ErrWrongBinary} {
		if errors.Is(err, final) {
			return ota.Rejected
		}
	}
	if trust.AttackClass(err) != "" {
		return ota.Rejected
	}
	return ota.Failed
}

// fail makes the cause durable, takes the update back and records the failure.
// It is called again, after a restart or an error, until it succeeds.
func (x *Executor) fail(ctx context.Context, class ota.FailureClass, step ota.Step, cause string) error {
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	full := x.noteCause(class, step, cause)
	u := x.State.Get().Update
	if u == nil {
		return nil
	}
	if !full {
		x.noteFailedStep(u)
	}
	if err := x.undo(ctx, u); err != nil {
		return err
	}
	if full { // the undo has made room
		x.noteCause(class, step, cause)
		if u = x.State.Get().Update; !u.Undoing {
			u = &state.Update{ID: u.ID, Install: u.Install, Class: class, Step: step, Cause: cause}
		}
	}
	x.Point("undo:before-state")
	err := x.State.Change(func(s *state.State) {
		s.Update = nil
		s.Failure = &state.Failure{Generation: u.Install.Generation, Release: u.Install.Release, Class: u.Class, Step: u.Step, Cause: u.Cause, Time: x.Now()}
		x.countBytes(s)
	})
	if err != nil {
		return fmt.Errorf("record the failed update: %w", err)
	}
	x.Logger.Warn("update undone", "release", u.Install.Release.Short(), "class", u.Class, "step", u.Step, "cause", u.Cause)
	return nil
}

// noteCause makes the first cause durable; it reports whether the disk is too
// full even for that.
func (x *Executor) noteCause(class ota.FailureClass, step ota.Step, cause string) (full bool) {
	x.Point("undo:before-cause")
	err := x.State.Change(func(s *state.State) {
		if s.Update == nil || s.Update.Undoing {
			return
		}
		next := *s.Update
		next.Undoing, next.Class, next.Step, next.Cause = true, class, step, cause
		s.Update = &next
	})
	if err != nil {
		x.Logger.Warn("the cause of the failed update is not durable yet", "cause", cause, "error", err)
	}
	return err != nil
}

// underWay reports whether the newest line says that this step was started.
func (x *Executor) underWay(id string, step ota.Step) bool {
	entries := x.Journal.Entries()
	if len(entries) == 0 {
		return false
	}
	last := entries[len(entries)-1]
	return last.Update == id && last.Step == step && last.State == wire.StepStarted
}

// noteFailedStep writes the failed line once.
func (x *Executor) noteFailedStep(u *state.Update) {
	for _, e := range x.Journal.Entries() {
		if e.Update == u.ID && e.State == wire.StepFailed {
			return
		}
	}
	if u.Step == "" {
		return
	}
	if err := x.journal(u, u.Step, wire.StepFailed, u.Cause); err != nil {
		x.Logger.Warn("journal the failed step", "error", err)
	}
}

// undo runs the undo of every step that was started, last first. A full disk
// does not stop it: journal lines are then missing, the undo is not.
func (x *Executor) undo(ctx context.Context, u *state.Update) error {
	var started, undone []ota.Step
	for _, e := range x.Journal.Entries() {
		switch {
		case e.Update != u.ID:
		case e.State == wire.StepStarted:
			started = append(started, e.Step)
		case e.State == wire.StepUndone:
			undone = append(undone, e.Step)
		}
	}
	steps := x.steps()
	slices.Reverse(steps)
	for _, s := range steps {
		if !slices.Contains(started, s.step) && s.step != ota.StepFetch || slices.Contains(undone, s.step) {
			continue
		}
		x.Hook(s.step, wire.StepUndone)
		if err := s.undo(ctx, u); err != nil {
			return fmt.Errorf("undo %s: %w", s.step, err)
		}
		x.Point(string(s.step) + ":before-undone")
		if err := x.journal(u, s.step, wire.StepUndone, ""); err != nil {
			if !errors.Is(err, slot.ErrDiskFull) {
				return err
			}
			x.Logger.Warn("journal the undone step", "step", s.step, "error", err)
		}
	}
	return nil
}

func (x *Executor) adopt(i *state.Install) error {
	return x.State.Change(func(s *state.State) {
		next := *s.Current
		next.Generation, next.Rollout = i.Generation, i.Rollout
		s.Current = &next
	})
}

// remove forgets the committed release first and stops it then: what stays
// loaded after a power cut between the two is unloaded as unwanted.
func (x *Executor) remove(ctx context.Context) error {
	cur := x.State.Get().Current
	if err := x.State.Change(func(s *state.State) { s.Current, s.Previous, s.Failure = nil, nil, nil }); err != nil {
		return err
	}
	if err := x.Runtime.Unload(ctx, cur.WorkloadID()); err != nil {
		return fmt.Errorf("unload %s: %w", cur.WorkloadID(), err)
	}
	return x.collect(ctx)
}
