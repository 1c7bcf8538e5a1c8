package rpc

import (
	"context"
	"encoding/json"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/conductor"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota/rollout"
	rolloutv1 "github.com/skein-fleet/skein/proto/gen/skein/rollout/v1"
	"github.com/skein-fleet/skein/proto/present"
)

// maxDecisions is how many decisions GetRollout gives, the newest.
const maxDecisions = 2000

// rolloutService answers skein.rollout.v1.RolloutService.
type rolloutService struct{ AppDeps }

func specText(s *structpb.Struct) ([]byte, error) {
	if s == nil {
		return nil, fmt.Errorf("%w: no spec", conductor.ErrInvalid)
	}
	b, err := protojson.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("%w: spec: %w", conductor.ErrInvalid, err)
	}
	return b, nil
}

func specStruct(text []byte) (*structpb.Struct, error) {
	s := &structpb.Struct{}
	if err := s.UnmarshalJSON(text); err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	return s, nil
}

func rolloutMessage(s conductor.Snapshot) (*rolloutv1.Rollout, error) {
	spec, err := specStruct([]byte(s.Spec))
	if err != nil {
		return nil, err
	}
	m := &rolloutv1.Rollout{Id: s.ID, Name: s.Name, Spec: spec, Release: string(s.Release), ReleaseName: s.ReleaseName, Phase: s.Phase, Reason: s.Reason,
		CurrentWave: int32(s.Wave), Created: present.Time(s.Created), CreatedBy: s.CreatedBy, Ended: present.Time(s.Ended), Devices: int32(s.Devices),
		Healthy: int32(s.Healthy), Failed: int32(s.Failed), RolledBack: int32(s.RolledBack), Harmed: int32(s.Harmed)}
	for _, w := range s.Waves {
		m.Waves = append(m.Waves, &rolloutv1.Wave{Name: w.Name, State: w.State, Devices: int32(w.Devices), Queued: int32(w.Queued), InProgress: int32(w.InProgress),
			Healthy: int32(w.Healthy), Failed: int32(w.Failed), RolledBack: int32(w.RolledBack), Verdict: w.Verdict, Evidence: w.Evidence,
			Started: present.Time(w.Started), Ended: present.Time(w.Ended)})
	}
	return m, nil
}

// names gives devices their names.
func (s *rolloutService) names(tenant string) map[string]string {
	out := map[string]string{}
	for _, v := range s.Fleet.Snapshot(tenant) {
		out[v.ID] = v.Name
	}
	return out
}

func executions(xs []conductor.Execution, names map[string]string) []*rolloutv1.DeviceExecution {
	out := make([]*rolloutv1.DeviceExecution, len(xs))
	for i, x := range xs {
		out[i] = &rolloutv1.DeviceExecution{Device: x.Device, DeviceName: names[x.Device], Wave: x.Wave, State: x.State, FailureClass: string(x.Class),
			Message: x.Message, PreviousRelease: string(x.Previous), Updated: present.Time(x.Updated)}
	}
	return out
}

func (s *rolloutService) PlanRollout(ctx context.Context, req *rolloutv1.PlanRolloutRequest) (*rolloutv1.PlanRolloutResponse, error) {
	raw, err := specText(req.GetSpec())
	if err != nil {
		return nil, err
	}
	o, err := s.Conductor.Plan(ctx, auth.Tenant(ctx), raw)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(o.Spec)
	if err != nil {
		return nil, fmt.Errorf("encode spec: %w", err)
	}
	resp := &rolloutv1.PlanRolloutResponse{Notes: o.Notes}
	if resp.EffectiveSpec, err = specStruct(text); err != nil {
		return nil, err
	}
	for _, w := range o.Waves {
		m := &rolloutv1.PlannedWave{Name: w.Name, Devices: int32(len(w.Devices)), ByTarget: map[string]int32{}, DeviceIds: w.Devices, Bytes: w.Bytes}
		for t, n := range w.ByTarget {
			m.ByTarget[t] = int32(n)
		}
		resp.Waves = append(resp.Waves, m)
	}
	for _, u := range o.Unreachable {
		resp.Unreachable = append(resp.Unreachable, &rolloutv1.Unreachable{Device: u.Device, DeviceName: u.Name, Reason: u.Reason})
	}
	return resp, nil
}

func (s *rolloutService) StartRollout(ctx context.Context, req *rolloutv1.StartRolloutRequest) (*rolloutv1.StartRolloutResponse, error) {
	raw, err := specText(req.GetSpec())
	if err != nil {
		return nil, err
	}
	snap, err := s.Conductor.Start(ctx, conductor.Request{Tenant: auth.Tenant(ctx), Spec: raw, Name: req.GetName(), By: store.Actor(ctx)})
	if err != nil {
		return nil, err
	}
	m, err := rolloutMessage(snap)
	return &rolloutv1.StartRolloutResponse{Rollout: m}, err
}

func (s *rolloutService) ListRollouts(ctx context.Context, _ *rolloutv1.ListRolloutsRequest) (*rolloutv1.ListRolloutsResponse, error) {
	all, err := s.Conductor.List(ctx, auth.Tenant(ctx))
	if err != nil {
		return nil, err
	}
	resp := &rolloutv1.ListRolloutsResponse{}
	for _, snap := range all {
		m, err := rolloutMessage(snap)
		if err != nil {
			return nil, err
		}
		resp.Rollouts = append(resp.Rollouts, m)
	}
	return resp, nil
}

