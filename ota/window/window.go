// Package window is weekly spans of local time: when a device may download,
// and when it may put something new to work. It is pure: the moment and the
// zone are arguments.
//
// Invariants: a window never opens at a wall-clock time outside its spans, but
// where clocks go forward over a whole span; it opens as often as the calendar
// says, on days of 23 and of 25 hours too; a set without spans is always open.
// The zones of the tz database are in the binary, so that control plane and
// device know the same ones. agent, controlplane and ota/rollout import it.
package window

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // devices are often without the files
)

// ErrSyntax is what Parse returns, wrapped.
var ErrSyntax = errors.New("not a window")

// ErrZone is what Zone returns, wrapped.
var ErrZone = errors.New("no time zone")

// maxSpans bounds the spans of one set.
const maxSpans = 32

const day = 24 * 60 // minutes

// span is from..to minutes after the midnight at which its day begins; to may
// lie on the next day.
type span struct {
	days     [7]bool // by time.Weekday
	from, to int
	text     string
}

// Set is the spans in which something is allowed. The zero value is always open.
type Set struct{ spans []span }

// Always reports whether the set is open at all times because it has no spans.
func (s Set) Always() bool { return len(s.spans) == 0 }

// String returns the set in the form that Parse reads.
func (s Set) String() string {
	if s.Always() {
		return "always"
	}
	out := make([]string, len(s.spans))
	for i, sp := range s.spans {
		out[i] = sp.text
	}
	return strings.Join(out, "; ")
}

var dayNames = [7]string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

// Parse reads spans divided by semicolons: days and times, as in
// "Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00". Without days a span is for every
// day. A span that ends before it begins ends on the next day. "always" and the
// empty text are the set that is always open.
func Parse(text string) (Set, error) {
	var s Set
	if t := strings.TrimSpace(text); t == "" || strings.EqualFold(t, "always") {
		return s, nil
	}
	for part := range strings.SplitSeq(text, ";") {
		sp, err := parseSpan(strings.Fields(part))
		if err != nil {
			return Set{}, fmt.Errorf("%w: %q: %w", ErrSyntax, strings.TrimSpace(part), err)
		}
		s.spans = append(s.spans, sp)
	}
	if len(s.spans) > maxSpans {
		return Set{}, fmt.Errorf("%w: %d spans, at most %d", ErrSyntax, len(s.spans), maxSpans)
	}
	return s, nil
}

func parseSpan(words []string) (span, error) {
	var sp span
	var err error
	days, times := "", ""
	switch len(words) {
	case 1:
		days, times = "Mon-Sun", words[0]
	case 2:
		days, times = words[0], words[1]
	default:
		return sp, errors.New("want days and times, as in Mon-Fri 22:00-06:00")
	}
	if sp.days, err = parseDays(days); err != nil {
		return sp, err
	}
	from, to, ok := strings.Cut(times, "-")
	if !ok {
		return sp, fmt.Errorf("%q: want FROM-TO, as in 22:00-06:00", times)
	}
	if sp.from, err = parseTime(from); err != nil {
		return sp, err
	}
	if sp.to, err = parseTime(to); err != nil {
		return sp, err
	}
	switch {
	case sp.from == day:
		return sp, errors.New("24:00 can only be an end: begin at 00:00 of the next day")
	case sp.from == sp.to:
		return sp, fmt.Errorf("%s-%s has no length: a whole day is 00:00-24:00", from, to)
	case sp.to < sp.from:
		sp.to += day
	}
	sp.text = daysText(sp.days) + fmt.Sprintf(" %s-%s", clockText(sp.from), clockText(sp.to))
	return sp, nil
}

func parseDays(text string) (days [7]bool, err error) {
	for part := range strings.SplitSeq(text, ",") {
		first, last, ranged := strings.Cut(part, "-")
		a, err := parseDay(first)
		if err != nil {
			return days, err
		}
		b := a
		if ranged {
			if b, err = parseDay(last); err != nil {
				return days, err
			}
		}
		for d := a; ; d = (d + 1) % 7 {
			days[d] = true
			if d == b {
				break
			}
		}
	}
	return days, nil
}

