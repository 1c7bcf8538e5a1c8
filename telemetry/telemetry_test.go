package telemetry

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestSeriesText(t *testing.T) {
	s := NewSeries(Power, "rail", "VDD_IN", "site", "ly\"on\n\\", "empty", "")
	want := `skein_device_power_watts{rail="VDD_IN",site="ly\"on\n\\"}`
	if got := s.String(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if s.Get("rail") != "VDD_IN" || s.Get("nope") != "" {
		t.Error("Get")
	}
	if got := s.With("rail", "").With("a", "b").String(); got != `skein_device_power_watts{a="b",site="ly\"on\n\\"}` {
		t.Errorf("With gave %s", got)
	}
}

func TestParseSeriesRoundTrip(t *testing.T) {
	label := rapid.StringMatching(`[a-z_][a-z0-9_]{0,6}`)
	value := rapid.StringN(1, 20, MaxValueLen)
	rapid.Check(t, func(rt *rapid.T) {
		s := NewSeries(rapid.StringMatching(`[a-z_:][a-z0-9_:]{0,20}`).Draw(rt, "name"))
		for range rapid.IntRange(0, 4).Draw(rt, "labels") {
			s = s.With(label.Draw(rt, "label"), value.Draw(rt, "value"))
		}
		got, err := ParseSeries(s.String())
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(s, got); diff != "" || s.Compare(got) != 0 {
			rt.Fatal(diff)
		}
	})
}

func TestParseSeriesRefuses(t *testing.T) {
	for _, text := range []string{
		"", "1a", "a{", "a{}", `a{b}`, `a{b="c"`, `a{b="c",}`, `a{b="c"}x`, `a{b=""}`, `a{c="1",b="2"}`, `a{b="1",b="2"}`,
		`a{b="\x"}`, `a{b="c\`, "a{b=\"\n\"}", `a{b:="c"}`, `a {b="c"}`, `a{b="` + strings.Repeat("x", MaxValueLen+1) + `"}`, "a{b=\"\xff\"}",
	} {
		if s, err := ParseSeries(text); !errors.Is(err, ErrBadSeries) {
			t.Errorf("%q read as %v, %v", text, s, err)
		}
	}
}

func FuzzParseSeries(f *testing.F) {
	f.Add(`a{b="c",d="\\\"\n"}`)
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := ParseSeries(text); err == nil && s.String() != text {
			t.Fatalf("%q is not canonical: %q", text, s.String())
		}
	})
}

func TestMetricsTable(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range Metrics {
		if err := (Series{Name: m.Name}).Validate(); err != nil {
			t.Error(err)
		}
		if seen[m.Name] || m.Help == "" || m.Scale.Mul == 0 || m.Scale.Div == 0 {
			t.Errorf("%s: twice, or without help or scale", m.Name)
		}
		seen[m.Name] = true
		if suffixed := strings.HasSuffix(m.Name, "_total"); suffixed != (m.Kind == Counter) {
			t.Errorf("%s is a %s", m.Name, m.Kind)
		}
	}
	if m, ok := Lookup("nobody_knows"); ok || m.Scale != defaultScale {
		t.Error("unknown metric without the default scale")
	}
}

func TestQuantiseIsExactAfterTheFirstTime(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := rapid.SampledFrom(Metrics).Draw(rt, "metric")
		n, ok := m.Scale.Quantise(rapid.Float64Range(-1e9, 1e12).Draw(rt, "value"))
		if !ok {
			return
		}
		again, ok := m.Scale.Quantise(m.Scale.Value(n))
		if !ok || again != n {
			rt.Fatalf("%s: %d became %d", m.Name, n, again)
		}
	})
	for _, v := range []float64{math.NaN(), math.Inf(1), -1e300} {
		if _, ok := (Scale{1, 100}).Quantise(v); ok {
			t.Errorf("%v was quantised", v)
		}
	}
}
