package block

import "math/bits"

// maxValue bounds quantised values and times, so that differences of
// differences stay far from overflow.
const maxValue = 1 << 52

// How the residuals of a column are made.
const (
	predictBase  = 0 // value - base, base near the mean: noise
	predictLast  = 1 // value - value before
	predictSlope = 2 // value - 2·value before + value before that: ramps
)

// How many of a column's values are there.
const (
	presentAll  = 0
	presentNone = 1
	presentSome = 2
)

const (
	rows = 32 // contexts by the running mean of the magnitude
	exps = 56 // bits of a magnitude
)

// model holds all adaptive state of one block; every column uses it, so that
// what one column teaches serves the next.
type model struct {
	present  [2]bit
	slot     [2]bit // by the slot before
	constant bit
	predict  [2]bit
	baseExp  [exps]bit
	baseSign bit
	exp      [rows][exps]bit // is the magnitude longer than i bits?
	top      [exps]bit       // first bit after the leading one
	sign     [3]bit          // by the sign before: zero, minus, plus
}

// start[d] is the first probability that a magnitude is longer than i bits in
// row c, with d = 2·max(i-1, 0) - c + 12, for a geometric distribution whose
// mean belongs to the row: exp(-2^((d-12)/2)) of 65536.
var start = [24]uint16{
	64520, 64104, 63520, 62703, 61565, 59992, 57835, 54917, 51039, 46019, 39750, 32314,
	24109, 15933, 8869, 3874, 1200, 229, 96, 96, 96, 96, 96, 96,
}

func newModel() *model {
	m := &model{}
	even := func(b *bit) { *b = bit{p: half} }
	for i := range 2 {
		even(&m.present[i])
		even(&m.slot[i])
		even(&m.predict[i])
	}
	even(&m.constant)
	even(&m.baseSign)
	for i := range m.sign {
		m.sign[i] = bit{p: half, n: 4}
	}
	for i := range exps {
		m.baseExp[i] = bit{p: pMax - 6000}
		m.top[i] = bit{p: 26000, n: 4}
	}
	for c := range rows {
		for i := range exps {
			d := max(0, min(len(start)-1, 2*max(i-1, 0)-c+12))
			m.exp[c][i] = bit{p: start[d], n: 6}
		}
	}
	return m
}

// row returns the context of a running mean a, which has four fraction bits:
// floor(2·log2(mean+1)), at most rows-1.
func row(a uint64) int {
	x := a + 16
	b := bits.Len64(x) - 1
	c := 2 * (b - 4)
	if b < 24 && x*x >= 1<<(2*b+1) {
		c++
	}
	return min(c, rows-1)
}

// firstMean returns the running mean with which a column that declares row c
// begins, the least mean of that row.
func firstMean(c int) uint64 {
	if c&1 == 0 {
		return 1<<(c/2+4) - 16
	}
	return 46341<<(c/2+4)>>15 + 1 - 16 // 46341/32768 is the square root of 2
}

// nextMean moves the running mean by a sixteenth towards a magnitude.
func nextMean(a, magnitude uint64) uint64 { return a - a>>4 + magnitude }

// residual is the value at i less its prediction from v.
func residual(v []int64, i, predict int, base int64) int64 {
	switch {
	case predict == predictBase:
		return v[i] - base
	case i == 0:
		return 0 // the base is the first value
	case predict == predictLast || i == 1:
		return v[i] - v[i-1]
	}
	return v[i] - 2*v[i-1] + v[i-2]
}

// first is the index of the first residual that is written.
func first(predict int) int {
	if predict == predictBase {
		return 0
	}
	return 1
}

// plan picks the predictor with the smallest sum of magnitudes, and its base
// and row.
func plan(v []int64) (predict int, base int64, c int, constant bool) {
	mean := 0.0
	for _, x := range v {
		mean += float64(x)
	}
	mean /= float64(len(v))
	bases := [3]int64{int64(mean), v[0], v[0]}
	var sums [3]float64
	for i := range v {
		for p := range sums {
			sums[p] += magnitude(residual(v, i, p, bases[p]))
		}
	}
	predict = predictLast
	if sums[predictSlope] < sums[predict] {
		predict = predictSlope
	}
	if sums[predictBase] < sums[predict] {
		predict = predictBase
	}
	n := len(v) - first(predict)
	if sums[predict] == 0 || n == 0 {
		return predictLast, v[0], 0, true
	}
	return predict, bases[predict], row(uint64(16 * sums[predict] / float64(n))), false
}

