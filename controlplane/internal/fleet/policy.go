package fleet

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/proto/wire"
)

func loadPolicy(ctx context.Context, tx *store.Tx, tenant string) ([]policy.Setting, error) {
	rows, err := tx.Policies(ctx, tenant)
	out := make([]policy.Setting, len(rows))
	for i, r := range rows {
		out[i] = policy.Setting{Scope: policy.Scope(r.Scope), Subject: r.Subject, Key: r.Key, Value: r.Value}
	}
	return out, err
}

func policyRow(s policy.Setting) store.PolicySetting {
	return store.PolicySetting{Scope: int(s.Scope), Subject: s.Subject, Key: s.Key, Value: s.Value}
}

// restrain fills the policy of d, which runs something or serves others. It
// returns the digest of it, and of whether it serves, and what is kept of the
// extra.
func (f *Fleet) restrain(d *wire.Desired, dev store.Device, in Intent) (digest []byte, extra string, err error) {
	if in.Extra != (policy.Extra{}) {
		text, err := json.Marshal(in.Extra)
		if err != nil {
			return nil, "", fmt.Errorf("encode what is added to the policy: %w", err)
		}
		extra = string(text)
	}
	cache := isCache(dev)
	if in.Release == "" && !cache {
		return nil, extra, nil
	}
	d.Policy = policy.Wire(policy.Merge(f.policy[dev.Tenant], dev.Labels[SiteLabel], dev.ID), in.Extra)
	if d.Policy == nil && !cache {
		return nil, extra, nil
	}
	raw, err := wire.Marshal(&struct {
		Policy *wire.Policy `cbor:"1,keyasint,omitempty"`
		Cache  bool         `cbor:"2,keyasint,omitempty"`
	}{d.Policy, cache})
	if err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(raw)
	return sum[:], extra, nil
}

func extraOf(w *store.Desired) (x policy.Extra) {
	_ = json.Unmarshal([]byte(w.Extra), &x) // empty, or as restrain wrote it
	return x
}

// SetPolicy sets and removes settings, all or none, and gives every device
// whose policy changes a new generation. To remove one without a key removes
// all of its place. It returns how many devices got a new generation.
func (f *Fleet) SetPolicy(ctx context.Context, tenant string, set, remove []policy.Setting) (int, error) {
	set, remove = slices.Clone(set), slices.Clone(remove)
	var errs []error
	for i, s := range set {
		var err error
		set[i], err = s.Check()
		errs = append(errs, err)
		if err == nil && s.Scope == policy.Device && f.find(tenant, s.Subject) == nil {
			errs = append(errs, fmt.Errorf("%w: %s", ErrUnknownDevice, s.Subject))
		}
	}
	for _, s := range remove {
		errs = append(errs, s.CheckPlace())
	}
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	f.change.Lock()
	defer f.change.Unlock()
	was := f.policy[tenant]
	next, dropped := slices.Clone(was), []policy.Setting(nil)
	for _, r := range remove {
		next = slices.DeleteFunc(next, func(s policy.Setting) bool {
			gone := s.Scope == r.Scope && s.Subject == r.Subject && (r.Key == "" || s.Key == r.Key)
			if gone {
				dropped = append(dropped, s)
			}
			return gone
		})
	}
	for _, s := range set {
		next = slices.DeleteFunc(next, s.At)
		next = append(next, s)
	}
	slices.SortFunc(next, byPlace)
	changed := slices.Concat(set, dropped)
	store.Note(ctx, fmt.Sprintf("%d settings", len(changed)), among(was, changed), among(next, changed))
	f.policy[tenant] = next // what is made from here on is made with it
	n, err := f.spread(ctx, tenant, set, dropped)
	if err != nil {
		f.policy[tenant] = was
		return n, err
	}
	f.shareOut(tenant, next)
	return n, nil
}

