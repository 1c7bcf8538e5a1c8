package manifest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/ota"
)

// Media types of container images, as OCI and Docker name them.
const (
	MediaImageConfig    = "application/vnd.oci.image.config.v1+json"
	MediaDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	mediaDockerConfig   = "application/vnd.docker.container.image.v1+json"
	MediaLayerTar       = "application/vnd.oci.image.layer.v1.tar"
	MediaLayerGzip      = "application/vnd.oci.image.layer.v1.tar+gzip"
	mediaLayerZstd      = "application/vnd.oci.image.layer.v1.tar+zstd"
	mediaDockerTar      = "application/vnd.docker.image.rootfs.diff.tar"
	mediaDockerGzip     = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// MaxImageLayers bounds the file system layers of one image; container run-times
// mount fewer.
const MaxImageLayers = 256

// ErrImage is returned for a container image that cannot be part of a release.
var ErrImage = fmt.Errorf("%w: image", ErrMalformed)

// ImageManifest is the manifest of one container image for one platform.
type ImageManifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        Descriptor   `json:"config"`
	Layers        []Descriptor `json:"layers"`
}

// ImageIndex lists the manifests of an image by platform.
type ImageIndex struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []Descriptor `json:"manifests"`
}

// ImageConfig is what is read of an image's configuration.
type ImageConfig struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Config       struct {
		User       string   `json:"User"`
		Entrypoint []string `json:"Entrypoint"`
		Cmd        []string `json:"Cmd"`
	} `json:"config"`
	RootFS struct {
		DiffIDs []ota.Digest `json:"diff_ids"`
	} `json:"rootfs"`
}

// ParseImage reads an image manifest and refuses what a device could not unpack.
func ParseImage(raw []byte) (*ImageManifest, error) {
	var m ImageManifest
	if err := decode(raw, MaxManifest, &m); err != nil {
		return nil, fmt.Errorf("read image manifest: %w", err)
	}
	bad := func(format string, args ...any) (*ImageManifest, error) {
		return nil, fmt.Errorf("read image manifest: %w: %s", ErrImage, fmt.Sprintf(format, args...))
	}
	if m.SchemaVersion != 2 || m.MediaType != "" && m.MediaType != MediaManifest && m.MediaType != MediaDockerManifest {
		return bad("schema version %d, media type %q: want an OCI or Docker image manifest", m.SchemaVersion, m.MediaType)
	}
	if m.Config.MediaType != MediaImageConfig && m.Config.MediaType != mediaDockerConfig {
		return bad("configuration of type %q: it is no container image", m.Config.MediaType)
	}
	if len(m.Layers) == 0 || len(m.Layers) > MaxImageLayers {
		return bad("%d layers, want 1 to %d", len(m.Layers), MaxImageLayers)
	}
	for _, d := range append([]Descriptor{m.Config}, m.Layers...) {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("read image manifest: %w", err)
		}
	}
	for _, l := range m.Layers {
		if !slices.Contains([]string{MediaLayerTar, MediaLayerGzip, mediaLayerZstd, mediaDockerTar, mediaDockerGzip}, l.MediaType) {
			return bad("layer %s of type %q: want a tar archive, plain, gzip or zstd", l.Digest.Short(), l.MediaType)
		}
	}
	return &m, nil
}

// ParseImageIndex reads an image index.
func ParseImageIndex(raw []byte) (*ImageIndex, error) {
	var ix ImageIndex
	if err := decode(raw, MaxIndex, &ix); err != nil {
		return nil, fmt.Errorf("read image index: %w", err)
	}
	if ix.SchemaVersion != 2 || len(ix.Manifests) == 0 || len(ix.Manifests) > MaxEntries {
		return nil, fmt.Errorf("read image index: %w: schema version %d, %d manifests", ErrImage, ix.SchemaVersion, len(ix.Manifests))
	}
	for _, d := range ix.Manifests {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("read image index: %w", err)
		}
	}
	return &ix, nil
}

// ParseImageConfig reads an image configuration.
func ParseImageConfig(raw []byte) (*ImageConfig, error) {
	var c ImageConfig
	if err := decode(raw, MaxManifest, &c); err != nil {
		return nil, fmt.Errorf("read image configuration: %w", err)
	}
	if c.OS == "" || c.Architecture == "" {
		return nil, fmt.Errorf("read image configuration: %w: it names no platform", ErrImage)
	}
	return &c, nil
}

// Root reports whether the image runs as root when nobody says otherwise.
func (c *ImageConfig) Root() bool {
	user, _, _ := strings.Cut(c.Config.User, ":")
	return user == "" || user == "root" || strings.Trim(user, "0") == ""
}

