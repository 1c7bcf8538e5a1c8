// Package selfupdate replaces the agent by the one that a release carries. It
// owns two slots under the state folder (agent/a, agent/b), the record that
// says which of them runs, and the supervisor that starts it: a new binary runs
// on trial, with few tries that are written down before each start and a time
// by which it must have checked in; else the one before it runs again and the
// cause is kept.
//
// Invariants: a binary is whole, for this machine and durable before the
// record names it; the record is one file, replaced at once; the supervisor
// writes it only while no agent runs, the agent only while it runs; whatever
// happens to both slots, the installed binary (the factory's) is left. The root
// of the agent module and its command import it.
package selfupdate

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/durable"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
)

const (
	recordFile = "agent/slots.json"
	binaryName = "skein-agent"
	version    = 1

	// Factory is the binary that was installed with the machine.
	Factory = "factory"
	slotA   = "a"
	slotB   = "b"

	// Tries is how often a binary on trial is started before it is given up.
	Tries = 5
)

// Binary is what a slot holds.
type Binary struct {
	Digest ota.Digest `json:"digest"`
	Size   int64      `json:"size"`
}

// Trial is a binary that has to show that it works.
type Trial struct {
	Slot    string     `json:"slot"`
	Update  string     `json:"update"`  // that brought it
	Release ota.Digest `json:"release"` // of which it is
	// TriesLeft is written before each start.
	TriesLeft int `json:"tries_left"`
	// CheckedIn is written by the binary once it found itself in order.
	CheckedIn bool `json:"checked_in,omitzero"`
	// Cause is how the last start ended.
	Cause string `json:"cause,omitzero"`
}

// Failed is the last trial that did not succeed.
type Failed struct {
	Update string     `json:"update"`
	Digest ota.Digest `json:"digest"`
	Cause  string     `json:"cause"`
	Time   time.Time  `json:"time"`
}

// Record says which binary runs.
type Record struct {
	Version int `json:"version"`
	// Active is the slot that runs when nothing is on trial, Factory at first;
	// Previous is the one before it.
	Active   string            `json:"active"`
	Previous string            `json:"previous,omitzero"`
	Slots    map[string]Binary `json:"slots,omitzero"` // replaced as a whole
	Trial    *Trial            `json:"trial,omitzero"`
	Failed   *Failed           `json:"failed,omitzero"`
	// Note says why another slot than Active runs.
	Note string `json:"note,omitzero"`
}

// Slots are the two places for binaries. They are safe for concurrent use in
// one process; supervisor and agent take turns.
type Slots struct {
	files slot.Files

	mu  sync.Mutex // guards rec
	rec Record
}

// Open reads the record. One that is damaged, with its copy, counts as none:
// then the factory's binary runs.
func Open(f slot.Files) (*Slots, error) {
	s := &Slots{files: f}
	return s, s.reload()
}

func (s *Slots) reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec = Record{Version: version, Active: Factory}
	var r Record
	_, err := durable.Read(s.files, recordFile, &r)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, durable.ErrDamaged):
		s.rec.Note = "the record of the agent's slots was damaged"
		return nil
	case err != nil:
		return fmt.Errorf("read the agent's slots: %w", err)
	case r.Version != version:
		s.rec.Note = fmt.Sprintf("the record of the agent's slots has version %d, this program knows %d", r.Version, version)
		return nil
	}
	s.rec = r
	return nil
}

// Record returns what is written.
func (s *Slots) Record() Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec
}

// change replaces the record and its copy.
func (s *Slots) change(f func(*Record)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := s.rec
	f(&next)
	if err := durable.Write(s.files, recordFile, next); err != nil {
		return fmt.Errorf("write the agent's slots: %w", err)
	}
	// Best effort: it stands in for a damaged record only.
	_ = durable.WriteCopy(s.files, recordFile, next)
	s.rec = next
	return nil
}

// file is the binary of a slot.
func file(slot string) string { return "agent/" + slot + "/" + binaryName }

// idle is the slot that nothing needs: neither what is active nor what was before.
func (r Record) idle() string {
	if r.Active == slotA {
		return slotB
	}
	if r.Active == slotB {
		return slotA
	}
	if r.Previous == slotA {
		return slotB
	}
	return slotA
}

