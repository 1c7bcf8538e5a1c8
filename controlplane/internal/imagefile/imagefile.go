// Package imagefile reads container images from files: OCI layouts, as a folder
// or tar archive, and the archives of `docker save`, old ones too. It owns the
// order in which a registry takes what an image consists of.
//
// Invariants: what it gives was hashed and is what its descriptor says; nothing
// outside the layout is read, whatever names it holds; an image of which a part
// is missing is refused before anything is sent. Only the skein command imports
// it.
package imagefile

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// ErrImage is returned for a file that is no image, or not a whole one.
var ErrImage = errors.New("not a container image")

// AnnRefName names an image within a layout.
const AnnRefName = "org.opencontainers.image.ref.name"

const platformUnknown = "unknown"

// Document is a manifest or index to push.
type Document struct {
	manifest.Descriptor
	Raw []byte
}

// Image is an image in a file.
type Image struct {
	// Blobs go first, then Documents in their order; the last is what a tag names.
	Blobs     []manifest.Descriptor
	Documents []Document
	// Name is how the file calls it, such as meter:1, or empty.
	Name string
	// Absent are platforms that the index lists and the file does not hold.
	Absent []string

	files   *files
	content map[ota.Digest]*io.SectionReader
}

// Open reads an image. Close it after use.
func Open(name string) (*Image, error) {
	a, err := openFiles(name)
	if err != nil {
		return nil, err
	}
	im := &Image{files: a, content: map[ota.Digest]*io.SectionReader{}}
	if _, err = a.section("index.json"); err == nil {
		err = im.layout()
	} else if _, err = a.section("manifest.json"); err == nil {
		err = im.docker()
	} else {
		err = fmt.Errorf("%w: neither index.json of an OCI layout nor manifest.json of docker save is in it", ErrImage)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", name, err), a.Close())
	}
	return im, nil
}

// Close lets go of the file.
func (im *Image) Close() error { return im.files.Close() }

// Top is what a tag names.
func (im *Image) Top() manifest.Descriptor { return im.Documents[len(im.Documents)-1].Descriptor }

// Content returns the bytes of one of Blobs.
func (im *Image) Content(d ota.Digest) *io.SectionReader {
	s := im.content[d]
	return io.NewSectionReader(s, 0, s.Size())
}

// layout reads an OCI layout.
func (im *Image) layout() error {
	raw, err := im.files.small("index.json", manifest.MaxIndex)
	if err != nil {
		return err
	}
	ix, err := manifest.ParseImageIndex(raw)
	if err != nil {
		return err
	}
	if len(ix.Manifests) == 1 {
		top := ix.Manifests[0]
		im.Name = top.Annotations[AnnRefName]
		if full := top.Annotations["io.containerd.image.name"]; full != "" {
			im.Name = full
		}
		if top.MediaType == manifest.MediaIndex || top.MediaType == manifest.MediaDockerList {
			return im.index(top)
		}
		return im.manifest(top)
	}
	for _, d := range ix.Manifests {
		if d.Platform == nil {
			return fmt.Errorf("%w: the layout holds %d images: save one at a time, or an index by platform", ErrImage, len(ix.Manifests))
		}
	}
	return im.several(ix.Manifests, manifest.MediaIndex, raw)
}

// index reads an index below the layout.
func (im *Image) index(d manifest.Descriptor) error {
	raw, err := im.blob(d)
	if err != nil {
		return err
	}
	ix, err := manifest.ParseImageIndex(raw)
	if err != nil {
		return err
	}
	return im.several(ix.Manifests, d.MediaType, raw)
}

// several takes the manifests of an index that the file holds. When it lacks
// some, as docker save does with platforms that were not pulled, the index is
// made anew of those.
func (im *Image) several(list []manifest.Descriptor, mediaType string, raw []byte) error {
	var have []manifest.Descriptor
	here := map[string]bool{}
	for _, d := range list {
		if _, err := im.files.section(blobName(d.Digest)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := im.manifest(d); err != nil {
			return err
		}
		have = append(have, d)
		here[platform(d)] = true
	}
	for _, d := range list {
		if p := platform(d); p != "" && !here[p] && !slices.Contains(im.Absent, p) {
			im.Absent = append(im.Absent, p)
		}
	}
	if !slices.ContainsFunc(have, func(d manifest.Descriptor) bool { return d.Platform == nil || d.Platform.OS != platformUnknown }) {
		return fmt.Errorf("%w: its index lists %d images and none is in the file", ErrImage, len(list))
	}
	if len(have) == len(list) {
		// index.json of a layout often lacks its own media type, which a
		// registry wants.
		var doc struct {
			MediaType string `json:"mediaType"`
		}
		if json.Unmarshal(raw, &doc) == nil && doc.MediaType == mediaType {
			im.document(mediaType, raw)
			return nil
		}
	}
	raw, err := json.Marshal(manifest.ImageIndex{SchemaVersion: 2, MediaType: mediaType, Manifests: have})
	if err != nil {
		return fmt.Errorf("encode index: %w", err)
	}
	im.document(mediaType, raw)
	return nil
}

// platform names the platform of an image, or nothing for what is none.
func platform(d manifest.Descriptor) string {
	if d.Platform == nil || d.Platform.OS == platformUnknown {
		return ""
	}
	return d.Platform.OS + "/" + d.Platform.Architecture
}

// manifest reads an image manifest, or what stands beside one in an index, and
// checks that all of it is here.
func (im *Image) manifest(d manifest.Descriptor) error {
	raw, err := im.blob(d)
	if err != nil {
		return err
	}
	var m manifest.ImageManifest
	if d.Platform != nil && d.Platform.OS == platformUnknown {
		err = json.Unmarshal(raw, &m) // an attestation
	} else {
		var p *manifest.ImageManifest
		if p, err = manifest.ParseImage(raw); err == nil {
			m = *p
		}
	}
	if err != nil {
		return err
	}
	for _, b := range m.Blobs() {
		if err := im.take(b, blobName(b.Digest)); err != nil {
			return err
		}
	}
	im.document(d.MediaType, raw)
	return nil
}

func (im *Image) document(mediaType string, raw []byte) {
	d := Document{manifest.Descriptor{MediaType: mediaType, Digest: ota.DigestOf(raw), Size: int64(len(raw))}, raw}
	if !slices.ContainsFunc(im.Documents, func(o Document) bool { return o.Digest == d.Digest }) {
		im.Documents = append(im.Documents, d)
	}
}

func blobName(d ota.Digest) string { return "blobs/sha256/" + d.Hex() }

// blob reads a small blob of a layout.
func (im *Image) blob(d manifest.Descriptor) ([]byte, error) {
	if err := d.Validate(); err != nil {
		return nil, err
	}
	raw, err := im.files.small(blobName(d.Digest), manifest.MaxIndex)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s %s is not in the file", ErrImage, d.MediaType, d.Digest.Short())
	}
	if err == nil && (ota.DigestOf(raw) != d.Digest || int64(len(raw)) != d.Size) {
		err = fmt.Errorf("%w: %s of the file has other content than its name says", ErrImage, d.Digest.Short())
	}
	return raw, err
}

