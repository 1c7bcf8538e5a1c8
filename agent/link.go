package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/link"
	"github.com/skein-fleet/skein/agent/internal/pki"
	"github.com/skein-fleet/skein/proto/wire"
)

// Link is the connection to the control plane; see LinkHandler.
type Link = link.Link

// LinkHandler is what a Link calls.
type LinkHandler = link.Handler

// Errors of a Link.
var (
	ErrOffline = link.ErrOffline
	ErrRefused = link.ErrRefused
)

// MemoryLink is a Link without a network, for tests and simulations.
type MemoryLink = link.Memory

// NewMemoryLink returns an offline MemoryLink; receive gets what the device
// publishes.
func NewMemoryLink(receive func(wire.Kind, []byte) error) *MemoryLink { return link.NewMemory(receive) }

// Dial opens a raw connection; TLS, where it is used, goes over it.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Transport is what MQTT goes over.
type Transport = link.Transport

// The transports. Auto tries the one that worked last, TCP at first, and then
// the other.
const (
	TransportTCP       = link.TCP
	TransportWebSocket = link.WebSocket
	TransportAuto      = link.Auto
)

// MQTTOptions configure NewMQTTLink.
type MQTTOptions struct {
	Identity *Identity
	// Transport is TCP to Identity.MQTTAddress when empty. WebSocket goes to
	// /mqtt at Identity.BlobURL, for networks that let only HTTPS through.
	Transport Transport
	// Dial opens connections to Identity.MQTTAddress; nil goes straight or
	// through the proxy that the environment names.
	Dial Dial
	// Plain leaves out TLS, for a Dial that is secure by itself.
	Plain                  bool
	KeepAlive              time.Duration
	BackoffMin, BackoffMax time.Duration
	Random                 func() float64 // of the backoff
	Now                    func() time.Time
}

// NewMQTTLink returns the MQTT 3.1.1 link of a device, for Options.Link.
func NewMQTTLink(o MQTTOptions) (Link, error) {
	now := o.Now
	if now == nil {
		now = time.Now
	}
	return newMQTTLink(o, func() (time.Time, bool) { return now(), false }, o.Identity.Roots, o.Identity.TLSCertificate)
}

func newMQTTLink(o MQTTOptions, now pki.Now, roots pki.Roots, cert func() *tls.Certificate) (*link.MQTT, error) {
	m := link.MQTTOptions{
		Device: o.Identity.DeviceID, Address: o.Identity.MQTTAddress, Transport: o.Transport, Dial: pki.Dial(o.Dial), KeepAlive: o.KeepAlive,
		BackoffMin: o.BackoffMin, BackoffMax: o.BackoffMax, Random: o.Random,
	}
	if o.Plain {
		return link.NewMQTT(m), nil
	}
	if _, err := roots(); err != nil {
		return nil, err
	}
	name, _, err := net.SplitHostPort(o.Identity.MQTTAddress)
	if err != nil {
		return nil, fmt.Errorf("MQTT address: %w", err)
	}
	m.TLS = pki.ClientConfig(roots, name, now, cert)
	switch o.Transport {
	case "", TransportTCP:
	case TransportWebSocket, TransportAuto:
		base, ok := strings.CutPrefix(strings.TrimSuffix(o.Identity.BlobURL, "/"), "https://")
		if !ok {
			return nil, fmt.Errorf("MQTT over WebSocket: device port %q: want https://HOST:PORT", o.Identity.BlobURL)
		}
		if name, err = hostOf(o.Identity.BlobURL); err != nil {
			return nil, err
		}
		m.WebSocketURL, m.WebSocketTLS = "wss://"+base+"/mqtt", pki.ClientConfig(roots, name, now, cert)
	default:
		return nil, fmt.Errorf("transport %q of MQTT: want tcp, websocket or auto", o.Transport)
	}
	return link.NewMQTT(m), nil
}

func hostOf(base string) (string, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("blob address %q: want https://HOST:PORT", base)
	}
	return u.Hostname(), nil
}

func (a *Agent) currentCertificate() *tls.Certificate { return a.identity.Load().TLSCertificate() }

// connection is where the link stands.
type connection struct {
	mu       sync.Mutex // guards what follows
	state    string     // connected, connecting, offline
	cause    error
	since    time.Time
	lastSeen time.Time
	number   uint64        // of connections so far
	changed  chan struct{} // closed and replaced at each change
}

func (c *connection) set(state string, cause error, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != state {
		c.since = now
		if c.changed != nil {
			close(c.changed)
		}
		c.changed = make(chan struct{})
	}
	if state == "connected" {
		c.number++
	}
	c.state, c.cause = state, cause
}

// count returns how many connections there were.
func (c *connection) count() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.number
}

func (c *connection) get() (state string, cause error, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, c.cause, c.since
}

// up reports whether the link is connected, and gives a channel that is closed
// when that may have changed.
func (c *connection) up() (bool, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state == "connected", c.changed
}

func (c *connection) seen(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastSeen = now
}

// runLink keeps the link up and says hello on each connection.
func (a *Agent) runLink(ctx context.Context) error {
	return a.link.Run(ctx, link.Handler{
		Boot: a.ids.bootID.Load(), NextID: a.ids.next,
		Connected:    a.connected,
		Disconnected: a.disconnected,
		Message:      a.message,
	})
}

func (a *Agent) connected(ctx context.Context) {
	a.overLink.Reconnected()
	if err := a.hello(ctx); err != nil {
		a.log.Warn("hello", "error", err)
	}
	a.log.Info("link connected")
	a.conn.set("connected", nil, a.opts.Now())
	a.board.Clear(health.LinkOffline)
	a.board.Clear(health.CertificateRefused)
	a.wakeReport.set()
	a.wakeEvents.set()
	a.wakeSpool.set()
}

func (a *Agent) disconnected(cause error) {
	if cause == nil {
		cause = ErrOffline
	}
	a.log.Info("link offline", "cause", cause)
	a.conn.set("offline", cause, a.opts.Now())
	a.board.Set(health.LinkOffline, health.Warning, cause.Error())
	a.board.Update(errors.Is(cause, ErrRefused), health.CertificateRefused, health.Critical,
		"the control plane does not accept this device's certificate: renew or approve it there")
}

func (a *Agent) hello(ctx context.Context) error {
	now := a.opts.Now()
	_, doubtful := a.clock()
	return a.send(ctx, wire.UpHello, &wire.Hello{
		ID: a.ids.next(), Held: a.heldState(), Target: a.facts().Target.String(), Capability: wire.CapabilityVersion,
		Clock: wire.Clock{UnixMilli: now.UnixMilli(), Doubtful: doubtful}, Agent: a.opts.Version, Hardware: a.facts().Hardware, Peer: a.serves(),
	})
}

func (a *Agent) heldState() wire.Held {
	s := a.state.Get()
	return wire.Held{Generation: s.Held, Digest: s.HeldDigest}
}

// send publishes one message.
func (a *Agent) send(ctx context.Context, kind wire.Kind, v any) error {
	b, err := wire.Marshal(v)
	if err != nil {
		return err
	}
	return a.publish(ctx, kind, b)
}

func (a *Agent) publish(ctx context.Context, kind wire.Kind, payload []byte) error {
	if err := a.link.Publish(ctx, kind, payload); err != nil {
		return err
	}
	a.conn.seen(a.opts.Now())
	return nil
}
