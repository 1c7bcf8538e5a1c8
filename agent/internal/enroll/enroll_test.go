package enroll

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/agent/internal/enroll/enrolltest"
	"github.com/skein-fleet/skein/agent/internal/pki"
	"github.com/skein-fleet/skein/ota/slot"
)

func at(t time.Time, doubtful bool) pki.Now { return func() (time.Time, bool) { return t, doubtful } }

func options(s *enrolltest.Server, f slot.Files) Options {
	return Options{ServerURL: s.URL, Claim: s.Claim, Name: "cam-1", Serial: "S1", Target: "linux/arm64", Files: f, Now: at(time.Now(), false)}
}

func TestEnroll(t *testing.T) {
	s := enrolltest.New(t, time.Now())
	s.Pending = 1
	f := slot.NewMem()
	o := options(s, f)
	waited := 0
	o.Pending = func(time.Duration) { waited++ }
	id, err := Enroll(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if waited != 1 {
		t.Errorf("waited %d times for approval", waited)
	}
	again, err := Load(f.Crash(1))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(id, again); d != "" {
		t.Error(d)
	}
	if due, err := id.RenewAt(); err != nil || due.Sub(time.Now()).Round(24*time.Hour) != 20*24*time.Hour {
		t.Errorf("renewal of a certificate of 30 days is due %v, %v", due, err)
	}
	// Enrolled already: no second device.
	if _, err := Enroll(t.Context(), o); err != nil || s.Calls != 2 {
		t.Errorf("second enrolment: %v, %d calls", err, s.Calls)
	}
}

// TestLostAnswer loses the answer and the process: the same key gets the same device.
func TestLostAnswer(t *testing.T) {
	s := enrolltest.New(t, time.Now())
	s.LoseAnswers = 1
	f := slot.NewMem()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := options(s, f)
	o.Retrying = func(error, time.Duration) { cancel() }
	if _, err := Enroll(ctx, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("lost answer: %v", err)
	}
	if _, err := Load(f); !errors.Is(err, ErrNotEnrolled) {
		t.Fatalf("identity after a lost answer: %v", err)
	}
	if s.Uses != 0 {
		t.Fatal("the server does not think that the claim is used")
	}
	if _, err := Enroll(t.Context(), options(s, f.Crash(1))); err != nil {
		t.Errorf("asking again with the same key: %v", err)
	}
	// Another device gets nothing for it.
	if _, err := Enroll(t.Context(), options(s, slot.NewMem())); !errors.Is(err, ErrRefused) {
		t.Errorf("second device on a claim for one: %v", err)
	}
}

func TestEnrollRefusesTheWrongServer(t *testing.T) {
	s := enrolltest.New(t, time.Now())
	other := enrolltest.New(t, time.Now())
	for name, o := range map[string]Options{
		"other CA in the claim": {ServerURL: s.URL, Claim: other.Claim},
		"other name":            {ServerURL: strings.Replace(s.URL, "127.0.0.1", "localhost", 1), Claim: s.Claim},
	} {
		o.Files, o.Now = slot.NewMem(), at(time.Now(), false)
		if _, err := Enroll(t.Context(), o); err == nil || !strings.Contains(err.Error(), "not the one that the claim names") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s.Calls+other.Calls != 0 {
		t.Error("the claim was shown to a server that is not trusted")
	}
}

// TestEnrollIn1970 enrols with a clock that starts at the epoch and a floor
// older than the server's certificate.
func TestEnrollIn1970(t *testing.T) {
	s := enrolltest.New(t, time.Now())
	o := options(s, slot.NewMem())
	o.Now = at(time.Unix(0, 0), false)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := Enroll(ctx, o); err == nil {
		t.Error("a certificate that is not valid yet was accepted under a sure clock")
	}
	o.Now = at(time.Now().AddDate(0, 0, -30), true)
	if _, err := Enroll(t.Context(), o); err != nil {
		t.Errorf("doubtful clock with an old floor: %v", err)
	}
}

func TestEnrollOverIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip("no IPv6 on this machine")
	}
	l.Close()
	s := enrolltest.New(t, time.Now())
	v6, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer v6.Close()
	s.TLS.Certificates = append(s.TLS.Certificates[:0], s.ServerCertificate(t, "::1"))
	go s.Config.Serve(tlsListener(v6, s))
	o := options(s, slot.NewMem())
	o.ServerURL = "https://" + v6.Addr().String()
	if _, err := Enroll(t.Context(), o); err != nil {
		t.Error(err)
	}
}

