// Package imagetest makes container images for tests: OCI layouts and archives
// of docker save, whole or with a fault. Only tests import it.
package imagetest

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Image says what an image is made of.
type Image struct {
	Platforms []string // such as linux/arm64; one makes no index
	User      string
	Command   []string
	Content   string // of a file in its layer, which makes images differ
	// Fault is one of "", layer-missing, layer-damaged, platform-missing.
	Fault string
}

// Files are the entries of an archive by name.
type Files map[string][]byte

func (f Files) put(b []byte) manifest.Descriptor {
	d := ota.DigestOf(b)
	f["blobs/sha256/"+d.Hex()] = b
	return manifest.Descriptor{Digest: d, Size: int64(len(b))}
}

func archive(files Files) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		must(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(files[name]))}))
		_, err := w.Write(files[name])
		must(err)
	}
	must(w.Close())
	return b.Bytes()
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	must(err)
	return b
}

func (im Image) config(platform string, diffs ...ota.Digest) []byte {
	os, arch, _ := strings.Cut(platform, "/")
	var c manifest.ImageConfig
	c.OS, c.Architecture = os, arch
	c.Config.User, c.Config.Entrypoint = im.User, im.Command
	c.RootFS.DiffIDs = diffs
	return encode(c)
}

func (im Image) layers(platform string) [][]byte {
	return [][]byte{archive(Files{"base": bytes.Repeat([]byte("base "), 100)}), archive(Files{"server": []byte(im.Content + " for " + platform)})}
}

// Layout makes the files of an OCI layout, and what a tag of it names.
func (im Image) Layout() (Files, ota.Digest) {
	out := Files{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	var list []manifest.Descriptor
	for i, p := range im.Platforms {
		var layers []manifest.Descriptor
		var diffs []ota.Digest
		for _, b := range im.layers(p) {
			d := out.put(b)
			d.MediaType = manifest.MediaLayerTar
			layers, diffs = append(layers, d), append(diffs, d.Digest)
		}
		config := out.put(im.config(p, diffs...))
		config.MediaType = manifest.MediaImageConfig
		m := out.put(encode(manifest.ImageManifest{SchemaVersion: 2, MediaType: manifest.MediaManifest, Config: config, Layers: layers}))
		os, arch, _ := strings.Cut(p, "/")
		m.MediaType, m.Platform = manifest.MediaManifest, &manifest.Platform{OS: os, Architecture: arch}
		list = append(list, m)
		last := "blobs/sha256/" + layers[len(layers)-1].Digest.Hex()
		switch im.Fault {
		case "layer-missing":
			delete(out, last)
		case "layer-damaged":
			out[last] = bytes.Replace(out[last], []byte("for"), []byte("fox"), 1)
		case "platform-missing":
			if i == 0 {
				delete(out, "blobs/sha256/"+m.Digest.Hex())
			}
		}
	}
	top := list[0]
	if len(list) > 1 {
		top = out.put(encode(manifest.ImageIndex{SchemaVersion: 2, MediaType: manifest.MediaIndex, Manifests: list}))
		top.MediaType = manifest.MediaIndex
	}
	top.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	out["index.json"] = encode(map[string]any{"schemaVersion": 2, "manifests": []manifest.Descriptor{top}})
	return out, top.Digest
}

// Archive makes a tar archive of the layout.
func (im Image) Archive() []byte {
	files, _ := im.Layout()
	return archive(files)
}

// Saved makes an archive as docker save wrote it before it held an OCI layout.
func (im Image) Saved() []byte {
	platform := cmp.Or(slices.Concat(im.Platforms, []string{""})...)
	out := Files{}
	var names []string
	var diffs []ota.Digest
	for i, b := range im.layers(platform) {
		name := fmt.Sprintf("%d/layer.tar", i)
		diffs = append(diffs, ota.DigestOf(b))
		names = append(names, name)
		out[name] = b
		if im.Fault == "layer-damaged" {
			out[name] = bytes.Replace(b, []byte("for"), []byte("fox"), 1)
		}
	}
	if im.Fault == "layer-missing" {
		delete(out, names[1])
	}
	config := im.config(platform, diffs...)
	name := ota.DigestOf(config).Hex() + ".json"
	out[name] = config
	out["manifest.json"] = encode([]any{map[string]any{"Config": name, "RepoTags": []string{"server:1"}, "Layers": names}})
	return archive(out)
}
