package rollout

import (
	"cmp"
	"slices"
	"time"

	"github.com/skein-fleet/skein/ota"
)

// Default returns the rollout that a person gets who says only "this release":
// a canary of 2 devices of each target, then 25 %, then the rest, each with a
// soak and gates, and an automatic rollback of everything when one fails.
func Default(release ota.Digest) Spec {
	timeout := Timeout{Device: Duration(time.Hour), Silent: Duration(15 * time.Minute), Offline: OfflineSkip}
	stop := []AbortRule{{Failure: AnyFailure, Pct: 20, MinExecuted: 3}, {Failure: ota.Silent, Count: 2}}
	ramp := Ramp{Kind: RampExponential, Initial: 5, Factor: 2, MaxInFlight: 500}
	return Spec{
		Release: release,
		Waves: []Wave{
			{
				Name: "canary", PerTarget: 2, Timeout: timeout,
				Soak: Soak{Min: Duration(10 * time.Minute)},
				Gate: Gate{Success: &Success{MinPct: 90}, Abort: stop},
			},
			{
				Name: "quarter", Limit: Percent(25), StratifyBy: []string{"target"}, Ramp: ramp, Timeout: timeout,
				Soak: Soak{Min: Duration(10 * time.Minute)},
				Gate: Gate{Success: &Success{MinPct: 95}, Abort: stop},
			},
			{
				Name: "rest", Ramp: ramp, Timeout: timeout,
				Gate: Gate{Success: &Success{MinPct: 95}, Abort: stop},
			},
		},
	}.Normalize()
}

// Normalize returns the spec with every default written out. It is idempotent
// and shares no memory with s that it changes.
func (s Spec) Normalize() Spec {
	s.RollbackTo = cmp.Or(s.RollbackTo, Previous)
	s.LateJoiners = cmp.Or(s.LateJoiners, JoinRamp)
	s.Supersede = cmp.Or(s.Supersede, SupersedeNewest)
	s.OnAbort.Queued = cmp.Or(s.OnAbort.Queued, AbortCancel)
	s.OnAbort.InProgress = cmp.Or(s.OnAbort.InProgress, AbortCancel)
	s.OnAbort.Done = cmp.Or(s.OnAbort.Done, AbortRollback)
	s.Retry.Backoff = cmp.Or(s.Retry.Backoff, Duration(time.Minute))
	s.Waves = slices.Clone(s.Waves)
	for i := range s.Waves {
		s.Waves[i] = s.Waves[i].normalize()
	}
	return s
}

func (w Wave) normalize() Wave {
	w.Order = cmp.Or(w.Order, OrderHash)
	w.Ramp.Kind = cmp.Or(w.Ramp.Kind, RampFixed)
	w.Soak.Max = max(w.Soak.Max, w.Soak.Min)
	success := Success{MinPct: 90}
	if w.Gate.Success != nil {
		success = *w.Gate.Success
	}
	success.Of = cmp.Or(success.Of, OfExecuted)
	success.MinExecuted = cmp.Or(success.MinExecuted, 1)
	w.Gate.Success = &success
	w.Gate.Approval = cmp.Or(w.Gate.Approval, ApprovalAuto)
	w.Gate.Inconclusive = cmp.Or(w.Gate.Inconclusive, InconclusivePause)
	w.Gate.Abort = slices.Clone(w.Gate.Abort)
	for i := range w.Gate.Abort {
		w.Gate.Abort[i].MinExecuted = cmp.Or(w.Gate.Abort[i].MinExecuted, 1)
	}
	w.Gate.Metrics = slices.Clone(w.Gate.Metrics)
	for i := range w.Gate.Metrics {
		m := &w.Gate.Metrics[i]
		m.Stat = cmp.Or(m.Stat, "median")
		m.MinSamples = cmp.Or(m.MinSamples, 1)
	}
	w.Timeout.Device = cmp.Or(w.Timeout.Device, Duration(time.Hour))
	w.Timeout.Silent = cmp.Or(w.Timeout.Silent, Duration(15*time.Minute))
	w.Timeout.Offline = cmp.Or(w.Timeout.Offline, OfflineSkip)
	return w
}
