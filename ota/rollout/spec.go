package rollout

import (
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
	"strings"
)

// Spec says which devices get which release, in which order, at what pace,
// under which conditions, and what happens when it goes wrong. Its JSON form is
// the public format, described field by field in SPEC.md. The zero value of a
// field is its default, unless said otherwise there.
type Spec struct {
	Release     ota.Digest `json:"release"`
	Selector    Selector   `json:"selector,omitzero"`
	Waves       []Wave     `json:"waves,omitempty"`
	Retry       Retry      `json:"retry,omitzero"`
	OnAbort     OnAbort    `json:"onAbort,omitzero"`
	RollbackTo  string     `json:"rollbackTo,omitempty"` // Previous or a release
	LateJoiners Joiners    `json:"lateJoiners,omitempty"`
	Supersede   Supersede  `json:"supersede,omitempty"`
	Schedule    Schedule   `json:"schedule,omitzero"`
}

// Schedule says when devices work on the release; it narrows what their own
// policy allows.
type Schedule struct {
	// DownloadWindow and ApplyWindow are weekly windows in the form of package
	// ota/window; empty: at any time.
	DownloadWindow string `json:"downloadWindow,omitempty"`
	ApplyWindow    string `json:"applyWindow,omitempty"`
	// TZ is the zone of both: a name of the tz database, or ZoneOfDevice.
	TZ string `json:"tz,omitempty"`
	// Now lets devices wait for no window and no allowance of their policy.
	Now         bool        `json:"now,omitempty"`
	Start       Unsupported `json:"start,omitzero"`
	End         Unsupported `json:"end,omitzero"`
	EndBehavior Unsupported `json:"endBehavior,omitzero"`
}

// ZoneOfDevice is the TZ that means the zone in which each device stands.
const ZoneOfDevice = "device"

// Zone is TZ as a name, empty for that of the device.
func (s Schedule) Zone() string {
	if s.TZ == ZoneOfDevice {
		return ""
	}
	return s.TZ
}

// Previous is the RollbackTo that restores on each device what ran before.
const Previous = "previous"

// Wave is one part of a rollout. Without Limit and PerTarget it takes every
// device that no earlier wave has.
type Wave struct {
	Name       string   `json:"name"`
	Selector   Selector `json:"selector,omitzero"`
	Limit      Amount   `json:"limit,omitzero"`
	PerTarget  Count    `json:"perTarget,omitempty"`
	StratifyBy []string `json:"stratifyBy,omitempty"`
	Order      string   `json:"order,omitempty"`
	Ramp       Ramp     `json:"ramp,omitzero"`
	Soak       Soak     `json:"soak,omitzero"`
	Gate       Gate     `json:"gate,omitzero"`
	Budget     Budget   `json:"budget,omitzero"`
	Timeout    Timeout  `json:"timeout,omitzero"`
}

// OrderHash draws devices by a hash of the rollout's id and the device's id.
const OrderHash = "hash"

// RampKind says how the number of devices in flight grows.
type RampKind string

// The kinds of ramp.
const (
	RampFixed       RampKind = "fixed"
	RampLinear      RampKind = "linear"
	RampExponential RampKind = "exponential"
)

// Ramp is the pace of a wave. Initial devices may be in flight at first; each
// time that many have succeeded, linear adds Factor devices to the allowance
// and exponential multiplies it by Factor. A zero limit does not bind.
type Ramp struct {
	Kind                   RampKind    `json:"kind,omitempty"`
	Initial                Count       `json:"initial,omitempty"`
	Factor                 float64     `json:"factor,omitempty"`
	MaxPerMinute           Count       `json:"maxPerMinute,omitempty"`
	MaxInFlight            Count       `json:"maxInFlight,omitempty"`
	MaxConcurrentDownloads Count       `json:"maxConcurrentDownloads,omitempty"`
	MaxBytesPerSecond      Unsupported `json:"maxBytesPerSecond,omitzero"`
}

// Soak is how long a wave is watched once all its devices have settled: at
// least Min, and up to Max for MinSamples on half of the devices.
type Soak struct {
	Min        Duration `json:"min,omitempty"`
	Max        Duration `json:"max,omitempty"`
	MinSamples Count    `json:"minSamples,omitempty"`
}

// Approval says who lets the next wave start.
type Approval string

// The approvals. ApprovalWebhook is refused for now.
const (
	ApprovalAuto    Approval = "auto"
	ApprovalManual  Approval = "manual"
	ApprovalWebhook Approval = "webhook"
)

// OnInconclusive says what a wave does when the evidence does not decide.
type OnInconclusive string

// What to do without a verdict.
const (
	InconclusivePause OnInconclusive = "pause"
	InconclusiveWait  OnInconclusive = "wait"
)

