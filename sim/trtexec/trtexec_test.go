package trtexec

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/meter/onnx"
	"github.com/skein-fleet/skein/sim/plan"
)

// tiny is y = relu(x·w + b) of four values.
func tiny(t *testing.T) string {
	t.Helper()
	m := onnx.Model{IRVersion: 8, Opset: 13, Graph: onnx.Graph{
		Name:         "tiny",
		Nodes:        []onnx.Node{{Op: "Gemm", Inputs: []string{"x", "w", "b"}, Outputs: []string{"g"}}, {Op: "Relu", Inputs: []string{"g"}, Outputs: []string{"y"}}},
		Initializers: []onnx.Tensor{onnx.FloatTensor("w", []float32{1, 2, 3, 4, 5, 6, 7, 8}, 4, 2), onnx.FloatTensor("b", []float32{1, -1}, 2)},
		Inputs:       []onnx.Value{onnx.FloatValue("x", 1, 4)}, Outputs: []onnx.Value{onnx.FloatValue("y", 1, 2)},
	}}
	p := filepath.Join(t.TempDir(), "tiny.onnx")
	if err := os.WriteFile(p, m.Marshal(), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func board(t *testing.T, key, mode, trt string) Board {
	t.Helper()
	m, err := jetson.Lookup(key)
	if err != nil {
		t.Fatal(err)
	}
	return Board{Model: m, Mode: mode, TensorRT: trt}
}

func call(t *testing.T, b Board, want int, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	if got := Run(t.Context(), b, args, &out); got != want {
		t.Fatalf("trtexec %v: %d, want %d\n%s", args, got, want, out.String())
	}
	return out.String()
}

func built(t *testing.T, b Board, args ...string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "m.plan")
	call(t, b, 0, append([]string{"--onnx=" + tiny(t), "--saveEngine=" + p, "--fp16"}, args...)...)
	return p
}

// TestBinding: a plan loads on its SM and TensorRT and nowhere else.
func TestBinding(t *testing.T) {
	p := built(t, board(t, "orin-nano", "25W", ""), "--skipInference")
	load := "--loadEngine=" + p
	if out := call(t, board(t, "orin-nano", "25W", ""), 0, load); strings.Contains(out, "different models") {
		t.Errorf("a warning at home:\n%s", out)
	}
	const warning = "Using an engine plan file across different models of devices is not supported"
	for _, b := range []Board{board(t, "orin-nano", "15W", ""), board(t, "orin-nx", "", ""), board(t, "agx-orin", "", "")} {
		if out := call(t, b, 0, load); !strings.Contains(out, warning) {
			t.Errorf("%s: no warning\n%s", b.Model.Key, out)
		}
	}
	for _, c := range []struct {
		b    Board
		want string
	}{
		{board(t, "orin-nano", "", "10.7.0"), "Version tag does not match. Note: Current Version: 240, Serialized Engine Version: 239"},
		{board(t, "orin-nano", "", "10.3.1"), "expecting library version 10.3.1 got 10.3.0, please rebuild"},
		{board(t, "nano", "", ""), "expecting library version 8.2.1 got 10.3.0, please rebuild"},
		{board(t, "thor", "", "10.3.0"), "expecting compute 11.0 got compute 8.7, please rebuild"},
	} {
		out := call(t, c.b, 1, load)
		if !strings.Contains(out, c.want) || !strings.Contains(out, "Engine deserialization failed") || !strings.Contains(out, "&&&& FAILED") {
			t.Errorf("%s: want %q\n%s", c.b.Model.Key, c.want, out)
		}
	}
	raw, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "bad.plan")
	for want, b := range map[int][]byte{ExitCrash: raw[:len(raw)/2], exitFailed: append([]byte("{}"), raw...)} {
		if err := os.WriteFile(bad, b, 0o644); err != nil {
			t.Fatal(err)
		}
		call(t, board(t, "orin-nano", "25W", ""), want, "--loadEngine="+bad)
	}
}

// TestNotReproducible: two builds differ, in bytes and in times.
func TestNotReproducible(t *testing.T) {
	b := board(t, "orin-nano", "25W", "")
	onnxPath, dir := tiny(t), t.TempDir()
	var seen [2][]byte
	for i := range seen {
		p := filepath.Join(dir, fmt.Sprint(i))
		call(t, b, 0, "--onnx="+onnxPath, "--saveEngine="+p)
		var err error
		if seen[i], err = os.ReadFile(p); err != nil {
			t.Fatal(err)
		}
	}
	if bytes.Equal(seen[0], seen[1]) {
		t.Error("two builds are equal")
	}
}

