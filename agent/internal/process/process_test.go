package process

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
	"github.com/skein-fleet/skein/agent/runtime/mock"
	"github.com/skein-fleet/skein/agent/runtime/runtimetest"
)

// TestMain makes the test binary a model server when it is called as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		os.Exit(serve(os.Args[2:]))
	}
	os.Exit(m.Run())
}

// serve is a model server: the mock runtime behind the KServe protocol.
func serve(args []string) int {
	fs := flag.NewFlagSet("serve", flag.ContinueOnError)
	addr, dir := fs.String("addr", "", ""), fs.String("dir", "", "")
	model, version := fs.String("model", "", ""), fs.String("version", "", "")
	if fs.Parse(args) != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	rt := mock.New(mock.Options{})
	w := runtime.Workload{ID: "w", Model: *model, Version: *version, Dir: *dir}
	if err := errors.Join(rt.Load(ctx, w), rt.Switch(ctx, "w")); err != nil {
		fmt.Println(err)
		switch {
		case errors.Is(err, runtime.ErrIncompatible):
			return serving.ExitIncompatible
		case errors.Is(err, runtime.ErrNoCapacity):
			return serving.ExitNoCapacity
		}
		return 1
	}
	h := kserve.NewHandler(kserve.Options{Inferer: rt, Models: func(context.Context) ([]kserve.Model, error) {
		return []kserve.Model{{ID: "w", Name: *model, Version: *version, Ready: true, Serving: true}}, nil
	}})
	mux := http.NewServeMux()
	mux.Handle("/", h)
	mux.HandleFunc("/pid", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getpid()) })
	mux.HandleFunc("/env", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getenv("SKEIN_PARAM_CAMERA_URL")) })
	srv := &http.Server{Addr: *addr, Handler: mux}
	context.AfterFunc(ctx, func() { srv.Close() })
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return 1
	}
	return 0
}

func newRuntime(t *testing.T) *serving.Runtime {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	rt := serving.New(serving.Options{
		Launcher: New(Options{StopTimeout: 5 * time.Second}), Dir: t.TempDir(),
		Command:    []string{self, "serve", "--addr", "{addr}", "--dir", "{dir}", "--model", "{model}", "--version", "{version}"},
		ReadyEvery: 5 * time.Millisecond, StopTimeout: 5 * time.Second,
	})
	t.Cleanup(func() {
		if err := rt.Close(); err != nil {
			t.Error(err)
		}
	})
	return rt
}

func workload(t *testing.T, id string, s mock.Spec) runtime.Workload {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, mock.SpecFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return runtime.Workload{ID: id, Model: "m", Version: id, Dir: dir, Params: map[string]string{"camera.url": "rtsp://" + id}}
}

var input = runtime.Tensor{Name: "input", Shape: []int64{1, 3}, Data: []float32{1, 2, 4}}

func TestConformance(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) (runtime.Runtime, runtimetest.Fixtures) {
		return newRuntime(t), runtimetest.Fixtures{
			A: workload(t, "a", mock.Spec{}), B: workload(t, "b", mock.Spec{Salt: 1}), Input: input, Tolerance: 1e-6,
			WantA: mock.Spec{}.Answer(input.Data), WantB: mock.Spec{Salt: 1}.Answer(input.Data),
			Bad: workload(t, "bad", mock.Spec{LoadError: "incompatible"}),
		}
	})
}

func get(t *testing.T, r *serving.Runtime, id, path string) string {
	t.Helper()
	e, release, err := r.Acquire(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	resp, err := http.Get("http://" + e.HTTP + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b := make([]byte, 100)
	n, _ := resp.Body.Read(b)
	return string(b[:n])
}

func TestParametersAreInTheEnvironment(t *testing.T) {
	rt := newRuntime(t)
	w := workload(t, "a", mock.Spec{})
	if err := rt.Load(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	if got := get(t, rt, "a", "/env"); got != "rtsp://a" {
		t.Errorf("got %q", got)
	}
}

// TestCrashedServerComesBack kills the process and waits for the next one.
func TestCrashedServerComesBack(t *testing.T) {
	rt := newRuntime(t)
	if err := rt.Load(t.Context(), workload(t, "a", mock.Spec{})); err != nil {
		t.Fatal(err)
	}
	if err := rt.Switch(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(get(t, rt, "a", "/pid"), &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	saw := false
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		list, err := rt.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !list[0].Ready {
			if list[0].Reason == "" || !list[0].Serving {
				t.Fatalf("after the crash: %+v", list[0])
			}
			saw = true
		} else if saw {
			break
		}
		<-time.After(5 * time.Millisecond)
	}
	got, err := rt.Infer(t.Context(), "", runtime.Request{Inputs: []runtime.Tensor{input}})
	if !saw || err != nil || !slices.Equal(got.Outputs[0].Data, mock.Spec{}.Answer(input.Data)) {
		t.Errorf("crash seen: %v; answers %v, %v", saw, got, err)
	}
}

func TestLoadTimeout(t *testing.T) {
	rt := newRuntime(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := rt.Load(ctx, workload(t, "slow", mock.Spec{NeverReady: true})); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if list, err := rt.List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("left behind: %v %v", list, err)
	}
}

func TestMissingCommand(t *testing.T) {
	none := serving.New(serving.Options{Launcher: New(Options{}), Dir: t.TempDir()})
	if err := none.Load(t.Context(), runtime.Workload{ID: "a"}); !errors.Is(err, serving.ErrNoCommand) || !errors.Is(err, runtime.ErrIncompatible) {
		t.Errorf("got %v", err)
	}
	rt := serving.New(serving.Options{Launcher: New(Options{}), Dir: t.TempDir(), Command: []string{"/nowhere/server"}})
	if err := rt.Load(t.Context(), runtime.Workload{ID: "a"}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
