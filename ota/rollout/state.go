package rollout

import (
	"maps"
	"slices"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
)

// Phase is where a rollout stands.
type Phase string

// The phases. Aborted, RolledBack and Succeeded are final.
const (
	Pending    Phase = "pending"
	Running    Phase = "running"
	Paused     Phase = "paused"
	Aborting   Phase = "aborting"
	Aborted    Phase = "aborted"
	RolledBack Phase = "rolled-back"
	Succeeded  Phase = "succeeded"
)

// Final reports whether nothing follows.
func (p Phase) Final() bool { return p == Aborted || p == RolledBack || p == Succeeded }

// Status is where one device stands in a rollout.
type Status string

// The states of an execution.
const (
	Queued      Status = "queued"       // in a wave, nothing sent yet
	Offered     Status = "offered"      // desired state points at the release, no answer yet
	Accepted    Status = "accepted"     // the device works on it; Exec.Step says where
	Healthy     Status = "healthy"      // serves the release, the device itself still watches it
	Done        Status = "done"         // the device made it final
	FailedState Status = "failed"       // Exec.Class says how
	Skipped     Status = "skipped"      // offline for too long, or gone; joins again when it is back
	Cancelled   Status = "cancelled"    // the abort came before the offer
	RollingBack Status = "rolling-back" // desired state points back, no answer yet
	Restored    Status = "rolled-back"  // runs again what ran before
)

// Elapsed is time on a rollout's own clock, which starts with the rollout and
// stands still while it is paused.
type Elapsed = time.Duration

// Exec is the record of one device in a rollout.
type Exec struct {
	Wave      int              `json:"wave"`
	Status    Status           `json:"status"`
	Step      ota.Step         `json:"step,omitempty"`
	Class     ota.FailureClass `json:"class,omitempty"`
	Detail    string           `json:"detail,omitempty"`
	Previous  ota.Digest       `json:"previous,omitempty"` // ran at the first offer; empty: nothing ran
	Attempts  int              `json:"attempts,omitempty"`
	Immediate bool             `json:"immediate,omitempty"` // joined late under lateJoiners: immediate
	Withdrawn bool             `json:"withdrawn,omitempty"` // failed, and desired state points back
	Confirmed bool             `json:"confirmed,omitempty"` // failed, and runs again what ran before
	Stuck     bool             `json:"stuck,omitempty"`     // told to roll back, never answered
	QueuedAt  Elapsed          `json:"queuedAt,omitempty"`
	NotBefore Elapsed          `json:"notBefore,omitempty"` // backoff before the next offer
	OfferedAt Elapsed          `json:"offeredAt,omitempty"`
	StepAt    Elapsed          `json:"stepAt,omitempty"`
	Switched  bool             `json:"switched,omitempty"` // reached the switch, so silence is a failure
	HeardAt   Elapsed          `json:"heardAt,omitempty"`
	ChangedAt Elapsed          `json:"changedAt,omitempty"` // entered Status
	// Waits is the window or allowance that the device says it waits for:
	// meanwhile it holds no slot of the ramp and its time stands still.
	Waits   string  `json:"waits,omitempty"`
	WaitsAt Elapsed `json:"waitsAt,omitempty"` // since when
}

// InFlight reports whether the device has the release to work on.
func (e Exec) InFlight() bool { return e.Status == Offered || e.Status == Accepted }

// Succeeded reports whether the device runs the release because of this rollout.
func (e Exec) Succeeded() bool {
	return e.Attempts > 0 && (e.Status == Healthy || e.Status == Done)
}

// Executed reports whether the device counts in percentages: the release was
// offered to it, or it timed out waiting offline, and the outcome is known. A
// device that a newer rollout took over does not count.
func (e Exec) Executed() bool {
	if e.Status == FailedState {
		return e.Class == ota.TimedOut || e.Attempts > 0 && e.Class != ota.Superseded
	}
	return e.Succeeded()
}

// WaveState is the record of one wave.
type WaveState struct {
	Members   []string     `json:"members,omitempty"` // in the order of offers
	Started   bool         `json:"started,omitempty"`
	StartedAt Elapsed      `json:"startedAt,omitempty"`
	Soaking   bool         `json:"soaking,omitempty"`
	SoakAt    Elapsed      `json:"soakAt,omitempty"`
	Verdict   gate.Verdict `json:"verdict,omitempty"`
	Reasons   []string     `json:"reasons,omitempty"`
	Approved  bool         `json:"approved,omitempty"`
}

