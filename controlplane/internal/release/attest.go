package release

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/attest"
	"github.com/skein-fleet/skein/ota/manifest"
)

// document is one thing said about a release.
type document struct {
	mediaType   string
	data        []byte
	annotations map[string]string
}

// attach writes what skein knows of a release as referrers of its index:
// signed provenance and a bill of materials. Doing it again changes nothing.
func (c *Catalog) attach(ctx context.Context, r store.Release) error {
	if c.cfg.Attest == nil {
		return nil
	}
	var have []store.RegistryManifest
	if err := c.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		have, err = tx.RegistryReferrers(ctx, r.Tenant, r.Name, r.Digest)
		return err
	}); err != nil {
		return err
	}
	docs, err := c.documents(ctx, r)
	if err != nil {
		return err
	}
	var rows []store.RegistryManifest
	for _, d := range docs {
		if slices.ContainsFunc(have, func(m store.RegistryManifest) bool {
			return m.Own && m.ArtifactType == d.mediaType && m.Annotations[attest.AnnBuild] == d.annotations[attest.AnnBuild] && m.Annotations[annPlan] == d.annotations[annPlan]
		}) {
			continue // a crash came after it, or a signature that differs each time
		}
		row, err := c.referrer(r, d)
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	return c.keepReferrers(ctx, rows)
}

func (c *Catalog) keepReferrers(ctx context.Context, rows []store.RegistryManifest) error {
	if len(rows) == 0 {
		return nil
	}
	return c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		for _, row := range rows {
			if err := tx.PutRegistryManifest(ctx, row); err != nil {
				return err
			}
		}
		return nil
	})
}

// referrer stores one document and the manifest that attaches it.
func (c *Catalog) referrer(r store.Release, d document) (store.RegistryManifest, error) {
	digest, err := c.cfg.Blobs.PutBytes(d.data)
	if err != nil {
		return store.RegistryManifest{}, err
	}
	_, empty := attest.EmptyConfig()
	if _, err := c.cfg.Blobs.PutBytes(empty); err != nil {
		return store.RegistryManifest{}, err
	}
	d.annotations["org.opencontainers.image.created"] = attest.Stamp(r.Created)
	raw, err := attest.Attach(manifest.Descriptor{MediaType: manifest.MediaIndex, Digest: ota.Digest(r.Digest), Size: r.Length},
		manifest.Descriptor{MediaType: d.mediaType, Digest: digest, Size: int64(len(d.data))}, d.annotations)
	if err != nil {
		return store.RegistryManifest{}, err
	}
	at, err := c.cfg.Blobs.PutBytes(raw)
	return store.RegistryManifest{Tenant: r.Tenant, Repo: r.Name, Digest: string(at), MediaType: manifest.MediaManifest, ArtifactType: d.mediaType,
		Subject: r.Digest, Size: int64(len(raw)), Annotations: d.annotations, Own: true, Created: r.Created}, err
}

// documents writes what is known of a release.
func (c *Catalog) documents(ctx context.Context, r store.Release) ([]document, error) {
	if r.Publisher != "" {
		d, err := c.importProvenance(r)
		return []document{d}, err
	}
	_, vs, err := c.Model(ctx, r.Tenant, fmt.Sprintf("%s@%d", r.Model, r.ModelVersion))
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	v := vs[0]
	bom, err := c.bom(ctx, r, v)
	if err != nil {
		return nil, fmt.Errorf("attest: %w", err)
	}
	made, err := c.releaseProvenance(r, v, bom)
	if err != nil {
		return nil, err
	}
	pushed, err := c.modelProvenance(v)
	if err != nil {
		return nil, err
	}
	built, err := c.enginesProvenance(ctx, r)
	return append([]document{made, pushed, {attest.MediaBOM, bom, map[string]string{}}}, built...), err
}

func (c *Catalog) signed(build string, st attest.Statement) (document, error) {
	raw, err := attest.Sign(c.cfg.Attest, st)
	return document{attest.MediaEnvelope, raw, map[string]string{attest.AnnPredicate: st.PredicateType, attest.AnnBuild: build}}, err
}

func (c *Catalog) run(id string, at time.Time) attest.RunDetails {
	return attest.RunDetails{Builder: attest.Builder{ID: c.cfg.Builder, Version: map[string]string{"skeind": c.cfg.Version, "go": runtime.Version()}},
		Metadata: attest.Metadata{InvocationID: id, FinishedOn: attest.Stamp(at)}}
}

// subjects are the index of a release and its manifests.
func subjects(r store.Release) []attest.Resource {
	out := []attest.Resource{attest.Of(r.Name+"@"+r.Version, ota.Digest(r.Digest), manifest.MediaIndex)}
	for _, t := range r.Targets {
		out = append(out, attest.Of(t.Target, ota.Digest(t.Manifest), manifest.MediaManifest))
	}
	return out
}

