// Package auth says who calls, whether the call is allowed, and leaves the
// trace of every call that changes something. It owns credentials, roles and
// the table that gives each procedure its role; what is not in the table is
// denied. Invariants: tokens are stored only hashed; a changing call is
// answered only when its audit entry is durable, and the entry is written in
// the transaction of the change where there is one. Package rpc and the façade
// import it.
package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
)

// Errors of authentication and authorisation.
var (
	ErrUnauthenticated = errors.New("no valid credential")
	ErrDenied          = errors.New("not allowed")
	ErrInvalid         = errors.New("invalid")
)

// Role is what a credential may do; each includes the ones before it.
type Role string

// The roles of people and programs, and the mark of procedures that only
// devices call, with their certificate.
const (
	Viewer   Role = "viewer"
	Operator Role = "operator"
	Admin    Role = "admin"
	Device   Role = "device"
)

var ladder = []Role{Viewer, Operator, Admin}

// Includes reports whether r may do what need may.
func (r Role) Includes(need Role) bool {
	have, want := slices.Index(ladder, r), slices.Index(ladder, need)
	return have >= 0 && want >= 0 && have >= want
}

// TokenPrefix starts every credential's token, so that scanners find leaked ones.
const TokenPrefix = "skp_"

// CookieName is the dashboard's session cookie.
const CookieName = "skein_session"

// Principal is who calls.
type Principal struct{ store.Credential }

// Actor is the principal's name in the audit table.
func (p Principal) Actor() string { return "user:" + p.Name }

type principalKey struct{}

// From returns who calls under ctx; ok is false outside a call.
func From(ctx context.Context) (p Principal, ok bool) {
	p, ok = ctx.Value(principalKey{}).(Principal)
	return p, ok
}

// Tenant returns the tenant of the caller; without a caller nothing matches it.
func Tenant(ctx context.Context) string {
	p, _ := From(ctx)
	return p.Tenant
}

// With returns ctx of a call by p.
func With(ctx context.Context, p Principal) context.Context {
	return context.WithValue(ctx, principalKey{}, p)
}

// Guard authenticates and authorises.
type Guard struct {
	DB     *store.DB
	Logger *slog.Logger
	Now    func() time.Time
}

