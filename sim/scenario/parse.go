package scenario

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/sim/fault"
	"github.com/skein-fleet/skein/sim/fault/shaper"
	"github.com/skein-fleet/skein/sim/jetson"
)

// ErrSyntax is returned, wrapped with the line and what it should have said.
var ErrSyntax = errors.New("scenario")

// Bounds of a script.
const (
	maxLine   = 4 << 10
	maxLines  = 10_000
	maxLength = 366 * 24 * time.Hour
)

var l4tRE = regexp.MustCompile(`^[0-9]{1,3}(\.[0-9]{1,3}){1,3}$`)

var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// Parse reads a script. Its errors begin with the number of the line.
func Parse(r io.Reader) (*Script, error) {
	p := parser{out: Script{Mix: slices.Clone(jetson.DefaultMix)}, seen: map[string]bool{}}
	in := bufio.NewScanner(r)
	in.Buffer(make([]byte, maxLine), maxLine)
	n := 0
	for in.Scan() {
		if n++; n > maxLines {
			return nil, fmt.Errorf("%w: more than %d lines", ErrSyntax, maxLines)
		}
		text, _, _ := strings.Cut(in.Text(), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		if err := p.line(n, words); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrSyntax, n, err)
		}
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("%w: line %d: %w", ErrSyntax, n+1, err)
	}
	if err := p.finish(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	return &p.out, nil
}

type parser struct {
	out  Script
	seen map[string]bool // directives that may stand once
}

func (p *parser) line(n int, words []string) error {
	switch words[0] {
	case "devices":
		return p.devices(words[1:])
	case "length":
		if err := p.once("length"); err != nil {
			return err
		}
		if len(words) != 2 {
			return errors.New("want: length DURATION")
		}
		d, err := duration(words[1])
		if err == nil && d == 0 {
			err = errors.New("want a length above 0s")
		}
		p.out.Length = d
		return err
	case "network":
		return p.network(n, words[1:])
	case "at":
		return p.at(n, words[1:])
	case "expect":
		return p.expect(n, words[1:])
	}
	return fmt.Errorf("unknown word %q: want devices, length, network, at or expect", words[0])
}

func (p *parser) once(what string) error {
	if p.seen[what] {
		return fmt.Errorf("%s stands twice", what)
	}
	p.seen[what] = true
	return nil
}

