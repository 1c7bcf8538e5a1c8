package tegra

import (
	"strconv"
	"strings"
)

// Bounds on what one line may make us hold.
const (
	maxCores     = 1024
	maxClocks    = 64
	maxNames     = 128 // zones, rails and engines each
	maxUnknown   = 64
	maxTokenText = 128
)

// gatedC is what tegrastats prints for the zone of a block without power.
const gatedC = -256

// parser builds Stats from one line.
type parser struct {
	scanner
	out Stats
}

// Parse reads one line of tegrastats in the grammar of any release. It never
// fails: an empty or foreign line gives Stats that are Empty. Stamps and tags
// that a logger put before the line are passed over.
//
//	line  = [ MM-DD-YYYY hh:mm:ss ] { field }
//	field = RAM n/nMB [(lfb NxZMB)] | SWAP n/nMB [(cached nMB)] | IRAM n/nkB [(lfb nkB)]
//	      | CPU [core,…][@mhz]          core = off | n% | n%@mhz
//	      | NAME load                   load = off | n% | n%@clock | @clock | mhz | [n%,…]@mhz
//	      | MTS fg n% bg n% | EDP limit n
//	      | ZONE@nC[/nC]                (now, peak)
//	      | RAIL n/n | RAIL nmW[/nmW[/nmW]]   (now, average, peak)
func Parse(line string) Stats {
	p := parser{scanner: scanner{s: line}}
	p.prefix()
	for p.blank(); !p.done(); p.blank() {
		p.field()
	}
	return p.out
}

// field reads one field; at least one byte is consumed.
func (p *parser) field() {
	start := p.pos
	name := p.word()
	if at := strings.IndexByte(name, '@'); at > 0 && p.temperature(name, at) {
		return
	}
	afterName := p.pos
	p.blank()
	ok := false
	switch family := familyOf(name); {
	case p.peek() == '[' && isCPU(name):
		ok = p.cores(name)
	case name == "RAM" || name == "SWAP" || name == "IRAM":
		ok = p.memory(name)
	case name == "MTS":
		ok = p.mts()
	case name == "EDP":
		ok = p.edp()
	case family != "":
		value := p.pos
		if ok = p.load(name, family); !ok {
			p.pos = value
			ok = p.rail(name)
		}
	default:
		ok = p.rail(name)
	}
	if ok {
		return
	}
	// Not what the name promised: keep the text up to the end of the value,
	// or to where a list that did not fit was read, whichever is later.
	p.pos = afterName
	p.blank()
	if valueLike(p.s[p.pos:]) {
		p.word()
		p.group()
	} else {
		p.pos = afterName
	}
	if p.pos < p.far {
		p.pos = p.far
		p.word()
	}
	p.unknown(name, strings.TrimSpace(p.s[min(start+len(name), p.pos):p.pos]))
}

// group skips a short "( … )" after the value of an unknown token.
func (p *parser) group() {
	save := p.pos
	p.blank()
	if p.peek() == '(' {
		if end := strings.IndexByte(p.s[p.pos:min(len(p.s), p.pos+maxTokenText)], ')'); end > 0 {
			p.pos += end + 1
			return
		}
	}
	p.pos = save
}

func valueLike(s string) bool {
	if s == "" {
		return false
	}
	if isDigit(s[0]) || s[0] == '@' || s[0] == '[' || s[0] == '-' {
		// A zone such as 0@35C is a field of its own.
		return true
	}
	w, _, _ := strings.Cut(s[:min(len(s), 8)], " ")
	return strings.EqualFold(w, "off") || w == "N/A"
}

func (p *parser) unknown(name, value string) {
	p.out.UnknownCount++
	if len(p.out.Unknown) < maxUnknown {
		p.out.Unknown = append(p.out.Unknown, Unknown{clip(name), clip(value)})
	}
}

func clip(s string) string {
	s = s[:min(len(s), maxTokenText)]
	return strings.ToValidUTF8(s, "?")
}

