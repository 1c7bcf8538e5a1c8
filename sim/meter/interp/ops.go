package interp

import (
	"fmt"
	"math"
	"slices"

	"github.com/skein-fleet/skein/sim/meter/onnx"
)

func shapeErr(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrShape, fmt.Sprintf(format, args...))
}

// plain is an operator without attributes.
func plain(run op) func(*compiler, *onnx.Node, *attrs) (op, error) {
	return func(*compiler, *onnx.Node, *attrs) (op, error) { return run, nil }
}

func identity(_ *work, in []*value, out *value) error {
	out.shape, out.data = append(out.shape[:0], in[0].shape...), in[0].data
	return nil
}

func relu(w *work, in []*value, out *value) error {
	if err := w.take(out, in[0].shape...); err != nil {
		return err
	}
	dst := out.data
	for i, v := range in[0].data[:len(dst)] {
		if v < 0 {
			v = 0
		}
		dst[i] = v
	}
	return nil
}

// arith is the inner loop of a binary operator. A slice of length one is
// repeated.
type arith func(dst, a, b []float32)

func add(dst, a, b []float32) {
	each(dst, a, b, func(x, y float32) float32 { return x + y })
}

func sub(dst, a, b []float32) {
	if len(b) == 1 && len(a) == len(dst) {
		y := b[0]
		for i, x := range a {
			dst[i] = x - y
		}
		return
	}
	each(dst, a, b, func(x, y float32) float32 { return x - y })
}

func mul(dst, a, b []float32) {
	if len(b) == 1 && len(a) == len(dst) {
		y := b[0]
		for i, x := range a {
			dst[i] = x * y
		}
		return
	}
	each(dst, a, b, func(x, y float32) float32 { return x * y })
}

func div(dst, a, b []float32) {
	each(dst, a, b, func(x, y float32) float32 { return x / y })
}

func each(dst, a, b []float32, f func(x, y float32) float32) {
	sa, sb := min(1, len(a)-1), min(1, len(b)-1)
	for i, ia, ib := 0, 0, 0; i < len(dst); i++ {
		dst[i] = f(a[ia], b[ib])
		ia, ib = ia+sa, ib+sb
	}
}

func binary(f arith) func(*compiler, *onnx.Node, *attrs) (op, error) {
	return plain(func(w *work, in []*value, out *value) error {
		a, b := in[0], in[1]
		shape, err := broadcast(a.shape, b.shape)
		if err != nil {
			return err
		}
		if err := w.take(out, shape...); err != nil {
			return err
		}
		if len(out.data) == 0 {
			return nil
		}
		if (len(a.data) == len(out.data) || len(a.data) == 1) && (len(b.data) == len(out.data) || len(b.data) == 1) {
			f(out.data, a.data, b.data)
			return nil
		}
		spread(out, a, b, f)
		return nil
	})
}

// broadcast is NumPy's rule: sizes are aligned at the right and 1 stretches.
func broadcast(a, b []int) ([]int, error) {
	out := make([]int, max(len(a), len(b)))
	for i := range out {
		x, y := 1, 1
		if j := i - len(out) + len(a); j >= 0 {
			x = a[j]
		}
		if j := i - len(out) + len(b); j >= 0 {
			y = b[j]
		}
		switch {
		case x == y || y == 1:
			out[i] = x
		case x == 1:
			out[i] = y
		default:
			return nil, shapeErr("%v and %v", a, b)
		}
	}
	return out, nil
}

// spread walks the output a row at a time and steps through a and b with the
// strides of their own shapes, 0 where they stretch.
func spread(out, a, b *value, f arith) {
	rank := len(out.shape)
	sa, sb := strides(a.shape, out.shape), strides(b.shape, out.shape)
	row := out.shape[rank-1]
	index := make([]int, rank)
	part := func(v *value, at, stride int) []float32 {
		if stride == 0 {
			return v.data[at : at+1]
		}
		return v.data[at : at+row]
	}
	for from := 0; from < len(out.data); from += row {
		ia, ib := 0, 0
		for d := range rank - 1 {
			ia, ib = ia+index[d]*sa[d], ib+index[d]*sb[d]
		}
		f(out.data[from:from+row], part(a, ia, sa[rank-1]), part(b, ib, sb[rank-1]))
		for d := rank - 2; d >= 0; d-- {
			if index[d]++; index[d] < out.shape[d] {
				break
			}
			index[d] = 0
		}
	}
}

