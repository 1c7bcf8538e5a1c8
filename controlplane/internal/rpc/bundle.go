package rpc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/release"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/attest"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/proto/present"
)

// maxReceipts of one call, and maxCarried desired states of one bundle.
const (
	maxReceipts = 1000
	maxCarried  = 10000
)

func (s *releaseService) ListAttestations(ctx context.Context, req *releasev1.ListAttestationsRequest) (*releasev1.ListAttestationsResponse, error) {
	tenant := auth.Tenant(ctx)
	r, rows, err := s.Catalog.Attachments(ctx, tenant, req.GetRelease())
	if err != nil {
		return nil, err
	}
	ref, _, err := s.Catalog.Ref(ctx, tenant, ota.Digest(r.Digest))
	if err != nil {
		return nil, err
	}
	resp := &releasev1.ListAttestationsResponse{Target: ref.Target, Repository: r.Name}
	for _, m := range rows {
		a := &releasev1.Attestation{ManifestDigest: m.Digest, ArtifactType: m.ArtifactType, PredicateType: m.Annotations[attest.AnnPredicate],
			BuildType: m.Annotations[attest.AnnBuild], Own: m.Own, Created: present.Time(m.Created)}
		doc, err := s.Catalog.Document(ctx, m)
		if err != nil && !errors.Is(err, release.ErrInvalid) { // people attach what they like
			return nil, err
		}
		if err == nil {
			a.DocumentDigest, a.Bytes = string(doc.Layers[0].Digest), doc.Layers[0].Size
		}
		resp.Attestations = append(resp.Attestations, a)
	}
	return resp, nil
}

func (s *releaseService) ExportRelease(ctx context.Context, req *releasev1.ExportReleaseRequest) (*releasev1.ExportReleaseResponse, error) {
	tenant := auth.Tenant(ctx)
	d, err := s.Catalog.Resolve(ctx, tenant, req.GetRelease())
	if err != nil {
		return nil, err
	}
	x := release.Export{Release: string(d), Targets: req.GetTargets(), Desired: map[string][]byte{}, RootFrom: req.GetRootFrom()}
	views, err := s.carried(tenant, req.GetDevices(), req.GetSelectors())
	if err != nil {
		return nil, err
	}
	resp, targets := &releasev1.ExportReleaseResponse{}, map[string]string{}
	for _, v := range views {
		if x.Desired[v.ID], err = s.Fleet.Handout(ctx, tenant, v.ID, d); err != nil {
			return nil, err
		}
		targets[v.ID] = v.Target
		resp.Devices = append(resp.Devices, v.ID)
	}
	theirs, err := s.Catalog.TargetsFor(tenant, d, targets)
	if err != nil {
		return nil, err
	}
	x.Targets = slices.Concat(x.Targets, theirs)
	plan, err := s.Catalog.Export(ctx, tenant, x)
	if err != nil {
		return nil, err
	}
	store.Note(ctx, plan.Info.Release, nil, map[string]any{"devices": resp.Devices, "targets": plan.Info.Targets})
	resp.Head = plan.Head()
	return resp, nil
}

// carried finds the devices of a bundle, each once.
func (s *releaseService) carried(tenant string, devices, selectors []string) ([]fleet.View, error) {
	var out []fleet.View
	add := func(v fleet.View) {
		if !slices.ContainsFunc(out, func(o fleet.View) bool { return o.ID == v.ID }) {
			out = append(out, v)
		}
	}
	for _, text := range devices {
		v, err := s.Fleet.Lookup(tenant, text)
		if err != nil {
			return nil, err
		}
		add(v)
	}
	for _, text := range selectors {
		match, err := fleet.ParseSelector(text)
		if err != nil {
			return nil, err
		}
		found := 0
		for _, v := range s.Fleet.Snapshot(tenant) {
			if v.State != fleet.Revoked && v.State != fleet.Pending && match.Match(v) {
				add(v)
				found++
			}
		}
		if found == 0 {
			return nil, fmt.Errorf("%w: no device is of %q", fleet.ErrUnknownDevice, text)
		}
	}
	if len(out) > maxCarried {
		return nil, fmt.Errorf("%w: %d devices, a bundle carries at most %d", release.ErrInvalid, len(out), maxCarried)
	}
	return out, nil
}

