package controlplane

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	artifactv1 "github.com/skein-fleet/skein/proto/gen/skein/artifact/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/artifact/v1/artifactv1connect"
	auditv1 "github.com/skein-fleet/skein/proto/gen/skein/audit/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/audit/v1/auditv1connect"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/release/v1/releasev1connect"
	rolloutv1 "github.com/skein-fleet/skein/proto/gen/skein/rollout/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/rollout/v1/rolloutv1connect"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry"
	"github.com/skein-fleet/skein/telemetry/block"
)

// puppet is a device whose messages are put in without a connection.
type puppet struct {
	id       string
	key      crypto.Signer
	seq      uint64
	held     wire.Generation
	running  []byte
	counter  uint64
	highest  uint64
	moved    int // desired states taken
	clock    time.Time
	slowFrom time.Time
}

// stage is a control plane with puppets that behave as their release says.
type stage struct {
	t   *testing.T
	cfg Config
	*running
	puppets []*puppet
	// behave is "" (good), "golden" or "slow", by release.
	behave map[ota.Digest]string
}

func newStage(t *testing.T, n int) *stage {
	t.Helper()
	s := &stage{t: t, cfg: testConfig(t.TempDir()), behave: map[ota.Digest]string{}}
	s.running = start(t, s.cfg)
	var reqs []LocalDevice
	for i := range n {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		target := []string{"linux/arm64;sm=8.7", "linux/arm64;sm=7.2"}[i%2]
		reqs = append(reqs, LocalDevice{CSR: csr, Name: fmt.Sprintf("cam-%d", i), Serial: fmt.Sprint(i), Hardware: "Orin", Target: target})
		s.puppets = append(s.puppets, &puppet{key: key, clock: time.Now().Add(-time.Minute)})
	}
	ids, err := s.EnrollLocal(t.Context(), reqs)
	if err != nil {
		t.Fatal(err)
	}
	for i, id := range ids {
		s.puppets[i].id = id.Device
		s.inject(s.puppets[i], wire.UpHello, &wire.Hello{ID: s.puppets[i].next(), Target: reqs[i].Target, Capability: 1, Agent: "puppet"})
	}
	return s
}

// restart kills the control plane's process state and starts it on the same data.
func (s *stage) restart() {
	s.t.Helper()
	if err := s.stop(); err != nil {
		s.t.Fatal(err)
	}
	s.running = start(s.t, s.cfg)
	for _, p := range s.puppets {
		s.inject(p, wire.UpHello, &wire.Hello{ID: p.next(), Held: wire.Held{Generation: p.held, Digest: p.digest(s)}, Capability: 1, Agent: "puppet"})
	}
}

func (p *puppet) next() wire.MessageID {
	p.seq++
	return wire.MessageID{Boot: 1, Counter: p.seq}
}

