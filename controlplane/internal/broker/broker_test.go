package broker

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/skein-fleet/skein/proto/wire"
)

var (
	deviceA = wire.FormatDeviceID([16]byte{1})
	deviceB = wire.FormatDeviceID([16]byte{2})
)

// book is a handler that remembers.
type book struct {
	mu       sync.Mutex
	messages []string
	notices  []string
	sessions map[string]int
	deny     map[string]bool
	fail     bool
	changed  chan struct{}
}

func newBook() *book {
	return &book{sessions: map[string]int{}, deny: map[string]bool{}, changed: make(chan struct{}, 1)}
}

func (b *book) note(f func()) {
	b.mu.Lock()
	f()
	b.mu.Unlock()
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

func (b *book) Admit(_, device string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.deny[device] {
		return errors.New("denied")
	}
	return nil
}

func (b *book) Session(_, device string, _ uint64, open bool) {
	b.note(func() {
		if open {
			b.sessions[device]++
		} else {
			b.sessions[device]--
		}
	})
}

func (b *book) Message(_ context.Context, _, device string, kind wire.Kind, payload []byte) error {
	b.mu.Lock()
	fail := b.fail
	b.mu.Unlock()
	if fail {
		return errors.New("disk full")
	}
	b.note(func() { b.messages = append(b.messages, device[:4]+" "+string(kind)+" "+string(payload)) })
	return nil
}

func (b *book) Noticed(_ context.Context, _, device, kind, _, _ string) error {
	b.note(func() { b.notices = append(b.notices, device[:4]+" "+kind) })
	return nil
}

// until waits for a condition over the book.
func (b *book) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		b.mu.Lock()
		done := ok()
		b.mu.Unlock()
		if done {
			return
		}
		select {
		case <-b.changed:
		case <-timeout:
			t.Fatalf("%s did not come about: %v %v", what, b.messages, b.notices)
		}
	}
}

func newBroker(t *testing.T, cfg Config) (*Broker, *book) {
	t.Helper()
	h := newBook()
	cfg.Handler = h
	cfg.Identify = func(tls.ConnectionState) (Identity, error) { return Identity{}, errors.New("no certificates here") }
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b, h
}

// pair is a TCP connection over loopback whose far end the broker serves.
func pair(t *testing.T, b *Broker, device string) net.Conn {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	go b.Attach(far, Identity{Tenant: "t", Device: device})
	t.Cleanup(func() { _ = near.Close() })
	return near
}

