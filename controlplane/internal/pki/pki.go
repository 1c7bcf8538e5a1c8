// Package pki is the certificate authority of one control plane: its root, the
// server certificates of the device ports and the client certificates of
// devices. It owns the CA key (ECDSA P-256, mode 0600). Invariants: names in a
// device certificate come from our records and never from a request; a chain
// is verified against this CA alone, at a given time. The façade and enroll
// import it.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// Lives of certificates.
const (
	CALife     = 20 * 365 * 24 * time.Hour
	ServerLife = 90 * 24 * time.Hour
	DeviceLife = 30 * 24 * time.Hour
	// RenewGrace is how long after its end an unrevoked certificate may still
	// call Renew.
	RenewGrace = 180 * 24 * time.Hour
	// backdate lets devices whose clock is a little behind accept a fresh certificate.
	backdate = time.Hour
)

// Errors of Verify and IssueDevice.
var (
	ErrNoCertificate = errors.New("no device certificate was presented")
	ErrCertificate   = errors.New("not a valid device certificate of this control plane")
	ErrExpired       = errors.New("device certificate is expired")
	ErrKey           = errors.New("want an ECDSA P-256 or Ed25519 key")
)

const (
	keyFile  = "ca.key"
	certFile = "ca.crt"
)

// Authority issues and verifies. It is safe for concurrent use.
type Authority struct {
	domain string
	key    crypto.Signer
	cert   *x509.Certificate
	pool   *x509.CertPool
}

// Open reads the authority from files, making it at the first start.
func Open(files slot.Files, domain string, now time.Time) (*Authority, error) {
	keyPEM, err := files.ReadFile(keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return create(files, domain, now)
	}
	if err != nil {
		return nil, fmt.Errorf("read CA key: %w", err)
	}
	certPEM, err := files.ReadFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("CA in %s: %w", files.Path(certFile), err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("CA key in %s cannot sign", files.Path(keyFile))
	}
	return newAuthority(domain, key, pair.Leaf), nil
}

func newAuthority(domain string, key crypto.Signer, cert *x509.Certificate) *Authority {
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &Authority{domain: domain, key: key, cert: cert, pool: pool}
}

func create(files slot.Files, domain string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Skein CA " + domain},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(CALife), // a day back: devices of other time zones boot with a wrong clock
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode CA key: %w", err)
	}
	// The certificate first: a key without it would stop every later start.
	if err := files.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})); err != nil {
		return nil, fmt.Errorf("write CA certificate: %w", err)
	}
	if err := files.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})); err != nil {
		return nil, fmt.Errorf("write CA key: %w", err)
	}
	return newAuthority(domain, key, cert), nil
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// CA returns the CA certificates to trust, DER.
func (a *Authority) CA() [][]byte { return [][]byte{a.cert.Raw} }

// CAPEM returns the CA certificate as PEM.
func (a *Authority) CAPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// SPKIHash is the sha256 of the CA's public key, which claim tokens carry.
func (a *Authority) SPKIHash() [32]byte { return sha256.Sum256(a.cert.RawSubjectPublicKeyInfo) }

// Pool holds the CA.
func (a *Authority) Pool() *x509.CertPool { return a.pool }

// Issued is a new device certificate.
type Issued struct {
	Serial              string // hex
	Chain               [][]byte
	NotBefore, NotAfter time.Time
}

// IssueDevice makes a client certificate for a device's key.
func (a *Authority) IssueDevice(pub crypto.PublicKey, tenant, device string, now time.Time) (Issued, error) {
	if err := checkKey(pub); err != nil {
		return Issued{}, err
	}
	serial, err := newSerial()
	if err != nil {
		return Issued{}, err
	}
	uri, err := url.Parse(wire.SpiffeID(a.domain, tenant, device))
	if err != nil {
		return Issued{}, fmt.Errorf("name of device %s: %w", device, err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: device}, URIs: []*url.URL{uri},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(DeviceLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, pub, a.key)
	if err != nil {
		return Issued{}, fmt.Errorf("issue certificate for %s: %w", device, err)
	}
	return Issued{Serial: hex.EncodeToString(serial.Bytes()), Chain: [][]byte{der, a.cert.Raw},
		NotBefore: tmpl.NotBefore.Truncate(time.Second), NotAfter: tmpl.NotAfter.Truncate(time.Second)}, nil
}

func checkKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case ed25519.PublicKey:
		return nil
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() {
			return nil
		}
	}
	return fmt.Errorf("%w, not %T", ErrKey, pub)
}

// RequestKey checks a certificate request's proof of possession and returns
// its key and the key's DER. All names in it are ignored.
func RequestKey(csr []byte) (pub crypto.PublicKey, spki []byte, err error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := checkKey(req.PublicKey); err != nil {
		return nil, nil, fmt.Errorf("certificate request: %w", err)
	}
	return req.PublicKey, req.RawSubjectPublicKeyInfo, nil
}

// Peer is a device as its certificate names it.
type Peer struct {
	Tenant, Device string
	Leaf           *x509.Certificate
	Expired        bool // only with allowExpired
}

// Verify checks the certificates that a device presented over TLS, which has
// proved possession of the key. With allowExpired one that ended not longer
// than RenewGrace ago passes and is marked.
func (a *Authority) Verify(certs []*x509.Certificate, now time.Time, allowExpired bool) (Peer, error) {
	if len(certs) == 0 {
		return Peer{}, ErrNoCertificate
	}
	leaf := certs[0]
	at, expired := now, now.After(leaf.NotAfter)
	if expired {
		if !allowExpired || now.Sub(leaf.NotAfter) > RenewGrace {
			return Peer{}, fmt.Errorf("%w since %s", ErrExpired, leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		at = leaf.NotAfter
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: a.pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return Peer{}, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	if len(leaf.URIs) != 1 {
		return Peer{}, fmt.Errorf("%w: %d URI names, want one", ErrCertificate, len(leaf.URIs))
	}
	domain, tenant, device, err := wire.ParseSpiffeID(leaf.URIs[0].String())
	if err != nil {
		return Peer{}, fmt.Errorf("%w: %w", ErrCertificate, err)
	}
	if domain != a.domain {
		return Peer{}, fmt.Errorf("%w: domain %q, this one is %q", ErrCertificate, domain, a.domain)
	}
	return Peer{Tenant: tenant, Device: device, Leaf: leaf, Expired: expired}, nil
}

// Server keeps a server certificate for the device ports and renews it in time.
type Server struct {
	ca    *Authority
	names []string
	now   func() time.Time

	mu   sync.Mutex // guards cert
	cert *tls.Certificate
}

// Server returns a certificate source for DNS names and IP addresses.
func (a *Authority) Server(names []string, now func() time.Time) *Server {
	return &Server{ca: a, names: slices.Clone(names), now: now}
}

// GetCertificate is for tls.Config.
func (s *Server) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if s.cert != nil && s.cert.Leaf.NotAfter.Sub(now) > ServerLife/3 && !now.Before(s.cert.Leaf.NotBefore) {
		return s.cert, nil
	}
	cert, err := s.ca.issueServer(s.names, now)
	if err != nil {
		return nil, err
	}
	s.cert = cert
	return cert, nil
}

func (a *Authority) issueServer(names []string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make server key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "skeind"},
		// Devices boot with clocks that are behind; the CA bounds how far back.
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(ServerLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	if a.cert.NotBefore.After(tmpl.NotBefore) {
		tmpl.NotBefore = a.cert.NotBefore
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("issue server certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("issue server certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}
