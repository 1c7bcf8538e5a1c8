package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/agent/internal/pki"
	"github.com/skein-fleet/skein/proto/wire"
)

// settle lets fake time pass and everything that it sets off come to rest.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

var device = wire.FormatDeviceID([16]byte{1})

// recorder is a Handler that remembers.
type recorder struct {
	mu     sync.Mutex
	ups    int
	causes []error
	got    []wire.Kind
	ids    atomic.Uint64
}

func (r *recorder) handler() Handler {
	return Handler{
		Boot: 5, NextID: func() wire.MessageID { return wire.MessageID{Boot: 5, Counter: r.ids.Add(1)} },
		Connected:    func(context.Context) { r.mu.Lock(); r.ups++; r.mu.Unlock() },
		Disconnected: func(err error) { r.mu.Lock(); r.causes = append(r.causes, err); r.mu.Unlock() },
		Message:      func(k wire.Kind, _ []byte) { r.mu.Lock(); r.got = append(r.got, k); r.mu.Unlock() },
	}
}

func (r *recorder) connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.ups
}

func (r *recorder) messages() []wire.Kind {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

func (r *recorder) last() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.causes) == 0 {
		return nil
	}
	return r.causes[len(r.causes)-1]
}

// run starts a link in the bubble; the returned function stops it and checks
// that nothing is left.
func run(t *testing.T, b *broker, o MQTTOptions, r *recorder) (*MQTT, func()) {
	t.Helper()
	o.Device, o.Address, o.Dial = device, "skein.local:8883", b.dial
	m := NewMQTT(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx, r.handler()) }()
	return m, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		b.wg.Wait()
	}
}

func presences(t *testing.T, b *broker) (out []wire.Presence) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.received {
		if _, kind, err := wire.ParseTopic(p.TopicName); err == nil && kind == wire.UpPresence {
			var v wire.Presence
			if err := wire.Unmarshal(p.Payload, &v); err != nil {
				t.Error(err)
			}
			out = append(out, v)
		}
	}
	return out
}

func TestConnectPublishReceive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := &broker{t: t}, &recorder{}
		m, stop := run(t, b, MQTTOptions{}, r)
		synctest.Wait()
		if err := m.Publish(t.Context(), wire.UpHello, []byte("hi")); err != nil {
			t.Fatal(err)
		}
		b.deliver(wire.Topic(device, wire.DownDesired), []byte("d"))
		b.deliver(wire.Topic(wire.FormatDeviceID([16]byte{2}), wire.DownDesired), []byte("foreign"))
		settle(time.Hour) // keepalives
		if len(r.messages()) != 1 || r.messages()[0] != wire.DownDesired || r.connections() != 1 || len(b.dialled()) != 1 {
			t.Errorf("got %v, %d connections, %d dials", r.messages(), r.connections(), len(b.dialled()))
		}
		c := b.connected()
		var will wire.Presence
		if err := wire.Unmarshal(c.WillMessage, &will); err != nil || will != (wire.Presence{ID: wire.MessageID{Boot: 5}, Connection: 1}) {
			t.Errorf("will %+v %v", will, err)
		}
		if !c.CleanSession || c.ClientIdentifier != device || c.WillTopic != wire.Topic(device, wire.UpPresence) || c.WillRetain || c.WillQos != 1 || c.Keepalive != 60 || c.ProtocolVersion != 4 {
			t.Errorf("connect %+v", c)
		}
		stop()
		got := presences(t, b)
		if len(got) != 2 || !got[0].Online || got[1].Online || got[1].Connection != 1 {
			t.Errorf("presence %+v", got)
		}
		if err := m.Publish(context.Background(), wire.UpHello, nil); !errors.Is(err, ErrOffline) {
			t.Errorf("publish after the end: %v", err)
		}
	})
}

func TestReconnectWithFullJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := &broker{t: t}, &recorder{}
		var refuse atomic.Bool
		refuse.Store(true)
		o := MQTTOptions{Random: func() float64 { return 0.5 }}
		o.Device, o.Address = device, "skein.local:8883"
		o.Dial = func(ctx context.Context, n, a string) (net.Conn, error) {
			c, err := b.dial(ctx, n, a)
			if refuse.Load() {
				c.Close()
				return nil, errTest
			}
			return c, err
		}
		m := NewMQTT(o)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx, r.handler()) }()
		settle(10 * time.Minute)
		var gaps []time.Duration
		for i := 1; i < len(b.dialled()); i++ {
			gaps = append(gaps, b.dialled()[i].Sub(b.dialled()[i-1]))
		}
		want := []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute, time.Minute}
		for i, w := range want {
			if gaps[i] != w {
				t.Fatalf("waits %v, want %v", gaps, want)
			}
		}
		if !errors.Is(r.last(), errTest) {
			t.Errorf("cause %v", r.last())
		}
		refuse.Store(false)
		m.SlowDown(5 * time.Minute)
		n := len(b.dialled())
		before := time.Now()
		settle(20 * time.Minute)
		// One wait was running already; the next connection lasts.
		if r.connections() != 1 || b.dialled()[len(b.dialled())-1].Sub(before) > 7*time.Minute || len(b.dialled()) > n+2 {
			t.Errorf("%d connections, dials %v after %v", r.connections(), b.dialled()[n:], before)
		}
		cancel()
		<-done
		b.wg.Wait()
	})
}

