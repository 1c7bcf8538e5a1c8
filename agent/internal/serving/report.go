package serving

import (
	"context"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/agent/runtime"
)

// Servers describes what runs, as the last look at each found it.
func (r *Runtime) Servers(context.Context) ([]runtime.Server, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []runtime.Server
	for _, s := range r.servers {
		out = append(out, s.describe())
	}
	for id, list := range r.left {
		for _, a := range list {
			out = append(out, runtime.Server{ID: id, State: "left over", Reason: leftReason, Started: a.Started})
		}
	}
	slices.SortFunc(out, func(a, b runtime.Server) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

func (s *server) describe() runtime.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.seen
	v.ID, v.Kind, v.Server, v.State, v.Reason = s.w.ID, "process", ServerOf(s.w), "ready", s.reason
	v.Model, v.Version = s.w.Model, s.w.Version
	v.Started, v.Restarts, v.LastExit, v.Endpoint = s.run.started, s.restarts, s.lastExit, s.run.endpoint()
	if img := specOf(s.w).Image; img != nil {
		v.Kind, v.Image = "container", img.Digest
	}
	if !s.ready {
		v.State = "waiting"
	}
	return v
}
