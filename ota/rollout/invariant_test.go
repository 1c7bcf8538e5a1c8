package rollout

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
)

// An invariant looks at a decision before it is applied.
type invariant func(w *world, d Decision) error

// onDecision holds for every decision in every run.
var onDecision = map[string]invariant{
	"budget holds in every group":               budgetHolds,
	"an accepted device holds its slot":         slotHeldUntilHealthy,
	"the rate per minute holds":                 rateHolds,
	"offers come from the wave that runs":       offersInWaveOrder,
	"rejected is never retried":                 rejectedNeverRetried,
	"newest supersedes":                         newestSupersedes,
	"serial waits for the older rollout":        serialWaits,
	"one offer for each assignment or retry":    nothingRepeated,
	"what is taken back is what ran before":     restoresWhatRanBefore,
	"no offer after an abort":                   noHarmAfterAbort,
	"an abort has its reason in executed ones":  abortOverExecuted,
	"nothing but people's acts while paused":    pausedDecidesNothing,
	"only devices in the selection are touched": onlySelected,
	"every decision has a reason":               hasReason,
	"no offer outside the device's window":      noOfferOutside,
	"who waits for a window does not time out":  waitingIsNotLate,
}

func noOfferOutside(w *world, d Decision) error {
	for _, o := range w.fleet {
		if d.Kind == Offer && o.ID == d.Device && o.Outside != "" {
			return errors.New(o.Outside)
		}
	}
	return nil
}

func waitingIsNotLate(w *world, d Decision) error {
	for _, o := range w.fleet {
		if e := w.state.Exec[o.ID]; d.Kind == MarkTimedOut && o.ID == d.Device && o.Online && e.InFlight() && e.Waits != "" {
			return fmt.Errorf("it %s since %s", e.Waits, e.WaitsAt)
		}
	}
	return nil
}

func budgetHolds(w *world, d Decision) error {
	if d.Kind != Offer {
		return nil
	}
	b := w.spec.Waves[d.Wave].Budget
	var me *Device
	for i := range w.fleet {
		if w.fleet[i].ID == d.Device {
			me = &w.fleet[i]
		}
	}
	total, down := 0, 0
	for i := range w.fleet {
		o := &w.fleet[i]
		e, member := w.state.Exec[o.ID]
		if !member || o.values(b.GroupBy) != me.values(b.GroupBy) {
			continue
		}
		total++
		if o.ID == d.Device || !o.Online || e.Status == Offered || e.Status == Accepted || e.Status == RollingBack {
			down++
		}
	}
	if m := b.MaxUnavailable; !m.IsZero() && down > m.Down(total) {
		return fmt.Errorf("%d of %d unavailable in its group, at most %s", down, total, m)
	}
	if m := b.MinAvailable; !m.IsZero() && total-down < m.Up(total) {
		return fmt.Errorf("%d of %d available in its group, at least %s", total-down, total, m)
	}
	return nil
}

// slotHeldUntilHealthy counts from reports and decisions alone: a device is in
// flight from its offer until it says healthy or is known to have failed.
func slotHeldUntilHealthy(w *world, d Decision) error {
	if d.Kind != Offer || w.state.Exec[d.Device].Immediate {
		return nil
	}
	inFlight, ok := 0, 0
	for _, e := range w.state.Exec {
		if (e.Status == Offered || e.Status == Accepted) && e.Waits == "" {
			inFlight++
		}
		if e.Wave == d.Wave && e.Attempts > 0 && (e.Status == Healthy || e.Status == Done) {
			ok++
		}
	}
	r := w.spec.Waves[d.Wave].Ramp
	if r.MaxInFlight > 0 && inFlight >= int(r.MaxInFlight) {
		return fmt.Errorf("%d in flight already, at most %d", inFlight, r.MaxInFlight)
	}
	if limit := int(r.Initial); r.Kind == RampFixed && limit > 0 && inFlight >= limit {
		return fmt.Errorf("%d in flight already, at most %d", inFlight, limit)
	}
	if limit := int(r.Initial); r.Kind != RampFixed && ok < limit && inFlight >= limit {
		return fmt.Errorf("%d in flight after %d successes, the ramp starts from %d", inFlight, ok, limit)
	}
	return nil
}

func rateHolds(w *world, d Decision) error {
	r := w.spec.Waves[d.Wave].Ramp.MaxPerMinute
	if d.Kind != Offer || r == 0 || w.state.Exec[d.Device].Immediate {
		return nil
	}
	n := 1
	for _, t := range w.times {
		if t > w.steady-time.Minute {
			n++
		}
	}
	if n > int(r) {
		return fmt.Errorf("offer %d within a minute, at most %d", n, r)
	}
	return nil
}

