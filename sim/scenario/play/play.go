// Package play runs scenarios: it executes a scenario.Script against a control
// plane and a fleet of virtual devices, measures what the script asks about,
// and says of each expectation whether it held. It owns the course of a run
// and its log of events.
//
// Invariants: the run acts on the control plane only as a person does, over
// its public API, save for faults (killing its process, damaging a blob on its
// disk); expectations are judged from the devices' own state and from what the
// control plane says, never from what the run did. The packages of sim import it.
package play

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/skein-fleet/skein/controlplane"
	"github.com/skein-fleet/skein/sim/fault/shaper"
	"github.com/skein-fleet/skein/sim/operator"
	"github.com/skein-fleet/skein/sim/plane"
	"github.com/skein-fleet/skein/sim/scenario"
	"github.com/skein-fleet/skein/sim/virtual"
)

// Options say where a script runs.
type Options struct {
	Dir      string // for all data
	Workshop *Workshop
	// Skeind returns the command that starts skeind; it is asked when the
	// script kills it. Other scripts run the control plane in this process.
	Skeind func() ([]string, error)
	// Fleet makes the devices; nil makes virtual ones.
	Fleet func(context.Context, virtual.FleetOptions) (Fleet, error)
	// Host is the name under which devices reach the control plane; empty is
	// its address.
	Host string
	// Stretch multiplies the script's own times (steps, deadlines, how long faults
	// last), for machines too slow to run it at its pace; 0 means 1.
	Stretch float64
	Events  io.Writer // gets a line for everything that happens; nil: none
	Logger  *slog.Logger
}

const (
	plugInTimeout = 90 * time.Second
	lookEvery     = 200 * time.Millisecond
	perSecond     = 8
	resend        = time.Second // 30 s in the field
	// patience bounds what a person does while the control plane is away.
	patience = 60 * time.Second
)

// stage is one run.
type stage struct {
	o        Options
	script   *scenario.Script
	plane    *plane.Plane
	op       *operator.Operator
	fleet    Fleet
	start    time.Time
	verdicts []Verdict
	seen     snapshot // the latest look

	mu       sync.Mutex // guards what follows
	made     map[string]*made
	order    []string          // names of releases as they were made
	rollouts map[string]string // release -> id of its rollout
}

// made is a release that the run has made.
type made struct {
	defect  scenario.Defect
	digest  string
	name    string // name@version
	version string // of its model, as devices tell it
}

// Run executes a script. The error is of the run itself; whether the
// expectations held is in the Result.
func Run(ctx context.Context, script *scenario.Script, o Options) (r *Result, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Events == nil {
		o.Events = io.Discard
	}
	if o.Stretch <= 0 {
		o.Stretch = 1
	}
	s := &stage{o: o, script: script, start: time.Now(), made: map[string]*made{}, rollouts: map[string]string{}}
	s.verdicts = newVerdicts(script)
	if s.plane, err = s.startPlane(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.plane.Close()) }()
	s.op = s.plane.Operator()
	if err := s.plugIn(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.fleet.Close()) }()

	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop(nil)
	wg.Go(func() {
		if err := s.fleet.Run(ctx); err != nil {
			stop(err)
		}
	})
	if err := s.awaitFleet(ctx); err != nil {
		return nil, because(ctx, err)
	}
	s.start = time.Now()
	s.note("the fleet is online: %d devices, seed %d", script.Devices, script.Seed)
	if err := s.perform(ctx, stop); err != nil {
		return nil, because(ctx, err)
	}
	return s.result(), nil
}

// because prefers what ended ctx over the error that came of it.
func because(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	return err
}

func (s *stage) startPlane(ctx context.Context) (*plane.Plane, error) {
	dir := filepath.Join(s.o.Dir, "skeind")
	kills := false
	for _, step := range s.script.Steps {
		_, restart := step.Action.(scenario.Restart)
		kills = kills || restart
	}
	if !kills {
		return plane.InProcess(ctx, dir, "", s.o.Logger, func(c *controlplane.Config) { c.Resend, c.PublicHost = resend, s.o.Host })
	}
	if s.o.Skeind == nil {
		return nil, errors.New("the script kills skeind, and there is no skeind to start")
	}
	command, err := s.o.Skeind()
	if err != nil {
		return nil, err
	}
	if s.o.Host != "" {
		command = append(command, "--public-host", s.o.Host)
	}
	return plane.Child(ctx, command, dir)
}

