package controlplane

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
)

// What is not kept apart by tenant is served to the default tenant alone.
func TestOtherTenantsSeeNothing(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	_, token, err := r.guard.Create(t.Context(), "other", "eve", auth.Admin, 0)
	if err != nil {
		t.Fatal(err)
	}
	eve := &http.Client{Transport: bearer{token}}
	for _, path := range []string{"/api/v1/labels", "/api/v1/query?query=up", "/v2/", "/v2/meter/tags/list"} {
		if status, body := get(t, eve, r.url()+path); status != http.StatusForbidden {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

// A stranger who sends slowly holds a connection for a bounded time.
func TestSlowStrangersAreCutOff(t *testing.T) {
	read := make(chan error, 1)
	srv := httptest.NewServer(inTime(50*time.Millisecond, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		read <- err
	})))
	defer srv.Close()
	body, never := io.Pipe()
	defer never.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
		}
	}()
	select {
	case err := <-read:
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the body ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("the call never ended")
	}
}

// A crash at the very first start, after the admin token was written and before
// its credential was stored, locks nobody out; later starts do not print it.
func TestFirstStartAfterACrash(t *testing.T) {
	cfg := testConfig(t.TempDir())
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	token := auth.NewToken()
	if err := os.WriteFile(filepath.Join(cfg.DataDir, adminName), []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		r := start(t, cfg)
		p, err := r.guard.Check(context.Background(), token)
		if err != nil || p.Role != string(auth.Admin) || r.AdminToken() != token {
			t.Errorf("start %d: %+v, %v", i, p, err)
		}
		if hint := r.LoginHint(); strings.Contains(hint, token) != (i == 0) {
			t.Errorf("start %d: %s", i, hint)
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
	}
}
