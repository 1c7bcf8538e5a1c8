// Package boot is the boot chain of a machine with two root file systems: what
// it says of itself, what is known to go wrong with it, and how an image gets
// into the slot that does not run. It owns the port (Bootloader), the list of
// traps with their repairs, and the driver for NVIDIA's nvbootctrl (L4T R32 to
// R39). The root of the agent module, its reconcile package and its command
// import it.
//
// Invariants: what cannot be read is unknown, never good; an inventory changes
// nothing; an image counts as written only when it was read back.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/skein-fleet/skein/ota"
)

// Bootloader is a machine's boot chain. Slots are numbered from 0.
type Bootloader interface {
	Inventory(ctx context.Context) (Inventory, error)
	// WriteSlot fills a root file system that does not run with an image, makes
	// it durable and reads it back.
	WriteSlot(ctx context.Context, slot int, image io.Reader, size int64, want ota.Digest) error
	// SetActive says which root file system boots next.
	SetActive(ctx context.Context, slot int) error
	// MarkGood says that the running one works, so that it is not given up.
	MarkGood(ctx context.Context) error
	// Reboot asks for a restart of the machine and returns.
	Reboot(ctx context.Context) error
}

// Errors of a boot chain.
var (
	// ErrTrap is returned when the boot chain is in a state in which an update
	// could not succeed. The text names the repair.
	ErrTrap = errors.New("the boot chain cannot take an update")
	// ErrNone is returned where there is no second root file system.
	ErrNone = errors.New("no A/B boot chain here")
	// ErrReadBack is returned when a slot does not hold what was written.
	ErrReadBack = errors.New("the slot does not read back as it was written")
)

// Status is what the firmware thinks of a slot.
type Status string

// The states of a slot.
const (
	Normal     Status = "normal"
	Unbootable Status = "unbootable"
	Unknown    Status = "unknown"
)

// NoNumber stands for a number that the boot chain does not tell.
const NoNumber = -1

// Slot is one half of a chain.
type Slot struct {
	Number int
	Status Status
	// Retries left before the firmware gives the slot up, NoNumber if not told.
	Retries int
	// Device is where its root file system is, when known.
	Device string
}

// Chain is the boot firmware's slots, or those of the root file systems.
type Chain struct {
	// Current runs, Active boots next; NoNumber when not told.
	Current, Active int
	Slots           []Slot
}

// Other is the slot that does not run.
func (c Chain) Other() (Slot, bool) {
	for _, s := range c.Slots {
		if s.Number != c.Current {
			return s, c.Current != NoNumber
		}
	}
	return Slot{}, false
}

// Slot returns the slot of a number.
func (c Chain) Slot(n int) (Slot, bool) {
	for _, s := range c.Slots {
		if s.Number == n {
			return s, true
		}
	}
	return Slot{}, false
}

// Capsule is the state of an update of the boot firmware itself.
type Capsule string

// The states of a capsule.
const (
	CapsuleNone    Capsule = "none"
	CapsulePending Capsule = "pending" // applied at the next start
	CapsuleApplied Capsule = "applied"
	CapsuleFailed  Capsule = "failed"
	CapsuleUnknown Capsule = "unknown"
)

// Firmware is one entry of the firmware's own table (ESRT).
type Firmware struct {
	Class                      string
	Version, Lowest, Attempted uint64
	AttemptStatus              uint64 // 0 is success
}

// Redundancy says whether the firmware switches root file systems at all.
type Redundancy string

// The states of redundancy.
const (
	Armed             Redundancy = "armed"
	NotArmed          Redundancy = "not-armed"
	RedundancyUnknown Redundancy = "unknown"
)

// Inventory is the truth about a boot chain, as far as it can be read.
type Inventory struct {
	Driver string
	// Version of the boot firmware, empty when not told.
	Version    string
	Firmware   Chain // slots of the boot firmware
	Rootfs     Chain // slots of the root file systems
	Redundancy Redundancy
	Capsule    Capsule
	ESRT       []Firmware
	// MarksGood says that this chain has a way to confirm a boot.
	MarksGood bool
	// Faults are what could not be read, and why.
	Faults []string
}

// Trap is a state in which an OS update would fail, most of them silently.
type Trap struct {
	Name    string
	Problem string
	Repair  string // an exact command or procedure
}

func (t Trap) String() string { return t.Name + ": " + t.Problem + ". Repair: " + t.Repair }

// Names of traps.
const (
	TrapNoSlots        = "no-second-slot"
	TrapNotArmed       = "redundancy-not-armed"
	TrapUnbootable     = "slot-unbootable"
	TrapRetries        = "retries-used-up"
	TrapCapsulePending = "capsule-pending"
	TrapCapsuleFailed  = "capsule-failed"
	TrapUnreadable     = "boot-chain-unreadable"
	TrapMidSwitch      = "switch-under-way"
	TrapRunning        = "running-slot-unhealthy"
)

// guid is NVIDIA's namespace of UEFI variables.
const guid = "781e084c-a330-417c-b678-38e696380cb9"

func letter(slot int) string { return string(rune('A' + slot)) }

