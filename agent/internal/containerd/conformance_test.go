package containerd

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/runtimetest"
	"github.com/skein-fleet/skein/ota/manifest"
)

var input = runtime.Tensor{Name: "x", Shape: []int64{1, 3}, Data: []float32{1, 2, 4}}

// served is a workload that answers with its input times factor.
func served(id string, img manifest.Image, factor int, more ...string) runtime.Workload {
	return runtime.Workload{ID: id, Model: "m", Version: id, Spec: &manifest.Workload{
		Image: &img, Args: append([]string{"serve", "-addr", "{http}", "-model", "{model}", "-version", "{version}", "-factor", strconv.Itoa(factor)}, more...),
	}}
}

func (l *lab) runtime(c *Launcher) *serving.Runtime {
	rt := serving.New(serving.Options{Launcher: serving.ByImage{Image: c}, Dir: filepath.Join(l.Dir, "servers"),
		ReadyEvery: 10 * time.Millisecond, RestartMin: 50 * time.Millisecond, LookEvery: 200 * time.Millisecond})
	l.Cleanup(func() { rt.Close() })
	return rt
}

func TestConformance(t *testing.T) {
	l := newLab(t)
	c := l.ready()
	runtimetest.Run(t, func(t *testing.T) (runtime.Runtime, runtimetest.Fixtures) {
		rt := serving.New(serving.Options{Launcher: serving.ByImage{Image: keepOpen{c}}, Dir: filepath.Join(t.TempDir(), "servers"), ReadyEvery: 10 * time.Millisecond})
		t.Cleanup(func() {
			list, err := rt.List(context.Background())
			for _, s := range list {
				err = errors.Join(err, rt.Unload(context.Background(), s.ID))
			}
			if err := errors.Join(err, rt.Close()); err != nil {
				t.Error(err)
			}
		})
		return rt, runtimetest.Fixtures{
			A: served("a", l.img, 2), B: served("b", l.img, 3), Bad: served("bad", l.img, 1, "-bad"),
			Input: input, Tolerance: 1e-6, WantA: []float32{2, 4, 8}, WantB: []float32{3, 6, 12},
		}
	})
	l.empty(c)
}

// keepOpen is one launcher for many runtimes.
type keepOpen struct{ *Launcher }

func (keepOpen) Close() error { return nil }

