package release

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
)

// Image is a container image in the registry.
type Image struct {
	Repository, Tag string
	Digest          ota.Digest
	Created         time.Time
	Platforms       []ImagePlatform
}

// ImagePlatform is an image for one platform.
type ImagePlatform struct {
	Platform string
	Manifest ota.Digest
	Bytes    int64
	Layers   int
	User     string
	Command  []string
	// Incomplete: a blob of it is not here.
	Incomplete bool
}

// Images lists the container images that have a tag.
func (c *Catalog) Images(ctx context.Context, tenant string) ([]Image, error) {
	var rows []store.RegistryTag
	err := c.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.RegistryTagged(ctx, tenant)
		return err
	})
	if err != nil {
		return nil, err
	}
	var out []Image
	for _, r := range rows {
		im, err := c.findImage(ctx, tenant, r.Manifest.Repo+"@"+r.Manifest.Digest)
		if err != nil {
			return nil, err
		}
		x := Image{Repository: r.Manifest.Repo, Tag: r.Tag, Digest: ota.Digest(r.Manifest.Digest), Created: r.Manifest.Created}
		if x.Platforms = c.platforms(ctx, im); len(x.Platforms) > 0 { // else it is another artifact
			out = append(out, x)
		}
	}
	return out, nil
}

// Image shows one image, and the releases that hold it.
func (c *Catalog) Image(ctx context.Context, tenant, text string) (x Image, releases []string, err error) {
	im, err := c.findImage(ctx, tenant, text)
	if err != nil {
		return x, nil, err
	}
	repo, ref := splitReference(text)
	x = Image{Repository: repo, Platforms: c.platforms(ctx, im)}
	if x.Digest = ota.Digest(ref); repo != "" {
		err := c.cfg.Store.View(ctx, func(tx *store.Tx) error {
			row, err := tx.RegistryManifest(ctx, tenant, repo, ref)
			x.Digest, x.Created = ota.Digest(row.Digest), row.Created
			if ref != row.Digest {
				x.Tag = ref
			}
			return err
		})
		if err != nil {
			return x, nil, err
		}
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	for k, e := range c.known {
		if k.tenant == tenant && slices.ContainsFunc(e.workloads, func(w *Workload) bool {
			return w.Image != "" && slices.ContainsFunc(x.Platforms, func(p ImagePlatform) bool { return p.Manifest == w.Image })
		}) {
			releases = append(releases, e.row.Name+"@"+e.row.Version)
		}
	}
	slices.SortFunc(releases, strings.Compare)
	return x, releases, nil
}

// platforms reads what an image is on each platform; what is no container image
// is left out.
func (c *Catalog) platforms(ctx context.Context, im *image) (out []ImagePlatform) {
	for _, d := range im.manifests {
		m, config, err := c.readImage(ctx, d.Digest)
		if errors.Is(err, ErrInvalid) {
			continue
		}
		p := ImagePlatform{Manifest: d.Digest, Incomplete: err != nil}
		if d.Platform != nil {
			p.Platform = d.Platform.OS + "/" + d.Platform.Architecture
		}
		if err == nil {
			p.Platform, p.Layers, p.User = config.OS+"/"+config.Architecture, len(m.Layers), config.Config.User
			p.Command = slices.Concat(config.Config.Entrypoint, config.Config.Cmd)
			p.Bytes = d.Size
			for _, b := range m.Blobs() {
				p.Bytes += b.Size
			}
			p.Incomplete = c.imageWhole(m) != nil
		}
		out = append(out, p)
	}
	return out
}
