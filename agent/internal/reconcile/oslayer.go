package reconcile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/skein-fleet/skein/agent/internal/boot"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// An OS image and the engines made for it are one transaction: the image goes
// to the slot that does not run, the machine starts into it, the engines of the
// release are loaded, proven and watched there, and only the commit makes the
// slot good. Whatever fails before leads back to the old system with its old
// engines, whose files nobody touched.

// ErrOS marks a release whose operating system did not hold.
var ErrOS = errors.New("the release's operating system does not work here")

const (
	// rebootPatience is how long a machine that was told to restart may take.
	rebootPatience = 10 * time.Minute
	// maxReturns bounds the tries to get back to the old system.
	maxReturns = 3
)

// osWanted says whether a release's OS image is not what runs: the device has
// not the target that the image leads to, or was given another image before.
func (x *Executor) osWanted(l manifest.Descriptor, after ota.Target) bool {
	s := x.State.Get()
	if u := s.Update; u != nil && u.OS != nil && u.OS.Image == l.Digest && u.OS.Arrived {
		return false
	}
	if !has(x.Target(), after) {
		return true
	}
	return s.OS != "" && s.OS != l.Digest
}

// has reports whether a device has all that a target names.
func has(dev, want ota.Target) bool {
	if dev.OS != want.OS || dev.Arch != want.Arch {
		return false
	}
	for k, v := range want.Attrs {
		if dev.Attrs[k] != v {
			return false
		}
	}
	return true
}

// checkBoot refuses, before the first byte of an image, what a boot chain could
// not take.
func (x *Executor) checkBoot(ctx context.Context, c *contents) error {
	u := x.State.Get().Update
	if c.os == nil || u != nil && u.OS != nil { // under way: its own switch is no trap
		return nil
	}
	if x.Boot == nil {
		return fmt.Errorf("%w: it brings an operating system, and this device has no A/B boot chain that is known here", ErrRejected)
	}
	inv, err := x.Boot.Inventory(ctx)
	if err != nil {
		return fmt.Errorf("read the boot chain: %w", err)
	}
	if err := inv.Ready(); err != nil {
		return fmt.Errorf("%w: %w", ErrRejected, err)
	}
	return nil
}

// stageOS brings the machine to run the release's OS image. It comes back here
// after the restart.
func (x *Executor) stageOS(ctx context.Context, a *attempt, c *contents) (note string, err error) {
	u := a.update
	if c.os == nil && u.OS == nil {
		return "", nil
	}
	if x.Boot == nil {
		return "", fmt.Errorf("%w: it brings an operating system, and this device has no A/B boot chain that is known here", ErrRejected)
	}
	inv, err := x.Boot.Inventory(ctx)
	if err != nil {
		return "", fmt.Errorf("read the boot chain: %w", err)
	}
	switch {
	case u.OS != nil && inv.Rootfs.Current == u.OS.Slot:
		return x.arrived(a)
	case u.OS != nil && u.OS.Switched && u.OS.Boot != x.BootID():
		return "", fmt.Errorf("%w: the machine came back on slot %s: %s", ErrOS, letterOf(u.OS.From), fellBack(inv, u.OS.Slot))
	case u.OS == nil:
		other, _ := inv.Rootfs.Other()
		if err := x.noteOS(a, func(o *state.OS) {
			*o = state.OS{Image: c.os.Digest, Target: c.after.String(), Slot: other.Number, From: inv.Rootfs.Current}
		}); err != nil {
			return "", err
		}
	}
	if err := x.writeOS(ctx, a, c); err != nil {
		return "", err
	}
	return "", x.switchOS(ctx, a)
}

// writeOS fills the slot, once.
func (x *Executor) writeOS(ctx context.Context, a *attempt, c *contents) error {
	o := a.update.OS
	if o.Written {
		return nil
	}
	if c.os == nil || c.os.Digest != o.Image {
		return fmt.Errorf("%w: the image that was begun is not the one of the release", ErrOS)
	}
	in, size, err := x.Blobs.Open(ctx, c.os.Digest)
	if err != nil {
		return fmt.Errorf("read the OS image: %w", err)
	}
	defer in.Close()
	x.Point("os:before-write")
	if err := x.Boot.WriteSlot(ctx, o.Slot, io.LimitReader(in, size), size, c.os.Digest); err != nil {
		return fmt.Errorf("write slot %s: %w", letterOf(o.Slot), err)
	}
	x.Point("os:before-written")
	return x.noteOS(a, func(o *state.OS) { o.Written = true })
}

