package fleet

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"unicode/utf8"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota/manifest"
)

// The scopes of a parameter; a later one wins.
const (
	ScopeFleet  = 1
	ScopeSite   = 2
	ScopeDevice = 3
)

// Param is one value at one scope, in clear.
type Param struct {
	Scope   int
	Subject string // site or device id, empty for the fleet
	Key     string
	Value   string
	Secret  bool
}

var paramKey = regexp.MustCompile(`^[a-z][a-z0-9_.-]{0,63}$`)

// maxParamValue bounds one value, so that a desired state fits the link.
const maxParamValue = 16 << 10

func (p Param) check() error {
	switch {
	case !paramKey.MatchString(p.Key):
		return fmt.Errorf("%w: key %q: want lower-case letters, digits and _ . - after a letter", ErrParameter, p.Key)
	case p.Scope < ScopeFleet || p.Scope > ScopeDevice:
		return fmt.Errorf("%w: %s: scope is missing: want fleet, site or device", ErrParameter, p.Key)
	case (p.Scope == ScopeFleet) != (p.Subject == ""):
		return fmt.Errorf("%w: %s: a site or device is named for the scopes site and device, and only there", ErrParameter, p.Key)
	case len(p.Value) > maxParamValue:
		return fmt.Errorf("%w: %s: value is %d bytes, limit %d", ErrParameter, p.Key, len(p.Value), maxParamValue)
	case !utf8.ValidString(p.Value):
		return fmt.Errorf("%w: %s: value is not UTF-8 text", ErrParameter, p.Key)
	}
	return nil
}

// place names where a parameter stands, for the vault.
func place(tenant string, p store.Parameter) string {
	return fmt.Sprintf("param/%s/%d/%s/%s", tenant, p.Scope, p.Subject, p.Key)
}

func (f *Fleet) sealed(tenant string, p Param) store.Parameter {
	row := store.Parameter{Scope: p.Scope, Subject: p.Subject, Key: p.Key, Value: []byte(p.Value), Secret: p.Secret}
	if p.Secret {
		row.Value = f.cfg.Vault.Seal(place(tenant, row), row.Value)
	}
	return row
}

// move gives the parameter of one device to another.
func (f *Fleet) move(tenant string, p store.Parameter, subject string) (store.Parameter, error) {
	value, err := f.clear(tenant, p)
	if err != nil {
		return p, err
	}
	return f.sealed(tenant, Param{Scope: p.Scope, Subject: subject, Key: p.Key, Value: string(value), Secret: p.Secret}), nil
}

func (f *Fleet) clear(tenant string, p store.Parameter) ([]byte, error) {
	if !p.Secret {
		return p.Value, nil
	}
	value, err := f.cfg.Vault.Open(place(tenant, p), p.Value)
	if err != nil {
		return nil, fmt.Errorf("read secret %s: %w: set it again if vault.key was replaced", p.Key, err)
	}
	return value, nil
}

// put replaces or appends p in params.
func put(params []store.Parameter, p store.Parameter) []store.Parameter {
	if i := slices.IndexFunc(params, func(q store.Parameter) bool { return samePlace(p, q) }); i >= 0 {
		params[i] = p
		return params
	}
	return append(params, p)
}

func samePlace(a, b store.Parameter) bool {
	return a.Scope == b.Scope && a.Subject == b.Subject && a.Key == b.Key
}

// applies says whether p is for a device.
func applies(p store.Parameter, dev store.Device) bool {
	switch p.Scope {
	case ScopeFleet:
		return true
	case ScopeSite:
		return p.Subject == dev.Labels[SiteLabel]
	}
	return p.Subject == dev.ID
}

// layers returns the values for a device: fleet, site, device.
func (f *Fleet) layers(dev store.Device, params []store.Parameter) ([]map[string]manifest.Value, error) {
	layers := []map[string]manifest.Value{{}, {}, {}}
	for _, p := range params {
		if !applies(p, dev) {
			continue
		}
		value, err := f.clear(dev.Tenant, p)
		if err != nil {
			return nil, err
		}
		layers[p.Scope-1][p.Key] = manifest.Value{Text: string(value), Secret: p.Secret}
	}
	return layers, nil
}

