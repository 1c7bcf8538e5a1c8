package fleet

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/controlplane/internal/store"
)

// Enrolled takes a device record that was just stored into the fleet.
func (f *Fleet) Enrolled(d store.Device, certNotAfter time.Time) error {
	f.change.Lock()
	defer f.change.Unlock()
	if tw := f.find(d.Tenant, d.ID); tw != nil { // enrolled again: the twin's record is newer
		tw.mu.Lock()
		if certNotAfter.After(tw.certNotAfter) {
			tw.certNotAfter = certNotAfter
		}
		tw.mu.Unlock()
		return nil
	}
	tw, err := f.add(d, certNotAfter)
	if err != nil {
		return err
	}
	f.touched(tw)
	return nil
}

// Get returns one device by its id.
func (f *Fleet) Get(tenant, id string) (View, error) {
	tw := f.find(tenant, id)
	if tw == nil {
		return View{}, fmt.Errorf("%w: %s", ErrUnknownDevice, id)
	}
	tw.mu.Lock()
	defer tw.mu.Unlock()
	return tw.view(), nil
}

// Key returns the public key of a device.
func (f *Fleet) Key(tenant, id string) (crypto.PublicKey, error) {
	tw := f.find(tenant, id)
	if tw == nil {
		return nil, fmt.Errorf("%w: %s", ErrUnknownDevice, id)
	}
	tw.mu.Lock()
	defer tw.mu.Unlock()
	return tw.key, nil
}

// Any returns one device by its id, whatever its tenant: for callers whose
// certificate, or process, vouches for them.
func (f *Fleet) Any(id string) (View, error) {
	f.mu.RLock()
	tw := f.twins[id]
	f.mu.RUnlock()
	if tw == nil {
		return View{}, fmt.Errorf("%w: %s", ErrUnknownDevice, id)
	}
	tw.mu.Lock()
	defer tw.mu.Unlock()
	return tw.view(), nil
}

// minPrefix is the shortest prefix of an id that Lookup takes.
const minPrefix = 4

// Lookup finds a device by id, unique prefix of an id, or name.
func (f *Fleet) Lookup(tenant, text string) (View, error) {
	if text == "" {
		return View{}, fmt.Errorf("%w: a device's id or name is missing", ErrInvalid)
	}
	if v, err := f.Get(tenant, text); err == nil {
		return v, nil
	}
	var byName, byPrefix []View
	for _, v := range f.Snapshot(tenant) {
		switch {
		case v.Name == text:
			byName = append(byName, v)
		case len(text) >= minPrefix && strings.HasPrefix(v.ID, text):
			byPrefix = append(byPrefix, v)
		}
	}
	if live := slices.DeleteFunc(slices.Clone(byName), func(v View) bool { return v.State == Revoked }); len(live) > 0 {
		byName = live // a replaced device leaves its name to the new one
	}
	found := byName
	if len(found) == 0 {
		found = byPrefix
	}
	switch len(found) {
	case 0:
		return View{}, fmt.Errorf("%w: %s", ErrUnknownDevice, text)
	case 1:
		return found[0], nil
	}
	ids := make([]string, len(found))
	for i, v := range found {
		ids[i] = v.ID
	}
	return View{}, fmt.Errorf("%w %q: %s", ErrAmbiguous, text, strings.Join(ids[:min(len(ids), 5)], ", "))
}

// Capable returns the active devices of a tenant that were granted a capability.
func (f *Fleet) Capable(tenant, capability string) []View {
	var out []View
	for _, tw := range f.all() {
		if tw.tenant != tenant {
			continue
		}
		tw.mu.Lock()
		if tw.dev.State == store.DeviceActive && slices.Contains(tw.dev.Capabilities, capability) {
			out = append(out, tw.view())
		}
		tw.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b View) int { return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.ID, b.ID)) })
	return out
}

