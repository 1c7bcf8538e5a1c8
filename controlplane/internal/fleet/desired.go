package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// Intent is what somebody wants a device to run.
type Intent struct {
	Device          string
	Release         ota.Digest // empty: nothing
	RollbackAllowed bool
	Rollout         string // empty: outside any rollout
	// Extra is added to the device's policy for this desired state.
	Extra policy.Extra
	// Again makes a new generation even when it says what the present one says,
	// so that a device tries once more what failed on it.
	Again bool
}

// SetDesired makes release the wanted one of a device, durably, and sends it.
// nil means nothing. Wanting what is wanted already changes nothing.
func (f *Fleet) SetDesired(ctx context.Context, tenant, device string, release *ota.Digest, rollbackAllowed bool, rolloutID string) error {
	in := Intent{Device: device, RollbackAllowed: rollbackAllowed, Rollout: rolloutID}
	if release != nil {
		in.Release = *release
	}
	return f.SetDesiredAll(ctx, tenant, []Intent{in})
}

// SetDesiredAll is SetDesired for many devices in one transaction: all or none.
func (f *Fleet) SetDesiredAll(ctx context.Context, tenant string, intents []Intent) error {
	f.change.Lock()
	defer f.change.Unlock()
	var made []made
	for _, in := range intents {
		m, err := f.make(ctx, tenant, in, f.params[tenant], false)
		if err != nil {
			return err
		}
		if m != nil {
			made = append(made, *m)
		}
	}
	return f.keep(ctx, made, nil)
}

// made is a new desired state that is not durable yet.
type made struct {
	tw  *twin
	row store.Desired
}

// make renders and signs the next desired state of a device, or returns nil
// when it would say the same as the present one. The caller holds change.
func (f *Fleet) make(ctx context.Context, tenant string, in Intent, params []store.Parameter, anew bool) (*made, error) {
	tw := f.find(tenant, in.Device)
	if tw == nil {
		return nil, fmt.Errorf("%w: %s", ErrUnknownDevice, in.Device)
	}
	return f.makeFrom(ctx, tw, tw.basis(), in, params, anew)
}

// basis is what the next desired state of a device is made from. A change of
// the record that is not durable yet is made on a copy of it.
type basis struct {
	dev    store.Device
	held   wire.Generation
	wanted *store.Desired
	future bool
}

func (tw *twin) basis() basis {
	tw.mu.Lock()
	defer tw.mu.Unlock()
	return basis{tw.dev, tw.held.Generation, tw.wanted, tw.fromFuture}
}

func (f *Fleet) makeFrom(ctx context.Context, tw *twin, b basis, in Intent, params []store.Parameter, anew bool) (*made, error) {
	dev, held, wanted := b.dev, b.held, b.wanted
	switch {
	case dev.State == store.DeviceRevoked:
		return nil, fmt.Errorf("%w: %s", ErrRevoked, dev.ID)
	case dev.State == store.DevicePending:
		return nil, fmt.Errorf("%w: %s", ErrPending, dev.ID)
	case b.future:
		return nil, fmt.Errorf("%w: %s holds %s", ErrFromFuture, dev.ID, held)
	}
	d := wire.Desired{Device: dev.ID, Tenant: tw.tenant, RollbackAllowed: in.RollbackAllowed, Rollout: in.Rollout}
	paramsDigest, err := f.render(ctx, &d, dev, in.Release, params)
	if err != nil {
		return nil, err
	}
	policyDigest, extra, err := f.restrain(&d, dev, in)
	if err != nil {
		return nil, err
	}
	if !anew && !in.Again && same(wanted, in, paramsDigest) && bytes.Equal(wanted.PolicyDigest, policyDigest) {
		return nil, nil
	}
	d.Generation = f.next(wanted, held)
	now := f.cfg.Now()
	expires := now.Add(f.cfg.DesiredLife)
	d.IssuedAt, d.ExpiresAt = now.Unix(), expires.Unix()
	if err := f.befriend(&d, dev, in.Release); err != nil {
		return nil, err
	}
	payload, err := wire.Marshal(&d)
	if err != nil {
		return nil, err
	}
	signed, err := f.cfg.Director.Sign(wire.AADDesired, payload)
	if err != nil {
		return nil, fmt.Errorf("sign desired state of %s: %w", dev.ID, err)
	}
	if len(signed) > wire.MaxMessage {
		return nil, fmt.Errorf("%w: desired state of %s is %d bytes, the link carries %d: shorten the parameters", ErrParameter, dev.ID, len(signed), wire.MaxMessage)
	}
	sum := sha256.Sum256(payload)
	return &made{tw: tw, row: store.Desired{Tenant: tw.tenant, Device: dev.ID, Generation: d.Generation, Release: string(in.Release),
		RollbackAllowed: in.RollbackAllowed, Rollout: in.Rollout, Payload: signed, Digest: sum[:], ParamsDigest: paramsDigest,
		PolicyDigest: policyDigest, Extra: extra, Expires: expires}}, nil
}

