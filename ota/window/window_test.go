package window

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func mustParse(t testing.TB, text string) Set {
	t.Helper()
	s, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := Zone(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"", "always"}, {" Always ", "always"},
		{"22:00-06:00", "Mon-Sun 22:00-06:00"},
		{"mon-fri 22:00-06:00;sat,SUN 00:00-24:00", "Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00"},
		{"Fri-Mon 1:00-2:30", "Mon,Fri-Sun 01:00-02:30"},
		{"Wed,Mon 10:00-00:00", "Mon,Wed 10:00-24:00"},
	} {
		s := mustParse(t, c.in)
		if s.String() != c.want {
			t.Errorf("Parse(%q) = %q, want %q", c.in, s, c.want)
		}
		if again := mustParse(t, s.String()); again.String() != s.String() {
			t.Errorf("%q reads back as %q", s, again)
		}
	}
	for in, want := range map[string]string{
		"Mon-Fri":         "no time of day",
		"Mon 22:00":       "want FROM-TO",
		"Mon 10:00-10:00": "no length",
		"Mon 24:00-02:00": "only be an end",
		"Mon 10:60-11:00": "no time of day",
		"Mon 25:00-26:00": "no time of day",
		"Mo 10:00-11:00":  "is no day",
		"Mon 10:00 11:00": "want days and times",
		"10:00-11:00;":    "want days and times",
		strings.Repeat("10:00-11:00;", 32) + "1:00-2:00": "at most 32",
	} {
		_, err := Parse(in)
		if !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q): %v, want %q", in, err, want)
		}
	}
	for _, bad := range []string{"", "Local", "Mars/Olympus", "../etc/passwd"} {
		if _, err := Zone(bad); !errors.Is(err, ErrZone) {
			t.Errorf("Zone(%q): %v", bad, err)
		}
	}
}

// TestAt walks over the nights on which Paris moves its clocks: 29 March 2026,
// 02:00 becomes 03:00, and 25 October 2026, 03:00 becomes 02:00.
func TestAt(t *testing.T) {
	for _, c := range []struct{ set, at, want string }{
		{"Mon-Fri 22:00-06:00", "2026-11-24T21:59:59+01:00", "shut 2026-11-24T22:00:00+01:00"},
		{"Mon-Fri 22:00-06:00", "2026-11-24T22:00:00+01:00", "open 2026-11-25T06:00:00+01:00"},
		{"Mon-Fri 22:00-06:00", "2026-11-25T05:59:59+01:00", "open 2026-11-25T06:00:00+01:00"},
		{"Mon-Fri 22:00-06:00", "2026-11-25T06:00:00+01:00", "shut 2026-11-25T22:00:00+01:00"},
		{"Mon-Fri 22:00-06:00", "2026-11-28T05:00:00+01:00", "open 2026-11-28T06:00:00+01:00"}, // Friday's night
		{"Mon-Fri 22:00-06:00", "2026-11-28T06:00:00+01:00", "shut 2026-11-30T22:00:00+01:00"},
		{"Mon 00:00-24:00; Tue 00:00-08:00", "2026-11-23T10:00:00+01:00", "open 2026-11-24T08:00:00+01:00"},
		{"00:00-24:00", "2026-11-23T10:00:00+01:00", "open never"},
		{"", "2026-11-23T10:00:00+01:00", "open never"},
		{"Sun 10:00-11:00", "2026-11-22T11:00:00+01:00", "shut 2026-11-29T10:00:00+01:00"},
		// Forward: a window that is left out opens all the same, for its length.
		{"02:00-03:00", "2026-03-28T12:00:00+01:00", "shut 2026-03-29T03:00:00+02:00"},
		{"02:00-03:00", "2026-03-29T03:00:00+02:00", "open 2026-03-29T04:00:00+02:00"},
		{"Sun 02:15-02:45", "2026-03-28T12:00:00+01:00", "shut 2026-03-29T03:15:00+02:00"},
		{"01:30-05:00", "2026-03-29T01:30:00+01:00", "open 2026-03-29T05:00:00+02:00"},
		{"22:00-06:00", "2026-03-28T22:00:00+01:00", "open 2026-03-29T06:00:00+02:00"},
		// Back: of a time that comes twice the first counts.
		{"22:00-06:00", "2026-10-24T22:00:00+02:00", "open 2026-10-25T06:00:00+01:00"},
		{"02:00-02:30", "2026-10-25T02:00:00+02:00", "open 2026-10-25T02:30:00+02:00"},
		{"02:00-02:30", "2026-10-25T02:10:00+01:00", "shut 2026-10-26T02:00:00+01:00"},
		{"02:30-05:00", "2026-10-25T02:15:00+01:00", "open 2026-10-25T05:00:00+01:00"},
	} {
		at, err := time.Parse(time.RFC3339, c.at)
		if err != nil {
			t.Fatal(err)
		}
		paris := zone(t, "Europe/Paris")
		open, changes := mustParse(t, c.set).At(at, paris)
		got := map[bool]string{true: "open ", false: "shut "}[open] + "never"
		if !changes.IsZero() {
			got = strings.TrimSuffix(got, "never") + changes.In(paris).Format(time.RFC3339)
		}
		if got != c.want {
			t.Errorf("%q at %s: %s, want %s", c.set, c.at, got, c.want)
		}
	}
}