// Traps are the known reasons why an OS update would not take, with the way out
// of each.
func (i Inventory) Traps() []Trap {
	var out []Trap
	add := func(name, problem, repair string) { out = append(out, Trap{name, problem, repair}) }
	if i.Rootfs.Current == NoNumber && len(i.Faults) > 0 {
		add(TrapUnreadable, "the slots cannot be read: "+strings.Join(i.Faults, "; "), "run `nvbootctrl -t rootfs dump-slots-info` as root and mend what it complains of; mount efivarfs with `mount -t efivarfs efivarfs /sys/firmware/efi/efivars`")
		return out
	}
	other, two := i.Rootfs.Other()
	if len(i.Rootfs.Slots) < 2 || !two {
		add(TrapNoSlots, "there is one root file system only", "flash the board again with `sudo ROOTFS_AB=1 ./flash.sh BOARD DEVICE` (l4t_initrd_flash.sh for NVMe): a second slot cannot be added to a running system")
		return out
	}
	if i.Redundancy == NotArmed {
		add(TrapNotArmed, "RootfsRedundancyLevel is 0 or missing, as on boards whose NVMe was written directly: the firmware ignores a switch of slots and every update would come back",
			fmt.Sprintf("flash the boot firmware with `sudo ROOTFS_AB=1 ./flash.sh BOARD DEVICE`; where the firmware lets the variable be written (Thor), `printf '\\x07\\x00\\x00\\x00\\x01\\x00\\x00\\x00' > /sys/firmware/efi/efivars/RootfsRedundancyLevel-%s` and reboot", guid))
	}
	if i.Redundancy == RedundancyUnknown {
		add(TrapNotArmed, "whether rootfs redundancy is armed cannot be read, and an update without it would come back", "mount efivarfs with `mount -t efivarfs efivarfs /sys/firmware/efi/efivars`, then look at RootfsRedundancyLevel-"+guid)
	}
	if other.Status == Unbootable {
		add(TrapUnbootable, fmt.Sprintf("rootfs slot %s is marked unbootable (RootfsStatusSlot%s=0xFF) and nothing resets that: the firmware would never start it", letter(other.Number), letter(other.Number)), resetStatus(other.Number))
	}
	if other.Status != Unbootable && other.Retries == 0 {
		add(TrapRetries, fmt.Sprintf("rootfs slot %s has no boot retries left: the firmware gives it up at the next start", letter(other.Number)), resetRetries(other.Number))
	}
	if run, ok := i.Rootfs.Slot(i.Rootfs.Current); ok {
		switch {
		case run.Status == Unbootable:
			add(TrapRunning, fmt.Sprintf("rootfs slot %s runs and is marked unbootable: there would be no way back to it", letter(run.Number)), resetStatus(run.Number))
		case run.Retries == 0:
			add(TrapRunning, fmt.Sprintf("rootfs slot %s runs and has no boot retries left: there would be no way back to it", letter(run.Number)), "`nvbootctrl verify` as root, or "+resetRetries(run.Number))
		}
	}
	switch i.Capsule {
	case CapsulePending:
		add(TrapCapsulePending, "an update of the boot firmware waits for the next start, and two things must not change at once", "reboot now without an update, do not cut the power for some minutes, then try again; or take it back with `rm /boot/efi/EFI/UpdateCapsule/*`")
	case CapsuleFailed:
		add(TrapCapsuleFailed, "the last update of the boot firmware failed"+i.attempt(), "install the boot firmware of the running L4T again: `apt-get install --reinstall nvidia-l4t-bootloader`, check TNSPEC in /etc/nv_boot_control.conf, reboot")
	}
	if i.Rootfs.Active != NoNumber && i.Rootfs.Active != i.Rootfs.Current {
		add(TrapMidSwitch, fmt.Sprintf("slot %s runs and slot %s is to boot next: somebody else is in the middle of an update", letter(i.Rootfs.Current), letter(i.Rootfs.Active)), fmt.Sprintf("reboot, or take the switch back with `nvbootctrl -t rootfs set-active-boot-slot %d`", i.Rootfs.Current))
	}
	return out
}

func (i Inventory) attempt() string {
	for _, f := range i.ESRT {
		if f.AttemptStatus != 0 {
			return fmt.Sprintf(" (ESRT: version %#x, last_attempt_status %d)", f.Attempted, f.AttemptStatus)
		}
	}
	return ""
}

func resetStatus(slot int) string {
	v := fmt.Sprintf("/sys/firmware/efi/efivars/RootfsStatusSlot%s-%s", letter(slot), guid)
	return fmt.Sprintf("as root: `chattr -i %s; printf '\\x07\\x00\\x00\\x00\\x00\\x00\\x00\\x00' > %s`", v, v)
}

func resetRetries(slot int) string {
	v := fmt.Sprintf("/sys/firmware/efi/efivars/RootfsRetryCount%s-%s", letter(slot), guid)
	return fmt.Sprintf("as root: `chattr -i %s; printf '\\x07\\x00\\x00\\x00\\x03\\x00\\x00\\x00' > %s`", v, v)
}

// Ready returns ErrTrap, with every trap and its repair, when an OS update
// could not succeed.
func (i Inventory) Ready() error {
	traps := i.Traps()
	if len(traps) == 0 {
		return nil
	}
	var texts []string
	for _, t := range traps {
		texts = append(texts, t.String())
	}
	return fmt.Errorf("%w: %s", ErrTrap, strings.Join(texts, " | "))
}
