package tegra

import "strings"

// scanner walks over one line. Every method either consumes something or
// leaves the position alone, and nothing is ever read twice more than a
// constant number of times, which keeps Parse linear.
type scanner struct {
	s   string
	pos int
	far int // how far a list was read: a field that fails starts no second time before it
}

func (c *scanner) blank() {
	for c.pos < len(c.s) && isBlank(c.s[c.pos]) {
		c.pos++
	}
}

func (c *scanner) done() bool { return c.pos >= len(c.s) }

// peek returns the byte at the position, or 0 at the end.
func (c *scanner) peek() byte {
	if c.done() {
		return 0
	}
	return c.s[c.pos]
}

func (c *scanner) eat(b byte) bool {
	if c.peek() == b && !c.done() {
		c.pos++
		return true
	}
	return false
}

// word returns the text up to the next blank and consumes it.
func (c *scanner) word() string {
	start := c.pos
	for c.pos < len(c.s) && !isBlank(c.s[c.pos]) {
		c.pos++
	}
	return c.s[start:c.pos]
}

// boundary reports that a token may end here.
func (c *scanner) boundary() bool { return c.done() || isBlank(c.s[c.pos]) }

// maxDigits keeps numbers where float64 is exact.
const maxDigits = 15

// number reads digits with an optional fraction, and a sign if signed.
func (c *scanner) number(signed bool) (float64, bool) {
	start := c.pos
	neg := signed && c.eat('-')
	var n, scale float64 = 0, 1
	digits := 0
	for isDigit(c.peek()) && digits <= maxDigits {
		n = n*10 + float64(c.s[c.pos]-'0')
		c.pos++
		digits++
	}
	if digits > 0 && c.peek() == '.' && c.pos+1 < len(c.s) && isDigit(c.s[c.pos+1]) {
		c.pos++
		for isDigit(c.peek()) && digits <= maxDigits {
			n = n*10 + float64(c.s[c.pos]-'0')
			scale *= 10
			c.pos++
			digits++
		}
	}
	if digits == 0 || digits > maxDigits {
		c.pos = start
		return 0, false
	}
	if neg {
		n = -n
	}
	return n / scale, true
}

// letters reads a run of ASCII letters, such as a unit.
func (c *scanner) letters() string {
	start := c.pos
	for c.pos < len(c.s) && isLetter(c.s[c.pos]) {
		c.pos++
	}
	return c.s[start:c.pos]
}

// pct reads "12%" or "12 %"; loads beyond 100 are refused.
func (c *scanner) pct() (float64, bool) {
	start := c.pos
	n, ok := c.number(false)
	if ok {
		c.blank()
	}
	if !ok || n > 100 || !c.eat('%') {
		c.pos = start
		return 0, false
	}
	return n, true
}

// list reads "[a,b,…]" by calling elem at the start of each element. Elements
// that elem cannot read are skipped up to the next comma and reported as bad.
// It fails when the bracket does not close.
func (c *scanner) list(elem func() bool, bad func(text string)) bool {
	if !c.eat('[') {
		return false
	}
	defer func() { c.far = max(c.far, c.pos) }()
	c.blank()
	if c.eat(']') {
		return true
	}
	for {
		c.blank()
		start := c.pos
		good := elem()
		c.blank()
		if !good || c.peek() != ',' && c.peek() != ']' {
			for !c.done() && c.peek() != ',' && c.peek() != ']' {
				c.pos++
			}
			bad(strings.TrimSpace(c.s[start:c.pos]))
		}
		switch {
		case c.eat(']'):
			return true
		case !c.eat(','):
			return false
		}
	}
}

func isBlank(b byte) bool {
	return b == ' ' || b == '\t' || b == '\r' || b == '\n' || b == '\v' || b == '\f'
}
func isDigit(b byte) bool  { return '0' <= b && b <= '9' }
func isLetter(b byte) bool { return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' }
