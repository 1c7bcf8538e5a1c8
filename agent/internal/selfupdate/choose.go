package selfupdate

import (
	"context"
	"fmt"
	"time"
)

// Choose returns the slot to start: of a trial, whose try is written down
// first, or the active one when its binary is whole, else what was before. It
// is the supervisor's to call, as Ended and GiveUp are, while no agent runs.
func (s *Slots) Choose(ctx context.Context, now time.Time) (slot string, err error) {
	if t := s.Record().Trial; t != nil {
		name, err := s.try(ctx, *t, now)
		if name != "" || err != nil {
			return name, err
		}
	}
	r := s.Record()
	for _, name := range []string{r.Active, r.Previous} {
		if name == "" || name == Factory {
			break
		}
		err := s.holds(ctx, name, r.Slots[name].Digest)
		if err == nil {
			return name, nil
		}
		note := fmt.Sprintf("the agent in slot %s is damaged: %v", name, err)
		if r.Note != note {
			_ = s.change(func(r *Record) { r.Note = note }) // for people; what runs does not depend on it
		}
	}
	return Factory, nil
}

// try counts one start of a trial, or ends the trial when there are no more.
func (s *Slots) try(ctx context.Context, t Trial, now time.Time) (slot string, err error) {
	if err := s.holds(ctx, t.Slot, s.Record().Slots[t.Slot].Digest); err != nil {
		return "", s.fail(fmt.Sprintf("the new agent in slot %s is damaged: %v", t.Slot, err), now)
	}
	if t.TriesLeft <= 0 {
		cause := fmt.Sprintf("the new agent ended %d times before its release was final", Tries)
		if t.Cause != "" {
			cause += "; the last time: " + t.Cause
		}
		return "", s.fail(cause, now)
	}
	t.TriesLeft--
	t.CheckedIn = false
	// A try that cannot be counted is none.
	return t.Slot, s.change(func(r *Record) { r.Trial = &t })
}

// Ended keeps how a try ended.
func (s *Slots) Ended(cause string) error {
	if err := s.reload(); err != nil || s.Record().Trial == nil {
		return err
	}
	return s.change(func(r *Record) {
		next := *r.Trial
		next.Cause = cause
		r.Trial = &next
	})
}

// GiveUp ends a trial whose binary did not check in.
func (s *Slots) GiveUp(cause string, now time.Time) error {
	if err := s.reload(); err != nil || s.Record().Trial == nil {
		return err
	}
	return s.fail(cause, now)
}
