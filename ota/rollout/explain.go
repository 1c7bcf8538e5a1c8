package rollout

import (
	"fmt"
	"time"

	"github.com/skein-fleet/skein/ota/gate"
)

// Explain says in short lines what holds a rollout up now, or one of its
// devices when deviceID is not empty: the gate, budget, ramp, approval, pause
// or error, with what is known of its end. The first line is the answer.
func Explain(spec Spec, state State, fleet []Device, evidence Evidence, now time.Time, deviceID string) []string {
	p := newPlanner(spec, state, fleet, evidence, now)
	if p.otherSpec() {
		return []string{fmt.Sprintf("the spec has %d waves, the rollout was started with %d: a changed spec is a new rollout", len(p.spec.Waves), len(p.st.Waves))}
	}
	if deviceID != "" {
		return p.explainDevice(deviceID)
	}
	return p.explainRollout()
}

func (p *planner) explainRollout() []string {
	s := p.st
	switch s.Phase {
	case Pending:
		n := 0
		for i := range p.fleet {
			if p.sel.match(&p.fleet[i]) {
				n++
			}
		}
		return []string{fmt.Sprintf("not started; %d devices match the selector (%s)", n, p.spec.Selector)}
	case Aborting:
		return append([]string{"aborting: " + s.Reason}, p.unwinding()...)
	case Running, Paused:
	default:
		return []string{fmt.Sprintf("%s: %s", s.Phase, s.Reason)}
	}
	lines := []string{}
	if pause := s.pause(); pause != nil {
		lines = append(lines, fmt.Sprintf("paused since %s: %s; resume to go on%s", pause.From.UTC().Format(time.RFC3339), pause.Reason,
			map[bool]string{true: ", or approve the wave as it is", false: ""}[pause.ByGate]))
	}
	return append(lines, p.explainWave(s.Wave)...)
}

func (p *planner) explainWave(w int) []string {
	t, spec, state := p.tally(w), p.spec.Waves[w], p.st.Waves[w]
	lines := []string{fmt.Sprintf("wave %q (%d of %d): %d devices, %d queued, %d in flight, %d succeeded, %d failed, %d skipped",
		spec.Name, w+1, len(p.spec.Waves), t.members, t.queued, t.inFlight, t.succeeded, t.failed[AnyFailure], t.skipped)}
	switch {
	case t.queued > 0:
		lines = append(lines, p.queueHoldups(w)...)
	case t.inFlight > 0 && t.waiting > 0:
		lines = append(lines, fmt.Sprintf("waits for %d devices in flight, of which %d wait for a window or an allowance of their policy: %s", t.inFlight, t.waiting, t.waits))
	case t.inFlight > 0:
		lines = append(lines, fmt.Sprintf("waits for %d devices in flight, each at most %s", t.inFlight, spec.Timeout.Device))
	case state.Verdict == gate.Pass && spec.Gate.Approval == ApprovalManual && !state.Approved:
		lines = append(lines, "passed its gate; waits for a person's approval")
	case state.Soaking && p.clock-state.SoakAt < Elapsed(spec.Soak.Min):
		lines = append(lines, fmt.Sprintf("soaks for another %s", (Elapsed(spec.Soak.Min)-(p.clock-state.SoakAt)).Round(time.Second)))
	case state.Soaking && !p.sampled(w) && p.clock-state.SoakAt < Elapsed(spec.Soak.Max):
		lines = append(lines, fmt.Sprintf("waits for samples on half of its devices, for at most %s",
			(Elapsed(spec.Soak.Max)-(p.clock-state.SoakAt)).Round(time.Second)))
	}
	if t.executed > 0 {
		verdict, reasons := p.verdict(w, t)
		for _, r := range reasons {
			lines = append(lines, fmt.Sprintf("gate, as things stand (%s): %s", verdict, r))
		}
	}
	return lines
}

// queueHoldups counts the reasons of the queued devices of a wave.
func (p *planner) queueHoldups(w int) []string {
	c := p.newPace(w)
	var count [rateFull + 1]int
	rows := p.members(w)
	for i := range rows {
		if e := p.exec(&rows[i]); e.Wave == w && e.Status == Queued && rows[i].d != nil {
			count[p.holdup(c, e, rows[i].d)]++
		}
	}
	var lines []string
	for h, n := range count {
		if n > 0 && holdup(h) != free {
			lines = append(lines, fmt.Sprintf("%d queued devices: %s", n, p.holdupText(holdup(h), c, Exec{}, nil)))
		}
	}
	if n := count[free]; n > 0 {
		lines = append(lines, fmt.Sprintf("%d queued devices: next in turn", n))
	}
	return lines
}

func (p *planner) holdupText(h holdup, c *pace, e Exec, d *Device) string {
	r := c.spec.Ramp
	switch h {
	case isOffline:
		return fmt.Sprintf("offline (policy: %s after %s)", c.spec.Timeout.Offline, c.spec.Timeout.Device)
	case inBackoff:
		if d == nil {
			return "wait before the next attempt"
		}
		return fmt.Sprintf("attempt %d in %s", e.Attempts+1, (e.NotBefore - p.clock).Round(time.Second))
	case heldByOlder:
		if d == nil {
			return "an older rollout has the device, and this one is serial"
		}
		return fmt.Sprintf("rollout %s has the device, and this one is serial", d.Older)
	case outsideWindow:
		if d == nil {
			return "the window in which they may download is closed"
		}
		return d.Outside
	case overBudget:
		if d == nil {
			return "disruption budget of their group is used up"
		}
		g := c.group(d)
		return fmt.Sprintf("disruption budget: %d of %d devices of its group (%v) are unavailable", g.unavailable, g.total, c.spec.Budget.GroupBy)
	case slotsFull:
		return fmt.Sprintf("ramp: %d devices are in flight, at most %d may be after %d successes", c.inFlight, r.slots(c.succeeded), c.succeeded)
	case downloadsFull:
		return fmt.Sprintf("ramp: %d devices download, at most %d may", c.downloads, r.MaxConcurrentDownloads)
	case rateFull:
		return fmt.Sprintf("ramp: %d offers in the last minute, at most %d may be made", c.lastMin, r.MaxPerMinute)
	}
	return "next in turn"
}

