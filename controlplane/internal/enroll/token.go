package enroll

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
)

// Limits of tokens.
const (
	defaultTTL = 24 * time.Hour
	maxTTL     = 5 * 365 * 24 * time.Hour
	maxTokens  = 10000
	maxUses    = 100000
)

// TokenSpec says which tokens to make.
type TokenSpec struct {
	Count       int // 0: 1
	Uses        int // 0: 1
	TTL         time.Duration
	Labels      map[string]string
	Serials     []string
	AutoApprove bool
	Force       bool
}

func (s *TokenSpec) check() error {
	if s.Count < 0 || s.Uses < 0 {
		return fmt.Errorf("%w: %d tokens of %d uses: want at least 1", fleet.ErrInvalid, s.Count, s.Uses)
	}
	s.Count, s.Uses = max(s.Count, 1), max(s.Uses, 1)
	if s.TTL == 0 {
		s.TTL = defaultTTL
	}
	if err := fleet.CheckLabels(s.Labels); err != nil {
		return err
	}
	for i, serial := range s.Serials {
		s.Serials[i] = strings.TrimSpace(serial)
		if s.Serials[i] == "" || len(serial) > maxText {
			return fmt.Errorf("%w: serial number %d is empty or over %d characters", fleet.ErrInvalid, i+1, maxText)
		}
	}
	unique := slices.Clone(s.Serials)
	slices.Sort(unique)
	if len(slices.Compact(unique)) != len(s.Serials) {
		return fmt.Errorf("%w: a serial number is given twice", fleet.ErrInvalid)
	}
	switch {
	case s.Count > maxTokens || s.Uses > maxUses:
		return fmt.Errorf("%w: at most %d tokens of %d uses at a time", fleet.ErrInvalid, maxTokens, maxUses)
	case s.TTL < 0 || s.TTL > maxTTL:
		return fmt.Errorf("%w: life of a token: want more than 0 and at most %d days", fleet.ErrInvalid, maxTTL/(24*time.Hour))
	case len(s.Serials) > 0 && s.Count > 1 && s.Count != len(s.Serials):
		return fmt.Errorf("%w: %d tokens and %d serial numbers: want one token for all, or one for each", fleet.ErrInvalid, s.Count, len(s.Serials))
	case s.AutoApprove && len(s.Serials) == 0 && s.Uses > 1 && !s.Force:
		return fmt.Errorf("%w: a token that approves by itself and may be used %d times is bound to nothing: name serial numbers, make it single-use, or force it", fleet.ErrInvalid, s.Uses)
	}
	return nil
}

// NewToken is a token and its claim text, which is shown once.
type NewToken struct {
	Token store.Token
	Claim string
}

// CreateTokens makes tokens, all or none.
func (k *Desk) CreateTokens(ctx context.Context, tenant string, s TokenSpec) ([]NewToken, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	now := k.Now()
	out := make([]NewToken, s.Count)
	ids := make([]string, s.Count)
	for i := range out {
		secret := make([]byte, 32)
		if _, err := rand.Read(secret); err != nil {
			return nil, fmt.Errorf("make token: %w", err)
		}
		sum := sha256.Sum256(secret)
		id := strings.ToLower(rand.Text()[:12])
		t := store.Token{Tenant: tenant, ID: id, Hash: sum[:], Uses: s.Uses, Expires: now.Add(s.TTL).Truncate(time.Millisecond), Labels: s.Labels, Serials: s.Serials,
			AutoApprove: s.AutoApprove, Created: now, CreatedBy: store.Actor(ctx)}
		if s.Count > 1 && len(s.Serials) == s.Count {
			t.Serials = s.Serials[i : i+1]
		}
		out[i], ids[i] = NewToken{t, k.Claim(secret)}, id
	}
	store.Note(ctx, strings.Join(ids[:min(len(ids), 10)], ","), nil, map[string]any{"tokens": s.Count, "uses": s.Uses, "serials": len(s.Serials),
		"auto_approve": s.AutoApprove, "expires": now.Add(s.TTL).UTC().Format(time.RFC3339)})
	err := k.DB.Update(ctx, func(tx *store.Tx) error {
		for _, t := range out {
			if err := tx.AddToken(ctx, t.Token); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// Tokens lists the tokens of a tenant.
func (k *Desk) Tokens(ctx context.Context, tenant string) (out []store.Token, err error) {
	err = k.DB.View(ctx, func(tx *store.Tx) error {
		out, err = tx.Tokens(ctx, tenant)
		return err
	})
	return out, err
}

// RevokeToken makes a token useless; devices that it let in stay.
func (k *Desk) RevokeToken(ctx context.Context, tenant, id string) (t store.Token, err error) {
	err = k.DB.Update(ctx, func(tx *store.Tx) error {
		if err := tx.RevokeToken(ctx, tenant, id); err != nil {
			return err
		}
		t, err = tx.Token(ctx, tenant, id)
		store.Note(ctx, "token:"+id, nil, map[string]any{"revoked": true, "used": t.Used})
		return err
	})
	return t, err
}