func parseDay(text string) (int, error) {
	for i, name := range dayNames {
		if strings.EqualFold(text, name) {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%q is no day: want one of Mon Tue Wed Thu Fri Sat Sun", text)
}

func parseTime(text string) (int, error) {
	if text == "24:00" {
		return day, nil
	}
	t, err := time.Parse("15:04", text)
	if err != nil {
		return 0, fmt.Errorf("%q is no time of day: want 00:00 to 24:00", text)
	}
	return t.Hour()*60 + t.Minute(), nil
}

func clockText(minutes int) string {
	if minutes > day {
		minutes -= day
	}
	return fmt.Sprintf("%02d:%02d", minutes/60, minutes%60)
}

// daysText names days from Monday on, runs of three and more as a range.
func daysText(days [7]bool) string {
	var out []string
	for i := 0; i < 7; {
		if !days[(i+1)%7] {
			i++
			continue
		}
		j := i
		for j+1 < 7 && days[(j+2)%7] {
			j++
		}
		first, last := dayNames[(i+1)%7], dayNames[(j+1)%7]
		switch {
		case i == j:
			out = append(out, first)
		case i+1 == j:
			out = append(out, first, last)
		default:
			out = append(out, first+"-"+last)
		}
		i = j + 1
	}
	return strings.Join(out, ",")
}

// Zone returns the zone of a name of the tz database.
func Zone(name string) (*time.Location, error) {
	if name == "" || strings.EqualFold(name, "local") {
		return nil, fmt.Errorf("%w: %q: want a name as Europe/Paris or UTC", ErrZone, name)
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: want a name as Europe/Paris or UTC", ErrZone, name)
	}
	return loc, nil
}

// interval is one opening of a set.
type interval struct{ from, to time.Time }

// horizon is how many days ahead openings are looked for: each set that opens
// at all does so within eight.
const horizon = 9

// openings returns the openings around t in order, those that touch as one.
func (s Set) openings(t time.Time, loc *time.Location) []interval {
	y, m, d := t.In(loc).Date()
	var all []interval
	for ahead := -2; ahead <= horizon; ahead++ {
		date := time.Date(y, m, d+ahead, 0, 0, 0, 0, time.UTC)
		for _, sp := range s.spans {
			if !sp.days[date.Weekday()] {
				continue
			}
			all = append(all, sp.on(date, loc))
		}
	}
	slices.SortFunc(all, func(a, b interval) int { return a.from.Compare(b.from) })
	var out []interval
	for _, i := range all {
		if n := len(out); n > 0 && !i.from.After(out[n-1].to) {
			if i.to.After(out[n-1].to) {
				out[n-1].to = i.to
			}
			continue
		}
		out = append(out, i)
	}
	return out
}

// on returns the opening of a span on a date. Where clocks go forward over all
// of it, it keeps its length and begins when they have moved.
func (sp span) on(date time.Time, loc *time.Location) interval {
	i := interval{wall(date, sp.from, loc), wall(date, sp.to, loc)}
	if !i.to.After(i.from) {
		i.to = i.from.Add(time.Duration(sp.to-sp.from) * time.Minute)
	}
	return i
}

// wall returns the moment at which clocks in loc show the minute of the date.
// Of a time that comes twice it is the first; one that is left out counts by
// the clock of before.
func wall(date time.Time, minute int, loc *time.Location) time.Time {
	u := date.Add(time.Duration(minute) * time.Minute)
	at := func(ref time.Time) (time.Time, bool) {
		_, offset := ref.In(loc).Zone()
		t := u.Add(-time.Duration(offset) * time.Second)
		_, is := t.In(loc).Zone()
		return t, is == offset
	}
	before, ok := at(u.Add(-24 * time.Hour))
	if ok {
		return before
	}
	if after, ok := at(u.Add(24 * time.Hour)); ok {
		return after
	}
	return before
}

// At says whether the set is open at t and when that changes; zero means that
// no change is in sight.
func (s Set) At(t time.Time, loc *time.Location) (open bool, changes time.Time) {
	if s.Always() {
		return true, time.Time{}
	}
	end := t.Add((horizon - 1) * 24 * time.Hour)
	for _, i := range s.openings(t, loc) {
		switch {
		case !t.Before(i.to):
		case t.Before(i.from):
			return false, i.from
		case i.to.After(end):
			return true, time.Time{}
		default:
			return true, i.to
		}
	}
	return false, time.Time{}
}

// Day returns when the local day of t begins and ends.
func Day(t time.Time, loc *time.Location) (begins, ends time.Time) {
	y, m, d := t.In(loc).Date()
	return wall(time.Date(y, m, d, 0, 0, 0, 0, time.UTC), 0, loc), wall(time.Date(y, m, d+1, 0, 0, 0, 0, time.UTC), 0, loc)
}

// Month returns when the local month of t begins and ends.
func Month(t time.Time, loc *time.Location) (begins, ends time.Time) {
	y, m, _ := t.In(loc).Date()
	return wall(time.Date(y, m, 1, 0, 0, 0, 0, time.UTC), 0, loc), wall(time.Date(y, m+1, 1, 0, 0, 0, 0, time.UTC), 0, loc)
}

// Local is a set in its zone.
type Local struct {
	Set  Set
	Zone *time.Location
}

// maxSteps bounds the search for a moment at which several sets are open.
const maxSteps = 1000

// All says whether all sets are open at t and when that changes; zero means
// that no change is in sight, so that sets which are never open together stay
// closed.
func All(sets []Local, t time.Time) (open bool, changes time.Time) {
	open, changes = all(sets, t)
	if open {
		return open, changes
	}
	end := t.Add(2 * 366 * 24 * time.Hour)
	for at, step := changes, 0; !at.IsZero() && at.Before(end) && step < maxSteps; step++ {
		now, next := all(sets, at)
		if now {
			return false, at
		}
		at = next
	}
	return false, time.Time{}
}

// all returns, when not all are open, the first moment at which those that are
// closed now have all opened once.
func all(sets []Local, t time.Time) (open bool, changes time.Time) {
	open = true
	for _, l := range sets {
		is, next := l.Set.At(t, l.Zone)
		switch {
		case !is && next.IsZero():
			return false, time.Time{}
		case !is && (open || next.After(changes)):
			open, changes = false, next
		case is && open && !next.IsZero() && (changes.IsZero() || next.Before(changes)):
			changes = next
		}
	}
	return open, changes
}
