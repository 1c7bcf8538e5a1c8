package release

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Workload is what serves the model of a release on one target.
type Workload struct {
	Target   string
	Document *manifest.Workload
	Raw      []byte
	// Of the image that the release holds.
	Image  ota.Digest
	Layers int
	Bytes  int64
}

// workloads gives each target its workload and, where the image lies here, the
// layers of the image for the target's platform.
func (c *Catalog) workloads(ctx context.Context, r Request, targets []ota.Target, out map[string][]manifest.Descriptor) (map[string][]manifest.Descriptor, error) {
	if len(r.Workload) == 0 && r.Image == "" {
		if len(r.WorkloadTargets) > 0 {
			return nil, fmt.Errorf("%w: targets are named for a workload, and neither a workload nor an image is given", ErrInvalid)
		}
		return out, nil
	}
	targets, err := servedBy(r.WorkloadTargets, targets)
	if err != nil {
		return nil, err
	}
	if out == nil {
		out = map[string][]manifest.Descriptor{}
	}
	w := &manifest.Workload{}
	if len(r.Workload) > 0 {
		if w, err = manifest.ParseWorkload(r.Workload); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	ref := r.Image
	switch {
	case ref != "" && w.Image != nil:
		return nil, fmt.Errorf("%w: the workload names an image already: leave it out there, or give none beside it", ErrInvalid)
	case ref == "" && w.Image != nil && w.Image.Reference == "":
		ref = string(w.Image.Digest)
	}
	var im *image
	if ref != "" {
		if im, err = c.findImage(ctx, r.Tenant, ref); err != nil {
			return nil, err
		}
	}
	for _, t := range targets {
		layers, err := c.workloadOf(ctx, *w, im, t)
		if err != nil {
			return nil, err
		}
		for _, l := range layers {
			if !l.OfImage() {
				if err := give(out, t, l); err != nil {
					return nil, err
				}
				continue
			}
			out[t.String()] = append(out[t.String()], l)
		}
	}
	return out, nil
}

// servedBy are the targets that names mean, all when there are none.
func servedBy(names []string, targets []ota.Target) ([]ota.Target, error) {
	if len(names) == 0 {
		return targets, nil
	}
	var out []ota.Target
	for _, text := range names {
		want, err := ota.ParseTarget(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		i := slices.IndexFunc(targets, func(t ota.Target) bool { return t.String() == want.String() })
		if i < 0 {
			return nil, fmt.Errorf("%w: %s, which is to get the workload, is no target of the release", ErrInvalid, want)
		}
		if !slices.ContainsFunc(out, func(t ota.Target) bool { return t.String() == want.String() }) {
			out = append(out, targets[i])
		}
	}
	return out, nil
}

// workloadOf makes the layers of one target.
func (c *Catalog) workloadOf(ctx context.Context, w manifest.Workload, im *image, t ota.Target) ([]manifest.Descriptor, error) {
	var layers []manifest.Descriptor
	if im != nil {
		d, err := im.forTarget(t)
		if err != nil {
			return nil, err
		}
		m, config, err := c.readImage(ctx, d.Digest)
		if err != nil {
			return nil, err
		}
		if err := im.check(m, config, w, t); err != nil {
			return nil, err
		}
		if err := c.imageWhole(m); err != nil {
			return nil, fmt.Errorf("image %s: %w", im.name, err)
		}
		w.Image = &manifest.Image{Digest: d.Digest}
		layers = manifest.ImageLayers(d, m)
	}
	raw, err := json.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("encode workload: %w", err)
	}
	if _, err := manifest.ParseWorkload(raw); err != nil {
		return nil, err
	}
	d, err := c.cfg.Blobs.PutBytes(raw)
	if err != nil {
		return nil, err
	}
	return append([]manifest.Descriptor{manifest.WorkloadLayer(d, int64(len(raw)))}, layers...), nil
}

// image is a container image of the registry: for one platform, or an index.
type image struct {
	name      string
	manifests []manifest.Descriptor // by platform; one without, for a lone manifest
}

// forTarget chooses the manifest of a target's platform.
func (im *image) forTarget(t ota.Target) (manifest.Descriptor, error) {
	var have []string
	for _, d := range im.manifests {
		if d.Platform == nil || d.Platform.OS == t.OS && d.Platform.Architecture == t.Arch {
			return d, nil
		}
		have = append(have, d.Platform.OS+"/"+d.Platform.Architecture)
	}
	return manifest.Descriptor{}, fmt.Errorf("%w: image %s is for %s, target %s needs %s/%s: build it for that too (docker buildx build --platform %s/%s), or name the --target to serve",
		ErrInvalid, im.name, cmp.Or(strings.Join(have, ", "), "no platform"), t, t.OS, t.Arch, t.OS, t.Arch)
}

// check refuses what could not run, or not as it should.
func (im *image) check(m *manifest.ImageManifest, config *manifest.ImageConfig, w manifest.Workload, t ota.Target) error {
	switch {
	case config.OS != t.OS || config.Architecture != t.Arch:
		return fmt.Errorf("%w: image %s is for %s/%s, target %s needs %s/%s: build it for that too (docker buildx build --platform %s/%s), or name the --target to serve",
			ErrInvalid, im.name, config.OS, config.Architecture, t, t.OS, t.Arch, t.OS, t.Arch)
	case len(config.RootFS.DiffIDs) != len(m.Layers):
		return fmt.Errorf("%w: image %s: its configuration lists %d layers, its manifest %d", ErrInvalid, im.name, len(config.RootFS.DiffIDs), len(m.Layers))
	case config.Root() && w.User == "":
		return fmt.Errorf(`%w: image %s runs as root: say which user it shall run as in workload.json ("user": "1000:1000"), or "user": "0" if it must be root`, ErrInvalid, im.name)
	case len(w.Args) == 0 && len(config.Config.Entrypoint) == 0 && len(config.Config.Cmd) == 0:
		return fmt.Errorf(`%w: image %s has no command: give "args" in workload.json`, ErrInvalid, im.name)
	}
	return nil
}

// findImage resolves REPOSITORY:TAG, REPOSITORY@DIGEST or a digest. A name
// without a slash is looked for below images/, where skein pushes to.
func (c *Catalog) findImage(ctx context.Context, tenant, text string) (*image, error) {
	im := &image{name: text}
	repo, ref := splitReference(text)
	d := ota.Digest(ref)
	media := ""
	if repo != "" {
		err := c.cfg.Store.View(ctx, func(tx *store.Tx) error {
			row, err := tx.RegistryManifest(ctx, tenant, repo, ref)
			d, media = ota.Digest(row.Digest), row.MediaType
			return err
		})
		if errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("%w: image %s is not here: push it first (skein image push %s FILE, or docker push to this server); skein image list shows what is here. "+
				`One that devices take from another registry stands in workload.json: "image": {"reference": …, "digest": …}`, ErrUnknown, text, strings.TrimPrefix(repo, "images/"))
		}
		if err != nil {
			return nil, err
		}
	}
	raw, err := c.cfg.Blobs.ReadAll(ctx, d, manifest.MaxManifest)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, fmt.Errorf("%w: image %s is not here: push it first (skein image push, or docker push to this server)", ErrUnknown, text)
	}
	if err != nil {
		return nil, err
	}
	if media == "" {
		media = mediaOf(raw)
	}
	if media != manifest.MediaIndex && media != manifest.MediaDockerList {
		im.manifests = []manifest.Descriptor{{MediaType: media, Digest: d, Size: int64(len(raw))}}
		return im, nil
	}
	ix, err := manifest.ParseImageIndex(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: image %s: %w", ErrInvalid, text, err)
	}
	for _, m := range ix.Manifests {
		// Attestations stand in image indexes as manifests of unknown platforms.
		if m.Platform != nil && m.Platform.OS != "unknown" && m.ArtifactType == "" {
			im.manifests = append(im.manifests, m)
		}
	}
	return im, nil
}