// TestNeverReady ends a server that starts and never answers.
func TestNeverReady(t *testing.T) {
	l := newLab(t)
	c := l.ready()
	rt := serving.New(serving.Options{Launcher: serving.ByImage{Image: c}, Dir: filepath.Join(l.Dir, "servers"), ReadyEvery: 10 * time.Millisecond})
	t.Cleanup(func() { rt.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := rt.Load(ctx, served("a", l.img, 1, "-never-ready")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("load: %v", err)
	}
	l.empty(c)
}

// agentEnv makes the test binary an agent: what it needs, in JSON.
const agentEnv = "SKEIN_TEST_CONTAINERD_AGENT"

type agentSetup struct {
	Options Options
	Servers string
	Image   manifest.Image
}

func TestMain(m *testing.M) {
	if raw := os.Getenv(agentEnv); raw != "" {
		fmt.Fprintln(os.Stderr, beAgent(raw))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// beAgent holds a workload in its desired state and writes a line for each time
// that the daemon and the workload answered.
func beAgent(raw string) error {
	var s agentSetup
	if err := json.Unmarshal([]byte(raw), &s); err != nil {
		return err
	}
	c, err := New(s.Options)
	if err != nil {
		return err
	}
	rt := serving.New(serving.Options{Launcher: serving.ByImage{Image: c}, Dir: s.Servers,
		ReadyEvery: 10 * time.Millisecond, RestartMin: 50 * time.Millisecond, LookEvery: 200 * time.Millisecond})
	ctx := context.Background()
	for range time.Tick(20 * time.Millisecond) {
		if err := hold(ctx, c, rt, s.Image); err != nil {
			fmt.Println("not yet:", strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		fmt.Println("ok")
	}
	return nil
}

func hold(ctx context.Context, c *Launcher, rt *serving.Runtime, img manifest.Image) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	w := served("w", img, 2)
	if err := rt.Load(ctx, w); err != nil {
		return err
	}
	if err := rt.Switch(ctx, w.ID); err != nil {
		return err
	}
	resp, err := rt.Infer(ctx, "", runtime.Request{ID: "r", Inputs: []runtime.Tensor{input}})
	if err != nil {
		return err
	}
	if len(resp.Outputs) != 1 || resp.Outputs[0].Data[2] != 8 {
		return fmt.Errorf("answers %v", resp.Outputs)
	}
	_, _, err = c.dial(ctx)
	return err
}

// child is an agent in a process of its own.
type child struct {
	cmd  *exec.Cmd
	ok   atomic.Int64 // lines
	last atomic.Value
	done chan struct{}
}

func (l *lab) agent() *child {
	l.Helper()
	o := l.opts
	o.Logger = nil
	raw, err := json.Marshal(agentSetup{Options: o, Servers: filepath.Join(l.Dir, "servers"), Image: l.img})
	if err != nil {
		l.Fatal(err)
	}
	c := &child{cmd: exec.Command(os.Args[0]), done: make(chan struct{})}
	c.last.Store("")
	c.cmd.Env = append(os.Environ(), agentEnv+"="+string(raw))
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r, w := io.Pipe()
	c.cmd.Stdout, c.cmd.Stderr = w, w
	if err := c.cmd.Start(); err != nil {
		l.Fatal(err)
	}
	go func() {
		for s := bufio.NewScanner(r); s.Scan(); {
			if s.Text() == "ok" {
				c.ok.Add(1)
			} else {
				c.last.Store(s.Text())
			}
		}
		close(c.done)
	}()
	l.Cleanup(func() { c.kill(); w.Close() })
	return c
}

func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}

// containers are the first processes of what runs, by runc's own state.
func (l *lab) containers() map[string]int {
	l.Helper()
	out := map[string]int{}
	files, err := filepath.Glob(filepath.Join(l.Runc, "skein", "*", "state.json"))
	if err != nil {
		l.Fatal(err)
	}
	for _, f := range files {
		var s struct {
			Pid int `json:"init_process_pid"`
		}
		raw, err := os.ReadFile(f)
		if err != nil {
			continue // it ended now
		}
		if err := json.Unmarshal(raw, &s); err == nil && alive(uint32(s.Pid)) {
			out[filepath.Base(filepath.Dir(f))] = s.Pid
		}
	}
	return out
}

// TestKills kills agent, container and daemon in random order, alone and
// together, and looks each time whether the desired state is reached again.
func TestKills(t *testing.T) {
	rounds := 12
	if n, err := strconv.Atoi(os.Getenv("SKEIN_KILLS")); err == nil {
		rounds = n
	}
	l := newLab(t)
	l.ready().Close()
	random := rand.New(rand.NewPCG(7, uint64(rounds)))
	agent := l.agent()
	reached := func(why string) {
		t.Helper()
		seen := agent.ok.Load()
		l.until(why, func() bool { return agent.ok.Load() > seen+1 || t.Failed() })
		if n := len(l.containers()); n != 1 {
			t.Fatalf("%s: %d containers run", why, n)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("the agent wrote last: ", agent.last.Load())
		}
	})
	reached("start")
	began := time.Now()
	for i := range rounds {
		what := random.IntN(6)
		why := fmt.Sprintf("kill %d of kind %d", i, what)
		pid := 0
		for _, p := range l.containers() {
			pid = p
		}
		if what == 2 || what >= 4 {
			l.Down()
		}
		if what == 1 || what == 3 || what == 5 {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			l.until("the container's process is gone", func() bool { return !alive(uint32(pid)) })
		}
		if what == 0 || what == 3 || what == 4 {
			agent.kill()
			agent = l.agent()
		}
		if what == 2 || what >= 4 {
			l.Up()
		}
		reached(why)
	}
	agent.kill()
	took := time.Since(began)
	c := l.launcher()
	rt := l.runtime(c)
	if err := rt.Load(t.Context(), served("w", l.img, 2)); err != nil {
		t.Fatal(err)
	}
	if err := rt.Unload(t.Context(), "w"); err != nil {
		t.Fatal(err)
	}
	l.empty(c)
	if err := c.KeepImages(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if n := l.snapshots(c); n != 0 {
		t.Errorf("%d snapshots are left", n)
	}
	verdict := map[bool]string{true: "short", false: "ok"}[t.Failed()]
	fmt.Printf("figure containerd_kills %d of_%d %d %s\n", rounds, rounds, rounds, verdict)
	fmt.Printf("figure containerd_kill_recovery %d ms 10000 %s\n", took.Milliseconds()/int64(cmp.Or(rounds, 1)), verdict)
}
