package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/chunk"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
)

// bringer brings the layers of one release in the cheapest way and keeps the
// account of it.
type bringer struct {
	x         *Executor
	release   ota.Digest // that is brought
	have      []chunk.Installed
	layers    map[ota.Digest]manifest.Descriptor // of what is installed
	indexed   bool                               // have carries indexes
	predicted int64
	notes     []string
}

// newBringer looks at what is installed. What cannot be read is not used.
func (x *Executor) newBringer(ctx context.Context, release ota.Digest) *bringer {
	b := &bringer{x: x, release: release, layers: map[ota.Digest]manifest.Descriptor{}}
	s := x.State.Get()
	for _, i := range []*state.Install{s.Current, s.Previous} {
		if i == nil {
			continue
		}
		c, err := x.read(ctx, i)
		if err != nil {
			x.Logger.Info("an installed release cannot serve as a base", "release", i.Release.Short(), "error", err)
			continue
		}
		for _, l := range c.bring() {
			if size, err := x.Blobs.Size(l.Digest); err != nil || size != l.Size || b.layers[l.Digest].Digest != "" {
				continue
			}
			b.layers[l.Digest] = l
			b.have = append(b.have, chunk.Installed{Digest: l.Digest, Size: l.Size})
		}
	}
	return b
}

// layer brings one blob and falls back from the cheapest way to the next.
func (b *bringer) layer(ctx context.Context, l manifest.Descriptor) error {
	x := b.x
	before := x.Fetch.BytesFetched()
	choices, index, err := b.plan(ctx, l)
	if err != nil {
		return err
	}
	b.predicted += choices[0].Bytes
	for n, c := range choices {
		err := b.take(ctx, l, c, index)
		if err == nil {
			if c.Way != chunk.Here {
				fell := ""
				if n > 0 {
					fell = fmt.Sprintf(" after %s did not do", choices[0])
				}
				b.notes = append(b.notes, fmt.Sprintf("%s %d of %d by %s%s", name(l), x.Fetch.BytesFetched()-before, l.Size, c, fell))
			}
			return nil
		}
		if ctx.Err() != nil || errors.Is(err, slot.ErrDiskFull) || n == len(choices)-1 {
			return err
		}
		x.suspect(b.release, err)
		x.Logger.Warn("a cheaper way did not bring the blob", "blob", l.Digest.Short(), "way", c.String(), "error", err)
	}
	return nil
}

func name(l manifest.Descriptor) string {
	if t := l.Title(); t != "" {
		return t
	}
	return l.Digest.Short()
}

// plan asks for the chunk index only when it may pay: something is installed,
// and no patch is as small as the index alone.
func (b *bringer) plan(ctx context.Context, l manifest.Descriptor) ([]chunk.Choice, *chunk.Index, error) {
	x := b.x
	save, err := l.Savings()
	if err != nil {
		return nil, nil, err
	}
	a := chunk.Artifact{Digest: l.Digest, Size: l.Size, Here: x.Blobs.Has(l.Digest)}
	if a.Partial, err = x.Blobs.Partial(l.Digest); err != nil {
		return nil, nil, err
	}
	var offers []chunk.Offer
	for _, p := range save.Patches {
		o := chunk.Offer{Patch: p}
		if size, err := x.Blobs.Size(p.Digest); err == nil {
			o.Have = size
		} else if o.Have, err = x.Blobs.Partial(p.Digest); err != nil {
			return nil, nil, err
		}
		offers = append(offers, o)
	}
	choices := chunk.Plan(a, offers, b.have)
	if save.Chunks == nil || len(b.have) == 0 || choices[0].Bytes <= save.Chunks.Size {
		return choices, nil, nil
	}
	if !x.Blobs.Has(save.Chunks.Digest) {
		a.IndexBytes = save.Chunks.Size
	}
	if a.Index, err = b.index(ctx, l, *save.Chunks); err != nil {
		if ctx.Err() != nil || errors.Is(err, slot.ErrDiskFull) {
			return nil, nil, err
		}
		x.suspect(b.release, err)
		x.Logger.Warn("the chunk index is of no use", "blob", l.Digest.Short(), "error", err)
		return choices, nil, nil
	}
	if err := b.indexInstalled(ctx); err != nil {
		return nil, nil, err
	}
	choices = chunk.Plan(a, offers, b.have)
	if choices[0].Way != chunk.ByChunks {
		choices[0].Bytes += a.IndexBytes // it was fetched for the plan
	}
	return choices, a.Index, nil
}

