package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// labelTrusted marks an image whose layers are unpacked and synced; its value
// is the snapshot of the top one.
const labelTrusted = "dev.skein.trusted"

// labelLease marks a lease as one of an unpacking.
const labelLease = "dev.skein.lease"

// Open reads a blob of the agent's own.
type Open = func(ctx context.Context, d ota.Digest) (io.ReadCloser, int64, error)

func imageName(d ota.Digest) string { return "skein.local/image@" + string(d) }

// image returns an image that is ready to start.
func (l *Launcher) image(ctx context.Context, c *client.Client, d ota.Digest) (client.Image, error) {
	img, err := c.ImageService().Get(ctx, imageName(d))
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("look for image %s: %w", d, l.told(err))
	}
	ready := false
	if err == nil {
		if ready, err = l.trusted(ctx, c, img); err != nil {
			return nil, err
		}
	}
	if !ready {
		return nil, fmt.Errorf("image %s is not here, or was not unpacked to its end", d)
	}
	return client.NewImageWithPlatform(c, img, platforms.All), nil
}

func (l *Launcher) trusted(ctx context.Context, c *client.Client, img images.Image) (bool, error) {
	top := img.Labels[labelTrusted]
	if top == "" {
		return false, nil
	}
	_, err := c.SnapshotService(l.opts.Snapshotter).Stat(ctx, top)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for unpacked layers: %w", l.told(err))
	}
	return true, nil
}

// EnsureImage makes img ready to start. Whatever goes wrong, nothing that was
// trusted is lost and nothing of the try stays.
func (l *Launcher) EnsureImage(ctx context.Context, img manifest.Image, anew bool, open func(ctx context.Context, d ota.Digest) (io.ReadCloser, int64, error)) error {
	if err := l.ensureImage(ctx, img, anew, open); err != nil {
		return fmt.Errorf("prepare image %s: %w", img.Digest, l.told(err))
	}
	return nil
}

func (l *Launcher) ensureImage(ctx context.Context, img manifest.Image, anew bool, open Open) (err error) {
	l.images.Lock()
	defer l.images.Unlock()
	ctx, c, err := l.dial(ctx)
	if err != nil {
		return err
	}
	old, err := c.ImageService().Get(ctx, imageName(img.Digest))
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if err == nil {
		if ready, err := l.trusted(ctx, c, old); err != nil || ready && !anew {
			return err
		}
	}
	release, ctx, err := l.lease(ctx, c, img.Digest)
	if err != nil {
		return err
	}
	// The image goes before the lease: then what was made of it is garbage, and
	// collected as the lease is deleted.
	defer func() {
		clean, cancel := lasting(ctx)
		defer cancel()
		if err != nil {
			err = errors.Join(err, notFoundIsFine(c.ImageService().Delete(clean, imageName(img.Digest))))
		}
		err = errors.Join(err, release(clean))
	}()
	src, err := l.source(ctx, img, open)
	if err != nil {
		return err
	}
	p := &puller{l: l, c: c, lease: leaseID(img.Digest), src: src, verify: anew}
	got, err := p.pull(ctx, img.Digest)
	if err != nil {
		return err
	}
	if err := p.put(ctx, imageName(img.Digest), got, nil); err != nil {
		return err
	}
	if anew {
		if err := l.dropSnapshots(ctx, c, got.diffIDs); err != nil {
			return err
		}
	}
	if err := l.unpack(ctx, c, imageName(img.Digest), got); err != nil {
		return err
	}
	if err := l.syncStore(ctx, c); err != nil {
		return err
	}
	return p.put(ctx, imageName(img.Digest), got, map[string]string{labelTrusted: identity.ChainID(got.diffIDs).String()})
}

func notFoundIsFine(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func leaseID(d ota.Digest) string { return "skein-image-" + strings.TrimPrefix(string(d), "sha256:") }

// lease keeps the garbage collector from what is being made. Deleting it
// collects what nothing refers to. One of a try that was cut off is replaced.
func (l *Launcher) lease(ctx context.Context, c *client.Client, d ota.Digest) (release func(context.Context) error, leased context.Context, err error) {
	ls := c.LeasesService()
	id := leases.Lease{ID: leaseID(d)}
	if err := notFoundIsFine(ls.Delete(ctx, id)); err != nil {
		return nil, ctx, fmt.Errorf("remove an old lease: %w", err)
	}
	if _, err := ls.Create(ctx, leases.WithID(id.ID), leases.WithLabel(labelLease, "image")); err != nil {
		return nil, ctx, fmt.Errorf("make a lease: %w", err)
	}
	return func(ctx context.Context) error {
		return notFoundIsFine(ls.Delete(ctx, id, leases.SynchronousDelete))
	}, leases.WithLease(ctx, id.ID), nil
}

// collect waits for the garbage collector: deleting any lease can.
func (l *Launcher) collect(ctx context.Context, c *client.Client) error {
	id := leases.Lease{ID: "skein-collect"}
	if _, err := c.LeasesService().Create(ctx, leases.WithID(id.ID)); err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("collect garbage: %w", err)
	}
	if err := c.LeasesService().Delete(ctx, id, leases.SynchronousDelete); notFoundIsFine(err) != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}

