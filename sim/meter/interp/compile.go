package interp

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/sim/meter/onnx"
)

// Compile binds a model's nodes to operators. It refuses what Run could not
// do: unknown operators, attributes, operator sets, and shapes of weights that
// can never fit.
func Compile(m *onnx.Model, limits Limits) (*Session, error) {
	if m.Opset < MinOpset || m.Opset > MaxOpset {
		return nil, fmt.Errorf("%w: operator set %d: want %d to %d", ErrUnsupported, m.Opset, MinOpset, MaxOpset)
	}
	if err := m.Graph.Check(); err != nil {
		return nil, err
	}
	limits.Values = min(cmp.Or(limits.Values, 16<<20), 1<<31)
	limits.MACs = cmp.Or(limits.MACs, 1<<36)
	s := &Session{model: m, limits: limits}
	c := &compiler{s: s, numbers: map[string]int{}, ints: map[string][]int64{},
		flipped: map[string][]float32{}, ops: builders()}
	for i := range m.Graph.Initializers {
		c.constant(m.Graph.Initializers[i].Name, &m.Graph.Initializers[i])
	}
	inputs, outputs := s.Signature()
	for _, v := range inputs {
		if v.Type != onnx.Float32 {
			return nil, fmt.Errorf("%w: input %q is not float32", ErrUnsupported, v.Name)
		}
		s.inputs = append(s.inputs, c.number(v.Name))
	}
	for i := range m.Graph.Nodes {
		if err := c.node(i, &m.Graph.Nodes[i]); err != nil {
			return nil, err
		}
	}
	for _, v := range outputs {
		if c.ints[v.Name] != nil || v.Type != onnx.Float32 {
			return nil, fmt.Errorf("%w: output %q is not float32", ErrUnsupported, v.Name)
		}
		s.outputs = append(s.outputs, c.number(v.Name))
	}
	return s, nil
}

// Load parses and compiles the bytes of a file.
func Load(b []byte, limits Limits) (*Session, error) {
	m, err := onnx.Parse(b)
	if err != nil {
		return nil, err
	}
	return Compile(m, limits)
}

type compiler struct {
	s       *Session
	numbers map[string]int     // of float values
	ints    map[string][]int64 // integer constants; not nil
	flipped map[string][]float32
	ops     map[string]builder
}

func (c *compiler) number(name string) int {
	n, ok := c.numbers[name]
	if !ok {
		n = len(c.s.consts)
		c.numbers[name] = n
		c.s.consts = append(c.s.consts, value{})
	}
	return n
}

func (c *compiler) constant(name string, t *onnx.Tensor) {
	if t.Type == onnx.Int64 {
		c.ints[name] = append([]int64{}, t.Ints...)
		return
	}
	shape := make([]int, len(t.Shape))
	for i, d := range t.Shape {
		shape[i] = int(d)
	}
	c.s.consts[c.number(name)] = value{shape: shape, data: t.Floats}
	c.s.weights += int64(len(t.Floats))
}

// fixed returns a float constant, or nil.
func (c *compiler) fixed(name string) *value {
	if n, ok := c.numbers[name]; ok && c.s.consts[n].shape != nil {
		return &c.s.consts[n]
	}
	return nil
}

// builder makes an operator from a node's attributes and constants.
type builder struct {
	least, most int // inputs
	build       func(c *compiler, n *onnx.Node, a *attrs) (op, error)
}

// builders is the list of operators. Constant is apart: it runs at compile time.
func builders() map[string]builder {
	return map[string]builder{
		"Conv": {2, 3, buildConv}, "MaxPool": {1, 1, buildMaxPool},
		"Gemm": {2, 3, buildGemm}, "MatMul": {2, 2, buildMatMul},
		"Add": {2, 2, binary(add)}, "Sub": {2, 2, binary(sub)}, "Mul": {2, 2, binary(mul)}, "Div": {2, 2, binary(div)},
		"Relu": {1, 1, plain(relu)}, "Identity": {1, 1, plain(identity)}, "Softmax": {1, 1, buildSoftmax},
		"Flatten": {1, 1, buildFlatten}, "Reshape": {2, 2, buildReshape},
	}
}

