package containerdtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Blobs are blobs by digest.
type Blobs map[ota.Digest][]byte

// Open gives one.
func (b Blobs) Open(_ context.Context, d ota.Digest) (io.ReadCloser, int64, error) {
	raw, ok := b[d]
	if !ok {
		return nil, 0, fmt.Errorf("no blob %s", d)
	}
	return io.NopCloser(bytes.NewReader(raw)), int64(len(raw)), nil
}

// Put adds one.
func (b Blobs) Put(raw []byte) ocispec.Descriptor {
	d := digest.FromBytes(raw)
	b[ota.Digest(d)] = raw
	return ocispec.Descriptor{Digest: d, Size: int64(len(raw))}
}

// File is a file of a layer.
type File struct {
	Name string
	Mode int64
	Data []byte
}

// Layer is a layer, compressed.
type Layer struct {
	Raw    []byte
	DiffID digest.Digest // of what it unpacks to
	Type   string
}

// NewLayer makes a layer of files.
func NewLayer(t testing.TB, files ...File) Layer {
	t.Helper()
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Data)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(plain.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return Layer{Raw: packed.Bytes(), DiffID: digest.FromBytes(plain.Bytes()), Type: ocispec.MediaTypeImageLayerGzip}
}

// Image puts an image of layers into blobs.
func Image(t testing.TB, b Blobs, config ocispec.ImageConfig, arch string, layers ...Layer) manifest.Image {
	t.Helper()
	cfg := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}, Config: config}
	cfg.RootFS.Type = "layers"
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.DiffID)
		d := b.Put(l.Raw)
		d.MediaType = l.Type
		m.Layers = append(m.Layers, d)
	}
	m.Config = b.Put(encode(t, cfg))
	m.Config.MediaType = ocispec.MediaTypeImageConfig
	return manifest.Image{Digest: ota.Digest(b.Put(encode(t, m)).Digest)}
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

var server = struct {
	once sync.Once
	raw  []byte
	err  error
}{}

// ServerLayer is a layer with the test server at /server, built once.
func ServerLayer(t testing.TB) Layer {
	t.Helper()
	server.once.Do(func() {
		dir, err := os.MkdirTemp("", "skein-testserver")
		if err != nil {
			server.err = err
			return
		}
		defer os.RemoveAll(dir)
		out := filepath.Join(dir, "server")
		cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", out, "github.com/skein-fleet/skein/agent/internal/containerd/testserver")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if msg, err := cmd.CombinedOutput(); err != nil {
			server.err = fmt.Errorf("build the test server: %w: %s", err, msg)
			return
		}
		server.raw, server.err = os.ReadFile(out)
	})
	if server.err != nil {
		t.Fatal(server.err)
	}
	return NewLayer(t,
		File{"server", 0o755, server.raw},
		File{"etc/passwd", 0o644, []byte("root:x:0:0::/:/\nserver:x:65532:65532::/:/\n")},
		File{"etc/group", 0o644, []byte("root:x:0:\nserver:x:65532:\nvideo:x:44:server\n")},
	)
}

// ServerImage is an image of the test server for this processor.
func ServerImage(t testing.TB, b Blobs, more ...Layer) manifest.Image {
	t.Helper()
	return Image(t, b, ocispec.ImageConfig{User: "server", Entrypoint: []string{"/server"}, Cmd: []string{"wait"}}, runtime.GOARCH,
		append([]Layer{ServerLayer(t)}, more...)...)
}
