// Package controlplane is one control plane as a library: skeind runs it, and
// sim and tests run it in their own process. It owns the wiring: which packages
// exist, how they know each other, which goroutines run and in which order they
// end. Invariants: New starts nothing; Run returns after everything it started
// has ended and what was acknowledged is stored. cmd/skeind and sim import it.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/blobs"
	"github.com/skein-fleet/skein/controlplane/internal/broker"
	"github.com/skein-fleet/skein/controlplane/internal/build"
	"github.com/skein-fleet/skein/controlplane/internal/conductor"
	"github.com/skein-fleet/skein/controlplane/internal/delta"
	"github.com/skein-fleet/skein/controlplane/internal/enroll"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/pki"
	"github.com/skein-fleet/skein/controlplane/internal/registry"
	"github.com/skein-fleet/skein/controlplane/internal/release"
	"github.com/skein-fleet/skein/controlplane/internal/series"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/controlplane/internal/stream"
	"github.com/skein-fleet/skein/controlplane/internal/vault"
	"github.com/skein-fleet/skein/controlplane/internal/web"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
)

// Server is one control plane.
type Server struct {
	cfg      Config
	logger   *slog.Logger
	registry *prometheus.Registry
	now      func() time.Time

	// State, from the disk upwards.
	files   *slot.Dir
	blobDir *slot.Dir
	db      *store.DB
	ca      *pki.Authority
	trust   *trust.Repo
	admin   string
	fresh   bool // the admin credential was made at this start

	// Parts, in the order in which they know each other.
	blobs   *blobs.Server
	deltas  *delta.Maker
	catalog *release.Catalog
	images  *registry.Registry
	series  *series.Store
	fleet   *fleet.Fleet
	rollout *conductor.Conductor
	desk    *enroll.Desk
	guard   *auth.Guard
	streams *stream.Server
	builds  *build.Queue
	broker  *broker.Broker
	web     *web.Handler

	ready     chan struct{}
	addrs     Addrs
	closeOnce sync.Once
	closeErr  error
}

// Addrs are the addresses that a running Server listens on.
type Addrs struct{ HTTP, Device, MQTT, Debug net.Addr }

// New opens the state in cfg.DataDir, making it at the first start, and wires
// the parts. Close, or Run, which ends with it, gives everything back.
func New(cfg Config, logger *slog.Logger) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	s := &Server{cfg: cfg, logger: logger, registry: prometheus.NewRegistry(), now: time.Now, ready: make(chan struct{})}
	if cfg.Now != nil {
		s.now = cfg.Now
	}
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	ctx := context.Background()
	for _, step := range []func(context.Context) error{s.openState, s.wireParts, s.loadParts} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// wireParts makes the parts; none of them runs yet.
func (s *Server) wireParts(context.Context) (err error) {
	v, err := vault.OpenFile(filepath.Join(s.cfg.DataDir, "vault.key"))
	if err != nil {
		return err
	}
	director, err := s.trust.DirectorSigner()
	if err != nil {
		return fmt.Errorf("director key: %w", err)
	}
	if s.blobDir, err = slot.OpenDir(filepath.Join(s.cfg.DataDir, "blobs")); err != nil {
		return err
	}
	blobStore := blob.NewStore(s.blobDir)
	blobStore.TrackUse(s.now)
	if s.deltas, err = delta.New(delta.Config{Files: s.blobDir, Blobs: blobStore, Logger: s.logger}); err != nil {
		return err
	}
	pacer := blobs.NewPacer(s.limits, time.Now)
	s.blobs = blobs.New(blobs.Options{Files: s.blobDir, Store: blobStore, Pacer: pacer, Adopt: s.deltas.Adopt, Manifests: manifests{s}, Logger: s.logger})
	s.catalog, err = release.New(release.Config{Store: s.db, Blobs: blobStore, Repository: s.trust, Deltas: s.deltas, Targets: s.targets, Logger: s.logger, Now: s.now,
		Engines: engines{s}, Attest: director, Builder: "spiffe://" + s.cfg.Domain + "/skeind", Version: s.cfg.Version, Bundles: s.files})
	if err != nil {
		return err
	}
	s.images, err = registry.New(registry.Options{Store: s.db, Blobs: s.blobs, Releases: s.catalog, Tenant: store.DefaultTenant, Logger: s.logger})
	if err != nil {
		return err
	}
	s.series, err = series.Open(series.Options{Dir: filepath.Join(s.cfg.DataDir, "series"), Registry: s.registry, Logger: s.logger.With("part", "series")})
	if err != nil {
		return err
	}
	s.fleet, err = fleet.New(fleet.Config{Store: s.db, Releases: s.catalog, Telemetry: s.series, Director: signer{s.trust}, Vault: v,
		Logger: s.logger, Registry: s.registry, Resend: s.cfg.Resend, Now: s.now})
	if err != nil {
		return err
	}
	s.rollout, err = conductor.New(conductor.Config{Store: s.db, Fleet: s.fleet, Releases: s.catalog, Measures: s.series, Logger: s.logger, Now: s.now})
	if err != nil {
		return err
	}
	s.desk = &enroll.Desk{DB: s.db, CA: s.ca, Fleet: s.fleet, Logger: s.logger, Now: s.now}
	s.guard = &auth.Guard{DB: s.db, Logger: s.logger, Now: s.now}
	s.streams, err = stream.New(stream.Config{Link: chunklink{s}, Blobs: blobStore, Grants: grants{s}, Metadata: s.trust.Metadata, Notice: s.fleet.Noticed,
		Pace: pacer.Reserve, Logger: s.logger, Registry: s.registry})
	if err != nil {
		return err
	}
	s.builds, err = build.New(build.Config{Store: s.db, Fleet: s.fleet, Models: s.catalog, Blobs: blobStore, Link: buildlink{s}, Director: s.trust.DirectorSigner,
		Allowed: s.recipeAllowed, Domain: s.cfg.Domain, Version: s.cfg.Version, Logger: s.logger, Now: s.now})
	if err != nil {
		return err
	}
	s.broker, err = broker.New(broker.Config{Handler: link{s.fleet, s.streams, s.builds}, Identify: s.identify, Sent: s.streams.Sent, Logger: s.logger, Registry: s.registry})
	if err != nil {
		return err
	}
	s.fleet.SetLink(downlink{s.broker})
	s.web, err = web.New()
	return err
}