func hash(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// NewToken returns the token of a new credential.
func NewToken() string { return TokenPrefix + rand.Text() + rand.Text() }

// Create makes a credential; its token is returned once. ttl 0 means for ever.
func (g *Guard) Create(ctx context.Context, tenant, name string, role Role, ttl time.Duration) (store.Credential, string, error) {
	token := NewToken()
	c, err := g.CreateWith(ctx, token, tenant, name, role, ttl)
	return c, token, err
}

// CreateWith is Create with a token that NewToken made.
func (g *Guard) CreateWith(ctx context.Context, token, tenant, name string, role Role, ttl time.Duration) (store.Credential, error) {
	switch {
	case !strings.HasPrefix(token, TokenPrefix):
		return store.Credential{}, fmt.Errorf("%w: a token begins with %s", ErrInvalid, TokenPrefix)
	case !slices.Contains(ladder, role):
		return store.Credential{}, fmt.Errorf("%w: role %q: want viewer, operator or admin", ErrInvalid, role)
	case name == "" || len(name) > 100 || strings.ContainsAny(name, "\n\r"):
		return store.Credential{}, fmt.Errorf("%w: a credential needs a name of at most 100 characters", ErrInvalid)
	case ttl < 0:
		return store.Credential{}, fmt.Errorf("%w: life of a credential is negative", ErrInvalid)
	}
	now := g.Now()
	c := store.Credential{Tenant: tenant, ID: strings.ToLower(rand.Text()[:12]), Name: name, Role: string(role), Hash: hash(token), Created: now}
	if ttl > 0 {
		c.Expires = now.Add(ttl)
	}
	store.Note(ctx, "credential:"+c.ID, nil, map[string]any{"name": name, "role": role, "ttl_seconds": int64(ttl.Seconds())})
	err := g.DB.Update(ctx, func(tx *store.Tx) error { return tx.AddCredential(ctx, c) })
	return c, err
}

// Check returns the principal of a token, or ErrUnauthenticated.
func (g *Guard) Check(ctx context.Context, token string) (Principal, error) {
	if !strings.HasPrefix(token, TokenPrefix) {
		return Principal{}, fmt.Errorf("%w: log in, or send Authorization: Bearer %s…", ErrUnauthenticated, TokenPrefix)
	}
	var c store.Credential
	err := g.DB.View(ctx, func(tx *store.Tx) (err error) {
		c, err = tx.CredentialByHash(ctx, hash(token))
		return err
	})
	switch {
	case errors.Is(err, store.ErrNotFound):
		return Principal{}, fmt.Errorf("%w: this token is unknown", ErrUnauthenticated)
	case err != nil:
		return Principal{}, err
	case c.Revoked:
		return Principal{}, fmt.Errorf("%w: credential %s was revoked", ErrUnauthenticated, c.Name)
	case !c.Expires.IsZero() && g.Now().After(c.Expires):
		return Principal{}, fmt.Errorf("%w: credential %s expired at %s", ErrUnauthenticated, c.Name, c.Expires.Format(time.RFC3339))
	}
	return Principal{c}, nil
}

// tokenOf takes the bearer token, the password of basic authentication, which
// is all that OCI clients know, or the dashboard's cookie.
func tokenOf(h http.Header) string {
	if bearer, ok := strings.CutPrefix(h.Get("Authorization"), "Bearer "); ok {
		return strings.TrimSpace(bearer)
	}
	r := http.Request{Header: h}
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	if c, err := r.Cookie(CookieName); err == nil {
		return c.Value
	}
	return ""
}

// enter authenticates and authorises one call and returns its context. For a
// changing call the context carries the audit record; leave ends it.
func (g *Guard) enter(ctx context.Context, h http.Header, action string, rule Rule, known bool) (context.Context, *store.Record, error) {
	p, err := g.Check(ctx, tokenOf(h))
	if err != nil {
		return ctx, nil, err
	}
	ctx = With(ctx, p)
	text := fmt.Sprintf("role %s for %s", p.Role, action)
	if !known || !Role(p.Role).Includes(rule.Role) {
		want := "no rule allows it"
		if known {
			want = fmt.Sprintf("needs role %s", rule.Role)
		}
		err := fmt.Errorf("%w: %s: %s, credential %s has role %s", ErrDenied, action, want, p.Name, p.Role)
		if !known || rule.Mutates {
			g.write(ctx, store.AuditEntry{Tenant: p.Tenant, Time: g.Now(), Actor: p.Actor(), Action: action, Decision: "denied", Rule: want, Error: err.Error()})
		}
		return ctx, nil, err
	}
	if !rule.Mutates {
		return ctx, nil, nil
	}
	rec := &store.Record{Entry: store.AuditEntry{Tenant: p.Tenant, Time: g.Now(), Actor: p.Actor(), Action: action, Decision: "allowed", Rule: text}}
	return store.WithRecord(ctx, rec), rec, nil
}

// leave makes the trace of a changing call durable when its own transaction
// did not, or when it ended in an error after it. It returns the error to answer.
func (g *Guard) leave(ctx context.Context, rec *store.Record, fault error) error {
	if rec == nil || rec.Written() && fault == nil {
		return fault
	}
	e := rec.Entry
	if fault != nil {
		e.Error = fault.Error()
	}
	if err := g.write(ctx, e); err != nil {
		return errors.Join(fault, err)
	}
	return fault
}

func (g *Guard) write(ctx context.Context, e store.AuditEntry) error {
	ctx = store.WithRecord(context.WithoutCancel(ctx), nil)
	err := g.DB.Update(ctx, func(tx *store.Tx) error { return tx.AddAudit(ctx, e) })
	if err != nil {
		g.Logger.Error("write audit entry", "action", e.Action, "actor", e.Actor, "error", err)
	}
	return err
}
