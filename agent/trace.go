package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/skein-fleet/skein/agent/internal/durable"
	"github.com/skein-fleet/skein/agent/internal/localapi"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

const (
	traceFile = "traces.json"
	maxTraces = 8 // updates that are kept
)

// traces are the updates that ended, newest first.
type traces struct {
	mu   sync.Mutex // guards list
	list []localapi.Trace
}

func (a *Agent) openTraces() error {
	_, err := durable.Read(a.opts.Files, traceFile, &a.ended.list)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, durable.ErrDamaged) {
		return fmt.Errorf("read %s: %w", traceFile, err)
	}
	return nil
}

// traceOf is the update whose lines are in the journal, an empty one for none.
func (a *Agent) traceOf(entries []slot.Entry) (t localapi.Trace) {
	if len(entries) == 0 {
		return t
	}
	last := entries[len(entries)-1]
	t = localapi.Trace{ID: last.Update, Release: string(last.Release), Outcome: "runs"}
	for _, e := range entries {
		if e.Update == last.Update {
			t.Lines = append(t.Lines, stepEntry(e))
		}
	}
	t.Lines = t.Lines[max(0, len(t.Lines)-maxJournal):]
	s := a.state.Get()
	switch {
	case s.Update != nil && s.Update.ID == last.Update:
		t.Name = s.Update.Install.TUFTarget
	case last.Step == ota.StepCommit && last.State == wire.StepDone:
		t.Outcome = "committed"
		if s.Current != nil && s.Current.Release == last.Release {
			t.Name = nameOf(s.Current)
		}
	default:
		t.Outcome = "undone"
	}
	return t
}

// keepTrace keeps the timeline of an update that ended, before the next one
// takes its place in the journal.
func (a *Agent) keepTrace() {
	if a.state.Get().Update != nil {
		return
	}
	t := a.traceOf(a.journal.Entries())
	a.ended.mu.Lock()
	defer a.ended.mu.Unlock()
	if t.ID == "" || slices.ContainsFunc(a.ended.list, func(o localapi.Trace) bool { return o.ID == t.ID }) {
		return
	}
	next := append([]localapi.Trace{t}, a.ended.list...)
	next = next[:min(len(next), maxTraces)]
	if err := durable.Write(a.opts.Files, traceFile, next); err != nil {
		a.noteDisk(err)
		return
	}
	a.ended.list = next
}

// timelines are the newest updates, newest first.
func (a *Agent) timelines() []localapi.Trace {
	a.ended.mu.Lock()
	out := slices.Clone(a.ended.list)
	a.ended.mu.Unlock()
	t := a.traceOf(a.journal.Entries())
	if t.ID == "" || slices.ContainsFunc(out, func(o localapi.Trace) bool { return o.ID == t.ID }) {
		return out
	}
	return append([]localapi.Trace{t}, out...)
}
