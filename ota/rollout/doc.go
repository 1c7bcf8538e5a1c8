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
// Time inside a rollout is Elapsed: it starts with the rollout and stands still
// while the rollout is paused, so no soak and no timeout runs in a pause.
//
// Invariants, each a named property test in this package: see invariant_test.go.
// The module's other packages are not needed to use it, except ota for names
// and ota/gate for verdicts; everything above ota may import it.
package rollout
