package interp

import (
	"fmt"

	"github.com/skein-fleet/skein/sim/meter/kernel"
	"github.com/skein-fleet/skein/sim/meter/onnx"
)

// transposed returns the transpose of a rows × cols matrix in dst.
func transposed(dst, m []float32, rows, cols int) []float32 {
	dst = grow(dst, rows*cols)
	for i := range rows {
		for j := range cols {
			dst[j*rows+i] = m[i*cols+j]
		}
	}
	return dst
}

// right is the second factor of a product, stored so that its columns are
// contiguous; constant ones are turned round once.
type right struct {
	flip  bool      // the operand is k × n
	fixed []float32 // n × k, when constant
}

func newRight(c *compiler, name string, flip bool) (right, error) {
	r := right{flip: flip}
	if v := c.fixed(name); v != nil {
		if len(v.shape) != 2 {
			return r, fmt.Errorf("%w: weights %q have shape %v: want a matrix", ErrUnsupported, name, v.shape)
		}
		r.fixed = v.data
		if flip {
			if c.flipped[name] == nil {
				c.flipped[name] = transposed(nil, v.data, v.shape[0], v.shape[1])
				c.s.weights += int64(len(v.data))
			}
			r.fixed = c.flipped[name]
		}
	}
	return r, nil
}

// rows returns the n × k matrix.
func (r right) rows(w *work, v *value) []float32 {
	switch {
	case r.fixed != nil:
		return r.fixed
	case r.flip:
		w.tmp = transposed(w.tmp, v.data, v.shape[0], v.shape[1])
		return w.tmp
	}
	return v.data
}

func buildMatMul(c *compiler, n *onnx.Node, _ *attrs) (op, error) {
	r, err := newRight(c, n.Inputs[1], true)
	if err != nil {
		return nil, err
	}
	return func(w *work, in []*value, out *value) error {
		x, y := in[0], in[1]
		if len(x.shape) < 2 || len(y.shape) != 2 || x.shape[len(x.shape)-1] != y.shape[0] {
			return shapeErr("%v times %v: want [… m k] times [k n]", x.shape, y.shape)
		}
		k, cols := y.shape[0], y.shape[1]
		rows := product(x.shape[:len(x.shape)-1])
		if err := w.spend(rows, cols, k); err != nil {
			return err
		}
		shape := append(append([]int(nil), x.shape[:len(x.shape)-1]...), cols)
		if err := w.take(out, shape...); err != nil {
			return err
		}
		kernel.MulNT(out.data, x.data, r.rows(w, y), nil, rows, cols, k)
		return nil
	}, nil
}

func buildGemm(c *compiler, n *onnx.Node, a *attrs) (op, error) {
	alpha, beta := a.float("alpha", 1), a.float("beta", 1)
	transA, transB := a.int("transA", 0) != 0, a.int("transB", 0) != 0
	r, err := newRight(c, n.Inputs[1], !transB)
	if err != nil {
		return nil, err
	}
	return func(w *work, in []*value, out *value) error {
		x, y := in[0], in[1]
		if len(x.shape) != 2 || len(y.shape) != 2 {
			return shapeErr("%v times %v: want two matrices", x.shape, y.shape)
		}
		rows, k := x.shape[0], x.shape[1]
		if transA {
			rows, k = k, rows
		}
		cols, k2 := y.shape[0], y.shape[1]
		if !transB {
			cols, k2 = k2, cols
		}
		if k != k2 {
			return shapeErr("%v times %v (transA %v, transB %v)", x.shape, y.shape, transA, transB)
		}
		if err := w.spend(rows, cols, k); err != nil {
			return err
		}
		if err := w.take(out, rows, cols); err != nil {
			return err
		}
		left := x.data
		if transA {
			w.col = transposed(w.col, x.data, x.shape[0], x.shape[1])
			left = w.col
		}
		kernel.MulNT(out.data, left, r.rows(w, y), nil, rows, cols, k)
		if alpha != 1 {
			for i := range out.data {
				out.data[i] *= alpha
			}
		}
		if len(in) == 3 && in[2] != nil {
			return addBias(out, in[2], beta)
		}
		return nil
	}, nil
}

// addBias adds beta·c to the matrix; c stretches to it but not the other way.
func addBias(out, c *value, beta float32) error {
	shape, err := broadcast(out.shape, c.shape)
	if err != nil || len(shape) != 2 || shape[0] != out.shape[0] || shape[1] != out.shape[1] {
		return shapeErr("a bias of %v on %v", c.shape, out.shape)
	}
	st := strides(c.shape, out.shape)
	cols := out.shape[1]
	for i := range out.shape[0] {
		row := out.data[i*cols : (i+1)*cols]
		for j := range row {
			row[j] += beta * c.data[i*st[0]+j*st[1]]
		}
	}
	return nil
}
