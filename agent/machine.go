package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/boot"
	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/reconcile"
	"github.com/skein-fleet/skein/agent/internal/selfupdate"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// Bootloader is the boot chain of a machine with two root file systems.
type Bootloader = boot.Bootloader

// What a Bootloader tells.
type (
	BootInventory = boot.Inventory
	BootChain     = boot.Chain
	BootSlot      = boot.Slot
	BootFirmware  = boot.Firmware
	BootTrap      = boot.Trap
)

// The states of slots, redundancy and capsules.
const (
	SlotNormal        = boot.Normal
	SlotUnbootable    = boot.Unbootable
	RedundancyArmed   = boot.Armed
	RedundancyUnarmed = boot.NotArmed
	CapsuleNone       = boot.CapsuleNone
	CapsulePending    = boot.CapsulePending
	CapsuleApplied    = boot.CapsuleApplied
	CapsuleFailed     = boot.CapsuleFailed
)

// SelfUpdate are the slots of the agent's own binary.
type SelfUpdate interface {
	reconcile.Agents
	CheckIn() error
	Settle(update string, current ota.Digest) (restart bool, err error)
}

// OpenSelfUpdate opens the slots under files for an agent that was started
// from slot, of the program at that path.
func OpenSelfUpdate(files slot.Files, from, program string) (SelfUpdate, error) {
	s, err := selfupdate.Open(files)
	if err != nil {
		return nil, err
	}
	return &selfupdate.Self{Slots: s, Slot: from, Program: program}, nil
}

// ErrHandover is what Run returns when another binary of the agent has to be
// started now: its slots say which.
var ErrHandover = reconcile.ErrHandover

// CrashPoints names the moments at which Options.PointHook is called.
func CrashPoints() []string { return reconcile.Points() }

func agentsOf(s SelfUpdate) reconcile.Agents {
	if s == nil {
		return nil
	}
	return s
}

// handOver ends Run.
func (a *Agent) handOver(cause error) {
	if cancel := a.hand.Load(); cancel != nil {
		(*cancel)(fmt.Errorf("agent: %w", cause))
	}
}

// settleAgent brings the agent's slots in line with what is committed.
func (a *Agent) settleAgent() error {
	if a.opts.Agents == nil {
		return nil
	}
	s := a.state.Get()
	update, current := "", ota.Digest("")
	if s.Update != nil {
		update = s.Update.ID
	}
	if s.Current != nil {
		current = s.Current.Release
	}
	restart, err := a.opts.Agents.Settle(update, current)
	a.noteDisk(err)
	if restart && err == nil {
		return ErrHandover
	}
	r := a.opts.Agents.Record()
	if r.Note != "" {
		a.board.Set(health.AgentFellBack, health.Warning, r.Note)
	}
	return nil
}

const trialEvery = time.Second

// trialLoop says to the supervisor that this agent, when it is a new one on
// trial, is in order: it has its link or, offline, what is committed serves.
func (a *Agent) trialLoop(ctx context.Context) error {
	if a.opts.Agents == nil || !a.opts.Agents.OnTrial() {
		return nil
	}
	for {
		if a.inOrder(ctx) {
			err := a.opts.Agents.CheckIn()
			if err == nil {
				a.log.Info("the new agent is in order")
				a.wakeReport.set()
				return nil
			}
			a.noteDisk(err)
		}
		if !pause(ctx, trialEvery) {
			return nil
		}
	}
}

func (a *Agent) inOrder(ctx context.Context) bool {
	if up, _ := a.conn.up(); up {
		return true
	}
	actual, err := a.actual(ctx)
	if err != nil {
		return false
	}
	s := a.state.Get()
	return s.Current == nil || serves(actual.Loaded, s.Current.WorkloadID()) || s.Update != nil && serves(actual.Loaded, s.Update.Install.WorkloadID())
}

// bootTruth is the newest inventory of the boot chain.
type bootTruth struct {
	mu  sync.Mutex // guards inv
	inv *boot.Inventory
}

func (b *bootTruth) get() *boot.Inventory {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.inv
}

const (
	bootEvery    = time.Hour
	confirmEvery = 10 * time.Second
)

// bootLoop keeps the inventory of the boot chain: its traps are told long
// before an update would fall into one.
func (a *Agent) bootLoop(ctx context.Context) error {
	if a.opts.Boot == nil {
		return nil
	}
	a.lookAtBoot(ctx)
	for !a.inOrder(ctx) {
		if !pause(ctx, trialEvery) {
			return nil
		}
	}
	for !a.confirmBoot(ctx) {
		if !pause(ctx, confirmEvery) {
			return nil
		}
		a.lookAtBoot(ctx)
	}
	for {
		a.lookAtBoot(ctx)
		if !pause(ctx, bootEvery) {
			return nil
		}
	}
}

