package fleet

import (
	"context"
	"fmt"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/proto/wire"
)

// maxCrash bounds the message of a crash: the agent keeps to 64 KiB.
const maxCrash = 96 << 10

// crash keeps what a device tells of a start that ended without having been
// stopped.
func (f *Fleet) crash(ctx context.Context, tw *twin, payload []byte) error {
	if len(payload) > maxCrash {
		return fmt.Errorf("%w: a crash of %d bytes, limit %d", wire.ErrMalformed, len(payload), maxCrash)
	}
	var c wire.Crash
	if err := wire.Unmarshal(payload, &c); err != nil {
		return err
	}
	if c.Number > 1<<62 {
		return fmt.Errorf("%w: crash %d", wire.ErrMalformed, c.Number)
	}
	now := f.cfg.Now()
	tw.mu.Lock()
	tenant, device := tw.dev.Tenant, tw.dev.ID
	tw.lastSeen = now
	tw.mu.Unlock()
	return f.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		return tx.PutCrash(ctx, tenant, device, store.Crash{Number: c.Number, Received: now, Body: payload})
	})
}