func (p *planner) explainDevice(id string) []string {
	d, e, known := p.dev[id], Exec{}, false
	e, known = p.st.get(id)
	if !known {
		return []string{p.explainStranger(id, d)}
	}
	lines := []string{p.explainExec(id, e, d)}
	if d != nil && d.Held != d.Wanted {
		lines = append(lines, fmt.Sprintf("holds desired state %s, should have %s: not delivered yet", d.Held, d.Wanted))
	}
	if e.Attempts > 0 && e.Status != Queued {
		lines = append(lines, fmt.Sprintf("attempt %d; ran %s before", e.Attempts, orNothing(e.Previous.Short())))
	}
	return lines
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

func (p *planner) explainStranger(id string, d *Device) string {
	switch {
	case d == nil:
		return fmt.Sprintf("device %s is not in the fleet", id)
	case !p.sel.match(d):
		return fmt.Sprintf("not part of the rollout: the selector (%s) does not match", p.spec.Selector)
	case p.st.Phase == Pending:
		return "the rollout has not started"
	case p.spec.LateJoiners == JoinNever:
		return "not part of the rollout: it matched after the start, and late joiners are never taken"
	case p.st.Phase == Running:
		return "not part of the rollout: no wave takes it; a wave without a limit whose selector matches would"
	}
	return fmt.Sprintf("not part of the rollout, which is %s", p.st.Phase)
}

func (p *planner) explainExec(id string, e Exec, d *Device) string {
	since := fmt.Sprintf("%s ago", (p.clock - e.ChangedAt).Round(time.Second))
	timeout := p.spec.Waves[e.Wave].Timeout
	switch {
	case e.Status == Queued && d == nil:
		return "queued, but not in the fleet any more"
	case e.Status == Queued:
		return p.explainQueued(e, d)
	case e.InFlight() && e.Waits != "":
		return fmt.Sprintf("%s%s: %s; it holds no slot and does not time out meanwhile", e.Status, inStep(e), e.Waits)
	case e.InFlight():
		text := fmt.Sprintf("%s %s%s; times out in %s", e.Status, since, inStep(e), (Elapsed(timeout.Device) - (p.clock - e.OfferedAt)).Round(time.Second))
		if d != nil && !d.Online {
			text += fmt.Sprintf("; offline (policy: %s)", timeout.Offline)
		}
		return text
	case e.Status == Done && e.Attempts == 0:
		return "ran the release before the rollout"
	case e.Status == Healthy && p.st.Phase == Running:
		return fmt.Sprintf("serves the release since %s; counts as failed after %s without a word", since, timeout.Silent)
	case e.Status == FailedState:
		text := fmt.Sprintf("%s %s: %s", e.Class, since, e.Detail)
		if e.Withdrawn {
			text += map[bool]string{true: "; runs again what ran before", false: "; told to go back to what ran before"}[e.Confirmed]
		}
		return text
	case e.Status == RollingBack && e.Stuck:
		return "told to roll back, and never answered: " + e.Detail
	case e.Status == Skipped:
		return fmt.Sprintf("skipped %s: %s; joins again when it is back", since, e.Detail)
	case e.Status == Cancelled:
		return "cancelled before it was offered the release: " + p.st.Reason
	}
	return fmt.Sprintf("%s since %s", e.Status, since)
}

func (p *planner) explainQueued(e Exec, d *Device) string {
	name := p.spec.Waves[e.Wave].Name
	switch {
	case d.Incompatible != "":
		return "can never run the release: " + d.Incompatible
	case d.Newer != "":
		return fmt.Sprintf("rollout %s takes the device over", d.Newer)
	case p.st.Phase == Paused:
		return fmt.Sprintf("queued in wave %q: the rollout is paused: %s", name, p.st.Reason)
	case e.Wave > p.st.Wave:
		lines := p.explainWave(p.st.Wave)
		return fmt.Sprintf("queued in wave %q, which waits for wave %q: %s", name, p.spec.Waves[p.st.Wave].Name, lines[len(lines)-1])
	}
	c := p.newPace(e.Wave)
	h := p.holdup(c, e, d)
	if h >= slotsFull && !d.Online {
		h = isOffline
	}
	if h >= slotsFull && d.Outside != "" {
		h = outsideWindow
	}
	return fmt.Sprintf("queued in wave %q: %s", name, p.holdupText(h, c, e, d))
}

// unwinding counts what an abort still waits for.
func (p *planner) unwinding() []string {
	var back, finishing int
	for _, w := range p.st.Waves {
		for _, id := range w.Members {
			e, _ := p.st.get(id)
			switch {
			case e.Status == RollingBack && !e.Stuck:
				back++
			case e.InFlight():
				finishing++
			}
		}
	}
	return []string{fmt.Sprintf("waits for %d devices to confirm that they run what ran before, and for %d in flight", back, finishing)}
}
