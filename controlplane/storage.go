package controlplane

import (
	"context"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/blobs"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
)

// collect removes blobs that no row of the store refers to, nor what these
// name, and that nobody asked for within the grace time.
func (s *Server) collect(ctx context.Context, grace time.Duration, dryRun bool) (blobs.Collected, error) {
	return s.blobs.Collect(ctx, blobs.Collect{
		Roots: func(ctx context.Context) (roots []ota.Digest, err error) {
			err = s.db.View(ctx, func(tx *store.Tx) error {
				texts, err := tx.BlobRoots(ctx)
				for _, t := range texts {
					roots = append(roots, ota.Digest(t))
				}
				return err
			})
			return roots, err
		},
		Index: s.deltas.IndexOf, Forget: s.deltas.Forget, Grace: grace, DryRun: dryRun,
	})
}

// limits returns the rates that a device shares with its site and the fleet;
// what has no site shares with nobody.
func (s *Server) limits(device string) (tenant, site string, l blobs.Limits) {
	tenant, site, l.Site, l.Fleet = s.fleet.RatesFor(device)
	if site == "" {
		l.Site = 0
	}
	return tenant, site, l
}
