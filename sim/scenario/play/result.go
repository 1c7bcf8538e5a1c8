package play

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/skein-fleet/skein/sim/scenario"
)

// Verdict says of one expectation whether it held.
type Verdict struct {
	Line    int     `json:"line"`
	Text    string  `json:"expect"`
	Held    bool    `json:"held"`
	Detail  string  `json:"detail"` // what was measured
	Seconds float64 `json:"decided_at"`

	expect  scenario.Expect
	decided bool
}

// Result is what became of a run.
type Result struct {
	Verdicts []Verdict          `json:"verdicts"`
	Seconds  float64            `json:"seconds"`
	Releases map[string]int     `json:"devices_per_release"` // at the end
	Rollouts map[string]string  `json:"rollouts"`            // release -> state at the end
	Measured map[string]float64 `json:"measured"`            // quantities at the end
}

// Err names the expectations that failed, by line; nil when all held.
func (r *Result) Err() error {
	var errs []error
	for _, v := range r.Verdicts {
		if !v.Held {
			errs = append(errs, fmt.Errorf("line %d: expect %s: %s", v.Line, v.Text, v.Detail))
		}
	}
	return errors.Join(errs...)
}

func newVerdicts(x *scenario.Script) []Verdict {
	var out []Verdict
	for _, e := range x.Expects {
		out = append(out, Verdict{Line: e.Line, Text: text(e), expect: e})
	}
	return out
}

// text is the expectation as the file has it, without the word expect.
func text(e scenario.Expect) string {
	return strings.TrimPrefix(e.String(), "expect ")
}

// decided reports whether every expectation with a time is.
func (s *stage) decided() bool {
	for _, v := range s.verdicts {
		if v.expect.When == scenario.Within && !v.decided {
			return false
		}
	}
	return true
}

// judge asks the expectations that can be decided at this moment.
func (s *stage) judge(now time.Duration, end bool) {
	for i := range s.verdicts {
		v := &s.verdicts[i]
		if v.decided {
			continue
		}
		if v.expect.When == scenario.AtEnd && !end {
			continue
		}
		if v.expect.When == scenario.Always && !end && onlyAtEnd(v.expect.Cond) {
			continue
		}
		holds, known, detail := s.holds(v.expect)
		switch v.expect.When {
		case scenario.Within:
			if known && holds && now <= v.expect.By {
				s.decide(v, true, detail, now)
			} else if now > v.expect.By || end {
				s.decide(v, false, detail, now)
			}
		case scenario.Always:
			if known && !holds {
				s.decide(v, false, detail, now)
			} else if end {
				s.decide(v, true, detail, now)
			}
		default:
			s.decide(v, known && holds, detail, now)
		}
	}
}

func (s *stage) decide(v *Verdict, held bool, detail string, now time.Duration) {
	v.decided, v.Held, v.Detail, v.Seconds = true, held, detail, now.Seconds()
	word := "held"
	if !held {
		word = "FAILED"
	}
	s.note("line %d: expect %s: %s: %s", v.Line, v.Text, word, detail)
}

// onlyAtEnd is of conditions that are measured once, since what they count
// does not go away.
func onlyAtEnd(c scenario.Condition) bool {
	q, ok := c.(scenario.Count)
	return ok && q.Quantity == scenario.Lost
}

func (s *stage) result() *Result {
	r := &Result{Verdicts: s.verdicts, Seconds: time.Since(s.start).Seconds(), Releases: map[string]int{}, Rollouts: map[string]string{}, Measured: map[string]float64{}}
	for name, on := range s.seen.on {
		r.Releases[name] = len(on)
	}
	maps.Copy(r.Rollouts, s.seen.rollouts)
	for _, q := range scenario.Quantities {
		if n, known := s.quantity(q); known {
			r.Measured[string(q)] = n
		}
	}
	return r
}
