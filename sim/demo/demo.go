// Package demo tells Skein's main job as a story that runs: a control plane, a
// fleet of virtual Jetsons on the real agent, a model trained and rolled out, a
// wrong and a slow version caught in the canary and taken back. It owns the
// story, its spec and its report; the skein-sim program imports it.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/skein-fleet/skein/ota/gate"
	"github.com/skein-fleet/skein/sim/fault/shaper"
	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/meter/digits"
	"github.com/skein-fleet/skein/sim/operator"
	"github.com/skein-fleet/skein/sim/plane"
	"github.com/skein-fleet/skein/sim/virtual"
)

// Options say how the demo runs.
type Options struct {
	Devices  int
	Mix      jetson.Mix
	Seed     uint64
	HTTPAddr string // of API and dashboard; empty: any free port
	DataDir  string // empty: a temporary one, removed at the end
	Digits   string // folder of the digits; empty looks for them
	Report   string // file for the report as JSON; empty writes none
	Once     bool   // end after the story instead of waiting for ctx
	// Containers is how many of the devices run their models in real containers.
	Containers int
	Out        io.Writer
	Logger     *slog.Logger
}

// Timeout bounds the story; a fleet that has not done it by then has a fault.
const Timeout = 3 * time.Minute

var (
	errTimeout = fmt.Errorf("the story took more than %s", Timeout)
	errDone    = errors.New("the story is told")
)

// story is one run.
type story struct {
	o       Options
	op      *operator.Operator
	fleet   *virtual.Fleet
	boxes   *boxes // nil without containers
	digits  *digits.Digits
	started time.Time
	report  Report
}

// Run tells the story. It returns nil when everything came as it should.
func Run(ctx context.Context, o Options) (err error) {
	if o.DataDir == "" {
		if o.DataDir, err = os.MkdirTemp("", "skein-demo-"); err != nil {
			return fmt.Errorf("make a data folder: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.DataDir)) }()
	}
	s := &story{o: o, started: time.Now()}
	if s.digits, err = digits.Load(ctx, o.Digits); err != nil {
		return err
	}
	if o.Containers > 0 {
		if s.boxes, err = openBoxes(ctx, o); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.boxes.Close()) }()
		s.say("containerd is up, with a folder of its own; image %s of this program: %s", s.boxes.image.Manifest.Digest.Short(), gate.Figure(float64(s.boxes.bytes()), "bytes"))
	}
	p, err := plane.InProcess(ctx, filepath.Join(o.DataDir, "skeind"), o.HTTPAddr, o.Logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	s.op = p.Operator()
	s.say("control plane is up: %s", p.URL)
	if err := s.plugIn(ctx, p.DeviceURL); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.fleet.Close()) }()

	g, running := errgroup.WithContext(ctx)
	g.Go(func() error { return s.fleet.Run(running) })
	g.Go(func() error {
		told, cancel := context.WithTimeoutCause(running, Timeout, errTimeout)
		defer cancel()
		if err := s.tell(told); err != nil {
			if c := context.Cause(told); c != nil && !errors.Is(err, c) {
				err = fmt.Errorf("%w; at that moment: %w", c, err)
			}
			return err
		}
		if err := s.finish(running, p.URL, p.Token); err != nil {
			return err
		}
		if !o.Once {
			fmt.Fprintln(o.Out, "\nRunning on. Ctrl-C ends it.")
			<-running.Done()
		}
		return errDone // ends the fleet
	})
	if err := g.Wait(); err != nil && !errors.Is(err, errDone) {
		return err
	}
	return nil
}

// say prints a line with the time since the start.
func (s *story) say(format string, args ...any) {
	fmt.Fprintf(s.o.Out, "%6.1fs  %s\n", time.Since(s.started).Seconds(), fmt.Sprintf(format, args...))
}

// plugIn makes the devices; they enrol by themselves, with one claim token for
// each set of labels.
func (s *story) plugIn(ctx context.Context, server string) (err error) {
	s.fleet, err = virtual.NewFleet(ctx, virtual.FleetOptions{
		Devices: s.o.Devices, Mix: s.o.Mix, Seed: s.o.Seed, Dir: filepath.Join(s.o.DataDir, "devices"), ServerURL: server,
		Claim: func(ctx context.Context, labels map[string]string) (string, error) {
			return s.op.Claim(ctx, s.o.Devices, labels)
		},
		Network: func(number int) shaper.Profile {
			if number <= s.o.Containers {
				return shaper.Profile{} // this machine's own line, for an image of many MiB
			}
			return virtual.Networks[number%len(virtual.Networks)]
		},
		Servers: s.boxes.servers,
		Digits:  &s.digits.Test, PerSecond: 8, Logger: s.o.Logger,
		Pace: virtual.Pace{TelemetryEvery: time.Second, BlockEvery: 2 * time.Second, Heartbeat: 10 * time.Second, CheckEvery: time.Second},
	})
	if err != nil {
		return err
	}
	if s.boxes != nil {
		s.say("%d devices are plugged in whose models run in containers on this machine", s.o.Containers)
	}
	s.say("%d virtual Jetsons are plugged in: %s", len(s.fleet.Devices())-s.o.Containers, s.o.Mix)
	return nil
}
