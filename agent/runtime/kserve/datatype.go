package kserve

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/skein-fleet/skein/agent/runtime"
)

// Typed is a request with the datatypes that the model takes.
func Typed(req runtime.Request, sig runtime.Signature) runtime.Request {
	req.Inputs = slices.Clone(req.Inputs)
	for i := range req.Inputs {
		t := &req.Inputs[i]
		for _, in := range sig.Inputs {
			if in.Name == t.Name && t.Datatype == "" {
				t.Datatype = otherType(in.Datatype)
			}
		}
	}
	return req
}

// wholeRange are the datatypes of whole numbers with their bounds.
var wholeRange = map[string][2]float64{
	"INT8": {math.MinInt8, math.MaxInt8}, "INT16": {math.MinInt16, math.MaxInt16},
	"INT32": {math.MinInt32, math.MaxInt32}, "INT64": {-1 << 53, 1 << 53},
	"UINT8": {0, math.MaxUint8}, "UINT16": {0, math.MaxUint16},
	"UINT32": {0, math.MaxUint32}, "UINT64": {0, 1 << 53},
}

// whole gives the values as whole numbers.
func whole(t runtime.Tensor, datatype string) ([]int64, error) {
	bounds := wholeRange[datatype]
	out := make([]int64, len(t.Data))
	for i, v := range t.Data {
		f := float64(v)
		if f != math.Trunc(f) || f < bounds[0] || f > bounds[1] {
			return nil, fmt.Errorf("%w: %q: value %d is %v, which %s cannot hold", ErrBadTensor, t.Name, i, v, datatype)
		}
		out[i] = int64(f)
	}
	return out, nil
}

func truths(t runtime.Tensor) ([]bool, error) {
	out := make([]bool, len(t.Data))
	for i, v := range t.Data {
		if v != 0 && v != 1 {
			return nil, fmt.Errorf("%w: %q: value %d is %v, which BOOL cannot hold", ErrBadTensor, t.Name, i, v)
		}
		out[i] = v == 1
	}
	return out, nil
}

// typedValues are the values as JSON has them.
func typedValues(t runtime.Tensor, datatype string) (any, error) {
	switch datatype {
	case DatatypeFP32, "FP64":
		return t.Data, nil
	case "BOOL":
		return truths(t)
	}
	if _, ok := wholeRange[datatype]; ok {
		return whole(t, datatype)
	}
	return nil, fmt.Errorf("%w: %q: datatype %s cannot be written as JSON numbers", ErrBadTensor, t.Name, datatype)
}

// width is the size of a value on the wire, 0 for what is no number.
func width(datatype string) int {
	switch datatype {
	case "BOOL", "INT8", "UINT8":
		return 1
	case "INT16", "UINT16", "FP16", "BF16":
		return 2
	case "INT32", "UINT32", DatatypeFP32:
		return 4
	case "INT64", "UINT64", "FP64":
		return 8
	}
	return 0
}

// packed writes the values in little-endian binary form.
func packed(t runtime.Tensor, datatype string) ([]byte, error) {
	size := width(datatype)
	if size == 0 {
		return nil, fmt.Errorf("%w: %q: datatype %q is no number", ErrBadTensor, t.Name, datatype)
	}
	out := make([]byte, 0, size*len(t.Data))
	put := func(bits uint64) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], bits)
		out = append(out, b[:size]...)
	}
	switch datatype {
	case DatatypeFP32, "FP64", "FP16", "BF16":
		for _, v := range t.Data {
			put(floatBits(v, datatype))
		}
		return out, nil
	case "BOOL":
		if _, err := truths(t); err != nil {
			return nil, err
		}
		for _, v := range t.Data {
			put(uint64(v))
		}
		return out, nil
	}
	list, err := whole(t, datatype)
	for _, v := range list {
		put(uint64(v))
	}
	return out, err
}

func floatBits(v float32, datatype string) uint64 {
	switch datatype {
	case "FP64":
		return math.Float64bits(float64(v))
	case "BF16":
		bits := math.Float32bits(v)
		return uint64((bits + 0x7fff + bits>>16&1) >> 16)
	case "FP16":
		return uint64(half(v))
	}
	return uint64(math.Float32bits(v))
}

// half rounds to the nearest FP16, to even in the middle.
func half(v float32) uint16 {
	bits := math.Float32bits(v)
	sign := uint16(bits >> 16 & 0x8000)
	a := math.Abs(float64(v))
	switch {
	case math.IsNaN(float64(v)):
		return sign | 0x7e00
	case a >= 65520:
		return sign | 0x7c00
	case a < 1.0/(1<<14): // subnormal: steps of 2^-24
		return sign | uint16(math.RoundToEven(a*(1<<24)))
	}
	mantissa := bits & 0x7fffff
	h := (bits>>23&0xff-112)<<10 | mantissa>>13
	rest := mantissa & 0x1fff
	if rest > 0x1000 || rest == 0x1000 && h&1 == 1 {
		h++
	}
	return sign | uint16(h)
}

// unpacked reads little-endian values.
func unpacked(b []byte, datatype string) ([]float32, error) {
	size := width(datatype)
	if size == 0 || len(b)%size != 0 {
		return nil, fmt.Errorf("%w: %d bytes of datatype %q", ErrBadTensor, len(b), datatype)
	}
	out := make([]float32, 0, len(b)/size)
	for ; len(b) > 0; b = b[size:] {
		var word [8]byte
		copy(word[:], b[:size])
		out = append(out, valueOf(binary.LittleEndian.Uint64(word[:]), datatype))
	}
	return out, nil
}

func valueOf(bits uint64, datatype string) float32 {
	switch datatype {
	case DatatypeFP32:
		return math.Float32frombits(uint32(bits))
	case "FP64":
		return float32(math.Float64frombits(bits))
	case "BF16":
		return math.Float32frombits(uint32(bits) << 16)
	case "FP16":
		return unhalf(uint16(bits))
	case "INT8":
		return float32(int8(bits))
	case "INT16":
		return float32(int16(bits))
	case "INT32":
		return float32(int32(bits))
	case "INT64":
		return float32(int64(bits))
	}
	return float32(bits)
}

func unhalf(h uint16) float32 {
	sign, exponent, mantissa := float64(1), int(h>>10&0x1f), float64(h&0x3ff)
	if h&0x8000 != 0 {
		sign = -1
	}
	switch exponent {
	case 0:
		return float32(sign * math.Ldexp(mantissa, -24))
	case 0x1f:
		if mantissa != 0 {
			return float32(math.NaN())
		}
		return float32(math.Inf(int(sign)))
	}
	return float32(sign * math.Ldexp(1024+mantissa, exponent-25))
}
