package containerd

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skein-fleet/skein/agent/internal/containerd/containerdtest"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// left checks that a try that failed left nothing.
func (l *lab) left(c *Launcher, blobs, snapshots int) {
	l.Helper()
	if n := l.blobCount(c); n != blobs {
		l.Errorf("%d blobs are in the store, want %d", n, blobs)
	}
	if n := l.snapshots(c); n != snapshots {
		l.Errorf("%d snapshots are there, want %d", n, snapshots)
	}
	l.empty(c)
}

func TestBadImages(t *testing.T) {
	l := newLab(t)
	c := l.ready()
	blobs, snaps := l.blobCount(c), l.snapshots(c)
	good := containerdtest.ServerLayer(t)
	cut := containerdtest.NewLayer(t, containerdtest.File{Name: "f", Mode: 0o644, Data: bytes.Repeat([]byte("abc"), 1000)})
	cut.Raw = cut.Raw[:len(cut.Raw)/2]
	other := containerdtest.NewLayer(t, containerdtest.File{Name: "g", Mode: 0o644, Data: []byte("x")})
	other.DiffID = good.DiffID
	junk := containerdtest.Layer{Raw: []byte("this is no archive"), DiffID: good.DiffID, Type: ocispec.MediaTypeImageLayerGzip}
	strange := good
	strange.Type = "application/vnd.skein.unknown"
	config := configOf("/server")
	foreign := map[string]string{"amd64": "arm64", "arm64": "amd64"}[goarch]
	for name, img := range map[string]manifest.Image{
		"layer cut off":      containerdtest.Image(t, l.blobs, config, goarch, good, cut),
		"another layer":      containerdtest.Image(t, l.blobs, config, goarch, good, other),
		"no archive":         containerdtest.Image(t, l.blobs, config, goarch, good, junk),
		"unknown layer type": containerdtest.Image(t, l.blobs, config, goarch, strange),
		"other processor":    containerdtest.Image(t, l.blobs, config, foreign, good),
		"no layers":          containerdtest.Image(t, l.blobs, config, goarch),
		"no manifest":        {Digest: ota.Digest(l.blobs.Put([]byte("{}")).Digest)},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.EnsureImage(t.Context(), img, false, l.blobs.Open)
			if !errors.Is(err, runtime.ErrIncompatible) {
				t.Errorf("got %v, want ErrIncompatible", err)
			}
			if _, err := c.Launch(t.Context(), l.specOf("bad", img, "wait")); err == nil {
				t.Error("it starts")
			}
		})
	}
	l.left(c, blobs, snaps)

	// A blob that is not what its name says may be whole at another try.
	liar := containerdtest.Blobs{}
	img := containerdtest.ServerImage(t, liar, containerdtest.NewLayer(t, containerdtest.File{Name: "h", Mode: 0o644, Data: []byte("h")}))
	for d, raw := range liar {
		if _, known := l.blobs[d]; !known && len(raw) < 400 && raw[0] == 0x1f {
			liar[d] = append(bytes.Clone(raw[:len(raw)-1]), raw[len(raw)-1]^1)
		}
	}
	if err := c.EnsureImage(t.Context(), img, false, liar.Open); err == nil || errors.Is(err, runtime.ErrIncompatible) {
		t.Errorf("wrong bytes: %v", err)
	}
	l.left(c, blobs, snaps)
	l.stop(l.start(c, l.spec("a", "wait")))
}

