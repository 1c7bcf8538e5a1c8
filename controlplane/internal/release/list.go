package release

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
)

// ErrUnsigned is returned for the use of a release that persons have not signed
// yet.
var ErrUnsigned = errors.New("cannot be used yet")

// checkAuto says why a release cannot be made with no hand, and keeps the
// versions of such releases apart.
func (c *Catalog) checkAuto(r Request) error {
	if !r.Auto {
		if strings.HasPrefix(r.Version, trust.AutoVersion) {
			return fmt.Errorf("%w: version %q: %s is for releases made with --auto", ErrInvalid, r.Version, trust.AutoVersion)
		}
		return nil
	}
	name, _, err := splitModel(r.Model)
	if err != nil {
		return err
	}
	switch {
	case r.Tenant != store.DefaultTenant:
		return fmt.Errorf("%w: only the default tenant has releases made with no hand", ErrInvalid)
	case r.Version != "" && !strings.HasPrefix(r.Version, trust.AutoVersion):
		return fmt.Errorf("%w: version %q: with --auto it begins with %s", ErrInvalid, r.Version, trust.AutoVersion)
	}
	if _, err := c.cfg.Repository.Policy(name); err != nil {
		return fmt.Errorf("%w: no policy is signed for model %s: make one with skein trust delegate %s --release %s --golden DIGEST", ErrInvalid, name, name, r.Name)
	}
	return nil
}

// allowed holds a release to the policy before its counter is taken; who signs
// does it again.
func (c *Catalog) allowed(ctx context.Context, r store.Release) error {
	policy, err := c.cfg.Repository.Policy(r.Model)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	req, err := c.listRequest(ctx, r)
	if err != nil {
		return err
	}
	index, err := manifest.ParseIndex(req.Index)
	if err != nil {
		return err
	}
	for _, b := range req.Manifests {
		m, err := manifest.ParseManifest(b)
		if err != nil {
			return err
		}
		if err := policy.Check(targetPath(r.Tenant, r.Name, r.Version), index, m); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return nil
}

func (c *Catalog) listRequest(ctx context.Context, r store.Release) (req trust.ListRequest, err error) {
	req.Role = trust.AutoRole(r.Model)
	if req.Index, err = c.cfg.Blobs.ReadAll(ctx, ota.Digest(r.Digest), manifest.MaxIndex); err != nil {
		return req, err
	}
	index, err := manifest.ParseIndex(req.Index)
	if err != nil {
		return req, err
	}
	for _, d := range index.Manifests {
		b, err := c.cfg.Blobs.ReadAll(ctx, d.Digest, manifest.MaxManifest)
		if err != nil {
			return req, err
		}
		req.Manifests = append(req.Manifests, b)
	}
	return req, nil
}

// publish lists a release in the TUF targets and makes it usable. Where persons
// must sign that first it is known, but cannot be used until Settle finds it
// signed. Doing it again changes nothing.
func (c *Catalog) publish(ctx context.Context, r store.Release) (store.Release, error) {
	err := c.list(ctx, r)
	if errors.Is(err, trust.ErrPending) {
		return r, c.rememberAs(ctx, r, waitsForSignatures)
	}
	if err != nil {
		return r, err
	}
	r.Ready = true
	return r, c.rememberAs(ctx, r, "")
}

// publishNew publishes a release whose version is taken from now on. One that
// cannot be listed now, as when the signer is away, is kept as one that waits.
func (c *Catalog) publishNew(ctx context.Context, r store.Release) (store.Release, error) {
	done, err := c.publish(ctx, r)
	if err == nil {
		return done, nil
	}
	kept := c.rememberAs(context.WithoutCancel(ctx), r, "is not listed yet: "+err.Error())
	return done, errors.Join(fmt.Errorf("release %s@%s is kept, and listed when this works again: %w", r.Name, r.Version, err), kept)
}

// list attaches what is known of a release, adds the TUF target and notes that the release is ready. Doing it again
// changes nothing.
func (c *Catalog) list(ctx context.Context, r store.Release) error {
	if err := c.cfg.StepHook(StepList); err != nil {
		return err
	}
	if err := c.attach(ctx, r); err != nil {
		return fmt.Errorf("attest %s@%s: %w", r.Name, r.Version, err)
	}
	if err := c.sign(ctx, r); err != nil {
		return fmt.Errorf("list %s in the TUF targets: %w", targetPath(r.Tenant, r.Name, r.Version), err)
	}
	if err := c.cfg.StepHook(StepReady); err != nil {
		return err
	}
	return c.cfg.Store.Update(ctx, func(tx *store.Tx) error { return tx.SetReleaseReady(ctx, r.Tenant, r.Digest) })
}

func (c *Catalog) sign(ctx context.Context, r store.Release) error {
	if !strings.HasPrefix(r.Version, trust.AutoVersion) || r.Publisher != "" {
		return c.cfg.Repository.AddTarget(ctx, targetPath(r.Tenant, r.Name, r.Version), r.Length, ota.Digest(r.Digest), trust.TargetCustom{Counter: r.Counter}, c.cfg.Now())
	}
	req, err := c.listRequest(ctx, r)
	if err != nil {
		return err
	}
	return c.cfg.Repository.List(ctx, req, c.cfg.Now())
}

// complete publishes a release that an earlier run left, and keeps one that
// cannot be published now as one that waits: whatever is wrong with the signer
// must not keep the control plane from starting.
func (c *Catalog) complete(ctx context.Context, r store.Release) error {
	name := r.Name + "@" + r.Version
	done, err := c.publish(ctx, r)
	if err != nil {
		c.cfg.Logger.Error("complete a release that was interrupted", "release", name, "err", err)
		return c.rememberAs(ctx, r, "is not listed yet: "+err.Error())
	}
	if done.Ready {
		c.cfg.Logger.Info("completed a release", "release", name)
	}
	return nil
}

// Settle makes releases usable that were signed since, and asks again for those
// that are not. Call it after each signature.
func (c *Catalog) Settle(ctx context.Context) error {
	c.creating.Lock()
	defer c.creating.Unlock()
	c.mu.RLock()
	var waiting []store.Release
	for _, e := range c.known {
		if e.waits != "" {
			waiting = append(waiting, e.row)
		}
	}
	c.mu.RUnlock()
	slices.SortFunc(waiting, func(a, b store.Release) int { return a.Created.Compare(b.Created) })
	for _, r := range waiting {
		if err := c.complete(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

// unlisted reports whether a release waits for something other than persons: a
// signer that is away, a disk that is full.
func (c *Catalog) unlisted() bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, e := range c.known {
		if e.waits != "" && e.waits != waitsForSignatures {
			return true
		}
	}
	return false
}

// Pending says what a release waits for, or "".
func (c *Catalog) Pending(tenant string, d ota.Digest) string {
	e, err := c.entry(tenant, d)
	if err != nil {
		return ""
	}
	return e.waits
}

// usable refuses a release that waits.
func (c *Catalog) usable(tenant string, d ota.Digest) error {
	e, err := c.entry(tenant, d)
	if err != nil {
		return err
	}
	if e.waits == "" {
		return nil
	}
	return fmt.Errorf("release %s@%s %w: it %s: look at it with skein trust pending and sign it with skein trust sign --key FILE", e.row.Name, e.row.Version, ErrUnsigned, e.waits)
}
