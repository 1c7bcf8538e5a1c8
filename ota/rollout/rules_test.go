package rollout

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
)

func TestGoodReleaseReachesEveryDevice(t *testing.T) {
	w := newWorld(Default(v2), devices(60), nil)
	w.run(2000)
	if w.state.Phase != Succeeded {
		t.Fatalf("ended %s: %s", w.state.Phase, w.state.Reason)
	}
	for id, a := range w.actors {
		if a.runs != v2 {
			t.Errorf("%s runs %s", id, a.runs.Short())
		}
	}
	if n := len(w.state.Waves[0].Members); n != 6 {
		t.Errorf("canary of %d devices, want 2 of each of 3 targets", n)
	}
	if n := len(w.state.Waves[1].Members); n != 15 {
		t.Errorf("second wave of %d devices, want a quarter of 60", n)
	}
}

// Every kind of bad release is caught by the default canary, hits nobody else,
// and each device ends where it began.
func TestBadReleaseHitsTheCanaryOnly(t *testing.T) {
	spec := Default(v2)
	spec.Waves[0].Gate.Metrics = []MetricRule{{Name: "latency_ms", MaxRatio: 1.5, Floor: 2, MinSamples: 5}}
	spec.Waves[0].Soak.Max = Duration(time.Hour)
	for _, bad := range []temper{failing, lateFail, refusing, silent, stuck, slower} {
		t.Run(string(bad), func(t *testing.T) {
			fleet := devices(60)
			fleet[7].Release, fleet[8].Release = "", v0
			w := newWorld(spec, fleet, all(fleet, bad))
			w.run(3000)
			if w.state.Phase != RolledBack {
				t.Fatalf("ended %s: %s", w.state.Phase, w.state.Reason)
			}
			if len(w.offers) > 6 {
				t.Errorf("%d devices were offered the release, the canary has 6", len(w.offers))
			}
			for id, a := range w.actors {
				before := map[string]ota.Digest{"d007": "", "d008": v0}
				want, special := before[id]
				if !special {
					want = v1
				}
				if !a.dead && a.runs != want {
					t.Errorf("%s runs %q, ran %q before", id, a.runs, want)
				}
			}
		})
	}
}

func TestAbortCountsExecutedDevices(t *testing.T) {
	rule := AbortRule{Failure: ota.Failed, Pct: 10, MinExecuted: 10}
	for _, tt := range []struct {
		failed, executed int
		want             bool
	}{{0, 0, false}, {9, 9, false}, {1, 10, true}, {1, 11, false}, {100, 1000, true}, {99, 1000, false}} {
		if got := rule.fires(tt.failed, tt.executed); got != tt.want {
			t.Errorf("%d of %d executed: fires %v, want %v", tt.failed, tt.executed, got, tt.want)
		}
	}
	// Ten of the first hundred of a thousand fail: it stops there and then.
	spec := simple()
	spec.Waves[0].Ramp = Ramp{MaxInFlight: 100}
	spec.Waves[0].Gate.Abort = []AbortRule{{Failure: AnyFailure, Pct: 10, MinExecuted: 50}}
	fleet := devices(1000)
	w := newWorld(spec, fleet, all(fleet, failing))
	w.run(100)
	if w.state.Phase != RolledBack || len(w.offers) > 100 {
		t.Errorf("%s after %d offers", w.state.Phase, len(w.offers))
	}
}

func TestRejected(t *testing.T) {
	spec := simple()
	spec.Retry = Retry{PerFailure: map[ota.FailureClass]Count{ota.Failed: 3, ota.TimedOut: 3}, Backoff: Duration(time.Second)}
	fleet := devices(3)
	fleet[2].Incompatible = "no engine for sm=7.2"
	w := newWorld(spec, fleet, map[string]temper{"d001": refusing})
	w.run(200)
	if w.state.Phase != Succeeded || w.offers["d001"] != 1 || w.offers["d002"] != 0 {
		t.Errorf("%s; offers %v", w.state.Phase, w.offers)
	}
	if e := w.state.Exec["d002"]; e.Class != ota.Rejected || e.Executed() {
		t.Errorf("the incompatible device is %+v", e)
	}
}

