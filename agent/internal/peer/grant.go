package peer

import (
	"context"
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// ErrGrant is returned for a grant that does not give what is asked for.
var ErrGrant = errors.New("the grant does not cover this")

// checkGrant returns the release that a grant is for.
func checkGrant(text string, keys []crypto.PublicKey, tenant, device string, now time.Time) (ota.Digest, error) {
	if text == "" {
		return "", fmt.Errorf("%w: there is none in the header %s", ErrGrant, GrantHeader)
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return "", fmt.Errorf("%w: it is no base64url", ErrGrant)
	}
	payload, err := trust.Verify(keys, wire.AADGrant, raw)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrGrant, err)
	}
	var g wire.Grant
	if err := wire.UnmarshalCanonical(payload, &g); err != nil {
		return "", fmt.Errorf("%w: %w", ErrGrant, err)
	}
	switch {
	case g.Device != device:
		return "", fmt.Errorf("%w: it is for another device", ErrGrant)
	case g.Tenant != tenant:
		return "", fmt.Errorf("%w: it is for another tenant", ErrGrant)
	case now.Unix() >= g.ExpiresAt:
		return "", fmt.Errorf("%w: it expired at %s", ErrGrant, time.Unix(g.ExpiresAt, 0).UTC().Format(time.RFC3339))
	case len(g.Release) != sha256.Size:
		return "", fmt.Errorf("%w: it names no release", ErrGrant)
	}
	return ota.DigestFromSum([sha256.Size]byte(g.Release)), nil
}

const (
	maxReleases = 32      // whose blobs are known
	maxBlobs    = 1 << 16 // of one release
)

// closures knows the blobs of releases, with their sizes.
type closures struct {
	cache *Cache
	// size returns how long the index of a release is, 0 for unknown.
	size func(ota.Digest) int64

	mu    sync.Mutex // guards what follows
	known map[ota.Digest]*closure
	order []ota.Digest // of known, oldest first
}

// closure is the blobs of one release.
type closure struct {
	done  chan struct{}
	err   error // after done, as blobs
	blobs map[ota.Digest]int64
}

// of returns the blobs of a release. They are read once; an error is forgotten.
func (c *closures) of(ctx context.Context, release ota.Digest) (map[ota.Digest]int64, error) {
	c.mu.Lock()
	cl := c.known[release]
	if cl == nil {
		cl = &closure{done: make(chan struct{})}
		ok := c.cache.spawn(func(run context.Context) {
			cl.blobs, cl.err = c.read(run, release)
			if cl.err != nil {
				c.forget(release, cl)
			}
			close(cl.done)
		})
		if !ok {
			c.mu.Unlock()
			return nil, errStopped
		}
		if len(c.order) >= maxReleases {
			delete(c.known, c.order[0])
			c.order = c.order[1:]
		}
		c.known[release] = cl
		c.order = append(c.order, release)
	}
	c.mu.Unlock()
	select {
	case <-cl.done:
		return cl.blobs, cl.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (c *closures) forget(release ota.Digest, cl *closure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known[release] != cl {
		return
	}
	delete(c.known, release)
	for i, d := range c.order {
		if d == release {
			c.order = append(c.order[:i:i], c.order[i+1:]...)
			return
		}
	}
}

// read parses index and manifests, and brings those that are not here.
func (c *closures) read(ctx context.Context, release ota.Digest) (map[ota.Digest]int64, error) {
	raw, err := c.cache.ReadAll(ctx, manifest.Descriptor{MediaType: manifest.MediaIndex, Digest: release, Size: c.size(release)}, manifest.MaxIndex)
	if err != nil {
		return nil, fmt.Errorf("read release %s: %w", release.Short(), err)
	}
	ix, err := manifest.ParseIndex(raw)
	if err != nil {
		return nil, fmt.Errorf("release %s: %w", release.Short(), err)
	}
	out := map[ota.Digest]int64{release: int64(len(raw))}
	for _, d := range ix.Manifests {
		raw, err := c.cache.ReadAll(ctx, d, manifest.MaxManifest)
		if err != nil {
			return nil, fmt.Errorf("read manifest %s: %w", d.Digest.Short(), err)
		}
		m, err := manifest.ParseManifest(raw)
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", d.Digest.Short(), err)
		}
		out[d.Digest], out[m.Config.Digest] = d.Size, m.Config.Size
		for _, l := range m.Layers {
			out[l.Digest] = l.Size
			s, err := l.Savings()
			if err != nil {
				return nil, err
			}
			if s.Chunks != nil {
				out[s.Chunks.Digest] = s.Chunks.Size
			}
			for _, p := range s.Patches {
				out[p.Digest] = p.Size
			}
		}
		if len(out) > maxBlobs {
			return nil, fmt.Errorf("release %s has more than %d blobs", release.Short(), maxBlobs)
		}
	}
	return out, nil
}
