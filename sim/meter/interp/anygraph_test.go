package interp

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/sim/meter/onnx"
)

// TestAnyGraph draws well-formed files with senseless shapes and attributes,
// which mutated bytes seldom reach: whatever loads either answers with as many
// values as its shape says or returns a typed error, within the limits.
func TestAnyGraph(t *testing.T) {
	sizes := rapid.SampledFrom([]int64{0, 1, 1, 2, 2, 3, 4, 5, 8, 300, 1 << 16, 1 << 27})
	ran := 0
	rapid.Check(t, func(t *rapid.T) {
		shape := func(name string) []int64 {
			return rapid.OneOf(rapid.SliceOfN(sizes, 4, 4), rapid.SliceOfN(sizes, 2, 2), rapid.SliceOfN(sizes, 0, 5)).Draw(t, name)
		}
		var consts []onnx.Tensor
		for _, name := range []string{"a", "b", "c"} {
			dims := shape(name)
			n, err := onnx.Elements(dims)
			if err != nil || n > 4096 {
				dims, n = []int64{2, 2}, 4
			}
			consts = append(consts, onnx.FloatTensor(name, make([]float32, n), dims...))
		}
		target := rapid.SliceOfN(rapid.SampledFrom([]int64{-1, 0, 0, 1, 2, 4, 1 << 27}), 0, 4).Draw(t, "target")
		consts = append(consts, onnx.IntTensor("s", target, int64(len(target))))
		var nodes []onnx.Node
		for range rapid.IntRange(1, 4).Draw(t, "nodes") {
			nodes = append(nodes, anyNode(t))
		}
		in := shape("input")
		n, err := onnx.Elements(in)
		if err != nil || n > 1<<14 {
			in, n = []int64{1, 2, 5, 5}, 50
		}
		s, err := Load(chain(in, consts, nodes...).Marshal(), Limits{Values: 1 << 16, MACs: 1 << 18})
		if err != nil {
			if !errors.Is(err, ErrUnsupported) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		out, _, err := s.Run(t.Context(), []Tensor{{Name: "x", Shape: in, Data: make([]float32, n)}})
		if err != nil {
			if !errors.Is(err, ErrShape) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		ran++
		if got, err := onnx.Elements(out[0].Shape); err != nil || got != len(out[0].Data) {
			t.Fatalf("output of shape %v with %d values", out[0].Shape, len(out[0].Data))
		}
	})
	if ran == 0 {
		t.Error("no graph ever ran: the test shows nothing")
	}
}

func anyNode(t *rapid.T) onnx.Node {
	op := rapid.SampledFrom([]string{"Conv", "MaxPool", "Gemm", "MatMul", "Add", "Div", "Relu", "Identity", "Softmax", "Flatten", "Reshape"}).Draw(t, "op")
	n := mk(op)
	name := rapid.SampledFrom([]string{"a", "b", "c"})
	numbers := func(attr string, most int64, count int) {
		if rapid.Bool().Draw(t, attr) {
			n.Attrs = append(n.Attrs, onnx.Ints(attr, rapid.SliceOfN(rapid.Int64Range(0, most), count, count).Draw(t, attr+" values")...))
		}
	}
	number := func(attr string, least, most int64) {
		if rapid.Bool().Draw(t, attr) {
			n.Attrs = append(n.Attrs, onnx.Int(attr, rapid.Int64Range(least, most).Draw(t, attr+" value")))
		}
	}
	switch op {
	case "Conv", "MaxPool":
		if op == "Conv" {
			n = with(n, name.Draw(t, "weights"))
			number("group", 0, 3)
		} else {
			n.Attrs = append(n.Attrs, onnx.Ints("kernel_shape", rapid.SliceOfN(rapid.Int64Range(1, 3), 2, 2).Draw(t, "kernel")...))
			number("ceil_mode", 0, 1)
		}
		numbers("strides", 4, 2)
		numbers("dilations", 1<<16, 2)
		numbers("pads", 1<<16, 4)
		if rapid.Bool().Draw(t, "auto") {
			n.Attrs = append(n.Attrs, onnx.Attr{Name: "auto_pad", Type: onnx.AttrString,
				S: rapid.SampledFrom([]string{"VALID", "SAME_UPPER", "SAME_LOWER", "OTHER"}).Draw(t, "auto_pad")})
		}
	case "Gemm":
		n = with(n, name.Draw(t, "weights"), name.Draw(t, "bias"))
		number("transA", 0, 1)
		number("transB", 0, 1)
	case "MatMul", "Add", "Div":
		n = with(n, name.Draw(t, "second"))
	case "Softmax", "Flatten":
		number("axis", -5, 5)
	case "Reshape":
		n = with(n, "s")
		number("allowzero", 0, 1)
	}
	return n
}
