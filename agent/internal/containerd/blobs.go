package containerd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	goruntime "runtime"
	"slices"
	"strconv"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

const (
	maxDocument = 4 << 20 // manifest, index or configuration
	maxLayers   = 128
)

// source gives the bytes of a blob. Nothing it gives is believed: containerd
// hashes what is written.
type source interface {
	fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, int64, error)
}

// ownBlobs are those that the agent fetched and verified.
type ownBlobs struct{ open Open }

func (o ownBlobs) fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, int64, error) {
	return o.open(ctx, ota.Digest(d.Digest))
}

// registry is a repository of one.
type registry struct {
	fetcher interface {
		Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)
	}
	root ocispec.Descriptor
}

func (r registry) fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, int64, error) {
	if d.Digest == r.root.Digest {
		d = r.root
	}
	rc, err := r.fetcher.Fetch(ctx, d)
	return rc, d.Size, err
}

// source is where img comes from. Registries on loopback are spoken to without TLS.
func (l *Launcher) source(ctx context.Context, img manifest.Image, open Open) (source, error) {
	if img.Reference == "" {
		if open == nil {
			return nil, errors.New("the image names no registry and there are no blobs of it")
		}
		return ownBlobs{open}, nil
	}
	hosts := []docker.RegistryOpt{docker.WithPlainHTTP(docker.MatchLocalhost)}
	if l.opts.Registry != nil {
		hosts = append(hosts, docker.WithClient(l.opts.Registry))
	}
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: docker.ConfigureDefaultRegistries(hosts...)})
	name, root, err := resolver.Resolve(ctx, img.Reference+"@"+string(img.Digest))
	if err != nil {
		return nil, fmt.Errorf("ask the registry of %s: %w", img.Reference, err)
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("ask the registry of %s: %w", img.Reference, err)
	}
	return registry{fetcher, root}, nil
}

// puller brings the content of one image under a lease.
type puller struct {
	l      *Launcher
	c      *client.Client
	lease  string
	src    source
	verify bool // hash what is there already
}

// pulled is an image whose content is there.
type pulled struct {
	target  ocispec.Descriptor // its manifest, never an index
	diffIDs []digest.Digest
	bytes   int64 // of its layers, as they are stored
}

