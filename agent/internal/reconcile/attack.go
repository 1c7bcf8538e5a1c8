package reconcile

import (
	"context"
	"errors"
	"fmt"

	"github.com/skein-fleet/skein/agent/internal/selfupdate"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/chunk"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
)

// Errors that mark what somebody may have done on purpose.
var (
	// ErrTampered is returned when staged files are not what was checked.
	ErrTampered = errors.New("staged files changed after they were checked")
	// ErrOther is returned for a release that is not the one it was named as.
	ErrOther = fmt.Errorf("%w: it is another one", ErrRejected)
)

// AttackOf returns the class of attack that an error looks like, or "": an
// honest mistake looks the same, and a person must know of either.
func AttackOf(err error) string {
	if class := trust.AttackClass(err); class != "" {
		return class
	}
	for _, c := range []struct {
		err   error
		class string
	}{
		{ErrTampered, trust.ClassTampered}, {ErrOther, trust.ClassWrongSoftware},
		{manifest.ErrNoTarget, trust.ClassWrongHardware}, {selfupdate.ErrWrongBinary, trust.ClassWrongHardware}, {manifest.ErrName, trust.ClassPath}, {manifest.ErrTwice, trust.ClassTwice},
		{manifest.ErrMalformed, trust.ClassMalformed},
		{chunk.ErrExpands, trust.ClassBomb}, {chunk.ErrBase, trust.ClassWrongBase}, {chunk.ErrPatch, trust.ClassBadPatch}, {chunk.ErrIndex, trust.ClassBadIndex},
		{blob.ErrTooLong, trust.ClassEndless}, {blob.ErrDigestMismatch, trust.ClassWrongHash}, {slot.ErrBadName, trust.ClassPath},
		{fetch.ErrSlow, trust.ClassSlow}, {fetch.ErrNotFound, trust.ClassWithheld},
	} {
		if errors.Is(err, c.err) {
			return c.class
		}
	}
	return ""
}

// suspect tells of an error that looks like an attack.
func (x *Executor) suspect(release ota.Digest, err error) {
	if class := AttackOf(err); class != "" {
		x.Refused(class, release, oneLine(err))
	}
}

// intact checks the staged files of an install against its manifest: before
// they are loaded and after, since the runtime opens them by name. Where the
// manifest cannot be read there is nothing to check against, and what serves
// must not depend on that.
func (x *Executor) intact(ctx context.Context, i *state.Install) error {
	c, err := x.read(ctx, i)
	if err != nil {
		return nil
	}
	want := c.staged()
	if x.stagedWhole(ctx, i.Dir(), want) {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: %s", ErrTampered, i.Dir())
}

// dropDamaged removes the blobs of an install that are not what their digests
// say, so that the next try fetches them again.
func (x *Executor) dropDamaged(ctx context.Context, i *state.Install) error {
	var errs []error
	for _, d := range i.Blobs {
		if err := x.Blobs.Verify(ctx, d); errors.Is(err, blob.ErrDigestMismatch) {
			errs = append(errs, x.Blobs.Delete(d))
		}
	}
	return errors.Join(errs...)
}

// staged says which files a release has on the device.
func (c *contents) staged() staged {
	want := staged{Files: map[string]ota.Digest{}}
	for _, l := range c.layers {
		if t := l.Title(); t != "" {
			want.Files[t] = l.Digest
		}
	}
	return want
}