// loadParts reads what the parts keep in memory, and gives a fresh
// installation its first credential.
func (s *Server) loadParts(ctx context.Context) error {
	if err := s.catalog.Load(ctx); err != nil {
		return fmt.Errorf("load releases: %w", err)
	}
	epoch, err := s.epoch(ctx)
	if err != nil {
		return err
	}
	if err := s.fleet.Load(ctx, epoch); err != nil {
		return fmt.Errorf("load fleet: %w", err)
	}
	if s.cfg.Restored {
		if err := s.fleet.Restored(ctx); err != nil {
			return fmt.Errorf("issue desired states in epoch %d: %w", epoch, err)
		}
	}
	if err := s.rollout.Load(ctx); err != nil {
		return fmt.Errorf("load rollouts: %w", err)
	}
	if err := s.builds.Load(ctx); err != nil {
		return fmt.Errorf("load builds: %w", err)
	}
	s.admin, err = s.firstAdmin(ctx)
	return err
}

// Run serves until ctx ends, then stops in order and closes everything.
func (s *Server) Run(ctx context.Context) error {
	ls, err := s.listen()
	if err != nil {
		return errors.Join(err, s.Close())
	}
	// What must outlive the connections has a context of its own.
	keep, stopKeeping := context.WithCancel(context.WithoutCancel(ctx))
	var keeping errgroup.Group
	keeping.Go(func() error { return s.fleet.RunEvents(keep) })

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.fleet.Run(ctx) })
	g.Go(func() error { return s.rollout.Run(ctx) })
	g.Go(func() error { return s.blobs.Run(ctx) })
	g.Go(func() error { return s.catalog.Run(ctx) })
	g.Go(func() error { return s.streams.Run(ctx) })
	g.Go(func() error { return s.builds.Run(ctx) })
	g.Go(func() error { return s.broker.Run(ctx, ls.mqtt, s.mqttTLS()) })
	g.Go(func() error { return s.serve(ctx, ls.http, s.people(), nil) })
	g.Go(func() error { return s.serve(ctx, ls.device, s.devices(), s.deviceTLS()) })
	if ls.debug != nil {
		g.Go(func() error { return s.serve(ctx, ls.debug, s.debug(), nil) })
	}
	s.logger.Info("ready", "http", s.addrs.HTTP.String(), "device", s.addrs.Device.String(), "mqtt", s.addrs.MQTT.String(), "data", s.cfg.DataDir)
	close(s.ready)

	err = g.Wait()
	err = errors.Join(err, s.broker.Close(), s.fleet.Flush(keep))
	stopKeeping()
	err = errors.Join(err, keeping.Wait(), s.Close())
	s.logger.Info("stopped", "error", err)
	return err
}

// Close gives back what New opened; Run calls it.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		var errs []error
		if s.broker != nil {
			errs = append(errs, s.broker.Close())
		}
		if s.series != nil {
			errs = append(errs, s.series.Close())
		}
		if s.db != nil {
			errs = append(errs, s.db.Close())
		}
		for _, dir := range []*slot.Dir{s.blobDir, s.files} {
			if dir != nil {
				errs = append(errs, dir.Close())
			}
		}
		s.closeErr = errors.Join(errs...)
	})
	return s.closeErr
}

// Ready is closed when all ports listen; Addrs is valid then.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addrs returns where the server listens.
func (s *Server) Addrs() Addrs { return s.addrs }

// AdminToken returns the token that the first start made, or "" when its file
// is gone: for programs in the same process.
func (s *Server) AdminToken() string { return s.admin }

// CAPEM returns the certificate of the CA as PEM.
func (s *Server) CAPEM() []byte { return s.ca.CAPEM() }

// targets are the targets that devices of a tenant report.
func (s *Server) targets(tenant string) []string {
	seen := map[string]bool{}
	var out []string
	for _, v := range s.fleet.Snapshot(tenant) {
		if v.Target != "" && v.State != fleet.Revoked && !seen[v.Target] {
			seen[v.Target] = true
			out = append(out, v.Target)
		}
	}
	return out
}

// adminFile keeps the token of the first start beside the data, mode 0600.
func (s *Server) adminFile() string { return filepath.Join(s.cfg.DataDir, adminName) }

// LoginHint tells a person how to log in.
func (s *Server) LoginHint() string {
	if _, err := os.Stat(s.adminFile()); err != nil {
		return "log in with a credential made by: skein credential create"
	}
	hint := fmt.Sprintf("admin token:  in %s\ndashboard:    http://%s/\ncommand line: skein login --server http://%s --token $(cat %s)",
		s.adminFile(), s.addrs.HTTP, s.addrs.HTTP, s.adminFile())
	if s.fresh { // once: what is printed at every start stays in logs
		hint = "admin token:  " + s.admin + "\n" + hint
	}
	return hint
}
