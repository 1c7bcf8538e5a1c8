package model

import (
	"fmt"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/rollout"
)

const metricName = "skein_inference_latency_p50_seconds"

// spec is the rollout of the field: a canary per target, a quarter, the rest.
func spec(r *release, first bool) rollout.Spec {
	timeout := rollout.Timeout{Device: rollout.Duration(2 * time.Hour), Silent: rollout.Duration(45 * time.Minute), Offline: rollout.OfflineSkip}
	gate := func(minPct float64) rollout.Gate {
		g := rollout.Gate{
			Success:      &rollout.Success{MinPct: minPct},
			Abort:        []rollout.AbortRule{{Failure: rollout.AnyFailure, Pct: 20, MinExecuted: 3}},
			Inconclusive: rollout.InconclusiveWait,
		}
		if !first { // else there is no past to compare with
			g.Metrics = []rollout.MetricRule{{Name: metricName, MaxRatio: 1.5, Floor: 0.002, MaxRegressedPct: 25, MinSamples: 100}}
		}
		return g
	}
	ramp := rollout.Ramp{Kind: rollout.RampExponential, Initial: 10, Factor: 2, MaxInFlight: 200}
	soak := rollout.Soak{Min: rollout.Duration(10 * time.Minute)}
	return rollout.Spec{
		Release: r.digest,
		Waves: []rollout.Wave{
			{Name: "canary", PerTarget: 2, Soak: soak, Gate: gate(90), Timeout: timeout},
			{Name: "quarter", Limit: rollout.Percent(25), StratifyBy: []string{"target"}, Ramp: ramp, Soak: soak, Gate: gate(95), Timeout: timeout},
			{Name: "rest", Ramp: ramp, Gate: gate(95), Timeout: timeout},
		},
		Retry: rollout.Retry{PerFailure: map[ota.FailureClass]rollout.Count{ota.Failed: 1}, Backoff: rollout.Duration(5 * time.Minute)},
	}.Normalize()
}

// nextRelease makes the release of the day and begins to roll it out. A
// rollout that still runs goes first.
func (w *world) nextRelease() {
	if w.live != nil {
		w.log("the rollout of %s still runs: the next release waits", w.live.release.name)
		w.after(time.Hour, w.nextRelease)
		return
	}
	n := len(w.releases) + 1
	r := release{name: fmt.Sprintf("v%d", n), bytes: 20<<20 + w.rng.Int64N(80<<20)}
	if n > 1 && w.rng.IntN(2) == 0 {
		r.defect = defects[w.rng.IntN(len(defects))]
	}
	r.digest = ota.DigestOf(fmt.Appendf(nil, "%s %d", r.name, w.o.Seed))
	w.releases = append(w.releases, r)
	rel := &w.releases[n-1]
	id := "rollout-" + r.name
	w.live = &running{id: id, release: rel, spec: spec(rel, n == 1), state: rollout.New(id), began: w.now, harmed: map[string]bool{}}
	for _, d := range w.devices {
		d.switchedAt = time.Time{}
	}
	w.log("release %s of %d bytes, defect %q", rel.name, rel.bytes, rel.defect)
	w.wake(0)
	w.tick(w.live)
}

// tick looks at a rollout once a minute, as time alone can decide.
func (w *world) tick(of *running) {
	w.after(tickEvery, func() {
		if w.live == of {
			w.wake(0)
			w.tick(of)
		}
	})
}

// wake plans soon; many reasons to plan are one.
func (w *world) wake(delay time.Duration) {
	if w.planDue || w.live == nil {
		return
	}
	w.planDue = true
	w.after(delay, func() {
		w.planDue = false
		w.plan()
	})
}

func (w *world) plan() {
	if w.live == nil || w.away {
		return
	}
	x := w.live
	fleet := make([]rollout.Device, len(w.devices))
	for i, d := range w.devices {
		fleet[i] = d.view()
	}
	for _, d := range rollout.Plan(x.spec, x.state, fleet, w.evidence(), w.now) {
		w.apply(d)
	}
	if x.state.Phase.Final() {
		w.finish()
	}
}

func (w *world) apply(d rollout.Decision) {
	d.At = w.now
	if !w.live.state.Apply(d) {
		return
	}
	w.log("%s %s", w.live.id, d)
	if !d.Kind.Sends() {
		return
	}
	dev := w.byID[d.Device]
	dev.wanted.Counter++
	dev.wish = wish{release: d.Release, rollout: w.live.id, attempt: w.live.state.Exec[d.Device].Attempts, back: d.Kind != rollout.Offer}
	w.send(dev)
}

// heard takes in a report that has reached the control plane.
func (w *world) heard(d *device, r rollout.Report, of string) {
	d.lastSeen = w.now
	if w.live == nil || w.live.id != of {
		return
	}
	r.Device, r.At = d.id, w.now
	if w.live.state.Observe(r) {
		w.wake(planEvery)
	}
}

// outage takes the control plane away and brings it back: nobody is to blame
// for what it did not hear.
func (w *world) outage() {
	w.away = true
	w.log("the control plane is away")
	w.after(outageTime, func() {
		w.away = false
		w.log("the control plane is back")
		if w.live != nil {
			w.apply(rollout.Decision{Kind: rollout.Outage, Wait: outageTime, Reason: "the control plane was away"})
			w.wake(0)
		}
		for _, d := range w.devices {
			w.greet(d)
		}
	})
}

// finish records a rollout that has ended, or has not by the end of the run.
func (w *world) finish() {
	x := w.live
	o := Outcome{Release: x.release.name, Defect: x.release.defect, Phase: x.state.Phase, Reason: x.state.Reason, Hours: w.now.Sub(x.began).Hours(), Harmed: len(x.harmed)}
	canary := map[string]bool{}
	if len(x.state.Waves) > 0 {
		for _, id := range x.state.Waves[0].Members {
			canary[id] = true
		}
	}
	o.Canary = len(canary)
	for id := range x.harmed {
		if !canary[id] {
			o.Outside++
		}
	}
	w.outcomes = append(w.outcomes, o)
	w.log("%s ends %s after %.2f h: %d harmed, %d of them outside the canary of %d", x.id, o.Phase, o.Hours, o.Harmed, o.Outside, o.Canary)
	w.live = nil
}
