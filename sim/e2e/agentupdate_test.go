package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/sim/meter/engine"
)

// serveModel is the model server that the shipped agent starts in these tests.
func serveModel(args []string) error {
	f := flag.NewFlagSet("serve-model", flag.ContinueOnError)
	w := runtime.Workload{Format: "onnx"}
	addr := f.String("addr", "", "")
	f.StringVar(&w.Dir, "dir", "", "")
	f.StringVar(&w.ModelFile, "model-file", "", "")
	f.StringVar(&w.Model, "model", "", "")
	f.StringVar(&w.Version, "version", "", "")
	if err := f.Parse(args); err != nil {
		return err
	}
	w.ID = w.Model
	e := engine.New(engine.Options{})
	if err := errors.Join(e.Load(context.Background(), w), e.Switch(context.Background(), w.ID)); err != nil {
		return err
	}
	return http.ListenAndServe(*addr, kserve.NewHandler(kserve.Options{Inferer: e, Models: e.Served, Name: "e2e"}))
}

// program builds a Go program and returns its bytes.
func program(t *testing.T, dir, version, source string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	args := []string{"build", "-trimpath", "-ldflags", "-s -w -X main.version=" + version, "-o", out}
	if source != "" {
		dir = t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "main.go")
	} else {
		args = append(args, ".")
	}
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, text)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// supervised is the shipped agent under its supervisor.
type supervised struct {
	t    *testing.T
	args []string
	log  *os.File
	cmd  *exec.Cmd
}

func (p *supervised) start() {
	p.t.Helper()
	p.cmd = exec.Command(p.args[0], p.args[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// kill ends supervisor, agent and what they started at once.
func (p *supervised) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	_ = p.cmd.Wait() // says that it was killed
}

// TestAgentSelfUpdate runs the shipped agent through updates of itself: a good
// one, one that crashes at its start, one that hangs, and a good one with
// everything killed again and again.
func TestAgentSelfUpdate(t *testing.T) {
	if testing.Short() || goruntime.GOOS != "linux" {
		t.Skip("builds the shipped agent, linux only")
	}
	t.Parallel()
	s := start(t)
	const source = "../../agent/cmd/skein-agent"
	factory, dir := filepath.Join(t.TempDir(), "skein-agent"), t.TempDir()
	if err := os.WriteFile(factory, program(t, source, "1.0.0", ""), 0o700); err != nil {
		t.Fatal(err)
	}
	target := []string{"linux/" + goruntime.GOARCH}
	s.release("v1", version{bias: 1, targets: target})
	s.release("v2", version{bias: 2, targets: target, agent: program(t, source, "2.0.0", "")})
	s.release("v3", version{bias: 3, targets: target, agent: program(t, "", "", `package main

import "os"

func main() {
	os.Stderr.WriteString("the frobnicator is missing\n")
	os.Exit(3)
}
`)})
	s.release("v4", version{bias: 4, targets: target, agent: program(t, "", "", `package main

import "time"

func main() { time.Sleep(time.Hour) }
`)})
	s.release("v5", version{bias: 5, targets: target, agent: program(t, source, "3.0.0", "")})
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			raw, _ := os.ReadFile(log.Name())
			t.Logf("the agent's log ends with\n%s", raw[max(0, len(raw)-8000):])
		}
		log.Close()
	})
	p := &supervised{t: t, log: log, args: []string{factory, "supervise", "--state", filepath.Join(dir, "state"), "--trial-deadline", "6s", "--restart-after", "100ms", "--",
		"--server", s.url, "--claim", s.claim(1), "--name", "cam", "--socket", filepath.Join(dir, "sock"), "--heartbeat", "2s",
		"--model-command", os.Args[0] + " serve-model --addr {addr} --dir {dir} --model-file {model-file} --model {model} --version {version}"}}
	p.start()
	t.Cleanup(p.kill)
	get := func() *fleetv1.Device {
		r, err := s.op.Fleet.GetDevice(t.Context(), &fleetv1.GetDeviceRequest{Device: "cam"})
		if err != nil {
			return &fleetv1.Device{}
		}
		return r.GetDevice()
	}
	until(t, "the device to enrol", func() bool { return get().GetId() != "" })
	arrive := func(release, agent, slot string) {
		t.Helper()
		untilFor(t, 3*patience, fmt.Sprintf("%s under agent %s in slot %s", release, agent, slot), func() bool {
			d := get()
			return d.GetRunningReleaseName() == "meter@"+release && d.GetDesiredReleaseName() == d.GetRunningReleaseName() && d.GetPhase() == "idle" &&
				d.GetAgentVersion() == agent && d.GetAgentSlots().GetActive() == slot && d.GetAgentSlots().GetTrial() == ""
		})
	}
	fail := func(release, cause, agent, slot string) {
		t.Helper()
		s.assign("cam", release)
		untilFor(t, 3*patience, release+" to fail: "+cause, func() bool {
			d := get()
			return d.GetPhase() == "failed" && strings.Contains(d.GetFailure(), cause) && d.GetDesiredReleaseName() == "meter@"+release &&
				d.GetRunningReleaseName() == "meter@v2" && d.GetAgentVersion() == agent && d.GetAgentSlots().GetActive() == slot && d.GetFailureClass() == "FAILED"
		})
	}
	s.assign("cam", "v1")
	arrive("v1", "1.0.0", "factory")
	s.assign("cam", "v2")
	arrive("v2", "2.0.0", "a")
	fail("v3", "the frobnicator is missing", "2.0.0", "a")
	fail("v4", "did not check in within 6s", "2.0.0", "a")
	s.assign("cam", "v5")
	for range 4 {
		time.Sleep(rand.N(1200 * time.Millisecond)) // the moment of the cut is what is tested
		p.kill()
		p.start()
	}
	arrive("v5", "3.0.0", "b")
	if d := get(); d.GetAgentSlots().GetPrevious() != "a" || d.GetAgentSlots().GetDigest() == "" {
		t.Errorf("slots %v", d.GetAgentSlots())
	}
}
