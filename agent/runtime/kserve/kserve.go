// Package kserve speaks the KServe v2 inference protocol (Open Inference
// Protocol): a handler over anything that infers (HTTP with JSON tensors), and
// small clients over HTTP and gRPC. It owns the JSON forms, the status codes,
// the datatypes and the bounds on bodies; it starts nothing and keeps no state.
// The handler serves datatype FP32 alone and no binary tensors; the clients
// speak to servers of other numeric datatypes too. The agent and the simulator
// import it.
package kserve

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"

	"github.com/skein-fleet/skein/agent/runtime"
)

// Model describes one version of a model that is served.
type Model struct {
	Name    string
	Version string
	// ID is the workload's name in Inferer.
	ID      string
	Ready   bool
	Serving bool // answers requests that name no version
	// Platform is the kind of model, "onnx" for example.
	Platform string
	Inputs   []TensorInfo
	Outputs  []TensorInfo
}

// TensorInfo describes an input or output; a size of -1 is the caller's choice.
type TensorInfo struct {
	Name     string  `json:"name"`
	Datatype string  `json:"datatype"`
	Shape    []int64 `json:"shape"`
}

// Metadata is the answer to GET /v2/models/{model}.
type Metadata struct {
	Name     string       `json:"name"`
	Versions []string     `json:"versions"`
	Platform string       `json:"platform"`
	Inputs   []TensorInfo `json:"inputs"`
	Outputs  []TensorInfo `json:"outputs"`
}

// ServerInfo is the answer to GET /v2.
type ServerInfo struct {
	Name       string   `json:"name"`
	Version    string   `json:"version"`
	Extensions []string `json:"extensions"`
}

// ErrBadTensor is returned for JSON that is no tensor of this protocol.
var ErrBadTensor = errors.New("bad tensor")

// DatatypeFP32 is the one datatype that is served.
const DatatypeFP32 = "FP32"

// inferRequest and inferResponse are the JSON forms.
type inferRequest struct {
	ID         string          `json:"id,omitempty"`
	Parameters json.RawMessage `json:"parameters,omitempty"`
	Inputs     []tensorJSON    `json:"inputs"`
	Outputs    []outputJSON    `json:"outputs,omitempty"`
}

type inferResponse struct {
	ModelName    string       `json:"model_name"`
	ModelVersion string       `json:"model_version,omitempty"`
	ID           string       `json:"id,omitempty"`
	Outputs      []tensorJSON `json:"outputs"`
}

type outputJSON struct {
	Name       string          `json:"name"`
	Parameters json.RawMessage `json:"parameters,omitempty"`
}

type tensorJSON struct {
	Name       string          `json:"name"`
	Shape      []int64         `json:"shape"`
	Datatype   string          `json:"datatype"`
	Parameters json.RawMessage `json:"parameters,omitempty"`
	Data       json.RawMessage `json:"data"`
}

type errorJSON struct {
	Error string `json:"error"`
}

const maxRank = 8

// tensor reads the JSON form. The data may be flat or nested by dimension.
func (t *tensorJSON) tensor() (runtime.Tensor, error) {
	bad := func(format string, args ...any) (runtime.Tensor, error) {
		return runtime.Tensor{}, fmt.Errorf("%w: %q: %s", ErrBadTensor, t.Name, fmt.Sprintf(format, args...))
	}
	if t.Name == "" {
		return bad("it has no name")
	}
	if t.Datatype != DatatypeFP32 {
		return bad("datatype %q: only %s is served", t.Datatype, DatatypeFP32)
	}
	return t.values()
}

// values reads the data as floats, whatever the datatype.
func (t *tensorJSON) values() (runtime.Tensor, error) {
	bad := func(format string, args ...any) (runtime.Tensor, error) {
		return runtime.Tensor{}, fmt.Errorf("%w: %q: %s", ErrBadTensor, t.Name, fmt.Sprintf(format, args...))
	}
	if len(t.Shape) > maxRank {
		return bad("%d dimensions: at most %d", len(t.Shape), maxRank)
	}
	n := int64(1)
	for _, d := range t.Shape {
		if d < 0 || d > math.MaxInt32 || n*d > math.MaxInt32 {
			return bad("shape %v", t.Shape)
		}
		n *= d
	}
	data, err := flatten(t.Data, len(t.Shape))
	if err != nil {
		return bad("data: %v", err)
	}
	if n != int64(len(data)) {
		return bad("shape %v needs %d values, there are %d", t.Shape, n, len(data))
	}
	return runtime.Tensor{Name: t.Name, Shape: t.Shape, Data: data, Datatype: otherType(t.Datatype)}, nil
}

// otherType is empty for FP32, which needs no saying.
func otherType(datatype string) string {
	if datatype == DatatypeFP32 {
		return ""
	}
	return datatype
}

// flatten reads a list of numbers, nested up to depth deep.
func flatten(raw json.RawMessage, depth int) ([]float32, error) {
	if first := bytes.TrimLeft(raw, " \t\r\n"); len(first) == 0 || first[0] != '[' {
		return nil, errors.New("want a list of numbers")
	}
	inner := bytes.TrimLeft(bytes.TrimLeft(raw, " \t\r\n")[1:], " \t\r\n")
	if len(inner) == 0 || inner[0] != '[' {
		if bytes.Contains(raw, []byte("null")) { // which decodes as 0
			return nil, errors.New("a value is null")
		}
		if rest := bytes.TrimLeft(raw, " \t\r\n["); len(rest) > 0 && (rest[0] == 't' || rest[0] == 'f') {
			return bools(raw)
		}
		var list []float32
		err := json.Unmarshal(raw, &list)
		return list, err
	}
	if depth <= 1 {
		return nil, errors.New("lists are nested deeper than the shape")
	}
	var parts []json.RawMessage
	if err := json.Unmarshal(raw, &parts); err != nil {
		return nil, err
	}
	var out []float32
	for _, p := range parts {
		v, err := flatten(p, depth-1)
		if err != nil {
			return nil, err
		}
		out = append(out, v...)
	}
	return out, nil
}

func bools(raw json.RawMessage) ([]float32, error) {
	var list []bool
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, err
	}
	out := make([]float32, len(list))
	for i, v := range list {
		if v {
			out[i] = 1
		}
	}
	return out, nil
}

// toJSON writes a tensor; JSON has no way to say NaN or infinity.
func toJSON(t runtime.Tensor) (tensorJSON, error) {
	for i, v := range t.Data {
		if f := float64(v); math.IsNaN(f) || math.IsInf(f, 0) {
			return tensorJSON{}, fmt.Errorf("%w: %q: value %d is %v, which JSON cannot hold", ErrBadTensor, t.Name, i, v)
		}
	}
	datatype := cmp.Or(t.Datatype, DatatypeFP32)
	typed, err := typedValues(t, datatype)
	if err != nil {
		return tensorJSON{}, err
	}
	data, err := json.Marshal(typed)
	if len(t.Data) == 0 {
		data = []byte("[]")
	}
	shape := t.Shape
	if shape == nil {
		shape = []int64{}
	}
	return tensorJSON{Name: t.Name, Shape: shape, Datatype: datatype, Data: data}, err
}
