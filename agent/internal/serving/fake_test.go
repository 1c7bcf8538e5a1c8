package serving

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
	"github.com/skein-fleet/skein/proto/gen/inference"
	"github.com/skein-fleet/skein/proto/gen/inference/inferenceconnect"
)

// farm is a launcher whose servers are goroutines that listen where they are
// told: they outlive the runtime that started them.
type farm struct {
	mu      sync.Mutex // guards what follows
	running map[string]*fake
	started int
	// next is how the next server behaves.
	next     behaviour
	adoptErr error
	keep     bool // servers go on at Close
}

type behaviour struct {
	exit   *Exit // ends at once
	never  bool  // never ready
	memory int64
	grpc   bool // speaks gRPC, and no HTTP
	inputs []kserve.TensorInfo
	stuck  bool // cannot be stopped
}

type fake struct {
	farm   *farm
	name   string
	spec   Spec
	how    behaviour
	begun  time.Time
	done   chan struct{}
	server *http.Server

	mu     sync.Mutex // guards what follows
	exit   Exit
	memory int64
	hung   bool
}

func newFarm() *farm { return &farm{running: map[string]*fake{}, keep: true} }

func (f *farm) Launch(_ context.Context, s Spec) (Instance, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running[s.Name] != nil {
		return nil, errors.New("a server of this name runs: " + s.Name)
	}
	f.started++
	i := &fake{farm: f, name: s.Name, spec: s, how: f.next, begun: time.Now(), done: make(chan struct{}), memory: f.next.memory}
	if e := f.next.exit; e != nil {
		i.exit = *e
		close(i.done)
		return i, nil
	}
	addr := s.Args[0]
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	i.server = &http.Server{Handler: i.handler(), Protocols: p}
	go i.server.Serve(l)
	f.running[s.Name] = i
	return i, nil
}

func (f *farm) Adopt(context.Context) ([]Adopted, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Adopted
	for _, i := range f.running {
		out = append(out, Adopted{Name: i.name, Labels: maps.Clone(i.spec.Labels), Started: i.begun, Instance: i})
	}
	return out, f.adoptErr
}

func (f *farm) Close() error {
	f.mu.Lock()
	all := maps.Clone(f.running)
	keep := f.keep
	f.mu.Unlock()
	for _, i := range all {
		if !keep {
			i.end(Exit{})
		}
	}
	return nil
}

func (f *farm) get(t *testing.T, name string) *fake {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	i := f.running[name]
	if i == nil {
		t.Fatalf("no server %s runs: %v", name, f.running)
	}
	return i
}

func (f *farm) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.running)
}

func (f *farm) behave(b behaviour) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next = b
}

// handler doubles its input and names its own server in the answer's id.
func (i *fake) handler() http.Handler {
	w := i.spec.Workload
	inputs := i.how.inputs
	if inputs == nil {
		inputs = []kserve.TensorInfo{{Name: "x", Datatype: "FP32", Shape: []int64{-1, 2}}}
	}
	models := func(context.Context) ([]kserve.Model, error) {
		i.mu.Lock()
		defer i.mu.Unlock()
		return []kserve.Model{{ID: w.ID, Name: w.Model, Version: w.Version, Ready: !i.how.never && !i.hung, Serving: true, Inputs: inputs}}, nil
	}
	h := kserve.NewHandler(kserve.Options{Inferer: i, Models: models})
	if !i.how.grpc {
		return h
	}
	mux := http.NewServeMux()
	mux.Handle(inferenceconnect.NewGRPCInferenceServiceHandler(grpcFake{i: i}))
	return mux
}

func (i *fake) Infer(_ context.Context, _ string, req runtime.Request) (runtime.Response, error) {
	in := req.Inputs[0]
	out := make([]float32, len(in.Data))
	for k, v := range in.Data {
		out[k] = 2 * v
	}
	return runtime.Response{ModelName: i.spec.Workload.Model, ModelVersion: i.spec.Workload.Version, ID: req.ID,
		Outputs: []runtime.Tensor{{Name: "y", Shape: in.Shape, Data: out}, {Name: i.name, Shape: []int64{0}}}}, nil
}

func (i *fake) end(e Exit) {
	i.mu.Lock()
	defer i.mu.Unlock()
	select {
	case <-i.done:
		return
	default:
	}
	i.exit = e
	i.server.Close()
	i.farm.mu.Lock()
	delete(i.farm.running, i.name)
	i.farm.mu.Unlock()
	close(i.done)
}

func (i *fake) grow(bytes int64) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.memory += bytes
}

func (i *fake) Done() <-chan struct{} { return i.done }

func (i *fake) Exit() Exit {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.exit
}

func (i *fake) Stop(context.Context, time.Duration) error {
	i.farm.mu.Lock()
	stuck := i.farm.next.stuck
	i.farm.mu.Unlock()
	if stuck {
		return errors.New("the daemon does not answer")
	}
	if i.server != nil {
		i.end(Exit{})
	}
	return nil
}

func (i *fake) Usage(context.Context) (Usage, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return Usage{Memory: i.memory}, nil
}

// grpcFake is a server that speaks gRPC only, and wants whole numbers.
type grpcFake struct {
	inferenceconnect.UnimplementedGRPCInferenceServiceHandler
	i *fake
}

func (g grpcFake) ModelReady(_ context.Context, r *inference.ModelReadyRequest) (*inference.ModelReadyResponse, error) {
	w := g.i.spec.Workload
	return &inference.ModelReadyResponse{Ready: r.GetName() == w.Model && r.GetVersion() == w.Version}, nil
}

func (g grpcFake) ServerReady(context.Context, *inference.ServerReadyRequest) (*inference.ServerReadyResponse, error) {
	return &inference.ServerReadyResponse{Ready: true}, nil
}

func (g grpcFake) ModelMetadata(context.Context, *inference.ModelMetadataRequest) (*inference.ModelMetadataResponse, error) {
	return &inference.ModelMetadataResponse{Inputs: []*inference.ModelMetadataResponse_TensorMetadata{{Name: "x", Datatype: "INT16", Shape: []int64{-1, 2}}}}, nil
}

func (g grpcFake) ModelInfer(_ context.Context, r *inference.ModelInferRequest) (*inference.ModelInferResponse, error) {
	if r.GetInputs()[0].GetDatatype() != "INT16" || len(r.GetRawInputContents()) != 1 || len(r.GetRawInputContents()[0]) != 4 {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("want two numbers of INT16"))
	}
	b := r.GetRawInputContents()[0]
	sum := int32(int16(uint16(b[0])|uint16(b[1])<<8)) + int32(int16(uint16(b[2])|uint16(b[3])<<8))
	return &inference.ModelInferResponse{ModelName: r.GetModelName(), Id: r.GetId(), Outputs: []*inference.ModelInferResponse_InferOutputTensor{
		{Name: "y", Datatype: "INT32", Shape: []int64{1}, Contents: &inference.InferTensorContents{IntContents: []int32{sum}}}}}, nil
}
