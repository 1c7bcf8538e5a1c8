package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
)

// Plan returns what is to be done now, in order. It changes none of its
// arguments. The order of the fleet does not matter; a device listed twice
// counts as listed last.
func Plan(spec Spec, state State, fleet []Device, evidence Evidence, now time.Time) []Decision {
	p := newPlanner(spec, state, fleet, evidence, now)
	if p.otherSpec() {
		return nil // Explain says why
	}
	switch state.Phase {
	case Pending:
		p.begin()
		p.run()
	case Running:
		p.run()
	case Aborting:
		p.unwind()
	}
	return p.out
}

type planner struct {
	spec  Spec
	st    *State // working copy: each decision is applied as it is made
	fleet []Device
	dev   map[string]*Device
	ev    Evidence
	now   time.Time
	clock Elapsed
	sel   *matcher
	waves []*matcher
	rows  [][]row // by wave, filled on use
	out   []Decision
}

// row is one member of a wave with its device and its record as they were when
// planning began.
type row struct {
	id string
	d  *Device // nil: left the fleet
	e  Exec
}

// members returns the rows of a wave.
func (p *planner) members(w int) []row {
	for len(p.rows) <= w {
		p.rows = append(p.rows, nil)
	}
	ids := p.st.Waves[w].Members
	if p.rows[w] == nil {
		p.rows[w] = make([]row, 0, len(ids))
	}
	for _, id := range ids[len(p.rows[w]):] {
		e, _ := p.st.get(id)
		p.rows[w] = append(p.rows[w], row{id, p.dev[id], e})
	}
	return p.rows[w]
}

// exec returns the record of a member as it is now.
func (p *planner) exec(r *row) Exec {
	if len(p.st.over) > 0 {
		if e, changed := p.st.over[r.id]; changed {
			return e
		}
	}
	return r.e
}

func newPlanner(spec Spec, state State, fleet []Device, evidence Evidence, now time.Time) *planner {
	p := &planner{spec: spec.Normalize(), st: state.overlay(), fleet: fleet, ev: evidence, now: now,
		clock: state.Clock(now), sel: newMatcher(spec.Selector), dev: make(map[string]*Device, len(fleet))}
	for i := range fleet {
		p.dev[fleet[i].ID] = &fleet[i]
	}
	for _, w := range spec.Waves {
		p.waves = append(p.waves, newMatcher(w.Selector))
	}
	return p
}

// otherSpec reports whether the rollout was started with another spec: a changed
// spec is a new rollout.
func (p *planner) otherSpec() bool {
	return p.st.Phase != Pending && p.st.Phase != Aborted && len(p.st.Waves) != len(p.spec.Waves)
}

// emit makes a decision if it fits the state.
func (p *planner) emit(d Decision) {
	d.At = p.now
	if p.st.Apply(d) {
		p.out = append(p.out, d)
	}
}

func (p *planner) run() {
	p.join()
	for p.st.Phase == Running && p.st.Wave < len(p.st.Waves) {
		p.tend()
		if reason := p.mustAbort(); reason != "" {
			p.emit(Decision{Kind: Abort, Wave: p.st.Wave, Reason: reason})
			p.unwind()
			return
		}
		p.offer()
		if !p.judge() {
			return
		}
	}
}

// begin assigns the fleet to waves and starts the first one.
func (p *planner) begin() {
	assigned := p.assignment()
	p.emit(Decision{Kind: Assign, Waves: len(p.spec.Waves), Assign: assigned,
		Reason: fmt.Sprintf("started: %d devices in %d waves", len(assigned), len(p.spec.Waves))})
	p.startWave(0)
}

func (p *planner) startWave(w int) {
	n := len(p.st.Waves[w].Members)
	reason := fmt.Sprintf("wave %q starts with %d devices", p.spec.Waves[w].Name, n)
	if n == 0 {
		reason = fmt.Sprintf("wave %q starts and is empty", p.spec.Waves[w].Name)
	}
	p.emit(Decision{Kind: StartWave, Wave: w, Reason: reason})
}

