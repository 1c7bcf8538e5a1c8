package block

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/skein-fleet/skein/telemetry"
)

// device makes 40 series of a busy board at 1 Hz for n seconds: load that
// wanders, a die that follows it with sensor noise, cores that share it, rails
// with 40 mW of noise, memory, counters, latencies with 2 % spread, states.
// All noise is drawn independently, so most of what is left is true entropy.
func device(n int, seed uint64) *Block {
	r := rand.New(rand.NewPCG(seed, 1))
	b := &Block{}
	load, die := make([]float64, n), make([]float64, n)
	now, target, hot := 0.3, 0.3, 45.0
	for i := range n {
		b.Times = append(b.Times, 1780000000000+int64(i)*1000+r.Int64N(3))
		if r.IntN(90) == 0 {
			target = 0.9 * r.Float64()
		}
		now += 0.2 * (target - now)
		hot += 0.02 * (35 + 40*now - hot)
		load[i], die[i] = now, hot
	}
	add := func(name string, f func(i int) float64, labels ...string) {
		m, ok := telemetry.Lookup(name)
		if !ok {
			panic("unknown metric " + name)
		}
		c := Column{Series: telemetry.NewSeries(name, labels...), Scale: m.Scale}
		for i := range n {
			c.Values = append(c.Values, f(i))
		}
		b.Columns = append(b.Columns, c)
	}
	noise := r.NormFloat64
	ratio := func(x float64) float64 { return max(0, min(1, x)) }
	for _, zone := range []string{"cpu", "gpu", "soc0", "soc1", "soc2", "tj", "tboard", "tdiode"} {
		off := 4 * r.Float64()
		add(telemetry.Temperature, func(i int) float64 { return die[i] + off + 0.06*noise() }, "zone", zone)
	}
	for core := range 6 {
		w := 0.3 + 0.7*r.Float64()
		add(telemetry.CPUUtilization, func(i int) float64 { return ratio(w*load[i] + 0.03*noise()) }, "core", telemetry.Index(core))
	}
	add(telemetry.GPUUtilization, func(i int) float64 { return ratio(load[i] + 0.05*noise()) })
	add(telemetry.EMCUtilization, func(i int) float64 { return ratio(0.4 + 0.01*noise()) })
	opp := []float64{729, 883, 960, 1036, 1113, 1190, 1267, 1344}
	for cluster := range 2 {
		k := 0
		add(telemetry.CPUFrequency, func(i int) float64 {
			if r.IntN(4) == 0 {
				k = min(len(opp)-1, int(7*load[i]+1.5*r.Float64()))
			}
			return 1e6 * opp[k]
		}, "core", telemetry.Index(cluster))
	}
	add(telemetry.GPUFrequency, func(i int) float64 { return 612e6 + 306e6*math.Round(load[i]) }, "gpc", "0")
	add(telemetry.EMCFrequency, func(int) float64 { return 2133e6 })
	for _, rail := range []string{"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"} {
		idle, busy := 2+3*r.Float64(), 3+8*r.Float64()
		add(telemetry.Power, func(i int) float64 { return idle + busy*load[i] + 0.04*noise() }, "rail", rail)
	}
	add(telemetry.PowerTotal, func(i int) float64 { return 4 + 9*load[i] + 0.04*noise() })
	used, free := 3000.0, 1600.0
	add(telemetry.MemoryUsed, func(int) float64 {
		if r.IntN(3) == 0 {
			used += 2 * noise()
		}
		return math.Round(used) * (1 << 20)
	})
	add(telemetry.MemoryTotal, func(int) float64 { return 7620 << 20 })
	add(telemetry.SwapUsed, func(int) float64 { return 0 })
	add(telemetry.MemoryLargestFree, func(int) float64 {
		if r.IntN(10) == 0 {
			free -= 4 * float64(r.IntN(3)-1)
		}
		return free * (1 << 20)
	})
	counter := func(step func() float64) func(int) float64 {
		sum := 0.0
		return func(int) float64 { sum += step(); return math.Floor(sum) }
	}
	add(telemetry.InferenceRequests, counter(func() float64 { return 30 + math.Round(1.5*noise()) }), "model", "meter", "version", "3", "outcome", "ok")
	add(telemetry.NetworkReceived, counter(func() float64 { return 2000 + 1500*r.ExpFloat64() }), "interface", "eth0")
	add(telemetry.NetworkSent, counter(func() float64 { return 500 + 300*r.ExpFloat64() }), "interface", "eth0")
	add(telemetry.AgentCPU, counter(func() float64 { return 0.02 }))
	add(telemetry.Uptime, func(i int) float64 { return float64(5000 + i) })
	for k, name := range []string{telemetry.InferenceMean, telemetry.InferenceP50, telemetry.InferenceP99} {
		f := 0.0049 * (1 + 0.2*float64(k))
		add(name, func(int) float64 { return f * (1 + 0.02*noise()) }, "model", "meter", "version", "3")
	}
	for _, reason := range []string{"thermal", "overcurrent"} {
		on := 0.0
		add(telemetry.Throttled, func(int) float64 {
			if r.IntN(600) == 0 {
				on = 1 - on
			}
			return on
		}, "reason", reason)
		add(telemetry.ThrottleEvents, func(int) float64 { return 3 }, "reason", reason)
	}
	b.Sort()
	return b
}

