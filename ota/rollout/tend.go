package rollout

import (
	"fmt"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
)

// tend looks after the devices of every wave that started: marks what timed
// out, went silent, was refused or taken over, and retries or withdraws what
// failed.
func (p *planner) tend() {
	for w := 0; w <= p.st.Wave; w++ {
		rows := p.members(w)
		for i := range rows {
			r := &rows[i]
			if e := p.exec(r); e.Wave == w {
				p.check(r.id, e, r.d)
				p.settle(r.id, p.exec(r), r.d)
			}
		}
	}
}

func (p *planner) mark(kind Kind, id string, e Exec, format string, args ...any) {
	p.emit(Decision{Kind: kind, Wave: e.Wave, Device: id, Reason: fmt.Sprintf(format, args...)})
}

// check marks a device whose time is up or that can go no further.
func (p *planner) check(id string, e Exec, d *Device) {
	open := e.Status == Queued || e.InFlight()
	switch {
	case !open && !e.Succeeded():
	case d == nil:
		if open {
			p.mark(Skip, id, e, "left the fleet")
		}
	case open && d.Newer != "":
		p.mark(MarkSuperseded, id, e, "rollout %s takes the device over", d.Newer)
	case e.Status == Queued:
		p.checkQueued(id, e, d)
	case e.InFlight():
		p.checkInFlight(id, e, d)
	case d.Newer == "" && e.Wave == p.st.Wave && p.st.Waves[e.Wave].Verdict != gate.Pass:
		p.checkSilent(id, e, d)
	}
}

func (p *planner) checkQueued(id string, e Exec, d *Device) {
	t := p.spec.Waves[e.Wave].Timeout
	switch {
	case d.Incompatible != "":
		p.mark(MarkRejected, id, e, "%s", d.Incompatible)
	case d.Online || t.Offline == OfflineWait || p.clock-max(e.QueuedAt, e.NotBefore) <= Elapsed(t.Device):
	case t.Offline == OfflineCount:
		p.mark(MarkTimedOut, id, e, "offline for %s since its wave began", t.Device)
	default:
		p.mark(Skip, id, e, "offline for %s since its wave began", t.Device)
	}
}

func (p *planner) checkInFlight(id string, e Exec, d *Device) {
	if p.checkSilent(id, e, d) {
		return
	}
	t := p.spec.Waves[e.Wave].Timeout
	since, step := e.OfferedAt, e.StepAt
	if e.Waits != "" {
		if d.Online {
			return // it said until when
		}
		since, step = max(since, p.heard(e, d)), p.clock
	}
	if t.Offline == OfflineWait {
		if !d.Online {
			return // its time stands still
		}
		if !d.OnlineSince.IsZero() {
			back := p.st.Clock(d.OnlineSince)
			since, step = max(since, back), max(step, back)
		}
	}
	switch {
	case p.clock-since > Elapsed(t.Device):
		if !d.Online && e.Status == Offered && t.Offline == OfflineSkip {
			p.mark(Skip, id, e, "offline, and no answer to the offer for %s", t.Device)
			return
		}
		p.mark(MarkTimedOut, id, e, "not healthy %s after the offer%s", t.Device, inStep(e))
	case t.Step > 0 && e.Status == Accepted && p.clock-step > Elapsed(t.Step):
		p.mark(MarkTimedOut, id, e, "no progress for %s%s", t.Step, inStep(e))
	}
}

func inStep(e Exec) string {
	if e.Step == "" {
		return ""
	}
	return ", in step " + string(e.Step)
}

// checkSilent marks a device that was not heard of since the switch for longer
// than allowed.
func (p *planner) checkSilent(id string, e Exec, d *Device) bool {
	if !e.Switched {
		return false
	}
	silent := Elapsed(p.spec.Waves[e.Wave].Timeout.Silent)
	if p.clock-p.heard(e, d) <= silent {
		return false
	}
	p.mark(MarkSilent, id, e, "no word for %s after the switch", silent)
	return true
}

// heard returns when the device was last heard of.
func (p *planner) heard(e Exec, d *Device) Elapsed {
	heard := max(e.HeardAt, e.OfferedAt)
	if !d.LastSeen.IsZero() {
		heard = max(heard, p.st.Clock(d.LastSeen))
	}
	return heard
}

// settle retries or withdraws what did not end well. What a newer rollout has
// is that rollout's to settle.
func (p *planner) settle(id string, e Exec, d *Device) {
	if d == nil || d.Newer != "" || e.Attempts == 0 || e.Withdrawn {
		return
	}
	switch {
	case e.Status == Skipped || e.Status == Cancelled:
	case e.Status != FailedState || e.Class == ota.Superseded:
		return
	case d.Incompatible == "" && p.mayRetry(e):
		wait := p.backoff(e.Attempts)
		p.emit(Decision{Kind: RetryLater, Wave: e.Wave, Device: id, Wait: wait,
			Reason: fmt.Sprintf("attempt %d ended %s (%s): next in %s", e.Attempts, e.Class, e.Detail, wait)})
		return
	}
	p.emit(Decision{Kind: Withdraw, Wave: e.Wave, Device: id, Release: e.Previous, Reason: withdrawReason(e)})
}