// pull brings manifest, configuration and layers.
func (p *puller) pull(ctx context.Context, d ota.Digest) (*pulled, error) {
	raw, err := p.document(ctx, ocispec.Descriptor{Digest: digest.Digest(d)})
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	target := ocispec.Descriptor{Digest: digest.Digest(d), Size: int64(len(raw))}
	var m struct {
		specs.Versioned
		MediaType string               `json:"mediaType"`
		Config    ocispec.Descriptor   `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", runtime.ErrIncompatible, err)
	}
	if len(m.Manifests) > 0 {
		one, err := ours(m.Manifests)
		if err != nil {
			return nil, err
		}
		if one.Digest == target.Digest {
			return nil, fmt.Errorf("%w: an index that names itself", runtime.ErrIncompatible)
		}
		return p.pullOne(ctx, one)
	}
	target.MediaType = m.MediaType
	return p.children(ctx, raw, target, m.Config, m.Layers)
}

// ours picks the manifest for this processor.
func ours(list []ocispec.Descriptor) (ocispec.Descriptor, error) {
	var have []string
	for _, d := range list {
		if d.Platform == nil {
			continue
		}
		if d.Platform.OS == "linux" && d.Platform.Architecture == goruntime.GOARCH {
			return d, nil
		}
		have = append(have, d.Platform.OS+"/"+d.Platform.Architecture)
	}
	return ocispec.Descriptor{}, fmt.Errorf("%w: the image is for %v, this device is linux/%s", runtime.ErrIncompatible, have, goruntime.GOARCH)
}

func (p *puller) pullOne(ctx context.Context, d ocispec.Descriptor) (*pulled, error) {
	raw, err := p.document(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", runtime.ErrIncompatible, err)
	}
	return p.children(ctx, raw, ocispec.Descriptor{MediaType: m.MediaType, Digest: d.Digest, Size: int64(len(raw))}, m.Config, m.Layers)
}

func (p *puller) children(ctx context.Context, raw []byte, target, config ocispec.Descriptor, layers []ocispec.Descriptor) (*pulled, error) {
	if target.MediaType == "" {
		target.MediaType = ocispec.MediaTypeImageManifest
	}
	if !images.IsManifestType(target.MediaType) || config.Digest == "" || len(layers) == 0 || len(layers) > maxLayers {
		return nil, fmt.Errorf("%w: not the manifest of a container image (%s, %d layers)", runtime.ErrIncompatible, target.MediaType, len(layers))
	}
	for _, d := range append([]ocispec.Descriptor{config}, layers...) {
		if err := d.Digest.Validate(); err != nil || d.Size < 0 {
			return nil, fmt.Errorf("%w: manifest: descriptor %q of %d bytes", runtime.ErrIncompatible, d.Digest, d.Size)
		}
	}
	for _, d := range layers {
		if !images.IsLayerType(d.MediaType) {
			return nil, fmt.Errorf("%w: a layer of type %s cannot be unpacked here", runtime.ErrIncompatible, d.MediaType)
		}
	}
	rawConfig, err := p.document(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	var cfg ocispec.Image
	if err := json.Unmarshal(rawConfig, &cfg); err != nil {
		return nil, fmt.Errorf("%w: configuration: %w", runtime.ErrIncompatible, err)
	}
	if cfg.OS != "linux" || cfg.Architecture != goruntime.GOARCH {
		return nil, fmt.Errorf("%w: the image is for %s/%s, this device is linux/%s", runtime.ErrIncompatible, cfg.OS, cfg.Architecture, goruntime.GOARCH)
	}
	if len(cfg.RootFS.DiffIDs) != len(layers) {
		return nil, fmt.Errorf("%w: %d layers, and the configuration names %d", runtime.ErrIncompatible, len(layers), len(cfg.RootFS.DiffIDs))
	}
	out := &pulled{target: target, diffIDs: cfg.RootFS.DiffIDs}
	refs := map[string]string{"containerd.io/gc.ref.content.config": config.Digest.String()}
	for i, d := range layers {
		if err := p.blob(ctx, d, nil); err != nil {
			return nil, fmt.Errorf("layer %d of %d: %w", i+1, len(layers), err)
		}
		refs["containerd.io/gc.ref.content.l."+strconv.Itoa(i)] = d.Digest.String()
		out.bytes += d.Size
	}
	if err := p.bytes(ctx, config, rawConfig, nil); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if err := p.bytes(ctx, target, raw, refs); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return out, nil
}

// document reads a small blob whole and checks that it is what its digest says.
func (p *puller) document(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	rc, _, err := p.src.fetch(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.Digest, err)
	}
	defer rc.Close()
	raw, err := io.ReadAll(io.LimitReader(rc, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.Digest, err)
	}
	if len(raw) > maxDocument {
		return nil, fmt.Errorf("%w: %s is longer than %d bytes", runtime.ErrIncompatible, d.Digest, maxDocument)
	}
	if got := digest.FromBytes(raw); got != d.Digest {
		return nil, fmt.Errorf("%s was asked for and %s came", d.Digest, got)
	}
	return raw, nil
}

func (p *puller) bytes(ctx context.Context, d ocispec.Descriptor, raw []byte, labels map[string]string) error {
	d.Size = int64(len(raw))
	return p.write(ctx, d, labels, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil })
}

// blob brings one layer.
func (p *puller) blob(ctx context.Context, d ocispec.Descriptor, labels map[string]string) error {
	return p.write(ctx, d, labels, func() (io.ReadCloser, error) {
		rc, _, err := p.src.fetch(ctx, d)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", d.Digest, err)
		}
		return rc, nil
	})
}

// write puts a blob into the content store, unless it is there.
func (p *puller) write(ctx context.Context, d ocispec.Descriptor, labels map[string]string, open func() (io.ReadCloser, error)) error {
	cs := p.c.ContentStore()
	have, err := p.have(ctx, cs, d)
	if err != nil {
		return err
	}
	if !have {
		ref := "skein-" + d.Digest.String()
		rc, err := open()
		if err != nil {
			return err
		}
		defer rc.Close()
		if err := content.WriteBlob(ctx, cs, ref, rc, d, content.WithLabels(labels)); err != nil && !errdefs.IsAlreadyExists(err) {
			clean, cancel := lasting(ctx)
			defer cancel()
			return errors.Join(fmt.Errorf("store %s: %w", d.Digest, badLayer(err)), notFoundIsFine(cs.Abort(clean, ref)))
		}
	}
	if err := p.c.LeasesService().AddResource(ctx, leases.Lease{ID: p.lease}, leases.Resource{ID: d.Digest.String(), Type: "content"}); err != nil {
		return fmt.Errorf("keep %s: %w", d.Digest, err)
	}
	if len(labels) == 0 {
		return nil
	}
	paths := make([]string, 0, len(labels))
	for k := range labels {
		paths = append(paths, "labels."+k)
	}
	slices.Sort(paths)
	if _, err := cs.Update(ctx, content.Info{Digest: d.Digest, Labels: labels}, paths...); err != nil {
		return fmt.Errorf("note what %s refers to: %w", d.Digest, err)
	}
	return nil
}

// have says whether a blob is there and, if that was asked for, whole.
func (p *puller) have(ctx context.Context, cs content.Store, d ocispec.Descriptor) (bool, error) {
	info, err := cs.Info(ctx, d.Digest)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for %s: %w", d.Digest, err)
	}
	if info.Size == d.Size {
		if !p.verify {
			return true, nil
		}
		ok, err := whole(ctx, cs, d)
		if err != nil || ok {
			return ok, err
		}
	}
	if err := cs.Delete(ctx, d.Digest); err != nil && !errdefs.IsNotFound(err) {
		return false, fmt.Errorf("remove the damaged %s: %w", d.Digest, err)
	}
	// Until it is collected, a writer is told that it is there.
	return false, p.l.collect(ctx, p.c)
}

func whole(ctx context.Context, cs content.Store, d ocispec.Descriptor) (bool, error) {
	ra, err := cs.ReaderAt(ctx, d)
	if err != nil {
		return false, nil // what cannot be read is brought anew
	}
	defer ra.Close()
	v := d.Digest.Verifier()
	if _, err := io.Copy(v, io.NewSectionReader(ra, 0, ra.Size())); err != nil {
		return false, fmt.Errorf("read %s: %w", d.Digest, err)
	}
	return v.Verified(), nil
}

// put writes the image record; what it refers to stays.
func (p *puller) put(ctx context.Context, name string, got *pulled, labels map[string]string) error {
	img := images.Image{Name: name, Target: got.target, Labels: labels}
	_, err := p.c.ImageService().Create(ctx, img)
	if errdefs.IsAlreadyExists(err) {
		_, err = p.c.ImageService().Update(ctx, img, "target", "labels")
	}
	if err != nil {
		return fmt.Errorf("record image: %w", err)
	}
	return nil
}

// dropSnapshots removes what was unpacked of an image, from the top down to
// what others stand on: that was trusted before.
func (l *Launcher) dropSnapshots(ctx context.Context, c *client.Client, diffIDs []digest.Digest) error {
	sn := c.SnapshotService(l.opts.Snapshotter)
	for n := len(diffIDs); n > 0; n-- {
		err := sn.Remove(ctx, identity.ChainID(slices.Clone(diffIDs[:n])).String())
		switch {
		case errdefs.IsNotFound(err):
		case errdefs.IsFailedPrecondition(err):
			return nil
		case err != nil:
			return fmt.Errorf("remove what was unpacked before: %w", err)
		}
	}
	return nil
}
