package rollout

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration whose JSON form is text such as "90s" or "1h30m".
type Duration time.Duration

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalJSON writes the text form.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads the text form; negative durations are refused.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) != nil {
		return errors.New(`want a duration such as "90s" or "1h30m"`)
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("%q: want a duration such as \"90s\" or \"1h30m\"", s)
	}
	*d = Duration(v)
	return nil
}

// Count is a whole number of at least 1; zero means not given, and cannot be
// written, so that a limit of 0 is never taken for no limit.
type Count int

// UnmarshalJSON reads a whole number of at least 1.
func (c *Count) UnmarshalJSON(b []byte) error {
	var n int
	if json.Unmarshal(b, &n) != nil || n < 1 || n > math.MaxInt32 {
		return errors.New("want a whole number of at least 1, or leave the field out")
	}
	*c = Count(n)
	return nil
}

// Amount is a number of devices, or a percentage of them. The zero value means
// not given.
type Amount struct {
	N   int
	Pct float64
}

// minPct is the least percentage: rounding up makes one device of it.
const minPct = 1e-6

// Devices is the Amount of exactly n.
func Devices(n int) Amount { return Amount{N: n} }

// Percent is the Amount of p per cent.
func Percent(p float64) Amount { return Amount{Pct: p} }

// IsZero reports whether the amount was not given.
func (a Amount) IsZero() bool { return a == Amount{} }

// Up returns the amount for a total, rounded up.
func (a Amount) Up(total int) int {
	if a.Pct == 0 {
		return a.N
	}
	return int(math.Ceil(a.Pct*float64(total)/100 - 1e-9))
}

// Down returns the amount for a total, rounded down, but at least 1.
func (a Amount) Down(total int) int {
	if a.Pct == 0 {
		return a.N
	}
	return max(1, int(math.Floor(a.Pct*float64(total)/100+1e-9)))
}

// String returns "5" or "25%".
func (a Amount) String() string {
	if a.Pct != 0 {
		return strconv.FormatFloat(a.Pct, 'f', -1, 64) + "%"
	}
	return strconv.Itoa(a.N)
}

// MarshalJSON writes 5 or "25%".
func (a Amount) MarshalJSON() ([]byte, error) {
	if a.Pct != 0 {
		return json.Marshal(a.String())
	}
	return json.Marshal(a.N)
}

// UnmarshalJSON reads 5 or "25%"; nothing at or below zero, nothing above 100 %.
func (a *Amount) UnmarshalJSON(b []byte) error {
	const want = `want a number of devices of at least 1, or a percentage such as "25%"`
	var c Count
	if c.UnmarshalJSON(b) == nil {
		*a = Amount{N: int(c)}
		return nil
	}
	var s string
	if json.Unmarshal(b, &s) != nil {
		return errors.New(want)
	}
	digits, ok := strings.CutSuffix(s, "%")
	p, err := strconv.ParseFloat(digits, 64)
	if !ok || err != nil || !(p >= minPct && p <= 100) {
		return fmt.Errorf("%q: %s", s, want)
	}
	*a = Amount{Pct: p}
	return nil
}

// Unsupported holds a field of the format that this version does not act on.
// It is kept so that Validate can name it instead of passing over it.
type Unsupported json.RawMessage

// IsZero reports whether the field was absent.
func (u Unsupported) IsZero() bool { return len(u) == 0 }

// MarshalJSON writes what was read.
func (u Unsupported) MarshalJSON() ([]byte, error) { return json.RawMessage(u).MarshalJSON() }

// UnmarshalJSON keeps the bytes.
func (u *Unsupported) UnmarshalJSON(b []byte) error {
	*u = Unsupported(append([]byte(nil), b...))
	return nil
}
