package rollout

import (
	"cmp"
	"slices"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
)

// Apply returns the state after the decisions and leaves s alone.
func Apply(s State, ds ...Decision) State {
	s = s.Clone()
	for _, d := range ds {
		s.Apply(d)
	}
	return s
}

// Observe returns the state after the reports and leaves s alone.
func Observe(s State, rs ...Report) State {
	s = s.Clone()
	for _, r := range rs {
		s.Observe(r)
	}
	return s
}

// Apply changes the state as the decision says, and reports whether it did. A
// decision that does not fit the state changes nothing: applying one twice is
// the same as once, a resume without a pause does nothing, and after an abort
// no offer is taken.
func (s *State) Apply(d Decision) bool {
	if s.Phase.Final() {
		return false
	}
	switch d.Kind {
	case Assign:
		return s.assign(d)
	case StartWave, StartSoak, WaveVerdict, Approve:
		return s.applyWave(d)
	case Pause, Resume, Abort, FinishAbort, Succeed:
		return s.applyPhase(d)
	case Outage:
		return s.outage(d)
	default:
		return s.applyDevice(d)
	}
}

func (s *State) assign(d Decision) bool {
	if s.Phase != Pending && s.Phase != Running {
		return false
	}
	if s.Phase == Pending {
		s.Phase, s.StartedAt, s.Reason = Running, d.At, d.Reason
		s.Waves = make([]WaveState, d.Waves)
		if s.over == nil {
			s.Exec = make(map[string]Exec, len(d.Assign))
		} else {
			s.over = make(map[string]Exec, len(d.Assign))
		}
	}
	now := s.Clock(d.At)
	for _, a := range d.Assign {
		old, known := s.get(a.Device)
		if a.Wave < 0 || a.Wave >= len(s.Waves) || known && old.Status != Skipped {
			continue
		}
		e := Exec{Wave: a.Wave, Status: Queued, Immediate: a.Immediate, QueuedAt: now, ChangedAt: now,
			Attempts: old.Attempts, Previous: old.Previous, Withdrawn: old.Withdrawn}
		if a.Already {
			e.Status = Done
		}
		s.put(a.Device, e)
		if !known || old.Wave != a.Wave {
			s.Waves[a.Wave].Members = append(s.Waves[a.Wave].Members, a.Device)
		}
	}
	return true
}

func (s *State) applyWave(d Decision) bool {
	if s.Phase != Running && !(d.Kind == Approve && s.Phase == Paused) || d.Wave < 0 || d.Wave >= len(s.Waves) {
		return false
	}
	w, now := &s.Waves[d.Wave], s.Clock(d.At)
	switch d.Kind {
	case StartWave:
		if w.Started {
			return false
		}
		s.Wave, w.Started, w.StartedAt = d.Wave, true, now
		for _, id := range w.Members {
			if e, _ := s.get(id); e.Wave == d.Wave && e.Status == Queued {
				e.QueuedAt = now
				s.put(id, e)
			}
		}
	case StartSoak:
		w.Soaking, w.SoakAt = true, now
	case WaveVerdict:
		w.Verdict, w.Reasons = d.Verdict, slices.Clone(d.Reasons)
	case Approve: // of a verdict that is there to be seen
		if w.Approved || w.Verdict != gate.Pass && w.Verdict != gate.Inconclusive {
			return false
		}
		w.Approved = true
		if p := s.pause(); p != nil && p.ByGate {
			s.resume(d.At, d.Reason)
		}
	}
	return true
}

// outage stops the clocks for a time that is over, in which nobody could hear
// the devices: their silence then says nothing.
func (s *State) outage(d Decision) bool {
	if s.Phase != Running && s.Phase != Aborting || d.Wait <= 0 {
		return false
	}
	from := s.afterPauses(d.At.Add(-d.Wait))
	if !from.Before(d.At) {
		return false
	}
	s.Pauses = append(s.Pauses, PauseSpan{From: from, To: d.At, Reason: d.Reason})
	return true
}

// afterPauses returns at, or the end of the last pause where that is later: no
// time is taken off the clock twice, also when somebody has set it back.
func (s *State) afterPauses(at time.Time) time.Time {
	if at.Before(s.StartedAt) {
		at = s.StartedAt
	}
	for _, p := range s.Pauses {
		if p.To.After(at) {
			at = p.To
		}
	}
	return at
}