// join takes in devices that match since the start, and skipped ones that are
// back. They queue behind the others, in the order of the draw.
func (p *planner) join() {
	if p.spec.LateJoiners == JoinNever || p.st.Phase != Running {
		return
	}
	var late []*Device
	for i := range p.fleet {
		d := &p.fleet[i]
		e, known := p.st.get(d.ID)
		if p.dev[d.ID] != d || known && (e.Status != Skipped || !d.Online) || !p.sel.match(d) {
			continue
		}
		late = append(late, d)
	}
	if len(late) == 0 {
		return
	}
	var as []Assignment
	for _, d := range p.draw(late) {
		w := p.openWave(d)
		e, known := p.st.get(d.ID)
		switch {
		case known && e.Wave == p.st.Wave:
			as = append(as, Assignment{Device: d.ID, Wave: e.Wave})
		case !known && p.spec.LateJoiners == JoinImmediate:
			as = append(as, Assignment{Device: d.ID, Wave: p.st.Wave, Immediate: true, Already: d.Release == p.spec.Release})
		case w >= 0:
			as = append(as, Assignment{Device: d.ID, Wave: w, Already: d.Release == p.spec.Release})
		}
	}
	if len(as) > 0 {
		p.emit(Decision{Kind: Assign, Wave: p.st.Wave, Assign: as, Reason: fmt.Sprintf("%d devices joined late", len(as))})
	}
}

// openWave returns the last wave that is not over, takes every device and
// matches d, or -1.
func (p *planner) openWave(d *Device) int {
	for w := len(p.spec.Waves) - 1; w >= p.st.Wave; w-- {
		if spec := p.spec.Waves[w]; spec.Limit.IsZero() && spec.PerTarget == 0 && p.waves[w].match(d) {
			return w
		}
	}
	return -1
}

// tally counts the devices of a wave.
type tally struct {
	members, eligible, queued, inFlight, succeeded, executed, skipped, already int
	failed                                                                     map[ota.FailureClass]int
	waiting                                                                    int    // of those in flight
	waits                                                                      string // what the first of them waits for
}

// open reports whether a device of the wave has not settled. Those that have
// not are mostly at the end.
func (p *planner) open(w int) bool {
	rows := p.members(w)
	for i := range slices.Backward(rows) {
		if e := p.exec(&rows[i]); e.Wave == w && (e.Status == Queued || e.InFlight()) {
			return true
		}
	}
	return false
}

func (p *planner) tally(w int) tally {
	t := tally{failed: map[ota.FailureClass]int{}}
	rows := p.members(w)
	for i := range rows {
		e := p.exec(&rows[i])
		if e.Wave != w {
			continue // moved on to a later wave
		}
		t.members++
		t.eligible++
		switch {
		case e.Status == Queued:
			t.queued++
		case e.InFlight():
			t.inFlight++
			if e.Waits != "" {
				t.waiting++
				t.waits = cmp.Or(t.waits, e.Waits)
			}
		case e.Status == Done && e.Attempts == 0:
			t.already++
			t.eligible--
		case e.Succeeded():
			t.succeeded++
			t.executed++
		case e.Executed():
			t.executed++
			t.failed[e.Class]++
			t.failed[AnyFailure]++
		case e.Status == FailedState:
			t.eligible-- // could never have it, or a newer rollout took it
		case e.Status == Skipped:
			t.skipped++
		}
	}
	return t
}

// mustAbort returns why the rollout must stop, or nothing.
func (p *planner) mustAbort() string {
	for w := 0; w <= p.st.Wave; w++ {
		if len(p.spec.Waves[w].Gate.Abort) == 0 {
			continue
		}
		t := p.tally(w)
		for _, r := range p.spec.Waves[w].Gate.Abort {
			if n := t.failed[r.Failure]; r.fires(n, t.executed) {
				return fmt.Sprintf("wave %q: %d of %d devices that finished %s (limit: %s)%s", p.spec.Waves[w].Name,
					n, t.executed, className(r.Failure), r.limit(), p.forExample(w, r.Failure))
			}
		}
	}
	w := p.st.Wave
	if p.st.Waves[w].Verdict == gate.Fail {
		return fmt.Sprintf("wave %q failed its gate", p.spec.Waves[w].Name)
	}
	for i, res := range p.metrics(w) {
		if res.Verdict == gate.Fail {
			reason := fmt.Sprintf("metric %s: %s", p.spec.Waves[w].Gate.Metrics[i].Name, res.Reason)
			p.emit(Decision{Kind: WaveVerdict, Wave: w, Verdict: gate.Fail, Reasons: []string{reason}, Reason: reason})
			return fmt.Sprintf("wave %q failed its gate: %s", p.spec.Waves[w].Name, reason)
		}
	}
	return ""
}

