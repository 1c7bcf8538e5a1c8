package interp

import (
	"fmt"
	"math"

	"github.com/skein-fleet/skein/sim/meter/kernel"
	"github.com/skein-fleet/skein/sim/meter/onnx"
)

// geometry holds the attributes that Conv and MaxPool share, for two
// dimensions: height, then width.
type geometry struct {
	kernel, stride, dil []int
	pads                []int // top, left, bottom, right
	auto                string
	ceil                bool
}

func newGeometry(a *attrs) geometry {
	g := geometry{
		kernel: a.sizes("kernel_shape", 2, 1, nil),
		stride: a.sizes("strides", 2, 1, []int{1, 1}),
		dil:    a.sizes("dilations", 2, 1, []int{1, 1}),
		pads:   a.sizes("pads", 4, 0, []int{0, 0, 0, 0}),
		auto:   a.text("auto_pad", "NOTSET"),
	}
	switch g.auto {
	case "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER":
	default:
		a.err = fmt.Errorf("%w: auto_pad %q", ErrUnsupported, g.auto)
	}
	return g
}

// window works out the positions on an h × w image.
func (g *geometry) window(kh, kw, h, w int) (kernel.Window, error) {
	win := kernel.Window{KH: kh, KW: kw, StrideH: g.stride[0], StrideW: g.stride[1], DilH: g.dil[0], DilW: g.dil[1]}
	var err error
	if win.OutH, win.Top, err = g.axis(h, kh, 0); err != nil {
		return win, err
	}
	win.OutW, win.Left, err = g.axis(w, kw, 1)
	return win, err
}

// axis returns the number of positions and the padding before the first.
func (g *geometry) axis(size, k, i int) (out, before int, err error) {
	span, stride := (k-1)*g.dil[i]+1, g.stride[i]
	before, after := g.pads[i], g.pads[i+2]
	switch g.auto {
	case "VALID":
		before, after = 0, 0
	case "SAME_UPPER", "SAME_LOWER":
		out = (size + stride - 1) / stride
		total := max(0, (out-1)*stride+span-size)
		before = total / 2
		if g.auto == "SAME_LOWER" {
			before = total - total/2
		}
		return out, before, nil
	}
	room := size + before + after - span
	if size < 1 || room < 0 {
		return 0, 0, shapeErr("a kernel of %d on %d pixels", span, size)
	}
	out = room/stride + 1
	if g.ceil && room%stride != 0 && out*stride < size+before {
		out++
	}
	return out, before, nil
}

func buildConv(c *compiler, n *onnx.Node, a *attrs) (op, error) {
	g := newGeometry(a)
	groups := a.int("group", 1)
	if a.err != nil {
		return nil, a.err
	}
	if groups < 1 || groups > 1<<16 {
		return nil, fmt.Errorf("%w: %d groups", ErrUnsupported, groups)
	}
	if v := c.fixed(n.Inputs[1]); v != nil && len(v.shape) != 4 {
		return nil, fmt.Errorf("%w: weights of shape %v: only two-dimensional convolution is built", ErrUnsupported, v.shape)
	}
	return func(w *work, in []*value, out *value) error {
		var bias *value
		if len(in) == 3 {
			bias = in[2]
		}
		return conv(w, &g, int(groups), in[0], in[1], bias, out)
	}, nil
}

