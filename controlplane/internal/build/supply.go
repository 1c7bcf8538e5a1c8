package build

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"strings"

	"github.com/skein-fleet/skein/controlplane/internal/release"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/attest"
	"github.com/skein-fleet/skein/ota/engine"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/proto/wire"
)

// Engines returns the plans of a model version for targets, by their text.
// Targets that serve ONNX are left out; where a proven engine is missing the
// error names all of these and what to do.
func (q *Queue) Engines(ctx context.Context, m store.ModelVersion, recipe string, targets []ota.Target) (map[string]release.Plan, error) {
	r, err := q.Recipe(ctx, m.Tenant, recipe)
	if err != nil {
		return nil, err
	}
	if err := q.signed(m.Name, r); err != nil {
		return nil, err
	}
	out := map[string]release.Plan{}
	var lacks []string
	for _, t := range targets {
		own, err := r.Parsed.TargetFor(t)
		if errors.Is(err, engine.ErrNoEngine) {
			continue
		}
		if err != nil {
			lacks = append(lacks, fmt.Sprintf("%s: %v", t, err))
			continue
		}
		p, c, err := q.plan(ctx, m, r, own)
		if err != nil {
			return nil, err
		}
		if p == nil {
			lacks = append(lacks, fmt.Sprintf("%s: %s: %s; skein engine build %s@%d --recipe %s --target '%s' --wait", t, c.State, c.Reason, m.Name, m.Version, r.Name, own))
			continue
		}
		out[t.String()] = *p
	}
	if len(lacks) > 0 {
		return nil, fmt.Errorf("%w: no proven engine of %s@%d by recipe %s for %d of %d targets, and nothing is released without:\n%s\nleave them out with --target, or have them built",
			ErrState, m.Name, m.Version, r.Name, len(lacks), len(targets), strings.Join(lacks, "\n"))
	}
	return out, nil
}

// plan returns the engine of one target, or its cell when there is none.
func (q *Queue) plan(ctx context.Context, m store.ModelVersion, r Recipe, t ota.Target) (*release.Plan, Cell, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s, err := q.survey(ctx, m.Tenant)
	if err != nil {
		return nil, Cell{}, err
	}
	c := s.cell(m, r, t)
	if c.State != Built {
		return nil, c, nil
	}
	seal, err := q.seal(ctx, *c.Engine)
	if err != nil {
		return nil, c, err
	}
	record, err := q.Record(ctx, *c.Engine)
	if err != nil {
		return nil, c, err
	}
	p := &release.Plan{Stripped: record.Stripped}
	p.Layer = engine.Annotate(manifest.Descriptor{Digest: ota.Digest(c.Engine.Plan), Size: record.Size}, seal, record.Stripped)
	return p, c, nil
}

// Provenance returns the signed statement about a plan, nil without one.
func (q *Queue) Provenance(ctx context.Context, tenant string, plan ota.Digest) ([]byte, error) {
	var at string
	err := q.cfg.Store.View(ctx, func(tx *store.Tx) error {
		es, err := tx.Engines(ctx, tenant)
		for _, e := range es {
			if e.Plan == string(plan) {
				at = e.Provenance
			}
		}
		return err
	})
	if err != nil || at == "" {
		return nil, err
	}
	return q.cfg.Blobs.ReadAll(ctx, ota.Digest(at), attest.MaxDocument)
}

// seal returns the countersigned record under the director's key of now: when
// persons replaced the key, it is countersigned anew.
func (q *Queue) seal(ctx context.Context, e store.Engine) ([]byte, error) {
	director, err := q.cfg.Director()
	if err != nil {
		return nil, err
	}
	old, err := q.cfg.Blobs.ReadAll(ctx, ota.Digest(e.Seal), wire.MaxMessage)
	if err == nil {
		_, err = engine.Open([]crypto.PublicKey{director.Public()}, e.Tenant, old)
	}
	if err == nil {
		return old, nil
	}
	signed, key, err := q.signedRecord(ctx, e)
	if err != nil {
		return nil, err
	}
	return engine.Seal(director, e.Tenant, signed, key, e.Scope, q.cfg.Now())
}