func TestRetry(t *testing.T) {
	spec := simple()
	spec.Retry = Retry{PerFailure: map[ota.FailureClass]Count{ota.Failed: 2}, Backoff: Duration(time.Minute)}
	w := newWorld(spec, devices(1), map[string]temper{"d000": failing})
	w.run(200)
	if w.offers["d000"] != 3 || w.count(Withdraw) != 1 {
		t.Errorf("%d offers, %d withdrawn", w.offers["d000"], w.count(Withdraw))
	}
	if gap := w.times[2] - w.times[1]; gap < 2*time.Minute {
		t.Errorf("third attempt %s after the second, want the backoff doubled", gap)
	}
	spec.Retry.FleetBudget = 1
	w = newWorld(spec, devices(4), all(devices(4), failing))
	w.run(200)
	if w.count(RetryLater) != 1 {
		t.Errorf("%d retries on a fleet budget of 1", w.count(RetryLater))
	}
}

func TestOfflinePolicies(t *testing.T) {
	run := func(o Offline) *world {
		spec := simple()
		spec.Waves[0].Timeout.Offline = o
		fleet := devices(4)
		fleet[1].Online = false
		return newWorld(spec, fleet, nil).run(100)
	}
	if w := run(OfflineWait); w.state.Phase != Running || w.state.Exec["d001"].Status != Queued {
		t.Errorf("wait: %s, device %s", w.state.Phase, w.state.Exec["d001"].Status)
	}
	if w := run(OfflineSkip); w.state.Phase != Succeeded || w.state.Exec["d001"].Status != Skipped {
		t.Errorf("skip: %s, device %s", w.state.Phase, w.state.Exec["d001"].Status)
	}
	if w := run(OfflineCount); w.state.Exec["d001"].Class != ota.TimedOut || !w.state.Exec["d001"].Executed() {
		t.Errorf("count: device %+v", w.state.Exec["d001"])
	}
}

func TestSkippedDeviceJoinsAgain(t *testing.T) {
	spec := simple()
	spec.Waves[0].Soak.Min = Duration(time.Hour)
	fleet := devices(4)
	fleet[1].Online = false
	w := newWorld(spec, fleet, nil).run(100)
	if w.state.Exec["d001"].Status != Skipped {
		t.Fatalf("device is %s", w.state.Exec["d001"].Status)
	}
	w.setOnline("d001", true)
	w.run(1000)
	if w.state.Phase != Succeeded || w.actors["d001"].runs != v2 {
		t.Errorf("%s; device runs %s", w.state.Phase, w.actors["d001"].runs.Short())
	}
}

func TestSilentDeviceCountsAsFailure(t *testing.T) {
	w := newWorld(simple(), devices(3), map[string]temper{"d001": silent})
	w.run(30)
	e := w.state.Exec["d001"]
	if e.Class != ota.Silent || !e.Executed() || !e.Withdrawn {
		t.Errorf("%+v", e)
	}
}

func TestStepTimeout(t *testing.T) {
	spec := simple()
	spec.Waves[0].Timeout.Step = Duration(time.Minute)
	w := newWorld(spec, devices(1), map[string]temper{"d000": stuck})
	w.run(12)
	if e := w.state.Exec["d000"]; e.Class != ota.TimedOut || !strings.Contains(e.Detail, "step fetch") {
		t.Errorf("%+v", e)
	}
}

func TestRampSlots(t *testing.T) {
	tests := []struct {
		r    Ramp
		want []int // after 0, 1, 2, 5, 10, 100 successes
	}{
		{Ramp{Kind: RampFixed, Initial: 3}, []int{3, 3, 3, 3, 3, 3}},
		{Ramp{Kind: RampFixed, MaxInFlight: 7}, []int{7, 7, 7, 7, 7, 7}},
		{Ramp{Kind: RampLinear, Initial: 1, Factor: 1}, []int{1, 2, 2, 3, 5, 14}},
		{Ramp{Kind: RampExponential, Initial: 2, Factor: 2}, []int{2, 2, 4, 4, 8, 64}},
		{Ramp{Kind: RampExponential, Initial: 2, Factor: 2, MaxInFlight: 5}, []int{2, 2, 4, 4, 5, 5}},
		{Ramp{Kind: RampExponential, Initial: 1, Factor: 1.01}, []int{1, 2, 2, 3, 5, 14}},
	}
	for _, tt := range tests {
		var got []int
		for _, n := range []int{0, 1, 2, 5, 10, 100} {
			got = append(got, tt.r.slots(n))
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%+v: %s", tt.r, diff)
		}
	}
}

