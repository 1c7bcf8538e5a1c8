package controlplane

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/ota/trust"
	enrollv1 "github.com/skein-fleet/skein/proto/gen/skein/enroll/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/enroll/v1/enrollv1connect"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/fleet/v1/fleetv1connect"
	"github.com/skein-fleet/skein/proto/wire"
)

const patience = 10 * time.Second

// running is a control plane with real sockets on loopback.
type running struct {
	*Server
	stop func() error
}

func testConfig(dir string) Config {
	return Config{DataDir: dir, HTTPAddr: "127.0.0.1:0", DeviceAddr: "127.0.0.1:0", MQTTAddr: "127.0.0.1:0", Domain: "skein.test", PublicHost: "127.0.0.1"}
}

func testLogger(t *testing.T) *slog.Logger {
	if t == nil || os.Getenv("SKEIN_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func start(t *testing.T, cfg Config) *running {
	t.Helper()
	s, err := New(cfg, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		t.Fatalf("did not start: %v", err)
	}
	r := &running{Server: s}
	var stopped atomic.Bool
	r.stop = func() error {
		if stopped.Swap(true) {
			return nil
		}
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return r
}

// bearer adds the admin's credential to calls.
type bearer struct{ token string }

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return http.DefaultTransport.RoundTrip(r)
}

func (r *running) client() *http.Client { return &http.Client{Transport: bearer{r.AdminToken()}} }
func (r *running) url() string          { return "http://" + r.Addrs().HTTP.String() }

func (r *running) fleetClient() fleetv1connect.FleetServiceClient {
	return fleetv1connect.NewFleetServiceClient(r.client(), r.url())
}

func (r *running) claim(t *testing.T, req *fleetv1.CreateTokensRequest) string {
	t.Helper()
	resp, err := r.fleetClient().CreateTokens(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetTokens()[0].GetClaim()
}

// box is a device made of a key and what enrolment gave it.
type box struct {
	r     *running
	id    string
	key   crypto.Signer
	csr   []byte
	chain [][]byte

	sealPriv []byte
	sealPub  []byte
	boot     uint64
	count    uint64
	reports  uint64
	client   mqtt.Client
	down     chan wire.Desired
	cmds     chan wire.Cmd
	lost     chan error
	held     wire.Held
}

func newBox(t *testing.T, r *running) *box {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	priv, pub, err := trust.NewSealKey()
	if err != nil {
		t.Fatal(err)
	}
	return &box{r: r, key: key, csr: csr, sealPriv: priv, sealPub: pub, boot: 7, down: make(chan wire.Desired, 100), cmds: make(chan wire.Cmd, 100), lost: make(chan error, 10)}
}

func (b *box) tls(certs bool) *tls.Config {
	c := &tls.Config{RootCAs: b.r.ca.Pool(), ServerName: "127.0.0.1"}
	if certs {
		c.Certificates = []tls.Certificate{{Certificate: b.chain, PrivateKey: b.key}}
	}
	return c
}

func (b *box) enrollClient(certs bool) enrollv1connect.EnrollServiceClient {
	return enrollv1connect.NewEnrollServiceClient(&http.Client{Transport: &http.Transport{TLSClientConfig: b.tls(certs), ForceAttemptHTTP2: true}},
		"https://"+b.r.Addrs().Device.String())
}

func (b *box) request(claim string) *enrollv1.EnrollRequest {
	return &enrollv1.EnrollRequest{Token: claim, Csr: b.csr, Serial: "S1", Hardware: "Orin Nano", Target: "linux/arm64;sm=8.7", Name: "cam-1", SealKey: b.sealPub,
		ClaimedLabels: map[string]string{"site": "claimed", "shelf": "3"}}
}

func (b *box) enroll(t *testing.T, claim string) *enrollv1.EnrollResponse {
	t.Helper()
	resp, err := b.enrollClient(false).Enroll(t.Context(), b.request(claim))
	if err != nil {
		t.Fatal(err)
	}
	b.id, b.chain = resp.GetDeviceId(), resp.GetCertificateChain()
	return resp
}

// enrolled returns a box that is in the fleet.
func enrolled(t *testing.T, r *running) *box {
	t.Helper()
	b := newBox(t, r)
	b.enroll(t, r.claim(t, &fleetv1.CreateTokensRequest{AutoApprove: true, Labels: map[string]string{"site": "lyon"}}))
	return b
}

func (b *box) options() *mqtt.ClientOptions {
	will, err := wire.Marshal(&wire.Presence{ID: wire.MessageID{Boot: b.boot}, Connection: 1})
	if err != nil {
		panic(err)
	}
	o := mqtt.NewClientOptions().AddBroker("ssl://"+b.r.Addrs().MQTT.String()).SetTLSConfig(b.tls(true)).SetClientID(b.id).
		SetCleanSession(true).SetProtocolVersion(4).SetKeepAlive(30*time.Second).SetAutoReconnect(false).SetConnectRetry(false).
		SetConnectTimeout(patience).SetBinaryWill(wire.Topic(b.id, wire.UpPresence), will, 1, false)
	o.SetConnectionLostHandler(func(_ mqtt.Client, err error) {
		select {
		case b.lost <- err:
		default:
		}
	})
	return o
}

func wait(tok mqtt.Token) error {
	if !tok.WaitTimeout(patience) {
		return errors.New("no answer in time")
	}
	return tok.Error()
}

func (b *box) dial(o *mqtt.ClientOptions) (mqtt.Client, error) {
	c := mqtt.NewClient(o)
	if err := wait(c.Connect()); err != nil {
		return nil, err
	}
	if !c.IsConnectionOpen() { // paho knows no error for some codes of CONNACK
		return nil, errors.New("refused")
	}
	return c, nil
}

// connect opens a session, subscribes and says hello.
func (b *box) connect(t *testing.T) {
	t.Helper()
	c, err := b.dial(b.options())
	if err != nil {
		t.Fatal(err)
	}
	b.client = c
	t.Cleanup(func() { c.Disconnect(0) })
	if err := wait(c.Subscribe(wire.Topic(b.id, "down/#"), 1, func(_ mqtt.Client, m mqtt.Message) { b.receive(t, m) })); err != nil {
		t.Fatal(err)
	}
	b.hello(t)
}

func (b *box) receive(t *testing.T, m mqtt.Message) {
	_, kind, err := wire.ParseTopic(m.Topic())
	if err != nil {
		t.Errorf("topic: %v", err)
		return
	}
	director, err := b.r.trust.DirectorSigner()
	if err != nil {
		t.Error(err)
		return
	}
	keys := []crypto.PublicKey{director.Public()}
	switch kind {
	case wire.DownDesired:
		payload, err := trust.Verify(keys, wire.AADDesired, m.Payload())
		var d wire.Desired
		if err == nil {
			err = wire.UnmarshalCanonical(payload, &d)
		}
		if err != nil {
			t.Errorf("desired: %v", err)
			return
		}
		b.down <- d
	case wire.DownCmd:
		payload, err := trust.Verify(keys, wire.AADCmd, m.Payload())
		var c wire.Cmd
		if err == nil {
			err = wire.Unmarshal(payload, &c)
		}
		if err != nil {
			t.Errorf("cmd: %v", err)
			return
		}
		b.cmds <- c
	}
}

func (b *box) next() wire.MessageID {
	b.count++
	return wire.MessageID{Boot: b.boot, Counter: b.count}
}

func (b *box) publish(kind wire.Kind, payload []byte) error {
	return wait(b.client.Publish(wire.Topic(b.id, kind), 1, false, payload))
}

func (b *box) send(t *testing.T, kind wire.Kind, v any) {
	t.Helper()
	payload, err := wire.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.publish(kind, payload); err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
}

func (b *box) hello(t *testing.T) {
	t.Helper()
	b.send(t, wire.UpHello, &wire.Hello{ID: b.next(), Held: b.held, Target: "linux/arm64;sm=8.7;trt=10.3.0", Capability: 1, Agent: "test"})
}

func (b *box) signedReport(t *testing.T, full *wire.Reported) []byte {
	t.Helper()
	b.reports++
	payload, err := wire.Marshal(&wire.Report{ID: b.next(), Held: b.held, Counter: b.reports, Full: full})
	if err != nil {
		t.Fatal(err)
	}
	s, err := trust.NewSigner(b.key)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := trust.Sign(s, wire.AADReport, payload)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func (b *box) report(t *testing.T, full *wire.Reported) {
	t.Helper()
	if err := b.publish(wire.UpReport, b.signedReport(t, full)); err != nil {
		t.Fatal(err)
	}
}

func (b *box) desired(t *testing.T) wire.Desired {
	t.Helper()
	select {
	case d := <-b.down:
		return d
	case <-time.After(patience):
		t.Fatal("no desired state came")
		return wire.Desired{}
	}
}

// take holds a desired state as the agent would.
func (b *box) take(t *testing.T, d wire.Desired) {
	t.Helper()
	tw, err := b.r.fleet.Any(b.id)
	if err != nil {
		t.Fatal(err)
	}
	if tw.Wanted != d.Generation {
		t.Fatalf("came generation %s, wanted is %s", d.Generation, tw.Wanted)
	}
	payload, err := wire.Marshal(&d)
	if err != nil {
		t.Fatal(err)
	}
	b.held = wire.Held{Generation: d.Generation, Digest: sha(payload)}
}

// until waits for a condition of the device's view; the fleet tells of changes.
func (b *box) until(t *testing.T, what string, ok func(fleet.View) bool) fleet.View {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ch := b.r.fleet.Subscribe(ctx)
	for {
		v, err := b.r.fleet.Any(b.id)
		if err != nil {
			t.Fatal(err)
		}
		if ok(v) {
			return v
		}
		if _, open := <-ch; !open {
			t.Fatalf("%s did not come about: %+v", what, v)
		}
	}
}

// event waits for an event of a kind and returns its message.
func (b *box) event(t *testing.T, kind string) *fleetv1.DeviceEvent {
	t.Helper()
	c := b.r.fleetClient()
	deadline := time.Now().Add(patience)
	for {
		resp, err := c.ListDeviceEvents(t.Context(), &fleetv1.ListDeviceEventsRequest{Device: b.id})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(resp.GetEvents(), func(e *fleetv1.DeviceEvent) bool { return e.GetKind() == kind })
		if i >= 0 {
			return resp.GetEvents()[i]
		}
		if time.Now().After(deadline) {
			t.Fatalf("no event %s among %v", kind, resp.GetEvents())
		}
		<-time.After(20 * time.Millisecond)
	}
}

func code(err error) connect.Code {
	if err == nil {
		return 0
	}
	return connect.CodeOf(err)
}

func contains(s, part string) bool { return strings.Contains(s, part) }
