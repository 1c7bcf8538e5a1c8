package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/skein-fleet/skein/sim/plane"
)

// AgentOptions say what to measure.
type AgentOptions struct {
	Skeind   []string // command that starts skeind
	Agent    string   // the shipped binary
	Many     int      // real agents in one process; 0 leaves that out
	Sim      []string // command that runs a fleet, skein-sim
	Watch    time.Duration
	Settle   time.Duration
	Progress func(format string, args ...any)
}

// Goals of the agent's footprint.
const (
	agentMemoryGoal = 30   // MiB
	agentCPUGoal    = 3    // ms of processor time a second at 1 Hz
	orinSlower      = 2.5  // how much slower an Orin core is than this one, an estimate
	agentSizeGoal   = 25   // MB, arm64
	manyMemoryGoal  = 4096 // MiB
	onlineTimeout   = 4 * time.Minute
)

// agentRun is one measurement.
type agentRun struct {
	o       AgentOptions
	dir     string
	plane   *plane.Plane
	figures []Figure
}

// Agent measures the shipped agent, enrolled at a local skeind and idle, and
// many real agents in one process.
func Agent(ctx context.Context, o AgentOptions) (figures []Figure, err error) {
	dir, err := os.MkdirTemp("", "skein-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a data folder: %w", err)
	}
	defer os.RemoveAll(dir)
	r := &agentRun{o: o, dir: dir}
	if r.plane, err = plane.Child(ctx, o.Skeind, filepath.Join(dir, "skeind")); err != nil {
		return nil, err
	}
	defer r.plane.Close()
	if err := r.sizes(); err != nil {
		return nil, err
	}
	if err := r.one(ctx); err != nil {
		return r.figures, err
	}
	if err := r.coldBoot(ctx); err != nil {
		return r.figures, err
	}
	if o.Many > 0 {
		if err := r.many(ctx); err != nil {
			return r.figures, err
		}
	}
	return r.figures, nil
}

func (r *agentRun) add(f Figure) {
	r.figures = append(r.figures, f)
	r.o.Progress("%s", f)
}

// sizes are those of the binaries: the one that runs here, and the one for
// arm64 where it was built beside it.
func (r *agentRun) sizes() error {
	st, err := os.Stat(r.o.Agent)
	if err != nil {
		return fmt.Errorf("find the agent: %w", err)
	}
	r.add(figure("agent_binary", float64(st.Size())/1e6, "MB"))
	arm := filepath.Join(filepath.Dir(r.o.Agent), "arm64", filepath.Base(r.o.Agent))
	if st, err := os.Stat(arm); err == nil {
		r.add(figure("agent_binary_arm64", float64(st.Size())/1e6, "MB").atMost(agentSizeGoal))
		return r.bill(arm)
	}
	return r.bill(r.o.Agent)
}

// program is a child of the benchmark with its output in a file.
type program struct {
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{}
}

func (r *agentRun) start(name string, args ...string) (*program, error) {
	log, err := os.Create(filepath.Join(r.dir, filepath.Base(name)+".log"))
	if err != nil {
		return nil, fmt.Errorf("open a log: %w", err)
	}
	p := &program{cmd: exec.Command(name, args...), log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", name, err), log.Close())
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // its end is what is waited for; the log says why
	}()
	return p, nil
}

func (p *program) stop() {
	_ = p.cmd.Process.Signal(os.Interrupt)
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	_ = p.log.Close()
}

// ended is the error of a program that ended too early.
func (p *program) ended() error {
	raw, err := os.ReadFile(p.log.Name())
	return errors.Join(fmt.Errorf("%s ended: %.2000s", p.cmd.Path, raw[max(0, len(raw)-2000):]), err)
}

// awaitOnline waits until so many devices are online.
func (r *agentRun) awaitOnline(ctx context.Context, p *program, n int) error {
	ctx, cancel := context.WithTimeoutCause(ctx, onlineTimeout, fmt.Errorf("%d devices are not online after %s", n, onlineTimeout))
	defer cancel()
	op := r.plane.Operator()
	for {
		devices, err := op.Devices(ctx, "state=online")
		if err == nil && len(devices) >= n {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-p.done:
			return p.ended()
		case <-time.After(time.Second):
		}
	}
}

// one measures the shipped agent: 1 Hz telemetry, its spool on disk, nothing to do.
func (r *agentRun) one(ctx context.Context) error {
	claim, err := r.plane.Operator().Claim(ctx, 1, nil)
	if err != nil {
		return err
	}
	state := filepath.Join(r.dir, "agent")
	p, err := r.start(r.o.Agent, "run", "--state", state, "--socket", filepath.Join(r.dir, "agent.sock"), "--runtime", "mock",
		"--server", r.plane.DeviceURL, "--claim", claim, "--name", "bench")
	if err != nil {
		return err
	}
	defer p.stop()
	if err := r.awaitOnline(ctx, p, 1); err != nil {
		return err
	}
	pid := p.cmd.Process.Pid
	r.o.Progress("the agent is online, it is watched for %s", r.o.Watch)
	before, err := cpuSeconds(pid)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-p.done:
		return p.ended()
	case <-time.After(r.o.Watch):
	}
	after, err := cpuSeconds(pid)
	if err != nil {
		return err
	}
	rss, err := settle(ctx, pid, r.o.Settle)
	if err != nil {
		return err
	}
	r.add(figure("agent_rss", rss/1024, "MiB").atMost(agentMemoryGoal))
	cpu := 1000 * (after - before) / r.o.Watch.Seconds()
	r.add(figure("agent_cpu", cpu, "ms_per_s").atMost(agentCPUGoal))
	r.add(figure("agent_cpu_orin_core_estimate", cpu*orinSlower, "ms_per_s"))
	return nil
}

// many measures real agents that share a process.
func (r *agentRun) many(ctx context.Context) error {
	claim, err := r.plane.Operator().Claim(ctx, r.o.Many, nil)
	if err != nil {
		return err
	}
	args := append(append([]string(nil), r.o.Sim[1:]...), "run", "--devices", strconv.Itoa(r.o.Many), "--server", r.plane.DeviceURL,
		"--claim", claim, "--per-second", "0", "--block-every", "1m", "--data", filepath.Join(r.dir, "many"))
	start := time.Now()
	p, err := r.start(r.o.Sim[0], args...)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := r.awaitOnline(ctx, p, r.o.Many); err != nil {
		return err
	}
	r.add(figure("many_agents_online_after", time.Since(start).Seconds(), "s"))
	rss, err := settle(ctx, p.cmd.Process.Pid, r.o.Settle)
	if err != nil {
		return err
	}
	r.add(figure("many_agents", float64(r.o.Many), "agents"))
	r.add(figure("many_agents_rss", rss/1024, "MiB").atMost(manyMemoryGoal * float64(r.o.Many) / 1000))
	r.add(figure("many_agents_rss_each", rss/float64(r.o.Many), "KiB"))
	return nil
}
