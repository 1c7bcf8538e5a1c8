package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota/slot"
)

const device = "abcdefghijklmnopqrstuvwxya"

func open(t *testing.T, dir string, now time.Time) *Authority {
	t.Helper()
	files, err := slot.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = files.Close() })
	a, err := Open(files, "skein.test", now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t *testing.T, a *Authority, now time.Time) []*x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	is, err := a.IssueDevice(key.Public(), "default", device, now)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(is.Chain[0])
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{leaf}
}

func TestReopenIsTheSameAuthority(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	a := open(t, dir, now)
	b := open(t, dir, now.Add(time.Hour))
	if a.SPKIHash() != b.SPKIHash() {
		t.Error("a second start made another CA")
	}
	info, err := os.Stat(filepath.Join(dir, keyFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("CA key: %v, %v", info.Mode(), err)
	}
	if _, err := b.Verify(issue(t, a, now), now, false); err != nil {
		t.Errorf("certificate from before the restart: %v", err)
	}
}

func TestVerify(t *testing.T) {
	now := time.Now()
	a, other := open(t, t.TempDir(), now), open(t, t.TempDir(), now)
	certs := issue(t, a, now)
	p, err := a.Verify(certs, now, false)
	if err != nil || p.Tenant != "default" || p.Device != device || p.Expired {
		t.Fatalf("%+v, %v", p, err)
	}
	if _, err := a.Verify(nil, now, false); !errors.Is(err, ErrNoCertificate) {
		t.Errorf("none: %v", err)
	}
	if _, err := other.Verify(certs, now, false); !errors.Is(err, ErrCertificate) {
		t.Errorf("foreign CA: %v", err)
	}
	late := now.Add(DeviceLife + time.Hour)
	if _, err := a.Verify(certs, late, false); !errors.Is(err, ErrExpired) {
		t.Errorf("expired: %v", err)
	}
	if p, err := a.Verify(certs, late, true); err != nil || !p.Expired {
		t.Errorf("expired, for Renew: %+v, %v", p, err)
	}
	if _, err := a.Verify(certs, late.Add(RenewGrace), true); !errors.Is(err, ErrExpired) {
		t.Errorf("long expired, for Renew: %v", err)
	}
	server, err := a.issueServer([]string{"localhost"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Verify([]*x509.Certificate{server.Leaf}, now, false); !errors.Is(err, ErrCertificate) {
		t.Errorf("a server certificate passed as a device: %v", err)
	}
}

func TestRequestIgnoresNamesAndRefusesWeakKeys(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}}, weak)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := RequestKey(csr); !errors.Is(err, ErrKey) {
		t.Errorf("RSA: %v", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"evil"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := RequestKey(csr); err != nil {
		t.Error(err)
	}
	csr[len(csr)-1] ^= 1
	if _, _, err := RequestKey(csr); err == nil {
		t.Error("a request with a broken signature was accepted")
	}
}

func TestServerCertificateIsRenewedInTime(t *testing.T) {
	now := time.Now()
	a := open(t, t.TempDir(), now)
	s := a.Server([]string{"localhost", "127.0.0.1", "::1"}, func() time.Time { return now })
	get := func() *tls.Certificate {
		c, err := s.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := get()
	for _, name := range []string{"localhost", "127.0.0.1", "[::1]"} {
		if _, err := first.Leaf.Verify(x509.VerifyOptions{Roots: a.Pool(), DNSName: name, CurrentTime: now}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	now = now.Add(ServerLife / 2)
	if get() != first {
		t.Error("renewed too early")
	}
	now = now.Add(ServerLife / 4)
	if get() == first {
		t.Error("not renewed in time")
	}
}

func FuzzRequestKey(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csr)
	f.Fuzz(func(t *testing.T, b []byte) {
		pub, spki, err := RequestKey(b)
		if (err == nil) != (pub != nil && len(spki) > 0) {
			t.Errorf("key %v, %d bytes, %v", pub, len(spki), err)
		}
	})
}
