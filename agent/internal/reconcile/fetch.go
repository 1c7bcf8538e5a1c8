package reconcile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
)

// contents is what the index and the manifest say for this device.
type contents struct {
	release manifest.Release
	weights manifest.Descriptor
	format  string
	golden  manifest.Descriptor
	layers  []manifest.Descriptor // of the model server, and what goes with it
	blobs   []ota.Digest          // all that is fetched

	index     *manifest.Index
	manifests []*manifest.Manifest // of this device, now and under the release's operating system
	manifest  manifest.Descriptor
	agent     *manifest.Descriptor // binary of the agent, if the release brings one
	os        *manifest.Descriptor // OS image, if it brings one that does not run yet
	after     ota.Target           // of the device, once it does

	own      *manifest.Manifest   // the one that counts
	workload *manifest.Descriptor // what serves the model, if it says so
	image    *manifest.Descriptor // manifest of the container image, if it brings one
}

// bring lists what is fetched beyond index and manifest.
func (c *contents) bring() []manifest.Descriptor {
	out := slices.Clone(c.layers)
	for _, l := range []*manifest.Descriptor{c.agent, c.os} {
		if l != nil {
			out = append(out, *l)
		}
	}
	return out
}

// read parses index and manifest from the local store.
func (x *Executor) read(ctx context.Context, i *state.Install) (*contents, error) {
	ix, desc, err := x.selectManifest(ctx, i)
	if err != nil {
		return nil, err
	}
	c := &contents{index: ix, blobs: []ota.Digest{i.Release, desc.Digest}}
	if c.release, err = ix.Release(); err != nil {
		return nil, err
	}
	m, err := x.manifest(ctx, desc)
	if err != nil {
		return nil, err
	}
	c.manifests = append(c.manifests, m)
	osImage, after, brings, err := m.OSImage()
	if err != nil {
		return nil, err
	}
	if brings && i.Manifest == "" && x.osWanted(osImage, after) {
		// What serves under the new system is made for the new system.
		c.os, c.after = &osImage, after
		if desc, err = ix.Select(after); err != nil {
			return nil, fmt.Errorf("after the new operating system: %w", err)
		}
		if m, err = x.manifest(ctx, desc); err != nil {
			return nil, err
		}
		c.manifests = append(c.manifests, m)
		c.blobs = append(c.blobs, desc.Digest)
	}
	c.manifest = desc
	if of, is := m.Annotations[manifest.AnnTarget], desc.Annotations[manifest.AnnTarget]; of != is {
		return nil, fmt.Errorf("%w: the index lists for %q a manifest that is made for %q", manifest.ErrNoTarget, is, of)
	}
	c.own = m
	if w, ok, err := m.Workload(); err != nil {
		return nil, err
	} else if ok {
		c.workload = &w
	}
	if im, _, ok, err := m.Image(); err != nil {
		return nil, err
	} else if ok {
		c.image = &im
	}
	if c.weights, c.format, err = m.Weights(); err != nil {
		return nil, err
	}
	g, ok := m.Golden()
	if !ok {
		return nil, fmt.Errorf("%w: it has no golden set, so it cannot be proven on a device", ErrRejected)
	}
	c.golden = g
	agent, brings, err := m.Agent()
	if err != nil {
		return nil, err
	}
	if brings {
		c.agent = &agent
	}
	for _, l := range m.Layers {
		if !l.Machine() {
			c.layers = append(c.layers, l)
		}
	}
	for _, l := range c.bring() {
		c.blobs = append(c.blobs, l.Digest)
		// Its chunk index is kept, when it is here, for the next update.
		if s, err := l.Savings(); err == nil && s.Chunks != nil && x.Blobs.Has(s.Chunks.Digest) {
			c.blobs = append(c.blobs, s.Chunks.Digest)
		}
	}
	return c, nil
}

