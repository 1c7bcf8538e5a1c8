package pki

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

var start = time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)

// chain makes a CA and a server certificate of 30 days from start.
func chain(t *testing.T, usage x509.ExtKeyUsage) []*x509.Certificate {
	t.Helper()
	make1 := func(c, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
		c.SerialNumber = big.NewInt(1)
		if parent == nil {
			parent = c
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		out, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	caKey := key()
	ca := make1(&x509.Certificate{NotBefore: start.AddDate(-1, 0, 0), NotAfter: start.AddDate(9, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, caKey, caKey)
	leaf := make1(&x509.Certificate{NotBefore: start, NotAfter: start.AddDate(0, 0, 30), DNSNames: []string{"skein.local"}, ExtKeyUsage: []x509.ExtKeyUsage{usage}}, ca, key(), caKey)
	return []*x509.Certificate{leaf, ca}
}

func fixed(p *x509.CertPool) Roots { return func() (*x509.CertPool, error) { return p, nil } }

// TestSessionIsOfOneCertificate: after a renewal the server sees the new
// certificate, not the one of the session that is resumed.
func TestSessionIsOfOneCertificate(t *testing.T) {
	now := time.Now()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(serial int64) *tls.Certificate {
		c := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			DNSNames: []string{"skein.local"}, IsCA: true, BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	server := issue(1)
	leaf, err := x509.ParseCertificate(server.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{*server}, ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type seen struct {
		serial  int64
		resumed bool
	}
	got := make(chan seen, 3)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, err = c.Write([]byte("x")) // with it go the session tickets
			st := c.(*tls.Conn).ConnectionState()
			c.Close()
			if err == nil {
				got <- seen{st.PeerCertificates[0].SerialNumber.Int64(), st.DidResume}
			}
		}
	}()
	cert := issue(10)
	cfg := ClientConfig(fixed(roots), "skein.local", func() (time.Time, bool) { return now, false }, func() *tls.Certificate { return cert })
	for i, want := range []seen{{10, false}, {10, true}, {11, false}, {11, true}} {
		if i == 2 {
			cert = issue(11)
		}
		c, err := tls.Dial("tcp", l.Addr().String(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if s := <-got; s != want {
			t.Errorf("connection %d: %+v, want %+v", i, s, want)
		}
	}
}

func TestClockFloor(t *testing.T) {
	c := chain(t, x509.ExtKeyUsageServerAuth)
	roots := x509.NewCertPool()
	roots.AddCert(c[1])
	for name, tc := range map[string]struct {
		now      time.Time
		doubtful bool
		host     string
		ok       bool
	}{
		"in time":                            {start.AddDate(0, 0, 1), false, "skein.local", true},
		"1970, sure":                         {time.Unix(0, 0), false, "skein.local", false},
		"floor before the renewal, doubtful": {start.AddDate(0, 0, -30), true, "skein.local", true},
		"floor within, doubtful":             {start.AddDate(0, 0, 3), true, "skein.local", true},
		"floor past expiry, doubtful":        {start.AddDate(0, 0, 31), true, "skein.local", false},
		"wrong name, doubtful":               {start.AddDate(0, 0, -30), true, "other.local", false},
	} {
		cfg := ClientConfig(fixed(roots), tc.host, func() (time.Time, bool) { return tc.now, tc.doubtful }, nil)
		if err := cfg.VerifyConnection(tls.ConnectionState{PeerCertificates: c}); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	now := func() (time.Time, bool) { return start, true }
	if err := ClientConfig(fixed(roots), "skein.local", now, nil).VerifyConnection(tls.ConnectionState{}); err == nil {
		t.Error("no certificate was accepted")
	}
	client := chain(t, x509.ExtKeyUsageClientAuth)
	theirs := x509.NewCertPool()
	theirs.AddCert(client[1])
	if err := ClientConfig(fixed(theirs), "skein.local", now, nil).VerifyConnection(tls.ConnectionState{PeerCertificates: client}); err == nil {
		t.Error("a device's certificate was accepted as a server's")
	}
	hash := sha256.Sum256(c[1].RawSubjectPublicKeyInfo)
	if err := PinnedConfig(hash, "skein.local", now).VerifyConnection(tls.ConnectionState{PeerCertificates: c}); err != nil {
		t.Error(err)
	}
	if err := PinnedConfig(hash, "skein.local", now).VerifyConnection(tls.ConnectionState{PeerCertificates: client}); !errors.Is(err, ErrNoCA) {
		t.Errorf("other CA: %v", err)
	}
	// The hash of the leaf's own key does not make it a CA.
	leaf := sha256.Sum256(c[0].RawSubjectPublicKeyInfo)
	if err := PinnedConfig(leaf, "skein.local", now).VerifyConnection(tls.ConnectionState{PeerCertificates: c}); !errors.Is(err, ErrNoCA) {
		t.Errorf("hash of the leaf: %v", err)
	}
}

// connectProxy is an HTTP proxy that knows CONNECT only; it records requests.
func connectProxy(t *testing.T, status string) (addr string, seen chan *http.Request) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	seen = make(chan *http.Request, 4)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				req, err := http.ReadRequest(bufio.NewReader(c))
				if err != nil {
					return
				}
				seen <- req
				if status != "" {
					fmt.Fprintf(c, "HTTP/1.1 %s\r\n\r\n", status)
					return
				}
				// The first byte of the other side comes in the same packet.
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n\r\nhello")
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String(), seen
}

func TestProxyDial(t *testing.T) {
	addr, seen := connectProxy(t, "")
	dial := ProxyDial(func(*http.Request) (*url.URL, error) {
		return &url.URL{Scheme: "http", Host: addr, User: url.UserPassword("me", "secret")}, nil
	})
	c, err := dial(t.Context(), "tcp", "[2001:db8::1]:8883")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	req := <-seen
	if req.Method != http.MethodConnect || req.Host != "[2001:db8::1]:8883" || !strings.HasPrefix(req.Header.Get("Proxy-Authorization"), "Basic ") {
		t.Errorf("%s %s %v", req.Method, req.Host, req.Header)
	}
	if _, err := io.WriteString(c, " again"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len("hello again"))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello again" {
		t.Errorf("%q %v", got, err)
	}
}

func TestProxyRefusesAndIsSilent(t *testing.T) {
	addr, _ := connectProxy(t, "407 Proxy Authentication Required")
	via := func(*http.Request) (*url.URL, error) { return &url.URL{Scheme: "http", Host: addr}, nil }
	if _, err := ProxyDial(via)(t.Context(), "tcp", "skein.local:8883"); err == nil || !strings.Contains(err.Error(), "407") {
		t.Errorf("refused: %v", err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	addr = silent.Addr().String()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := ProxyDial(via)(ctx, "tcp", "skein.local:8883"); err == nil {
		t.Error("a silent proxy gave a connection")
	}
}
