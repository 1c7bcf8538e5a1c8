package play

import (
	"context"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/sim/fault"
	"github.com/skein-fleet/skein/sim/virtual"
)

// Fleet is the devices of a run. A fleet of package virtual is one; package hil
// has another.
type Fleet interface {
	// Run boots all devices and runs them until ctx ends, or one of them fails.
	Run(ctx context.Context) error
	Devices() []Device
	Pick(d fault.Devices, salt uint64) []Device
	// Suffer puts a fault onto devices and returns when it is over.
	Suffer(ctx context.Context, x fault.Fault, salt uint64, note func(string))
	// Close gives back what the fleet holds; Run must have ended.
	Close() error
}

// Device is one device as a scenario sees it.
type Device interface {
	Name() string
	Number() int
	ID() string // empty before it is enrolled
	// Work says what the application on it did so far.
	Work() virtual.Work
	// Serves reports whether the release is committed there and answers.
	Serves(ctx context.Context, release ota.Digest) bool
	Throttled() bool
	Dead() bool
	// Acknowledged are the events that the control plane has taken, where the
	// device lets that be seen.
	Acknowledged() []wire.Event
	// SetInterface changes the network interface of the default route.
	SetInterface(name string)
	// ApplyBundle gives the agent a bundle file that somebody carried there.
	ApplyBundle(ctx context.Context, path string) error
}

// virtualFleet is a fleet of virtual devices.
type virtualFleet struct{ *virtual.Fleet }

func newVirtualFleet(ctx context.Context, o virtual.FleetOptions) (Fleet, error) {
	f, err := virtual.NewFleet(ctx, o)
	if err != nil {
		return nil, err
	}
	return virtualFleet{f}, nil
}

// Devices implements Fleet.
func (f virtualFleet) Devices() []Device { return cast(f.Fleet.Devices()) }

// Pick implements Fleet.
func (f virtualFleet) Pick(d fault.Devices, salt uint64) []Device { return cast(f.Fleet.Pick(d, salt)) }

func cast[D Device](devices []D) []Device {
	out := make([]Device, len(devices))
	for i, d := range devices {
		out[i] = d
	}
	return out
}
