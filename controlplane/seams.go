package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/skein-fleet/skein/controlplane/internal/blobs"
	"github.com/skein-fleet/skein/controlplane/internal/broker"
	"github.com/skein-fleet/skein/controlplane/internal/build"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/release"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/controlplane/internal/stream"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

type id = broker.Identity

// signer signs for devices with the director's key that is listed now: persons
// may replace it while the server runs.
type signer struct{ repo *trust.Repo }

func (s signer) Sign(aad string, payload []byte) ([]byte, error) {
	key, err := s.repo.DirectorSigner()
	if err != nil {
		return nil, err
	}
	return trust.Sign(key, aad, payload)
}

// link brings what devices do to the fleet, and what they want to the streams.
type link struct {
	*fleet.Fleet
	streams *stream.Server
	builds  *build.Queue
}

func (l link) Session(tenant, device string, session uint64, open bool) {
	if open {
		l.Opened(tenant, device, session)
		l.streams.Opened(device, session)
	} else {
		l.Closed(tenant, device, session)
		l.streams.Closed(device, session)
	}
}

func (l link) Message(ctx context.Context, tenant, device string, kind wire.Kind, payload []byte) error {
	if kind != wire.UpGet && kind != wire.UpBuild {
		err := l.Fleet.Message(ctx, tenant, device, kind, payload)
		if err == nil && kind == wire.UpHello {
			l.builds.Hello(tenant, device)
		}
		return err
	}
	if err := l.Admit(tenant, device); err != nil {
		return err
	}
	if kind == wire.UpBuild {
		return l.builds.Message(ctx, tenant, device, payload)
	}
	return l.streams.Message(ctx, tenant, device, payload)
}

// chunklink sends blocks; the broker is made after the streams.
type chunklink struct{ s *Server }

func (c chunklink) Send(device string, kind wire.Kind, payload []byte) error {
	return c.s.broker.Send(device, kind, payload)
}

// downlink brings what the fleet says to devices.
type downlink struct{ b *broker.Broker }

func (d downlink) Publish(ctx context.Context, device string, kind wire.Kind, payload []byte) error {
	err := d.b.Publish(ctx, device, kind, payload)
	if errors.Is(err, broker.ErrOffline) {
		return fmt.Errorf("%w: %w", fleet.ErrOffline, err)
	}
	return err
}

func (d downlink) Kick(device string) bool { return d.b.Kick(device) }

// buildlink sends leases; the broker is made after the queue.
type buildlink struct{ s *Server }

func (b buildlink) Publish(ctx context.Context, device string, kind wire.Kind, payload []byte) error {
	return b.s.broker.Publish(ctx, device, kind, payload)
}

// engines gives the catalog the engines that were built; the queue is made
// after it.
type engines struct{ s *Server }

func (e engines) Engines(ctx context.Context, m store.ModelVersion, recipe string, targets []ota.Target) (map[string]release.Plan, error) {
	return e.s.builds.Engines(ctx, m, recipe, targets)
}

func (e engines) Provenance(ctx context.Context, tenant string, plan ota.Digest) ([]byte, error) {
	return e.s.builds.Provenance(ctx, tenant, plan)
}

// recipeAllowed says whether persons signed a recipe that brings code: their
// policy for the model names it.
func (s *Server) recipeAllowed(model string, recipe ota.Digest) error {
	p, err := s.trust.Policy(model)
	if err != nil {
		return fmt.Errorf("persons must sign it in the policy of model %s, under recipes (docs/engines.md): %w", model, err)
	}
	if !slices.Contains(p.Recipes, recipe) {
		return fmt.Errorf("the policy that persons signed for model %s does not name it under recipes (docs/engines.md)", model)
	}
	return nil
}

// manifests answers OCI pullers; the catalog is made after the blob server.
type manifests struct{ s *Server }

func (m manifests) Manifest(ctx context.Context, name, ref string) (blobs.Manifest, error) {
	return m.s.catalog.Manifest(ctx, name, ref)
}

func (m manifests) Tags(ctx context.Context, name string) ([]string, error) {
	return m.s.catalog.Tags(ctx, name)
}

// grants lets a device read the blobs of the releases that it should run, says
// it runs, or was told to run before it learns of a change; and a cache those of
// its site.
type grants struct{ s *Server }

var errNotGranted = errors.New("no release of this device contains the blob")

func (g grants) MayRead(_ context.Context, device string, d ota.Digest) error {
	v, err := g.s.fleet.Any(device)
	if err != nil {
		return err
	}
	for _, r := range []ota.Digest{v.WantedRelease, v.Running, v.WantedBefore} {
		if r != "" && g.s.catalog.Contains(v.Tenant, r, d) {
			return nil
		}
	}
	if g.s.builds.MayRead(v.Tenant, device, d) {
		return nil
	}
	// A cache serves the other devices of its site.
	for _, r := range g.s.fleet.SiteReleases(device) {
		if g.s.catalog.Contains(v.Tenant, r, d) {
			return nil
		}
	}
	return errNotGranted
}
