package tegra

import "strings"

// families are the engines whose load tegrastats prints; each may carry an
// index and the suffix _FREQ or _LOAD.
var families = map[string]bool{
	"GR3D": true, "EMC": true,
	"AVP": true, "APE": true, "ADSP": true, "VDE": true, "MSENC": true,
	"NVENC": true, "NVDEC": true, "NVJPG": true, "VIC": true, "OFA": true, "SE": true, "TSEC": true,
	"NVDLA": true, "DLA": true, "PVA": true, "ISP": true, "VI": true, "NVCSI": true, "CVNAS": true,
	"RCE": true, "SCE": true, "DCE": true,
}

// familyOf returns the engine family of a field name in any case, or "".
func familyOf(name string) string {
	name = strings.ToUpper(name)
	if name == "GR3D_PCI" {
		return name
	}
	n := strings.TrimSuffix(strings.TrimSuffix(name, "_FREQ"), "_LOAD")
	n = strings.TrimRight(n, "0123456789")
	if n == "GR" || !families[n] {
		return ""
	}
	return n
}

// reading is what a load says.
type reading struct {
	pct  *float64
	mhz  []*float64
	off  bool
	each []float64
}

// load reads the value of an engine, memory controller or GPU field.
func (p *parser) load(name, family string) bool {
	r, ok := p.reading()
	if !ok || !p.boundary() {
		return false
	}
	switch family {
	case "GR3D":
		return p.gpu(name, r)
	case "GR3D_PCI":
		p.out.DGPU = newGPU(r)
		return true
	case "EMC":
		e := merge(p.out.EMC, r)
		p.out.EMC = &e
		return true
	}
	key := strings.TrimSuffix(strings.TrimSuffix(strings.ToLower(name), "_freq"), "_load")
	if p.out.Engines == nil {
		p.out.Engines = map[string]Engine{}
	}
	old, seen := p.out.Engines[key]
	if !seen && len(p.out.Engines) >= maxNames {
		return false
	}
	p.out.Engines[key] = merge(&old, r)
	return true
}

// gpu places GR3D, GR3D_FREQ and the second cluster of GR3D2_FREQ.
func (p *parser) gpu(name string, r reading) bool {
	g := p.out.GR3D
	second := strings.HasPrefix(strings.ToUpper(name), "GR3D2")
	switch {
	case !second:
		p.out.GR3D = newGPU(r)
	case g == nil || len(g.MHz)+len(r.mhz) >= maxClocks:
		return false
	default:
		if len(g.MHz) == 0 && len(r.mhz) > 0 {
			g.MHz = append(g.MHz, nil) // the first cluster printed no clock
		}
		g.Pct2 = r.pct
		g.MHz = append(g.MHz, r.mhz...)
	}
	return true
}

func newGPU(r reading) *GPU {
	g := &GPU{Pct: r.pct, MHz: r.mhz, Off: r.off}
	if g.MHz == nil {
		g.MHz = []*float64{} // an empty list in JSON, not null
	}
	return g
}

// merge adds a reading to what an earlier field (VIC_LOAD beside VIC_FREQ)
// said of the same engine.
func merge(old *Engine, r reading) Engine {
	var e Engine
	if old != nil {
		e = *old
	}
	e.Off = r.off
	if r.pct != nil {
		e.Pct = r.pct
	}
	if len(r.each) > 0 {
		e.Each = r.each
	}
	if len(r.mhz) > 0 {
		e.MHz = r.mhz[0]
	}
	return e
}

// reading reads
//
//	off | n% | n%@clock | @clock | mhz | [n%,…]@mhz | [mhz,…]
//	clock = mhz | [mhz,…]
//
// where a clock list may hold "off" or nothing for a cluster without one.
func (p *parser) reading() (reading, bool) {
	var r reading
	switch c := p.peek(); {
	case c == 'o' || c == 'O':
		r.off = strings.EqualFold(p.letters(), "off")
		return r, r.off
	case c == '[':
		return p.unitList()
	case isDigit(c):
		if pct, ok := p.pct(); ok {
			r.pct = &pct
			break
		}
		mhz, ok := p.number(false)
		r.mhz = []*float64{&mhz}
		return r, ok
	case c != '@':
		return r, false
	}
	if !p.eat('@') {
		return r, true
	}
	mhz, ok := p.clock()
	r.mhz = mhz
	return r, ok
}

// clock reads one clock or a list of them.
func (p *parser) clock() ([]*float64, bool) {
	if p.peek() != '[' {
		mhz, ok := p.number(false)
		return []*float64{&mhz}, ok
	}
	var out []*float64
	valid := true
	closed := p.list(func() bool {
		var v *float64
		switch {
		case isDigit(p.peek()):
			n, ok := p.number(false)
			if !ok {
				return false
			}
			v = &n
		case strings.HasPrefix(p.s[p.pos:], "N/A"):
			p.pos += len("N/A")
		case isLetter(p.peek()):
			if w := p.letters(); !strings.EqualFold(w, "off") {
				return false
			}
		}
		out = append(out, v)
		return len(out) <= maxClocks
	}, func(string) { valid = false })
	return out, closed && valid && len(out) <= maxClocks
}

// unitList reads "[n%,n%]@mhz", the form of a PVA with its vector units, or a
// plain list of clocks.
func (p *parser) unitList() (reading, bool) {
	start := p.pos
	var r reading
	valid := true
	closed := p.list(func() bool {
		n, ok := p.pct()
		r.each = append(r.each, n)
		return ok && len(r.each) <= maxClocks
	}, func(string) { valid = false })
	if !closed {
		return r, false
	}
	if !valid {
		p.pos = start
		mhz, ok := p.clock()
		return reading{mhz: mhz}, ok
	}
	for _, v := range r.each {
		if r.pct == nil || v > *r.pct {
			r.pct = new(v)
		}
	}
	if p.eat('@') {
		mhz, ok := p.number(false)
		if !ok {
			return r, false
		}
		r.mhz = []*float64{&mhz}
	}
	return r, true
}
