package onnx

import (
	"encoding/binary"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// Marshal returns the file. Equal models give equal bytes.
func (m *Model) Marshal() []byte {
	var b []byte
	b = putInt(b, 1, m.IRVersion)
	b = putString(b, 2, m.Producer)
	b = putString(b, 3, m.ProducerVersion)
	if m.Version != 0 {
		b = putInt(b, 5, m.Version)
	}
	b = putString(b, 6, m.Doc)
	b = putBytes(b, 7, m.Graph.marshal())
	b = putBytes(b, 8, putInt(nil, 2, m.Opset))
	for _, p := range m.Metadata {
		b = putBytes(b, 14, putString(putString(nil, 1, p.Key), 2, p.Value))
	}
	return b
}

func (g *Graph) marshal() []byte {
	var b []byte
	for i := range g.Nodes {
		b = putBytes(b, 1, g.Nodes[i].marshal())
	}
	b = putString(b, 2, g.Name)
	for i := range g.Initializers {
		b = putBytes(b, 5, g.Initializers[i].marshal())
	}
	for i := range g.Inputs {
		b = putBytes(b, 11, g.Inputs[i].marshal())
	}
	for i := range g.Outputs {
		b = putBytes(b, 12, g.Outputs[i].marshal())
	}
	return b
}

func (n *Node) marshal() []byte {
	var b []byte
	for _, s := range n.Inputs {
		b = putBytes(b, 1, []byte(s)) // an empty name means "not given" and must stay
	}
	for _, s := range n.Outputs {
		b = putBytes(b, 2, []byte(s))
	}
	b = putString(b, 3, n.Name)
	b = putString(b, 4, n.Op)
	for i := range n.Attrs {
		b = putBytes(b, 5, n.Attrs[i].marshal())
	}
	return b
}

func (a *Attr) marshal() []byte {
	b := putString(nil, 1, a.Name)
	switch a.Type {
	case AttrFloat:
		b = protowire.AppendFixed32(protowire.AppendTag(b, 2, protowire.Fixed32Type), math.Float32bits(a.F))
	case AttrInt:
		b = putInt(b, 3, a.I)
	case AttrString:
		b = putBytes(b, 4, []byte(a.S))
	case AttrTensor:
		b = putBytes(b, 5, a.T.marshal())
	case AttrFloats:
		for _, f := range a.Floats {
			b = protowire.AppendFixed32(protowire.AppendTag(b, 7, protowire.Fixed32Type), math.Float32bits(f))
		}
	case AttrInts:
		for _, v := range a.Ints {
			b = putInt(b, 8, v)
		}
	case AttrStrings:
		for _, s := range a.Strings {
			b = putBytes(b, 9, []byte(s))
		}
	}
	return putInt(b, 20, int64(a.Type))
}

func (t *Tensor) marshal() []byte {
	var b, raw []byte
	for _, d := range t.Shape {
		b = putInt(b, 1, d)
	}
	b = putInt(b, 2, int64(t.Type))
	b = putString(b, 8, t.Name)
	for _, f := range t.Floats {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(f))
	}
	for _, v := range t.Ints {
		raw = binary.LittleEndian.AppendUint64(raw, uint64(v))
	}
	return putBytes(b, 9, raw)
}

func (v *Value) marshal() []byte {
	tensor := putInt(nil, 1, int64(v.Type))
	if v.HasShape {
		var shape []byte
		for _, d := range v.Shape {
			var dim []byte
			if d.Size >= 0 {
				dim = putInt(nil, 1, d.Size)
			} else {
				dim = putString(nil, 2, d.Name)
			}
			shape = putBytes(shape, 1, dim)
		}
		tensor = putBytes(tensor, 2, shape)
	}
	return putBytes(putString(nil, 1, v.Name), 2, putBytes(nil, 1, tensor))
}

func putInt(b []byte, num protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), uint64(v))
}

func putBytes(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

func putString(b []byte, num protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
}