// pause returns the pause that lasts, if there is one.
func (s *State) pause() *PauseSpan {
	if s.Phase != Paused || len(s.Pauses) == 0 {
		return nil
	}
	return &s.Pauses[len(s.Pauses)-1]
}

func (s *State) resume(at time.Time, reason string) {
	p := s.pause()
	p.To = at
	if at.Before(p.From) {
		p.To = p.From
	}
	s.Phase, s.Reason = Running, reason
}

func (s *State) applyPhase(d Decision) bool {
	switch d.Kind {
	case Pause:
		if s.Phase != Running {
			return false
		}
		s.Phase, s.Reason = Paused, d.Reason
		s.Pauses = append(s.Pauses, PauseSpan{From: s.afterPauses(d.At), Reason: d.Reason, ByGate: d.ByGate})
	case Resume:
		p := s.pause()
		if p == nil {
			return false
		}
		byGate := p.ByGate
		s.resume(d.At, d.Reason)
		if w := &s.Waves[s.Wave]; byGate && !w.Approved { // look again for a whole soak
			w.SoakAt, w.Verdict, w.Reasons = s.Clock(d.At), "", nil
		}
	case Abort:
		return s.abort(d)
	case FinishAbort:
		if s.Phase != Aborting {
			return false
		}
		s.Phase, s.Reason, s.EndedAt = d.Phase, d.Reason, d.At
	case Succeed:
		if s.Phase != Running {
			return false
		}
		s.Phase, s.Reason, s.EndedAt = Succeeded, d.Reason, d.At
	}
	return true
}

// abort cancels everything queued, in every wave, at once.
func (s *State) abort(d Decision) bool {
	switch s.Phase {
	case Pending:
		s.Phase, s.Reason, s.EndedAt = Aborted, d.Reason, d.At
		return true
	case Paused:
		s.resume(d.At, d.Reason)
	case Running:
	default:
		return false
	}
	s.Phase, s.Reason = Aborting, d.Reason
	now := s.Clock(d.At)
	for i := range s.Waves {
		for _, id := range s.Waves[i].Members {
			e, _ := s.get(id)
			if e.Status == Queued || e.Status == Skipped {
				e.Status, e.ChangedAt = Cancelled, now
				s.put(id, e)
			}
		}
	}
	return true
}

func (s *State) applyDevice(d Decision) bool {
	e, ok := s.get(d.Device)
	if !ok {
		return false
	}
	now, was := s.Clock(d.At), e.Status
	switch d.Kind {
	case Offer:
		if s.Phase != Running || e.Status != Queued {
			return false
		}
		if e.Attempts == 0 || d.Before != d.Release {
			e.Previous = d.Before
		}
		e.Status, e.Attempts = Offered, e.Attempts+1
		e.Step, e.Class, e.Detail, e.Switched = "", "", "", false
		e.Withdrawn, e.Confirmed, e.Waits, e.WaitsAt = false, false, "", 0
		e.OfferedAt, e.StepAt, e.HeardAt = now, now, 0
		s.countOffer(now)
	case Withdraw:
		if !s.withdraw(&e) {
			return false
		}
	case Rollback:
		if !e.Succeeded() {
			return false
		}
		e.Status = RollingBack
	case RetryLater:
		if s.Phase != Running || e.Status != FailedState {
			return false
		}
		e.Status, e.NotBefore, e.QueuedAt = Queued, now+d.Wait, now
		s.Retries++
	case Skip:
		if e.Status != Queued && !e.InFlight() {
			return false
		}
		e.Status, e.Detail = Skipped, d.Reason
	default:
		class, known := classOf[d.Kind]
		if !known || !mark(&e, class, d.Reason) {
			return false
		}
	}
	if e.Status != was {
		e.ChangedAt = now
	}
	s.put(d.Device, e)
	return true
}

var classOf = map[Kind]ota.FailureClass{
	MarkTimedOut: ota.TimedOut, MarkSilent: ota.Silent, MarkRejected: ota.Rejected, MarkSuperseded: ota.Superseded,
}

