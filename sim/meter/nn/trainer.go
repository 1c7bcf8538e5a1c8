package nn

import (
	"fmt"
	"slices"
	"sync"
)

// shards is the number of parts of a batch whose gradients are summed apart
// and then added in order. It is fixed, so that results do not depend on the
// number of workers.
const shards = 4

// Trainer takes optimiser steps on one network. It is used by one goroutine;
// inside a step it starts up to Workers of its own and joins them.
type Trainer struct {
	Arch    Arch
	Params  []float32
	Adam    Adam
	Workers int // goroutines in a step, 2 when zero

	passes [shards]*pass[float32]
	grads  [shards]params[float32]
}

// NewTrainer returns a trainer for parameters of the given shape; it keeps
// the slice. A zero Adam means a fresh start.
func NewTrainer(a Arch, weights []float32, adam Adam) (*Trainer, error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	n := a.Size()
	if adam.M == nil && adam.V == nil {
		adam.M, adam.V = make([]float32, n), make([]float32, n)
	}
	if len(weights) != n || len(adam.M) != n || len(adam.V) != n {
		return nil, fmt.Errorf("%w: %d parameters and %d, %d moments where %d are needed",
			ErrBadArch, len(weights), len(adam.M), len(adam.V), n)
	}
	t := &Trainer{Arch: a, Params: weights, Adam: adam}
	for i := range shards {
		t.passes[i], t.grads[i] = newPass[float32](a), newParams(a, make([]float32, n))
	}
	return t, nil
}

// Batch is a set of normalised images and what they show. At(i, dst) writes
// image i into dst and returns its label.
type Batch struct {
	Len int
	At  func(i int, dst []float32) int
}

// Step takes one Adam step of the given rate and returns the mean loss of the
// batch before it.
func (t *Trainer) Step(b Batch, rate float64) float64 {
	var losses [shards]float64
	each(shards, t.workers(), func(s int) {
		q, g := t.passes[s], t.grads[s]
		clear(g.all)
		p := newParams(t.Arch, t.Params)
		x := make([]float32, t.Arch.Side*t.Arch.Side)
		for i := s * b.Len / shards; i < (s+1)*b.Len/shards; i++ {
			label := b.At(i, x)
			q.forward(p, x)
			losses[s] += q.backward(p, g, label)
		}
	})
	sum := t.grads[0].all
	inv := 1 / float32(b.Len)
	g1, g2, g3 := t.grads[1].all, t.grads[2].all, t.grads[3].all
	for i := range sum {
		sum[i] = ((sum[i] + g1[i]) + (g2[i] + g3[i])) * inv
	}
	t.Adam.apply(t.Params, sum, rate)
	return ((losses[0] + losses[1]) + (losses[2] + losses[3])) / float64(b.Len)
}

func (t *Trainer) workers() int {
	if t.Workers > 0 {
		return t.Workers
	}
	return 2
}

// each calls f for 0..n-1 on a number of goroutines and waits for them.
func each(n, workers int, f func(int)) {
	var wg sync.WaitGroup
	workers = min(workers, n)
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				f(i)
			}
		})
	}
	wg.Wait()
}

// Net answers with fixed parameters. It is used by one goroutine at a time.
type Net struct {
	arch Arch
	p    params[float32]
	q    *pass[float32]
}

// NewNet returns a network over a copy of the parameters.
func NewNet(a Arch, weights []float32) (*Net, error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	if len(weights) != a.Size() {
		return nil, fmt.Errorf("%w: %d parameters where %d are needed", ErrBadArch, len(weights), a.Size())
	}
	return &Net{arch: a, p: newParams(a, slices.Clone(weights)), q: newPass[float32](a)}, nil
}

// Logits returns the outputs for one normalised image; the slice is valid
// until the next call.
func (n *Net) Logits(x []float32) []float32 {
	n.q.forward(n.p, x)
	return n.q.logits
}
