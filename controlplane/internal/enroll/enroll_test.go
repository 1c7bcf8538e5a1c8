package enroll

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/pki"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota/slot"
)

// roll counts who was let in.
type roll struct {
	mu  sync.Mutex
	ids map[string]int
}

func (r *roll) Enrolled(d store.Device, _ time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ids[d.ID]++
	return nil
}

func (r *roll) Renewed(context.Context, string, string, []byte, time.Time) error { return nil }

func (r *roll) Noticed(context.Context, string, string, string, string, string) error { return nil }

func desk(t *testing.T) (*Desk, *roll, *time.Time) {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "skein.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	now := time.Now()
	ca, err := pki.Open(slot.NewMem(), "skein.test", now)
	if err != nil {
		t.Fatal(err)
	}
	r := &roll{ids: map[string]int{}}
	return &Desk{DB: db, CA: ca, Fleet: r, Logger: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }}, r, &now
}

func csr(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSingleUseUnderConcurrency lets 20 keys race for a token of three uses,
// each asking twice at the same time: three devices come in, each once, and
// every refusal is in the audit table.
func TestSingleUseUnderConcurrency(t *testing.T) {
	k, r, _ := desk(t)
	toks, err := k.CreateTokens(t.Context(), "t", TokenSpec{Uses: 3, AutoApprove: true, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	byKey := map[int]map[string]bool{}
	refused := 0
	var wg sync.WaitGroup
	for i := range 20 {
		request := csr(t)
		for range 2 {
			wg.Go(func() {
				res, err := k.Enroll(t.Context(), Request{Token: toks[0].Claim, CSR: request})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil && res.Issued != nil:
					if byKey[i] == nil {
						byKey[i] = map[string]bool{}
					}
					byKey[i][res.Device.ID] = true
				case errors.Is(err, ErrUsed):
					refused++
				default:
					t.Errorf("%+v, %v", res, err)
				}
			})
		}
	}
	wg.Wait()
	if len(byKey) != 3 || len(r.ids) != 3 || refused != 34 {
		t.Errorf("%d keys came in as %d devices, %d refusals", len(byKey), len(r.ids), refused)
	}
	for i, ids := range byKey {
		if len(ids) != 1 {
			t.Errorf("key %d became %d devices", i, len(ids))
		}
	}
	denied := 0
	if err := k.DB.View(t.Context(), func(tx *store.Tx) error {
		all, err := tx.Audit(t.Context(), "t", store.AuditFilter{Limit: 1000})
		for _, e := range all {
			if e.Decision == "denied" && strings.Contains(e.Error, "used up") {
				denied++
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if denied != refused {
		t.Errorf("%d refusals, %d in the audit table", refused, denied)
	}
}

func TestTokensEnd(t *testing.T) {
	k, _, now := desk(t)
	toks, err := k.CreateTokens(t.Context(), "t", TokenSpec{Count: 2, TTL: time.Hour, AutoApprove: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.RevokeToken(t.Context(), "t", toks[1].Token.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Enroll(t.Context(), Request{Token: toks[1].Claim, CSR: csr(t)}); !errors.Is(err, ErrToken) {
		t.Errorf("revoked token: %v", err)
	}
	if _, err := k.RevokeToken(t.Context(), "other", toks[0].Token.ID); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("another tenant revoked it: %v", err)
	}
	*now = now.Add(2 * time.Hour)
	if _, err := k.Enroll(t.Context(), Request{Token: toks[0].Claim, CSR: csr(t)}); !errors.Is(err, ErrExpired) {
		t.Errorf("expired token: %v", err)
	}
	if err := k.DB.View(t.Context(), func(tx *store.Tx) error {
		all, err := tx.Tokens(t.Context(), "t")
		for _, tok := range all {
			if strings.Contains(toks[0].Claim, string(tok.Hash)) || tok.Used != 0 {
				t.Errorf("%+v", tok)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestRequestsAreChecked(t *testing.T) {
	k, _, _ := desk(t)
	toks, err := k.CreateTokens(t.Context(), "t", TokenSpec{AutoApprove: true})
	if err != nil {
		t.Fatal(err)
	}
	good := func() Request { return Request{Token: toks[0].Claim, CSR: csr(t)} }
	for name, change := range map[string]func(*Request){
		"long name":    func(r *Request) { r.Name = strings.Repeat("x", 300) },
		"bad target":   func(r *Request) { r.Target = "toaster" },
		"bad label":    func(r *Request) { r.Labels = map[string]string{"a b": "c"} },
		"seal key":     func(r *Request) { r.SealKey = []byte{1} },
		"no request":   func(r *Request) { r.CSR = nil },
		"broken proof": func(r *Request) { r.CSR[len(r.CSR)-1] ^= 1 },
		"too many tags": func(r *Request) {
			r.Labels = map[string]string{}
			for i := range 40 {
				r.Labels["l"+strings.Repeat("x", i+1)] = "v"
			}
		},
	} {
		r := good()
		change(&r)
		if _, err := k.Enroll(t.Context(), r); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := k.Enroll(t.Context(), good()); err != nil {
		t.Errorf("the token was harmed by bad requests: %v", err)
	}
}

// A seal key to which nothing can be sealed is refused at the door: later it
// would hold up everybody who wants to give the device a secret.
func TestWeakSealKeyIsRefused(t *testing.T) {
	k, _, _ := desk(t)
	toks, err := k.CreateTokens(t.Context(), "t", TokenSpec{})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range [][]byte{make([]byte, 32), {31: 0x80}, {1}} {
		if _, err := k.Enroll(t.Context(), Request{Token: toks[0].Claim, CSR: csr(t), SealKey: key}); !errors.Is(err, ErrRequest) || !strings.Contains(err.Error(), "seal key") {
			t.Errorf("%x: %v", key, err)
		}
	}
}
