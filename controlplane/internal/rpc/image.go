package rpc

import (
	"cmp"
	"context"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/release"
	"github.com/skein-fleet/skein/ota/manifest"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/proto/present"
)

func workloadMessage(w *release.Workload) *releasev1.ReleaseWorkload {
	m := &releasev1.ReleaseWorkload{Target: w.Target, Document: string(w.Raw), Server: cmp.Or(w.Document.Server, manifest.ServerV2),
		ImageLayers: int32(w.Layers), ImageBytes: w.Bytes}
	if im := w.Document.Image; im != nil {
		m.ImageDigest, m.ImageReference = string(im.Digest), im.Reference
	}
	return m
}

func imageMessage(x release.Image) *releasev1.Image {
	m := &releasev1.Image{Repository: x.Repository, Tag: x.Tag, Digest: string(x.Digest), Created: present.Time(x.Created)}
	for _, p := range x.Platforms {
		m.Platforms = append(m.Platforms, &releasev1.ImagePlatform{Platform: p.Platform, ManifestDigest: string(p.Manifest), Bytes: p.Bytes, Layers: int32(p.Layers),
			User: p.User, Command: p.Command, Incomplete: p.Incomplete})
	}
	return m
}

func (s *releaseService) ListImages(ctx context.Context, _ *releasev1.ListImagesRequest) (*releasev1.ListImagesResponse, error) {
	all, err := s.Catalog.Images(ctx, auth.Tenant(ctx))
	if err != nil {
		return nil, err
	}
	resp := &releasev1.ListImagesResponse{}
	for _, x := range all {
		resp.Images = append(resp.Images, imageMessage(x))
	}
	return resp, nil
}

func (s *releaseService) GetImage(ctx context.Context, req *releasev1.GetImageRequest) (*releasev1.GetImageResponse, error) {
	x, releases, err := s.Catalog.Image(ctx, auth.Tenant(ctx), req.GetImage())
	if err != nil {
		return nil, err
	}
	return &releasev1.GetImageResponse{Image: imageMessage(x), Releases: releases}, nil
}
