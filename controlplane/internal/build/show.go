package build

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/engine"
	"github.com/skein-fleet/skein/proto/wire"
)

// maxListed bounds a list of builds.
const maxListed = 500

// Builds lists the newest builds of a tenant, open ones with their progress.
func (q *Queue) Builds(ctx context.Context, tenant string) ([]Cell, error) {
	var rows []store.Build
	if err := q.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.Builds(ctx, tenant, maxListed)
		return err
	}); err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	s, err := q.survey(ctx, tenant)
	if err != nil {
		return nil, err
	}
	out := make([]Cell, 0, len(rows))
	for _, b := range rows {
		c, err := q.cellOf(ctx, s, b)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// cellOf is the cell of one build, which need not be the newest of its key; mu
// is held.
func (q *Queue) cellOf(ctx context.Context, s *survey, b store.Build) (Cell, error) {
	r, err := q.recipeAt(ctx, b.Recipe)
	if err != nil {
		return Cell{}, err
	}
	t, err := ota.ParseTarget(b.Target)
	if err != nil {
		return Cell{}, err
	}
	m := store.ModelVersion{Tenant: b.Tenant, Name: b.Model, Version: b.ModelVersion, ONNX: b.ONNX, Golden: b.Golden}
	if newest, ok := s.builds[b.Key]; ok && newest.ID != b.ID {
		s.builds[b.Key] = b
		defer func() { s.builds[b.Key] = newest }()
	}
	c := s.cell(m, r, t)
	if c.Build == nil || c.Build.ID != b.ID {
		c.Build = &b
	}
	return c, nil
}

// Find returns one build or engine by the id of the build, or by the key or
// plan of the engine, of which 8 hex digits are enough.
func (q *Queue) Find(ctx context.Context, tenant, text string) (Cell, error) {
	hex := strings.TrimPrefix(text, "sha256:")
	var found []store.Build
	err := q.cfg.Store.View(ctx, func(tx *store.Tx) error {
		if b, err := tx.BuildByID(ctx, tenant, text); err == nil {
			found = []store.Build{b}
			return nil
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if len(hex) < 8 {
			return nil
		}
		last, err := tx.LastBuilds(ctx, tenant)
		if err != nil {
			return err
		}
		es, err := tx.Engines(ctx, tenant)
		if err != nil {
			return err
		}
		plans := map[string]bool{}
		for _, e := range es {
			plans[e.Key] = strings.HasPrefix(ota.Digest(e.Plan).Hex(), hex)
		}
		for _, b := range last {
			if plans[b.Key] || strings.HasPrefix(ota.Digest(b.Key).Hex(), hex) {
				found = append(found, b)
			}
		}
		return nil
	})
	switch {
	case err != nil:
		return Cell{}, err
	case len(found) == 0:
		return Cell{}, fmt.Errorf("engine %q: %w: want the id of a build, or 8 digits of the key or the plan; `skein engine list` shows them", text, ErrUnknown)
	case len(found) > 1:
		return Cell{}, fmt.Errorf("%w: %d engines begin with %s, give more digits", ErrInvalid, len(found), hex)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	s, err := q.survey(ctx, tenant)
	if err != nil {
		return Cell{}, err
	}
	return q.cellOf(ctx, s, found[0])
}

// Record returns what the building device signed about an engine.
func (q *Queue) Record(ctx context.Context, e store.Engine) (wire.EngineRecord, error) {
	signed, key, err := q.signedRecord(ctx, e)
	if err != nil {
		return wire.EngineRecord{}, err
	}
	return engine.Verify([]crypto.PublicKey{key}, signed)
}

func (q *Queue) signedRecord(ctx context.Context, e store.Engine) ([]byte, crypto.PublicKey, error) {
	signed, err := q.cfg.Blobs.ReadAll(ctx, ota.Digest(e.Record), wire.MaxMessage)
	if err != nil {
		return nil, nil, fmt.Errorf("record of engine %s: %w", e.Key, err)
	}
	key, err := x509.ParsePKIXPublicKey(e.BuilderKey)
	if err != nil {
		return nil, nil, fmt.Errorf("record of engine %s: %w", e.Key, err)
	}
	return signed, key, nil
}

// Explain says of an engine how it stands and why, in words.
func (q *Queue) Explain(ctx context.Context, tenant, model, recipe, target string) (Cell, []string, error) {
	m, err := q.cfg.Models.Version(ctx, tenant, model)
	if err != nil {
		return Cell{}, nil, err
	}
	r, err := q.Recipe(ctx, tenant, recipe)
	if err != nil {
		return Cell{}, nil, err
	}
	t, err := ota.ParseTarget(target)
	if err != nil {
		return Cell{}, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	own, err := r.Parsed.TargetFor(t)
	if err != nil {
		c := Cell{Model: m.Name, Version: m.Version, Recipe: r, Target: t.String(), State: Refused, Reason: err.Error()}
		if errors.Is(err, engine.ErrNoEngine) {
			c.State = Unneeded
		}
		return c, []string{err.Error()}, nil
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	s, err := q.survey(ctx, tenant)
	if err != nil {
		return Cell{}, nil, err
	}
	c := s.cell(m, r, own)
	return c, s.reasons(c, own), nil
}

// ExplainFound is Explain of what Find returned.
func (q *Queue) ExplainFound(ctx context.Context, tenant string, c Cell) ([]string, error) {
	t, err := ota.ParseTarget(c.Target)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	s, err := q.survey(ctx, tenant)
	if err != nil {
		return nil, err
	}
	return s.reasons(c, t), nil
}

func (s *survey) reasons(c Cell, t ota.Target) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	say("an engine of recipe %s is bound to %s: %d devices of the fleet", c.Recipe.Name, t, c.Devices)
	switch c.State {
	case Built:
		say("it was built by %s and is given to all of them as the same bytes; it is never built again", s.name(s.builds[string(c.Key)].Device))
	case Building:
		say("attempt %d is on %s since %s: %s %d %% %s", c.Build.Attempt, s.name(c.Build.Device), c.Build.Leased.Format(time.TimeOnly), cmp.Or(c.Step, "no word yet"), c.Percent, c.Said)
	default:
		say("%s: %s", c.State, cmp.Or(c.Reason, "nothing holds it up"))
	}
	if c.Build != nil {
		for _, a := range c.Build.Tried {
			say("attempt %d on %s ended at %s: %s: %s", a.Attempt, s.name(a.Device), a.Ended.Format(time.DateTime), a.Class, a.Message)
		}
	}
	if c.State == Built {
		return out
	}
	builders := 0
	for _, v := range s.devices {
		if !isBuilder(v) {
			continue
		}
		builders++
		name := cmp.Or(v.Name, v.ID)
		reason, ok := canBuild(v, s.said(v.Tenant, v.ID), c.Recipe.Parsed, t)
		switch {
		case !ok:
			say("builder %s cannot: %s", name, reason)
		case !v.Online:
			say("builder %s could, and is offline", name)
		case s.busy(v.Tenant, v.ID) != "":
			say("builder %s could, and %s", name, s.busy(v.Tenant, v.ID))
		default:
			say("builder %s can", name)
		}
	}
	if builders == 0 {
		say("no device has the capability %s", Capability)
	}
	if c.State == Missing || c.State == Refused {
		say("to have it built: skein engine build %s@%d --recipe %s --target '%s'", c.Model, c.Version, c.Recipe.Name, t)
	}
	return out
}

func (s *survey) said(tenant, device string) string {
	if b := s.q.builders[place{tenant, device}]; b != nil {
		return b.target
	}
	return ""
}

// busy says what else a builder does now; "" when it is free.
func (s *survey) busy(tenant, device string) string {
	for _, j := range s.live {
		if j.State == store.BuildLeased && j.Device == device {
			return "builds " + j.ID
		}
	}
	if b := s.q.builders[place{tenant, device}]; b != nil && s.now.Before(b.busyUntil) {
		return "had no headroom a moment ago"
	}
	return ""
}

// Log returns what is there of a build's log from an offset on, the next
// offset, whether more may come, and what to wait for.
func (q *Queue) Log(ctx context.Context, tenant, id string, offset int64) (text []byte, next int64, attempt uint32, more bool, changed <-chan struct{}, err error) {
	q.mu.Lock()
	if j := q.jobs[jobID{tenant, id}]; j != nil {
		text, next = j.log.from(offset)
		attempt, changed = j.Attempt, q.changed
		q.mu.Unlock()
		return text, next, attempt, true, changed, nil
	}
	q.mu.Unlock()
	b, err := q.byID(ctx, tenant, id)
	if err != nil {
		return nil, 0, 0, false, nil, err
	}
	if b.Log == "" {
		return nil, offset, b.Attempt, false, nil, nil
	}
	raw, err := q.cfg.Blobs.ReadAll(ctx, ota.Digest(b.Log), uploads["log"])
	if err != nil {
		return nil, offset, b.Attempt, false, nil, err
	}
	from := min(max(0, offset), int64(len(raw)))
	return raw[from:], int64(len(raw)), b.Attempt, false, nil, nil
}
