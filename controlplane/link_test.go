package controlplane

import (
	"crypto/sha256"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"connectrpc.com/connect"
	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/pki"
	"github.com/skein-fleet/skein/ota"
	enrollv1 "github.com/skein-fleet/skein/proto/gen/skein/enroll/v1"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/wire"
)

func sha(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}

func TestEnrolConnectHelloDesired(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	b := newBox(t, r)
	resp := b.enroll(t, r.claim(t, &fleetv1.CreateTokensRequest{AutoApprove: true, Labels: map[string]string{"site": "lyon"}}))
	if resp.GetMqttAddress() != r.Addrs().MQTT.String() || len(resp.GetTrustRoot()) == 0 || !wire.ValidDeviceID(b.id) {
		t.Fatalf("%v", resp)
	}
	b.connect(t)
	v := b.until(t, "online", func(v fleet.View) bool { return v.Online && v.Target == "linux/arm64;sm=8.7;trt=10.3.0" })
	if v.Labels["site"] != "lyon" || v.Labels["shelf"] != "3" {
		t.Errorf("labels: the token's win over the claimed ones: %v", v.Labels)
	}

	// Wanting nothing is a desired state too, and the first one.
	c := r.fleetClient()
	if _, err := c.AssignRelease(t.Context(), &fleetv1.AssignReleaseRequest{Device: "cam-1"}); err != nil {
		t.Fatal(err)
	}
	d := b.desired(t)
	if d.Device != b.id || d.Tenant != "default" || d.Generation != (wire.Generation{Epoch: 1, Counter: 1}) || d.Release != nil || d.ExpiresAt-d.IssuedAt != 7*86400 {
		t.Fatalf("%+v", d)
	}
	b.take(t, d)
	b.report(t, &wire.Reported{Phase: wire.PhaseIdle, Target: "linux/arm64;sm=8.7;trt=10.3.0", Conditions: []wire.Condition{{Name: "disk-full", Severity: 3, Message: "3 MiB left"}}})
	b.until(t, "converged", func(v fleet.View) bool { return v.Converged && v.Reported })

	got, err := c.GetDevice(t.Context(), &fleetv1.GetDeviceRequest{Device: b.id[:6]})
	if err != nil {
		t.Fatal(err)
	}
	if got.GetDevice().GetState() != fleetv1.DeviceState_DEVICE_STATE_ONLINE || got.GetDevice().GetConditions()[0].GetSeverity() != "critical" {
		t.Errorf("%v", got.GetDevice())
	}
	list, err := c.ListDevices(t.Context(), &fleetv1.ListDevicesRequest{Selector: "site=lyon,state in (online,offline),!nope", Search: "ORIN"})
	if err != nil || list.GetTotal() != 1 {
		t.Errorf("%v, %v", list, err)
	}
	ex, err := c.ExplainDevice(t.Context(), &fleetv1.ExplainDeviceRequest{Device: b.id})
	if err != nil || !contains(ex.GetSummary(), "converged") {
		t.Errorf("%v, %v", ex, err)
	}

	// Unknown releases are named, and a hello with the generation held is not
	// answered: the next desired state that comes is the next generation.
	if _, err := c.AssignRelease(t.Context(), &fleetv1.AssignReleaseRequest{Device: b.id, Release: "meter@9"}); code(err) != connect.CodeNotFound {
		t.Errorf("unknown release: %v", err)
	}
	b.hello(t)
	none := ota.Digest("")
	if err := r.fleet.SetDesired(t.Context(), "default", b.id, &none, true, "r1"); err != nil {
		t.Fatal(err)
	}
	if d := b.desired(t); d.Generation.Counter != 2 || d.Rollout != "r1" || !d.RollbackAllowed {
		t.Errorf("%+v", d)
	}
	b.client.Disconnect(250)
	b.until(t, "offline", func(v fleet.View) bool { return !v.Online })
}

