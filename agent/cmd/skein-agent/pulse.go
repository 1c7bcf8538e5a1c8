package main

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/internal/sdnotify"
)

// pulse is the agent's sign of life to the service manager. It asks the agent how
// it does, which takes all its locks: an agent that hangs gives no sign, and is
// restarted.
type pulse struct{ agent atomic.Pointer[agent.Agent] }

// of makes the pulse that of an agent; before, it is that of one that prepares.
func (p *pulse) of(a *agent.Agent) { p.agent.Store(a) }

func (p *pulse) status() string {
	a := p.agent.Load()
	if a == nil {
		return "prepares"
	}
	return a.Status().Summary
}

// beat begins the pulse; stop ends it.
func beat(ctx context.Context) (p *pulse, stop func()) {
	p = &pulse{}
	manager := sdnotify.FromEnvironment()
	if manager == nil {
		return p, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	_ = manager.Say(sdnotify.Ready) // Live tells what is wrong with the socket
	wg.Go(func() { _ = manager.Live(ctx, p.status) })
	return p, func() {
		_ = manager.Say(sdnotify.Stopping)
		cancel()
		wg.Wait()
	}
}
