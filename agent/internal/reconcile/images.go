package reconcile

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/manifest"
)

// errImage marks an image that the runtime could not make ready.
var errImage = errors.New("container image")

// images is the runtime's way to container images, when it runs any.
func (x *Executor) images() (runtime.Images, bool) {
	if r, asks := x.Runtime.(runtime.ImageRunner); asks && !r.RunsImages() {
		return nil, false
	}
	i, ok := x.Runtime.(runtime.Images)
	return i, ok
}

// server reads what serves the model; both documents are in the local store. It
// is nil for what the device is configured with.
func (x *Executor) server(ctx context.Context, c *contents) (*manifest.Workload, error) {
	if c.workload == nil {
		return nil, nil
	}
	raw, err := x.Blobs.ReadAll(ctx, c.workload.Digest, manifest.MaxWorkload)
	if err != nil {
		return nil, fmt.Errorf("read workload: %w", err)
	}
	w, err := manifest.ParseWorkload(raw)
	if err != nil {
		return nil, err
	}
	var image []byte
	if c.image != nil {
		if image, err = x.Blobs.ReadAll(ctx, c.image.Digest, manifest.MaxManifest); err != nil {
			return nil, fmt.Errorf("read image manifest: %w", err)
		}
	}
	return w, c.own.CheckImage(w, image)
}

// fetchServer brings what says how the model is served, before the rest, and
// refuses what this device does not run.
func (x *Executor) fetchServer(ctx context.Context, c *contents) error {
	for _, d := range []*manifest.Descriptor{c.workload, c.image} {
		if d == nil {
			continue
		}
		if err := x.fetch(ctx, *d); err != nil {
			return err
		}
	}
	w, err := x.server(ctx, c)
	if err != nil || w == nil || w.Image == nil {
		return err
	}
	if _, ok := x.images(); !ok {
		return fmt.Errorf("%w: its model runs in a container image, and this device runs no containers: install containerd and start the agent with --runtime containerd, or release it without an image", ErrRejected)
	}
	return nil
}

// ensureImage makes the image of an install ready to start. It is noted before,
// so that what a power cut left of it is not trusted: a container run-time does
// not sync what it unpacks before it counts it as unpacked.
func (x *Executor) ensureImage(ctx context.Context, i *state.Install, anew bool) (err error) {
	if i.Spec == nil || i.Spec.Image == nil {
		return nil
	}
	img := *i.Spec.Image
	images, ok := x.images()
	if !ok {
		return fmt.Errorf("%w %s: %w: this device runs no containers any more: start the agent with --runtime containerd", errImage, img.Digest.Short(), runtime.ErrIncompatible)
	}
	boot := x.BootID()
	stale := x.importStale(img.Digest, boot)
	x.Point("image:before-import")
	if err := x.noteImport(img.Digest, boot); err != nil {
		if i.Manifest == "" { // else it is committed: what is there may do
			return fmt.Errorf("import image %s: %w", img.Digest.Short(), err)
		}
		x.Logger.Warn("an import of an image is not noted", "image", img.Digest.Short(), "error", err)
	}
	damaged := ""
	err = images.EnsureImage(ctx, img, anew || stale, func(ctx context.Context, d ota.Digest) (io.ReadCloser, int64, error) {
		f, size, err := x.Blobs.Open(ctx, d)
		if err != nil {
			damaged = d.Short()
			return nil, 0, err
		}
		return &checkedBlob{ReadCloser: f, want: d, left: size, sum: sha256.New(), bad: func() { damaged = d.Short() }}, size, nil
	})
	switch {
	case err != nil && damaged != "":
		return fmt.Errorf("import image %s: blob %s: %w (%w)", img.Digest.Short(), damaged, blob.ErrDigestMismatch, err)
	case err != nil:
		return fmt.Errorf("%w %s: %w", errImage, img.Digest.Short(), err)
	}
	x.Point("image:before-whole")
	if err := x.State.Change(func(s *state.State) { s.Importing = withoutImport(s.Importing, img.Digest) }); err != nil && i.Manifest == "" {
		return fmt.Errorf("import image %s: %w", img.Digest.Short(), err)
	}
	return nil
}