func TestEnrolmentRules(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	c := r.fleetClient()
	try := func(b *box, claim, serial string) error {
		req := b.request(claim)
		req.Serial = serial
		resp, err := b.enrollClient(false).Enroll(t.Context(), req)
		b.id = resp.GetDeviceId()
		return err
	}

	// One use; the same key again is the same device, another key is refused.
	claim := r.claim(t, &fleetv1.CreateTokensRequest{AutoApprove: true})
	a, b := newBox(t, r), newBox(t, r)
	if err := try(a, claim, "1"); err != nil {
		t.Fatal(err)
	}
	first := a.id
	if err := try(a, claim, "1"); err != nil || a.id != first {
		t.Errorf("same key again: %s, %v", a.id, err)
	}
	if err := try(b, claim, "2"); code(err) != connect.CodeResourceExhausted || !contains(err.Error(), "used up") {
		t.Errorf("second device on a single-use token: %v", err)
	}
	if err := try(b, "skein1.AAAA.BBBB", "2"); code(err) != connect.CodePermissionDenied {
		t.Errorf("no token: %v", err)
	}

	// Serial list.
	claim = r.claim(t, &fleetv1.CreateTokensRequest{AutoApprove: true, Uses: 2, Serials: []string{"A", "B"}})
	if err := try(b, claim, "C"); code(err) != connect.CodePermissionDenied {
		t.Errorf("foreign serial: %v", err)
	}
	if err := try(b, claim, "B"); err != nil {
		t.Error(err)
	}

	// Approval by a person; before it there is no certificate.
	claim = r.claim(t, &fleetv1.CreateTokensRequest{})
	p := newBox(t, r)
	resp, err := p.enrollClient(false).Enroll(t.Context(), p.request(claim))
	if err != nil || resp.GetState() != enrollv1.EnrollState_ENROLL_STATE_PENDING || len(resp.GetCertificateChain()) != 0 || resp.GetRetryAfterSeconds() == 0 {
		t.Fatalf("%v, %v", resp, err)
	}
	if _, err := c.ApproveDevice(t.Context(), &fleetv1.ApproveDeviceRequest{Device: resp.GetDeviceId()}); err != nil {
		t.Fatal(err)
	}
	p.enroll(t, claim)
	p.connect(t)

	// Tokens bound to nothing do not approve by themselves.
	if _, err := c.CreateTokens(t.Context(), &fleetv1.CreateTokensRequest{AutoApprove: true, Uses: 5}); code(err) != connect.CodeInvalidArgument {
		t.Errorf("unbound token: %v", err)
	}
	if _, err := c.CreateTokens(t.Context(), &fleetv1.CreateTokensRequest{Count: 3, Serials: []string{"1", "2", "3"}}); err != nil {
		t.Error(err)
	}

	// Renewal: the certificate decides, not the token.
	renewed, err := p.enrollClient(true).Renew(t.Context(), &enrollv1.RenewRequest{Csr: p.csr})
	if err != nil || len(renewed.GetCertificateChain()) == 0 {
		t.Fatal(err)
	}
	if _, err := p.enrollClient(false).Renew(t.Context(), &enrollv1.RenewRequest{Csr: p.csr}); code(err) != connect.CodeUnauthenticated {
		t.Errorf("renew without a certificate: %v", err)
	}
	if _, err := p.enrollClient(true).Renew(t.Context(), &enrollv1.RenewRequest{Csr: a.csr}); code(err) != connect.CodeInvalidArgument {
		t.Errorf("renew for a foreign key: %v", err)
	}
}