func (s *stage) inject(p *puppet, kind wire.Kind, v any) {
	s.t.Helper()
	b, err := wire.Marshal(v)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.Inject(s.t.Context(), p.id, kind, b); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stage) wanted() map[string]store.Desired {
	s.t.Helper()
	out := map[string]store.Desired{}
	if err := s.db.View(s.t.Context(), func(tx *store.Tx) error {
		all, err := tx.AllDesired(s.t.Context(), store.DefaultTenant)
		for _, d := range all {
			out[d.Device] = d
		}
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (p *puppet) digest(s *stage) []byte {
	if d, ok := s.wanted()[p.id]; ok && d.Generation == p.held {
		return d.Digest
	}
	return nil
}

// report signs and sends the puppet's state.
func (s *stage) report(p *puppet, d store.Desired, full wire.Reported) {
	s.t.Helper()
	id := p.next()
	full.Running, full.RunningCounter, full.HighestCounter = p.running, p.counter, p.highest
	b, err := wire.Marshal(&wire.Report{ID: id, Held: wire.Held{Generation: p.held, Digest: d.Digest}, Counter: id.Counter, Full: &full})
	if err != nil {
		s.t.Fatal(err)
	}
	signer, err := trust.NewSigner(p.key)
	if err != nil {
		s.t.Fatal(err)
	}
	msg, err := trust.Sign(signer, wire.AADReport, b)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.Inject(s.t.Context(), p.id, wire.UpReport, msg); err != nil {
		s.t.Fatal(err)
	}
}

// act lets every puppet take what is new for it, and measure.
func (s *stage) act() {
	s.t.Helper()
	director, err := s.trust.DirectorSigner()
	if err != nil {
		s.t.Fatal(err)
	}
	for id, row := range s.wanted() {
		var p *puppet
		for _, x := range s.puppets {
			if x.id == id {
				p = x
			}
		}
		if p == nil || row.Generation == p.held {
			continue
		}
		payload, err := trust.Verify([]crypto.PublicKey{director.Public()}, wire.AADDesired, row.Payload)
		if err != nil {
			s.t.Fatal(err)
		}
		var d wire.Desired
		if err := wire.UnmarshalCanonical(payload, &d); err != nil {
			s.t.Fatal(err)
		}
		p.held = d.Generation
		p.moved++
		s.update(p, row, d)
	}
	for _, p := range s.puppets {
		s.measure(p)
	}
}

func (s *stage) update(p *puppet, row store.Desired, d wire.Desired) {
	s.t.Helper()
	if d.Release == nil {
		p.running, p.counter, p.slowFrom = nil, 0, time.Time{}
		s.report(p, row, wire.Reported{Phase: wire.PhaseIdle})
		return
	}
	if d.Release.Counter < p.highest && !d.RollbackAllowed {
		s.t.Errorf("%s was asked to go back without leave", p.id)
	}
	s.report(p, row, wire.Reported{Phase: wire.PhaseUpdating, Step: "fetch"})
	release := ota.Digest(row.Release)
	if s.behave[release] == "golden" {
		s.report(p, row, wire.Reported{Phase: wire.PhaseFailed, Step: "prove", FailureClass: "REJECTED", Failure: "prove: golden set failed: label agreement 3 of 32", FailedRelease: d.Release.Digest})
		return
	}
	at := p.clock.UnixMilli()
	p.running, p.counter = d.Release.Digest, d.Release.Counter
	p.highest = max(p.highest, p.counter)
	p.slowFrom = time.Time{}
	if s.behave[release] == "slow" {
		p.slowFrom = p.clock
	}
	s.report(p, row, wire.Reported{Phase: wire.PhaseIdle, Step: "commit", Journal: []wire.StepEntry{
		{Step: "switch", State: wire.StepStarted, Release: d.Release.Digest, Time: at}, {Step: "switch", State: wire.StepDone, Release: d.Release.Digest, Time: at}}})
}

// measure sends a block of latencies; a puppet's clock runs a second for each.
func (s *stage) measure(p *puppet) {
	s.t.Helper()
	v := 0.010
	if !p.slowFrom.IsZero() {
		v = 0.050
	}
	var b block.Builder
	for range 3 {
		p.clock = p.clock.Add(100 * time.Millisecond)
		b.Add([]telemetry.Reading{{Series: telemetry.NewSeries(telemetry.InferenceP50, "model", "meter"), Time: p.clock, Value: v}})
	}
	blk, _ := b.Take()
	data, _, err := block.Encode(blk, true)
	if err != nil {
		s.t.Fatal(err)
	}
	s.inject(p, wire.UpTelemetry, &wire.Telemetry{ID: p.next(), Block: data})
}

// until lets the puppets act until the rollout is as asked.
func (s *stage) until(ref, what string, ok func(*rolloutv1.Rollout) bool) *rolloutv1.Rollout {
	s.t.Helper()
	deadline := time.After(4 * patience)
	for {
		s.act()
		r, err := s.rollouts().GetRollout(s.t.Context(), &rolloutv1.GetRolloutRequest{Rollout: ref})
		if err != nil {
			s.t.Fatal(err)
		}
		if ok(r.GetRollout()) {
			return r.GetRollout()
		}
		select {
		case <-deadline:
			s.t.Fatalf("rollout %s: %s did not come about: %v", ref, what, r)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func phase(want string) func(*rolloutv1.Rollout) bool {
	return func(r *rolloutv1.Rollout) bool { return r.GetPhase() == want }
}

func (s *stage) rollouts() rolloutv1connect.RolloutServiceClient {
	return rolloutv1connect.NewRolloutServiceClient(s.client(), s.url())
}

// upload sends a blob over HTTP in two parts, as the command line does.
func (r *running) upload(t *testing.T, b []byte) string {
	t.Helper()
	call := func(method, at string, body []byte, want int) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, r.url()+at, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := r.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if text, _ := io.ReadAll(resp.Body); resp.StatusCode != want {
			t.Fatalf("%s %s: %s: %s", method, at, resp.Status, text)
		}
		return resp
	}
	d := string(ota.DigestOf(b))
	at := call("POST", "/v2/skein/blobs/uploads/", nil, http.StatusAccepted).Header.Get("Location")
	call("PATCH", at, b[:len(b)/2], http.StatusAccepted)
	call("PUT", at+"?digest="+d, b[len(b)/2:], http.StatusCreated)
	return d
}

// onnx is the smallest file that passes for a model.
func onnx(salt string) []byte {
	field := func(b []byte, n protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
	}
	g := field(nil, 1, field(nil, 4, []byte("Gemm")))
	g = field(g, 5, []byte(strings.Repeat(salt, 2000)))
	g = field(field(g, 11, field(nil, 1, []byte("x"))), 12, field(nil, 1, []byte("y")))
	b := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 8)
	return field(field(b, 7, g), 8, nil)
}

// push makes the next version of the model meter.
func (r *running) push(t *testing.T, salt string) *artifactv1.ModelVersion {
	t.Helper()
	golden, err := manifest.Golden{Version: 1, Input: "x", Shape: []int64{1}, MinLabelAgreement: 1, Tolerance: manifest.Tolerance{Abs: 1},
		Cases: []manifest.GoldenCase{{Input: []float32{1}, Output: []float32{0, 1}, Label: 1}}}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	models := artifactv1connect.NewModelServiceClient(r.client(), r.url())
	m, err := models.PushModel(t.Context(), &artifactv1.PushModelRequest{Model: "meter", OnnxDigest: r.upload(t, onnx(salt)), GoldenDigest: r.upload(t, golden)})
	if err != nil {
		t.Fatal(err)
	}
	return m.GetVersion()
}

// release pushes a model and makes the next release of meter from it.
func (r *running) release(t *testing.T, salt string, soak int64) *releasev1.Release {
	t.Helper()
	v := r.push(t, salt)
	rel, err := releasev1connect.NewReleaseServiceClient(r.client(), r.url()).CreateRelease(t.Context(),
		&releasev1.CreateReleaseRequest{Name: "meter", Model: fmt.Sprintf("%s@%d", v.GetModel(), v.GetVersion()), SoakSeconds: soak})
	if err != nil {
		t.Fatal(err)
	}
	return rel.GetRelease()
}

func quickSpec(t *testing.T, release string) *structpb.Struct {
	t.Helper()
	metric := map[string]any{"name": telemetry.InferenceP50, "maxRatio": 1.5, "floor": 0.005, "minSamples": 3}
	timeout := map[string]any{"device": "1m", "silent": "30s"}
	spec, err := structpb.NewStruct(map[string]any{"release": release, "waves": []any{
		map[string]any{"name": "canary", "perTarget": 1, "soak": map[string]any{"min": "500ms", "max": "20s"}, "timeout": timeout,
			"gate": map[string]any{"success": map[string]any{"minPct": 100}, "abort": []any{map[string]any{"failure": "ALL", "count": 1}}, "metrics": []any{metric}}},
		map[string]any{"name": "rest", "soak": map[string]any{"min": "500ms"}, "timeout": timeout, "gate": map[string]any{"success": map[string]any{"minPct": 100}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// first is quickSpec for devices that ran nothing before: there is no past to
// compare with.
func first(t *testing.T, release string) *structpb.Struct {
	t.Helper()
	s := quickSpec(t, release)
	delete(s.GetFields()["waves"].GetListValue().GetValues()[0].GetStructValue().GetFields()["gate"].GetStructValue().GetFields(), "metrics")
	return s
}

func (s *stage) begin(spec *structpb.Struct, name string) string {
	s.t.Helper()
	r, err := s.rollouts().StartRollout(s.t.Context(), &rolloutv1.StartRolloutRequest{Spec: spec, Name: name})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.GetRollout().GetId()
}

func (s *stage) runs(r *releasev1.Release) int {
	n := 0
	for _, p := range s.puppets {
		if string(p.running) == string(ota.Digest(r.GetDigest()).Sum()) {
			n++
		}
	}
	return n
}

// The main job end to end over the public interfaces: a model goes out to the
// fleet, a bad one is refused in the canary, a slow one is caught by the
// devices' own past and taken back, nobody else is touched, and a restart of
// the control plane in the middle changes nothing.
func TestModelToFleetAndBack(t *testing.T) {
	s := newStage(t, 8)
	ctx := t.Context()
	v1 := s.release(t, "1", 0)
	if len(v1.GetTargets()) != 2 || v1.GetVersion() != "1" {
		t.Fatalf("%v", v1)
	}
	plan, err := s.rollouts().PlanRollout(ctx, &rolloutv1.PlanRolloutRequest{Spec: first(t, "meter@1")})
	if err != nil || len(plan.GetWaves()) != 2 || plan.GetWaves()[0].GetDevices() != 2 || plan.GetWaves()[1].GetBytes() < 6*4000 || len(plan.GetUnreachable()) != 0 {
		t.Fatalf("%v %v", plan, err)
	}
	id := s.begin(first(t, "meter@1"), "one")
	watched := make(chan []string, 1)
	go func() {
		var phases []string
		st, err := s.rollouts().WatchRollout(ctx, &rolloutv1.WatchRolloutRequest{Rollout: id})
		for err == nil && st.Receive() {
			phases = append(phases, st.Msg().GetRollout().GetPhase())
		}
		watched <- phases
	}()
	if r := s.until(id, "success", phase("succeeded")); r.GetHealthy() != 8 || r.GetHarmed() != 0 || s.runs(v1) != 8 {
		t.Errorf("%v, %d run it", r, s.runs(v1))
	}
	if phases := <-watched; len(phases) < 3 || phases[0] != "running" || phases[len(phases)-1] != "succeeded" {
		t.Errorf("watched %v", phases)
	}

	// Wrong: the golden set fails on the canaries.
	v2 := s.release(t, "2", 0)
	s.behave[ota.Digest(v2.GetDigest())] = "golden"
	moved := s.moves()
	id = s.begin(quickSpec(t, "meter@2"), "two")
	r := s.until(id, "roll back", phase("rolled-back"))
	if r.GetHarmed() != 0 || s.runs(v1) != 8 || s.touched(moved) != 2 {
		t.Errorf("%v: %d run v1, %d touched", r, s.runs(v1), s.touched(moved))
	}
	for _, p := range s.puppets {
		ex, err := s.fleetClient().ExplainDevice(ctx, &fleetv1.ExplainDeviceRequest{Device: p.id})
		if err != nil || ex.GetSummary() == "" {
			t.Errorf("%v %v", ex, err)
		}
	}

	// Right but slow: caught by the devices' own past, with a restart in the middle.
	v3 := s.release(t, "3", 0)
	s.behave[ota.Digest(v3.GetDigest())] = "slow"
	moved = s.moves()
	id = s.begin(quickSpec(t, "meter@3"), "three")
	s.until(id, "canaries", func(r *rolloutv1.Rollout) bool { return r.GetWaves()[0].GetHealthy() == 2 })
	s.restart()
	r = s.until(id, "roll back", phase("rolled-back"))
	if r.GetHarmed() != 2 || s.runs(v1) != 8 || s.touched(moved) != 2 || !strings.Contains(r.GetReason(), telemetry.InferenceP50) {
		t.Errorf("%v: %d run v1, %d touched", r, s.runs(v1), s.touched(moved))
	}

	// Good again: paused by a person, restarted, resumed, done.
	v4 := s.release(t, "4", 0)
	id = s.begin(quickSpec(t, v4.GetDigest()), "four")
	if _, err := s.rollouts().PauseRollout(ctx, &rolloutv1.PauseRolloutRequest{Rollout: "four", Reason: "storm"}); err != nil {
		t.Fatal(err)
	}
	s.restart()
	ex, err := s.rollouts().ExplainRollout(ctx, &rolloutv1.ExplainRolloutRequest{Rollout: "four"})
	if err != nil || !strings.Contains(ex.GetSummary(), "storm") {
		t.Errorf("%v %v", ex, err)
	}
	if _, err := s.rollouts().ResumeRollout(ctx, &rolloutv1.ResumeRolloutRequest{Rollout: id}); err != nil {
		t.Fatal(err)
	}
	if r := s.until(id, "success", phase("succeeded")); r.GetHealthy() != 8 || s.runs(v4) != 8 {
		t.Errorf("%v", r)
	}
	s.checkTraces(id)
}

// moves counts the desired states that each puppet took, once all have taken
// what is there: a rollout does not wait for those that failed to take back.
func (s *stage) moves() map[string]int {
	s.t.Helper()
	s.act()
	out := map[string]int{}
	for _, p := range s.puppets {
		out[p.id] = p.moved
	}
	return out
}

func (s *stage) touched(before map[string]int) int {
	n := 0
	for _, p := range s.puppets {
		if p.moved != before[p.id] {
			n++
		}
	}
	return n
}

// checkTraces holds that who did what is in the audit table, with reasons.
func (s *stage) checkTraces(id string) {
	s.t.Helper()
	ctx := s.t.Context()
	es, err := auditv1connect.NewAuditServiceClient(s.client(), s.url()).ListEntries(ctx, &auditv1.ListEntriesRequest{Limit: 1000})
	if err != nil {
		s.t.Fatal(err)
	}
	seen := map[string]int{}
	for _, e := range es.GetEntries() {
		if e.GetSubject() == id {
			seen[e.GetActor()+" "+e.GetAction()]++
		}
	}
	for _, want := range []string{"user:admin skein.rollout.v1.RolloutService/StartRollout", "user:admin skein.rollout.v1.RolloutService/PauseRollout",
		"user:admin skein.rollout.v1.RolloutService/ResumeRollout", "system:conductor rollout/succeed", "system:conductor rollout/assign"} {
		if seen[want] != 1 {
			s.t.Errorf("%s: %d entries; all: %v", want, seen[want], seen)
		}
	}
	got, err := s.rollouts().GetRollout(ctx, &rolloutv1.GetRolloutRequest{Rollout: id})
	if err != nil {
		s.t.Fatal(err)
	}
	offers := 0
	for _, d := range got.GetDecisions() {
		if d.GetKind() == "offer" {
			offers++
		}
	}
	if offers != 8 || len(got.GetDevices()) != 8 || !strings.HasPrefix(got.GetDevices()[0].GetDeviceName(), "cam-") {
		s.t.Errorf("%d offers, devices %v", offers, got.GetDevices())
	}
	list, err := s.rollouts().ListRollouts(ctx, &rolloutv1.ListRolloutsRequest{})
	if err != nil || len(list.GetRollouts()) != 4 || list.GetRollouts()[0].GetName() != "four" {
		s.t.Errorf("%v %v", list, err)
	}
	if _, err := s.rollouts().GetRollout(ctx, &rolloutv1.GetRolloutRequest{Rollout: "nope"}); code(err) != connect.CodeNotFound {
		s.t.Error(err)
	}
	if _, err := s.rollouts().AbortRollout(ctx, &rolloutv1.AbortRolloutRequest{Rollout: id}); code(err) != connect.CodeFailedPrecondition {
		s.t.Error(err)
	}
}

// A device reads the blobs of its own releases, over mutual TLS and with
// ranges, and no others; and everybody with a certificate the TUF metadata.
func TestDeviceReadsItsReleaseOnly(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	b := enrolled(t, r)
	b.connect(t)
	mine, other := r.release(t, "1", 0), r.release(t, "2", 0)
	if _, err := r.fleetClient().AssignRelease(t.Context(), &fleetv1.AssignReleaseRequest{Device: b.id, Release: "meter@1"}); err != nil {
		t.Fatal(err)
	}
	d := b.desired(t)
	if d.Release == nil || d.Release.Target != "releases/meter/1" || string(d.Release.Digest) != string(ota.Digest(mine.GetDigest()).Sum()) {
		t.Fatalf("%+v", d)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: b.tls(true)}}
	anonymous := &http.Client{Transport: &http.Transport{TLSClientConfig: b.tls(false)}}
	get := func(c *http.Client, path, span string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(context.Background(), "GET", "https://"+r.Addrs().Device.String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if span != "" {
			req.Header.Set("Range", span)
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	blobAt := func(d string) string { return "/v2/skein/blobs/" + d }
	if code, index := get(client, blobAt(mine.GetDigest()), ""); code != 200 || string(ota.DigestOf([]byte(index))) != mine.GetDigest() {
		t.Errorf("index: %d %s", code, index)
	}
	if code, text := get(client, blobAt(mine.GetTargets()[0].GetManifestDigest()), "bytes=0-9"); code != 206 || len(text) != 10 {
		t.Errorf("range: %d %q", code, text)
	}
	if code, text := get(client, blobAt(other.GetDigest()), ""); code != 403 || !strings.Contains(text, "no release of this device") {
		t.Errorf("another release: %d %s", code, text)
	}
	if code, _ := get(anonymous, blobAt(mine.GetDigest()), ""); code != 401 {
		t.Errorf("without certificate: %d", code)
	}
	if code, text := get(client, "/tuf/timestamp.json", ""); code != 200 || !strings.Contains(text, "snapshot.json") {
		t.Errorf("TUF: %d %s", code, text)
	}
	if _, err := r.fleetClient().RevokeDevice(t.Context(), &fleetv1.RevokeDeviceRequest{Device: b.id, Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	if code, _ := get(client, blobAt(mine.GetDigest()), ""); code != 401 {
		t.Errorf("a revoked device reads: %d", code)
	}
}
