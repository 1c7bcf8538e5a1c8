// Package rpc answers the Connect services of the control plane: it checks and
// translates requests, calls the packages that own the work, and translates
// results. One file serves one service or one part of it. Invariants: every
// service is behind the guard of package auth, and the caller's tenant comes
// from there and never from a request; errors get their code in errors.go
// alone. Only the façade imports it.
package rpc

import (
	"log/slog"
	"net/http"

	"connectrpc.com/connect"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/enroll"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/proto/gen/skein/audit/v1/auditv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/auth/v1/authv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/fleet/v1/fleetv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/policy/v1/policyv1connect"
)

// maxRequest bounds one request message; blobs travel over plain HTTP.
const maxRequest = 4 << 20

// Deps is what the services of people need.
type Deps struct {
	Store    *store.DB
	Fleet    *fleet.Fleet
	Desk     *enroll.Desk
	Guard    *auth.Guard
	Releases Releases
	Readings Readings // nil: no readings
	Rollouts Rollouts // nil: no rollouts
	Version  string
	Logger   *slog.Logger
}

// Options are the handler options of every service behind the guard.
func Options(g *auth.Guard, logger *slog.Logger) []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithInterceptors(coded{logger}, g.Interceptor()), // errors of the guard get their codes too
		connect.WithReadMaxBytes(maxRequest),
	}
}

// MountCore adds the fleet, auth and audit services to mux.
func MountCore(mux *http.ServeMux, d Deps) {
	opts := Options(d.Guard, d.Logger)
	mux.Handle(fleetv1connect.NewFleetServiceHandler(&fleetService{d}, opts...))
	mux.Handle(authv1connect.NewAuthServiceHandler(&authService{d}, opts...))
	mux.Handle(auditv1connect.NewAuditServiceHandler(&auditService{d.Store}, opts...))
	mux.Handle(policyv1connect.NewPolicyServiceHandler(&policyService{d}, opts...))
}