func TestExpiredCertificateMayOnlyRenew(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	b := enrolled(t, r)
	is, err := r.ca.IssueDevice(b.key.Public(), "default", b.id, time.Now().Add(-pki.DeviceLife-24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	b.chain = is.Chain
	if _, err := b.dial(b.options()); err == nil {
		t.Fatal("an expired certificate got a session")
	}
	get := func() int {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: b.tls(true)}}
		resp, err := client.Get("https://" + r.Addrs().Device.String() + "/tuf/timestamp.json")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if got := get(); got != http.StatusUnauthorized {
		t.Errorf("trust metadata with an expired certificate: %d", got)
	}
	renewed, err := b.enrollClient(true).Renew(t.Context(), &enrollv1.RenewRequest{Csr: b.csr})
	if err != nil {
		t.Fatal(err)
	}
	b.chain = renewed.GetCertificateChain()
	if got := get(); got != http.StatusOK {
		t.Errorf("trust metadata after renewal: %d", got)
	}
	b.connect(t)
}

func TestRevokeEndsTheSession(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	b := enrolled(t, r)
	b.connect(t)
	resp, err := r.fleetClient().RevokeDevice(t.Context(), &fleetv1.RevokeDeviceRequest{Device: b.id, Reason: "stolen"})
	if err != nil || !resp.GetSessionEnded() || resp.GetDevice().GetState() != fleetv1.DeviceState_DEVICE_STATE_REVOKED {
		t.Fatalf("%v, %v", resp, err)
	}
	select {
	case <-b.lost:
	case <-time.After(patience):
		t.Fatal("the session lives on")
	}
	if _, err := b.dial(b.options()); err == nil {
		t.Error("a revoked device got a session")
	}
	if _, err := b.enrollClient(true).Renew(t.Context(), &enrollv1.RenewRequest{Csr: b.csr}); code(err) != connect.CodePermissionDenied {
		t.Errorf("a revoked device renewed: %v", err)
	}
}

func TestHostileDevice(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	victim, b := enrolled(t, r), enrolled(t, r)
	victim.connect(t)
	refused := func(name string, o *mqtt.ClientOptions) {
		if c, err := b.dial(o); err == nil {
			c.Disconnect(0)
			t.Errorf("%s: got a session", name)
		}
	}
	refused("foreign client id", b.options().SetClientID(victim.id))
	refused("foreign will", b.options().SetBinaryWill(wire.Topic(victim.id, wire.UpPresence), []byte{1}, 1, false))
	// mochi refuses a retained will with a code that paho takes for success.
	if c, err := b.dial(b.options().SetBinaryWill(wire.Topic(b.id, wire.UpPresence), []byte{1}, 1, true)); err == nil {
		if err := wait(c.Publish(wire.Topic(b.id, wire.UpHello), 1, false, []byte{0xa0})); err == nil {
			t.Error("retained will: got a session")
		}
		c.Disconnect(0)
	}
	refused("persistent session", b.options().SetCleanSession(false))
	for _, kind := range []string{"foreign-client-id", "foreign-will", "persistent-session"} {
		b.event(t, kind)
	}
	if v, err := r.fleet.Any(victim.id); err != nil || !v.Online {
		t.Fatalf("the victim lost its session: %+v, %v", v, err)
	}

	b.connect(t)
	tok := b.client.Subscribe(wire.Topic(victim.id, "down/#"), 1, nil).(*mqtt.SubscribeToken)
	if err := wait(tok); err != nil || tok.Result()[wire.Topic(victim.id, "down/#")] != 0x80 {
		t.Errorf("foreign subscription: %v, %v", tok.Result(), err)
	}
	if e := b.event(t, "foreign-topic"); e.GetAttack() != "identity" {
		t.Errorf("%v", e)
	}
	_ = b.client.Publish(wire.Topic(victim.id, wire.UpPresence), 1, false, []byte{1})
	select {
	case <-b.lost:
	case <-time.After(patience):
		t.Error("a foreign publish did not end the session")
	}

	// Malformed and oversize; the next honest message works.
	b.connect(t)
	for _, junk := range [][]byte{{}, {0xff}, {0xa1, 0x01, 0x61}, make([]byte, 1000)} {
		if err := b.publish(wire.UpHello, junk); err != nil {
			t.Fatal(err)
		}
	}
	if e := b.event(t, "malformed"); !contains(e.GetMessage(), "up/hello") {
		t.Errorf("%v", e)
	}
	_ = b.client.Publish(wire.Topic(b.id, wire.UpEvent), 1, false, make([]byte, wire.MaxMessage+4096))
	b.event(t, "oversize")
	<-b.lost
	b.connect(t)

	// Reports: unsigned, signed by another key, replayed.
	if err := b.publish(wire.UpReport, []byte{0xa0}); err != nil {
		t.Fatal(err)
	}
	if e := b.event(t, "refused"); e.GetAttack() != "unsigned" {
		t.Errorf("%v", e)
	}
	if err := b.publish(wire.UpReport, victim.signedReport(t, &wire.Reported{Phase: wire.PhaseIdle, Target: "linux/evil"})); err != nil {
		t.Fatal(err)
	}
	old := b.signedReport(t, &wire.Reported{Phase: wire.PhaseIdle, Target: "linux/old"})
	b.boot, b.count = 8, 0
	b.report(t, &wire.Reported{Phase: wire.PhaseIdle, Target: "linux/new"})
	if err := b.publish(wire.UpReport, old); err != nil {
		t.Fatal(err)
	}
	b.until(t, "the newest honest report", func(v fleet.View) bool { return v.Target == "linux/new" && v.Reported })
	events, err := r.fleetClient().ListDeviceEvents(t.Context(), &fleetv1.ListDeviceEventsRequest{Device: b.id, Limit: 3})
	if err != nil || events.GetEvents()[0].GetAttack() != "replay" {
		t.Errorf("%v, %v", events, err)
	}

	// A second live session on one certificate.
	other, err := b.dial(b.options())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Disconnect(0)
	b.event(t, "second-session")
}

func TestGenerationFromTheFuture(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	b := enrolled(t, r)
	b.held = wire.Held{Generation: wire.Generation{Epoch: 1, Counter: 40}, Digest: make([]byte, 32)}
	b.connect(t)
	b.event(t, "generation-from-future")
	c := r.fleetClient()
	if _, err := c.AssignRelease(t.Context(), &fleetv1.AssignReleaseRequest{Device: b.id}); code(err) != connect.CodeFailedPrecondition {
		t.Errorf("a destructive order passed: %v", err)
	}
	// The block survives a restart.
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r2 := start(t, r.cfg)
	b.r = r2
	if v, err := r2.fleet.Any(b.id); err != nil || !v.FromFuture {
		t.Fatalf("%+v, %v", v, err)
	}
	b.connect(t)
	c = r2.fleetClient()
	if _, err := c.ConfirmGeneration(t.Context(), &fleetv1.ConfirmGenerationRequest{Device: b.id}); err != nil {
		t.Fatal(err)
	}
	if d := b.desired(t); d.Generation != (wire.Generation{Epoch: 1, Counter: 41}) {
		t.Errorf("adopted as %s", d.Generation)
	}
	if _, err := c.ConfirmGeneration(t.Context(), &fleetv1.ConfirmGenerationRequest{Device: b.id}); code(err) != connect.CodeInvalidArgument {
		t.Errorf("confirmed twice: %v", err)
	}
}

func TestBrokerRestartAndRestoredEpoch(t *testing.T) {
	cfg := testConfig(t.TempDir())
	r := start(t, cfg)
	b := enrolled(t, r)
	b.connect(t)
	if _, err := r.fleetClient().AssignRelease(t.Context(), &fleetv1.AssignReleaseRequest{Device: b.id}); err != nil {
		t.Fatal(err)
	}
	b.take(t, b.desired(t))
	b.report(t, &wire.Reported{Phase: wire.PhaseIdle, Target: "linux/arm64"})
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	<-b.lost

	cfg.Restored = true
	r2 := start(t, cfg)
	b.r = r2
	v, err := r2.fleet.Any(b.id)
	if err != nil || !v.Reported || v.Wanted != (wire.Generation{Epoch: 2, Counter: 1}) && v.Wanted.Epoch != 2 {
		t.Fatalf("after the restart: %+v, %v", v, err)
	}
	b.connect(t)
	if d := b.desired(t); d.Generation.Epoch != 2 || d.Generation.Compare(b.held.Generation) <= 0 {
		t.Errorf("generation %s after the restore, held %s", d.Generation, b.held.Generation)
	}
}

func TestNoCertificateNoSession(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	b := enrolled(t, r)
	raw, err := net.Dial("tcp", r.Addrs().MQTT.String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	nocert := tls.Client(raw, b.tls(false))
	_ = nocert.SetDeadline(time.Now().Add(patience))
	_ = nocert.HandshakeContext(t.Context())
	if _, err := nocert.Read(make([]byte, 1)); err == nil {
		t.Error("a peer without a certificate was read from")
	}
}

func TestWebSocket(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	b := enrolled(t, r)
	o := b.options()
	o.Servers = nil
	o.AddBroker("wss://" + r.Addrs().Device.String() + "/mqtt")
	c, err := b.dial(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Disconnect(0)
	b.client = c
	b.hello(t)
	b.until(t, "online over WebSocket", func(v fleet.View) bool { return v.Online })
	if _, err := r.fleetClient().RevokeDevice(t.Context(), &fleetv1.RevokeDeviceRequest{Device: b.id}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-b.lost:
	case <-time.After(patience):
		t.Fatal("the session lives on")
	}
}
