package tegra

import (
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Grammar says how one release prints on one module. The zero value is R32's
// form without clocks' units; orders that are not given are alphabetical.
type Grammar struct {
	OldNames    bool // R21 to R24: "cpu", "EMC", "GR3D", and the GPU after the other engines
	SharedClock bool // one "@mhz" after the list of cores
	Timestamp   bool // R34 and later
	Milliwatts  bool // R34 and later print "mW" after each value of a rail
	Peaks       bool // R39: third value of a rail, second of a zone
	SplitGPC    bool // R34, R35: the second cluster as GR3D2_FREQ
	ListGPC     bool // R35.4 and later: clocks in brackets even where there is one
	ZonesGated  bool // R35 and before print -256C for a block without power
	// Engines gives the printed names in order ("NVENC", "VIC_FREQ", "APE").
	Engines []string
	Zones   []string
	Rails   []string
}

// Format prints s in the grammar g, so that Parse of the text gives s again
// where the grammar can say it all. Unknown tokens come last.
func Format(s Stats, g Grammar) string {
	w := writer{g: g}
	if g.Timestamp && len(s.Time) == len("2006-01-02T15:04:05") {
		w.add(s.Time[5:7], "-", s.Time[8:10], "-", s.Time[0:4], " ", s.Time[11:19])
	}
	w.memory(&s)
	w.cpu(&s)
	if s.EMC != nil {
		w.load(pick(g.OldNames, "EMC", "EMC_FREQ"), *s.EMC)
	}
	if !g.OldNames {
		w.gpu(s.GR3D)
	}
	w.engines(s.Engines)
	if g.OldNames {
		w.gpu(s.GR3D)
	}
	if s.DGPU != nil {
		w.add("GR3D_PCI ", gpuLoad(s.DGPU.Pct, s.DGPU.MHz, s.DGPU.Off, g.ListGPC))
	}
	if s.MTS != nil {
		w.add("MTS fg ", num(s.MTS.FgPct), "% bg ", num(s.MTS.BgPct), "%")
	}
	if s.EDPLimit != nil {
		w.add("EDP limit ", num(*s.EDPLimit))
	}
	w.zones(&s)
	w.rails(s.PowerMW)
	for _, u := range s.Unknown {
		w.add(u.String())
	}
	return w.b.String()
}

type writer struct {
	g Grammar
	b strings.Builder
}

// add writes one field.
func (w *writer) add(parts ...string) {
	if w.b.Len() > 0 {
		w.b.WriteByte(' ')
	}
	for _, p := range parts {
		w.b.WriteString(p)
	}
}

func (w *writer) memory(s *Stats) {
	if s.RAMUsedMB != nil && s.RAMTotalMB != nil {
		lfb := ""
		if s.RAMLfb != nil {
			lfb = " (lfb " + num(s.RAMLfb.Blocks) + "x" + size(s.RAMLfb.KB) + ")"
		}
		w.add("RAM ", num(*s.RAMUsedMB), "/", num(*s.RAMTotalMB), "MB", lfb)
	}
	if s.SwapUsedMB != nil && s.SwapTotalMB != nil {
		cached := ""
		if s.SwapCachedMB != nil {
			cached = " (cached " + num(*s.SwapCachedMB) + "MB)"
		}
		w.add("SWAP ", num(*s.SwapUsedMB), "/", num(*s.SwapTotalMB), "MB", cached)
	}
	if s.IRAMUsedKB != nil && s.IRAMTotalKB != nil {
		lfb := ""
		if s.IRAMLfbKB != nil {
			lfb = "(lfb " + num(*s.IRAMLfbKB) + "kB)"
		}
		w.add("IRAM ", num(*s.IRAMUsedKB), "/", num(*s.IRAMTotalKB), "kB", lfb)
	}
}

// cpu prints one list of cores per cluster name.
func (w *writer) cpu(s *Stats) {
	for rest := s.CPU; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].Cluster == rest[0].Cluster {
			n++
		}
		var cores []string
		for _, c := range rest[:n] {
			switch {
			case c.Off:
				cores = append(cores, "off")
			case c.Pct == nil:
				cores = append(cores, "")
			case c.MHz == nil || w.g.SharedClock && s.CPUMHz != nil:
				cores = append(cores, num(*c.Pct)+"%")
			default:
				cores = append(cores, num(*c.Pct)+"%@"+num(*c.MHz))
			}
		}
		name := rest[0].Cluster
		if name == "" {
			name = pick(w.g.OldNames, "cpu", "CPU")
		}
		shared := ""
		if w.g.SharedClock && s.CPUMHz != nil {
			shared = "@" + num(*s.CPUMHz)
		}
		w.add(name, " [", strings.Join(cores, ","), "]", shared)
		rest = rest[n:]
	}
}

