// Package broker is the embedded MQTT broker of the device link. It owns
// mochi-mqtt: connections come through our own wrapper, identity comes from
// the client certificate alone, and every message of a device goes to the
// Handler before it is acknowledged.
//
// Invariants: a client id equals its certificate's device id; a device
// publishes only under its own up/ and subscribes only to its own down/, its
// will included; nothing is retained; a peer that does not read, or never
// speaks, is cut off and holds up nobody else for longer than WriteTimeout.
// Only the façade imports it; an external broker would take its place behind
// the same two interfaces.
package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/skein-fleet/skein/proto/wire"
)

// ErrOffline is returned by Publish for a device without a session.
var ErrOffline = errors.New("device has no session")

var errForgotten = errors.New("broker lost the session")

// Handler takes what devices do. Its methods are called from the goroutine of
// the device's connection; Message returns nil when the message is stored or
// useless, and only then it is acknowledged.
type Handler interface {
	Admit(tenant, device string) error
	Session(tenant, device string, session uint64, open bool)
	Message(ctx context.Context, tenant, device string, kind wire.Kind, payload []byte) error
	Noticed(ctx context.Context, tenant, device, kind, message, attack string) error
}

// Identity is who a connection belongs to, by its certificate. The session
// ends with the certificate; a zero NotAfter means never.
type Identity struct {
	Tenant, Device string
	NotAfter       time.Time
}

// Config of a Broker. Handler and Identify are required.
type Config struct {
	Handler Handler
	// Identify reads the identity from a verified TLS connection.
	Identify func(tls.ConnectionState) (Identity, error)
	// Sent is told when a message of Send has left, or was dropped because the
	// device's queue is full; it must not block.
	Sent     func(device string, bytes int)
	Logger   *slog.Logger
	Registry prometheus.Registerer

	FirstRead    time.Duration // handshake and CONNECT must come within: 10 s
	WriteTimeout time.Duration // one write to a device: 5 s
	MaxKeepalive time.Duration // keepalives are clamped to it: 20 min
	Pending      int           // outbound messages of one device: 64
	// Accepts per second; more wait in the listen backlog: 800 per core.
	Accepts int
	// MessageRate of one device per second, in units of a message or 4 KiB of
	// it, after a burst of 16 seconds' worth; faster ones wait: 256.
	MessageRate int
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	if c.Sent == nil {
		c.Sent = func(string, int) {}
	}
	if c.FirstRead == 0 {
		c.FirstRead = 10 * time.Second
	}
	if c.WriteTimeout == 0 {
		c.WriteTimeout = 5 * time.Second
	}
	if c.MaxKeepalive == 0 {
		c.MaxKeepalive = 20 * time.Minute
	}
	if c.Pending == 0 {
		c.Pending = 64
	}
	if c.Accepts == 0 {
		c.Accepts = 800 * runtime.GOMAXPROCS(0)
	}
	if c.MessageRate == 0 {
		c.MessageRate = 256
	}
}

// Broker is one broker. Run or ServeWebSocket bring connections to it.
type Broker struct {
	cfg      Config
	server   *mqtt.Server
	metrics  *metrics
	sessions atomic.Uint64
	ctx      context.Context // of ingest, ends after all connections
	cancel   context.CancelFunc

	mu     sync.Mutex // guards conns, live and closed
	conns  map[*conn]struct{}
	live   map[string]*mqtt.Client // by device, established sessions
	closed bool
	wg     sync.WaitGroup // connections
}

// New returns a broker that has no connection yet; Close ends it.
func New(cfg Config) (*Broker, error) {
	cfg.setDefaults()
	if cfg.Handler == nil || cfg.Identify == nil {
		return nil, errors.New("broker needs Handler and Identify")
	}
	caps := mqtt.NewDefaultServerCapabilities()
	caps.MaximumClientWritesPending = int32(cfg.Pending)
	caps.MaximumPacketSize = wire.MaxMessage + 1024
	caps.MaximumSessionExpiryInterval = 0
	caps.MaximumInflight = 64
	caps.ReceiveMaximum = 64
	caps.TopicAliasMaximum = 0
	caps.SharedSubAvailable = 0
	caps.RetainAvailable = 0
	caps.MaximumQos = 1
	b := &Broker{cfg: cfg, conns: map[*conn]struct{}{}, live: map[string]*mqtt.Client{}}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.server = mqtt.New(&mqtt.Options{
		Capabilities:             caps,
		ClientNetWriteBufferSize: 512,
		ClientNetReadBufferSize:  512,
		Logger:                   slog.New(quiet{cfg.Logger.Handler()}),
		SysTopicResendInterval:   1 << 30, // $SYS is off: it costs a ReadMemStats each time
		InlineClient:             true,
	})
	b.metrics = newMetrics(cfg.Registry, b)
	if err := b.server.AddHook(&hook{b: b}, nil); err != nil {
		return nil, fmt.Errorf("add broker hook: %w", err)
	}
	if err := b.server.Serve(); err != nil {
		return nil, fmt.Errorf("start broker: %w", err)
	}
	return b, nil
}

