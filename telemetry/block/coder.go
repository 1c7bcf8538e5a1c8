package block

// bit is one adaptive binary model: the probability (of 65536) that the next
// bit is 1, and how many bits it has seen, which sets how fast it moves.
type bit struct {
	p uint16
	n uint8
}

const (
	pMin  = 96
	pMax  = 65536 - pMin
	nMost = 30 // a model follows about this many of the last bits
)

// rate[n] is 65536/(n+1.5), the share of the error that is corrected.
var rate = func() (r [nMost + 1]int32) {
	for n := range r {
		r[n] = int32(2 * 65536 / (2*n + 3))
	}
	return r
}()

func (m *bit) update(b int) {
	target := int32(0)
	if b != 0 {
		target = 65535
	}
	p := int32(m.p)
	p += int32(int64(target-p) * int64(rate[m.n]) >> 16)
	m.p = uint16(max(pMin, min(pMax, p)))
	if m.n < nMost {
		m.n++
	}
}

const half = 1 << 15

// rangeEncoder is a carry-less binary range coder: [lo, hi] shrinks by the
// probability of each bit, and bytes on which both ends agree go out.
type rangeEncoder struct {
	lo, hi uint32
	out    []byte
}

// mid splits [lo, hi] at a share of p/65536; lo <= mid < hi always holds.
func mid(lo, hi uint32, p uint16) uint32 {
	return lo + uint32(uint64(hi-lo)*uint64(p)>>16)
}

func (e *rangeEncoder) encode(b int, p uint16) {
	m := mid(e.lo, e.hi, p)
	if b != 0 {
		e.hi = m
	} else {
		e.lo = m + 1
	}
	for (e.lo^e.hi)>>24 == 0 {
		e.out = append(e.out, byte(e.hi>>24))
		e.lo <<= 8
		e.hi = e.hi<<8 | 0xff
	}
}

func (e *rangeEncoder) bit(m *bit, b int) {
	e.encode(b, m.p)
	m.update(b)
}

// raw writes the low n bits of v without a model.
func (e *rangeEncoder) raw(v uint64, n int) {
	for i := n - 1; i >= 0; i-- {
		e.encode(int(v>>i&1), half)
	}
}

// finish writes the one byte that, with zeros after it, lies inside [lo, hi]:
// their first bytes differ.
func (e *rangeEncoder) finish() []byte {
	return append(e.out, byte(e.lo>>24)+1)
}

// rangeDecoder undoes rangeEncoder; past its input it reads zeros.
type rangeDecoder struct {
	lo, hi, x uint32
	in        []byte
	shifts    int
}

func newRangeDecoder(in []byte) *rangeDecoder {
	d := &rangeDecoder{hi: 1<<32 - 1, in: in}
	for i := range 4 {
		d.x <<= 8
		if i < len(in) {
			d.x |= uint32(in[i])
		}
	}
	return d
}

func (d *rangeDecoder) decode(p uint16) int {
	m := mid(d.lo, d.hi, p)
	b := 0
	if d.x <= m {
		b = 1
		d.hi = m
	} else {
		d.lo = m + 1
	}
	for (d.lo^d.hi)>>24 == 0 {
		d.lo <<= 8
		d.hi = d.hi<<8 | 0xff
		d.x <<= 8
		d.shifts++
		if i := d.shifts + 3; i < len(d.in) {
			d.x |= uint32(d.in[i])
		}
	}
	return b
}

func (d *rangeDecoder) bit(m *bit) int {
	b := d.decode(m.p)
	m.update(b)
	return b
}

func (d *rangeDecoder) raw(n int) uint64 {
	v := uint64(0)
	for range n {
		v = v<<1 | uint64(d.decode(half))
	}
	return v
}

// starved reports that decoding has run past the end of the input, so that
// the rest would be made of zeros.
func (d *rangeDecoder) starved() bool { return d.shifts+1 > len(d.in) }

// exact reports that decoding used up the input to its last byte, and that
// this byte is the one that the encoder ends with.
func (d *rangeDecoder) exact() bool {
	return d.shifts+1 == len(d.in) && d.in[len(d.in)-1] == byte(d.lo>>24)+1
}