// devices reads "20 [mix MIX] [seed N]".
func (p *parser) devices(words []string) error {
	const want = "want: devices COUNT [mix MIX] [seed N]"
	if err := p.once("devices"); err != nil {
		return err
	}
	if len(words) == 0 || len(words)%2 == 0 {
		return errors.New(want)
	}
	n, err := strconv.Atoi(words[0])
	if err != nil || n < 1 || n > fault.MaxDevices {
		return fmt.Errorf("%q: want 1 to %d devices", words[0], fault.MaxDevices)
	}
	p.out.Devices = n
	given := map[string]bool{}
	for i := 1; i < len(words); i += 2 {
		key, value := words[i], words[i+1]
		if given[key] {
			return fmt.Errorf("%s stands twice", key)
		}
		given[key] = true
		switch key {
		case "mix":
			p.out.Mix, err = jetson.ParseMix(value)
		case "seed":
			if p.out.Seed, err = strconv.ParseUint(value, 10, 64); err != nil {
				err = fmt.Errorf("seed %q: want a whole number", value)
			}
		default:
			err = errors.New(want)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// network reads "[device=DEVICES] latency=.. jitter=.. bandwidth=.. loss=..".
func (p *parser) network(n int, words []string) error {
	net := Network{Line: n}
	err := fields(words, map[string]func(string) error{
		"device":    func(v string) (err error) { net.Devices, err = fault.ParseDevices(v); return err },
		"latency":   func(v string) (err error) { net.Profile.Latency, err = duration(v); return err },
		"jitter":    func(v string) (err error) { net.Profile.Jitter, err = duration(v); return err },
		"stall":     func(v string) (err error) { net.Profile.Stall, err = duration(v); return err },
		"loss":      func(v string) (err error) { net.Profile.Loss, err = fault.ParseShare(v); return err },
		"bandwidth": func(v string) (err error) { net.Profile.Bandwidth, err = bandwidth(v); return err },
	})
	if err == nil && net.Profile == (shaper.Profile{}) {
		err = errors.New("want: network [device=DEVICES] latency=D jitter=D bandwidth=SIZE/s loss=SHARE stall=D")
	}
	p.out.Networks = append(p.out.Networks, net)
	return err
}

func bandwidth(v string) (int64, error) { return fault.ParseBytes(strings.TrimSuffix(v, "/s")) }

// at reads "TIME ACTION …".
func (p *parser) at(n int, words []string) error {
	if len(words) < 2 {
		return errors.New("want: at TIME ACTION …")
	}
	at, err := duration(words[0])
	if err != nil {
		return err
	}
	verb, args := words[1], words[2:]
	var a Action
	switch verb {
	case "fault":
		a, err = faultAction(at, args)
	case "release":
		a, err = releaseAction(args)
	case "rollout":
		a, err = rolloutAction(args)
	case "pause", "resume", "abort", "approve":
		if len(args) != 1 || !nameRE.MatchString(args[0]) {
			return fmt.Errorf("want: at TIME %s RELEASE", verb)
		}
		a = Control{Verb: verb, Release: args[0]}
	case "restart":
		a, err = restartAction(args)
	case "policy":
		a, err = policyAction(args)
	case "route":
		a, err = routeAction(args)
	case "cache":
		a, err = cacheAction(args)
	case "bundle":
		a, err = bundleAction(args)
	default:
		err = fmt.Errorf("unknown action %q: want fault, release, rollout, pause, resume, abort, approve, restart, policy, route, cache or bundle", verb)
	}
	p.out.Steps = append(p.out.Steps, Step{Line: n, At: at, Action: a})
	return err
}

func faultAction(at time.Duration, args []string) (Action, error) {
	if len(args) == 0 {
		return nil, fmt.Errorf("want: at TIME fault KIND …, the kind one of %v", fault.Kinds())
	}
	for _, a := range args {
		if strings.HasPrefix(a, "at=") {
			return nil, errors.New("a fault in a scenario takes its time from the line, not from at=")
		}
	}
	f, err := fault.ParseFields(args[0], args[1:])
	f.At = at
	return Fault{f}, err
}

func releaseAction(args []string) (Action, error) {
	if len(args) == 0 || !nameRE.MatchString(args[0]) {
		return nil, errors.New("want: at TIME release NAME [defect=DEFECT] [os=L4T[,dead]]")
	}
	r := Release{Name: args[0]}
	err := fields(args[1:], map[string]func(string) error{
		"defect": func(v string) error {
			if r.Defect = Defect(v); !slices.Contains(Defects, r.Defect) {
				return fmt.Errorf("want one of %v", Defects)
			}
			return nil
		},
		"os": func(v string) error {
			r.OS, r.DeadOS = strings.CutSuffix(v, ",dead")
			if !l4tRE.MatchString(r.OS) {
				return errors.New("want an L4T version, as 39.2.0 or 39.2.0,dead")
			}
			return nil
		},
	})
	return r, err
}

func rolloutAction(args []string) (Action, error) {
	if len(args) == 0 || !nameRE.MatchString(args[0]) {
		return nil, errors.New("want: at TIME rollout RELEASE [canary=N] [waves=2,25%] [soak=D] [timeout=D] [abort=SHARE] [to=DEVICES]")
	}
	r := Rollout{Release: args[0]}
	waves := func(v string) (err error) {
		if len(r.Waves) > 0 {
			return errors.New("want either canary or waves")
		}
		r.Waves, err = sizes(v)
		return err
	}
	err := fields(args[1:], map[string]func(string) error{
		"canary": func(v string) error {
			if strings.Contains(v, ",") {
				return errors.New("want one size")
			}
			return waves(v)
		},
		"waves":   waves,
		"soak":    func(v string) (err error) { r.Soak, err = duration(v); return err },
		"timeout": func(v string) (err error) { r.Timeout, err = duration(v); return err },
		"abort":   func(v string) (err error) { r.Abort, err = fault.ParseShare(v); return err },
		"to":      func(v string) (err error) { r.To, err = fault.ParseDevices(v); return err },
	})
	return r, err
}

func sizes(v string) (out []Size, err error) {
	for part := range strings.SplitSeq(v, ",") {
		number, isPct := strings.CutSuffix(part, "%")
		var s Size
		if isPct {
			s.Percent, err = strconv.ParseFloat(number, 64)
		} else {
			s.Count, err = strconv.Atoi(number)
		}
		if err != nil || isPct && !(s.Percent > 0 && s.Percent <= 100) || !isPct && (s.Count < 1 || s.Count > fault.MaxDevices) || len(out) == 100 {
			return nil, fmt.Errorf("size %q: want a count or a share, as in 2 or 25%%", part)
		}
		out = append(out, s)
	}
	return out, nil
}

func restartAction(args []string) (Action, error) {
	if len(args) == 0 || args[0] != "skeind" && args[0] != "broker" {
		return nil, errors.New("want: at TIME restart skeind|broker [down=D]")
	}
	r := Restart{What: args[0]}
	err := fields(args[1:], map[string]func(string) error{
		"down": func(v string) (err error) { r.Down, err = duration(v); return err },
	})
	return r, err
}

// Closed is the value of a window that is not open during the run.
const Closed = "closed"

func policyAction(args []string) (Action, error) {
	var p Policy
	for _, a := range args {
		key, value, set := strings.Cut(a, "=")
		name, remove := strings.CutSuffix(a, "-")
		switch {
		case set && key == "site" && p.Site == "" && nameRE.MatchString(value):
			p.Site = value
		case set && settingRE.MatchString(key) && value != "", !set && remove && settingRE.MatchString(name):
			p.Settings = append(p.Settings, a)
		default:
			return nil, fmt.Errorf("%q: want [site=SITE] KEY=VALUE or KEY-, the keys of skein policy set", a)
		}
	}
	if len(p.Settings) == 0 {
		return nil, errors.New("want: at TIME policy [site=SITE] KEY=VALUE|KEY- …")
	}
	return p, nil
}

var settingRE = regexp.MustCompile(`^[a-z][a-z-]*[a-z]$`)

func cacheAction(args []string) (Action, error) {
	var c Cache
	err := fields(args, map[string]func(string) error{
		"device": func(v string) (err error) { c.Of, err = fault.ParseDevices(v); return err },
	})
	return c, err
}

func routeAction(args []string) (Action, error) {
	if len(args) == 0 || !nameRE.MatchString(args[0]) {
		return nil, errors.New("want: at TIME route INTERFACE [device=DEVICES]")
	}
	r := Route{Interface: args[0]}
	err := fields(args[1:], map[string]func(string) error{
		"device": func(v string) (err error) { r.To, err = fault.ParseDevices(v); return err },
	})
	return r, err
}

func bundleAction(args []string) (Action, error) {
	if len(args) == 0 || !nameRE.MatchString(args[0]) {
		return nil, errors.New("want: at TIME bundle RELEASE [device=DEVICES]")
	}
	b := Bundle{Release: args[0]}
	err := fields(args[1:], map[string]func(string) error{
		"device": func(v string) (err error) { b.To, err = fault.ParseDevices(v); return err },
	})
	return b, err
}

// fields reads key=value words, each key at most once.
func fields(words []string, set map[string]func(string) error) error {
	seen := map[string]bool{}
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		f := set[key]
		if !ok || f == nil {
			var keys []string
			for k := range set {
				keys = append(keys, k+"=")
			}
			slices.Sort(keys)
			return fmt.Errorf("%q: want %s", w, strings.Join(keys, ", "))
		}
		if seen[key] {
			return fmt.Errorf("%s stands twice", key)
		}
		seen[key] = true
		if err := f(value); err != nil {
			return fmt.Errorf("%s: %w", w, err)
		}
	}
	return nil
}

func duration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > maxLength {
		return 0, fmt.Errorf("time %q: want a duration from 0s to 366 days, as in 10s or 1m30s", s)
	}
	return d, nil
}

// finish checks what only the whole script shows.
func (p *parser) finish() error {
	s := &p.out
	if s.Devices == 0 {
		return errors.New("no devices: the script needs a line such as: devices 20 mix default seed 7")
	}
	slices.SortStableFunc(s.Steps, func(a, b Step) int { return int(max(-1, min(1, a.At-b.At))) })
	known := map[string]bool{}
	for _, st := range s.Steps {
		if s.Length > 0 && st.At > s.Length {
			return fmt.Errorf("line %d: happens at %v, after the end at %v", st.Line, st.At, s.Length)
		}
		switch a := st.Action.(type) {
		case Release:
			if known[a.Name] {
				return fmt.Errorf("line %d: release %s is made twice", st.Line, a.Name)
			}
			known[a.Name] = true
		case Rollout:
			if !known[a.Release] {
				return fmt.Errorf("line %d: release %s is not made before it is rolled out", st.Line, a.Release)
			}
		case Bundle:
			if !known[a.Release] {
				return fmt.Errorf("line %d: release %s is not made before it is carried", st.Line, a.Release)
			}
		case Control:
			if !known[a.Release] {
				return fmt.Errorf("line %d: release %s is not made before", st.Line, a.Release)
			}
		}
	}
	for _, e := range s.Expects {
		name := ""
		switch c := e.Cond.(type) {
		case ReleaseOn:
			name = c.Release
		case RolloutState:
			name = c.Release
		}
		if name != "" && !known[name] {
			return fmt.Errorf("line %d: release %s is never made", e.Line, name)
		}
		if s.Length > 0 && e.By > s.Length {
			return fmt.Errorf("line %d: within %v, but the run ends at %v", e.Line, e.By, s.Length)
		}
	}
	return nil
}
