// Package health keeps the named conditions that hold on a device now and the
// events that are still to be told. It owns the list of condition names; a
// condition keeps its Since while it holds, whatever its message does, and
// events are bounded: beyond the bound the oldest go and are counted. The
// packages of the agent import it.
package health

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/proto/wire"
)

// Severity grades a condition.
type Severity uint8

// The severities.
const (
	Info     Severity = 1
	Warning  Severity = 2
	Critical Severity = 3
)

// The names of conditions.
const (
	DiskFull            = "disk-full"            // a durable write found no space
	DiskFailing         = "disk-failing"         // a durable write failed for another reason than space
	DiskLow             = "disk-low"             // less than the reserve is free
	TrustRefused        = "trust-refused"        // a message or metadata was refused as an attack
	TrustStale          = "trust-stale"          // trust metadata cannot be refreshed
	ClockDoubtful       = "clock-doubtful"       // the clock is below the trusted floor
	LinkOffline         = "link-offline"         // no connection to the control plane
	CertificateRefused  = "certificate-refused"  // the control plane does not accept this certificate
	CertificateExpiring = "certificate-expiring" // renewal is due and did not work yet
	UpdateFailed        = "update-failed"        // the last update was undone
	UpdateHeld          = "update-held"          // an update waits, and why
	GoldenFailed        = "golden-failed"        // the serving workload answers its golden set wrongly
	DownloadWaits       = "download-waits"       // the bytes of a release cannot be had at the moment
	HTTPSBlocked        = "https-blocked"        // blobs and trust metadata come over the device link
	WaitingForWindow    = "waiting-for-window"   // an update waits for a window of the policy
	BudgetUsed          = "budget-used"          // a download waits: an allowance of bytes is used up
	BootChain           = "boot-chain"           // the boot chain could not take an update of the operating system
	AgentFellBack       = "agent-fell-back"      // another binary of the agent runs than the active one
	ServerOOM           = "server-oom"           // the kernel ended a model server for memory
	ServerGrew          = "server-grew"          // a model server was started again because its memory grew
	WorkloadDown        = "workload-down"        // the committed workload does not serve
	Overheating         = "overheating"          // a zone is close to its limit
	Throttled           = "throttled"            // the hardware holds clocks down
	SpoolDropping       = "spool-dropping"       // telemetry was thinned or lost
	JournalDamaged      = "journal-damaged"      // the update journal was damaged and set aside
	SpoolFailing        = "spool-failing"        // the spool cannot be read or written
	Tap                 = "tap"                  // applications cannot reach the model through the agent
	LocalSocket         = "local-socket"         // status, explain and logs cannot be served
	EventsDropped       = "events-dropped"       // more events than the queue holds
	PowerRefused        = "power-mode-refused"   // the wanted power mode cannot be had
	PowerNeedsReboot    = "power-mode-needs-reboot"
	ClocksRefused       = "clocks-refused"     // the wanted clocks or fan profile cannot be had
	ThrottledByHeat     = "throttled-by-heat"  // the kernel holds clocks down, or is about to
	OverCurrent         = "over-current"       // the module draws more than its supply gives
	UnderVoltage        = "under-voltage"      // its supply is too low
	EngineNotOptimal    = "engine-not-optimal" // the engine was tuned for another module or power mode
	WaitsForHeadroom    = "waits-for-headroom" // heavy work waits for a cooler board
	UpdateOnHold        = "update-on-hold"     // an application holds updates off
)

// Now tells the time of the device's clock.
type Now func() time.Time

// Board holds conditions and events. It is safe for concurrent use.
type Board struct {
	now    Now
	change func()

	mu      sync.Mutex // guards what follows
	holding map[string]wire.Condition
	events  []wire.Event
	dropped uint64
}

// MaxEvents bounds the events that wait.
const MaxEvents = 256

// NewBoard returns an empty board; change is called, without a lock held,
// after each change of a condition and after each event.
func NewBoard(now Now, change func()) *Board {
	return &Board{now: now, change: change, holding: map[string]wire.Condition{}}
}

// Set says that a condition holds.
func (b *Board) Set(name string, s Severity, message string) {
	b.mu.Lock()
	old, held := b.holding[name]
	c := wire.Condition{Name: name, Severity: uint8(s), Message: message, Since: old.Since}
	if !held {
		c.Since = b.now().UnixMilli()
	}
	b.holding[name] = c
	b.mu.Unlock()
	if c != old {
		b.change()
	}
}

// Clear says that a condition holds no longer.
func (b *Board) Clear(name string) {
	b.mu.Lock()
	_, held := b.holding[name]
	delete(b.holding, name)
	b.mu.Unlock()
	if held {
		b.change()
	}
}

// Update sets the condition when on, else clears it.
func (b *Board) Update(on bool, name string, s Severity, message string) {
	if on {
		b.Set(name, s, message)
	} else {
		b.Clear(name)
	}
}

// Holds reports whether a condition holds.
func (b *Board) Holds(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.holding[name]
	return ok
}

// Conditions returns what holds, worst first, then by name.
func (b *Board) Conditions() []wire.Condition {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []wire.Condition
	for _, c := range b.holding {
		out = append(out, c)
	}
	slices.SortFunc(out, func(x, y wire.Condition) int {
		if x.Severity != y.Severity {
			return int(y.Severity) - int(x.Severity)
		}
		return strings.Compare(x.Name, y.Name)
	})
	return out
}

// Event queues an event; its time is now.
func (b *Board) Event(e wire.Event) {
	b.mu.Lock()
	e.Time = b.now().UnixMilli()
	if len(b.events) >= MaxEvents {
		b.events = slices.Delete(b.events, 0, len(b.events)-MaxEvents+1)
		b.dropped++
	}
	b.events = append(b.events, e)
	b.mu.Unlock()
	b.change()
}

// NextEvent returns the oldest event without taking it.
func (b *Board) NextEvent() (wire.Event, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.events) == 0 {
		return wire.Event{}, false
	}
	return b.events[0], true
}

// TookEvent removes e if it is still the oldest.
func (b *Board) TookEvent(e wire.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.events) > 0 && b.events[0].ID == e.ID {
		b.events = slices.Delete(b.events, 0, 1)
	}
}

// DroppedEvents returns how many events were lost to the bound.
func (b *Board) DroppedEvents() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.dropped
}