// expose lets the user of a container read the staged files of its model, which
// is bound into it: the folders above let nobody else come this far.
func (x *Executor) expose(i *state.Install) error {
	dir := x.Files.Path(i.Dir())
	if i.Image() == "" || dir == "" {
		return nil
	}
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return os.Chmod(name, 0o755)
		case e.Type().IsRegular():
			return os.Chmod(name, 0o644)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("let the container read its model: %w", err)
	}
	return nil
}

func withoutImport(list []state.Import, d ota.Digest) []state.Import {
	return slices.DeleteFunc(slices.Clone(list), func(m state.Import) bool { return m.Image == d })
}

// importStale reports whether a start of the machine lies between an import that
// has not ended and now, and d may have what it left. What is committed was
// whole before any later import.
func (x *Executor) importStale(d ota.Digest, boot uint64) bool {
	s := x.State.Get()
	committed := slices.ContainsFunc([]*state.Install{s.Current, s.Previous}, func(i *state.Install) bool { return i.Image() == d })
	return slices.ContainsFunc(s.Importing, func(m state.Import) bool {
		return (m.Boot != boot || boot == 0) && (m.Image == d || !committed)
	})
}

func (x *Executor) noteImport(d ota.Digest, boot uint64) error {
	if slices.ContainsFunc(x.State.Get().Importing, func(m state.Import) bool { return m.Image == d }) {
		return nil
	}
	return x.State.Change(func(s *state.State) {
		s.Importing = append(slices.Clone(s.Importing), state.Import{Image: d, Boot: boot})
	})
}

// keepImages removes images that neither the committed release nor the one
// before needs.
func (x *Executor) keepImages(ctx context.Context) {
	images, ok := x.images()
	if !ok {
		return
	}
	s := x.State.Get()
	var keep []ota.Digest
	for _, i := range []*state.Install{s.Current, s.Previous} {
		if d := i.Image(); d != "" && !slices.Contains(keep, d) {
			keep = append(keep, d)
		}
	}
	err := images.KeepImages(ctx, keep)
	if err == nil {
		gone := func(m state.Import) bool { return !slices.Contains(keep, m.Image) }
		if slices.ContainsFunc(s.Importing, gone) {
			err = x.State.Change(func(s *state.State) { s.Importing = slices.DeleteFunc(slices.Clone(s.Importing), gone) })
		}
	}
	if err != nil { // the next commit tries again
		x.Logger.Warn("remove images that nothing needs", "error", err)
	}
}

// unpacked is what an image takes beside its blobs: the runtime's copy of them,
// and the file systems. What an installed release has too is there already.
func (x *Executor) unpacked(c *contents) (need int64) {
	s := x.State.Get()
	for _, l := range c.layers {
		if l.OfImage() && !slices.ContainsFunc([]*state.Install{s.Current, s.Previous}, func(i *state.Install) bool {
			return i.Image() != "" && slices.Contains(i.Blobs, l.Digest)
		}) {
			need += l.Size + l.Unpacked()
		}
	}
	return need
}

// checkedBlob hashes a blob while it is unpacked: a damaged one must be known as
// damaged, whatever the runtime says of it.
type checkedBlob struct {
	io.ReadCloser
	want ota.Digest
	left int64
	sum  hash.Hash
	bad  func()
}

// Read implements io.Reader.
func (b *checkedBlob) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.sum.Write(p[:n])
	if b.left -= int64(n); b.left <= 0 || errors.Is(err, io.EOF) {
		if ota.DigestFromSum([sha256.Size]byte(b.sum.Sum(nil))) != b.want {
			b.bad()
			return 0, fmt.Errorf("%w: %s", blob.ErrDigestMismatch, b.want)
		}
	}
	return n, err
}
