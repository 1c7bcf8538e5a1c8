package tap

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/skein-fleet/skein/proto/gen/inference"
)

// errUnreadable is wrapped by what is no tensor of the protocol.
var errUnreadable = errors.New("no tensor")

// jsonItem is a tensor of the HTTP protocol.
type jsonItem struct {
	Name       string          `json:"name"`
	Datatype   string          `json:"datatype"`
	Shape      []int64         `json:"shape"`
	Parameters map[string]any  `json:"parameters"`
	Data       json.RawMessage `json:"data"`
}

type jsonBody struct {
	Inputs  []jsonItem `json:"inputs"`
	Outputs []jsonItem `json:"outputs"`
}

func (c *capture) inputs() ([]Tensor, error) {
	if c.proto == protoGRPC {
		var m inference.ModelInferRequest
		if err := c.message(c.request, c.reqEncoding, &m); err != nil {
			return nil, err
		}
		out := make([]Tensor, 0, len(m.GetInputs()))
		for i, in := range m.GetInputs() {
			out = append(out, rpcTensor(in.GetName(), in.GetDatatype(), in.GetShape(), in.GetContents(), rawAt(m.GetRawInputContents(), i)))
		}
		return out, nil
	}
	b, binary, err := c.json(c.request, c.reqEncoding, c.reqJSON)
	if err != nil {
		return nil, err
	}
	return jsonTensors(b.Inputs, binary)
}

func (c *capture) outputs() ([]Tensor, error) {
	if c.proto == protoGRPC {
		var m inference.ModelInferResponse
		if err := c.message(c.response, c.respEncoding, &m); err != nil {
			return nil, err
		}
		out := make([]Tensor, 0, len(m.GetOutputs()))
		for i, o := range m.GetOutputs() {
			out = append(out, rpcTensor(o.GetName(), o.GetDatatype(), o.GetShape(), o.GetContents(), rawAt(m.GetRawOutputContents(), i)))
		}
		return out, nil
	}
	b, binary, err := c.json(c.response, c.respEncoding, c.respJSON)
	if err != nil {
		return nil, err
	}
	return jsonTensors(b.Outputs, binary)
}

// json splits an HTTP body into its JSON and its binary tensors.
func (c *capture) json(body []byte, encoding string, n int) (b jsonBody, binary []byte, err error) {
	if body, err = decompress(encoding, body); err != nil {
		return b, nil, err
	}
	head := body
	if n >= 0 && n <= len(body) {
		head, binary = body[:n], body[n:]
	}
	if err := json.Unmarshal(head, &b); err != nil {
		return b, nil, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return b, binary, nil
}

// decompress undoes a Content-Encoding; what is larger than a large capture is refused.
func decompress(encoding string, b []byte) ([]byte, error) {
	b, err := inflate(encoding, b, 16*maxCapture)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return b, nil
}

// jsonTensors reads tensors whose values stand in JSON, or follow it in order.
func jsonTensors(items []jsonItem, binary []byte) ([]Tensor, error) {
	out := make([]Tensor, 0, len(items))
	for _, it := range items {
		t := Tensor{Name: it.Name, Datatype: it.Datatype, Shape: it.Shape}
		if size, ok := it.Parameters["binary_data_size"].(float64); ok {
			n := int(size)
			if n < 0 || n > len(binary) {
				return nil, fmt.Errorf("%w: %q has %v bytes, %d are there", errUnreadable, it.Name, size, len(binary))
			}
			t.Values = rawValues(it.Datatype, binary[:n])
			binary = binary[n:]
		} else if it.Datatype != "BYTES" && len(it.Data) > 0 {
			var v any
			if err := json.Unmarshal(it.Data, &v); err != nil {
				return nil, fmt.Errorf("%w: %q: %w", errUnreadable, it.Name, err)
			}
			var ok bool
			if t.Values, ok = flat(nil, v, 0); !ok {
				return nil, fmt.Errorf("%w: %q has values that are no numbers", errUnreadable, it.Name)
			}
		}
		if n, ok := elements(t.Shape); !ok || t.Values != nil && n != int64(len(t.Values)) {
			return nil, fmt.Errorf("%w: %q has %d values, its shape is %v", errUnreadable, it.Name, len(t.Values), t.Shape)
		}
		out = append(out, t)
	}
	return out, nil
}

func elements(shape []int64) (int64, bool) {
	n := int64(1)
	for _, d := range shape {
		if d < 0 || d > math.MaxInt32 || n*d > math.MaxInt32 {
			return 0, false
		}
		n *= d
	}
	return n, true
}

func flat(to []float64, v any, depth int) ([]float64, bool) {
	switch v := v.(type) {
	case float64:
		return append(to, v), true
	case bool:
		if v {
			return append(to, 1), true
		}
		return append(to, 0), true
	case []any:
		ok := depth < 16
		for _, one := range v {
			if !ok {
				return to, false
			}
			to, ok = flat(to, one, depth+1)
		}
		return to, ok
	}
	return to, false
}

// message reads the one message of a gRPC body.
func (c *capture) message(body []byte, encoding string, m proto.Message) error {
	if len(body) < frameHead || int(binary.BigEndian.Uint32(body[1:])) != len(body)-frameHead {
		return fmt.Errorf("%w: not one message", errUnreadable)
	}
	b := body[frameHead:]
	if body[0] != 0 {
		var err error
		if b, err = decompress(encoding, b); err != nil {
			return err
		}
	}
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: %w", errUnreadable, err)
	}
	return nil
}

