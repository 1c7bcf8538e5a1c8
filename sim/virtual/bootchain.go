package virtual

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/sim/jetson"
)

// rebootTime is how long a modelled board is off when it restarts.
const rebootTime = 300 * time.Millisecond

// bootloader is the boot chain of a device as the agent sees it.
type bootloader struct{ d *Device }

// bootloader returns nil for boards without one.
func (d *Device) bootloader() agent.Bootloader {
	has := false
	d.board.with(func(b *jetson.Board) { has = b.Boot() != nil })
	if !has {
		return nil
	}
	return bootloader{d}
}

// with runs f on the chain.
func (l bootloader) with(f func(*jetson.BootChain)) {
	l.d.board.with(func(b *jetson.Board) { f(b.Boot()) })
}

// Inventory implements agent.Bootloader.
func (l bootloader) Inventory(context.Context) (agent.BootInventory, error) {
	inv := agent.BootInventory{Driver: "model", Redundancy: agent.RedundancyUnarmed, Capsule: agent.CapsuleNone, MarksGood: true}
	l.with(func(c *jetson.BootChain) {
		if c.Armed {
			inv.Redundancy = agent.RedundancyArmed
		}
		if c.Capsule {
			inv.Capsule = agent.CapsulePending
		}
		inv.Rootfs = agent.BootChain{Current: c.Current, Active: c.Active}
		for n, s := range c.Slots {
			slot := agent.BootSlot{Number: n, Status: agent.SlotNormal, Retries: s.Retries}
			if s.Unbootable {
				slot.Status = agent.SlotUnbootable
			}
			inv.Rootfs.Slots = append(inv.Rootfs.Slots, slot)
		}
	})
	return inv, nil
}

const maxImage = 4 << 10 // of a modelled system: a line of text

// WriteSlot implements agent.Bootloader.
func (l bootloader) WriteSlot(_ context.Context, slot int, image io.Reader, size int64, want ota.Digest) (err error) {
	raw, err := io.ReadAll(io.LimitReader(image, maxImage))
	if err != nil {
		return fmt.Errorf("read the image: %w", err)
	}
	if int64(len(raw)) != size || ota.DigestOf(raw) != want {
		return errors.New("the slot does not hold what was to be written")
	}
	l.with(func(c *jetson.BootChain) { err = c.Write(slot, jetson.ParseOSImage(string(raw))) })
	return err
}

// SetActive implements agent.Bootloader.
func (l bootloader) SetActive(_ context.Context, slot int) error {
	l.with(func(c *jetson.BootChain) { c.SetActive(slot) })
	return nil
}

// MarkGood implements agent.Bootloader.
func (l bootloader) MarkGood(context.Context) error {
	l.with(func(c *jetson.BootChain) { c.Verify() })
	return nil
}

// Reboot implements agent.Bootloader.
func (l bootloader) Reboot(context.Context) error {
	l.d.mu.Lock()
	l.d.reboot = true
	l.d.mu.Unlock()
	go l.d.Kill(rebootTime)
	return nil
}
