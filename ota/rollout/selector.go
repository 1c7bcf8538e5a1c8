package rollout

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/ota"
)

// Op compares a label with values.
type Op string

// The operators. NotEqual and NotIn also hold where the label is absent.
const (
	Equal    Op = "="
	NotEqual Op = "!="
	In       Op = "in"
	NotIn    Op = "notin"
)

// Requirement is one condition on a label.
type Requirement struct {
	Label  string   `json:"label"`
	Op     Op       `json:"op"`
	Values []string `json:"values,omitempty"`
}

// Selector chooses devices. All parts given must hold; the zero value selects
// every device. Targets match when platform and every named attribute agree.
type Selector struct {
	Labels  map[string]string `json:"labels,omitempty"`
	Match   []Requirement     `json:"match,omitempty"`
	Targets []string          `json:"targets,omitempty"`
	Devices []string          `json:"devices,omitempty"`
}

// IsZero reports whether the selector selects everything.
func (s Selector) IsZero() bool {
	return len(s.Labels) == 0 && len(s.Match) == 0 && len(s.Targets) == 0 && len(s.Devices) == 0
}

func (r Requirement) holds(labels map[string]string) bool {
	v, ok := labels[r.Label]
	found := ok && slices.Contains(r.Values, v)
	if r.Op == NotEqual || r.Op == NotIn {
		return !found
	}
	return found
}

// matcher is a Selector prepared for many devices.
type matcher struct {
	sel     Selector
	targets []ota.Target
	devices map[string]bool
	byText  map[string]bool // target text -> matches
}

func newMatcher(s Selector) *matcher {
	m := &matcher{sel: s, byText: map[string]bool{}}
	for _, text := range s.Targets {
		if t, err := ota.ParseTarget(text); err == nil {
			m.targets = append(m.targets, t)
		}
	}
	if len(s.Devices) > 0 {
		m.devices = make(map[string]bool, len(s.Devices))
		for _, id := range s.Devices {
			m.devices[id] = true
		}
	}
	return m
}

func (m *matcher) match(d *Device) bool {
	if m.devices != nil && !m.devices[d.ID] {
		return false
	}
	for k, v := range m.sel.Labels {
		if have, ok := d.Labels[k]; !ok || have != v {
			return false
		}
	}
	for _, r := range m.sel.Match {
		if !r.holds(d.Labels) {
			return false
		}
	}
	return len(m.sel.Targets) == 0 || m.matchTarget(d.Target)
}

func (m *matcher) matchTarget(text string) bool {
	if hit, known := m.byText[text]; known {
		return hit
	}
	dev, err := ota.ParseTarget(text)
	hit := err == nil && slices.ContainsFunc(m.targets, func(t ota.Target) bool {
		if t.OS != dev.OS || t.Arch != dev.Arch {
			return false
		}
		for k, v := range t.Attrs {
			if dev.Attrs[k] != v {
				return false
			}
		}
		return true
	})
	m.byText[text] = hit
	return hit
}

// ParseSelector reads the text form used on command lines: conditions joined by
// commas, each "label=value", "label!=value", "label in (a,b)" or
// "label notin (a,b)". Empty text selects every device.
func ParseSelector(text string) (Selector, error) {
	var s Selector
	for _, term := range SplitTerms(text) {
		r, err := parseTerm(term)
		if err != nil {
			return Selector{}, err
		}
		s.Match = append(s.Match, r)
	}
	return s, nil
}

// SplitTerms cuts the text of a selector at its commas outside parentheses;
// blank text has no terms.
func SplitTerms(text string) []string {
	var terms []string
	depth, start := 0, 0
	for i, c := range text {
		switch c {
		case '(':
			depth++
		case ')':
			depth--
		case ',':
			if depth == 0 {
				terms = append(terms, text[start:i])
				start = i + 1
			}
		}
	}
	if strings.TrimSpace(text) != "" {
		terms = append(terms, text[start:])
	}
	return terms
}

func parseTerm(term string) (Requirement, error) {
	term = strings.TrimSpace(term)
	bad := fmt.Errorf("selector %q: want label=value, label!=value, label in (a,b) or label notin (a,b)", term)
	fields := strings.Fields(strings.Replace(term, "(", " (", 1))
	if len(fields) >= 3 && (fields[1] == string(In) || fields[1] == string(NotIn)) {
		list := strings.Join(fields[2:], "")
		if !strings.HasPrefix(list, "(") || !strings.HasSuffix(list, ")") {
			return Requirement{}, bad
		}
		r := Requirement{Label: fields[0], Op: Op(fields[1])}
		for v := range strings.SplitSeq(list[1:len(list)-1], ",") {
			if v == "" || strings.ContainsAny(v, "()") {
				return Requirement{}, bad
			}
			r.Values = append(r.Values, v)
		}
		return r, nil
	}
	op := Equal
	label, value, ok := strings.Cut(term, "!=")
	if ok {
		op = NotEqual
	} else if label, value, ok = strings.Cut(term, "="); !ok {
		return Requirement{}, bad
	}
	label, value = strings.TrimSpace(label), strings.TrimSpace(value)
	if label == "" || value == "" || strings.ContainsAny(label+value, " ()=!") {
		return Requirement{}, bad
	}
	return Requirement{Label: label, Op: op, Values: []string{value}}, nil
}

// String returns a text form; targets and devices are appended for people.
func (s Selector) String() string {
	var terms []string
	for _, k := range slices.Sorted(maps.Keys(s.Labels)) {
		terms = append(terms, k+"="+s.Labels[k])
	}
	for _, r := range s.Match {
		if r.Op == Equal || r.Op == NotEqual {
			terms = append(terms, r.Label+string(r.Op)+strings.Join(r.Values, ","))
		} else {
			terms = append(terms, fmt.Sprintf("%s %s (%s)", r.Label, r.Op, strings.Join(r.Values, ",")))
		}
	}
	if len(s.Targets) > 0 {
		terms = append(terms, fmt.Sprintf("target in (%s)", strings.Join(s.Targets, ",")))
	}
	if len(s.Devices) > 0 {
		terms = append(terms, fmt.Sprintf("%d named devices", len(s.Devices)))
	}
	if len(terms) == 0 {
		return "every device"
	}
	return strings.Join(terms, ",")
}
