package rollout

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
	"github.com/skein-fleet/skein/ota/window"
)

// Validate reports everything that is wrong with the spec, joined, each as a
// *FieldError. A field that the format has but this version does not act on is
// reported as "not supported"; it is never passed over.
func (s Spec) Validate() error {
	v := &validator{}
	if _, err := ota.ParseDigest(string(s.Release)); err != nil {
		v.add("release", "want the digest of a release, as in sha256:…")
	}
	v.selector("selector", s.Selector)
	if len(s.Waves) == 0 {
		v.add("waves", "want at least one wave")
	}
	names := map[string]bool{}
	for i, w := range s.Waves {
		path := fmt.Sprintf("waves[%d]", i)
		if w.Name == "" {
			v.add(path+".name", "every wave has a name")
		} else if names[w.Name] {
			v.add(path+".name", "%q is the name of an earlier wave", w.Name)
		}
		names[w.Name] = true
		v.wave(path, w)
	}
	v.retry(s.Retry)
	oneOf(v, "onAbort.queued", s.OnAbort.Queued, AbortCancel)
	oneOf(v, "onAbort.inProgress", s.OnAbort.InProgress, AbortCancel, AbortFinish)
	oneOf(v, "onAbort.done", s.OnAbort.Done, AbortKeep, AbortRollback)
	if s.RollbackTo != "" && s.RollbackTo != Previous {
		if _, err := ota.ParseDigest(s.RollbackTo); err != nil {
			v.add("rollbackTo", "want %q or the digest of a release", Previous)
		} else if s.RollbackTo == string(s.Release) {
			v.add("rollbackTo", "is the release that this rollout brings")
		}
	}
	oneOf(v, "lateJoiners", s.LateJoiners, JoinRamp, JoinImmediate, JoinNever)
	oneOf(v, "supersede", s.Supersede, SupersedeNewest, SupersedeSerial)
	v.schedule(s.Schedule)
	return errors.Join(v.errs...)
}

func (v *validator) schedule(s Schedule) {
	for _, w := range []struct{ path, text string }{{"schedule.downloadWindow", s.DownloadWindow}, {"schedule.applyWindow", s.ApplyWindow}} {
		if _, err := window.Parse(w.text); err != nil {
			v.add(w.path, "%v", err)
		} else if w.text != "" && s.Now {
			v.add(w.path, "is given together with schedule.now, which waits for no window")
		}
	}
	if z := s.Zone(); z != "" {
		if _, err := window.Zone(z); err != nil {
			v.add("schedule.tz", "%v; or %q", err, ZoneOfDevice)
		}
	}
	v.unsupported("schedule.start", !s.Start.IsZero())
	v.unsupported("schedule.end", !s.End.IsZero())
	v.unsupported("schedule.endBehavior", !s.EndBehavior.IsZero())
}

type validator struct{ errs []error }

func (v *validator) add(path, format string, args ...any) {
	v.errs = append(v.errs, &FieldError{path, fmt.Sprintf(format, args...)})
}

func (v *validator) unsupported(path string, given bool) {
	if given {
		v.add(path, "not supported: %s", path)
	}
}

// oneOf accepts the zero value and the values listed.
func oneOf[T ~string](v *validator, path string, have T, want ...T) {
	if have != "" && !slices.Contains(want, have) {
		v.add(path, "%q: want one of %q", have, want)
	}
}

func (v *validator) atLeastZero(path string, n int) {
	if n < 0 {
		v.add(path, "%d: want at least 1", n)
	}
}

func (v *validator) pct(path string, p float64) {
	if !(p >= 0 && p <= 100) {
		v.add(path, "%g: want a percentage from 0 to 100", p)
	}
}

func (v *validator) amount(path string, a Amount) {
	if a.N < 0 || a.N != 0 && a.Pct != 0 || a.Pct != 0 && !(a.Pct >= minPct && a.Pct <= 100) {
		v.add(path, "want a number of devices of at least 1, or a percentage up to 100 %%")
	}
}

func (v *validator) duration(path string, d Duration) {
	if d < 0 {
		v.add(path, "%s: want no negative duration", d)
	}
}

