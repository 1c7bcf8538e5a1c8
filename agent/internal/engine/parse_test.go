package engine

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sample(t *testing.T, name string) Result {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Parse(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestParseSamples(t *testing.T) {
	p := func(pairs ...float64) (out []Percentile) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, Percentile{pairs[i], pairs[i+1]})
		}
		return out
	}
	for name, want := range map[string]Result{
		"nano-jp4.6-yolov8n.txt": {
			Throughput: 18.9615, WalltimeSeconds: 3.11157,
			Latency:  &Stats{52.4875, 57.1544, 52.7275, 52.6539, p(99, 57.1544)},
			EndToEnd: &Stats{52.4974, 57.1649, 52.7378, 52.6639, p(99, 57.1649)},
			Enqueue:  &Stats{6.0144, 18.371, 11.6272, 10.9541, p(99, 18.371)},
			H2D:      &Stats{0.471436, 0.490677, 0.475766, 0.475586, p(99, 0.490677)},
			GPU:      &Stats{51.7396, 56.3861, 51.9737, 51.9009, p(99, 56.3861)},
			D2H:      &Stats{0.275635, 0.281738, 0.278016, 0.277588, p(99, 0.281738)},
		},
		"agx-orin32-jp6-rtigev.txt": {
			Throughput: 12.9581,
			Latency:    &Stats{75.9753, 76.4476, 76.3344, 76.3436, p(90, 76.4209, 95, 76.446, 99, 76.4476)},
			Enqueue:    &Stats{75.5111, 76.2788, 75.8652, 75.8631, p(90, 76.0249, 95, 76.0399, 99, 76.2788)},
		},
		"jp4-trt7-yolov8face-lite-t.txt": {
			Verdict: Passed, Command: "/usr/src/tensorrt/bin/trtexec --fp16 --verbose --onnx=yolov8-lite-t.onnx",
			Throughput: 28.1913, WalltimeSeconds: 3.08606,
			Latency:  &Stats{35.335, 35.6085, 35.4585, 35.4502, p(99, 35.6085)},
			EndToEnd: &Stats{35.3481, 35.6216, 35.4713, 35.4629, p(99, 35.6216)},
			Enqueue:  &Stats{Min: 7.15283, Max: 7.86804, Median: 7.23523},
			GPU:      &Stats{34.5927, 34.8673, 34.7172, 34.708, p(99, 34.8673)},
		},
		"orin-trt8502-yolo11n-int8-head.txt": {TensorRT: "8.5.2", Command: "/usr/src/tensorrt/bin/trtexec --loadEngine=yolo11n.engine.int8"},
		"yolov5s-jetson-unstable-clock.txt": {
			Throughput: 169.352,
			Latency:    &Stats{5.38959, 6.19507, 5.93288, 6.02185, p(99, 6.17407)},
			Enqueue:    &Stats{0.596436, 0.805542, 0.628294, 0.625488, p(99, 0.697754)},
			H2D:        &Stats{0.800781, 0.900391, 0.82323, 0.817383, p(99, 0.895874)},
			GPU:        &Stats{3.17834, 3.88306, 3.63242, 3.71753, p(99, 3.87793)},
		},
		"agx-orin-jp6.2.1-dla-resnet50-build.txt": {
			TensorRT: "10.3.0",
			Placement: &Placement{
				Candidates: 2, Offloaded: 2, DLA: []string{"ForeignNode[/fc/Gemm + (Unnamed Layer* 125) [ElementWise]]"},
				GPU:     []string{"REDUCE: /avgpool/GlobalAveragePool", "SHUFFLE: reshape_after_/fc/Gemm"},
				Refused: []string{"/avgpool/GlobalAveragePool: DLA cores do not support AVG Reduce operation."},
			},
		},
	} {
		if d := cmp.Diff(want, sample(t, name)); d != "" {
			t.Errorf("%s: -want +got\n%s", name, d)
		}
	}
}

