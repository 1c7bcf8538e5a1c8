package fleet

import (
	"context"
	"crypto"
	"fmt"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// Handout returns the signed desired state of a device, to be carried to it by
// hand. The release must be the one that the device is to run. One that would
// end soon is issued anew.
func (f *Fleet) Handout(ctx context.Context, tenant, device string, release ota.Digest) ([]byte, error) {
	f.change.Lock()
	defer f.change.Unlock()
	tw := f.find(tenant, device)
	if tw == nil {
		return nil, fmt.Errorf("%w: %s", ErrUnknownDevice, device)
	}
	b := tw.basis()
	if b.wanted == nil || b.wanted.Release != string(release) {
		return nil, fmt.Errorf("%w: device %s (%s) is to run another release: assign this one first, with `skein device assign` or --assign", ErrInvalid, device, b.dev.Name)
	}
	if !f.expiresSoon(b.wanted) {
		return b.wanted.Payload, nil
	}
	m, err := f.makeFrom(ctx, tw, b, intentOf(b.wanted, device), f.params[tenant], true)
	if err != nil {
		return nil, fmt.Errorf("issue desired state of %s anew: %w", device, err)
	}
	return m.row.Payload, f.keep(ctx, []made{*m}, nil)
}

// Receipt takes the signed report that a device left on a stick, as if it had
// sent it now, and says why if it cannot; ErrKnown for one that says nothing new.
func (f *Fleet) Receipt(ctx context.Context, tenant, device string, msg []byte) error {
	tw := f.find(tenant, device)
	if tw == nil {
		return fmt.Errorf("%w: %s", ErrUnknownDevice, device)
	}
	tw.mu.Lock()
	key, known := tw.key, tw.reportCounter
	tw.mu.Unlock()
	payload, err := trust.Verify([]crypto.PublicKey{key}, wire.AADReport, msg)
	if err != nil {
		return fmt.Errorf("%w: receipt of %s: %w", ErrInvalid, device, err)
	}
	var r wire.Report
	if err := wire.Unmarshal(payload, &r); err != nil {
		return fmt.Errorf("%w: receipt of %s: %w", ErrInvalid, device, err)
	}
	if r.Counter <= known {
		return fmt.Errorf("receipt of %s: report %d: %w", device, r.Counter, ErrKnown)
	}
	return f.Message(ctx, tenant, device, wire.UpReport, msg)
}
