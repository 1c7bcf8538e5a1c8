// Package release makes models and releases from uploaded blobs: immutable
// numbered versions, OCI indexes, and their listing in the TUF targets.
//
// Invariants: a version never changes, and the same bytes pushed twice are one
// version; a release's counter is taken in the store before anything is signed,
// so no counter is ever used for two contents; a release becomes visible only
// once it is listed in the TUF targets, and one that a crash left half listed
// is completed at the next start. Fleet, conductor and rpc use it; it knows
// them not.
package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/blobs"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/attest"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// What callers tell apart.
var (
	ErrUnknown = errors.New("not found")
	ErrInvalid = errors.New("invalid")
	ErrExists  = errors.New("exists already")
)

// Repository is the TUF image repository.
type Repository interface {
	// AddTarget lists a target and signs; adding it again is no error.
	AddTarget(ctx context.Context, path string, length int64, d ota.Digest, custom trust.TargetCustom, now time.Time) error
	// List lists a release in an auto role, within the policy for its model.
	List(ctx context.Context, r trust.ListRequest, now time.Time) error
	// Policy returns what persons allow for a model.
	Policy(model string) (trust.AutoPolicy, error)
	// Refresh signs anew what expires soon.
	Refresh(now time.Time) error
	// Metadata returns fs.ErrNotExist for a name that is not there.
	Metadata(name string) ([]byte, error)
}

// Engines knows the engines that were built and proven.
type Engines interface {
	// Engines returns those of a version by a recipe, by the text of the target.
	// Targets that serve ONNX are left out; a missing one is an error that says
	// what to do.
	Engines(ctx context.Context, m store.ModelVersion, recipe string, targets []ota.Target) (map[string]Plan, error)
	// Provenance returns the signed statement about a plan, nil without one.
	Provenance(ctx context.Context, tenant string, plan ota.Digest) ([]byte, error)
}

// Plan is one engine as a release brings it.
type Plan struct {
	Layer manifest.Descriptor // with its sealed record
	// Stripped plans take their weights from the ONNX file, which comes along.
	Stripped bool
}

// Deltas makes what saves bytes on the way to devices: the chunk index of a
// layer, and patches against older artifacts. What cannot be made is left out.
type Deltas interface {
	Savings(ctx context.Context, layer manifest.Descriptor, bases []manifest.Descriptor) (manifest.Savings, error)
}

// Config of a Catalog. Store, Blobs and Repository are required.
type Config struct {
	Store      *store.DB
	Blobs      *blob.Store
	Repository Repository
	// Deltas may be nil: devices then fetch everything whole.
	Deltas Deltas
	// Engines may be nil: releases then bring ONNX files alone.
	Engines Engines
	// Attest signs what is said of releases; nil attests nothing. Builder and
	// Version name this control plane in it.
	Attest           attest.Signer
	Builder, Version string
	// Bundles keeps what was learned of other publishers; nil takes no bundles
	// but its own.
	Bundles slot.Files
	// Targets returns the targets that devices report.
	Targets func(tenant string) []string
	Logger  *slog.Logger
	Now     func() time.Time
	// StepHook is called before each step of Create with its name; an error
	// ends it there, as a crash would.
	StepHook func(step string) error
}

// Catalog is all models and releases.
type Catalog struct {
	cfg Config

	creating sync.Mutex // one release at a time: counters are taken and listed in order

	mu    sync.RWMutex // guards known
	known map[key]*entry
}

type key struct {
	tenant string
	digest ota.Digest
}

// entry is a release with what is asked of it often.
type entry struct {
	row    store.Release
	waits  string // what it waits for, "" when it is usable
	decls  []manifest.ParamDecl
	sum    []byte
	index  *manifest.Index
	blobs  map[ota.Digest]bool // all that a device may read of it
	target map[string]selected // by the text of a device's target

	agents, systems []string              // targets that get an agent, an operating system
	plans           map[string]ota.Digest // engines by the target of their manifest
	workloads       []*Workload
}

type selected struct {
	manifest manifest.Descriptor
	err      error
}

