package wire

import "fmt"

// PowerWish is how a board should run. Modes and profiles have names: ids mean
// different things on different modules.
type PowerWish struct {
	Mode   string `cbor:"1,keyasint,omitempty"` // of nvpmodel, as MAXN or 15W
	Clocks Clocks `cbor:"2,keyasint,omitempty"`
	Fan    string `cbor:"3,keyasint,omitempty"` // profile, as quiet or cool
	// Reboot lets the agent restart the machine for a mode that needs it, when a
	// release could be applied.
	Reboot bool `cbor:"4,keyasint,omitempty"`
}

// Clocks is what jetson_clocks does.
type Clocks uint8

// What clocks may be.
const (
	ClocksDynamic Clocks = 1
	ClocksLocked  Clocks = 2 // at their highest
)

// String returns the name.
func (c Clocks) String() string {
	switch c {
	case ClocksDynamic:
		return "dynamic"
	case ClocksLocked:
		return "locked"
	}
	return fmt.Sprintf("clocks %d", uint8(c))
}

// Power is how a board runs.
type Power struct {
	Mode   string   `cbor:"1,keyasint,omitempty"`
	Modes  []string `cbor:"2,keyasint,omitempty"` // that it has
	Wanted string   `cbor:"3,keyasint,omitempty"` // by the policy
	// NeedsReboot says that the wanted mode comes with a restart of the machine.
	NeedsReboot bool   `cbor:"4,keyasint,omitempty"`
	Clocks      Clocks `cbor:"5,keyasint,omitempty"`
	Fan         string `cbor:"6,keyasint,omitempty"`
	// Throttle is what holds the board back now.
	Throttle []Throttle `cbor:"7,keyasint,omitempty"`
	// Headroom is how many thousandths of a kelvin the zone that is nearest to its
	// trip is below it, Zone its name.
	Headroom int64  `cbor:"8,keyasint,omitempty"`
	Zone     string `cbor:"9,keyasint,omitempty"`
	// OverCurrent are the counters of the board's power monitor since its start.
	OverCurrent []OverCurrent `cbor:"10,keyasint,omitempty"`
}

// Throttle is one reason why a board runs slower than it could.
type Throttle struct {
	Name   string `cbor:"1,keyasint"` // heat, over-current, under-voltage
	Detail string `cbor:"2,keyasint"`
}

// OverCurrent is one counter of events.
type OverCurrent struct {
	Name    string `cbor:"1,keyasint"` // as oc3
	Count   uint64 `cbor:"2,keyasint"`
	PerHour uint64 `cbor:"3,keyasint"` // as of late
}

// Crash is the payload of up/log: what is known of a start that ended without
// having been stopped. It is sent once.
type Crash struct {
	ID MessageID `cbor:"1,keyasint"`
	// Number grows with each start of the agent that left one.
	Number uint64 `cbor:"2,keyasint"`
	Kind   string `cbor:"3,keyasint"` // agent (the machine went on) or machine
	// Time is when it was last known to run, Found when it was found, unix
	// milliseconds of the device's clock.
	Time       int64       `cbor:"4,keyasint"`
	Found      int64       `cbor:"5,keyasint"`
	Agent      string      `cbor:"6,keyasint,omitempty"` // version that ran
	Panic      string      `cbor:"7,keyasint,omitempty"`
	Log        []string    `cbor:"8,keyasint,omitempty"`
	Tegrastats []string    `cbor:"9,keyasint,omitempty"`
	Journal    []StepEntry `cbor:"10,keyasint,omitempty"`
	Exits      []string    `cbor:"11,keyasint,omitempty"` // of model servers
}
