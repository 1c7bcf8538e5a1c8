package mock

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/runtimetest"
)

func workloadOf(t *testing.T, id string, s Spec) runtime.Workload {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, SpecFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return runtime.Workload{ID: id, Model: "m", Version: id, Dir: dir, MemoryMiB: 10}
}

var input = runtime.Tensor{Name: "input", Shape: []int64{1, 3}, Data: []float32{1, 2, 4}}

func infer(t *testing.T, r *Runtime, id string) ([]float32, error) {
	t.Helper()
	resp, err := r.Infer(t.Context(), id, runtime.Request{Inputs: []runtime.Tensor{input}})
	if err != nil {
		return nil, err
	}
	return resp.Outputs[0].Data, nil
}

func TestConformance(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) (runtime.Runtime, runtimetest.Fixtures) {
		huge := workloadOf(t, "huge", Spec{})
		huge.MemoryMiB = 95
		return New(Options{MemoryMiB: 100}), runtimetest.Fixtures{
			A: workloadOf(t, "a", Spec{}), B: workloadOf(t, "b", Spec{Salt: 1}), Input: input,
			WantA: Spec{}.Answer(input.Data), WantB: Spec{Salt: 1}.Answer(input.Data),
			Bad: workloadOf(t, "bad", Spec{LoadError: "incompatible"}), Huge: huge,
		}
	})
}

func TestWrongAnswers(t *testing.T) {
	r := New(Options{})
	if err := r.Load(t.Context(), workloadOf(t, "w", Spec{Wrong: true})); err != nil {
		t.Fatal(err)
	}
	got, err := infer(t, r, "w")
	if err != nil {
		t.Fatal(err)
	}
	right := Spec{}.Answer(input.Data)
	if slices.Index(right, slices.Max(right)) != 7 {
		t.Errorf("the right label of %v is not the sum of %v", right, input.Data)
	}
	if slices.Index(got, slices.Max(got)) == 7 {
		t.Errorf("a wrong workload answers %v", got)
	}
}

func TestCrash(t *testing.T) {
	r := New(Options{})
	w := workloadOf(t, "w", Spec{CrashAfter: 2})
	if err := r.Load(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := infer(t, r, "w"); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := infer(t, r, "w"); !errors.Is(err, ErrCrashed) {
			t.Errorf("third request: got %v", err)
		}
	}
	list, err := r.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Ready || !strings.Contains(list[0].Reason, "crashed after 2") {
		t.Errorf("list: %+v, %v", list, err)
	}
	if err := r.Load(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if _, err := infer(t, r, "w"); err != nil || r.Requests("w") != 1 {
		t.Errorf("after a new load: %v, %d requests", err, r.Requests("w"))
	}
}

func TestTimes(t *testing.T) {
	slow := workloadOf(t, "slow", Spec{LoadDelay: Duration(time.Minute), Latency: Duration(time.Second)})
	never := workloadOf(t, "never", Spec{NeverReady: true})
	synctest.Test(t, func(t *testing.T) {
		r := New(Options{})
		start := time.Now()
		if err := r.Load(t.Context(), slow); err != nil {
			t.Fatal(err)
		}
		if _, err := infer(t, r, "slow"); err != nil {
			t.Fatal(err)
		}
		if got := time.Since(start); got != 61*time.Second {
			t.Errorf("load and one request took %s", got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- r.Load(ctx, never) }()
		synctest.Wait()
		list, err := r.List(t.Context())
		if err != nil || len(list) != 2 || list[0].Ready || list[0].Reason != "loading" {
			t.Errorf("while it loads: %+v, %v", list, err)
		}
		if _, err := infer(t, r, "never"); !errors.Is(err, runtime.ErrNotLoaded) {
			t.Errorf("infer while it loads: got %v", err)
		}
		if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("load: got %v", err)
		}
		if list, err = r.List(t.Context()); err != nil || len(list) != 1 {
			t.Errorf("after the load failed: %+v, %v", list, err)
		}
	})
}

func TestSpecFile(t *testing.T) {
	for text, want := range map[string]string{
		`{"latency":"5ms","salt":3}`: "", `{"latencyy":"5ms"}`: "unknown field", `{"latency":"-5ms"}`: "negative",
		`{"latency":5}`: "latency", `{"classes":70000}`: "out of range", `{`: "EOF",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, SpecFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadSpec(dir)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", text, err, want)
		}
		if err := New(Options{}).Load(t.Context(), runtime.Workload{ID: "w", Dir: dir}); (err == nil) != (want == "") {
			t.Errorf("load with %s: got %v", text, err)
		}
	}
	s, err := ReadSpec(t.TempDir())
	if err != nil || s != (Spec{}) {
		t.Errorf("no file: %+v, %v", s, err)
	}
}