// confirmBoot says that the running system works: each start that nobody
// confirms costs the slot one of three tries, and one without any is given up
// by the firmware for good. It returns false while a system is on trial, which
// its update confirms, or gives up.
func (a *Agent) confirmBoot(ctx context.Context) bool {
	inv := a.boots.get()
	if u := a.state.Get().Update; inv == nil || u != nil && u.OS != nil && u.OS.Switched || inv.Rootfs.Active != inv.Rootfs.Current {
		return false
	}
	if !inv.MarksGood {
		return true
	}
	err := a.opts.Boot.MarkGood(ctx)
	if err != nil && ctx.Err() == nil {
		a.log.Warn("confirm this start of the machine", "error", err)
	}
	return err == nil
}

// watchedBoot is a boot chain whose inventories, whoever asks, are told.
type watchedBoot struct {
	Bootloader
	note func(boot.Inventory)
}

// Inventory implements Bootloader.
func (w watchedBoot) Inventory(ctx context.Context) (boot.Inventory, error) {
	inv, err := w.Bootloader.Inventory(ctx)
	if err == nil {
		w.note(inv)
	}
	return inv, err
}

// bootOf is the boot chain for the executor: what its preflight sees is told at
// once.
func (a *Agent) bootOf(b Bootloader) boot.Bootloader {
	if b == nil {
		return nil
	}
	return watchedBoot{b, a.noteBoot}
}

func (a *Agent) lookAtBoot(ctx context.Context) {
	inv, err := a.opts.Boot.Inventory(ctx)
	if err != nil {
		if ctx.Err() == nil {
			a.log.Warn("boot chain", "error", err)
			a.board.Set(health.BootChain, health.Warning, "the boot chain cannot be read: "+err.Error())
		}
		return
	}
	a.noteBoot(inv)
}

// noteBoot keeps an inventory and the condition that follows from it.
func (a *Agent) noteBoot(inv boot.Inventory) {
	a.boots.mu.Lock()
	a.boots.inv = &inv
	a.boots.mu.Unlock()
	u := a.state.Get().Update
	err := inv.Ready()
	if u != nil && u.OS != nil { // its own switch is no trap
		err = nil
	}
	if err == nil {
		a.board.Clear(health.BootChain)
	} else {
		a.board.Set(health.BootChain, health.Warning, clipText(err.Error(), maxCauseText))
	}
	a.wakeReport.set()
}

// reportedBoot is the inventory in its form for the link.
func (a *Agent) reportedBoot() *wire.BootChain {
	inv := a.boots.get()
	if inv == nil {
		return nil
	}
	out := &wire.BootChain{Driver: inv.Driver, Version: inv.Version, Redundancy: string(inv.Redundancy), Capsule: string(inv.Capsule),
		Firmware: wireSlots(inv.Firmware), Rootfs: wireSlots(inv.Rootfs)}
	for _, f := range inv.ESRT {
		out.ESRT = append(out.ESRT, wire.BootFirmware{Class: f.Class, Version: f.Version, Lowest: f.Lowest, Attempted: f.Attempted, Status: f.AttemptStatus})
	}
	for _, t := range inv.Traps() {
		out.Traps = append(out.Traps, wire.BootTrap{Name: t.Name, Problem: clipText(t.Problem, 512), Repair: clipText(t.Repair, 512)})
	}
	return out
}

func wireSlots(c boot.Chain) []wire.BootSlot {
	var out []wire.BootSlot
	for _, s := range c.Slots {
		out = append(out, wire.BootSlot{Number: uint8(s.Number), Status: string(s.Status), Retries: int8(max(-1, min(s.Retries, 127))),
			Current: s.Number == c.Current, Active: s.Number == c.Active})
	}
	return out
}

// reportedAgent says which binary of the agent runs.
func (a *Agent) reportedAgent() *wire.AgentSlots {
	out := &wire.AgentSlots{Version: a.opts.Version}
	if a.opts.Agents == nil {
		return out
	}
	r := a.opts.Agents.Record()
	out.Active, out.Previous = r.Active, r.Previous
	if b, ok := r.Slots[r.Active]; ok {
		out.Digest = b.Digest.Sum()
	}
	if t := r.Trial; t != nil {
		out.Trial, out.TriesLeft, out.CheckedIn = t.Slot, uint8(max(0, t.TriesLeft)), t.CheckedIn
		out.Digest = r.Slots[t.Slot].Digest.Sum()
	}
	if f := r.Failed; f != nil {
		out.Failure = clipText(f.Cause, 512)
	}
	return out
}

// osWords says in words what holds for operating system and boot chain.
func (a *Agent) osWords(s state.State) (words []string) {
	inv := a.boots.get()
	if inv == nil {
		return nil
	}
	if o := s.Update; o != nil && o.OS != nil {
		words = append(words, fmt.Sprintf("the operating system is on its way from slot %c to slot %c", 'A'+o.OS.From, 'A'+o.OS.Slot))
	}
	for _, t := range inv.Traps() {
		words = append(words, "boot chain: "+t.String())
	}
	return words
}