// Put writes a binary into the idle slot: synced, read back and checked to be
// a program for this machine. It returns the slot. What is there already is
// left; what was put before and is not this is replaced.
func (s *Slots) Put(ctx context.Context, d ota.Digest, size int64, binary io.Reader) (slot string, err error) {
	r := s.Record()
	slot = r.idle()
	if r.Slots[slot] == (Binary{d, size}) && s.holds(ctx, slot, d) == nil {
		return slot, nil
	}
	// The record forgets the slot before its content changes.
	if _, known := r.Slots[slot]; known {
		if err := s.change(func(r *Record) { r.set(slot, Binary{}) }); err != nil {
			return "", err
		}
	}
	if err := s.write(ctx, slot, binary); err != nil {
		return "", fmt.Errorf("write agent slot %s: %w", slot, err)
	}
	if err := s.holds(ctx, slot, d); err != nil {
		return "", fmt.Errorf("agent slot %s: %w", slot, err)
	}
	f, err := s.files.Open(file(slot))
	if err != nil {
		return "", fmt.Errorf("agent slot %s: %w", slot, err)
	}
	err = CheckBinary(f)
	f.Close()
	if err != nil {
		return "", err
	}
	return slot, s.change(func(r *Record) { r.set(slot, Binary{d, size}) })
}

// set replaces the content of a slot; the map is never written through.
func (r *Record) set(slot string, b Binary) {
	next := map[string]Binary{}
	maps.Copy(next, r.Slots)
	if b.Digest == "" {
		delete(next, slot)
	} else {
		next[slot] = b
	}
	r.Slots = next
}

func (s *Slots) write(ctx context.Context, slot string, binary io.Reader) (err error) {
	if err := s.files.Remove("agent/" + slot); err != nil {
		return err
	}
	out, err := s.files.OpenAppend(file(slot))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, reader{ctx, binary}); err != nil {
		return err
	}
	if err := out.Sync(); err != nil {
		return err
	}
	return s.files.Sync()
}

// holds checks the content of a slot.
func (s *Slots) holds(ctx context.Context, slot string, d ota.Digest) error {
	f, err := s.files.Open(file(slot))
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, reader{ctx, f}); err != nil {
		return err
	}
	if got := ota.DigestFromSum([sha256.Size]byte(h.Sum(nil))); got != d {
		return fmt.Errorf("it reads back as %s, %s was written", got.Short(), d.Short())
	}
	return nil
}

// Try lets the binary of a slot be started on trial from the next start on.
func (s *Slots) Try(slot, update string, release ota.Digest) error {
	return s.change(func(r *Record) {
		r.Trial = &Trial{Slot: slot, Update: update, Release: release, TriesLeft: Tries}
		r.Failed = nil
	})
}

// CheckIn is said by a binary on trial when it found itself in order.
func (s *Slots) CheckIn() error {
	if t := s.Record().Trial; t == nil || t.CheckedIn {
		return nil
	}
	return s.change(func(r *Record) {
		next := *r.Trial
		next.CheckedIn, next.Cause = true, ""
		r.Trial = &next
	})
}

// Keep makes the binary on trial the active one.
func (s *Slots) Keep() error {
	if s.Record().Trial == nil {
		return nil
	}
	return s.change(func(r *Record) {
		r.Previous, r.Active, r.Trial, r.Note = r.Active, r.Trial.Slot, nil, ""
	})
}

// GoBack ends a trial without blame on the binary: the release that it came
// with did not become final.
func (s *Slots) GoBack() error {
	if s.Record().Trial == nil {
		return nil
	}
	return s.change(func(r *Record) { r.Trial = nil })
}

// fail ends a trial and keeps its cause.
func (s *Slots) fail(cause string, now time.Time) error {
	return s.change(func(r *Record) {
		r.Failed = &Failed{Update: r.Trial.Update, Digest: r.Slots[r.Trial.Slot].Digest, Cause: cause, Time: now}
		r.Trial = nil
	})
}

// reader ends reading when ctx does.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (c reader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