func among(all, places []policy.Setting) []policy.Setting {
	return slices.DeleteFunc(slices.Clone(all), func(s policy.Setting) bool { return !slices.ContainsFunc(places, s.At) })
}

// spread makes the changed settings durable with the desired states that follow
// from them. The caller holds change.
func (f *Fleet) spread(ctx context.Context, tenant string, set, dropped []policy.Setting) (int, error) {
	var all []made
	for _, tw := range f.all() {
		tw.mu.Lock()
		dev, w, ready := tw.dev, tw.wanted, tw.dev.State == store.DeviceActive && !tw.fromFuture
		tw.mu.Unlock()
		about := func(s policy.Setting) bool { return s.Applies(dev.Labels[SiteLabel], dev.ID) }
		if tw.tenant != tenant || w == nil || w.Release == "" || !ready || !slices.ContainsFunc(set, about) && !slices.ContainsFunc(dropped, about) {
			continue
		}
		m, err := f.make(ctx, tenant, intentOf(w, dev.ID), f.params[tenant], false)
		if err != nil {
			return 0, err
		}
		if m != nil {
			all = append(all, *m)
		}
	}
	now := f.cfg.Now()
	err := f.keep(ctx, all, func(tx *store.Tx) error {
		for _, s := range dropped {
			if err := tx.DeletePolicy(ctx, tenant, policyRow(s)); err != nil {
				return err
			}
		}
		for _, s := range set {
			if err := tx.PutPolicy(ctx, tenant, policyRow(s), now); err != nil {
				return err
			}
		}
		return nil
	})
	return len(all), err
}

// Policy returns the settings of a tenant by scope, subject and key.
func (f *Fleet) Policy(tenant string) []policy.Setting {
	f.change.Lock()
	defer f.change.Unlock()
	return slices.Clone(f.policy[tenant])
}

// PolicyOf returns what is in force on a device, one setting a key.
func (f *Fleet) PolicyOf(tenant, device string) ([]policy.Setting, error) {
	tw := f.find(tenant, device)
	if tw == nil {
		return nil, fmt.Errorf("%w: %s", ErrUnknownDevice, device)
	}
	tw.mu.Lock()
	site := tw.dev.Labels[SiteLabel]
	tw.mu.Unlock()
	return policy.Merge(f.Policy(tenant), site, device), nil
}

// handedOver returns the settings with those of one device given to another too.
func handedOver(all []policy.Setting, from, to string) []policy.Setting {
	out := slices.Clone(all)
	for _, s := range all {
		if s.Scope == policy.Device && s.Subject == from {
			s.Subject = to
			out = append(slices.DeleteFunc(out, s.At), s)
		}
	}
	slices.SortFunc(out, byPlace)
	return out
}

func byPlace(a, b policy.Setting) int {
	return cmp.Or(cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Key, b.Key))
}

// shareOut remembers the rates that this server keeps to. The caller holds
// change.
func (f *Fleet) shareOut(tenant string, settings []policy.Setting) {
	next := map[string]policy.Rates{}
	if was := f.rates.Load(); was != nil {
		maps.Copy(next, *was)
	}
	next[tenant] = policy.RatesOf(settings)
	f.rates.Store(&next)
}

// RatesFor returns the tenant and site of a device, and what all devices of the
// site and of the fleet may take together, in bytes per second; zero for no
// limit.
func (f *Fleet) RatesFor(device string) (tenant, site string, siteRate, fleetRate int64) {
	f.mu.RLock()
	tw := f.twins[device]
	f.mu.RUnlock()
	if tw == nil {
		return "", "", 0, 0
	}
	tw.mu.Lock()
	tenant, site = tw.tenant, tw.dev.Labels[SiteLabel]
	tw.mu.Unlock()
	if all := f.rates.Load(); all != nil {
		r := (*all)[tenant]
		return tenant, site, r.Of(site), r.Fleet
	}
	return tenant, site, 0, 0
}
