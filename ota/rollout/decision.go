package rollout

import (
	"cmp"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
)

// Kind names a decision.
type Kind string

// The decisions. The first three ask for a message to a device: its desired
// release becomes Decision.Release (empty: nothing runs). The rest only change
// the state. Resume, Approve and an early Pause or Abort come from people, an
// Outage from the caller when it starts again.
const (
	Offer    Kind = "offer"
	Withdraw Kind = "withdraw" // back to what ran before; it was not healthy yet
	Rollback Kind = "rollback" // back to what ran before; it was healthy

	Assign         Kind = "assign"
	StartWave      Kind = "start-wave"
	StartSoak      Kind = "start-soak"
	WaveVerdict    Kind = "wave-verdict"
	RetryLater     Kind = "retry"
	Skip           Kind = "skip"
	MarkTimedOut   Kind = "mark-timed-out"
	MarkSilent     Kind = "mark-silent"
	MarkRejected   Kind = "mark-rejected"
	MarkSuperseded Kind = "mark-superseded"
	Pause          Kind = "pause"
	Resume         Kind = "resume"
	Approve        Kind = "approve"
	Abort          Kind = "abort"
	FinishAbort    Kind = "finish-abort"
	Succeed        Kind = "succeed"
	Outage         Kind = "outage" // the caller was away for Wait until At: no clock ran
)

// Sends reports whether the decision changes a device's desired release.
func (k Kind) Sends() bool { return k == Offer || k == Withdraw || k == Rollback }

// Assignment puts a device into a wave.
type Assignment struct {
	Device    string `json:"device"`
	Wave      int    `json:"wave"`
	Already   bool   `json:"already,omitempty"`   // runs the release already
	Immediate bool   `json:"immediate,omitempty"` // does not wait for the ramp
}

// Decision is one step of a rollout with the reason for it.
type Decision struct {
	Kind    Kind          `json:"kind"`
	At      time.Time     `json:"at"`
	Wave    int           `json:"wave"`
	Device  string        `json:"device,omitempty"`
	Release ota.Digest    `json:"release,omitempty"` // Offer, Withdraw, Rollback
	Before  ota.Digest    `json:"before,omitempty"`  // Offer: what the device runs now
	Wait    time.Duration `json:"wait,omitempty"`    // Retry: until the next offer; Outage: its length
	Verdict gate.Verdict  `json:"verdict,omitempty"`
	Phase   Phase         `json:"phase,omitempty"`   // FinishAbort
	ByGate  bool          `json:"byGate,omitempty"`  // Pause for want of evidence
	Waves   int           `json:"waves,omitempty"`   // Assign: how many there are
	Assign  []Assignment  `json:"assign,omitempty"`  // Assign, in the order of offers
	Reasons []string      `json:"reasons,omitempty"` // WaveVerdict: the evidence
	Reason  string        `json:"reason"`
}

// String returns one line for logs and people.
func (d Decision) String() string {
	s := string(d.Kind)
	if d.Device != "" {
		s += " " + d.Device
	}
	switch d.Kind {
	case StartWave, StartSoak, WaveVerdict:
		s += fmt.Sprintf(" %d", d.Wave)
	}
	if d.Verdict != "" {
		s += " " + string(d.Verdict)
	}
	if d.Kind.Sends() {
		s += " " + cmp.Or(d.Release.Short(), "nothing")
	}
	return s + ": " + d.Reason
}