func TestRenew(t *testing.T) {
	s := enrolltest.New(t, time.Now())
	f := slot.NewMem()
	id, err := Enroll(t.Context(), options(s, f))
	if err != nil {
		t.Fatal(err)
	}
	client := pki.HTTPClient(pki.ClientConfig(id.Roots, "127.0.0.1", at(time.Now(), false), id.TLSCertificate), nil)
	defer client.CloseIdleConnections()
	fresh, err := Renew(t.Context(), id, f, client, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	stored, err := Load(f)
	if err != nil || cmp.Equal(fresh.Certificate, id.Certificate) || !cmp.Equal(stored.Certificate, fresh.Certificate) || s.Renewed != 1 {
		t.Errorf("renewed: %v, %d", err, s.Renewed)
	}
	// A renewal that does not fit changes nothing.
	wrong := *id
	wrong.DeviceID = "aaaaaaaaaaaaaaaaaaaaaaaaaa"
	if _, err := Renew(t.Context(), &wrong, f, client, time.Now()); err == nil {
		t.Error("a certificate for another device was stored")
	}
	// Neither does one that would lock the device out.
	if _, err := Renew(t.Context(), id, f, client, time.Now().AddDate(1, 0, 0)); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("a certificate that has ended: %v", err)
	}
	s.Set(func(s *enrolltest.Server) { s.RenewCA = enrolltest.New(t, time.Now()).CA })
	if _, err := Renew(t.Context(), id, f, client, time.Now()); err == nil || !strings.Contains(err.Error(), "stand behind") {
		t.Errorf("a foreign CA: %v", err)
	}
	if after, err := Load(f); err != nil || !cmp.Equal(after.Certificate, fresh.Certificate) {
		t.Errorf("after a bad renewal: %v", err)
	}
}

func TestParseClaim(t *testing.T) {
	part := base64.RawURLEncoding.EncodeToString(make([]byte, sha256.Size))
	if c, err := ParseClaim(" skein1." + part + "." + part + "\n"); err != nil || c.Secret != part {
		t.Errorf("%+v %v", c, err)
	}
	for _, bad := range []string{"", "skein1", "skein2." + part + "." + part, "skein1." + part, "skein1." + part + "." + part[1:], "skein1.!." + part, "skein1." + part + "." + part + ".x"} {
		if _, err := ParseClaim(bad); !errors.Is(err, ErrBadClaim) {
			t.Errorf("ParseClaim(%q): %v", bad, err)
		}
	}
}

func FuzzParseClaim(f *testing.F) {
	f.Add("skein1." + strings.Repeat("A", 43) + "." + strings.Repeat("A", 43))
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseClaim(text)
		if err == nil && !strings.Contains(text, c.Secret) {
			t.Fatalf("%q gave secret %q", text, c.Secret)
		}
	})
}

func TestLoadRefusesDamage(t *testing.T) {
	s := enrolltest.New(t, time.Now())
	f := slot.NewMem()
	if _, err := Enroll(t.Context(), options(s, f)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{identityFile: "{", keyFile: "no key", sealFile: ""} {
		g := f.Crash(1)
		if err := g.WriteFile(name, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if id, err := Load(g); err != nil || id.check() != nil {
			t.Errorf("damaged %s, with a copy: %v", name, err)
		}
		if err := g.WriteFile(name+".copy", []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(g); err == nil || errors.Is(err, ErrNotEnrolled) {
			t.Errorf("damaged %s: %v", name, err)
		}
	}
}