// TestDays holds days and months together where clocks move at midnight, as in
// Santiago, and where a day is missing, as on Samoa.
func TestDays(t *testing.T) {
	for _, c := range []struct{ zone, at, begins, ends string }{
		{"America/Santiago", "2026-09-06T12:00:00Z", "2026-09-06T04:00:00Z", "2026-09-07T03:00:00Z"}, // 00:00 is left out
		{"Europe/Paris", "2026-10-25T12:00:00Z", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"},
		{"Pacific/Apia", "2011-12-29T20:00:00Z", "2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z"},
	} {
		at, _ := time.Parse(time.RFC3339, c.at)
		b, e := Day(at, zone(t, c.zone))
		if got := b.UTC().Format(time.RFC3339) + " " + e.UTC().Format(time.RFC3339); got != c.begins+" "+c.ends {
			t.Errorf("%s in %s: %s, want %s %s", c.at, c.zone, got, c.begins, c.ends)
		}
	}
	at := time.Date(2026, 12, 31, 23, 30, 0, 0, time.UTC)
	if b, e := Month(at, zone(t, "Asia/Tokyo")); b.UTC().Format(time.RFC3339) != "2026-12-31T15:00:00Z" || e.UTC().Format(time.RFC3339) != "2027-01-31T15:00:00Z" {
		t.Errorf("month in Tokyo: %s %s", b, e)
	}
}

func TestAll(t *testing.T) {
	paris, tokyo := zone(t, "Europe/Paris"), zone(t, "Asia/Tokyo")
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		sets []Local
		open bool
		want string
	}{
		{nil, true, ""},
		{[]Local{{Set{}, paris}}, true, ""},
		{[]Local{{mustParse(t, "10:00-15:00"), paris}, {mustParse(t, "12:00-14:00"), paris}}, true, "2026-11-24T13:00:00Z"},
		{[]Local{{mustParse(t, "22:00-06:00"), paris}, {mustParse(t, "Sat 00:00-24:00"), paris}}, false, "2026-11-27T23:00:00Z"},
		{[]Local{{mustParse(t, "22:00-23:00"), paris}, {mustParse(t, "01:00-02:00"), paris}}, false, ""},
		{[]Local{{mustParse(t, "22:00-06:00"), paris}, {mustParse(t, "10:00-12:00"), tokyo}}, false, "2026-11-25T01:00:00Z"},
	} {
		open, changes := All(c.sets, at)
		got := ""
		if !changes.IsZero() {
			got = changes.UTC().Format(time.RFC3339)
		}
		if open != c.open || got != c.want {
			t.Errorf("%v: %t %s, want %t %s", c.sets, open, got, c.open, c.want)
		}
	}
}

// TestAtAgreesWithTheClock compares with what a clock on the wall says, minute
// by minute, away from the nights on which it moves.
func TestAtAgreesWithTheClock(t *testing.T) {
	zones := []string{"UTC", "Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "America/Santiago"}
	rapid.Check(t, func(t *rapid.T) {
		loc, err := Zone(rapid.SampledFrom(zones).Draw(t, "zone"))
		if err != nil {
			t.Fatal(err)
		}
		var sp span
		sp.from, sp.to = rapid.IntRange(0, day-1).Draw(t, "from"), rapid.IntRange(1, day).Draw(t, "length")
		sp.to = min(sp.from+sp.to, day+sp.from-1)
		for d := range sp.days {
			sp.days[d] = rapid.Bool().Draw(t, "day")
		}
		sp.days[rapid.IntRange(0, 6).Draw(t, "one")] = true
		s := Set{[]span{sp}}
		at := time.Unix(rapid.Int64Range(1750000000, 1850000000).Draw(t, "at"), 0)
		open, changes := s.At(at, loc)
		if changes.IsZero() {
			if open && (sp.to-sp.from) < day-1 {
				t.Fatalf("%v never closes", s)
			}
			return
		}
		if !changes.After(at) {
			t.Fatalf("changes at %s, asked at %s", changes, at)
		}
		// Until it changes, it says the same.
		mid := at.Add(changes.Sub(at) / 2)
		if is, next := s.At(mid, loc); is != open || !next.Equal(changes) {
			t.Fatalf("at %s %t until %s, at %s %t until %s", at, open, changes, mid, is, next)
		}
		if is, _ := s.At(changes, loc); is == open {
			t.Fatalf("still %t at its change %s", is, changes)
		}
		if moves(at, loc) {
			return
		}
		l := at.In(loc)
		minute := l.Hour()*60 + l.Minute()
		today, yesterday := sp.days[l.Weekday()], sp.days[(l.Weekday()+6)%7]
		want := today && minute >= sp.from && minute < sp.to || yesterday && minute+day >= sp.from && minute+day < sp.to
		if open != want {
			t.Fatalf("%v at %s: %t, the clock says %t", sp, l, open, want)
		}
	})
}

func moves(t time.Time, loc *time.Location) bool {
	_, a := t.Add(-50 * time.Hour).In(loc).Zone()
	_, b := t.Add(50 * time.Hour).In(loc).Zone()
	return a != b
}

func FuzzParse(f *testing.F) {
	f.Add("Mon-Fri 22:00-06:00; Sat,Sun 00:00-24:00")
	f.Add("always")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q reads back as %q, %v", s, again, err)
		}
	})
}
