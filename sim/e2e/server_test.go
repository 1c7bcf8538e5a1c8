package e2e

import (
	"bufio"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skein-fleet/skein/controlplane"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	artifactv1 "github.com/skein-fleet/skein/proto/gen/skein/artifact/v1"
	auditv1 "github.com/skein-fleet/skein/proto/gen/skein/audit/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/audit/v1/auditv1connect"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/operator"
)

const (
	// patience bounds every wait of a test.
	patience = 30 * time.Second
	// testResend is the pause between two sendings of one desired state.
	testResend = 400 * time.Millisecond
	// testTarget is what the devices of these tests are.
	testTarget = "linux/amd64;ort=1"
)

// server is one skeind and its operator.
type server struct {
	t     testing.TB
	cfg   controlplane.Config
	plane *controlplane.Server // nil for a child process
	op    *operator.Operator
	token string
	http  string // base URL for people
	url   string // base URL for devices
	mqtt  string
	stop  func() // ends it and waits; again does nothing
}

// start runs a skeind on a new folder.
func start(t testing.TB, change ...func(*controlplane.Config)) *server {
	t.Helper()
	s := prepare(t, change...)
	s.run()
	return s
}

// prepare is start without running it.
func prepare(t testing.TB, change ...func(*controlplane.Config)) *server {
	t.Helper()
	s := &server{t: t, cfg: controlplane.Config{DataDir: filepath.Join(t.TempDir(), "data"), Domain: "skein.local",
		HTTPAddr: "127.0.0.1:0", DeviceAddr: "127.0.0.1:0", MQTTAddr: "127.0.0.1:0", Resend: testResend}}
	for _, c := range change {
		c(&s.cfg)
	}
	s.stop = func() {}
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *server) run() {
	s.t.Helper()
	plane, err := controlplane.New(s.cfg, logger())
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- plane.Run(ctx) }()
	select {
	case <-plane.Ready():
	case err := <-done:
		cancel()
		s.t.Fatalf("skeind ended: %v", err)
	}
	a := plane.Addrs()
	s.plane = plane
	s.at(a.HTTP.String(), a.Device.String(), a.MQTT.String(), plane.AdminToken())
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("skeind: %v", err)
		}
	})
}

// at notes where the server is, so that a restart is at the same addresses.
func (s *server) at(api, device, mqtt, token string) {
	http.DefaultClient.CloseIdleConnections() // to what was there before
	s.cfg.HTTPAddr, s.cfg.DeviceAddr, s.cfg.MQTTAddr = api, device, mqtt
	s.http, s.url, s.mqtt, s.token = "http://"+api, "https://"+device, mqtt, token
	s.op = operator.New(s.http, token)
}

// restart stops the server gracefully and starts it again.
func (s *server) restart() {
	s.t.Helper()
	s.stop()
	s.run()
}

// spawn runs skeind as a process of its own; kill ends it with SIGKILL.
func (s *server) spawn() (kill func()) {
	s.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+s.cfg.DataDir, "SKEIN_E2E_HTTP="+s.cfg.HTTPAddr, "SKEIN_E2E_DEVICE="+s.cfg.DeviceAddr, "SKEIN_E2E_MQTT="+s.cfg.MQTTAddr)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
	})
	s.t.Cleanup(kill)
	var h, d, m string
	if _, err := fmt.Fscan(bufio.NewReader(out), &h, &d, &m); err != nil {
		s.t.Fatalf("skeind as a process: %v", err)
	}
	token, err := os.ReadFile(filepath.Join(s.cfg.DataDir, "admin.token"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.at(h, d, m, string(token))
	s.stop = kill
	return kill
}

// until polls cond until it holds; what says what is awaited.
func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	untilFor(t, patience, what, cond)
}

func untilFor(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(limit)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited %s for %s", limit, what)
		}
	}
}

// version is one model and its release: outputs are (sum of inputs + Bias, 0).
type version struct {
	bias    float32
	pad     int      // bytes added to the file
	targets []string // empty: testTarget
	agent   []byte   // an agent that the release brings
	with    func(*releasev1.CreateReleaseRequest)
	// mirrors gives the file to who serves it elsewhere, and says where.
	mirrors func(onnx []byte) []string
}

