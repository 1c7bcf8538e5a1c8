// Package delta makes what saves bytes on the way to devices: the chunk index
// of an artifact while it is stored, and patches from one artifact to another.
//
// Invariants: an index is made once, while the artifact is hashed, and
// remembered in a small file under chunks/; a patch is listed only after it was
// applied here and made the target, byte for byte; memory use does not depend
// on the size of an artifact but for its index; what cannot be made, or not in
// time, is left out and never stands in a release's way. The façade makes one
// Maker; blobs and release use it through interfaces of their own.
package delta

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/chunk"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
)

// Config of a Maker. Files and Blobs, which lies in Files, are required.
type Config struct {
	Files  slot.Files
	Blobs  *blob.Store
	Logger *slog.Logger
	// PatchTime bounds the making of one patch: 10 minutes.
	PatchTime time.Duration
}

// Maker makes indexes and patches. Its methods may be called from several
// goroutines; one patch is made at a time.
type Maker struct {
	cfg Config

	patching sync.Mutex // one at a time: it takes a core and some memory
}

// New returns a Maker; it starts nothing.
func New(cfg Config) (*Maker, error) {
	if cfg.Files == nil || cfg.Blobs == nil {
		return nil, errors.New("delta needs Files and Blobs")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.PatchTime = cmp.Or(cfg.PatchTime, 10*time.Minute)
	return &Maker{cfg: cfg}, nil
}

func pointerName(d ota.Digest) string { return "chunks/" + d.Hex()[:2] + "/" + d.Hex() }

// Adopt makes the file name the blob d, as blob.Store.Adopt does, and makes its
// chunk index on the way.
func (m *Maker) Adopt(ctx context.Context, name string, d ota.Digest) (int64, error) {
	var ix *chunk.Index
	size, err := m.cfg.Blobs.AdoptThrough(ctx, name, d, func(r io.Reader) (err error) {
		ix, err = chunk.Build(ctx, d, r)
		if errors.Is(err, chunk.ErrTooMany) {
			m.cfg.Logger.Info("no chunk index: the artifact is too large for one", "blob", string(d))
			return nil
		}
		return err
	})
	if err != nil || ix == nil || ix.Size < chunk.MinArtifact {
		return size, err
	}
	if _, err := m.remember(ix); err != nil {
		// The artifact is stored; its index is made again when it is asked for.
		m.cfg.Logger.Warn("store a chunk index", "blob", string(d), "err", err)
	}
	return size, nil
}

func (m *Maker) remember(ix *chunk.Index) (manifest.BlobRef, error) {
	raw := ix.Marshal()
	d, err := m.cfg.Blobs.PutBytes(raw)
	if err != nil {
		return manifest.BlobRef{}, err
	}
	ref := manifest.BlobRef{Digest: d, Size: int64(len(raw))}
	text, err := json.Marshal(ref)
	if err != nil {
		return ref, fmt.Errorf("encode the place of a chunk index: %w", err)
	}
	return ref, m.cfg.Files.WriteFile(pointerName(ix.Artifact), text)
}

// Index returns the chunk index of a stored artifact, and makes it if there is
// none yet. It is nil for what needs none.
func (m *Maker) Index(ctx context.Context, d ota.Digest, size int64) (*chunk.Index, manifest.BlobRef, error) {
	if size < chunk.MinArtifact {
		return nil, manifest.BlobRef{}, nil
	}
	text, err := m.cfg.Files.ReadFile(pointerName(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, manifest.BlobRef{}, err
	}
	if err == nil {
		var ref manifest.BlobRef
		if json.Unmarshal(text, &ref) == nil {
			if ix, err := m.read(ctx, ref, d); err == nil {
				return ix, ref, nil
			}
		}
	}
	f, _, err := m.cfg.Blobs.Open(ctx, d)
	if err != nil {
		return nil, manifest.BlobRef{}, err
	}
	ix, err := chunk.Build(ctx, d, f)
	err = errors.Join(err, f.Close())
	if errors.Is(err, chunk.ErrTooMany) {
		return nil, manifest.BlobRef{}, nil
	}
	if err != nil {
		return nil, manifest.BlobRef{}, err
	}
	ref, err := m.remember(ix)
	return ix, ref, err
}

func (m *Maker) read(ctx context.Context, ref manifest.BlobRef, d ota.Digest) (*chunk.Index, error) {
	raw, err := m.cfg.Blobs.ReadAll(ctx, ref.Digest, chunk.MaxIndex)
	if err != nil {
		return nil, err
	}
	ix, err := chunk.ParseIndex(raw)
	if err == nil && ix.Artifact != d {
		err = fmt.Errorf("%w: it is of %s", chunk.ErrIndex, ix.Artifact.Short())
	}
	return ix, err
}

// Savings returns the index of a layer and patches against the bases, those
// that are smaller than what a device would fetch otherwise. What fails, but by
// the end of ctx, is logged and left out.
func (m *Maker) Savings(ctx context.Context, layer manifest.Descriptor, bases []manifest.Descriptor) (manifest.Savings, error) {
	var s manifest.Savings
	ix, ref, err := m.Index(ctx, layer.Digest, layer.Size)
	if err != nil {
		if ctx.Err() != nil {
			return s, err
		}
		m.cfg.Logger.Error("make a chunk index", "blob", string(layer.Digest), "err", err)
	}
	if ix != nil {
		s.Chunks = &ref
	}
	for _, b := range bases {
		if b.Digest == layer.Digest || len(s.Patches) == manifest.MaxPatches {
			continue
		}
		p, err := m.patch(ctx, b, layer, ix, ref.Size)
		switch {
		case ctx.Err() != nil:
			return s, context.Cause(ctx)
		case errors.Is(err, errWorthless):
			m.cfg.Logger.Info("no patch", "from", string(b.Digest), "to", string(layer.Digest), "why", err.Error())
		case err != nil:
			m.cfg.Logger.Error("make a patch", "from", string(b.Digest), "to", string(layer.Digest), "err", err)
		default:
			s.Patches = append(s.Patches, p)
		}
	}
	return s, nil
}

var errWorthless = errors.New("it would not save enough")

// minSaving is the least a patch must save of what its target costs otherwise.
const minSaving = 10 // percent

// patch makes, checks and stores one patch.
func (m *Maker) patch(ctx context.Context, base, target manifest.Descriptor, ix *chunk.Index, indexSize int64) (manifest.Patch, error) {
	m.patching.Lock()
	defer m.patching.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, m.cfg.PatchTime, fmt.Errorf("it takes more than %s", m.cfg.PatchTime))
	defer cancel()
	baseIx, _, err := m.Index(ctx, base.Digest, base.Size)
	if err != nil {
		return manifest.Patch{}, fmt.Errorf("index of the base: %w", err)
	}
	otherwise := target.Size
	if ix != nil && baseIx != nil {
		otherwise = min(otherwise, indexSize+ix.Size-ix.Shared(baseIx))
	}
	const name = "patches/unfinished" // one at a time; a crash may have left one
	if err := m.cfg.Files.Remove(name); err != nil {
		return manifest.Patch{}, err
	}
	began := time.Now()
	p, err := m.write(ctx, name, base, target, baseIx, ix)
	if err == nil && p.Size > otherwise-otherwise*minSaving/100 {
		err = fmt.Errorf("%w: %d bytes instead of %d", errWorthless, p.Size, otherwise)
	}
	if err == nil {
		_, err = m.cfg.Blobs.Adopt(ctx, name, p.Digest)
	}
	if err == nil {
		err = m.prove(ctx, p, target)
	}
	if err != nil {
		return manifest.Patch{}, errors.Join(err, m.cfg.Files.Remove(name))
	}
	m.cfg.Logger.Info("patch made", "from", base.Digest.Short(), "to", target.Digest.Short(), "kind", p.Kind, "bytes", p.Size, "instead of", otherwise, "took", time.Since(began).Round(time.Millisecond))
	return p, nil
}

// write makes the patch in a file that is no blob yet.
func (m *Maker) write(ctx context.Context, name string, base, target manifest.Descriptor, baseIx, ix *chunk.Index) (p manifest.Patch, err error) {
	from, fromSize, err := m.cfg.Blobs.Open(ctx, base.Digest)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, toSize, err := m.cfg.Blobs.Open(ctx, target.Digest)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	out, err := m.cfg.Files.OpenAppend(name)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	h := sha256.New()
	told := time.Now()
	size, kind, err := chunk.MakePatch(ctx, io.MultiWriter(out, h),
		chunk.File{Digest: base.Digest, Size: fromSize, Data: from, Index: baseIx},
		chunk.File{Digest: target.Digest, Size: toSize, Data: to, Index: ix}, func(done int64) {
			if time.Since(told) > 10*time.Second {
				told = time.Now()
				m.cfg.Logger.Info("making a patch", "from", base.Digest.Short(), "to", target.Digest.Short(), "done", done, "of", toSize)
			}
		})
	if err != nil {
		return p, err
	}
	return manifest.Patch{Base: base.Digest, Digest: ota.DigestFromSum([sha256.Size]byte(h.Sum(nil))), Size: size, Kind: kind}, nil
}

// prove applies a stored patch and hashes what comes out.
func (m *Maker) prove(ctx context.Context, p manifest.Patch, target manifest.Descriptor) (err error) {
	data, size, err := m.cfg.Blobs.Open(ctx, p.Digest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, data.Close()) }()
	opened, err := chunk.OpenPatch(data, size)
	if err != nil {
		return err
	}
	base, baseSize, err := m.cfg.Blobs.Open(ctx, p.Base)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, base.Close()) }()
	src, err := chunk.FromPatch(opened, base, baseSize)
	if err != nil {
		return err
	}
	r, err := src.Open(ctx, target.Digest, 0, target.Size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return fmt.Errorf("apply the patch: %w", err)
	}
	if got := ota.DigestFromSum([sha256.Size]byte(h.Sum(nil))); got != target.Digest {
		return fmt.Errorf("the patch makes %s", got.Short())
	}
	return nil
}

// IndexOf returns the digest of the chunk index that was made of an artifact.
func (m *Maker) IndexOf(d ota.Digest) (ota.Digest, bool) {
	text, err := m.cfg.Files.ReadFile(pointerName(d))
	var ref manifest.BlobRef
	if err != nil || json.Unmarshal(text, &ref) != nil {
		return "", false
	}
	return ref.Digest, true
}

// Forget drops what is remembered of an artifact that is gone.
func (m *Maker) Forget(d ota.Digest) error {
	if err := m.cfg.Files.Remove(pointerName(d)); err != nil {
		return fmt.Errorf("forget the chunk index of %s: %w", d.Short(), err)
	}
	return nil
}