func (w *writer) load(name string, e Engine) {
	pct := ""
	switch {
	case len(e.Each) > 0:
		var each []string
		for _, v := range e.Each {
			each = append(each, num(v)+"%")
		}
		pct = "[" + strings.Join(each, ",") + "]"
	case e.Pct != nil:
		pct = num(*e.Pct) + "%"
	}
	switch {
	case e.Off:
		w.add(name, " off")
	case e.MHz == nil && pct != "":
		w.add(name, " ", pct)
	case e.MHz == nil:
	case pct == "" && bareClock(name):
		w.add(name, " ", num(*e.MHz))
	default:
		w.add(name, " ", pct, "@", num(*e.MHz))
	}
}

// bareClock reports the names after which the clock stands without an @: all
// but the numbered _FREQ engines of R35 and later.
func bareClock(name string) bool {
	n, freq := strings.CutSuffix(name, "_FREQ")
	return n != "EMC" && (!freq || n == "VIC")
}

func (w *writer) gpu(g *GPU) {
	if g == nil {
		return
	}
	name := pick(w.g.OldNames, "GR3D", "GR3D_FREQ")
	if g.Pct2 != nil && w.g.SplitGPC {
		first, second := g.MHz, []*float64(nil)
		if n := len(g.MHz); n > 0 {
			first, second = g.MHz[:n-1], g.MHz[n-1:]
		}
		w.add(name, " ", gpuLoad(g.Pct, first, g.Off, false))
		w.add("GR3D2_FREQ ", gpuLoad(g.Pct2, second, false, false))
		return
	}
	if text := gpuLoad(g.Pct, g.MHz, g.Off, w.g.ListGPC); text != "" {
		w.add(name, " ", text)
	}
}

func gpuLoad(pct *float64, mhz []*float64, off, list bool) string {
	if off {
		return "off"
	}
	text := ""
	if pct != nil {
		text = num(*pct) + "%"
	}
	if len(mhz) == 0 || len(mhz) == 1 && mhz[0] == nil && !list {
		return text
	}
	if len(mhz) == 1 && !list {
		return text + "@" + num(*mhz[0])
	}
	var clocks []string
	for _, m := range mhz {
		if m == nil {
			clocks = append(clocks, "off")
			continue
		}
		clocks = append(clocks, num(*m))
	}
	return text + "@[" + strings.Join(clocks, ",") + "]"
}

func (w *writer) engines(engines map[string]Engine) {
	left := maps.Clone(engines)
	for _, printed := range w.g.Engines {
		key := strings.ToLower(strings.TrimSuffix(printed, "_FREQ"))
		if e, ok := left[key]; ok {
			w.load(printed, e)
			delete(left, key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(left)) {
		w.load(strings.ToUpper(key), left[key])
	}
}

func (w *writer) zones(s *Stats) {
	off := slices.Clone(s.ZonesOff)
	one := func(zone string) {
		if i := slices.Index(off, zone); i >= 0 {
			off = slices.Delete(off, i, i+1)
			if w.g.ZonesGated {
				w.add(zone, "@-256C")
			}
			return
		}
		t, ok := s.TempsC[zone]
		if !ok {
			return
		}
		peak := ""
		if p, ok := s.TempsPeakC[zone]; ok && w.g.Peaks {
			peak = "/" + num(p) + "C"
		}
		w.add(plainName(zone), "@", num(t), "C", peak)
	}
	for _, zone := range inOrder(w.g.Zones, s.TempsC, off) {
		one(zone)
	}
}

func (w *writer) rails(rails map[string]Rail) {
	unit := pick(w.g.Milliwatts, "mW", "")
	for _, name := range inOrder(w.g.Rails, rails, nil) {
		r := rails[name]
		switch {
		case r.Avg == nil:
			w.add(plainName(name), " ", num(r.Now), "mW")
		case r.Peak != nil && w.g.Peaks:
			w.add(plainName(name), " ", num(r.Now), unit, "/", num(*r.Avg), unit, "/", num(*r.Peak), unit)
		default:
			w.add(plainName(name), " ", num(r.Now), unit, "/", num(*r.Avg), unit)
		}
	}
}

// inOrder lists the keys of m and the extra names: those of order first.
func inOrder[V any](order []string, m map[string]V, extra []string) []string {
	var out []string
	for _, n := range order {
		if _, ok := m[n]; ok || slices.Contains(extra, n) {
			out = append(out, n)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(m)) {
		if !slices.Contains(order, n) {
			out = append(out, n)
		}
	}
	for _, n := range extra {
		if !slices.Contains(order, n) {
			out = append(out, n)
		}
	}
	return out
}

// plainName takes away the "#2" of a name that stands twice on a line.
func plainName(s string) string {
	name, _, _ := strings.Cut(s, "#")
	return name
}

func pick(c bool, a, b string) string {
	if c {
		return a
	}
	return b
}

// size prints a block size in the unit that tegrastats would use.
func size(kb float64) string {
	if kb >= 1024 {
		return num(kb/1024) + "MB"
	}
	return num(kb) + "kB"
}

func num(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