func (r AbortRule) fires(failed, executed int) bool {
	if failed == 0 || executed < int(r.MinExecuted) {
		return false
	}
	if r.Count > 0 {
		return failed >= int(r.Count)
	}
	return 100*float64(failed) >= r.Pct*float64(executed)
}

func (r AbortRule) limit() string {
	if r.Count > 0 {
		return fmt.Sprintf("%d", r.Count)
	}
	if r.MinExecuted <= 1 {
		return fmt.Sprintf("%g %%", r.Pct)
	}
	return fmt.Sprintf("%g %%, from %d devices on", r.Pct, r.MinExecuted)
}

func className(c ota.FailureClass) string {
	if c == AnyFailure {
		return "failed"
	}
	return "ended " + string(c)
}

// forExample says how the first device of a wave failed that did so with a
// cause, for the reason of an abort.
func (p *planner) forExample(w int, c ota.FailureClass) string {
	rows := p.members(w)
	for i := range rows {
		e := p.exec(&rows[i])
		if e.Wave == w && e.Executed() && e.Status == FailedState && (c == AnyFailure || c == e.Class) && e.Detail != "" {
			return fmt.Sprintf("; for example %s, %s: %.200s", p.called(rows[i].id), e.Class, e.Detail)
		}
	}
	return ""
}

// called is a device's name, and its id when it has none.
func (p *planner) called(id string) string {
	if d := p.dev[id]; d != nil && d.Labels["name"] != "" {
		return d.Labels["name"]
	}
	return id
}

// metrics judges each metric rule of a wave over the devices that succeeded.
func (p *planner) metrics(w int) []gate.Result {
	rules := p.spec.Waves[w].Gate.Metrics
	if len(rules) == 0 {
		return nil
	}
	ids, due := p.settledOK(w)
	out := make([]gate.Result, len(rules))
	for i, r := range rules {
		samples := make([]gate.Sample, 0, len(ids))
		for _, id := range ids {
			samples = append(samples, gate.Sample{Device: p.called(id), Pair: p.ev.Metrics[r.Name][id]})
		}
		rule := r.rule()
		rule.MinDevices = cmp.Or(rule.MinDevices, max(1, (due+1)/2))
		out[i] = rule.Judge(samples)
	}
	return out
}

// settledOK lists the devices of a wave that succeeded, and counts those that
// did or still may.
func (p *planner) settledOK(w int) (ids []string, due int) {
	rows := p.members(w)
	for i := range rows {
		switch e := p.exec(&rows[i]); {
		case e.Wave != w:
		case e.Succeeded():
			ids = append(ids, rows[i].id)
			due++
		case e.Status == Queued || e.InFlight():
			due++
		}
	}
	return ids, due
}

