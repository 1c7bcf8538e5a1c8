package scenario

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/skein-fleet/skein/sim/fault"
)

// expect reads "[within TIME | always] [not] CONDITION".
func (p *parser) expect(n int, words []string) error {
	e := Expect{Line: n}
	if len(words) > 0 && words[0] == "always" {
		e.When, words = Always, words[1:]
	} else if len(words) > 0 && words[0] == "within" {
		if len(words) < 2 {
			return errors.New("want: expect within TIME CONDITION")
		}
		d, err := duration(words[1])
		if err != nil {
			return err
		}
		e.When, e.By, words = Within, d, words[2:]
	}
	if len(words) > 0 && words[0] == "not" {
		e.Not, words = true, words[1:]
	}
	if len(words) == 0 {
		return errors.New("want: expect [within TIME | always] [not] CONDITION")
	}
	var err error
	switch words[0] {
	case "release":
		e.Cond, err = releaseOn(words[1:])
	case "condition":
		e.Cond, err = health(words[1:])
	case "rollout":
		e.Cond, err = rolloutState(words[1:])
	default:
		e.Cond, err = quantity(words)
	}
	p.out.Expects = append(p.out.Expects, e)
	return err
}

// releaseOn reads "NAME on 18", "NAME on >= 18", "NAME on all" and
// "NAME on device DEVICES".
func releaseOn(words []string) (Condition, error) {
	const want = "want: release NAME on COUNT, on >= COUNT, on <= COUNT, on all, or on device DEVICES"
	if len(words) < 3 || words[1] != "on" || !nameRE.MatchString(words[0]) {
		return nil, errors.New(want)
	}
	c := ReleaseOn{Release: words[0]}
	rest := words[2:]
	switch {
	case len(rest) == 1 && rest[0] == "all":
		c.All = true
		return c, nil
	case rest[0] == "device" && len(rest) == 2:
		c.Named = true
		var err error
		c.Devices, err = fault.ParseDevices(rest[1])
		return c, err
	}
	op, n, err := comparison(rest, fault.MaxDevices)
	if err != nil || n != float64(int(n)) {
		return nil, errors.New(want)
	}
	c.Op, c.Count = op, int(n)
	return c, nil
}

// quantity reads "harmed <= 6".
func quantity(words []string) (Condition, error) {
	q := Quantity(words[0])
	if !slices.Contains(Quantities, q) {
		return nil, fmt.Errorf("unknown condition %q: want release, condition, rollout, or one of %v", words[0], Quantities)
	}
	op, n, err := comparison(words[1:], 1e15)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", q, err)
	}
	return Count{Quantity: q, Op: op, N: n}, nil
}

// comparison reads "[OP] NUMBER"; without an operator it means equal.
func comparison(words []string, most float64) (Op, float64, error) {
	op := Equal
	if len(words) == 2 {
		op, words = Op(words[0]), words[1:]
	}
	if len(words) != 1 || op != Equal && op != AtLeast && op != AtMost {
		return "", 0, errors.New("want a number after =, >= or <=")
	}
	n, err := strconv.ParseFloat(words[0], 64)
	if err != nil || !(n >= 0 && n <= most) {
		return "", 0, fmt.Errorf("%q: want a number from 0 to %g", words[0], most)
	}
	return op, n, nil
}

// health reads "NAME on device DEVICES" and "NAME on all".
func health(words []string) (Condition, error) {
	const want = "want: condition NAME on device DEVICES, or condition NAME on all"
	if len(words) < 3 || words[1] != "on" || !nameRE.MatchString(words[0]) {
		return nil, errors.New(want)
	}
	h := Health{Condition: words[0]}
	switch {
	case len(words) == 3 && words[2] == "all":
		return h, nil
	case len(words) == 4 && words[2] == "device":
		var err error
		h.Devices, err = fault.ParseDevices(words[3])
		return h, err
	}
	return nil, errors.New(want)
}

// rolloutState reads "RELEASE STATE".
func rolloutState(words []string) (Condition, error) {
	if len(words) != 2 || !nameRE.MatchString(words[0]) || !slices.Contains(States, words[1]) {
		return nil, fmt.Errorf("want: rollout RELEASE %s", strings.Join(States, "|"))
	}
	return RolloutState{Release: words[0], State: words[1]}, nil
}
