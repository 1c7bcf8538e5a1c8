package kserve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"

	"connectrpc.com/connect"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/proto/gen/inference"
	"github.com/skein-fleet/skein/proto/gen/inference/inferenceconnect"
)

// GRPC calls a server of the protocol over gRPC, without TLS. It is safe for
// concurrent use.
type GRPC struct {
	svc inferenceconnect.GRPCInferenceServiceClient
}

// NewGRPC returns a client of the server at addr (HOST:PORT). client speaks
// HTTP/2 without TLS; header goes with each call.
func NewGRPC(addr string, client *http.Client, header map[string]string) *GRPC {
	if len(header) > 0 {
		client = WithHeader(client, header)
	}
	return &GRPC{inferenceconnect.NewGRPCInferenceServiceClient(client, "http://"+addr, connect.WithGRPC(), connect.WithReadMaxBytes(maxAnswer))}
}

// withHeader adds fields to each request.
type withHeader struct {
	header map[string]string
	next   http.RoundTripper
}

func (t withHeader) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	for k, v := range t.header {
		r.Header.Set(k, v)
	}
	return t.next.RoundTrip(r)
}

// Service is the whole protocol.
func (c *GRPC) Service() inferenceconnect.GRPCInferenceServiceClient { return c.svc }

// Failed turns an error of gRPC into the status that HTTP would have; others
// stay as they are.
func Failed(err error) error {
	ce, ok := errors.AsType[*connect.Error](err)
	if !ok || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	status := http.StatusInternalServerError
	switch ce.Code() {
	case connect.CodeInvalidArgument, connect.CodeOutOfRange, connect.CodeFailedPrecondition:
		status = http.StatusBadRequest
	case connect.CodeNotFound:
		status = http.StatusNotFound
	case connect.CodeUnimplemented:
		status = http.StatusNotImplemented
	case connect.CodeUnauthenticated, connect.CodePermissionDenied:
		status = http.StatusForbidden
	case connect.CodeUnavailable:
		if !connect.IsWireError(err) {
			return err // nobody answered
		}
		status = http.StatusServiceUnavailable
	}
	return &StatusError{Status: status, Message: ce.Message()}
}

func notReady(what string, yes bool, err error) error {
	if err != nil {
		return Failed(err)
	}
	if !yes {
		return &StatusError{Status: http.StatusBadRequest, Message: what + " is not ready"}
	}
	return nil
}

// Ready asks whether the server answers requests.
func (c *GRPC) Ready(ctx context.Context) error {
	r, err := c.svc.ServerReady(ctx, &inference.ServerReadyRequest{})
	return notReady("the server", r.GetReady(), err)
}

// ModelReady asks for one model; an empty version means the one that serves.
func (c *GRPC) ModelReady(ctx context.Context, model, version string) error {
	r, err := c.svc.ModelReady(ctx, &inference.ModelReadyRequest{Name: model, Version: version})
	return notReady("model "+model, r.GetReady(), err)
}

// Metadata returns what a model takes and gives.
func (c *GRPC) Metadata(ctx context.Context, model, version string) (Metadata, error) {
	r, err := c.svc.ModelMetadata(ctx, &inference.ModelMetadataRequest{Name: model, Version: version})
	if err != nil {
		return Metadata{}, Failed(err)
	}
	info := func(list []*inference.ModelMetadataResponse_TensorMetadata) []TensorInfo {
		var out []TensorInfo
		for _, t := range list {
			out = append(out, TensorInfo{Name: t.GetName(), Datatype: t.GetDatatype(), Shape: t.GetShape()})
		}
		return out
	}
	return Metadata{Name: r.GetName(), Versions: r.GetVersions(), Platform: r.GetPlatform(), Inputs: info(r.GetInputs()), Outputs: info(r.GetOutputs())}, nil
}

// Infer runs one request with raw contents; an empty version means the one
// that serves.
func (c *GRPC) Infer(ctx context.Context, model, version string, req runtime.Request) (runtime.Response, error) {
	in := &inference.ModelInferRequest{ModelName: model, ModelVersion: version, Id: req.ID}
	for _, t := range req.Inputs {
		datatype := cmp.Or(t.Datatype, DatatypeFP32)
		raw, err := packed(t, datatype)
		if err != nil {
			return runtime.Response{}, err
		}
		in.Inputs = append(in.Inputs, &inference.ModelInferRequest_InferInputTensor{Name: t.Name, Datatype: datatype, Shape: t.Shape})
		in.RawInputContents = append(in.RawInputContents, raw)
	}
	out, err := c.svc.ModelInfer(ctx, in)
	if err != nil {
		return runtime.Response{}, fmt.Errorf("infer on %s: %w", model, Failed(err))
	}
	resp := runtime.Response{ModelName: out.GetModelName(), ModelVersion: out.GetModelVersion(), ID: out.GetId()}
	for i, o := range out.GetOutputs() {
		var values []float32
		if i < len(out.GetRawOutputContents()) {
			values, err = unpacked(out.GetRawOutputContents()[i], o.GetDatatype())
		} else {
			values, err = contents(o.GetContents(), o.GetDatatype())
		}
		if err == nil && elements(o.GetShape()) != int64(len(values)) {
			err = fmt.Errorf("%w: shape %v with %d values", ErrBadTensor, o.GetShape(), len(values))
		}
		if err != nil {
			return runtime.Response{}, fmt.Errorf("infer on %s: output %q: %w", model, o.GetName(), err)
		}
		resp.Outputs = append(resp.Outputs, runtime.Tensor{Name: o.GetName(), Shape: o.GetShape(), Data: values, Datatype: otherType(o.GetDatatype())})
	}
	return resp, nil
}

// elements is -1 for what is no shape.
func elements(shape []int64) int64 {
	n := int64(1)
	for _, d := range shape {
		if d < 0 || d > maxAnswer || n*d > maxAnswer {
			return -1
		}
		n *= d
	}
	return n
}

// contents reads values that are not raw.
func contents(c *inference.InferTensorContents, datatype string) ([]float32, error) {
	switch datatype {
	case DatatypeFP32:
		return c.GetFp32Contents(), nil
	case "FP64":
		return floats(c.GetFp64Contents()), nil
	case "INT8", "INT16", "INT32":
		return floats(c.GetIntContents()), nil
	case "INT64":
		return floats(c.GetInt64Contents()), nil
	case "UINT8", "UINT16", "UINT32":
		return floats(c.GetUintContents()), nil
	case "UINT64":
		return floats(c.GetUint64Contents()), nil
	case "BOOL":
		out := make([]float32, len(c.GetBoolContents()))
		for i, v := range c.GetBoolContents() {
			if v {
				out[i] = 1
			}
		}
		return out, nil
	}
	return nil, fmt.Errorf("%w: datatype %q", ErrBadTensor, datatype)
}

func floats[T int32 | int64 | uint32 | uint64 | float64](list []T) []float32 {
	out := make([]float32, len(list))
	for i, v := range list {
		out[i] = float32(v)
	}
	return out
}

// WithHeader is an HTTP client that adds fields to each request.
func WithHeader(client *http.Client, header map[string]string) *http.Client {
	c := *client
	c.Transport = withHeader{maps.Clone(header), cmp.Or(client.Transport, http.DefaultTransport)}
	return &c
}
