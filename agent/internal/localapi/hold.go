package localapi

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	agentlocalv1 "github.com/skein-fleet/skein/proto/gen/skein/agentlocal/v1"
	"github.com/skein-fleet/skein/proto/present"
	"github.com/skein-fleet/skein/proto/wire"
)

// Trace is one update, step by step.
type Trace struct {
	ID      string           `json:"id"`
	Release string           `json:"release"`        // digest
	Name    string           `json:"name,omitempty"` // name@version
	Outcome string           `json:"outcome"`        // runs, committed, undone
	Lines   []wire.StepEntry `json:"lines"`
}

var errNotKept = connect.NewError(connect.CodeUnimplemented, errors.New("this agent does not do that"))

func (s *service) Hold(_ context.Context, req *agentlocalv1.HoldRequest) (*agentlocalv1.HoldResponse, error) {
	if s.src.HoldOff == nil {
		return nil, errNotKept
	}
	const most = 1 << 31
	h, capped, err := s.src.HoldOff(req.GetOwner(), req.GetReason(), time.Duration(max(0, min(req.GetSeconds(), most)))*time.Second)
	if err != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	}
	return &agentlocalv1.HoldResponse{Hold: present.Hold(h), Capped: capped}, nil
}

func (s *service) ReleaseHold(_ context.Context, req *agentlocalv1.ReleaseHoldRequest) (*agentlocalv1.ReleaseHoldResponse, error) {
	if s.src.ReleaseHold == nil {
		return nil, errNotKept
	}
	n, err := s.src.ReleaseHold(req.GetOwner())
	if err != nil {
		return nil, err
	}
	return &agentlocalv1.ReleaseHoldResponse{Released: int32(n)}, nil
}

func (s *service) Trace(_ context.Context, req *agentlocalv1.TraceRequest) (*agentlocalv1.TraceResponse, error) {
	if s.src.Traces == nil {
		return nil, errNotKept
	}
	all := s.src.Traces()
	if n := int(req.GetLimit()); n > 0 && n < len(all) {
		all = all[:n]
	}
	out := &agentlocalv1.TraceResponse{}
	for _, t := range all {
		u := &agentlocalv1.UpdateTrace{Id: t.ID, Release: t.Release, ReleaseName: t.Name, Outcome: t.Outcome}
		for i, l := range t.Lines {
			st := &agentlocalv1.StepTrace{Step: l.Step, State: l.State.String(), Time: present.Milli(l.Time), Message: l.Message}
			if i+1 < len(t.Lines) {
				st.Milliseconds = max(0, t.Lines[i+1].Time-l.Time)
			}
			u.Steps = append(u.Steps, st)
		}
		if n := len(t.Lines); n > 0 {
			u.Began, u.Milliseconds = present.Milli(t.Lines[0].Time), max(0, t.Lines[n-1].Time-t.Lines[0].Time)
		}
		out.Updates = append(out.Updates, u)
	}
	return out, nil
}
