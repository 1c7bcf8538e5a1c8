package fleet

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// noiseLimit bounds the events per minute that the control plane itself makes
// about one misbehaving device; the rest is only counted.
const noiseLimit = 20

// redelivered is how far back a report may lie that the link gives twice: a
// device sends one at a time.
const redelivered = 4

// Admit says whether a device may open a session now.
func (f *Fleet) Admit(tenant, device string) error {
	tw := f.find(tenant, device)
	if tw == nil {
		return fmt.Errorf("%w: %s", ErrUnknownDevice, device)
	}
	tw.mu.Lock()
	defer tw.mu.Unlock()
	switch tw.dev.State {
	case store.DeviceRevoked:
		return fmt.Errorf("%w: %s: %s", ErrRevoked, device, tw.dev.RevokedWhy)
	case store.DevicePending:
		return fmt.Errorf("%w: %s", ErrPending, device)
	}
	return nil
}

// Opened notes a new session of a device; sessions are numbered upwards.
func (f *Fleet) Opened(tenant, device string, session uint64) {
	if tw := f.find(tenant, device); tw != nil {
		tw.mu.Lock()
		tw.session = max(tw.session, session)
		tw.mu.Unlock()
	}
}

// Closed notes the end of a session; an older session's end changes nothing.
func (f *Fleet) Closed(tenant, device string, session uint64) {
	tw := f.find(tenant, device)
	if tw == nil {
		return
	}
	tw.mu.Lock()
	was := tw.online && tw.session == session
	if was {
		tw.online = false
	}
	tw.mu.Unlock()
	if was {
		f.touched(tw)
	}
}

// Message takes one message of a device. It returns nil when the message is
// stored, or is one that sending again would not mend; any other error asks
// for it again.
func (f *Fleet) Message(ctx context.Context, tenant, device string, kind wire.Kind, payload []byte) error {
	start := time.Now()
	defer func() { f.metrics.ingest.WithLabelValues(string(kind)).Observe(time.Since(start).Seconds()) }()
	tw := f.find(tenant, device)
	if tw == nil {
		return fmt.Errorf("%w: %s", ErrUnknownDevice, device)
	}
	if err := f.Admit(tenant, device); err != nil {
		return err
	}
	var err error
	switch kind {
	case wire.UpPresence:
		err = f.presence(tw, payload)
	case wire.UpHello:
		err = f.helloed(ctx, tw, payload)
	case wire.UpReport:
		err = f.report(ctx, tw, payload)
	case wire.UpEvent:
		err = f.event(ctx, tw, payload)
	case wire.UpLog:
		err = f.crash(ctx, tw, payload)
	case wire.UpTelemetry:
		err = f.telemetry(ctx, tw, payload)
	default:
		f.metrics.dropped.WithLabelValues("unhandled-kind").Inc()
		return nil
	}
	if errors.Is(err, wire.ErrMalformed) {
		f.metrics.dropped.WithLabelValues("malformed").Inc()
		return f.Noticed(ctx, tenant, device, "malformed", fmt.Sprintf("%s, %d bytes: %v", kind, len(payload), err), "")
	}
	return err
}

// Noticed stores an event that the control plane itself makes about a device:
// what it refused, or an incident. A flood of them is cut and counted.
func (f *Fleet) Noticed(ctx context.Context, tenant, device, kind, message, attack string) error {
	f.metrics.noticed.WithLabelValues(kind).Inc()
	tw := f.find(tenant, device)
	if tw == nil {
		f.cfg.Logger.Warn("unknown device", "device", device, "kind", kind, "message", message)
		return nil
	}
	now := f.cfg.Now()
	tw.mu.Lock()
	over := tw.noise.over(now, time.Minute, noiseLimit)
	tw.mu.Unlock()
	if over {
		f.metrics.dropped.WithLabelValues("noise").Inc()
		return nil
	}
	f.cfg.Logger.Warn("device event", "device", device, "kind", kind, "message", message, "attack", attack)
	return f.events.Append(ctx, store.Event{Tenant: tenant, Device: device, Time: now, Received: now, Kind: kind, Message: message, Attack: attack})
}

