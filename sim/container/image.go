package container

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Program is the path of the program in its image.
const Program = "/server"

// Blob is one part of an image.
type Blob struct {
	manifest.Descriptor
	Data []byte
}

// Image is a container image of one program, for the platform of this machine:
// parts in the order in which a registry takes them, the manifest last.
type Image struct {
	Blobs    []Blob
	Manifest Blob
}

// errDynamic says what to do about a program that needs libraries.
var errDynamic = errors.New("the program is not static: build it with CGO_ENABLED=0")

// NewImage makes an image that starts the program file as a user that is not
// root. Its layers are plain archives, so that a new version of the program
// travels by chunks. note is a file in a layer of its own; it makes images
// differ.
func NewImage(file, note string) (Image, error) {
	program, err := os.ReadFile(file)
	if err != nil {
		return Image{}, fmt.Errorf("make image: %w", err)
	}
	if err := static(program); err != nil {
		return Image{}, fmt.Errorf("make image of %s: %w", file, err)
	}
	base, err := layer(entry{"etc/passwd", []byte("root:x:0:0:root:/:/\nserver:x:65532:65532:server:/:/\n"), 0o644}, entry{Program[1:], program, 0o755})
	if err != nil {
		return Image{}, fmt.Errorf("make image of %s: %w", file, err)
	}
	top, err := layer(entry{"etc/note", []byte(note + "\n"), 0o644})
	if err != nil {
		return Image{}, fmt.Errorf("make image of %s: %w", file, err)
	}
	im := Image{Blobs: []Blob{blobOf(manifest.MediaLayerTar, base), blobOf(manifest.MediaLayerTar, top)}}
	var c manifest.ImageConfig
	c.OS, c.Architecture = "linux", runtime.GOARCH
	c.Config.User, c.Config.Entrypoint = "65532:65532", []string{Program}
	m := manifest.ImageManifest{SchemaVersion: 2, MediaType: manifest.MediaManifest}
	for _, l := range im.Blobs {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.Digest) // not packed: the same
		m.Layers = append(m.Layers, l.Descriptor)
	}
	raw, err := encode(c)
	if err != nil {
		return Image{}, err
	}
	config := blobOf(manifest.MediaImageConfig, raw)
	im.Blobs = append(im.Blobs, config)
	m.Config = config.Descriptor
	if raw, err = json.Marshal(m); err != nil {
		return Image{}, fmt.Errorf("encode manifest: %w", err)
	}
	im.Manifest = blobOf(manifest.MediaManifest, raw)
	return im, nil
}

// encode writes a configuration as container run-times want it: rootfs has a type.
func encode(c manifest.ImageConfig) ([]byte, error) {
	var out map[string]any
	raw, err := json.Marshal(c)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	out["rootfs"] = map[string]any{"type": "layers", "diff_ids": c.RootFS.DiffIDs}
	return json.Marshal(out)
}

func blobOf(mediaType string, b []byte) Blob {
	return Blob{manifest.Descriptor{MediaType: mediaType, Digest: ota.DigestOf(b), Size: int64(len(b))}, b}
}

func static(program []byte) error {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return fmt.Errorf("it is no program: %w", err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errDynamic
		}
	}
	return nil
}

type entry struct {
	name string
	data []byte
	mode int64
}

func layer(entries ...entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: e.mode, Size: int64(len(e.data))}); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Workload is workload.json for a model served by skein-sim in such an image.
func Workload() manifest.Workload {
	return manifest.Workload{
		Server:    manifest.ServerV2,
		Args:      []string{"serve-model", "--addr", "{http}", "--dir", "{dir}", "--model-file", "{model-file}", "--model", "{model}", "--version", "{version}"},
		Resources: manifest.Resources{MemoryMiB: 256, Pids: 64},
	}
}
