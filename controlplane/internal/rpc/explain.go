package rpc

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/conductor"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/ota"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/present"
	"github.com/skein-fleet/skein/proto/wire"
)

func (s *fleetService) ExplainDevice(ctx context.Context, req *fleetv1.ExplainDeviceRequest) (*fleetv1.ExplainDeviceResponse, error) {
	v, err := s.lookup(ctx, req.GetDevice())
	if err != nil {
		return nil, err
	}
	summary, reasons := explain(v, s.namer(v.Tenant), time.Now())
	if s.Rollouts != nil {
		reasons = append(s.Rollouts.ExplainDevice(ctx, v.Tenant, v.ID), reasons...)
	}
	return &fleetv1.ExplainDeviceResponse{Summary: summary, Reasons: reasons}, nil
}

// explain names what holds a device up: one sentence, then every fact that
// plays a part, the most decisive first.
func explain(v fleet.View, name func(ota.Digest) string, now time.Time) (summary string, reasons []string) {
	called := func(d ota.Digest) string {
		if d == "" {
			return "nothing"
		}
		return cmp.Or(name(d), d.Short())
	}
	add := func(format string, args ...any) { reasons = append(reasons, fmt.Sprintf(format, args...)) }
	want := called(v.WantedRelease)
	failedWanted := v.FailureClass != "" && v.FailedRelease != "" && v.FailedRelease == v.WantedRelease
	switch {
	case v.State == fleet.Pending:
		summary = "waits for approval"
		add("approve it with: skein device approve %s", v.ID)
	case v.State == fleet.Revoked:
		summary = "is revoked: " + cmp.Or(v.RevokedWhy, "no reason was given")
		if v.ReplacedBy != "" {
			add("replaced by device %s", v.ReplacedBy)
		}
	case v.FromFuture:
		summary = fmt.Sprintf("holds generation %s, newer than any given to it (%s); nothing is sent until a person confirms", v.Held, v.Wanted)
		add("the control plane was restored from an older backup, or another one gave this device orders")
		add("confirm with: skein device confirm %s; then %s replaces what it holds", v.ID, want)
	case v.Wanted == (wire.Generation{}):
		summary = "nothing was ever assigned to it"
		add("assign a release with: skein device assign %s RELEASE, or start a rollout that selects it", v.ID)
	case v.State == fleet.Offline && !v.Converged:
		summary = fmt.Sprintf("is offline, so it does not know yet that it should run %s", want)
	case v.State == fleet.Offline:
		summary = fmt.Sprintf("is offline; it knows that it should run %s", want)
	case !v.Converged:
		summary = fmt.Sprintf("has not taken generation %s yet, which wants %s; it is sent again until it does", v.Wanted, want)
	case failedWanted:
		summary = fmt.Sprintf("failed on %s (%s at step %s) and runs %s", want, v.FailureClass, cmp.Or(v.Step, "unknown"), called(v.Running))
	case v.Phase == wire.PhaseUpdating && policy.WaitText(v.Transfer) != "":
		summary = fmt.Sprintf("is updating to %s: %s", want, policy.WaitText(v.Transfer))
		add("see: skein policy explain --device %s", v.ID)
	case v.Phase == wire.PhaseUpdating:
		summary = fmt.Sprintf("is updating to %s: step %s", want, cmp.Or(v.Step, "unknown"))
	case v.Running == v.WantedRelease:
		summary = fmt.Sprintf("converged: runs %s as wanted", want)
	default:
		summary = fmt.Sprintf("took generation %s but runs %s instead of %s and has not begun to update", v.Wanted, called(v.Running), want)
	}
	if v.State == fleet.Offline {
		seen := "never"
		if !v.LastSeen.IsZero() {
			seen = now.Sub(v.LastSeen).Round(time.Second).String() + " ago"
		}
		add("last heard: %s", seen)
	}
	if !v.CertNotAfter.IsZero() && now.After(v.CertNotAfter) {
		add("its certificate expired at %s; it may only renew", v.CertNotAfter.UTC().Format(time.RFC3339))
	}
	if v.FailureClass != "" {
		add("last failure: %s: %s (release %s)", v.FailureClass, cmp.Or(v.Failure, "no cause was reported"), called(v.FailedRelease))
	}
	for i := len(v.Journal) - 1; i >= 0; i-- {
		if e := v.Journal[i]; e.State == wire.StepFailed {
			add("step %s failed: %s", e.Step, e.Message)
			break
		}
	}
	for _, c := range v.Conditions {
		if c.Severity >= 2 {
			add("%s condition %s: %s", present.Severity(c.Severity), c.Name, c.Message)
		}
	}
	if v.Rollout != "" && !v.Converged {
		id := conductor.RolloutID(v.Rollout)
		add("rollout %s asked for it; see: skein rollout explain %s", id, id)
	}
	if v.ClockDoubtful {
		add("its clock is doubtful")
	}
	if v.Converged && string(v.WantedParamsDigest) != string(v.ParamsDigest) && v.Running == v.WantedRelease && v.WantedRelease != "" {
		add("it reports other parameters than were sent")
	}
	return summary, reasons
}