// release pushes a model and makes the release meter@NAME of it.
func (s *server) release(name string, v version) *releasev1.Release {
	s.t.Helper()
	const inputs = 4
	weights := make([]float32, 2*inputs)
	for i := range inputs {
		weights[i] = 1
	}
	onnx, err := meter.Linear(weights, []float32{v.bias, 0}, inputs, 1, map[string]string{"pad": strings.Repeat("x", v.pad), "name": name})
	if err != nil {
		s.t.Fatal(err)
	}
	g := manifest.Golden{Version: 1, Input: meter.InputName, Shape: []int64{1, inputs}, Tolerance: manifest.Tolerance{Abs: 1e-3}, MinLabelAgreement: 1}
	for i := range 3 {
		in := []float32{float32(i), 1, 1, 1}
		g.Cases = append(g.Cases, manifest.GoldenCase{Input: in, Output: []float32{float32(i) + 3 + v.bias, 0}})
	}
	golden, err := g.Marshal()
	if err != nil {
		s.t.Fatal(err)
	}
	model, err := s.op.PushModel(s.t.Context(), "meter", onnx, golden, name)
	if err != nil {
		s.t.Fatal(err)
	}
	if v.mirrors != nil {
		r, err := s.op.Models.PushModel(s.t.Context(), &artifactv1.PushModelRequest{Model: "mirrored", OnnxDigest: string(ota.DigestOf(onnx)),
			GoldenDigest: string(ota.DigestOf(golden)), Mirrors: v.mirrors(onnx)})
		if err != nil {
			s.t.Fatal(err)
		}
		model = fmt.Sprintf("mirrored@%d", r.GetVersion().GetVersion())
	}
	targets := v.targets
	if targets == nil {
		targets = []string{testTarget}
	}
	var machine []*releasev1.MachineLayer
	if v.agent != nil {
		d, err := s.op.Upload(s.t.Context(), v.agent)
		if err != nil {
			s.t.Fatal(err)
		}
		machine = append(machine, &releasev1.MachineLayer{AgentDigest: string(d)})
	}
	req := &releasev1.CreateReleaseRequest{Name: "meter", Version: name, Model: model, Targets: targets, Machine: machine,
		Parameters: []*releasev1.ParameterDeclaration{{Key: "note", Type: "string", Default: "none"}}}
	if v.with != nil {
		v.with(req)
	}
	r, err := s.op.Release(s.t.Context(), req)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// assign makes meter@NAME the wanted release of a device; "" is nothing.
func (s *server) assign(device, name string) {
	s.t.Helper()
	if err := s.tryAssign(device, name); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) tryAssign(device, name string) error {
	release := ""
	if name != "" {
		release = "meter@" + name
	}
	_, err := s.op.Fleet.AssignRelease(s.t.Context(), &fleetv1.AssignReleaseRequest{Device: device, Release: release})
	return err
}

// note changes a parameter of the device, which is an honest update to the
// same release, and waits until the device runs with it.
func (s *server) note(d *device, text string) {
	s.t.Helper()
	_, err := s.op.Fleet.SetParameters(s.t.Context(), &fleetv1.SetParametersRequest{
		Set: []*fleetv1.Parameter{{Scope: fleetv1.ParameterScope_PARAMETER_SCOPE_DEVICE, Subject: d.id, Key: "note", Value: text}}})
	if err != nil {
		s.t.Fatal(err)
	}
	want := s.get(d.id)
	until(s.t, "the device to take an honest parameter", func() bool {
		st := d.status()
		return st.Held.Counter == want.GetDesiredGeneration().GetCounter() && st.Phase == wire.PhaseIdle && hex.EncodeToString(st.ParamsDigest) == strings.TrimPrefix(want.GetDesiredParametersDigest(), "sha256:")
	})
}

// get is what the control plane says of a device.
func (s *server) get(device string) *fleetv1.Device {
	s.t.Helper()
	r, err := s.op.Fleet.GetDevice(s.t.Context(), &fleetv1.GetDeviceRequest{Device: device})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.GetDevice()
}

// runs reports whether the control plane knows that the device runs meter@NAME,
// as wanted.
func (s *server) runs(device, name string) bool {
	d := s.get(device)
	return d.GetRunningReleaseName() == "meter@"+name && d.GetDesiredReleaseName() == d.GetRunningReleaseName() && d.GetPhase() == "idle"
}

func (s *server) events(device string) []*fleetv1.DeviceEvent {
	s.t.Helper()
	r, err := s.op.Fleet.ListDeviceEvents(s.t.Context(), &fleetv1.ListDeviceEventsRequest{Device: device, Limit: 1000})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.GetEvents()
}

// count counts events of a kind and attack class whose message contains text.
func (s *server) count(device, kind, attack, text string) (n int) {
	for _, e := range s.events(device) {
		if e.GetKind() == kind && e.GetAttack() == attack && strings.Contains(e.GetMessage(), text) {
			n++
		}
	}
	return n
}

// awaitEvent waits for such an event.
func (s *server) awaitEvent(device, kind, attack, text string) {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	until(s.t, fmt.Sprintf("an event %s/%s %q", kind, attack, text), func() bool {
		if s.count(device, kind, attack, text) > 0 {
			return true
		}
		if time.Until(deadline) < time.Second {
			for _, e := range s.events(device) {
				s.t.Logf("event %s/%s: %s", e.GetKind(), e.GetAttack(), e.GetMessage())
			}
			deadline = deadline.Add(time.Hour)
		}
		return false
	})
}

// audit returns the newest audit entries.
func (s *server) audit() []*auditv1.Entry {
	s.t.Helper()
	c := auditv1connect.NewAuditServiceClient(&http.Client{Transport: bearer(s.token)}, s.http)
	r, err := c.ListEntries(s.t.Context(), &auditv1.ListEntriesRequest{Limit: 500})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.GetEntries()
}

// audited reports whether there is such an entry.
func (s *server) audited(action, decision, text string) bool {
	for _, e := range s.audit() {
		if strings.HasSuffix(e.GetAction(), action) && e.GetDecision() == decision && strings.Contains(e.GetError()+e.GetSubject()+e.GetActor(), text) {
			return true
		}
	}
	return false
}

type bearer string

// RoundTrip implements http.RoundTripper.
func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if b != "" {
		r.Header.Set("Authorization", "Bearer "+string(b))
	}
	return http.DefaultTransport.RoundTrip(r)
}

