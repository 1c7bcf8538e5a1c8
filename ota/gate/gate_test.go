package gate

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func pair(dev string, nb int, before float64, na int, after float64) Sample {
	return Sample{dev, Pair{Stats{nb, before, 2 * before}, Stats{na, after, 2 * after}}}
}

func TestOwnPast(t *testing.T) {
	rule := OwnPast{MaxRatio: 1.5, Floor: 2, MaxRegressedPct: 25, MinSamples: 10}
	tests := []struct {
		name      string
		rule      OwnPast
		in        []Sample
		want      Verdict
		regressed int
		reason    string
	}{
		{"no device", rule, nil, Inconclusive, 0, "0 of 0 devices"},
		{"no traffic is not success", rule, []Sample{pair("a", 50, 10, 0, 0), pair("b", 50, 10, 3, 10)}, Inconclusive, 0, "want 1 with 10 samples"},
		{"steady", rule, []Sample{pair("a", 50, 10, 50, 10), pair("b", 50, 20, 50, 21)}, Pass, 0, "0 of 2"},
		{"slow", rule, []Sample{pair("a", 50, 10, 50, 30), pair("b", 50, 20, 50, 70)}, Fail, 2, "worst: b, 20 before and 70 now"},
		{"ratio large but growth under the floor", rule, []Sample{pair("a", 50, 1, 50, 2.9), pair("b", 50, 1, 50, 2.9)}, Pass, 0, ""},
		{"growth large but ratio small", rule, []Sample{pair("a", 50, 100, 50, 140)}, Pass, 0, ""},
		{"from nothing", rule, []Sample{pair("a", 50, 0, 50, 5)}, Fail, 1, ""},
		{"exactly at the allowed share passes", rule, []Sample{pair("a", 50, 10, 50, 90), pair("b", 50, 10, 50, 10), pair("c", 50, 10, 50, 10), pair("d", 50, 10, 50, 10)}, Pass, 1, "1 of 4"},
		{"one device is enough at 0 %", OwnPast{MaxRatio: 1.5, Floor: 2}, []Sample{pair("a", 50, 10, 50, 90), pair("b", 50, 10, 50, 10), pair("c", 50, 10, 50, 10)}, Fail, 1, ""},
		{"half must be judged", rule, []Sample{pair("a", 50, 10, 50, 90), pair("b", 0, 0, 50, 10), pair("c", 50, 10, 0, 0)}, Inconclusive, 1, "1 of 3"},
		{"stated number of devices", OwnPast{MaxRatio: 1.5, Floor: 2, MinDevices: 1}, []Sample{pair("a", 50, 10, 50, 90), pair("b", 0, 0, 50, 10), pair("c", 50, 10, 0, 0)}, Fail, 1, ""},
		{"p99", OwnPast{Stat: P99, MaxRatio: 1.5, Floor: 2}, []Sample{{"a", Pair{Stats{9, 10, 20}, Stats{9, 10, 80}}}}, Fail, 1, "p99"},
		{"a lying device is not judged", rule, []Sample{pair("a", 50, 10, 50, math.NaN()), pair("b", 50, 10, 50, math.Inf(1)), pair("c", 50, -1, 50, 1)}, Inconclusive, 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.rule.Judge(tt.in)
			if got.Verdict != tt.want || got.Regressed != tt.regressed || !strings.Contains(got.Reason, tt.reason) {
				t.Errorf("got %s (%d regressed): %s; want %s (%d): …%s…", got.Verdict, got.Regressed, got.Reason, tt.want, tt.regressed, tt.reason)
			}
			if lines := strings.Count(got.String(), "\n"); lines != 1+len(tt.in) {
				t.Errorf("evidence has %d lines, want %d:\n%s", lines, 1+len(tt.in), got)
			}
		})
	}
}

