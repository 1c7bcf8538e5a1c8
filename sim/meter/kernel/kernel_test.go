package kernel

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// direct is the definition of the convolution that Im2Col and MulNT compute together.
func direct(img, wgt []float64, c, h, w, m int, win Window) []float64 {
	out := make([]float64, m*win.OutH*win.OutW)
	for o := range m {
		for oy := range win.OutH {
			for ox := range win.OutW {
				var s float64
				for ch := range c {
					for ky := range win.KH {
						for kx := range win.KW {
							y, x := oy*win.StrideH-win.Top+ky*win.DilH, ox*win.StrideW-win.Left+kx*win.DilW
							if y < 0 || y >= h || x < 0 || x >= w {
								continue
							}
							s += img[(ch*h+y)*w+x] * wgt[((o*c+ch)*win.KH+ky)*win.KW+kx]
						}
					}
				}
				out[(o*win.OutH+oy)*win.OutW+ox] = s
			}
		}
	}
	return out
}

func TestConvolutionMatchesItsDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := func(name string, lo, hi int) int { return rapid.IntRange(lo, hi).Draw(t, name) }
		c, h, w, m := n("c", 1, 3), n("h", 1, 9), n("w", 1, 9), n("m", 1, 9)
		win := Window{KH: n("kh", 1, 4), KW: n("kw", 1, 4), StrideH: n("sh", 1, 3), StrideW: n("sw", 1, 3),
			DilH: n("dh", 1, 2), DilW: n("dw", 1, 2), Top: n("top", 0, 2), Left: n("left", 0, 2)}
		win.OutH, win.OutW = n("oh", 1, 6), n("ow", 1, 6)
		fill := func(name string, n int) []float64 {
			return rapid.SliceOfN(rapid.Float64Range(-1, 1), n, n).Draw(t, name)
		}
		img, wgt := fill("img", c*h*w), fill("wgt", m*c*win.KH*win.KW)
		k, p := c*win.KH*win.KW, win.OutH*win.OutW
		col, got := make([]float64, k*p), make([]float64, m*p)
		Im2Col(col, img, c, h, w, win)
		MulNT(got, wgt, col, nil, m, p, k)
		for i, want := range direct(img, wgt, c, h, w, m, win) {
			if math.Abs(got[i]-want) > 1e-12 {
				t.Fatalf("output %d: got %v, want %v", i, got[i], want)
			}
		}
	})
}

func BenchmarkMulNT(b *testing.B) {
	const m, n, k = 16, 121, 72
	out, x, y := make([]float32, m*n), make([]float32, m*k), make([]float32, n*k)
	for b.Loop() {
		MulNT(out, x, y, nil, m, n, k)
	}
	b.ReportMetric(float64(m*n*k)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GMAC/s")
}
