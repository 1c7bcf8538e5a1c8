package conductor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/rollout"
)

// batchSize is how many devices get their desired state in one transaction.
const batchSize = 500

// tag names a rollout in desired states. A second attempt has another name, so
// that the device gets a new generation and tries again.
func tag(id string, attempt int) string {
	if attempt <= 1 {
		return id
	}
	return id + "#" + strconv.Itoa(attempt)
}

// RolloutID returns the id of the rollout that a desired state names.
func RolloutID(text string) string {
	id, _, _ := strings.Cut(text, "#")
	return id
}

// outcome is what became of a decision.
type outcome struct {
	dec  store.Decision
	sent int
	why  string
}

// carryOut sends the stored decisions that wait, in order. It stops, with an
// error, when the fleet cannot take one now. The caller holds mu.
func (c *Conductor) carryOut(ctx context.Context) error {
	ctx = store.WithRecord(ctx, nil) // the trace of a call was written with its decisions
	for len(c.waiting) > 0 {
		batch, intents, err := c.batch()
		if err != nil {
			return err
		}
		tenant := batch[0].Tenant
		done, err := c.sendBatch(ctx, tenant, batch, intents)
		if merr := c.mark(ctx, tenant, done); merr != nil {
			return errors.Join(err, merr) // what was sent is sent again, which changes nothing
		}
		c.waiting = slices.Delete(c.waiting, 0, len(done))
		if err != nil {
			return err
		}
	}
	return nil
}

// batch takes waiting decisions of one tenant, at most one for each device.
func (c *Conductor) batch() ([]store.Decision, []fleet.Intent, error) {
	var ds []store.Decision
	var intents []fleet.Intent
	seen := map[string]bool{}
	for _, w := range c.waiting {
		if len(ds) == batchSize || seen[w.Device] || len(ds) > 0 && w.Tenant != ds[0].Tenant {
			break
		}
		in, err := c.intent(w)
		if err != nil {
			return nil, nil, err
		}
		seen[w.Device] = true
		ds, intents = append(ds, w), append(intents, in)
	}
	return ds, intents, nil
}

func (c *Conductor) intent(w store.Decision) (fleet.Intent, error) {
	var d rollout.Decision
	if err := json.Unmarshal([]byte(w.Body), &d); err != nil {
		return fleet.Intent{}, fmt.Errorf("read decision %d: %w", w.Sequence, err)
	}
	in := fleet.Intent{Device: d.Device, Release: d.Release, Rollout: w.Rollout}
	if d.Kind != rollout.Offer {
		in.RollbackAllowed, in.Extra.Now = true, true // a way back waits for nothing
		return in, nil
	}
	// A rollout of an older release is a person's wish: the devices may go back.
	in.RollbackAllowed = c.cfg.Releases.Counter(w.Tenant, d.Release) < c.cfg.Releases.Counter(w.Tenant, d.Before)
	if r := c.find(w.Rollout); r != nil {
		in.Rollout = tag(w.Rollout, r.state.Exec[d.Device].Attempts)
		in.Extra = added(r.spec.Schedule)
	}
	return in, nil
}

func (c *Conductor) find(id string) *run {
	for _, r := range c.runs {
		if r.row.ID == id {
			return r
		}
	}
	return nil
}

// sendBatch gives the fleet all at once, and one by one when that does not
// work. It returns what is settled, in order.
func (c *Conductor) sendBatch(ctx context.Context, tenant string, batch []store.Decision, intents []fleet.Intent) ([]outcome, error) {
	var done []outcome
	if err := c.cfg.Fleet.SetDesiredAll(ctx, tenant, intents); err == nil {
		for _, d := range batch {
			done = append(done, outcome{d, store.DecisionSent, ""})
		}
		return done, nil
	}
	for i, d := range batch {
		err := c.cfg.Fleet.SetDesiredAll(ctx, tenant, intents[i:i+1])
		switch {
		case err == nil:
			done = append(done, outcome{d, store.DecisionSent, ""})
		case permanent(err):
			done = append(done, outcome{d, store.DecisionRefused, err.Error()})
		default:
			return done, fmt.Errorf("send %s to %s: %w", d.Kind, d.Device, err)
		}
	}
	return done, nil
}

// permanent says that sending the same again will not help.
func permanent(err error) bool {
	for _, known := range []error{fleet.ErrUnknownDevice, fleet.ErrRevoked, fleet.ErrPending, fleet.ErrFromFuture, fleet.ErrParameter, fleet.ErrInvalid} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// mark stores what became of decisions, and tells the rollout of those that
// the fleet refused.
func (c *Conductor) mark(ctx context.Context, tenant string, done []outcome) error {
	if len(done) == 0 {
		return nil
	}
	err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		for _, o := range done {
			if err := tx.MarkDecision(ctx, tenant, o.dec.Sequence, o.sent, o.why); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, o := range done {
		if o.sent != store.DecisionRefused {
			continue
		}
		c.cfg.Logger.Warn("the fleet refused a decision", "rollout", o.dec.Rollout, "device", o.dec.Device, "kind", o.dec.Kind, "err", o.why)
		if r := c.find(o.dec.Rollout); r != nil && o.dec.Kind == string(rollout.Offer) {
			errs = append(errs, c.refused(ctx, r, o))
		}
	}
	return errors.Join(errs...)
}

// refused makes a refused offer a rejection of that device.
func (c *Conductor) refused(ctx context.Context, r *run, o outcome) error {
	d, now := r.draft(), c.cfg.Now()
	if !d.state.Observe(rollout.Report{Device: o.dec.Device, At: now, Status: rollout.FailedState, Class: ota.Rejected, Detail: o.why}) {
		return nil
	}
	n := r.note(d, o.dec.Device)
	n.Changed = now
	d.notes[o.dec.Device], d.touched[o.dec.Device] = n, true
	c.nudge()
	return c.commit(ctx, r, d)
}
