package trtexec

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"

	"github.com/skein-fleet/skein/sim/meter/interp"
)

// Shares of copies and enqueueing, from published logs.
const (
	copyIn, copyOut = 0.009, 0.005 // of the GPU's time
	enqueue         = 0.2
)

func at(sorted []float64, percent float64) float64 {
	return sorted[min(len(sorted)-1, int(percent/100*float64(len(sorted))))]
}

func mean(v []float64) (sum float64) {
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

func scaled(v []float64, by float64) []float64 {
	out := make([]float64, len(v))
	for i, x := range v {
		out[i] = x * by
	}
	return out
}

// print writes the performance summary in the grammar of the release.
func (r *run) print(gpu []float64) {
	host := scaled(gpu, 1+copyIn+copyOut)
	qps := 1000 / mean(host)
	wall := float64(len(gpu)) * mean(host) / 1000
	if !r.atLeast(8, 0) {
		r.blocks(gpu, host, qps, wall)
		return
	}
	r.say("I", "=== Performance summary ===")
	r.say("I", "Throughput: %.6g qps", qps)
	r.summary("Latency", host)
	if !r.atLeast(8, 4) {
		r.summary("End-to-End Host Latency", scaled(host, 1.0002))
	}
	r.summary("Enqueue Time", scaled(gpu, enqueue))
	r.summary("H2D Latency", scaled(gpu, copyIn))
	r.summary("GPU Compute Time", gpu)
	r.summary("D2H Latency", scaled(gpu, copyOut))
	r.say("I", "Total Host Walltime: %.6g s", wall)
	if v := variance(gpu); v > 1 {
		r.say("W", "* GPU compute time is unstable, with coefficient of variance = %.6g%%.", v)
		r.say("W", "  If not already in use, locking GPU clock frequency or adding --useSpinWait may improve the stability.")
	}
}

func variance(v []float64) float64 {
	m, sum := mean(v), 0.0
	for _, x := range v {
		sum += (x - m) * (x - m)
	}
	return 100 * math.Sqrt(sum/float64(len(v))) / m
}

func (r *run) summary(name string, v []float64) {
	percentiles := []float64{99}
	if r.atLeast(8, 5) {
		percentiles = []float64{90, 95, 99}
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s: min = %.6g ms, max = %.6g ms, mean = %.6g ms, median = %.6g ms", name, v[0], v[len(v)-1], mean(v), v[len(v)/2])
	for _, p := range percentiles {
		fmt.Fprintf(&text, ", percentile(%g%%) = %.6g ms", p, at(v, p))
	}
	r.say("I", "%s", text.String())
}

// blocks is the form of release 7.
func (r *run) blocks(gpu, host []float64, qps, wall float64) {
	end := func(name string, v float64) {
		r.say("I", "%s: %.6g ms (end to end %.6g ms)", name, v, v*1.0004)
	}
	r.say("I", "Host Latency")
	end("min", host[0])
	end("max", host[len(host)-1])
	end("mean", mean(host))
	end("median", host[len(host)/2])
	r.say("I", "percentile: %.6g ms at 99%% (end to end %.6g ms at 99%%)", at(host, 99), at(host, 99)*1.0004)
	r.say("I", "throughput: %.6g qps", qps)
	r.say("I", "walltime: %.6g s", wall)
	r.say("I", "GPU Compute")
	r.say("I", "min: %.6g ms", gpu[0])
	r.say("I", "max: %.6g ms", gpu[len(gpu)-1])
	r.say("I", "mean: %.6g ms", mean(gpu))
	r.say("I", "median: %.6g ms", gpu[len(gpu)/2])
	r.say("I", "percentile: %.6g ms at 99%%", at(gpu, 99))
}

// once answers the input of a file and writes the outputs as JSON.
func (r *run) once(ctx context.Context, s *interp.Session) error {
	inputs, _ := s.Signature()
	if len(inputs) != 1 {
		return fmt.Errorf("Cannot bind %d inputs", len(inputs))
	}
	t := interp.Tensor{Name: inputs[0].Name}
	n := int64(1)
	for _, d := range inputs[0].Shape {
		t.Shape = append(t.Shape, max(d.Size, 1))
		n *= max(d.Size, 1)
	}
	t.Data = make([]float32, n)
	if r.inputs != "" {
		raw, err := os.ReadFile(r.inputs)
		if err != nil || int64(len(raw)) != 4*n {
			return fmt.Errorf("Cannot open file %s or its size is not %d", r.inputs, 4*n)
		}
		for i := range t.Data {
			t.Data[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
		}
	}
	out, _, err := s.Run(ctx, []interp.Tensor{t})
	if err != nil {
		return err
	}
	if r.output == "" {
		return nil
	}
	var b strings.Builder
	for i, o := range out {
		var dims []string
		for _, d := range o.Shape {
			dims = append(dims, fmt.Sprint(d))
		}
		values, err := json.Marshal(o.Data)
		if err != nil {
			return err
		}
		b.WriteString([2]string{"[\n", ", "}[min(i, 1)])
		fmt.Fprintf(&b, "  { \"name\" : %q\n  , \"dimensions\" : %q\n  , \"values\" : %s\n  }\n", o.Name, strings.Join(dims, "x"), values)
	}
	b.WriteString("]\n")
	return os.WriteFile(r.output, []byte(b.String()), 0o644)
}
