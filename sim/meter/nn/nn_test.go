package nn

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var small = Arch{Side: 12, Kernel: 3, Conv1: 2, Conv2: 3, Classes: 4}

// TestGradients compares every gradient with a central finite difference.
// Steps that cross a kink (another pixel wins a pool, a ReLU opens) are left
// out: there the derivative does not exist.
func TestGradients(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	w := make([]float64, small.Size())
	for i := range w {
		w[i] = rng.NormFloat64() * 0.4
	}
	x := make([]float64, small.Side*small.Side)
	for i := range x {
		x[i] = rng.NormFloat64()
	}
	const label, step = 2, 1e-5
	p, q := newParams(small, w), newPass[float64](small)
	g := newParams(small, make([]float64, len(w)))
	q.forward(p, x)
	q.backward(p, g, label)
	arg1, arg2 := slices.Clone(q.arg1), slices.Clone(q.arg2)
	loss := func() (float64, bool) {
		q.forward(p, x)
		same := slices.Equal(arg1, q.arg1) && slices.Equal(arg2, q.arg2)
		return softmaxLoss(q.prob, q.logits, label), same
	}
	compared, nonzero := 0, 0
	for i := range w {
		keep := w[i]
		w[i] = keep + step
		up, ok1 := loss()
		w[i] = keep - step
		down, ok2 := loss()
		w[i] = keep
		if !ok1 || !ok2 {
			continue
		}
		compared++
		want := (up - down) / (2 * step)
		if want != 0 {
			nonzero++
		}
		if diff := math.Abs(want - g.all[i]); diff > 1e-7*max(1, math.Abs(want)) {
			t.Errorf("parameter %d: gradient %v, finite difference %v", i, g.all[i], want)
		}
	}
	if compared < len(w)*9/10 || nonzero < len(w)/2 {
		t.Errorf("only %d of %d gradients compared, %d not zero", compared, len(w), nonzero)
	}
}

// toy is a task that a network can learn: which quarter of the image is bright.
func toy(seed uint64, n int) Batch {
	rng := rand.New(rand.NewPCG(seed, 9))
	images, labels := make([][]float32, n), make([]int, n)
	for i := range images {
		labels[i] = rng.IntN(4)
		images[i] = make([]float32, small.Side*small.Side)
		for j := range images[i] {
			y, x := j/small.Side, j%small.Side
			images[i][j] = float32(rng.NormFloat64() * 0.3)
			if y/6*2+x/6 == labels[i] {
				images[i][j]++
			}
		}
	}
	return Batch{Len: n, At: func(i int, dst []float32) int {
		copy(dst, images[i])
		return labels[i]
	}}
}

func TestStepDoesNotDependOnWorkers(t *testing.T) {
	run := func(workers int) []float32 {
		tr, err := NewTrainer(small, InitParams(small, rand.New(rand.NewPCG(3, 4))), Adam{})
		if err != nil {
			t.Fatal(err)
		}
		tr.Workers = workers
		for i := range 20 {
			tr.Step(toy(uint64(i), 37), 0.01)
		}
		return tr.Params
	}
	one := run(1)
	for _, workers := range []int{2, 3, 4, 16} {
		if diff := cmp.Diff(one, run(workers)); diff != "" {
			t.Errorf("%d workers give other weights than one:\n%s", workers, diff)
		}
	}
}

func TestTrainingLearns(t *testing.T) {
	tr, err := NewTrainer(small, InitParams(small, rand.New(rand.NewPCG(5, 6))), Adam{})
	if err != nil {
		t.Fatal(err)
	}
	first := tr.Step(toy(0, 64), 0.01)
	var last float64
	for i := range 80 {
		last = tr.Step(toy(uint64(i+1), 64), 0.01)
	}
	if last > first/5 {
		t.Errorf("loss went from %.3f to %.3f only", first, last)
	}
	net, err := NewNet(small, tr.Params)
	if err != nil {
		t.Fatal(err)
	}
	held := toy(1000, 200)
	x, right := make([]float32, small.Side*small.Side), 0
	for i := range held.Len {
		label := held.At(i, x)
		out := net.Logits(x)
		if slices.Index(out, slices.Max(out)) == label {
			right++
		}
	}
	if right < 195 {
		t.Errorf("%d of 200 right after training", right)
	}
}

func TestImpossibleNetworks(t *testing.T) {
	for _, a := range []Arch{{}, {Side: 5, Kernel: 3, Conv1: 1, Conv2: 1, Classes: 2}, {Side: 28, Kernel: 3, Conv1: 1 << 20, Conv2: 1, Classes: 2}} {
		if _, err := NewTrainer(a, nil, Adam{}); !errors.Is(err, ErrBadArch) {
			t.Errorf("%+v: got %v", a, err)
		}
	}
	if _, err := NewTrainer(small, make([]float32, 3), Adam{}); !errors.Is(err, ErrBadArch) {
		t.Errorf("wrong number of parameters: got %v", err)
	}
}