// Run accepts TLS connections until ctx ends or the listener fails for good.
// Connections stay; Close ends them.
func (b *Broker) Run(ctx context.Context, ln net.Listener, config *tls.Config) error {
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	pace := pacer{every: time.Second / time.Duration(b.cfg.Accepts), burst: b.cfg.Accepts / 4}
	var backoff time.Duration
	for {
		raw, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				err = raw.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept device connections: %w", err)
		case err != nil: // out of file descriptors, or the peer went away
			backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
			b.cfg.Logger.Warn("accept device connection", "error", err, "again_in", backoff)
			if !wait(ctx, backoff) {
				return nil
			}
			continue
		}
		backoff = 0
		if d := pace.take(time.Now(), 1); d > 0 {
			b.metrics.paced.Inc()
			if !wait(ctx, d) {
				return raw.Close()
			}
		}
		b.wg.Go(func() { b.handshake(raw, config) })
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (b *Broker) handshake(raw net.Conn, config *tls.Config) {
	ctx, cancel := context.WithTimeout(b.ctx, b.cfg.FirstRead)
	defer cancel()
	tc := tls.Server(raw, config)
	if err := tc.HandshakeContext(ctx); err != nil {
		b.metrics.refused.WithLabelValues("handshake").Inc()
		b.cfg.Logger.Info("device connection refused", "remote", raw.RemoteAddr().String(), "error", err)
		_ = raw.Close()
		return
	}
	id, err := b.cfg.Identify(tc.ConnectionState())
	if err != nil {
		b.metrics.refused.WithLabelValues("identity").Inc()
		b.cfg.Logger.Warn("device connection refused", "remote", raw.RemoteAddr().String(), "error", err)
		_ = raw.Close()
		return
	}
	b.serve(newConn(tc, raw, id, b.cfg.WriteTimeout))
}

// Attach serves a connection whose identity is known by other means, for
// example one in memory. It blocks until the connection ends.
func (b *Broker) Attach(c net.Conn, id Identity) { b.serve(newConn(c, c, id, b.cfg.WriteTimeout)) }

func (b *Broker) serve(c *conn) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		_ = c.Close()
		return
	}
	c.pace = pacer{every: time.Second / time.Duration(b.cfg.MessageRate), burst: 16 * b.cfg.MessageRate}
	b.conns[c] = struct{}{}
	b.mu.Unlock()
	if !c.id.NotAfter.IsZero() {
		defer time.AfterFunc(time.Until(c.id.NotAfter), func() { _ = c.Close() }).Stop()
	}
	_ = c.SetReadDeadline(time.Now().Add(b.cfg.FirstRead))
	err := b.server.EstablishConnection("device", c)
	_ = c.Close()
	b.mu.Lock()
	delete(b.conns, c)
	b.mu.Unlock()
	if err != nil {
		b.cfg.Logger.Debug("device connection ended", "device", c.id.Device, "error", err)
	}
}

// Publish queues a message for a device with QoS 1. It may block for
// WriteTimeout when the device does not read, so it is called from workers and
// never from a Handler.
func (b *Broker) Publish(ctx context.Context, device string, kind wire.Kind, payload []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return b.publish(device, kind, payload, 1)
}

// Send queues a message for a device with QoS 0, without waiting. It is lost
// when the queue is full.
func (b *Broker) Send(device string, kind wire.Kind, payload []byte) error {
	return b.publish(device, kind, payload, 0)
}

func (b *Broker) publish(device string, kind wire.Kind, payload []byte, qos byte) error {
	cl := b.session(device)
	if cl == nil {
		return fmt.Errorf("publish %s to %s: %w", kind, device, ErrOffline)
	}
	if known, ok := b.server.Clients.Get(device); !ok || known != cl {
		// mochi's clean-up of a session that was taken over can remove the new
		// one from its table; it would get nothing for ever.
		cl.Stop(errForgotten)
		return fmt.Errorf("publish %s to %s: %w: %w", kind, device, errForgotten, ErrOffline)
	}
	if err := b.server.Publish(wire.Topic(device, kind), payload, false, qos); err != nil {
		return fmt.Errorf("publish %s to %s: %w", kind, device, err)
	}
	return nil
}

// Kick ends the live session of a device by closing its socket; the device
// record must deny it already.
func (b *Broker) Kick(device string) bool {
	cl := b.session(device)
	if cl == nil {
		return false
	}
	cl.Stop(packets.ErrNotAuthorized)
	return true
}

// session returns the live session of a device, or nil.
func (b *Broker) session(device string) *mqtt.Client {
	b.mu.Lock()
	defer b.mu.Unlock()
	if cl := b.live[device]; cl != nil && !cl.Closed() {
		return cl
	}
	return nil
}

// Close ends all connections and the broker, and returns when the last message
// was handled. A second call does nothing.
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	for c := range b.conns {
		_ = c.Close()
	}
	b.mu.Unlock()
	b.wg.Wait()
	err := b.server.Close()
	b.cancel()
	if err != nil {
		return fmt.Errorf("close broker: %w", err)
	}
	return nil
}

// pacer spreads accepts and messages: a token bucket that refills one token per
// every.
type pacer struct {
	every time.Duration
	burst int
	next  time.Time // when the bucket would be full less burst
}

// take returns how long to wait for the next n tokens.
func (p *pacer) take(now time.Time, n int) time.Duration {
	if floor := now.Add(-time.Duration(p.burst) * p.every); p.next.Before(floor) {
		p.next = floor
	}
	p.next = p.next.Add(time.Duration(n) * p.every)
	return max(0, p.next.Sub(now))
}

// quiet lowers mochi's chatter: what it calls info and warning is debug to us.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelError && q.Handler.Enabled(ctx, l) || q.Handler.Enabled(ctx, slog.LevelDebug)
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelError {
		r.Level = slog.LevelDebug
	}
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(a []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(a)} }
func (q quiet) WithGroup(n string) slog.Handler      { return quiet{q.Handler.WithGroup(n)} }
