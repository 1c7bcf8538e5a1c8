package release

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/attest"
	"github.com/skein-fleet/skein/ota/manifest"
)

// annPlan says on a referrer which engine its statement is about.
const annPlan = "dev.skein.plan"

// sourceTitle is the file from which a stripped plan takes its weights.
const sourceTitle = "weights.onnx"

// plans returns the engines of a release by target. A stripped one brings the
// ONNX file along, as a further layer of its target.
func (c *Catalog) plans(ctx context.Context, r Request, m store.ModelVersion, targets []ota.Target, layers map[string][]manifest.Descriptor) (map[string]manifest.Descriptor, error) {
	if r.Recipe == "" {
		return nil, nil
	}
	if c.cfg.Engines == nil {
		return nil, fmt.Errorf("%w: this control plane builds no engines", ErrInvalid)
	}
	found, err := c.cfg.Engines.Engines(ctx, m, r.Recipe, targets)
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", r.Name, err)
	}
	out := map[string]manifest.Descriptor{}
	for t, p := range found {
		out[t] = p.Layer
		if p.Stripped {
			layers[t] = append(slices.Clone(layers[t]), manifest.Descriptor{MediaType: manifest.MediaSource, Digest: ota.Digest(m.ONNX), Size: m.ONNXSize,
				Annotations: map[string]string{manifest.AnnTitle: sourceTitle}})
		}
	}
	return out, nil
}

// enginesProvenance are the statements about the engines of a release.
func (c *Catalog) enginesProvenance(ctx context.Context, r store.Release) ([]document, error) {
	if c.cfg.Engines == nil {
		return nil, nil
	}
	plans := map[ota.Digest]bool{}
	for _, t := range r.Targets {
		m, err := c.readManifest(ctx, ota.Digest(t.Manifest))
		if err != nil {
			return nil, err
		}
		if l, format, err := m.Weights(); err == nil && format == "plan" {
			plans[l.Digest] = true
		}
	}
	var out []document
	for _, d := range slices.Sorted(maps.Keys(plans)) {
		raw, err := c.cfg.Engines.Provenance(ctx, r.Tenant, d)
		if err != nil {
			return nil, fmt.Errorf("attest: %w", err)
		}
		if raw != nil {
			out = append(out, document{attest.MediaEnvelope, raw, map[string]string{attest.AnnPredicate: attest.PredicateSLSA, attest.AnnBuild: attest.BuildEngine, annPlan: string(d)}})
		}
	}
	return out, nil
}

// Plan returns the engine that the manifest of a target brings, "" for the
// ONNX file.
func (c *Catalog) Plan(tenant string, d ota.Digest, target string) ota.Digest {
	e, err := c.entry(tenant, d)
	if err != nil {
		return ""
	}
	return e.plans[target]
}

// Version returns one model version by NAME@VERSION, or by NAME the newest.
func (c *Catalog) Version(ctx context.Context, tenant, text string) (store.ModelVersion, error) {
	return c.modelVersion(ctx, tenant, text)
}

// Versions returns the versions of a model, newest first, or of all models.
func (c *Catalog) Versions(ctx context.Context, tenant, name string) (out []store.ModelVersion, err error) {
	if name != "" {
		_, out, err = c.Model(ctx, tenant, name)
		return out, err
	}
	err = c.cfg.Store.View(ctx, func(tx *store.Tx) error {
		out, err = tx.ModelVersions(ctx, tenant, "")
		return err
	})
	return out, err
}
