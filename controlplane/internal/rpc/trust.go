package rpc

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/controlplane/internal/trustview"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/trust"
	trustv1 "github.com/skein-fleet/skein/proto/gen/skein/trust/v1"
)

// Trust is the image repository as those who keep its keys see it.
type Trust interface {
	Status() trust.Status
	Files() (map[string][]byte, error)
	Propose(ctx context.Context, role string, doc []byte, base ota.Digest, now time.Time) error
	AddSignature(ctx context.Context, role string, digest ota.Digest, keyID string, sig []byte, now time.Time) error
	Discard(role string) error
	AutoKey(ctx context.Context) (ed25519.PublicKey, error)
}

// trustService answers skein.trust.v1.TrustService.
type trustService struct{ AppDeps }

func (s *trustService) status() *trustv1.Status {
	out := trustview.Status(s.Trust.Status())
	out.Signer = s.Signer
	return out
}

func (s *trustService) GetTrust(ctx context.Context, req *trustv1.GetTrustRequest) (*trustv1.GetTrustResponse, error) {
	resp := &trustv1.GetTrustResponse{Status: s.status()}
	if !req.GetFiles() {
		return resp, nil
	}
	if key, err := s.Trust.AutoKey(ctx); err != nil {
		s.Logger.Warn("ask for the auto key", "error", err) // shown without it
	} else if resp.Status.AutoKey, err = x509.MarshalPKIXPublicKey(key); err != nil {
		return nil, err
	}
	files, err := s.Trust.Files()
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		resp.Files = append(resp.Files, &trustv1.File{Name: name, Content: files[name]})
	}
	return resp, nil
}

// changed audits a change of the trust metadata before it is answered, and makes
// releases usable that it signed. Waiting for more signatures is no error.
func (s *trustService) changed(ctx context.Context, subject string, after map[string]any, err error) error {
	if err != nil && !errors.Is(err, trust.ErrPending) {
		return err
	}
	store.Note(ctx, subject, nil, after)
	if err := s.Store.Update(ctx, func(*store.Tx) error { return nil }); err != nil {
		return err
	}
	return s.Catalog.Settle(ctx)
}

func (s *trustService) ProposeMetadata(ctx context.Context, req *trustv1.ProposeMetadataRequest) (*trustv1.ProposeMetadataResponse, error) {
	err := s.Trust.Propose(ctx, req.GetRole(), req.GetMetadata(), ota.Digest(req.GetBaseDigest()), s.Now())
	err = s.changed(ctx, "trust/"+req.GetRole(), map[string]any{"proposed": string(ota.DigestOf(req.GetMetadata()))}, err)
	if err != nil {
		return nil, err
	}
	return &trustv1.ProposeMetadataResponse{Status: s.status()}, nil
}

func (s *trustService) AddSignature(ctx context.Context, req *trustv1.AddSignatureRequest) (*trustv1.AddSignatureResponse, error) {
	err := s.Trust.AddSignature(ctx, req.GetRole(), ota.Digest(req.GetDigest()), req.GetKeyId(), req.GetSignature(), s.Now())
	published := err == nil
	err = s.changed(ctx, "trust/"+req.GetRole(), map[string]any{"signed": req.GetDigest(), "key": req.GetKeyId(), "published": published}, err)
	if err != nil {
		return nil, err
	}
	return &trustv1.AddSignatureResponse{Status: s.status(), Published: published}, nil
}

func (s *trustService) DiscardDraft(ctx context.Context, req *trustv1.DiscardDraftRequest) (*trustv1.DiscardDraftResponse, error) {
	err := s.Trust.Discard(req.GetRole())
	if err = s.changed(ctx, "trust/"+req.GetRole(), map[string]any{"discarded": req.GetRole()}, err); err != nil {
		return nil, err
	}
	return &trustv1.DiscardDraftResponse{Status: s.status()}, nil
}