func connectPacket(t *testing.T, id string) []byte {
	t.Helper()
	var buf bytes.Buffer
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Connect}, ProtocolVersion: 4,
		Connect: packets.ConnectParams{ProtocolName: []byte("MQTT"), Clean: true, ClientIdentifier: id, Keepalive: 60}}
	if err := pk.ConnectEncode(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func subscribePacket(t *testing.T, filter string) []byte {
	t.Helper()
	var buf bytes.Buffer
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, ProtocolVersion: 4, PacketID: 1,
		Filters: packets.Subscriptions{{Filter: filter, Qos: 1}}}
	if err := pk.SubscribeEncode(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func write(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, c net.Conn, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSilentPeerIsCutOff(t *testing.T) {
	b, _ := newBroker(t, Config{FirstRead: 50 * time.Millisecond})
	c := pair(t, b, deviceA)
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("a peer that never speaks: %v", err)
	}
}

func TestSessionEndsWithItsCertificate(t *testing.T) {
	b, h := newBroker(t, Config{})
	near, far := net.Pipe()
	defer near.Close()
	go b.Attach(far, Identity{Tenant: "t", Device: deviceA, NotAfter: time.Now().Add(200 * time.Millisecond)})
	write(t, near, connectPacket(t, deviceA))
	read(t, near, 4)
	if _, err := near.Read(make([]byte, 1)); err == nil {
		t.Error("the session outlives its certificate")
	}
	h.until(t, "end of the session", func() bool { return h.sessions[deviceA] == 0 })
}

// TestStuckPeerHoldsNobodyUp subscribes, keeps pinging and never reads. It is
// cut off by the write deadline, and sending to another device goes on.
func TestStuckPeerHoldsNobodyUp(t *testing.T) {
	b, h := newBroker(t, Config{WriteTimeout: 200 * time.Millisecond, Pending: 64})
	stuck := pair(t, b, deviceA)
	if err := stuck.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	write(t, stuck, connectPacket(t, deviceA))
	read(t, stuck, 4)
	write(t, stuck, subscribePacket(t, wire.Topic(deviceA, "down/#")))
	read(t, stuck, 5)
	other := pair(t, b, deviceB)
	write(t, other, connectPacket(t, deviceB))
	read(t, other, 4)
	go func() { // pings, so that the read deadline is always far
		for {
			if _, err := stuck.Write([]byte{0xc0, 0}); err != nil {
				return
			}
			<-time.After(20 * time.Millisecond)
		}
	}()
	payload := make([]byte, 200<<10)
	var worst time.Duration
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		start := time.Now()
		err := b.Publish(t.Context(), deviceA, wire.DownDesired, payload)
		if errors.Is(err, ErrOffline) {
			break
		}
		if err := b.Publish(t.Context(), deviceB, wire.DownCmd, []byte("x")); err != nil {
			t.Fatal(err)
		}
		worst = max(worst, time.Since(start))
	}
	h.until(t, "end of the stuck session", func() bool { return h.sessions[deviceA] == 0 })
	if worst > 2*time.Second {
		t.Errorf("one sending took %s", worst)
	}
}

// Every message of Send is accounted for once: it left, or a full queue
// dropped it; what is published with an acknowledgement is not counted.
func TestSentIsToldOnce(t *testing.T) {
	var bytes, messages atomic.Int64
	told := make(chan struct{}, 1)
	b, h := newBroker(t, Config{Pending: 8, Sent: func(device string, n int) {
		if device != deviceA {
			t.Errorf("sent to %s", device)
		}
		bytes.Add(int64(n))
		messages.Add(1)
		select {
		case told <- struct{}{}:
		default:
		}
	}})
	c := pair(t, b, deviceA)
	write(t, c, connectPacket(t, deviceA))
	read(t, c, 4)
	write(t, c, subscribePacket(t, wire.Topic(deviceA, wire.DownChunk)))
	read(t, c, 5)
	go io.Copy(io.Discard, c)
	h.until(t, "session", func() bool { return h.sessions[deviceA] == 1 })
	const n = 200
	for range n {
		if err := b.Send(deviceA, wire.DownChunk, make([]byte, 10_000)); err != nil && !errors.Is(err, packets.ErrPendingClientWritesExceeded) {
			t.Fatal(err)
		}
	}
	if err := b.Publish(t.Context(), deviceA, wire.DownDesired, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	timeout := time.After(10 * time.Second)
	for messages.Load() < n {
		select {
		case <-told:
		case <-timeout:
			t.Fatalf("%d of %d messages were told", messages.Load(), n)
		}
	}
	if messages.Load() != n || bytes.Load() != n*10_000 {
		t.Errorf("told of %d messages, %d bytes", messages.Load(), bytes.Load())
	}
	if err := b.Send(deviceB, wire.DownChunk, []byte{1}); !errors.Is(err, ErrOffline) {
		t.Errorf("to a device without a session: %v", err)
	}
}

func TestUnstoredMessageIsNotAcknowledged(t *testing.T) {
	b, h := newBroker(t, Config{})
	h.fail = true
	o := mqtt.NewClientOptions().AddBroker("tcp://mem").SetClientID(deviceA).SetCleanSession(true).SetProtocolVersion(4).SetAutoReconnect(false)
	o.SetCustomOpenConnectionFn(func(*url.URL, mqtt.ClientOptions) (net.Conn, error) { return pair(t, b, deviceA), nil })
	lost := make(chan error, 1)
	o.SetConnectionLostHandler(func(_ mqtt.Client, err error) { lost <- err })
	c := mqtt.NewClient(o)
	if tok := c.Connect(); !tok.WaitTimeout(10*time.Second) || tok.Error() != nil {
		t.Fatal(tok.Error())
	}
	tok := c.Publish(wire.Topic(deviceA, wire.UpEvent), 1, false, []byte("e"))
	select {
	case <-lost:
	case <-time.After(10 * time.Second):
		t.Fatal("the session lives on without an acknowledgement")
	}
	if tok.WaitTimeout(10*time.Second) && tok.Error() == nil {
		t.Error("a message that was not stored was acknowledged")
	}
}

func TestTakeover(t *testing.T) {
	b, h := newBroker(t, Config{})
	for range 20 {
		c := pair(t, b, deviceA)
		write(t, c, connectPacket(t, deviceA))
		read(t, c, 4)
		write(t, c, subscribePacket(t, wire.Topic(deviceA, "down/desired")))
		read(t, c, 5)
		// Whoever came last gets what is sent, at once or after the broker has
		// thrown it out to come again.
		if err := b.Publish(t.Context(), deviceA, wire.DownDesired, []byte("d")); err == nil {
			read(t, c, 2)
		} else if !errors.Is(err, ErrOffline) {
			t.Fatal(err)
		}
	}
	h.until(t, "one session", func() bool { return h.sessions[deviceA] <= 1 })
	h.until(t, "a notice of the takeover", func() bool { return slices.Contains(h.notices, deviceA[:4]+" second-session") })
	if !b.Kick(deviceA) {
		t.Error("nothing to kick")
	}
	h.until(t, "no session", func() bool { return h.sessions[deviceA] == 0 })
	if b.Kick(deviceA) {
		t.Error("kicked twice")
	}
}

func TestAllowed(t *testing.T) {
	for _, c := range []struct {
		topic string
		write bool
		want  bool
	}{
		{wire.Topic(deviceA, wire.UpHello), true, true},
		{wire.Topic(deviceA, wire.UpHello), false, false},
		{wire.Topic(deviceB, wire.UpHello), true, false},
		{wire.Topic(deviceA, wire.DownDesired), true, false},
		{wire.Topic(deviceA, wire.DownDesired), false, true},
		{wire.Topic(deviceA, "down/#"), false, true},
		{wire.Topic(deviceA, "down/+"), false, true},
		{wire.Topic(deviceA, "#"), false, false},
		{wire.Topic(deviceA, "down/x"), false, false},
		{"#", false, false},
		{"skein/1/+/+/down/desired", false, false},
		{"$share/x/" + wire.Topic(deviceA, "down/#"), false, false},
		{"$SYS/#", false, false},
	} {
		if got := allowed(deviceA, c.topic, c.write); got != c.want {
			t.Errorf("allowed(%q, write %v) = %v", c.topic, c.write, got)
		}
	}
}

func TestPacer(t *testing.T) {
	p := pacer{every: 10 * time.Millisecond, burst: 5}
	now := time.Now()
	var waited time.Duration
	for range 25 { // 5 at once, then one each 10 ms
		d := p.take(now, 1)
		now = now.Add(d)
		waited += d
	}
	if waited != 200*time.Millisecond {
		t.Errorf("25 connections waited %s in all", waited)
	}
	if d := p.take(now.Add(time.Hour), 1); d != 0 {
		t.Errorf("after a pause: %s", d)
	}
}
