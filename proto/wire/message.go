package wire

import (
	"cmp"
	"fmt"
)

// Generation orders the desired states of one device. The epoch is raised only
// when a control plane is restored from a backup; within an epoch the counter
// grows by one with every change.
type Generation struct {
	Epoch   uint64 `cbor:"1,keyasint" json:"epoch"`
	Counter uint64 `cbor:"2,keyasint" json:"counter"`
}

// Compare orders generations: epoch first, then counter.
func (g Generation) Compare(o Generation) int {
	return cmp.Or(cmp.Compare(g.Epoch, o.Epoch), cmp.Compare(g.Counter, o.Counter))
}

// String returns "epoch.counter".
func (g Generation) String() string { return fmt.Sprintf("%d.%d", g.Epoch, g.Counter) }

// MessageID names a message of a device: the random id of this boot and a
// counter that starts at 1 with it. The control plane drops repeats.
type MessageID struct {
	Boot    uint64 `cbor:"1,keyasint"`
	Counter uint64 `cbor:"2,keyasint"`
}

// Presence is the payload of up/presence and of the last will. An offline of
// an older connection (lower Connection in the same boot) is ignored.
type Presence struct {
	ID         MessageID `cbor:"1,keyasint"` // Counter is 0 in the last will
	Connection uint64    `cbor:"2,keyasint"`
	Online     bool      `cbor:"3,keyasint"`
}

// Clock is what the device says of its own time.
type Clock struct {
	UnixMilli int64 `cbor:"1,keyasint"`
	Doubtful  bool  `cbor:"2,keyasint,omitempty"` // below the trusted floor, or stepped back
}

// Held says which desired state the device holds; it is in every hello,
// heartbeat and report, and the control plane answers when it is not the
// wanted one.
type Held struct {
	Generation Generation `cbor:"1,keyasint"`
	Digest     []byte     `cbor:"2,keyasint,omitempty"` // sha256 of the desired payload, empty before the first
}

// Hello is the payload of up/hello, sent on every connect.
type Hello struct {
	ID         MessageID `cbor:"1,keyasint"`
	Held       Held      `cbor:"2,keyasint"`
	Target     string    `cbor:"3,keyasint"`
	Capability int       `cbor:"4,keyasint"`
	Clock      Clock     `cbor:"5,keyasint"`
	Agent      string    `cbor:"6,keyasint,omitempty"` // agent version
	Hardware   string    `cbor:"7,keyasint,omitempty"`
	// Peer are the addresses, IP:PORT, at which a cache serves its siblings.
	Peer []string `cbor:"8,keyasint,omitempty"`
}

// Desired is the payload of down/desired inside COSE_Sign1: what one device
// should run. Its expiry forbids to start an install; it never stops what runs.
type Desired struct {
	Device     string     `cbor:"1,keyasint"`
	Tenant     string     `cbor:"2,keyasint"`
	Generation Generation `cbor:"3,keyasint"`
	IssuedAt   int64      `cbor:"4,keyasint"` // unix seconds
	ExpiresAt  int64      `cbor:"5,keyasint"` // unix seconds
	// Release is absent when the device should run nothing.
	Release *ReleaseRef `cbor:"6,keyasint,omitempty"`
	// Params are the rendered parameters, sorted by key.
	Params []Param `cbor:"7,keyasint,omitempty"`
	// RollbackAllowed lets the device go to a release with a lower counter
	// than the highest of its name that it has run; set by rollbacks of a rollout.
	RollbackAllowed bool `cbor:"8,keyasint,omitempty"`
	// Rollout names the rollout that asked for it, for reports.
	Rollout string `cbor:"9,keyasint,omitempty"`
	// Policy is absent when nothing restrains downloads and applies.
	Policy *Policy `cbor:"10,keyasint,omitempty"`
	// Peers are siblings that serve blobs to who shows Grant, the nearest first.
	Peers []Peer `cbor:"11,keyasint,omitempty"`
	// Grant is a COSE_Sign1 of a Grant for this device and release.
	Grant []byte `cbor:"12,keyasint,omitempty"`
	// Cache tells the device to serve its siblings.
	Cache bool `cbor:"13,keyasint,omitempty"`
}

// Peer is a device that serves the blobs of its site.
type Peer struct {
	Device    string   `cbor:"1,keyasint"`
	Addresses []string `cbor:"2,keyasint"` // IP:PORT
}

// Grant is the director's word to a peer: this device may have the blobs of
// this release.
type Grant struct {
	Device    string `cbor:"1,keyasint"`
	Tenant    string `cbor:"2,keyasint"`
	Release   []byte `cbor:"3,keyasint"` // sha256 of the OCI index
	ExpiresAt int64  `cbor:"4,keyasint"` // unix seconds
}

