package engine

import (
	"context"
	"errors"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
	"github.com/skein-fleet/skein/agent/runtime/runtimetest"
	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/meter/interp"
	"github.com/skein-fleet/skein/sim/plan"
)

// linear is a workload whose answer is x0 + 2·x1 + bias, x1.
func linear(t *testing.T, id string, bias float32) runtime.Workload {
	t.Helper()
	b, err := meter.Linear([]float32{1, 2, 0, 1}, []float32{bias, 0}, 2, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	return workloadOf(t, id, b)
}

func workloadOf(t *testing.T, id string, model []byte) runtime.Workload {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "model.onnx"), model, 0o600); err != nil {
		t.Fatal(err)
	}
	return runtime.Workload{ID: id, Model: "meter", Version: id, Dir: dir, ModelFile: "model.onnx", Format: "onnx", MemoryMiB: 10}
}

var input = runtime.Tensor{Name: meter.InputName, Shape: []int64{1, 2}, Data: []float32{3, 4}}

func TestConformance(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) (runtime.Runtime, runtimetest.Fixtures) {
		huge := linear(t, "huge", 0)
		huge.MemoryMiB = 95
		return New(Options{MemoryMiB: func() int { return 100 }}), runtimetest.Fixtures{
			A: linear(t, "a", 0), B: linear(t, "b", 100), Input: input,
			WantA: []float32{11, 4}, WantB: []float32{111, 4},
			Bad: workloadOf(t, "bad", []byte("not a model")), Huge: huge,
		}
	})
}

