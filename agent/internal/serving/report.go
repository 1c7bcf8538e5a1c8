package serving

import (
	"context"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/agent/runtime"
)

// Servers describes what runs, measured now.
func (r *Runtime) Servers(ctx context.Context) ([]runtime.Server, error) {
	r.mu.Lock()
	all := make([]*server, 0, len(r.servers))
	for _, s := range r.servers {
		all = append(all, s)
	}
	var out []runtime.Server
	for id, list := range r.left {
		for _, a := range list {
			out = append(out, runtime.Server{ID: id, State: "left over", Reason: leftReason, Started: a.Started})
		}
	}
	r.mu.Unlock()
	for _, s := range all {
		out = append(out, r.describe(ctx, s))
	}
	slices.SortFunc(out, func(a, b runtime.Server) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

func (r *Runtime) describe(ctx context.Context, s *server) runtime.Server {
	s.mu.Lock()
	one := s.run
	v := runtime.Server{
		ID: s.w.ID, Kind: "process", Server: ServerOf(s.w), State: "ready", Reason: s.reason,
		Started: one.started, Restarts: s.restarts, LastExit: s.lastExit, Endpoint: one.endpoint(),
	}
	if img := specOf(s.w).Image; img != nil {
		v.Kind, v.Image = "container", img.Digest
	}
	if !s.ready {
		v.State = "waiting"
	}
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	if u, err := one.inst.Usage(ctx); err == nil {
		v.Memory, v.CPU = u.Memory, u.CPU
	}
	if m, ok := s.dialect.(Measurer); ok && v.State == "ready" {
		if err := m.Measure(ctx, one.g, one.served, &v); err != nil {
			r.opts.Logger.Debug("measure a server", "workload", s.w.ID, "error", err)
		}
	}
	return v
}
