// Package registry serves the OCI distribution API v1.1 under /v2/: releases
// with what was attached to them, and repositories that people push.
//
// Invariants: a release and what skein attached to it cannot be changed or
// deleted here; people push into names with a slash, so that no push is ever
// in the way of a release, and into a release's name only what refers to it;
// a manifest is kept only when all that it names is here; bodies are bounded.
// It authorises nobody: the façade wraps it. Uploads and blob bytes are those
// of package blobs. Only the façade imports it.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/blobs"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
)

// Releases answers for what `skein release create` made. It returns
// blobs.ErrUnknown.
type Releases interface {
	Manifest(ctx context.Context, name, ref string) (blobs.Manifest, error)
	Tags(ctx context.Context, name string) ([]string, error)
}

// Options of a Registry. All but Logger and Now are required.
type Options struct {
	Store    *store.DB
	Blobs    *blobs.Server
	Releases Releases
	Tenant   string
	Logger   *slog.Logger
	Now      func() time.Time
}

// Registry is an http.Handler for /v2/.
type Registry struct {
	opts  Options
	first http.Handler // the repository skein, where artifacts are uploaded
}

// New returns a registry; it starts nothing.
func New(o Options) (*Registry, error) {
	if o.Store == nil || o.Blobs == nil || o.Releases == nil || o.Tenant == "" {
		return nil, errors.New("registry needs Store, Blobs, Releases and Tenant")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Registry{opts: o, first: o.Blobs.People()}, nil
}

// maxRepo is the longest name of a repository.
const maxRepo = 255

var (
	repoRE = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRE  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
)

// call is one request, taken apart.
type call struct {
	repo string
	kind string // blobs, uploads, manifests, tags, referrers
	ref  string // digest, tag or upload
}

// pushed reports whether the repository is of those that people push.
func (c call) pushed() bool { return strings.Contains(c.repo, "/") }

// parse reads a path below /v2/. Names have slashes, so it is read from its end.
func parse(path string) (call, bool) {
	parts := strings.Split(path, "/")
	n := len(parts)
	name := func(upTo int) string { return strings.Join(parts[:upTo], "/") }
	switch {
	case n >= 4 && parts[n-3] == "blobs" && parts[n-2] == "uploads":
		return call{name(n - 3), "uploads", parts[n-1]}, true
	case n >= 3 && parts[n-2] == "blobs" && parts[n-1] == "uploads":
		return call{name(n - 2), "uploads", ""}, true
	case n >= 3 && parts[n-2] == "tags" && parts[n-1] == "list":
		return call{name(n - 2), "tags", ""}, true
	case n >= 3 && (parts[n-2] == "blobs" || parts[n-2] == "manifests" || parts[n-2] == "referrers"):
		return call{name(n - 2), parts[n-2], parts[n-1]}, true
	}
	return call{}, false
}

// ServeHTTP implements http.Handler.
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok || path == "" {
		g.first.ServeHTTP(w, r)
		return
	}
	c, ok := parse(path)
	switch {
	case !ok:
		blobs.Fail(w, http.StatusNotFound, "UNSUPPORTED", r.URL.Path+" is not part of the distribution API")
		return
	case len(c.repo) > maxRepo || !repoRE.MatchString(c.repo):
		blobs.Fail(w, http.StatusBadRequest, "NAME_INVALID", fmt.Sprintf("repository %.80q: want lower-case letters and digits, with single . _ - or / between them", c.repo))
		return
	case c.repo == "skein" && (c.kind == "blobs" || c.kind == "uploads"):
		g.first.ServeHTTP(w, r)
		return
	}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case c.kind == "uploads":
		g.upload(w, r, c)
	case c.kind == "blobs" && read:
		g.blob(w, r, c)
	case c.kind == "blobs" && r.Method == http.MethodDelete:
		g.deleteBlob(w, r, c)
	case c.kind == "manifests" && read:
		g.manifest(w, r, c)
	case c.kind == "manifests" && r.Method == http.MethodPut:
		g.putManifest(w, r, c)
	case c.kind == "manifests" && r.Method == http.MethodDelete:
		g.deleteManifest(w, r, c)
	case c.kind == "tags" && read:
		g.tags(w, r, c)
	case c.kind == "referrers" && read:
		g.referrers(w, r, c)
	default:
		blobs.Fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", fmt.Sprintf("%s %s is not served", r.Method, r.URL.Path))
	}
}

// refusal is an answer to the client's mistake.
type refusal struct {
	status        int
	code, message string
}

func (e *refusal) Error() string { return e.message }

