package hil

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	agentlocalv1 "github.com/skein-fleet/skein/proto/gen/skein/agentlocal/v1"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/sim/fault/shaper"
	"github.com/skein-fleet/skein/sim/hil/board"
	"github.com/skein-fleet/skein/sim/hil/line"
	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/virtual"
)

// machine is where the agent of a device runs.
type machine interface {
	// start starts the agent. What it returns ends with it.
	start(ctx context.Context) (*process, error)
	// carry brings a file there and returns its name there.
	carry(ctx context.Context, file string) (string, error)
	// close takes away what was put there.
	close() error
}

// process is a running agent.
type process struct {
	done chan struct{} // closed when it and what it started have ended
	err  error         // why; read it after done
	kill func()        // at once, with all that it started
	stop func()        // in order
}

// Device is one device. Its methods are safe for concurrent use.
type Device struct {
	o       Options
	fleet   virtual.FleetOptions
	n       int
	labels  map[string]string
	claim   string
	dir     string // files
	sockets string // a short folder for sockets
	board   *board.Board
	line    *line.Line
	profile shaper.Profile
	machine machine

	mu      sync.Mutex // guards what follows
	process *process
	id      string
	downFor time.Duration
	killed  bool
	starts  int
	cuts    int
	holes   int
	blocks  int
	work    work
	booted  time.Time                    // when the agent that runs was started
	boot    time.Duration                // from a start to the first answer, the latest
	seen    *agentlocalv1.StatusResponse // latest answer of the agent that runs
	seenAt  time.Time
}

func (d *Device) state() string  { return filepath.Join(d.dir, "state") }
func (d *Device) socket() string { return filepath.Join(d.sockets, "agent.sock") }

// Name implements play.Device.
func (d *Device) Name() string { return fmt.Sprintf("cam-%03d", d.n) }

// Number implements play.Device.
func (d *Device) Number() int { return d.n }

// Starts is how often the agent was started.
func (d *Device) Starts() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.starts
}

// Boot is the time from the latest start of the agent to the first answer that an
// application got, up to a quarter of a second too long; 0 before there was one.
func (d *Device) Boot() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.boot
}

// Labels are those that the device enrols with.
func (d *Device) Labels() map[string]string { return maps.Clone(d.labels) }

// plugLine makes the network line.
func (d *Device) plugLine() (err error) {
	https := ""
	if u, err := url.Parse(d.fleet.ServerURL); err == nil {
		https = u.Port()
	}
	d.line, err = line.New("127.0.0.1:0", line.Options{Hosts: hosts(), Profile: d.profile, Seed: draw(d.fleet.Seed, d.n), HTTPS: https})
	return err
}

// server is the control plane as the device calls it.
func (d *Device) server() string {
	u, err := url.Parse(d.fleet.ServerURL)
	if err != nil {
		return d.fleet.ServerURL
	}
	u.Host = Host + ":" + u.Port()
	return u.String()
}

// Run keeps the device going until ctx ends.
func (d *Device) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop(nil)
	part := func(run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				stop(err)
			}
		})
	}
	part(d.line.Run)
	if d.board != nil {
		part(d.board.Run)
	}
	wg.Go(func() { d.apply(ctx) })
	err := d.live(ctx)
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		err = cause
	}
	return err
}

// tooOften is how many ends of the agent that nobody caused are an error.
const tooOften = 5