// splitReference takes a reference apart as Docker does. The repository of a
// lone digest is empty.
func splitReference(text string) (repo, ref string) {
	if _, err := ota.ParseDigest(text); err == nil {
		return "", text
	}
	repo, ref, byDigest := strings.Cut(text, "@")
	if !byDigest {
		ref = "latest"
		if at := strings.LastIndex(repo, ":"); at > strings.LastIndex(repo, "/") {
			repo, ref = repo[:at], repo[at+1:]
		}
	}
	if host, rest, ok := strings.Cut(repo, "/"); ok && (strings.ContainsAny(host, ".:") || host == "localhost") {
		repo = rest // of this server, by whatever name it is reached
	}
	if !strings.Contains(repo, "/") {
		repo = "images/" + repo
	}
	return repo, ref
}

func mediaOf(raw []byte) string {
	var d struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	// What cannot be read is refused by who reads it as a manifest.
	_ = json.Unmarshal(raw, &d)
	switch {
	case d.MediaType != "":
		return d.MediaType
	case d.Manifests != nil:
		return manifest.MediaIndex
	}
	return manifest.MediaManifest
}

// readImage reads the manifest and the configuration of an image.
func (c *Catalog) readImage(ctx context.Context, d ota.Digest) (*manifest.ImageManifest, *manifest.ImageConfig, error) {
	raw, err := c.cfg.Blobs.ReadAll(ctx, d, manifest.MaxManifest)
	if err != nil {
		return nil, nil, imageGone("manifest", d, err)
	}
	m, err := manifest.ParseImage(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: image %s: %w", ErrInvalid, d.Short(), err)
	}
	if raw, err = c.cfg.Blobs.ReadAll(ctx, m.Config.Digest, manifest.MaxManifest); err != nil {
		return nil, nil, imageGone("configuration", m.Config.Digest, err)
	}
	config, err := manifest.ParseImageConfig(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: image %s: %w", ErrInvalid, d.Short(), err)
	}
	return m, config, nil
}

