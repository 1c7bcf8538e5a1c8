package trust

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
)

// TestPythonTUF reads our repository, after rotations of every key, with
// python-tuf, the reference client. It needs SKEIN_PYTHON, a Python that has
// the package tuf.
func TestPythonTUF(t *testing.T) {
	python := os.Getenv("SKEIN_PYTHON")
	if python == "" {
		t.Skip("SKEIN_PYTHON names no Python with the package tuf")
	}
	dir, now := t.TempDir(), time.Now()
	if _, err := InitDev(dir, "skein.local", now); err != nil {
		t.Fatal(err)
	}
	repo, err := OpenRepo(dir)
	if err != nil {
		t.Fatal(err)
	}
	anchor := filepath.Join(t.TempDir(), "root.json")
	if err := os.WriteFile(anchor, repo.Root(), 0o600); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := repo.Metadata(strings.TrimPrefix(r.URL.Path, "/tuf/"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(b)
	}))
	defer srv.Close()
	d := ota.DigestOf([]byte("index"))
	for i, role := range []string{"", "timestamp", "snapshot", "targets", "root", "director"} {
		if role != "" {
			if err := repo.Rotate(t.Context(), role, now); err != nil {
				t.Fatal(err)
			}
		}
		path := fmt.Sprintf("releases/meter/%d", i)
		if err := repo.AddTarget(t.Context(), path, 5, d, TargetCustom{Counter: uint64(i + 1)}, now); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		out, err := exec.CommandContext(ctx, python, filepath.Join("testdata", "read.py"), srv.URL+"/tuf/", anchor, path).CombinedOutput()
		cancel()
		if want := fmt.Sprintf("5 %s %d\n", d.Hex(), i+1); err != nil || string(out) != want {
			t.Fatalf("after rotating %q: got %q, want %q: %v", role, out, want, err)
		}
	}
}