// live starts the agent again and again.
func (d *Device) live(ctx context.Context) error {
	crashes := 0
	for ctx.Err() == nil {
		p, err := d.machine.start(ctx)
		if err != nil {
			return err
		}
		d.mu.Lock()
		d.process, d.killed, d.booted = p, false, time.Now()
		d.starts++
		d.mu.Unlock()
		select {
		case <-p.done:
		case <-ctx.Done():
			p.stop()
			<-p.done
		}
		d.mu.Lock()
		d.process, d.seen = nil, nil
		down, killed := d.downFor, d.killed
		d.downFor = 0
		d.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
		if !killed {
			if crashes++; crashes == tooOften {
				return fmt.Errorf("the agent ended by itself %d times: %w", crashes, cmp.Or(p.err, errors.New("exit status 0")))
			}
			down = max(down, time.Second) // as its service manager does
		}
		wait(ctx, down)
		if d.board != nil && killed {
			d.board.Off(down)
			if err := d.board.PowerOn(); err != nil {
				return err
			}
		}
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// Kill takes the power away for so long: kill -9 of the agent and of what it
// started.
func (d *Device) Kill(down time.Duration) {
	d.mu.Lock()
	p := d.process
	if p != nil && !d.killed {
		d.killed, d.downFor = true, down
	}
	d.mu.Unlock()
	if p != nil {
		p.kill()
	}
}

// rebootTime is how long a board is off when it restarts.
const rebootTime = 300 * time.Millisecond

func (d *Device) reboot() { d.Kill(rebootTime) }

// status asks the agent, at most five times a second.
func (d *Device) status(ctx context.Context) *agentlocalv1.StatusResponse {
	d.mu.Lock()
	st, fresh, runs := d.seen, time.Since(d.seenAt) < 200*time.Millisecond, d.process != nil
	d.mu.Unlock()
	if fresh || !runs {
		return st
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	st, err := d.local().Status(ctx, &agentlocalv1.StatusRequest{})
	if err != nil {
		st = nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen, d.seenAt = st, time.Now()
	d.id = cmp.Or(st.GetDevice().GetId(), d.id)
	return st
}

// ID implements play.Device.
func (d *Device) ID() string {
	d.mu.Lock()
	id := d.id
	d.mu.Unlock()
	if id == "" {
		id = d.status(context.Background()).GetDevice().GetId()
	}
	return id
}

// Serves implements play.Device: the agent says that the release is committed,
// and its workload answered the application last.
func (d *Device) Serves(ctx context.Context, release ota.Digest) bool {
	st := d.status(ctx).GetDevice()
	if st.GetRunningRelease() != string(release) || st.GetPhase() == wire.PhaseUpdating.String() {
		return false
	}
	return d.answers(release)
}

// Throttled implements play.Device.
func (d *Device) Throttled() bool { return d.model((*jetson.Board).Throttled) }

// Dead implements play.Device.
func (d *Device) Dead() bool { return d.model((*jetson.Board).Dead) }

func (d *Device) model(ask func(*jetson.Board) bool) (yes bool) {
	if d.board != nil {
		_ = d.board.With(func(b *jetson.Board) { yes = ask(b) }) // nothing is written
	}
	return yes
}

// Acknowledged implements play.Device: what passes between agent and control
// plane is theirs, so nothing is known.
func (d *Device) Acknowledged() []wire.Event { return nil }

// SetInterface implements play.Device.
func (d *Device) SetInterface(name string) {
	if d.board != nil {
		if err := d.board.SetRoute(name); err != nil {
			d.o.Logger.Warn("set the default route", "device", d.Name(), "error", err)
		}
	}
}

// ApplyBundle implements play.Device.
func (d *Device) ApplyBundle(ctx context.Context, file string) error {
	path, err := d.machine.carry(ctx, file)
	if err != nil {
		return err
	}
	_, err = d.local().ApplyBundle(ctx, &agentlocalv1.ApplyBundleRequest{Path: path, NoWait: true})
	return err
}

// flags are those that the agent is started with; the paths are where it runs.
func (d *Device) flags(state, socket, claimFile, serve, bin string) []string {
	args := []string{"run", "--state", state, "--socket", socket, "--server", d.server(), "--claim", "@" + claimFile, "--name", d.Name(),
		"--model-command", serve, "--fetcher", "none", "--peer-listen", "127.0.0.1:0", "--timezone", "UTC",
		"--heartbeat", d.fleet.Pace.Heartbeat.String(), "--sample-every", d.fleet.Pace.TelemetryEvery.String(),
		"--block-every", d.fleet.Pace.BlockEvery.String(), "--check-every", d.fleet.Pace.CheckEvery.String()}
	for _, k := range slices.Sorted(maps.Keys(d.labels)) {
		args = append(args, "--label", k+"="+d.labels[k])
	}
	if bin != "" {
		args = append(args, "--root", d.board.Root(), "--nvbootctrl", filepath.Join(bin, "nvbootctrl"), "--nvpmodel", filepath.Join(bin, "nvpmodel"), "--reboot-command", filepath.Join(bin, "reboot"))
		for _, w := range []string{filepath.Join(bin, "tegrastats"), "--interval", "500"} {
			args = append(args, "--tegrastats", w)
		}
	}
	return args
}

// serveCommand is the server of models, skein-sim.
func serveCommand(program string) string {
	return strings.Join([]string{program, "serve-model", "--addr", "{addr}", "--dir", "{dir}", "--model-file", "{model-file}",
		"--model", "{model}", "--version", "{version}"}, " ")
}
