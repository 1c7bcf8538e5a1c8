package agent

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

const (
	reportDelay  = 200 * time.Millisecond // changes this close go into one report
	reportSpace  = time.Second            // least time between two reports
	maxJournal   = 64                     // newest journal lines in a report
	maxCauseText = 2 << 10
)

// reportLoop sends the full state on each connection and after each change,
// and a heartbeat when nothing changes.
func (a *Agent) reportLoop(ctx context.Context) error {
	dirty := true
	for {
		up, changed := a.conn.up()
		if !up {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
				dirty = true
			}
			continue
		}
		if !dirty {
			timer := time.NewTimer(a.heartbeat())
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-changed:
				timer.Stop()
				continue
			case <-timer.C:
				a.logSend(a.report(ctx, nil))
				continue
			case <-a.wakeReport:
				timer.Stop()
				dirty = true
			}
		}
		if !pause(ctx, reportDelay) {
			return nil
		}
		// What is set from here on asks for the next report.
		select {
		case <-a.wakeReport:
		default:
		}
		err := a.report(ctx, a.reported())
		a.logSend(err)
		dirty = err != nil
		if !pause(ctx, reportSpace) {
			return nil
		}
	}
}

// heartbeat returns the time to the next one: half of it is jitter, and the
// control plane may stretch it.
func (a *Agent) heartbeat() time.Duration {
	every := a.opts.Heartbeat/2 + rand.N(a.opts.Heartbeat/2+1)
	return max(every, a.held.slowness(a.opts.Now()))
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (a *Agent) logSend(err error) {
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrOffline) {
		a.log.Warn("send", "error", err)
	}
}

// report signs and publishes one report; full is nil in a heartbeat.
func (a *Agent) report(ctx context.Context, full *wire.Reported) error {
	n, err := a.counter.Next()
	if err != nil {
		a.noteDisk(err)
		return err
	}
	b, err := wire.Marshal(&wire.Report{ID: a.ids.next(), Held: a.heldState(), Counter: n, Full: full})
	if err != nil {
		return err
	}
	signed, err := trust.Sign(a.signer, wire.AADReport, b)
	if err != nil {
		return err
	}
	return a.publish(ctx, wire.UpReport, signed)
}

// reported is the whole state, as the control plane sees it.
func (a *Agent) reported() *wire.Reported {
	s := a.state.Get()
	r := &wire.Reported{
		Phase: phaseOf(s), Conditions: a.board.Conditions(), Journal: a.journalLines(),
		Target: a.facts().Target.String(), HighestCounter: s.HighestCounter, BytesFetched: s.BytesFetched,
		Sources: sourceBytes(s.Sources),
	}
	r.Policy, r.Power, r.Servers, r.Tap = a.budget.State(), a.reportedPower(), a.reportedServers(), a.reportedTap()
	r.Boot, r.Agent = a.reportedBoot(), a.reportedAgent()
	if c := s.Current; c != nil {
		r.Running, r.RunningCounter, r.ParamsDigest = c.Release.Sum(), c.Counter, c.ParamsDigest
	}
	r.Step = stepOf(s, r.Journal)
	if f := s.Failure; f != nil {
		r.FailureClass, r.Failure, r.FailedRelease = string(f.Class), clipText(f.Cause, maxCauseText), f.Release.Sum()
		if f.Step != "" {
			r.Failure = string(f.Step) + ": " + r.Failure
		}
	}
	return r
}

// stepOf is the step that an update is at or, of a failed one, at which it
// failed: its journal ends with what was undone first.
func stepOf(s state.State, journal []wire.StepEntry) string {
	if s.Update == nil && s.Failure != nil && s.Failure.Step != "" {
		return string(s.Failure.Step)
	}
	if n := len(journal); n > 0 {
		return journal[n-1].Step
	}
	return ""
}

func phaseOf(s state.State) wire.Phase {
	switch {
	case s.Update != nil:
		return wire.PhaseUpdating
	case s.Failure != nil && s.Failure.Generation.Compare(s.Held) >= 0:
		return wire.PhaseFailed
	}
	return wire.PhaseIdle
}

// journalLines returns the lines of the last update, oldest first.
func (a *Agent) journalLines() []wire.StepEntry {
	entries := a.journal.Entries()
	if len(entries) == 0 {
		return nil
	}
	last := entries[len(entries)-1].Update
	var out []wire.StepEntry
	for _, e := range entries {
		if e.Update == last {
			out = append(out, stepEntry(e))
		}
	}
	return out[max(0, len(out)-maxJournal):]
}

func stepEntry(e slot.Entry) wire.StepEntry {
	return wire.StepEntry{Step: string(e.Step), State: e.State, Release: e.Release.Sum(), Message: clipText(e.Message, 512), Time: e.Time.UnixMilli()}
}

func clipText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 { // not inside a rune
		n--
	}
	return s[:n] + "…"
}

// eventLoop sends events in order, one by one.
func (a *Agent) eventLoop(ctx context.Context) error {
	for {
		e, ok := a.board.NextEvent()
		up, changed := a.conn.up()
		if !ok || !up {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			case <-a.wakeEvents:
			}
			continue
		}
		err := a.send(ctx, wire.UpEvent, &e)
		switch {
		case err == nil || errors.Is(err, wire.ErrMalformed):
			a.board.TookEvent(e)
		case ctx.Err() != nil:
			return nil
		default:
			if !pause(ctx, time.Second+rand.N(4*time.Second)) {
				return nil
			}
		}
		if n := a.board.DroppedEvents(); n > 0 && !a.board.Holds(health.EventsDropped) {
			a.board.Set(health.EventsDropped, health.Warning, "more events than the queue of 256 holds; the oldest were dropped")
		}
	}
}