func offersInWaveOrder(w *world, d Decision) error {
	if d.Kind != Offer {
		return nil
	}
	if e := w.state.Exec[d.Device]; e.Wave != w.state.Wave || !w.state.Waves[e.Wave].Started {
		return fmt.Errorf("device is in wave %d, wave %d runs", e.Wave, w.state.Wave)
	}
	for i := range w.state.Wave {
		if v := w.state.Waves[i].Verdict; v != gate.Pass {
			return fmt.Errorf("wave %d has verdict %q", i, v)
		}
	}
	return nil
}

func rejectedNeverRetried(w *world, d Decision) error {
	if w.rejected[d.Device] && (d.Kind == Offer || d.Kind == RetryLater) {
		return fmt.Errorf("the device rejected the release")
	}
	return nil
}

func newestSupersedes(w *world, d Decision) error {
	for _, dev := range w.fleet {
		if dev.ID == d.Device && dev.Newer != "" && d.Kind.Sends() {
			return fmt.Errorf("rollout %s has the device", dev.Newer)
		}
	}
	return nil
}

func serialWaits(w *world, d Decision) error {
	for _, dev := range w.fleet {
		if dev.ID == d.Device && d.Kind == Offer && dev.Older != "" && w.spec.Supersede == SupersedeSerial {
			return fmt.Errorf("rollout %s still has the device", dev.Older)
		}
	}
	return nil
}

func nothingRepeated(w *world, d Decision) error {
	if d.Kind == Offer && w.offers[d.Device] >= w.again[d.Device] {
		return fmt.Errorf("%d offers already, %d assignments and retries", w.offers[d.Device], w.again[d.Device])
	}
	return nil
}

func restoresWhatRanBefore(w *world, d Decision) error {
	if d.Kind != Withdraw && d.Kind != Rollback {
		return nil
	}
	before, offered := w.first[d.Device]
	if !offered {
		return fmt.Errorf("it was never offered the release")
	}
	if d.Release != before {
		return fmt.Errorf("it ran %q before", before.Short())
	}
	return nil
}

func noHarmAfterAbort(w *world, d Decision) error {
	aborted := slices.ContainsFunc(w.log, func(d Decision) bool { return d.Kind == Abort })
	if aborted && (d.Kind == Offer || d.Kind == RetryLater || d.Kind == StartWave || d.Kind == Assign) {
		return fmt.Errorf("the rollout was aborted")
	}
	return nil
}

// abortOverExecuted recounts the wave from its executions.
func abortOverExecuted(w *world, d Decision) error {
	if d.Kind != Abort || d.Reason == byPerson {
		return nil
	}
	if w.ruleHolds() || w.state.Waves[w.state.Wave].Verdict == gate.Fail {
		return nil
	}
	return fmt.Errorf("no abort rule holds over executed devices, and no gate failed")
}

// ruleHolds reports whether an abort rule of a started wave is met.
func (w *world) ruleHolds() bool {
	for i := 0; i <= w.state.Wave && i < len(w.state.Waves); i++ {
		for _, r := range w.spec.Waves[i].Gate.Abort {
			executed, failed := 0, 0
			for _, e := range w.state.Exec {
				bad := e.Status == FailedState && e.Class != ota.Superseded && (e.Attempts > 0 || e.Class == ota.TimedOut)
				if e.Wave != i || !bad && !e.Succeeded() {
					continue
				}
				executed++
				if bad && (r.Failure == AnyFailure || r.Failure == e.Class) {
					failed++
				}
			}
			hit := r.Count > 0 && failed >= int(r.Count) || r.Count == 0 && failed*100 >= int(r.Pct)*executed
			if failed > 0 && executed >= int(r.MinExecuted) && hit {
				return true
			}
		}
	}
	return false
}

func pausedDecidesNothing(w *world, d Decision) error {
	if w.state.Phase == Paused && d.Reason != byPerson {
		return fmt.Errorf("the rollout is paused")
	}
	return nil
}

func onlySelected(w *world, d Decision) error {
	m := newMatcher(w.spec.Selector)
	for i := range w.fleet {
		if w.fleet[i].ID == d.Device && !m.match(&w.fleet[i]) {
			return fmt.Errorf("the selector does not match it")
		}
	}
	return nil
}

