package tegra

import "strings"

// maxPrefix bounds what a logger may put before a line of tegrastats.
const maxPrefix = 256

// prefix passes over what stands before the first field: the line's own time
// stamp, and the stamps and tags of loggers ("[2018-08-23 16:30:36] : ",
// "Jun 26 03:50:01 nano tegrastats[1234]: ", "1687751401.123 "). Of several
// stamps the last one counts. A tag is passed over only if it ends like one
// before the field RAM; any other text is left for field to report.
func (p *parser) prefix() {
	p.stamps()
	if cut := p.tag(); cut > 0 {
		p.pos += cut
		p.stamps()
	}
}

func (p *parser) stamps() {
	for p.blank(); p.stamp() || p.epoch(); p.blank() {
	}
}

// tag returns the length of a logger's tag at the position, 0 without one.
func (p *parser) tag() int {
	head := p.s[p.pos:min(len(p.s), p.pos+maxPrefix)]
	ram := 0
	for {
		i := strings.Index(head[ram:], "RAM ")
		if i < 0 {
			return 0
		}
		if ram += i; ram+4 < len(head) && isDigit(head[ram+4]) {
			break
		}
		ram += 4
	}
	head = head[:ram]
	cut := strings.LastIndexAny(head, ":]>|")
	for cut >= 0 && cut+1 < len(head) && !isBlank(head[cut+1]) {
		cut = strings.LastIndexAny(head[:cut], ":]>|") // inside a word, such as a time
	}
	if cut < 0 || strings.ContainsRune(head[:cut], '%') {
		return 0
	}
	return cut + 1
}

// stamp reads "05-09-2026 18:42:06", as tegrastats prints it, or a logger's
// "2026-05-09T18:42:06", with or without a fraction, a zone, brackets and a
// colon; all but date and time to the second is dropped.
func (p *parser) stamp() bool {
	start := p.pos
	bracket := p.eat('[')
	var date string
	switch t := p.s[p.pos:]; {
	case matches(t, "00-00-0000 00:00:00"):
		date = t[6:10] + "-" + t[0:2] + "-" + t[3:5]
	case matches(t, "0000-00-00 00:00:00"), matches(t, "0000-00-00T00:00:00"), matches(t, "0000/00/00 00:00:00"):
		date = t[0:4] + "-" + t[5:7] + "-" + t[8:10]
	default:
		p.pos = start
		return false
	}
	clock := p.s[p.pos+11 : p.pos+19]
	p.pos += 19
	if c := p.peek(); (c == '.' || c == ',') && p.pos+1 < len(p.s) && isDigit(p.s[p.pos+1]) {
		for p.pos++; isDigit(p.peek()); p.pos++ {
		}
	}
	for _, zone := range []string{"+00:00", "+0000"} {
		if t := p.s[p.pos:]; t != "" && (t[0] == '+' || t[0] == '-') && matches("+"+t[1:], zone) {
			p.pos += len(zone)
			break
		}
	}
	p.eat('Z')
	if bracket && !p.eat(']') {
		p.pos = start
		return false
	}
	p.eat(':')
	if !p.boundary() {
		p.pos = start
		return false
	}
	p.out.Time = date + "T" + clock
	return true
}

// matches reports that t begins like layout, where 0 stands for any digit.
func matches(t, layout string) bool {
	if len(t) < len(layout) {
		return false
	}
	for i := range len(layout) {
		if layout[i] == '0' != isDigit(t[i]) || layout[i] != '0' && t[i] != layout[i] {
			return false
		}
	}
	return true
}

// epoch passes over a stamp in unix seconds or milliseconds.
func (p *parser) epoch() bool {
	start := p.pos
	for isDigit(p.peek()) {
		p.pos++
	}
	digits := p.pos - start
	if p.eat('.') {
		for isDigit(p.peek()) {
			p.pos++
		}
	}
	p.eat(':')
	if digits < 10 || digits > 19 || !p.boundary() || p.done() {
		p.pos = start
		return false
	}
	return true
}
