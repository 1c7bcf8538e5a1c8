package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/blobs"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/manifest"
)

// maxManifest is what registries agree to take.
const maxManifest = manifest.MaxManifest

const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// document is what the registry reads of a manifest or index.
type document struct {
	SchemaVersion int                   `json:"schemaVersion"`
	MediaType     string                `json:"mediaType"`
	ArtifactType  string                `json:"artifactType"`
	Config        *manifest.Descriptor  `json:"config"`
	Layers        []manifest.Descriptor `json:"layers"`
	Manifests     []manifest.Descriptor `json:"manifests"`
	Subject       *manifest.Descriptor  `json:"subject"`
	Annotations   map[string]string     `json:"annotations"`
}

// artifact is the type by which referrers are told apart.
func (d document) artifact() string {
	if d.ArtifactType == "" && d.Config != nil {
		return d.Config.MediaType
	}
	return d.ArtifactType
}

func readDocument(raw []byte, contentType string) (document, error) {
	bad := func(format string, args ...any) (document, error) {
		return document{}, refuse(http.StatusBadRequest, "MANIFEST_INVALID", format, args...)
	}
	var d document
	if err := json.Unmarshal(raw, &d); err != nil {
		return bad("the manifest cannot be read: %v", err)
	}
	kind, _, err := mime.ParseMediaType(contentType)
	if contentType == "" {
		kind, err = d.MediaType, nil
	}
	if err != nil {
		return bad("Content-Type %.80q: %v", contentType, err)
	}
	if d.MediaType == "" {
		d.MediaType = kind
	}
	switch {
	case d.MediaType != kind:
		return bad("Content-Type is %s, the manifest says %s", kind, d.MediaType)
	case d.SchemaVersion != 2:
		return bad("schemaVersion %d, want 2", d.SchemaVersion)
	case d.MediaType == manifest.MediaManifest || d.MediaType == dockerManifest:
		if d.Config == nil {
			return bad("a manifest has a config")
		}
	case d.MediaType == manifest.MediaIndex || d.MediaType == dockerList:
	default:
		return bad("media type %.80q: want an OCI or Docker manifest or index", d.MediaType)
	}
	if d.Subject != nil {
		if _, err := ota.ParseDigest(string(d.Subject.Digest)); err != nil {
			return bad("subject: %v", err)
		}
	}
	return d, nil
}

// manifest serves GET and HEAD of a manifest.
func (g *Registry) manifest(w http.ResponseWriter, r *http.Request, c call) {
	ctx := r.Context()
	m, err := g.opts.Releases.Manifest(ctx, c.repo, c.ref)
	if errors.Is(err, blobs.ErrUnknown) {
		m, err = g.stored(ctx, c)
	}
	if err != nil {
		g.fail(w, "read a manifest", err)
		return
	}
	h := w.Header()
	h.Set("Docker-Content-Digest", string(m.Digest))
	h.Set("ETag", strconv.Quote(string(m.Digest)))
	h.Set("Content-Type", m.MediaType)
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(m.Data)))
}

