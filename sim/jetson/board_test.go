package jetson

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/telemetry/probe/tegra"
)

const samples = "../../telemetry/probe/tegra/testdata/"

var epoch = time.Date(2026, 5, 9, 18, 42, 6, 0, time.UTC)

func board(t testing.TB, key string, o Options) *Board {
	t.Helper()
	m, err := Lookup(key)
	if err != nil {
		t.Fatal(err)
	}
	if o.Start.IsZero() {
		o.Start = epoch
	}
	b, err := New(m, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func run(b *Board, seconds int, l Load) {
	for range seconds {
		b.Step(time.Second, l)
	}
}

// TestGrammarsPrintRealLines holds that each board's grammar gives real lines
// of its release back, byte for byte.
func TestGrammarsPrintRealLines(t *testing.T) {
	tests := map[string][]string{
		"nano":      {"nano-r32-datadog.txt", "nano-r32.7-wifi.txt"},
		"xavier-nx": {"xavier-nx-r35-burn.txt"},
		"orin-nano": {"orin-nano-r36-beszel.txt", "orin-nano-r36-clocks.txt"},
		"orin-nx":   {"orin-nano-r36-beszel.txt"},
		"agx-orin":  {"agx-orin-r36.4.4-lesomnus.txt", "agx-orin-r36-datadog.txt"},
		"thor":      {"agx-thor-r38.4.0-lesomnus.txt"},
	}
	for key, files := range tests {
		m, err := Lookup(key)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(samples + f)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n") {
				want := strings.Join(strings.Fields(line), " ")
				if diff := cmp.Diff(want, tegra.Format(tegra.Parse(line), m.Grammar)); diff != "" {
					t.Errorf("%s, %s:\n%s", key, f, diff)
				}
			}
		}
	}
}

// TestLineSaysWhatTheBoardHas holds that the real parser reads the board's own
// values out of its line, whatever it does.
func TestLineSaysWhatTheBoardHas(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &Models[rapid.IntRange(0, len(Models)-1).Draw(rt, "model")]
		mode := rapid.SampledFrom(m.Modes).Draw(rt, "mode")
		b, err := New(m, Options{Seed: rapid.Uint64().Draw(rt, "seed"), Start: epoch, Mode: mode.Name, Ambient: rapid.Float64Range(-20, 90).Draw(rt, "ambient")})
		if err != nil {
			rt.Fatal(err)
		}
		share := rapid.Float64Range(0, 1)
		for range rapid.IntRange(1, 20).Draw(rt, "steps") {
			dt := time.Duration(rapid.IntRange(1, 600_000).Draw(rt, "ms")) * time.Millisecond
			b.Step(dt, Load{share.Draw(rt, "cpu"), share.Draw(rt, "gpu"), share.Draw(rt, "emc"), share.Draw(rt, "dla")})
		}
		line := b.Tegrastats()
		if !m.Jetson() || b.Dead() {
			if line != "" {
				rt.Fatalf("%s prints %q", m.Key, line)
			}
			return
		}
		got := tegra.Parse(line)
		if diff := cmp.Diff(b.Stats(), got); diff != "" {
			rt.Fatalf("%s\n%s", line, diff)
		}
		for _, r := range b.Readings(epoch) {
			if err := r.Series.Validate(); err != nil || math.IsNaN(r.Value) {
				rt.Fatalf("%s = %v: %v", r.Series, r.Value, err)
			}
		}
	})
}