// take notes a blob after hashing it.
func (im *Image) take(d manifest.Descriptor, name string) error {
	if im.content[d.Digest] != nil {
		return nil
	}
	if err := d.Validate(); err != nil {
		return err
	}
	s, err := im.files.section(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: layer %s is not in the file: it was saved in part", ErrImage, d.Digest.Short())
	}
	if err != nil {
		return err
	}
	got, err := hash(s)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if got != d.Digest || s.Size() != d.Size {
		return fmt.Errorf("%w: %s is damaged: %d bytes, %s; want %d bytes, %s", ErrImage, name, s.Size(), got.Short(), d.Size, d.Digest.Short())
	}
	im.content[d.Digest] = s
	im.Blobs = append(im.Blobs, d)
	return nil
}

func hash(s *io.SectionReader) (ota.Digest, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(s, 0, s.Size())); err != nil {
		return "", err
	}
	return ota.DigestFromSum([sha256.Size]byte(h.Sum(nil))), nil
}

// saved is an entry of docker save's manifest.json.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// docker reads an archive of docker save from before it held an OCI layout: a
// manifest is made for it.
func (im *Image) docker() error {
	raw, err := im.files.small("manifest.json", manifest.MaxManifest)
	if err != nil {
		return err
	}
	var list []saved
	if err := json.Unmarshal(raw, &list); err != nil {
		return fmt.Errorf("%w: manifest.json: %w", ErrImage, err)
	}
	if len(list) != 1 || len(list[0].Layers) == 0 {
		return fmt.Errorf("%w: the archive holds %d images: save one at a time", ErrImage, len(list))
	}
	x := list[0]
	if len(x.RepoTags) > 0 {
		im.Name = x.RepoTags[0]
	}
	if raw, err = im.files.small(x.Config, manifest.MaxManifest); err != nil {
		return fmt.Errorf("read the image's configuration: %w", err)
	}
	config, err := manifest.ParseImageConfig(raw)
	if err != nil {
		return err
	}
	if len(config.RootFS.DiffIDs) != len(x.Layers) {
		return fmt.Errorf("%w: its configuration lists %d layers, manifest.json %d", ErrImage, len(config.RootFS.DiffIDs), len(x.Layers))
	}
	m := manifest.ImageManifest{SchemaVersion: 2, MediaType: manifest.MediaManifest,
		Config: manifest.Descriptor{MediaType: manifest.MediaImageConfig, Digest: ota.DigestOf(raw), Size: int64(len(raw))}}
	if err := im.take(m.Config, x.Config); err != nil {
		return err
	}
	for i, name := range x.Layers {
		l, err := im.dockerLayer(name, config.RootFS.DiffIDs[i])
		if err != nil {
			return err
		}
		m.Layers = append(m.Layers, l)
	}
	if raw, err = json.Marshal(m); err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	if _, err := manifest.ParseImage(raw); err != nil {
		return err
	}
	im.document(manifest.MediaManifest, raw)
	return nil
}

// dockerLayer describes a layer of docker save, which is a plain archive whose
// digest the configuration knows.
func (im *Image) dockerLayer(name string, diffID ota.Digest) (manifest.Descriptor, error) {
	s, err := im.files.section(name)
	if err != nil {
		return manifest.Descriptor{}, fmt.Errorf("%w: layer %s: %w", ErrImage, name, err)
	}
	d, err := hash(s)
	if err != nil {
		return manifest.Descriptor{}, fmt.Errorf("read %s: %w", name, err)
	}
	l := manifest.Descriptor{MediaType: manifest.MediaLayerTar, Digest: d, Size: s.Size()}
	magic := make([]byte, 2)
	if _, err := s.ReadAt(magic, 0); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		l.MediaType = manifest.MediaLayerGzip
	} else if d != diffID {
		return l, fmt.Errorf("%w: layer %s is damaged: it is %s, the configuration says %s", ErrImage, name, d.Short(), diffID.Short())
	}
	return l, im.take(l, name)
}