// Snapshot returns all devices of a tenant, by name, then id.
func (f *Fleet) Snapshot(tenant string) []View {
	twins := f.all()
	out := make([]View, 0, len(twins))
	for _, tw := range twins {
		if tw.tenant != tenant {
			continue
		}
		tw.mu.Lock()
		out = append(out, tw.view())
		tw.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b View) int { return cmp.Or(natural(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out
}

// natural compares names so that jetson-2 comes before jetson-10.
func natural(a, b string) int {
	pa, na := splitNumber(a)
	pb, nb := splitNumber(b)
	if pa == pb {
		return cmp.Or(cmp.Compare(len(na), len(nb)), cmp.Compare(na, nb), cmp.Compare(a, b))
	}
	return cmp.Compare(a, b)
}

func splitNumber(s string) (prefix, digits string) {
	prefix = strings.TrimRight(s, "0123456789")
	return prefix, strings.TrimLeft(s[len(prefix):], "0")
}

// edit changes the record of one device, durably, and gives it to the twin. A
// record that changes what the parameters render to makes a new desired state
// in the same transaction. The caller holds change.
func (f *Fleet) edit(ctx context.Context, tenant, id string, change func(*store.Device) error) (View, error) {
	tw := f.find(tenant, id)
	if tw == nil {
		return View{}, fmt.Errorf("%w: %s", ErrUnknownDevice, id)
	}
	b := tw.basis()
	before, served := record(b.dev), isCache(b.dev)
	b.dev.Labels, b.dev.Capabilities = maps.Clone(b.dev.Labels), slices.Clone(b.dev.Capabilities)
	if err := change(&b.dev); err != nil {
		return View{}, err
	}
	var all []made
	about := b.wanted != nil && b.wanted.Release != "" || served != isCache(b.dev)
	if about && b.dev.State == store.DeviceActive && !b.future {
		m, err := f.makeFrom(ctx, tw, b, intentOf(b.wanted, id), f.params[tenant], false)
		if err != nil {
			return View{}, err
		}
		if m != nil {
			all = append(all, *m)
		}
	}
	store.Note(ctx, id, before, record(b.dev))
	if err := f.keep(ctx, all, func(tx *store.Tx) error { return tx.PutDevice(ctx, b.dev) }); err != nil {
		return View{}, err
	}
	if _, err := f.add(b.dev, time.Time{}); err != nil {
		return View{}, err
	}
	f.touched(tw)
	return f.Get(tenant, id)
}

// record is what the audit table keeps of a device record.
func record(d store.Device) any {
	return struct {
		Name         string            `json:"name"`
		State        string            `json:"state"`
		Labels       map[string]string `json:"labels,omitempty"`
		Capabilities []string          `json:"capabilities,omitempty"`
		Why          string            `json:"why,omitempty"`
		ReplacedBy   string            `json:"replaced_by,omitempty"`
	}{d.Name, d.State, d.Labels, d.Capabilities, d.RevokedWhy, d.ReplacedBy}
}

// Approve lets a pending device in; it gets its certificate when it asks next.
func (f *Fleet) Approve(ctx context.Context, tenant, id string) (View, error) {
	f.change.Lock()
	defer f.change.Unlock()
	return f.edit(ctx, tenant, id, func(d *store.Device) error {
		if d.State == store.DeviceRevoked {
			return fmt.Errorf("%w: %s: enrol it again with a new key", ErrRevoked, id)
		}
		d.State = store.DeviceActive
		return nil
	})
}

// Revoke refuses the certificates of a device from now on and ends its live session.
func (f *Fleet) Revoke(ctx context.Context, tenant, id, why string) (v View, ended bool, err error) {
	f.change.Lock()
	defer f.change.Unlock()
	v, err = f.edit(ctx, tenant, id, func(d *store.Device) error {
		d.State, d.RevokedWhy = store.DeviceRevoked, cmp.Or(d.RevokedWhy, why)
		return nil
	})
	if err != nil {
		return v, false, err
	}
	return v, f.kick(id), nil
}

// kick ends the session of a device after it was revoked: the record denies it
// already, so it cannot come back in between.
func (f *Fleet) kick(id string) bool {
	f.mu.RLock()
	l, tw := f.link, f.twins[id]
	f.mu.RUnlock()
	ended := l != nil && l.Kick(id)
	tw.mu.Lock()
	tw.online = false
	tw.mu.Unlock()
	return ended
}

var labelKey = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._/-]{0,61}[a-zA-Z0-9])?$`)

// Capabilities that an operator may grant.
var Capabilities = []string{"builder", "cache"}

// Edit is a change of labels, capabilities and name.
type Edit struct {
	Set         map[string]string
	Remove      []string
	Grant, Take []string
	Name        string
}

// CheckLabels says what is wrong with labels.
func CheckLabels(labels map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if !labelKey.MatchString(k) {
			return fmt.Errorf("%w: label %q: want letters, digits and . _ / - inside, 63 at most", ErrInvalid, k)
		}
		if v := labels[k]; len(v) > 255 || strings.ContainsAny(v, ",()\n") {
			return fmt.Errorf("%w: label %s: value %.60q: want at most 255 characters without comma, parenthesis or line break", ErrInvalid, k, v)
		}
	}
	return nil
}

// Label changes labels, capabilities and name. A device that moves to another
// site gets the parameters of that site, hence a new generation if they differ.
func (f *Fleet) Label(ctx context.Context, tenant, id string, e Edit) (View, error) {
	if err := CheckLabels(e.Set); err != nil {
		return View{}, err
	}
	for _, c := range slices.Concat(e.Grant, e.Take) {
		if !slices.Contains(Capabilities, c) {
			return View{}, fmt.Errorf("%w: capability %q: want one of %s", ErrInvalid, c, strings.Join(Capabilities, ", "))
		}
	}
	f.change.Lock()
	defer f.change.Unlock()
	return f.edit(ctx, tenant, id, func(d *store.Device) error {
		maps.Copy(d.Labels, e.Set)
		for _, k := range e.Remove {
			delete(d.Labels, k)
		}
		d.Capabilities = slices.DeleteFunc(append(d.Capabilities, e.Grant...), func(c string) bool { return slices.Contains(e.Take, c) })
		slices.Sort(d.Capabilities)
		d.Capabilities = slices.Compact(d.Capabilities)
		d.Name = cmp.Or(e.Name, d.Name)
		return nil
	})
}

// Replace gives name, labels, capabilities, parameters and release of an old
// device to a newly enrolled one and revokes the old one, all or nothing.
func (f *Fleet) Replace(ctx context.Context, tenant, oldID, newID string) (View, error) {
	f.change.Lock()
	defer f.change.Unlock()
	from, to := f.find(tenant, oldID), f.find(tenant, newID)
	if from == nil || to == nil || from == to {
		return View{}, fmt.Errorf("%w: %s by %s: want two devices", ErrUnknownDevice, oldID, newID)
	}
	was, b := from.basis(), to.basis()
	old, fresh := was.dev, b.dev
	if fresh.State != store.DeviceActive {
		return View{}, fmt.Errorf("%w: new device %s is %s, want it enrolled", ErrInvalid, newID, fresh.State)
	}
	beforeOld, beforeNew := record(old), record(fresh)
	fresh.Name, fresh.Labels, fresh.Capabilities = old.Name, maps.Clone(old.Labels), slices.Clone(old.Capabilities)
	old.State, old.ReplacedBy = store.DeviceRevoked, newID
	old.RevokedWhy = cmp.Or(old.RevokedWhy, "replaced by "+newID)
	params := slices.Clone(f.params[tenant])
	for _, p := range f.params[tenant] {
		if p.Scope == ScopeDevice && p.Subject == oldID {
			moved, err := f.move(tenant, p, newID)
			if err != nil {
				return View{}, err
			}
			params = put(params, moved)
		}
	}
	wasPolicy := f.policy[tenant]
	f.policy[tenant] = handedOver(wasPolicy, oldID, newID)
	kept := false
	defer func() {
		if !kept {
			f.policy[tenant] = wasPolicy
		}
	}()
	store.Note(ctx, newID, []any{beforeOld, beforeNew}, []any{record(old), record(fresh)})
	var all []made
	if was.wanted != nil {
		// A replacement holds no older release, so rolling back is no question.
		b.dev = fresh
		m, err := f.makeFrom(ctx, to, b, Intent{Device: newID, Release: intentOf(was.wanted, oldID).Release}, params, false)
		if err != nil {
			return View{}, err
		}
		if m != nil {
			all = append(all, *m)
		}
	}
	now := f.cfg.Now()
	err := f.keep(ctx, all, func(tx *store.Tx) error {
		for _, d := range []store.Device{old, fresh} {
			if err := tx.PutDevice(ctx, d); err != nil {
				return err
			}
		}
		for _, p := range params {
			if p.Scope == ScopeDevice && p.Subject == newID {
				if err := tx.PutParameter(ctx, tenant, p, now); err != nil {
					return err
				}
			}
		}
		for _, s := range f.policy[tenant] {
			if s.Scope == policy.Device && s.Subject == newID {
				if err := tx.PutPolicy(ctx, tenant, policyRow(s), now); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return View{}, err
	}
	f.params[tenant], kept = params, true
	for _, d := range []store.Device{old, fresh} {
		tw, err := f.add(d, time.Time{})
		if err != nil {
			return View{}, err
		}
		f.touched(tw)
	}
	f.kick(oldID)
	return f.Get(tenant, newID)
}

// Renewed notes when the newest certificate of a device ends; with a new seal
// key it gets its secrets anew.
func (f *Fleet) Renewed(ctx context.Context, tenant, device string, sealKey []byte, certNotAfter time.Time) error {
	f.change.Lock()
	defer f.change.Unlock()
	tw := f.find(tenant, device)
	if tw == nil {
		return fmt.Errorf("%w: %s", ErrUnknownDevice, device)
	}
	tw.mu.Lock()
	if certNotAfter.After(tw.certNotAfter) {
		tw.certNotAfter = certNotAfter
	}
	again := len(sealKey) > 0 && !bytes.Equal(sealKey, tw.dev.SealKey)
	if again {
		tw.dev.SealKey = sealKey
	}
	w := tw.wanted
	again = again && tw.dev.State == store.DeviceActive && !tw.fromFuture && w != nil && w.Release != ""
	tw.mu.Unlock()
	f.touched(tw)
	if !again {
		return nil
	}
	m, err := f.make(ctx, tenant, intentOf(w, device), f.params[tenant], true)
	if err != nil {
		return err
	}
	return f.keep(ctx, []made{*m}, nil)
}