// stored returns a manifest that was pushed or attached.
func (g *Registry) stored(ctx context.Context, c call) (blobs.Manifest, error) {
	var row store.RegistryManifest
	err := g.opts.Store.View(ctx, func(tx *store.Tx) (err error) {
		row, err = tx.RegistryManifest(ctx, g.opts.Tenant, c.repo, c.ref)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return blobs.Manifest{}, refuse(http.StatusNotFound, "MANIFEST_UNKNOWN", "%s has no manifest %s", c.repo, c.ref)
	}
	if err != nil {
		return blobs.Manifest{}, err
	}
	raw, err := g.opts.Blobs.Store().ReadAll(ctx, ota.Digest(row.Digest), maxManifest)
	return blobs.Manifest{MediaType: row.MediaType, Digest: ota.Digest(row.Digest), Data: raw}, err
}

// putManifest takes a manifest, by tag or by digest.
func (g *Registry) putManifest(w http.ResponseWriter, r *http.Request, c call) {
	d, doc, err := g.take(w, r, c)
	if err != nil {
		g.fail(w, "take a manifest", err)
		return
	}
	h := w.Header()
	if doc.Subject != nil {
		h.Set("OCI-Subject", string(doc.Subject.Digest))
	}
	h.Set("Docker-Content-Digest", string(d))
	h.Set("Location", "/v2/"+c.repo+"/manifests/"+string(d))
	w.WriteHeader(http.StatusCreated)
}

func (g *Registry) take(w http.ResponseWriter, r *http.Request, c call) (ota.Digest, document, error) {
	ctx := r.Context()
	if err := g.mayPush(ctx, c); err != nil {
		return "", document{}, err
	}
	raw, err := drain(w, r, maxManifest)
	if err != nil {
		return "", document{}, err
	}
	d, tag := ota.DigestOf(raw), ""
	switch want, err := ota.ParseDigest(c.ref); {
	case err == nil && want != d:
		return "", document{}, refuse(http.StatusBadRequest, "DIGEST_INVALID", "the manifest is %s, not %s", d, want)
	case err == nil:
	case strings.Contains(c.ref, ":"):
		return "", document{}, refuse(http.StatusBadRequest, "DIGEST_INVALID", "%v", err)
	case !tagRE.MatchString(c.ref):
		return "", document{}, refuse(http.StatusBadRequest, "TAG_INVALID", "tag %.80q: want letters, digits, . _ and -, at most 128", c.ref)
	default:
		tag = c.ref
	}
	doc, err := readDocument(raw, r.Header.Get("Content-Type"))
	if err != nil {
		return "", doc, err
	}
	if !c.pushed() && (tag != "" || doc.Subject == nil) {
		return "", doc, refuse(http.StatusForbidden, "DENIED", "%s is a release: only what refers to it, by a subject and without a tag, is pushed to it", c.repo)
	}
	if err := g.complete(ctx, c, doc); err != nil {
		return "", doc, err
	}
	if _, err := g.opts.Blobs.Store().PutBytes(raw); err != nil {
		return "", doc, err
	}
	row := store.RegistryManifest{Tenant: g.opts.Tenant, Repo: c.repo, Digest: string(d), MediaType: doc.MediaType, ArtifactType: doc.artifact(),
		Size: int64(len(raw)), Annotations: doc.Annotations, Created: g.opts.Now()}
	if doc.Subject != nil {
		row.Subject = string(doc.Subject.Digest)
	}
	return d, doc, g.opts.Store.Update(ctx, func(tx *store.Tx) error {
		if err := tx.PutRegistryManifest(ctx, row); err != nil || tag == "" {
			return err
		}
		return tx.SetRegistryTag(ctx, g.opts.Tenant, c.repo, tag, string(d))
	})
}

// complete refuses a manifest that names what is not here. A subject may come
// later, and layers that must not be distributed never do.
func (g *Registry) complete(ctx context.Context, c call, doc document) error {
	named := slices.Clone(doc.Layers)
	if doc.Config != nil {
		named = append(named, *doc.Config)
	}
	for _, l := range named {
		if strings.Contains(l.MediaType, "nondistributable") || strings.Contains(l.MediaType, ".foreign.") {
			continue
		}
		d, err := ota.ParseDigest(string(l.Digest))
		if err != nil {
			return refuse(http.StatusBadRequest, "MANIFEST_INVALID", "%v", err)
		}
		size, err := g.opts.Blobs.Store().Size(d)
		if err == nil && c.pushed() {
			err = g.shows(ctx, c.repo, d)
		}
		if _, no := errors.AsType[*refusal](err); no || errors.Is(err, blob.ErrNotFound) {
			return refuse(http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "blob %s, which the manifest names, is not in %s: push it first", d, c.repo)
		}
		if err != nil {
			return err
		}
		if size != l.Size {
			return refuse(http.StatusBadRequest, "MANIFEST_INVALID", "blob %s has %d bytes, the manifest says %d", d, size, l.Size)
		}
	}
	for _, m := range doc.Manifests {
		if _, err := g.stored(ctx, call{repo: c.repo, ref: string(m.Digest)}); err != nil {
			if _, no := errors.AsType[*refusal](err); no {
				return refuse(http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "manifest %s, which the index names, is not in %s: push it first", m.Digest, c.repo)
			}
			return err
		}
	}
	return nil
}

func (g *Registry) deleteManifest(w http.ResponseWriter, r *http.Request, c call) {
	if err := g.remove(r.Context(), c); err != nil {
		g.fail(w, "delete a manifest", err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

func (g *Registry) remove(ctx context.Context, c call) error {
	if _, err := g.opts.Releases.Manifest(ctx, c.repo, c.ref); err == nil {
		return refuse(http.StatusMethodNotAllowed, "UNSUPPORTED", "%s:%s is a release: releases are immutable", c.repo, c.ref)
	} else if !errors.Is(err, blobs.ErrUnknown) {
		return err
	}
	err := g.opts.Store.Update(ctx, func(tx *store.Tx) error {
		if _, err := ota.ParseDigest(c.ref); err != nil {
			return tx.DeleteRegistryTag(ctx, g.opts.Tenant, c.repo, c.ref)
		}
		m, err := tx.RegistryManifest(ctx, g.opts.Tenant, c.repo, c.ref)
		if err != nil {
			return err
		}
		if m.Own {
			return refuse(http.StatusForbidden, "DENIED", "%s was attached by skein and stays", c.ref)
		}
		return tx.DeleteRegistryManifest(ctx, g.opts.Tenant, c.repo, c.ref)
	})
	if errors.Is(err, store.ErrNotFound) {
		return refuse(http.StatusNotFound, "MANIFEST_UNKNOWN", "%s has no manifest %s", c.repo, c.ref)
	}
	return err
}

// tags lists in byte order, ?n= at a time, after ?last=.
func (g *Registry) tags(w http.ResponseWriter, r *http.Request, c call) {
	ctx := r.Context()
	tags, err := g.opts.Releases.Tags(ctx, c.repo)
	if errors.Is(err, blobs.ErrUnknown) {
		err = g.opts.Store.View(ctx, func(tx *store.Tx) error {
			has, err := tx.RegistryHasRepo(ctx, g.opts.Tenant, c.repo)
			if err == nil && !has {
				return refuse(http.StatusNotFound, "NAME_UNKNOWN", "there is no repository %s", c.repo)
			}
			if err != nil {
				return err
			}
			tags, err = tx.RegistryTags(ctx, g.opts.Tenant, c.repo)
			return err
		})
	}
	if err != nil {
		g.fail(w, "list tags", err)
		return
	}
	tags = slices.Sorted(slices.Values(tags))
	q := r.URL.Query()
	if last := q.Get("last"); last != "" {
		at, found := slices.BinarySearch(tags, last)
		if found {
			at++
		}
		tags = tags[at:]
	}
	if text := q.Get("n"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			blobs.Fail(w, http.StatusBadRequest, "UNSUPPORTED", fmt.Sprintf("n=%.20q: want a whole number", text))
			return
		}
		if n < len(tags) {
			tags = tags[:n]
			if n > 0 {
				w.Header().Set("Link", fmt.Sprintf("</v2/%s/tags/list?n=%d&last=%s>; rel=\"next\"", c.repo, n, url.QueryEscape(tags[n-1])))
			}
		}
	}
	answer(w, "application/json", map[string]any{"name": c.repo, "tags": slices.Concat([]string{}, tags)})
}

// referrers lists what refers to a manifest.
func (g *Registry) referrers(w http.ResponseWriter, r *http.Request, c call) {
	ctx := r.Context()
	d, err := digestOf(c.ref)
	var rows []store.RegistryManifest
	if err == nil {
		err = g.opts.Store.View(ctx, func(tx *store.Tx) (err error) {
			rows, err = tx.RegistryReferrers(ctx, g.opts.Tenant, c.repo, string(d))
			return err
		})
	}
	if err != nil {
		g.fail(w, "list referrers", err)
		return
	}
	only := r.URL.Query().Get("artifactType")
	if only != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	list := []manifest.Descriptor{}
	for _, m := range rows {
		if only == "" || m.ArtifactType == only {
			list = append(list, manifest.Descriptor{MediaType: m.MediaType, ArtifactType: m.ArtifactType, Digest: ota.Digest(m.Digest), Size: m.Size, Annotations: m.Annotations})
		}
	}
	answer(w, manifest.MediaIndex, manifest.Index{SchemaVersion: 2, MediaType: manifest.MediaIndex, Manifests: list})
}

func answer(w http.ResponseWriter, kind string, v any) {
	w.Header().Set("Content-Type", kind)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}
