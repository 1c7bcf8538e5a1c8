// Package scenario is the language of fleet scenarios: what fleet, what happens
// to it when, and what must then be true. It owns the grammar (README.md), the
// parser and the syntax tree; it runs nothing. The engine of skein-sim executes
// a Script against real agents.
//
// Invariants: a parsed Script is valid by itself (names, numbers, ranges), its
// steps are in order of time, and Parse(script.String()) gives it again. Only
// sim imports it.
package scenario

import (
	"time"

	"github.com/skein-fleet/skein/sim/fault"
	"github.com/skein-fleet/skein/sim/fault/shaper"
	"github.com/skein-fleet/skein/sim/jetson"
)

// Script is one scenario.
type Script struct {
	Devices int
	Mix     jetson.Mix
	Seed    uint64
	// Length is when the run ends at the latest; 0 means when every step is
	// done and every expectation with a time is decided.
	Length   time.Duration
	Networks []Network // in order; a later one overrides an earlier one
	Steps    []Step    // in order of At, then of the file
	Expects  []Expect  // in the order of the file
}

// Network gives devices a line.
type Network struct {
	Line    int
	Devices fault.Devices
	Profile shaper.Profile
}

// Step is something that happens at a time.
type Step struct {
	Line   int
	At     time.Duration
	Action Action
}

// Action is one of Fault, Release, Rollout, Control, Restart.
type Action interface{ text() string }

// Fault makes something go wrong; its At is the step's.
type Fault struct{ fault.Fault }

// Defect says how a release is bad.
type Defect string

// The defects that a release can have.
const (
	Good    Defect = ""
	Wrong   Defect = "wrong"   // loads and answers, but wrongly: the golden set fails
	Slower  Defect = "slow"    // right, but slow
	Crash   Defect = "crash"   // dies after it was loaded
	Refused Defect = "refused" // does not load at all
	Broken  Defect = "corrupt" // its bytes are damaged on the server
)

// Defects lists all of them but Good.
var Defects = []Defect{Wrong, Slower, Crash, Refused, Broken}

// Release makes a release and publishes it.
type Release struct {
	Name   string
	Defect Defect
	// OS is the L4T that the release brings to the Jetsons of the fleet, empty
	// for none; DeadOS one that does not start.
	OS     string
	DeadOS bool
}

// Size is a number of devices or a share of them.
type Size struct {
	Count   int
	Percent float64
}

// Rollout begins to move devices to a release.
type Rollout struct {
	Release string
	To      fault.Devices
	// Waves are the sizes of the waves; the last one always takes the rest.
	// canary=2 is waves=2.
	Waves   []Size
	Soak    time.Duration // 0: the engine's default
	Timeout time.Duration // per device; 0: the engine's default
	Abort   float64       // share of failures among executed devices that aborts; 0: the engine's default
}

// Control is a person's hand on a rollout.
type Control struct {
	Verb    string // pause, resume, abort, approve
	Release string
}

// Restart stops a part of the control plane hard and starts it again.
type Restart struct {
	What string // skeind, broker
	Down time.Duration
}

// Policy sets and removes policy settings of the fleet, or of a site.
type Policy struct {
	Site     string   // empty: the fleet
	Settings []string // KEY=VALUE, or KEY- to remove
}

// Route gives devices another network interface for their default route.
type Route struct {
	Interface string
	To        fault.Devices
}

// Cache makes devices the caches of their sites.
type Cache struct{ Of fault.Devices }

// Bundle carries a release to devices in a file, as a person with a stick does.
type Bundle struct {
	Release string
	To      fault.Devices
}

// When says at which times a condition must hold.
type When string

// The times of an expectation.
const (
	AtEnd  When = ""       // when the run ends
	Within When = "within" // at some time up to By
	Always When = "always" // at all times
)

// Expect is something that must be true.
type Expect struct {
	Line int
	When When
	By   time.Duration // Within: counted from the start of the run
	Not  bool
	Cond Condition
}

// Condition is one of ReleaseOn, Count, Health, RolloutState.
type Condition interface{ text() string }

// Op compares a measured number with one of the script.
type Op string

// The comparisons.
const (
	Equal   Op = "="
	AtLeast Op = ">="
	AtMost  Op = "<="
)

// Holds reports measured op n.
func (o Op) Holds(measured, n float64) bool {
	switch o {
	case AtLeast:
		return measured >= n
	case AtMost:
		return measured <= n
	}
	return measured == n
}

// ReleaseOn says on how many devices, or on which ones, a release is
// committed and serving.
type ReleaseOn struct {
	Release string
	// Devices are named ("on device 3"); Named false means Op and Count, and
	// All that every device of the fleet has it.
	Named   bool
	Devices fault.Devices
	All     bool
	Op      Op
	Count   int
}

// Quantity is a number that the engine measures over the fleet.
type Quantity string

// The quantities.
const (
	Harmed    Quantity = "harmed"    // devices that ever served a bad release
	Offline   Quantity = "offline"   // devices without a connection now
	Failed    Quantity = "failed"    // devices whose last update failed
	Throttled Quantity = "throttled" // boards held down by heat now
	Dead      Quantity = "dead"      // boards that switched themselves off
	Served    Quantity = "served"    // requests answered so far
	Dropped   Quantity = "dropped"   // requests that got no answer so far
	Incidents Quantity = "incidents" // open incidents
	Lost      Quantity = "lost"      // acknowledged facts that the control plane no longer has
	// Bytes that the last update of each device took, by way, as reports say.
	PeerBytes  Quantity = "peer-bytes"
	HTTPSBytes Quantity = "https-bytes"
	MQTTBytes  Quantity = "mqtt-bytes"
)

// Quantities lists all of them.
var Quantities = []Quantity{Harmed, Offline, Failed, Throttled, Dead, Served, Dropped, Incidents, Lost, PeerBytes, HTTPSBytes, MQTTBytes}

// Count compares a quantity.
type Count struct {
	Quantity Quantity
	Op       Op
	N        float64
}

// Health says that devices have a named health condition (disk-full,
// clock-doubtful, …). All of them must have it; with Not, none may.
type Health struct {
	Condition string
	Devices   fault.Devices
}

// RolloutState says in which state the rollout of a release is.
type RolloutState struct {
	Release string
	State   string // running, paused, aborted, done
}

// States lists the states of a rollout.
var States = []string{"running", "paused", "aborted", "done"}
