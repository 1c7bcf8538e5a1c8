package trust

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Delegate lets keys list releases of a model within policy with no hand, once
// persons have signed it (ErrPending). A delegation to the model that is there
// is replaced.
func (r *Repo) Delegate(ctx context.Context, policy AutoPolicy, keys []NamedKey, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("delegate %s: %w", policy.Model, context.Cause(ctx))
	}
	if err := policy.Validate(); err != nil {
		return fmt.Errorf("delegate %s: %w: %w", policy.Model, ErrBadDraft, err)
	}
	if len(keys) == 0 {
		return fmt.Errorf("delegate %s: %w: no key to delegate to", policy.Model, ErrBadDraft)
	}
	role := metadata.DelegatedRole{Name: AutoRole(policy.Model), Threshold: 1, Terminating: true, Paths: slices.Clone(policy.Paths)}
	byID := map[string]*metadata.Key{}
	for _, k := range keys {
		key, err := metadata.KeyFromPublicKey(k.Key)
		if err != nil {
			return fmt.Errorf("delegate %s: %w", policy.Model, err)
		}
		id, err := key.ID()
		if err != nil {
			return fmt.Errorf("delegate %s: %w", policy.Model, err)
		}
		role.KeyIDs = append(role.KeyIDs, id)
		byID[id] = key
	}
	custom := TargetCustom{Policy: &policy}
	content, err := json.Marshal(custom)
	if err != nil {
		return fmt.Errorf("delegate %s: %w", policy.Model, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	err = r.changeTargets(now, func(m *metadata.TargetsType) error {
		if err := putTarget(m, PolicyTarget(policy.Model), int64(len(content)), ota.DigestOf(content), custom); err != nil {
			return err
		}
		replaceRole(m, role.Name, &role, byID)
		return nil
	})
	if err != nil {
		return fmt.Errorf("delegate %s: %w", policy.Model, err)
	}
	return nil
}

// Undelegate takes a delegation and its policy back, once persons have signed
// that. What it listed is listed no more.
func (r *Repo) Undelegate(ctx context.Context, model string, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("take back the delegation of %s: %w", model, context.Cause(ctx))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	from := r.targets
	if r.draft.targets != nil {
		from = r.draft.targets
	}
	if _, ok := delegated(from, AutoRole(model)); !ok {
		return fmt.Errorf("take back the delegation of %s: %w: there is none", model, ErrUnknownTarget)
	}
	return r.changeTargets(now, func(m *metadata.TargetsType) error {
		delete(m.Targets, PolicyTarget(model))
		replaceRole(m, AutoRole(model), nil, nil)
		return nil
	})
}

// replaceRole puts role in the place of the one of that name, or takes that
// away when it is nil, and keeps the keys that a role names.
func replaceRole(m *metadata.TargetsType, name string, role *metadata.DelegatedRole, keys map[string]*metadata.Key) {
	next := &metadata.Delegations{Keys: map[string]*metadata.Key{}}
	if m.Delegations != nil {
		maps.Copy(next.Keys, m.Delegations.Keys)
		next.Roles = slices.DeleteFunc(slices.Clone(m.Delegations.Roles), func(r metadata.DelegatedRole) bool { return r.Name == name })
	}
	if role != nil {
		next.Roles = append(next.Roles, *role)
		maps.Copy(next.Keys, keys)
	}
	for id := range next.Keys {
		if !slices.ContainsFunc(next.Roles, func(r metadata.DelegatedRole) bool { return slices.Contains(r.KeyIDs, id) }) {
			delete(next.Keys, id)
		}
	}
	if m.Delegations = next; len(next.Roles) == 0 {
		m.Delegations = nil
	}
}

// Policy returns what persons allow for a model and the role's paths, or
// ErrUnknownTarget.
func (r *Repo) Policy(model string) (AutoPolicy, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := delegated(r.targets, AutoRole(model)); !ok {
		return AutoPolicy{}, fmt.Errorf("delegation %s: %w", AutoRole(model), ErrUnknownTarget)
	}
	return policyFor(r.targets, model)
}

func policyFor(targets *metadata.Metadata[metadata.TargetsType], model string) (AutoPolicy, error) {
	info, err := targetInfo(targets, PolicyTarget(model))
	if err != nil {
		return AutoPolicy{}, err
	}
	if info.Custom.Policy == nil || info.Custom.Policy.Model != model {
		return AutoPolicy{}, fmt.Errorf("target %s: holds no policy for %s", info.Path, model)
	}
	return *info.Custom.Policy, info.Custom.Policy.Validate()
}

// List lists a release in the auto role of its model, with no hand: the keys of
// that role sign if they are here, or whoever holds them. It is refused where
// the policy does not allow it. Listing it again changes nothing.
func (r *Repo) List(ctx context.Context, req ListRequest, now time.Time) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("list in %s: %w", req.Role, context.Cause(ctx))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.list(ctx, req, now); err != nil {
		return r.settle(fmt.Errorf("list in %s: %w", req.Role, err))
	}
	return nil
}

