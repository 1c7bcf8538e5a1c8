package peer

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// TestRefused: who does not show the director's word for this device, tenant
// and blob gets nothing.
func TestRefused(t *testing.T) {
	p := newPlace(t)
	_, foreign, _ := p.publish("v2", 1<<10)
	forger, err := trust.NewSigner(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	text := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	signAs := func(s *trust.Signer, aad string) string {
		b, err := wire.Marshal(&wire.Grant{Device: siblingID, Tenant: "default", Release: p.release.Sum(), ExpiresAt: time.Now().Add(time.Hour).Unix()})
		if err != nil {
			t.Fatal(err)
		}
		signed, err := trust.Sign(s, aad, b)
		if err != nil {
			t.Fatal(err)
		}
		return text(signed)
	}
	model := blobPath + string(p.model)
	for name, c := range map[string]struct {
		path, grant string
		status      int
	}{
		"granted":             {model, text(p.grant()), http.StatusOK},
		"no grant":            {model, "", http.StatusForbidden},
		"no base64":           {model, "%%%", http.StatusForbidden},
		"junk":                {model, text([]byte("junk")), http.StatusForbidden},
		"forged":              {model, signAs(forger, wire.AADGrant), http.StatusForbidden},
		"signed for another":  {model, signAs(p.director, wire.AADDesired), http.StatusForbidden},
		"expired":             {model, text(p.grant(func(g *wire.Grant) { g.ExpiresAt = time.Now().Add(-time.Second).Unix() })), http.StatusForbidden},
		"other device":        {model, text(p.grant(func(g *wire.Grant) { g.Device = otherID })), http.StatusForbidden},
		"other tenant":        {model, text(p.grant(func(g *wire.Grant) { g.Tenant = "else" })), http.StatusForbidden},
		"no release":          {model, text(p.grant(func(g *wire.Grant) { g.Release = nil })), http.StatusForbidden},
		"unknown release":     {model, text(p.grant(func(g *wire.Grant) { g.Release = make([]byte, sha256.Size) })), http.StatusNotFound},
		"blob of another one": {blobPath + string(foreign), text(p.grant()), http.StatusForbidden},
		"unknown blob":        {blobPath + string(ota.DigestOf([]byte("?"))), text(p.grant()), http.StatusForbidden},
		"no digest":           {blobPath + "sha256:00", text(p.grant()), http.StatusNotFound},
		"path out":            {blobPath + "..%2f..%2fidentity%2fkey.pem", text(p.grant()), http.StatusNotFound},
		"dots":                {blobPath + "../../identity/key.pem", text(p.grant()), http.StatusTemporaryRedirect},
		"another path":        {"/identity/key.pem", text(p.grant()), http.StatusNotFound},
	} {
		h := map[string]string{GrantHeader: c.grant}
		if resp, body := p.raw(http.MethodGet, c.path, h); resp.StatusCode != c.status || c.status != http.StatusOK && strings.Contains(body, "PRIVATE") {
			t.Errorf("%s: %s %.100q, want %d", name, resp.Status, body, c.status)
		}
	}
	if resp, _ := p.raw(http.MethodPost, model, map[string]string{GrantHeader: text(p.grant())}); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", resp.Status)
	}
	if resp, body := p.raw(http.MethodHead, model, map[string]string{GrantHeader: text(p.grant())}); resp.StatusCode != http.StatusOK || resp.ContentLength != int64(len(p.bytes)) || body != "" {
		t.Errorf("HEAD: %s, %d bytes", resp.Status, resp.ContentLength)
	}
	for _, bad := range []string{"bytes=-5", "bytes=5-1", fmt.Sprintf("bytes=%d-", len(p.bytes)), "bytes=0-1,3-4", "lines=1-2", "bytes=99999999999999999999-"} {
		if resp, _ := p.raw(http.MethodGet, model, map[string]string{GrantHeader: text(p.grant()), "Range": bad}); resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
			t.Errorf("range %s: %s", bad, resp.Status)
		}
	}
}

