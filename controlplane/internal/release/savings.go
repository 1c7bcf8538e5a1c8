package release

import (
	"cmp"
	"context"
	"slices"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/chunk"
	"github.com/skein-fleet/skein/ota/manifest"
)

// patchBases is how many older contents of a file a new release has patches
// against: a device may have missed the last release, or taken it back.
const patchBases = 3

// savings makes indexes and patches for the files of a new release, against the
// files of the same title in the releases of that name before it. It runs
// before the release's counter is taken: it may take minutes.
func (c *Catalog) savings(ctx context.Context, r Request, m store.ModelVersion, machine map[string][]manifest.Descriptor) (map[ota.Digest]manifest.Savings, error) {
	if c.cfg.Deltas == nil {
		return nil, nil
	}
	older, err := c.olderLayers(ctx, r.Tenant, r.Name)
	if err != nil {
		return nil, err
	}
	out := map[ota.Digest]manifest.Savings{}
	for _, l := range []struct {
		title string
		d     manifest.Descriptor
	}{
		{"model.onnx", manifest.Descriptor{Digest: ota.Digest(m.ONNX), Size: m.ONNXSize}},
		{"golden.json", manifest.Descriptor{Digest: ota.Digest(m.Golden), Size: m.GoldenSize}},
	} {
		var bases []manifest.Descriptor
		for _, o := range older {
			if o.Title() == l.title && o.Digest != l.d.Digest && len(bases) < patchBases {
				bases = append(bases, o)
			}
		}
		if out[l.d.Digest], err = c.cfg.Deltas.Savings(ctx, l.d, bases); err != nil {
			return nil, err
		}
	}
	for _, l := range agentsOf(machine) {
		var bases []manifest.Descriptor
		for _, o := range older {
			if o.MediaType == manifest.MediaAgent && o.Digest != l.Digest && len(bases) < patchBases {
				bases = append(bases, o)
			}
		}
		if out[l.Digest], err = c.cfg.Deltas.Savings(ctx, l, bases); err != nil {
			return nil, err
		}
	}
	// Layers of images get indexes alone: what is packed anew has nothing in
	// common with what it was, and what is not travels well by chunks.
	for _, l := range imagesOf(machine) {
		if out[l.Digest], err = c.cfg.Deltas.Savings(ctx, l, nil); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// byName returns the releases of a name, newest first.
func (c *Catalog) byName(tenant, name string) []*entry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var es []*entry
	for k, e := range c.known {
		if k.tenant == tenant && e.row.Name == name {
			es = append(es, e)
		}
	}
	slices.SortFunc(es, func(a, b *entry) int { return cmp.Compare(b.row.Counter, a.row.Counter) })
	return es
}

// olderLayers lists the layers of the releases of a name, but for those of
// container images, newest first, each content once.
func (c *Catalog) olderLayers(ctx context.Context, tenant, name string) ([]manifest.Descriptor, error) {
	var out []manifest.Descriptor
	seen := map[ota.Digest]bool{}
	for _, e := range c.byName(tenant, name) {
		layers, err := c.entryLayers(ctx, e)
		if err != nil {
			return nil, err
		}
		for _, l := range layers {
			if !seen[l.Digest] && !l.OfImage() {
				seen[l.Digest] = true
				out = append(out, l)
			}
		}
		if len(out) >= 8*patchBases {
			break
		}
	}
	return out, nil
}

// entryLayers lists the layers of all targets of a release, each content once.
func (c *Catalog) entryLayers(ctx context.Context, e *entry) ([]manifest.Descriptor, error) {
	var out []manifest.Descriptor
	for _, d := range e.index.Manifests {
		m, err := c.readManifest(ctx, d.Digest)
		if err != nil {
			return nil, err
		}
		for _, l := range m.Layers {
			if !slices.ContainsFunc(out, func(o manifest.Descriptor) bool { return o.Digest == l.Digest && o.Title() == l.Title() }) {
				out = append(out, l)
			}
		}
	}
	return out, nil
}

// Layer is one file of a release with what saves bytes on its way.
type Layer struct {
	Title     string
	Image     bool // of the container image
	Digest    ota.Digest
	Size      int64
	Chunks    int   // 0: it has no index
	IndexSize int64 // of the chunk index
	// Shared is how many of its bytes lie in chunks of the release before.
	Shared  int64
	Patches []manifest.Patch
	// For what a device runs: the ways, cheapest first.
	Ways []chunk.Choice
}

// Layers explains how the files of a release travel, compared with the release
// before, whose name@version it returns, empty when there is none. have, if it
// is not empty, is the release that a device runs; Ways are planned for that.
func (c *Catalog) Layers(ctx context.Context, tenant string, d, have ota.Digest) (out []Layer, beforeName string, err error) {
	e, err := c.entry(tenant, d)
	if err != nil {
		return nil, "", err
	}
	layers, err := c.entryLayers(ctx, e)
	if err != nil {
		return nil, "", err
	}
	var before *entry
	for _, o := range c.byName(tenant, e.row.Name) {
		if o.row.Counter < e.row.Counter {
			before = o
			break
		}
	}
	var previous, held []chunk.Installed
	if before != nil {
		beforeName = before.row.Name + "@" + before.row.Version
		if previous, err = c.installed(ctx, before); err != nil {
			return nil, "", err
		}
	}
	if h, err := c.entry(tenant, have); err == nil { // else it runs nothing, or what is not known here
		if held, err = c.installed(ctx, h); err != nil {
			return nil, "", err
		}
	}
	for _, l := range layers {
		x, err := c.explain(ctx, l, previous, held)
		if err != nil {
			return nil, "", err
		}
		out = append(out, x)
	}
	return out, beforeName, nil
}

func (c *Catalog) explain(ctx context.Context, l manifest.Descriptor, previous, held []chunk.Installed) (Layer, error) {
	save, err := l.Savings()
	if err != nil {
		return Layer{}, err
	}
	x := Layer{Title: l.Title(), Image: l.OfImage(), Digest: l.Digest, Size: l.Size, Patches: save.Patches}
	a := chunk.Artifact{Digest: l.Digest, Size: l.Size}
	var others []*chunk.Index
	for _, p := range previous {
		if p.Digest == l.Digest {
			x.Shared = l.Size
		}
		others = append(others, p.Index)
	}
	if save.Chunks != nil {
		if a.Index, err = c.index(ctx, l); err != nil {
			return Layer{}, err
		}
		a.IndexBytes = save.Chunks.Size
		x.Chunks, x.IndexSize = len(a.Index.Chunks), save.Chunks.Size
		x.Shared = max(x.Shared, a.Index.Shared(others...))
	}
	var offers []chunk.Offer
	for _, p := range save.Patches {
		offers = append(offers, chunk.Offer{Patch: p})
	}
	x.Ways = chunk.Plan(a, offers, held)
	return x, nil
}

// index reads the chunk index that a layer names.
func (c *Catalog) index(ctx context.Context, l manifest.Descriptor) (*chunk.Index, error) {
	save, err := l.Savings()
	if err != nil || save.Chunks == nil {
		return nil, err
	}
	raw, err := c.cfg.Blobs.ReadAll(ctx, save.Chunks.Digest, chunk.MaxIndex)
	if err != nil {
		return nil, err
	}
	return chunk.ParseIndex(raw)
}

// installed is what a device that runs a release has.
func (c *Catalog) installed(ctx context.Context, e *entry) ([]chunk.Installed, error) {
	layers, err := c.entryLayers(ctx, e)
	if err != nil {
		return nil, err
	}
	var out []chunk.Installed
	for _, l := range layers {
		ix, err := c.index(ctx, l)
		if err != nil {
			return nil, err
		}
		out = append(out, chunk.Installed{Digest: l.Digest, Size: l.Size, Index: ix})
	}
	return out, nil
}
