// Package interp runs ONNX models on the CPU: small float32 networks of the
// operators listed in ops.go. It owns what the operators mean, their checks
// and the limits on what a model may ask for; reading files is package onnx's
// matter. A Session never changes after Compile and may run on many goroutines
// at once; a run allocates nothing but its outputs once its buffers are warm.
// The packages of sim import it.
package interp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/skein-fleet/skein/sim/meter/onnx"
)

// Errors of Compile and Run, wrapped with the node or tensor they are about.
var (
	// ErrUnsupported is returned by Compile for a model that is well formed
	// but needs something that this interpreter does not have.
	ErrUnsupported = errors.New("model needs an unsupported feature")
	// ErrShape is returned by Run when tensors do not fit each other.
	ErrShape = errors.New("shapes do not fit")
	// ErrInput is returned by Run for inputs that the model does not take.
	ErrInput = errors.New("input does not fit the model")
	// ErrTooLarge is returned by Run when it would pass a limit.
	ErrTooLarge = errors.New("run is too large")
)

// The operator sets understood.
const (
	MinOpset = 13
	MaxOpset = 25
)

// Limits bound one run. A zero field takes the default.
type Limits struct {
	Values int64 // float32 values in all intermediate tensors together, 16 Mi
	MACs   int64 // multiply-accumulates, 2^36
}

// Tensor is a named float32 tensor in row-major order.
type Tensor struct {
	Name  string
	Shape []int64
	Data  []float32
}

// Stats says what a run cost.
type Stats struct {
	MACs   int64 // multiply-accumulates of Conv, Gemm and MatMul
	Values int64 // float32 values in the intermediate tensors
}

// Session is a compiled model.
type Session struct {
	model   *onnx.Model
	limits  Limits
	consts  []value // by value number; those that are not constant are empty
	nodes   []node
	inputs  []int // value numbers of the graph's inputs
	outputs []int
	weights int64
	pool    sync.Pool // of *work
}

// value is a tensor during a run.
type value struct {
	shape []int
	data  []float32
}

// node is one operator, bound to value numbers.
type node struct {
	label string // for errors
	in    []int  // -1 where an optional input is not given
	out   int
	op    op
}

// op computes one node. It writes to w.take(out, …) only, never to its inputs.
type op func(w *work, in []*value, out *value) error

// Signature lists what the model takes and gives.
func (s *Session) Signature() (inputs, outputs []onnx.Value) {
	for _, v := range s.model.Graph.Inputs {
		if !slices.ContainsFunc(s.model.Graph.Initializers, func(t onnx.Tensor) bool { return t.Name == v.Name }) {
			inputs = append(inputs, v)
		}
	}
	return inputs, s.model.Graph.Outputs
}

// Meta returns a metadata property of the model, or "".
func (s *Session) Meta(key string) string { return s.model.Meta(key) }

// WeightBytes is what the constants occupy.
func (s *Session) WeightBytes() int64 { return 4 * s.weights }

// work is the memory of one run; it is reused.
type work struct {
	limits Limits
	stats  Stats
	values []value
	bufs   [][]float32 // by value number
	col    []float32
	tmp    []float32
	in     []*value
	at     int // value number of the output of the node that runs
}

// size multiplies sizes. As in onnx.Elements a size of 0 does not excuse the
// others, so that no later product of sizes can overflow.
func (w *work) size(shape []int) (int64, error) {
	n, bound := int64(1), int64(1)
	for _, d := range shape {
		if d < 0 || int64(d) > w.limits.Values || bound*int64(max(d, 1)) > w.limits.Values {
			return 0, fmt.Errorf("%w: a tensor of shape %v: the limit is %d values", ErrTooLarge, shape, w.limits.Values)
		}
		n, bound = n*int64(d), bound*int64(max(d, 1))
	}
	return n, nil
}

// take gives out a shape and the buffer of the running node.
func (w *work) take(out *value, shape ...int) error {
	n, err := w.size(shape)
	if err != nil {
		return err
	}
	if w.stats.Values += n; w.stats.Values > w.limits.Values {
		return fmt.Errorf("%w: more than %d values", ErrTooLarge, w.limits.Values)
	}
	w.bufs[w.at] = grow(w.bufs[w.at], int(n))
	out.shape, out.data = append(out.shape[:0], shape...), w.bufs[w.at]
	return nil
}

// scratch checks that a temporary buffer of n values is within the limit.
func (w *work) scratch(n int64) error {
	if n > w.limits.Values {
		return fmt.Errorf("%w: a patch matrix of %d values: the limit is %d", ErrTooLarge, n, w.limits.Values)
	}
	return nil
}

