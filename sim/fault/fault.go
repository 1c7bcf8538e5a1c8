// Package fault is the vocabulary of what can go wrong in a simulated fleet:
// faults as values, with the text that the command line and scenario files use
// for them. It injects nothing itself; the simulator's engine does, with package
// shaper for networks and package jetson for heat and clocks.
//
// Invariants: a parsed Fault is valid; Parse(f.String()) gives f again. Only
// sim imports it.
package fault

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ErrBadFault is returned for text that is no fault.
var ErrBadFault = errors.New("not a fault")

// Kind says what goes wrong.
type Kind string

// The kinds of fault.
const (
	Cut       Kind = "cut"       // connections break and none can be made
	Hole      Kind = "hole"      // connections stay, nothing passes
	Block     Kind = "block"     // HTTPS is refused, MQTT passes
	Slow      Kind = "slow"      // bandwidth and latency of a bad line
	Lose      Kind = "lose"      // a share of segments is lost and sent again; of down messages, where the engine can drop them
	Kill      Kind = "kill"      // the agent is killed (-9) and started again
	Corrupt   Kind = "corrupt"   // a share of downloaded kilobytes has a flipped bit
	DiskFull  Kind = "diskfull"  // the device's disk has no room but what is given
	Heat      Kind = "heat"      // the air around the board
	Clock1970 Kind = "clock1970" // the wall clock falls back to 1970
	BootTrap  Kind = "boottrap"  // the boot chain gets into a state of the field
)

// Fault is one thing that goes wrong on some devices at some time.
type Fault struct {
	Kind    Kind
	Devices Devices
	At      time.Duration // from the start of the run
	For     time.Duration // how long; 0 means until the end (kill: none)

	Rate      float64       // lose, corrupt: share from 0 to 1
	Bandwidth int64         // slow: bytes per second, 0 is unlimited
	Latency   time.Duration // slow: one way
	Times     int           // kill: how often, at least 1
	Every     time.Duration // kill: between two times
	Down      time.Duration // kill: until the agent is started again
	Free      int64         // diskfull: bytes left
	Celsius   float64       // heat
	Sync      time.Duration // clock1970: until NTP mends it; 0 means never
	Trap      string        // boottrap: unbootable, retries, unarmed or capsule
}

// option is one key of a fault's text.
type option struct {
	key   string
	kinds []Kind // nil: all
	set   func(*Fault, string) error
	get   func(*Fault) string // "" when it has its default
}

// options in the order in which String prints them.
var options = []option{
	{"device", nil,
		func(f *Fault, v string) (err error) { f.Devices, err = ParseDevices(v); return err },
		func(f *Fault) string { return f.Devices.text() }},
	{"at", nil,
		func(f *Fault, v string) (err error) { f.At, err = duration(v); return err },
		func(f *Fault) string { return durationText(f.At) }},
	{"for", []Kind{Cut, Hole, Block, Slow, Lose, Corrupt, DiskFull, Heat},
		func(f *Fault, v string) (err error) { f.For, err = duration(v); return err },
		func(f *Fault) string { return durationText(f.For) }},
	{"rate", []Kind{Lose, Corrupt},
		func(f *Fault, v string) (err error) { f.Rate, err = ParseShare(v); return err },
		func(f *Fault) string { return floatText(f.Rate) }},
	{"bandwidth", []Kind{Slow},
		func(f *Fault, v string) (err error) {
			f.Bandwidth, err = ParseBytes(strings.TrimSuffix(v, "/s"))
			return err
		},
		func(f *Fault) string { return intText(f.Bandwidth) }},
	{"latency", []Kind{Slow},
		func(f *Fault, v string) (err error) { f.Latency, err = duration(v); return err },
		func(f *Fault) string { return durationText(f.Latency) }},
	{"times", []Kind{Kill},
		func(f *Fault, v string) (err error) { f.Times, err = count(v); return err },
		func(f *Fault) string {
			if f.Times == 1 {
				return ""
			}
			return intText(int64(f.Times))
		}},
	{"every", []Kind{Kill},
		func(f *Fault, v string) (err error) { f.Every, err = duration(v); return err },
		func(f *Fault) string { return durationText(f.Every) }},
	{"down", []Kind{Kill},
		func(f *Fault, v string) (err error) { f.Down, err = duration(v); return err },
		func(f *Fault) string { return durationText(f.Down) }},
	{"free", []Kind{DiskFull},
		func(f *Fault, v string) (err error) { f.Free, err = ParseBytes(v); return err },
		func(f *Fault) string { return intText(f.Free) }},
	{"to", []Kind{Heat},
		func(f *Fault, v string) (err error) { f.Celsius, err = celsius(v); return err },
		func(f *Fault) string { return floatText(f.Celsius) }},
	{"trap", []Kind{BootTrap},
		func(f *Fault, v string) error {
			if !slices.Contains(Traps, v) {
				return fmt.Errorf("want one of %v", Traps)
			}
			f.Trap = v
			return nil
		},
		func(f *Fault) string { return f.Trap }},
	{"sync", []Kind{Clock1970},
		func(f *Fault, v string) (err error) { f.Sync, err = duration(v); return err },
		func(f *Fault) string { return durationText(f.Sync) }},
}

