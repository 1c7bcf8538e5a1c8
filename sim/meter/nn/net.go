// Package nn trains one small convolutional network: conv, ReLU, max pool,
// twice, then a dense layer and softmax cross-entropy, with Adam. It owns the
// network's shape, its gradients and the optimiser; it reads no files and
// knows nothing of ONNX. The sums of a batch are split into a fixed number of
// shards and added in a fixed order, so the result does not depend on how many
// goroutines work or when they run. Only sim/meter imports it.
package nn

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/skein-fleet/skein/sim/meter/kernel"
)

// ErrBadArch is returned for a network that cannot be built.
var ErrBadArch = errors.New("impossible network")

// Arch is the shape of the network. Its zero value is not usable; Default is
// the one that the demo trains.
type Arch struct {
	Side    int `json:"side"`    // the image is side × side, one plane
	Kernel  int `json:"kernel"`  // both convolutions, no padding, stride 1
	Conv1   int `json:"conv1"`   // planes after the first
	Conv2   int `json:"conv2"`   // planes after the second
	Classes int `json:"classes"` // outputs
}

// Default returns the network of the meter model: conv 8, pool, conv 16, pool,
// dense.
func Default() Arch { return Arch{Side: 28, Kernel: 3, Conv1: 8, Conv2: 16, Classes: 10} }

// Validate checks that every layer has something to work on.
func (a Arch) Validate() error {
	const most = 1024
	for _, v := range []int{a.Side, a.Kernel, a.Conv1, a.Conv2, a.Classes} {
		if v < 1 || v > most {
			return fmt.Errorf("%w: %+v: every number must be in 1..%d", ErrBadArch, a, most)
		}
	}
	if a.conv1Side() < 2 || a.conv2Side() < 2 {
		return fmt.Errorf("%w: %+v: a side of %d is used up before the last pool", ErrBadArch, a, a.Side)
	}
	return nil
}

func (a Arch) conv1Side() int { return a.Side - a.Kernel + 1 }
func (a Arch) pool1Side() int { return a.conv1Side() / 2 }
func (a Arch) conv2Side() int { return a.pool1Side() - a.Kernel + 1 }
func (a Arch) pool2Side() int { return a.conv2Side() / 2 }

// Features is the width of the dense layer's input.
func (a Arch) Features() int { return a.Conv2 * a.pool2Side() * a.pool2Side() }

// Tensor names a slice of the parameters.
type Tensor struct {
	Name  string
	Shape []int
}

// Size is the number of values.
func (t Tensor) Size() int {
	n := 1
	for _, d := range t.Shape {
		n *= d
	}
	return n
}

// Tensors lists the parameters in the order in which they lie in Params.
func (a Arch) Tensors() []Tensor {
	return []Tensor{
		{"conv1.weight", []int{a.Conv1, 1, a.Kernel, a.Kernel}}, {"conv1.bias", []int{a.Conv1}},
		{"conv2.weight", []int{a.Conv2, a.Conv1, a.Kernel, a.Kernel}}, {"conv2.bias", []int{a.Conv2}},
		{"dense.weight", []int{a.Classes, a.Features()}}, {"dense.bias", []int{a.Classes}},
	}
}

// Size is the number of parameters.
func (a Arch) Size() int {
	n := 0
	for _, t := range a.Tensors() {
		n += t.Size()
	}
	return n
}

// params are the parameters or their gradients: one slice and six views of it.
type params[T kernel.Float] struct {
	all                    []T
	w1, b1, w2, b2, w3, b3 []T
}

func newParams[T kernel.Float](a Arch, all []T) params[T] {
	p := params[T]{all: all}
	at := 0
	for i, t := range a.Tensors() {
		n := t.Size()
		*[]*[]T{&p.w1, &p.b1, &p.w2, &p.b2, &p.w3, &p.b3}[i] = all[at : at+n : at+n]
		at += n
	}
	return p
}

// InitParams draws He-initialised weights and zero biases.
func InitParams(a Arch, rng *rand.Rand) []float32 {
	all := make([]float32, a.Size())
	p := newParams(a, all)
	k2 := a.Kernel * a.Kernel
	for _, l := range []struct {
		w     []float32
		fanIn int
	}{{p.w1, k2}, {p.w2, k2 * a.Conv1}, {p.w3, a.Features()}} {
		std := math.Sqrt(2 / float64(l.fanIn))
		for i := range l.w {
			l.w[i] = float32(rng.NormFloat64() * std)
		}
	}
	return all
}

// pass holds what one forward and backward pass over one image needs.
type pass[T kernel.Float] struct {
	arch                 Arch
	win1, win2           kernel.Window
	col1, col2           []T
	conv1, conv2         []T
	pool1, pool2         []T
	arg1, arg2           []int32
	logits, prob         []T
	dpool1, dpool2       []T
	dcol2                []T
	area1, area2, k1, k2 int
}

