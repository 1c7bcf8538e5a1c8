package trust

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
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
	read := func(path, want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, python, filepath.Join("testdata", "read.py"), srv.URL+"/tuf/", anchor, path).CombinedOutput()
		if err != nil || string(out) != want {
			t.Fatalf("%s: got %q, want %q: %v", path, out, want, err)
		}
	}
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
		read(path, fmt.Sprintf("5 %s %d\n", d.Hex(), i+1))
	}
	// What an auto role lists is found through its delegation.
	key, err := repo.AutoKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	policy := signedPolicy()
	if err := repo.Delegate(t.Context(), *policy, []NamedKey{{Key: key}}, now); err != nil {
		t.Fatal(err)
	}
	index, manifests := autoBytes(t)
	if err := repo.List(t.Context(), ListRequest{Role: AutoRole("meter"), Index: index, Manifests: manifests}, now); err != nil {
		t.Fatal(err)
	}
	read(autoPath, fmt.Sprintf("%d %s 7\n", len(index), ota.DigestOf(index).Hex()))
}

// autoBytes is autoRelease as it is stored.
func autoBytes(t *testing.T) (index []byte, manifests [][]byte) {
	t.Helper()
	ix, m := autoRelease()
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	ix.Manifests = []manifest.Descriptor{{MediaType: manifest.MediaManifest, Digest: ota.DigestOf(raw), Size: int64(len(raw)), Annotations: m.Annotations}}
	if index, err = json.Marshal(ix); err != nil {
		t.Fatal(err)
	}
	return index, [][]byte{raw}
}

// TestPythonTUFWrites: a repository that python-tuf wrote, with delegations of
// every kind, is believed here, and what it lists is found.
func TestPythonTUFWrites(t *testing.T) {
	python := os.Getenv("SKEIN_PYTHON")
	if python == "" {
		t.Skip("SKEIN_PYTHON names no Python with the package tuf")
	}
	dir := t.TempDir()
	at := filepath.Join(dir, metaDir)
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stderr strings.Builder
	cmd := exec.CommandContext(ctx, python, filepath.Join("testdata", "write.py"), at)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	root, err := os.ReadFile(filepath.Join(at, "1.root.json"))
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	want := map[string]TargetInfo{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			t.Fatalf("line %q", line)
		}
		role, err := url.PathUnescape(f[1])
		if err != nil {
			t.Fatal(err)
		}
		counter, err := strconv.ParseUint(f[2], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, f[0])
		want[f[0]] = TargetInfo{Path: f[0], Length: int64(len(f[0])), Digest: ota.DigestOf([]byte(f[0])), Custom: TargetCustom{Counter: counter}, Role: strings.TrimPrefix(role, "-")}
	}
	if len(paths) < 8 {
		t.Fatalf("only %d targets: %s", len(paths), out)
	}
	mem := slot.NewMem()
	c, err := NewClient(mem, root)
	if err != nil {
		t.Fatal(err)
	}
	files := func(_ context.Context, name string) ([]byte, error) {
		return os.ReadFile(filepath.Join(dir, metaDir, name))
	}
	if err := c.Refresh(t.Context(), files, time.Now(), paths...); err != nil {
		t.Fatal(err)
	}
	again, err := NewClient(mem, root)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]*Client{"same process": c, "restarted": again} {
		for _, path := range paths {
			got, err := c.Target(path)
			if d := cmp.Diff(want[path], got); d != "" || err != nil {
				t.Errorf("%s: %s: %v %s", name, path, err, d)
			}
		}
		if c.RootVersion() != 3 {
			t.Errorf("%s: root %d", name, c.RootVersion())
		}
	}
}
