package web

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/fstest"
)

var script = strings.Repeat("console.log('skein');\n", 100)

func testHandler(t *testing.T) *Handler {
	t.Helper()
	h, err := NewFS(fstest.MapFS{
		"index.html":           {Data: []byte("<!doctype html><title>Skein</title>")},
		"favicon.svg":          {Data: []byte("<svg/>")},
		"assets/index-1a2b.js": {Data: []byte(script)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func get(t *testing.T, h http.Handler, method, target string, headers ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, target, nil)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func TestRoutes(t *testing.T) {
	h := testHandler(t)
	for _, c := range []struct {
		method, target string
		status         int
		mediaType      string
		cache          string
	}{
		{"GET", "/", 200, "text/html; charset=utf-8", "no-cache"},
		{"GET", "/index.html", 200, "text/html; charset=utf-8", "no-cache"},
		{"GET", "/devices/abcd?range=1h", 200, "text/html; charset=utf-8", "no-cache"},
		{"GET", "/login", 200, "text/html; charset=utf-8", "no-cache"},
		{"HEAD", "/rollouts", 200, "text/html; charset=utf-8", "no-cache"},
		{"GET", "/favicon.svg", 200, "image/svg+xml", "no-cache"},
		{"GET", "/assets/index-1a2b.js", 200, "text/javascript; charset=utf-8", "public, max-age=31536000, immutable"},
		{"GET", "/assets/gone-9f.js", 404, "text/plain; charset=utf-8", "no-store"},
		{"GET", "/api/v1/qeury", 404, "text/plain; charset=utf-8", "no-store"},
		{"GET", "/v2/skein/blobs/x", 404, "text/plain; charset=utf-8", "no-store"},
		{"GET", "/skein.fleet.v1.FleetService/Nope", 404, "text/plain; charset=utf-8", "no-store"},
		{"POST", "/", 405, "text/plain; charset=utf-8", ""},
	} {
		res := get(t, h, c.method, c.target)
		if res.StatusCode != c.status || res.Header.Get("Content-Type") != c.mediaType || res.Header.Get("Cache-Control") != c.cache {
			t.Errorf("%s %s: %d %q %q, want %d %q %q", c.method, c.target, res.StatusCode,
				res.Header.Get("Content-Type"), res.Header.Get("Cache-Control"), c.status, c.mediaType, c.cache)
		}
		if res.Header.Get("Content-Security-Policy") != CSP || res.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s %s: security headers are missing: %v", c.method, c.target, res.Header)
		}
	}
	if strings.Contains(CSP, "unsafe") || strings.Contains(CSP, "*") || !strings.Contains(CSP, "default-src 'none'") {
		t.Errorf("policy is not strict: %s", CSP)
	}
}

func TestRevalidation(t *testing.T) {
	h := testHandler(t)
	etag := get(t, h, "GET", "/").Header.Get("ETag")
	if etag == "" {
		t.Fatal("index.html has no ETag")
	}
	if res := get(t, h, "GET", "/devices", "If-None-Match", etag); res.StatusCode != http.StatusNotModified {
		t.Errorf("same page again: %d, want 304", res.StatusCode)
	}
	if res := get(t, h, "GET", "/", "If-None-Match", `"other"`); res.StatusCode != http.StatusOK {
		t.Errorf("changed page: %d, want 200", res.StatusCode)
	}
}

func TestGzip(t *testing.T) {
	h := testHandler(t)
	plain := get(t, h, "GET", "/assets/index-1a2b.js", "Accept-Encoding", "gzip;q=0, br")
	if plain.Header.Get("Content-Encoding") != "" {
		t.Error("compressed although gzip;q=0")
	}
	res := get(t, h, "GET", "/assets/index-1a2b.js", "Accept-Encoding", "br, gzip")
	if res.Header.Get("Content-Encoding") != "gzip" || res.Header.Get("Vary") != "Accept-Encoding" {
		t.Fatalf("not compressed: %v", res.Header)
	}
	if res.Header.Get("ETag") == plain.Header.Get("ETag") {
		t.Error("two representations share one ETag")
	}
	zr, err := gzip.NewReader(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(zr); err != nil || string(got) != script {
		t.Errorf("body differs after decompression: %d bytes, %v", len(got), err)
	}
}

func TestEmbedded(t *testing.T) {
	h, err := New()
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(get(t, h, "GET", "/rollouts/abc").Body)
	if err != nil || !strings.Contains(string(body), "<title>Skein") {
		t.Errorf("deep link gives %q, %v", body, err)
	}
	if err := Built(); (err == nil) == strings.Contains(string(body), "make dashboard") {
		t.Errorf("Built() = %v disagrees with the page served", err)
	}
	if _, err := NewFS(fstest.MapFS{"a.js": {}}); err == nil {
		t.Error("a folder without index.html was accepted")
	}
}
