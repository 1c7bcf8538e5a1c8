package link

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/skein-fleet/skein/agent/internal/pki"
	"github.com/skein-fleet/skein/proto/wire"
)

// webServer serves the broker over WebSocket behind TLS with client
// certificates; it returns options that reach it alone.
func webServer(t *testing.T, b *broker, admit func() bool) MQTTOptions {
	t.Helper()
	a := newAuthority(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/mqtt" || !admit() {
			http.Error(w, "revoked", http.StatusForbidden)
			return
		}
		ws, err := (&websocket.Upgrader{Subprotocols: []string{"mqtt"}}).Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		conn := &webConn{Conn: ws.NetConn(), ws: ws}
		b.set(func() { b.conn = conn })
		b.serve(conn)
	}))
	srv.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool(),
		Certificates: []tls.Certificate{a.leaf("skein.local", x509.ExtKeyUsageServerAuth, time.Now().AddDate(0, 0, 90))}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	cert := a.leaf("device", x509.ExtKeyUsageClientAuth, time.Now().AddDate(0, 0, 30))
	now := func() (time.Time, bool) { return time.Now(), false }
	return MQTTOptions{
		Device: device, Address: "skein.local:8883", Transport: WebSocket, WebSocketURL: "wss://skein.local:8443/mqtt",
		WebSocketTLS: pki.ClientConfig(fixed(a.pool()), "skein.local", now, func() *tls.Certificate { return &cert }),
		BackoffMin:   time.Millisecond, BackoffMax: 5 * time.Millisecond,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "skein.local:8443" {
				return nil, errors.New("a firewall is in the way")
			}
			return new(net.Dialer).DialContext(ctx, network, srv.Listener.Addr().String())
		},
	}
}

// eventually waits in real time: a real server is on the other side.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for " + what)
		}
	}
}

func TestWebSocket(t *testing.T) {
	for _, over := range []Transport{WebSocket, Auto} {
		t.Run(string(over), func(t *testing.T) {
			var admitted atomic.Bool
			admitted.Store(true)
			b, r := &broker{t: t}, &recorder{}
			o := webServer(t, b, admitted.Load)
			o.Transport = over
			m := NewMQTT(o)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- m.Run(ctx, r.handler()) }()
			eventually(t, "a connection", func() bool { return r.connections() == 1 })
			big := []byte(strings.Repeat("x", wire.MaxMessage))
			if err := m.Publish(ctx, wire.UpTelemetry, big); err != nil {
				t.Fatal(err)
			}
			b.deliver(wire.Topic(device, wire.DownDesired), big)
			eventually(t, "a message", func() bool { return len(r.messages()) == 1 })
			// A revoked device is told so.
			admitted.Store(false)
			m.Reconnect()
			eventually(t, "the refusal", func() bool { return errors.Is(r.last(), ErrRefused) })
			admitted.Store(true)
			eventually(t, "the next connection", func() bool { return r.connections() == 2 })
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if got := presences(t, b); len(got) < 3 || got[len(got)-1].Online {
				t.Errorf("presence %+v", got)
			}
		})
	}
}

// TestAutoSaysBoth: when neither way works, the cause names both.
func TestAutoSaysBoth(t *testing.T) {
	r := &recorder{}
	m := NewMQTT(MQTTOptions{Device: device, Address: "skein.local:8883", Transport: Auto, WebSocketURL: "wss://skein.local:8443/mqtt",
		BackoffMin: time.Millisecond, BackoffMax: time.Millisecond,
		Dial: func(_ context.Context, _, address string) (net.Conn, error) {
			return nil, errors.New("no way to " + address)
		}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx, r.handler()) }()
	eventually(t, "a cause", func() bool { return r.last() != nil })
	cancel()
	<-done
	for _, part := range []string{"no way to skein.local:8883", "no way to skein.local:8443"} {
		if !strings.Contains(r.last().Error(), part) {
			t.Errorf("%v does not say %q", r.last(), part)
		}
	}
	if strings.Contains(r.last().Error(), "\n") {
		t.Errorf("%q is not one line", r.last())
	}
}