func TestRatePerMinute(t *testing.T) {
	spec := simple()
	spec.Waves[0].Ramp = Ramp{MaxPerMinute: 4}
	w := newWorld(spec, devices(20), nil)
	w.run(500)
	if w.state.Phase != Succeeded || w.times[19]-w.times[0] < 4*time.Minute {
		t.Errorf("%s, 20 offers at 4 a minute took %s", w.state.Phase, w.times[19]-w.times[0])
	}
}

func TestManualApproval(t *testing.T) {
	spec := simple()
	spec.Waves[0].PerTarget = 1
	spec.Waves[0].Gate.Approval = ApprovalManual
	spec.Waves = append(spec.Waves, Wave{Name: "rest"})
	w := newWorld(spec, devices(9), nil)
	w.do(Decision{Kind: Approve, Reason: "too early"})
	w.run(100)
	if w.state.Wave != 0 || w.state.Waves[0].Verdict != gate.Pass {
		t.Fatalf("wave %d, verdict %s", w.state.Wave, w.state.Waves[0].Verdict)
	}
	if lines := strings.Join(Explain(w.spec, w.state, w.fleet, w.evidence(), w.now, ""), "\n"); !strings.Contains(lines, "approval") {
		t.Errorf("explain does not name the approval:\n%s", lines)
	}
	w.do(Decision{Kind: Approve, Reason: "by ann"})
	w.run(100)
	if w.state.Phase != Succeeded {
		t.Errorf("%s after the approval", w.state.Phase)
	}
}

func TestNoEvidencePausesAndApprovalGoesOn(t *testing.T) {
	spec := simple()
	spec.Waves[0].Gate.Metrics = []MetricRule{{Name: "nothing_measures_this", MaxRatio: 2}}
	w := newWorld(spec, devices(4), nil)
	w.run(50)
	if w.state.Phase != Paused || w.count(Pause) != 1 {
		t.Fatalf("%s after %d pauses", w.state.Phase, w.count(Pause))
	}
	w.do(Decision{Kind: Resume, Reason: "look again"})
	w.run(50)
	if w.state.Phase != Paused || w.count(Pause) != 2 {
		t.Fatalf("%s after %d pauses: a resume looks again, and finds nothing", w.state.Phase, w.count(Pause))
	}
	w.do(Decision{Kind: Approve, Reason: "by ann"})
	w.run(5)
	if w.state.Phase != Succeeded || !slices.Contains(w.state.Waves[0].Reasons, "approved by a person") {
		t.Errorf("%s: %v", w.state.Phase, w.state.Waves[0].Reasons)
	}
}

func TestAbortPolicies(t *testing.T) {
	for _, tt := range []struct {
		on     OnAbort
		phase  Phase
		back   int // devices that run v1 at the end, of 8; 4 were in flight
		reason string
	}{
		{OnAbort{}, RolledBack, 8, "8 run again"},
		{OnAbort{Done: AbortKeep}, Aborted, 4, "4 keep it"},
		{OnAbort{Done: AbortKeep, InProgress: AbortFinish}, Aborted, 0, "8 keep it"},
		{OnAbort{InProgress: AbortFinish}, RolledBack, 8, "8 run again"},
	} {
		spec := simple()
		spec.OnAbort = tt.on
		spec.Waves[0].Ramp.MaxInFlight = 4
		w := newWorld(spec, devices(12), nil)
		for w.state.Phase != Running || len(w.offers) < 8 {
			w.step()
		}
		w.step() // the second four answer
		w.do(Decision{Kind: Abort, Reason: "by ann"})
		w.run(200)
		back := 0
		for id := range w.offers {
			if w.actors[id].runs == v1 {
				back++
			}
		}
		if w.state.Phase != tt.phase || back != tt.back || !strings.Contains(w.state.Reason, tt.reason) || len(w.offers) != 8 {
			t.Errorf("%+v: %s with %d back: %s", tt.on, w.state.Phase, back, w.state.Reason)
		}
	}
}