// plugIn makes the devices.
func (s *stage) plugIn(ctx context.Context) (err error) {
	x := s.script
	newFleet := s.o.Fleet
	if newFleet == nil {
		newFleet = newVirtualFleet
	}
	s.fleet, err = newFleet(ctx, virtual.FleetOptions{
		Devices: x.Devices, Mix: x.Mix, Seed: x.Seed, Dir: filepath.Join(s.o.Dir, "devices"), ServerURL: s.plane.DeviceURL,
		Claim: func(ctx context.Context, labels map[string]string) (string, error) {
			return s.op.Claim(ctx, x.Devices, labels)
		},
		Network: s.network(), Digits: s.o.Workshop.test, PerSecond: perSecond, Pace: virtual.Brisk(), Logger: s.o.Logger,
	})
	return err
}

// network gives each device the last line that the script has for it.
func (s *stage) network() func(int) shaper.Profile {
	lines := map[int]shaper.Profile{}
	models := s.script.Mix.Assign(s.script.Devices, s.script.Seed)
	for _, n := range s.script.Networks {
		for _, device := range n.Devices.Pick(models, s.script.Seed^uint64(n.Line)) {
			lines[device] = n.Profile
		}
	}
	return func(n int) shaper.Profile { return lines[n] }
}

// awaitFleet waits until the control plane sees every device online, with what
// it runs on.
func (s *stage) awaitFleet(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, plugInTimeout, fmt.Errorf("the fleet is not online after %s", plugInTimeout))
	defer cancel()
	for {
		devices, err := s.op.Devices(ctx, "state=online")
		if err == nil && len(devices) == s.script.Devices {
			return nil
		}
		if !sleep(ctx, lookEvery) {
			return fmt.Errorf("%w: %d of %d are (%v)", context.Cause(ctx), len(devices), s.script.Devices, err)
		}
	}
}

// stretched turns a time of the script into one of this machine.
func (s *stage) stretched(d time.Duration) time.Duration {
	return time.Duration(float64(d) * s.o.Stretch)
}

// now is the time of the script.
func (s *stage) now() time.Duration {
	return time.Duration(float64(time.Since(s.start)) / s.o.Stretch)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// perform plays the steps and looks at the expectations until the run is over.
func (s *stage) perform(ctx context.Context, stop context.CancelCauseFunc) error {
	var steps sync.WaitGroup
	hands := make(chan scenario.Step, len(s.script.Steps)) // what a person does, one thing after another
	steps.Go(func() {
		for step := range hands {
			if err := s.do(ctx, step); err != nil && ctx.Err() == nil {
				stop(fmt.Errorf("line %d: %w", step.Line, err))
			}
		}
	})
	steps.Go(func() {
		defer close(hands)
		for _, step := range s.script.Steps {
			if !sleep(ctx, time.Until(s.start.Add(s.stretched(step.At)))) {
				return
			}
			if f, ok := step.Action.(scenario.Fault); ok {
				x := f.Fault
				x.For, x.Every, x.Down, x.Sync = s.stretched(x.For), s.stretched(x.Every), s.stretched(x.Down), s.stretched(x.Sync)
				steps.Go(func() {
					s.fleet.Suffer(ctx, x, uint64(step.Line), func(text string) { s.note("line %d: %s", step.Line, text) })
				})
				continue
			}
			hands <- step
		}
	})
	done := make(chan struct{})
	go func() {
		steps.Wait()
		close(done)
	}()
	err := s.watch(ctx, done)
	if err != nil {
		stop(err)
	}
	select {
	case <-done:
	default: // the length is over: what is still to come does not
		stop(nil)
		<-done
	}
	return err
}

// watch looks until the run is over, and judges what is asked at its end.
func (s *stage) watch(ctx context.Context, done <-chan struct{}) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		now := s.now()
		if s.script.Length > 0 && now >= s.script.Length || s.script.Length == 0 && closed(done) && s.decided() {
			s.look(ctx, now)
			s.countLost(ctx)
			s.judge(now, true)
			return context.Cause(ctx)
		}
		s.look(ctx, now)
		s.judge(now, false)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// note writes a line to the log of events.
func (s *stage) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.o.Events, "%8.3fs  %s\n", s.now().Seconds(), fmt.Sprintf(format, args...))
}
