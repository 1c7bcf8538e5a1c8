package wire

import "fmt"

// BuildKind says what a message on up/build is.
type BuildKind uint8

// The kinds. A builder repeats what it last said while no lease has answered
// it, and at least every BuildLease.Every seconds.
const (
	// BuildAsk: the device is free and could take a job.
	BuildAsk BuildKind = 1
	// BuildHeartbeat: the job is being worked on.
	BuildHeartbeat BuildKind = 2
	// BuildLog: lines of the job's log.
	BuildLog BuildKind = 3
	// BuildDone: engine, timing cache and log are uploaded, Record says what they are.
	BuildDone BuildKind = 4
	// BuildFailed: the job is given back, Class and Message say why.
	BuildFailed BuildKind = 5
)

// String returns the kind's name.
func (k BuildKind) String() string {
	switch k {
	case BuildAsk:
		return "ask"
	case BuildHeartbeat:
		return "heartbeat"
	case BuildLog:
		return "log"
	case BuildDone:
		return "done"
	case BuildFailed:
		return "failed"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Classes of a failed build. Where another device could do better the job is
// given to one; the others end it.
const (
	BuildBusy        = "busy"        // no headroom now: heat, power, memory in use, disk
	BuildMemory      = "memory"      // killed or out of memory
	BuildTimeout     = "timeout"     // no progress for too long
	BuildTool        = "tool"        // trtexec is missing, crashed, or said something unexpected
	BuildTransfer    = "transfer"    // model not fetched, or engine not uploaded
	BuildUnsupported = "unsupported" // the model or the recipe cannot be built with this TensorRT
	BuildGolden      = "golden"      // it was built and answers wrongly
	BuildMismatch    = "mismatch"    // the device is not what the lease says
	BuildStopped     = "stopped"     // cancelled by the control plane, or the lease ran out
)

// Build is the payload of up/build.
type Build struct {
	ID   MessageID `cbor:"1,keyasint"`
	Kind BuildKind `cbor:"2,keyasint"`
	// Job and Attempt are those of the lease; an ask has none.
	Job     string `cbor:"3,keyasint,omitempty"`
	Attempt uint32 `cbor:"4,keyasint,omitempty"`
	// Target is what was probed now, inside the container that builds.
	Target string `cbor:"5,keyasint,omitempty"`
	// Step is fetch, build, measure, prove or upload; Percent is of the job.
	Step    string `cbor:"6,keyasint,omitempty"`
	Percent uint8  `cbor:"7,keyasint,omitempty"`
	Message string `cbor:"8,keyasint,omitempty"`
	Class   string `cbor:"9,keyasint,omitempty"`
	// Offset is where Data begins in the log of this attempt. What is missing is
	// not sent again: the uploaded log is whole.
	Offset int64  `cbor:"10,keyasint,omitempty"`
	Data   []byte `cbor:"11,keyasint,omitempty"`
	// Record is a COSE_Sign1 of an EngineRecord by the device's key.
	Record []byte `cbor:"12,keyasint,omitempty"`
}

// MaxBuildLog bounds Data.
const MaxBuildLog = 32 << 10

// LeaseState says what a builder is to do.
type LeaseState uint8

// The states.
const (
	// LeaseNone: there is nothing to build; ask again after Every seconds.
	LeaseNone LeaseState = 1
	// LeaseBuild: build Job, or go on with it, until ExpiresAt.
	LeaseBuild LeaseState = 2
	// LeaseStop: end the work on Job and forget it; Message says why.
	LeaseStop LeaseState = 3
	// LeaseStored: what was done is kept; forget the job.
	LeaseStored LeaseState = 4
	// LeaseDismissed: the device is no builder; ask nothing more until it is
	// told otherwise.
	LeaseDismissed LeaseState = 5
)

// String returns the state's name.
func (s LeaseState) String() string {
	switch s {
	case LeaseNone:
		return "none"
	case LeaseBuild:
		return "build"
	case LeaseStop:
		return "stop"
	case LeaseStored:
		return "stored"
	case LeaseDismissed:
		return "dismissed"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// BuildLease is the payload of down/build inside COSE_Sign1 by the director. A
// builder is told on each hello that it is one, by a lease of state none or
// build; a device that was never told asks nothing. Leases are ordered by
// IssuedAt and Attempt: an older one than the newest seen is not followed.
type BuildLease struct {
	Device    string     `cbor:"1,keyasint"`
	Tenant    string     `cbor:"2,keyasint"`
	State     LeaseState `cbor:"3,keyasint"`
	IssuedAt  int64      `cbor:"4,keyasint"` // unix milliseconds
	ExpiresAt int64      `cbor:"5,keyasint"` // unix seconds; without a newer lease the work ends here
	Every     int64      `cbor:"6,keyasint"` // seconds between heartbeats, or asks
	Job       string     `cbor:"7,keyasint,omitempty"`
	Attempt   uint32     `cbor:"8,keyasint,omitempty"` // of the job, from 1; a new attempt starts afresh
	Message   string     `cbor:"9,keyasint,omitempty"`
	Work      *BuildWork `cbor:"10,keyasint,omitempty"` // with LeaseBuild
}

// BuildWork is what to build. All blobs can be fetched as those of a release,
// while the lease lasts.
type BuildWork struct {
	Model   string `cbor:"1,keyasint"`
	Version int64  `cbor:"2,keyasint"`
	ONNX    Blob   `cbor:"3,keyasint"`
	Golden  *Blob  `cbor:"4,keyasint,omitempty"`
	// Recipe is its canonical JSON, of package ota/engine.
	Recipe []byte `cbor:"5,keyasint"`
	// Target is the canonical text of what the engine is for; the device's own
	// target reduced by the recipe must equal it.
	Target string `cbor:"6,keyasint"`
	Key    []byte `cbor:"7,keyasint"` // of the engine
	// TimingCache is of an earlier build for a like target.
	TimingCache *Blob  `cbor:"8,keyasint,omitempty"`
	Calibration *Blob  `cbor:"9,keyasint,omitempty"`
	Plugins     []Blob `cbor:"10,keyasint,omitempty"`
	// Upload is a path on the device port; PUT Upload + plan, cache or log with
	// Token as bearer.
	Upload string `cbor:"11,keyasint"`
	Token  string `cbor:"12,keyasint"`
	// MaxBytes bounds the engine.
	MaxBytes int64 `cbor:"13,keyasint"`
}

// Blob names bytes by sha256.
type Blob struct {
	Digest []byte `cbor:"1,keyasint"`
	Length int64  `cbor:"2,keyasint"`
	Name   string `cbor:"3,keyasint,omitempty"`
}

// EngineRecord says what an engine is and how it did where it was built. It is
// signed by the device that built it.
type EngineRecord struct {
	Key     []byte `cbor:"1,keyasint"`
	Model   string `cbor:"2,keyasint"`
	Version int64  `cbor:"3,keyasint"`
	ONNX    []byte `cbor:"4,keyasint"`           // sha256
	Golden  []byte `cbor:"5,keyasint,omitempty"` // sha256 of the set
	Recipe  []byte `cbor:"6,keyasint"`           // sha256 of its canonical JSON
	// Target is what the engine is bound to, Probed the whole target of the
	// device that built it.
	Target   string `cbor:"7,keyasint"`
	Probed   string `cbor:"8,keyasint"`
	TensorRT string `cbor:"9,keyasint"` // with its fourth part where it is told
	SM       string `cbor:"10,keyasint"`
	Digest   []byte `cbor:"11,keyasint"` // sha256 of the plan
	Size     int64  `cbor:"12,keyasint"`
	// Stripped says that the plan lacks its weights. Fallback is why a full one
	// was made though the recipe asks for a stripped one.
	Stripped bool   `cbor:"13,keyasint,omitempty"`
	Fallback string `cbor:"14,keyasint,omitempty"`
	// Measured on the device after the build.
	LatencyP50 float64 `cbor:"15,keyasint"` // milliseconds
	LatencyP99 float64 `cbor:"16,keyasint"`
	Throughput float64 `cbor:"17,keyasint"`           // inferences per second
	Power      float64 `cbor:"18,keyasint,omitempty"` // watts of the board while it was measured, 0: not known
	Mode       string  `cbor:"19,keyasint,omitempty"` // power mode by name
	// Proof is absent when the version has no golden set.
	Proof *EngineProof `cbor:"20,keyasint,omitempty"`
	// Device built it, between Started and Finished (unix seconds).
	Device   string `cbor:"21,keyasint"`
	Started  int64  `cbor:"22,keyasint"`
	Finished int64  `cbor:"23,keyasint"`
	// Log and TimingCache are what was uploaded beside the plan.
	Log         Blob  `cbor:"24,keyasint"`
	TimingCache *Blob `cbor:"25,keyasint,omitempty"`
	// Command is the command line of the build, Image the digest of the
	// container that it ran in, absent on the host itself.
	Command []string `cbor:"26,keyasint"`
	Image   string   `cbor:"27,keyasint,omitempty"`
	// Warnings of the tool that say how far the figures can be trusted.
	Warnings []string `cbor:"28,keyasint,omitempty"`
	// Job and Attempt are those of the lease.
	Job     string `cbor:"29,keyasint"`
	Attempt uint32 `cbor:"30,keyasint"`
}

// EngineProof is how an engine answered the golden set.
type EngineProof struct {
	Cases  int64   `cbor:"1,keyasint"`
	Agreed int64   `cbor:"2,keyasint"` // cases whose largest output is at the label
	MaxAbs float64 `cbor:"3,keyasint"` // largest difference from the reference
}

// EngineSeal is the control plane's word on a record, inside COSE_Sign1 by the
// director: the record's signature, proof and bytes were checked.
type EngineSeal struct {
	// Record is the COSE_Sign1 of the device.
	Record []byte `cbor:"1,keyasint"`
	// Builder is the key, SPKI in DER, that signed Record.
	Builder []byte `cbor:"2,keyasint"`
	// Scope is empty when all devices of the target may load the engine, else
	// the one device that may: the one that built it.
	Scope    string `cbor:"3,keyasint,omitempty"`
	SealedAt int64  `cbor:"4,keyasint"` // unix seconds
	Tenant   string `cbor:"5,keyasint"`
}

// AAD values of builds; see AADDesired.
const (
	AADBuild      = "skein/1/build"
	AADEngine     = "skein/1/engine"
	AADEngineSeal = "skein/1/engine-seal"
)
