package rpc

import (
	"cmp"
	"context"
	"time"

	"connectrpc.com/connect"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/build"
	"github.com/skein-fleet/skein/ota"
	buildv1 "github.com/skein-fleet/skein/proto/gen/skein/build/v1"
	"github.com/skein-fleet/skein/proto/present"
)

// buildService answers skein.build.v1.BuildService.
type buildService struct{ AppDeps }

var engineStates = map[build.State]buildv1.EngineState{
	build.Built: buildv1.EngineState_ENGINE_STATE_BUILT, build.Building: buildv1.EngineState_ENGINE_STATE_BUILDING, build.Queued: buildv1.EngineState_ENGINE_STATE_QUEUED,
	build.Missing: buildv1.EngineState_ENGINE_STATE_MISSING, build.Refused: buildv1.EngineState_ENGINE_STATE_REFUSED, build.Unneeded: buildv1.EngineState_ENGINE_STATE_UNNEEDED,
}

// deviceName is how people call a device.
func (s *buildService) deviceName(tenant, id string) string {
	if v, err := s.Fleet.Get(tenant, id); err == nil {
		return cmp.Or(v.Name, id)
	}
	return id
}

// engine translates a cell; the record comes with it where there is one.
func (s *buildService) engine(ctx context.Context, c build.Cell) (*buildv1.Engine, error) {
	tenant := auth.Tenant(ctx)
	m := &buildv1.Engine{Model: c.Model, ModelVersion: c.Version, Recipe: c.Recipe.Name, RecipeDigest: c.Recipe.Digest, Target: c.Target, Key: string(c.Key),
		State: engineStates[c.State], Reason: c.Reason, Devices: int32(c.Devices), Step: c.Step, Percent: int32(c.Percent), Said: c.Said}
	if b := c.Build; b != nil {
		m.Build, m.Attempt, m.Priority = b.ID, int32(b.Attempt), int32(b.Priority)
		m.Created, m.CreatedBy, m.Finished = present.Time(b.Created), b.CreatedBy, present.Time(b.Finished)
		if b.Device != "" {
			m.Builder, m.BuilderId = s.deviceName(tenant, b.Device), b.Device
		}
		for _, a := range b.Tried {
			m.Attempts = append(m.Attempts, &buildv1.Attempt{Attempt: int32(a.Attempt), Device: s.deviceName(tenant, a.Device), Class: a.Class, Message: a.Message, Ended: present.Time(a.Ended)})
		}
	}
	if c.Engine == nil {
		return m, nil
	}
	r, err := s.Builds.Record(ctx, *c.Engine)
	if err != nil {
		return nil, err
	}
	m.Builder, m.BuilderId = s.deviceName(tenant, r.Device), r.Device
	m.Record = &buildv1.Record{PlanDigest: c.Engine.Plan, Bytes: r.Size, Tensorrt: r.TensorRT, Sm: r.SM, LatencyP50Ms: r.LatencyP50, LatencyP99Ms: r.LatencyP99,
		Throughput: r.Throughput, PowerWatts: r.Power, Mode: r.Mode, Stripped: r.Stripped, Fallback: r.Fallback, Probed: r.Probed, Command: r.Command, Image: r.Image,
		Warnings: r.Warnings, Started: present.Time(time.Unix(r.Started, 0)), Finished: present.Time(time.Unix(r.Finished, 0)), LogDigest: c.Engine.Log, TimingCacheDigest: c.Engine.Timing,
		SealDigest: c.Engine.Seal, ProvenanceDigest: c.Engine.Provenance}
	if p := r.Proof; p != nil {
		m.Record.GoldenCases, m.Record.GoldenAgreed, m.Record.GoldenMaxAbs = p.Cases, p.Agreed, p.MaxAbs
	}
	return m, nil
}

