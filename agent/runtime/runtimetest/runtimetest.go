// Package runtimetest is the conformance suite of package runtime: every
// driver runs it in its tests. It owns the reading of the contract that the
// agent relies on, and nothing else; tests import it.
package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/skein-fleet/skein/agent/runtime"
)

// Fixtures is what the suite needs of a driver. A and B are two workloads that
// give different answers to Input; they fit into memory together.
type Fixtures struct {
	A, B  runtime.Workload
	Input runtime.Tensor
	// WantA and WantB are the data of the one output, to within Tolerance.
	WantA, WantB []float32
	Tolerance    float64
	// Bad cannot run on this device: Load returns ErrIncompatible.
	Bad runtime.Workload
	// Huge does not fit beside A: Load returns ErrNoCapacity. The zero value
	// leaves the test out, for drivers without a limit.
	Huge runtime.Workload
}

// Run runs the suite. start gives each test a runtime of its own with nothing
// loaded; it registers its own cleanup.
func Run(t *testing.T, start func(t *testing.T) (runtime.Runtime, Fixtures)) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, runtime.Runtime, Fixtures)
	}{
		{"empty", empty}, {"load answers by id", loadAnswers}, {"load is idempotent", loadTwice},
		{"two beside each other", beside}, {"switch", switches}, {"unload", unloads}, {"bad workload", badWorkload},
		{"no capacity", noCapacity}, {"cancelled load", cancelledLoad}, {"bad requests", badRequests},
		{"switch loses no request", switchUnderLoad}, {"caller keeps its tensors", ownership},
	} {
		t.Run(c.name, func(t *testing.T) {
			rt, f := start(t)
			c.run(t, rt, f)
		})
	}
}

func request(f Fixtures) runtime.Request {
	return runtime.Request{ID: "r", Inputs: []runtime.Tensor{f.Input}}
}

func mustLoad(t *testing.T, rt runtime.Runtime, ws ...runtime.Workload) {
	t.Helper()
	for _, w := range ws {
		if err := rt.Load(t.Context(), w); err != nil {
			t.Fatalf("load %s: %v", w.ID, err)
		}
	}
}

func mustSwitch(t *testing.T, rt runtime.Runtime, id string) {
	t.Helper()
	if err := rt.Switch(t.Context(), id); err != nil {
		t.Fatalf("switch to %s: %v", id, err)
	}
}

// answer checks one response; it may be called on any goroutine.
func answer(rt runtime.Runtime, id string, f Fixtures, w runtime.Workload, want []float32) error {
	resp, err := rt.Infer(context.Background(), id, request(f))
	if err != nil {
		return fmt.Errorf("infer on %q: %w", id, err)
	}
	if resp.ID != "r" || resp.ModelName != w.Model || resp.ModelVersion != w.Version {
		return fmt.Errorf("infer on %q: response of %s version %s to request %q: want %s version %s to %q",
			id, resp.ModelName, resp.ModelVersion, resp.ID, w.Model, w.Version, "r")
	}
	if len(resp.Outputs) != 1 || !near(resp.Outputs[0].Data, want, f.Tolerance) {
		return fmt.Errorf("infer on %q: outputs %v: want %v", id, resp.Outputs, want)
	}
	if n := elements(resp.Outputs[0].Shape); n != int64(len(resp.Outputs[0].Data)) {
		return fmt.Errorf("infer on %q: output of shape %v with %d values", id, resp.Outputs[0].Shape, len(resp.Outputs[0].Data))
	}
	return nil
}

func elements(shape []int64) int64 {
	n := int64(1)
	for _, d := range shape {
		n *= d
	}
	return n
}

func near(got, want []float32, tolerance float64) bool {
	return slices.EqualFunc(got, want, func(a, b float32) bool { return math.Abs(float64(a)-float64(b)) <= tolerance })
}

// either checks that one request without an id is answered by A or by B.
func either(rt runtime.Runtime, f Fixtures) error {
	resp, err := rt.Infer(context.Background(), "", request(f))
	if err != nil {
		return err
	}
	for _, c := range []struct {
		w    runtime.Workload
		want []float32
	}{{f.A, f.WantA}, {f.B, f.WantB}} {
		if resp.ModelVersion == c.w.Version && len(resp.Outputs) == 1 && near(resp.Outputs[0].Data, c.want, f.Tolerance) {
			return nil
		}
	}
	return fmt.Errorf("version %s answers %v: neither A nor B", resp.ModelVersion, resp.Outputs)
}

