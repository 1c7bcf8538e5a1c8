// Package onnxtest writes small ONNX models for tests of whatever reads or
// serves them. Tests import it.
package onnxtest

import (
	"encoding/binary"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// Affine is a model y = scale*x + shift, FP32, of shape [-1 n], for any ONNX
// runtime: opset 13. Its input is "x", its output "y".
func Affine(scale, shift float32, n int64) []byte {
	str := func(b []byte, num protowire.Number, s string) []byte {
		return protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), s)
	}
	msg := func(b []byte, num protowire.Number, m []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), m)
	}
	num := func(b []byte, n protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
	}
	node := func(op, name string, in []string, out string) []byte {
		var b []byte
		for _, i := range in {
			b = str(b, 1, i)
		}
		return str(str(str(b, 2, out), 3, name), 4, op)
	}
	weight := func(name string, v float32) []byte {
		var raw [4]byte
		binary.LittleEndian.PutUint32(raw[:], math.Float32bits(v))
		b := num(nil, 1, 1) // dims: [1]
		b = num(b, 2, 1)    // FLOAT
		b = str(b, 8, name)
		return msg(b, 9, raw[:])
	}
	value := func(name string) []byte {
		shape := msg(nil, 1, str(nil, 2, "batch"))
		shape = msg(shape, 1, num(nil, 1, uint64(n)))
		tensor := msg(num(nil, 1, 1), 2, shape)
		return msg(str(nil, 1, name), 2, msg(nil, 1, tensor))
	}
	var graph []byte
	graph = msg(graph, 1, node("Mul", "scaled", []string{"x", "scale"}, "scaled"))
	graph = msg(graph, 1, node("Add", "shifted", []string{"scaled", "shift"}, "y"))
	graph = str(graph, 2, "affine")
	graph = msg(graph, 5, weight("scale", scale))
	graph = msg(graph, 5, weight("shift", shift))
	graph = msg(graph, 11, value("x"))
	graph = msg(graph, 12, value("y"))
	model := num(nil, 1, 8) // IR version
	model = msg(model, 7, graph)
	return msg(model, 8, num(str(nil, 1, ""), 2, 13))
}
