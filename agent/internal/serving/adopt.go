package serving

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
)

const leftReason = "it runs and is not loaded"

// adopt finds, once, what outlived the agent before this one.
func (r *Runtime) adopt(ctx context.Context) error {
	r.adopting.Lock()
	defer r.adopting.Unlock()
	r.mu.Lock()
	done := r.adopted || r.closed
	r.mu.Unlock()
	if done {
		return nil
	}
	found, err := r.opts.Launcher.Adopt(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range found {
		id := a.Labels[labelWorkload]
		known := slices.ContainsFunc(r.left[id], func(b Adopted) bool { return b.Name == a.Name })
		if s := r.servers[id]; s != nil {
			known = known || s.current().g.Name == a.Name
		}
		if !known {
			r.left[id] = append(r.left[id], a)
		}
	}
	if err != nil {
		return fmt.Errorf("look for servers that run already: %w", err)
	}
	r.adopted = true
	r.sweep()
	return nil
}

// sweep removes folders of servers that do not run any more. The caller holds mu.
func (r *Runtime) sweep() {
	entries, err := os.ReadDir(r.opts.Dir)
	if err != nil {
		return // there is none yet
	}
	used := map[string]bool{}
	for _, list := range r.left {
		for _, a := range list {
			used[filepath.Base(a.Labels[labelFolder])] = true
		}
	}
	for _, s := range r.servers {
		used[filepath.Base(s.current().g.Folder)] = true
	}
	for _, e := range entries {
		if !used[e.Name()] {
			if err := os.RemoveAll(filepath.Join(r.opts.Dir, e.Name())); err != nil {
				r.opts.Logger.Warn("remove the folder of a server that is gone", "error", err)
			}
		}
	}
}

// takeOver makes a server that runs already the one of s; nil when there is
// none that answers. Those that do not are stopped.
func (r *Runtime) takeOver(ctx context.Context, s *server) (*run, error) {
	r.mu.Lock()
	found := r.left[s.w.ID]
	r.mu.Unlock()
	// The newest first: of two, the older one was to be stopped.
	slices.SortFunc(found, func(a, b Adopted) int { return b.Started.Compare(a.Started) })
	var taken *run
	for _, a := range found {
		one := r.known(s.w, a)
		if taken == nil {
			served, err := r.firstReady(ctx, s.dialect, one)
			if err == nil {
				one.served, taken = served, one
				r.ports.keep(one.g.Ports)
				continue
			}
			if ctx.Err() != nil {
				return nil, fmt.Errorf("take over the server %s: %w", a.Name, err)
			}
			r.opts.Logger.Warn("a server that ran already does not answer and is stopped", "server", a.Name, "error", err)
		}
		if err := r.stop(ctx, one); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	delete(r.left, s.w.ID)
	r.mu.Unlock()
	if taken != nil {
		r.emit(s.w.ID, runtime.EventAdopted, "the server %s runs since %s and goes on", taken.g.Name, taken.started.UTC().Format(time.RFC3339))
	}
	return taken, nil
}

// known makes a run of a server that was found.
func (r *Runtime) known(w runtime.Workload, a Adopted) *run {
	p := Ports{HTTP: a.Labels[labelHTTP], GRPC: a.Labels[labelGRPC], Metrics: a.Labels[labelMetrics]}
	g := r.generation(w, a.Name, p)
	g.HTTP, g.GRPC, g.Metrics = p.HTTP != "", p.GRPC != "", p.Metrics != ""
	if dir := a.Labels[labelFolder]; filepath.Dir(dir) == filepath.Clean(r.opts.Dir) { // it is removed with the server
		g.Folder = dir
	}
	g.args, g.env = words(w, r.command(w))
	g.Call = caller(g)
	return &run{g: g, inst: a.Instance, labels: a.Labels, started: a.Started}
}

// stopLeft stops what runs for id and is not loaded.
func (r *Runtime) stopLeft(ctx context.Context, id string) error {
	r.mu.Lock()
	found := r.left[id]
	r.mu.Unlock()
	for _, a := range found {
		if err := r.stop(ctx, r.known(runtime.Workload{ID: id}, a)); err != nil {
			return errors.Join(fmt.Errorf("unload %s", id), err)
		}
	}
	r.mu.Lock()
	delete(r.left, id)
	r.mu.Unlock()
	return nil
}