func (x *Executor) manifest(ctx context.Context, d manifest.Descriptor) (*manifest.Manifest, error) {
	raw, err := x.Blobs.ReadAll(ctx, d.Digest, manifest.MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return manifest.ParseManifest(raw)
}

// selectManifest finds the manifest of this device in an index: for what is
// installed the one that it was installed from, whatever the device is now.
func (x *Executor) selectManifest(ctx context.Context, i *state.Install) (*manifest.Index, manifest.Descriptor, error) {
	raw, err := x.Blobs.ReadAll(ctx, i.Release, manifest.MaxIndex)
	if err != nil {
		return nil, manifest.Descriptor{}, fmt.Errorf("read index: %w", err)
	}
	ix, err := manifest.ParseIndex(raw)
	if err != nil {
		return nil, manifest.Descriptor{}, err
	}
	for _, d := range ix.Manifests {
		if i.Manifest != "" && d.Digest == i.Manifest {
			return ix, d, nil
		}
	}
	desc, err := ix.Select(x.Target())
	return ix, desc, err
}

func (x *Executor) doFetch(ctx context.Context, a *attempt) (string, error) {
	before := x.Fetch.BytesFetched()
	index := manifest.Descriptor{MediaType: manifest.MediaIndex, Digest: a.install.Release, Size: a.install.Length}
	if err := x.fetch(ctx, index); err != nil {
		return "", err
	}
	_, desc, err := x.selectManifest(ctx, &a.install)
	if err != nil {
		return "", err
	}
	if err := x.fetch(ctx, desc); err != nil {
		return "", err
	}
	if err := x.fetchNext(ctx, &a.install, desc); err != nil {
		return "", err
	}
	c, err := x.read(ctx, &a.install)
	if err != nil {
		return "", err
	}
	// Before the first byte of what may not be here.
	if err := x.Agrees(&a.install, c.index, c.manifests); err != nil {
		return "", err
	}
	if err := x.checkBoot(ctx, c); err != nil {
		return "", err
	}
	if err := x.fetchServer(ctx, c); err != nil {
		return "", err
	}
	memory, err := x.memory(c)
	if err != nil {
		return "", err
	}
	err = x.room(c)
	if errors.Is(err, slot.ErrDiskFull) { // what failed updates left may be in the way
		if err := x.collect(ctx, c.blobs...); err != nil {
			return "", err
		}
		err = x.room(c)
	}
	if err != nil {
		return "", err
	}
	x.Offer(c.bring())
	b := x.newBringer(ctx, a.install.Release)
	b.predicted = x.Fetch.BytesFetched() - before // index, manifest and workload
	for _, l := range c.bring() {
		x.Point("fetch:before-blob")
		if err := b.layer(ctx, l); err != nil {
			return "", err
		}
	}
	return b.account(x.Fetch.BytesFetched()-before) + memory, nil
}

// room refuses before the first byte what would not fit: the missing blobs,
// the staged copy, and the reserve.
func (x *Executor) room(c *contents) error {
	free, err := x.Free()
	if err != nil || free < 0 {
		return nil // unknown: the writes will tell
	}
	need := x.unpacked(c)
	for _, l := range c.bring() {
		if l.MediaType != manifest.MediaOSImage && !l.OfImage() { // one goes to a partition of its own, the other is unpacked
			need += l.Size
		}
		if !x.Blobs.Has(l.Digest) {
			have, err := x.Blobs.Partial(l.Digest)
			if err != nil {
				return err
			}
			need += l.Size - min(have, l.Size)
		}
	}
	reserve := x.reserve()
	if need+reserve > free && x.Yield(need+reserve-free) {
		if free, err = x.Free(); err != nil {
			return nil
		}
	}
	if need+reserve > free {
		return fmt.Errorf("%w: the release needs %d bytes and %d stay in reserve, %d are free", slot.ErrDiskFull, need, reserve, free)
	}
	return nil
}

// fetchNext brings the manifest that counts once the release's operating system
// runs.
func (x *Executor) fetchNext(ctx context.Context, i *state.Install, here manifest.Descriptor) error {
	m, err := x.manifest(ctx, here)
	if err != nil {
		return err
	}
	osImage, after, brings, err := m.OSImage()
	if err != nil || !brings || i.Manifest != "" || !x.osWanted(osImage, after) {
		return err
	}
	raw, err := x.Blobs.ReadAll(ctx, i.Release, manifest.MaxIndex)
	if err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	ix, err := manifest.ParseIndex(raw)
	if err != nil {
		return err
	}
	next, err := ix.Select(after)
	if err != nil {
		return fmt.Errorf("after the new operating system: %w", err)
	}
	return x.fetch(ctx, next)
}

// fetch brings one blob and goes on trying while the network is what fails.
func (x *Executor) fetch(ctx context.Context, d manifest.Descriptor) error {
	return x.fetchFrom(ctx, d, x.Fetch.Remote())
}

// Its bytes come while the gate is open.
func (x *Executor) fetchFrom(ctx context.Context, d manifest.Descriptor, from fetch.Source) error {
	if size, err := x.Blobs.Size(d.Digest); err == nil && size == d.Size {
		return nil
	}
	return x.bring(ctx, d, from, x.fetchGated)
}

type fetchFunc func(context.Context, manifest.Descriptor, fetch.Source) error

func (x *Executor) bring(ctx context.Context, d manifest.Descriptor, from fetch.Source, fetchIt fetchFunc) error {
	defer x.Waiting(nil)
	if d.Size > roomEvery { // what is small comes before leftovers are collected
		from = roomy{from, x}
	}
	for try := 0; ; try++ {
		err := fetchIt(ctx, d, from)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for _, final := range []error{fetch.ErrNotFound, fetch.ErrForbidden, fetch.ErrUnusable, blob.ErrDigestMismatch, blob.ErrTooLong, blob.ErrTruncated, slot.ErrDiskFull, slot.ErrBadName, manifest.ErrMalformed} {
			if errors.Is(err, final) {
				return err
			}
		}
		x.Waiting(err)
		x.Logger.Info("download waits for the network", "blob", d.Digest.Short(), "error", err)
		pause := time.NewTimer(time.Duration(rand.Int64N(int64(min(time.Minute, time.Second<<min(try, 8)))) + 1))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return context.Cause(ctx)
		}
	}
}

// undoFetch keeps what arrived whole, for the next try, until the next commit
// collects it; a full disk gets it back at once.
func (x *Executor) undoFetch(ctx context.Context, u *state.Update) error {
	if strings.Contains(u.Cause, slot.ErrDiskFull.Error()) || !u.Undoing {
		return x.collect(ctx)
	}
	return nil
}
