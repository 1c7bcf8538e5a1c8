package release

import (
	"bytes"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
)

// publisher is a control plane whose bundles are taken, with what was learned
// of it: a newer root, and the newest metadata, so that no older one counts.
type publisher struct {
	name string
	root []byte
}

// folder is where the state of a publisher is kept.
func (p publisher) folder(tenant string) string {
	return "publishers/" + tenant + "/" + ota.DigestOf(p.root).Hex()[:32]
}

// stateFiles are those that trust.Client keeps.
var stateFiles = []string{"trust/root.json", "trust/set.json", "trust/time.json"}

// below is a part of the bundle folder as the Files of a trust.Client, which
// reads and writes whole files and does nothing else.
type below struct {
	slot.Files
	dir string
}

func (b below) ReadFile(name string) ([]byte, error) { return b.Files.ReadFile(b.dir + "/" + name) }
func (b below) WriteFile(name string, data []byte) error {
	return b.Files.WriteFile(b.dir+"/"+name, data)
}

var errNoBundles = errors.New("no folder for what is learned of publishers")

// publishers lists whom bundles are taken from, this control plane first.
func (c *Catalog) publishers(ctx context.Context, tenant string) ([]publisher, error) {
	own, err := c.cfg.Repository.Metadata("1.root.json")
	if err != nil {
		return nil, err
	}
	out := []publisher{{ownPublisher, own}}
	rows, err := c.Publishers(ctx, tenant)
	for _, r := range rows {
		out = append(out, publisher{r.Name, r.Root})
	}
	return out, err
}

// scratch is a client that knows what is known of a publisher and forgets what
// it learns.
func (c *Catalog) scratch(p publisher, tenant string) (*trust.Client, error) {
	mem := slot.NewMem()
	if c.cfg.Bundles != nil {
		for _, name := range stateFiles {
			b, err := c.cfg.Bundles.ReadFile(p.folder(tenant) + "/" + name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if err := mem.WriteFile(name, b); err != nil {
				return nil, err
			}
		}
	}
	return trust.NewClient(mem, p.root)
}

// trusted finds the publisher of the bundle and returns what its image
// repository says of the release, and the keys that attest for it.
func (v *verification) trusted(ctx context.Context) (trust.TargetInfo, []crypto.PublicKey, error) {
	all, err := v.c.publishers(ctx, v.tenant)
	if err != nil {
		return trust.TargetInfo{}, nil, err
	}
	for _, p := range all {
		client, err := v.c.scratch(p, v.tenant)
		if err != nil {
			return trust.TargetInfo{}, nil, fmt.Errorf("publisher %s: %w", p.name, err)
		}
		err = client.Refresh(ctx, v.b.Metadata, v.c.cfg.Now(), v.b.Info.Target)
		if err != nil && !v.from(ctx, p) {
			continue // somebody else's
		}
		if err != nil {
			return trust.TargetInfo{}, nil, fmt.Errorf("bundle of %s: %w", p.name, err)
		}
		v.publisher = p
		target, err := client.Target(v.b.Info.Target)
		if err != nil {
			return target, nil, fmt.Errorf("bundle of %s: %w", p.name, err)
		}
		keys, err := client.DirectorKeys()
		return target, keys, err
	}
	return trust.TargetInfo{}, nil, fmt.Errorf("%w: name its root with `skein release publisher add`", ErrForeign)
}

// from reports whether the root that was named for a publisher is in the
// bundle: then what is wrong with the rest is worth telling.
func (v *verification) from(ctx context.Context, p publisher) bool {
	pinned, err := trust.NewClient(slot.NewMem(), p.root)
	if err != nil {
		return false
	}
	raw, err := v.b.Metadata(ctx, fmt.Sprintf("%d.root.json", pinned.RootVersion()))
	return err == nil && bytes.Equal(raw, p.root)
}

// remember keeps what the bundle taught of its publisher.
func (v *verification) remember(ctx context.Context) error {
	if v.publisher.name == ownPublisher {
		return nil
	}
	if v.c.cfg.Bundles == nil {
		return errNoBundles
	}
	client, err := trust.NewClient(below{v.c.cfg.Bundles, v.publisher.folder(v.tenant)}, v.publisher.root)
	if err != nil {
		return err
	}
	return client.Refresh(ctx, v.b.Metadata, v.c.cfg.Now(), v.b.Info.Target)
}

// Publishers lists the publishers that people named.
func (c *Catalog) Publishers(ctx context.Context, tenant string) (out []store.Publisher, err error) {
	err = c.cfg.Store.View(ctx, func(tx *store.Tx) error {
		out, err = tx.Publishers(ctx, tenant)
		return err
	})
	return out, err
}

// Root returns the root of this control plane for others to trust.
func (c *Catalog) Root() ([]byte, error) { return c.cfg.Repository.Metadata("root.json") }

// AddPublisher trusts the bundles of another control plane from now on.
func (c *Catalog) AddPublisher(ctx context.Context, p store.Publisher) (store.Publisher, error) {
	if err := checkName("publisher", p.Name); err != nil {
		return p, err
	}
	if _, err := trust.NewClient(slot.NewMem(), p.Root); err != nil {
		return p, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	p.Added = c.cfg.Now()
	err := c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		store.Note(ctx, p.Name, nil, map[string]string{"root": string(ota.DigestOf(p.Root))})
		return tx.AddPublisher(ctx, p)
	})
	if store.IsUnique(err) {
		err = fmt.Errorf("publisher %s: %w: remove it first to trust another root under that name", p.Name, ErrExists)
	}
	return p, err
}

// RemovePublisher takes no bundles of a publisher any more; what was imported
// stays.
func (c *Catalog) RemovePublisher(ctx context.Context, tenant, name string) error {
	return c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		store.Note(ctx, name, "trusted", nil)
		return tx.RemovePublisher(ctx, tenant, name)
	})
}
