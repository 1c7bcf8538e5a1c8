// Package pki is how the agent checks servers and shows itself over TLS 1.3.
// It owns the rule for doubtful clocks: while the device's clock cannot be
// trusted, a server certificate is verified in full at the later of the trusted
// floor and the certificate's own NotBefore, so only expiry waits. A wrong
// name, a foreign CA or a wrong key usage is refused in every case. Packages of
// the agent that open connections import it.
package pki

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Now returns the time to judge certificates at, and whether the clock is
// doubtful (then t is the trusted floor).
type Now func() (t time.Time, doubtful bool)

// Dial opens a raw connection.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// ErrNoCA is returned when a server does not send the CA that the claim names.
var ErrNoCA = errors.New("server's certificate chain does not hold the CA named by the claim")

// Roots returns the CA certificates to trust.
type Roots func() (*x509.CertPool, error)

// ClientConfig returns the configuration for connections to host. Roots and the
// device's certificate are asked for at each handshake, so renewed ones are
// used from the next connection on; cert may be nil, or return nil, before
// enrolment.
func ClientConfig(roots Roots, host string, now Now, cert func() *tls.Certificate) *tls.Config {
	verify := func(cs tls.ConnectionState) error {
		pool, err := roots()
		if err != nil {
			return err
		}
		return verifyChain(cs.PeerCertificates, pool, host, now, x509.ExtKeyUsageServerAuth)
	}
	return config(host, verify, cert)
}

// PinnedConfig is ClientConfig for a first contact: the only root is the
// certificate in the server's own chain whose public key has the given hash.
func PinnedConfig(spkiHash [sha256.Size]byte, host string, now Now) *tls.Config {
	verify := func(cs tls.ConnectionState) error {
		roots := x509.NewCertPool()
		found := false
		for _, c := range cs.PeerCertificates {
			sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
			if c.IsCA && subtle.ConstantTimeCompare(sum[:], spkiHash[:]) == 1 {
				roots.AddCert(c)
				found = true
			}
		}
		if !found {
			return ErrNoCA
		}
		return verifyChain(cs.PeerCertificates, roots, host, now, x509.ExtKeyUsageServerAuth)
	}
	return config(host, verify, nil)
}

func config(host string, verify func(tls.ConnectionState) error, cert func() *tls.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		ServerName:         host,
		InsecureSkipVerify: true, // replaced by VerifyConnection, which also runs on resumption
		VerifyConnection:   verify,
		ClientSessionCache: sessions{tls.NewLRUClientSessionCache(4), cert},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert == nil {
				return new(tls.Certificate), nil
			}
			if c := cert(); c != nil {
				return c, nil
			}
			return new(tls.Certificate), nil
		},
	}
}

// sessions keeps sessions apart by the device's certificate: one that is
// resumed shows the server the certificate with which it began.
type sessions struct {
	cache tls.ClientSessionCache
	cert  func() *tls.Certificate
}

func (s sessions) key(server string) string {
	if s.cert == nil {
		return server
	}
	c := s.cert()
	if c == nil || len(c.Certificate) == 0 {
		return server
	}
	sum := sha256.Sum256(c.Certificate[0])
	return server + " " + string(sum[:])
}

// Get implements tls.ClientSessionCache.
func (s sessions) Get(server string) (*tls.ClientSessionState, bool) {
	return s.cache.Get(s.key(server))
}

// Put implements tls.ClientSessionCache.
func (s sessions) Put(server string, st *tls.ClientSessionState) { s.cache.Put(s.key(server), st) }

func verifyChain(chain []*x509.Certificate, roots *x509.CertPool, host string, now Now, usage x509.ExtKeyUsage) error {
	if len(chain) == 0 {
		return errors.New("no certificate was sent")
	}
	at, doubtful := now()
	if doubtful && chain[0].NotBefore.After(at) {
		at = chain[0].NotBefore
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		DNSName: host, Roots: roots, Intermediates: between, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return fmt.Errorf("verify certificate of %s: %w", cmp.Or(host, "a device"), err)
	}
	return nil
}

// RefusedByPeer reports whether err is a TLS alert from the other side, for
// example because the device's certificate is expired or revoked. In TLS 1.3
// such an alert may come in the handshake or at the first read.
func RefusedByPeer(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// ProxyDial returns a Dial that goes through the HTTP proxy that the
// environment names for TLS connections (HTTPS_PROXY, NO_PROXY) by CONNECT, or
// straight where there is none. A nil proxy means http.ProxyFromEnvironment.
func ProxyDial(proxy func(*http.Request) (*url.URL, error)) Dial {
	if proxy == nil {
		proxy = http.ProxyFromEnvironment
	}
	direct := &net.Dialer{Timeout: 30 * time.Second}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		via, err := proxy(&http.Request{URL: &url.URL{Scheme: "https", Host: address}})
		if err != nil {
			return nil, fmt.Errorf("choose proxy for %s: %w", address, err)
		}
		if via == nil {
			return direct.DialContext(ctx, network, address)
		}
		return connect(ctx, direct, via, address)
	}
}

func connect(ctx context.Context, direct *net.Dialer, via *url.URL, address string) (_ net.Conn, err error) {
	host := via.Host
	if via.Port() == "" {
		host = net.JoinHostPort(via.Hostname(), map[string]string{"https": "443"}[via.Scheme])
		if via.Scheme == "http" {
			host = net.JoinHostPort(via.Hostname(), "80")
		}
	}
	conn, err := direct.DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, fmt.Errorf("reach proxy %s: %w", host, err)
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if via.Scheme == "https" {
		secure := tls.Client(conn, &tls.Config{ServerName: via.Hostname(), MinVersion: tls.VersionTLS12})
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, fmt.Errorf("TLS with proxy %s: %w", host, err)
		}
		conn = secure
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if u := via.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("ask proxy %s: %w", host, err)
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, req)
	if err != nil {
		return nil, fmt.Errorf("answer of proxy %s: %w", host, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("proxy %s refuses %s: %s", host, address, resp.Status)
	}
	if !stop() && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	early := make([]byte, br.Buffered()) // what the peer said already
	if _, err := br.Read(early); err != nil && len(early) > 0 {
		return nil, fmt.Errorf("answer of proxy %s: %w", host, err)
	}
	return &prefixConn{Conn: conn, early: bytes.NewReader(early)}, nil
}

// prefixConn reads early before the connection.
type prefixConn struct {
	net.Conn
	early *bytes.Reader
}

func (c *prefixConn) Read(p []byte) (int, error) {
	if c.early.Len() > 0 {
		return c.early.Read(p)
	}
	return c.Conn.Read(p)
}

// HTTPClient returns a client for one host: TLS as configured, no redirects, no
// idle connection kept for long.
func HTTPClient(cfg *tls.Config, dial Dial) *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: cfg, DialContext: dial, ForceAttemptHTTP2: false,
			TLSHandshakeTimeout: 30 * time.Second, ResponseHeaderTimeout: 60 * time.Second,
			IdleConnTimeout: 30 * time.Second, MaxIdleConns: 2,
			TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1: ranges need no more, and it costs 60 KB less a connection
		},
	}
}