// spend counts multiply-accumulates before they are made.
func (w *work) spend(factors ...int) error {
	if slices.Contains(factors, 0) {
		return nil
	}
	n := int64(1)
	for _, f := range factors {
		if n > w.limits.MACs/int64(f) {
			return fmt.Errorf("%w: more than %d multiply-accumulates", ErrTooLarge, w.limits.MACs)
		}
		n *= int64(f)
	}
	if w.stats.MACs += n; w.stats.MACs > w.limits.MACs {
		return fmt.Errorf("%w: more than %d multiply-accumulates", ErrTooLarge, w.limits.MACs)
	}
	return nil
}

func grow(b []float32, n int) []float32 {
	if cap(b) < n {
		return make([]float32, n)
	}
	return b[:n]
}

// Run computes the outputs. Every input must be given once, by name; the
// inputs are not changed, and the outputs are the caller's.
func (s *Session) Run(ctx context.Context, inputs []Tensor) ([]Tensor, Stats, error) {
	w, _ := s.pool.Get().(*work)
	if w == nil {
		w = &work{limits: s.limits, values: make([]value, len(s.consts)), bufs: make([][]float32, len(s.consts))}
	}
	defer func() {
		for _, i := range s.inputs {
			w.values[i].data = nil // the caller's
		}
		s.pool.Put(w)
	}()
	w.stats = Stats{}
	for i, c := range s.consts {
		if c.shape != nil {
			w.values[i] = c
		}
	}
	if err := s.bind(w, inputs); err != nil {
		return nil, Stats{}, err
	}
	for i := range s.nodes {
		n := &s.nodes[i]
		if err := ctx.Err(); err != nil {
			return nil, Stats{}, fmt.Errorf("run stopped at %s: %w", n.label, err)
		}
		w.in = w.in[:0]
		for _, v := range n.in {
			if v < 0 {
				w.in = append(w.in, nil)
				continue
			}
			w.in = append(w.in, &w.values[v])
		}
		w.at = n.out
		if err := n.op(w, w.in, &w.values[n.out]); err != nil {
			return nil, Stats{}, fmt.Errorf("%s: %w", n.label, err)
		}
	}
	outs := make([]Tensor, len(s.outputs))
	for i, v := range s.outputs {
		val := &w.values[v]
		outs[i] = Tensor{Name: s.model.Graph.Outputs[i].Name, Shape: to64(val.shape), Data: slices.Clone(val.data)}
	}
	return outs, w.stats, nil
}

func to64(shape []int) []int64 {
	out := make([]int64, len(shape))
	for i, d := range shape {
		out[i] = int64(d)
	}
	return out
}

// bind checks the inputs and puts them in place.
func (s *Session) bind(w *work, inputs []Tensor) error {
	want, _ := s.Signature()
	if len(inputs) != len(want) {
		return fmt.Errorf("%w: %d inputs given, the model takes %d", ErrInput, len(inputs), len(want))
	}
	for i, v := range want {
		at := slices.IndexFunc(inputs, func(t Tensor) bool { return t.Name == v.Name })
		if at < 0 {
			return fmt.Errorf("%w: input %q is not given", ErrInput, v.Name)
		}
		t := inputs[at]
		if v.HasShape && len(v.Shape) != len(t.Shape) {
			return fmt.Errorf("%w: input %q has shape %v, the model takes %s", ErrInput, v.Name, t.Shape, shapeText(v))
		}
		n, err := onnx.Elements(t.Shape)
		if err != nil || n != len(t.Data) || int64(n) > s.limits.Values {
			return fmt.Errorf("%w: input %q has shape %v and %d values", ErrInput, v.Name, t.Shape, len(t.Data))
		}
		val := &w.values[s.inputs[i]]
		val.shape, val.data = val.shape[:0], t.Data
		for j, d := range t.Shape {
			if v.HasShape && v.Shape[j].Size >= 0 && v.Shape[j].Size != d {
				return fmt.Errorf("%w: input %q has shape %v, the model takes %s", ErrInput, v.Name, t.Shape, shapeText(v))
			}
			val.shape = append(val.shape, int(d))
		}
	}
	return nil
}

func shapeText(v onnx.Value) string {
	b := []byte{'['}
	for i, d := range v.Shape {
		if i > 0 {
			b = append(b, ' ')
		}
		switch {
		case d.Size >= 0:
			b = fmt.Append(b, d.Size)
		case d.Name != "":
			b = append(b, d.Name...)
		default:
			b = append(b, '?')
		}
	}
	return string(append(b, ']'))
}
