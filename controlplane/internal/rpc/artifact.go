package rpc

import (
	"context"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/release"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	artifactv1 "github.com/skein-fleet/skein/proto/gen/skein/artifact/v1"
	"github.com/skein-fleet/skein/proto/present"
)

// modelService answers skein.artifact.v1.ModelService.
type modelService struct{ AppDeps }

func modelVersion(v store.ModelVersion) *artifactv1.ModelVersion {
	return &artifactv1.ModelVersion{Model: v.Name, Version: v.Version, Onnx: &artifactv1.Blob{Digest: v.ONNX, Size: v.ONNXSize},
		Golden: &artifactv1.Blob{Digest: v.Golden, Size: v.GoldenSize}, Description: v.Description, Metadata: v.Metadata, Created: present.Time(v.Created), CreatedBy: v.CreatedBy, Mirrors: v.Mirrors}
}

func model(m release.Model) *artifactv1.Model {
	return &artifactv1.Model{Name: m.Name, LatestVersion: m.Latest, Created: present.Time(m.Created)}
}

func (s *modelService) PushModel(ctx context.Context, req *artifactv1.PushModelRequest) (*artifactv1.PushModelResponse, error) {
	v, existing, err := s.Catalog.Push(ctx, store.ModelVersion{Tenant: auth.Tenant(ctx), Name: req.GetModel(), ONNX: req.GetOnnxDigest(),
		Golden: req.GetGoldenDigest(), Description: req.GetDescription(), Metadata: req.GetMetadata(), Mirrors: req.GetMirrors(), CreatedBy: store.Actor(ctx)})
	if err != nil {
		return nil, err
	}
	return &artifactv1.PushModelResponse{Version: modelVersion(v), Existing: existing}, nil
}

func (s *modelService) ListModels(ctx context.Context, _ *artifactv1.ListModelsRequest) (*artifactv1.ListModelsResponse, error) {
	all, err := s.Catalog.Models(ctx, auth.Tenant(ctx))
	if err != nil {
		return nil, err
	}
	resp := &artifactv1.ListModelsResponse{}
	for _, m := range all {
		resp.Models = append(resp.Models, model(m))
	}
	return resp, nil
}

func (s *modelService) GetModel(ctx context.Context, req *artifactv1.GetModelRequest) (*artifactv1.GetModelResponse, error) {
	m, versions, err := s.Catalog.Model(ctx, auth.Tenant(ctx), req.GetModel())
	if err != nil {
		return nil, err
	}
	resp := &artifactv1.GetModelResponse{Model: model(m)}
	for _, v := range versions {
		resp.Versions = append(resp.Versions, modelVersion(v))
	}
	return resp, nil
}
