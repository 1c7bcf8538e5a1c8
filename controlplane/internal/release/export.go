package release

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/attest"
	"github.com/skein-fleet/skein/ota/bundle"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
)

// Export says what goes into a bundle.
type Export struct {
	Release string
	// Targets whose layers go along; empty: all of them, with what saves bytes.
	Targets []string
	// Desired are signed desired states by device.
	Desired map[string][]byte
	// RootFrom is the first root of the chain that goes along.
	RootFrom int64
}

// Export lays out a bundle of a release.
func (c *Catalog) Export(ctx context.Context, tenant string, x Export) (*bundle.Plan, error) {
	r, rows, err := c.Attachments(ctx, tenant, x.Release)
	if err != nil {
		return nil, err
	}
	now := c.cfg.Now()
	out := bundle.Contents{Desired: x.Desired, Info: bundle.Info{Release: r.Name + "@" + r.Version, Target: targetPath(tenant, r.Name, r.Version),
		Index: manifest.Descriptor{MediaType: manifest.MediaIndex, ArtifactType: manifest.MediaArtifact, Digest: ota.Digest(r.Digest), Size: r.Length},
		// Whole minutes, so that a copy that is begun anew at once can go on.
		Created: attest.Stamp(now.Truncate(time.Minute)), By: "skeind " + c.cfg.Version}}
	if err := c.exportLayers(ctx, r, x.Targets, &out); err != nil {
		return nil, err
	}
	if err := c.exportReferrers(ctx, rows, &out); err != nil {
		return nil, err
	}
	if err := c.exportMetadata(ctx, x.RootFrom, now, &out); err != nil {
		return nil, err
	}
	return bundle.NewPlan(out)
}

// exportLayers adds the index, all manifests, and the layers of the targets.
func (c *Catalog) exportLayers(ctx context.Context, r store.Release, targets []string, out *bundle.Contents) error {
	raw, err := c.cfg.Blobs.ReadAll(ctx, ota.Digest(r.Digest), manifest.MaxIndex)
	if err != nil {
		return err
	}
	out.Small = append(out.Small, raw)
	wanted := map[string]bool{}
	for _, text := range targets {
		t, err := ota.ParseTarget(text)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if !slices.ContainsFunc(r.Targets, func(have store.ReleaseTarget) bool { return have.Target == t.String() }) {
			return fmt.Errorf("%w: %s@%s has nothing for %s: `skein release show` lists its targets", ErrInvalid, r.Name, r.Version, t)
		}
		wanted[t.String()] = true
	}
	seen := map[ota.Digest]bool{}
	layer := func(d ota.Digest, size int64) {
		if !seen[d] {
			seen[d] = true
			out.Info.Layers = append(out.Info.Layers, manifest.BlobRef{Digest: d, Size: size})
		}
	}
	for _, t := range r.Targets {
		raw, err := c.cfg.Blobs.ReadAll(ctx, ota.Digest(t.Manifest), manifest.MaxManifest)
		if err != nil {
			return err
		}
		m, err := manifest.ParseManifest(raw)
		if err != nil {
			return err
		}
		config, err := c.cfg.Blobs.ReadAll(ctx, m.Config.Digest, manifest.MaxManifest)
		if err != nil {
			return err
		}
		out.Small = append(out.Small, raw, config)
		if len(wanted) > 0 && !wanted[t.Target] {
			continue
		}
		if len(wanted) > 0 {
			out.Info.Targets = append(out.Info.Targets, t.Target)
		}
		for _, l := range m.Layers {
			layer(l.Digest, l.Size)
		}
	}
	if len(wanted) > 0 {
		return nil
	}
	return c.exportSavings(ctx, r, layer)
}

// exportSavings adds the chunk indexes and patches that are here still.
func (c *Catalog) exportSavings(ctx context.Context, r store.Release, layer func(ota.Digest, int64)) error {
	for _, t := range r.Targets {
		m, err := c.readManifest(ctx, ota.Digest(t.Manifest))
		if err != nil {
			return err
		}
		for _, l := range m.Layers {
			for _, ref := range savingsOf(l) {
				if size, err := c.cfg.Blobs.Size(ref.Digest); err == nil && size == ref.Size {
					layer(ref.Digest, ref.Size)
				}
			}
		}
	}
	return nil
}

