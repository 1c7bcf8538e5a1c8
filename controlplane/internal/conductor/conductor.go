// Package conductor carries out rollouts: it feeds the planner of ota/rollout
// with what devices say and what was measured, stores what it decides, and then
// sends it.
//
// Invariants: a decision is durable before it is carried out, and decisions are
// carried out in the order in which they were stored, so that a restart goes on
// where it stopped; nothing is planned while a stored decision still waits; one
// goroutine at a time decides for all rollouts, so that two never race for a
// device; finished rollouts never change. The façade and package rpc use it; it
// knows fleet, releases and measurements through the small interfaces below.
package conductor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
)

// What callers tell apart.
var (
	ErrUnknown   = errors.New("no such rollout")
	ErrAmbiguous = errors.New("more than one rollout matches")
	ErrInvalid   = errors.New("invalid")
	ErrExists    = errors.New("exists already")
	// ErrState is returned for what does not fit where the rollout stands.
	ErrState = errors.New("not possible now")
)

// Actor is the conductor's name in the audit table.
const Actor = "system:conductor"

// Fleet is what devices say, and the way to tell them what to run.
type Fleet interface {
	Snapshot(tenant string) []fleet.View
	SetDesiredAll(ctx context.Context, tenant string, intents []fleet.Intent) error
	// Subscribe gives the ids of devices that changed until ctx ends.
	Subscribe(ctx context.Context) <-chan string
	// Policy returns the settings of windows and allowances.
	Policy(tenant string) []policy.Setting
	// Check reports why a device could not be given a release now, or nil.
	Check(ctx context.Context, tenant, device string, release ota.Digest) error
}

// Releases knows releases by digest.
type Releases interface {
	Resolve(ctx context.Context, tenant, text string) (ota.Digest, error)
	Name(tenant string, d ota.Digest) string
	Counter(tenant string, d ota.Digest) uint64
	// Soak is how long a device watches the release before it commits.
	Soak(tenant string, d ota.Digest) time.Duration
	// Fits returns the bytes that a device of a target fetches, or why it can
	// never run the release.
	Fits(tenant string, d ota.Digest, target string) (bytes int64, err error)
}

// Measures gives figures of one device over an interval.
type Measures interface {
	Stats(ctx context.Context, device, metric string, from, to time.Time) (gate.Stats, error)
	CheckMetric(metric string) error
}

// Config of a Conductor. Store, Fleet and Releases are required.
type Config struct {
	Store    *store.DB
	Fleet    Fleet
	Releases Releases
	Measures Measures // nil: rollouts with metric gates are refused
	Logger   *slog.Logger
	Now      func() time.Time

	// Coalesce is how long changes of devices are gathered: 100 ms, and longer
	// when a look at the rollouts takes long.
	Coalesce time.Duration
	// Tick is how often timers of rollouts are looked at: 1 s.
	Tick time.Duration
	// EvidenceEvery is the least time between two readings of measurements
	// for one rollout: 1 s, and more when reading takes long.
	EvidenceEvery time.Duration
	// Window is how far before and after the switch a device is measured: 1 h.
	Window time.Duration
	// WatchEvery is the least time between two messages to a watcher: 250 ms.
	WatchEvery time.Duration
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	for _, d := range []struct {
		at  *time.Duration
		def time.Duration
	}{{&c.Coalesce, 100 * time.Millisecond}, {&c.Tick, time.Second}, {&c.EvidenceEvery, time.Second}, {&c.Window, time.Hour}, {&c.WatchEvery, 250 * time.Millisecond}} {
		if *d.at == 0 {
			*d.at = d.def
		}
	}
}

// Conductor carries out all rollouts of one control plane.
type Conductor struct {
	cfg  Config
	wake chan struct{}
	hub  hub

	mu      sync.Mutex // guards all below; held while deciding, storing and sending
	runs    []*run     // not over, oldest first
	waiting []store.Decision
	online  map[string]time.Time // since when a device is connected, as seen from here
	seen    time.Time            // of the last look, here or in an earlier process
	kept    time.Time            // seen, as it is in the store
}

