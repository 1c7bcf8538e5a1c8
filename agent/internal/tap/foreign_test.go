package tap

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/internal/onnx/onnxtest"
	"github.com/skein-fleet/skein/agent/internal/process"
	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/internal/triton"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota/manifest"
)

const affine = `
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])

    def execute(self, requests):
        return [pb.InferenceResponse([pb.Tensor("y", 2 * pb.get_input_tensor_by_name(r, "x").as_numpy() + self.version)]) for r in requests]
`

const affineConfig = `backend: "python"
max_batch_size: 0
input { name: "x" data_type: TYPE_FP32 dims: [-1, 4] }
output { name: "y" data_type: TYPE_FP32 dims: [-1, 4] }
`

// tritonWorkload is a version of a model on the Triton that the environment names.
func tritonWorkload(t *testing.T, version string) runtime.Workload {
	t.Helper()
	bin, python := os.Getenv("SKEIN_TEST_TRITON"), os.Getenv("SKEIN_TEST_PYTHON")
	dir := t.TempDir()
	for name, content := range map[string][]byte{"model.onnx": onnxtest.Affine(2, 1, 4), "model.py": []byte(affine), "config.pbtxt": []byte(affineConfig)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return runtime.Workload{ID: "w" + version, Model: "affine", Version: version, Dir: dir, ModelFile: "model.onnx", Format: "onnx", Spec: &manifest.Workload{
		Server: manifest.ServerTriton, Args: []string{bin, "--backend-directory=" + os.Getenv("SKEIN_TEST_TRITON_BACKENDS"), "--allow-gpu-metrics=false"},
		Env: map[string]string{"LD_LIBRARY_PATH": os.Getenv("SKEIN_TEST_TRITON_LIBS"), "PATH": filepath.Dir(python) + ":" + os.Getenv("PATH"), "PYTHONPATH": os.Getenv("SKEIN_TEST_PYTHONPATH")}}}
}

// TestTritonClient: the official client works through the tap against a real
// Triton, unchanged, before and after a switch of the version.
func TestTritonClient(t *testing.T) {
	if os.Getenv("SKEIN_TEST_TRITON") == "" || testing.Short() {
		t.Skip("SKEIN_TEST_TRITON names no Triton server: deploy/test-serving.sh brings one")
	}
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("SKEIN_LOG") != "" {
		log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	rt := serving.New(serving.Options{Launcher: process.New(process.Options{Logger: log}), Dir: t.TempDir(), Logger: log,
		Dialects: map[string]serving.Dialect{manifest.ServerTriton: triton.Dialect{}}, StopTimeout: 10 * time.Second})
	t.Cleanup(func() {
		if err := rt.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, v := range []string{"1", "2"} {
		if err := rt.Load(t.Context(), tritonWorkload(t, v)); err != nil {
			t.Fatal(err)
		}
	}
	var addr net.Addr
	ready := make(chan struct{})
	tap, err := New(Options{Endpoints: rt, Listen: "127.0.0.1:0", Listening: func(a net.Addr) { addr = a; close(ready) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tap.Run(ctx) }()
	<-ready
	var n notes
	tap.Observe(1, &n)
	for i, v := range []string{"1", "2"} {
		if err := rt.Switch(t.Context(), "w"+v); err != nil {
			t.Fatal(err)
		}
		c := exec.CommandContext(t.Context(), os.Getenv("SKEIN_TEST_PYTHON"), "testdata/client.py", addr.String(), addr.String(), "affine", v, fmt.Sprint(2-i))
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if lines := strings.Count(string(out), "\n"); lines != 26 {
			t.Errorf("%d lines:\n%s", lines, out)
		}
	}
	read := false
	for _, o := range n.list() {
		read = read || len(o.Inputs) == 1 && len(o.Inputs[0].Values) == 12 && len(o.Outputs) == 1 && o.Outputs[0].Values[11] == 2*11+2
	}
	if !read {
		t.Errorf("%d observations, none of the second version with its values", len(n.list()))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
