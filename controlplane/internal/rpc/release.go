package rpc

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/release"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/proto/present"
)

// releaseService answers skein.release.v1.ReleaseService.
type releaseService struct{ AppDeps }

// running counts devices by the release that they run.
func (s *releaseService) running(tenant string) map[ota.Digest]int32 {
	out := map[ota.Digest]int32{}
	for _, v := range s.Fleet.Snapshot(tenant) {
		if v.Running != "" {
			out[v.Running]++
		}
	}
	return out
}

func releaseMessage(r store.Release, running int32) (*releasev1.Release, error) {
	var decls []manifest.ParamDecl
	if err := json.Unmarshal(r.Parameters, &decls); err != nil {
		return nil, fmt.Errorf("release %s@%s: read parameters: %w", r.Name, r.Version, err)
	}
	m := &releasev1.Release{Digest: r.Digest, Name: r.Name, Version: r.Version, Counter: r.Counter, Model: r.Model, ModelVersion: r.ModelVersion, Bytes: r.Bytes,
		Created: present.Time(r.Created), CreatedBy: r.CreatedBy, SoakSeconds: int64(r.Soak / time.Second), Running: running}
	for _, t := range r.Targets {
		m.Targets = append(m.Targets, &releasev1.TargetManifest{Target: t.Target, ManifestDigest: t.Manifest, Bytes: t.Bytes})
	}
	for _, d := range decls {
		m.Parameters = append(m.Parameters, &releasev1.ParameterDeclaration{Key: d.Key, Type: d.Type, Required: d.Required, Default: d.Default, Description: d.Description})
	}
	return m, nil
}

// message is releaseMessage with what the release waits for.
func (s *releaseService) message(r store.Release, running int32) (*releasev1.Release, error) {
	m, err := releaseMessage(r, running)
	if err == nil {
		m.AgentTargets, m.OsTargets = s.Catalog.Machine(r.Tenant, ota.Digest(r.Digest))
		for _, t := range m.Targets {
			t.EngineDigest = s.planOf(r.Tenant, ota.Digest(r.Digest), t.GetTarget())
		}
		m.Pending = s.Catalog.Pending(r.Tenant, ota.Digest(r.Digest))
		for _, w := range s.Catalog.Workloads(r.Tenant, ota.Digest(r.Digest)) {
			m.Workloads = append(m.Workloads, workloadMessage(w))
		}
	}
	return m, err
}

func (s *releaseService) CreateRelease(ctx context.Context, req *releasev1.CreateReleaseRequest) (*releasev1.CreateReleaseResponse, error) {
	if sec := req.GetSoakSeconds(); sec < 0 || sec > math.MaxInt32 {
		return nil, fmt.Errorf("%w: soak of %d seconds", release.ErrInvalid, sec)
	}
	q := release.Request{Tenant: auth.Tenant(ctx), Name: req.GetName(), Version: req.GetVersion(), Model: req.GetModel(), Targets: req.GetTargets(),
		Soak: time.Duration(req.GetSoakSeconds()) * time.Second, By: store.Actor(ctx), Auto: req.GetAuto(),
		Workload: req.GetWorkload(), Image: req.GetImage(), Recipe: req.GetRecipe(), WorkloadTargets: req.GetWorkloadTargets()}
	for _, p := range req.GetParameters() {
		q.Parameters = append(q.Parameters, manifest.ParamDecl{Key: p.GetKey(), Type: p.GetType(), Default: p.GetDefault(), Description: p.GetDescription(), Required: p.GetRequired()})
	}
	for _, l := range req.GetMachine() {
		q.Machine = append(q.Machine, release.MachineLayer{Target: l.GetTarget(), Agent: ota.Digest(l.GetAgentDigest()), OSImage: ota.Digest(l.GetOsImageDigest()), OSTarget: l.GetOsTarget()})
	}
	r, err := s.Catalog.Create(ctx, q)
	if err != nil {
		return nil, err
	}
	m, err := s.message(r, 0)
	return &releasev1.CreateReleaseResponse{Release: m}, err
}

func (s *releaseService) ListReleases(ctx context.Context, _ *releasev1.ListReleasesRequest) (*releasev1.ListReleasesResponse, error) {
	tenant := auth.Tenant(ctx)
	all, err := s.Catalog.List(ctx, tenant)
	if err != nil {
		return nil, err
	}
	running, resp := s.running(tenant), &releasev1.ListReleasesResponse{}
	for _, r := range all {
		m, err := s.message(r, running[ota.Digest(r.Digest)])
		if err != nil {
			return nil, err
		}
		resp.Releases = append(resp.Releases, m)
	}
	return resp, nil
}

func (s *releaseService) GetRelease(ctx context.Context, req *releasev1.GetReleaseRequest) (*releasev1.GetReleaseResponse, error) {
	tenant := auth.Tenant(ctx)
	r, index, err := s.Catalog.Get(ctx, tenant, req.GetRelease())
	if err != nil {
		return nil, err
	}
	m, err := s.message(r, s.running(tenant)[ota.Digest(r.Digest)])
	if err != nil {
		return nil, err
	}
	resp := &releasev1.GetReleaseResponse{Release: m, Index: index}
	if req.GetLayers() || req.GetDevice() != "" {
		err = s.explainTransfer(ctx, tenant, ota.Digest(r.Digest), req.GetDevice(), resp)
	}
	return resp, err
}