// minutes cuts a block into blocks of 60 slots.
func minutes(b *Block) []*Block {
	var out []*Block
	for i := 0; i+60 <= len(b.Times); i += 60 {
		m := &Block{Times: b.Times[i : i+60]}
		for _, c := range b.Columns {
			c.Values = c.Values[i : i+60]
			m.Columns = append(m.Columns, c)
		}
		out = append(out, m)
	}
	return out
}

// TestBytesPerSample holds the goal of DESIGN section 7: at most half a byte a
// sample on a busy board.
func TestBytesPerSample(t *testing.T) {
	total, samples, rice := 0, 0, 0
	for seed := range uint64(4) {
		for _, m := range minutes(device(3600, seed)) {
			data, _, err := Encode(m, false)
			if err != nil {
				t.Fatal(err)
			}
			total += len(data)
			samples += m.Samples()
			rice += riceBytes(m)
		}
	}
	per := float64(total) / float64(samples)
	t.Logf("%.3f bytes a sample: %d bytes for %d samples; Rice codes would take %.3f", per, total, samples, float64(rice)/float64(samples))
	if per > 0.5 {
		t.Errorf("%.3f bytes a sample, want at most 0.5", per)
	}
}

// riceBytes is what the columns of a block would take as Rice codes of the
// better of delta and delta of delta, with the parameter from the mean, two
// bytes for the first value and one for the parameter: the yardstick.
func riceBytes(b *Block) int {
	total := 0
	for _, c := range b.Columns {
		v := make([]int64, len(c.Values))
		for i, x := range c.Values {
			v[i], _ = c.Scale.Quantise(x)
		}
		best := math.MaxInt
		for _, predict := range []int{predictLast, predictSlope} {
			sum := uint64(0)
			for i := range v {
				sum += zigzag(residual(v, i, predict, 0))
			}
			k := max(0, bits.Len64(sum/uint64(len(v)-1))-1)
			size := 0
			for i := 1; i < len(v) && sum > 0; i++ {
				size += int(min(zigzag(residual(v, i, predict, 0))>>k, 40)) + 1 + k
			}
			best = min(best, size/8+3)
		}
		total += best
	}
	return total
}

func zigzag(r int64) uint64 { return uint64(r<<1) ^ uint64(r>>63) }

func BenchmarkEncode(b *testing.B) {
	blocks := minutes(device(3600, 7))
	_, schema, err := Encode(blocks[0], true)
	if err != nil {
		b.Fatal(err)
	}
	bytes, samples, i := 0, 0, 0
	b.ReportAllocs()
	for b.Loop() {
		m := blocks[i%len(blocks)]
		data, err := EncodeWith(schema, m, false)
		if err != nil {
			b.Fatal(err)
		}
		i++
		bytes += len(data)
		samples += m.Samples()
	}
	b.ReportMetric(float64(bytes)/float64(samples), "B/sample")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(samples), "ns/sample")
}

func BenchmarkDecode(b *testing.B) {
	blocks := minutes(device(3600, 7))
	var packed [][]byte
	var schema *Schema
	for _, m := range blocks {
		data, s, err := Encode(m, false)
		if err != nil {
			b.Fatal(err)
		}
		packed, schema = append(packed, data), s
	}
	values := make([]float64, 60)
	samples, i := 0, 0
	b.ReportAllocs()
	for b.Loop() {
		r, err := NewReader(packed[i%len(packed)], func(SchemaID) *Schema { return schema })
		if err != nil {
			b.Fatal(err)
		}
		for range schema.Specs() {
			if err := r.Next(values); err != nil {
				b.Fatal(err)
			}
		}
		i++
		samples += 60 * len(schema.Specs())
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(samples), "ns/sample")
}