// temperature reads the word name as ZONE@nC[/nC]; at is the place of the @.
func (p *parser) temperature(name string, at int) bool {
	c := scanner{s: name, pos: at + 1}
	now, ok := c.number(true)
	if !ok || !c.eat('C') {
		return false
	}
	peak, hasPeak := 0.0, false
	if c.eat('/') {
		if peak, hasPeak = c.number(true); !hasPeak || !c.eat('C') {
			return false
		}
	}
	if !c.done() || now < -300 || now > 1000 || len(p.out.TempsC)+len(p.out.ZonesOff) >= maxNames {
		return false
	}
	zone := clip(name[:at])
	if now <= gatedC {
		p.out.ZonesOff = append(p.out.ZonesOff, zone)
		return true
	}
	if p.out.TempsC == nil {
		p.out.TempsC = map[string]float64{}
	}
	zone = freeName(p.out.TempsC, zone)
	p.out.TempsC[zone] = now
	if hasPeak && peak > gatedC {
		if p.out.TempsPeakC == nil {
			p.out.TempsPeakC = map[string]float64{}
		}
		p.out.TempsPeakC[zone] = peak
	}
	return true
}

// freeName returns name, or name#2 and so on if it is taken.
func freeName[V any](m map[string]V, name string) string {
	if _, taken := m[name]; !taken {
		return name
	}
	for i := 2; ; i++ {
		n := name + "#" + strconv.Itoa(i)
		if _, taken := m[n]; !taken {
			return n
		}
	}
}

// kilo returns how many kB a unit is.
func kilo(unit string) (float64, bool) {
	switch unit {
	case "kB", "KB", "KiB", "kb":
		return 1, true
	case "MB", "MiB":
		return 1024, true
	case "GB", "GiB":
		return 1024 * 1024, true
	}
	return 0, false
}

// memory reads "n/nMB" and the group after it.
func (p *parser) memory(name string) bool {
	used, ok := p.number(false)
	usedUnit := p.letters()
	if !ok || !p.eat('/') {
		return false
	}
	total, ok := p.number(false)
	unit := p.letters()
	kb, known := kilo(unit)
	usedKB := kb
	if usedUnit != "" && known {
		usedKB, known = kilo(usedUnit)
	}
	if !ok || !known || !p.boundary() && p.peek() != '(' {
		return false
	}
	usedKiB, totalKiB := used*usedKB, total*kb
	switch name {
	case "RAM":
		p.out.RAMUsedMB, p.out.RAMTotalMB = new(usedKiB/1024), new(totalKiB/1024)
	case "SWAP":
		p.out.SwapUsedMB, p.out.SwapTotalMB = new(usedKiB/1024), new(totalKiB/1024)
	case "IRAM":
		p.out.IRAMUsedKB, p.out.IRAMTotalKB = new(usedKiB), new(totalKiB)
	}
	p.memoryGroup(name)
	return true
}

// memoryGroup reads "(lfb NxZMB)", "(lfb ZkB)" or "(cached nMB)"; a group that
// it cannot read is an unknown token of its own.
func (p *parser) memoryGroup(name string) {
	before := p.pos
	p.blank()
	start := p.pos
	if !p.eat('(') {
		p.pos = before
		return
	}
	key := p.letters()
	p.blank()
	n, ok := p.number(false)
	blocks, hasBlocks := n, false
	if ok && p.eat('x') {
		hasBlocks = true
		n, ok = p.number(false)
	}
	kb, known := kilo(p.letters())
	p.blank()
	if ok && known && p.eat(')') && p.boundary() {
		switch {
		case key == "lfb" && name == "RAM":
			if !hasBlocks {
				blocks = 1
			}
			p.out.RAMLfb = &Lfb{Blocks: blocks, KB: n * kb}
			return
		case key == "lfb" && name == "IRAM" && !hasBlocks:
			p.out.IRAMLfbKB = new(n * kb)
			return
		case key == "cached" && name == "SWAP" && !hasBlocks:
			p.out.SwapCachedMB = new(n * kb / 1024)
			return
		}
	}
	if p.peek() == ')' {
		p.pos++
	}
	p.word()
	p.unknown(name, p.s[start:p.pos])
}

// isCPU accepts CPU, cpu, and cluster names such as BCPU, CPU0 or CPU_1.
func isCPU(name string) bool {
	n := strings.ToLower(strings.TrimRight(name, "0123456789_"))
	return len(n) <= 8 && strings.HasSuffix(n, "cpu") && plainWord(name)
}

