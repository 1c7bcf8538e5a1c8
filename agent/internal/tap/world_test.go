package tap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/proto/gen/inference"
	"github.com/skein-fleet/skein/proto/gen/inference/inferenceconnect"
)

// model is a server of both protocols on one port. It answers with the sum of
// the input plus its bias, and with its own version.
type model struct {
	inferenceconnect.UnimplementedGRPCInferenceServiceHandler
	name, version string
	bias          float32
	addr          string
	srv           *http.Server
	answered      atomic.Int64
	paths         sync.Map // that were asked for
	hold          chan struct{}
	handle        func(w http.ResponseWriter, r *http.Request) bool
}

func startModel(t *testing.T, name, version string, bias float32) *model {
	t.Helper()
	m := &model{name: name, version: version, bias: bias}
	m.listen(t, "127.0.0.1:0")
	t.Cleanup(func() { m.srv.Close() })
	return m
}

func (m *model) listen(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	m.addr = l.Addr().String()
	path, h := inferenceconnect.NewGRPCInferenceServiceHandler(m)
	mux := http.NewServeMux()
	mux.Handle(path, h)
	mux.HandleFunc("/", m.plain)
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	m.srv = &http.Server{Handler: mux, Protocols: p}
	go m.srv.Serve(l)
}

func (m *model) plain(w http.ResponseWriter, r *http.Request) {
	m.paths.Store(r.Method+" "+r.RequestURI, true)
	if m.handle != nil && m.handle(w, r) {
		return
	}
	if !strings.HasSuffix(r.URL.Path, "/infer") {
		fmt.Fprintf(w, `{"name":%q,"versions":[%q],"x":{"name":"inner"}}`, m.name, m.version)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if m.hold != nil {
		<-m.hold
	}
	var in struct {
		ID     string
		Inputs []struct{ Data []float32 }
	}
	if n, err := strconv.Atoi(r.Header.Get(binaryHeader)); err == nil {
		body = body[:n]
	}
	if err := json.Unmarshal(body, &in); err != nil {
		http.Error(w, `{"error":"bad"}`, http.StatusBadRequest)
		return
	}
	sum := m.bias
	for _, t := range in.Inputs {
		for _, v := range t.Data {
			sum += v
		}
	}
	m.answered.Add(1)
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"model_name":%q,"model_version":%q,"id":%q,"outputs":[{"name":"y","datatype":"FP32","shape":[1,2],"data":[%g,0]}]}`, m.name, m.version, in.ID, sum)
}

func (m *model) ServerLive(context.Context, *inference.ServerLiveRequest) (*inference.ServerLiveResponse, error) {
	return &inference.ServerLiveResponse{Live: true}, nil
}

func (m *model) ModelReady(_ context.Context, r *inference.ModelReadyRequest) (*inference.ModelReadyResponse, error) {
	return &inference.ModelReadyResponse{Ready: r.GetName() == m.name}, nil
}

func (m *model) answer(r *inference.ModelInferRequest) (*inference.ModelInferResponse, error) {
	if r.GetModelName() != m.name || r.GetModelVersion() != "" && r.GetModelVersion() != m.version {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("no %q %q", r.GetModelName(), r.GetModelVersion()))
	}
	sum := m.bias
	for _, in := range r.GetInputs() {
		for _, v := range in.GetContents().GetFp32Contents() {
			sum += v
		}
	}
	m.answered.Add(1)
	return &inference.ModelInferResponse{ModelName: m.name, ModelVersion: m.version, Id: r.GetId(),
		Outputs: []*inference.ModelInferResponse_InferOutputTensor{{Name: "y", Datatype: "FP32", Shape: []int64{1, 2},
			Contents: &inference.InferTensorContents{Fp32Contents: []float32{sum, 0}}}}}, nil
}

func (m *model) ModelInfer(ctx context.Context, r *inference.ModelInferRequest) (*inference.ModelInferResponse, error) {
	if m.hold != nil {
		<-m.hold
	}
	if info, ok := connect.CallInfoForHandlerContext(ctx); ok {
		info.ResponseTrailer().Set("X-Trailer", "t"+m.version)
	}
	return m.answer(r)
}

func (m *model) ModelStreamInfer(_ context.Context, s *connect.BidiStream[inference.ModelInferRequest, inference.ModelStreamInferResponse]) error {
	for {
		r, err := s.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if r.GetId() == "fail" {
			return connect.NewError(connect.CodeDataLoss, errors.New("as asked"))
		}
		a, err := m.answer(r)
		out := &inference.ModelStreamInferResponse{InferResponse: a}
		if err != nil {
			out = &inference.ModelStreamInferResponse{ErrorMessage: err.Error()}
		}
		if err := s.Send(out); err != nil {
			return err
		}
	}
}

// fleet is the runtime of the tests.
type fleet struct {
	mu      sync.Mutex
	models  map[string]runtime.Endpoint
	serving string
	pinned  map[string]int
}

func (f *fleet) Acquire(_ context.Context, id string) (runtime.Endpoint, func(), error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id == "" {
		id = f.serving
	}
	e, ok := f.models[id]
	if !ok {
		return e, nil, fmt.Errorf("%q: %w", id, runtime.ErrNotLoaded)
	}
	f.pinned[id]++
	return e, sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.pinned[id]--
	}), nil
}

func (f *fleet) load(id string, e runtime.Endpoint) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.ID = id
	f.models[id] = e
}

func (f *fleet) use(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.serving = id
}

func (f *fleet) pins() (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pinned {
		n += p
	}
	return n
}

func (f *fleet) loaded(context.Context) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for id := range f.models {
		out = append(out, id)
	}
	return out
}

// bench is a tap with servers behind it.
type bench struct {
	t     *testing.T
	tap   *Tap
	fleet *fleet
	path  string
	plain *http.Client
	rpc   inferenceconnect.GRPCInferenceServiceClient
}

func endpoint(m *model, release, version string) runtime.Endpoint {
	return runtime.Endpoint{HTTP: m.addr, GRPC: m.addr, Model: m.name, Version: m.version, ReleaseModel: release, ReleaseVersion: version}
}

func newBench(t *testing.T, l Limits) *bench {
	t.Helper()
	b := &bench{t: t, fleet: &fleet{models: map[string]runtime.Endpoint{}, pinned: map[string]int{}}, path: filepath.Join(t.TempDir(), "tap.sock")}
	ready := make(chan struct{})
	var err error
	b.tap, err = New(Options{Endpoints: b.fleet, Loaded: b.fleet.loaded, Listen: "unix:" + b.path, Limits: l, Listening: func(net.Addr) { close(ready) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.tap.Run(ctx) }()
	<-ready
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	b.plain = &http.Client{Transport: &http.Transport{DialContext: b.dial, MaxIdleConnsPerHost: 64}}
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	b.rpc = newRPC(&http.Client{Transport: &http.Transport{DialContext: b.dial, Protocols: p}})
	t.Cleanup(b.plain.CloseIdleConnections)
	return b
}

func newRPC(c *http.Client, o ...connect.ClientOption) inferenceconnect.GRPCInferenceServiceClient {
	return inferenceconnect.NewGRPCInferenceServiceClient(c, "http://tap", append(o, connect.WithGRPC())...)
}

func (b *bench) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", b.path)
}

// ask sends one request over HTTP and returns status and body.
func (b *bench) ask(method, path, body string) (int, string) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, "http://tap"+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := b.plain.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	var out bytes.Buffer
	if _, err := out.ReadFrom(resp.Body); err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, out.String()
}

func inferBody(id string, v float64) string {
	return fmt.Sprintf(`{"id":%q,"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[%g]}]}`, id, v)
}

func inferRPC(model, version, id string, v float32) *inference.ModelInferRequest {
	return &inference.ModelInferRequest{ModelName: model, ModelVersion: version, Id: id,
		Inputs: []*inference.ModelInferRequest_InferInputTensor{{Name: "x", Datatype: "FP32", Shape: []int64{1, 1}, Contents: &inference.InferTensorContents{Fp32Contents: []float32{v}}}}}
}

// until waits for what happens beside a request.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come", what)
		}
	}
}