func newPass[T kernel.Float](a Arch) *pass[T] {
	s1, s2, p1, p2 := a.conv1Side(), a.conv2Side(), a.pool1Side(), a.pool2Side()
	win := kernel.Window{KH: a.Kernel, KW: a.Kernel, StrideH: 1, StrideW: 1, DilH: 1, DilW: 1}
	q := &pass[T]{arch: a, win1: win, win2: win, area1: s1 * s1, area2: s2 * s2,
		k1: a.Kernel * a.Kernel, k2: a.Kernel * a.Kernel * a.Conv1}
	q.win1.OutH, q.win1.OutW, q.win2.OutH, q.win2.OutW = s1, s1, s2, s2
	q.col1, q.col2, q.dcol2 = make([]T, q.area1*q.k1), make([]T, q.area2*q.k2), make([]T, q.area2*q.k2)
	q.conv1, q.conv2 = make([]T, a.Conv1*q.area1), make([]T, a.Conv2*q.area2)
	n1, n2 := a.Conv1*p1*p1, a.Conv2*p2*p2
	q.pool1, q.dpool1, q.arg1 = make([]T, n1), make([]T, n1), make([]int32, n1)
	q.pool2, q.dpool2, q.arg2 = make([]T, n2), make([]T, n2), make([]int32, n2)
	q.logits, q.prob = make([]T, a.Classes), make([]T, a.Classes)
	return q
}

// forward leaves the logits of x in q.logits. The pool comes before the ReLU,
// which gives the same values as ReLU before pool and works on a quarter of them.
func (q *pass[T]) forward(p params[T], x []T) {
	a := q.arch
	kernel.Im2Col(q.col1, x, 1, a.Side, a.Side, q.win1)
	kernel.MulNT(q.conv1, p.w1, q.col1, p.b1, a.Conv1, q.area1, q.k1)
	poolReLU(q.pool1, q.arg1, q.conv1, a.Conv1, a.conv1Side())
	kernel.Im2Col(q.col2, q.pool1, a.Conv1, a.pool1Side(), a.pool1Side(), q.win2)
	kernel.MulNT(q.conv2, p.w2, q.col2, p.b2, a.Conv2, q.area2, q.k2)
	poolReLU(q.pool2, q.arg2, q.conv2, a.Conv2, a.conv2Side())
	kernel.MulNT(q.logits, p.w3, q.pool2, p.b3, a.Classes, 1, a.Features())
}

// poolReLU takes the greatest of every 2 × 2 square and remembers where it was;
// arg is -1 where the ReLU cut it off.
func poolReLU[T kernel.Float](out []T, arg []int32, in []T, planes, side int) {
	half, at := side/2, 0
	for c := range planes {
		for y := range half {
			top := c*side*side + 2*y*side
			r0, r1 := in[top:top+side], in[top+side:top+2*side]
			for x := range half {
				best, where := r0[2*x], top+2*x
				if v := r0[2*x+1]; v > best {
					best, where = v, top+2*x+1
				}
				if v := r1[2*x]; v > best {
					best, where = v, top+side+2*x
				}
				if v := r1[2*x+1]; v > best {
					best, where = v, top+side+2*x+1
				}
				if best <= 0 {
					best, where = 0, -1
				}
				out[at], arg[at] = best, int32(where)
				at++
			}
		}
	}
}

// backward adds the gradients of -log softmax(logits)[label] to g and returns
// that loss. Only squares that won their pool carry gradient, so both
// convolutions are walked by winner, not by pixel.
func (q *pass[T]) backward(p, g params[T], label int) float64 {
	a := q.arch
	loss := softmaxLoss(q.prob, q.logits, label)
	n := a.Features()
	clear(q.dpool2)
	for c, d := range q.prob {
		g.b3[c] += d
		kernel.Axpy(g.w3[c*n:(c+1)*n], q.pool2, d)
		kernel.Axpy(q.dpool2, p.w3[c*n:(c+1)*n], d)
	}
	clear(q.dcol2)
	for i, where := range q.arg2 {
		if where < 0 {
			continue
		}
		d, c, at := q.dpool2[i], int(where)/q.area2, int(where)%q.area2
		g.b2[c] += d
		kernel.Axpy(g.w2[c*q.k2:(c+1)*q.k2], q.col2[at*q.k2:(at+1)*q.k2], d)
		kernel.Axpy(q.dcol2[at*q.k2:(at+1)*q.k2], p.w2[c*q.k2:(c+1)*q.k2], d)
	}
	q.scatter()
	for i, where := range q.arg1 {
		if where < 0 {
			continue
		}
		d, c, at := q.dpool1[i], int(where)/q.area1, int(where)%q.area1
		g.b1[c] += d
		kernel.Axpy(g.w1[c*q.k1:(c+1)*q.k1], q.col1[at*q.k1:(at+1)*q.k1], d)
	}
	return loss
}

// scatter turns the gradient of the patches of the second convolution into
// that of its input.
func (q *pass[T]) scatter() {
	a := q.arch
	side, out := a.pool1Side(), a.conv2Side()
	clear(q.dpool1)
	at := 0
	for oy := range out {
		for ox := range out {
			for c := range a.Conv1 {
				from := c*side*side + oy*side + ox
				for range a.Kernel {
					d := q.dpool1[from : from+a.Kernel]
					for i, v := range q.dcol2[at : at+a.Kernel] {
						d[i] += v
					}
					at += a.Kernel
					from += side
				}
			}
		}
	}
}

// softmaxLoss leaves softmax(logits) minus the one-hot label in grad and
// returns the cross-entropy.
func softmaxLoss[T kernel.Float](grad, logits []T, label int) float64 {
	top := logits[0]
	for _, v := range logits[1:] {
		top = max(top, v)
	}
	var sum float64
	for i, v := range logits {
		e := math.Exp(float64(v - top))
		grad[i] = T(e)
		sum += e
	}
	for i := range grad {
		grad[i] = T(float64(grad[i]) / sum)
	}
	loss := math.Log(sum) - float64(logits[label]-top)
	grad[label]--
	return loss
}
