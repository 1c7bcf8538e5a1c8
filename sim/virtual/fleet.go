package virtual

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/sim/fault"
	"github.com/skein-fleet/skein/sim/fault/shaper"
	"github.com/skein-fleet/skein/sim/fault/strike"
	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/meter/digits"
	"github.com/skein-fleet/skein/sim/meter/engine"
)

// Pace says how often the agents of a fleet do things; zero fields take the
// agent's own defaults.
type Pace struct {
	TelemetryEvery, BlockEvery, Heartbeat, CheckEvery time.Duration
	HeatRate                                          float64 // of the boards, 1 when zero
}

// Brisk is a pace for runs of seconds.
func Brisk() Pace {
	return Pace{TelemetryEvery: 500 * time.Millisecond, BlockEvery: time.Second, Heartbeat: 3 * time.Second,
		CheckEvery: 500 * time.Millisecond, HeatRate: 20}
}

// FleetOptions describe a fleet.
type FleetOptions struct {
	Devices   int
	Mix       jetson.Mix
	Seed      uint64
	Dir       string // of the devices' disks
	ServerURL string
	// Claim returns a claim token for devices with these labels; it is asked
	// once for each set of labels.
	Claim     func(ctx context.Context, labels map[string]string) (string, error)
	Network   func(number int) shaper.Profile // nil: no line is bad
	Digits    *digits.Set                     // nil: no application runs
	PerSecond int
	Pace      Pace
	// Servers makes the model servers of a device that really run on this
	// machine, nil for a device whose server is modelled; nil: all are.
	Servers func(number int) func() (agent.Servers, error)
	Logger  *slog.Logger
}

// Fleet is a number of devices that share one process.
type Fleet struct {
	o       FleetOptions
	devices []*Device
	models  []string
	disks   []*slot.Dir
}

// NewFleet makes the devices; they boot in Run. Close gives their disks back.
func NewFleet(ctx context.Context, o FleetOptions) (*Fleet, error) {
	f := &Fleet{o: o, models: o.Mix.Assign(o.Devices, o.Seed)}
	claims := map[string]string{}
	models := &engine.Models{}
	for i, key := range f.models {
		d, err := f.add(ctx, i+1, key, claims, models)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		f.devices = append(f.devices, d)
	}
	return f, nil
}

func (f *Fleet) add(ctx context.Context, number int, key string, claims map[string]string, models *engine.Models) (*Device, error) {
	o := f.o
	labels := Labels(number)
	group := fmt.Sprint(labels)
	claim, ok := claims[group]
	if !ok {
		var err error
		if claim, err = o.Claim(ctx, labels); err != nil {
			return nil, err
		}
		claims[group] = claim
	}
	files, err := slot.OpenDir(filepath.Join(o.Dir, fmt.Sprintf("%04d", number)))
	if err != nil {
		return nil, err
	}
	f.disks = append(f.disks, files)
	var line shaper.Profile
	if o.Network != nil {
		line = o.Network(number)
	}
	var servers func() (agent.Servers, error)
	if o.Servers != nil {
		servers = o.Servers(number)
	}
	return New(Options{
		Servers: servers, Number: number, Model: key, Seed: o.Seed, Labels: labels, ServerURL: o.ServerURL, Claim: claim, Files: files,
		Models: models, Digits: o.Digits, PerSecond: o.PerSecond, Network: line, Logger: o.Logger,
		TelemetryEvery: o.Pace.TelemetryEvery, BlockEvery: o.Pace.BlockEvery, Heartbeat: o.Pace.Heartbeat, CheckEvery: o.Pace.CheckEvery,
		HeatRate: o.Pace.HeatRate,
	})
}

// Close gives the disks back; Run must have ended.
func (f *Fleet) Close() error {
	var errs []error
	for _, d := range f.disks {
		errs = append(errs, d.Close())
	}
	f.disks = nil
	return errors.Join(errs...)
}

// Devices are the devices, device n at n-1.
func (f *Fleet) Devices() []*Device { return f.devices }

// Run boots all devices and runs them until ctx ends, or one of them fails.
func (f *Fleet) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var wg sync.WaitGroup
	for _, d := range f.devices {
		wg.Go(func() {
			if err := d.Run(ctx); err != nil {
				stop(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// Pick returns the devices that are meant; draws come from the fleet's seed
// and salt.
func (f *Fleet) Pick(d fault.Devices, salt uint64) []*Device {
	var out []*Device
	for _, n := range d.Pick(f.models, f.o.Seed^salt*0x9e3779b97f4a7c15) {
		out = append(out, f.devices[n-1])
	}
	return out
}

// Suffer puts a fault onto the devices that it means, keeps it for its time,
// and ends it. It begins now, whatever its At, and returns when the fault is
// over or ctx has ended. note is told what happens.
func (f *Fleet) Suffer(ctx context.Context, x fault.Fault, salt uint64, note func(string)) {
	strike.On(ctx, f.Pick(x.Devices, salt), x, f.o.Seed^salt, note)
}
