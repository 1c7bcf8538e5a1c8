package serving

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
	"github.com/skein-fleet/skein/ota/manifest"
)

// events keeps what a runtime tells.
type events struct {
	mu   sync.Mutex // guards list
	list []runtime.Event
}

func (e *events) add(v runtime.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, v)
}

// find returns the first event of a kind.
func (e *events) find(kind string) (runtime.Event, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.IndexFunc(e.list, func(v runtime.Event) bool { return v.Kind == kind })
	if i < 0 {
		return runtime.Event{}, false
	}
	return e.list[i], true
}

// await waits for something that another goroutine brings about.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("it does not happen: %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

type world struct {
	*Runtime
	farm   *farm
	events *events
	free   int64
}

func options(f *farm, dir string) Options {
	return Options{Launcher: f, Dir: dir, Command: []string{"{http}"}, ReadyEvery: time.Millisecond, LookEvery: 3 * time.Millisecond,
		RestartMin: time.Millisecond, Settled: time.Nanosecond, StopTimeout: time.Second}
}

func newWorld(t *testing.T) *world {
	w := &world{farm: newFarm(), events: &events{}, free: 1 << 40}
	o := options(w.farm, t.TempDir())
	o.Memory = func() (int64, int64) { return w.free, 1 << 40 }
	if os.Getenv("SKEIN_LOG") != "" {
		o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w.Runtime = New(o)
	w.Watch(w.events.add)
	t.Cleanup(func() {
		w.farm.mu.Lock()
		w.farm.keep, w.farm.next = false, behaviour{}
		w.farm.mu.Unlock()
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func workload(id string) runtime.Workload {
	return runtime.Workload{ID: id, Model: "m", Version: "3", Dir: "/nowhere"}
}

func (w *world) answers(t *testing.T, id string) string {
	t.Helper()
	r, err := w.Infer(t.Context(), id, runtime.Request{ID: "q", Inputs: []runtime.Tensor{{Name: "x", Shape: []int64{1, 2}, Data: []float32{1, 2}}}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Outputs[0].Data, []float32{2, 4}) {
		t.Fatalf("answer %+v", r)
	}
	return r.Outputs[1].Name
}

// TestAdoption: a runtime that follows another takes its servers over as they
// are, stops what nobody loads, and nothing that a server wrote is left.
func TestAdoption(t *testing.T) {
	f, dir := newFarm(), t.TempDir()
	first := New(options(f, dir))
	for _, id := range []string{"a", "b"} {
		if err := first.Load(t.Context(), workload(id)); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "skein-gone"), 0o700); err != nil {
		t.Fatal(err)
	}
	told := &events{}
	second := New(options(f, dir))
	second.Watch(told.add)
	list, err := second.List(t.Context())
	if want := []runtime.Status{{ID: "a", Reason: leftReason}, {ID: "b", Reason: leftReason}}; err != nil || !slices.Equal(list, want) {
		t.Fatalf("found %+v, %v", list, err)
	}
	if err := second.Load(t.Context(), workload("a")); err != nil {
		t.Fatal(err)
	}
	if e, ok := told.find(runtime.EventAdopted); !ok || e.Workload != "a" || f.started != 2 {
		t.Errorf("told %+v, %d servers were started", e, f.started)
	}
	w := &world{Runtime: second, farm: f}
	if name := w.answers(t, "a"); name != "skein-a" {
		t.Errorf("%s answers", name)
	}
	if err := second.Unload(t.Context(), "b"); err != nil || f.count() != 1 {
		t.Errorf("%v, %d servers run", err, f.count())
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 || left[0].Name() != "skein-a" {
		t.Errorf("folders: %v", left)
	}
	if err := second.Unload(t.Context(), "a"); err != nil || f.count() != 0 {
		t.Errorf("%v, %d servers run", err, f.count())
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestAdoptLater: while what launches servers does not answer, none is started
// beside one that may run.
func TestAdoptLater(t *testing.T) {
	w := newWorld(t)
	w.farm.adoptErr = errors.New("the daemon does not answer")
	if err := w.Load(t.Context(), workload("a")); err == nil || w.farm.started != 0 {
		t.Fatalf("got %v, %d started", err, w.farm.started)
	}
	if list, err := w.List(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("list: %v %v", list, err)
	}
	w.farm.adoptErr = nil
	if err := w.Load(t.Context(), workload("a")); err != nil {
		t.Fatal(err)
	}
}

// TestPinned: what Acquire returned is not stopped before its release, but for
// the bound.
func TestPinned(t *testing.T) {
	w := newWorld(t)
	if err := errors.Join(w.Load(t.Context(), workload("a")), w.Switch(t.Context(), "a")); err != nil {
		t.Fatal(err)
	}
	e, release, err := w.Acquire(t.Context(), "")
	if err != nil || e.ID != "a" || e.Model != "m" || e.HTTP == "" || e.GRPC != "" {
		t.Fatalf("%+v %v", e, err)
	}
	if host, _, _ := net.SplitHostPort(e.HTTP); host != "127.0.0.1" {
		t.Errorf("it listens on %s", host)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Unload(context.Background(), "a"); err != nil {
			t.Error(err)
		}
	})
	await(t, "nobody new is let in", func() bool { _, _, err := w.Acquire(t.Context(), ""); return errors.Is(err, runtime.ErrNotLoaded) })
	if w.farm.count() != 1 {
		t.Error("it was stopped under a request")
	}
	release()
	release() // once is enough
	wg.Wait()
	if w.farm.count() != 0 {
		t.Error("it was not stopped")
	}
}

// TestGrowth: a server whose memory grew gives way to one beside it, and where
// memory does not hold that, to one after it, with an outage that is told.
func TestGrowth(t *testing.T) {
	for name, free := range map[string]int64{"beside": 1 << 40, "after": 0} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.free = free
			w.farm.behave(behaviour{memory: 100 << 20})
			load := workload("a")
			load.Spec = &manifest.Workload{Args: []string{"{http}"}, Restart: manifest.RestartPolicy{GrowthMiB: 50}}
			if err := errors.Join(w.Load(t.Context(), load), w.Switch(t.Context(), "a")); err != nil {
				t.Fatal(err)
			}
			old := w.farm.get(t, "skein-a")
			await(t, "another server answers", func() bool {
				old.grow(1 << 20) // whenever the baseline is taken, this becomes more
				_, ok := w.events.find(runtime.EventRestart)
				return ok
			})
			e, _ := w.events.find(runtime.EventGrowth)
			if stated := strings.Contains(e.Message, "inference stops"); stated != (name == "after") || !strings.Contains(e.Message, "more than the 50 MiB") {
				t.Errorf("told %q", e.Message)
			}
			want := map[string]string{"beside": "skein-a-x", "after": "skein-a"}[name]
			if got := w.answers(t, ""); got != want {
				t.Errorf("%s answers, want %s", got, want)
			}
			await(t, "the old one is gone", func() bool { return w.farm.count() == 1 })
			list, err := w.Servers(t.Context())
			if err != nil || len(list) != 1 || list[0].Restarts != 1 || list[0].State != "ready" {
				t.Errorf("servers %+v %v", list, err)
			}
		})
	}
}

// TestOutOfMemory: a server that the kernel ended is told as such, with figures,
// and is started again.
func TestOutOfMemory(t *testing.T) {
	w := newWorld(t)
	if err := errors.Join(w.Load(t.Context(), workload("a")), w.Switch(t.Context(), "a")); err != nil {
		t.Fatal(err)
	}
	w.farm.get(t, "skein-a").end(Exit{Code: -1, Signal: "killed", OOM: true, Peak: 812 << 20, Limit: 800 << 20, Tail: []string{"allocating", ""}})
	await(t, "it answers again", func() bool { _, ok := w.events.find(runtime.EventRestart); return ok })
	e, ok := w.events.find(runtime.EventOOM)
	const want = "the server ended: oom: the kernel ended it for memory, 812 MiB at its peak, its limit is 800 MiB; its last line: allocating"
	if !ok || e.Message != want {
		t.Errorf("told %q", e.Message)
	}
	w.answers(t, "")
	list, err := w.Servers(t.Context())
	if err != nil || !strings.HasPrefix(list[0].LastExit, "oom: ") || list[0].Restarts != 1 {
		t.Errorf("servers %+v %v", list, err)
	}
}

// TestHung: a server that stops being ready is started again.
func TestHung(t *testing.T) {
	w := newWorld(t)
	if err := errors.Join(w.Load(t.Context(), workload("a")), w.Switch(t.Context(), "a")); err != nil {
		t.Fatal(err)
	}
	i := w.farm.get(t, "skein-a")
	i.mu.Lock()
	i.hung = true
	i.mu.Unlock()
	await(t, "it is started again", func() bool { _, ok := w.events.find(runtime.EventRestart); return ok })
	if e, ok := w.events.find(runtime.EventHung); !ok || !strings.Contains(e.Message, "6 looks in a row") {
		t.Errorf("told %+v", e)
	}
	w.answers(t, "")
}

// TestBadStarts: each ends the load with its cause and leaves nothing.
func TestBadStarts(t *testing.T) {
	for name, c := range map[string]struct {
		how  behaviour
		is   error
		want string
	}{
		"exits at once":       {behaviour{exit: &Exit{Code: 3, Tail: []string{"no such library: libnvinfer.so.10"}}}, nil, "exit status 3; its last line: no such library: libnvinfer.so.10"},
		"cannot run here":     {behaviour{exit: &Exit{Code: ExitIncompatible}}, runtime.ErrIncompatible, "exit status 65"},
		"no memory":           {behaviour{exit: &Exit{Code: ExitNoCapacity}}, runtime.ErrNoCapacity, "exit status 71"},
		"the machine is full": {behaviour{exit: &Exit{Code: -1, Signal: "killed", OOM: true}}, runtime.ErrNoCapacity, "oom"},
		"over its own limit":  {behaviour{exit: &Exit{Code: -1, Signal: "killed", OOM: true, Limit: 1 << 20}}, nil, "its limit is 1 MiB"},
		"never ready":         {behaviour{never: true}, context.DeadlineExceeded, "last answer"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.farm.behave(c.how)
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			err := w.Load(ctx, workload("a"))
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
			if c.is == nil && (errors.Is(err, runtime.ErrNoCapacity) || errors.Is(err, runtime.ErrIncompatible)) {
				t.Errorf("graded: %v", err)
			}
			left, _ := os.ReadDir(w.opts.Dir)
			if list, _ := w.List(t.Context()); len(list) != 0 || w.farm.count() != 0 || len(left) != 0 {
				t.Errorf("left: %v, %d servers, %v", list, w.farm.count(), left)
			}
		})
	}
}

// TestStuck: a server that cannot be stopped stays in the list until it can.
func TestStuck(t *testing.T) {
	w := newWorld(t)
	if err := w.Load(t.Context(), workload("a")); err != nil {
		t.Fatal(err)
	}
	w.farm.behave(behaviour{stuck: true})
	if err := w.Unload(t.Context(), "a"); err == nil {
		t.Fatal("it says that it was unloaded")
	}
	if list, err := w.List(t.Context()); err != nil || len(list) != 1 || list[0].Ready {
		t.Fatalf("list: %+v %v", list, err)
	}
	w.farm.behave(behaviour{})
	if err := w.Unload(t.Context(), "a"); err != nil || w.farm.count() != 0 {
		t.Errorf("%v, %d run", err, w.farm.count())
	}
}

// TestAdmission: a declared need is asked for beside what is loaded.
func TestAdmission(t *testing.T) {
	w := newWorld(t)
	w.free = 100 << 20
	big := workload("big")
	big.MemoryMiB = 200
	if err := w.Load(t.Context(), workload("a")); err != nil {
		t.Fatal(err)
	}
	if err := w.Load(t.Context(), big); !errors.Is(err, runtime.ErrNoCapacity) || !strings.Contains(err.Error(), "needs 200 MiB beside what is loaded, 100 MiB") {
		t.Errorf("beside another: %v", err)
	}
	if err := w.Unload(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := w.Load(t.Context(), big); err != nil {
		t.Errorf("alone: %v", err)
	}
	huge := workload("huge")
	huge.MemoryMiB = 1 << 21
	if err := w.Load(t.Context(), huge); !errors.Is(err, runtime.ErrNoCapacity) || !strings.Contains(err.Error(), "the device has") {
		t.Errorf("more than there is: %v", err)
	}
}

// TestOverGRPC: a server that is told a gRPC port only is asked there, with the
// datatype that its model takes.
func TestOverGRPC(t *testing.T) {
	w := newWorld(t)
	w.farm.behave(behaviour{grpc: true})
	load := workload("a")
	load.Spec = &manifest.Workload{Args: []string{"{grpc}"}}
	if err := errors.Join(w.Load(t.Context(), load), w.Switch(t.Context(), "a")); err != nil {
		t.Fatal(err)
	}
	ask := func(data ...float32) (runtime.Response, error) {
		return w.Infer(t.Context(), "", runtime.Request{ID: "q", Inputs: []runtime.Tensor{{Name: "x", Shape: []int64{1, int64(len(data))}, Data: data}}})
	}
	got, err := ask(-3, 500)
	if err != nil || got.ID != "q" || got.ModelName != "m" || got.ModelVersion != "3" || !slices.Equal(got.Outputs[0].Data, []float32{497}) {
		t.Errorf("got %+v %v", got, err)
	}
	if _, err := ask(1, 2, 3); !errors.Is(err, runtime.ErrBadRequest) {
		t.Errorf("a request that the server refuses: %v", err)
	}
	if _, err := ask(0.5, 1); !errors.Is(err, kserve.ErrBadTensor) {
		t.Errorf("what is no whole number: %v", err)
	}
	if e, release, err := w.Acquire(t.Context(), ""); err != nil || e.GRPC == "" || e.HTTP != "" {
		t.Errorf("endpoint %+v %v", e, err)
	} else {
		release()
	}
}

func TestByImage(t *testing.T) {
	containers, processes := newFarm(), newFarm()
	image := workload("c")
	image.Spec = &manifest.Workload{Image: &manifest.Image{}, Args: []string{"{http}"}}
	rt := New(options(nil, t.TempDir()))
	rt.opts.Launcher = ByImage{Image: containers, Plain: processes}
	if err := errors.Join(rt.Load(t.Context(), image), rt.Load(t.Context(), workload("p"))); err != nil {
		t.Fatal(err)
	}
	if containers.count() != 1 || processes.count() != 1 {
		t.Errorf("%d containers, %d processes", containers.count(), processes.count())
	}
	containers.keep, processes.keep = false, false
	if err := rt.Close(); err != nil {
		t.Fatal(err)
	}
	for have, w := range map[*ByImage]runtime.Workload{{Plain: processes}: image, {Image: containers}: workload("p")} {
		rt := New(options(nil, t.TempDir()))
		rt.opts.Launcher = *have
		if err := rt.Load(t.Context(), w); !errors.Is(err, runtime.ErrIncompatible) {
			t.Errorf("%s: got %v", w.ID, err)
		}
	}
}

// TestRender: placeholders, environment and parameters.
func TestRender(t *testing.T) {
	w := runtime.Workload{ID: "i", Model: "m", Version: "3", Dir: "/d", ModelFile: "m.onnx", Params: map[string]string{"camera.url": "rtsp://x", "A-b": "{http}"}}
	g := &Generation{Name: "skein-i", Workload: w, Ports: Ports{"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"},
		args: []string{"serve", "{http}|{addr}|{grpc}|{metrics}", "{http-port}{grpc-port}{metrics-port}", "{dir}/{model-file}", "{model}@{version}#{id}", "{repository}"},
		env:  map[string]string{"PORT": "{http-port}"}}
	s := render(g, Start{Args: []string{"--more={dir}"}, Dirs: []string{"/r"}, Repository: "/r"}, map[string]string{"l": "v"})
	want := []string{"serve", "127.0.0.1:1|127.0.0.1:1|127.0.0.1:2|127.0.0.1:3", "123", "/d/m.onnx", "m@3#i", "/r", "--more=/d"}
	if !slices.Equal(s.Args, want) {
		t.Errorf("args %q", s.Args)
	}
	if env := []string{"PORT=1", "SKEIN_PARAM_A_B={http}", "SKEIN_PARAM_CAMERA_URL=rtsp://x"}; !slices.Equal(s.Env, env) {
		t.Errorf("environment %q", s.Env)
	}
	if !slices.Equal(s.Dirs, []string{"/d", "/r"}) || s.Name != "skein-i" || s.Labels["l"] != "v" {
		t.Errorf("spec %+v", s)
	}
	if got := fmt.Sprint(serverName("ABC_def.9")); got != "skein-abc-def-9" {
		t.Errorf("name %s", got)
	}
}
