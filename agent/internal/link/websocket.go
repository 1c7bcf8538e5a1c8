package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/skein-fleet/skein/agent/internal/pki"
	"github.com/skein-fleet/skein/proto/wire"
)

// Transport is what MQTT goes over.
type Transport string

// The transports.
const (
	TCP       Transport = "tcp"
	WebSocket Transport = "websocket" // through the HTTPS port, where nothing else is let through
	// Auto tries the one that worked last, TCP at first, and then the other.
	Auto Transport = "auto"
)

// autoTimeout bounds each try of Auto: a firewall may swallow what it does not
// let through.
const autoTimeout = 10 * time.Second

// dial opens a connection by the transport that is configured.
func (m *MQTT) dial(ctx context.Context) (*watchedConn, error) {
	switch m.opts.Transport {
	case WebSocket:
		return m.within(ctx, connectTimeout, m.dialWebSocket)
	case Auto:
	default:
		return m.within(ctx, connectTimeout, m.dialTCP)
	}
	ways := []func(context.Context) (*watchedConn, error){m.dialTCP, m.dialWebSocket}
	var errs []error
	for n := range ways {
		way := (n + m.first) % len(ways)
		c, err := m.within(ctx, autoTimeout, ways[way])
		if err == nil {
			m.first = way
			return c, nil
		}
		errs = append(errs, err)
		if errors.Is(err, ErrRefused) || ctx.Err() != nil {
			break // the other way leads to the same answer
		}
	}
	return nil, oneLine(errs)
}

// oneLine joins what each way said, for people who read it in a line.
func oneLine(errs []error) error {
	all := errs[0]
	for _, err := range errs[1:] {
		all = fmt.Errorf("%w; %w", all, err)
	}
	return all
}

func (m *MQTT) within(ctx context.Context, d time.Duration, dial func(context.Context) (*watchedConn, error)) (*watchedConn, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return dial(ctx)
}

func (m *MQTT) dialTCP(ctx context.Context) (*watchedConn, error) {
	c, raw, err := m.secure(ctx, m.opts.Address, m.opts.TLS)
	if err != nil {
		return nil, err
	}
	return &watchedConn{Conn: c, raw: raw}, nil
}

// secure dials and does the TLS handshake, where cfg is not nil.
func (m *MQTT) secure(ctx context.Context, address string, cfg *tls.Config) (c, raw net.Conn, err error) {
	if raw, err = m.opts.Dial(ctx, "tcp", address); err != nil || cfg == nil {
		return raw, raw, err
	}
	t := tls.Client(raw, cfg)
	if err := t.HandshakeContext(ctx); err != nil {
		raw.Close()
		if pki.RefusedByPeer(err) {
			return nil, nil, fmt.Errorf("%w: %w", ErrRefused, err)
		}
		return nil, nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return t, raw, nil
}

func (m *MQTT) dialWebSocket(ctx context.Context) (*watchedConn, error) {
	var raw net.Conn
	d := websocket.Dialer{
		Subprotocols: []string{"mqtt"}, ReadBufferSize: 4096, WriteBufferSize: 4096,
		NetDialTLSContext: func(ctx context.Context, _, address string) (c net.Conn, err error) {
			c, raw, err = m.secure(ctx, address, m.opts.WebSocketTLS)
			return c, err
		},
	}
	ws, resp, err := d.DialContext(ctx, m.opts.WebSocketURL, nil)
	switch {
	case err == nil:
	case pki.RefusedByPeer(err), resp != nil && (resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusUnauthorized):
		return nil, fmt.Errorf("%w: %s: %w", ErrRefused, m.opts.WebSocketURL, err)
	case resp != nil:
		return nil, fmt.Errorf("open %s: %w: %s", m.opts.WebSocketURL, err, resp.Status)
	default:
		return nil, fmt.Errorf("open %s: %w", m.opts.WebSocketURL, err)
	}
	ws.SetReadLimit(wire.MaxMessage + packetOverhead)
	return &watchedConn{Conn: &webConn{Conn: raw, ws: ws}, raw: raw}, nil
}

// webConn is the stream of bytes in the binary messages of a WebSocket. As
// MQTT has it, packets need not keep to the messages.
type webConn struct {
	net.Conn // addresses, Close
	ws       *websocket.Conn
	message  io.Reader // being read, nil between two

	mu sync.Mutex // writes one at a time: paho's pings come beside its other packets
}

func (c *webConn) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			kind, r, err := c.ws.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errors.New("WebSocket message is not binary")
			}
			c.message = r
		}
		n, err := c.message.Read(p)
		if errors.Is(err, io.EOF) {
			c.message, err = nil, nil
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

func (c *webConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (c *webConn) SetReadDeadline(t time.Time) error { return c.ws.SetReadDeadline(t) }

func (c *webConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ws.SetWriteDeadline(t)
}

func (c *webConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
