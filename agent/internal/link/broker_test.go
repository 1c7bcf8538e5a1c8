package link

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.mqtt.golang/packets"
)

// pipe is an in-memory connection that buffers: a write never waits, as in
// socket buffers, so fake time goes on.
type pipe struct {
	in, out *half
}

type half struct {
	mu       sync.Mutex
	data     bytes.Buffer
	closed   bool
	deadline time.Time
	wake     chan struct{}
	hole     bool // swallow what is written
}

func newHalf() *half { return &half{wake: make(chan struct{})} }

func newPipe() (a, b *pipe) {
	x, y := newHalf(), newHalf()
	return &pipe{x, y}, &pipe{y, x}
}

func (h *half) poke() {
	close(h.wake)
	h.wake = make(chan struct{})
}

func (h *half) read(p []byte) (int, error) {
	for {
		h.mu.Lock()
		switch {
		case h.data.Len() > 0:
			n, err := h.data.Read(p)
			h.mu.Unlock()
			return n, err
		case h.closed:
			h.mu.Unlock()
			return 0, io.EOF
		}
		wake, deadline := h.wake, h.deadline
		h.mu.Unlock()
		var timeout <-chan time.Time
		if !deadline.IsZero() {
			left := time.Until(deadline)
			if left <= 0 {
				return 0, os.ErrDeadlineExceeded
			}
			timer := time.NewTimer(left)
			timeout = timer.C
		}
		select {
		case <-wake:
		case <-timeout:
		}
	}
}

func (p *pipe) Read(b []byte) (int, error) { return p.in.read(b) }

func (p *pipe) Write(b []byte) (int, error) {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	if p.out.closed {
		return 0, io.ErrClosedPipe
	}
	if !p.out.hole {
		p.out.data.Write(b)
		p.out.poke()
	}
	return len(b), nil
}

func (p *pipe) Close() error {
	for _, h := range []*half{p.in, p.out} {
		h.mu.Lock()
		if !h.closed {
			h.closed = true
			h.poke()
		}
		h.mu.Unlock()
	}
	return nil
}

func (p *pipe) SetReadDeadline(t time.Time) error {
	p.in.mu.Lock()
	defer p.in.mu.Unlock()
	p.in.deadline = t
	p.in.poke()
	return nil
}

func (p *pipe) SetDeadline(t time.Time) error    { return p.SetReadDeadline(t) }
func (p *pipe) SetWriteDeadline(time.Time) error { return nil }
func (p *pipe) LocalAddr() net.Addr              { return &net.UnixAddr{Name: "pipe"} }
func (p *pipe) RemoteAddr() net.Addr             { return &net.UnixAddr{Name: "pipe"} }

// broker is an MQTT broker for one device.
type broker struct {
	t   *testing.T
	tls *tls.Config // nil for plain

	mu       sync.Mutex // guards what follows
	refuse   string     // topic suffix whose subscription is refused
	mute     bool       // no PUBACK
	dials    []time.Time
	connects []*packets.ConnectPacket
	received []*packets.PublishPacket
	raw      *pipe // device's end of the newest connection
	conn     net.Conn
	wg       sync.WaitGroup
}

func (b *broker) dial(context.Context, string, string) (net.Conn, error) {
	device, ours := newPipe()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dials = append(b.dials, time.Now())
	b.raw = device
	var conn net.Conn = ours
	if b.tls != nil {
		conn = tls.Server(ours, b.tls)
	}
	b.conn = conn
	b.wg.Go(func() { b.serve(conn) })
	return device, nil
}

func (b *broker) serve(conn net.Conn) {
	defer conn.Close()
	for {
		cp, err := packets.ReadPacket(conn)
		if err != nil {
			return
		}
		var answer packets.ControlPacket
		b.mu.Lock()
		switch p := cp.(type) {
		case *packets.ConnectPacket:
			b.connects = append(b.connects, p)
			answer = packets.NewControlPacket(packets.Connack)
		case *packets.SubscribePacket:
			a := packets.NewControlPacket(packets.Suback).(*packets.SubackPacket)
			a.MessageID = p.MessageID
			for _, topic := range p.Topics {
				code := byte(1)
				if b.refuse != "" && strings.HasSuffix(topic, b.refuse) {
					code = 0x80
				}
				a.ReturnCodes = append(a.ReturnCodes, code)
			}
			answer = a
		case *packets.PublishPacket:
			b.received = append(b.received, p)
			if !b.mute {
				a := packets.NewControlPacket(packets.Puback).(*packets.PubackPacket)
				a.MessageID = p.MessageID
				answer = a
			}
		case *packets.PingreqPacket:
			answer = packets.NewControlPacket(packets.Pingresp)
		case *packets.DisconnectPacket:
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		if answer != nil && answer.Write(conn) != nil {
			return
		}
	}
}

// deliver publishes to the device.
func (b *broker) deliver(topic string, payload []byte) {
	p := packets.NewControlPacket(packets.Publish).(*packets.PublishPacket)
	p.TopicName, p.Payload, p.Qos, p.MessageID = topic, payload, 1, 77
	b.mu.Lock()
	conn := b.conn
	b.mu.Unlock()
	if err := p.Write(conn); err != nil {
		b.t.Error(err)
	}
}

func (b *broker) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.raw.Close()
}

// blackHole swallows what both sides write, as a cable that was pulled.
func (b *broker) blackHole() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range []*half{b.raw.in, b.raw.out} {
		h.mu.Lock()
		h.hole = true
		h.mu.Unlock()
	}
}

func (b *broker) set(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
}

func (b *broker) dialled() []time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.dials)
}

// connected returns the first CONNECT.
func (b *broker) connected() *packets.ConnectPacket {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.connects[0]
}

// authority signs certificates inside a bubble.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key}
	c := a.issue(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, key, time.Now().AddDate(10, 0, 0))
	a.cert = c.Leaf
	return a
}

func (a *authority) issue(c *x509.Certificate, key *ecdsa.PrivateKey, until time.Time) tls.Certificate {
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), until
	parent := a.cert
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (a *authority) leaf(host string, usage x509.ExtKeyUsage, until time.Time) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return a.issue(&x509.Certificate{DNSNames: []string{host}, ExtKeyUsage: []x509.ExtKeyUsage{usage}}, key, until)
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

var errTest = errors.New("test")