// switchOS restarts the machine into the slot.
func (x *Executor) switchOS(ctx context.Context, a *attempt) error {
	if err := x.planRestart(a); err != nil {
		return err
	}
	x.Point("os:before-active")
	if err := x.Boot.SetActive(ctx, a.update.OS.Slot); err != nil {
		return fmt.Errorf("make slot %s the next: %w", letterOf(a.update.OS.Slot), err)
	}
	inv, err := x.Boot.Inventory(ctx)
	if err != nil {
		return fmt.Errorf("read the boot chain: %w", err)
	}
	if inv.Rootfs.Active != boot.NoNumber && inv.Rootfs.Active != a.update.OS.Slot {
		return fmt.Errorf("%w: the boot chain was told to start slot %s next and would start slot %s", ErrOS, letterOf(a.update.OS.Slot), letterOf(inv.Rootfs.Active))
	}
	x.Point("os:before-switched")
	if err := x.noteOS(a, func(o *state.OS) { o.Switched, o.Boot = true, x.BootID() }); err != nil {
		return err
	}
	x.Point("os:before-reboot")
	x.Logger.Info("the machine restarts into the new operating system", "slot", letterOf(a.update.OS.Slot))
	return x.reboot(ctx)
}

// arrived checks that the system that runs is the one that was promised.
func (x *Executor) arrived(a *attempt) (string, error) {
	o := a.update.OS
	after, err := ota.ParseTarget(o.Target)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrOS, err)
	}
	if !has(x.Target(), after) {
		return "", fmt.Errorf("%w: it was to make this device %s, it is %s", ErrOS, after, x.Target())
	}
	return "runs the new operating system in slot " + letterOf(o.Slot), nil
}

// noteArrival is called before the steps of an update run again: from then on
// the release is read with the eyes of the new system.
func (x *Executor) noteArrival(ctx context.Context, a *attempt) error {
	o := a.update.OS
	if o == nil || o.Arrived || x.Boot == nil {
		return nil
	}
	inv, err := x.Boot.Inventory(ctx)
	if err != nil {
		return fmt.Errorf("read the boot chain: %w", err)
	}
	if inv.Rootfs.Current != o.Slot {
		return nil
	}
	return x.noteOS(a, func(o *state.OS) { o.Arrived = true })
}

// undoOS goes back to the old system; the update goes on being undone there.
func (x *Executor) undoOS(ctx context.Context, u *state.Update) error {
	if u.OS == nil || x.Boot == nil {
		return nil
	}
	inv, err := x.Boot.Inventory(ctx)
	if err != nil {
		return fmt.Errorf("read the boot chain: %w", err)
	}
	if inv.Rootfs.Current != u.OS.Slot {
		if inv.Rootfs.Active != boot.NoNumber && inv.Rootfs.Active != inv.Rootfs.Current {
			return x.Boot.SetActive(ctx, inv.Rootfs.Current)
		}
		return nil
	}
	if u.OS.Returns >= maxReturns {
		x.Logger.Error("the old system does not start any more; this device stays on the new one without its release", "slot", letterOf(u.OS.From))
		return nil
	}
	if err := x.State.Change(func(s *state.State) {
		next, o := *s.Update, *s.Update.OS
		o.Returns++
		next.OS = &o
		s.Update = &next
	}); err != nil {
		return err
	}
	x.Point("os:before-back")
	if err := x.Boot.SetActive(ctx, u.OS.From); err != nil {
		return fmt.Errorf("make slot %s the next: %w", letterOf(u.OS.From), err)
	}
	x.Point("os:before-reboot-back")
	x.Logger.Info("the machine goes back to the old operating system", "slot", letterOf(u.OS.From), "cause", u.Cause)
	return x.reboot(ctx)
}

// commitOS makes the slot good, before the release is final: a machine whose
// slot is good and whose update is not done goes on with it.
func (x *Executor) commitOS(ctx context.Context, u *state.Update) error {
	if u.OS == nil || x.Boot == nil {
		return nil
	}
	x.Point("os:before-good")
	return x.Boot.MarkGood(ctx)
}

func (x *Executor) noteOS(a *attempt, f func(*state.OS)) error {
	err := x.State.Change(func(s *state.State) {
		next, o := *s.Update, state.OS{}
		if next.OS != nil {
			o = *next.OS
		}
		f(&o)
		next.OS = &o
		s.Update = &next
	})
	if err != nil {
		return fmt.Errorf("note the operating system's update: %w", err)
	}
	a.update = x.State.Get().Update
	return nil
}

// reboot asks for a restart and waits for the end.
func (x *Executor) reboot(ctx context.Context) error {
	if err := x.Boot.Reboot(ctx); err != nil {
		return err
	}
	timer := time.NewTimer(rebootPatience)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fmt.Errorf("%w: the machine was told to restart and did not within %s", ErrOS, rebootPatience)
	}
}

func letterOf(slot int) string { return string(rune('A' + slot)) }

// fellBack says what the firmware thinks of the slot that did not start.
func fellBack(inv boot.Inventory, slot int) string {
	s, ok := inv.Rootfs.Slot(slot)
	if !ok {
		return "the other slot is gone"
	}
	text := fmt.Sprintf("slot %s did not start, the firmware calls it %s", letterOf(slot), s.Status)
	if s.Retries != boot.NoNumber {
		text += fmt.Sprintf(" with %d retries left", s.Retries)
	}
	return text
}