func TestRollbackThatNobodyAnswersEnds(t *testing.T) {
	w := newWorld(simple(), devices(3), nil)
	w.run(4)
	for id := range w.actors {
		w.setOnline(id, false)
	}
	w.do(Decision{Kind: Abort, Reason: "by ann"})
	w.run(200)
	if w.state.Phase != RolledBack || !strings.Contains(w.state.Reason, "3 have not confirmed") {
		t.Errorf("%s: %s", w.state.Phase, w.state.Reason)
	}
}

func TestRollbackTo(t *testing.T) {
	spec := simple()
	spec.RollbackTo = string(v0)
	spec.Waves[0].Soak.Min = Duration(time.Hour)
	w := newWorld(spec, devices(3), nil)
	w.run(20)
	w.do(Decision{Kind: Abort, Reason: "by ann"})
	w.run(20)
	for id, a := range w.actors {
		if a.runs != v0 {
			t.Errorf("%s runs %s", id, a.runs.Short())
		}
	}
}

func TestSuperseded(t *testing.T) {
	spec := simple()
	spec.Waves[0].Ramp.MaxInFlight = 1
	w := newWorld(spec, devices(3), all(devices(3), slow))
	w.run(2)
	for i := range w.fleet {
		w.fleet[i].Newer = "r2"
	}
	w.step()
	if w.state.Phase != Succeeded || w.count(MarkSuperseded) != 3 || w.count(Withdraw) != 0 {
		t.Errorf("%s, %d superseded, %d withdrawn", w.state.Phase, w.count(MarkSuperseded), w.count(Withdraw))
	}
}

func TestSerialWaitsForTheOlder(t *testing.T) {
	spec := simple()
	spec.Supersede = SupersedeSerial
	w := newWorld(spec, devices(2), nil)
	w.fleet[0].Older = "r0"
	w.run(20)
	if w.offers["d000"] != 0 || w.offers["d001"] != 1 {
		t.Fatalf("offers %v", w.offers)
	}
	if got := Explain(w.spec, w.state, w.fleet, w.evidence(), w.now, "d000")[0]; !strings.Contains(got, "r0") {
		t.Errorf("explain: %s", got)
	}
	w.fleet[0].Older = ""
	w.run(20)
	if w.state.Phase != Succeeded {
		t.Errorf("%s", w.state.Phase)
	}
}

func TestLateJoiners(t *testing.T) {
	run := func(j Joiners) *world {
		spec := simple()
		spec.LateJoiners = j
		spec.Waves[0].Ramp.MaxInFlight = 1
		fleet := devices(4)
		w := newWorld(spec, fleet[:2], all(fleet, slow))
		w.run(3)
		for _, d := range fleet[2:] {
			w.fleet = append(w.fleet, d)
			w.actors[d.ID] = &actor{temper: slow, runs: v1, desired: v1, left: -1}
		}
		w.step()
		return w
	}
	if w := run(JoinRamp); len(w.offers) != 1 || w.run(500).state.Phase != Succeeded || len(w.offers) != 4 {
		t.Errorf("ramp: offers %v", w.offers)
	}
	if w := run(JoinImmediate); len(w.offers) != 3 {
		t.Errorf("immediate: offers %v", w.offers)
	}
	if w := run(JoinNever); w.run(500).state.Phase != Succeeded || len(w.offers) != 2 {
		t.Errorf("never: offers %v", w.offers)
	}
}

func TestEmptyWavesPassAndAreReported(t *testing.T) {
	spec := Spec{Release: v2, Waves: []Wave{
		{Name: "nobody", Selector: Selector{Labels: map[string]string{"ring": "early"}}},
		{Name: "all"},
	}}
	w := newWorld(spec, devices(3), nil).run(100)
	if w.state.Phase != Succeeded {
		t.Fatalf("%s: %s", w.state.Phase, w.state.Reason)
	}
	if r := w.state.Waves[0].Reasons; len(r) != 1 || !strings.Contains(r[0], "empty") {
		t.Errorf("reported %q", r)
	}
	w = newWorld(spec, nil, nil).run(10)
	if w.state.Phase != Succeeded {
		t.Errorf("without a fleet: %s", w.state.Phase)
	}
}

