package rpc

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/enroll"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/present"
	"github.com/skein-fleet/skein/proto/wire"
)

func (s *fleetService) ApproveDevice(ctx context.Context, req *fleetv1.ApproveDeviceRequest) (*fleetv1.ApproveDeviceResponse, error) {
	v, err := s.lookup(ctx, req.GetDevice())
	if err == nil {
		v, err = s.Fleet.Approve(ctx, v.Tenant, v.ID)
	}
	if err != nil {
		return nil, err
	}
	return &fleetv1.ApproveDeviceResponse{Device: s.device(v)}, nil
}

func (s *fleetService) RevokeDevice(ctx context.Context, req *fleetv1.RevokeDeviceRequest) (*fleetv1.RevokeDeviceResponse, error) {
	v, err := s.lookup(ctx, req.GetDevice())
	if err != nil {
		return nil, err
	}
	v, ended, err := s.Fleet.Revoke(ctx, v.Tenant, v.ID, cmp.Or(req.GetReason(), "revoked by "+store.Actor(ctx)))
	if err != nil {
		return nil, err
	}
	v.State, v.Online = fleet.Revoked, false
	return &fleetv1.RevokeDeviceResponse{Device: s.device(v), SessionEnded: ended}, nil
}

func (s *fleetService) ReplaceDevice(ctx context.Context, req *fleetv1.ReplaceDeviceRequest) (*fleetv1.ReplaceDeviceResponse, error) {
	from, err := s.lookup(ctx, req.GetOldDevice())
	if err != nil {
		return nil, err
	}
	to, err := s.lookup(ctx, req.GetNewDevice())
	if err != nil {
		return nil, err
	}
	v, err := s.Fleet.Replace(ctx, from.Tenant, from.ID, to.ID)
	if err != nil {
		return nil, err
	}
	return &fleetv1.ReplaceDeviceResponse{Device: s.device(v)}, nil
}

func (s *fleetService) LabelDevice(ctx context.Context, req *fleetv1.LabelDeviceRequest) (*fleetv1.LabelDeviceResponse, error) {
	v, err := s.lookup(ctx, req.GetDevice())
	if err != nil {
		return nil, err
	}
	v, err = s.Fleet.Label(ctx, v.Tenant, v.ID, fleet.Edit{Set: req.GetSet(), Remove: req.GetRemove(), Grant: req.GetGrant(), Take: req.GetTake(), Name: req.GetName()})
	if err != nil {
		return nil, err
	}
	return &fleetv1.LabelDeviceResponse{Device: s.device(v)}, nil
}

func (s *fleetService) AssignRelease(ctx context.Context, req *fleetv1.AssignReleaseRequest) (*fleetv1.AssignReleaseResponse, error) {
	v, err := s.lookup(ctx, req.GetDevice())
	if err != nil {
		return nil, err
	}
	var after ota.Digest
	if text := req.GetRelease(); text != "" {
		if after, err = s.Releases.Resolve(ctx, v.Tenant, text); err != nil {
			return nil, err
		}
	}
	store.Note(ctx, v.ID, map[string]any{"release": v.WantedRelease, "generation": v.Wanted.String()}, map[string]any{"release": after})
	// A person names the release, so going back to an older one is meant, and so
	// is another try of one that failed.
	in := fleet.Intent{Device: v.ID, Release: after, RollbackAllowed: true,
		Extra: policy.Extra{Now: req.GetNow()},
		Again: req.GetNow() && after != "" || v.Phase == wire.PhaseFailed && after != "" && v.FailedRelease == after}
	if err := s.Fleet.SetDesiredAll(ctx, v.Tenant, []fleet.Intent{in}); err != nil {
		return nil, err
	}
	if v, err = s.Fleet.Get(v.Tenant, v.ID); err != nil {
		return nil, err
	}
	return &fleetv1.AssignReleaseResponse{Device: s.device(v)}, nil
}

func (s *fleetService) ConfirmGeneration(ctx context.Context, req *fleetv1.ConfirmGenerationRequest) (*fleetv1.ConfirmGenerationResponse, error) {
	v, err := s.lookup(ctx, req.GetDevice())
	if err == nil {
		v, err = s.Fleet.ConfirmGeneration(ctx, v.Tenant, v.ID)
	}
	if err != nil {
		return nil, err
	}
	return &fleetv1.ConfirmGenerationResponse{Device: s.device(v)}, nil
}