// Gate is what a wave must meet before the next one starts.
type Gate struct {
	Success      *Success       `json:"success,omitempty"`
	Abort        []AbortRule    `json:"abort,omitempty"`
	Metrics      []MetricRule   `json:"metrics,omitempty"`
	Approval     Approval       `json:"approval,omitempty"`
	Inconclusive OnInconclusive `json:"inconclusive,omitempty"`
}

// Denominator says of what a percentage is taken.
type Denominator string

// The denominators.
const (
	OfExecuted Denominator = "executed"
	OfTotal    Denominator = "total"
)

// Success is the share of devices that must have succeeded.
type Success struct {
	MinPct      float64     `json:"minPct"`
	Of          Denominator `json:"of,omitempty"`
	MinExecuted Count       `json:"minExecuted,omitempty"`
}

// AnyFailure counts REJECTED, FAILED, TIMED_OUT and SILENT together.
const AnyFailure ota.FailureClass = "ALL"

// AbortRule stops the rollout as soon as, of at least MinExecuted executed
// devices of the wave, Pct per cent or Count devices failed in that class.
type AbortRule struct {
	Failure     ota.FailureClass `json:"failure"`
	Pct         float64          `json:"pct,omitempty"`
	Count       Count            `json:"count,omitempty"`
	MinExecuted Count            `json:"minExecuted,omitempty"`
}

// MetricRule compares each device of the wave with its own past; see
// gate.OwnPast for the fields.
type MetricRule struct {
	Name            string    `json:"name"`
	Stat            gate.Stat `json:"stat,omitempty"`
	MaxRatio        float64   `json:"maxRatio"`
	Floor           float64   `json:"floor"`
	MaxRegressedPct float64   `json:"maxRegressedPct,omitempty"`
	MinSamples      Count     `json:"minSamples,omitempty"`
	MinDevices      Count     `json:"minDevices,omitempty"`
}

func (m MetricRule) rule() gate.OwnPast {
	return gate.OwnPast{Stat: m.Stat, MaxRatio: m.MaxRatio, Floor: m.Floor, MaxRegressedPct: m.MaxRegressedPct,
		MinSamples: int(m.MinSamples), MinDevices: int(m.MinDevices), Unit: m.unit()}
}

// unit is the unit of the metric, by which names end: the _seconds of
// skein_inference_latency_p50_seconds{model="meter"}.
func (m MetricRule) unit() string {
	name, _, _ := strings.Cut(m.Name, "{")
	unit := name[strings.LastIndexByte(name, '_')+1:]
	switch unit {
	case "seconds", "bytes", "celsius", "watts", "percent":
		return unit
	}
	return ""
}

// Budget bounds how many devices of one group may be unavailable at a time.
// Without GroupBy the selected fleet is one group.
type Budget struct {
	GroupBy        []string `json:"groupBy,omitempty"`
	MinAvailable   Amount   `json:"minAvailable,omitzero"`
	MaxUnavailable Amount   `json:"maxUnavailable,omitzero"`
}

// Offline says what becomes of a device that is not connected.
type Offline string

// The offline policies.
const (
	OfflineWait  Offline = "wait"
	OfflineSkip  Offline = "skip"
	OfflineCount Offline = "count"
)

// Timeout bounds how long one device may take: from offer to healthy, in one
// step, and without a word after the switch.
type Timeout struct {
	Device  Duration `json:"device,omitempty"`
	Step    Duration `json:"step,omitempty"`
	Silent  Duration `json:"silent,omitempty"`
	Offline Offline  `json:"offline,omitempty"`
}

// Retry says how often a failed device is offered the release again. The wait
// doubles with each attempt.
type Retry struct {
	PerFailure   map[ota.FailureClass]Count `json:"perFailure,omitempty"`
	Backoff      Duration                   `json:"backoff,omitempty"`
	PerDeviceMax Count                      `json:"perDeviceMax,omitempty"`
	FleetBudget  Count                      `json:"fleetBudget,omitempty"`
}

// AbortAction says what an abort does to devices in one state.
type AbortAction string

// The actions of an abort.
const (
	AbortCancel   AbortAction = "cancel"
	AbortFinish   AbortAction = "finish"
	AbortKeep     AbortAction = "keep"
	AbortRollback AbortAction = "rollback"
)

// OnAbort says what an abort does.
type OnAbort struct {
	Queued     AbortAction `json:"queued,omitempty"`
	InProgress AbortAction `json:"inProgress,omitempty"`
	Done       AbortAction `json:"done,omitempty"`
}

// Joiners says what becomes of devices that match after the start.
type Joiners string

// The policies for late joiners.
const (
	JoinRamp      Joiners = "ramp"
	JoinImmediate Joiners = "immediate"
	JoinNever     Joiners = "never"
)

// Supersede says what happens when another rollout still has the device.
type Supersede string

// The policies for two rollouts on one device.
const (
	SupersedeNewest Supersede = "newest"
	SupersedeSerial Supersede = "serial"
)
