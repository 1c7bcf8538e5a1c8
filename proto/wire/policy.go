package wire

import "fmt"

// Policy says when and how fast a device may bring and apply releases. Absent
// parts do not bind.
type Policy struct {
	// Download and Apply are when bytes of a release may come, and when it may
	// be put to work: while all schedules of the list are open.
	Download []Schedule `cbor:"1,keyasint,omitempty"`
	Apply    []Schedule `cbor:"2,keyasint,omitempty"`
	// Zone is where days and months of allowances are counted: a name of the tz
	// database, empty for the device's own zone.
	Zone string `cbor:"3,keyasint,omitempty"`
	// Metered are patterns of the names of network interfaces, with * and ?,
	// behind which each byte costs.
	Metered    []string    `cbor:"4,keyasint,omitempty"`
	Allowances []Allowance `cbor:"5,keyasint,omitempty"`
	// Rate bounds downloads, in bytes per second.
	Rate int64 `cbor:"6,keyasint,omitempty"`
	// Reserve is how many bytes of the disk a release leaves free.
	Reserve int64 `cbor:"7,keyasint,omitempty"`
	// Now lets this generation wait for no window and no allowance, by the word
	// of an operator.
	Now bool `cbor:"8,keyasint,omitempty"`
	// Power is how the board should run; absent parts stay as they are.
	Power *PowerWish `cbor:"9,keyasint,omitempty"`
	// MaxHold is how many seconds at most applications may hold an update off; 0
	// leaves it to the agent, -1 allows none.
	MaxHold int64 `cbor:"10,keyasint,omitempty"`
	// EngineFit is what an engine needs at least: "loadable", which it also is
	// when empty, or "optimal".
	EngineFit string `cbor:"11,keyasint,omitempty"`
}

// Schedule is weekly windows, in the form of package ota/window, in a zone;
// empty for the device's own.
type Schedule struct {
	Windows string `cbor:"1,keyasint"`
	Zone    string `cbor:"2,keyasint,omitempty"`
}

// LinkClass is what a network costs.
type LinkClass uint8

// The classes.
const (
	Unmetered LinkClass = 1
	Metered   LinkClass = 2
)

// String returns the class's name.
func (c LinkClass) String() string {
	switch c {
	case Unmetered:
		return "unmetered"
	case Metered:
		return "metered"
	}
	return fmt.Sprintf("class %d", uint8(c))
}

// Period is a time over which bytes are counted.
type Period uint8

// The periods, of the calendar in the policy's zone.
const (
	PerDay   Period = 1
	PerMonth Period = 2
)

// String returns the period's name.
func (p Period) String() string {
	switch p {
	case PerDay:
		return "day"
	case PerMonth:
		return "month"
	}
	return fmt.Sprintf("period %d", uint8(p))
}

// Allowance is how many bytes may come over links of a class in a period.
type Allowance struct {
	Class  LinkClass `cbor:"1,keyasint"`
	Period Period    `cbor:"2,keyasint"`
	Bytes  int64     `cbor:"3,keyasint"`
}

// WaitKind is what an update waits for.
type WaitKind uint8

// The kinds.
const (
	WaitsForDownloadWindow WaitKind = 1
	WaitsForApplyWindow    WaitKind = 2
	WaitsForAllowance      WaitKind = 3
	WaitsForHold           WaitKind = 4 // an application holds it off
)

// String returns the kind's name.
func (k WaitKind) String() string {
	switch k {
	case WaitsForDownloadWindow:
		return "download window"
	case WaitsForApplyWindow:
		return "apply window"
	case WaitsForAllowance:
		return "allowance"
	case WaitsForHold:
		return "hold of an application"
	}
	return fmt.Sprintf("wait %d", uint8(k))
}

// PolicyState is what a device's policy makes of its update.
type PolicyState struct {
	// Interface is that of the default route, Class what it costs.
	Interface string    `cbor:"1,keyasint,omitempty"`
	Class     LinkClass `cbor:"2,keyasint"`
	Zone      string    `cbor:"3,keyasint"` // the device's own
	Used      []Usage   `cbor:"4,keyasint,omitempty"`
	// Waits is absent when nothing waits; Until is then unix seconds of when
	// it may go on, 0 when that is not in sight.
	Waits WaitKind `cbor:"5,keyasint,omitempty"`
	Until int64    `cbor:"6,keyasint,omitempty"`
	// Holds are those of applications, whether something waits or not.
	Holds []Hold `cbor:"7,keyasint,omitempty"`
}

// Hold is an application that holds updates off.
type Hold struct {
	Owner  string `cbor:"1,keyasint" json:"owner"`
	Reason string `cbor:"2,keyasint" json:"reason"`
	Since  int64  `cbor:"3,keyasint" json:"since"` // unix seconds of the device's clock
	Until  int64  `cbor:"4,keyasint" json:"until"`
}

// Usage is what was taken of one allowance.
type Usage struct {
	Class  LinkClass `cbor:"1,keyasint"`
	Period Period    `cbor:"2,keyasint"`
	Name   string    `cbor:"3,keyasint"` // the day or month, as 2026-11-24 or 2026-11
	Bytes  int64     `cbor:"4,keyasint"` // counted before they came
	Limit  int64     `cbor:"5,keyasint"`
}