// index brings and reads the index of a layer.
func (b *bringer) index(ctx context.Context, l manifest.Descriptor, ref manifest.BlobRef) (*chunk.Index, error) {
	if ref.Size > chunk.MaxIndex {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", chunk.ErrIndex, ref.Size, chunk.MaxIndex)
	}
	if err := b.x.fetch(ctx, ref.Descriptor(chunk.MediaIndex)); err != nil {
		return nil, err
	}
	raw, err := b.x.Blobs.ReadAll(ctx, ref.Digest, chunk.MaxIndex)
	if err != nil {
		return nil, err
	}
	ix, err := chunk.ParseIndex(raw)
	if err == nil && (ix.Artifact != l.Digest || ix.Size != l.Size) {
		err = fmt.Errorf("%w: it is of %s, %d bytes", chunk.ErrIndex, ix.Artifact.Short(), ix.Size)
	}
	return ix, err
}

// indexInstalled gives each installed artifact its index: the one that came
// with it, or one made now.
func (b *bringer) indexInstalled(ctx context.Context) error {
	if b.indexed {
		return nil
	}
	for i, h := range b.have {
		if h.Size < chunk.MinChunk {
			continue
		}
		if save, err := b.layers[h.Digest].Savings(); err == nil && save.Chunks != nil && b.x.Blobs.Has(save.Chunks.Digest) {
			if ix, err := b.index(ctx, b.layers[h.Digest], *save.Chunks); err == nil {
				b.have[i].Index = ix
				continue
			}
		}
		f, _, err := b.x.Blobs.Open(ctx, h.Digest)
		if err != nil {
			continue
		}
		ix, err := chunk.Build(ctx, h.Digest, f)
		f.Close()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			b.have[i].Index = ix
		}
	}
	b.indexed = true
	return nil
}

// take brings the blob in one way.
func (b *bringer) take(ctx context.Context, l manifest.Descriptor, c chunk.Choice, index *chunk.Index) error {
	x := b.x
	switch c.Way {
	case chunk.Here:
		return x.fetch(ctx, l) // it looks and finds it
	case chunk.ByChunks:
		return x.fetchFrom(ctx, l, chunk.FromChunks(index, b.have, x.Blobs.Open, x.Fetch.Remote()))
	case chunk.ByPatch:
		return b.patch(ctx, l, c.Patch)
	}
	return x.fetch(ctx, l)
}

// patch makes the blob from an installed one: base first hashed, the patch
// removed when it has done its work or cannot do it.
func (b *bringer) patch(ctx context.Context, l manifest.Descriptor, p manifest.Patch) (err error) {
	x := b.x
	if free, err := x.Free(); err == nil && free >= 0 && free < p.Size+2*l.Size+x.reserve() {
		return errors.New("no room for the patch beside the blob")
	}
	if err := x.Blobs.Verify(ctx, p.Base); err != nil {
		return fmt.Errorf("%w: %w", chunk.ErrBase, err)
	}
	if err := x.fetch(ctx, manifest.BlobRef{Digest: p.Digest, Size: p.Size}.Descriptor(chunk.MediaPatch)); err != nil {
		return err
	}
	data, size, err := x.Blobs.Open(ctx, p.Digest)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, data.Close())
		if ctx.Err() == nil { // else it is needed again
			x.Spent(ctx, p.Digest)
			err = errors.Join(err, x.Blobs.Delete(p.Digest))
		}
	}()
	opened, err := chunk.OpenPatch(data, size)
	if err != nil {
		return err
	}
	if opened.Base != p.Base {
		return fmt.Errorf("%w: it is from %s, not from %s", chunk.ErrBase, opened.Base.Short(), p.Base.Short())
	}
	if opened.Target != l.Digest || opened.TargetSize != l.Size {
		return fmt.Errorf("%w: it makes %s of %d bytes", chunk.ErrPatch, opened.Target.Short(), opened.TargetSize)
	}
	base, baseSize, err := x.Blobs.Open(ctx, p.Base)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, base.Close()) }()
	src, err := chunk.FromPatch(opened, base, baseSize)
	if err != nil {
		return err
	}
	err = x.bring(ctx, l, src, x.Fetch.FetchFrom) // nothing comes from afar
	if err != nil && !errors.Is(err, fetch.ErrUnusable) && ctx.Err() == nil {
		err = fmt.Errorf("apply %s patch: %w", p.Kind, err)
	}
	return err
}

// account is the fetch step's message.
func (b *bringer) account(fetched int64) string {
	text := fmt.Sprintf("%d bytes, %d predicted", fetched, b.predicted)
	if len(b.notes) > 0 {
		text += ": " + strings.Join(b.notes, ", ")
	}
	return text
}