// unpack makes snapshots of the layers that have none.
func (l *Launcher) unpack(ctx context.Context, c *client.Client, name string, got *pulled) error {
	if err := l.room(ctx, c, got.bytes); err != nil {
		return err
	}
	img := client.NewImageWithPlatform(c, images.Image{Name: name, Target: got.target}, platforms.All)
	if err := img.Unpack(ctx, l.opts.Snapshotter); err != nil {
		return fmt.Errorf("unpack: %w", badLayer(err))
	}
	return nil
}

// expansion is what a compressed layer is taken to grow by, at the least.
const expansion = 2

// room refuses an image that cannot fit, before it fills the disk.
func (l *Launcher) room(ctx context.Context, c *client.Client, compressed int64) error {
	root := l.roots(ctx, c)[snapshotPlugin+l.opts.Snapshotter]
	if root == "" {
		return nil // the daemon does not say where it keeps them
	}
	free, err := freeBytes(root)
	if err != nil {
		return err
	}
	if need := expansion * compressed; free < need {
		return fmt.Errorf("not enough room at %s: the unpacked image needs %d MiB or more, %d MiB are free", root, need>>20, free>>20)
	}
	return nil
}

// badLayers are the words of what is wrong with a layer itself.
var badLayers = []string{"wrong diff id", "invalid tar header", "gzip: invalid", "unexpected EOF", "magic number mismatch",
	"mismatched image rootfs", "unsupported media type", "invalid header", "not in gzip format", "failed to get stream processor", "exit status", "invalid input"}

// badLayer marks what no other try makes better.
func badLayer(err error) error {
	text := err.Error()
	if strings.Contains(text, "no space left on device") {
		return fmt.Errorf("the disk is full: %w", err)
	}
	if errdefs.IsUnavailable(err) || errdefs.IsCanceled(err) || errdefs.IsDeadlineExceeded(err) {
		return err
	}
	for _, words := range badLayers {
		if strings.Contains(text, words) {
			return fmt.Errorf("%w: a layer of the image is damaged: %w", runtime.ErrIncompatible, err)
		}
	}
	return err
}

const (
	snapshotPlugin = "io.containerd.snapshotter.v1/"
	contentPlugin  = "io.containerd.content.v1/"
	metadataPlugin = "io.containerd.metadata.v1/"
)

// roots are the folders that the daemon says its plugins keep things in.
func (l *Launcher) roots(ctx context.Context, c *client.Client) map[string]string {
	out := map[string]string{}
	resp, err := c.IntrospectionService().Plugins(ctx)
	if err != nil {
		return out
	}
	for _, p := range resp.Plugins {
		if root := p.Exports["root"]; root != "" {
			out[p.Type+"/"+p.ID] = root
		}
	}
	return out
}

// syncStore makes content and snapshots durable.
func (l *Launcher) syncStore(ctx context.Context, c *client.Client) error {
	roots := l.roots(ctx, c)
	snapshots := roots[snapshotPlugin+l.opts.Snapshotter]
	if snapshots == "" {
		return fmt.Errorf("sync the unpacked layers: containerd does not say where the snapshotter %s keeps them", l.opts.Snapshotter)
	}
	if err := syncFileSystem(snapshots); err != nil {
		return err
	}
	if root := roots[contentPlugin+"content"]; root != "" {
		return syncFileSystem(root)
	}
	return nil
}

// KeepImages removes all images but these. Containers that run keep the layers
// they stand on.
func (l *Launcher) KeepImages(ctx context.Context, keep []ota.Digest) error {
	l.images.Lock()
	defer l.images.Unlock()
	ctx, c, err := l.dial(ctx)
	if err != nil {
		return fmt.Errorf("remove images: %w", err)
	}
	kept := map[string]bool{}
	for _, d := range keep {
		kept[imageName(d)] = true
	}
	all, err := c.ImageService().List(ctx)
	if err != nil {
		return fmt.Errorf("remove images: %w", l.told(err))
	}
	for _, img := range all {
		if kept[img.Name] {
			continue
		}
		if err := notFoundIsFine(c.ImageService().Delete(ctx, img.Name, images.SynchronousDelete())); err != nil {
			return fmt.Errorf("remove image %s: %w", img.Name, l.told(err))
		}
	}
	return nil
}
