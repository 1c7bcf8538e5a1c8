package triton

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/internal/onnx/onnxtest"
	"github.com/skein-fleet/skein/agent/internal/process"
	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
	"github.com/skein-fleet/skein/agent/runtime/runtimetest"
	"github.com/skein-fleet/skein/ota/manifest"
)

var update = flag.Bool("update", false, "write the golden files")

// TestRepositoryLayout holds what is written for ONNX and TensorRT models to
// golden files: the Triton of the tests has neither backend.
func TestRepositoryLayout(t *testing.T) {
	for _, c := range []struct {
		format, file string
		content      []byte
	}{{"onnx", "meter.onnx", onnxtest.Affine(2, 1, 4)}, {"plan", "meter.engine", []byte("ftrt")}, {"onnx", "model.onnx", onnxtest.Affine(2, 1, 4)}} {
		dir, repo := t.TempDir(), t.TempDir()
		if err := errors.Join(os.WriteFile(filepath.Join(dir, c.file), c.content, 0o600), os.WriteFile(filepath.Join(dir, "labels.txt"), []byte("a\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		if err := writeRepository(repo, runtime.Workload{Model: "meter", Version: "7", Dir: dir, ModelFile: c.file, Format: c.format}); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		err := filepath.WalkDir(repo, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			rel, _ := filepath.Rel(repo, path)
			if to, err := os.Readlink(path); err == nil {
				fmt.Fprintf(&got, "%s -> %s\n", rel, filepath.Base(to))
				return nil
			}
			b, err := os.ReadFile(path)
			fmt.Fprintf(&got, "%s:\n%s", rel, b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", c.format+"-"+c.file+".golden")
		if *update {
			if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil || !bytes.Equal(want, got.Bytes()) {
			t.Errorf("%s: %v, got\n%s", golden, err, got.Bytes())
		}
	}
}

// TestShippedConfiguration: one that does not fit its model is refused, with
// what does not fit.
func TestShippedConfiguration(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "m.onnx"), onnxtest.Affine(2, 1, 4), 0o600); err != nil {
		t.Fatal(err)
	}
	w := runtime.Workload{Model: "m", Version: "3", Dir: dir, ModelFile: "m.onnx", Format: "onnx"}
	for config, want := range map[string]string{
		"backend: \"onnxruntime\"\ninput { name: \"x\" data_type: TYPE_FP32 dims: [-1, 4] }":            "",
		"max_batch_size: 8\ninput { name: \"x\" data_type: TYPE_FP32 dims: [4] }\ndynamic_batching { }": "",
		"backend: \"python\"\ninput { name: \"whatever\" data_type: TYPE_INT8 dims: [1] }":              "",
		"input { name: \"image\" data_type: TYPE_FP32 dims: [-1, 4] }":                                  `the model has "x"`,
		"input { name: \"x\" data_type: TYPE_INT8 dims: [-1, 4] }":                                      "in the model it is TYPE_FP32",
		"input { name: \"x\" data_type: TYPE_FP32 dims: [-1, 5] }":                                      "in the model it is [-1 4]",
		"output { name: \"y\" data_type: TYPE_FP32 dims: [4] }":                                         "in the model it is [-1 4]",
		"name: \"other\"":                               `it is of model "other"`,
		"platform: \"tensorrt_plan\"":                   "does not run a model of format onnx",
		"version_policy { specific { versions: [1] } }": "the release is version 3",
		"input {": "cannot be read",
	} {
		if err := os.WriteFile(filepath.Join(dir, configFile), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := configOf(w)
		switch {
		case want == "" && (err != nil || string(got) != config):
			t.Errorf("%s: got %v", config, err)
		case want != "" && (!errors.Is(err, runtime.ErrIncompatible) || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: got %v, want %q", config, err, want)
		}
	}
}

// pythonModel runs ONNX Runtime on the release's model behind Triton's Python
// backend.
const pythonModel = `
import os
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.version = args["model_version"]

    def execute(self, requests):
        out = []
        for r in requests:
            x = pb.get_input_tensor_by_name(r, "x").as_numpy()
            try:
                y = self.session.run(None, {"x": x})[0]
                out.append(pb.InferenceResponse([pb.Tensor("y", y)]))
            except Exception as e:
                out.append(pb.InferenceResponse(error=pb.TritonError(str(e), pb.TritonError.INVALID_ARG)))
        return out
`

const pythonConfig = `backend: "python"
max_batch_size: 0
input { name: "x" data_type: TYPE_FP32 dims: [-1, 4] }
output { name: "y" data_type: TYPE_FP32 dims: [-1, 4] }
`

// spec starts the Triton that the environment names, or skips.
func spec(t *testing.T) *manifest.Workload {
	t.Helper()
	bin, site := os.Getenv("SKEIN_TEST_TRITON"), os.Getenv("SKEIN_TEST_TRITON_LIBS")
	if bin == "" || testing.Short() {
		t.Skip("SKEIN_TEST_TRITON names no Triton server: deploy/test-serving.sh brings one")
	}
	python := os.Getenv("SKEIN_TEST_PYTHON")
	return &manifest.Workload{Server: manifest.ServerTriton,
		Args: []string{bin, "--backend-directory=" + os.Getenv("SKEIN_TEST_TRITON_BACKENDS"), "--allow-gpu-metrics=false"},
		Env:  map[string]string{"LD_LIBRARY_PATH": site, "PATH": filepath.Dir(python) + ":" + os.Getenv("PATH"), "PYTHONPATH": os.Getenv("SKEIN_TEST_PYTHONPATH")}}
}

func workload(t *testing.T, id, version string, scale float32) runtime.Workload {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string][]byte{"affine.onnx": onnxtest.Affine(scale, 1, 4), "model.py": []byte(pythonModel), configFile: []byte(pythonConfig)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return runtime.Workload{ID: id, Model: "affine", Version: version, Dir: dir, ModelFile: "affine.onnx", Format: "onnx", Spec: spec(t)}
}

func newRuntime(t *testing.T) *serving.Runtime {
	t.Helper()
	return newRuntimeIn(t, t.TempDir())
}

func newRuntimeIn(t *testing.T, dir string) *serving.Runtime {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("SKEIN_LOG") != "" {
		log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	rt := serving.New(serving.Options{Launcher: process.New(process.Options{Logger: log}), Dir: dir, Logger: log,
		Dialects: map[string]serving.Dialect{manifest.ServerTriton: Dialect{}}, StopTimeout: 10 * time.Second, LookEvery: time.Second})
	t.Cleanup(func() {
		if err := rt.Close(); err != nil {
			t.Error(err)
		}
	})
	return rt
}

var input = runtime.Tensor{Name: "x", Shape: []int64{1, 4}, Data: []float32{1, 2, 3, -4}}

func request() runtime.Request { return runtime.Request{ID: "q", Inputs: []runtime.Tensor{input}} }

// TestConformance runs the suite of all drivers on a real Triton.
func TestConformance(t *testing.T) {
	spec(t)
	runtimetest.Run(t, func(t *testing.T) (runtime.Runtime, runtimetest.Fixtures) {
		bad := workload(t, "bad", "3", 1)
		if err := os.WriteFile(filepath.Join(bad.Dir, "model.py"), []byte("raise RuntimeError('this model is broken')\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return newRuntime(t), runtimetest.Fixtures{
			A: workload(t, "a", "1", 2), B: workload(t, "b", "2", 3), Input: input, Tolerance: 1e-6,
			WantA: []float32{3, 5, 7, -7}, WantB: []float32{4, 7, 10, -11}, Bad: bad,
		}
	})
}

// TestControlIsTheAgentsAlone: without the key nobody loads, unloads, or
// writes files through trace and log settings.
func TestControlIsTheAgentsAlone(t *testing.T) {
	rt := newRuntime(t)
	w := workload(t, "a", "1", 2)
	if err := rt.Load(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	e, release, err := rt.Acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	for _, path := range []string{"/v2/repository/index", "/v2/repository/models/affine/unload", "/v2/repository/models/affine/load", "/v2/trace/setting", "/v2/logging"} {
		resp, err := http.Post("http://"+e.HTTP+path, "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("%s without the key: %d %s", path, resp.StatusCode, b)
		}
	}
	h2 := new(http.Protocols)
	h2.SetUnencryptedHTTP2(true)
	anybody := &Control{grpc: kserve.NewGRPC(e.GRPC, &http.Client{Transport: &http.Transport{Protocols: h2}}, nil)}
	if err := anybody.Unload(t.Context(), "affine"); err == nil {
		t.Error("gRPC unloads without the key")
	}
	if _, err := rt.Infer(t.Context(), "a", request()); err != nil {
		t.Errorf("after the attempts: %v", err)
	}
}

// TestControlBothWays: HTTP and gRPC do the same.
func TestControlBothWays(t *testing.T) {
	dir := t.TempDir()
	rt := newRuntimeIn(t, dir)
	if err := rt.Load(t.Context(), workload(t, "a", "1", 2)); err != nil {
		t.Fatal(err)
	}
	e, release, err := rt.Acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	keys, err := filepath.Glob(filepath.Join(dir, "*", keyFile))
	if err != nil || len(keys) != 1 {
		t.Fatalf("keys: %v %v", keys, err)
	}
	key, err := os.ReadFile(keys[0])
	if err != nil {
		t.Fatal(err)
	}
	h2 := new(http.Protocols)
	h2.SetUnencryptedHTTP2(true)
	g := &serving.Generation{Ports: serving.Ports{HTTP: e.HTTP, GRPC: e.GRPC}, Client: http.DefaultClient, H2C: &http.Client{Transport: &http.Transport{Protocols: h2}}}
	c := NewControl(g, string(key))
	ctx := t.Context()
	for way, step := range map[string]struct {
		unload, load func(context.Context, string) error
		index        func(context.Context) ([]kserve.IndexEntry, error)
	}{"gRPC": {c.Unload, c.Load, c.Index}, "HTTP": {c.http.UnloadModel, c.http.LoadModel, c.http.Index}} {
		if err := step.unload(ctx, "affine"); err != nil {
			t.Fatalf("%s unload: %v", way, err)
		}
		deadline := time.Now().Add(20 * time.Second)
		for c.http.ModelReady(ctx, "affine", "1") == nil && time.Now().Before(deadline) {
			<-time.After(10 * time.Millisecond)
		}
		if err := c.http.ModelReady(ctx, "affine", "1"); err == nil {
			t.Fatalf("%s: still ready after its unload", way)
		}
		if err := step.load(ctx, "affine"); err != nil {
			t.Fatalf("%s load: %v", way, err)
		}
		list, err := step.index(ctx)
		if err != nil || !slices.Contains(list, kserve.IndexEntry{Name: "affine", Version: "1", State: "READY"}) {
			t.Errorf("%s index: %+v %v", way, list, err)
		}
	}
	// The looks of the runtime saw the model out, too.
	_, err = rt.Infer(ctx, "a", request())
	for end := time.Now().Add(20 * time.Second); errors.Is(err, runtime.ErrNotLoaded) && time.Now().Before(end); _, err = rt.Infer(ctx, "a", request()) {
		<-time.After(20 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	over, err := c.grpc.Infer(ctx, "affine", "1", request())
	if err != nil || over.ModelVersion != "1" || over.ID != "q" || !slices.Equal(over.Outputs[0].Data, []float32{3, 5, 7, -7}) {
		t.Errorf("over gRPC: %+v %v", over, err)
	}
	if m, err := c.grpc.Metadata(ctx, "affine", "1"); err != nil || len(m.Inputs) != 1 || m.Inputs[0].Datatype != "FP32" || !slices.Equal(m.Inputs[0].Shape, []int64{-1, 4}) {
		t.Errorf("metadata over gRPC: %+v %v", m, err)
	}
	var list []runtime.Server
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); <-time.After(20 * time.Millisecond) {
		if list, err = rt.Servers(ctx); err == nil && len(list) == 1 && list[0].Requests == 2 && list[0].Compute > 0 && list[0].Memory > 0 {
			return
		}
	}
	t.Errorf("measured: %+v %v", list, err)
}

// TestScan looks for open ports from another network namespace: there are none.
func TestScan(t *testing.T) {
	spec(t)
	if os.Geteuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	ip, err := exec.LookPath("ip")
	if err != nil {
		t.Skip("no ip command: apt-get install iproute2")
	}
	rt := newRuntime(t)
	if err := rt.Load(t.Context(), workload(t, "a", "1", 2)); err != nil {
		t.Fatal(err)
	}
	e, release, err := rt.Acquire(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	n := fmt.Sprintf("%d", os.Getpid()%100000)
	do := func(args ...string) error {
		out, err := exec.Command(ip, args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
		return nil
	}
	if err := do("netns", "add", "skein"+n); err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	t.Cleanup(func() { _ = do("netns", "del", "skein"+n) })
	if err := errors.Join(do("link", "add", "sk"+n, "type", "veth", "peer", "name", "sp"+n, "netns", "skein"+n),
		do("addr", "add", "169.254.77.1/30", "dev", "sk"+n), do("link", "set", "sk"+n, "up"),
		do("netns", "exec", "skein"+n, ip, "addr", "add", "169.254.77.2/30", "dev", "sp"+n),
		do("netns", "exec", "skein"+n, ip, "link", "set", "sp"+n, "up")); err != nil {
		t.Skipf("no virtual links here: %v", err)
	}
	t.Cleanup(func() { _ = do("link", "del", "sk"+n) })
	// Something that does listen on all addresses is seen, so the scan works.
	open, err := serveAll(t)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, addr string
		want       bool
	}{{"a listener on all addresses", open, true}, {"http", e.HTTP, false}, {"grpc", e.GRPC, false}, {"metrics", e.Metrics, false}} {
		port := c.addr[strings.LastIndexByte(c.addr, ':')+1:]
		err := exec.Command(ip, "netns", "exec", "skein"+n, "bash", "-c", "exec 3<>/dev/tcp/169.254.77.1/"+port).Run()
		if (err == nil) != c.want {
			t.Errorf("%s (port %s) from another namespace: open %v, want %v", c.what, port, err == nil, c.want)
		}
	}
}

// TestBrokenModelSaysWhy: what Triton says of a model that it cannot load is
// in the error.
func TestBrokenModelSaysWhy(t *testing.T) {
	rt := newRuntime(t)
	w := workload(t, "bad", "1", 2)
	if err := os.WriteFile(filepath.Join(w.Dir, "model.py"), []byte("raise RuntimeError('the lens cap is on')\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := rt.Load(t.Context(), w)
	if !errors.Is(err, runtime.ErrIncompatible) || !strings.Contains(err.Error(), "the lens cap is on") {
		t.Errorf("got %v", cmp.Or(err, errors.New("no error")))
	}
}

// serveAll listens on all addresses until the test ends.
func serveAll(t *testing.T) (string, error) {
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		return "", err
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return l.Addr().String(), nil
}

func TestMetricsText(t *testing.T) {
	const text = `# HELP nv_gpu_memory_used_bytes GPU used memory, in bytes
# TYPE nv_gpu_memory_used_bytes gauge
nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 1048576.000000
nv_gpu_memory_used_bytes{gpu_uuid="GPU-2"} 2097152
nv_inference_pending_request_count{model="other",version="1"} 9
nv_inference_pending_request_count{model="m",version="2"} 3
nv_inference_request_success{model="m",version="2"} 12
damaged{ 1
`
	var m runtime.Server
	if err := readMetrics(strings.NewReader(text), "m", &m); err != nil || m.GPUMemory != 3<<20 || m.Pending != 3 {
		t.Errorf("got %+v, %v", m, err)
	}
}
