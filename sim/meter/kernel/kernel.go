// Package kernel holds the few inner loops that the trainer and the
// interpreter share: patch extraction and a blocked product of row-major
// matrices. It owns no memory and starts no goroutine; every sum runs in one
// fixed order, so equal inputs give equal bits on one processor family. Only
// the packages below sim/meter import it.
package kernel

// Float is what the loops compute in: float32 in use, float64 where a test
// compares gradients with finite differences.
type Float interface{ float32 | float64 }

// Window describes how a two-dimensional kernel moves over an image.
type Window struct {
	KH, KW           int // size of the kernel
	StrideH, StrideW int
	DilH, DilW       int
	Top, Left        int // padding before the first row and column
	OutH, OutW       int // positions
}

// Im2Col writes one row of c*KH*KW values for every output position of img
// (c planes of h × w); what lies outside the image is zero.
func Im2Col[T Float](dst, img []T, c, h, w int, win Window) {
	if win.StrideH == 1 && win.StrideW == 1 && win.DilH == 1 && win.DilW == 1 &&
		win.Top == 0 && win.Left == 0 && win.OutH+win.KH-1 <= h && win.OutW+win.KW-1 <= w {
		im2colInside(dst, img, c, h, w, win)
		return
	}
	at := 0
	for oy := range win.OutH {
		for ox := range win.OutW {
			for ch := range c {
				plane := img[ch*h*w : (ch+1)*h*w]
				for ky := range win.KH {
					y := oy*win.StrideH - win.Top + ky*win.DilH
					row := dst[at : at+win.KW]
					at += win.KW
					if y < 0 || y >= h {
						clear(row)
						continue
					}
					x := ox*win.StrideW - win.Left
					for kx := range row {
						if x >= 0 && x < w {
							row[kx] = plane[y*w+x]
						} else {
							row[kx] = 0
						}
						x += win.DilW
					}
				}
			}
		}
	}
}

func im2colInside[T Float](dst, img []T, c, h, w int, win Window) {
	at := 0
	for oy := range win.OutH {
		for ox := range win.OutW {
			for ch := range c {
				from := ch*h*w + oy*w + ox
				if win.KW == 3 {
					for range win.KH {
						src := img[from : from+3 : from+3]
						d := dst[at : at+3 : at+3]
						d[0], d[1], d[2] = src[0], src[1], src[2]
						at += 3
						from += w
					}
					continue
				}
				for range win.KH {
					copy(dst[at:at+win.KW], img[from:from+win.KW])
					at += win.KW
					from += w
				}
			}
		}
	}
}

// MulNT computes out[i][j] = bias[i] + Σ a[i][l]·b[j][l] for the m × k matrix a
// and the n × k matrix b. bias may be nil.
func MulNT[T Float](out, a, b, bias []T, m, n, k int) {
	i := 0
	for ; i+4 <= m; i += 4 {
		var c [4]T
		if bias != nil {
			copy(c[:], bias[i:i+4])
		}
		a0, a1, a2, a3 := a[i*k:(i+1)*k], a[(i+1)*k:(i+2)*k], a[(i+2)*k:(i+3)*k], a[(i+3)*k:(i+4)*k]
		o0, o1, o2, o3 := out[i*n:(i+1)*n], out[(i+1)*n:(i+2)*n], out[(i+2)*n:(i+3)*n], out[(i+3)*n:(i+4)*n]
		j := 0
		for ; j+2 <= n; j += 2 {
			s := dot4x2(a0, a1, a2, a3, b[j*k:(j+1)*k], b[(j+1)*k:(j+2)*k])
			o0[j], o0[j+1] = c[0]+s[0], c[0]+s[1]
			o1[j], o1[j+1] = c[1]+s[2], c[1]+s[3]
			o2[j], o2[j+1] = c[2]+s[4], c[2]+s[5]
			o3[j], o3[j+1] = c[3]+s[6], c[3]+s[7]
		}
		for ; j < n; j++ {
			r := b[j*k : (j+1)*k]
			o0[j], o1[j] = c[0]+Dot(a0, r), c[1]+Dot(a1, r)
			o2[j], o3[j] = c[2]+Dot(a2, r), c[3]+Dot(a3, r)
		}
	}
	for ; i < m; i++ {
		var c T
		if bias != nil {
			c = bias[i]
		}
		row := a[i*k : (i+1)*k]
		for j := range n {
			out[i*n+j] = c + Dot(row, b[j*k:(j+1)*k])
		}
	}
}

func dot4x2[T Float](a0, a1, a2, a3, b0, b1 []T) (s [8]T) {
	n := len(b0)
	a0, a1, a2, a3, b1 = a0[:n], a1[:n], a2[:n], a3[:n], b1[:n]
	var s0, s1, s2, s3, s4, s5, s6, s7 T
	for l, x := range b0 {
		y := b1[l]
		w := a0[l]
		s0 += w * x
		s1 += w * y
		w = a1[l]
		s2 += w * x
		s3 += w * y
		w = a2[l]
		s4 += w * x
		s5 += w * y
		w = a3[l]
		s6 += w * x
		s7 += w * y
	}
	return [8]T{s0, s1, s2, s3, s4, s5, s6, s7}
}

// Dot returns Σ a[i]·b[i] over the length of b, in four interleaved sums.
func Dot[T Float](a, b []T) T {
	n := len(b)
	a = a[:n]
	var s0, s1, s2, s3 T
	i := 0
	for ; i+4 <= n; i += 4 {
		p, q := a[i:i+4:i+4], b[i:i+4:i+4]
		s0 += p[0] * q[0]
		s1 += p[1] * q[1]
		s2 += p[2] * q[2]
		s3 += p[3] * q[3]
	}
	for ; i < n; i++ {
		s0 += a[i] * b[i]
	}
	return (s0 + s1) + (s2 + s3)
}

// Axpy adds g·x to y.
func Axpy[T Float](y, x []T, g T) {
	y = y[:len(x)]
	for i, v := range x {
		y[i] += g * v
	}
}
