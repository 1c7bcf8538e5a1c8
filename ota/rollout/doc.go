// Package rollout decides how a release reaches a fleet. It owns the rollout
// specification (Spec, public JSON format in SPEC.md), the durable state of a
// running rollout (State) and the planner (Plan), and it is pure: no clock, no
// I/O, no goroutines, no effect of map or slice order. The caller stores the
// state, applies decisions and reports to it, and sends what they ask for.
//
// How a conductor uses it, for each rollout, whenever something changed:
//
//	for _, d := range rollout.Plan(spec, state, fleet, evidence, now) {
//		state.Apply(d)   // make it durable, then send: Offer, Withdraw and
//	}                        // Rollback each set a device's desired release
//
// People act through the same decisions: a Pause, Resume, Approve or Abort is
// built by hand and applied. What devices say goes in through State.Observe.
// Plan with unchanged input after its decisions were applied decides nothing.
//
// Each Offer is a new generation of the device's desired state, also when the
// release is the same as in an attempt before; Report.Attempt ties an answer to
// its offer. Report Restored once the device holds the desired state of a
// Withdraw or Rollback and runs its release. After the caller was away, it
// applies an Outage first, so that nobody is blamed for a silence that nobody
// listened to. A Spec never changes under a running rollout: a changed spec is
// a new rollout that supersedes it.
//
// Time inside a rollout is Elapsed: it starts with the rollout and stands still
// while the rollout is paused, so no soak and no timeout runs in a pause.
//
// Invariants, each a named property test in this package: see invariant_test.go.
// The module's other packages are not needed to use it, except ota for names
// and ota/gate for verdicts; everything above ota may import it.
package rollout
