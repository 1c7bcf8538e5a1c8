package rpc

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	auditv1 "github.com/skein-fleet/skein/proto/gen/skein/audit/v1"
	authv1 "github.com/skein-fleet/skein/proto/gen/skein/auth/v1"
	"github.com/skein-fleet/skein/proto/present"
)

type authService struct{ Deps }

func credential(c store.Credential) *authv1.Credential {
	return &authv1.Credential{Id: c.ID, Name: c.Name, Role: c.Role, Tenant: c.Tenant, Created: present.Time(c.Created), Expires: present.Time(c.Expires), Revoked: c.Revoked}
}

func (s *authService) WhoAmI(ctx context.Context, _ *authv1.WhoAmIRequest) (*authv1.WhoAmIResponse, error) {
	p, ok := auth.From(ctx)
	if !ok {
		return nil, auth.ErrUnauthenticated
	}
	return &authv1.WhoAmIResponse{Credential: credential(p.Credential), ServerVersion: s.Version}, nil
}

func (s *authService) CreateCredential(ctx context.Context, req *authv1.CreateCredentialRequest) (*authv1.CreateCredentialResponse, error) {
	c, token, err := s.Guard.Create(ctx, auth.Tenant(ctx), req.GetName(), auth.Role(req.GetRole()), time.Duration(req.GetTtlSeconds())*time.Second)
	if err != nil {
		return nil, err
	}
	return &authv1.CreateCredentialResponse{Credential: credential(c), Token: token}, nil
}

func (s *authService) ListCredentials(ctx context.Context, _ *authv1.ListCredentialsRequest) (*authv1.ListCredentialsResponse, error) {
	resp := &authv1.ListCredentialsResponse{}
	err := s.Store.View(ctx, func(tx *store.Tx) error {
		all, err := tx.Credentials(ctx, auth.Tenant(ctx))
		for _, c := range all {
			resp.Credentials = append(resp.Credentials, credential(c))
		}
		return err
	})
	return resp, err
}

func (s *authService) RevokeCredential(ctx context.Context, req *authv1.RevokeCredentialRequest) (*authv1.RevokeCredentialResponse, error) {
	tenant := auth.Tenant(ctx)
	var c store.Credential
	err := s.Store.Update(ctx, func(tx *store.Tx) (err error) {
		if err := tx.RevokeCredential(ctx, tenant, req.GetId()); err != nil {
			return err
		}
		c, err = tx.Credential(ctx, tenant, req.GetId())
		store.Note(ctx, "credential:"+req.GetId(), nil, map[string]any{"name": c.Name, "revoked": true})
		return err
	})
	if err != nil {
		return nil, err
	}
	return &authv1.RevokeCredentialResponse{Credential: credential(c)}, nil
}

type auditService struct{ db *store.DB }

const maxAudit = 1000

func (s *auditService) ListEntries(ctx context.Context, req *auditv1.ListEntriesRequest) (*auditv1.ListEntriesResponse, error) {
	limit := cmp.Or(int(req.GetLimit()), 100)
	if limit < 0 || limit > maxAudit {
		return nil, fmt.Errorf("%w: limit: want 1 to %d", auth.ErrInvalid, maxAudit)
	}
	resp := &auditv1.ListEntriesResponse{}
	err := s.db.View(ctx, func(tx *store.Tx) error {
		all, err := tx.Audit(ctx, auth.Tenant(ctx), store.AuditFilter{Subject: req.GetSubject(), Actor: req.GetActor(), BeforeSequence: req.GetBeforeSequence(), Limit: limit})
		for _, e := range all {
			resp.Entries = append(resp.Entries, &auditv1.Entry{Sequence: e.Sequence, Time: present.Time(e.Time), Tenant: e.Tenant, Actor: e.Actor, Action: e.Action,
				Subject: e.Subject, Decision: e.Decision, Rule: e.Rule, Before: e.Before, After: e.After, Error: e.Error})
		}
		return err
	})
	return resp, err
}