func rawAt(raw [][]byte, i int) []byte {
	if i < len(raw) {
		return raw[i]
	}
	return nil
}

func rpcTensor(name, datatype string, shape []int64, c *inference.InferTensorContents, raw []byte) Tensor {
	t := Tensor{Name: name, Datatype: datatype, Shape: shape}
	switch {
	case raw != nil:
		t.Values = rawValues(datatype, raw)
	case len(c.GetFp32Contents()) > 0:
		t.Values = floats(c.GetFp32Contents())
	case len(c.GetFp64Contents()) > 0:
		t.Values = c.GetFp64Contents()
	case len(c.GetIntContents()) > 0:
		t.Values = floats(c.GetIntContents())
	case len(c.GetInt64Contents()) > 0:
		t.Values = floats(c.GetInt64Contents())
	case len(c.GetUintContents()) > 0:
		t.Values = floats(c.GetUintContents())
	case len(c.GetUint64Contents()) > 0:
		t.Values = floats(c.GetUint64Contents())
	}
	return t
}

func floats[T int32 | int64 | uint32 | uint64 | float32](in []T) []float64 {
	out := make([]float64, len(in))
	for i, v := range in {
		out[i] = float64(v)
	}
	return out
}

// rawValues reads little-endian values; nil for datatypes without numbers.
func rawValues(datatype string, b []byte) []float64 {
	le := binary.LittleEndian
	size, read := 0, func([]byte) float64 { return 0 }
	switch datatype {
	case "FP32":
		size, read = 4, func(b []byte) float64 { return float64(math.Float32frombits(le.Uint32(b))) }
	case "FP64":
		size, read = 8, func(b []byte) float64 { return math.Float64frombits(le.Uint64(b)) }
	case "FP16":
		size, read = 2, func(b []byte) float64 { return half(le.Uint16(b)) }
	case "BF16":
		size, read = 2, func(b []byte) float64 { return float64(math.Float32frombits(uint32(le.Uint16(b)) << 16)) }
	case "INT8":
		size, read = 1, func(b []byte) float64 { return float64(int8(b[0])) }
	case "UINT8", "BOOL":
		size, read = 1, func(b []byte) float64 { return float64(b[0]) }
	case "INT16":
		size, read = 2, func(b []byte) float64 { return float64(int16(le.Uint16(b))) }
	case "UINT16":
		size, read = 2, func(b []byte) float64 { return float64(le.Uint16(b)) }
	case "INT32":
		size, read = 4, func(b []byte) float64 { return float64(int32(le.Uint32(b))) }
	case "UINT32":
		size, read = 4, func(b []byte) float64 { return float64(le.Uint32(b)) }
	case "INT64":
		size, read = 8, func(b []byte) float64 { return float64(int64(le.Uint64(b))) }
	case "UINT64":
		size, read = 8, func(b []byte) float64 { return float64(le.Uint64(b)) }
	}
	if size == 0 || strings.HasPrefix(datatype, "BYTES") {
		return nil
	}
	out := make([]float64, 0, len(b)/size)
	for ; len(b) >= size; b = b[size:] {
		out = append(out, read(b))
	}
	return out
}

// half reads IEEE 754 binary16.
func half(h uint16) float64 {
	sign, exp, frac := 1.0, int(h>>10)&0x1f, float64(h&0x3ff)
	if h>>15 != 0 {
		sign = -1
	}
	switch exp {
	case 0:
		return sign * math.Ldexp(frac, -24)
	case 31:
		if frac != 0 {
			return math.NaN()
		}
		return sign * math.Inf(1)
	}
	return sign * math.Ldexp(1024+frac, exp-25)
}