func strides(shape, to []int) []int {
	out := make([]int, len(to))
	step := 1
	for i := len(shape) - 1; i >= 0; i-- {
		if j := i + len(to) - len(shape); shape[i] != 1 {
			out[j] = step
		}
		step *= shape[i]
	}
	return out
}

// axisOf resolves a negative axis.
func axisOf(axis int64, rank, top int) (int, error) {
	if axis < 0 {
		axis += int64(rank)
	}
	if axis < 0 || axis > int64(top) {
		return 0, shapeErr("axis %d of a tensor of rank %d", axis, rank)
	}
	return int(axis), nil
}

func product(shape []int) int {
	n := 1
	for _, d := range shape {
		n *= d
	}
	return n
}

func buildSoftmax(_ *compiler, _ *onnx.Node, a *attrs) (op, error) {
	axis := a.int("axis", -1)
	return func(w *work, in []*value, out *value) error {
		x := in[0]
		at, err := axisOf(axis, len(x.shape), len(x.shape)-1)
		if err != nil {
			return err
		}
		if err := w.take(out, x.shape...); err != nil {
			return err
		}
		n, inner := x.shape[at], product(x.shape[at+1:])
		if len(x.data) == 0 {
			return nil
		}
		for o := range len(x.data) / (n * inner) {
			for i := range inner {
				softmax(out.data[o*n*inner+i:], x.data[o*n*inner+i:], n, inner)
			}
		}
		return nil
	}, nil
}

func softmax(dst, src []float32, n, stride int) {
	top := float32(math.Inf(-1))
	for i := range n {
		top = max(top, src[i*stride])
	}
	var sum float64
	for i := range n {
		sum += math.Exp(float64(src[i*stride] - top))
	}
	for i := range n {
		dst[i*stride] = float32(math.Exp(float64(src[i*stride]-top)) / sum)
	}
}

func buildFlatten(_ *compiler, _ *onnx.Node, a *attrs) (op, error) {
	axis := a.int("axis", 1)
	return func(_ *work, in []*value, out *value) error {
		x := in[0]
		at, err := axisOf(axis, len(x.shape), len(x.shape))
		if err != nil {
			return err
		}
		rows, cols := product(x.shape[:at]), product(x.shape[at:])
		out.shape, out.data = append(out.shape[:0], rows, cols), x.data
		return nil
	}, nil
}

func buildReshape(c *compiler, n *onnx.Node, a *attrs) (op, error) {
	to, ok := c.ints[n.Inputs[1]]
	if !ok {
		return nil, fmt.Errorf("%w: the shape %q is not an int64 constant", ErrUnsupported, n.Inputs[1])
	}
	keepZero := a.int("allowzero", 0) != 0
	infers := 0
	for _, d := range to {
		if d == -1 {
			infers++
		}
		if d < -1 || d > onnx.MaxBytes {
			return nil, fmt.Errorf("%w: shape %v", ErrUnsupported, to)
		}
	}
	if infers > 1 || len(to) > 8 || keepZero && infers > 0 && slices.Contains(to, 0) {
		return nil, fmt.Errorf("%w: shape %v", ErrUnsupported, to)
	}
	return func(w *work, in []*value, out *value) error {
		x := in[0]
		out.shape, out.data = out.shape[:0], x.data
		known, infer := int64(1), -1
		for i, d := range to {
			if d == 0 && !keepZero {
				if i >= len(x.shape) {
					return shapeErr("%v does not reshape to %v", x.shape, to)
				}
				d = int64(x.shape[i])
			}
			if d == -1 {
				infer, d = i, 1
			}
			if d != 0 && known > onnx.MaxBytes/d {
				return shapeErr("%v does not reshape to %v", x.shape, to)
			}
			known *= d
			out.shape = append(out.shape, int(d))
		}
		if infer >= 0 && known > 0 && int64(len(x.data))%known == 0 {
			out.shape[infer] = len(x.data) / int(known)
			known *= int64(out.shape[infer])
		}
		if known != int64(len(x.data)) {
			return shapeErr("%v does not reshape to %v", x.shape, to)
		}
		_, err := w.size(out.shape)
		return err
	}, nil
}