// SetParameters sets and removes values and gives every device whose rendered
// parameters change a new generation. Nothing changes when a value does not fit
// the release of any device. It returns how many devices got a new generation.
func (f *Fleet) SetParameters(ctx context.Context, tenant string, set, remove []Param) (int, error) {
	var errs []error
	for _, p := range slices.Concat(set, remove) {
		errs = append(errs, p.check())
	}
	for _, p := range set {
		if p.Scope == ScopeDevice && f.find(tenant, p.Subject) == nil {
			errs = append(errs, fmt.Errorf("%w: %s", ErrUnknownDevice, p.Subject))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	f.change.Lock()
	defer f.change.Unlock()
	params := slices.Clone(f.params[tenant])
	var puts, dels []store.Parameter
	for _, p := range remove {
		row := store.Parameter{Scope: p.Scope, Subject: p.Subject, Key: p.Key}
		dels = append(dels, row)
		params = slices.DeleteFunc(params, func(q store.Parameter) bool { return samePlace(row, q) })
	}
	for _, p := range set {
		row := f.sealed(tenant, p)
		puts = append(puts, row)
		params = put(params, row)
	}
	all, err := f.renderAll(ctx, tenant, slices.Concat(puts, dels), params)
	if err != nil {
		return 0, err
	}
	store.Note(ctx, fmt.Sprintf("%d parameters", len(set)+len(remove)), named(f.params[tenant], slices.Concat(puts, dels)), named(params, slices.Concat(puts, dels)))
	now := f.cfg.Now()
	err = f.keep(ctx, all, func(tx *store.Tx) error {
		for _, p := range dels {
			if err := tx.DeleteParameter(ctx, tenant, p); err != nil {
				return err
			}
		}
		for _, p := range puts {
			if err := tx.PutParameter(ctx, tenant, p, now); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	f.params[tenant] = params
	return len(all), nil
}

// renderAll makes new desired states for the devices that the changed
// parameters are for. Devices that cannot get one now, because they are
// revoked or wait for a person, are passed over.
func (f *Fleet) renderAll(ctx context.Context, tenant string, changed, params []store.Parameter) ([]made, error) {
	var all []made
	var errs []error
	for _, tw := range f.all() {
		tw.mu.Lock()
		dev, w, ready := tw.dev, tw.wanted, tw.dev.State == store.DeviceActive && !tw.fromFuture
		tw.mu.Unlock()
		if tw.tenant != tenant || w == nil || w.Release == "" || !ready || !slices.ContainsFunc(changed, func(p store.Parameter) bool { return applies(p, dev) }) {
			continue
		}
		m, err := f.make(ctx, tenant, intentOf(w, dev.ID), params, false)
		switch {
		case err != nil:
			errs = append(errs, err)
		case m != nil:
			all = append(all, *m)
		}
		if len(errs) >= 5 {
			break
		}
	}
	return all, errors.Join(errs...)
}

// named is what the audit table keeps of parameters: no secrets.
func named(params, places []store.Parameter) any {
	type entry struct {
		Scope   int    `json:"scope"`
		Subject string `json:"subject,omitempty"`
		Key     string `json:"key"`
		Value   string `json:"value,omitempty"`
		Secret  bool   `json:"secret,omitempty"`
	}
	var out []entry
	for _, p := range params {
		if !slices.ContainsFunc(places, func(q store.Parameter) bool { return samePlace(p, q) }) {
			continue
		}
		e := entry{p.Scope, p.Subject, p.Key, string(p.Value), p.Secret}
		if p.Secret {
			e.Value = ""
		}
		out = append(out, e)
	}
	return out
}

// Parameters returns the values of a tenant, or those that apply to one device
// in the order in which they win; secrets are left empty.
func (f *Fleet) Parameters(tenant, device string) ([]Param, error) {
	f.change.Lock()
	params := slices.Clone(f.params[tenant])
	f.change.Unlock()
	var dev store.Device
	if device != "" {
		tw := f.find(tenant, device)
		if tw == nil {
			return nil, fmt.Errorf("%w: %s", ErrUnknownDevice, device)
		}
		tw.mu.Lock()
		dev = tw.dev
		tw.mu.Unlock()
	}
	var out []Param
	for _, p := range params {
		if device != "" && !applies(p, dev) {
			continue
		}
		q := Param{Scope: p.Scope, Subject: p.Subject, Key: p.Key, Value: string(p.Value), Secret: p.Secret}
		if p.Secret {
			q.Value = ""
		}
		out = append(out, q)
	}
	slices.SortStableFunc(out, func(a, b Param) int { return a.Scope - b.Scope })
	return out, nil
}
