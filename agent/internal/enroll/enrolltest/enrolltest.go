// Package enrolltest is a small control plane for tests of enrolment: a CA, a
// TLS server with the enrolment service, claims with a number of uses, and
// approval on demand. Only tests import it.
package enrolltest

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	enrollv1 "github.com/skein-fleet/skein/proto/gen/skein/enroll/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/enroll/v1/enrollv1connect"
	"github.com/skein-fleet/skein/proto/wire"
)

// Server is the control plane. Fields are changed by Set, or before the first call.
type Server struct {
	*httptest.Server
	CA    *x509.Certificate
	caKey *ecdsa.PrivateKey
	now   time.Time

	// Claim is the text that devices enrol with, Uses how often it may make a
	// new device, Pending how many calls wait for approval first, LoseAnswers
	// how many answers get lost on the way.
	Claim       string
	Uses        int
	Pending     int
	LoseAnswers int
	// Life of device certificates.
	Life time.Duration
	// TrustRoot and MQTTAddress are handed to devices.
	TrustRoot   []byte
	MQTTAddress string

	mu      sync.Mutex // guards all above and what follows
	devices map[string]*enrollv1.EnrollResponse
	Calls   int
	Renewed int
	RenewCA *x509.Certificate // the CA in answers to Renew, CA when nil
	token   string
}

// New starts a server at time now; it ends with the test.
func New(t testing.TB, now time.Time) *Server {
	t.Helper()
	s := &Server{now: now, Uses: 1, Life: 30 * 24 * time.Hour, TrustRoot: []byte("{}"), MQTTAddress: "127.0.0.1:8883", devices: map[string]*enrollv1.EnrollResponse{}}
	var err error
	if s.caKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	s.CA = s.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, s.caKey.Public(), 10*365*24*time.Hour)
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		t.Fatal(err)
	}
	s.token = base64.RawURLEncoding.EncodeToString(secret)
	spki := sha256.Sum256(s.CA.RawSubjectPublicKeyInfo)
	s.Claim = "skein1." + s.token + "." + base64.RawURLEncoding.EncodeToString(spki[:])

	pool := x509.NewCertPool()
	pool.AddCert(s.CA)
	mux := http.NewServeMux()
	path, h := enrollv1connect.NewEnrollServiceHandler(s)
	mux.Handle(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, r.TLS)))
	}))
	s.Server = httptest.NewUnstartedServer(mux)
	s.Server.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.ServerCertificate(t, "127.0.0.1")},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool, Time: func() time.Time { return now }}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// Set changes fields while calls may come in.
func (s *Server) Set(change func(*Server)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

type peerKey struct{}

// issue signs a certificate with the CA; the CA itself when it has none yet.
func (s *Server) issue(t testing.TB, c *x509.Certificate, pub any, life time.Duration) *x509.Certificate {
	der, err := s.sign(c, pub, life)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *Server) sign(c *x509.Certificate, pub any, life time.Duration) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	c.SerialNumber, c.NotBefore, c.NotAfter = serial, s.now.Add(-time.Minute), s.now.Add(life)
	parent := s.CA
	if parent == nil {
		parent = c
	}
	return x509.CreateCertificate(rand.Reader, c, parent, pub, s.caKey)
}

// ServerCertificate is a certificate for a host with the CA in its chain.
func (s *Server) ServerCertificate(t testing.TB, host string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{Subject: pkix.Name{CommonName: host}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	if ip := net.ParseIP(host); ip != nil {
		c.IPAddresses = []net.IP{ip}
	} else {
		c.DNSNames = []string{host}
	}
	leaf := s.issue(t, c, key.Public(), 90*24*time.Hour)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, s.CA.Raw}, PrivateKey: key, Leaf: leaf}
}

// DeviceCertificate signs a device's name for a key.
func (s *Server) DeviceCertificate(device string, pub any, life time.Duration) ([]byte, error) {
	uri, err := url.Parse(wire.SpiffeID("skein.local", "default", device))
	if err != nil {
		return nil, err
	}
	return s.sign(&x509.Certificate{URIs: []*url.URL{uri}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature}, pub, life)
}

// Enroll implements the service.
func (s *Server) Enroll(_ context.Context, req *enrollv1.EnrollRequest) (*enrollv1.EnrollResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Calls++
	if req.GetToken() != s.token {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("unknown claim"))
	}
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil || csr.CheckSignature() != nil || len(req.GetSealKey()) != 32 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("bad request"))
	}
	id := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	device := wire.FormatDeviceID([16]byte(id[:16]))
	resp := s.devices[device]
	if resp == nil {
		if s.Uses == 0 {
			return nil, connect.NewError(connect.CodePermissionDenied, errors.New("claim used up"))
		}
		if s.Pending > 0 {
			s.Pending--
			return &enrollv1.EnrollResponse{State: enrollv1.EnrollState_ENROLL_STATE_PENDING, RetryAfterSeconds: 1}, nil
		}
		der, err := s.DeviceCertificate(device, csr.PublicKey, s.Life)
		if err != nil {
			return nil, err
		}
		s.Uses--
		resp = &enrollv1.EnrollResponse{
			State: enrollv1.EnrollState_ENROLL_STATE_ENROLLED, DeviceId: device, Tenant: "default", CertificateChain: [][]byte{der},
			Ca: [][]byte{s.CA.Raw}, MqttAddress: s.MQTTAddress, BlobUrl: s.URL, TrustRoot: s.TrustRoot,
		}
		s.devices[device] = resp
	}
	if s.LoseAnswers > 0 {
		s.LoseAnswers--
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("answer lost"))
	}
	return resp, nil
}

// Renew implements the service.
func (s *Server) Renew(ctx context.Context, req *enrollv1.RenewRequest) (*enrollv1.RenewResponse, error) {
	state, ok := ctx.Value(peerKey{}).(*tls.ConnectionState)
	if !ok || len(state.VerifiedChains) == 0 {
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("no device certificate"))
	}
	_, _, device, err := wire.ParseSpiffeID(state.VerifiedChains[0][0].URIs[0].String())
	if err != nil {
		return nil, connect.NewError(connect.CodeUnauthenticated, err)
	}
	csr, err := x509.ParseCertificateRequest(req.GetCsr())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Renewed++
	der, err := s.DeviceCertificate(device, csr.PublicKey, s.Life)
	if err != nil {
		return nil, err
	}
	return &enrollv1.RenewResponse{CertificateChain: [][]byte{der}, Ca: [][]byte{cmp.Or(s.RenewCA, s.CA).Raw}}, nil
}
