package rollout

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/ota"
)

func genWave(name string, last bool) *rapid.Generator[Wave] {
	return rapid.Custom(func(t *rapid.T) Wave {
		w := Wave{Name: name}
		if !last {
			switch rapid.IntRange(0, 3).Draw(t, "limit") {
			case 0:
				w.PerTarget = Count(rapid.IntRange(1, 3).Draw(t, "perTarget"))
			case 1:
				w.Limit = Devices(rapid.IntRange(1, 8).Draw(t, "n"))
			case 2:
				w.Limit, w.StratifyBy = Percent(float64(rapid.IntRange(1, 100).Draw(t, "pct"))), []string{"site"}
			case 3:
				w.Selector.Labels = map[string]string{"site": rapid.SampledFrom([]string{"lyon", "nowhere"}).Draw(t, "site")}
			}
		}
		opt := func(name string, hi int) Count { return Count(max(0, rapid.IntRange(-hi, hi).Draw(t, name))) }
		w.Ramp = Ramp{MaxInFlight: opt("inflight", 6), MaxPerMinute: opt("rate", 6), MaxConcurrentDownloads: opt("downloads", 4)}
		switch rapid.IntRange(0, 2).Draw(t, "ramp") {
		case 1:
			w.Ramp.Kind, w.Ramp.Initial, w.Ramp.Factor = RampLinear, 1+opt("initial", 3), 2
		case 2:
			w.Ramp.Kind, w.Ramp.Initial, w.Ramp.Factor = RampExponential, 1+opt("initial", 3), 1.5
		default:
			w.Ramp.Initial = opt("initial", 5)
		}
		w.Soak.Min = Duration(rapid.IntRange(0, 3).Draw(t, "soak")) * Duration(time.Minute)
		w.Gate.Success = &Success{MinPct: rapid.SampledFrom([]float64{0, 50, 90, 100}).Draw(t, "minPct"),
			Of: rapid.SampledFrom([]Denominator{OfExecuted, OfTotal}).Draw(t, "of"), MinExecuted: opt("minExecuted", 3)}
		if rapid.Bool().Draw(t, "abort") {
			w.Gate.Abort = append(w.Gate.Abort, AbortRule{Failure: rapid.SampledFrom(countedClasses).Draw(t, "class"),
				Pct: rapid.SampledFrom([]float64{10, 25, 60}).Draw(t, "abortPct"), MinExecuted: opt("abortMin", 5)})
		}
		if rapid.Bool().Draw(t, "metric") {
			w.Gate.Metrics = []MetricRule{{Name: "latency_ms", MaxRatio: 1.5, Floor: 2, MinSamples: 3, MaxRegressedPct: 20}}
			w.Gate.Inconclusive = rapid.SampledFrom([]OnInconclusive{"", InconclusiveWait}).Draw(t, "inconclusive")
		}
		if rapid.Bool().Draw(t, "budget") {
			w.Budget = Budget{GroupBy: rapid.SampledFrom([][]string{nil, {"site"}, {"site", "target"}}).Draw(t, "groupBy")}
			if rapid.Bool().Draw(t, "maxUnavailable") {
				w.Budget.MaxUnavailable = rapid.SampledFrom([]Amount{Devices(1), Devices(3), Percent(30)}).Draw(t, "amount")
			} else {
				w.Budget.MinAvailable = rapid.SampledFrom([]Amount{Devices(1), Percent(50)}).Draw(t, "amount")
			}
		}
		w.Timeout = Timeout{Device: Duration(5 * time.Minute), Silent: Duration(time.Minute),
			Step:    Duration(rapid.IntRange(0, 3).Draw(t, "step")) * Duration(time.Minute),
			Offline: rapid.SampledFrom([]Offline{OfflineWait, OfflineSkip, OfflineCount}).Draw(t, "offline")}
		return w
	})
}

