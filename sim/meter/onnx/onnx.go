// Package onnx reads and writes ONNX files: the part of the format that
// float32 and int64 tensors in one flat graph need. It owns the file format
// only; what the operators mean is package interp's matter. Parse trusts
// nothing: it keeps to stated limits, allocates no more than a small multiple
// of the bytes it is given, and refuses what it would have to ignore
// (functions, subgraphs, sparse or external data). The packages of sim
// import it.
package onnx

import "errors"

// ErrBadModel is returned for bytes that are no ONNX model, or one outside the
// limits of this package.
var ErrBadModel = errors.New("bad ONNX model")

// DataType is an ONNX element type.
type DataType int32

// The element types understood here.
const (
	Float32 DataType = 1
	Int64   DataType = 7
)

// Limits of what Parse accepts.
const (
	MaxBytes = 256 << 20
	maxNodes = 20_000
	maxRank  = 8
	maxName  = 4096
	maxAttrs = 32   // of one node
	maxItems = 4096 // inputs and outputs of one node or of the graph, metadata properties
)

// Model is an ONNX file.
type Model struct {
	IRVersion       int64
	Opset           int64 // of the default domain
	Producer        string
	ProducerVersion string
	Version         int64
	Doc             string
	Graph           Graph
	Metadata        []Property // in file order; keys are unique
}

// Property is one entry of metadata_props.
type Property struct{ Key, Value string }

// Meta returns a metadata value, or "".
func (m *Model) Meta(key string) string {
	for _, p := range m.Metadata {
		if p.Key == key {
			return p.Value
		}
	}
	return ""
}

// Graph is a list of nodes in topological order.
type Graph struct {
	Name         string
	Nodes        []Node
	Initializers []Tensor
	Inputs       []Value
	Outputs      []Value
}

// Node is one operator.
type Node struct {
	Name, Op        string
	Inputs, Outputs []string
	Attrs           []Attr
}

// AttrType is the kind of an attribute's value.
type AttrType int32

// The attribute types understood here.
const (
	AttrFloat   AttrType = 1
	AttrInt     AttrType = 2
	AttrString  AttrType = 3
	AttrTensor  AttrType = 4
	AttrFloats  AttrType = 6
	AttrInts    AttrType = 7
	AttrStrings AttrType = 8
)

// Attr is a named value of a node; Type says which field holds it.
type Attr struct {
	Name    string
	Type    AttrType
	F       float32
	I       int64
	S       string
	T       *Tensor
	Floats  []float32
	Ints    []int64
	Strings []string
}

// Int returns an integer attribute.
func Int(name string, v int64) Attr { return Attr{Name: name, Type: AttrInt, I: v} }

// Ints returns an attribute that is a list of integers.
func Ints(name string, v ...int64) Attr { return Attr{Name: name, Type: AttrInts, Ints: v} }

// Tensor is a named constant; Type says which of the slices holds the values.
type Tensor struct {
	Name   string
	Shape  []int64
	Type   DataType
	Floats []float32
	Ints   []int64
}

// FloatTensor returns a float32 constant.
func FloatTensor(name string, data []float32, shape ...int64) Tensor {
	return Tensor{Name: name, Shape: shape, Type: Float32, Floats: data}
}

// IntTensor returns an int64 constant.
func IntTensor(name string, data []int64, shape ...int64) Tensor {
	return Tensor{Name: name, Shape: shape, Type: Int64, Ints: data}
}

// Value is an input or output of the graph.
type Value struct {
	Name  string
	Type  DataType
	Shape []Dim
	// HasShape tells an unknown shape from that of a scalar.
	HasShape bool
}

// Dim is a size, or a name for one that the caller chooses (Size -1).
type Dim struct {
	Size int64
	Name string
}

// FloatValue returns a float32 input or output. A size of -1 is the batch,
// called N.
func FloatValue(name string, shape ...int64) Value {
	v := Value{Name: name, Type: Float32, HasShape: true}
	for _, s := range shape {
		d := Dim{Size: s}
		if s < 0 {
			d = Dim{Size: -1, Name: "N"}
		}
		v.Shape = append(v.Shape, d)
	}
	return v
}
