package fleet

import (
	"fmt"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/ota/rollout"
)

// Selector chooses devices by labels and pseudo-labels.
type Selector struct {
	terms []term
	// ReleaseName gives the text that the pseudo-label release also matches,
	// such as meter@3; nil: digests only.
	ReleaseName func(View) string
}

type term struct {
	key    string
	values []string
	op     op
}

type op uint8

const (
	opIn op = iota + 1 // = and in
	opNotIn
	opExists
	opAbsent
)

// ParseSelector reads conditions joined by commas: a=b, a!=b, a in (b,c),
// a notin (b,c), a, !a. The pseudo-labels id, name, state, target, release,
// hardware and serial are compared like labels. Empty text selects all.
func ParseSelector(text string) (*Selector, error) {
	s := &Selector{}
	for _, part := range rollout.SplitTerms(text) {
		t, err := parseTerm(strings.TrimSpace(part))
		if err != nil {
			return nil, fmt.Errorf("%w: selector %q: %w", ErrInvalid, text, err)
		}
		s.terms = append(s.terms, t)
	}
	return s, nil
}

func parseTerm(s string) (term, error) {
	check := func(t term) (term, error) {
		if !labelKey.MatchString(t.key) {
			return t, fmt.Errorf("%q: want a label name, then =, !=, in (…) or nothing", s)
		}
		return t, nil
	}
	if k, v, ok := strings.Cut(s, "!="); ok {
		return check(term{strings.TrimSpace(k), []string{strings.TrimSpace(v)}, opNotIn})
	}
	for _, w := range []struct {
		text string
		op   op
	}{{" in ", opIn}, {" notin ", opNotIn}, {" in(", opIn}, {" notin(", opNotIn}} {
		k, rest, ok := strings.Cut(s, w.text)
		if !ok || strings.ContainsAny(k, "=(") {
			continue
		}
		rest = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(rest), "("), ")")
		var values []string
		for v := range strings.SplitSeq(rest, ",") {
			values = append(values, strings.TrimSpace(v))
		}
		return check(term{strings.TrimSpace(k), values, w.op})
	}
	if k, v, ok := strings.Cut(s, "="); ok {
		return check(term{strings.TrimSpace(k), []string{strings.TrimSpace(strings.TrimPrefix(v, "="))}, opIn})
	}
	if k, ok := strings.CutPrefix(s, "!"); ok {
		return check(term{strings.TrimSpace(k), nil, opAbsent})
	}
	return check(term{s, nil, opExists})
}

// Match reports whether a device is selected.
func (s *Selector) Match(v View) bool {
	for _, t := range s.terms {
		values := s.lookup(v, t.key)
		found := slices.ContainsFunc(values, func(have string) bool { return slices.Contains(t.values, have) })
		ok := false
		switch t.op {
		case opIn:
			ok = found
		case opNotIn:
			ok = !found
		case opExists:
			ok = len(values) > 0
		case opAbsent:
			ok = len(values) == 0
		}
		if !ok {
			return false
		}
	}
	return true
}

// lookup returns the texts that a label of a device equals; none when absent.
func (s *Selector) lookup(v View, key string) []string {
	one := func(text string) []string {
		if text == "" {
			return nil
		}
		return []string{text}
	}
	switch key {
	case "id":
		return one(v.ID)
	case "name":
		return one(v.Name)
	case "state":
		return one(string(v.State))
	case "target":
		return one(v.Target)
	case "hardware":
		return one(v.Hardware)
	case "serial":
		return one(v.Serial)
	case "release":
		out := one(string(v.Running))
		if s.ReleaseName != nil && len(out) > 0 {
			out = append(out, one(s.ReleaseName(v))...)
		}
		return out
	}
	if value, ok := v.Labels[key]; ok {
		return []string{value}
	}
	return nil
}
