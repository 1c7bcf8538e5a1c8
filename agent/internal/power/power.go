// Package power keeps a board in the power mode, clocks and fan profile that its
// policy wants, and says what holds it back: heat, over-current, under-voltage.
// Modes are known by their names, since ids mean different things on different
// modules; what was set is read back. It owns the port to the board (Board), the
// driver of the vendor's tools, the judgement of counters (by rate, for some
// climb in normal work) and the headroom that heavy steps wait for.
//
// Invariants: nothing is set without a wish; the machine is restarted for a mode
// at most once for each wish, and only where the wish and the caller allow it;
// waiting for headroom is bounded. The root of the agent module imports it.
package power

import (
	"context"
	"errors"
	"time"

	"github.com/skein-fleet/skein/proto/wire"
)

// Errors of a Board, wrapped.
var (
	// ErrNeedsReboot is returned by SetMode for a mode that comes with a restart
	// of the machine, when restart is false.
	ErrNeedsReboot = errors.New("the power mode needs a restart of the machine")
	// ErrUnknown is returned for a mode or profile that the board does not have.
	ErrUnknown = errors.New("the board does not have it")
	// ErrUnsupported is returned for what this board cannot set.
	ErrUnsupported = errors.New("this board cannot set it")
)

// Board is the part of a machine that decides how fast it runs.
type Board interface {
	// Read says how the board runs now. What cannot be read is left out.
	Read(ctx context.Context) (Reading, error)
	// SetMode changes the power mode by name. With restart it may restart the
	// machine for it, and then may not return.
	SetMode(ctx context.Context, name string, restart bool) error
	SetClocks(ctx context.Context, c wire.Clocks) error
	SetFan(ctx context.Context, profile string) error
}

// Reading is how a board runs.
type Reading struct {
	Mode  string
	Modes []string
	// Clocks is 0 when that is not known.
	Clocks wire.Clocks
	Fan    string
	Zones  []Zone
	// Coolers are the kernel's throttling devices that are at work now.
	Coolers []string
	// OverCurrent are the events of each counter since the start of the machine.
	OverCurrent map[string]uint64
	Rails       []Rail
}

// Zone is a thermal zone with the lowest temperature at which it slows the
// board down, 0 when that is not known.
type Zone struct {
	Name       string
	MilliC     int64
	TripMilliC int64
}

// Rail is the supply of the module.
type Rail struct {
	Name      string
	MilliVolt int64
	// Least is the limit that the board itself names, 0 for none.
	Least int64
}

// sample is a reading at a time.
type sample struct {
	at time.Time
	Reading
}
