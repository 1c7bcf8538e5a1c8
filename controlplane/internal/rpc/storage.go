package rpc

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/blobs"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	artifactv1 "github.com/skein-fleet/skein/proto/gen/skein/artifact/v1"
	"github.com/skein-fleet/skein/proto/present"
)

// Collector removes blobs that nothing refers to.
type Collector func(ctx context.Context, grace time.Duration, dryRun bool) (blobs.Collected, error)

// storageService answers skein.artifact.v1.StorageService.
type storageService struct{ AppDeps }

const (
	defaultGrace = 24 * time.Hour
	maxGarbage   = 1000 // named in an answer
)

func (s *storageService) CollectGarbage(ctx context.Context, req *artifactv1.CollectGarbageRequest) (*artifactv1.CollectGarbageResponse, error) {
	if auth.Tenant(ctx) != store.DefaultTenant {
		return nil, fmt.Errorf("%w: blobs of all tenants lie together, only the default tenant collects them", auth.ErrDenied)
	}
	grace := cmp.Or(time.Duration(req.GetGraceSeconds())*time.Second, defaultGrace)
	c, err := s.Collect(ctx, grace, req.GetDryRun())
	if err != nil {
		return nil, err
	}
	what := "removed"
	if req.GetDryRun() {
		what = "would remove"
	}
	store.Note(ctx, fmt.Sprintf("%s %d blobs", what, len(c.Removed)), map[string]any{"grace": grace.String(), "dry_run": req.GetDryRun()},
		map[string]any{"removed": len(c.Removed), "bytes": c.Bytes, "kept": c.Kept})
	resp := &artifactv1.CollectGarbageResponse{Removed: int32(len(c.Removed)), Bytes: c.Bytes, Kept: int32(c.Kept), KeptBytes: c.KeptBytes, InGrace: int32(c.InGrace)}
	for _, g := range c.Removed[:min(len(c.Removed), maxGarbage)] {
		resp.Blobs = append(resp.Blobs, &artifactv1.GarbageBlob{Digest: string(g.Digest), Size: g.Size, Touched: present.Time(g.Touched)})
	}
	return resp, nil
}
