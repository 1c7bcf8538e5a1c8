package serving

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
)

// look asks a running server whether it answers, and weighs it.
func (r *Runtime) look(ctx context.Context, s *server, one *run) {
	if !r.answers(ctx, s, one) {
		return
	}
	memory := r.measure(ctx, s, one)
	limit := int64(specOf(s.w).Restart.GrowthMiB) << 20
	switch {
	case limit == 0 || memory == 0 || time.Since(one.started) < r.opts.Settled:
	case one.baseline == 0:
		one.baseline = memory
	case memory-one.baseline > limit:
		r.outgrown(ctx, s, one, memory)
	}
}

// measure keeps what a server uses and counts, for Servers; it returns its
// memory, 0 when that is not known.
func (r *Runtime) measure(ctx context.Context, s *server, one *run) int64 {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	var seen runtime.Server
	u, err := one.inst.Usage(ctx)
	if m, ok := s.dialect.(Measurer); ok && err == nil {
		err = m.Measure(ctx, one.g, one.served, &seen)
	}
	if err != nil {
		r.opts.Logger.Debug("measure a server", "workload", s.w.ID, "error", err)
	}
	seen.Memory, seen.CPU = u.Memory, u.CPU
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = seen
	return u.Memory
}

// answers reports whether it does; a server that is silent for long is stopped,
// and started again by what looks after its end.
func (r *Runtime) answers(ctx context.Context, s *server, one *run) bool {
	ask, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	err := one.g.Call.ModelReady(ask, one.served.Model, one.served.Version)
	if ctx.Err() != nil {
		return false
	}
	if err == nil {
		if one.silent > 0 {
			one.silent = 0
			s.set(true, "")
		}
		return true
	}
	if one.silent++; one.silent == hungLooks/2 {
		s.set(false, "the server says that it is not ready: "+err.Error())
	}
	if one.silent >= hungLooks {
		how := "does not answer"
		if alive(err) {
			how = "is not ready"
		}
		r.emit(s.w.ID, runtime.EventHung, "the server %s (%d looks in a row: %v) and is started again", how, one.silent, err)
		if err := r.stop(ctx, one); err != nil {
			r.opts.Logger.Warn("stop a server that hangs", "workload", s.w.ID, "error", err)
		}
	}
	return false
}

// outgrown starts a server again whose memory grew: the new one beside it where
// memory holds both, else after it, with an outage that is told.
func (r *Runtime) outgrown(ctx context.Context, s *server, one *run, now int64) {
	grown := fmt.Sprintf("its memory grew from %d MiB to %d MiB, more than the %d MiB that the release allows",
		one.baseline>>20, now>>20, specOf(s.w).Restart.GrowthMiB)
	available, total := r.opts.Memory()
	if total == 0 || available < one.baseline {
		r.emit(s.w.ID, runtime.EventGrowth, "%s: it is started again; inference stops until it answers, since %d MiB do not hold another one", grown, available>>20)
		s.set(false, grown)
		r.drain(ctx, one)
		if err := r.stop(ctx, one); err != nil {
			r.opts.Logger.Warn("stop a server that grew", "workload", s.w.ID, "error", err)
		}
		return // its end is seen, and it is started again
	}
	r.emit(s.w.ID, runtime.EventGrowth, "%s: another one is started beside it and takes its requests", grown)
	start, cancel := context.WithTimeout(ctx, r.opts.ReadyTimeout)
	defer cancel()
	next, err := r.start(start, s, otherName(one.g.Name))
	if err != nil {
		one.baseline = now // the next try is a step of growth away
		r.opts.Logger.Warn("start a server beside the one that grew", "workload", s.w.ID, "error", err)
		return
	}
	s.mu.Lock()
	s.restarts++
	s.mu.Unlock()
	s.use(next)
	r.drain(ctx, one)
	if err := r.stop(ctx, one); err != nil {
		r.opts.Logger.Warn("stop a server that grew", "workload", s.w.ID, "error", err)
	}
	r.emit(s.w.ID, runtime.EventRestart, "the new server has taken over: no request was lost")
}

const otherSuffix = "-x"

// otherName alternates, so that two servers of one workload differ.
func otherName(name string) string {
	if base, ok := strings.CutSuffix(name, otherSuffix); ok {
		return base
	}
	return name + otherSuffix
}