// same says that the present desired state already says all this.
func same(w *store.Desired, in Intent, paramsDigest []byte) bool {
	return w != nil && w.Release == string(in.Release) && w.RollbackAllowed == in.RollbackAllowed && w.Rollout == in.Rollout &&
		string(w.ParamsDigest) == string(paramsDigest)
}

// next is the generation after everything ever wanted or held.
func (f *Fleet) next(wanted *store.Desired, held wire.Generation) wire.Generation {
	g := wire.Generation{Epoch: f.epoch}
	if wanted != nil && wanted.Generation.Compare(g) > 0 {
		g = wanted.Generation
	}
	if held.Compare(g) > 0 {
		g = held
	}
	g.Counter++
	return g
}

// render fills release and parameters of d; secrets are sealed to the device.
func (f *Fleet) render(ctx context.Context, d *wire.Desired, dev store.Device, release ota.Digest, params []store.Parameter) ([]byte, error) {
	if release == "" {
		return nil, nil
	}
	ref, decls, err := f.cfg.Releases.Ref(ctx, dev.Tenant, release)
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", release, err)
	}
	layers, err := f.layers(dev, params)
	if err != nil {
		return nil, fmt.Errorf("%w: device %s: %w", ErrParameter, dev.ID, err)
	}
	plain, err := manifest.Render(decls, layers...)
	if err != nil {
		return nil, fmt.Errorf("%w: device %s: %w", ErrParameter, dev.ID, err)
	}
	digest := manifest.ParamsDigest(plain)
	for i, p := range plain {
		if !p.Secret {
			continue
		}
		if len(dev.SealKey) == 0 {
			return nil, fmt.Errorf("%w: device %s enrolled without a seal key, so it cannot get the secret %s: enrol it again", ErrParameter, dev.ID, p.Key)
		}
		if plain[i].Value, err = trust.Seal(dev.SealKey, trust.SealAAD(dev.ID, p.Key), p.Value); err != nil {
			return nil, fmt.Errorf("%w: seal %s for device %s: %w", ErrParameter, p.Key, dev.ID, err)
		}
	}
	d.Release, d.Params = &ref, plain
	return digest, nil
}

