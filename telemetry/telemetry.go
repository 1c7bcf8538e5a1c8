// Package telemetry is the vocabulary of what Skein measures: the metric names
// with their unit, kind and quantisation scale, the identity of a series, and
// one reading. It holds values and their text forms only; probes make readings,
// package block packs them. Anything above proto may import it.
//
// Invariants: a Series is canonical (labels sorted by name, no empty values),
// so equal series have equal text; what was not measured has no reading at all,
// it is never a zero.
package telemetry

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// ErrBadSeries is returned for text that does not name a series.
var ErrBadSeries = errors.New("not a series")

// Limits of a series. They bound what a device can make the control plane hold.
const (
	MaxLabels     = 16
	MaxNameLen    = 128
	MaxValueLen   = 256
	MaxSeriesText = 2048
)

// Label is one name and value.
type Label struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Series is a metric name and its labels, sorted by label name.
type Series struct {
	Name   string
	Labels []Label
}

// Reading is one value of one series at one time.
type Reading struct {
	Series Series
	Time   time.Time
	Value  float64
}

// NewSeries returns the canonical series of a metric name and label pairs
// (name, value, name, value, …). Pairs with an empty value are left out, as
// Prometheus does. It is meant for names that the program knows: an odd number
// of arguments drops the last one.
func NewSeries(name string, pairs ...string) Series {
	s := Series{Name: name}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			s.Labels = append(s.Labels, Label{pairs[i], pairs[i+1]})
		}
	}
	slices.SortFunc(s.Labels, func(a, b Label) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// Get returns the value of a label, or "".
func (s Series) Get(name string) string {
	for _, l := range s.Labels {
		if l.Name == name {
			return l.Value
		}
	}
	return ""
}

// With returns s with one more label, or with its value changed; an empty
// value takes the label away.
func (s Series) With(name, value string) Series {
	out := Series{Name: s.Name, Labels: make([]Label, 0, len(s.Labels)+1)}
	for _, l := range s.Labels {
		if l.Name != name {
			out.Labels = append(out.Labels, l)
		}
	}
	if value != "" {
		out.Labels = append(out.Labels, Label{name, value})
	}
	slices.SortFunc(out.Labels, func(a, b Label) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Compare orders series by name, then by labels.
func (s Series) Compare(o Series) int {
	if c := strings.Compare(s.Name, o.Name); c != 0 {
		return c
	}
	return slices.CompareFunc(s.Labels, o.Labels, func(a, b Label) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Value, b.Value)
	})
}

// String returns the canonical text, as in
// skein_device_power_watts{rail="VDD_IN"}; label values are escaped as in the
// Prometheus text format (\\, \", \n).
func (s Series) String() string {
	if len(s.Labels) == 0 {
		return s.Name
	}
	var b strings.Builder
	b.WriteString(s.Name)
	for i, l := range s.Labels {
		b.WriteByte("{,"[min(i, 1)])
		b.WriteString(l.Name)
		b.WriteString(`="`)
		for _, c := range []byte(l.Value) {
			switch c {
			case '\\', '"':
				b.WriteByte('\\')
				b.WriteByte(c)
			case '\n':
				b.WriteString(`\n`)
			default:
				b.WriteByte(c)
			}
		}
		b.WriteByte('"')
	}
	b.WriteByte('}')
	return b.String()
}

// Validate reports what makes s no canonical series.
func (s Series) Validate() error {
	if !validName(s.Name, true) {
		return fmt.Errorf("%w: metric name %q", ErrBadSeries, clip(s.Name))
	}
	if len(s.Labels) > MaxLabels {
		return fmt.Errorf("%w: %s has %d labels, at most %d", ErrBadSeries, s.Name, len(s.Labels), MaxLabels)
	}
	for i, l := range s.Labels {
		switch {
		case !validName(l.Name, false):
			return fmt.Errorf("%w: label name %q", ErrBadSeries, clip(l.Name))
		case l.Value == "" || len(l.Value) > MaxValueLen || !utf8.ValidString(l.Value):
			return fmt.Errorf("%w: label %s has value %q: want 1 to %d bytes of UTF-8", ErrBadSeries, l.Name, clip(l.Value), MaxValueLen)
		case i > 0 && s.Labels[i-1].Name >= l.Name:
			return fmt.Errorf("%w: label %s out of order or twice", ErrBadSeries, l.Name)
		}
	}
	return nil
}

// ParseSeries reads canonical text. Labels in another order, empty values and
// blanks are refused: one series has one text.
func ParseSeries(text string) (Series, error) {
	if len(text) > MaxSeriesText {
		return Series{}, fmt.Errorf("%w: %d bytes, at most %d", ErrBadSeries, len(text), MaxSeriesText)
	}
	name, rest, labelled := strings.Cut(text, "{")
	s := Series{Name: name}
	for labelled && rest != "}" || labelled && len(s.Labels) == 0 {
		if len(s.Labels) > 0 {
			var ok bool
			if rest, ok = strings.CutPrefix(rest, ","); !ok {
				return Series{}, fmt.Errorf("%w: %q: want , or } after a label", ErrBadSeries, clip(text))
			}
		}
		label, after, ok := strings.Cut(rest, `="`)
		if !ok {
			return Series{}, fmt.Errorf("%w: %q: want name=\"value\"", ErrBadSeries, clip(text))
		}
		value, tail, err := unquote(after)
		if err != nil {
			return Series{}, fmt.Errorf("%w: %q: %v", ErrBadSeries, clip(text), err)
		}
		s.Labels = append(s.Labels, Label{label, value})
		rest = tail
	}
	if err := s.Validate(); err != nil {
		return Series{}, err
	}
	return s, nil
}

// unquote reads an escaped value up to its closing quote.
func unquote(s string) (value, rest string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], nil
		case '\n':
			return "", "", errors.New("raw line end in a label value")
		case '\\':
			i++
			if i == len(s) {
				return "", "", errors.New("text ends in a backslash")
			}
			switch s[i] {
			case '\\', '"':
				b.WriteByte(s[i])
			case 'n':
				b.WriteByte('\n')
			default:
				return "", "", fmt.Errorf("unknown escape \\%c", s[i])
			}
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", errors.New("label value without closing quote")
}

func validName(s string, metric bool) bool {
	if s == "" || len(s) > MaxNameLen {
		return false
	}
	for i, c := range []byte(s) {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || metric && c == ':'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return true
}

func clip(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// Index is the text of a small number used as a label value ("0", "1", …).
func Index(i int) string { return strconv.Itoa(i) }