func (r *Repo) list(ctx context.Context, req ListRequest, now time.Time) error {
	if r.online != nil {
		if err := r.catchUp(ctx); err != nil {
			return err
		}
		p, err := r.online.List(ctx, req)
		if err != nil {
			return fmt.Errorf("ask the signer: %w", err)
		}
		return r.keepPublished(p)
	}
	if r.autos[req.Role] == nil {
		if err := r.signSnapshot(now); err != nil {
			return err
		}
	}
	changed, err := listAuto(r.targets, r.autos, req)
	if err != nil || !changed {
		return err
	}
	b, err := signAuto(r.targets, r.autos[req.Role], req.Role, r.keys, now)
	if err != nil {
		return err
	}
	if err := r.writeAuto(req.Role, b); err != nil {
		return err
	}
	return r.signSnapshot(now)
}

// checkAuto holds every manifest of a release to the policy for its model.
func checkAuto(targets *metadata.Metadata[metadata.TargetsType], model, path string, index *manifest.Index, manifests [][]byte) error {
	policy, err := policyFor(targets, model)
	if err != nil {
		return err
	}
	given := map[ota.Digest][]byte{}
	for _, b := range manifests {
		given[ota.DigestOf(b)] = b
	}
	if len(index.Manifests) == 0 {
		return fmt.Errorf("%s has no manifest", path)
	}
	for _, d := range index.Manifests {
		b, ok := given[d.Digest]
		if !ok || int64(len(b)) != d.Size {
			return fmt.Errorf("%s: its manifest %s was not given", path, d.Digest.Short())
		}
		m, err := manifest.ParseManifest(b)
		if err != nil {
			return fmt.Errorf("manifest %s: %w", d.Digest.Short(), err)
		}
		if err := policy.Check(path, index, m); err != nil {
			return err
		}
		if _, _, err := m.Weights(); err != nil {
			return fmt.Errorf("manifest %s: %w", d.Digest.Short(), err)
		}
	}
	return nil
}

// policyLines say what a policy allows, for persons.
func policyLines(t *metadata.TargetFiles) []string {
	var custom TargetCustom
	if t.Custom == nil || json.Unmarshal(*t.Custom, &custom) != nil || custom.Policy == nil {
		return []string{"unreadable: " + customText(t)}
	}
	p := custom.Policy
	out := []string{"paths " + strings.Join(p.Paths, ", "), fmt.Sprintf("at most %d bytes, soak at least %s", p.MaxBytes, time.Duration(p.MinSoak)*time.Second)}
	for _, l := range p.Layers {
		var text strings.Builder
		text.WriteString(fmt.Sprintf("layers of %s", l.MediaType))
		if l.MaxBytes > 0 {
			text.WriteString(fmt.Sprintf(" up to %d bytes", l.MaxBytes))
		}
		if len(l.Formats) > 0 {
			text.WriteString(" as " + strings.Join(l.Formats, ", "))
		}
		for _, d := range l.Digests {
			text.WriteString(" " + string(d))
		}
		out = append(out, text.String())
	}
	if slices.ContainsFunc(p.Layers, func(l LayerRule) bool { return slices.Contains(l.Formats, "plan") }) {
		out = append(out, "warning: an engine (plan) can hold code of its builder")
	}
	for _, d := range p.Golden {
		out = append(out, "proven by golden set "+string(d))
	}
	for what, ds := range map[string][]ota.Digest{"config": p.Configs, "parameters": p.Parameters, "recipe": p.Recipes} {
		for _, d := range ds {
			out = append(out, what+" "+string(d))
		}
	}
	for key, values := range p.Annotations {
		out = append(out, fmt.Sprintf("annotation %s: %q", key, values))
	}
	if p.MaxCounter > 0 {
		out = append(out, fmt.Sprintf("counter at most %d", p.MaxCounter))
	}
	slices.Sort(out)
	return out
}