// metric sums the samples of a metric whose labels contain text.
func (s *server) metric(name, text string) (sum float64) {
	s.t.Helper()
	resp, err := http.Get(s.http + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok && (series == name || strings.HasPrefix(series, name+"{")) && strings.Contains(series, text) {
			var v float64
			if err := json.Unmarshal([]byte(value), &v); err != nil {
				s.t.Fatalf("metric %s: %v", line, err)
			}
			sum += v
		}
	}
	return sum
}

// director is the online key, as a thief of it has it.
func (s *server) director() *trust.Signer {
	s.t.Helper()
	repo, err := trust.OpenRepo(filepath.Join(s.cfg.DataDir, "trust"))
	if err != nil {
		s.t.Fatal(err)
	}
	signer, err := repo.DirectorSigner()
	if err != nil {
		s.t.Fatal(err)
	}
	return signer
}

// blobFile is where the server keeps a blob.
func (s *server) blobFile(d ota.Digest) string {
	return filepath.Join(s.cfg.DataDir, "blobs", "blobs", "sha256", d.Hex()[:2], d.Hex())
}

// onnxOf is the digest of the model file of a version.
func (s *server) claim(uses int) string {
	s.t.Helper()
	claim, err := s.op.Claim(s.t.Context(), uses, map[string]string{"site": "lyon"})
	if err != nil {
		s.t.Fatal(err)
	}
	return claim
}

// has reports whether an error says text; nil says nothing.
func has(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }

func orDefault(v, def string) string { return cmp.Or(v, def) }
