package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/controlplane"
	enrollv1 "github.com/skein-fleet/skein/proto/gen/skein/enroll/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/enroll/v1/enrollv1connect"
	"github.com/skein-fleet/skein/proto/wire"
)

var zeros = strings.Repeat("0", 64)

// client is an HTTPS client with a device's certificate; nil has none.
func (s *server) client(id *agent.Identity) *http.Client {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true} // the server is ours; its clients are judged here
	if id != nil {
		cfg = tlsAs(s.t, id)
	}
	tr := &http.Transport{TLSClientConfig: cfg}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// fetch gets a path of the device port with a device's certificate.
func (s *server) fetch(id *agent.Identity, path string) (status int, body string) {
	s.t.Helper()
	return s.get1(s.client(id), s.url, path)
}

// get1 gets base+path, as it is written.
func (s *server) get1(c *http.Client, base, path string) (status int, body string) {
	s.t.Helper()
	u, err := url.Parse(base)
	if err != nil {
		s.t.Fatal(err)
	}
	u.Opaque = "//" + u.Host + path
	req := (&http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: http.Header{}}).WithContext(s.t.Context())
	resp, err := c.Do(req)
	if err != nil {
		s.t.Fatalf("%s: %v", path, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		s.t.Fatalf("%s: %v", path, err)
	}
	return resp.StatusCode, string(raw)
}

// renew asks for a new certificate with the one of id.
func (s *server) renew(id *agent.Identity) error {
	s.t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), id.Key)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	r, err := enrollv1connect.NewEnrollServiceClient(s.client(id), s.url).Renew(ctx, &enrollv1.RenewRequest{Csr: csr})
	if err != nil {
		return err
	}
	if leaf, err := x509.ParseCertificate(r.GetCertificateChain()[0]); err != nil || time.Now().After(leaf.NotAfter) {
		return errors.Join(err, errors.New("the new certificate is not valid now"))
	}
	return nil
}

// oldCA gives a server a CA that is older than any certificate of a test.
func oldCA(c *controlplane.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Skein CA"}, NotBefore: time.Now().AddDate(-2, 0, 0), NotAfter: time.Now().AddDate(5, 0, 0),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	err = os.MkdirAll(c.DataDir, 0o700)
	for name, block := range map[string]*pem.Block{"ca.crt": {Type: "CERTIFICATE", Bytes: der}, "ca.key": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		err = errors.Join(err, os.WriteFile(filepath.Join(c.DataDir, name), pem.EncodeToMemory(block), 0o600))
	}
	if err != nil {
		panic(err)
	}
}

// issue makes a device certificate of another time with the server's CA.
func (s *server) issue(id *agent.Identity, from, to time.Time) []byte {
	s.t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(s.cfg.DataDir, "ca.crt"), filepath.Join(s.cfg.DataDir, "ca.key"))
	if err != nil {
		s.t.Fatal(err)
	}
	uri, err := url.Parse(wire.SpiffeID("skein.local", id.Tenant, id.DeviceID))
	if err != nil {
		s.t.Fatal(err)
	}
	now, err := x509.ParseCertificate(id.Certificate[0])
	if err != nil {
		s.t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(from.Unix()), Subject: pkix.Name{CommonName: now.Subject.CommonName}, NotBefore: from, NotAfter: to,
		URIs: []*url.URL{uri}, KeyUsage: now.KeyUsage, ExtKeyUsage: now.ExtKeyUsage, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, pair.Leaf, id.Key.Public().(*ecdsa.PublicKey), pair.PrivateKey)
	if err != nil {
		s.t.Fatal(err)
	}
	return der
}