func (s *buildService) engines(ctx context.Context, cs []build.Cell) ([]*buildv1.Engine, error) {
	out := make([]*buildv1.Engine, 0, len(cs))
	for _, c := range cs {
		m, err := s.engine(ctx, c)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func (s *buildService) GetMatrix(ctx context.Context, req *buildv1.GetMatrixRequest) (*buildv1.GetMatrixResponse, error) {
	cs, err := s.Builds.Matrix(ctx, auth.Tenant(ctx), req.GetModel(), req.GetRecipe())
	if err != nil {
		return nil, err
	}
	es, err := s.engines(ctx, cs)
	return &buildv1.GetMatrixResponse{Engines: es}, err
}

func (s *buildService) BuildEngines(ctx context.Context, req *buildv1.BuildEnginesRequest) (*buildv1.BuildEnginesResponse, error) {
	cs, err := s.Builds.Build(ctx, build.Request{Tenant: auth.Tenant(ctx), Model: req.GetModel(), Recipe: req.GetRecipe(), Targets: req.GetTargets(),
		All: req.GetAllTargets(), Priority: int(req.GetPriority())})
	if err != nil {
		return nil, err
	}
	es, err := s.engines(ctx, cs)
	return &buildv1.BuildEnginesResponse{Engines: es}, err
}

func (s *buildService) ListBuilds(ctx context.Context, _ *buildv1.ListBuildsRequest) (*buildv1.ListBuildsResponse, error) {
	cs, err := s.Builds.Builds(ctx, auth.Tenant(ctx))
	if err != nil {
		return nil, err
	}
	es, err := s.engines(ctx, cs)
	return &buildv1.ListBuildsResponse{Builds: es}, err
}

func (s *buildService) GetEngine(ctx context.Context, req *buildv1.GetEngineRequest) (*buildv1.GetEngineResponse, error) {
	c, err := s.Builds.Find(ctx, auth.Tenant(ctx), req.GetEngine())
	if err != nil {
		return nil, err
	}
	m, err := s.engine(ctx, c)
	return &buildv1.GetEngineResponse{Engine: m}, err
}

func (s *buildService) ExplainEngine(ctx context.Context, req *buildv1.ExplainEngineRequest) (*buildv1.ExplainEngineResponse, error) {
	tenant := auth.Tenant(ctx)
	var c build.Cell
	var reasons []string
	var err error
	if req.GetEngine() != "" {
		if c, err = s.Builds.Find(ctx, tenant, req.GetEngine()); err == nil {
			reasons, err = s.Builds.ExplainFound(ctx, tenant, c)
		}
	} else {
		c, reasons, err = s.Builds.Explain(ctx, tenant, req.GetModel(), req.GetRecipe(), req.GetTarget())
	}
	if err != nil {
		return nil, err
	}
	m, err := s.engine(ctx, c)
	return &buildv1.ExplainEngineResponse{Engine: m, Reasons: reasons}, err
}

func (s *buildService) CancelBuild(ctx context.Context, req *buildv1.CancelBuildRequest) (*buildv1.CancelBuildResponse, error) {
	_, err := s.Builds.Cancel(ctx, auth.Tenant(ctx), req.GetBuild(), req.GetReason())
	return &buildv1.CancelBuildResponse{}, err
}

func (s *buildService) WatchLog(ctx context.Context, req *buildv1.WatchLogRequest, stream *connect.ServerStream[buildv1.WatchLogResponse]) error {
	var offset int64
	var attempt uint32
	for {
		text, next, now, more, changed, err := s.Builds.Log(ctx, auth.Tenant(ctx), req.GetBuild(), offset)
		if err != nil {
			return err
		}
		if now != attempt && offset > 0 && more { // another attempt has another log
			attempt, offset = now, 0
			continue
		}
		attempt, offset = now, next
		if len(text) > 0 {
			if err := stream.Send(&buildv1.WatchLogResponse{Text: text, Attempt: int32(now)}); err != nil {
				return err
			}
		}
		if !more || !req.GetFollow() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil // the caller has gone, or the server stops
		}
	}
}

func recipeMessage(r build.Recipe) *buildv1.Recipe {
	return &buildv1.Recipe{Name: r.Name, Digest: r.Digest, Summary: r.Parsed.String(), Json: r.Text, Created: present.Time(r.Created), CreatedBy: r.CreatedBy}
}

func (s *buildService) PushRecipe(ctx context.Context, req *buildv1.PushRecipeRequest) (*buildv1.PushRecipeResponse, error) {
	r, err := s.Builds.PushRecipe(ctx, auth.Tenant(ctx), req.GetName(), req.GetJson())
	if err != nil {
		return nil, err
	}
	return &buildv1.PushRecipeResponse{Recipe: recipeMessage(r)}, nil
}

func (s *buildService) ListRecipes(ctx context.Context, _ *buildv1.ListRecipesRequest) (*buildv1.ListRecipesResponse, error) {
	rs, err := s.Builds.Recipes(ctx, auth.Tenant(ctx))
	if err != nil {
		return nil, err
	}
	resp := &buildv1.ListRecipesResponse{}
	for _, r := range rs {
		resp.Recipes = append(resp.Recipes, recipeMessage(r))
	}
	return resp, nil
}

func (s *buildService) GetRecipe(ctx context.Context, req *buildv1.GetRecipeRequest) (*buildv1.GetRecipeResponse, error) {
	r, err := s.Builds.Recipe(ctx, auth.Tenant(ctx), req.GetRecipe())
	if err != nil {
		return nil, err
	}
	return &buildv1.GetRecipeResponse{Recipe: recipeMessage(r)}, nil
}

// planOf says which engine a target of a release gets.
func (s *releaseService) planOf(tenant string, d ota.Digest, target string) string {
	return string(s.Catalog.Plan(tenant, d, target))
}