func (c *Catalog) releaseProvenance(r store.Release, v store.ModelVersion, bom []byte) (document, error) {
	var decls []manifest.ParamDecl
	if err := json.Unmarshal(r.Parameters, &decls); err != nil {
		return document{}, fmt.Errorf("attest: read parameters: %w", err)
	}
	var targets []string
	for _, t := range r.Targets {
		targets = append(targets, t.Target)
	}
	run := c.run(targetPath(r.Tenant, r.Name, r.Version), r.Created)
	run.Byproducts = []attest.Resource{attest.Of("bom.cdx.json", ota.DigestOf(bom), attest.MediaBOM)}
	return c.signed(attest.BuildRelease, attest.NewStatement(subjects(r), attest.Provenance{
		BuildDefinition: attest.BuildDefinition{BuildType: attest.BuildRelease,
			ExternalParameters: map[string]any{"release": r.Name + "@" + r.Version, "model": fmt.Sprintf("%s@%d", r.Model, r.ModelVersion), "targets": targets,
				"parameters": decls, "soakSeconds": int64(r.Soak / time.Second)},
			InternalParameters: map[string]any{"counter": r.Counter, "createdBy": r.CreatedBy},
			ResolvedDependencies: []attest.Resource{attest.Of("model.onnx", ota.Digest(v.ONNX), manifest.MediaWeights),
				attest.Of("golden.json", ota.Digest(v.Golden), manifest.MediaGolden)}},
		RunDetails: run}))
}

// modelProvenance says how a model version came here: it was pushed.
func (c *Catalog) modelProvenance(v store.ModelVersion) (document, error) {
	name := fmt.Sprintf("%s@%d", v.Name, v.Version)
	meta := v.Metadata
	if meta == nil {
		meta = map[string]string{}
	}
	return c.signed(attest.BuildModelImport, attest.NewStatement(
		[]attest.Resource{attest.Of("model.onnx", ota.Digest(v.ONNX), manifest.MediaWeights), attest.Of("golden.json", ota.Digest(v.Golden), manifest.MediaGolden)},
		attest.Provenance{
			BuildDefinition: attest.BuildDefinition{BuildType: attest.BuildModelImport,
				ExternalParameters:   map[string]any{"model": name, "description": v.Description, "metadata": meta},
				InternalParameters:   map[string]any{"pushedBy": v.CreatedBy},
				ResolvedDependencies: dependencies(v.Metadata)},
			RunDetails: c.run("models/"+name, v.Created)}))
}

// importProvenance says whose bundle a release came in.
func (c *Catalog) importProvenance(r store.Release) (document, error) {
	return c.signed(attest.BuildReleaseImport, attest.NewStatement(subjects(r), attest.Provenance{
		BuildDefinition: attest.BuildDefinition{BuildType: attest.BuildReleaseImport,
			ExternalParameters: map[string]any{"release": r.Name + "@" + r.Version, "publisher": r.Publisher},
			InternalParameters: map[string]any{"counter": r.Counter, "importedBy": r.CreatedBy}},
		RunDetails: c.run(targetPath(r.Tenant, r.Name, r.Version), r.Created)}))
}

// dependencies are the digests that whoever pushed a model named in its
// metadata, such as dataset=sha256:….
func dependencies(meta map[string]string) []attest.Resource {
	var out []attest.Resource
	for name, text := range meta {
		if d, err := ota.ParseDigest(text); err == nil {
			out = append(out, attest.Of(name, d, ""))
		}
	}
	slices.SortFunc(out, func(a, b attest.Resource) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (c *Catalog) bom(ctx context.Context, r store.Release, v store.ModelVersion) ([]byte, error) {
	m := attest.Model{Release: r.Name, ReleaseVersion: r.Version, Index: ota.Digest(r.Digest), Name: v.Name, Version: v.Version, Description: v.Description,
		Datasets: map[string]ota.Digest{}, GoldenDigest: ota.Digest(v.Golden), Author: v.CreatedBy, Created: r.Created, Tool: c.cfg.Version}
	for key, text := range v.Metadata {
		if d, err := ota.ParseDigest(text); err == nil && strings.HasPrefix(key, "dataset") {
			m.Datasets[key] = d
		}
		if key == "license" || key == "licence" {
			m.Licence = text
		}
	}
	f, size, err := c.cfg.Blobs.Open(ctx, ota.Digest(v.ONNX))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	outline, err := readONNX(f, size)
	if err != nil {
		return nil, err
	}
	m.Inputs, m.Outputs = outline.signature()
	raw, err := c.cfg.Blobs.ReadAll(ctx, m.GoldenDigest, manifest.MaxGolden)
	if err != nil {
		return nil, err
	}
	if m.Golden, err = manifest.ParseGolden(raw); err != nil {
		return nil, err
	}
	for _, t := range r.Targets {
		mf, err := c.readManifest(ctx, ota.Digest(t.Manifest))
		if err != nil {
			return nil, err
		}
		for _, l := range mf.Layers {
			if !slices.ContainsFunc(m.Files, func(o manifest.Descriptor) bool { return o.Digest == l.Digest }) {
				m.Files = append(m.Files, l)
			}
		}
	}
	return attest.BOM(m)
}

// Attachments lists what refers to a release, oldest first.
func (c *Catalog) Attachments(ctx context.Context, tenant, text string) (r store.Release, out []store.RegistryManifest, err error) {
	d, err := c.Resolve(ctx, tenant, text)
	if err != nil {
		return r, nil, err
	}
	e, err := c.entry(tenant, d)
	if err != nil {
		return r, nil, err
	}
	err = c.cfg.Store.View(ctx, func(tx *store.Tx) error {
		out, err = tx.RegistryReferrers(ctx, tenant, e.row.Name, string(d))
		return err
	})
	return e.row, out, err
}

// Document returns the one document that a referrer attaches, ErrInvalid for a
// manifest with another form.
func (c *Catalog) Document(ctx context.Context, m store.RegistryManifest) (*attest.Referrer, error) {
	raw, err := c.cfg.Blobs.ReadAll(ctx, ota.Digest(m.Digest), manifest.MaxManifest)
	if err != nil {
		return nil, err
	}
	r, err := attest.ParseReferrer(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return r, nil
}
