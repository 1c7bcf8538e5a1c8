package reconcile

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/manifest"
)

// restore brings the committed workload to serve, without the network. Staged
// files that do not load, or do not answer the golden set, are laid out again
// from the verified blobs once before it gives up; only for a blob that the
// disk has damaged is the network asked.
func (x *Executor) restore(ctx context.Context) error {
	cur := x.State.Get().Current
	if cur == nil {
		return nil
	}
	params, err := x.Params(cur.Params)
	if err != nil {
		return fmt.Errorf("restore %s %s: parameters: %w", cur.Name, cur.Version, err)
	}
	if err := x.fits(cur); err != nil {
		return fmt.Errorf("restore %s %s: %w", cur.Name, cur.Version, err)
	}
	err = x.bringUp(ctx, cur, params)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if errors.Is(err, errImage) {
		// The container run-time does not do it now; nothing of ours is damaged.
		return fmt.Errorf("restore %s %s: %w", cur.Name, cur.Version, err)
	}
	x.Logger.Warn("the committed workload is laid out again", "release", cur.Release.Short(), "error", err)
	c, rerr := x.heal(ctx, cur)
	if rerr == nil {
		rerr = x.stage(ctx, cur, c)
	}
	if rerr != nil {
		return fmt.Errorf("restore %s %s: %w", cur.Name, cur.Version, errors.Join(err, rerr))
	}
	if err := x.Runtime.Unload(ctx, cur.WorkloadID()); err != nil {
		return fmt.Errorf("restore %s %s: %w", cur.Name, cur.Version, err)
	}
	if d := cur.Image(); d != "" && !x.renewed[d] {
		// Once a run of the agent: it may be what the disk damaged, and costs much.
		x.renewed[d] = true
		if err := x.ensureImage(ctx, cur, true); err != nil {
			return fmt.Errorf("restore %s %s: %w", cur.Name, cur.Version, err)
		}
	}
	if err := x.bringUp(ctx, cur, params); err != nil {
		return fmt.Errorf("restore %s %s: %w", cur.Name, cur.Version, err)
	}
	return nil
}

// fits says whether what is installed can load on this device as it is now: on
// a new operating system the engines of the old one cannot.
func (x *Executor) fits(i *state.Install) error {
	if i.Target == "" {
		return nil
	}
	t, err := ota.ParseTarget(i.Target)
	if err != nil {
		return nil // it was good enough to be installed
	}
	if reason, ok := t.Loads(x.Target()); !ok {
		return fmt.Errorf("%w: %s", runtime.ErrIncompatible, reason)
	}
	return nil
}

// healTimeout bounds the wait for the network in heal: what else there is to do
// for the device waits with it.
const healTimeout = time.Minute