var genSpec = rapid.Custom(func(t *rapid.T) Spec {
	s := Spec{Release: v2}
	n := rapid.IntRange(1, 3).Draw(t, "waves")
	for i := range n {
		s.Waves = append(s.Waves, genWave(fmt.Sprintf("w%d", i), i == n-1).Draw(t, "wave"))
	}
	if rapid.Bool().Draw(t, "retry") {
		s.Retry = Retry{PerFailure: map[ota.FailureClass]Count{ota.Failed: 2, ota.TimedOut: 1}, Backoff: Duration(30 * time.Second)}
	}
	s.OnAbort.InProgress = rapid.SampledFrom([]AbortAction{AbortCancel, AbortFinish}).Draw(t, "inProgress")
	s.OnAbort.Done = rapid.SampledFrom([]AbortAction{AbortKeep, AbortRollback}).Draw(t, "done")
	s.LateJoiners = rapid.SampledFrom([]Joiners{JoinRamp, JoinImmediate, JoinNever}).Draw(t, "late")
	s.Supersede = rapid.SampledFrom([]Supersede{SupersedeNewest, SupersedeSerial}).Draw(t, "supersede")
	return s
})

var tempers = []temper{good, good, good, good, slow, failing, lateFail, refusing, silent, stuck, slower}

// genWorld makes a fleet in any state, some of which joins later.
func genWorld(t *rapid.T) (w *world, later []Device) {
	fleet := devices(rapid.IntRange(1, 24).Draw(t, "devices"))
	ts := map[string]temper{}
	mostly := rapid.SampledFrom(tempers).Draw(t, "mostly")
	for i := range fleet {
		d := &fleet[i]
		ts[d.ID] = rapid.SampledFrom(append(tempers, mostly, mostly, mostly)).Draw(t, "temper")
		d.Release = rapid.SampledFrom([]ota.Digest{v1, v1, v1, v0, "", v2}).Draw(t, "runs")
		d.Online = rapid.IntRange(0, 5).Draw(t, "online") > 0
		if rapid.IntRange(0, 9).Draw(t, "fit") == 0 {
			d.Incompatible = "no engine"
		}
	}
	start := rapid.IntRange(1, len(fleet)).Draw(t, "start")
	w = newWorld(genSpec.Draw(t, "spec"), slices.Clone(fleet[:start]), ts)
	if err := w.spec.Validate(); err != nil {
		t.Fatalf("the generated spec is not valid: %v", err)
	}
	w.rng = rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
	for id, x := range ts {
		if w.actors[id] == nil {
			w.actors[id] = &actor{temper: x, left: -1}
		}
	}
	return w, fleet[start:]
}

// chaos does one random thing to the world.
func (w *world) chaos(later *[]Device) {
	d := &w.fleet[w.rng.IntN(len(w.fleet))]
	switch w.rng.IntN(42) {
	case 0:
		w.do(Decision{Kind: Pause, Reason: byPerson})
	case 1, 2, 3:
		w.do(Decision{Kind: Resume, Reason: byPerson})
	case 4:
		if w.rng.IntN(6) == 0 {
			w.do(Decision{Kind: Abort, Reason: byPerson})
		}
	case 5:
		w.do(Decision{Kind: Approve, Wave: w.state.Wave, Reason: byPerson})
	case 6, 7, 8:
		w.setOnline(d.ID, !d.Online)
	case 9:
		if len(*later) > 0 {
			n := (*later)[0]
			n.LastSeen, n.OnlineSince = w.now, w.now
			w.actors[n.ID].runs, w.actors[n.ID].desired = n.Release, n.Release
			w.fleet, *later = append(w.fleet, n), (*later)[1:]
		}
	case 10:
		if w.rng.IntN(4) == 0 {
			d.Newer = "r9"
		}
	case 11:
		d.Older = []string{"", "", "r0"}[w.rng.IntN(3)]
	case 12: // a report that comes late, or of another attempt
		sts := []Status{Accepted, Healthy, Done}
		w.state.Observe(Report{Device: d.ID, At: w.now, Attempt: 99, Status: sts[w.rng.IntN(len(sts))]})
	case 13: // somebody sets the clock back
		w.now = w.now.Add(-time.Duration(w.rng.IntN(300)) * time.Second)
	case 15: // its download window opens or closes
		d.Outside = map[string]string{"": "outside its download window"}[d.Outside]
	case 16:
		w.actors[d.ID].waits = w.rng.IntN(200)
	case 14: // the device is retired; it may come back
		if w.rng.IntN(2) == 0 && len(w.fleet) > 1 {
			*later = append(*later, *d)
			w.left[d.ID] = true
			w.fleet = slices.DeleteFunc(w.fleet, func(o Device) bool { return o.ID == d.ID })
		}
	}
}