// Blobs lists what an image consists of beside its manifest, each content once.
func (m *ImageManifest) Blobs() []Descriptor {
	var out []Descriptor
	for _, d := range append([]Descriptor{m.Config}, m.Layers...) {
		if !slices.ContainsFunc(out, func(o Descriptor) bool { return o.Digest == d.Digest }) {
			out = append(out, Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
		}
	}
	return out
}

// WorkloadLayer makes the layer of a workload.
func WorkloadLayer(d ota.Digest, size int64) Descriptor {
	return named(Descriptor{Digest: d, Size: size}, MediaWorkload, "workload.json")
}

// ImageLayers makes the layers of an image whose manifest is d.
func ImageLayers(d Descriptor, m *ImageManifest) []Descriptor {
	out := append([]Descriptor{{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}}, m.Blobs()...)
	for i := range out {
		out[i].Annotations = map[string]string{AnnImage: string(d.Digest)}
	}
	return out
}

// OfImage reports whether a layer belongs to a container image: it is unpacked
// by the runtime and not laid out for the model server.
func (d Descriptor) OfImage() bool { _, ok := d.Annotations[AnnImage]; return ok }

// Unpacked estimates how many bytes a layer takes once it is unpacked: what is
// compressed grows to two and a half times its size.
func (d Descriptor) Unpacked() int64 {
	switch d.MediaType {
	case MediaLayerGzip, mediaLayerZstd, mediaDockerGzip:
		return d.Size/2*5 + d.Size%2*3
	case MediaLayerTar, mediaDockerTar:
		return d.Size
	}
	return 0
}

// Workload returns the layer that says what serves the model, if there is one.
func (m *Manifest) Workload() (d Descriptor, ok bool, err error) {
	if d, ok, err = m.only(MediaWorkload); ok && err == nil && (d.Size > MaxWorkload || d.OfImage()) {
		err = fmt.Errorf("%w: layer of %d bytes, at most %d, and of no image", ErrWorkload, d.Size, MaxWorkload)
	}
	return d, ok, err
}

// Image returns the manifest and the other layers of the workload's image. ok is
// false when the release holds none.
func (m *Manifest) Image() (image Descriptor, layers []Descriptor, ok bool, err error) {
	bad := func(format string, args ...any) (Descriptor, []Descriptor, bool, error) {
		return Descriptor{}, nil, true, fmt.Errorf("%w: %s", ErrImage, fmt.Sprintf(format, args...))
	}
	var of ota.Digest
	for _, l := range m.Layers {
		if !l.OfImage() {
			continue
		}
		switch is := ota.Digest(l.Annotations[AnnImage]); {
		case of != "" && of != is:
			return bad("layers of two images, %.19s and %.19s", of, is)
		case l.Title() != "" || l.MediaType == MediaWeights || l.MediaType == MediaGolden || l.Machine():
			return bad("layer %s of type %s is no part of an image", l.Digest.Short(), l.MediaType)
		default:
			of = is
		}
		if l.Digest == of {
			if image.Digest != "" || l.Size > MaxManifest || l.MediaType != MediaManifest && l.MediaType != MediaDockerManifest {
				return bad("%s is no manifest of an image, or stands here twice", l.Digest.Short())
			}
			image = l
			continue
		}
		if slices.ContainsFunc(layers, func(o Descriptor) bool { return o.Digest == l.Digest }) {
			return bad("layer %s stands here twice", l.Digest.Short())
		}
		layers = append(layers, l)
	}
	switch _, serves, err := m.Workload(); {
	case of == "":
		return Descriptor{}, nil, false, nil
	case err != nil:
		return Descriptor{}, nil, true, err
	case image.Digest == "":
		return bad("the manifest %.19s of the image is none of the layers", of)
	case !serves:
		return bad("there is an image and no workload that runs it")
	}
	return image, layers, true, nil
}

// CheckImage holds a workload and the manifest of its image, nil when the
// release has none, to the layers of the release: the image is the one that the
// workload names, and all of it is here and nothing else.
func (m *Manifest) CheckImage(w *Workload, rawImage []byte) error {
	image, layers, ok, err := m.Image()
	switch {
	case err != nil:
		return err
	case !ok && w.Image != nil && w.Image.Reference == "":
		return fmt.Errorf("%w: the workload names image %s: it is not among the layers, and no reference says where it is", ErrImage, w.Image.Digest.Short())
	case !ok:
		return nil
	case w.Image == nil:
		return fmt.Errorf("%w: the release has image %s and its workload runs none", ErrImage, image.Digest.Short())
	case w.Image.Digest != image.Digest:
		return fmt.Errorf("%w: the workload names %s, the release has %s", ErrImage, w.Image.Digest.Short(), image.Digest.Short())
	case ota.DigestOf(rawImage) != image.Digest || int64(len(rawImage)) != image.Size:
		return fmt.Errorf("%w: its manifest is not %s", ErrImage, image.Digest.Short())
	}
	im, err := ParseImage(rawImage)
	if err != nil {
		return err
	}
	want := im.Blobs()
	if len(want) != len(layers) {
		return fmt.Errorf("%w: %s consists of %d blobs, %d are in the release", ErrImage, image.Digest.Short(), len(want), len(layers))
	}
	for _, b := range want {
		if !slices.ContainsFunc(layers, func(l Descriptor) bool {
			return l.Digest == b.Digest && l.Size == b.Size && l.MediaType == b.MediaType
		}) {
			return fmt.Errorf("%w: layer %s of %s is not in the release", ErrImage, b.Digest.Short(), image.Digest.Short())
		}
	}
	return nil
}