func withdrawReason(e Exec) string {
	if e.Status == FailedState {
		return fmt.Sprintf("%s: %s", e.Class, e.Detail)
	}
	return string(e.Status)
}

func (p *planner) mayRetry(e Exec) bool {
	r := p.spec.Retry
	again := e.Class == ota.Failed || e.Class == ota.TimedOut
	return again && p.st.Phase == Running && e.Wave == p.st.Wave && p.st.Waves[e.Wave].Verdict != gate.Pass &&
		e.Attempts <= int(r.PerFailure[e.Class]) &&
		(r.PerDeviceMax == 0 || e.Attempts <= int(r.PerDeviceMax)) &&
		(r.FleetBudget == 0 || p.st.Retries < int(r.FleetBudget))
}

const maxBackoff = 24 * time.Hour

// backoff doubles with each attempt.
func (p *planner) backoff(attempts int) time.Duration {
	wait := time.Duration(p.spec.Retry.Backoff)
	for range min(attempts-1, 32) {
		wait = min(2*wait, maxBackoff)
	}
	return wait
}

// unwind carries out an abort: takes back what is on its way, waits for what
// may finish, rolls back what is done, and ends when nothing is left to hear.
func (p *planner) unwind() {
	open := 0
	for w := range p.st.Waves {
		rows := p.members(w)
		for i := range rows {
			if e := p.exec(&rows[i]); e.Wave == w && p.unwindOne(rows[i].id, e, rows[i].d) {
				open++
			}
		}
	}
	if open > 0 {
		return
	}
	var restored, kept, lost, touched int
	for w := range p.st.Waves {
		rows := p.members(w)
		for i := range rows {
			switch e := p.exec(&rows[i]); {
			case e.Wave != w || e.Attempts == 0:
				continue
			case e.Status == Restored || e.Confirmed || stayed(e, rows[i].d):
				restored++
			case e.Succeeded():
				kept++
			default:
				lost++
			}
			touched++
		}
	}
	phase := Aborted
	if p.spec.OnAbort.Done == AbortRollback && touched > 0 {
		phase = RolledBack
	}
	p.emit(Decision{Kind: FinishAbort, Phase: phase, Wave: p.st.Wave, Reason: p.st.Reason + "; " + aftermath(touched, restored, kept, lost)})
}

// stayed says that a device told of its failure and runs what ran before.
func stayed(e Exec, d *Device) bool {
	told := e.Status == FailedState && (e.Class == ota.Rejected || e.Class == ota.Failed)
	return told && d != nil && d.Release == e.Previous
}

// aftermath says what became of the devices of an aborted rollout.
func aftermath(touched, restored, kept, lost int) string {
	if touched == 0 {
		return "no device was offered the release"
	}
	text := fmt.Sprintf("of %d devices that were offered the release, %d run again what ran before", touched, restored)
	if kept > 0 {
		text += fmt.Sprintf(", %d keep it", kept)
	}
	if lost > 0 {
		text += fmt.Sprintf(", %d have not confirmed", lost)
	}
	return text
}

// unwindOne does the next thing for one device of an aborted rollout, and
// reports whether more is to come.
func (p *planner) unwindOne(id string, e Exec, d *Device) bool {
	on := p.spec.OnAbort
	switch {
	case d != nil && d.Newer != "" && (e.InFlight() || e.Succeeded() || e.Status == RollingBack):
		p.mark(MarkSuperseded, id, e, "rollout %s takes the device over", d.Newer)
	case d == nil && (e.InFlight() || e.Status == RollingBack && !e.Stuck):
		p.mark(MarkTimedOut, id, e, "left the fleet")
	case e.Status == Offered || e.Status == Accepted && on.InProgress == AbortCancel:
		p.emit(Decision{Kind: Withdraw, Wave: e.Wave, Device: id, Release: e.Previous, Reason: "the rollout was aborted"})
	case e.Status == Accepted:
		p.checkInFlight(id, e, d)
	case e.Succeeded() && on.Done == AbortRollback && d != nil && e.Previous != p.spec.Release:
		p.emit(Decision{Kind: Rollback, Wave: e.Wave, Device: id, Release: p.rollbackTo(e), Reason: "the rollout was aborted"})
	case e.Status == RollingBack && !e.Stuck && p.clock-e.ChangedAt > Elapsed(p.spec.Waves[e.Wave].Timeout.Device):
		p.mark(MarkTimedOut, id, e, "no answer to the rollback for %s", p.spec.Waves[e.Wave].Timeout.Device)
	}
	e, _ = p.st.get(id)
	p.settle(id, e, d)
	return e.InFlight() || e.Status == RollingBack && !e.Stuck
}

func (p *planner) rollbackTo(e Exec) ota.Digest {
	if p.spec.RollbackTo == Previous {
		return e.Previous
	}
	return ota.Digest(p.spec.RollbackTo)
}