// heal checks the blobs of the committed release and fetches again those that
// are damaged or gone.
func (x *Executor) heal(ctx context.Context, cur *state.Install) (*contents, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, healTimeout, fmt.Errorf("not fetched in %s", healTimeout))
	defer cancel()
	if err := x.wholeBlob(ctx, manifest.Descriptor{MediaType: manifest.MediaIndex, Digest: cur.Release, Size: cur.Length}); err != nil {
		return nil, err
	}
	_, desc, err := x.selectManifest(ctx, cur)
	if err != nil {
		return nil, err
	}
	if err := x.wholeBlob(ctx, desc); err != nil {
		return nil, err
	}
	c, err := x.read(ctx, cur)
	if err != nil {
		return nil, err
	}
	for _, l := range c.layers {
		if err := x.wholeBlob(ctx, l); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (x *Executor) wholeBlob(ctx context.Context, d manifest.Descriptor) error {
	err := x.Blobs.Verify(ctx, d.Digest)
	switch {
	case errors.Is(err, blob.ErrDigestMismatch):
		if err := x.Blobs.Delete(d.Digest); err != nil {
			return fmt.Errorf("delete damaged blob: %w", err)
		}
	case !errors.Is(err, blob.ErrNotFound):
		return err
	}
	x.Logger.Warn("a blob of the committed release is damaged and fetched again", "blob", d.Digest.Short(), "error", err)
	return x.Fetch.FetchFrom(x.Gate.Exempt(ctx), d, x.Fetch.Remote())
}

// tended is do with the committed workload looked after meanwhile. Both have
// ended when it returns.
func (x *Executor) tended(do doFunc) doFunc {
	return func(ctx context.Context, a *attempt) (string, error) {
		over := make(chan struct{})
		var wg sync.WaitGroup
		defer wg.Wait()
		defer close(over)
		wg.Go(func() {
			tick := time.NewTicker(x.TendEvery)
			defer tick.Stop()
			for {
				select {
				case <-over:
					return
				case <-tick.C:
					x.Tend(ctx)
				}
			}
		})
		return do(ctx, a)
	}
}

// bringUp loads, lets serve, and proves what serves.
func (x *Executor) bringUp(ctx context.Context, i *state.Install, params map[string]string) error {
	w := i.Workload(x.Files, params)
	fresh := !x.loaded(ctx, w.ID)
	if fresh {
		if err := x.intact(ctx, i); err != nil {
			x.suspect(i.Release, err)
			return err
		}
		if err := x.ensureImage(ctx, i, false); err != nil {
			return err
		}
		if err := x.expose(i); err != nil {
			return err
		}
	}
	err := x.load(ctx, w)
	if errors.Is(err, runtime.ErrNoCapacity) {
		if err := x.unloadOthers(ctx, w.ID); err != nil {
			return err
		}
		err = x.load(ctx, w)
	}
	if err != nil {
		return fmt.Errorf("load %s: %w", i.ModelFile, err)
	}
	if err := x.Runtime.Switch(ctx, w.ID); err != nil {
		return fmt.Errorf("switch requests: %w", err)
	}
	if !fresh {
		return nil
	}
	raw, err := x.Blobs.ReadAll(ctx, i.Golden, manifest.MaxGolden)
	if err != nil {
		return fmt.Errorf("read golden set: %w", err)
	}
	g, err := manifest.ParseGolden(raw)
	if err != nil {
		return err
	}
	err = x.prove(ctx, w.ID, g)
	x.Proven(i, err == nil)
	return err
}

func (x *Executor) loaded(ctx context.Context, id string) bool {
	list, err := x.Runtime.List(ctx)
	if err != nil {
		return false
	}
	for _, s := range list {
		if s.ID == id && s.Ready {
			return true
		}
	}
	return false
}

func (x *Executor) unloadOthers(ctx context.Context, id string) error {
	list, err := x.Runtime.List(ctx)
	if err != nil {
		return fmt.Errorf("list workloads: %w", err)
	}
	for _, s := range list {
		if s.ID == id {
			continue
		}
		if err := x.Runtime.Unload(ctx, s.ID); err != nil {
			return fmt.Errorf("unload %s to make room: %w", s.ID, err)
		}
	}
	return nil
}

// collect removes staged folders and blobs that neither the committed release
// nor the one before needs, but for those to spare.
func (x *Executor) collect(ctx context.Context, spare ...ota.Digest) error {
	x.keepImages(ctx)
	s := x.State.Get()
	keep := []*state.Install{s.Current, s.Previous}
	blobs, dirs := map[ota.Digest]bool{}, map[string]bool{}
	for _, d := range spare {
		blobs[d] = true
	}
	for _, i := range keep {
		if i == nil {
			continue
		}
		dirs[i.WorkloadID()] = true
		for _, d := range i.Blobs {
			blobs[d] = true
		}
	}
	entries, err := x.Files.ReadDir(state.StagedRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list staged folders: %w", err)
	}
	for _, e := range entries {
		if !dirs[e.Name()] {
			if err := x.Files.Remove(state.StagedRoot + "/" + e.Name()); err != nil {
				return fmt.Errorf("remove staged folder: %w", err)
			}
		}
	}
	var dead []ota.Digest
	for info, err := range x.Blobs.Garbage(func(d ota.Digest) bool { return blobs[d] }) {
		if err != nil {
			return fmt.Errorf("list blobs: %w", err)
		}
		dead = append(dead, info.Digest)
	}
	for _, d := range dead {
		if err := x.Blobs.Delete(d); err != nil {
			return fmt.Errorf("delete blob: %w", err)
		}
	}
	return nil
}

// ctxReader ends reading when ctx does.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c ctxReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

func digestOf(ctx context.Context, r io.Reader) (ota.Digest, error) {
	h := sha256.New()
	if _, err := io.Copy(h, ctxReader{ctx, r}); err != nil {
		return "", fmt.Errorf("hash: %w", err)
	}
	return ota.DigestFromSum([sha256.Size]byte(h.Sum(nil))), nil
}
