package conductor

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota/rollout"
)

// While nobody looks, nobody hears the devices, so their silence says nothing:
// without an excuse every restart after an hour would roll back what soaks.
const (
	// downAfter is how long an earlier process must be gone for an excuse.
	downAfter = 10 * time.Second
	// asleepAfter is the same for this process: its machine was suspended, or
	// its clock was set forward.
	asleepAfter = 2 * time.Minute
	// keepSeen is how often the time of the last look is stored.
	keepSeen = 10 * time.Second
	seenKey  = "conductor-seen"
)

// lastSeen is when an earlier process looked last, zero when none did.
func lastSeen(ctx context.Context, tx *store.Tx) (time.Time, error) {
	text, err := tx.Setting(ctx, store.DefaultTenant, seenKey)
	if errors.Is(err, store.ErrNotFound) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, err
	}
	ms, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("read when rollouts were looked at last: %w", err)
	}
	return time.UnixMilli(ms), nil
}

// excuse stops the clocks of all rollouts for the time since the last look,
// when that was long ago, and notes the present one. The caller holds mu.
func (c *Conductor) excuse(ctx context.Context, after time.Duration) error {
	now := c.cfg.Now()
	if away := now.Sub(c.seen); !c.seen.IsZero() && away >= after {
		dec := rollout.Decision{Kind: rollout.Outage, At: now, Wait: away,
			Reason: fmt.Sprintf("the control plane was away for %s: no clock ran", away.Round(time.Second))}
		for _, r := range c.runs {
			d := r.draft()
			dec.Wave = r.state.Wave
			if err := d.apply(r, dec, Actor, now); err != nil {
				return err
			}
			if len(d.decisions) == 0 { // paused, so its clock stood anyway
				continue
			}
			if err := c.commit(ctx, r, d); err != nil {
				return fmt.Errorf("rollout %s: %w", r.row.Name, err)
			}
		}
	}
	c.seen = now
	if now.Sub(c.kept).Abs() < keepSeen {
		return nil
	}
	return c.keep(ctx)
}

// keep stores the time of the last look, for the next process.
func (c *Conductor) keep(ctx context.Context) error {
	if len(c.runs) == 0 || c.seen == c.kept {
		return nil
	}
	err := c.cfg.Store.Update(store.WithRecord(ctx, nil), func(tx *store.Tx) error {
		return tx.SetSetting(ctx, store.DefaultTenant, seenKey, strconv.FormatInt(c.seen.UnixMilli(), 10))
	})
	if err == nil {
		c.kept = c.seen
	}
	return err
}

// leave stores when the devices were heard last.
func (c *Conductor) leave(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keep(ctx)
}
