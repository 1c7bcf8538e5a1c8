// Package blobs serves content-addressed blobs over HTTP in the shape of the
// OCI distribution API: to people, with resumable uploads and read-only
// manifests of releases, so that oras and crane can pull them; to devices,
// reads only, of blobs that one of their releases contains.
//
// Invariants: memory use does not depend on the size of a blob; what was
// accepted of an upload is on disk and survives a restart or a full disk; a
// wrong digest never loses an upload; blobs are immutable. It authorises
// devices by Grants and leaves people to the caller's middleware. The façade
// imports it.
package blobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/slot"
)

// ErrUnknown is what Manifests returns for a name or reference that it has not.
var ErrUnknown = errors.New("no such release")

// Manifest is one OCI index or manifest.
type Manifest struct {
	MediaType string
	Digest    ota.Digest
	Data      []byte
}

// Manifests answers for releases. ref is a version or a digest. It returns
// ErrUnknown.
type Manifests interface {
	Manifest(ctx context.Context, name, ref string) (Manifest, error)
	Tags(ctx context.Context, name string) ([]string, error)
}

// Grants says whether a device may read a blob: nil, or why not.
type Grants interface {
	MayRead(ctx context.Context, deviceID string, d ota.Digest) error
}

// Options of a Server.
type Options struct {
	Files     slot.Files  // blobs/, partial/ and uploads/ lie below it
	Store     *blob.Store // in Files; nil makes one
	Manifests Manifests
	Logger    *slog.Logger
	// Adopt makes a finished upload a blob: Store().Adopt.
	Adopt func(ctx context.Context, name string, d ota.Digest) (size int64, err error)
	// Pacer shares rates among devices; nil limits nothing.
	Pacer *Pacer
	// KeepUploads is how long an unfinished upload is kept without progress:
	// 7 days.
	KeepUploads time.Duration
	Now         func() time.Time
}

// Server serves one store.
type Server struct {
	opts     Options
	store    *blob.Store
	sessions sessions
}

// New returns a server of the blobs in o.Files.
func New(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.KeepUploads == 0 {
		o.KeepUploads = 7 * 24 * time.Hour
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Store == nil {
		o.Store = blob.NewStore(o.Files)
	}
	if o.Adopt == nil {
		o.Adopt = o.Store.Adopt
	}
	return &Server{opts: o, store: o.Store}
}

// Store returns the blobs themselves.
func (s *Server) Store() *blob.Store { return s.store }

// repository is the name under which blobs are uploaded.
const repository = "skein"

var nameRE = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)

// ValidName reports whether a name can be a repository, and so a release.
func ValidName(name string) bool { return len(name) <= 128 && nameRE.MatchString(name) }

// People serves /v2/ to people and programs. It authorises nobody; wrap it.
func (s *Server) People() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}\n")
	})
	mux.HandleFunc("POST /v2/skein/blobs/uploads/{$}", s.begin)
	mux.HandleFunc("GET /v2/skein/blobs/uploads/{id}", s.status)
	mux.HandleFunc("PATCH /v2/skein/blobs/uploads/{id}", s.patch)
	mux.HandleFunc("PUT /v2/skein/blobs/uploads/{id}", s.put)
	mux.HandleFunc("DELETE /v2/skein/blobs/uploads/{id}", s.cancel)
	mux.HandleFunc("GET /v2/{name}/blobs/{digest}", s.blob)
	mux.HandleFunc("GET /v2/{name}/manifests/{ref}", s.manifest)
	mux.HandleFunc("GET /v2/{name}/tags/list", s.tags)
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		code, status := "UNSUPPORTED", http.StatusMethodNotAllowed
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			code, status = "NAME_UNKNOWN", http.StatusNotFound
		}
		fail(w, status, code, fmt.Sprintf("%s %s is not served: blobs are uploaded under /v2/skein/blobs/uploads/, releases are made by `skein release create`", r.Method, r.URL.Path))
	})
	return mux
}

// Devices serves GET and HEAD of /v2/skein/blobs/{digest} to devices. identify
// returns who asks, by the client certificate.
func (s *Server) Devices(identify func(*http.Request) (deviceID string, err error), grants Grants) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/skein/blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		id, err := identify(r)
		if err != nil {
			fail(w, http.StatusUnauthorized, "UNAUTHORIZED", err.Error())
			return
		}
		d, ok := digestOf(w, r.PathValue("digest"))
		if !ok {
			return
		}
		if err := grants.MayRead(r.Context(), id, d); err != nil {
			s.opts.Logger.Warn("blob refused", "device", id, "blob", string(d), "err", err)
			fail(w, http.StatusForbidden, "DENIED", err.Error())
			return
		}
		if s.opts.Pacer == nil || r.Method == http.MethodHead {
			s.serve(w, r, d)
			return
		}
		s.opts.Pacer.serve(w, r, id, func(w http.ResponseWriter) { s.serve(w, r, d) })
	})
	return mux
}

func digestOf(w http.ResponseWriter, text string) (ota.Digest, bool) {
	d, err := ota.ParseDigest(text)
	if err != nil {
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", err.Error())
		return "", false
	}
	return d, true
}

func (s *Server) blob(w http.ResponseWriter, r *http.Request) {
	if d, ok := digestOf(w, r.PathValue("digest")); ok {
		s.serve(w, r, d)
	}
}

// serve writes a blob, or the range that was asked for.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, d ota.Digest) {
	f, _, err := s.store.Open(r.Context(), d)
	if errors.Is(err, blob.ErrNotFound) {
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN", fmt.Sprintf("blob %s is not here", d))
		return
	}
	if err != nil {
		s.broken(w, "open blob", err)
		return
	}
	defer f.Close()
	immutable(w, d)
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f)
}

func immutable(w http.ResponseWriter, d ota.Digest) {
	h := w.Header()
	h.Set("Docker-Content-Digest", string(d))
	h.Set("ETag", strconv.Quote(string(d)))
	h.Set("Cache-Control", "private, max-age=31536000, immutable")
	h.Set("X-Content-Type-Options", "nosniff")
}

func (s *Server) manifest(w http.ResponseWriter, r *http.Request) {
	if s.opts.Manifests == nil {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "this server has no releases")
		return
	}
	m, err := s.opts.Manifests.Manifest(r.Context(), r.PathValue("name"), r.PathValue("ref"))
	if errors.Is(err, ErrUnknown) {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", err.Error())
		return
	}
	if err != nil {
		s.broken(w, "read manifest", err)
		return
	}
	immutable(w, m.Digest)
	if r.PathValue("ref") != string(m.Digest) {
		w.Header().Set("Cache-Control", "no-cache")
	}
	w.Header().Set("Content-Type", m.MediaType)
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(m.Data)))
}

func (s *Server) tags(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if s.opts.Manifests == nil {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "this server has no releases")
		return
	}
	tags, err := s.opts.Manifests.Tags(r.Context(), name)
	if errors.Is(err, ErrUnknown) {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", err.Error())
		return
	}
	if err != nil {
		s.broken(w, "list tags", err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(struct { // the client may be gone
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{name, tags})
}

// fail answers with an error in the distribution API's form.
func fail(w http.ResponseWriter, status int, code, message string) {
	type one struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	h := w.Header()
	h.Del("Cache-Control")
	h.Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string][]one{"errors": {{code, message}}}) // the client may be gone
}

// broken answers for what is the server's fault.
func (s *Server) broken(w http.ResponseWriter, what string, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	s.opts.Logger.Error(what, "err", err)
	fail(w, http.StatusInternalServerError, "UNKNOWN", what+": the server cannot do it now, see its log")
}
