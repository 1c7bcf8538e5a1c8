package child

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
)

// program builds the real skein-fetch.
func program(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds skein-fetch")
	}
	bin := filepath.Join(t.TempDir(), "skein-fetch")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".")
	cmd.Dir = filepath.Join("..", "..", "..", "ota", "cmd", "skein-fetch")
	cmd.Env = append(os.Environ(), "GOWORK=off", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build skein-fetch: %v\n%s", err, out)
	}
	return bin
}

func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 13 >> 4)
	}
	return b
}

func layer(b []byte, urls ...string) manifest.Descriptor {
	return manifest.Descriptor{MediaType: manifest.MediaWeights, Digest: ota.DigestOf(b), Size: int64(len(b)), URLs: urls}
}

func TestMirrors(t *testing.T) {
	bin := program(t)
	want := content(4 << 20)
	var bodies, cutAt atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/down":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/other":
			_, _ = w.Write(content(4<<20 - 1))
		case "/cut":
			w = &cut{ResponseWriter: w, left: &cutAt}
			fallthrough
		default:
			http.ServeContent(&count{w, &bodies}, r, "m", time.Time{}, bytes.NewReader(want))
		}
	}))
	defer server.Close()
	setup := func(t *testing.T) (*Source, *fetch.Fetcher) {
		s := New(Options{Binary: bin, Dir: filepath.Join(t.TempDir(), "scratch")})
		return s, &fetch.Fetcher{Store: blob.NewStore(slot.NewMem()), Source: s, BaseWait: time.Millisecond, MaxWait: time.Millisecond, Attempts: 3}
	}
	scratch := func(t *testing.T, s *Source) []os.DirEntry {
		left, err := os.ReadDir(s.o.Dir)
		if err != nil {
			t.Fatal(err)
		}
		return left
	}

	t.Run("brings a blob", func(t *testing.T) {
		s, f := setup(t)
		l := layer(want, server.URL+"/m")
		s.Offer([]manifest.Descriptor{l})
		if err := f.Fetch(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if left := scratch(t, s); len(left) != 0 {
			t.Errorf("left in the scratch folder: %v", left)
		}
	})
	t.Run("goes on where it broke", func(t *testing.T) {
		s, f := setup(t)
		l := layer(want, server.URL+"/cut")
		s.Offer([]manifest.Descriptor{l})
		cutAt.Store(1 << 20)
		bodies.Store(0)
		if err := f.Fetch(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if n := bodies.Load(); n > int64(len(want))+256<<10 {
			t.Errorf("%d bytes came for a blob of %d", n, len(want))
		}
	})
	t.Run("the next mirror after one that is down", func(t *testing.T) {
		s, f := setup(t)
		l := layer(want, server.URL+"/down", server.URL+"/m")
		s.Offer([]manifest.Descriptor{l})
		if err := f.Fetch(t.Context(), l); err != nil {
			t.Fatal(err)
		}
		if l.URLs[0] != server.URL+"/down" {
			t.Errorf("the manifest's own list became %v", l.URLs)
		}
	})
	t.Run("the next mirror after a wrong one", func(t *testing.T) {
		s, f := setup(t)
		l := layer(want, server.URL+"/other", server.URL+"/m")
		s.Offer([]manifest.Descriptor{l})
		err := f.Fetch(t.Context(), l)
		if !errors.Is(err, fetch.ErrNotFound) {
			t.Fatalf("the wrong mirror: %v", err)
		}
		if err := f.Fetch(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("no offer, no ranges", func(t *testing.T) {
		s, _ := setup(t)
		if _, err := s.Open(t.Context(), ota.DigestOf(want), 0, int64(len(want))); !errors.Is(err, fetch.ErrNotFound) {
			t.Errorf("not offered: %v", err)
		}
		s.Offer([]manifest.Descriptor{layer(want, server.URL+"/m")})
		if _, err := s.Open(t.Context(), ota.DigestOf(want), 0, 100); !errors.Is(err, fetch.ErrNotFound) {
			t.Errorf("a range: %v", err)
		}
	})
	t.Run("ends with the transfer", func(t *testing.T) {
		s, _ := setup(t)
		l := layer(want, server.URL+"/m")
		s.Offer([]manifest.Descriptor{l})
		for range 3 { // the slot is free again each time
			r, err := s.Open(t.Context(), l.Digest, 0, l.Size)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("a link in place of the file", func(t *testing.T) {
		s, _ := setup(t)
		l := layer(want, server.URL+"/m")
		s.Offer([]manifest.Descriptor{l})
		dir := filepath.Join(s.o.Dir, l.Digest.Hex())
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/etc/passwd", filepath.Join(dir, "blob")); err != nil {
			t.Fatal(err)
		}
		r, err := s.Open(t.Context(), l.Digest, 0, l.Size)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if n, err := r.Read(make([]byte, 100)); n > 0 || err == nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
	})
}

func TestOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root: the child cannot be another user")
	}
	bin := program(t)
	want := content(1000)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(want) }))
	defer server.Close()
	base, err := os.MkdirTemp("/tmp", "skein-fetch-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	if err := errors.Join(os.Chmod(base, 0o755), os.Rename(bin, filepath.Join(base, "skein-fetch"))); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	s := New(Options{Binary: filepath.Join(base, "skein-fetch"), Dir: filepath.Join(base, "scratch"), UID: nobody, GID: nobody})
	l := layer(want, server.URL)
	s.Offer([]manifest.Descriptor{l})
	f := &fetch.Fetcher{Store: blob.NewStore(slot.NewMem()), Source: s, Attempts: 1}
	if err := f.Fetch(t.Context(), l); err != nil {
		t.Fatal(err)
	}
}

// count counts the bytes of bodies.
type count struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c *count) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// cut breaks the connection once after left bytes.
type cut struct {
	http.ResponseWriter
	left *atomic.Int64
}

func (c *cut) Write(p []byte) (int, error) {
	if left := c.left.Load(); left > 0 {
		if left <= int64(len(p)) {
			c.left.Store(0)
			panic(http.ErrAbortHandler)
		}
		c.left.Add(-int64(len(p)))
	}
	return c.ResponseWriter.Write(p)
}
