package engine

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	recipes "github.com/skein-fleet/skein/ota/engine"
)

// script makes a trtexec of a shell script.
func script(t *testing.T, body string) *Tool {
	t.Helper()
	p := filepath.Join(t.TempDir(), "trtexec")
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return &Tool{Runner: HostRunner{}, Trtexec: p}
}

const old = "echo '[E] 6: The engine plan file is not compatible with this version of TensorRT, expecting library version 8.2.3 got 8.2.1, please rebuild.'\n"

// TestTrial: whatever a plan does to its loader is a verdict.
func TestTrial(t *testing.T) {
	for name, c := range map[string]struct {
		body  string
		want  error
		class Class
	}{
		"loads":             {"echo '&&&& PASSED TensorRT.trtexec [TensorRT v100300] # x'", nil, ""},
		"warns":             {"echo '[W] [TRT] Using an engine plan file across different models of devices is not supported and is likely to affect performance'\necho '&&&& PASSED TensorRT.trtexec # x'", nil, ""},
		"refuses":           {old + "echo '&&&& FAILED TensorRT.trtexec # x'\nexit 1", ErrUnloadable, OtherTensorRT},
		"crashes":           {"kill -SEGV $$", ErrUnloadable, Crashed},
		"says, and crashes": {old + "kill -SEGV $$", ErrUnloadable, OtherTensorRT},
		"fails with 0":      {"echo '&&&& FAILED TensorRT.trtexec # x'", ErrUnloadable, Unknown},
		"no GPU":            {"echo 'CUDA initialization failure with error: 35'\nexit 1", ErrTool, NoGPU},
		"killed":            {"kill -KILL $$", ErrMemory, NoMemory},
		"out of memory":     {"echo 'NvMapMemAllocInternalTagged: 1075072515 error 12'\nkill -ABRT $$", ErrMemory, NoMemory},
	} {
		_, err := script(t, c.body).Trial(t.Context(), "model.plan", time.Minute)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
			continue
		}
		if f, ok := errors.AsType[*Failure](err); c.want != nil && (!ok || f.Finding.Class != c.class || f.Finding.Advice == "") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (&Tool{Runner: HostRunner{}, Trtexec: "/nowhere/trtexec"}).Trial(t.Context(), "m", time.Minute); !errors.Is(err, ErrTool) {
		t.Errorf("no trtexec: %v", err)
	}
}

// TestTrialHangs: a loader that hangs is ended, with what it started.
func TestTrialHangs(t *testing.T) {
	_, err := script(t, "sleep 600 & wait").Trial(t.Context(), "model.plan", 50*time.Millisecond)
	if f, ok := errors.AsType[*Failure](err); !ok || f.Finding.Class != TimedOut || !errors.Is(err, ErrUnloadable) {
		t.Errorf("%v", err)
	}
}