func mustAnswer(t *testing.T, rt runtime.Runtime, id string, f Fixtures, w runtime.Workload, want []float32) {
	t.Helper()
	if err := answer(rt, id, f, w, want); err != nil {
		t.Fatal(err)
	}
}

func mustList(t *testing.T, rt runtime.Runtime, want ...runtime.Status) {
	t.Helper()
	got, err := rt.List(t.Context())
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	slices.SortFunc(want, func(a, b runtime.Status) int { return strings.Compare(a.ID, b.ID) })
	if !slices.Equal(got, want) {
		t.Fatalf("list: got %+v, want %+v", got, want)
	}
}

func loaded(w runtime.Workload) runtime.Status { return runtime.Status{ID: w.ID, Ready: true} }

func serving(w runtime.Workload) runtime.Status {
	return runtime.Status{ID: w.ID, Ready: true, Serving: true}
}

func notLoaded(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, runtime.ErrNotLoaded) {
		t.Fatalf("%s: got %v, want ErrNotLoaded", what, err)
	}
}

func empty(t *testing.T, rt runtime.Runtime, f Fixtures) {
	mustList(t, rt)
	_, err := rt.Infer(t.Context(), "", request(f))
	notLoaded(t, "infer with nothing loaded", err)
	_, err = rt.Infer(t.Context(), "nobody", request(f))
	notLoaded(t, "infer on an unknown id", err)
	notLoaded(t, "switch to an unknown id", rt.Switch(t.Context(), "nobody"))
	if err := rt.Unload(t.Context(), "nobody"); err != nil {
		t.Fatalf("unload of an unknown id: %v", err)
	}
}

func loadAnswers(t *testing.T, rt runtime.Runtime, f Fixtures) {
	mustLoad(t, rt, f.A)
	mustList(t, rt, loaded(f.A))
	mustAnswer(t, rt, f.A.ID, f, f.A, f.WantA)
	_, err := rt.Infer(t.Context(), "", request(f))
	notLoaded(t, "infer before any switch", err)
}

func loadTwice(t *testing.T, rt runtime.Runtime, f Fixtures) {
	mustLoad(t, rt, f.A)
	mustSwitch(t, rt, f.A.ID)
	mustLoad(t, rt, f.A)
	mustList(t, rt, serving(f.A))
	mustAnswer(t, rt, "", f, f.A, f.WantA)
}

func beside(t *testing.T, rt runtime.Runtime, f Fixtures) {
	mustLoad(t, rt, f.A, f.B)
	mustSwitch(t, rt, f.A.ID)
	mustList(t, rt, serving(f.A), loaded(f.B))
	mustAnswer(t, rt, f.B.ID, f, f.B, f.WantB)
	mustAnswer(t, rt, "", f, f.A, f.WantA)
	if near(f.WantA, f.WantB, f.Tolerance) {
		t.Fatal("the fixtures A and B answer alike: the suite cannot tell them apart")
	}
}

func switches(t *testing.T, rt runtime.Runtime, f Fixtures) {
	mustLoad(t, rt, f.A, f.B)
	mustSwitch(t, rt, f.A.ID)
	mustSwitch(t, rt, f.B.ID)
	mustSwitch(t, rt, f.B.ID)
	mustAnswer(t, rt, "", f, f.B, f.WantB)
	mustList(t, rt, loaded(f.A), serving(f.B))
	notLoaded(t, "switch to an unknown id", rt.Switch(t.Context(), "nobody"))
	mustAnswer(t, rt, "", f, f.B, f.WantB)
	mustSwitch(t, rt, f.A.ID)
	mustAnswer(t, rt, "", f, f.A, f.WantA)
}

func unloads(t *testing.T, rt runtime.Runtime, f Fixtures) {
	mustLoad(t, rt, f.A, f.B)
	mustSwitch(t, rt, f.A.ID)
	for range 2 {
		if err := rt.Unload(t.Context(), f.B.ID); err != nil {
			t.Fatalf("unload: %v", err)
		}
	}
	mustList(t, rt, serving(f.A))
	_, err := rt.Infer(t.Context(), f.B.ID, request(f))
	notLoaded(t, "infer on what was unloaded", err)
	if err := rt.Unload(t.Context(), f.A.ID); err != nil {
		t.Fatalf("unload of what serves: %v", err)
	}
	_, err = rt.Infer(t.Context(), "", request(f))
	notLoaded(t, "infer when what served was unloaded", err)
	mustList(t, rt)
	mustLoad(t, rt, f.A)
	mustList(t, rt, loaded(f.A))
	mustAnswer(t, rt, f.A.ID, f, f.A, f.WantA)
}