func (s *fleetService) CreateTokens(ctx context.Context, req *fleetv1.CreateTokensRequest) (*fleetv1.CreateTokensResponse, error) {
	made, err := s.Desk.CreateTokens(ctx, auth.Tenant(ctx), enroll.TokenSpec{Count: int(req.GetCount()), Uses: int(req.GetUses()),
		TTL: time.Duration(req.GetTtlSeconds()) * time.Second, Labels: req.GetLabels(), Serials: req.GetSerials(), AutoApprove: req.GetAutoApprove(), Force: req.GetForce()})
	if err != nil {
		return nil, err
	}
	resp := &fleetv1.CreateTokensResponse{}
	for _, m := range made {
		resp.Tokens = append(resp.Tokens, &fleetv1.CreatedToken{Token: token(m.Token), Claim: m.Claim})
	}
	return resp, nil
}

func token(t store.Token) *fleetv1.Token {
	return &fleetv1.Token{Id: t.ID, Uses: int32(t.Uses), Used: int32(t.Used), Expires: present.Time(t.Expires), Labels: t.Labels, Serials: t.Serials,
		AutoApprove: t.AutoApprove, Revoked: t.Revoked, Created: present.Time(t.Created), CreatedBy: t.CreatedBy}
}

func (s *fleetService) ListTokens(ctx context.Context, _ *fleetv1.ListTokensRequest) (*fleetv1.ListTokensResponse, error) {
	all, err := s.Desk.Tokens(ctx, auth.Tenant(ctx))
	if err != nil {
		return nil, err
	}
	resp := &fleetv1.ListTokensResponse{}
	for _, t := range all {
		resp.Tokens = append(resp.Tokens, token(t))
	}
	return resp, nil
}

func (s *fleetService) RevokeToken(ctx context.Context, req *fleetv1.RevokeTokenRequest) (*fleetv1.RevokeTokenResponse, error) {
	t, err := s.Desk.RevokeToken(ctx, auth.Tenant(ctx), req.GetId())
	if err != nil {
		return nil, err
	}
	return &fleetv1.RevokeTokenResponse{Token: token(t)}, nil
}

func (s *fleetService) SetParameters(ctx context.Context, req *fleetv1.SetParametersRequest) (*fleetv1.SetParametersResponse, error) {
	set, err := s.parameters(ctx, req.GetSet())
	if err != nil {
		return nil, err
	}
	remove, err := s.parameters(ctx, req.GetRemove())
	if err != nil {
		return nil, err
	}
	if len(set)+len(remove) == 0 {
		return nil, fmt.Errorf("%w: no parameter is given", fleet.ErrInvalid)
	}
	n, err := s.Fleet.SetParameters(ctx, auth.Tenant(ctx), set, remove)
	if err != nil {
		return nil, err
	}
	return &fleetv1.SetParametersResponse{Devices: int32(n)}, nil
}

// parameters translates values; a device may be given by name.
func (s *fleetService) parameters(ctx context.Context, in []*fleetv1.Parameter) ([]fleet.Param, error) {
	var out []fleet.Param
	for _, p := range in {
		q := fleet.Param{Scope: int(p.GetScope()), Subject: p.GetSubject(), Key: p.GetKey(), Value: p.GetValue(), Secret: p.GetSecret()}
		if q.Scope == fleet.ScopeDevice {
			v, err := s.lookup(ctx, q.Subject)
			if err != nil {
				return nil, err
			}
			q.Subject = v.ID
		}
		out = append(out, q)
	}
	return out, nil
}

func (s *fleetService) ListParameters(ctx context.Context, req *fleetv1.ListParametersRequest) (*fleetv1.ListParametersResponse, error) {
	id := ""
	if req.GetDevice() != "" {
		v, err := s.lookup(ctx, req.GetDevice())
		if err != nil {
			return nil, err
		}
		id = v.ID
	}
	all, err := s.Fleet.Parameters(auth.Tenant(ctx), id)
	if err != nil {
		return nil, err
	}
	resp := &fleetv1.ListParametersResponse{}
	for _, p := range all {
		resp.Parameters = append(resp.Parameters, &fleetv1.Parameter{Scope: fleetv1.ParameterScope(p.Scope), Subject: p.Subject, Key: p.Key, Value: p.Value, Secret: p.Secret})
	}
	return resp, nil
}
