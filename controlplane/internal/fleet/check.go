package fleet

import (
	"context"
	"fmt"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

// Check reports why a device could not be given a release now, or nil: it is
// unknown, revoked or pending, holds a generation from the future, or its
// parameters do not fit what the release declares.
func (f *Fleet) Check(ctx context.Context, tenant, device string, release ota.Digest) error {
	f.change.Lock()
	defer f.change.Unlock()
	tw := f.find(tenant, device)
	if tw == nil {
		return fmt.Errorf("%w: %s", ErrUnknownDevice, device)
	}
	tw.mu.Lock()
	dev, future := tw.dev, tw.fromFuture
	tw.mu.Unlock()
	switch {
	case dev.State == store.DeviceRevoked:
		return fmt.Errorf("%w: %s", ErrRevoked, device)
	case dev.State == store.DevicePending:
		return fmt.Errorf("%w: %s", ErrPending, device)
	case future:
		return fmt.Errorf("%w: %s", ErrFromFuture, device)
	}
	_, err := f.render(ctx, &wire.Desired{}, dev, release, f.params[tenant])
	return err
}
