package onnx

import (
	"encoding/binary"
	"fmt"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// Parse reads an ONNX file. Every error wraps ErrBadModel.
func Parse(b []byte) (*Model, error) {
	if len(b) > MaxBytes {
		return nil, bad("%d bytes: at most %d", len(b), MaxBytes)
	}
	m := &Model{Opset: -1}
	seen := map[string]bool{}
	graphs := 0
	err := fields(b, func(f field) (err error) {
		switch f.num {
		case 1:
			m.IRVersion, err = f.int()
		case 2:
			m.Producer, err = f.text()
		case 3:
			m.ProducerVersion, err = f.text()
		case 5:
			m.Version, err = f.int()
		case 6:
			m.Doc, err = f.text()
		case 7:
			graphs++
			err = m.Graph.parse(f)
		case 8:
			err = m.parseOpset(f)
		case 14:
			var p Property
			if len(m.Metadata) == maxItems {
				return bad("more than %d metadata properties", maxItems)
			}
			if p, err = parseProperty(f); err == nil && (p.Key == "" || seen[p.Key]) {
				err = bad("metadata key %q is empty or there twice", p.Key)
			}
			seen[p.Key] = true
			m.Metadata = append(m.Metadata, p)
		case 20, 25:
			err = bad("functions and training graphs are not supported")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	switch {
	case graphs != 1:
		return nil, bad("%d graphs: want one", graphs)
	case m.IRVersion < 3 || m.IRVersion > 100:
		return nil, bad("IR version %d: want 3 or later", m.IRVersion)
	case m.Opset < 1:
		return nil, bad("no operator set of the default domain")
	}
	return m, m.Graph.Check()
}

func (m *Model) parseOpset(f field) error {
	var domain string
	var version int64
	err := f.message(func(f field) (err error) {
		switch f.num {
		case 1:
			domain, err = f.text()
		case 2:
			version, err = f.int()
		}
		return err
	})
	if err == nil && (domain == "" || domain == "ai.onnx") {
		if m.Opset != -1 {
			return bad("the default operator set is named twice")
		}
		m.Opset = version
	}
	return err
}

func parseProperty(f field) (p Property, err error) {
	err = f.message(func(f field) (err error) {
		switch f.num {
		case 1:
			p.Key, err = f.text()
		case 2:
			p.Value, err = f.text()
		}
		return err
	})
	return p, err
}

func (g *Graph) parse(f field) error {
	return f.message(func(f field) (err error) {
		switch f.num {
		case 1:
			if len(g.Nodes) == maxNodes {
				return bad("more than %d nodes", maxNodes)
			}
			var n Node
			err = n.parse(f)
			g.Nodes = append(g.Nodes, n)
		case 2:
			g.Name, err = f.text()
		case 5:
			if len(g.Initializers) == maxNodes {
				return bad("more than %d initializers", maxNodes)
			}
			var t Tensor
			err = t.parse(f)
			g.Initializers = append(g.Initializers, t)
		case 11, 12:
			list := &g.Inputs
			if f.num == 12 {
				list = &g.Outputs
			}
			if len(*list) == maxItems {
				return bad("more than %d inputs or outputs", maxItems)
			}
			var v Value
			err = v.parse(f)
			*list = append(*list, v)
		case 15:
			err = bad("sparse initializers are not supported")
		}
		return err
	})
}

func (n *Node) parse(f field) error {
	err := f.message(func(f field) (err error) {
		if len(n.Inputs)+len(n.Outputs) > maxItems {
			return bad("more than %d inputs and outputs", maxItems)
		}
		var s string
		switch f.num {
		case 1:
			s, err = f.name()
			n.Inputs = append(n.Inputs, s)
		case 2:
			s, err = f.name()
			n.Outputs = append(n.Outputs, s)
		case 3:
			n.Name, err = f.name()
		case 4:
			n.Op, err = f.name()
		case 5:
			if len(n.Attrs) == maxAttrs {
				return bad("more than %d attributes", maxAttrs)
			}
			var a Attr
			err = a.parse(f)
			n.Attrs = append(n.Attrs, a)
		case 7:
			if s, err = f.name(); err == nil && s != "" && s != "ai.onnx" {
				err = bad("operators of domain %q are not supported", s)
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("node %q (%s): %w", n.Name, n.Op, err)
	}
	return nil
}

func (a *Attr) parse(f field) error {
	err := f.message(func(f field) (err error) {
		var s string
		switch f.num {
		case 1:
			a.Name, err = f.name()
		case 2:
			a.F, err = f.float()
		case 3:
			a.I, err = f.int()
		case 4:
			a.S, err = f.name()
		case 5:
			a.T = &Tensor{}
			err = a.T.parse(f)
		case 7:
			a.Floats, err = f.floats(a.Floats)
		case 8:
			a.Ints, err = f.ints(a.Ints)
		case 9:
			s, err = f.name()
			a.Strings = append(a.Strings, s)
		case 20:
			var v int64
			v, err = f.int()
			a.Type = AttrType(v)
		case 6, 10, 11, 14, 15, 21, 22, 23:
			err = bad("graphs, lists of tensors and references are not supported as attributes")
		}
		return err
	})
	if err == nil {
		switch a.Type {
		case AttrFloat, AttrInt, AttrString, AttrFloats, AttrInts, AttrStrings:
		case AttrTensor:
			if a.T == nil {
				err = bad("no tensor")
			}
		default:
			err = bad("type %d is not supported", a.Type)
		}
	}
	if err != nil {
		return fmt.Errorf("attribute %q: %w", a.Name, err)
	}
	return nil
}

func (t *Tensor) parse(f field) error {
	var raw []byte
	hasRaw := false
	err := f.message(func(f field) (err error) {
		switch f.num {
		case 1:
			if t.Shape, err = f.ints(t.Shape); err == nil && len(t.Shape) > maxRank {
				err = bad("more than %d dimensions", maxRank)
			}
		case 2:
			var v int64
			v, err = f.int()
			t.Type = DataType(v)
		case 4:
			t.Floats, err = f.floats(t.Floats)
		case 7:
			t.Ints, err = f.ints(t.Ints)
		case 8:
			t.Name, err = f.name()
		case 9:
			raw, err = f.bytes()
			hasRaw = true
		case 14:
			var v int64
			if v, err = f.int(); err == nil && v != 0 {
				err = bad("data outside of the file is not supported")
			}
		case 3, 13:
			err = bad("segments and external data are not supported")
		}
		return err
	})
	if err == nil {
		err = t.take(raw, hasRaw)
	}
	if err != nil {
		return fmt.Errorf("tensor %q: %w", t.Name, err)
	}
	return nil
}

// take moves raw data into the slices and checks that there are as many
// values as the shape says.
func (t *Tensor) take(raw []byte, hasRaw bool) error {
	n, err := Elements(t.Shape)
	if err != nil {
		return err
	}
	if hasRaw && len(t.Floats)+len(t.Ints) > 0 {
		return bad("raw data beside typed data")
	}
	switch {
	case t.Type == Float32 && hasRaw && len(raw) == 4*n:
		t.Floats = make([]float32, n)
		for i := range t.Floats {
			t.Floats[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		}
	case t.Type == Int64 && hasRaw && len(raw) == 8*n:
		t.Ints = make([]int64, n)
		for i := range t.Ints {
			t.Ints[i] = int64(binary.LittleEndian.Uint64(raw[8*i:]))
		}
	case t.Type == Float32 && !hasRaw && len(t.Floats) == n && len(t.Ints) == 0:
	case t.Type == Int64 && !hasRaw && len(t.Ints) == n && len(t.Floats) == 0:
	case t.Type != Float32 && t.Type != Int64:
		return bad("element type %d is not supported: want 1 (float32) or 7 (int64)", t.Type)
	default:
		return bad("shape %v needs %d values: there are %d floats, %d integers, %d raw bytes", t.Shape, n, len(t.Floats), len(t.Ints), len(raw))
	}
	return nil
}

// Elements multiplies a shape's sizes; it refuses negative sizes and products
// that no file within MaxBytes could hold. A size of 0 does not excuse the
// others: no product of some of the sizes is beyond the bound either.
func Elements(shape []int64) (int, error) {
	n, bound := int64(1), int64(1)
	for _, d := range shape {
		if d < 0 || d > MaxBytes || bound*max(d, 1) > MaxBytes {
			return 0, bad("shape %v is negative or too large", shape)
		}
		n, bound = n*d, bound*max(d, 1)
	}
	return int(n), nil
}

func (v *Value) parse(f field) error {
	err := f.message(func(f field) (err error) {
		switch f.num {
		case 1:
			v.Name, err = f.name()
		case 2:
			err = f.message(v.parseType)
		}
		return err
	})
	if err == nil && v.Type != Float32 && v.Type != Int64 {
		err = bad("element type %d is not supported: want 1 (float32) or 7 (int64)", v.Type)
	}
	if err != nil {
		return fmt.Errorf("value %q: %w", v.Name, err)
	}
	return nil
}

func (v *Value) parseType(f field) error {
	if f.num != 1 {
		return bad("only tensors are supported")
	}
	return f.message(func(f field) (err error) {
		switch f.num {
		case 1:
			var t int64
			t, err = f.int()
			v.Type = DataType(t)
		case 2:
			v.HasShape = true
			err = f.message(v.parseDim)
		}
		return err
	})
}

func (v *Value) parseDim(f field) error {
	if f.num != 1 {
		return nil
	}
	if len(v.Shape) == maxRank {
		return bad("more than %d dimensions", maxRank)
	}
	d := Dim{Size: -1}
	err := f.message(func(f field) (err error) {
		switch f.num {
		case 1:
			if d.Size, err = f.int(); err == nil && (d.Size < 0 || d.Size > MaxBytes) {
				err = bad("dimension %d", d.Size)
			}
		case 2:
			d.Name, err = f.name()
		}
		return err
	})
	v.Shape = append(v.Shape, d)
	return err
}

// Check holds the graph to single assignment and topological order. Parse has
// done it; it is for graphs that were built.
func (g *Graph) Check() error {
	known := map[string]bool{}
	for _, t := range g.Initializers {
		if t.Name == "" || known[t.Name] {
			return bad("initializer %q has no name of its own", t.Name)
		}
		known[t.Name] = true
	}
	inputs := map[string]bool{}
	for _, v := range g.Inputs {
		if v.Name == "" || inputs[v.Name] {
			return bad("input %q has no name of its own", v.Name)
		}
		inputs[v.Name], known[v.Name] = true, true
	}
	for i, n := range g.Nodes {
		for _, s := range n.Inputs {
			if s != "" && !known[s] {
				return bad("node %d %q (%s) reads %q, which nothing before it makes", i, n.Name, n.Op, s)
			}
		}
		for _, s := range n.Outputs {
			if s != "" && known[s] {
				return bad("node %d %q (%s) makes %q a second time", i, n.Name, n.Op, s)
			}
			known[s] = true
		}
	}
	if len(g.Outputs) == 0 {
		return bad("the graph has no output")
	}
	for _, v := range g.Outputs {
		if v.Name == "" || !known[v.Name] {
			return bad("nothing makes the output %q", v.Name)
		}
	}
	return nil
}

func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBadModel, fmt.Sprintf(format, args...))
}

// field is one protobuf field; only the part that its wire type has is set.
type field struct {
	num protowire.Number
	typ protowire.Type
	raw []byte // BytesType
	v   uint64 // VarintType, Fixed32Type, Fixed64Type
}

// fields calls f for each field of a message. Fields that no reader knows are
// skipped, as protobuf wants; groups are refused.
func fields(b []byte, f func(field) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return bad("broken field tag: %v", protowire.ParseError(n))
		}
		b = b[n:]
		x := field{num: num, typ: typ}
		switch typ {
		case protowire.VarintType:
			x.v, n = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var v uint32
			v, n = protowire.ConsumeFixed32(b)
			x.v = uint64(v)
		case protowire.Fixed64Type:
			x.v, n = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			x.raw, n = protowire.ConsumeBytes(b)
		default:
			return bad("field %d has wire type %d", num, typ)
		}
		if n < 0 {
			return bad("field %d: %v", num, protowire.ParseError(n))
		}
		b = b[n:]
		if err := f(x); err != nil {
			return err
		}
	}
	return nil
}

func (f field) want(t protowire.Type) error {
	if f.typ != t {
		return bad("field %d has wire type %d: want %d", f.num, f.typ, t)
	}
	return nil
}

func (f field) int() (int64, error) { return int64(f.v), f.want(protowire.VarintType) }

func (f field) bytes() ([]byte, error) { return f.raw, f.want(protowire.BytesType) }

func (f field) float() (float32, error) {
	return math.Float32frombits(uint32(f.v)), f.want(protowire.Fixed32Type)
}

func (f field) text() (string, error) {
	if err := f.want(protowire.BytesType); err != nil {
		return "", err
	}
	if !utf8.Valid(f.raw) {
		return "", bad("field %d is not UTF-8", f.num)
	}
	return string(f.raw), nil
}

func (f field) name() (string, error) {
	if len(f.raw) > maxName {
		return "", bad("field %d is %d bytes long: at most %d", f.num, len(f.raw), maxName)
	}
	return f.text()
}

func (f field) message(each func(field) error) error {
	if err := f.want(protowire.BytesType); err != nil {
		return err
	}
	return fields(f.raw, each)
}

// ints appends one integer, or many when they are packed.
func (f field) ints(to []int64) ([]int64, error) {
	if f.typ == protowire.VarintType {
		return append(to, int64(f.v)), nil
	}
	if err := f.want(protowire.BytesType); err != nil {
		return nil, err
	}
	for b := f.raw; len(b) > 0; {
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return nil, bad("field %d: %v", f.num, protowire.ParseError(n))
		}
		to, b = append(to, int64(v)), b[n:]
	}
	return to, nil
}

func (f field) floats(to []float32) ([]float32, error) {
	if f.typ == protowire.Fixed32Type {
		return append(to, math.Float32frombits(uint32(f.v))), nil
	}
	if err := f.want(protowire.BytesType); err != nil {
		return nil, err
	}
	if len(f.raw)%4 != 0 {
		return nil, bad("field %d: %d bytes of packed floats", f.num, len(f.raw))
	}
	for b := f.raw; len(b) > 0; b = b[4:] {
		to = append(to, math.Float32frombits(binary.LittleEndian.Uint32(b)))
	}
	return to, nil
}
