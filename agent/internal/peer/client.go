package peer

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"time"

	"github.com/skein-fleet/skein/agent/internal/pki"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/proto/wire"
)

// ClientConfig is what a Client is made of.
type ClientConfig struct {
	Tenant string
	Roots  pki.Roots
	Now    pki.Now
	Cert   func() *tls.Certificate
	Grant  []byte
	Peer   wire.Peer
	Dial   pki.Dial // nil goes straight
}

const (
	dialTime = 3 * time.Second // for one address
	busyWait = 2 * time.Second // between two questions to a busy peer
	// Patience is how long a peer may take to give its first byte: one that has
	// its hands full is waited for, since all other ways leave the site.
	Patience = 45 * time.Second
)

// Client is the way to the blobs that one peer serves.
type Client struct {
	fetch.Source
	http *http.Client
}

// NewClient returns the way to a peer. It connects when it is used.
func NewClient(c ClientConfig) *Client {
	dial := c.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	config := pki.PeerClient(c.Roots, c.Now, c.Cert, func(tenant, device string) error {
		if tenant != c.Tenant || device != c.Peer.Device {
			return fmt.Errorf("%w: it is %s of tenant %s, not %s", pki.ErrPeer, device, tenant, c.Peer.Device)
		}
		return nil
	})
	client := pki.HTTPClient(config, func(ctx context.Context, network, _ string) (net.Conn, error) {
		return dialAny(ctx, dial, network, c.Peer.Addresses)
	})
	t := client.Transport.(*http.Transport)
	t.TLSHandshakeTimeout, t.ResponseHeaderTimeout, t.IdleConnTimeout = Patience, Patience, idleTime/2
	t.MaxIdleConns, t.MaxResponseHeaderBytes, t.DisableCompression = 1, 16<<10, true
	client.Transport = shows{t, base64.RawURLEncoding.EncodeToString(c.Grant)}
	return &Client{
		Source: fetch.HTTPAt(client, func(d ota.Digest) string { return "https://peer.invalid" + blobPath + string(d) }),
		http:   client,
	}
}

// Open implements fetch.Source. A peer that is busy is asked again.
func (c *Client) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	for end := time.Now().Add(Patience); ; {
		r, err := c.Source.Open(ctx, d, offset, length)
		busy, ok := errors.AsType[*fetch.RetryAfter](err)
		if !ok {
			return r, err
		}
		wait := min(busy.Wait, busyWait)/2 + rand.N(busyWait)
		if time.Now().Add(wait).After(end) {
			return nil, err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, errors.Join(err, context.Cause(ctx))
		}
	}
}

// Close ends connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// shows adds the grant to requests.
type shows struct {
	*http.Transport
	grant string
}

// RoundTrip implements http.RoundTripper.
func (s shows) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(GrantHeader, s.grant)
	return s.Transport.RoundTrip(r)
}

// dialAny connects to the first address that answers.
func dialAny(ctx context.Context, dial pki.Dial, network string, addresses []string) (net.Conn, error) {
	errs := []error{errors.New("no address of the peer answers")}
	for _, a := range addresses {
		actx, cancel := context.WithTimeout(ctx, dialTime)
		c, err := dial(actx, network, a)
		cancel()
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}