// PauseSpan is one pause; a zero To means that it lasts.
type PauseSpan struct {
	From   time.Time `json:"from"`
	To     time.Time `json:"to,omitzero"`
	Reason string    `json:"reason,omitempty"`
	ByGate bool      `json:"byGate,omitempty"` // an inconclusive gate paused it
}

// OfferCount is how many offers were made at one moment of the last minute.
type OfferCount struct {
	At Elapsed `json:"at"`
	N  int     `json:"n"`
}

// State is everything that a rollout must remember. It belongs to the caller,
// who stores it; Apply and Observe change it, nothing else does.
type State struct {
	ID        string          `json:"id"`
	Phase     Phase           `json:"phase"`
	StartedAt time.Time       `json:"startedAt,omitzero"`
	EndedAt   time.Time       `json:"endedAt,omitzero"`
	Reason    string          `json:"reason,omitempty"` // of the last change of phase
	Wave      int             `json:"wave"`
	Waves     []WaveState     `json:"waves,omitempty"`
	Exec      map[string]Exec `json:"exec,omitempty"`
	Pauses    []PauseSpan     `json:"pauses,omitempty"`
	Offers    []OfferCount    `json:"offers,omitempty"`
	Retries   int             `json:"retries,omitempty"`

	over map[string]Exec // set in the planner's working copy: changes stay here
}

// New returns the state of a rollout that has not started.
func New(id string) State { return State{ID: id, Phase: Pending} }

// Clone returns a copy that shares nothing with s.
func (s State) Clone() State {
	s.Exec = maps.Clone(s.Exec)
	s.Pauses = slices.Clone(s.Pauses)
	s.Offers = slices.Clone(s.Offers)
	s.Waves = slices.Clone(s.Waves)
	for i := range s.Waves {
		s.Waves[i].Members = slices.Clone(s.Waves[i].Members)
		s.Waves[i].Reasons = slices.Clone(s.Waves[i].Reasons)
	}
	return s
}

// overlay returns a working copy whose changes leave s alone, in constant time
// per wave.
func (s State) overlay() *State {
	s.over = map[string]Exec{}
	s.Pauses, s.Offers, s.Waves = slices.Clone(s.Pauses), slices.Clone(s.Offers), slices.Clone(s.Waves)
	for i := range s.Waves {
		s.Waves[i].Members = slices.Clip(s.Waves[i].Members)
	}
	return &s
}

func (s *State) get(id string) (Exec, bool) {
	if e, ok := s.over[id]; ok {
		return e, true
	}
	e, ok := s.Exec[id]
	return e, ok
}

func (s *State) put(id string, e Exec) {
	switch {
	case s.over != nil:
		s.over[id] = e
	case s.Exec == nil:
		s.Exec = map[string]Exec{id: e}
	default:
		s.Exec[id] = e
	}
}

// Clock returns the rollout's own time at t: what passed since the start, less
// every pause.
func (s *State) Clock(t time.Time) Elapsed {
	if s.StartedAt.IsZero() {
		return 0
	}
	c := t.Sub(s.StartedAt)
	for _, p := range s.Pauses {
		to := p.To
		if to.IsZero() || to.After(t) {
			to = t
		}
		if to.After(p.From) {
			c -= to.Sub(p.From)
		}
	}
	return c
}

// Device is what the planner needs to know of one device of the fleet.
type Device struct {
	ID           string            `json:"id"`
	Labels       map[string]string `json:"labels,omitempty"`
	Target       string            `json:"target"`
	Online       bool              `json:"online"`
	LastSeen     time.Time         `json:"lastSeen,omitzero"`
	OnlineSince  time.Time         `json:"onlineSince,omitzero"`
	Release      ota.Digest        `json:"release,omitempty"`      // what it runs now; empty: nothing
	Held         ota.Generation    `json:"held"`                   // desired state it has
	Wanted       ota.Generation    `json:"wanted"`                 // desired state it should have
	Outside      string            `json:"outside,omitempty"`      // the closed window in which its policy has it download; empty: none
	Incompatible string            `json:"incompatible,omitempty"` // why the release can never run here; empty: it can
	Newer        string            `json:"newer,omitempty"`        // id of a newer rollout that takes this device over
	Older        string            `json:"older,omitempty"`        // id of an older unfinished rollout that has this device
}

// Evidence is what was measured: metric name -> device -> the same metric
// before the device's switch and after it. A device whose release was taken
// back keeps its last figures or is left out.
type Evidence struct {
	Metrics map[string]map[string]gate.Pair `json:"metrics,omitempty"`
}