// judge moves the current wave on once all its devices have settled, and
// reports whether a next one started.
func (p *planner) judge() bool {
	w := p.st.Wave
	if p.open(w) {
		return false
	}
	t := p.tally(w)
	state, spec := &p.st.Waves[w], p.spec.Waves[w]
	if state.Verdict == gate.Pass {
		return p.advance(w)
	}
	if t.eligible == 0 {
		reason := fmt.Sprintf("wave %q had nothing to do: it is empty", spec.Name)
		if t.members > 0 {
			reason = fmt.Sprintf("wave %q had nothing to do: of its %d devices %d run the release already and the others never can, or belong to a newer rollout",
				spec.Name, t.members, t.already)
		}
		p.emit(Decision{Kind: WaveVerdict, Wave: w, Verdict: gate.Pass, Reasons: []string{reason}, Reason: reason})
		return p.advance(w)
	}
	if !state.Soaking {
		p.emit(Decision{Kind: StartSoak, Wave: w, Reason: fmt.Sprintf("wave %q: %d of %d devices succeeded, soak for %s",
			spec.Name, t.succeeded, t.eligible, spec.Soak.Min)})
	}
	soaked := p.clock - state.SoakAt
	waived := state.Approved && state.Verdict == gate.Inconclusive
	if !waived && (soaked < Elapsed(spec.Soak.Min) || soaked < Elapsed(spec.Soak.Max) && !p.sampled(w)) {
		return false
	}
	verdict, reasons := p.verdict(w, t)
	if verdict == gate.Inconclusive && waived {
		verdict, reasons = gate.Pass, append(reasons, "approved by a person")
	}
	d := Decision{Kind: WaveVerdict, Wave: w, Verdict: verdict, Reasons: reasons, Reason: reasons[0]}
	if verdict != state.Verdict {
		p.emit(d)
	}
	switch verdict {
	case gate.Pass:
		return p.advance(w)
	case gate.Fail:
		p.emit(Decision{Kind: Abort, Wave: w, Reason: fmt.Sprintf("wave %q failed its gate: %s", spec.Name, reasons[0])})
		p.unwind()
	case gate.Inconclusive:
		if spec.Gate.Inconclusive == InconclusivePause {
			p.emit(Decision{Kind: Pause, Wave: w, ByGate: true, Reason: fmt.Sprintf("wave %q is inconclusive: %s", spec.Name, reasons[0])})
		}
	}
	return false
}

// verdict judges a settled and soaked wave. The first reason is what decided.
func (p *planner) verdict(w int, t tally) (gate.Verdict, []string) {
	s := p.spec.Waves[w].Gate.Success
	total := t.executed
	if s.Of == OfTotal {
		total = t.eligible
	}
	text := fmt.Sprintf("%d of %d %s devices succeeded, want %g %%", t.succeeded, total, s.Of, s.MinPct)
	if t.skipped > 0 {
		text += fmt.Sprintf("; %d were skipped", t.skipped)
	}
	if t.executed < int(s.MinExecuted) {
		return gate.Inconclusive, []string{fmt.Sprintf("%d devices executed, want at least %d to judge; %s", t.executed, s.MinExecuted, text)}
	}
	if 100*float64(t.succeeded) < s.MinPct*float64(total) {
		return gate.Fail, []string{text}
	}
	out, reasons := gate.Pass, []string{text}
	for i, res := range p.metrics(w) {
		line := fmt.Sprintf("metric %s: %s: %s", p.spec.Waves[w].Gate.Metrics[i].Name, res.Verdict, res.Reason)
		switch {
		case res.Verdict == gate.Fail:
			return gate.Fail, append([]string{line}, reasons...)
		case res.Verdict == gate.Inconclusive && out == gate.Pass:
			out, reasons = gate.Inconclusive, append([]string{line}, reasons...)
		default:
			reasons = append(reasons, line)
		}
	}
	return out, reasons
}

// sampled reports whether half of the devices that succeeded have the samples
// that the soak asks for.
func (p *planner) sampled(w int) bool {
	spec := p.spec.Waves[w]
	ids, _ := p.settledOK(w)
	for _, m := range spec.Gate.Metrics {
		need, have := max(spec.Soak.MinSamples, m.MinSamples), 0
		for _, id := range ids {
			if p.ev.Metrics[m.Name][id].After.N >= int(need) {
				have++
			}
		}
		if 2*have < len(ids) {
			return false
		}
	}
	return true
}

// advance starts the next wave, or ends the rollout, once a passed wave is
// approved.
func (p *planner) advance(w int) bool {
	if p.spec.Waves[w].Gate.Approval == ApprovalManual && !p.st.Waves[w].Approved {
		return false
	}
	if w+1 < len(p.spec.Waves) {
		p.startWave(w + 1)
		return true
	}
	var ok, failed, skipped int
	for i := range p.st.Waves {
		t := p.tally(i)
		ok, failed, skipped = ok+t.succeeded+t.already, failed+t.members-t.succeeded-t.already-t.skipped, skipped+t.skipped
	}
	p.emit(Decision{Kind: Succeed, Wave: w, Reason: fmt.Sprintf("every wave passed: %d devices run the release, %d do not, %d were skipped", ok, failed, skipped)})
	return false
}
