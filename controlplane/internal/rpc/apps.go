package rpc

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/build"
	"github.com/skein-fleet/skein/controlplane/internal/conductor"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/release"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/proto/gen/skein/artifact/v1/artifactv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/build/v1/buildv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/release/v1/releasev1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/rollout/v1/rolloutv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/trust/v1/trustv1connect"
)

// AppDeps is what the services above the fleet need.
type AppDeps struct {
	Store     *store.DB
	Collect   Collector
	Catalog   *release.Catalog
	Conductor *conductor.Conductor
	Fleet     *fleet.Fleet
	Builds    *build.Queue
	Guard     *auth.Guard
	Logger    *slog.Logger
	Trust     Trust
	Signer    string // where the online keys are, "" in this process
	Now       func() time.Time
}

// MountApps adds the artifact, release, rollout and trust services to mux.
func MountApps(mux *http.ServeMux, d AppDeps) {
	opts := Options(d.Guard, d.Logger)
	mux.Handle(artifactv1connect.NewModelServiceHandler(&modelService{d}, opts...))
	mux.Handle(artifactv1connect.NewStorageServiceHandler(&storageService{d}, opts...))
	mux.Handle(releasev1connect.NewReleaseServiceHandler(&releaseService{d}, opts...))
	mux.Handle(trustv1connect.NewTrustServiceHandler(&trustService{d}, opts...))
	mux.Handle(buildv1connect.NewBuildServiceHandler(&buildService{d}, opts...))
	mux.Handle(rolloutv1connect.NewRolloutServiceHandler(&rolloutService{d}, opts...))
}