func TestTargetsAreCanonical(t *testing.T) {
	want := map[string]string{
		"nano":      "linux/arm64;sm=5.3;trt=8.2.1;cuda=10.2;l4t=32.7.1;mem=4;dla=0;module=nano-4gb;mode=MAXN",
		"xavier-nx": "linux/arm64;sm=7.2;trt=8.5.2;cuda=11.4;l4t=35.3.1;mem=8;dla=2;module=xavier-nx-8gb;mode=MODE_15W_6CORE",
		"orin-nano": "linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;l4t=36.4.4;mem=8;dla=0;module=orin-nano-8gb;mode=25W",
		"orin-nx":   "linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;l4t=36.4.3;mem=16;dla=2;module=orin-nx-16gb;mode=MAXN",
		"agx-orin":  "linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;l4t=36.4.4;mem=64;dla=2;module=agx-orin-64gb;mode=MAXN",
		"thor":      "linux/arm64;sm=11.0;trt=10.13.3;cuda=13.0;l4t=38.4.0;mem=128;dla=0;module=thor-t5000;mode=120W",
		"x86":       "linux/amd64;ort=1",
	}
	got := map[string]string{}
	for _, key := range Keys() {
		b := board(t, key, Options{})
		got[key] = b.Target().String()
		if _, err := ota.ParseTarget(got[key]); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestThermalFitsBurnLog compares with a real Xavier NX: in 101 s from 5.5 W
// to 13.6 W its CPU zone rose by 10.5 K and its GPU zone by 15 K.
func TestThermalFitsBurnLog(t *testing.T) {
	b := board(t, "xavier-nx", Options{Mode: "MODE_15W_4CORE"})
	run(b, 3600, Load{CPU: 0.4, GPU: 0.02})
	before := b.Stats()
	run(b, 101, Load{CPU: 0.42, GPU: 0.95, EMC: 0.4})
	after := b.Stats()
	watts := func(s tegra.Stats) float64 { return s.PowerMW["VDD_IN"].Now / 1000 }
	if p := watts(before); math.Abs(p-5.5) > 1 {
		t.Errorf("%.1f W before the burn, the real board drew 5.5 W", p)
	}
	if p := watts(after); math.Abs(p-13.6) > 1.5 {
		t.Errorf("%.1f W under the burn, the real board drew 13.6 W", p)
	}
	for zone, want := range map[string]float64{"CPU": 10.5, "GPU": 15} {
		if got := after.TempsC[zone] - before.TempsC[zone]; math.Abs(got-want) > 2.5 {
			t.Errorf("%s rose by %.1f K, the real board's by %.1f K", zone, got, want)
		}
	}
}

func TestHeatThrottlesAndSlows(t *testing.T) {
	for _, key := range Keys() {
		t.Run(key, func(t *testing.T) {
			b := board(t, key, Options{})
			load := Load{CPU: 0.5, GPU: 0.9, EMC: 0.5}
			run(b, 1800, load)
			if b.Throttled() {
				t.Fatalf("throttled at 20 °C: die %.1f °C", b.Die())
			}
			cool := b.LatencyFactor()
			for a := 40.0; b.LatencyFactor() <= 1.05*cool && a < 100; a += 2 {
				b.SetAmbient(a)
				run(b, 1800, load)
			}
			if !b.Throttled() || b.Dead() || b.ThrottleEvents() == 0 {
				t.Fatalf("die %.1f °C: throttled %v, dead %v", b.Die(), b.Throttled(), b.Dead())
			}
			if hot := b.LatencyFactor(); hot <= 1.05*cool {
				t.Errorf("latency factor %.3f cool, %.3f hot", cool, hot)
			}
			b.SetAmbient(20)
			run(b, 1800, load)
			if got := b.LatencyFactor(); b.Throttled() || got != cool {
				t.Errorf("after cooling: throttled %v, factor %.3f, was %.3f", b.Throttled(), got, cool)
			}
			b.SetAmbient(b.Model().Thermal.Critical + 5)
			run(b, 3600, load)
			if !b.Dead() || b.Tegrastats() != "" || b.Readings(epoch) != nil {
				t.Error("board is alive above its critical temperature")
			}
			b.SetAmbient(20)
			run(b, 3600, load)
			if !b.Dead() {
				t.Error("board came back by itself")
			}
			b.PowerCycle()
			b.Step(time.Second, load)
			if b.Dead() || b.Uptime() != time.Second {
				t.Error("board is dead after a power cycle")
			}
		})
	}
}

// TestLongStepsAgreeWithShortOnes holds that an event-driven hour ends where
// 3,600 seconds end.
func TestLongStepsAgreeWithShortOnes(t *testing.T) {
	for _, key := range Keys() {
		short, long := board(t, key, Options{Seed: 1}), board(t, key, Options{Seed: 1})
		load := Load{CPU: 0.3, GPU: 0.5, EMC: 0.3}
		run(short, 3600, load)
		long.Step(time.Hour, load)
		if d := math.Abs(short.Die() - long.Die()); d > 1 {
			t.Errorf("%s: %.2f °C against %.2f °C", key, short.Die(), long.Die())
		}
	}
}

func TestSameSeedSameBytes(t *testing.T) {
	log := func(seed uint64) string {
		var out strings.Builder
		for _, key := range Keys() {
			b := board(t, key, Options{Seed: seed, Clock: Clock{Epoch: true}})
			fmt.Fprintln(&out, b.Serial(), b.NvTegraRelease(), b.NvpmodelQuery())
			for i := range 90 {
				b.Step(time.Second, Load{CPU: float64(i%10) / 10, GPU: float64(i%7) / 7})
				fmt.Fprintln(&out, b.Tegrastats(), b.Latency(10*time.Millisecond))
			}
		}
		return out.String()
	}
	if log(7) != log(7) {
		t.Error("two runs of one seed differ")
	}
	if log(7) == log(8) {
		t.Error("two seeds give the same boards")
	}
}

func TestSpeedsFollowPublishedOrder(t *testing.T) {
	factor := func(key, mode string) float64 { return board(t, key, Options{Mode: mode}).LatencyFactor() }
	order := []float64{
		factor("thor", "120W"), factor("agx-orin", "MAXN"), factor("orin-nano", "MAXN_SUPER"), factor("orin-nano", "25W"),
		factor("orin-nano", "15W"), factor("orin-nano", "7W"), factor("nano", "MAXN"), factor("nano", "5W"),
	}
	for i := 1; i < len(order); i++ {
		if order[i] <= order[i-1] {
			t.Errorf("factors %.2f do not grow at %d", order, i)
		}
	}
	if f := factor("orin-nano", "15W"); math.Abs(f-1) > 0.05 {
		t.Errorf("the reference has factor %.3f", f)
	}
	// Median over many draws is base × factor; the tail is short.
	b := board(t, "orin-nano", Options{})
	over, n := 0, 20000
	for range n {
		if b.Latency(time.Second) > time.Duration(1.15*b.LatencyFactor()*float64(time.Second)) {
			over++
		}
	}
	if over > n/500 || over == 0 {
		t.Errorf("%d of %d beyond 1.15 of the median", over, n)
	}
}

func TestMemory(t *testing.T) {
	b := board(t, "nano", Options{})
	if err := b.Claim(2000); err != nil {
		t.Fatal(err)
	}
	if err := b.Claim(2000); !errors.Is(err, ErrNoMemory) {
		t.Errorf("second model fits: %v", err)
	}
	b.Release(2000)
	if err := b.Claim(2000); err != nil {
		t.Error(err)
	}
}

func TestModes(t *testing.T) {
	b := board(t, "orin-nano", Options{})
	if err := b.SetMode("MAXN"); !errors.Is(err, ErrUnknownMode) || !strings.Contains(err.Error(), "MAXN_SUPER") {
		t.Errorf("unknown mode: %v", err)
	}
	if err := b.SetMode("7W"); err != nil {
		t.Fatal(err)
	}
	b.Step(time.Second, Load{CPU: 1})
	if s := tegra.Parse(b.Tegrastats()); !s.CPU[4].Off || s.CPU[3].Off || *s.CPU[0].MHz != 960 {
		t.Errorf("7W shows %s", b.Tegrastats())
	}
	if got := b.NvpmodelQuery(); got != "NV Power Mode: 7W\n3\n" {
		t.Errorf("nvpmodel -q: %q", got)
	}
	if _, err := Lookup("tx9"); !errors.Is(err, ErrUnknownModel) {
		t.Error(err)
	}
}

func TestClocks(t *testing.T) {
	good := board(t, "nano", Options{})
	run(good, 10, Load{})
	if !good.Now().Equal(epoch.Add(10 * time.Second)) {
		t.Errorf("good clock shows %v", good.Now())
	}
	b := board(t, "nano", Options{Clock: Clock{Epoch: true, SyncAfter: 30 * time.Second}})
	run(b, 10, Load{})
	if y := b.Now().Year(); y != 1970 || b.ClockSynced() {
		t.Errorf("year %d before NTP", y)
	}
	run(b, 20, Load{})
	if !b.Now().Equal(b.TrueNow()) || !b.ClockSynced() {
		t.Errorf("after NTP: %v, true %v", b.Now(), b.TrueNow())
	}
	b.PowerCycle()
	if b.Now().Year() != 1970 {
		t.Error("clock survived a power cycle without a battery")
	}
	off := board(t, "nano", Options{Clock: Clock{Offset: -time.Hour, SyncAfter: -1}})
	run(off, 100, Load{})
	if d := off.TrueNow().Sub(off.Now()); math.Abs(float64(d-time.Hour)) > float64(10*time.Millisecond) {
		t.Errorf("offset clock is %v behind", d)
	}
	good.ResetClock(5 * time.Second)
	run(good, 4, Load{})
	if good.Now().Year() != 1970 {
		t.Error("ResetClock did not throw the clock back")
	}
	run(good, 1, Load{})
	if !good.ClockSynced() {
		t.Error("NTP did not mend the clock")
	}
}

func TestMix(t *testing.T) {
	if n := DefaultMix.Total(); n != 60 {
		t.Errorf("default mix has %d boards", n)
	}
	count := func(keys []string) map[string]int {
		m := map[string]int{}
		for _, k := range keys {
			m[k]++
		}
		return m
	}
	got := count(DefaultMix.Assign(60, 3))
	for _, s := range DefaultMix {
		if got[s.Key] != s.Count {
			t.Errorf("%d of %s, want %d", got[s.Key], s.Key, s.Count)
		}
	}
	if diff := cmp.Diff(DefaultMix.Assign(60, 3), DefaultMix.Assign(60, 3)); diff != "" {
		t.Error(diff)
	}
	if cmp.Equal(DefaultMix.Assign(60, 3), DefaultMix.Assign(60, 4)) {
		t.Error("seed changes nothing")
	}
	mix, err := ParseMix("nano=1,orin-nano=2, x86")
	if err != nil || mix.String() != "nano=1,orin-nano=2,x86=1" || len(mix.Assign(7, 1)) != 7 {
		t.Errorf("%v %v", mix, err)
	}
	for _, bad := range []string{"tx9=1", "nano=0", "nano=x", "nano=1,nano=2", ","} {
		if _, err := ParseMix(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func BenchmarkStep(b *testing.B) {
	x := board(b, "orin-nano", Options{})
	for b.Loop() {
		x.Step(time.Second, Load{CPU: 0.3, GPU: 0.5})
	}
}