func TestCutAndBlackHole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := &broker{t: t}, &recorder{}
		m, stop := run(t, b, MQTTOptions{}, r)
		synctest.Wait()
		b.set(func() { b.mute = true })
		failed := make(chan error, 1)
		go func() { failed <- m.Publish(t.Context(), wire.UpReport, []byte("r")) }()
		settle(time.Second)
		b.cut()
		if err := <-failed; !errors.Is(err, ErrOffline) {
			t.Errorf("publish without acknowledgement: %v", err)
		}
		b.set(func() { b.mute = false })
		settle(time.Minute)
		if r.connections() != 2 {
			t.Fatalf("%d connections", r.connections())
		}
		b.blackHole()
		before := time.Now()
		settle(5 * time.Minute)
		if r.connections() != 3 || b.dialled()[len(b.dialled())-1].Sub(before) > 2*time.Minute {
			t.Errorf("%d connections, newest %v after the cable was pulled", r.connections(), b.dialled()[len(b.dialled())-1].Sub(before))
		}
		stop()
		var numbers []uint64
		for _, p := range presences(t, b) {
			if p.Online {
				numbers = append(numbers, p.Connection)
			}
		}
		if len(numbers) != 3 || numbers[0] >= numbers[1] || numbers[1] >= numbers[2] {
			t.Errorf("connection numbers %v", numbers)
		}
	})
}

// TestSubscriptionRefused: paho reports no error for it.
func TestSubscriptionRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := &broker{t: t, refuse: "down/cmd"}, &recorder{}
		_, stop := run(t, b, MQTTOptions{}, r)
		settle(time.Minute)
		if r.connections() != 0 || r.last() == nil || !strings.Contains(r.last().Error(), "down/cmd") {
			t.Errorf("%d connections, cause %v", r.connections(), r.last())
		}
		stop()
	})
}

func TestKeepAliveIsClamped(t *testing.T) {
	for in, want := range map[time.Duration]time.Duration{0: time.Minute, time.Second: 10 * time.Second, 24 * time.Hour: 20 * time.Minute} {
		if got := NewMQTT(MQTTOptions{KeepAlive: in, Dial: (&broker{}).dial}).opts.KeepAlive; got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
}

func TestTooLargeIsRefusedHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := &broker{t: t}, &recorder{}
		m, stop := run(t, b, MQTTOptions{}, r)
		synctest.Wait()
		if err := m.Publish(t.Context(), wire.UpTelemetry, make([]byte, wire.MaxMessage+1)); !errors.Is(err, wire.ErrMalformed) {
			t.Error(err)
		}
		stop()
	})
}

func fixed(p *x509.CertPool) pki.Roots {
	return func() (*x509.CertPool, error) { return p, nil }
}

// TestNoAcknowledgementEndsTheConnection: a broker that answers pings alone
// would have paho keep all that waits.
func TestNoAcknowledgementEndsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := &broker{t: t}, &recorder{}
		m, stop := run(t, b, MQTTOptions{}, r)
		synctest.Wait()
		b.set(func() { b.mute = true })
		if err := m.Publish(t.Context(), wire.UpHello, []byte("hi")); !errors.Is(err, ErrOffline) {
			t.Errorf("publish: %v", err)
		}
		b.set(func() { b.mute = false })
		settle(10 * time.Second)
		if r.connections() != 2 || !strings.Contains(r.last().Error(), "no acknowledgement") {
			t.Errorf("%d connections, cause %v", r.connections(), r.last())
		}
		stop()
	})
}

// TestReconnect: asked for, it ends one connection and makes the next.
func TestReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := &broker{t: t}, &recorder{}
		m := NewMQTT(MQTTOptions{})
		m.Reconnect() // nothing to end
		m, stop := run(t, b, MQTTOptions{}, r)
		synctest.Wait()
		m.Reconnect()
		settle(10 * time.Second)
		if r.connections() != 2 || !errors.Is(r.last(), errRenewed) {
			t.Errorf("%d connections, cause %v", r.connections(), r.last())
		}
		stop()
	})
}