func conv(w *work, g *geometry, groups int, x, wgt, bias, out *value) error {
	if len(x.shape) != 4 || len(wgt.shape) != 4 {
		return shapeErr("input %v and weights %v: want four dimensions", x.shape, wgt.shape)
	}
	batch, ch, h, wd := x.shape[0], x.shape[1], x.shape[2], x.shape[3]
	m, per, kh, kw := wgt.shape[0], wgt.shape[1], wgt.shape[2], wgt.shape[3]
	if m < 1 || per < 1 || per*groups != ch || m%groups != 0 || kh < 1 || kw < 1 || kh > 1<<16 || kw > 1<<16 {
		return shapeErr("input %v, weights %v, %d groups", x.shape, wgt.shape, groups)
	}
	if g.kernel != nil && (g.kernel[0] != kh || g.kernel[1] != kw) {
		return shapeErr("kernel_shape %v and weights %v", g.kernel, wgt.shape)
	}
	if bias != nil && (len(bias.shape) != 1 || bias.shape[0] != m) {
		return shapeErr("a bias of %v for %d planes", bias.shape, m)
	}
	win, err := g.window(kh, kw, h, wd)
	if err != nil {
		return err
	}
	p, k, mg := win.OutH*win.OutW, per*kh*kw, m/groups
	if err := w.spend(batch, m, p, k); err != nil {
		return err
	}
	if err := w.take(out, batch, m, win.OutH, win.OutW); err != nil {
		return err
	}
	if batch == 0 {
		return nil
	}
	if err := w.scratch(int64(p) * int64(k)); err != nil {
		return err
	}
	w.col = grow(w.col, p*k)
	area := h * wd
	for b := range batch {
		for gr := range groups {
			img := x.data[(b*ch+gr*per)*area : (b*ch+(gr+1)*per)*area]
			kernel.Im2Col(w.col, img, per, h, wd, win)
			var add []float32
			if bias != nil {
				add = bias.data[gr*mg : (gr+1)*mg]
			}
			at := (b*m + gr*mg) * p
			kernel.MulNT(out.data[at:at+mg*p], wgt.data[gr*mg*k:(gr+1)*mg*k], w.col, add, mg, p, k)
		}
	}
	return nil
}

func buildMaxPool(_ *compiler, _ *onnx.Node, a *attrs) (op, error) {
	g := newGeometry(a)
	g.ceil = a.int("ceil_mode", 0) != 0
	a.only("storage_order", 0)
	if a.err != nil {
		return nil, a.err
	}
	if g.kernel == nil {
		return nil, fmt.Errorf("%w: no kernel_shape", ErrUnsupported)
	}
	return func(w *work, in []*value, out *value) error {
		x := in[0]
		if len(x.shape) != 4 {
			return shapeErr("%v: want four dimensions", x.shape)
		}
		h, wd := x.shape[2], x.shape[3]
		win, err := g.window(g.kernel[0], g.kernel[1], h, wd)
		if err != nil {
			return err
		}
		if err := w.take(out, x.shape[0], x.shape[1], win.OutH, win.OutW); err != nil {
			return err
		}
		p := win.OutH * win.OutW
		inside := win.KH == 2 && win.KW == 2 && win.Top == 0 && win.Left == 0 && win.DilH == 1 && win.DilW == 1 &&
			(win.OutH-1)*win.StrideH+2 <= h && (win.OutW-1)*win.StrideW+2 <= wd
		for i := range x.shape[0] * x.shape[1] {
			plane, dst := x.data[i*h*wd:(i+1)*h*wd], out.data[i*p:(i+1)*p]
			if inside {
				pool2x2(dst, plane, wd, win)
			} else {
				pool(dst, plane, h, wd, win)
			}
		}
		return nil
	}, nil
}

func pool2x2(dst, plane []float32, w int, win kernel.Window) {
	for y := range win.OutH {
		top := y * win.StrideH * w
		r0, r1 := plane[top:top+w], plane[top+w:top+2*w]
		out := dst[y*win.OutW : (y+1)*win.OutW]
		for i := range out {
			x := i * win.StrideW
			m := r0[x]
			if v := r0[x+1]; v > m {
				m = v
			}
			if v := r1[x]; v > m {
				m = v
			}
			if v := r1[x+1]; v > m {
				m = v
			}
			out[i] = m
		}
	}
}

func pool(dst, plane []float32, h, w int, win kernel.Window) {
	for oy := range win.OutH {
		for ox := range win.OutW {
			m := float32(math.Inf(-1))
			for ky := range win.KH {
				y := oy*win.StrideH - win.Top + ky*win.DilH
				if y < 0 || y >= h {
					continue
				}
				for kx := range win.KW {
					if x := ox*win.StrideW - win.Left + kx*win.DilW; x >= 0 && x < w {
						m = max(m, plane[y*w+x])
					}
				}
			}
			dst[oy*win.OutW+ox] = m
		}
	}
}