// Traps are the states of a boot chain that boottrap knows.
var Traps = []string{"unbootable", "retries", "unarmed", "capsule"}

// required names the option without which a kind means nothing.
var required = map[Kind][]string{
	Lose: {"rate"}, Corrupt: {"rate"}, Heat: {"to"}, Slow: {"bandwidth", "latency"}, BootTrap: {"trap"},
}

// Kinds lists the kinds in the order of their constants.
func Kinds() []Kind {
	return []Kind{Cut, Hole, Block, Slow, Lose, Kill, Corrupt, DiskFull, Heat, Clock1970, BootTrap}
}

// Parse reads the form of the command line, fields between colons:
// cut:device=3:at=10s:for=20s.
func Parse(text string) (Fault, error) {
	fields := strings.Split(text, ":")
	return ParseFields(fields[0], fields[1:])
}

// ParseFields reads a kind and its key=value fields, as scenario files have
// them between blanks.
func ParseFields(kind string, fields []string) (Fault, error) {
	f := Fault{Kind: Kind(kind)}
	if !slices.Contains(Kinds(), f.Kind) {
		return Fault{}, fmt.Errorf("%w: kind %q: want one of %v", ErrBadFault, kind, Kinds())
	}
	if f.Kind == Kill {
		f.Times = 1
	}
	seen := map[string]bool{}
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		i := slices.IndexFunc(options, func(o option) bool { return o.key == key && (o.kinds == nil || slices.Contains(o.kinds, f.Kind)) })
		if !ok || i < 0 {
			return Fault{}, fmt.Errorf("%w: %s takes %s, not %q", ErrBadFault, f.Kind, strings.Join(keysOf(f.Kind), ", "), field)
		}
		if seen[key] {
			return Fault{}, fmt.Errorf("%w: %s stands twice", ErrBadFault, key)
		}
		seen[key] = true
		if err := options[i].set(&f, value); err != nil {
			return Fault{}, fmt.Errorf("%w: %s=%s: %w", ErrBadFault, key, value, err)
		}
	}
	need := required[f.Kind]
	if len(need) > 0 && !slices.ContainsFunc(need, func(k string) bool { return seen[k] }) {
		return Fault{}, fmt.Errorf("%w: %s needs %s", ErrBadFault, f.Kind, strings.Join(need, " or "))
	}
	if f.Times > 1 && f.Every == 0 {
		return Fault{}, fmt.Errorf("%w: times=%d needs every", ErrBadFault, f.Times)
	}
	return f, nil
}

func keysOf(k Kind) []string {
	var out []string
	for _, o := range options {
		if o.kinds == nil || slices.Contains(o.kinds, k) {
			out = append(out, o.key+"=")
		}
	}
	return out
}

// Fields returns the key=value fields that differ from their defaults.
func (f Fault) Fields() []string {
	var out []string
	for _, o := range options {
		if o.kinds != nil && !slices.Contains(o.kinds, f.Kind) {
			continue
		}
		v := o.get(&f)
		if v == "" && slices.Contains(required[f.Kind], o.key) && len(required[f.Kind]) == 1 {
			v = "0"
		}
		if v == "" && f.Kind == Slow && o.key == "latency" && f.Bandwidth == 0 {
			v = "0s"
		}
		if v != "" {
			out = append(out, o.key+"="+v)
		}
	}
	return out
}

// String is the text that Parse reads.
func (f Fault) String() string {
	return strings.Join(append([]string{string(f.Kind)}, f.Fields()...), ":")
}

// End is when the fault is over, and false when it lasts until the end.
func (f Fault) End() (time.Duration, bool) { return f.At + f.For, f.For > 0 }

const maxDuration = 366 * 24 * time.Hour

func duration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > maxDuration {
		return 0, errors.New("want a duration from 0s to 366 days, as in 10s or 1m30s")
	}
	return d, nil
}

func durationText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.String()
}

func count(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 1_000_000 {
		return 0, errors.New("want a count from 1 to 1000000")
	}
	return n, nil
}

func celsius(s string) (float64, error) {
	v, err := strconv.ParseFloat(strings.TrimSuffix(s, "C"), 64)
	if err != nil || !(v >= -100 && v <= 200) {
		return 0, errors.New("want degrees Celsius from -100 to 200")
	}
	return v, nil
}

func floatText(v float64) string {
	if v == 0 {
		return ""
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

func intText(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// ParseShare reads a share from 0 to 1, as 0.3 or 30%.
func ParseShare(s string) (float64, error) {
	number, pct := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(number, 64)
	if pct {
		v /= 100
	}
	if err != nil || !(v >= 0 && v <= 1) {
		return 0, errors.New("want a share from 0 to 1 or 0% to 100%")
	}
	return v, nil
}

// ParseBytes reads a size: 1500, 64KB, 2MB, 1GB (powers of 1024).
func ParseBytes(s string) (int64, error) {
	shift := 0
	for i, unit := range []string{"KB", "MB", "GB"} {
		if n, ok := strings.CutSuffix(s, unit); ok {
			s, shift = n, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 1<<50>>shift {
		return 0, errors.New("want a size, as in 1500, 64KB or 2MB")
	}
	return n << shift, nil
}