// keep makes new desired states durable together with what extra writes, then
// gives them to the twins and sends them. The caller holds change.
func (f *Fleet) keep(ctx context.Context, all []made, extra func(*store.Tx) error) error {
	if len(all) == 0 && extra == nil {
		return nil
	}
	err := f.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		for _, m := range all {
			if err := tx.PutDesired(ctx, m.row); err != nil {
				return err
			}
		}
		if extra != nil {
			return extra(tx)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, m := range all {
		m.tw.mu.Lock()
		if w := m.tw.wanted; w != nil && w.Release != m.row.Release {
			m.tw.before = ota.Digest(w.Release)
		}
		m.tw.wanted, m.tw.sendAfter = &m.row, time.Time{}
		// It was none when this was made, or a person confirmed it: what the
		// device said since is from the future only if newer than this.
		doubted := m.tw.fromFuture
		m.tw.fromFuture = doubted && m.tw.ahead()
		m.tw.mu.Unlock()
		f.metrics.generations.Inc()
		if doubted {
			f.touched(m.tw)
		}
		f.notify(m.row.Device)
		f.queue.Add(m.tw, workDesired)
	}
	return nil
}

func intentOf(w *store.Desired, device string) Intent {
	in := Intent{Device: device}
	if w != nil {
		in.Release, in.RollbackAllowed, in.Rollout, in.Extra = ota.Digest(w.Release), w.RollbackAllowed, w.Rollout, extraOf(w)
	}
	return in
}

// reissue gives a device the same desired state with a new life.
func (f *Fleet) reissue(ctx context.Context, tw *twin) error {
	f.change.Lock()
	defer f.change.Unlock()
	tw.mu.Lock()
	w, tenant, id := tw.wanted, tw.dev.Tenant, tw.dev.ID
	due := w != nil && f.expiresSoon(w) && tw.reachable()
	tw.mu.Unlock()
	if !due {
		return nil
	}
	m, err := f.make(ctx, tenant, intentOf(w, id), f.params[tenant], true)
	if err != nil {
		return fmt.Errorf("issue desired state of %s anew: %w", id, err)
	}
	return f.keep(ctx, []made{*m}, nil)
}

func (f *Fleet) expiresSoon(w *store.Desired) bool {
	return w.Expires.Sub(f.cfg.Now()) < f.cfg.DesiredLife/2
}

// ConfirmGeneration accepts that a device holds a generation from the future:
// what the control plane wants becomes the generation after it.
func (f *Fleet) ConfirmGeneration(ctx context.Context, tenant, device string) (View, error) {
	f.change.Lock()
	defer f.change.Unlock()
	tw := f.find(tenant, device)
	if tw == nil {
		return View{}, fmt.Errorf("%w: %s", ErrUnknownDevice, device)
	}
	b := tw.basis()
	if !b.future {
		return View{}, fmt.Errorf("%w: device %s holds no generation from the future, there is nothing to confirm", ErrInvalid, device)
	}
	b.future = false
	m, err := f.makeFrom(ctx, tw, b, intentOf(b.wanted, device), f.params[tenant], true)
	if err != nil {
		return View{}, err
	}
	tw.mu.Lock()
	row, err := tw.row()
	tw.mu.Unlock()
	if err != nil {
		return View{}, err
	}
	row.FromFuture = false
	store.Note(ctx, device, map[string]any{"from_future": true, "held": b.held.String()}, map[string]any{"generation": m.row.Generation.String()})
	if err := f.keep(ctx, []made{*m}, func(tx *store.Tx) error { return tx.PutTwins(ctx, []store.Twin{row}) }); err != nil {
		return View{}, err
	}
	return f.Get(tenant, device)
}

// Restored gives every device with a desired state a new one in the present
// epoch; it is called once after the store came back from a backup.
func (f *Fleet) Restored(ctx context.Context) error {
	f.change.Lock()
	defer f.change.Unlock()
	var all []made
	for _, tw := range f.all() {
		tw.mu.Lock()
		w, tenant, id := tw.wanted, tw.dev.Tenant, tw.dev.ID
		old := w != nil && w.Generation.Epoch < f.epoch
		tw.mu.Unlock()
		if !old {
			continue
		}
		m, err := f.make(ctx, tenant, intentOf(w, id), f.params[tenant], true)
		if errors.Is(err, ErrRevoked) || errors.Is(err, ErrFromFuture) {
			continue
		}
		if err != nil {
			return err
		}
		all = append(all, *m)
	}
	return f.keep(ctx, all, nil)
}