// cores reads "[core,…]" and the clock that may follow it.
func (p *parser) cores(name string) bool {
	cluster := ""
	if name != "CPU" && name != "cpu" {
		cluster = name
	}
	first := len(p.out.CPU)
	cpu := p.out.CPU
	type badCore struct {
		i    int
		text string
	}
	var bads []badCore
	closed := p.list(func() bool {
		if len(cpu) >= maxCores {
			return false
		}
		core, ok := p.core()
		core.Cluster = cluster
		cpu = append(cpu, core)
		return ok
	}, func(text string) {
		if len(cpu) > first {
			cpu[len(cpu)-1] = Core{Cluster: cluster}
		}
		if text != "" {
			bads = append(bads, badCore{len(cpu) - 1, text})
		}
	})
	if !closed {
		return false
	}
	var shared *float64
	badClock := ""
	if at := p.pos; p.eat('@') {
		mhz, ok := p.number(false)
		if ok && p.boundary() {
			shared = &mhz
		} else { // the loads are good all the same
			p.word()
			badClock = p.s[at:p.pos]
		}
	}
	if !p.boundary() {
		return false
	}
	for i := range cpu[first:] {
		if c := &cpu[first+i]; shared != nil && c.Pct != nil && c.MHz == nil {
			c.MHz = new(*shared)
		}
	}
	if shared != nil {
		p.out.CPUMHz = shared
	}
	p.out.CPU = cpu
	for _, b := range bads {
		p.unknown(name+"["+strconv.Itoa(b.i)+"]", b.text)
	}
	if badClock != "" {
		p.unknown(name, badClock)
	}
	return true
}

// core reads "off", "n%" or "n%@mhz".
func (p *parser) core() (Core, bool) {
	if isLetter(p.peek()) {
		return Core{Off: true}, strings.EqualFold(p.letters(), "off")
	}
	pct, ok := p.pct()
	if !ok {
		return Core{}, false
	}
	core := Core{Pct: &pct}
	if p.eat('@') {
		mhz, ok := p.number(false)
		if !ok {
			return Core{}, false
		}
		core.MHz = &mhz
	}
	return core, true
}

// mts reads "fg n% bg n%".
func (p *parser) mts() bool {
	var m MTS
	for _, f := range []struct {
		key string
		to  *float64
	}{{"fg", &m.FgPct}, {"bg", &m.BgPct}} {
		p.blank()
		if p.letters() != f.key {
			return false
		}
		p.blank()
		v, ok := p.pct()
		if !ok || !p.boundary() {
			return false
		}
		*f.to = v
	}
	p.out.MTS = &m
	return true
}

// edp reads "limit n" (Tegra K1).
func (p *parser) edp() bool {
	if p.letters() != "limit" {
		return false
	}
	p.blank()
	n, ok := p.number(false)
	if !ok || !p.boundary() {
		return false
	}
	p.out.EDPLimit = &n
	return true
}

// rail reads "n/n", or "nmW" with up to two more values after slashes, which
// may lack the unit unless they end the line, for then they may be cut. Without
// a unit it is a rail only under an upper-case name.
func (p *parser) rail(name string) bool {
	var v [3]float64
	n, unit := 0, ""
	for n < len(v) {
		x, ok := p.number(false)
		if !ok {
			return false
		}
		u := p.letters()
		if n == 0 {
			unit = u
		}
		mul, ok := milliwatts(u)
		if !ok || u != unit && (u != "" || p.done()) {
			return false
		}
		if u == "" {
			mul, _ = milliwatts(unit)
		}
		v[n] = x * mul
		n++
		if !p.eat('/') {
			break
		}
	}
	if !p.boundary() || unit == "" && (n < 2 || name != strings.ToUpper(name)) || !plainWord(name) || len(p.out.PowerMW) >= maxNames {
		return false
	}
	r := Rail{Now: v[0]}
	if n > 1 {
		r.Avg = &v[1]
	}
	if n > 2 {
		r.Peak = &v[2]
	}
	if p.out.PowerMW == nil {
		p.out.PowerMW = map[string]Rail{}
	}
	p.out.PowerMW[freeName(p.out.PowerMW, clip(name))] = r
	return true
}

func milliwatts(unit string) (float64, bool) {
	switch unit {
	case "", "mW":
		return 1, true
	case "W":
		return 1000, true
	}
	return 0, false
}

// plainWord accepts names that begin with a letter and hold letters, digits
// and _ - . + only.
func plainWord(s string) bool {
	for i, c := range []byte(s) {
		if !isLetter(c) && (i == 0 || !isDigit(c) && !strings.ContainsRune("_-.+", rune(c))) {
			return false
		}
	}
	return s != ""
}