func imageGone(what string, d ota.Digest, err error) error {
	if errors.Is(err, blob.ErrNotFound) {
		return fmt.Errorf("%w: %s %s of the image is not here: push the image again", ErrUnknown, what, d.Short())
	}
	return err
}

// imageWhole refuses an image of which something is missing.
func (c *Catalog) imageWhole(m *manifest.ImageManifest) error {
	for _, l := range m.Blobs() {
		size, err := c.cfg.Blobs.Size(l.Digest)
		if err != nil {
			return imageGone("layer", l.Digest, err)
		}
		if size != l.Size {
			return fmt.Errorf("%w: layer %s has %d bytes, the manifest says %d", ErrInvalid, l.Digest.Short(), size, l.Size)
		}
	}
	return nil
}

// readWorkload reads and checks what a manifest says of its server; nil when it
// says nothing.
func (c *Catalog) readWorkload(ctx context.Context, target string, m *manifest.Manifest) (*Workload, error) {
	d, ok, err := m.Workload()
	if err != nil || !ok {
		return nil, err
	}
	w := &Workload{Target: target}
	if w.Raw, err = c.cfg.Blobs.ReadAll(ctx, d.Digest, manifest.MaxWorkload); err != nil {
		return nil, err
	}
	if w.Document, err = manifest.ParseWorkload(w.Raw); err != nil {
		return nil, err
	}
	im, layers, ok, err := m.Image()
	if err != nil {
		return nil, err
	}
	var raw []byte
	if ok {
		if raw, err = c.cfg.Blobs.ReadAll(ctx, im.Digest, manifest.MaxManifest); err != nil {
			return nil, err
		}
		w.Image, w.Layers, w.Bytes = im.Digest, max(0, len(layers)-1), im.Size
		for _, l := range layers {
			w.Bytes += l.Size
		}
	}
	return w, m.CheckImage(w.Document, raw)
}

// Workloads lists what serves the model of a release, by target.
func (c *Catalog) Workloads(tenant string, d ota.Digest) []*Workload {
	e, err := c.entry(tenant, d)
	if err != nil {
		return nil
	}
	return e.workloads
}

// imagesOf lists the file system layers of images, each content once.
func imagesOf(machine map[string][]manifest.Descriptor) (out []manifest.Descriptor) {
	for _, ls := range machine {
		for _, l := range ls {
			if l.OfImage() && l.Unpacked() > 0 && !slices.ContainsFunc(out, func(o manifest.Descriptor) bool { return o.Digest == l.Digest }) {
				out = append(out, l)
			}
		}
	}
	slices.SortFunc(out, func(a, b manifest.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return out
}
