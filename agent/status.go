package agent

import (
	"context"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/localapi"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/proto/wire"
)

// Status is what an agent says of itself.
type Status = localapi.Status

const diskLow = 64 << 20

// healthLoop looks at what no other loop sees: the clock, the disk, the
// certificate.
func (a *Agent) healthLoop(ctx context.Context) error {
	ticker := time.NewTicker(a.opts.CheckEvery)
	defer ticker.Stop()
	for {
		now, doubtful := a.clock()
		if doubtful != a.board.Holds(health.ClockDoubtful) {
			a.board.Update(doubtful, health.ClockDoubtful, health.Warning, "the clock is before a time that has certainly passed; expiry is judged at "+now.UTC().Format(time.RFC3339))
			if doubtful {
				a.board.Event(wire.Event{ID: a.ids.next(), Kind: "clock", Message: "the clock is doubtful"})
			}
		}
		if free, err := a.opts.Host.DiskFree(); err == nil && free >= 0 {
			low := free < diskLow
			if low != a.board.Holds(health.DiskLow) {
				a.board.Update(low, health.DiskLow, health.Warning, fmt.Sprintf("%d MiB are free", free>>20))
			}
			if !low {
				a.board.Clear(health.DiskFull)
			}
		}
		a.noteWays()
		a.noteHeldOff()
		a.keepTrace()
		if a.board.Holds(health.DiskFailing) {
			a.noteDisk(a.state.Change(func(*state.State) {})) // does it still?
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// serveLocal serves the unix socket, where one is configured. Without it the
// device goes on: status is worth less than inference.
func (a *Agent) serveLocal(ctx context.Context) error {
	if a.opts.LocalSocket == "" {
		return nil
	}
	src := localapi.Source{Status: a.Status, Logs: a.opts.LogTail, Apply: a.ApplyBundle, Receipt: a.Receipt,
		Observe: a.observePosted, Sample: a.sampleRequests, HoldOff: a.holdOff, ReleaseHold: a.releaseHold, Traces: a.timelines,
		Listening: func() { a.board.Clear(health.LocalSocket) }}
	for {
		err := localapi.Serve(ctx, a.opts.LocalSocket, src)
		if ctx.Err() != nil {
			return nil
		}
		a.log.Warn("local socket", "error", err, "again", retryMax)
		a.board.Set(health.LocalSocket, health.Warning, "status, explain and logs are not served: "+err.Error())
		if !pause(ctx, retryMax) {
			return nil
		}
	}
}

// Status returns what the agent is and does now.
func (a *Agent) Status() Status {
	id, s := a.identity.Load(), a.state.Get()
	now := a.opts.Now()
	_, doubtful := a.clock()
	st := Status{
		DeviceID: id.DeviceID, Tenant: id.Tenant, Name: id.Name, Serial: id.Serial, Labels: id.Labels,
		Hardware: a.facts().Hardware, Target: a.facts().Target.String(), Agent: a.opts.Version,
		Held: s.Held, Phase: phaseOf(s), Conditions: a.board.Conditions(), Journal: a.journalLines(),
		Boot: a.ids.bootID.Load(), ClockDoubtful: doubtful, TrustedTime: a.trust.TrustedTime(), Uptime: now.Sub(a.started),
		BytesFetched: s.BytesFetched, Sources: sourceBytes(s.Sources),
	}
	if leaf, err := id.Leaf(); err == nil {
		st.CertificateNotAfter = leaf.NotAfter
	}
	var cause error
	st.Link, cause, st.LinkSince = a.conn.get()
	if cause != nil {
		st.LinkError = cause.Error()
	}
	a.conn.mu.Lock()
	st.LastSeen = a.conn.lastSeen
	a.conn.mu.Unlock()
	sp := a.spool.Stats()
	st.SpoolBytes, st.SpoolFrames, st.SpoolDropped = sp.Bytes, sp.Frames, int64(sp.Dropped)
	if c := s.Current; c != nil {
		st.Running, st.RunningName, st.ParamsDigest = string(c.Release), nameOf(c), c.ParamsDigest
	}
	st.Policy, st.Power, st.Servers, st.Tap = a.budget.State(), a.reportedPower(), a.reportedServers(), a.reportedTap()
	st.Step = stepOf(s, st.Journal)
	if f := s.Failure; f != nil {
		st.FailureClass, st.Failure = string(f.Class), f.Cause
	}
	if d, err := a.desired(); err == nil && d != nil && d.Install != nil {
		st.Desired, st.Rollout, st.DesiredParams = string(d.Install.Release), d.Install.Rollout, d.Install.ParamsDigest
		st.DesiredName = d.Install.TUFTarget
	}
	st.Summary, st.Reasons = a.explain(s, st)
	return st
}

func nameOf(i *state.Install) string { return i.Name + "@" + i.Version }

// explain says in words where the device stands and what holds it up.
func (a *Agent) explain(s state.State, st Status) (summary string, reasons []string) {
	running := "nothing"
	if s.Current != nil {
		running = nameOf(s.Current)
	}
	switch {
	case s.Update != nil && s.Update.Undoing:
		summary = fmt.Sprintf("Going back to %s: %s.", running, s.Update.Cause)
	case s.Update != nil:
		summary = fmt.Sprintf("Updating from %s to %s, at step %s.", running, s.Update.Install.TUFTarget, st.Step)
	case st.Phase == wire.PhaseFailed:
		summary = fmt.Sprintf("Runs %s; the wanted release failed here.", running)
		reasons = append(reasons, fmt.Sprintf("%s at %s: %s", s.Failure.Class, s.Failure.Step, s.Failure.Cause))
	case len(s.Desired) == 0:
		summary = "Runs " + running + "; the control plane has not said what is wanted yet."
	default:
		summary = fmt.Sprintf("Runs %s, as wanted by generation %s.", running, s.Held)
	}
	reasons = append(reasons, a.osWords(s)...)
	reasons = append(reasons, a.held.list()...)
	if st.Link != "connected" {
		reasons = append(reasons, fmt.Sprintf("link %s since %s: %s", st.Link, st.LinkSince.UTC().Format(time.RFC3339), st.LinkError))
	}
	for _, c := range st.Conditions {
		if c.Name != health.LinkOffline && c.Name != health.BootChain && c.Name != health.UpdateFailed {
			reasons = append(reasons, c.Name+": "+c.Message)
		}
	}
	return summary, reasons
}