// TestParseLines reads lines of other releases.
func TestParseLines(t *testing.T) {
	const text = `&&&& RUNNING TensorRT.trtexec [TensorRT v101303] [b9] # trtexec --onnx=m.onnx --saveEngine=m.plan
[11/24/2026-10:00:00] [I] Selected Device: NVIDIA Thor
[11/24/2026-10:00:00] [I] Compute Capability: 11.0
[11/24/2026-10:00:00] [I] TensorRT version: 10.13.3
[11/24/2026-10:00:01] [W] [TRT] Using an engine plan file across different models of devices is not supported and is likely to affect performance or even cause errors or deadlock.
[11/24/2026-10:00:01] [W] [TRT] Layer 'conv1' (CONVOLUTION): Unsupported on DLA. Switching this layer's device type to GPU.
[11/24/2026-10:08:00] [I] Engine built in 480.55 sec.
[11/24/2026-10:08:00] [I] Created engine with size: 8.29 MiB
[11/24/2026-10:08:00] [I] [TRT] [MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 12 MiB, GPU 523 MiB
[11/24/2026-10:08:01] [I] Engine deserialized in 0.0123 sec.
[11/24/2026-10:08:05] [W] * GPU compute time is unstable, with coefficient of variance = 5.55763%.
[11/24/2026-10:08:05] [W] * Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU may be under-utilized.
[11/24/2026-10:08:05] [E] Error[2]: something else
[11/24/2026-10:08:05] [I] Throughput: nan qps
[11/24/2026-10:08:05] [I] Latency: min = 900 us, max = 1.5 ms, mean = -nan ms, median = 1.1 ms, percentile(99.9%) = 1.4 ms
&&&& FAILED TensorRT.trtexec [TensorRT v101303] [b9] # trtexec --onnx=m.onnx --saveEngine=m.plan
`
	got, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := Result{
		Verdict: Failed, TensorRT: "10.13.3", Command: "trtexec --onnx=m.onnx --saveEngine=m.plan", Device: "NVIDIA Thor", SM: "11.0",
		Latency:      &Stats{Min: 0.9, Max: 1.5, Median: 1.1, Percentiles: []Percentile{{99.9, 1.4}}},
		BuildSeconds: 480.55, LoadSeconds: 0.0123, EngineMiB: 8.29, PeakGPUMiB: 523, Variance: 5.55763, Bound: []string{"Enqueue Time"},
		Placement: &Placement{Refused: []string{"Layer 'conv1' (CONVOLUTION): Unsupported on DLA. Switching this layer's device type to GPU."}},
		Warnings:  []string{"Using an engine plan file across different models of devices is not supported and is likely to affect performance or even cause errors or deadlock."},
		Errors:    []string{"Error[2]: something else"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
	// Releases 5 and 6 print averages only.
	got, err = Parse(strings.NewReader("[I] Average over 10 runs is 4 ms (host walltime is 5 ms, 99% percentile time is 6).\nAverage over 10 runs is 6 ms (host walltime is 7 ms, 99% percentile time is 8).\n&&&& PASSED TensorRT.trtexec # ./trtexec --uff=a\n"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Result{Verdict: Passed, Command: "./trtexec --uff=a", GPU: &Stats{Mean: 5, Percentiles: []Percentile{{99, 8}}}, Latency: &Stats{Mean: 6}}, got); d != "" {
		t.Errorf("-want +got\n%s", d)
	}
}

func FuzzParse(f *testing.F) {
	names, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(names) < 6 {
		f.Fatal("no samples", err)
	}
	for _, n := range names {
		raw, err := os.ReadFile(n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(raw))
	}
	f.Add("&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # \nHost Latency\nmin: 1 ms (end to end 2 ms)\npercentile: 3 ms at 99% (end to end 4 ms at 99%)\n")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Parse(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := json.Marshal(r); err != nil { // no number that JSON has not
			t.Fatalf("%+v: %v", r, err)
		}
		if len(r.Warnings) > maxListed || len(r.Errors) > maxListed {
			t.Error("a list is not bounded")
		}
		for _, s := range []*Stats{r.Latency, r.EndToEnd, r.Enqueue, r.H2D, r.GPU, r.D2H} {
			if s != nil && (s.Min < 0 || s.Max < 0 || s.Mean < 0 || s.Median < 0) {
				t.Errorf("a negative time: %+v", s)
			}
		}
	})
}
