package fleet

import (
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

// What a device says of itself is kept, shown and counted, so one device must
// not fill memory, store and screens of all. Longer text is cut, never refused:
// the rest of the message still counts.
const (
	maxWord       = 64   // names of steps, kinds, classes, conditions
	maxName       = 255  // agent version, hardware, target
	maxNote       = 4096 // messages
	maxConditions = 32
	maxJournal    = 64 // newest entries
	maxSources    = 16
	// maxMoves of a device's target or hardware per hour: each makes new series.
	maxMoves = 20
)

// cut shortens s to at most n bytes of whole characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func tidyEvent(e *wire.Event) {
	e.Kind, e.Step, e.Attack, e.Message = cut(e.Kind, maxWord), cut(e.Step, maxWord), cut(e.Attack, maxWord), cut(e.Message, maxNote)
}

func tidyReport(r *wire.Reported) {
	r.Step, r.FailureClass, r.Failure = cut(r.Step, maxWord), cut(r.FailureClass, maxWord), cut(r.Failure, maxNote)
	r.Conditions = r.Conditions[:min(len(r.Conditions), maxConditions)]
	for i := range r.Conditions {
		c := &r.Conditions[i]
		c.Name, c.Message = cut(c.Name, maxWord), cut(c.Message, maxNote)
	}
	r.Sources = r.Sources[:min(len(r.Sources), maxSources)]
	for i := range r.Sources {
		r.Sources[i].Name = cut(r.Sources[i].Name, maxWord)
	}
	tidyTap(r.Tap)
	tidyBoot(r.Boot)
	if a := r.Agent; a != nil {
		a.Version, a.Active, a.Previous, a.Trial, a.Failure = cut(a.Version, maxWord), cut(a.Active, maxWord), cut(a.Previous, maxWord), cut(a.Trial, maxWord), cut(a.Failure, maxNote)
	}
	r.Journal = r.Journal[max(0, len(r.Journal)-maxJournal):]
	for i := range r.Journal {
		j := &r.Journal[i]
		j.Step, j.Message = cut(j.Step, maxWord), cut(j.Message, maxNote)
	}
}

const maxAsked = 17 // the versions that an agent counts apart, and no server

func tidyTap(t *wire.Tap) {
	if t == nil {
		return
	}
	t.Address, t.Asked = cut(t.Address, maxName), t.Asked[:min(len(t.Asked), maxAsked)]
	for i := range t.Asked {
		t.Asked[i].Model, t.Asked[i].Version = cut(t.Asked[i].Model, maxName), cut(t.Asked[i].Version, maxWord)
	}
}

const maxBootEntries = 16

func tidyBoot(b *wire.BootChain) {
	if b == nil {
		return
	}
	b.Driver, b.Version, b.Redundancy, b.Capsule = cut(b.Driver, maxWord), cut(b.Version, maxWord), cut(b.Redundancy, maxWord), cut(b.Capsule, maxWord)
	b.Firmware, b.Rootfs = b.Firmware[:min(len(b.Firmware), maxBootEntries)], b.Rootfs[:min(len(b.Rootfs), maxBootEntries)]
	for _, slots := range [][]wire.BootSlot{b.Firmware, b.Rootfs} {
		for i := range slots {
			slots[i].Status = cut(slots[i].Status, maxWord)
		}
	}
	b.ESRT, b.Traps = b.ESRT[:min(len(b.ESRT), maxBootEntries)], b.Traps[:min(len(b.Traps), maxBootEntries)]
	for i := range b.ESRT {
		b.ESRT[i].Class = cut(b.ESRT[i].Class, maxWord)
	}
	for i := range b.Traps {
		t := &b.Traps[i]
		t.Name, t.Problem, t.Repair = cut(t.Name, maxWord), cut(t.Problem, maxNote), cut(t.Repair, maxNote)
	}
}

// probed takes what the device found out about itself, and says what is wrong
// with it; the caller holds mu.
func (tw *twin) probed(now time.Time, target, hardware string) error {
	hardware = cut(hardware, maxName)
	newTarget, newHardware := target != "" && target != tw.dev.Target, hardware != "" && hardware != tw.dev.Hardware
	if !newTarget && !newHardware {
		return nil
	}
	if tw.moves.over(now, time.Hour, maxMoves) {
		return fmt.Errorf("target or hardware changed more than %d times within an hour: further changes are ignored", maxMoves)
	}
	if newTarget {
		if len(target) > maxName {
			return fmt.Errorf("target has %d bytes, limit %d: it is ignored", len(target), maxName)
		}
		if _, err := ota.ParseTarget(target); err != nil {
			return fmt.Errorf("target is ignored: %w", err)
		}
		tw.dev.Target, tw.targetChanged = target, true
	}
	if newHardware {
		tw.dev.Hardware, tw.targetChanged = hardware, true
	}
	return nil
}