func (s *releaseService) ImportRelease(ctx context.Context, req *releasev1.ImportReleaseRequest) (*releasev1.ImportReleaseResponse, error) {
	d, err := ota.ParseDigest(req.GetHeadDigest())
	if err != nil {
		return nil, fmt.Errorf("%w: head: %w", release.ErrInvalid, err)
	}
	got, err := s.Catalog.Import(ctx, auth.Tenant(ctx), d, req.GetCheck(), store.Actor(ctx))
	if err != nil {
		return nil, err
	}
	m, err := releaseMessage(got.Release, 0)
	if err != nil {
		return nil, err
	}
	resp := &releasev1.ImportReleaseResponse{Release: m, Existing: got.Existing, Publisher: got.Publisher, Verified: int32(got.Verified)}
	for _, l := range got.Missing {
		resp.Missing = append(resp.Missing, string(l))
	}
	return resp, nil
}

func publisherMessage(p store.Publisher) *releasev1.Publisher {
	return &releasev1.Publisher{Name: p.Name, RootDigest: string(ota.DigestOf(p.Root)), Added: present.Time(p.Added), AddedBy: p.AddedBy}
}

func (s *releaseService) AddPublisher(ctx context.Context, req *releasev1.AddPublisherRequest) (*releasev1.AddPublisherResponse, error) {
	p, err := s.Catalog.AddPublisher(ctx, store.Publisher{Tenant: auth.Tenant(ctx), Name: req.GetName(), Root: req.GetRoot(), AddedBy: store.Actor(ctx)})
	if err != nil {
		return nil, err
	}
	return &releasev1.AddPublisherResponse{Publisher: publisherMessage(p)}, nil
}

func (s *releaseService) ListPublishers(ctx context.Context, _ *releasev1.ListPublishersRequest) (*releasev1.ListPublishersResponse, error) {
	all, err := s.Catalog.Publishers(ctx, auth.Tenant(ctx))
	if err != nil {
		return nil, err
	}
	resp := &releasev1.ListPublishersResponse{}
	if resp.OwnRoot, err = s.Catalog.Root(); err != nil {
		return nil, err
	}
	for _, p := range all {
		resp.Publishers = append(resp.Publishers, publisherMessage(p))
	}
	return resp, nil
}

func (s *releaseService) RemovePublisher(ctx context.Context, req *releasev1.RemovePublisherRequest) (*releasev1.RemovePublisherResponse, error) {
	return &releasev1.RemovePublisherResponse{}, s.Catalog.RemovePublisher(ctx, auth.Tenant(ctx), req.GetName())
}

func (s *releaseService) ImportReceipts(ctx context.Context, req *releasev1.ImportReceiptsRequest) (*releasev1.ImportReceiptsResponse, error) {
	if len(req.GetReceipts()) > maxReceipts {
		return nil, fmt.Errorf("%w: %d receipts, at most %d at once", release.ErrInvalid, len(req.GetReceipts()), maxReceipts)
	}
	tenant, resp := auth.Tenant(ctx), &releasev1.ImportReceiptsResponse{}
	var taken []string
	refused := 0
	for _, r := range req.GetReceipts() {
		result := &releasev1.ReceiptResult{Device: r.GetDevice()}
		err := s.Fleet.Receipt(ctx, tenant, r.GetDevice(), r.GetReport())
		if result.Known = errors.Is(err, fleet.ErrKnown); err != nil && !result.Known {
			result.Error = strings.TrimPrefix(err.Error(), fleet.ErrInvalid.Error()+": ")
			refused++
		} else {
			v, err := s.Fleet.Get(tenant, r.GetDevice())
			if err != nil {
				return nil, err
			}
			result.Running = s.Catalog.Name(tenant, v.Running)
			if !result.Known {
				taken = append(taken, r.GetDevice())
			}
		}
		resp.Results = append(resp.Results, result)
	}
	store.Note(ctx, "receipts", nil, map[string]any{"taken": taken, "refused": refused})
	return resp, nil
}
