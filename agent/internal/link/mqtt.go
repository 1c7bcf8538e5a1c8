package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/skein-fleet/skein/agent/internal/pki"
	"github.com/skein-fleet/skein/proto/wire"
)

// MQTTOptions configure the MQTT driver.
type MQTTOptions struct {
	Device  string
	Address string // host:port
	// TLS is used over what Dial returns; nil leaves the connection as it is,
	// for a Dial that is secure by itself.
	TLS *tls.Config
	// Transport is TCP when empty; the others need WebSocketURL, wss://…, and
	// WebSocketTLS.
	Transport    Transport
	WebSocketURL string
	WebSocketTLS *tls.Config
	// Dial opens connections; nil goes straight, or through an HTTP proxy where
	// the environment names one.
	Dial pki.Dial
	// KeepAlive is clamped to 10 s … 20 min; 0 means 60 s.
	KeepAlive time.Duration
	// BackoffMin and BackoffMax bound the full-jitter wait between connects;
	// 0 means 1 s and 120 s.
	BackoffMin, BackoffMax time.Duration
	// Random returns a number in [0,1); nil is math/rand.
	Random func() float64
}

const (
	connectTimeout = 30 * time.Second
	ackTimeout     = 60 * time.Second
	// steadyAfter is how long a connection must last for the backoff to start
	// from its beginning again.
	steadyAfter = 30 * time.Second
	alertWait   = 200 * time.Millisecond
)

// MQTT is the driver for MQTT 3.1.1 over TLS 1.3.
type MQTT struct {
	opts  MQTTOptions
	first int // way that Auto tries first; of the connecting goroutine alone

	mu        sync.Mutex // guards what follows
	session   *session   // nil while offline
	notBefore time.Time  // next connect, from SlowDown
}

// session is one connection.
type session struct {
	client mqtt.Client
	ended  chan struct{} // closed when the connection is lost
	once   sync.Once
	cause  error // set before ended is closed
}

func (s *session) end(cause error) {
	s.once.Do(func() {
		s.cause = cause
		close(s.ended)
	})
}

// NewMQTT returns a link that is not connected yet.
func NewMQTT(o MQTTOptions) *MQTT {
	if o.Dial == nil {
		o.Dial = pki.ProxyDial(nil)
	}
	if o.KeepAlive == 0 {
		o.KeepAlive = time.Minute
	}
	o.KeepAlive = min(max(o.KeepAlive, 10*time.Second), 20*time.Minute)
	if o.BackoffMin <= 0 {
		o.BackoffMin = time.Second
	}
	if o.BackoffMax <= 0 {
		o.BackoffMax = 2 * time.Minute
	}
	if o.Random == nil {
		o.Random = rand.Float64
	}
	return &MQTT{opts: o}
}

// SlowDown delays the next connect by at least d.
func (m *MQTT) SlowDown(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.notBefore = time.Now().Add(d)
}

// errRenewed ends a connection for the sake of the next.
var errRenewed = errors.New("connecting again with the renewed certificate")

// Reconnect ends the present connection, if there is one. The next shows the
// certificate that the device has then.
func (m *MQTT) Reconnect() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.session != nil {
		m.session.end(errRenewed)
	}
}

// Run connects and keeps connected until ctx ends.
func (m *MQTT) Run(ctx context.Context, h Handler) error {
	var connection uint64
	failures := 0
	for ctx.Err() == nil {
		connection++
		started := time.Now()
		err := m.connection(ctx, h, connection)
		if ctx.Err() != nil {
			break
		}
		h.Disconnected(err)
		if time.Since(started) >= steadyAfter {
			failures = 0
		}
		failures++
		wait(ctx, m.backoff(failures))
	}
	return nil
}

// backoff returns the full-jitter wait after a number of failures in a row,
// not ending before SlowDown allows.
func (m *MQTT) backoff(failures int) time.Duration {
	bound := m.opts.BackoffMax
	if shift := failures - 1; shift < 20 {
		bound = min(bound, m.opts.BackoffMin<<shift)
	}
	d := time.Duration(m.opts.Random() * float64(bound))
	m.mu.Lock()
	defer m.mu.Unlock()
	if hold := time.Until(m.notBefore); hold > d {
		d = hold + d
	}
	return d
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// connection makes one connection and returns why it ended.
func (m *MQTT) connection(ctx context.Context, h Handler, number uint64) error {
	s := &session{ended: make(chan struct{})}
	var conn *watchedConn
	o, err := m.options(ctx, h, number, s, &conn)
	if err != nil {
		return err
	}
	s.client = mqtt.NewClient(o)
	// Ends by itself: the dialled connection carries a deadline.
	token := s.client.Connect()
	if err := waitToken(context.WithoutCancel(ctx), token, 2*connectTimeout); err != nil {
		err = conn.explain(err)
		if t, ok := token.(*mqtt.ConnectToken); ok && denied(t.ReturnCode()) && !errors.Is(err, ErrRefused) {
			err = fmt.Errorf("%w: %w", ErrRefused, err)
		}
		return fmt.Errorf("connect to %s: %w", m.opts.Address, err)
	}
	defer s.client.Disconnect(100)
	if err := m.subscribe(ctx, s); err != nil {
		return fmt.Errorf("subscribe: %w", conn.explain(err))
	}
	if err := m.presence(ctx, s, h, number, true); err != nil {
		return fmt.Errorf("publish presence: %w", conn.explain(err))
	}
	m.mu.Lock()
	m.session = s
	m.mu.Unlock()
	connCtx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { h.Connected(connCtx) })
	select {
	case <-s.ended:
	case <-ctx.Done():
	}
	m.mu.Lock()
	m.session = nil
	m.mu.Unlock()
	cancel()
	wg.Wait()
	if ctx.Err() != nil { // going down in order: the will is not sent, so say it
		farewell, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		// Best effort: the will or the keepalive tells it otherwise.
		_ = m.presence(farewell, s, h, number, false)
		return ctx.Err()
	}
	return conn.explain(s.cause)
}

