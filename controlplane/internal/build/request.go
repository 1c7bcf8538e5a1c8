package build

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/engine"
	"github.com/skein-fleet/skein/proto/wire"
)

// Request asks for engines.
type Request struct {
	Tenant   string
	Model    string // NAME@VERSION, or NAME for the newest
	Recipe   string // see Queue.Recipe
	Targets  []string
	All      bool // of all devices that report a target, instead of Targets
	Priority int  // 0 is normal, higher goes first
}

// Build wants engines: what is built or being built is left as it is, and only
// the rest is queued. It returns how each of them stands.
func (q *Queue) Build(ctx context.Context, r Request) ([]Cell, error) {
	if r.Priority < -100 || r.Priority > 100 {
		return nil, fmt.Errorf("%w: priority %d: want -100 to 100", ErrInvalid, r.Priority)
	}
	m, err := q.cfg.Models.Version(ctx, r.Tenant, r.Model)
	if err != nil {
		return nil, err
	}
	recipe, err := q.Recipe(ctx, r.Tenant, r.Recipe)
	if err != nil {
		return nil, err
	}
	if err := q.signed(m.Name, recipe); err != nil {
		return nil, err
	}
	targets, err := q.targets(r, recipe.Parsed)
	if err != nil {
		return nil, err
	}
	if _, err := q.cfg.Blobs.PutBytes(recipe.Text); err != nil {
		return nil, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	var added []store.Build
	for _, t := range targets {
		b, wanted, err := q.want(ctx, r, m, recipe, t)
		if err != nil {
			return nil, err
		}
		if wanted {
			added = append(added, b)
		}
	}
	err = q.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		store.Note(ctx, fmt.Sprintf("%s@%d", m.Name, m.Version), nil, map[string]any{"recipe": recipe.Digest, "targets": texts(targets), "queued": len(added)})
		for _, b := range added {
			if err := tx.PutBuild(ctx, b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	now := q.cfg.Now()
	for _, b := range added {
		j, err := q.open(ctx, b)
		if err != nil {
			return nil, err
		}
		q.nudge(j, now)
	}
	q.notify()
	s, err := q.survey(ctx, r.Tenant)
	if err != nil {
		return nil, err
	}
	var out []Cell
	for _, t := range targets {
		out = append(out, s.cell(m, recipe, t))
	}
	return out, nil
}

func texts(ts []ota.Target) []string {
	var out []string
	for _, t := range ts {
		out = append(out, t.String())
	}
	return out
}

// want makes the row of a build that is neither built nor open; an open one
// gets the higher priority. mu is held.
func (q *Queue) want(ctx context.Context, r Request, m store.ModelVersion, recipe Recipe, t ota.Target) (store.Build, bool, error) {
	key := keyOf(m, recipe, t)
	for _, j := range q.jobs {
		if j.Tenant != r.Tenant || j.Key != string(key) {
			continue
		}
		if r.Priority > j.Priority {
			return j.Build, false, q.keep(ctx, j, func(b *store.Build) { b.Priority = r.Priority })
		}
		return j.Build, false, nil
	}
	err := q.cfg.Store.View(ctx, func(tx *store.Tx) error {
		_, err := tx.EngineByKey(ctx, r.Tenant, string(key))
		return err
	})
	if !errors.Is(err, store.ErrNotFound) {
		return store.Build{}, false, err
	}
	return store.Build{Tenant: r.Tenant, ID: newID(), Key: string(key), Model: m.Name, ModelVersion: m.Version, ONNX: m.ONNX, Golden: m.Golden,
		Recipe: recipe.Digest, Target: t.String(), Priority: r.Priority, State: store.BuildQueued, Created: q.cfg.Now(), CreatedBy: store.Actor(ctx)}, true, nil
}

func keyOf(m store.ModelVersion, r Recipe, t ota.Target) ota.Digest {
	return engine.Key(engine.VersionDigest(ota.Digest(m.ONNX), ota.Digest(m.Golden)), ota.Digest(r.Digest), t)
}

// targets are the engine targets of a request, each once.
func (q *Queue) targets(r Request, recipe engine.Recipe) ([]ota.Target, error) {
	if r.All == (len(r.Targets) > 0) {
		return nil, fmt.Errorf("%w: give the targets to build for, or all targets of the fleet", ErrInvalid)
	}
	asked := r.Targets
	if r.All {
		for _, v := range q.cfg.Fleet.Snapshot(r.Tenant) {
			if v.State != fleet.Revoked && v.Target != "" {
				asked = append(asked, v.Target)
			}
		}
	}
	var out []ota.Target
	var refused []error
	for _, text := range asked {
		t, err := ota.ParseTarget(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		t, err = recipe.TargetFor(t)
		switch {
		case err != nil && r.All: // the matrix says why
			refused = append(refused, err)
		case err != nil:
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		case !slices.ContainsFunc(out, func(o ota.Target) bool { return o.String() == t.String() }):
			out = append(out, t)
		}
	}
	if len(out) == 0 {
		if len(refused) > 0 {
			return nil, fmt.Errorf("%w: no target of the fleet takes an engine of this recipe: %w", ErrInvalid, refused[0])
		}
		return nil, fmt.Errorf("%w: no device has reported its target yet", ErrInvalid)
	}
	slices.SortFunc(out, func(a, b ota.Target) int { return strings.Compare(a.String(), b.String()) })
	return out, nil
}

// Cancel ends an open build; the device that has it is told to stop.
func (q *Queue) Cancel(ctx context.Context, tenant, id, why string) (store.Build, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	j := q.jobs[jobID{tenant, id}]
	if j == nil {
		b, err := q.byID(ctx, tenant, id)
		if err != nil {
			return b, err
		}
		return b, fmt.Errorf("build %s: %w: it is %s", id, ErrState, b.State)
	}
	now := q.cfg.Now()
	if why == "" {
		why = "by " + store.Actor(ctx)
	}
	was, device, attempt := j.State, j.Device, j.Attempt
	store.Note(ctx, id, was, store.BuildCancelled)
	if err := q.keep(ctx, j, func(b *store.Build) {
		b.State, b.Message, b.Finished = store.BuildCancelled, cut(why), now
	}); err != nil {
		return j.Build, err
	}
	if was == store.BuildLeased {
		q.tell(tenant, device, q.about(tenant, device, id, attempt, wire.LeaseStop, now, "it was cancelled: "+why))
	}
	return j.Build, nil
}

func (q *Queue) byID(ctx context.Context, tenant, id string) (b store.Build, err error) {
	err = q.cfg.Store.View(ctx, func(tx *store.Tx) error {
		b, err = tx.BuildByID(ctx, tenant, id)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return b, fmt.Errorf("build %q: %w: `skein engine list` shows them", id, ErrUnknown)
	}
	return b, err
}