func (f *Fleet) presence(tw *twin, payload []byte) error {
	var p wire.Presence
	if err := wire.Unmarshal(payload, &p); err != nil {
		return err
	}
	tw.mu.Lock()
	changed := false
	switch {
	case p.Online:
		changed = tw.heard(f.cfg.Now(), p.ID.Boot)
		tw.connection = p.Connection
	case p.ID.Boot == tw.boot && p.Connection >= tw.connection:
		changed, tw.online = tw.online, false
	}
	tw.mu.Unlock()
	if changed {
		f.touched(tw)
	}
	return nil
}

// heard notes that the device is there; the caller holds mu.
func (tw *twin) heard(now time.Time, boot uint64) (changed bool) {
	changed = !tw.online || tw.boot != boot
	if tw.boot != boot {
		tw.boot, tw.connection = boot, 0
	}
	tw.online, tw.lastSeen = true, now
	return changed
}

func (f *Fleet) helloed(ctx context.Context, tw *twin, payload []byte) error {
	var h wire.Hello
	if err := wire.Unmarshal(payload, &h); err != nil {
		return err
	}
	now := f.cfg.Now()
	tw.mu.Lock()
	if tw.seen.has(h.ID) {
		tw.mu.Unlock()
		f.metrics.dropped.WithLabelValues("repeat").Inc()
		return nil
	}
	tw.heard(now, h.ID.Boot)
	tw.agent, tw.clockDoubtful = cut(h.Agent, maxName), h.Clock.Doubtful
	odd := tw.probed(now, h.Target, h.Hardware)
	future := tw.setHeld(h.Held)
	tw.sendAfter = time.Time{} // a new connection is answered at once
	tw.mu.Unlock()
	unfit := f.offered(tw, h.Peer)
	if err := errors.Join(f.afterHeld(ctx, tw, future), f.odd(ctx, tw, odd), f.odd(ctx, tw, unfit)); err != nil {
		return err
	}
	tw.mu.Lock()
	tw.seen.add(h.ID)
	tw.mu.Unlock()
	f.mu.Lock()
	storm := f.hello.over(now, time.Second, f.cfg.HellosPerSecond)
	f.mu.Unlock()
	if storm {
		f.metrics.slowDown.Inc()
		f.queue.Add(tw, workSlowDown)
	}
	f.queue.Add(tw, workDesired)
	return nil
}

// setHeld takes what the device holds and says whether it looks to be from the
// future, for afterHeld; the caller holds mu.
func (tw *twin) setHeld(h wire.Held) (future bool) {
	tw.held = h
	if tw.fromFuture || !tw.ahead() {
		return false
	}
	tw.fromFuture = true
	return true
}

// ahead says that the device holds something newer than anything that was ever
// given to it; the caller holds mu.
func (tw *twin) ahead() bool {
	var wanted wire.Generation
	if tw.wanted != nil {
		wanted = tw.wanted.Generation
	}
	return tw.held.Generation.Compare(wanted) > 0
}

// afterHeld marks the twin, and makes a hold from the future durable and known.
func (f *Fleet) afterHeld(ctx context.Context, tw *twin, future bool) error {
	f.touched(tw)
	if !future {
		return nil
	}
	incident, err := f.keepFuture(ctx, tw)
	if err != nil || incident == "" {
		return err
	}
	return f.Noticed(ctx, tw.tenant, tw.id, "generation-from-future", incident, "")
}

// keepFuture makes a hold from the future durable and describes it, or returns
// nothing when it is none. A desired state is durable before the twin has it,
// so only under change it is known what was given.
func (f *Fleet) keepFuture(ctx context.Context, tw *twin) (incident string, err error) {
	f.change.Lock()
	defer f.change.Unlock()
	tw.mu.Lock()
	held, wanted, still := tw.held.Generation, wire.Generation{}, tw.fromFuture
	if tw.wanted != nil {
		wanted = tw.wanted.Generation
	}
	row, err := tw.row()
	tw.mu.Unlock()
	if err != nil || !still {
		return "", err
	}
	if err := f.cfg.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutTwins(ctx, []store.Twin{row}) }); err != nil {
		return "", err
	}
	return fmt.Sprintf("device holds generation %s, the newest given is %s: nothing is sent to it until a person confirms the generation", held, wanted), nil
}