func (m *MQTT) options(ctx context.Context, h Handler, number uint64, s *session, conn **watchedConn) (*mqtt.ClientOptions, error) {
	will, err := wire.Marshal(&wire.Presence{ID: wire.MessageID{Boot: h.Boot}, Connection: number})
	if err != nil {
		return nil, err
	}
	o := mqtt.NewClientOptions()
	o.AddBroker("tls://" + m.opts.Address)
	o.SetClientID(m.opts.Device).SetCleanSession(true).SetProtocolVersion(4)
	o.SetBinaryWill(wire.Topic(m.opts.Device, wire.UpPresence), will, 1, false)
	o.SetKeepAlive(m.opts.KeepAlive).SetPingTimeout(20 * time.Second)
	o.SetConnectTimeout(connectTimeout).SetWriteTimeout(connectTimeout)
	o.SetAutoReconnect(false).SetConnectRetry(false).SetOrderMatters(true)
	o.SetMessageChannelDepth(8)
	o.SetConnectionLostHandler(func(_ mqtt.Client, err error) { s.end(err) })
	o.SetDefaultPublishHandler(func(_ mqtt.Client, msg mqtt.Message) {
		if device, kind, err := wire.ParseTopic(msg.Topic()); err == nil && device == m.opts.Device {
			h.Message(kind, msg.Payload())
		}
	})
	o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) {
		c, err := m.dial(ctx)
		if err != nil {
			return nil, err
		}
		*conn = c
		return c, nil
	})
	return o, nil
}

// denied reports whether a CONNACK says that the broker does not let this
// device in: its id, or the device behind its certificate, is not accepted.
func denied(code byte) bool {
	return code == packets.ErrRefusedIDRejected || code == packets.ErrRefusedBadUsernameOrPassword || code == packets.ErrRefusedNotAuthorised
}

func (m *MQTT) subscribe(ctx context.Context, s *session) error {
	filters := map[string]byte{}
	for _, k := range downKinds {
		filters[wire.Topic(m.opts.Device, k)] = 1
	}
	token := s.client.SubscribeMultiple(filters, nil)
	if err := s.wait(ctx, token); err != nil {
		return err
	}
	// paho leaves the token's error nil when the broker refuses.
	if st, ok := token.(*mqtt.SubscribeToken); ok {
		for topic, code := range st.Result() {
			if code == 0x80 {
				return fmt.Errorf("broker refuses %s", topic)
			}
		}
	}
	return nil
}

func (m *MQTT) presence(ctx context.Context, s *session, h Handler, number uint64, online bool) error {
	b, err := wire.Marshal(&wire.Presence{ID: h.NextID(), Connection: number, Online: online})
	if err != nil {
		return err
	}
	return s.publish(ctx, wire.Topic(m.opts.Device, wire.UpPresence), b)
}

// Publish sends on the device's own topic and returns after the PUBACK.
func (m *MQTT) Publish(ctx context.Context, kind wire.Kind, payload []byte) error {
	m.mu.Lock()
	s := m.session
	m.mu.Unlock()
	if s == nil {
		return ErrOffline
	}
	if len(payload) > wire.MaxMessage {
		return fmt.Errorf("publish %s: %w: %d bytes, limit %d", kind, wire.ErrMalformed, len(payload), wire.MaxMessage)
	}
	if err := s.publish(ctx, wire.Topic(m.opts.Device, kind), payload); err != nil {
		return fmt.Errorf("publish %s: %w", kind, err)
	}
	return nil
}

func (s *session) publish(ctx context.Context, topic string, payload []byte) error {
	return s.wait(ctx, s.client.Publish(topic, 1, false, payload))
}

// wait waits for a token, the end of the connection or of ctx.
func (s *session) wait(ctx context.Context, t mqtt.Token) error {
	timer := time.NewTimer(ackTimeout)
	defer timer.Stop()
	select {
	case <-t.Done():
		if err := t.Error(); err != nil {
			return fmt.Errorf("%w: %w", ErrOffline, err)
		}
		select {
		case <-s.ended: // paho completes what waits when the connection is lost
			return fmt.Errorf("%w: connection lost before the acknowledgement", ErrOffline)
		default:
			return nil
		}
	case <-s.ended:
		return fmt.Errorf("%w: %w", ErrOffline, errors.Join(s.cause))
	case <-timer.C:
		// A broker that answers pings alone is no connection: paho would keep
		// all that waits for it in memory.
		err := fmt.Errorf("no acknowledgement in %s", ackTimeout)
		s.end(err)
		return fmt.Errorf("%w: %w", ErrOffline, err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func waitToken(ctx context.Context, t mqtt.Token, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-t.Done():
		return t.Error()
	case <-timer.C:
		return fmt.Errorf("no answer in %s", d)
	case <-ctx.Done():
		return ctx.Err()
	}
}
