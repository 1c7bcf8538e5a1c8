package rpc

import (
	"context"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/auth"
	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/ota/window"
	policyv1 "github.com/skein-fleet/skein/proto/gen/skein/policy/v1"
	"github.com/skein-fleet/skein/proto/present"
	"github.com/skein-fleet/skein/proto/wire"
)

// policyService answers skein.policy.v1.PolicyService.
type policyService struct{ Deps }

// setting reads one of a request; a device is named by id or name.
func (s *policyService) setting(ctx context.Context, in *policyv1.PolicySetting) (policy.Setting, error) {
	out := policy.Setting{Scope: policy.Scope(in.GetScope()), Subject: in.GetSubject(), Key: in.GetKey(), Value: in.GetValue()}
	if out.Scope != policy.Device || out.Subject == "" {
		return out, nil
	}
	v, err := s.Fleet.Lookup(auth.Tenant(ctx), out.Subject)
	out.Subject = v.ID
	return out, err
}

func (s *policyService) settings(ctx context.Context, in []*policyv1.PolicySetting) ([]policy.Setting, error) {
	var out []policy.Setting
	for _, p := range in {
		one, err := s.setting(ctx, p)
		if err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

// shown translates settings; devices get their names.
func (s *policyService) shown(tenant string, in []policy.Setting) []*policyv1.PolicySetting {
	out := make([]*policyv1.PolicySetting, len(in))
	for i, p := range in {
		subject := p.Subject
		if p.Scope == policy.Device {
			if v, err := s.Fleet.Get(tenant, p.Subject); err == nil && v.Name != "" {
				subject = v.Name
			}
		}
		out[i] = &policyv1.PolicySetting{Scope: policyv1.PolicyScope(p.Scope), Subject: subject, Key: p.Key, Value: p.Show()}
	}
	return out
}

func (s *policyService) SetPolicy(ctx context.Context, req *policyv1.SetPolicyRequest) (*policyv1.SetPolicyResponse, error) {
	set, err := s.settings(ctx, req.GetSet())
	if err != nil {
		return nil, err
	}
	remove, err := s.settings(ctx, req.GetRemove())
	if err != nil {
		return nil, err
	}
	n, err := s.Fleet.SetPolicy(ctx, auth.Tenant(ctx), set, remove)
	if err != nil {
		return nil, err
	}
	return &policyv1.SetPolicyResponse{Devices: int32(n)}, nil
}

func (s *policyService) ListPolicy(ctx context.Context, _ *policyv1.ListPolicyRequest) (*policyv1.ListPolicyResponse, error) {
	tenant := auth.Tenant(ctx)
	return &policyv1.ListPolicyResponse{Settings: s.shown(tenant, s.Fleet.Policy(tenant))}, nil
}

func (s *policyService) ExplainPolicy(ctx context.Context, req *policyv1.ExplainPolicyRequest) (*policyv1.ExplainPolicyResponse, error) {
	v, err := s.Fleet.Lookup(auth.Tenant(ctx), req.GetDevice())
	if err != nil {
		return nil, err
	}
	in, err := s.Fleet.PolicyOf(v.Tenant, v.ID)
	if err != nil {
		return nil, err
	}
	return &policyv1.ExplainPolicyResponse{Device: v.ID, Settings: s.shown(v.Tenant, in), State: present.Transfer(v.Transfer), Reasons: policyReasons(v, in, time.Now())}, nil
}

// policyReasons says in words what the policy means for a device now.
func policyReasons(v fleet.View, in []policy.Setting, now time.Time) []string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if len(in) == 0 {
		add("no policy is set for it: it may download and apply at any time")
	}
	if w := policy.WaitText(v.Transfer); w != "" {
		add("%s", w)
	}
	p := policy.Wire(in, policy.Extra{})
	if p != nil {
		for _, s := range []struct {
			what string
			list []wire.Schedule
		}{{"downloads", p.Download}, {"applies", p.Apply}} {
			for _, w := range s.list {
				add("%s", windowText(s.what, w, v.Transfer, now))
			}
		}
	}
	switch t := v.Transfer; {
	case t == nil && p != nil && v.Reported:
		add("it has not said what its policy makes of its updates: it holds no desired state under it yet, or its agent is too old to keep to one")
	case t != nil:
		link := t.Interface
		if link == "" {
			link = "a link that it does not know"
		}
		add("it is behind %s, which is %s", link, t.Class)
		for _, u := range t.Used {
			add("%s: %s of %s over %s links in the %s %s", usedText(u), policy.FormatBytes(u.Bytes), policy.FormatBytes(u.Limit), u.Class, u.Period, u.Name)
		}
	}
	return out
}

func usedText(u wire.Usage) string {
	if u.Bytes >= u.Limit {
		return "used up"
	}
	return "used"
}

// windowText says whether a window is open now.
func windowText(what string, w wire.Schedule, t *wire.PolicyState, now time.Time) string {
	name := w.Zone
	if name == "" && t != nil {
		name = t.Zone
	}
	set, err := window.Parse(w.Windows)
	loc, zerr := window.Zone(name)
	if err != nil || zerr != nil {
		return fmt.Sprintf("%s: in the window %s of the device's own zone, which it has not told", what, w.Windows)
	}
	open, changes := set.At(now, loc)
	state := "closed"
	if open {
		state = "open"
	}
	until := ""
	if !changes.IsZero() {
		until = " until " + changes.In(loc).Format(policy.TimeForm)
	}
	return fmt.Sprintf("%s: the window %s (%s) is %s%s", what, w.Windows, name, state, until)
}