func hasReason(_ *world, d Decision) error {
	if d.Reason == "" {
		return fmt.Errorf("no reason given")
	}
	return nil
}

const byPerson = "by a person"

// The invariants that hold after each round of planning.
var afterPlan = map[string]func(w *world) error{
	"a plan that was applied decides nothing more": func(w *world) error {
		if more := w.plan(); len(more) > 0 {
			return fmt.Errorf("still %v", more)
		}
		return nil
	},
	"abort reaches everyone queued": func(w *world) error {
		if w.state.Phase != Aborting && w.state.Phase != Aborted && w.state.Phase != RolledBack {
			return nil
		}
		for id, e := range w.state.Exec {
			if e.Status == Queued || e.Status == Offered || e.Status == Skipped {
				return fmt.Errorf("%s is %s", id, e.Status)
			}
		}
		return nil
	},
	"a running rollout meets no abort rule": func(w *world) error {
		if w.state.Phase == Running && w.ruleHolds() {
			return fmt.Errorf("an abort rule is met and the rollout runs on")
		}
		return nil
	},
	"empty waves pass and are reported": func(w *world) error {
		for i, ws := range w.state.Waves {
			if ws.Started && len(ws.Members) == 0 && w.state.Phase != Paused && (ws.Verdict != gate.Pass || len(ws.Reasons) == 0) {
				return fmt.Errorf("wave %d: verdict %q %q", i, ws.Verdict, ws.Reasons)
			}
		}
		return nil
	},
	"a device that went dark after the switch is a failure in time": func(w *world) error {
		for _, d := range w.fleet {
			e := w.state.Exec[d.ID]
			limit := Elapsed(w.spec.Waves[e.Wave].Timeout.Silent)
			if w.state.Phase == Running && e.Switched && e.InFlight() && d.Newer == "" &&
				w.state.Clock(w.now)-max(e.HeardAt, w.state.Clock(d.LastSeen), e.OfferedAt) > limit {
				return fmt.Errorf("%s is %s and was not heard of for more than %s", d.ID, e.Status, limit)
			}
		}
		return nil
	},
	"explain has an answer for everything": func(w *world) error {
		for _, id := range []string{"", w.fleet[w.rng.IntN(len(w.fleet))].ID, "nobody"} {
			lines := Explain(w.spec, w.state, w.fleet, w.evidence(), w.now, id)
			if len(lines) == 0 || slices.Contains(lines, "") {
				return fmt.Errorf("%q: %q", id, lines)
			}
		}
		return nil
	},
}

// TestInvariants lets random rollouts meet random fleets, faults and people,
// and holds every invariant at every decision.
func TestInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, later := genWorld(t)
		w.check = func(w *world, d Decision) error {
			for name, holds := range onDecision {
				if err := holds(w, d); err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
			}
			return nil
		}
		w.conduct()
		for i := 0; i < 150 && !w.state.Phase.Final(); i++ {
			w.chaos(&later)
			w.step()
			for name, holds := range afterPlan {
				if err := holds(w); err != nil && w.err == nil {
					w.err = fmt.Errorf("at %s: %s: %w", w.state.Clock(w.now), name, err)
				}
			}
			if w.err != nil {
				break
			}
		}
		if w.err == nil {
			w.err = w.calm()
		}
		if w.err != nil {
			for _, d := range w.log {
				t.Log(d)
			}
			t.Fatal(w.err)
		}
	})
}

// calm ends the faults: everyone alive comes online, pauses are lifted. Every
// rollout then ends, and a rolled back one leaves what ran before.
func (w *world) calm() error {
	for i := range w.fleet {
		w.setOnline(w.fleet[i].ID, true)
		w.fleet[i].Older, w.fleet[i].Outside = "", ""
		if w.actors[w.fleet[i].ID].temper == stuck {
			w.actors[w.fleet[i].ID].temper = slow
		}
	}
	for range 6000 {
		if w.state.Phase.Final() {
			break
		}
		if w.state.Phase == Paused || w.state.Waves[w.state.Wave].Verdict == gate.Inconclusive {
			w.do(Decision{Kind: Approve, Wave: w.state.Wave, Reason: byPerson})
			w.do(Decision{Kind: Resume, Reason: byPerson})
		}
		w.step()
		if w.err != nil {
			return w.err
		}
	}
	if !w.state.Phase.Final() && !w.blockedByTheDead() {
		return fmt.Errorf("the rollout never ends: %q", Explain(w.spec, w.state, w.fleet, w.evidence(), w.now, ""))
	}
	for range 20 {
		w.step()
	}
	taken := map[string]bool{}
	for _, d := range w.fleet {
		taken[d.ID] = d.Newer != ""
	}
	for id, before := range w.first {
		a, e := w.actors[id], w.state.Exec[id]
		if !taken[id] && !w.left[id] && w.state.Phase == RolledBack && !a.dead && a.runs != before {
			return fmt.Errorf("a rolled back rollout left %s with %q, it ran %q before; %+v", id, a.runs.Short(), before.Short(), e)
		}
	}
	return nil
}