// savingsOf are the blobs that save bytes on the way of a layer; a layer whose
// annotations cannot be read was refused before.
func savingsOf(l manifest.Descriptor) []manifest.BlobRef {
	s, err := l.Savings()
	if err != nil {
		return nil
	}
	var out []manifest.BlobRef
	if s.Chunks != nil {
		out = append(out, *s.Chunks)
	}
	for _, p := range s.Patches {
		out = append(out, manifest.BlobRef{Digest: p.Digest, Size: p.Size})
	}
	return out
}

// exportReferrers adds the image layout's index, with the documents that skein
// attached.
func (c *Catalog) exportReferrers(ctx context.Context, rows []store.RegistryManifest, out *bundle.Contents) error {
	first := out.Info.Index
	name, version, _ := strings.Cut(out.Info.Release, "@")
	first.Annotations = map[string]string{bundle.AnnRefName: version, "org.opencontainers.image.title": name}
	out.Layout = []manifest.Descriptor{first}
	_, empty := attest.EmptyConfig()
	imported := slices.ContainsFunc(rows, func(m store.RegistryManifest) bool {
		return m.Annotations[attest.AnnBuild] == attest.BuildReleaseImport
	})
	for _, m := range rows {
		// What people attached is theirs to carry, and what another publisher
		// signed the next site could not check: it gets our word for it.
		if !m.Own || imported && m.Annotations[attest.AnnBuild] != attest.BuildReleaseImport {
			continue
		}
		doc, err := c.Document(ctx, m)
		if err != nil {
			return err
		}
		raw, err := c.cfg.Blobs.ReadAll(ctx, ota.Digest(m.Digest), manifest.MaxManifest)
		if err != nil {
			return err
		}
		content, err := c.cfg.Blobs.ReadAll(ctx, doc.Layers[0].Digest, attest.MaxDocument)
		if err != nil {
			return err
		}
		out.Small = append(out.Small, raw, content, empty)
		out.Layout = append(out.Layout, manifest.Descriptor{MediaType: m.MediaType, ArtifactType: m.ArtifactType, Digest: ota.Digest(m.Digest), Size: m.Size, Annotations: m.Annotations})
	}
	return nil
}

// exportMetadata adds the TUF metadata that a device or a site needs, by being
// one: whatever a client that starts at the first root asks for goes along.
func (c *Catalog) exportMetadata(ctx context.Context, rootFrom int64, now time.Time, out *bundle.Contents) error {
	first, err := c.cfg.Repository.Metadata("1.root.json")
	if err != nil {
		return fmt.Errorf("export metadata: %w", err)
	}
	rec := recorder{from: c.cfg.Repository, files: map[string][]byte{"1.root.json": first}}
	client, err := trust.NewClient(slot.NewMem(), first)
	if err != nil {
		return fmt.Errorf("export metadata: %w", err)
	}
	if err := client.Refresh(ctx, rec.source, now, out.Info.Target); err != nil {
		return fmt.Errorf("export metadata: %w", err)
	}
	info, err := client.Target(out.Info.Target)
	if err != nil || info.Digest != out.Info.Index.Digest {
		return fmt.Errorf("%w: the signed metadata does not list %s: a person may have to sign it first (`skein trust status`)", ErrInvalid, out.Info.Release)
	}
	for name := range rec.files {
		v, role, _ := strings.Cut(name, ".")
		if n, err := strconv.ParseInt(v, 10, 64); err == nil && role == "root.json" && n < rootFrom {
			delete(rec.files, name)
		}
	}
	out.Metadata, out.Info.Expires = rec.files, attest.Stamp(client.Expires())
	return nil
}

// recorder keeps what a client reads.
type recorder struct {
	from Repository

	mu    sync.Mutex // guards files
	files map[string][]byte
}

func (r *recorder) source(ctx context.Context, name string) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	b, err := r.from.Metadata(name)
	if err == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.files[name] = b
	}
	return b, err
}

// TargetsFor returns the targets of a release that devices of these targets
// take, or why one takes none.
func (c *Catalog) TargetsFor(tenant string, d ota.Digest, devices map[string]string) ([]string, error) {
	e, err := c.entry(tenant, d)
	if err != nil {
		return nil, err
	}
	var out []string
	for device, target := range devices {
		s := e.selects(target)
		if s.err != nil {
			return nil, fmt.Errorf("%w: device %s: %w", ErrInvalid, device, s.err)
		}
		t, err := s.manifest.Target()
		if err != nil {
			return nil, err
		}
		if !slices.Contains(out, t.String()) {
			out = append(out, t.String())
		}
	}
	slices.Sort(out)
	return out, nil
}