func refuse(status int, code, format string, args ...any) error {
	return &refusal{status, code, fmt.Sprintf(format, args...)}
}

// fail answers for an error.
func (g *Registry) fail(w http.ResponseWriter, what string, err error) {
	if e, ok := errors.AsType[*refusal](err); ok {
		blobs.Fail(w, e.status, e.code, e.message)
		return
	}
	if !errors.Is(err, context.Canceled) {
		g.opts.Logger.Error(what, "err", err)
	}
	blobs.Fail(w, http.StatusInternalServerError, "UNKNOWN", what+": the server cannot do it now, see its log")
}

func digestOf(text string) (ota.Digest, error) {
	d, err := ota.ParseDigest(text)
	if err != nil {
		return "", refuse(http.StatusBadRequest, "DIGEST_INVALID", "%v", err)
	}
	return d, nil
}

// isRelease reports whether the name is of a release.
func (g *Registry) isRelease(ctx context.Context, repo string) (bool, error) {
	_, err := g.opts.Releases.Tags(ctx, repo)
	if errors.Is(err, blobs.ErrUnknown) {
		return false, nil
	}
	return err == nil, err
}

// mayPush says why nothing can be pushed under a name, or nil.
func (g *Registry) mayPush(ctx context.Context, c call) error {
	if c.pushed() {
		return nil
	}
	release, err := g.isRelease(ctx, c.repo)
	if err != nil {
		return err
	}
	if !release {
		return refuse(http.StatusForbidden, "DENIED", "nothing is pushed to %s: names without a slash are of releases, which `skein release create` makes; push to one such as mirror/%s", c.repo, c.repo)
	}
	return nil
}

func (g *Registry) upload(w http.ResponseWriter, r *http.Request, c call) {
	if err := g.mayPush(r.Context(), c); err != nil {
		g.fail(w, "begin an upload", err)
		return
	}
	g.opts.Blobs.Upload(w, r, blobs.Door{Repo: c.repo, Done: func(ctx context.Context, d ota.Digest) error {
		return g.opts.Store.Update(ctx, func(tx *store.Tx) error { return tx.LinkRegistryBlob(ctx, g.opts.Tenant, c.repo, string(d)) })
	}}, c.ref)
}

func (g *Registry) blob(w http.ResponseWriter, r *http.Request, c call) {
	d, err := digestOf(c.ref)
	if err == nil && c.pushed() {
		err = g.shows(r.Context(), c.repo, d)
	}
	if err != nil {
		g.fail(w, "look up a blob", err)
		return
	}
	g.opts.Blobs.Serve(w, r, d)
}

// shows returns nil if a pushed repository has the blob, as a blob or as a manifest.
func (g *Registry) shows(ctx context.Context, repo string, d ota.Digest) error {
	var has bool
	err := g.opts.Store.View(ctx, func(tx *store.Tx) (err error) {
		if has, err = tx.RegistryHasBlob(ctx, g.opts.Tenant, repo, string(d)); err != nil || has {
			return err
		}
		_, err = tx.RegistryManifest(ctx, g.opts.Tenant, repo, string(d))
		has = err == nil
		if errors.Is(err, store.ErrNotFound) {
			err = nil
		}
		return err
	})
	if err == nil && !has {
		err = refuse(http.StatusNotFound, "BLOB_UNKNOWN", "blob %s is not in %s", d, repo)
	}
	return err
}

func (g *Registry) deleteBlob(w http.ResponseWriter, r *http.Request, c call) {
	d, err := digestOf(c.ref)
	if err == nil && !c.pushed() {
		err = refuse(http.StatusMethodNotAllowed, "UNSUPPORTED", "blobs of releases are not deleted")
	}
	if err == nil {
		err = g.opts.Store.Update(r.Context(), func(tx *store.Tx) error { return tx.UnlinkRegistryBlob(r.Context(), g.opts.Tenant, c.repo, string(d)) })
	}
	if errors.Is(err, store.ErrNotFound) {
		err = refuse(http.StatusNotFound, "BLOB_UNKNOWN", "blob %s is not in %s", d, c.repo)
	}
	if err != nil {
		g.fail(w, "delete a blob", err)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// drain reads a body of at most limit bytes.
func drain(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if _, over := errors.AsType[*http.MaxBytesError](err); over {
		return nil, refuse(http.StatusRequestEntityTooLarge, "SIZE_INVALID", "a manifest has at most %d bytes", limit)
	}
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "MANIFEST_INVALID", "the body ended early: %v", err)
	}
	return b, nil
}
