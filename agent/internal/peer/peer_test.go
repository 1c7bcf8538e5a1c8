package peer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/internal/pki"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// authority signs certificates of devices.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, key: newKey(t)}
	c := &x509.Certificate{Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.cert = c
	_, a.cert = a.sign(c, a.key.Public())
	return a
}

func (a *authority) sign(c *x509.Certificate, pub any) (der []byte, cert *x509.Certificate) {
	a.t.Helper()
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, pub, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err = x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return der, cert
}

// device returns what a device shows.
func (a *authority) device(tenant, id string) *tls.Certificate {
	a.t.Helper()
	uri, err := url.Parse(wire.SpiffeID("skein.local", tenant, id))
	if err != nil {
		a.t.Fatal(err)
	}
	key := newKey(a.t)
	der, _ := a.sign(&x509.Certificate{URIs: []*url.URL{uri}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature}, key.Public())
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) roots() (*x509.CertPool, error) {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p, nil
}

func clock() (time.Time, bool) { return time.Now(), false }

var (
	cacheID   = wire.FormatDeviceID([16]byte{1})
	siblingID = wire.FormatDeviceID([16]byte{2})
	otherID   = wire.FormatDeviceID([16]byte{3})
)

// uplink is the control plane: it gives blobs and counts them.
type uplink struct {
	mu    sync.Mutex
	blobs map[ota.Digest][]byte
	opens map[ota.Digest]int
	gate  chan struct{} // each piece of 64 KiB takes one, when set
}

func (u *uplink) put(b []byte) ota.Digest {
	u.mu.Lock()
	defer u.mu.Unlock()
	d := ota.DigestOf(b)
	u.blobs[d] = b
	return d
}

// Open implements fetch.Source.
func (u *uplink) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	b, ok := u.blobs[d]
	if !ok {
		return nil, fetch.ErrNotFound
	}
	u.opens[d]++
	r := io.Reader(bytes.NewReader(b[offset:min(offset+length, int64(len(b)))]))
	if u.gate != nil {
		r = &gated{ctx, r, u.gate}
	}
	return io.NopCloser(r), nil
}

func (u *uplink) opened(d ota.Digest) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.opens[d]
}

type gated struct {
	ctx  context.Context
	r    io.Reader
	gate chan struct{}
}

// Read implements io.Reader.
func (g *gated) Read(p []byte) (int, error) {
	select {
	case <-g.gate:
		return g.r.Read(p[:min(len(p), 64<<10)])
	case <-g.ctx.Done():
		return 0, context.Cause(g.ctx)
	}
}

// place is one site: a cache with its server, and who signs.
type place struct {
	t        *testing.T
	ca       *authority
	director *trust.Signer
	uplink   *uplink
	files    *slot.Mem
	own      *blob.Store
	cache    *Cache
	server   *Server // the last one
	addr     string
	release  ota.Digest
	model    ota.Digest
	bytes    []byte // of model
	free     int64
}

func newPlace(t *testing.T, change ...func(*CacheConfig)) *place {
	t.Helper()
	p := &place{t: t, ca: newAuthority(t), uplink: &uplink{blobs: map[ota.Digest][]byte{}, opens: map[ota.Digest]int{}}, files: slot.NewMem(), free: -1}
	var err error
	if p.director, err = trust.NewSigner(newKey(t)); err != nil {
		t.Fatal(err)
	}
	p.release, p.model, p.bytes = p.publish("v1", 300<<10)
	p.own = blob.NewStore(p.files)
	c := CacheConfig{
		Files: p.files, Own: p.own, Ways: p.uplink, Quota: 1 << 20, Free: func() (int64, error) { return p.free, nil },
		Reserve: func() int64 { return 1 << 20 }, Logger: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&c)
	}
	p.cache = NewCache(c)
	p.cache.fetch.Attempts, p.cache.fetch.BaseWait = 2, time.Millisecond
	p.addr = p.serve("default", cacheID)
	return p
}

