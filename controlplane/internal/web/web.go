// Package web serves the embedded dashboard: hashed assets with an immutable
// lifetime, everything else with an ETag, and index.html for every deep link.
// It knows no API and no session; the mux above it routes those away first.
//
// Invariants: one strict Content-Security-Policy on every answer, so no inline
// script or style and no foreign host; a path that looks like an API or an
// asset is never answered with a page. Only package controlplane and its
// internal packages may import it.
package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/controlplane/dashboard"
)

// ErrNotBuilt is returned by Built when only the placeholder page is embedded.
var ErrNotBuilt = errors.New("dashboard is not part of this build: run make dashboard and build again")

// CSP is the policy sent with every answer.
const CSP = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; " +
	"connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// apiPrefixes belong to other handlers. When one of them is not mounted, or a
// client misspells a path below it, the answer is 404 and not a page.
var apiPrefixes = []string{"/api/", "/v2/", "/skein.", "/assets/", "/debug/", "/tuf/"}

// minGzip is the size below which compression does not pay.
const minGzip = 512

// asset is one embedded file, ready to be sent.
type asset struct {
	body      []byte
	zipped    func() []byte // nil result: not worth compressing
	etag      string
	mediaType string
	immutable bool
}

// Handler serves the dashboard.
type Handler struct {
	files map[string]*asset // by URL path, for example /assets/index-abc.js
	index *asset
}

// New returns a handler for the dashboard that is embedded in this binary, or
// for the placeholder page when it was built without one.
func New() (*Handler, error) {
	root := "dist"
	if err := Built(); err == nil {
		root = "dist/app"
	}
	sub, err := fs.Sub(dashboard.Dist, root)
	if err != nil {
		return nil, fmt.Errorf("open embedded %s: %w", root, err)
	}
	return NewFS(sub)
}

// Built returns nil when the dashboard is embedded, ErrNotBuilt otherwise.
func Built() error {
	if _, err := fs.Stat(dashboard.Dist, "dist/app/index.html"); err != nil {
		return ErrNotBuilt
	}
	return nil
}

// NewFS returns a handler for the files of root, which must hold index.html.
func NewFS(root fs.FS) (*Handler, error) {
	h := &Handler{files: map[string]*asset{}}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		h.files["/"+name] = newAsset(name, body)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read dashboard files: %w", err)
	}
	h.index = h.files["/index.html"]
	if h.index == nil {
		return nil, errors.New("read dashboard files: index.html is missing")
	}
	return h, nil
}

func newAsset(name string, body []byte) *asset {
	sum := sha256.Sum256(body)
	mediaType := mime.TypeByExtension(path.Ext(name))
	switch path.Ext(name) { // the host's mime table may lack or change these
	case ".js":
		mediaType = "text/javascript; charset=utf-8"
	case ".css":
		mediaType = "text/css; charset=utf-8"
	case ".html":
		mediaType = "text/html; charset=utf-8"
	case ".svg":
		mediaType = "image/svg+xml"
	case ".woff2":
		mediaType = "font/woff2"
	case ".webmanifest":
		mediaType = "application/manifest+json"
	case ".txt":
		mediaType = "text/plain; charset=utf-8"
	}
	return &asset{
		body:      body,
		zipped:    sync.OnceValue(func() []byte { return zip(name, body) }),
		etag:      `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`,
		mediaType: mediaType,
		immutable: strings.HasPrefix(name, "assets/"),
	}
}

// zip returns body compressed, or nil when that does not pay.
func zip(name string, body []byte) []byte {
	if len(body) < minGzip || path.Ext(name) == ".woff2" || path.Ext(name) == ".png" {
		return nil
	}
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return nil
	}
	if _, err := w.Write(body); err != nil || w.Close() != nil || buf.Len() >= len(body) {
		return nil
	}
	return buf.Bytes()
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Security-Policy", CSP)
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "same-origin")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	a, ok := h.files[r.URL.Path]
	if !ok {
		for _, p := range apiPrefixes {
			if strings.HasPrefix(r.URL.Path, p) {
				header.Set("Cache-Control", "no-store")
				http.Error(w, "not found: "+r.URL.Path, http.StatusNotFound)
				return
			}
		}
		a = h.index
	}
	a.serve(w, r)
}

func (a *asset) serve(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Type", a.mediaType)
	header.Set("Vary", "Accept-Encoding")
	if a.immutable {
		header.Set("Cache-Control", "public, max-age=31536000, immutable")
	} else {
		header.Set("Cache-Control", "no-cache")
	}
	body, etag := a.body, a.etag
	if acceptsGzip(r.Header.Get("Accept-Encoding")) && r.Header.Get("Range") == "" {
		if z := a.zipped(); z != nil {
			header.Set("Content-Encoding", "gzip")
			body, etag = z, strings.TrimSuffix(etag, `"`)+`-gz"`
		}
	}
	header.Set("ETag", etag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// acceptsGzip reads an Accept-Encoding header; q=0 forbids.
func acceptsGzip(accept string) bool {
	for part := range strings.SplitSeq(accept, ",") {
		name, q, _ := strings.Cut(strings.TrimSpace(part), ";")
		if name = strings.TrimSpace(name); !strings.EqualFold(name, "gzip") && name != "*" {
			continue
		}
		q = strings.ReplaceAll(strings.TrimSpace(q), " ", "")
		return q != "q=0" && q != "q=0.0" && q != "q=0.00" && q != "q=0.000"
	}
	return false
}