func badWorkload(t *testing.T, rt runtime.Runtime, f Fixtures) {
	mustLoad(t, rt, f.A)
	mustSwitch(t, rt, f.A.ID)
	for range 2 {
		if err := rt.Load(t.Context(), f.Bad); !errors.Is(err, runtime.ErrIncompatible) {
			t.Fatalf("load of a bad workload: got %v, want ErrIncompatible", err)
		}
		mustList(t, rt, serving(f.A))
	}
	notLoaded(t, "switch to what did not load", rt.Switch(t.Context(), f.Bad.ID))
	mustAnswer(t, rt, "", f, f.A, f.WantA)
}

func noCapacity(t *testing.T, rt runtime.Runtime, f Fixtures) {
	if f.Huge.ID == "" {
		t.Skip("the driver has no memory limit")
	}
	mustLoad(t, rt, f.A)
	mustSwitch(t, rt, f.A.ID)
	if err := rt.Load(t.Context(), f.Huge); !errors.Is(err, runtime.ErrNoCapacity) {
		t.Fatalf("load of more than fits: got %v, want ErrNoCapacity", err)
	}
	mustList(t, rt, serving(f.A))
	mustAnswer(t, rt, "", f, f.A, f.WantA)
	if err := rt.Unload(t.Context(), f.A.ID); err != nil {
		t.Fatalf("unload: %v", err)
	}
	mustLoad(t, rt, f.Huge)
}

func cancelledLoad(t *testing.T, rt runtime.Runtime, f Fixtures) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := rt.Load(ctx, f.A); err == nil {
		t.Fatal("load under a cancelled context says that it is ready")
	}
	mustList(t, rt)
	mustLoad(t, rt, f.A)
	if _, err := rt.Infer(ctx, f.A.ID, request(f)); !errors.Is(err, context.Canceled) {
		t.Fatalf("infer under a cancelled context: got %v", err)
	}
	mustAnswer(t, rt, f.A.ID, f, f.A, f.WantA)
}

func badRequests(t *testing.T, rt runtime.Runtime, f Fixtures) {
	mustLoad(t, rt, f.A)
	in := f.Input
	for name, inputs := range map[string][]runtime.Tensor{
		"no input":       nil,
		"values missing": {{Name: in.Name, Shape: in.Shape, Data: in.Data[:len(in.Data)-1]}},
		"negative shape": {{Name: in.Name, Shape: []int64{-1}, Data: in.Data}},
		"twice":          {in, in},
	} {
		if _, err := rt.Infer(t.Context(), f.A.ID, runtime.Request{Inputs: inputs}); !errors.Is(err, runtime.ErrBadRequest) {
			t.Errorf("%s: got %v, want ErrBadRequest", name, err)
		}
	}
	mustAnswer(t, rt, f.A.ID, f, f.A, f.WantA)
}

// switchUnderLoad keeps requests going while the agent does a whole update,
// many times: none may fail, and each gets the answer of one of the two.
func switchUnderLoad(t *testing.T, rt runtime.Runtime, f Fixtures) {
	mustLoad(t, rt, f.A)
	mustSwitch(t, rt, f.A.ID)
	var stop atomic.Bool
	var answered atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				if err := either(rt, f); err != nil {
					t.Errorf("a request during a switch: %v", err)
					return
				}
				answered.Add(1)
			}
		})
	}
	old, next := f.A, f.B
	// Enough switches, and enough requests among them, however the goroutines run.
	for i := 0; (i < 20 || answered.Load() < 40) && !t.Failed(); i++ {
		mustLoad(t, rt, next)
		mustSwitch(t, rt, next.ID)
		if err := rt.Unload(t.Context(), old.ID); err != nil {
			t.Errorf("unload: %v", err)
		}
		old, next = next, old
	}
	stop.Store(true)
	wg.Wait()
}

func ownership(t *testing.T, rt runtime.Runtime, f Fixtures) {
	mustLoad(t, rt, f.A)
	mustSwitch(t, rt, f.A.ID)
	before := slices.Clone(f.Input.Data)
	first, err := rt.Infer(t.Context(), "", request(f))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before, f.Input.Data) {
		t.Error("infer changed its input")
	}
	clear(first.Outputs[0].Data)
	mustAnswer(t, rt, "", f, f.A, f.WantA)
}