// TestHugePacket: the broker announces more than it may send.
func TestHugePacket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, r := &broker{t: t}, &recorder{}
		_, stop := run(t, b, MQTTOptions{}, r)
		synctest.Wait()
		b.mu.Lock()
		conn := b.conn
		b.mu.Unlock()
		if _, err := conn.Write([]byte{0x30, 0xff, 0xff, 0xff, 0x7f}); err != nil {
			t.Fatal(err)
		}
		settle(10 * time.Second)
		if r.connections() != 2 || !errors.Is(r.last(), errPacket) {
			t.Errorf("%d connections, cause %v", r.connections(), r.last())
		}
		stop()
	})
}

// TestFrames: packets are followed wherever reads cut them.
func TestFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var stream []byte
		for range rapid.IntRange(1, 5).Draw(t, "packets") {
			p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
			p.TopicName, p.Payload = "t", make([]byte, rapid.SampledFrom([]int{0, 1, 120, 130, 20_000, wire.MaxMessage}).Draw(t, "size"))
			var buf bytes.Buffer
			if err := p.Write(&buf); err != nil {
				t.Fatal(err)
			}
			stream = append(stream, buf.Bytes()...)
		}
		var f frames
		for rest := stream; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "read")
			if err := f.see(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if f.left != 0 || f.inLength {
			t.Fatalf("in the middle of a packet at the end: %+v", f)
		}
		if err := f.see([]byte{0x30, 0x80, 0x80, 0x80, 0x80}); !errors.Is(err, errPacket) {
			t.Fatalf("endless length: %v", err)
		}
	})
}

func TestMutualTLS(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAuthority(t)
		b, r := &broker{t: t}, &recorder{}
		b.tls = &tls.Config{MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool(),
			Certificates: []tls.Certificate{a.leaf("skein.local", x509.ExtKeyUsageServerAuth, time.Now().AddDate(0, 0, 90))}}
		var cert atomic.Pointer[tls.Certificate]
		renew := func(until time.Time) {
			c := a.leaf("device", x509.ExtKeyUsageClientAuth, until)
			cert.Store(&c)
		}
		renew(time.Now().Add(time.Hour))
		now := func() (time.Time, bool) { return time.Now(), false }
		o := MQTTOptions{TLS: pki.ClientConfig(fixed(a.pool()), "skein.local", now, cert.Load)}
		m, stop := run(t, b, o, r)
		synctest.Wait()
		if err := m.Publish(t.Context(), wire.UpHello, nil); err != nil {
			t.Fatal(err)
		}
		// The certificate expires; a session that is cut does not come back, and the cause is named
		// whether the alert comes in the handshake or at the first read.
		settle(2 * time.Hour)
		b.cut()
		settle(5 * time.Minute)
		if r.connections() != 1 || !errors.Is(r.last(), ErrRefused) {
			t.Fatalf("%d connections, cause %v", r.connections(), r.last())
		}
		// A renewed one is used at the next handshake.
		renew(time.Now().AddDate(0, 0, 30))
		settle(5 * time.Minute)
		if r.connections() != 2 {
			t.Errorf("%d connections after the renewal, cause %v", r.connections(), r.last())
		}
		stop()
	})
}

func TestForeignServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := newAuthority(t), newAuthority(t)
		b, r := &broker{t: t}, &recorder{}
		b.tls = &tls.Config{Certificates: []tls.Certificate{theirs.leaf("skein.local", x509.ExtKeyUsageServerAuth, time.Now().AddDate(0, 0, 90))}}
		now := func() (time.Time, bool) { return time.Now(), true }
		_, stop := run(t, b, MQTTOptions{TLS: pki.ClientConfig(fixed(ours.pool()), "skein.local", now, nil)}, r)
		settle(time.Minute)
		if _, ok := errors.AsType[x509.UnknownAuthorityError](r.last()); !ok || r.connections() != 0 || errors.Is(r.last(), ErrRefused) {
			t.Errorf("%d connections, cause %v", r.connections(), r.last())
		}
		stop()
	})
}

func TestMemoryLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var kinds []wire.Kind
		m := NewMemory(func(k wire.Kind, _ []byte) error { kinds = append(kinds, k); return nil })
		r := &recorder{}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx, r.handler()) }()
		synctest.Wait()
		if err := m.Publish(ctx, wire.UpHello, nil); !errors.Is(err, ErrOffline) {
			t.Errorf("offline: %v", err)
		}
		m.SetOnline(true)
		synctest.Wait()
		if err := m.Publish(ctx, wire.UpHello, nil); err != nil {
			t.Error(err)
		}
		m.Deliver(wire.DownCmd, nil)
		m.SetOnline(false)
		synctest.Wait()
		m.Deliver(wire.DownCmd, nil) // lost
		if len(r.messages()) != 1 || r.connections() != 1 || !errors.Is(r.last(), ErrOffline) || len(kinds) != 3 {
			t.Errorf("%v %d %v %v", r.messages(), r.connections(), r.last(), kinds)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