func magnitude(r int64) float64 {
	if r < 0 {
		return float64(-r)
	}
	return float64(r)
}

// encodeColumn writes the values that are present, at least one.
func (m *model) encodeColumn(e *rangeEncoder, v []int64) {
	predict, base, c, constant := plan(v)
	e.bit(&m.constant, toBit(constant))
	m.encodeBase(e, base)
	if constant {
		return
	}
	e.bit(&m.predict[0], toBit(predict == predictBase))
	if predict != predictBase {
		e.bit(&m.predict[1], toBit(predict == predictSlope))
	}
	e.raw(uint64(c), 5)
	mean, before := firstMean(c), 0
	for i := first(predict); i < len(v); i++ {
		r := residual(v, i, predict, base)
		abs := uint64(r)
		if r < 0 {
			abs = uint64(-r)
		}
		n := bits.Len64(abs)
		ctx := &m.exp[row(mean)]
		for k := range n {
			e.bit(&ctx[k], 1)
		}
		e.bit(&ctx[n], 0)
		if n > 1 {
			e.bit(&m.top[n], int(abs>>(n-2)&1))
			e.raw(abs, n-2)
		}
		before = m.encodeSign(e, r, before)
		mean = nextMean(mean, abs)
	}
}

// encodeSign writes the sign of r unless it is zero and returns the context
// of the next one.
func (m *model) encodeSign(e *rangeEncoder, r int64, before int) int {
	if r == 0 {
		return 0
	}
	e.bit(&m.sign[before], toBit(r > 0))
	return 1 + toBit(r > 0)
}

func (m *model) encodeBase(e *rangeEncoder, base int64) {
	abs := uint64(base)
	if base < 0 {
		abs = uint64(-base)
	}
	n := bits.Len64(abs)
	for k := range n {
		e.bit(&m.baseExp[k], 1)
	}
	e.bit(&m.baseExp[n], 0)
	if n > 1 {
		e.raw(abs, n-1)
	}
	if n > 0 {
		e.bit(&m.baseSign, toBit(base > 0))
	}
}

func toBit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// decodeColumn reads len(v) values, at least one; false means that no encoder
// writes this.
func (m *model) decodeColumn(d *rangeDecoder, v []int64) bool {
	constant := d.bit(&m.constant) == 1
	base, ok := m.decodeBase(d)
	if !ok {
		return false
	}
	if constant {
		for i := range v {
			v[i] = base
		}
		return true
	}
	predict := predictBase
	if d.bit(&m.predict[0]) == 0 {
		predict = predictLast + d.bit(&m.predict[1])
	}
	mean, before := firstMean(int(d.raw(5))), 0
	if first(predict) == 1 {
		v[0] = base
	}
	for i := first(predict); i < len(v); i++ {
		r, ok := m.decodeResidual(d, row(mean), &before)
		if !ok || d.starved() {
			return false
		}
		switch {
		case predict == predictBase:
			v[i] = base + r
		case predict == predictLast || i == 1:
			v[i] = v[i-1] + r
		default:
			v[i] = 2*v[i-1] - v[i-2] + r
		}
		if v[i] > maxValue || v[i] < -maxValue {
			return false
		}
		if r < 0 {
			r = -r
		}
		mean = nextMean(mean, uint64(r))
	}
	return true
}

func (m *model) decodeResidual(d *rangeDecoder, c int, before *int) (int64, bool) {
	n := 0
	for ctx := &m.exp[c]; d.bit(&ctx[n]) == 1; {
		if n++; n == exps {
			return 0, false
		}
	}
	if n == 0 {
		*before = 0
		return 0, true
	}
	abs := uint64(1)
	if n > 1 {
		abs = abs<<1 | uint64(d.bit(&m.top[n]))
		abs = abs<<(n-2) | d.raw(n-2)
	}
	sign := d.bit(&m.sign[*before])
	*before = 1 + sign
	if sign == 0 {
		return -int64(abs), true
	}
	return int64(abs), true
}

func (m *model) decodeBase(d *rangeDecoder) (int64, bool) {
	n := 0
	for d.bit(&m.baseExp[n]) == 1 {
		if n++; n == exps {
			return 0, false
		}
	}
	if n == 0 {
		return 0, true
	}
	abs := uint64(1)
	if n > 1 {
		abs = abs<<(n-1) | d.raw(n-1)
	}
	base := int64(abs)
	if d.bit(&m.baseSign) == 0 {
		base = -base
	}
	return base, base <= maxValue && base >= -maxValue
}
