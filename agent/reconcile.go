package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/reconcile"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

const (
	retryMin = time.Second
	retryMax = time.Minute

	listTimeout = time.Minute
	// maxRounds is how many plans in a row may each ask for something to be
	// done before the next waits: a runtime that lies must not make a busy loop.
	maxRounds = 10
)

// reconcileLoop plans and carries out, whenever something changed and every
// CheckEvery; after an error again with full jitter.
func (a *Agent) reconcileLoop(ctx context.Context) error {
	failures, rounds := 0, 0
	for {
		more, err := a.reconcileOnce(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if rounds++; !more {
			rounds = 0
		}
		if more && err == nil && rounds < maxRounds {
			continue // look again at what is true now
		}
		wait := a.opts.CheckEvery
		if err != nil {
			failures++
			wait = rand.N(min(retryMax, retryMin<<min(failures, 7))) + time.Millisecond
			a.log.Warn("reconcile", "error", err, "again", wait)
		} else {
			failures = 0
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-a.wakeReconcile:
		}
		timer.Stop()
	}
}

// reconcileOnce carries out one plan. An error of one decision does not keep
// the next from being tried: a new release may be what cures the old one. more
// says that something was done, so that there may be more to do.
func (a *Agent) reconcileOnce(ctx context.Context) (more bool, err error) {
	desired, err := a.desired()
	if err != nil {
		return false, err
	}
	actual, err := a.actual(ctx)
	if err != nil {
		return false, err
	}
	decisions := reconcile.Plan(desired, actual, a.now())
	a.noteHold(decisions)
	var errs []error
	for _, d := range decisions {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if d.Kind == reconcile.Restore {
			a.noteDown(d.Reason, actual)
		}
		err := a.exec.Do(ctx, d)
		if err != nil && !errors.Is(err, reconcile.ErrInterrupted) {
			errs = append(errs, fmt.Errorf("%s: %w", d.Kind, err))
			a.noteDisk(err)
		}
		a.wakeReport.set()
	}
	a.noteOutcome(ctx)
	a.keepTrace()
	return decisive(decisions), errors.Join(errs...)
}

// tend looks after the committed workload while a step of an update keeps the
// reconcile loop from it, and runs within it.
func (a *Agent) tend(ctx context.Context) {
	actual, err := a.actual(ctx)
	if err != nil {
		a.log.Warn("look after the committed workload", "error", err)
		return
	}
	if d, down := reconcile.Tend(actual); down {
		a.noteDown(d.Reason, actual)
		if err := a.exec.Do(ctx, d); err != nil && ctx.Err() == nil {
			a.log.Warn("look after the committed workload", "error", err)
		}
	}
	a.noteOutcome(ctx)
}

// noteDown tells that the committed workload does not serve.
func (a *Agent) noteDown(reason string, actual reconcile.Actual) {
	a.log.Info("restore the committed workload", "reason", reason)
	if a.served { // not after a start, when nothing is loaded yet
		a.board.Set(health.WorkloadDown, health.Critical, reason)
		a.board.Event(wire.Event{ID: a.ids.next(), Kind: "crash", Message: reason, Release: actual.Current.Release.Sum()})
		a.noteExit(nameOf(actual.Current) + ": " + reason)
		a.served = false
	}
}

// noteWaiting keeps why a download waits.
func (a *Agent) noteWaiting(err error) {
	if err == nil {
		a.held.set("download", "")
		a.board.Clear(health.DownloadWaits)
		return
	}
	text := "the download waits and is tried again within minutes: " + err.Error()
	a.held.set("download", text)
	a.board.Set(health.DownloadWaits, health.Warning, text)
}

// decisive reports whether the decisions change anything.
func decisive(ds []reconcile.Decision) bool {
	for _, d := range ds {
		if d.Kind != reconcile.Hold && d.Kind != reconcile.StayBack {
			return true
		}
	}
	return false
}

func (a *Agent) actual(ctx context.Context) (reconcile.Actual, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	list, err := a.opts.Runtime.List(ctx)
	if err != nil {
		return reconcile.Actual{}, fmt.Errorf("list workloads: %w", err)
	}
	s := a.state.Get()
	return reconcile.Actual{Current: s.Current, Update: s.Update, Failure: s.Failure, Loaded: list}, nil
}

// noteHold keeps why nothing starts, for explain and as a condition.
func (a *Agent) noteHold(ds []reconcile.Decision) {
	reason := ""
	for _, d := range ds {
		switch d.Kind {
		case reconcile.Hold:
			reason = d.Reason
			a.board.Set(health.UpdateHeld, health.Warning, d.Reason)
		case reconcile.StayBack:
			reason = d.Reason
		}
	}
	if reason == "" {
		a.board.Clear(health.UpdateHeld)
	}
	a.held.set("update", reason)
}

// noteOutcome sets the conditions that follow from where the device stands.
func (a *Agent) noteOutcome(ctx context.Context) {
	s := a.state.Get()
	if f := s.Failure; f != nil {
		a.board.Set(health.UpdateFailed, health.Warning, fmt.Sprintf("%s at %s: %s", f.Class, f.Step, f.Cause))
	} else {
		a.board.Clear(health.UpdateFailed)
	}
	a.noteServers(s.Current.WorkloadID())
	actual, err := a.actual(ctx)
	if err != nil {
		return
	}
	if s.Current == nil || s.Update != nil && serves(actual.Loaded, s.Update.Install.WorkloadID()) || serves(actual.Loaded, s.Current.WorkloadID()) {
		a.board.Clear(health.WorkloadDown)
		a.served = s.Current != nil
		return
	}
	a.served = false
	a.board.Set(health.WorkloadDown, health.Critical, fmt.Sprintf("%s %s does not serve", s.Current.Name, s.Current.Version))
}

func serves(list []runtime.Status, id string) bool {
	for _, s := range list {
		if s.ID == id && s.Serving && s.Ready {
			return true
		}
	}
	return false
}

// noteDisk keeps the conditions of a full disk and of one that cannot be
// written; nil clears them.
func (a *Agent) noteDisk(err error) {
	_, failing := errors.AsType[*fs.PathError](err)
	switch {
	case err == nil:
		a.board.Clear(health.DiskFull)
		a.board.Clear(health.DiskFailing)
	case errors.Is(err, slot.ErrDiskFull):
		a.board.Set(health.DiskFull, health.Critical, err.Error())
	case failing || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EIO):
		a.board.Set(health.DiskFailing, health.Critical, err.Error())
	}
}

