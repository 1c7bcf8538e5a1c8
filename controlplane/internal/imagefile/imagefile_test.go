package imagefile

import (
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/skein-fleet/skein/controlplane/internal/imagefile/imagetest"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

func write(t testing.TB, b []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func open(t testing.TB, name string) *Image {
	t.Helper()
	im, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	})
	return im
}

// check reads all blobs and holds the order in which they are pushed.
func check(t testing.TB, im *Image) {
	t.Helper()
	for _, b := range im.Blobs {
		raw := make([]byte, b.Size)
		if _, err := im.Content(b.Digest).ReadAt(raw, 0); err != nil || ota.DigestOf(raw) != b.Digest {
			t.Errorf("blob %s: %v", b.Digest.Short(), err)
		}
	}
	seen := map[ota.Digest]bool{}
	for _, d := range im.Documents {
		if d.MediaType == manifest.MediaIndex {
			ix, err := manifest.ParseImageIndex(d.Raw)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range ix.Manifests {
				if !seen[m.Digest] {
					t.Errorf("index %s comes before its manifest %s", d.Digest.Short(), m.Digest.Short())
				}
			}
		}
		seen[d.Digest] = true
	}
}

func TestLayout(t *testing.T) {
	for _, platforms := range [][]string{{"linux/amd64"}, {"linux/amd64", "linux/arm64"}} {
		src := imagetest.Image{Platforms: platforms, Content: "one"}
		files, top := src.Layout()
		dir := t.TempDir()
		for name, b := range files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		if _, err := z.Write(src.Archive()); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		for form, name := range map[string]string{"folder": dir, "tar": write(t, src.Archive()), "tar.gz": write(t, packed.Bytes())} {
			t.Run(form, func(t *testing.T) {
				im := open(t, name)
				check(t, im)
				if im.Top().Digest != top || len(im.Absent) != 0 {
					t.Errorf("top %s, absent %v, want %s", im.Top().Digest, im.Absent, top)
				}
				// A layer that both platforms share is one blob; each has a layer and
				// a configuration of its own.
				if want := 1 + 2*len(platforms); len(im.Blobs) != want {
					t.Errorf("%d blobs, want %d", len(im.Blobs), want)
				}
			})
		}
	}
}

// TestPartOfAnIndex: docker save of an image of which one platform was pulled.
func TestPartOfAnIndex(t *testing.T) {
	src := imagetest.Image{Platforms: []string{"linux/amd64", "linux/arm64"}, Fault: "platform-missing"}
	im := open(t, write(t, src.Archive()))
	check(t, im)
	if !slices.Equal(im.Absent, []string{"linux/amd64"}) {
		t.Errorf("absent %v", im.Absent)
	}
	ix, err := manifest.ParseImageIndex(im.Documents[len(im.Documents)-1].Raw)
	if err != nil || len(ix.Manifests) != 1 || ix.Manifests[0].Platform.Architecture != "arm64" {
		t.Errorf("index %+v, %v", ix, err)
	}
}

func TestDockerSave(t *testing.T) {
	im := open(t, write(t, imagetest.Image{Platforms: []string{"linux/amd64"}, User: "7", Content: "one"}.Saved()))
	check(t, im)
	m, err := manifest.ParseImage(im.Documents[0].Raw)
	if err != nil || len(m.Layers) != 2 || im.Name != "server:1" {
		t.Fatalf("manifest %+v, name %s, %v", m, im.Name, err)
	}
	again := open(t, write(t, imagetest.Image{Platforms: []string{"linux/amd64"}, User: "7", Content: "one"}.Saved()))
	if im.Top().Digest != again.Top().Digest {
		t.Error("the same archive is another image")
	}
}

func TestRefused(t *testing.T) {
	whole := imagetest.Image{Platforms: []string{"linux/amd64"}}
	missing, damaged := whole, whole
	missing.Fault, damaged.Fault = "layer-missing", "layer-damaged"
	for _, c := range []struct {
		name string
		raw  []byte
		want string
	}{
		{"empty", nil, "neither index.json"},
		{"text", []byte(strings.Repeat("no archive ", 100)), "no tar archive"},
		{"layer missing", missing.Archive(), "saved in part"},
		{"layer damaged", damaged.Archive(), "is damaged"},
		{"saved, layer missing", missing.Saved(), "layer 1/layer.tar"},
		{"saved, layer damaged", damaged.Saved(), "is damaged"},
		{"cut", whole.Archive()[:4096], ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			im, err := Open(write(t, c.raw))
			if err == nil {
				im.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrImage) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// FuzzOpen: whatever an archive holds, what comes out is what it says.
func FuzzOpen(f *testing.F) {
	f.Add(imagetest.Image{Platforms: []string{"linux/amd64"}}.Archive())
	f.Add(imagetest.Image{Platforms: []string{"linux/amd64"}}.Saved())
	f.Fuzz(func(t *testing.T, b []byte) {
		im, err := Open(write(t, b))
		if err != nil {
			return
		}
		check(t, im)
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	})
}