// serve runs a server of the cache.
func (p *place) serve(tenant, id string) string {
	p.t.Helper()
	cert := p.ca.device(tenant, id)
	s := NewServer(ServerConfig{
		Cache: p.cache, Tenant: tenant, Roots: p.ca.roots, Now: clock, Cert: func() *tls.Certificate { return cert },
		Keys:      func() ([]crypto.PublicKey, error) { return []crypto.PublicKey{p.director.Public()}, nil },
		IndexSize: func(ota.Digest) int64 { return 0 }, Logger: slog.New(slog.DiscardHandler), Stall: time.Second,
	})
	p.server = s
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	p.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("server: %v", err)
		}
	})
	return l.Addr().String()
}

// publish makes a release with one model of random bytes at the uplink.
func (p *place) publish(version string, size int) (release, model ota.Digest, content []byte) {
	p.t.Helper()
	content = make([]byte, size)
	if _, err := rand.Read(content); err != nil {
		p.t.Fatal(err)
	}
	model = p.uplink.put(content)
	target, err := ota.ParseTarget("linux/arm64")
	if err != nil {
		p.t.Fatal(err)
	}
	b := manifest.Build{Release: manifest.Release{Name: "meter", Version: version, Counter: 1, Model: "meter", ModelVersion: 1}, Targets: []ota.Target{target},
		ONNX: manifest.Descriptor{Digest: model, Size: int64(size)}}
	ix, _, _, err := b.Write(p.t.Context(), func(_ context.Context, mediaType string, data []byte) (manifest.Descriptor, error) {
		return manifest.Descriptor{MediaType: mediaType, Digest: p.uplink.put(bytes.Clone(data)), Size: int64(len(data))}, nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return ix.Digest, model, content
}

func (p *place) grant(change ...func(*wire.Grant)) []byte {
	p.t.Helper()
	g := wire.Grant{Device: siblingID, Tenant: "default", Release: p.release.Sum(), ExpiresAt: time.Now().Add(time.Hour).Unix()}
	for _, c := range change {
		c(&g)
	}
	b, err := wire.Marshal(&g)
	if err != nil {
		p.t.Fatal(err)
	}
	signed, err := trust.Sign(p.director, wire.AADGrant, b)
	if err != nil {
		p.t.Fatal(err)
	}
	return signed
}

func (p *place) client(change ...func(*ClientConfig)) *Client {
	cert := p.ca.device("default", siblingID)
	c := ClientConfig{
		Tenant: "default", Roots: p.ca.roots, Now: clock, Cert: func() *tls.Certificate { return cert }, Grant: p.grant(),
		Peer: wire.Peer{Device: cacheID, Addresses: []string{p.addr}},
	}
	for _, f := range change {
		f(&c)
	}
	client := NewClient(c)
	p.t.Cleanup(client.Close)
	return client
}

func read(ctx context.Context, s fetch.Source, d ota.Digest, offset, length int64) ([]byte, error) {
	r, err := s.Open(ctx, d, offset, length)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(r)
	return b, errors.Join(err, r.Close())
}

// raw makes one request with a certificate of a sibling and any header.
func (p *place) raw(method, path string, header map[string]string) (*http.Response, string) {
	p.t.Helper()
	cert := p.ca.device("default", siblingID)
	client := pki.HTTPClient(pki.PeerClient(p.ca.roots, clock, func() *tls.Certificate { return cert }, func(string, string) error { return nil }), nil)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(p.t.Context(), method, "https://"+p.addr, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	req.URL.Opaque = "//" + p.addr + path
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := client.Do(req)
	if err != nil {
		p.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp, string(b)
}

// TestSiblings: many siblings at once get all blobs of the release, and the
// uplink is asked once for each.
func TestSiblings(t *testing.T) {
	p := newPlace(t)
	var wg sync.WaitGroup
	for range 8 {
		c := p.client()
		wg.Go(func() {
			got, err := read(t.Context(), c, p.model, 0, int64(len(p.bytes)))
			if err != nil || !bytes.Equal(got, p.bytes) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			got, err = read(t.Context(), c, p.model, 1000, 5)
			if err != nil || !bytes.Equal(got, p.bytes[1000:1005]) {
				t.Errorf("range: %d bytes, %v", len(got), err)
			}
			if got, err := read(t.Context(), c, p.release, 0, 1<<20); err != nil || ota.DigestOf(got) != p.release {
				t.Errorf("index: %d bytes, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	for d := range p.uplink.blobs {
		if n := p.uplink.opened(d); n > 1 {
			t.Errorf("%s was fetched %d times", d.Short(), n)
		}
	}
}

// TestStreams: a sibling reads what is there while the cache still fetches.
func TestStreams(t *testing.T) {
	p := newPlace(t)
	if _, err := read(t.Context(), p.client(), p.release, 0, 1<<20); err != nil { // the release is known
		t.Fatal(err)
	}
	p.uplink.gate = make(chan struct{})
	go func() { p.uplink.gate <- struct{}{} }()
	r, err := p.client().Open(t.Context(), p.model, 0, int64(len(p.bytes)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make([]byte, 32<<10)
	if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, p.bytes[:len(got)]) {
		t.Fatalf("first piece: %v", err)
	}
	close(p.uplink.gate)
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(rest, p.bytes[len(got):]) {
		t.Errorf("rest: %d bytes, %v", len(rest), err)
	}
}

// TestOwnTransfer: what the device fetches for itself is not fetched again for
// siblings, and what is fetched for them is given to the device.
func TestOwnTransfer(t *testing.T) {
	p := newPlace(t)
	if _, err := read(t.Context(), p.client(), p.release, 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	p.uplink.gate = gate
	own := &fetch.Fetcher{Store: p.own, Source: p.cache.Own(p.uplink)}
	desc := manifest.Descriptor{MediaType: manifest.MediaWeights, Digest: p.model, Size: int64(len(p.bytes))}
	done := make(chan error, 1)
	go func() { done <- own.Fetch(t.Context(), desc) }()
	gate <- struct{}{} // it is under way
	result := make(chan error, 1)
	c := p.client()
	go func() {
		got, err := read(t.Context(), c, p.model, 0, desc.Size)
		if err == nil && !bytes.Equal(got, p.bytes) {
			err = errors.New("other bytes")
		}
		result <- err
	}()
	close(gate)
	if err := errors.Join(<-done, <-result); err != nil {
		t.Fatal(err)
	}
	if n := p.uplink.opened(p.model); n != 1 {
		t.Errorf("the uplink was asked %d times", n)
	}

	release, model, content := p.publish("v2", 200<<10)
	if _, err := read(t.Context(), p.cache.Source(), model, 0, 10); !errors.Is(err, fetch.ErrNotFound) {
		t.Errorf("nobody asked for it: %v", err)
	}
	c = p.client(func(c *ClientConfig) { c.Grant = p.grant(func(g *wire.Grant) { g.Release = release.Sum() }) })
	if _, err := read(t.Context(), c, model, 0, int64(len(content))); err != nil {
		t.Fatal(err)
	}
	if got, err := read(t.Context(), p.cache.Source(), model, 7, 100); err != nil || !bytes.Equal(got, content[7:107]) {
		t.Errorf("for the device itself: %d bytes, %v", len(got), err)
	}
}

// TestQuota: what was not asked for for longest gives way; what can never fit
// is not fetched.
func TestQuota(t *testing.T) {
	p := newPlace(t, func(c *CacheConfig) { c.Quota = 700 << 10 })
	get := func(release, model ota.Digest, n int) error {
		c := p.client(func(c *ClientConfig) { c.Grant = p.grant(func(g *wire.Grant) { g.Release = release.Sum() }) })
		_, err := read(t.Context(), c, model, 0, int64(n))
		return err
	}
	r2, m2, b2 := p.publish("v2", 300<<10)
	r3, m3, b3 := p.publish("v3", 300<<10)
	r4, m4, b4 := p.publish("v4", 800<<10)
	if err := errors.Join(get(p.release, p.model, len(p.bytes)), get(r2, m2, len(b2)), get(p.release, p.model, len(p.bytes)), get(r3, m3, len(b3))); err != nil {
		t.Fatal(err)
	}
	if !p.cache.store.Has(p.model) || p.cache.store.Has(m2) || !p.cache.store.Has(m3) {
		t.Errorf("kept: first %v, second %v, third %v; want the second gone", p.cache.store.Has(p.model), p.cache.store.Has(m2), p.cache.store.Has(m3))
	}
	if err := get(r4, m4, len(b4)); !errors.Is(err, fetch.ErrNotFound) || p.uplink.opened(m4) != 0 {
		t.Errorf("larger than the quota: %v, fetched %d times", err, p.uplink.opened(m4))
	}
	if !p.cache.store.Has(p.model) {
		t.Error("what can never fit threw out what was there")
	}
	p.free = 1 << 20 // the reserve
	r5, m5, b5 := p.publish("v5", 100<<10)
	if err := get(r5, m5, len(b5)); !errors.Is(err, fetch.ErrNotFound) || p.uplink.opened(m5) != 0 {
		t.Errorf("into the reserve: %v, fetched %d times", err, p.uplink.opened(m5))
	}
}

// TestYield: the device's own release comes before what is kept for siblings.
func TestYield(t *testing.T) {
	p := newPlace(t)
	if _, err := read(t.Context(), p.client(), p.model, 0, int64(len(p.bytes))); err != nil {
		t.Fatal(err)
	}
	if n, err := p.cache.Yield(1); err != nil || n == 0 {
		t.Errorf("yielded %d bytes, %v", n, err)
	}
	if n, err := p.cache.Yield(1 << 40); err != nil || n == 0 || p.cache.store.Has(p.model) {
		t.Errorf("yielded %d bytes, %v; the model is there: %v", n, err, p.cache.store.Has(p.model))
	}
	if n, err := p.cache.Yield(1); n != 0 || err != nil {
		t.Errorf("an empty cache yielded %d bytes, %v", n, err)
	}
	if _, err := read(t.Context(), p.client(), p.model, 0, int64(len(p.bytes))); err != nil || p.uplink.opened(p.model) != 2 {
		t.Errorf("it is fetched again: %v, %d times", err, p.uplink.opened(p.model))
	}
}

// full is Files without space below the cache for more than some bytes.
type full struct{ slot.Files }

// OpenAppend implements slot.Files.
func (f full) OpenAppend(name string) (slot.AppendFile, error) {
	a, err := f.Files.OpenAppend(name)
	return fullFile{a}, err
}

type fullFile struct{ slot.AppendFile }

// Write implements io.Writer.
func (f fullFile) Write(p []byte) (int, error) {
	if n, err := f.Size(); err != nil || n+int64(len(p)) > 200<<10 {
		return 0, slot.ErrDiskFull
	}
	return f.AppendFile.Write(p)
}

// TestDiskFull: the transfer breaks off, nothing stays, and small ones go on.
func TestDiskFull(t *testing.T) {
	p := newPlace(t, func(c *CacheConfig) { c.Files = full{c.Files} })
	if got, err := read(t.Context(), p.client(), p.model, 0, int64(len(p.bytes))); err == nil {
		t.Errorf("got %d bytes of a blob for which there is no space", len(got))
	}
	if n, err := p.cache.store.Partial(p.model); n != 0 || err != nil {
		t.Errorf("%d bytes stay, %v", n, err)
	}
	if _, err := read(t.Context(), p.client(), p.release, 0, 1<<20); err != nil {
		t.Errorf("the index: %v", err)
	}
}

// badPeer is a server with the right certificate that answers as it likes.
func (p *place) badPeer(answer http.HandlerFunc) wire.Peer {
	p.t.Helper()
	cert := p.ca.device("default", otherID)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		p.t.Fatal(err)
	}
	srv := &http.Server{Handler: answer, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	config := pki.PeerServer(p.ca.roots, clock, func() *tls.Certificate { return cert }, func(string, string) error { return nil })
	done := make(chan error, 1)
	go func() { done <- srv.Serve(tls.NewListener(l, config)) }()
	p.t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return wire.Peer{Device: otherID, Addresses: []string{l.Addr().String()}}
}

func FuzzByteRange(f *testing.F) {
	for _, s := range []string{"", "bytes=0-", "bytes=0-0", "bytes=1-2", "bytes=2-1", "bytes=-1", "bytes=0-18446744073709551615"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		from, to, partial, err := byteRange(header, size)
		if err == nil && (from < 0 || to > size || from > to || partial && from == to) {
			t.Errorf("%q of %d: %d to %d", header, size, from, to)
		}
	})
}
