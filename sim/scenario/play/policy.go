package play

import (
	"context"
	"fmt"
	"strings"
	"time"

	policyv1 "github.com/skein-fleet/skein/proto/gen/skein/policy/v1"
	"github.com/skein-fleet/skein/sim/scenario"
)

// policy sets what devices keep to, as a person would.
func (s *stage) policy(ctx context.Context, a scenario.Policy) error {
	scope := policyv1.PolicyScope_POLICY_SCOPE_FLEET
	if a.Site != "" {
		scope = policyv1.PolicyScope_POLICY_SCOPE_SITE
	}
	req := &policyv1.SetPolicyRequest{}
	for _, word := range a.Settings {
		p := &policyv1.PolicySetting{Scope: scope, Subject: a.Site}
		key, value, set := strings.Cut(word, "=")
		if !set {
			p.Key = strings.TrimSuffix(word, "-")
			req.Remove = append(req.Remove, p)
			continue
		}
		if value == scenario.Closed { // a day that the run does not see
			value = time.Now().Add(3*24*time.Hour).UTC().Format("Mon") + " 00:00-24:00"
		}
		p.Key, p.Value = key, value
		req.Set = append(req.Set, p)
	}
	r, err := s.op.Policies.SetPolicy(ctx, req)
	if err != nil {
		return fmt.Errorf("set policy: %w", err)
	}
	s.note("%d devices get a new generation", r.GetDevices())
	return nil
}
