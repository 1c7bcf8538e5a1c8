// Package reconcile brings what runs on the device to what is desired. It owns
// Plan, a pure function from (desired, actual, now) to decisions, and Executor,
// which carries them out: the update journal with a do and an undo for each
// step, restoring the committed workload after a start, and collecting what is
// no longer needed.
//
// Invariants: each step is in the journal before it runs; the commit is one
// change of the agent's state, so a device is always on the old or on the new
// release; what serves was proven on this device; the original cause of a
// failure is durable before anything is undone; whatever can be resumed after
// a power cut is, by running the steps again. Only the root of the agent
// module imports it.
package reconcile

import (
	"fmt"
	"slices"
	"time"

	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

// Desired is what the device should run, as accepted.
type Desired struct {
	Generation wire.Generation
	// Install is nil when the device should run nothing.
	Install   *state.Install
	ExpiresAt time.Time
}

// Actual is what the device runs and does.
type Actual struct {
	Current *state.Install
	Update  *state.Update
	Failure *state.Failure
	Loaded  []runtime.Status
}

// Kind is what a decision asks for.
type Kind string

// The kinds of decisions, in the order in which Plan gives them.
const (
	Restore  Kind = "restore"  // load the committed workload and let it serve
	Unload   Kind = "unload"   // stop a workload that nothing wants
	UndoIt   Kind = "undo"     // take the update back
	Resume   Kind = "resume"   // go on with the update
	Start    Kind = "start"    // begin an update
	Remove   Kind = "remove"   // stop the committed workload and forget it
	Adopt    Kind = "adopt"    // what runs is wanted under a new generation
	Hold     Kind = "hold"     // an update is wanted and may not start; Reason says why
	StayBack Kind = "stayback" // the wanted generation failed here
)

// Decision is one thing to do.
type Decision struct {
	Kind     Kind
	Reason   string
	Workload string           // for Unload
	Install  *state.Install   // for Start and Adopt
	Class    ota.FailureClass // for UndoIt
}

// maxAttempts is how often an update that was past its load may be found
// unfinished by a starting agent: it may be what ends the agent or the board.
const maxAttempts = 3

// Plan says what to do next. Decisions are in order; an update that runs or
// starts is the last of them. A nil desired means that none was ever accepted.
func Plan(desired *Desired, a Actual, now time.Time) []Decision {
	var out []Decision
	// An unfinished update does not keep the old release from serving; once it
	// has switched, the new one serves.
	if a.Update == nil || !slices.ContainsFunc(a.Loaded, func(s runtime.Status) bool { return s.Serving }) {
		if d, ok := restore(a); ok {
			out = append(out, d)
		}
	}
	for _, s := range a.Loaded {
		wanted := s.ID == a.Current.WorkloadID() || a.Update != nil && s.ID == a.Update.Install.WorkloadID()
		if !wanted {
			out = append(out, Decision{Kind: Unload, Workload: s.ID, Reason: "neither committed nor being installed"})
		}
	}
	if a.Update != nil {
		return append(out, planUpdate(desired, a.Update))
	}
	if desired == nil {
		return out
	}
	if d, ok := planDesired(desired, a, now); ok {
		out = append(out, d)
	}
	return out
}

// Tend says whether the committed workload must be brought to serve while an
// update has not come as far as the runtime.
func Tend(a Actual) (Decision, bool) { return restore(a) }

// restore says whether the committed workload must be brought to serve.
func restore(a Actual) (Decision, bool) {
	if a.Current == nil {
		return Decision{}, false
	}
	id := a.Current.WorkloadID()
	for _, s := range a.Loaded {
		if s.ID != id {
			continue
		}
		switch {
		case s.Serving && s.Ready:
			return Decision{}, false
		case s.Serving:
			return Decision{Kind: Restore, Reason: "the committed workload is not ready: " + s.Reason}, true
		}
		return Decision{Kind: Restore, Reason: "the committed workload does not serve"}, true
	}
	return Decision{Kind: Restore, Reason: "the committed workload is not loaded"}, true
}

func planUpdate(desired *Desired, u *state.Update) Decision {
	switch {
	case u.Undoing:
		return Decision{Kind: UndoIt, Class: u.Class, Reason: u.Cause}
	case desired == nil || desired.Install == nil || desired.Install.WorkloadID() != u.Install.WorkloadID():
		reason := "nothing is wanted any more"
		if desired != nil {
			reason = fmt.Sprintf("generation %s replaced %s", desired.Generation, u.Install.Generation)
		}
		return Decision{Kind: UndoIt, Class: ota.Superseded, Reason: reason}
	case u.Attempts-u.Planned >= maxAttempts:
		return Decision{Kind: UndoIt, Class: ota.Failed, Reason: fmt.Sprintf("the agent ended %d times while the new workload was being loaded or watched", u.Attempts-u.Planned)}
	}
	return Decision{Kind: Resume}
}

func planDesired(desired *Desired, a Actual, now time.Time) (Decision, bool) {
	want := desired.Install
	switch {
	case want == nil && a.Current == nil:
		return Decision{}, false
	case want == nil:
		return Decision{Kind: Remove, Reason: "the desired state is to run nothing"}, true
	case a.Current != nil && want.WorkloadID() == a.Current.WorkloadID():
		if a.Current.Generation == desired.Generation {
			return Decision{}, false
		}
		return Decision{Kind: Adopt, Install: want, Reason: "already committed"}, true
	case a.Failure != nil && a.Failure.Generation == desired.Generation:
		return Decision{Kind: StayBack, Reason: fmt.Sprintf("generation %s failed here (%s at %s): %s; a new generation tries again", desired.Generation, a.Failure.Class, a.Failure.Step, a.Failure.Cause)}, true
	case !now.Before(desired.ExpiresAt):
		return Decision{Kind: Hold, Reason: fmt.Sprintf("the desired state expired at %s, so no install may start from it", desired.ExpiresAt.UTC().Format(time.RFC3339))}, true
	}
	return Decision{Kind: Start, Install: want}, true
}
