package fleet

import (
	"maps"
	"slices"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

// State is what people see of a device.
type State string

// The states.
const (
	Pending State = "pending"
	Online  State = "online"
	Offline State = "offline"
	Revoked State = "revoked"
)

// View is a device at one moment; it shares nothing that changes.
type View struct {
	Tenant       string
	ID           string
	Name         string
	Serial       string
	Hardware     string
	Labels       map[string]string
	Capabilities []string
	Target       string
	State        State
	Online       bool
	LastSeen     time.Time
	Enrolled     time.Time
	CertNotAfter time.Time
	Agent        string
	Boot         uint64
	// Serves are the addresses at which it serves its site, of a cache.
	Serves []string

	ClockDoubtful bool
	// FromFuture: the device holds a generation that was never given; nothing
	// is sent to it until ConfirmGeneration.
	FromFuture bool
	RevokedWhy string
	ReplacedBy string

	// What it should run.
	Wanted              wire.Generation // zero: nothing was ever wanted
	WantedRelease       ota.Digest      // empty: nothing
	WantedBefore        ota.Digest      // what a device that has not converged may still be fetching
	WantedParamsDigest  []byte
	WantedRollbackAllow bool
	Rollout             string

	// What it says.
	Held           wire.Generation
	Converged      bool            // it holds exactly what is wanted
	Reported       bool            // a full report was received
	ReportedHeld   wire.Generation // held when it was sent; heartbeats come without one
	Running        ota.Digest
	RunningCounter uint64
	HighestCounter uint64
	Phase          wire.Phase
	Step           string
	FailureClass   string
	Failure        string
	FailedRelease  ota.Digest
	Conditions     []wire.Condition
	Journal        []wire.StepEntry
	ParamsDigest   []byte
	BytesFetched   int64
	Sources        []wire.SourceBytes // the same by way
	// BootChain and AgentSlots are nil where the device tells nothing of them.
	BootChain  *wire.BootChain
	AgentSlots *wire.AgentSlots
	// Transfer is what its policy makes of its update, nil under none.
	Transfer *wire.PolicyState
	// Power is how the board runs, nil where it does not tell.
	Power *wire.Power
	// Servers are what serves models there.
	Servers []wire.Server
	// Tap is what applications asked of them, nil without a tap.
	Tap *wire.Tap
}

// Site is the label that names the device's site.
func (v *View) Site() string { return v.Labels[SiteLabel] }

// SiteLabel is the label whose value is the site scope of parameters.
const SiteLabel = "site"

func digestOf(sum []byte) ota.Digest {
	if len(sum) != 32 {
		return ""
	}
	return ota.DigestFromSum([32]byte(sum))
}

// view copies the twin; the caller holds mu.
func (tw *twin) view() View {
	d := &tw.dev
	v := View{
		Tenant: d.Tenant, ID: d.ID, Name: d.Name, Serial: d.Serial, Hardware: d.Hardware,
		Labels: maps.Clone(d.Labels), Capabilities: slices.Clone(d.Capabilities), Target: d.Target,
		State: tw.state(), Online: tw.online, LastSeen: tw.lastSeen, Enrolled: d.Enrolled, CertNotAfter: tw.certNotAfter,
		Agent: tw.agent, Boot: tw.boot, Serves: tw.serves, ClockDoubtful: tw.clockDoubtful, FromFuture: tw.fromFuture,
		RevokedWhy: d.RevokedWhy, ReplacedBy: d.ReplacedBy, Held: tw.held.Generation, Converged: tw.converged(),
	}
	if w := tw.wanted; w != nil {
		v.Wanted, v.WantedRelease, v.Rollout = w.Generation, ota.Digest(w.Release), w.Rollout
		v.WantedParamsDigest, v.WantedRollbackAllow = w.ParamsDigest, w.RollbackAllowed
		if !v.Converged {
			v.WantedBefore = tw.before
		}
	}
	if r := tw.reported; r != nil { // a stored report is never changed, only replaced
		v.Reported, v.ReportedHeld = true, tw.reportedHeld
		v.Running, v.RunningCounter, v.HighestCounter = digestOf(r.Running), r.RunningCounter, r.HighestCounter
		v.Phase, v.Step, v.FailureClass, v.Failure = r.Phase, r.Step, r.FailureClass, r.Failure
		v.FailedRelease, v.Conditions, v.Journal = digestOf(r.FailedRelease), r.Conditions, r.Journal
		v.ParamsDigest, v.BytesFetched, v.Sources, v.Transfer = r.ParamsDigest, r.BytesFetched, r.Sources, r.Policy
		v.BootChain, v.AgentSlots, v.Power, v.Servers, v.Tap = r.Boot, r.Agent, r.Power, r.Servers, r.Tap
	}
	return v
}

func (tw *twin) state() State {
	switch {
	case tw.dev.State == store.DevicePending:
		return Pending
	case tw.dev.State == store.DeviceRevoked:
		return Revoked
	case tw.online:
		return Online
	}
	return Offline
}
