package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/runtimetest"
	"github.com/skein-fleet/skein/sim/meter"
)

// exitOf is the status by which a model server says why it does not serve.
func exitOf(err error) int {
	if errors.Is(err, runtime.ErrIncompatible) {
		return 65
	}
	return 1
}

// TestMeterServers runs the suite of all runtimes on processes of the meter
// server, each with the interpreter and the ONNX file of a workload.
func TestMeterServers(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts some sixty processes")
	}
	workload := func(id, version string, model []byte) runtime.Workload {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "model.onnx"), model, 0o600); err != nil {
			t.Fatal(err)
		}
		return runtime.Workload{ID: id, Model: "meter", Version: version, Dir: dir, ModelFile: "model.onnx", Format: "onnx"}
	}
	linear := func(bias float32) []byte {
		b, err := meter.Linear([]float32{1, 2, 0, 1}, []float32{bias, 0}, 2, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	a, b, bad := workload("a", "1", linear(0)), workload("b", "2", linear(100)), workload("bad", "3", []byte("not a model"))
	runtimetest.Run(t, func(t *testing.T) (runtime.Runtime, runtimetest.Fixtures) {
		rt, err := agent.NewServers(agent.ServersOptions{Dir: t.TempDir(), Command: []string{
			os.Args[0], "serve-model", "--addr", "{http}", "--dir", "{dir}", "--model-file", "{model-file}", "--model", "{model}", "--version", "{version}"}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := rt.Close(); err != nil {
				t.Error(err)
			}
		})
		return rt, runtimetest.Fixtures{
			A: a, B: b, Input: runtime.Tensor{Name: meter.InputName, Shape: []int64{1, 2}, Data: []float32{3, 4}},
			WantA: []float32{11, 4}, WantB: []float32{111, 4}, Bad: bad,
		}
	})
}