// Ops lists the operators, sorted.
func Ops() []string {
	names := []string{"Constant"}
	for name := range builders() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (c *compiler) node(i int, n *onnx.Node) error {
	label := fmt.Sprintf("node %d %q (%s)", i, n.Name, n.Op)
	a := newAttrs(n)
	if n.Op == "Constant" {
		if err := c.constantNode(n, a); err != nil {
			return fmt.Errorf("%s: %w", label, err)
		}
		return nil
	}
	b, ok := c.ops[n.Op]
	if !ok {
		return fmt.Errorf("%w: %s: the operator is not one of %s", ErrUnsupported, label, strings.Join(Ops(), ", "))
	}
	if len(n.Inputs) < b.least || len(n.Inputs) > b.most || len(n.Outputs) != 1 || n.Outputs[0] == "" {
		return fmt.Errorf("%w: %s: %d inputs and %d outputs: want %d to %d and one", ErrUnsupported, label,
			len(n.Inputs), len(n.Outputs), b.least, b.most)
	}
	run, err := b.build(c, n, a)
	if err = cmp.Or(err, a.done()); err != nil {
		return fmt.Errorf("%s: %w", label, err)
	}
	bound := node{label: label, op: run}
	for j, name := range n.Inputs {
		_, isInt := c.ints[name]
		switch {
		case isInt && n.Op == "Reshape" && j == 1:
			continue // taken at compile time
		case isInt:
			return fmt.Errorf("%w: %s: input %q is not float32", ErrUnsupported, label, name)
		case name == "" && j < b.least:
			return fmt.Errorf("%w: %s: input %d is not given", ErrUnsupported, label, j)
		case name == "":
			bound.in = append(bound.in, -1)
		default:
			bound.in = append(bound.in, c.number(name))
		}
	}
	bound.out = c.number(n.Outputs[0])
	c.s.nodes = append(c.s.nodes, bound)
	return nil
}

func (c *compiler) constantNode(n *onnx.Node, a *attrs) error {
	if len(n.Inputs) != 0 || len(n.Outputs) != 1 || n.Outputs[0] == "" || len(n.Attrs) != 1 {
		return fmt.Errorf("%w: want no input, one output, one attribute", ErrUnsupported)
	}
	v := n.Attrs[0]
	var t onnx.Tensor
	switch {
	case v.Name == "value" && v.Type == onnx.AttrTensor:
		t = *v.T
	case v.Name == "value_float" && v.Type == onnx.AttrFloat:
		t = onnx.FloatTensor("", []float32{v.F})
	case v.Name == "value_floats" && v.Type == onnx.AttrFloats:
		t = onnx.FloatTensor("", v.Floats, int64(len(v.Floats)))
	case v.Name == "value_int" && v.Type == onnx.AttrInt:
		t = onnx.IntTensor("", []int64{v.I})
	case v.Name == "value_ints" && v.Type == onnx.AttrInts:
		t = onnx.IntTensor("", v.Ints, int64(len(v.Ints)))
	default:
		return a.done()
	}
	c.constant(n.Outputs[0], &t)
	return nil
}

// attrs hands out attributes and remembers which were asked for.
type attrs struct {
	list []onnx.Attr
	used []bool
	err  error
}

func newAttrs(n *onnx.Node) *attrs { return &attrs{list: n.Attrs, used: make([]bool, len(n.Attrs))} }

func (a *attrs) find(name string, t onnx.AttrType) *onnx.Attr {
	for i := range a.list {
		if a.list[i].Name != name || a.used[i] {
			continue
		}
		a.used[i] = true
		if a.list[i].Type != t {
			a.err = cmp.Or(a.err, fmt.Errorf("%w: attribute %s has type %d", ErrUnsupported, name, a.list[i].Type))
			return nil
		}
		return &a.list[i]
	}
	return nil
}

func (a *attrs) int(name string, def int64) int64 {
	if v := a.find(name, onnx.AttrInt); v != nil {
		return v.I
	}
	return def
}

func (a *attrs) float(name string, def float32) float32 {
	if v := a.find(name, onnx.AttrFloat); v != nil {
		return v.F
	}
	return def
}

func (a *attrs) text(name, def string) string {
	if v := a.find(name, onnx.AttrString); v != nil {
		return v.S
	}
	return def
}

// sizes returns n integers between least and 65,536.
func (a *attrs) sizes(name string, n int, least int64, def []int) []int {
	v := a.find(name, onnx.AttrInts)
	if v == nil {
		return def
	}
	if len(v.Ints) != n {
		a.err = cmp.Or(a.err, fmt.Errorf("%w: attribute %s has %d values: want %d (two dimensions)", ErrUnsupported, name, len(v.Ints), n))
		return def
	}
	out := make([]int, n)
	for i, x := range v.Ints {
		if x < least || x > 1<<16 {
			a.err = cmp.Or(a.err, fmt.Errorf("%w: attribute %s is %v", ErrUnsupported, name, v.Ints))
			return def
		}
		out[i] = int(x)
	}
	return out
}

// only refuses a value of an attribute other than the one that is built.
func (a *attrs) only(name string, want int64) {
	if got := a.int(name, want); got != want {
		a.err = cmp.Or(a.err, fmt.Errorf("%w: attribute %s is %d: only %d is built", ErrUnsupported, name, got, want))
	}
}

// done reports a bad attribute, or one that nothing asked for.
func (a *attrs) done() error {
	for i, used := range a.used {
		if !used {
			return cmp.Or(a.err, fmt.Errorf("%w: attribute %s is unknown, given twice or of the wrong type", ErrUnsupported, a.list[i].Name))
		}
	}
	return a.err
}
