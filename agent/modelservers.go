package agent

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

const (
	// serversFor is how long what was measured of the servers is good.
	serversFor = 5 * time.Second
	// measureTimeout bounds one look at all of them.
	measureTimeout = 3 * time.Second
	maxServers     = 16
	maxServerText  = 400
)

// measuredServers are what was last seen of the model servers.
type measuredServers struct {
	mu   sync.Mutex // guards what follows; held while they are asked
	at   time.Time
	list []wire.Server

	committed atomic.Pointer[string] // workload that the conditions are about
}

// reportedServers are what serves models, nil where the runtime does not tell.
func (a *Agent) reportedServers() []wire.Server {
	r, ok := a.opts.Runtime.(runtime.Reporter)
	if !ok {
		return nil
	}
	m := &a.measured
	m.mu.Lock()
	defer m.mu.Unlock()
	now := a.opts.Now()
	if age := now.Sub(m.at); age >= 0 && age < serversFor {
		return m.list
	}
	ctx, cancel := context.WithTimeout(context.Background(), measureTimeout)
	defer cancel()
	list, err := r.Servers(ctx)
	if err != nil {
		a.log.Debug("look at the model servers", "error", err)
		return m.list
	}
	m.at, m.list = now, make([]wire.Server, 0, len(list))
	for _, s := range list[:min(len(list), maxServers)] {
		m.list = append(m.list, wireServer(s))
	}
	return m.list
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
