package chunk

import (
	"encoding/binary"
	"math"
	mathbits "math/bits"
)

// A weight that training moved a little has nearly the same bits, read as a
// whole number that grows with the value. So the difference of those numbers is
// small; small differences of either sign fold to small numbers; and the bytes
// of the same weight of all numbers, one plane after the other, compress well.

// ordered32 maps the bits of a float to a number of the same order.
func ordered32(b uint32) uint32 {
	if b>>31 == 1 {
		return ^b
	}
	return b | 1<<31
}

func bits32(o uint32) uint32 {
	if o>>31 == 1 {
		return o &^ (1 << 31)
	}
	return ^o
}

func ordered16(b uint16) uint16 {
	if b>>15 == 1 {
		return ^b
	}
	return b | 1<<15
}

func bits16(o uint16) uint16 {
	if o>>15 == 1 {
		return o &^ (1 << 15)
	}
	return ^o
}

func fold32(d uint32) uint32   { return d<<1 ^ uint32(int32(d)>>31) }
func unfold32(z uint32) uint32 { return z>>1 ^ -(z & 1) }
func fold16(d uint16) uint16   { return d<<1 ^ uint16(int16(d)>>15) }
func unfold16(z uint16) uint16 { return z>>1 ^ -(z & 1) }

// delta returns the folded difference of number i, which begins at byte at.
func delta(target, base []byte, at, width int) uint32 {
	if width == 4 {
		return fold32(ordered32(binary.LittleEndian.Uint32(target[at:])) - ordered32(binary.LittleEndian.Uint32(base[at:])))
	}
	return uint32(fold16(ordered16(binary.LittleEndian.Uint16(target[at:])) - ordered16(binary.LittleEndian.Uint16(base[at:]))))
}

// packDelta appends to dst target as differences to base, both seen as numbers
// of width bytes after align others: a bit for each number that changed, then
// the planes of those, then the bytes at the edges.
func packDelta(dst, target, base []byte, l layout) []byte {
	n := (len(target) - l.align) / l.width
	bits := len(dst)
	dst = append(dst, make([]byte, (n+7)/8)...)
	var changed []uint32
	for i := range n {
		if d := delta(target, base, l.align+i*l.width, l.width); d != 0 {
			dst[bits+i/8] |= 1 << (i % 8)
			changed = append(changed, d)
		}
	}
	for p := range l.width {
		for _, d := range changed {
			dst = append(dst, byte(d>>(8*p)))
		}
	}
	return edges(dst, target, base, l, n)
}

// maxPacked is the largest result of packDelta for n bytes.
func maxPacked(n int) int { return n + n/16 + 8 }

// unpackDelta is the reverse: it fills dst, and reports whether packed had
// exactly what that takes.
func unpackDelta(dst, packed, base []byte, l layout) bool {
	n := (len(dst) - l.align) / l.width
	bits := packed[:min(len(packed), (n+7)/8)]
	changed := 0
	for _, b := range bits {
		changed += mathbits.OnesCount8(b)
	}
	planes := packed[len(bits):]
	edge := len(dst) - n*l.width
	if len(bits) != (n+7)/8 || len(planes) != changed*l.width+edge || n%8 != 0 && bits[n/8]>>(n%8) != 0 {
		return false
	}
	k := 0
	for i := range n {
		at := l.align + i*l.width
		if bits[i/8]&(1<<(i%8)) == 0 {
			copy(dst[at:at+l.width], base[at:])
			continue
		}
		d := uint32(0)
		for p := range l.width {
			d |= uint32(planes[p*changed+k]) << (8 * p)
		}
		k++
		if l.width == 4 {
			binary.LittleEndian.PutUint32(dst[at:], bits32(unfold32(d)+ordered32(binary.LittleEndian.Uint32(base[at:]))))
		} else {
			binary.LittleEndian.PutUint16(dst[at:], bits16(unfold16(uint16(d))+ordered16(binary.LittleEndian.Uint16(base[at:]))))
		}
	}
	unedge(dst, planes[changed*l.width:], base, l, n)
	return true
}

// packPlanes appends the planes of target's numbers to dst, then the bytes at
// the edges: as many bytes as target has.
func packPlanes(dst, target []byte, l layout) []byte {
	n := (len(target) - l.align) / l.width
	for p := range l.width {
		for i := range n {
			dst = append(dst, target[l.align+i*l.width+p])
		}
	}
	return edges(dst, target, nil, l, n)
}

func unpackPlanes(dst, planes []byte, l layout) {
	n := (len(dst) - l.align) / l.width
	for p := range l.width {
		for i := range n {
			dst[l.align+i*l.width+p] = planes[p*n+i]
		}
	}
	unedge(dst, planes[n*l.width:], nil, l, n)
}

// edges appends the bytes before the first of n numbers and after the last.
func edges(dst, target, base []byte, l layout, n int) []byte {
	for _, part := range [][2]int{{0, l.align}, {l.align + n*l.width, len(target)}} {
		for i := part[0]; i < part[1]; i++ {
			b := target[i]
			if base != nil {
				b -= base[i]
			}
			dst = append(dst, b)
		}
	}
	return dst
}

func unedge(dst, src, base []byte, l layout, n int) {
	k := 0
	for _, part := range [][2]int{{0, l.align}, {l.align + n*l.width, len(dst)}} {
		for i := part[0]; i < part[1]; i++ {
			dst[i] = src[k]
			if base != nil {
				dst[i] += base[i]
			}
			k++
		}
	}
}

// layout is how a block may be seen as numbers.
type layout struct{ width, align int }

var layouts = []layout{{4, 0}, {4, 1}, {4, 2}, {4, 3}, {2, 0}, {2, 1}}

const sampleSize = 64 << 10

// guess returns the layout under which a sample of the block has the fewest
// bits, and its share of the size.
func guess(target, base []byte) (best layout, share float64) {
	// The sample begins at a multiple of 4, so alignments are those of the block.
	from := max(0, len(target)-sampleSize) / 2 &^ 3
	t := target[from:min(len(target), from+sampleSize)]
	var b []byte
	if base != nil {
		b = base[from : from+len(t)]
	}
	share = math.Inf(1)
	for _, l := range layouts {
		if len(t) < 8 {
			break
		}
		if s := sampleBits(t, b, l) / 8 / float64(len(t)); s < share {
			best, share = l, s
		}
	}
	return best, share
}

// sampleBits counts what the planes of t need, each byte coded alone.
func sampleBits(t, base []byte, l layout) float64 {
	n := (len(t) - l.align) / l.width
	var count [4][256]int
	for i := range n {
		at := l.align + i*l.width
		var d uint32
		switch {
		case base != nil:
			d = delta(t, base, at, l.width)
		case l.width == 4:
			d = binary.LittleEndian.Uint32(t[at:])
		default:
			d = uint32(binary.LittleEndian.Uint16(t[at:]))
		}
		for p := range l.width {
			count[p][byte(d>>(8*p))]++
		}
	}
	bits := 0.0
	for p := range l.width {
		for _, c := range count[p] {
			if c > 0 {
				bits -= float64(c) * math.Log2(float64(c)/float64(n))
			}
		}
	}
	return bits
}