// noteRefused tells what of a release looks like an attack; each update tells
// of few, and is itself told of by the director.
func (a *Agent) noteRefused(class string, release ota.Digest, message string) {
	a.log.Warn("refused", "attack", class, "release", release.Short(), "error", message)
	a.board.Event(wire.Event{ID: a.ids.next(), Kind: "refused", Attack: class, Message: clipText(message, maxCauseText), Release: release.Sum()})
}

// observeStep tells each journal line.
func (a *Agent) observeStep(e slot.Entry) {
	a.log.Info("update", "step", string(e.Step), "state", e.State.String(), "release", e.Release.Short(), "message", e.Message)
	message := e.State.String()
	if e.Message != "" {
		message += ": " + e.Message
	}
	a.board.Event(wire.Event{ID: a.ids.next(), Kind: "step", Message: message, Release: e.Release.Sum(), Step: string(e.Step)})
	a.wakeReport.set()
}

// goldenShare is the result of the last golden run, for telemetry.
type goldenShare struct {
	mu      sync.Mutex // guards what follows
	model   string
	version string
	share   float64
	known   bool
}

func (a *Agent) observeProof(i *state.Install, ok bool) {
	a.golden.mu.Lock()
	a.golden.model, a.golden.version, a.golden.known, a.golden.share = i.Model, i.ModelVersion, true, 0
	if ok {
		a.golden.share = 1
	}
	a.golden.mu.Unlock()
	cur := a.state.Get().Current
	if cur.WorkloadID() != i.WorkloadID() {
		return // an update: its failure is told by the journal
	}
	a.board.Update(!ok, health.GoldenFailed, health.Critical, fmt.Sprintf("%s %s answers its golden set wrongly", i.Name, i.Version))
}