// ReleaseRef names a release as listed in the TUF targets: all fields must
// agree with them.
type ReleaseRef struct {
	Target  string `cbor:"1,keyasint"` // TUF target path, releases/NAME/VERSION
	Digest  []byte `cbor:"2,keyasint"` // sha256 of the OCI index
	Length  int64  `cbor:"3,keyasint"`
	Counter uint64 `cbor:"4,keyasint"`
}

// Param is one rendered parameter. A secret's value is sealed to the device.
type Param struct {
	Key    string `cbor:"1,keyasint"`
	Value  []byte `cbor:"2,keyasint"`
	Secret bool   `cbor:"3,keyasint,omitempty"`
}

// StepState is where a journal step stands.
type StepState uint8

// The states of a journal step.
const (
	StepStarted StepState = 1
	StepDone    StepState = 2
	StepFailed  StepState = 3
	StepUndone  StepState = 4
)

// String returns the state's name.
func (s StepState) String() string {
	switch s {
	case StepStarted:
		return "started"
	case StepDone:
		return "done"
	case StepFailed:
		return "failed"
	case StepUndone:
		return "undone"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Phase is what the device is doing about its desired state.
type Phase uint8

// The phases.
const (
	PhaseIdle     Phase = 1 // runs what is wanted, or nothing is wanted
	PhaseUpdating Phase = 2
	PhaseFailed   Phase = 3 // the wanted release failed; the one before runs
)

// String returns the phase's name.
func (p Phase) String() string {
	switch p {
	case PhaseIdle:
		return "idle"
	case PhaseUpdating:
		return "updating"
	case PhaseFailed:
		return "failed"
	}
	return fmt.Sprintf("phase %d", uint8(p))
}

// Condition is a named health condition that holds now.
type Condition struct {
	Name     string `cbor:"1,keyasint"`
	Severity uint8  `cbor:"2,keyasint"` // 1 info, 2 warning, 3 critical
	Message  string `cbor:"3,keyasint,omitempty"`
	Since    int64  `cbor:"4,keyasint"` // unix milliseconds of the device's clock
}

// StepEntry is one line of the update journal.
type StepEntry struct {
	Step    string    `cbor:"1,keyasint"`
	State   StepState `cbor:"2,keyasint"`
	Release []byte    `cbor:"3,keyasint,omitempty"` // sha256
	Message string    `cbor:"4,keyasint,omitempty"`
	Time    int64     `cbor:"5,keyasint"` // unix milliseconds of the device's clock
}

// Report is the payload of up/report inside COSE_Sign1 by the device's key:
// the reported state. A heartbeat is a report with only ID, Counter and Held.
type Report struct {
	ID   MessageID `cbor:"1,keyasint"`
	Held Held      `cbor:"2,keyasint"`
	// Counter grows over the whole life of the device, across boots; a report
	// with a counter already seen is a replay.
	Counter uint64 `cbor:"3,keyasint"`
	// Full is nil in a heartbeat.
	Full *Reported `cbor:"4,keyasint,omitempty"`
}

// Reported is the state of a device.
type Reported struct {
	// Running is the sha256 of the release that serves, empty when none.
	Running []byte `cbor:"1,keyasint,omitempty"`
	// RunningCounter is its release counter.
	RunningCounter uint64 `cbor:"2,keyasint,omitempty"`
	Phase          Phase  `cbor:"3,keyasint"`
	Step           string `cbor:"4,keyasint,omitempty"`
	// FailureClass and Failure are the original cause of the last failed
	// update and FailedRelease the release; they survive rollback and reboot.
	FailureClass  string      `cbor:"5,keyasint,omitempty"`
	Failure       string      `cbor:"6,keyasint,omitempty"`
	FailedRelease []byte      `cbor:"7,keyasint,omitempty"`
	Conditions    []Condition `cbor:"8,keyasint,omitempty"`
	Journal       []StepEntry `cbor:"9,keyasint,omitempty"` // of the last update, oldest first
	ParamsDigest  []byte      `cbor:"10,keyasint,omitempty"`
	Target        string      `cbor:"11,keyasint"`
	// HighestCounter is the highest release counter ever committed.
	HighestCounter uint64 `cbor:"12,keyasint,omitempty"`
	// Bytes fetched for the last update, repeats included.
	BytesFetched int64 `cbor:"13,keyasint,omitempty"`
	// Sources say how many of them came by which way, sorted by name.
	Sources []SourceBytes `cbor:"14,keyasint,omitempty"`
	// Boot is absent where the machine has no boot chain of two slots.
	Boot  *BootChain  `cbor:"15,keyasint,omitempty"`
	Agent *AgentSlots `cbor:"16,keyasint,omitempty"`
	// Policy is absent while no policy restrains the device.
	Policy *PolicyState `cbor:"17,keyasint,omitempty"`
	// Power is absent on machines without power modes and throttling that tell.
	Power *Power `cbor:"18,keyasint,omitempty"`
	// Servers are what serves models, or is about to, sorted by workload.
	Servers []Server `cbor:"20,keyasint,omitempty"`
	// Tap is what applications asked of the models, absent without a tap.
	Tap *Tap `cbor:"21,keyasint,omitempty"`
}

// Tap is what applications asked since the agent started.
type Tap struct {
	Address string  `cbor:"1,keyasint,omitempty"` // where they ask
	Asked   []Asked `cbor:"2,keyasint,omitempty"` // by model and version
	Refused uint64  `cbor:"3,keyasint,omitempty"` // never forwarded: model control, paths that are none
}

// Asked counts the requests to one model version; without a name, those that
// reached no server.
type Asked struct {
	Model   string `cbor:"1,keyasint,omitempty"`
	Version string `cbor:"2,keyasint,omitempty"`
	OK      uint64 `cbor:"3,keyasint,omitempty"`
	Invalid uint64 `cbor:"4,keyasint,omitempty"` // the application's fault
	Failed  uint64 `cbor:"5,keyasint,omitempty"` // the server's, or none served
	Shed    uint64 `cbor:"6,keyasint,omitempty"` // too many at a time
	P50     uint64 `cbor:"7,keyasint,omitempty"` // microseconds
	P99     uint64 `cbor:"8,keyasint,omitempty"`
}

// Server is one model server of a device.
type Server struct {
	// Workload is the one that it runs for, as the device names it.
	Workload string `cbor:"1,keyasint"`
	Kind     string `cbor:"2,keyasint,omitempty"` // process or container
	Server   string `cbor:"3,keyasint,omitempty"` // v2 or triton
	Image    []byte `cbor:"4,keyasint,omitempty"` // sha256 of its manifest
	State    string `cbor:"5,keyasint"`           // ready, waiting, left over
	Reason   string `cbor:"6,keyasint,omitempty"`
	Started  int64  `cbor:"7,keyasint,omitempty"` // unix milliseconds
	Restarts uint64 `cbor:"8,keyasint,omitempty"` // by itself, since it was loaded
	LastExit string `cbor:"9,keyasint,omitempty"` // how it last ended by itself
	Memory   int64  `cbor:"10,keyasint,omitempty"`
	// What the server itself counts: requests, those that failed, mean times of
	// one in microseconds, those that wait, and memory of its GPUs.
	Requests  uint64 `cbor:"11,keyasint,omitempty"`
	Failed    uint64 `cbor:"12,keyasint,omitempty"`
	Queue     uint64 `cbor:"13,keyasint,omitempty"`
	Compute   uint64 `cbor:"14,keyasint,omitempty"`
	Pending   uint64 `cbor:"15,keyasint,omitempty"`
	GPUMemory int64  `cbor:"16,keyasint,omitempty"`
}

// SourceBytes says what one way to blobs brought: peer, https, mqtt, child.
type SourceBytes struct {
	Name  string `cbor:"1,keyasint"`
	Bytes int64  `cbor:"2,keyasint"`
}

// Telemetry is the payload of up/telemetry: one block, format in telemetry/block.
type Telemetry struct {
	ID    MessageID `cbor:"1,keyasint"`
	Block []byte    `cbor:"2,keyasint"`
}

// Event is the payload of up/event.
type Event struct {
	ID      MessageID `cbor:"1,keyasint"`
	Time    int64     `cbor:"2,keyasint"` // unix milliseconds
	Kind    string    `cbor:"3,keyasint"` // step, refused, crash, throttle, clock, link, server
	Message string    `cbor:"4,keyasint,omitempty"`
	Release []byte    `cbor:"5,keyasint,omitempty"`
	Step    string    `cbor:"6,keyasint,omitempty"`
	// Attack is the class of what was refused, for example rollback, replay.
	Attack string `cbor:"7,keyasint,omitempty"`
}

// CmdKind is one command of the closed list.
type CmdKind uint8

// The commands.
const (
	// CmdReport asks for a full report.
	CmdReport CmdKind = 1
	// CmdSlowDown asks to wait Seconds before the next connect or hello, and
	// to stretch heartbeats to at least that.
	CmdSlowDown CmdKind = 2
	// CmdWatch asks for telemetry every second for Seconds.
	CmdWatch CmdKind = 3
	// CmdRenew asks to renew the certificate now.
	CmdRenew CmdKind = 4
)

// Cmd is the payload of down/cmd inside COSE_Sign1.
type Cmd struct {
	Device    string  `cbor:"1,keyasint"`
	Counter   uint64  `cbor:"2,keyasint"` // grows per device; a lower or equal one is refused
	ExpiresAt int64   `cbor:"3,keyasint"` // unix seconds
	Kind      CmdKind `cbor:"4,keyasint"`
	Seconds   int64   `cbor:"5,keyasint,omitempty"`
}

// AAD values bind a COSE_Sign1 to its use.
const (
	AADDesired = "skein/1/desired"
	AADCmd     = "skein/1/cmd"
	AADReport  = "skein/1/report"
	AADGrant   = "skein/1/grant"
)
