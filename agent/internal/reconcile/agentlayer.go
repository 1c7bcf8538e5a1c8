package reconcile

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/skein-fleet/skein/agent/internal/selfupdate"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/ota"
)

// Agents are the slots of the agent's own binary; selfupdate.Self is them.
type Agents interface {
	// Running is the content of the binary that runs.
	Running(ctx context.Context) (ota.Digest, error)
	OnTrial() bool
	Record() selfupdate.Record
	Put(ctx context.Context, d ota.Digest, size int64, binary io.Reader) (slot string, err error)
	Try(slot, update string, release ota.Digest) error
	Keep() error
	GoBack() error
}

var (
	// ErrHandover is the cause with which the agent ends to be started again
	// from another slot.
	ErrHandover = errors.New("the agent is started again from another slot")
	// ErrNewAgent marks a release whose agent did not hold.
	ErrNewAgent = errors.New("the release's agent does not work here")
)

// maxPlanned bounds how often one update may end the agent or the board on
// purpose: more means that the restarts do not lead where they should.
const maxPlanned = 12

// stageAgent makes the binary that the release carries the running one: it
// goes to the idle slot and this process gives way to it. The new one comes
// back here and finds itself running. So everything after, up to the commit, is
// done by the agent that will look after the release.
func (x *Executor) stageAgent(ctx context.Context, a *attempt, c *contents) (note string, err error) {
	if c.agent == nil {
		return "", nil
	}
	if x.Agents == nil {
		return "", fmt.Errorf("%w: it brings an agent, and nothing here can start another one: run this agent by skein-agent supervise (deploy/systemd/skein-agent.service)", ErrRejected)
	}
	running, err := x.Agents.Running(ctx)
	if err != nil {
		return "", err
	}
	if running == c.agent.Digest {
		return "agent " + running.Short() + " runs", nil
	}
	if f := x.Agents.Record().Failed; f != nil && f.Update == a.update.ID {
		return "", fmt.Errorf("%w: %s", ErrNewAgent, f.Cause)
	}
	in, _, err := x.Blobs.Open(ctx, c.agent.Digest)
	if err != nil {
		return "", fmt.Errorf("read the agent's binary: %w", err)
	}
	x.Point("agent:before-put")
	slot, err := x.Agents.Put(ctx, c.agent.Digest, c.agent.Size, in)
	in.Close()
	if err != nil {
		return "", err
	}
	if err := x.planRestart(a); err != nil {
		return "", err
	}
	x.Point("agent:before-try")
	if err := x.Agents.Try(slot, a.update.ID, a.install.Release); err != nil {
		return "", err
	}
	x.Logger.Info("the agent gives way to the one of the release", "slot", slot, "agent", c.agent.Digest.Short())
	x.Point("agent:before-handover")
	return "", x.handOver(ctx)
}

// planRestart notes an end of the agent that is meant.
func (x *Executor) planRestart(a *attempt) error {
	if a.update.Planned >= maxPlanned {
		return fmt.Errorf("%d restarts for this update did not lead to what it brings", a.update.Planned)
	}
	err := x.State.Change(func(s *state.State) {
		next := *s.Update
		next.Planned++
		s.Update = &next
	})
	a.update = x.State.Get().Update
	return err
}

// handOver ends the agent and waits for its end.
func (x *Executor) handOver(ctx context.Context) error {
	x.Restart(ErrHandover)
	<-ctx.Done()
	return context.Cause(ctx)
}

// undoAgent goes back to the agent before.
func (x *Executor) undoAgent(ctx context.Context, u *state.Update) error {
	if x.Agents == nil {
		return nil
	}
	if t := x.Agents.Record().Trial; t == nil || t.Update != u.ID {
		return nil
	}
	mine := x.Agents.OnTrial()
	x.Point("agent:before-back")
	if err := x.Agents.GoBack(); err != nil {
		return err
	}
	if mine {
		return x.handOver(ctx)
	}
	return nil
}

// keepAgent makes the agent of a committed release the one to stay. When it
// cannot be written the next start does it.
func (x *Executor) keepAgent(u *state.Update) {
	if x.Agents == nil || u == nil {
		return
	}
	if t := x.Agents.Record().Trial; t == nil || t.Update != u.ID {
		return
	}
	x.Point("agent:before-keep")
	if err := x.Agents.Keep(); err != nil {
		x.Logger.Warn("keep the release's agent", "error", err)
	}
}