// TestStrangers: TLS ends with who is of another tenant, of another CA, or not
// the peer that the director named.
func TestStrangers(t *testing.T) {
	p := newPlace(t)
	elsewhere := newAuthority(t)
	show := func(c *tls.Certificate) func(*ClientConfig) {
		return func(cc *ClientConfig) { cc.Cert = func() *tls.Certificate { return c } }
	}
	for name, change := range map[string]func(*ClientConfig){
		"of another tenant": show(p.ca.device("else", siblingID)),
		"of another CA":     show(elsewhere.device("default", siblingID)),
		"no certificate":    func(c *ClientConfig) { c.Cert = func() *tls.Certificate { return nil } },
		"another peer":      func(c *ClientConfig) { c.Peer.Device = otherID },
		"a peer elsewhere":  func(c *ClientConfig) { c.Roots = elsewhere.roots },
		"of our tenant":     func(c *ClientConfig) { c.Tenant = "else" },
	} {
		if got, err := read(t.Context(), p.client(change), p.model, 0, 10); err == nil {
			t.Errorf("%s: got %d bytes", name, len(got))
		}
	}
	if n := p.uplink.opened(p.model); n != 0 {
		t.Errorf("the uplink was asked %d times for strangers", n)
	}
	c := p.client(func(c *ClientConfig) { c.Peer.Addresses = []string{"127.0.0.1:1", p.addr} })
	if _, err := read(t.Context(), c, p.model, 0, 10); err != nil {
		t.Errorf("the second address: %v", err)
	}
}

// TestBadPeers: a peer that gives junk, more than was asked for, nothing, or
// errors costs a sibling nothing but a little time.
func TestBadPeers(t *testing.T) {
	p := newPlace(t)
	release := make(chan struct{})
	t.Cleanup(sync.OnceFunc(func() { close(release) }))
	for name, answer := range map[string]http.HandlerFunc{
		"junk": func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(make([]byte, len(p.bytes))) },
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		},
		"stalled": func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-release:
			}
		},
		"error":   func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusInternalServerError) },
		"nothing": func(w http.ResponseWriter, r *http.Request) {},
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://127.0.0.1:1/", http.StatusFound)
		},
	} {
		bad := p.client(func(c *ClientConfig) { c.Peer = p.badPeer(answer) })
		store := blob.NewStore(slot.NewMem())
		chain := fetch.NewChain(time.Now, func() []fetch.Named {
			return []fetch.Named{{Name: "peer", Key: "peer/bad", Source: bad, Patience: 300 * time.Millisecond}, {Name: "https", Source: p.uplink}}
		})
		f := &fetch.Fetcher{Store: store, Source: chain, BaseWait: time.Millisecond}
		if err := f.Fetch(t.Context(), manifest.Descriptor{MediaType: manifest.MediaWeights, Digest: p.model, Size: int64(len(p.bytes))}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := chain.Bytes(); got["https"] == 0 || got["peer"] > int64(len(p.bytes))+64<<10 {
			t.Errorf("%s: bytes by way: %v", name, got)
		}
	}
}

// TestSlowReader: who takes no bytes loses its place.
func TestSlowReader(t *testing.T) {
	p := newPlace(t, func(c *CacheConfig) { c.Quota = 64 << 20 })
	release, model, content := p.publish("v2", 32<<20)
	c := p.client(func(c *ClientConfig) { c.Grant = p.grant(func(g *wire.Grant) { g.Release = release.Sum() }) })
	r, err := c.Open(t.Context(), model, 0, int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); len(p.server.slots) > 0; { // Stall is 1 s
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("who takes nothing keeps its place")
		}
	}
	if n, err := io.Copy(io.Discard, r); err == nil {
		t.Errorf("all %d bytes came after a stall", n)
	}
}

// TestManyOfOne: one device cannot have all places; who waits is told to come
// again, and a busy peer is asked again.
func TestManyOfOne(t *testing.T) {
	p := newPlace(t)
	if _, err := read(t.Context(), p.client(), p.release, 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	gate := make(chan struct{})
	p.uplink.gate = gate
	var wg sync.WaitGroup
	header := map[string]string{GrantHeader: base64.RawURLEncoding.EncodeToString(p.grant())}
	busy := make(chan string, maxOfOne+2)
	for range maxOfOne + 2 { // all wait for the first byte, but those over the limit
		wg.Go(func() {
			resp, _ := p.raw(http.MethodGet, blobPath+string(p.model), header)
			if resp.StatusCode == http.StatusServiceUnavailable {
				busy <- resp.Header.Get("Retry-After")
			} else if resp.StatusCode != http.StatusOK {
				t.Errorf("%s", resp.Status)
			}
		})
	}
	for range 2 {
		if after := <-busy; after == "" {
			t.Error("a busy peer does not say when to come again")
		}
	}
	c := p.client()
	wg.Go(func() { // it asks until there is a place
		got, err := read(t.Context(), c, p.model, 0, int64(len(p.bytes)))
		if err != nil || !bytes.Equal(got, p.bytes) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
	close(gate)
	wg.Wait()
}
