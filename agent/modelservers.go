package agent

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry"
)

const (
	maxServers    = 16
	maxServerText = 400
)

// measuredServers is what the conditions of model servers are about.
type measuredServers struct {
	committed atomic.Pointer[string] // workload
}

// servers are what serves models, nil where the runtime does not tell.
func (a *Agent) servers() []runtime.Server {
	r, ok := a.opts.Runtime.(runtime.Reporter)
	if !ok {
		return nil
	}
	list, err := r.Servers(context.Background()) // at once
	if err != nil {
		a.log.Debug("look at the model servers", "error", err)
	}
	return list[:min(len(list), maxServers)]
}

func (a *Agent) reportedServers() []wire.Server {
	var out []wire.Server
	for _, s := range a.servers() {
		out = append(out, wireServer(s))
	}
	return out
}

// serverReadings are what the model servers use.
func (a *Agent) serverReadings(now time.Time) []telemetry.Reading {
	var out []telemetry.Reading
	for _, s := range a.servers() {
		if s.State == "left over" {
			continue
		}
		at := func(v float64, name string) {
			out = append(out, telemetry.Reading{Series: telemetry.NewSeries(name, "model", s.Model, "version", s.Version), Time: now, Value: v})
		}
		if s.Memory > 0 {
			at(float64(s.Memory), telemetry.ServerMemory)
		}
		at(float64(s.Restarts), telemetry.ServerRestarts)
	}
	return out
}

func wireServer(s runtime.Server) wire.Server {
	w := wire.Server{
		Workload: s.ID, Kind: s.Kind, Server: s.Server, State: s.State, Reason: clipText(s.Reason, maxServerText), Restarts: uint64(s.Restarts),
		LastExit: clipText(s.LastExit, maxServerText), Memory: s.Memory, Requests: s.Requests, Failed: s.Failed,
		Queue: uint64(s.Queue.Microseconds()), Compute: uint64(s.Compute.Microseconds()), Pending: uint64(s.Pending), GPUMemory: s.GPUMemory,
	}
	if s.Image != "" {
		w.Image = s.Image.Sum()
	}
	if !s.Started.IsZero() {
		w.Started = s.Started.UnixMilli()
	}
	return w
}

// observeServer tells what a model server did by itself.
func (a *Agent) observeServer(e runtime.Event) {
	kind := "server"
	if slices.Contains([]string{runtime.EventExit, runtime.EventOOM, runtime.EventHung}, e.Kind) {
		kind = "crash"
		a.noteExit(e.Kind + ": " + e.Message)
	}
	a.board.Event(wire.Event{ID: a.ids.next(), Kind: kind, Message: e.Kind + ": " + clipText(e.Message, maxCauseText), Release: a.releaseOf(e.Workload).Sum()})
	switch e.Kind {
	case runtime.EventOOM:
		a.board.Set(health.ServerOOM, health.Warning, clipText(e.Message, maxCauseText)+"; it is started again; give the release more memory, or the device less to do")
	case runtime.EventGrowth:
		a.board.Set(health.ServerGrew, health.Warning, clipText(e.Message, maxCauseText))
	}
	a.wakeReport.set()
}

// releaseOf is the release that a workload is of, empty when it is neither
// committed nor being installed.
func (a *Agent) releaseOf(workload string) ota.Digest {
	s := a.state.Get()
	if s.Current.WorkloadID() == workload && s.Current != nil {
		return s.Current.Release
	}
	if s.Update != nil && s.Update.Install.WorkloadID() == workload {
		return s.Update.Install.Release
	}
	return ""
}

// noteServers ends conditions that tell of a server once what serves is another.
func (a *Agent) noteServers(committed string) {
	if before := a.measured.committed.Swap(&committed); before != nil && *before != committed {
		a.board.Clear(health.ServerOOM)
		a.board.Clear(health.ServerGrew)
	}
}