// New returns a catalog; Load fills it.
func New(cfg Config) (*Catalog, error) {
	if cfg.Store == nil || cfg.Blobs == nil || cfg.Repository == nil {
		return nil, errors.New("release needs Store, Blobs and Repository")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Targets == nil {
		cfg.Targets = func(string) []string { return nil }
	}
	if cfg.StepHook == nil {
		cfg.StepHook = func(string) error { return nil }
	}
	return &Catalog{cfg: cfg, known: map[key]*entry{}}, nil
}

// Load completes releases that a crash left half made, and reads all others.
func (c *Catalog) Load(ctx context.Context) error {
	var pending []store.Release
	if err := c.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		pending, err = tx.PendingReleases(ctx)
		return err
	}); err != nil {
		return err
	}
	for _, r := range pending {
		if err := c.complete(ctx, r); err != nil {
			return err
		}
	}
	return c.cfg.Store.View(ctx, func(tx *store.Tx) error {
		tenants, err := tx.ReleaseTenants(ctx)
		if err != nil {
			return err
		}
		for _, t := range tenants {
			rows, err := tx.Releases(ctx, t)
			if err != nil {
				return err
			}
			for _, r := range rows {
				if !r.Ready {
					continue // remembered above
				}
				if err := c.remember(ctx, r); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

const (
	waitsForSignatures = "waits for signatures of the targets role"
	lookEvery          = time.Minute
	looksPerRefresh    = 60
)

// Run signs metadata anew before it expires, until ctx ends. A release that
// could not be listed is tried again each minute.
func (c *Catalog) Run(ctx context.Context) error {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for look := 0; ; look++ {
		due := look%looksPerRefresh == 0
		if due {
			if err := c.cfg.Repository.Refresh(c.cfg.Now()); err != nil {
				c.cfg.Logger.Error("sign TUF metadata anew", "err", err)
			}
		}
		if due || c.unlisted() {
			if err := c.Settle(ctx); err != nil {
				c.cfg.Logger.Error("complete releases that waited", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// remember reads the index of a release and keeps what is asked often.
func (c *Catalog) remember(ctx context.Context, r store.Release) error {
	return c.rememberAs(ctx, r, "")
}

// rememberAs is remember of a release that may wait for something.
func (c *Catalog) rememberAs(ctx context.Context, r store.Release, waits string) error {
	e := &entry{row: r, waits: waits, sum: ota.Digest(r.Digest).Sum(), blobs: map[ota.Digest]bool{ota.Digest(r.Digest): true}, target: map[string]selected{}}
	if err := json.Unmarshal(r.Parameters, &e.decls); err != nil {
		return fmt.Errorf("release %s@%s: read parameters: %w", r.Name, r.Version, err)
	}
	raw, err := c.cfg.Blobs.ReadAll(ctx, ota.Digest(r.Digest), manifest.MaxIndex)
	if err != nil {
		return fmt.Errorf("release %s@%s: %w", r.Name, r.Version, err)
	}
	if e.index, err = manifest.ParseIndex(raw); err != nil {
		return fmt.Errorf("release %s@%s: %w", r.Name, r.Version, err)
	}
	for _, d := range e.index.Manifests {
		m, err := c.readManifest(ctx, d.Digest)
		if err != nil {
			return fmt.Errorf("release %s@%s: %w", r.Name, r.Version, err)
		}
		e.blobs[d.Digest], e.blobs[m.Config.Digest] = true, true
		if _, brings, err := m.Agent(); err == nil && brings {
			e.agents = append(e.agents, d.Annotations[manifest.AnnTarget])
		}
		if _, _, brings, err := m.OSImage(); err == nil && brings {
			e.systems = append(e.systems, d.Annotations[manifest.AnnTarget])
		}
		if l, format, err := m.Weights(); err == nil && format == "plan" {
			if e.plans == nil {
				e.plans = map[string]ota.Digest{}
			}
			e.plans[d.Annotations[manifest.AnnTarget]] = l.Digest
		}
		w, err := c.readWorkload(ctx, d.Annotations[manifest.AnnTarget], m)
		if err != nil {
			return fmt.Errorf("release %s@%s: %w", r.Name, r.Version, err)
		}
		if w != nil {
			e.workloads = append(e.workloads, w)
		}
		for _, l := range m.Layers {
			e.blobs[l.Digest] = true
			save, err := l.Savings()
			if err != nil {
				return fmt.Errorf("release %s@%s: %w", r.Name, r.Version, err)
			}
			if save.Chunks != nil {
				e.blobs[save.Chunks.Digest] = true
			}
			for _, p := range save.Patches {
				e.blobs[p.Digest] = true
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[key{r.Tenant, ota.Digest(r.Digest)}] = e
	return nil
}

func (c *Catalog) readManifest(ctx context.Context, d ota.Digest) (*manifest.Manifest, error) {
	raw, err := c.cfg.Blobs.ReadAll(ctx, d, manifest.MaxManifest)
	if err != nil {
		return nil, err
	}
	return manifest.ParseManifest(raw)
}

func (c *Catalog) entry(tenant string, d ota.Digest) (*entry, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e, ok := c.known[key{tenant, d}]
	if !ok {
		return nil, fmt.Errorf("release %s: %w", d, ErrUnknown)
	}
	return e, nil
}

// targetPath is the TUF target of a release.
func targetPath(tenant, name, version string) string {
	if tenant == store.DefaultTenant {
		return "releases/" + name + "/" + version
	}
	return "releases/" + tenant + "/" + name + "/" + version
}

// Ref returns the reference that a desired state carries, and the declared
// parameters.
func (c *Catalog) Ref(_ context.Context, tenant string, d ota.Digest) (wire.ReleaseRef, []manifest.ParamDecl, error) {
	e, err := c.entry(tenant, d)
	if err != nil {
		return wire.ReleaseRef{}, nil, err
	}
	r := e.row
	return wire.ReleaseRef{Target: targetPath(tenant, r.Name, r.Version), Digest: slices.Clone(e.sum), Length: r.Length, Counter: r.Counter}, e.decls, nil
}

// Resolve reads a digest, a unique prefix of one of at least 8 hex digits, or
// name@version, or name for its newest version, of a release that can be used;
// one that waits for signatures is ErrUnsigned.
func (c *Catalog) Resolve(_ context.Context, tenant, text string) (ota.Digest, error) {
	d, err := c.find(tenant, text)
	if err != nil {
		return "", err
	}
	return d, c.usable(tenant, d)
}

func (c *Catalog) find(tenant, text string) (ota.Digest, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if _, err := ota.ParseDigest(text); err == nil {
		if _, ok := c.known[key{tenant, ota.Digest(text)}]; ok {
			return ota.Digest(text), nil
		}
		return "", fmt.Errorf("release %s: %w", text, ErrUnknown)
	}
	name, version, exact := strings.Cut(text, "@")
	hexPrefix := strings.TrimPrefix(text, "sha256:")
	var newest, byPrefix *entry
	prefixes := 0
	for k, e := range c.known {
		if k.tenant != tenant {
			continue
		}
		if len(hexPrefix) >= 8 && strings.HasPrefix(k.digest.Hex(), hexPrefix) {
			byPrefix = e
			prefixes++
		}
		if e.row.Name != name {
			continue
		}
		if exact && e.row.Version == version {
			return k.digest, nil
		}
		if !exact && (newest == nil || e.row.Counter > newest.row.Counter) {
			newest = e
		}
	}
	switch {
	case newest != nil:
		return ota.Digest(newest.row.Digest), nil
	case prefixes == 1:
		return ota.Digest(byPrefix.row.Digest), nil
	case prefixes > 1:
		return "", fmt.Errorf("%w: %d releases begin with %s, give more digits", ErrInvalid, prefixes, text)
	}
	return "", fmt.Errorf("release %q: %w: want name@version or a digest; `skein release list` shows them", text, ErrUnknown)
}

// Name returns name@version of a release, or "" for one that is not known.
func (c *Catalog) Name(tenant string, d ota.Digest) string {
	e, err := c.entry(tenant, d)
	if err != nil {
		return ""
	}
	return e.row.Name + "@" + e.row.Version
}

// Counter returns the release counter, 0 of an unknown release.
func (c *Catalog) Counter(tenant string, d ota.Digest) uint64 {
	e, err := c.entry(tenant, d)
	if err != nil {
		return 0
	}
	return e.row.Counter
}

// Contains reports whether the release has the blob.
func (c *Catalog) Contains(tenant string, d, blob ota.Digest) bool {
	e, err := c.entry(tenant, d)
	return err == nil && e.blobs[blob]
}

// Fits returns the bytes that a device of a target fetches for a release, or
// why it can never run it.
func (c *Catalog) Fits(tenant string, d ota.Digest, target string) (bytes int64, err error) {
	e, err := c.entry(tenant, d)
	if err != nil {
		return 0, err
	}
	c.mu.RLock()
	s, ok := e.target[target]
	c.mu.RUnlock()
	if !ok {
		s = e.selects(target)
		c.mu.Lock()
		if len(e.target) < 10000 {
			e.target[target] = s
		}
		c.mu.Unlock()
	}
	if s.err != nil {
		return 0, s.err
	}
	i := slices.IndexFunc(e.row.Targets, func(t store.ReleaseTarget) bool { return t.Manifest == string(s.manifest.Digest) })
	if i < 0 {
		return 0, fmt.Errorf("release %s: %w: no record of manifest %s", d, ErrUnknown, s.manifest.Digest)
	}
	return e.row.Targets[i].Bytes, nil
}

func (e *entry) selects(target string) selected {
	if target == "" {
		return selected{err: errors.New("the device has not reported its target yet")}
	}
	t, err := ota.ParseTarget(target)
	if err != nil {
		return selected{err: err}
	}
	m, err := e.index.Select(t)
	if errors.Is(err, manifest.ErrNoTarget) && len(e.plans) > 0 && t.Attrs["trt"] != "" {
		err = fmt.Errorf("no proven engine for this device: have one built, skein engine build %s@%d --target '%s', and make a release with it: %w", e.row.Model, e.row.ModelVersion, t, err)
	}
	return selected{m, err}
}

// List returns the releases of a tenant, newest first.
func (c *Catalog) List(ctx context.Context, tenant string) (out []store.Release, err error) {
	err = c.cfg.Store.View(ctx, func(tx *store.Tx) error {
		out, err = tx.Releases(ctx, tenant)
		return err
	})
	return slices.DeleteFunc(out, func(r store.Release) bool { return !r.Ready && c.Pending(tenant, ota.Digest(r.Digest)) == "" }), err
}

// Get returns a release by digest or name@version, with its index as signed.
func (c *Catalog) Get(ctx context.Context, tenant, text string) (store.Release, []byte, error) {
	d, err := c.find(tenant, text)
	if err != nil {
		return store.Release{}, nil, err
	}
	e, err := c.entry(tenant, d)
	if err != nil {
		return store.Release{}, nil, err
	}
	raw, err := c.cfg.Blobs.ReadAll(ctx, d, manifest.MaxIndex)
	return e.row, raw, err
}

// Manifest gives the index or a manifest of a release to OCI pullers.
func (c *Catalog) Manifest(ctx context.Context, name, ref string) (blobs.Manifest, error) {
	c.mu.RLock()
	var d ota.Digest
	media := ""
	for k, e := range c.known {
		if k.tenant != store.DefaultTenant || e.row.Name != name {
			continue
		}
		if e.row.Version == ref || string(k.digest) == ref {
			d, media = k.digest, manifest.MediaIndex
		}
		for _, m := range e.index.Manifests {
			if string(m.Digest) == ref {
				d, media = m.Digest, manifest.MediaManifest
			}
		}
	}
	c.mu.RUnlock()
	if d == "" {
		return blobs.Manifest{}, fmt.Errorf("%w: %s:%s", blobs.ErrUnknown, name, ref)
	}
	raw, err := c.cfg.Blobs.ReadAll(ctx, d, manifest.MaxIndex)
	return blobs.Manifest{MediaType: media, Digest: d, Data: raw}, err
}

// Tags lists the versions of a release, oldest first.
func (c *Catalog) Tags(_ context.Context, name string) ([]string, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var es []*entry
	for k, e := range c.known {
		if k.tenant == store.DefaultTenant && e.row.Name == name {
			es = append(es, e)
		}
	}
	if len(es) == 0 {
		return nil, fmt.Errorf("%w: %s", blobs.ErrUnknown, name)
	}
	slices.SortFunc(es, func(a, b *entry) int { return int(int64(a.row.Counter) - int64(b.row.Counter)) })
	out := make([]string, 0, len(es))
	for _, e := range es {
		out = append(out, e.row.Version)
	}
	return out, nil
}

var versionRE = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

func checkName(what, name string) error {
	if !blobs.ValidName(name) {
		return fmt.Errorf("%w: %s name %q: want lower-case letters and digits, with single . _ or - between them", ErrInvalid, what, name)
	}
	return nil
}

// splitModel reads name@version; version 0 means the newest.
func splitModel(text string) (name string, version int64, err error) {
	name, v, ok := strings.Cut(text, "@")
	if ok {
		if version, err = strconv.ParseInt(v, 10, 64); err != nil || version < 1 {
			return "", 0, fmt.Errorf("%w: model %q: want name or name@number", ErrInvalid, text)
		}
	}
	return name, version, nil
}

// Soak returns how long a device watches the release before it commits.
func (c *Catalog) Soak(tenant string, d ota.Digest) time.Duration {
	e, err := c.entry(tenant, d)
	if err != nil {
		return 0
	}
	return e.row.Soak
}
