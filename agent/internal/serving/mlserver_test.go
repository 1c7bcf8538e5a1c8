package serving_test

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/internal/onnx/onnxtest"
	"github.com/skein-fleet/skein/agent/internal/process"
	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota/manifest"
)

// affinePy is a model of MLServer that runs ONNX Runtime on the release's file.
const affinePy = `
import os
import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceResponse

class Affine(MLModel):
    async def load(self):
        self.session = onnxruntime.InferenceSession(os.path.join(os.path.dirname(__file__), "affine.onnx"), providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload):
        if len(payload.inputs) != 1 or payload.inputs[0].name != "x":
            raise InferenceError("want the input x")
        x = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        y = self.session.run(None, {"x": x})[0]
        return InferenceResponse(model_name=self.name, model_version=self.version, id=payload.id,
                                 outputs=[NumpyCodec.encode_output("y", y)])
`

const affineSettings = `{"name": "affine", "implementation": "affine.Affine", "parallel_workers": 0,
 "parameters": {"uri": "./affine.onnx"VERSION},
 "inputs": [{"name": "x", "datatype": "DATATYPE", "shape": [-1, 4]}], "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}]}`

func mlserver(t *testing.T, version, datatype string) (*serving.Runtime, runtime.Workload) {
	t.Helper()
	bin := os.Getenv("SKEIN_TEST_MLSERVER")
	if bin == "" || testing.Short() {
		t.Skip("SKEIN_TEST_MLSERVER names no MLServer: deploy/test-serving.sh brings one")
	}
	dir, scratch := t.TempDir(), t.TempDir()
	settings := affineSettings
	if version != "" {
		version = `, "version": "` + version + `"`
	}
	settings = strings.NewReplacer("VERSION", version, "DATATYPE", datatype).Replace(settings)
	for name, content := range map[string][]byte{"affine.onnx": onnxtest.Affine(2, 1, 4), "affine.py": []byte(affinePy), "model-settings.json": []byte(settings)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("SKEIN_LOG") != "" {
		log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	rt := serving.New(serving.Options{Launcher: process.New(process.Options{Logger: log}), Dir: filepath.Join(scratch, "serving"), Logger: log, StopTimeout: 10 * time.Second, LookEvery: 20 * time.Millisecond})
	t.Cleanup(func() {
		if err := rt.Close(); err != nil {
			t.Error(err)
		}
	})
	return rt, runtime.Workload{ID: "ml", Model: "affine", Version: "3", Dir: dir, ModelFile: "affine.onnx", Format: "onnx",
		Spec: &manifest.Workload{Args: []string{bin, "start", "{dir}"}, Env: map[string]string{
			"MLSERVER_HOST": "127.0.0.1", "MLSERVER_HTTP_PORT": "{http-port}", "MLSERVER_GRPC_PORT": "{grpc-port}", "MLSERVER_METRICS_PORT": "{metrics-port}",
			"MLSERVER_METRICS_DIR": scratch, "MLSERVER_PARALLEL_WORKERS": "0", "PYTHONDONTWRITEBYTECODE": "1",
		}}}
}

// TestMLServer: a server that nobody here wrote, which knows the model by the
// version of its settings, or by none.
func TestMLServer(t *testing.T) {
	for name, c := range map[string]struct{ version, datatype string }{
		"with the version": {"3", "FP32"}, "without a version": {"", "FP32"}, "of other numbers": {"3", "INT64"},
	} {
		t.Run(name, func(t *testing.T) {
			rt, w := mlserver(t, c.version, c.datatype)
			if err := errors.Join(rt.Load(t.Context(), w), rt.Switch(t.Context(), "ml")); err != nil {
				t.Fatal(err)
			}
			sig, err := rt.Describe(t.Context(), "ml")
			if err != nil || len(sig.Inputs) != 1 || sig.Inputs[0].Datatype != c.datatype || !slices.Equal(sig.Inputs[0].Shape, []int64{-1, 4}) {
				t.Errorf("signature %+v %v", sig, err)
			}
			in := runtime.Tensor{Name: "x", Shape: []int64{1, 4}, Data: []float32{1, 2, 3, -4}}
			got, err := rt.Infer(t.Context(), "", runtime.Request{ID: "q", Inputs: []runtime.Tensor{in}})
			if err != nil || got.ID != "q" || got.ModelVersion != "3" || !slices.Equal(got.Outputs[0].Data, []float32{3, 5, 7, -7}) {
				t.Errorf("got %+v %v", got, err)
			}
			in.Name = "image"
			if _, err := rt.Infer(t.Context(), "", runtime.Request{Inputs: []runtime.Tensor{in}}); !errors.Is(err, runtime.ErrBadRequest) {
				t.Errorf("another input: %v", err)
			}
			e, release, err := rt.Acquire(t.Context(), "")
			if err != nil || e.HTTP == "" || e.GRPC == "" || e.Metrics == "" {
				t.Fatalf("endpoint %+v %v", e, err)
			}
			release()
			var list []runtime.Server
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-time.After(5 * time.Millisecond) {
				if list, err = rt.Servers(t.Context()); err == nil && len(list) == 1 && list[0].Memory > 20<<20 {
					break
				}
			}
			if err != nil || len(list) != 1 || list[0].Memory < 20<<20 {
				t.Errorf("servers %+v %v", list, err)
			}
			if err := rt.Unload(t.Context(), "ml"); err != nil {
				t.Fatal(err)
			}
		})
	}
}