// blockedByTheDead reports whether dead devices use up a budget or are waited for.
func (w *world) blockedByTheDead() bool {
	for id, a := range w.actors {
		if _, member := w.state.Exec[id]; member && a.dead {
			return true
		}
	}
	b := w.spec.Waves[w.state.Wave].Budget
	return !b.MinAvailable.IsZero() // a group of one can never be updated
}

// TestPlanIsPure: the same answer twice, in any order of the fleet, and nothing
// that was handed in changes.
func TestPlanIsPure(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, later := genWorld(t)
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			w.chaos(&later)
			w.step()
		}
		w.now = w.now.Add(time.Duration(rapid.IntRange(0, 600).Draw(t, "later")) * time.Second)
		for i := range w.fleet {
			w.act(&w.fleet[i])
		}
		before, err := json.Marshal([]any{w.spec, w.state, w.fleet})
		if err != nil {
			t.Fatal(err)
		}
		plan := w.plan()
		shuffled := rapid.Permutation(w.fleet).Draw(t, "shuffled")
		if diff := cmp.Diff(plan, Plan(w.spec, w.state, shuffled, w.evidence(), w.now)); diff != "" {
			t.Fatalf("the order of the fleet matters: %s", diff)
		}
		if after, _ := json.Marshal([]any{w.spec, w.state, w.fleet}); string(after) != string(before) {
			t.Fatal("Plan changed what it was given")
		}
	})
}

// TestPauseKeepsClocks: a pause in which the fleet stands still changes nothing
// but the time of day: the same decisions follow at the same rollout clock.
func TestPauseKeepsClocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Custom(func(t *rapid.T) *world { w, _ := genWorld(t); return w }).Draw(t, "world")
		at := rapid.IntRange(0, 60).Draw(t, "at")
		length := time.Duration(rapid.IntRange(1, 100000).Draw(t, "pause")) * time.Second
		run := func(pause bool) (lines []string) {
			ts := map[string]temper{}
			for id, a := range seed.actors {
				ts[id] = a.temper
			}
			w := newWorld(seed.spec, slices.Clone(seed.fleet), ts)
			w.check = func(w *world, d Decision) error {
				if d.Reason != byPerson {
					lines = append(lines, fmt.Sprint(w.state.Clock(w.now), " ", d))
				}
				return nil
			}
			w.conduct()
			for i := range 120 {
				if i == at && pause && w.state.Phase == Running {
					w.do(Decision{Kind: Pause, Reason: byPerson})
					w.now = w.now.Add(length)
					w.conduct()
					for j := range w.fleet { // they were there all the time
						if d := &w.fleet[j]; d.Online {
							d.LastSeen = w.now
						}
					}
					w.do(Decision{Kind: Resume, Reason: byPerson})
				}
				w.step()
			}
			return lines
		}
		if diff := cmp.Diff(run(false), run(true)); diff != "" {
			t.Fatalf("a pause of %s changed the rollout: %s", length, diff)
		}
	})
}

// TestPreviewIsWhatHappens: the waves that Preview shows are the waves drawn.
func TestPreviewIsWhatHappens(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, _ := genWorld(t)
		look := Preview("r1", w.spec, w.fleet)
		w.conduct()
		for i, wave := range look.Waves {
			var shown []string
			for _, target := range wave.Targets {
				shown = append(shown, target.Devices...)
			}
			var drawn []string
			for _, a := range w.log[0].Assign {
				if d := w.fleet[slices.IndexFunc(w.fleet, func(d Device) bool { return d.ID == a.Device })]; a.Wave == i && !a.Already && d.Incompatible == "" {
					drawn = append(drawn, a.Device)
				}
			}
			slices.Sort(shown)
			slices.Sort(drawn)
			if !slices.Equal(shown, drawn) || wave.Devices != len(shown) {
				t.Fatalf("wave %d: preview shows %v, drawn are %v", i, shown, drawn)
			}
		}
	})
}
