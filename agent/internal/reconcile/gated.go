package reconcile

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// fetchGated fetches a blob while the gate is open, and waits where it is not.
// What is here already, perhaps from a bundle, needs no open gate.
func (x *Executor) fetchGated(ctx context.Context, d manifest.Descriptor, from fetch.Source) error {
	if n, err := x.Blobs.Size(d.Digest); err == nil && n == d.Size {
		return x.Fetch.FetchFrom(ctx, d, from) // it looks and finds it
	}
	for {
		dctx, stop, err := x.Gate.Download(ctx)
		if err != nil {
			return err
		}
		err = x.Fetch.FetchFrom(dctx, d, from)
		closed := dctx.Err() != nil && ctx.Err() == nil
		stop()
		if err == nil || !closed {
			return err
		}
		x.Logger.Info("download paused", "blob", d.Digest.Short(), "reason", context.Cause(dctx))
	}
}

// awaitApply waits before the first step that puts the release to work. An
// update that began it goes on, in the window or not, also after a restart.
func (x *Executor) awaitApply(ctx context.Context, next ota.Step, a *attempt) error {
	if next == ota.StepBuild && !x.beganToApply(a.update) {
		wait := x.tended(func(ctx context.Context, _ *attempt) (string, error) { return "", x.Gate.Apply(ctx) })
		if _, err := wait(ctx, a); err != nil {
			return err
		}
	}
	if x.Headroom == nil || next != ota.StepBuild && next != ota.StepLoad {
		return nil
	}
	wait := x.tended(func(ctx context.Context, _ *attempt) (string, error) { return x.Headroom(ctx, string(next)) })
	note, err := wait(ctx, a)
	if note != "" {
		x.Logger.Info("headroom", "step", string(next), "note", note)
	}
	return err
}

// Applying reports whether the update under way has begun to be put to work.
func (x *Executor) Applying() bool {
	u := x.State.Get().Update
	return u != nil && x.beganToApply(u)
}

func (x *Executor) beganToApply(u *state.Update) bool {
	return slices.ContainsFunc(x.Journal.Entries(), func(e slot.Entry) bool {
		return e.Update == u.ID && e.Step == ota.StepBuild && e.State == wire.StepStarted
	})
}

// reserve is how many bytes of the disk stay free.
func (x *Executor) reserve() int64 { return max(leastReserve, x.Reserve()) }

// roomEvery is how many bytes are written between two looks at the disk.
const roomEvery = 1 << 20

// roomy is a source that ends when the disk's free space comes near the
// reserve: others write to it too while a download takes its time.
type roomy struct {
	fetch.Source
	x *Executor
}

// Open implements fetch.Source.
func (r roomy) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	body, err := r.Source.Open(ctx, d, offset, length)
	if err != nil {
		return nil, err
	}
	return &roomyReader{ReadCloser: body, x: r.x}, nil
}

// Blame implements fetch.Blamer.
func (r roomy) Blame(d ota.Digest) { fetch.Blame(r.Source, d) }

type roomyReader struct {
	io.ReadCloser
	x    *Executor
	next int64 // bytes until the next look
}

// Read implements io.Reader.
func (r *roomyReader) Read(p []byte) (int, error) {
	if r.next <= 0 {
		if free, err := r.x.Free(); err == nil && free >= 0 && free < r.x.reserve()+roomEvery {
			// No later try may cure it before something is removed.
			return 0, fmt.Errorf("%w: %w: %d bytes are free and %d stay in reserve", fetch.ErrUnusable, slot.ErrDiskFull, free, r.x.reserve())
		}
		r.next = roomEvery
	}
	n, err := r.ReadCloser.Read(p[:min(len(p), roomEvery)])
	r.next -= int64(n)
	return n, err
}

// PassedOver forwards that of the body.
func (r *roomyReader) PassedOver() int64 {
	if p, ok := r.ReadCloser.(interface{ PassedOver() int64 }); ok {
		return p.PassedOver()
	}
	return 0
}

// memory refuses before the first byte a model whose weights alone are more
// than the machine's memory, and says when both models will hardly fit beside
// each other.
func (x *Executor) memory(c *contents) (note string, err error) {
	used, total := x.Memory()
	need := c.weights.Size
	switch free := total - used; {
	case total <= 0 || need <= free:
		return "", nil
	case need > total:
		return "", fmt.Errorf("%w: the model has %d bytes of weights, the memory %d", ErrRejected, need, total)
	default:
		return fmt.Sprintf("; the model has %d bytes of weights and %d of memory are free: the old one is unloaded first if the runtime cannot hold both", need, free), nil
	}
}
