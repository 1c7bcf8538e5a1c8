package auth

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/skein-fleet/skein/controlplane/internal/store"
)

// TestEveryProcedureHasARule enumerates the services from their descriptors.
func TestEveryProcedureHasARule(t *testing.T) {
	rules := Rules()
	found := 0
	protoregistry.GlobalFiles.RangeFiles(func(fd protoreflect.FileDescriptor) bool {
		if !strings.HasPrefix(string(fd.Package()), "skein.") || strings.HasPrefix(string(fd.Package()), "skein.agentlocal.") {
			return true
		}
		for i := range fd.Services().Len() {
			sd := fd.Services().Get(i)
			for j := range sd.Methods().Len() {
				m := sd.Methods().Get(j)
				procedure := "/" + string(sd.FullName()) + "/" + string(m.Name())
				rule, ok := rules[procedure]
				if !ok {
					t.Errorf("%s has no rule", procedure)
					continue
				}
				found++
				delete(rules, procedure)
				reads := false
				for _, verb := range []string{"List", "Get", "Watch", "Explain", "Plan", "WhoAmI"} {
					reads = reads || strings.HasPrefix(string(m.Name()), verb)
				}
				if rule.Mutates == reads {
					t.Errorf("%s: mutates is %v", procedure, rule.Mutates)
				}
				if rule.Mutates && rule.Role == Viewer {
					t.Errorf("%s: a viewer may change something", procedure)
				}
			}
		}
		return true
	})
	for p := range rules {
		t.Errorf("rule for %s, which does not exist", p)
	}
	if found < 40 {
		t.Errorf("found only %d procedures", found)
	}
}

func guard(t *testing.T) (*Guard, *time.Time) {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "skein.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	now := time.Now()
	return &Guard{DB: db, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }}, &now
}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

func audit(t *testing.T, g *Guard) []store.AuditEntry {
	t.Helper()
	var out []store.AuditEntry
	if err := g.DB.View(t.Context(), func(tx *store.Tx) (err error) {
		out, err = tx.Audit(t.Context(), "t", store.AuditFilter{Limit: 100})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCredentials(t *testing.T) {
	g, now := guard(t)
	c, token, err := g.Create(t.Context(), "t", "ann", Operator, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	p, err := g.Check(t.Context(), token)
	if err != nil || p.Name != "ann" || p.Tenant != "t" {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, bad := range []string{"", "skp_", token + "x", strings.TrimPrefix(token, TokenPrefix)} {
		if _, err := g.Check(t.Context(), bad); !errors.Is(err, ErrUnauthenticated) {
			t.Errorf("Check(%q): %v", bad, err)
		}
	}
	*now = now.Add(2 * time.Hour)
	if _, err := g.Check(t.Context(), token); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("expired: %v", err)
	}
	*now = now.Add(-2 * time.Hour)
	if err := g.DB.Update(t.Context(), func(tx *store.Tx) error { return tx.RevokeCredential(t.Context(), "t", c.ID) }); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Check(t.Context(), token); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("revoked: %v", err)
	}
	if _, _, err := g.Create(t.Context(), "t", "dev", Device, 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("a person got the role of devices: %v", err)
	}
}

func TestRolesAndTrace(t *testing.T) {
	g, _ := guard(t)
	_, viewer, err := g.Create(t.Context(), "t", "vic", Viewer, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, admin, err := g.Create(t.Context(), "t", "ada", Admin, 0)
	if err != nil {
		t.Fatal(err)
	}
	change := Rule{Operator, true}
	if _, _, err := g.enter(t.Context(), bearer(viewer), "x/Change", change, true); !errors.Is(err, ErrDenied) {
		t.Errorf("viewer changes: %v", err)
	}
	if _, _, err := g.enter(t.Context(), bearer(admin), "x/Unknown", Rule{}, false); !errors.Is(err, ErrDenied) {
		t.Errorf("no rule: %v", err)
	}
	if _, _, err := g.enter(t.Context(), bearer(admin), "x/Device", Rule{Device, true}, true); !errors.Is(err, ErrDenied) {
		t.Errorf("admin as device: %v", err)
	}
	if _, _, err := g.enter(t.Context(), http.Header{}, "x/Read", Rule{Viewer, false}, true); !errors.Is(err, ErrUnauthenticated) {
		t.Errorf("nobody: %v", err)
	}
	cookie := http.Header{"Cookie": {CookieName + "=" + viewer}}
	if ctx, rec, err := g.enter(t.Context(), cookie, "x/Read", Rule{Viewer, false}, true); err != nil || rec != nil || Tenant(ctx) != "t" {
		t.Errorf("viewer reads: %v %v %q", rec, err, Tenant(ctx))
	}

	// A change that writes, one that writes nothing, one that fails before and
	// one that fails after its transaction.
	boom := errors.New("boom")
	for _, c := range []struct {
		name  string
		write bool
		err   error
	}{{"writes", true, nil}, {"no-op", false, nil}, {"fails", false, boom}, {"fails-late", true, boom}} {
		ctx, rec, err := g.enter(t.Context(), bearer(admin), c.name, change, true)
		if err != nil {
			t.Fatal(err)
		}
		store.Note(ctx, "subject", nil, "after")
		if c.write {
			if err := g.DB.Update(ctx, func(tx *store.Tx) error { return tx.SetSetting(ctx, "t", "k", c.name) }); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.leave(ctx, rec, c.err); !errors.Is(err, c.err) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	got := map[string][]string{}
	for _, e := range audit(t, g) {
		got[e.Action] = append(got[e.Action], e.Decision+" "+e.Actor+" "+e.Error)
	}
	for action, want := range map[string]int{"writes": 1, "no-op": 1, "fails": 1, "fails-late": 2, "x/Change": 1, "x/Unknown": 1, "x/Device": 1} {
		if len(got[action]) != want {
			t.Errorf("%s: %d entries %q, want %d", action, len(got[action]), got[action], want)
		}
	}
	if e := got["x/Change"]; len(e) == 1 && !strings.HasPrefix(e[0], "denied user:vic") {
		t.Errorf("denied change: %q", e)
	}
}

func TestCode(t *testing.T) {
	for err, want := range map[error]connect.Code{ErrDenied: connect.CodePermissionDenied, ErrUnauthenticated: connect.CodeUnauthenticated} {
		if got := connect.CodeOf(Code(err)); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
	plain := errors.New("x")
	if Code(plain) != plain || context.Canceled != Code(context.Canceled) {
		t.Error("other errors are changed")
	}
}