func TestDevicesThatRunItAlreadyAreLeftAlone(t *testing.T) {
	fleet := devices(6)
	fleet[0].Release = v2
	w := newWorld(simple(), fleet, nil)
	w.run(4)
	w.do(Decision{Kind: Abort, Reason: "by ann"})
	w.run(100)
	if w.offers["d000"] != 0 || w.actors["d000"].runs != v2 || w.state.Phase != RolledBack {
		t.Errorf("%s; %v", w.state.Phase, w.offers)
	}
}

func TestDeviceThatLeftTheFleet(t *testing.T) {
	w := newWorld(simple(), devices(3), all(devices(3), slow))
	w.run(3)
	w.fleet = w.fleet[:2]
	w.run(200)
	if w.state.Phase != Succeeded || w.state.Exec["d002"].Status != Skipped {
		t.Errorf("%s, device %s", w.state.Phase, w.state.Exec["d002"].Status)
	}
}

func TestStratifiedShare(t *testing.T) {
	var fleet []*Device
	for i, site := range []string{"a", "a", "a", "a", "a", "a", "b", "b", "b", "c"} {
		fleet = append(fleet, &Device{ID: fmt.Sprint(i), Labels: map[string]string{"site": site}})
	}
	for n, want := range map[int]string{1: "a", 3: "aab", 5: "aaabb", 7: "aaaabbc", 10: "aaaaaabbbc"} {
		var got strings.Builder
		for _, d := range pick(fleet, n, []string{"site"}) {
			got.WriteString(d.Labels["site"])
		}
		if n != 5 && got.String() != want || len(got.String()) != n {
			t.Errorf("%d: %s, want %s", n, got.String(), want)
		}
	}
}

func TestStateSurvivesJSON(t *testing.T) {
	w := newWorld(Default(v2), devices(30), map[string]temper{"d003": failing, "d004": silent})
	for range 80 {
		w.step()
		b, err := json.Marshal(w.state)
		if err != nil {
			t.Fatal(err)
		}
		var back State
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Plan(w.spec, w.state, w.fleet, w.evidence(), w.now.Add(time.Hour)),
			Plan(w.spec, back, w.fleet, w.evidence(), w.now.Add(time.Hour))); diff != "" {
			t.Fatal(diff)
		}
		w.state = back
	}
}

func TestApplyAndObserveLeaveTheirInputAlone(t *testing.T) {
	w := newWorld(simple(), devices(3), nil)
	before, _ := json.Marshal(w.state)
	next := Apply(w.state, w.plan()...)
	next2 := Observe(next, Report{Device: "d000", At: w.now, Status: Healthy})
	if after, _ := json.Marshal(w.state); string(after) != string(before) {
		t.Error("Apply changed its input")
	}
	if next.Exec["d000"].Status != Offered || next2.Exec["d000"].Status != Healthy {
		t.Errorf("%s, then %s", next.Exec["d000"].Status, next2.Exec["d000"].Status)
	}
}

// A control plane that was away for hours blames nobody for the silence.
func TestOutageBlamesNobody(t *testing.T) {
	run := func(tell bool) *world {
		spec := simple()
		spec.Waves[0].Soak.Min = Duration(time.Hour)
		spec.Waves[0].Gate.Abort = []AbortRule{{Failure: ota.Silent, Count: 1}}
		w := newWorld(spec, devices(5), all(devices(5), slow))
		w.run(3)
		w.now = w.now.Add(5 * time.Hour)
		if tell {
			w.do(Decision{Kind: Outage, Wait: 5 * time.Hour, Reason: "restarted"})
		}
		w.conduct()
		return w.run(1000)
	}
	if w := run(true); w.state.Phase != Succeeded {
		t.Errorf("%s: %s", w.state.Phase, w.state.Reason)
	}
	if w := run(false); w.count(MarkTimedOut) == 0 {
		t.Error("without the outage nobody times out: the test shows nothing")
	}
}

func TestChangedSpecIsRefused(t *testing.T) {
	w := newWorld(simple(), devices(2), nil)
	w.run(2)
	if ds := Plan(Default(v2), w.state, w.fleet, Evidence{}, w.now); ds != nil {
		t.Errorf("decided %v", ds)
	}
	if lines := Explain(Default(v2), w.state, w.fleet, Evidence{}, w.now, "d000"); !strings.Contains(lines[0], "new rollout") {
		t.Errorf("explained %q", lines)
	}
}