// New returns a conductor; Load fills it.
func New(cfg Config) (*Conductor, error) {
	cfg.setDefaults()
	if cfg.Store == nil || cfg.Fleet == nil || cfg.Releases == nil {
		return nil, errors.New("conductor needs Store, Fleet and Releases")
	}
	return &Conductor{cfg: cfg, wake: make(chan struct{}, 1), online: map[string]time.Time{}}, nil
}

// Load reads the rollouts that are not over, and what was decided and not
// carried out. The time since the last look of an earlier process counts for no
// rollout.
func (c *Conductor) Load(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.cfg.Store.View(ctx, func(tx *store.Tx) error {
		rows, err := tx.OpenRollouts(ctx)
		if err != nil {
			return err
		}
		for _, row := range rows {
			r, err := loadRun(ctx, tx, row)
			if err != nil {
				return fmt.Errorf("load rollout %s: %w", row.Name, err)
			}
			c.runs = append(c.runs, r)
		}
		if c.seen, err = lastSeen(ctx, tx); err != nil {
			return err
		}
		c.waiting, err = tx.WaitingDecisions(ctx)
		return err
	})
	if err != nil {
		return err
	}
	return c.excuse(ctx, downAfter)
}

// Run conducts until ctx ends.
func (c *Conductor) Run(ctx context.Context) error {
	changes := c.cfg.Fleet.Subscribe(ctx)
	tick := time.NewTicker(c.cfg.Tick)
	defer tick.Stop()
	var settled <-chan time.Time
	var rested time.Time // when the share of looking allows the next look
	pause := c.cfg.Coalesce
	for {
		select {
		case <-ctx.Done():
			return c.leave(context.WithoutCancel(ctx))
		case _, open := <-changes:
			if !open {
				changes = nil
			}
			if settled == nil {
				settled = time.After(pause)
			}
			continue
		case <-settled:
			settled = nil
		case <-tick.C:
			if time.Now().Before(rested) {
				continue
			}
		case <-c.wake:
		}
		began := time.Now()
		if err := c.Step(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Logger.Error("conduct rollouts", "err", err)
		}
		pause = min(max(c.cfg.Coalesce, readingShare*time.Since(began)), maxPause)
		rested = time.Now().Add(pause)
	}
}

// maxPause bounds how long changes are gathered.
const maxPause = 5 * time.Second

// Step looks at every rollout once: it takes in what devices said, decides,
// stores and sends. Run calls it; a simulation that owns the clock may too.
func (c *Conductor) Step(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.excuse(ctx, asleepAfter); err != nil {
		return err
	}
	if err := c.carryOut(ctx); err != nil {
		return err
	}
	var errs []error
	for _, tenant := range c.tenants() {
		errs = append(errs, c.stepTenant(ctx, tenant))
	}
	c.runs = slices.DeleteFunc(c.runs, func(r *run) bool { return r.state.Phase.Final() })
	return errors.Join(errs...)
}

func (c *Conductor) tenants() []string {
	var out []string
	for _, r := range c.runs {
		if !slices.Contains(out, r.row.Tenant) {
			out = append(out, r.row.Tenant)
		}
	}
	return out
}

func (c *Conductor) stepTenant(ctx context.Context, tenant string) error {
	views := c.views(tenant)
	var errs []error
	for _, r := range c.runs {
		if r.row.Tenant != tenant {
			continue
		}
		if err := c.decide(ctx, r, views); err != nil {
			errs = append(errs, fmt.Errorf("rollout %s: %w", r.row.Name, err))
		}
		if len(c.waiting) > 0 { // the fleet does not take decisions now; go on later
			break
		}
	}
	return errors.Join(errs...)
}

// nudge makes Run look soon.
func (c *Conductor) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// views returns the devices of a tenant by id, and keeps since when each is
// connected.
func (c *Conductor) views(tenant string) map[string]*fleet.View {
	all := c.cfg.Fleet.Snapshot(tenant)
	out := make(map[string]*fleet.View, len(all))
	now := c.cfg.Now()
	for i := range all {
		v := &all[i]
		out[v.ID] = v
		_, known := c.online[v.ID]
		switch {
		case !v.Online:
			c.online[v.ID] = time.Time{} // seen offline
		case !known:
			// Connected before we looked: for all we know since ever. An absent
			// entry keeps it so.
		case c.online[v.ID].IsZero():
			c.online[v.ID] = now
		}
	}
	return out
}