// TestAnew damages what was unpacked and stored, as a power cut does.
func TestAnew(t *testing.T) {
	l := newLab(t)
	c := l.ready()
	find := func(name string) []string {
		var out []string
		err := filepath.WalkDir(l.Root, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.Name() == name && d.Type().IsRegular() {
				out = append(out, p)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	servers := find("server")
	if len(servers) != 1 {
		t.Fatalf("unpacked at %v", servers)
	}
	if err := os.Truncate(servers[0], 0); err != nil {
		t.Fatal(err)
	}
	for d, raw := range l.blobs {
		if len(raw) > 1<<20 {
			for _, p := range find(strings.TrimPrefix(string(d), "sha256:")) {
				if err := os.WriteFile(p, bytes.Repeat([]byte{0}, len(raw)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := c.EnsureImage(t.Context(), l.img, false, nil); err != nil {
		t.Errorf("what is trusted needs no blobs: %v", err)
	}
	if e := l.ended(l.start(c, l.spec("a", "wait"))); e.Code == 0 {
		t.Error("an empty program runs")
	}
	if err := c.EnsureImage(t.Context(), l.img, true, l.blobs.Open); err != nil {
		t.Fatal(err)
	}
	l.stop(l.start(c, l.spec("a", "wait")))
	l.empty(c)
}

func TestKeepImages(t *testing.T) {
	l := newLab(t)
	c := l.ready()
	second := containerdtest.ServerImage(t, l.blobs, containerdtest.NewLayer(t, containerdtest.File{Name: "second", Mode: 0o644, Data: []byte("2")}))
	if err := c.EnsureImage(t.Context(), second, false, l.blobs.Open); err != nil {
		t.Fatal(err)
	}
	if n := l.snapshots(c); n != 2 {
		t.Errorf("%d snapshots for two images with one layer in common", n)
	}
	i := l.start(c, l.specOf("b", second, "wait"))
	if err := c.KeepImages(t.Context(), []ota.Digest{l.img.Digest}); err != nil {
		t.Fatal(err)
	}
	if _, exit, err := c.Exec(t.Context(), "b", []string{"/server", "exit", "0"}); err != nil || exit.Code != 0 {
		t.Errorf("a container whose image was removed: %v %v", exit, err)
	}
	l.stop(i)
	if err := c.KeepImages(t.Context(), []ota.Digest{l.img.Digest}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Launch(t.Context(), l.specOf("b", second, "wait")); err == nil {
		t.Error("an image that was removed starts")
	}
	l.stop(l.start(c, l.spec("a", "wait")))
	l.empty(c)
}

func TestRegistry(t *testing.T) {
	l := newLab(t)
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path)
		at := strings.LastIndex(r.URL.Path, "/")
		raw, ok := l.blobs[ota.Digest(r.URL.Path[at+1:])]
		if !strings.HasPrefix(r.URL.Path, "/v2/lab/server/") || !ok {
			http.NotFound(w, r)
			return
		}
		if strings.Contains(r.URL.Path, "/manifests/") {
			var m ocispec.Manifest
			if err := json.Unmarshal(raw, &m); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", m.MediaType)
			w.Header().Set("Docker-Content-Digest", r.URL.Path[at+1:])
		}
		http.ServeContent(w, r, "", l.startTime(), bytes.NewReader(raw))
	}))
	t.Cleanup(srv.Close)
	c := l.launcher()
	img := manifest.Image{Digest: l.img.Digest, Reference: strings.TrimPrefix(srv.URL, "http://") + "/lab/server"}
	if err := c.EnsureImage(t.Context(), img, false, nil); err != nil {
		t.Fatalf("%v (asked %v)", err, asked)
	}
	l.stop(l.start(c, l.spec("a", "wait")))
	missing := manifest.Image{Digest: ota.Digest("sha256:" + strings.Repeat("0", 64)), Reference: img.Reference}
	if err := c.EnsureImage(t.Context(), missing, false, nil); err == nil || !strings.Contains(err.Error(), img.Reference) {
		t.Errorf("an image that the registry does not have: %v", err)
	}
	l.empty(c)
}

// TestDiskFull unpacks onto a small file system: the layer is small, what it
// unpacks to is not.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	root := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", root).CombinedOutput(); err != nil {
		t.Skipf("no file system can be mounted here: %s", out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", root).CombinedOutput(); err != nil {
			t.Errorf("unmount: %s", out)
		}
	})
	l := labOn(t, containerdtest.StartOn(t, root))
	c := l.ready()
	blobs, snaps := l.blobCount(c), l.snapshots(c)
	big := containerdtest.ServerImage(t, l.blobs, containerdtest.NewLayer(t, containerdtest.File{Name: "big", Mode: 0o644, Data: make([]byte, 64<<20)}))
	running := l.start(c, l.spec("a", "wait"))
	for range 2 {
		err := c.EnsureImage(t.Context(), big, false, l.blobs.Open)
		if err == nil || errors.Is(err, runtime.ErrIncompatible) || !strings.Contains(err.Error(), "disk is full") {
			t.Errorf("unpack: %v", err)
		}
	}
	if _, exit, err := c.Exec(t.Context(), "a", []string{"/server", "exit", "0"}); err != nil || exit.Code != 0 {
		t.Errorf("what ran before: %v %v", exit, err)
	}
	l.stop(running)
	l.left(c, blobs, snaps)
	l.stop(l.start(c, l.spec("a", "wait")))

	// One that cannot fit is refused before it fills the disk.
	noise := make([]byte, 24<<20)
	state := uint32(1)
	for i := range noise {
		state = state*1664525 + 1013904223
		noise[i] = byte(state >> 24)
	}
	large := containerdtest.ServerImage(t, l.blobs, containerdtest.NewLayer(t, containerdtest.File{Name: "noise", Mode: 0o644, Data: noise}))
	if err := c.EnsureImage(t.Context(), large, false, l.blobs.Open); err == nil || !strings.Contains(err.Error(), "not enough room") && !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("an image that cannot fit: %v", err)
	}
	l.left(c, blobs, snaps)
}

func TestBadLayerWords(t *testing.T) {
	if err := badLayer(errors.New("write x: no space left on device: unexpected EOF")); errors.Is(err, runtime.ErrIncompatible) {
		t.Errorf("a full disk is no damage: %v", err)
	}
	if !slices.Contains(badLayers, "wrong diff id") || !errors.Is(badLayer(errors.New("wrong diff id calculated")), runtime.ErrIncompatible) {
		t.Error("a wrong diff id is damage")
	}
}
