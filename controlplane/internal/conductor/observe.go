package conductor

import (
	"context"
	"maps"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
	"github.com/skein-fleet/skein/ota/rollout"
	"github.com/skein-fleet/skein/proto/wire"
)

// devices returns the fleet as the planner sees it.
func (c *Conductor) devices(r *run, d *draft, views map[string]*fleet.View) []rollout.Device {
	out := make([]rollout.Device, 0, len(views))
	outside := c.outside(r.row.Tenant, r.spec.Schedule)
	for _, v := range views {
		if v.State == fleet.Pending || v.State == fleet.Revoked {
			continue
		}
		dev := c.device(r.row.Tenant, r.spec.Release, v)
		dev.Outside = outside(v)
		exec, mine := d.state.Exec[v.ID]
		dev.Newer, dev.Older = c.rivals(r, v.ID)
		if dev.Newer == "" && mine && open(exec) && exec.Attempts > 0 && RolloutID(v.Rollout) != r.row.ID && len(c.waiting) == 0 {
			dev.Newer = "(assigned by hand)"
			if v.Rollout != "" {
				dev.Newer = RolloutID(v.Rollout)
			}
		}
		out = append(out, dev)
	}
	return out
}

// open says that the rollout still wants something of the device.
func open(e rollout.Exec) bool {
	return e.InFlight() || e.Succeeded() || e.Status == rollout.RollingBack
}

// device is what does not depend on a running rollout.
func (c *Conductor) device(tenant string, release ota.Digest, v *fleet.View) rollout.Device {
	labels := make(map[string]string, len(v.Labels)+5)
	for k, value := range map[string]string{"id": v.ID, "name": v.Name, "serial": v.Serial, "hardware": v.Hardware, "target": v.Target} {
		if value != "" {
			labels[k] = value
		}
	}
	maps.Copy(labels, v.Labels)
	dev := rollout.Device{ID: v.ID, Labels: labels, Target: v.Target, Online: v.Online && !v.FromFuture, LastSeen: v.LastSeen,
		OnlineSince: c.online[v.ID], Release: v.Running, Held: v.Held, Wanted: v.Wanted}
	if _, err := c.cfg.Releases.Fits(tenant, release, v.Target); err != nil {
		dev.Incompatible = err.Error()
	}
	return dev
}

// rivals returns the newer rollout that takes a device over, and the older one
// that still has it.
func (c *Conductor) rivals(r *run, id string) (newer, older string) {
	after := false
	for _, other := range c.runs { // oldest first
		if other == r {
			after = true
			continue
		}
		if other.row.Tenant != r.row.Tenant || other.state.Phase.Final() {
			continue
		}
		e, has := other.state.Exec[id]
		switch {
		case !has:
		case after && other.spec.Supersede == rollout.SupersedeNewest && claims(e) && other.state.Phase != rollout.Aborting:
			newer = other.row.ID
		case !after && (e.Status == rollout.Queued || open(e)):
			older = other.row.ID
		}
	}
	return newer, older
}

// claims says that a rollout wants, or made, the device run its release.
func claims(e rollout.Exec) bool { return e.Status == rollout.Queued || e.InFlight() || e.Succeeded() }

// observe takes in what the devices of a rollout say, and reports whether it
// changed anything that must be kept.
func (c *Conductor) observe(r *run, d *draft, views map[string]*fleet.View, now time.Time) bool {
	changed := false
	for id, e := range d.state.Exec {
		v := views[id]
		if v == nil || e.Attempts == 0 {
			continue
		}
		rep, ok := r.report(d, e, v, now)
		if !ok || !d.state.Observe(rep) {
			continue
		}
		n := r.note(d, id)
		n.Changed = now
		if rep.Status == rollout.Done && n.SwitchDone.IsZero() {
			n.SwitchBegan, n.SwitchDone = switched(v, r.spec.Release, n.Offered, now)
		}
		d.notes[id], d.touched[id] = n, true
		changed = true
	}
	return changed
}