func TestRefusesToLoad(t *testing.T) {
	good := linear(t, "w", 0)
	change := func(f func(*runtime.Workload)) runtime.Workload {
		w := good
		f(&w)
		return w
	}
	b, err := os.ReadFile(filepath.Join(good.Dir, good.ModelFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, w := range map[string]runtime.Workload{
		"plan":       change(func(w *runtime.Workload) { w.Format = "plan" }),
		"outside":    change(func(w *runtime.Workload) { w.ModelFile = "../x" }),
		"truncated":  workloadOf(t, "w", b[:len(b)-10]),
		"unknown op": workloadOf(t, "w", []byte(strings.Replace(string(b), "Gemm", "Gelu", 1))),
	} {
		if err := New(Options{}).Load(t.Context(), w); !errors.Is(err, runtime.ErrIncompatible) {
			t.Errorf("%s: got %v", name, err)
		} else if name == "unknown op" && (!errors.Is(err, interp.ErrUnsupported) || !strings.Contains(err.Error(), `"dense" (Gelu)`)) {
			t.Errorf("the error does not name the node: %v", err)
		}
	}
	gone := change(func(w *runtime.Workload) { w.Dir = t.TempDir() })
	if err := New(Options{}).Load(t.Context(), gone); !errors.Is(err, os.ErrNotExist) || errors.Is(err, runtime.ErrIncompatible) {
		t.Errorf("no file: got %v", err)
	}
}

func TestPaceAndStats(t *testing.T) {
	w := linear(t, "w", 0)
	synctest.Test(t, func(t *testing.T) {
		throttled := false
		var seen []Cost
		e := New(Options{Pace: func(ctx context.Context, c Cost) (time.Duration, error) {
			seen = append(seen, c)
			d := time.Duration(c.MACs) * time.Millisecond
			if throttled {
				d *= 10
			}
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-time.After(d):
			}
			return d, nil
		}})
		if err := e.Load(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for _, throttled = range []bool{false, true} {
			if _, err := e.Infer(t.Context(), "w", runtime.Request{Inputs: []runtime.Tensor{input}}); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		defer cancel()
		if _, err := e.Infer(ctx, "w", runtime.Request{Inputs: []runtime.Tensor{input}}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a request with little time on a slow board: got %v", err)
		}
		if got := time.Since(start); got != 49*time.Millisecond {
			t.Errorf("three requests took %s of the board's time", got)
		}
		st, ok := e.Stats("w")
		st.Bytes = 0
		want := Stats{Requests: 2, Failures: 1, Latency: 44 * time.Millisecond, MACs: 12}
		if diff := cmp.Diff(want, st); diff != "" || !ok {
			t.Errorf("-want +got:\n%s", diff)
		}
		if len(seen) != 3 || seen[0].MACs != 4 || seen[0].ID != "w" {
			t.Errorf("costs: %+v", seen)
		}
	})
}

func TestModelsAreShared(t *testing.T) {
	models := &Models{}
	w := linear(t, "w", 0)
	one, two := New(Options{Models: models}), New(Options{Models: models})
	for _, e := range []*Engine{one, two} {
		if err := e.Load(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	if one.get("w").s != two.get("w").s {
		t.Error("two boards hold two copies of one model")
	}
}

// TestOverHTTP talks to the engine as an application on the board does.
func TestOverHTTP(t *testing.T) {
	e := New(Options{})
	for _, w := range []runtime.Workload{linear(t, "1", 0), linear(t, "2", 100)} {
		if err := e.Load(t.Context(), w); err != nil {
			t.Fatal(err)
		}
	}
	s := httptest.NewServer(kserve.NewHandler(kserve.Options{Inferer: e, Models: e.Served}))
	defer s.Close()
	c := &kserve.Client{URL: s.URL, HTTP: s.Client()}
	if err := c.Ready(t.Context()); err == nil {
		t.Error("ready before anything serves")
	}
	if err := e.Switch(t.Context(), "2"); err != nil {
		t.Fatal(err)
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	for version, want := range map[string]float32{"": 111, "1": 11} {
		got, err := c.Infer(t.Context(), "meter", version, runtime.Request{Inputs: []runtime.Tensor{input}})
		if err != nil || got.Outputs[0].Data[0] != want {
			t.Errorf("version %q: got %+v, %v", version, got, err)
		}
	}
	meta, err := c.Metadata(t.Context(), "meter", "")
	want := kserve.Metadata{Name: "meter", Versions: []string{"1", "2"}, Platform: "onnx",
		Inputs:  []kserve.TensorInfo{{Name: "input", Datatype: "FP32", Shape: []int64{-1, 2}}},
		Outputs: []kserve.TensorInfo{{Name: "logits", Datatype: "FP32", Shape: []int64{-1, 2}}}}
	if diff := cmp.Diff(want, meta); diff != "" || err != nil {
		t.Errorf("metadata: %v -want +got:\n%s", err, diff)
	}
}

// TestPlans: a plan serves on the board that it is for, and is refused with the
// words of TensorRT elsewhere.
func TestPlans(t *testing.T) {
	raw, err := meter.Linear([]float32{1, 2, 0, 1}, []float32{0, 0}, 2, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := plan.Plan{Header: plan.Header{TensorRT: "10.3.0", SM: "8.7"}, ONNX: raw}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	w := workloadOf(t, "p", b)
	w.Format = "plan"
	on := plan.Board{TensorRT: "10.3.0", SM: "8.7"}
	e := New(Options{Plans: func() plan.Board { return on }})
	if err := e.Load(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	resp, err := e.Infer(t.Context(), "p", runtime.Request{Inputs: []runtime.Tensor{input}})
	if err != nil || resp.Outputs[0].Data[0] != 11 {
		t.Errorf("%+v %v", resp, err)
	}
	if err := e.Unload(t.Context(), "p"); err != nil {
		t.Fatal(err)
	}
	for _, other := range []plan.Board{{TensorRT: "10.7.0", SM: "8.7"}, {TensorRT: "10.3.0", SM: "7.2"}} {
		on = other
		if err := e.Load(t.Context(), w); !errors.Is(err, runtime.ErrIncompatible) {
			t.Errorf("%+v: %v", other, err)
		}
	}
	if err := New(Options{}).Load(t.Context(), w); !errors.Is(err, runtime.ErrIncompatible) {
		t.Errorf("a server of ONNX alone: %v", err)
	}
}