// TestStripped: a stripped plan loads, passes, and answers with nothing; refit
// gives it its weights back.
func TestStripped(t *testing.T) {
	b := board(t, "orin-nano", "25W", "")
	dir := t.TempDir()
	p, src, out := filepath.Join(dir, "m.plan"), tiny(t), filepath.Join(dir, "out.json")
	in := filepath.Join(dir, "in.bin")
	if err := os.WriteFile(in, []byte{0, 0, 0x80, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0o644); err != nil {
		t.Fatal(err)
	}
	answer := func(path string) string {
		call(t, b, 0, "--loadEngine="+path, "--loadInputs=x:"+in, "--exportOutput="+out)
		raw, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	call(t, b, 0, "--onnx="+src, "--saveEngine="+p, "--stripWeights", "--skipInference")
	if got := answer(p); !strings.Contains(got, `"values" : [0,0]`) {
		t.Errorf("stripped: %s", got)
	}
	if err := Refit(p, src, p+".full"); err != nil {
		t.Fatal(err)
	}
	if got := answer(p + ".full"); !strings.Contains(got, `"values" : [2,1]`) || !strings.Contains(got, `"dimensions" : "1x2"`) {
		t.Errorf("refitted: %s", got)
	}
	call(t, board(t, "nano", "", ""), 1, "--onnx="+src, "--saveEngine="+p, "--stripWeights")
}

func TestOptionsOfReleases(t *testing.T) {
	src := "--onnx=" + tiny(t)
	if out := call(t, board(t, "orin-nano", "", ""), 1, src, "--buildOnly"); !strings.Contains(out, "Unknown option: --buildOnly") {
		t.Error(out)
	}
	call(t, board(t, "nano", "", ""), 0, src, "--buildOnly")
	if out := call(t, board(t, "orin-nano", "", ""), 1, src, "--useDLACore=0"); !strings.Contains(out, "Cannot create DLA engine") {
		t.Error(out)
	}
	if out := call(t, board(t, "orin-nx", "", ""), 0, src, "--useDLACore=0", "--fp16", "--verbose", "--skipInference"); !strings.Contains(out, "Number of DLA node candidates offloaded : 2 out of 2") {
		t.Error(out)
	}
	cache := filepath.Join(t.TempDir(), "cache")
	call(t, board(t, "orin-nano", "25W", ""), 0, src, "--timingCacheFile="+cache, "--skipInference")
	if out := call(t, board(t, "orin-nano", "25W", ""), 0, src, "--timingCacheFile="+cache, "--skipInference"); !strings.Contains(out, "of timing cache from") {
		t.Error(out)
	}
	if out := call(t, board(t, "orin-nano", "15W", ""), 0, src, "--timingCacheFile="+cache, "--skipInference"); !strings.Contains(out, "is ignored") {
		t.Error(out)
	}
}

var medianRE = regexp.MustCompile(`GPU Compute Time: .*median = ([0-9.]+) ms`)

// TestPublished holds latency and power of every published figure within 10 %.
func TestPublished(t *testing.T) {
	list, err := Published(Measure(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 46 {
		t.Errorf("only %d rows", len(list))
	}
	for _, r := range list {
		if r.Off() > 0.10 {
			t.Errorf("%s %s %s %s on %s: %.3g ms, published %.3g; %.3g W, published %.3g", r.Board, r.Mode, r.Network, r.Precision, r.Place, r.Ms, r.PublishedMs, r.Watts, r.PublishedWatts)
		}
	}
}

// TestGrammars: what is printed has the form of the board's TensorRT.
func TestGrammars(t *testing.T) {
	src := "--onnx=" + tiny(t)
	if out := call(t, board(t, "nano", "", ""), 0, src); !strings.Contains(out, "[TensorRT v8201]") || !strings.Contains(out, "End-to-End Host Latency") || strings.Contains(out, "percentile(90%)") {
		t.Error(out)
	}
	if out := call(t, board(t, "nano", "", "7.1.3"), 0, src); !strings.Contains(out, "[I] Host Latency\n") || strings.Contains(out, "[TensorRT v") {
		t.Error(out)
	}
	out := call(t, board(t, "orin-nano", "", ""), 0, src)
	if !strings.Contains(out, "[TensorRT v100300]") || strings.Contains(out, "End-to-End") || !strings.Contains(out, "percentile(90%)") {
		t.Error(out)
	}
	if g := medianRE.FindStringSubmatch(out); g == nil {
		t.Error(out)
	} else if ms, err := strconv.ParseFloat(g[1], 64); err != nil || ms <= 0 {
		t.Errorf("median %q", g[1])
	}
}

func FuzzLoad(f *testing.F) {
	b, err := plan.Plan{Header: plan.Header{TensorRT: "10.3.0", SM: "8.7"}, ONNX: []byte("x")}.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("ftrt"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _, err := plan.Load(b, plan.Board{TensorRT: "10.3.0", SM: "8.7"})
		if err != nil && err.Error() == "" {
			t.Error("an error without a word")
		}
	})
}