// Even a spec that nobody validated cannot retry what must not be retried.
func TestRejectedIsNeverRetriedWhateverTheSpecSays(t *testing.T) {
	spec := simple()
	spec.Retry.PerFailure = map[ota.FailureClass]Count{ota.Rejected: 5, ota.Silent: 5}
	w := newWorld(spec, devices(2), map[string]temper{"d000": refusing, "d001": silent})
	w.run(200)
	if w.count(Offer) != 2 || w.count(RetryLater) != 0 {
		t.Errorf("%d offers, %d retries", w.count(Offer), w.count(RetryLater))
	}
}

func TestCanaryPrefersDevicesThatAreOnline(t *testing.T) {
	spec := simple()
	spec.Waves[0].Limit = Devices(4)
	fleet := devices(40)
	for i := range fleet {
		fleet[i].Online = i%10 == 0
	}
	for id, e := range newWorld(spec, fleet, nil).run(1).state.Exec {
		if !strings.HasSuffix(id, "0") {
			t.Errorf("%s was drawn and is offline: %+v", id, e)
		}
	}
}

func TestResumeAfterNoEvidenceSoaksAgain(t *testing.T) {
	spec := simple()
	spec.Waves[0].Soak.Min = Duration(10 * time.Minute)
	spec.Waves[0].Gate.Metrics = []MetricRule{{Name: "nothing_measures_this", MaxRatio: 2}}
	w := newWorld(spec, devices(2), nil)
	for w.count(Pause) == 0 {
		w.step()
	}
	w.do(Decision{Kind: Resume, Reason: "look again"})
	at := w.state.Clock(w.now)
	for w.count(Pause) == 1 {
		w.step()
	}
	if took := w.state.Clock(w.now) - at; took < 10*time.Minute {
		t.Errorf("judged again after %s", took)
	}
}

// What a device says of an earlier attempt changes nothing now.
func TestReportOfAnEarlierAttempt(t *testing.T) {
	s := New("r")
	s.Apply(Decision{Kind: Assign, At: epoch, Waves: 1, Assign: []Assignment{{Device: "a"}}})
	s.Apply(Decision{Kind: StartWave, At: epoch})
	offer := Decision{Kind: Offer, At: epoch, Device: "a", Release: v2, Before: v1}
	fail := Report{Device: "a", At: epoch, Attempt: 1, Status: FailedState}
	s.Apply(offer)
	s.Observe(fail)
	s.Apply(Decision{Kind: RetryLater, At: epoch, Device: "a"})
	s.Apply(offer)
	if s.Observe(fail) || s.Exec["a"].Status != Offered {
		t.Errorf("the second attempt is %s after a late word on the first", s.Exec["a"].Status)
	}
	if fail.Attempt = 2; !s.Observe(fail) || s.Exec["a"].Class != ota.Failed {
		t.Errorf("the second attempt is %s", s.Exec["a"].Status)
	}
	if s.Observe(Report{Device: "stranger", At: epoch, Status: Done}) {
		t.Error("a device that is not part of the rollout changed it")
	}
}

// What a person reads of a stopped rollout names devices, causes and units.
func TestReasonsAreForPeople(t *testing.T) {
	spec := simple()
	spec.Waves[0].Gate.Abort = []AbortRule{{Failure: AnyFailure, Count: 1}}
	fleet := devices(4)
	for i := range fleet {
		fleet[i].Labels = map[string]string{"name": fmt.Sprintf("jetson-%d", i)}
	}
	w := newWorld(spec, fleet, all(fleet, refusing))
	w.run(100)
	if r := w.state.Reason; w.state.Phase != RolledBack || !strings.Contains(r, "devices that finished failed (limit: 1); for example jetson-") ||
		!strings.Contains(r, "REJECTED: ") || strings.Contains(r, "have not confirmed") {
		t.Errorf("%s: %s", w.state.Phase, r)
	}
	for name, want := range map[string]string{"skein_inference_latency_p50_seconds": "seconds", `x_bytes{model="a_b"}`: "bytes", "skein_fps": "", "seconds": "seconds", "requests_total": ""} {
		if got := (MetricRule{Name: name}).unit(); got != want {
			t.Errorf("%s: unit %q, want %q", name, got, want)
		}
	}
}
