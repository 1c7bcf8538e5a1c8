package release

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/attest"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/bundle"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
)

// What Import returns, wrapped, beside trust.Attack and the bundle's errors.
var (
	ErrForeign    = errors.New("bundle of a control plane that is not trusted here")
	ErrUnattested = errors.New("bundle without a signed provenance of its release")
)

// ownPublisher is the name of this control plane among publishers.
const ownPublisher = "this control plane"

// Imported says what Import found and did.
type Imported struct {
	Release   store.Release
	Missing   []ota.Digest // layers that are not here
	Existing  bool
	Publisher string
	Verified  int // signed statements
}

// Import verifies the bundle whose head is a blob here: its metadata against
// the root of a known publisher, the release against the metadata, what is
// attested against the publisher's keys. Unless check is set, and if nothing is
// missing, the release is then listed in the TUF targets of this control plane,
// under the same digest and counter. What was imported before is no error and
// changes nothing; neither does anything that is refused.
func (c *Catalog) Import(ctx context.Context, tenant string, head ota.Digest, check bool, by string) (Imported, error) {
	raw, err := c.cfg.Blobs.ReadAll(ctx, head, bundle.MaxHead+1<<20)
	if errors.Is(err, blob.ErrNotFound) {
		return Imported{}, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	if err != nil {
		return Imported{}, err
	}
	b, err := bundle.OpenHead(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		return Imported{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := b.Verify(ctx, nil); err != nil {
		return Imported{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	c.creating.Lock()
	defer c.creating.Unlock()
	v := verification{c: c, b: b, tenant: tenant, small: map[ota.Digest][]byte{}}
	if err := v.all(ctx); err != nil {
		return Imported{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	v.row.Created, v.row.CreatedBy, v.row.Publisher = c.cfg.Now(), by, v.publisher.name
	out := Imported{Release: v.row, Missing: v.missing, Publisher: v.publisher.name, Verified: v.verified}
	if row, err := v.existing(ctx); err != nil || row != nil {
		if err != nil {
			return Imported{}, err
		}
		out.Release, out.Existing, out.Missing = *row, true, nil
		return out, nil
	}
	if check || len(v.missing) > 0 {
		return out, nil
	}
	return out, v.admit(ctx)
}

// verification is one bundle under judgement.
type verification struct {
	c      *Catalog
	b      *bundle.Bundle
	tenant string

	publisher publisher
	row       store.Release
	small     map[ota.Digest][]byte    // blobs of the head that the release needs
	referrers []store.RegistryManifest // that were verified
	missing   []ota.Digest
	verified  int
}

func (v *verification) all(ctx context.Context) error {
	target, keys, err := v.trusted(ctx)
	if err != nil {
		return err
	}
	if err := v.release(target); err != nil {
		return err
	}
	return v.attested(keys)
}

// release reads index and manifests from the head and checks them against what
// the publisher's image repository lists.
func (v *verification) release(target trust.TargetInfo) error {
	info := v.b.Info
	if target.Digest != info.Index.Digest || target.Length != info.Index.Size {
		return &trust.Attack{Class: trust.ClassWrongHash, Err: fmt.Errorf("the bundle holds %s of %d bytes, its image repository lists %s of %d bytes as %s",
			info.Index.Digest.Short(), info.Index.Size, target.Digest.Short(), target.Length, target.Path)}
	}
	raw, err := v.blob(info.Index)
	if err != nil {
		return err
	}
	ix, err := manifest.ParseIndex(raw)
	if err != nil {
		return err
	}
	r, err := ix.Release()
	if err != nil {
		return err
	}
	if r.Counter != target.Custom.Counter || targetPath(store.DefaultTenant, r.Name, r.Version) != target.Path || r.Name+"@"+r.Version != info.Release {
		return &trust.Attack{Class: trust.ClassDisagreement, Err: fmt.Errorf("the index is of %s@%s, counter %d; the image repository lists it as %s, counter %d", r.Name, r.Version, r.Counter, target.Path, target.Custom.Counter)}
	}
	if err := checkName("release", r.Name); err != nil {
		return err
	}
	v.row = store.Release{Tenant: v.tenant, Digest: string(target.Digest), Name: r.Name, Version: r.Version, Counter: r.Counter, Length: target.Length,
		Model: r.Model, ModelVersion: r.ModelVersion, Soak: r.Soak}
	if v.row.Parameters, err = json.Marshal(slices.Concat([]manifest.ParamDecl{}, r.Parameters)); err != nil {
		return fmt.Errorf("encode parameters: %w", err)
	}
	sizes, small := map[ota.Digest]int64{}, map[ota.Digest]int64{target.Digest: target.Length}
	for _, d := range ix.Manifests {
		if err := v.manifest(d, sizes, small); err != nil {
			return err
		}
	}
	maps.Copy(small, sizes)
	for _, n := range small {
		v.row.Bytes += n
	}
	return nil
}

// manifest reads one manifest and notes which of its layers are not here. small
// gets what is not a layer.
func (v *verification) manifest(d manifest.Descriptor, sizes, small map[ota.Digest]int64) error {
	raw, err := v.blob(d)
	if err != nil {
		return err
	}
	m, err := manifest.ParseManifest(raw)
	if err != nil {
		return err
	}
	if _, err := v.blob(m.Config); err != nil {
		return err
	}
	small[d.Digest], small[m.Config.Digest] = d.Size, m.Config.Size
	t := store.ReleaseTarget{Target: d.Annotations[manifest.AnnTarget], Manifest: string(d.Digest), Bytes: v.row.Length + d.Size + m.Config.Size}
	for _, l := range m.Layers {
		t.Bytes += l.Size
		if _, seen := sizes[l.Digest]; !seen {
			sizes[l.Digest] = l.Size
			if err := v.layer(l.Digest, l.Size, true); err != nil {
				return err
			}
		}
		for _, ref := range savingsOf(l) {
			if err := v.layer(ref.Digest, ref.Size, false); err != nil {
				return err
			}
		}
	}
	v.row.Targets = append(v.row.Targets, t)
	return nil
}

// layer notes a blob that is missing. What only saves bytes may stay away.
func (v *verification) layer(d ota.Digest, size int64, needed bool) error {
	have, err := v.c.cfg.Blobs.Size(d)
	if err == nil && have == size {
		return nil
	}
	if err == nil {
		return fmt.Errorf("%w: layer %s has %d bytes here, the release says %d", bundle.ErrContent, d.Short(), have, size)
	}
	if !errors.Is(err, blob.ErrNotFound) {
		return err
	}
	carried := slices.ContainsFunc(v.b.Info.Layers, func(l manifest.BlobRef) bool { return l.Digest == d && l.Size == size })
	switch {
	case carried && !slices.Contains(v.missing, d):
		v.missing = append(v.missing, d)
	case !carried && needed:
		return fmt.Errorf("the bundle does not carry layer %s, and it is not here: it was made for %v alone; export all targets for a site", d.Short(), v.b.Info.Targets)
	}
	return nil
}

// blob returns a small blob of the head.
func (v *verification) blob(d manifest.Descriptor) ([]byte, error) {
	raw, err := v.b.Small(d.Digest, manifest.MaxIndex)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: it lacks %s %s", bundle.ErrNotBundle, d.MediaType, d.Digest.Short())
	}
	if err == nil && int64(len(raw)) != d.Size {
		err = fmt.Errorf("%w: %s has %d bytes, %d are said", bundle.ErrContent, d.Digest.Short(), len(raw), d.Size)
	}
	if err == nil {
		v.small[d.Digest] = raw
	}
	return raw, err
}

// attested verifies what the publisher says of the release: at least one
// signed provenance must be of its making, and no document may be wrong.
func (v *verification) attested(keys []crypto.PublicKey) error {
	layout, err := v.b.Layout()
	if err != nil {
		return err
	}
	byproducts := map[ota.Digest]bool{}
	var boms []manifest.Descriptor
	for _, d := range layout[1:] {
		raw, err := v.blob(d)
		if err != nil {
			return err
		}
		ref, err := attest.ParseReferrer(raw)
		if err != nil {
			return err
		}
		if ref.Subject.Digest != v.b.Info.Index.Digest {
			return fmt.Errorf("%w: %s", attest.ErrSubject, d.Digest.Short())
		}
		if _, err := v.blob(ref.Config); err != nil {
			return err
		}
		doc, err := v.blob(ref.Layers[0])
		if err != nil {
			return err
		}
		switch ref.Layers[0].MediaType {
		case attest.MediaEnvelope:
			st, err := verifyStatement(keys, doc, v.row, v.layers())
			if err != nil {
				return err
			}
			v.verified++
			for _, p := range st.Predicate.RunDetails.Byproducts {
				byproducts[ota.Digest("sha256:"+p.Digest["sha256"])] = true
			}
		case attest.MediaBOM:
			boms = append(boms, ref.Layers[0])
			if _, err := attest.CheckBOM(doc, v.b.Info.Index.Digest); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: a document of type %.80q", attest.ErrMalformed, ref.Layers[0].MediaType)
		}
		v.referrers = append(v.referrers, store.RegistryManifest{Tenant: v.tenant, Repo: v.row.Name, Digest: string(d.Digest), MediaType: d.MediaType, ArtifactType: ref.ArtifactType,
			Subject: string(ref.Subject.Digest), Size: d.Size, Annotations: ref.Annotations, Own: true, Created: v.c.cfg.Now()})
	}
	for _, d := range boms {
		if !byproducts[d.Digest] {
			return fmt.Errorf("%w: no signed provenance names the bill of materials %s", ErrUnattested, d.Digest.Short())
		}
	}
	if !slices.ContainsFunc(v.referrers, func(m store.RegistryManifest) bool {
		build := m.Annotations[attest.AnnBuild]
		return build == attest.BuildRelease || build == attest.BuildReleaseImport
	}) {
		return ErrUnattested
	}
	return nil
}

// layers are the digests that a statement about the release may be of.
func (v *verification) layers() []ota.Digest {
	out := []ota.Digest{ota.Digest(v.row.Digest)}
	for _, t := range v.row.Targets {
		m, err := manifest.ParseManifest(v.small[ota.Digest(t.Manifest)])
		if err != nil {
			continue // it was read before
		}
		for _, l := range m.Layers {
			out = append(out, l.Digest)
		}
	}
	return out
}

// verifyStatement verifies an envelope about one of subjects: a release's own
// provenance is of its index, a model's of its files.
func verifyStatement(keys []crypto.PublicKey, raw []byte, r store.Release, subjects []ota.Digest) (st *attest.Statement, err error) {
	err = fmt.Errorf("%w: %s@%s", attest.ErrSubject, r.Name, r.Version)
	for _, d := range subjects {
		if st, err = attest.Verify(keys, raw, d); err == nil || !errors.Is(err, attest.ErrSubject) {
			return st, err
		}
	}
	return nil, err
}

// existing returns the release if it is here already, ErrExists when another
// one is in its place.
func (v *verification) existing(ctx context.Context) (*store.Release, error) {
	rows, err := v.c.List(ctx, v.tenant)
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		if r.Name != v.row.Name {
			continue
		}
		switch {
		case r.Digest == v.row.Digest:
			return &r, nil
		case r.Version == v.row.Version:
			return nil, fmt.Errorf("%w: %s@%s is another release here, %s: it stays", ErrExists, r.Name, r.Version, ota.Digest(r.Digest).Short())
		case r.Counter == v.row.Counter:
			return nil, fmt.Errorf("%w: counter %d of %s is taken here by version %s: releases of one name come from one control plane", ErrExists, r.Counter, r.Name, r.Version)
		}
	}
	return nil, nil
}

// admit stores what was verified and lists the release here.
func (v *verification) admit(ctx context.Context) error {
	for _, raw := range v.small {
		if _, err := v.c.cfg.Blobs.PutBytes(raw); err != nil {
			return err
		}
	}
	if err := v.workloads(ctx); err != nil {
		return err
	}
	if err := v.remember(ctx); err != nil {
		return err
	}
	if err := v.c.keepReferrers(ctx, v.referrers); err != nil {
		return err
	}
	r := v.row
	err := v.c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		store.Note(ctx, r.Name+"@"+r.Version, nil, map[string]any{"digest": r.Digest, "counter": r.Counter, "publisher": r.Publisher})
		return tx.AddRelease(ctx, r)
	})
	if err != nil {
		return err
	}
	if r, err = v.c.publishNew(ctx, r); err != nil {
		return err
	}
	v.row.Ready = r.Ready
	v.c.cfg.Logger.Info("release imported", "release", r.Name+"@"+r.Version, "digest", r.Digest, "publisher", r.Publisher)
	return nil
}

// workloads checks what the release runs in, now that all of it is here.
func (v *verification) workloads(ctx context.Context) error {
	for _, t := range v.row.Targets {
		m, err := manifest.ParseManifest(v.small[ota.Digest(t.Manifest)])
		if err != nil {
			return err
		}
		if _, err := v.c.readWorkload(ctx, t.Target, m); err != nil {
			return fmt.Errorf("%w: target %s: %w", bundle.ErrContent, t.Target, err)
		}
	}
	return nil
}