// report reads a device's state as its answer to the rollout. ok is false when
// the device has said nothing about it yet.
func (r *run) report(d *draft, e rollout.Exec, v *fleet.View, now time.Time) (rep rollout.Report, ok bool) {
	rep = rollout.Report{Device: v.ID, At: now, Attempt: e.Attempts}
	if v.LastSeen.Before(now) && !v.LastSeen.IsZero() {
		rep.At = v.LastSeen // an old word is no sign of life
	}
	// A heartbeat may say that a new desired state is held before the state
	// that follows from it is reported.
	if !v.Reported || !v.Converged || v.ReportedHeld != v.Held || RolloutID(v.Rollout) != r.row.ID {
		return rep, false
	}
	n := r.note(d, v.ID)
	if back := e.Status == rollout.RollingBack || e.Withdrawn; back {
		if v.WantedRelease != n.Back || v.Running != n.Back || v.Phase == wire.PhaseUpdating {
			return rep, false
		}
		rep.Status = rollout.Restored
		return rep, true
	}
	if v.WantedRelease != r.spec.Release || v.Rollout != tag(r.row.ID, e.Attempts) {
		return rep, false
	}
	switch {
	case v.Phase == wire.PhaseFailed && v.FailedRelease == r.spec.Release:
		rep.Status, rep.Class, rep.Detail = rollout.FailedState, ota.FailureClass(v.FailureClass), v.Failure
	case v.Phase == wire.PhaseIdle && v.Running == r.spec.Release:
		rep.Status = rollout.Done
	case v.Phase == wire.PhaseUpdating:
		// A device that soaks may still undo it, so it counts when it has
		// committed, and not before.
		rep.Status, rep.Step, rep.Waits = rollout.Accepted, ota.Step(v.Step), policy.WaitText(v.Transfer)
	case e.Status == rollout.Offered:
		rep.Status = rollout.Accepted // holds the desired state and has not begun
	default:
		return rep, false
	}
	return rep, true
}

// switched returns when the device began and ended its switch, by its own
// clock; from and to are taken when its journal does not say.
func switched(v *fleet.View, release ota.Digest, from, to time.Time) (began, done time.Time) {
	began, done = from, to
	sum := release.Sum()
	for _, j := range v.Journal {
		if j.Step != string(ota.StepSwitch) || string(j.Release) != string(sum) {
			continue
		}
		switch j.State {
		case wire.StepStarted:
			began = time.UnixMilli(j.Time).UTC()
		case wire.StepDone:
			done = time.UnixMilli(j.Time).UTC()
		}
	}
	return began, done
}

// readingShare bounds the share of time spent on looking, at measurements and
// at rollouts, to 1/10.
const readingShare = 10

// measure reads, not too often, the figures that the gate of the current wave
// asks for. When they cannot be read the last ones stay.
func (c *Conductor) measure(ctx context.Context, r *run, d *draft, now time.Time) {
	w := d.state.Wave
	if c.cfg.Measures == nil || d.state.Phase != rollout.Running || w >= len(r.spec.Waves) || w >= len(d.state.Waves) || len(r.spec.Waves[w].Gate.Metrics) == 0 {
		return
	}
	if now.Before(r.evidenceNext) {
		return
	}
	began := time.Now()
	defer func() { r.evidenceNext = now.Add(max(c.cfg.EvidenceEvery, readingShare*time.Since(began))) }()
	ev := rollout.Evidence{Metrics: map[string]map[string]gate.Pair{}}
	for _, rule := range r.spec.Waves[w].Gate.Metrics {
		pairs := map[string]gate.Pair{}
		for _, id := range d.state.Waves[w].Members {
			e := d.state.Exec[id]
			n := r.note(d, id)
			if e.Wave != w || !e.Succeeded() || n.SwitchDone.IsZero() {
				continue
			}
			p, err := c.pair(ctx, r, rule.Name, id, n, now)
			if err != nil {
				c.cfg.Logger.Warn("read measurements", "rollout", r.row.Name, "device", id, "err", err)
				return
			}
			pairs[id] = p
		}
		ev.Metrics[rule.Name] = pairs
	}
	r.evidence = ev
}

// pair compares a device with its own past. The past does not change, so it is
// read once.
func (c *Conductor) pair(ctx context.Context, r *run, metric, id string, n note, now time.Time) (p gate.Pair, err error) {
	key := metric + "\x00" + id + "\x00" + n.SwitchBegan.String()
	before, known := r.before[key]
	if !known {
		if before, err = c.cfg.Measures.Stats(ctx, id, metric, n.SwitchBegan.Add(-c.cfg.Window), n.SwitchBegan.Add(-time.Millisecond)); err != nil {
			return p, err
		}
		// Blocks of the time before the switch may still be on their way.
		if now.Sub(n.SwitchDone) > 2*time.Minute {
			r.before[key] = before
		}
	}
	p.Before = before
	to := n.SwitchDone.Add(c.cfg.Window)
	if ahead := now.Add(10 * time.Minute); to.After(ahead) { // a device's clock may run ahead of ours
		to = ahead
	}
	p.After, err = c.cfg.Measures.Stats(ctx, id, metric, n.SwitchDone.Add(time.Millisecond), to)
	return p, err
}