func (v *validator) selector(path string, s Selector) {
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		if k == "" {
			v.add(path+".labels", "a label has no name")
		}
	}
	for i, r := range s.Match {
		at := fmt.Sprintf("%s.match[%d]", path, i)
		if r.Label == "" {
			v.add(at+".label", "want the name of a label")
		}
		switch r.Op {
		case Equal, NotEqual:
			if len(r.Values) != 1 {
				v.add(at+".values", "operator %s takes one value, there are %d", r.Op, len(r.Values))
			}
		case In, NotIn:
			if len(r.Values) == 0 {
				v.add(at+".values", "operator %s takes at least one value", r.Op)
			}
		default:
			v.add(at+".op", "%q: want one of %q", r.Op, []Op{Equal, NotEqual, In, NotIn})
		}
	}
	for i, t := range s.Targets {
		if _, err := ota.ParseTarget(t); err != nil {
			v.add(fmt.Sprintf("%s.targets[%d]", path, i), "%v", err)
		}
	}
	for i, id := range s.Devices {
		if id == "" {
			v.add(fmt.Sprintf("%s.devices[%d]", path, i), "want a device id")
		}
	}
}

func (v *validator) wave(path string, w Wave) {
	v.selector(path+".selector", w.Selector)
	v.amount(path+".limit", w.Limit)
	v.atLeastZero(path+".perTarget", int(w.PerTarget))
	if !w.Limit.IsZero() && w.PerTarget != 0 {
		v.add(path+".perTarget", "limit is given too: a wave has one of them")
	}
	v.keys(path+".stratifyBy", w.StratifyBy)
	if len(w.StratifyBy) > 0 && w.Limit.IsZero() && w.PerTarget == 0 {
		v.add(path+".stratifyBy", "without limit or perTarget the wave takes every device: there is nothing to draw")
	}
	oneOf(v, path+".order", w.Order, OrderHash)
	v.ramp(path+".ramp", w.Ramp)
	v.duration(path+".soak.min", w.Soak.Min)
	v.duration(path+".soak.max", w.Soak.Max)
	if w.Soak.Max != 0 && w.Soak.Max < w.Soak.Min {
		v.add(path+".soak.max", "%s is shorter than soak.min %s", w.Soak.Max, w.Soak.Min)
	}
	v.atLeastZero(path+".soak.minSamples", int(w.Soak.MinSamples))
	if w.Soak.MinSamples > 0 && len(w.Gate.Metrics) == 0 {
		v.add(path+".soak.minSamples", "there are no gate.metrics to take samples of")
	}
	v.gate(path+".gate", w.Gate)
	v.keys(path+".budget.groupBy", w.Budget.GroupBy)
	v.amount(path+".budget.minAvailable", w.Budget.MinAvailable)
	v.amount(path+".budget.maxUnavailable", w.Budget.MaxUnavailable)
	if len(w.Budget.GroupBy) > 0 && w.Budget.MinAvailable.IsZero() && w.Budget.MaxUnavailable.IsZero() {
		v.add(path+".budget", "groups without minAvailable or maxUnavailable bound nothing")
	}
	if w.Budget.MinAvailable.Pct == 100 {
		v.add(path+".budget.minAvailable", "100%% leaves no device that may be updated")
	}
	v.duration(path+".timeout.device", w.Timeout.Device)
	v.duration(path+".timeout.step", w.Timeout.Step)
	v.duration(path+".timeout.silent", w.Timeout.Silent)
	if w.Timeout.Device > 0 && w.Timeout.Step > w.Timeout.Device {
		v.add(path+".timeout.step", "%s is longer than timeout.device %s, so it could never act", w.Timeout.Step, w.Timeout.Device)
	}
	oneOf(v, path+".timeout.offline", w.Timeout.Offline, OfflineWait, OfflineSkip, OfflineCount)
}

func (v *validator) keys(path string, keys []string) {
	for i, k := range keys {
		if k == "" || slices.Contains(keys[:i], k) {
			v.add(fmt.Sprintf("%s[%d]", path, i), "%q: want the name of a label, or target, once", k)
		}
	}
}

