// Package hil runs scenarios on the shipped agent: each device is the agent's
// binary as a process of its own, on a modelled board that package board shows
// to it by files and executables, or on a real board by ssh. It owns the life of
// these processes, their network lines and the applications that ask them.
//
// Invariants: the agent is started as a person starts it, by its flags and its
// environment, and looked at from the outside only (its unix socket, its answers
// to applications, the control plane); what a scenario asks for and a device
// cannot do is refused before the run, never left out. Only sim's commands
// import it.
package hil

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/skein-fleet/skein/sim/fault"
	"github.com/skein-fleet/skein/sim/fault/strike"
	"github.com/skein-fleet/skein/sim/hil/board"
	"github.com/skein-fleet/skein/sim/jetson/rootfs"
	"github.com/skein-fleet/skein/sim/scenario/play"
	"github.com/skein-fleet/skein/sim/virtual"
)

// Host is the name by which devices call the control plane. It leads there over
// the device's line only.
const Host = "plane.skein.local"

// Options say what a fleet runs.
type Options struct {
	Agent    string   // the shipped binary
	Emulator []string // command before it, for another architecture
	// Program serves models (serve-model) and is the boards' executables: skein-sim.
	Program string
	// JetPack of the boards, by name or L4T; empty is that of each board model.
	// Boards that it was not made for keep theirs.
	JetPack string
	// Boards are real ones, ssh://user@host; device n is the one at n modulo
	// their number. Empty: all are modelled.
	Boards []string
	SSH    SSHOptions
	Logger *slog.Logger
}

// Fleet is devices that are processes of their own.
type Fleet struct {
	o       virtual.FleetOptions
	devices []*Device
	models  []string
	dir     string // of the sockets
}

// New returns what makes fleets for play.Options.
func New(o Options) func(context.Context, virtual.FleetOptions) (play.Fleet, error) {
	return func(ctx context.Context, fo virtual.FleetOptions) (play.Fleet, error) {
		f, err := newFleet(ctx, o, fo)
		if err != nil {
			return nil, err
		}
		return f, nil
	}
}

func newFleet(ctx context.Context, o Options, fo virtual.FleetOptions) (_ *Fleet, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Fleet{o: fo, models: fo.Mix.Assign(fo.Devices, fo.Seed)}
	if f.dir, err = os.MkdirTemp("", "hil"); err != nil { // a socket's path is short
		return nil, fmt.Errorf("make a folder for sockets: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	claims := map[string]string{}
	for n := 1; n <= fo.Devices; n++ {
		labels := virtual.Labels(n)
		group := fmt.Sprint(labels)
		if _, ok := claims[group]; !ok {
			if claims[group], err = fo.Claim(ctx, labels); err != nil {
				return nil, err
			}
		}
		d, err := f.newDevice(o, n, labels, claims[group])
		if err != nil {
			return nil, fmt.Errorf("device %d: %w", n, err)
		}
		f.devices = append(f.devices, d)
	}
	return f, nil
}

func (f *Fleet) newDevice(o Options, n int, labels map[string]string, claim string) (*Device, error) {
	dir, err := filepath.Abs(filepath.Join(f.o.Dir, fmt.Sprintf("%04d", n)))
	if err != nil {
		return nil, err
	}
	d := &Device{o: o, fleet: f.o, n: n, labels: labels, claim: claim, dir: dir, sockets: filepath.Join(f.dir, fmt.Sprint(n))}
	for _, p := range []string{d.state(), d.sockets} {
		if err := os.MkdirAll(p, 0o700); err != nil {
			return nil, fmt.Errorf("make the device's folders: %w", err)
		}
	}
	if f.o.Network != nil {
		d.profile = f.o.Network(n)
	}
	if err := d.plugLine(); err != nil {
		return nil, err
	}
	if len(o.Boards) > 0 {
		r, err := newRemote(d, o.Boards[(n-1)%len(o.Boards)])
		if err != nil {
			return nil, errors.Join(err, d.line.Close())
		}
		d.machine = r
		return d, nil
	}
	if err := d.makeBoard(f.models[n-1]); err != nil {
		return nil, err
	}
	d.machine = &local{d: d}
	return d, nil
}

// makeBoard makes the modelled board of a model's key.
func (d *Device) makeBoard(key string) error {
	if key == "x86" { // the machine itself
		return nil
	}
	m, err := rootfs.FindModule(key)
	if err != nil {
		return err
	}
	jp, err := rootfs.FindJetPack(d.o.JetPack, m)
	if errors.Is(err, rootfs.ErrNoPair) {
		jp, err = rootfs.FindJetPack("", m)
	}
	if err != nil {
		return err
	}
	d.board, err = board.New(board.Options{Dir: d.dir, Socket: filepath.Join(d.sockets, "board"), Module: m, JetPack: jp,
		Seed: draw(d.fleet.Seed, d.n), HeatRate: d.fleet.Pace.HeatRate, Program: d.o.Program, Reboot: d.reboot})
	return err
}

// Devices implements play.Fleet.
func (f *Fleet) Devices() []play.Device { return cast(f.devices) }

// Pick implements play.Fleet.
func (f *Fleet) Pick(d fault.Devices, salt uint64) []play.Device { return cast(f.pick(d, salt)) }

func (f *Fleet) pick(d fault.Devices, salt uint64) (out []*Device) {
	for _, n := range d.Pick(f.models, f.o.Seed^salt*0x9e3779b97f4a7c15) {
		out = append(out, f.devices[n-1])
	}
	return out
}

func cast(devices []*Device) []play.Device {
	out := make([]play.Device, len(devices))
	for i, d := range devices {
		out[i] = d
	}
	return out
}

// Suffer implements play.Fleet.
func (f *Fleet) Suffer(ctx context.Context, x fault.Fault, salt uint64, note func(string)) {
	strike.On(ctx, f.pick(x.Devices, salt), x, f.o.Seed^salt, note)
}

// Run implements play.Fleet.
func (f *Fleet) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	for _, d := range f.devices {
		wg.Go(func() {
			if err := d.Run(ctx); err != nil {
				stop(fmt.Errorf("device %s: %w", d.Name(), err))
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// Close implements play.Fleet.
func (f *Fleet) Close() error {
	var errs []error
	for _, d := range f.devices {
		errs = append(errs, d.machine.close(), d.line.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(f.dir))...)
}

// hosts is the table of the devices' lines.
func hosts() map[string]string { return map[string]string{Host: "127.0.0.1"} }

// draw gives each device of a fleet a seed of its own.
func draw(seed uint64, n int) uint64 { return seed ^ uint64(n)*0x9e3779b97f4a7c15 }
