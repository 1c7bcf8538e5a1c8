package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
)

// Request says what to release.
type Request struct {
	Tenant     string
	Name       string
	Version    string // empty: the next number
	Model      string // name@version; without version the newest
	Targets    []string
	Parameters []manifest.ParamDecl
	Soak       time.Duration
	By         string
	// Machine are agent binaries and OS images for targets.
	Machine []MachineLayer
	// Workload is workload.json, what serves the model; Image the container image
	// that it runs in, of the registry here. Both may be empty.
	Workload []byte
	Image    string
	// WorkloadTargets are those that get both; empty: all.
	WorkloadTargets []string
	// Recipe names how the engines were built that targets get instead of the
	// ONNX file; empty: all get the ONNX file.
	Recipe string
	// Auto lists it with no hand, in the role of its model, within the policy
	// that persons signed.
	Auto bool
}

// The steps of Create, for Config.StepHook.
const (
	StepReserve = "reserve" // before the counter is taken
	StepList    = "list"    // before the TUF target is added
	StepReady   = "ready"   // before the release becomes visible
)

// Create makes a release: writes its manifests and index, takes the next
// counter of its name, lists it in the TUF targets and makes it visible.
func (c *Catalog) Create(ctx context.Context, r Request) (store.Release, error) {
	m, targets, err := c.check(ctx, r)
	if err != nil {
		return store.Release{}, err
	}
	machine, targets, err := c.machine(ctx, r, targets)
	if err != nil {
		return store.Release{}, err
	}
	if machine, err = c.workloads(ctx, r, targets, machine); err != nil {
		return store.Release{}, err
	}
	plans, err := c.plans(ctx, r, m, targets, machine)
	if err != nil {
		return store.Release{}, err
	}
	savings, err := c.savings(ctx, r, m, machine)
	if err != nil {
		return store.Release{}, fmt.Errorf("release %s: make deltas: %w", r.Name, err)
	}
	c.creating.Lock()
	defer c.creating.Unlock()
	row, err := c.build(ctx, r, m, targets, machine, plans, savings)
	if err != nil {
		return store.Release{}, err
	}
	if err := c.cfg.StepHook(StepReserve); err != nil {
		return store.Release{}, err
	}
	err = c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		store.Note(ctx, row.Name+"@"+row.Version, nil, map[string]any{"digest": row.Digest, "counter": row.Counter, "model": fmt.Sprintf("%s@%d", m.Name, m.Version)})
		return tx.AddRelease(ctx, row)
	})
	if store.IsUnique(err) {
		return store.Release{}, fmt.Errorf("release %s@%s: %w: releases are immutable, choose another version", row.Name, row.Version, ErrExists)
	}
	if err != nil {
		return store.Release{}, err
	}
	if row, err = c.publishNew(ctx, row); err != nil {
		return store.Release{}, err
	}
	c.cfg.Logger.Info("release made", "release", row.Name+"@"+row.Version, "digest", row.Digest, "counter", row.Counter, "ready", row.Ready)
	return row, nil
}