func (v *validator) ramp(path string, r Ramp) {
	oneOf(v, path+".kind", r.Kind, RampFixed, RampLinear, RampExponential)
	v.atLeastZero(path+".initial", int(r.Initial))
	v.atLeastZero(path+".maxPerMinute", int(r.MaxPerMinute))
	v.atLeastZero(path+".maxInFlight", int(r.MaxInFlight))
	v.atLeastZero(path+".maxConcurrentDownloads", int(r.MaxConcurrentDownloads))
	v.unsupported(path+".maxBytesPerSecond", !r.MaxBytesPerSecond.IsZero())
	switch r.Kind {
	case RampLinear, RampExponential:
		if r.Initial == 0 {
			v.add(path+".initial", "a %s ramp starts from a number of devices", r.Kind)
		}
		if r.Kind == RampLinear && !(r.Factor >= 1 && r.Factor <= math.MaxInt32 && r.Factor == math.Trunc(r.Factor)) {
			v.add(path+".factor", "%g: a linear ramp adds a whole number of at least 1", r.Factor)
		}
		if r.Kind == RampExponential && !(r.Factor > 1 && r.Factor <= 100) {
			v.add(path+".factor", "%g: an exponential ramp multiplies by more than 1, up to 100", r.Factor)
		}
	default:
		if r.Factor != 0 {
			v.add(path+".factor", "a fixed ramp has no factor: set kind to linear or exponential")
		}
	}
}

func (v *validator) gate(path string, g Gate) {
	if g.Success != nil {
		v.pct(path+".success.minPct", g.Success.MinPct)
		oneOf(v, path+".success.of", g.Success.Of, OfExecuted, OfTotal)
		v.atLeastZero(path+".success.minExecuted", int(g.Success.MinExecuted))
	}
	for i, a := range g.Abort {
		at := fmt.Sprintf("%s.abort[%d]", path, i)
		if a.Failure == "" {
			v.add(at+".failure", "want one of %q", countedClasses)
		}
		oneOf(v, at+".failure", a.Failure, countedClasses...)
		v.pct(at+".pct", a.Pct)
		v.atLeastZero(at+".count", int(a.Count))
		v.atLeastZero(at+".minExecuted", int(a.MinExecuted))
		if (a.Pct != 0) == (a.Count != 0) {
			v.add(at, "want pct or count, one of them")
		}
	}
	seen := map[string]bool{}
	for i, m := range g.Metrics {
		at := fmt.Sprintf("%s.metrics[%d]", path, i)
		key := m.Name + "\x00" + string(m.Stat)
		if m.Name == "" || seen[key] {
			v.add(at+".name", "%q: want the name of a metric, once for each stat", m.Name)
		}
		seen[key] = true
		oneOf(v, at+".stat", m.Stat, gate.Median, gate.P99)
		if !(m.MaxRatio >= 1 && m.MaxRatio <= math.MaxFloat32) {
			v.add(at+".maxRatio", "%g: want at least 1; 1.2 allows 20 %% more than before", m.MaxRatio)
		}
		if !(m.Floor >= 0 && m.Floor <= math.MaxFloat32) {
			v.add(at+".floor", "%g: want a growth of at least 0 in the metric's unit", m.Floor)
		}
		v.pct(at+".maxRegressedPct", m.MaxRegressedPct)
		v.atLeastZero(at+".minSamples", int(m.MinSamples))
		v.atLeastZero(at+".minDevices", int(m.MinDevices))
	}
	if g.Approval == ApprovalWebhook {
		v.add(path+".approval", "not supported: %s webhook", path+".approval")
	} else {
		oneOf(v, path+".approval", g.Approval, ApprovalAuto, ApprovalManual)
	}
	oneOf(v, path+".inconclusive", g.Inconclusive, InconclusivePause, InconclusiveWait)
}

// countedClasses are the classes that an abort rule may name.
var countedClasses = []ota.FailureClass{ota.Rejected, ota.Failed, ota.TimedOut, ota.Silent, AnyFailure}

func (v *validator) retry(r Retry) {
	for _, class := range slices.Sorted(maps.Keys(r.PerFailure)) {
		at := "retry.perFailure." + string(class)
		switch class {
		case ota.Failed, ota.TimedOut:
			v.atLeastZero(at, int(r.PerFailure[class]))
		case ota.Rejected:
			v.add(at, "a device that refused the release is never offered it again")
		default:
			v.add(at, "want one of %q", []ota.FailureClass{ota.Failed, ota.TimedOut})
		}
	}
	v.duration("retry.backoff", r.Backoff)
	v.atLeastZero("retry.perDeviceMax", int(r.PerDeviceMax))
	v.atLeastZero("retry.fleetBudget", int(r.FleetBudget))
}