// mark makes an execution a failure of the class. A device that was told to
// roll back and never answered stays rolling back, and stuck.
func mark(e *Exec, class ota.FailureClass, detail string) bool {
	switch e.Status {
	case FailedState, Restored:
		return false
	case Cancelled, Skipped:
		if class != ota.Superseded {
			return false
		}
	case RollingBack:
		if class != ota.Superseded {
			changed := !e.Stuck
			e.Stuck, e.Detail = true, detail
			return changed
		}
	}
	e.Status, e.Class, e.Detail = FailedState, class, detail
	return true
}

func (s *State) withdraw(e *Exec) bool {
	e.Waits, e.WaitsAt = "", 0
	switch {
	case e.InFlight():
		e.Status = RollingBack
	case e.Attempts > 0 && !e.Withdrawn && (e.Status == FailedState || e.Status == Skipped || e.Status == Cancelled):
		e.Withdrawn = true
	default:
		return false
	}
	return true
}

// countOffer remembers an offer for as long as the rate per minute needs it.
func (s *State) countOffer(now Elapsed) {
	if n := len(s.Offers); n > 0 && s.Offers[n-1].At == now {
		s.Offers[n-1].N++
		return
	}
	s.Offers = slices.DeleteFunc(s.Offers, func(o OfferCount) bool { return o.At <= now-time.Minute })
	s.Offers = append(s.Offers, OfferCount{At: now, N: 1})
}

// Report is what a device said about one offer.
type Report struct {
	Device  string           `json:"device"`
	At      time.Time        `json:"at"`
	Attempt int              `json:"attempt,omitempty"` // of Exec.Attempts; 0: the current one
	Status  Status           `json:"status"`            // Accepted, Healthy, Done, FailedState, Restored; empty: only heard
	Step    ota.Step         `json:"step,omitempty"`
	Class   ota.FailureClass `json:"class,omitempty"` // with FailedState: Rejected or Failed
	Detail  string           `json:"detail,omitempty"`
	Waits   string           `json:"waits,omitempty"` // with Accepted: for what window or allowance
}

// Observe takes in what a device said, and reports whether that changed more
// than when it was last heard. Restored means: the device runs what it ran
// before the offer, and holds the desired state that says so. Reports on an
// older attempt, and those that come late, change nothing.
func (s *State) Observe(r Report) bool {
	e, ok := s.get(r.Device)
	if !ok || s.StartedAt.IsZero() {
		return false
	}
	now, before := s.Clock(r.At), e
	e.HeardAt = max(e.HeardAt, now)
	if r.Attempt == 0 || r.Attempt == e.Attempts {
		observe(&e, r, now)
	}
	if e.Status != before.Status {
		e.ChangedAt = now
	}
	s.put(r.Device, e)
	e.HeardAt = before.HeardAt
	return e != before
}

// wait takes in what the device says it waits for. The time in which it waited
// counts for no timeout.
func (e *Exec) wait(text string, now Elapsed) {
	switch {
	case text != "" && e.Waits == "":
		e.WaitsAt = now
	case text == "" && e.Waits != "":
		e.OfferedAt += max(0, now-e.WaitsAt)
		e.StepAt, e.WaitsAt = max(e.StepAt, now), 0
	}
	e.Waits = text
}

func observe(e *Exec, r Report, now Elapsed) {
	switch r.Status {
	case Accepted:
		if !e.InFlight() {
			return
		}
		e.Status = Accepted
		e.wait(r.Waits, now)
		if r.Step != "" && r.Step != e.Step {
			e.Step, e.StepAt = r.Step, now
			e.Switched = e.Switched || slices.Index(ota.Steps, r.Step) >= slices.Index(ota.Steps, ota.StepSwitch)
		}
	case Healthy, Done:
		if e.InFlight() || e.Status == Healthy && r.Status == Done {
			e.wait("", now)
			e.Status, e.Switched = r.Status, true
			e.Step = r.Step
		}
	case FailedState:
		if !e.InFlight() && !e.Succeeded() {
			return
		}
		e.wait("", now)
		e.Status, e.Class, e.Detail = FailedState, ota.Failed, r.Detail
		if r.Class == ota.Rejected {
			e.Class = ota.Rejected
		}
		if r.Step != "" {
			e.Step = r.Step
		}
	case Restored:
		switch {
		case e.Status == RollingBack:
			e.Status = Restored
		case e.Status == FailedState:
			e.Confirmed = true
		case e.Succeeded():
			e.Status, e.Class, e.Detail = FailedState, ota.Failed, cmp.Or(r.Detail, "went back to what ran before by itself")
		}
	}
}