func (s *rolloutService) GetRollout(ctx context.Context, req *rolloutv1.GetRolloutRequest) (*rolloutv1.GetRolloutResponse, error) {
	tenant := auth.Tenant(ctx)
	snap, xs, err := s.Conductor.Get(ctx, tenant, req.GetRollout())
	if err != nil {
		return nil, err
	}
	rows, err := s.Conductor.Decisions(ctx, tenant, snap.ID, maxDecisions)
	if err != nil {
		return nil, err
	}
	resp := &rolloutv1.GetRolloutResponse{Devices: executions(xs, s.names(tenant))}
	if resp.Rollout, err = rolloutMessage(snap); err != nil {
		return nil, err
	}
	for _, row := range rows {
		d, err := decision(row, snap)
		if err != nil {
			return nil, err
		}
		resp.Decisions = append(resp.Decisions, d)
	}
	return resp, nil
}

func decision(row store.Decision, snap conductor.Snapshot) (*rolloutv1.Decision, error) {
	var d rollout.Decision
	if err := json.Unmarshal([]byte(row.Body), &d); err != nil {
		return nil, fmt.Errorf("read decision %d: %w", row.Sequence, err)
	}
	m := &rolloutv1.Decision{Time: present.Time(row.Time), Kind: row.Kind, Device: row.Device, Reason: d.Reason}
	if d.Wave >= 0 && d.Wave < len(snap.Waves) {
		m.Wave = snap.Waves[d.Wave].Name
	}
	switch row.Sent {
	case store.DecisionWaits:
		m.Reason += " (waits to be sent)"
	case store.DecisionRefused:
		m.Reason += " (could not be sent: " + row.Error + ")"
	}
	return m, nil
}

func (s *rolloutService) WatchRollout(ctx context.Context, req *rolloutv1.WatchRolloutRequest, stream *connect.ServerStream[rolloutv1.WatchRolloutResponse]) error {
	tenant := auth.Tenant(ctx)
	var names map[string]string
	err := s.Conductor.Watch(ctx, tenant, req.GetRollout(), func(snap conductor.Snapshot, xs []conductor.Execution) error {
		for _, x := range xs {
			if _, known := names[x.Device]; !known {
				names = s.names(tenant) // the first time, and when a new device joined
				break
			}
		}
		m, err := rolloutMessage(snap)
		if err != nil {
			return err
		}
		return stream.Send(&rolloutv1.WatchRolloutResponse{Rollout: m, Changed: executions(xs, names)})
	})
	if err != nil && ctx.Err() != nil {
		return nil // the caller has gone, or the server stops
	}
	return err
}

func (s *rolloutService) PauseRollout(ctx context.Context, req *rolloutv1.PauseRolloutRequest) (*rolloutv1.PauseRolloutResponse, error) {
	snap, err := s.Conductor.Pause(ctx, auth.Tenant(ctx), req.GetRollout(), store.Actor(ctx), req.GetReason())
	if err != nil {
		return nil, err
	}
	m, err := rolloutMessage(snap)
	return &rolloutv1.PauseRolloutResponse{Rollout: m}, err
}

func (s *rolloutService) ResumeRollout(ctx context.Context, req *rolloutv1.ResumeRolloutRequest) (*rolloutv1.ResumeRolloutResponse, error) {
	snap, err := s.Conductor.Resume(ctx, auth.Tenant(ctx), req.GetRollout(), store.Actor(ctx), req.GetReason())
	if err != nil {
		return nil, err
	}
	m, err := rolloutMessage(snap)
	return &rolloutv1.ResumeRolloutResponse{Rollout: m}, err
}

func (s *rolloutService) AbortRollout(ctx context.Context, req *rolloutv1.AbortRolloutRequest) (*rolloutv1.AbortRolloutResponse, error) {
	snap, err := s.Conductor.Abort(ctx, auth.Tenant(ctx), req.GetRollout(), store.Actor(ctx), req.GetReason())
	if err != nil {
		return nil, err
	}
	m, err := rolloutMessage(snap)
	return &rolloutv1.AbortRolloutResponse{Rollout: m}, err
}

func (s *rolloutService) ApproveWave(ctx context.Context, req *rolloutv1.ApproveWaveRequest) (*rolloutv1.ApproveWaveResponse, error) {
	snap, err := s.Conductor.Approve(ctx, auth.Tenant(ctx), req.GetRollout(), req.GetWave(), store.Actor(ctx), req.GetReason())
	if err != nil {
		return nil, err
	}
	m, err := rolloutMessage(snap)
	return &rolloutv1.ApproveWaveResponse{Rollout: m}, err
}

func (s *rolloutService) ExplainRollout(ctx context.Context, req *rolloutv1.ExplainRolloutRequest) (*rolloutv1.ExplainRolloutResponse, error) {
	lines, err := s.Conductor.Explain(ctx, auth.Tenant(ctx), req.GetRollout())
	if err != nil || len(lines) == 0 {
		return &rolloutv1.ExplainRolloutResponse{}, err
	}
	return &rolloutv1.ExplainRolloutResponse{Summary: lines[0], Reasons: lines[1:]}, nil
}