func (c *Catalog) check(ctx context.Context, r Request) (m store.ModelVersion, targets []ota.Target, err error) {
	if err := checkName("release", r.Name); err != nil {
		return m, nil, err
	}
	if r.Version != "" && !versionRE.MatchString(r.Version) {
		return m, nil, fmt.Errorf("%w: version %q: want letters, digits, . _ and -, at most 128", ErrInvalid, r.Version)
	}
	if err := c.checkAuto(r); err != nil {
		return m, nil, err
	}
	if r.Soak < 0 || r.Soak > 30*24*time.Hour {
		return m, nil, fmt.Errorf("%w: soak %s: want 0 to 30 days", ErrInvalid, r.Soak)
	}
	if err := manifest.ValidateDecls(r.Parameters); err != nil {
		return m, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if m, err = c.modelVersion(ctx, r.Tenant, r.Model); err != nil {
		return m, nil, err
	}
	texts := r.Targets
	if len(texts) == 0 {
		if texts = c.cfg.Targets(r.Tenant); len(texts) == 0 {
			return m, nil, fmt.Errorf("%w: no device has reported its target yet: name the targets to serve, for example linux/arm64;sm=8.7", ErrInvalid)
		}
	}
	seen := map[string]bool{}
	for _, text := range texts {
		t, err := ota.ParseTarget(text)
		if err != nil {
			return m, nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if s := t.String(); !seen[s] {
			seen[s] = true
			targets = append(targets, t)
		}
	}
	if len(targets) > manifest.MaxEntries {
		return m, nil, fmt.Errorf("%w: %d targets, at most %d", ErrInvalid, len(targets), manifest.MaxEntries)
	}
	return m, targets, nil
}

// build numbers the release and writes its manifests and index.
func (c *Catalog) build(ctx context.Context, r Request, m store.ModelVersion, targets []ota.Target, machine map[string][]manifest.Descriptor, plans map[string]manifest.Descriptor, savings map[ota.Digest]manifest.Savings) (store.Release, error) {
	row := store.Release{Tenant: r.Tenant, Name: r.Name, Version: r.Version, Counter: 1, Model: m.Name, ModelVersion: m.Version, Soak: r.Soak,
		Created: c.cfg.Now(), CreatedBy: r.By}
	err := c.cfg.Store.View(ctx, func(tx *store.Tx) error {
		last, err := tx.LastRelease(ctx, r.Tenant, r.Name)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return nil
		case err != nil:
			return err
		}
		row.Counter = last.Counter + 1
		return nil
	})
	if err != nil {
		return row, err
	}
	if row.Version == "" {
		row.Version = strconv.FormatUint(row.Counter, 10)
		if r.Auto {
			row.Version = trust.AutoVersion + row.Version
		}
	}
	if row.Parameters, err = json.Marshal(slices.Concat([]manifest.ParamDecl{}, r.Parameters)); err != nil {
		return row, fmt.Errorf("encode parameters: %w", err)
	}
	b := manifest.Build{
		Release: manifest.Release{Name: row.Name, Version: row.Version, Counter: row.Counter, Model: m.Name, ModelVersion: m.Version,
			Soak: r.Soak, Parameters: r.Parameters},
		Targets: targets,
		ONNX:    manifest.Descriptor{Digest: ota.Digest(m.ONNX), Size: m.ONNXSize},
		Golden:  manifest.Descriptor{Digest: ota.Digest(m.Golden), Size: m.GoldenSize},
		Mirrors: map[ota.Digest][]string{ota.Digest(m.ONNX): m.Mirrors},
		Savings: savings,
		Machine: machine,
		Engines: plans,
	}
	size := map[ota.Digest]int64{b.ONNX.Digest: b.ONNX.Size, b.Golden.Digest: b.Golden.Size}
	for _, ls := range machine {
		for _, l := range ls {
			size[l.Digest] = l.Size
		}
	}
	for _, p := range plans {
		size[p.Digest] = p.Size
	}
	index, raw, manifests, err := b.Write(ctx, func(_ context.Context, mediaType string, data []byte) (manifest.Descriptor, error) {
		d, err := c.cfg.Blobs.PutBytes(data)
		size[d] = int64(len(data))
		return manifest.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, err
	})
	if err != nil {
		return row, fmt.Errorf("build release %s@%s: %w", row.Name, row.Version, err)
	}
	row.Digest, row.Length = string(index.Digest), int64(len(raw))
	for _, d := range manifests {
		t := store.ReleaseTarget{Target: d.Annotations[manifest.AnnTarget], Manifest: string(d.Digest), Bytes: row.Length + d.Size}
		mf, err := c.readManifest(ctx, d.Digest)
		if err != nil {
			return row, err
		}
		for _, l := range append(mf.Layers, mf.Config) {
			t.Bytes += l.Size
		}
		row.Targets = append(row.Targets, t)
	}
	for _, n := range size {
		row.Bytes += n
	}
	if r.Auto {
		return row, c.allowed(ctx, row)
	}
	return row, nil
}
