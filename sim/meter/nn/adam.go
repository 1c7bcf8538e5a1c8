package nn

import "math"

// Adam is the state of the optimiser: the two moments of every parameter and
// the number of steps taken.
type Adam struct {
	M, V []float32
	Step int
}

const (
	beta1 = 0.9
	beta2 = 0.999
	eps   = 1e-8
)

// apply takes one step of size rate down the gradient g.
func (o *Adam) apply(w, g []float32, rate float64) {
	o.Step++
	t := float64(o.Step)
	size := float32(rate * math.Sqrt(1-math.Pow(beta2, t)) / (1 - math.Pow(beta1, t)))
	m, v := o.M[:len(w)], o.V[:len(w)]
	for i, d := range g[:len(w)] {
		m[i] = beta1*m[i] + (1-beta1)*d
		v[i] = beta2*v[i] + (1-beta2)*d*d
		w[i] -= size * m[i] / (float32(math.Sqrt(float64(v[i]))) + eps)
	}
}
