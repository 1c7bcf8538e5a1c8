package build

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/proto/wire"
)

const (
	maxText = 2000            // of what a device says
	busyFor = 2 * time.Minute // a device that gave a job back for want of headroom is left alone
)

func cut(s string) string {
	if len(s) > maxText {
		return s[:maxText]
	}
	return s
}

// Hello tells a builder that connected where it stands.
func (q *Queue) Hello(tenant, device string) {
	v, err := q.cfg.Fleet.Get(tenant, device)
	q.mu.Lock()
	defer q.mu.Unlock()
	if err == nil && isBuilder(v) {
		q.greet(v, q.cfg.Now())
	}
}

// Message takes one message of a device on up/build. nil means that it was
// taken, or that sending it again would not mend it.
func (q *Queue) Message(ctx context.Context, tenant, device string, payload []byte) error {
	var m wire.Build
	if err := wire.Unmarshal(payload, &m); err != nil {
		return q.cfg.Fleet.Noticed(ctx, tenant, device, "malformed", fmt.Sprintf("up/build, %d bytes: %v", len(payload), err), "")
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.cfg.Now()
	p := place{tenant, device}
	b := q.builders[p]
	if b == nil {
		b = &builder{}
		q.builders[p] = b
	}
	b.heard = now
	if m.Target != "" {
		b.target = cut(m.Target)
	}
	if m.Kind == wire.BuildAsk {
		return q.asked(ctx, tenant, device, m, now)
	}
	j := q.jobs[jobID{tenant, m.Job}]
	if j == nil || j.State != store.BuildLeased || j.Device != device || j.Attempt != m.Attempt {
		return q.stray(ctx, tenant, device, m, j, now)
	}
	switch m.Kind {
	case wire.BuildHeartbeat:
		j.expires = now.Add(q.cfg.Life)
		j.step, j.percent, j.said = cut(m.Step), min(m.Percent, 100), cut(m.Message)
		q.notify()
		q.tell(tenant, device, q.granted(j, now))
	case wire.BuildLog:
		if len(m.Data) <= wire.MaxBuildLog {
			j.log.add(m.Offset, m.Data)
			q.notify()
		}
	case wire.BuildFailed:
		if m.Class == wire.BuildBusy {
			b.busyUntil = now.Add(busyFor)
		}
		if err := q.giveBack(ctx, j, className(m.Class), cut(m.Message)); err != nil {
			return err
		}
		q.tell(tenant, device, q.about(tenant, device, m.Job, m.Attempt, wire.LeaseStop, now, "the attempt has failed"))
	case wire.BuildDone:
		return q.done(ctx, j, m, now)
	}
	return nil
}

// className keeps what devices call a failure to the closed list.
func className(s string) string {
	switch s {
	case wire.BuildBusy, wire.BuildMemory, wire.BuildTimeout, wire.BuildTransfer, wire.BuildUnsupported, wire.BuildGolden, wire.BuildMismatch, wire.BuildStopped:
		return s
	}
	return wire.BuildTool
}

// asked answers a device that is free; mu is held.
func (q *Queue) asked(ctx context.Context, tenant, device string, m wire.Build, now time.Time) error {
	v, err := q.cfg.Fleet.Get(tenant, device)
	if err != nil {
		return err
	}
	if isBuilder(v) && q.held(tenant, device) == nil {
		if j := q.pick(v, m.Target, now); j != nil {
			if err := q.lease(ctx, j, device, now); err != nil {
				return err
			}
		}
	}
	q.tell(tenant, device, q.stand(tenant, device, now))
	return nil
}

// stray answers for an attempt that the device does not hold: it may have
// ended, or be another's now. One whose lease ran out while nobody took the job
// goes on; mu is held.
func (q *Queue) stray(ctx context.Context, tenant, device string, m wire.Build, j *job, now time.Time) error {
	if j != nil && j.State == store.BuildQueued && j.Device == device && j.Attempt == m.Attempt && q.held(tenant, device) == nil &&
		len(j.Tried) > 0 && j.Tried[len(j.Tried)-1].Class == wire.BuildTimeout && now.Before(j.Leased.Add(q.cfg.Longest)) && m.Kind != wire.BuildFailed {
		if v, err := q.cfg.Fleet.Get(tenant, device); err == nil {
			if _, ok := canBuild(v, "", j.recipe, j.target); ok {
				return q.resume(ctx, j, m, now)
			}
		}
	}
	if m.Kind == wire.BuildLog {
		return nil
	}
	state, why := wire.LeaseStop, "the lease has ended"
	var b store.Build
	err := q.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		b, err = tx.BuildByID(ctx, tenant, m.Job)
		return err
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		why = "there is no such build"
	case err != nil:
		return err
	case b.State == store.BuildDone && b.Device == device && b.Attempt == m.Attempt:
		state, why = wire.LeaseStored, ""
	case b.State == store.BuildCancelled:
		why = "it was cancelled: " + b.Message
	}
	q.tell(tenant, device, q.about(tenant, device, m.Job, m.Attempt, state, now, why))
	return nil
}

// resume gives a job back to the device whose lease ran out; mu is held.
func (q *Queue) resume(ctx context.Context, j *job, m wire.Build, now time.Time) error {
	if err := q.keep(ctx, j, func(b *store.Build) {
		b.State, b.Message = store.BuildLeased, ""
		b.Tried = b.Tried[:len(b.Tried)-1]
	}); err != nil {
		return err
	}
	j.expires = now.Add(q.cfg.Life)
	if m.Kind == wire.BuildDone {
		return q.done(ctx, j, m, now)
	}
	q.tell(j.Tenant, j.Device, q.granted(j, now))
	return nil
}