func TestFigure(t *testing.T) {
	for _, tt := range []struct {
		x          float64
		unit, want string
	}{
		{0.00907, "seconds", "9.07 ms"}, {0.0644, "seconds", "64.4 ms"}, {0.002, "seconds", "2 ms"}, {2.5, "seconds", "2.5 s"}, {1234, "seconds", "1230 s"}, {2e-5, "seconds", "20 µs"}, {1e-9, "seconds", "0.001 µs"},
		{0, "seconds", "0 s"}, {3 << 20, "bytes", "3 MiB"}, {512, "bytes", "512 bytes"}, {71.26, "celsius", "71.3 °C"}, {0.5, "watts", "500 mW"}, {15, "watts", "15 W"}, {12.5, "percent", "12.5 %"},
		{0.125, "", "0.125"}, {3, "frames", "3 frames"},
	} {
		if got := Figure(tt.x, tt.unit); got != tt.want {
			t.Errorf("%g %s: got %q, want %q", tt.x, tt.unit, got, tt.want)
		}
	}
	r := OwnPast{MaxRatio: 1.5, Floor: 0.002, MaxRegressedPct: 25, Unit: "seconds"}.Judge([]Sample{pair("cam-7", 9, 0.00907, 9, 0.0644)})
	want := "1 of 1 devices regressed: the median is more than 1.5 times its own past and over 2 ms above it (allowed: 25 % of devices); worst: cam-7, 9.07 ms before and 64.4 ms now"
	if r.Reason != want {
		t.Errorf("got  %s\nwant %s", r.Reason, want)
	}
}

func samples() *rapid.Generator[[]Sample] {
	stats := rapid.Custom(func(t *rapid.T) Stats {
		m := rapid.Float64Range(0, 1000).Draw(t, "median")
		return Stats{rapid.IntRange(0, 40).Draw(t, "n"), m, m * rapid.Float64Range(1, 5).Draw(t, "tail")}
	})
	one := rapid.Custom(func(t *rapid.T) Sample {
		return Sample{rapid.StringMatching("[a-z]{4}").Draw(t, "device"), Pair{stats.Draw(t, "before"), stats.Draw(t, "after")}}
	})
	return rapid.SliceOfNDistinct(one, 0, 30, func(s Sample) string { return s.Device })
}

func rule() *rapid.Generator[OwnPast] {
	return rapid.Custom(func(t *rapid.T) OwnPast {
		return OwnPast{
			Stat:            rapid.SampledFrom([]Stat{"", Median, P99}).Draw(t, "stat"),
			MaxRatio:        rapid.Float64Range(1, 3).Draw(t, "ratio"),
			Floor:           rapid.Float64Range(0, 20).Draw(t, "floor"),
			MaxRegressedPct: rapid.Float64Range(0, 100).Draw(t, "pct"),
			MinSamples:      rapid.IntRange(0, 20).Draw(t, "samples"),
			MinDevices:      rapid.IntRange(0, 5).Draw(t, "devices"),
		}
	})
}

// The order in which devices are listed changes nothing.
func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, in := rule().Draw(t, "rule"), samples().Draw(t, "in")
		shuffled := rapid.Permutation(in).Draw(t, "shuffled")
		if diff := cmp.Diff(r.Judge(in), r.Judge(shuffled)); diff != "" {
			t.Fatal(diff)
		}
	})
}

// A device that is worse than before can never turn a failed gate into a pass.
func TestSlowerNeverHelps(t *testing.T) {
	rank := map[Verdict]int{Fail: 0, Inconclusive: 1, Pass: 1}
	rapid.Check(t, func(t *rapid.T) {
		r, in := rule().Draw(t, "rule"), samples().Draw(t, "in")
		was := r.Judge(in).Verdict
		for i := range in {
			in[i].After.Median *= 2
			in[i].After.P99 *= 2
		}
		if now := r.Judge(in).Verdict; rank[now] > rank[was] {
			t.Fatalf("%s became %s when every device got slower", was, now)
		}
	})
}

// One device has one vote: no figure it can report moves the count by more.
func TestOneDeviceOneVote(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r, in := rule().Draw(t, "rule"), samples().Filter(func(s []Sample) bool { return len(s) > 0 }).Draw(t, "in")
		was := r.Judge(in).Regressed
		i := rapid.IntRange(0, len(in)-1).Draw(t, "liar")
		in[i].After = Stats{1 << 30, rapid.Float64().Draw(t, "lie"), rapid.Float64().Draw(t, "lie99")}
		if now := r.Judge(in).Regressed; now > was+1 || now < was-1 {
			t.Fatalf("one device moved the count from %d to %d", was, now)
		}
	})
}