// TestMemoryGuard ends a build before the kernel ends something else.
func TestMemoryGuard(t *testing.T) {
	tool := script(t, "sleep 600 & wait")
	var free atomic.Int64
	free.Store(1 << 30)
	tool.Available = func() int64 { return max(free.Add(-300<<20), 100<<20) }
	tool.Reserve, tool.CheckEvery = 200<<20, time.Millisecond
	_, err := tool.Build(t.Context(), Job{Recipe: recipes.Recipe{Version: 1, Precision: recipes.FP16}, TensorRT: "10.3.0", ONNX: "m.onnx", Plan: "m.plan"})
	if !errors.Is(err, ErrMemory) || !strings.Contains(err.Error(), "200 MiB must stay so") {
		t.Errorf("%v", err)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the lease went to another device")
	cancel(why)
	if _, err := script(t, "sleep 600").Build(ctx, Job{Recipe: recipes.Recipe{Version: 1, Precision: recipes.FP16}, TensorRT: "10.3.0"}); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}

func TestArgs(t *testing.T) {
	level := 2
	full := recipes.Recipe{Version: 1, Precision: recipes.INT8, WorkspaceMiB: 512, OptimizationLevel: &level, Strip: true, Flags: []string{"no-tf32"}}
	tool := &Tool{}
	for _, c := range []struct {
		job  Job
		want string
	}{
		{Job{Recipe: full, TensorRT: "10.3.0", ONNX: "m.onnx", Plan: "m.plan", TimingCache: "t", Calibration: "c", Plugins: []string{"p.so"}},
			DefaultTrtexec + " --onnx=m.onnx --saveEngine=m.plan --int8 --fp16 --memPoolSize=workspace:512 --builderOptimizationLevel=2 --stripWeights --noTF32 --timingCacheFile=t --calib=c --dynamicPlugins=p.so --skipInference"},
		{Job{Recipe: full, TensorRT: "10.3.0", ONNX: "m.onnx", Plan: "m.plan", Full: true},
			DefaultTrtexec + " --onnx=m.onnx --saveEngine=m.plan --int8 --fp16 --memPoolSize=workspace:512 --builderOptimizationLevel=2 --noTF32 --skipInference"},
		{Job{Recipe: recipes.Recipe{Version: 1, Precision: recipes.FP16, DLA: &recipes.DLA{GPUFallback: true}}, TensorRT: "8.5.2", ONNX: "m.onnx", Plan: "m.plan", TimingCache: "t"},
			DefaultTrtexec + " --onnx=m.onnx --saveEngine=m.plan --fp16 --useDLACore=0 --allowGPUFallback --timingCacheFile=t --verbose --buildOnly"},
		{Job{Recipe: recipes.Recipe{Version: 1, Precision: recipes.FP32, WorkspaceMiB: 256}, TensorRT: "7.1.3", ONNX: "m.onnx", Plan: "m.plan", TimingCache: "t", Plugins: []string{"p.so"}},
			DefaultTrtexec + " --onnx=m.onnx --saveEngine=m.plan --workspace=256 --plugins=p.so --buildOnly"},
	} {
		argv, err := tool.Args(c.job)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(strings.Fields(c.want), argv); d != "" {
			t.Errorf("%s: -want +got\n%s", c.job.TensorRT, d)
		}
	}
	if _, err := tool.Build(t.Context(), Job{Recipe: full, TensorRT: "8.2.1"}); !errors.Is(err, ErrCannotBuild) {
		t.Errorf("stripped by TensorRT 8: %v", err)
	}
}

// TestMeasureAndSoftware take what the tool prints.
func TestMeasureAndSoftware(t *testing.T) {
	tool := script(t, "echo '&&&& RUNNING TensorRT.trtexec [TensorRT v100700] # x'\necho '[I] Throughput: 100 qps'\necho '[I] Latency: min = 9 ms, max = 12 ms, mean = 10 ms, median = 10 ms, percentile(99%) = 11 ms'\necho '&&&& PASSED TensorRT.trtexec # x'")
	var log strings.Builder
	r, err := tool.Measure(t.Context(), "m.plan", 500*time.Millisecond, 5*time.Second, &log)
	if err != nil || r.Latency.Median != 10 || r.Latency.P(99) != 11 || r.Throughput != 100 {
		t.Errorf("%+v %v", r, err)
	}
	if !strings.Contains(log.String(), "--warmUp=500 --duration=5") || !strings.Contains(log.String(), "Throughput") {
		t.Errorf("log %q", log.String())
	}
	if s, err := tool.Software(t.Context()); err != nil || s.TensorRT != "10.7.0" {
		t.Errorf("%+v %v", s, err)
	}
	if _, err := script(t, "echo '&&&& PASSED TensorRT.trtexec # x'").Measure(t.Context(), "m", 0, time.Second, nil); !errors.Is(err, ErrTool) {
		t.Errorf("no figures: %v", err)
	}
}

// runnerFunc is a Runner of a function.
type runnerFunc func(argv []string, out io.Writer) (Exit, error)

func (f runnerFunc) Run(_ context.Context, argv []string, out io.Writer) (Exit, error) {
	return f(argv, out)
}

func TestRefitPlan(t *testing.T) {
	var got []string
	tool := &Tool{Runner: runnerFunc(func(argv []string, _ io.Writer) (Exit, error) { got = argv; return Exit{}, nil }), Refit: []string{"refit", "{plan}", "--onnx={onnx}", "{out}"}}
	if err := tool.RefitPlan(t.Context(), "a.plan", "a.onnx", "b.plan", nil); err != nil || !slices.Equal(got, []string{"refit", "a.plan", "--onnx=a.onnx", "b.plan"}) {
		t.Errorf("%q %v", got, err)
	}
	tool.Refit = nil
	if err := tool.RefitPlan(t.Context(), "a.plan", "a.onnx", "b.plan", nil); err != nil || got[0] != "python3" || !slices.Equal(got[3:], []string{"a.plan", "a.onnx", "b.plan"}) {
		t.Errorf("%q %v", got, err)
	}
	tool.Runner = runnerFunc(func([]string, io.Writer) (Exit, error) { return Exit{Code: 1}, nil })
	if err := tool.RefitPlan(t.Context(), "a.plan", "a.onnx", "b.plan", nil); err == nil {
		t.Error("a refit that failed passed")
	}
}