func (f *Fleet) report(ctx context.Context, tw *twin, msg []byte) error {
	tw.mu.Lock()
	tenant, device, key := tw.dev.Tenant, tw.dev.ID, tw.key
	tw.mu.Unlock()
	payload, err := trust.Verify([]crypto.PublicKey{key}, wire.AADReport, msg)
	if err != nil {
		f.metrics.dropped.WithLabelValues("unsigned-report").Inc()
		return f.Noticed(ctx, tenant, device, "refused", "report: "+err.Error(), "unsigned")
	}
	var r wire.Report
	if err := wire.Unmarshal(payload, &r); err != nil {
		return err
	}
	now := f.cfg.Now()
	tw.mu.Lock()
	if r.Counter <= tw.reportCounter && tw.reportCounter-r.Counter <= redelivered && tw.seen.has(r.ID) {
		tw.mu.Unlock()
		f.metrics.dropped.WithLabelValues("repeat").Inc()
		return nil
	}
	if have := tw.reportCounter; r.Counter <= have && have > 0 {
		tw.mu.Unlock()
		f.metrics.dropped.WithLabelValues("replayed-report").Inc()
		what := fmt.Sprintf("report: counter %d was overtaken by %d", r.Counter, have)
		if r.Counter == have {
			what = fmt.Sprintf("report: counter %d comes again in another report: somebody else has the device's key", have)
		}
		return f.Noticed(ctx, tenant, device, "refused", what, "replay")
	}
	tw.seen.add(r.ID)
	tw.reportCounter = r.Counter
	tw.heard(now, r.ID.Boot)
	future := tw.setHeld(r.Held)
	var odd error
	if r.Full != nil {
		tidyReport(r.Full)
		tw.reported, tw.reportedHeld = r.Full, r.Held.Generation
		odd = tw.probed(now, r.Full.Target, "")
	}
	incomplete := tw.reported == nil
	tw.mu.Unlock()
	if incomplete {
		f.queue.Add(tw, workReport)
	}
	if err := errors.Join(f.afterHeld(ctx, tw, future), f.odd(ctx, tw, odd)); err != nil {
		return err
	}
	f.queue.Add(tw, workDesired)
	return nil
}

// odd notes what was wrong with a message that was taken nevertheless.
func (f *Fleet) odd(ctx context.Context, tw *twin, err error) error {
	if err == nil {
		return nil
	}
	return f.Noticed(ctx, tw.tenant, tw.id, "malformed", err.Error(), "")
}

func (f *Fleet) event(ctx context.Context, tw *twin, payload []byte) error {
	var e wire.Event
	if err := wire.Unmarshal(payload, &e); err != nil {
		return err
	}
	tidyEvent(&e)
	now := f.cfg.Now()
	tw.mu.Lock()
	repeat := tw.seen.has(e.ID)
	tenant, device := tw.dev.Tenant, tw.dev.ID
	tw.lastSeen = now
	tw.mu.Unlock()
	if repeat {
		f.metrics.dropped.WithLabelValues("repeat").Inc()
		return nil
	}
	err := f.events.Append(ctx, store.Event{Tenant: tenant, Device: device, ID: e.ID, Time: time.UnixMilli(e.Time), Received: now,
		Kind: e.Kind, Message: e.Message, Release: string(digestOf(e.Release)), Step: e.Step, Attack: e.Attack})
	if err != nil {
		return err
	}
	tw.mu.Lock()
	tw.seen.add(e.ID)
	tw.mu.Unlock()
	f.metrics.events.WithLabelValues(eventKind(e.Kind)).Inc()
	f.touched(tw)
	return nil
}

// eventKind keeps the label of a metric to the closed list.
func eventKind(kind string) string {
	switch kind {
	case "step", "refused", "crash", "throttle", "clock", "link":
		return kind
	}
	return "other"
}

func (f *Fleet) telemetry(ctx context.Context, tw *twin, payload []byte) error {
	var t wire.Telemetry
	if err := wire.Unmarshal(payload, &t); err != nil {
		return err
	}
	tw.mu.Lock()
	repeat := tw.seen.has(t.ID)
	tw.lastSeen = f.cfg.Now()
	v := tw.view()
	tw.mu.Unlock()
	if repeat || f.cfg.Telemetry == nil {
		f.metrics.dropped.WithLabelValues(map[bool]string{true: "repeat", false: "telemetry-off"}[repeat]).Inc()
		return nil
	}
	if err := f.cfg.Telemetry.Telemetry(ctx, v, t.Block); err != nil {
		return err
	}
	tw.mu.Lock()
	tw.seen.add(t.ID)
	tw.mu.Unlock()
	f.notify(v.ID)
	return nil
}
