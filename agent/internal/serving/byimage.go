package serving

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

var errNoImages = fmt.Errorf("%w: the workload is a container image, and this device runs none (--runtime, --containerd)", runtime.ErrIncompatible)

// ByImage launches workloads with an image one way and those without another.
// A nil launcher refuses its kind.
type ByImage struct {
	Image, Plain Launcher
}

func (b ByImage) of(w runtime.Workload) (Launcher, error) {
	image := specOf(w).Image != nil
	switch {
	case image && b.Image == nil:
		return nil, errNoImages
	case !image && b.Plain == nil:
		return nil, fmt.Errorf("%w: the release names no container image, and this device starts no commands (--model-command)", runtime.ErrIncompatible)
	case image:
		return b.Image, nil
	}
	return b.Plain, nil
}

// Launch starts a server with the launcher of its kind.
func (b ByImage) Launch(ctx context.Context, s Spec) (Instance, error) {
	l, err := b.of(s.Workload)
	if err != nil {
		return nil, err
	}
	return l.Launch(ctx, s)
}

func (b ByImage) each(f func(Launcher) error) error {
	var errs []error
	for _, l := range []Launcher{b.Image, b.Plain} {
		if l != nil {
			errs = append(errs, f(l))
		}
	}
	return errors.Join(errs...)
}

// Adopt returns what both find.
func (b ByImage) Adopt(ctx context.Context) ([]Adopted, error) {
	var out []Adopted
	err := b.each(func(l Launcher) error {
		found, err := l.Adopt(ctx)
		out = append(out, found...)
		return err
	})
	return out, err
}

// Close closes both.
func (b ByImage) Close() error { return b.each(Launcher.Close) }

// Outlives says whether a server of w may outlive the agent: containers do.
func (b ByImage) Outlives(w runtime.Workload) bool { return specOf(w).Image != nil }

// images is what a launcher of containers has.
type images interface {
	EnsureImage(ctx context.Context, img manifest.Image, anew bool, open func(ctx context.Context, d ota.Digest) (io.ReadCloser, int64, error)) error
	KeepImages(ctx context.Context, keep []ota.Digest) error
	RunOnce(ctx context.Context, c Command) (Exit, error)
}

func (b ByImage) images() images {
	i, _ := b.Image.(images)
	return i
}

// EnsureImage makes an image ready to start; it refuses one where no containers run.
func (r *Runtime) EnsureImage(ctx context.Context, img manifest.Image, anew bool, open func(ctx context.Context, d ota.Digest) (io.ReadCloser, int64, error)) error {
	i := r.images()
	if i == nil {
		return errNoImages
	}
	return i.EnsureImage(ctx, img, anew, open)
}

// KeepImages removes all images but these.
func (r *Runtime) KeepImages(ctx context.Context, keep []ota.Digest) error {
	if i := r.images(); i != nil {
		return i.KeepImages(ctx, keep)
	}
	return nil
}

// RunOnce runs a command in a container of an image that is ready.
func (r *Runtime) RunOnce(ctx context.Context, c Command) (Exit, error) {
	i := r.images()
	if i == nil {
		return Exit{}, errNoImages
	}
	return i.RunOnce(ctx, c)
}

// RunsImages reports whether the launcher runs containers.
func (r *Runtime) RunsImages() bool { return r.images() != nil }

func (r *Runtime) images() images {
	if b, ok := r.opts.Launcher.(ByImage); ok {
		return b.images()
	}
	i, _ := r.opts.Launcher.(images)
	return i
}
