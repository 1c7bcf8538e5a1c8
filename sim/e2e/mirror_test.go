package e2e

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent"
)

// TestMirrors: a release names sources outside Skein; skein-fetch brings the
// file from there. A mirror that gives something else, or is gone, costs its
// bytes and no more: the control plane has the file too.
func TestMirrors(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds skein-fetch")
	}
	bin := filepath.Join(t.TempDir(), "skein-fetch")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".")
	cmd.Dir = filepath.Join("..", "..", "ota", "cmd", "skein-fetch")
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build skein-fetch: %v\n%s", err, out)
	}
	var file atomic.Pointer[[]byte]
	var asked atomic.Int64
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b := *file.Load()
		if r.URL.Path == "/wrong" {
			b = bytes.Repeat([]byte("x"), len(b))
		}
		if r.Method == http.MethodGet {
			asked.Add(1)
		}
		http.ServeContent(w, r, "model.onnx", time.Time{}, bytes.NewReader(b))
	}))
	defer web.Close()
	at := func(paths ...string) func([]byte) []string {
		return func(onnx []byte) (urls []string) {
			file.Store(&onnx)
			for _, p := range paths {
				urls = append(urls, web.URL+p)
			}
			return urls
		}
	}
	s := start(t)
	s.release("v1", version{bias: 1, pad: 1 << 20, mirrors: at("/model.onnx")})
	d := s.enroll()
	d.opts.Fetcher = agent.Fetcher{Binary: bin, Dir: filepath.Join(t.TempDir(), "scratch")}
	d.run()

	by := func() map[string]int64 {
		out := map[string]int64{}
		for _, src := range d.status().Sources {
			out[src.Name] = src.Bytes
		}
		return out
	}
	s.settle(d, "v1")
	d.serves()
	if got := by(); got["child"] < 1<<20 || got["https"] > 1<<19 {
		t.Errorf("bytes by way: %v, want the file from the mirror", got)
	}
	if asked.Load() == 0 {
		t.Error("the mirror was not asked")
	}
	s.release("v2", version{bias: 2, pad: 2 << 20, mirrors: at("/wrong")})
	s.settle(d, "v2")
	d.serves()
	if got := by(); got["https"] < 1000 {
		t.Errorf("bytes by way: %v, want the file from the control plane after the wrong mirror", got)
	}
	s.kept(d)
}
