package boot

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// NVOptions configure the nvbootctrl driver; the zero value is a Jetson.
type NVOptions struct {
	// Root is put before /sys and /dev; empty is none.
	Root string
	// Command is the program, "nvbootctrl" when empty.
	Command string
	// RebootCommand restarts the machine, systemctl reboot when empty.
	RebootCommand []string
}

// NVBootctl drives the boot chain of a Jetson.
type NVBootctl struct{ o NVOptions }

// NewNVBootctl returns the driver. ErrNone says that this is no such machine.
func NewNVBootctl(o NVOptions) (*NVBootctl, error) {
	o.Command = cmp.Or(o.Command, "nvbootctrl")
	if len(o.RebootCommand) == 0 {
		o.RebootCommand = []string{"systemctl", "reboot"}
	}
	if _, err := exec.LookPath(o.Command); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNone, err)
	}
	return &NVBootctl{o}, nil
}

const commandTimeout = 30 * time.Second

func (n *NVBootctl) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, n.o.Command, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %.300s", n.o.Command, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// Inventory reads nvbootctrl, the UEFI variables and the ESRT.
func (n *NVBootctl) Inventory(ctx context.Context) (Inventory, error) {
	none := Chain{Current: NoNumber, Active: NoNumber}
	inv := Inventory{Driver: "nvbootctrl", Firmware: none, Rootfs: none, Redundancy: RedundancyUnknown, Capsule: CapsuleUnknown}
	fault := func(err error) { inv.Faults = append(inv.Faults, err.Error()) }
	text, err := n.run(ctx, "dump-slots-info")
	var fw dump
	if err == nil {
		fw, err = parseDump(text)
	}
	if err != nil {
		fault(err)
	} else {
		inv.Firmware, inv.Version, inv.Capsule = fw.chain, fw.version, fw.capsule
	}
	text, err = n.run(ctx, "-t", "rootfs", "dump-slots-info")
	var root dump
	if err == nil {
		root, err = parseDump(text)
	}
	if err != nil {
		fault(err)
	} else {
		inv.Rootfs = root.chain
	}
	n.variables(&inv, fault)
	n.esrt(&inv)
	for k := range inv.Rootfs.Slots {
		inv.Rootfs.Slots[k].Device = n.partition(inv.Rootfs.Slots[k].Number)
	}
	inv.MarksGood = true
	if ctx.Err() != nil {
		return inv, context.Cause(ctx)
	}
	return inv, nil
}

// variables reads what nvbootctrl does not tell or hides: it prints a slot as
// normal when the variable is missing.
func (n *NVBootctl) variables(inv *Inventory, fault func(error)) {
	level, err := n.variable("RootfsRedundancyLevel", guid)
	switch {
	case err == nil && level > 0:
		inv.Redundancy = Armed
	case err == nil:
		inv.Redundancy = NotArmed
	case errors.Is(err, fs.ErrNotExist) && n.uefi():
		inv.Redundancy = NotArmed
	case errors.Is(err, fs.ErrNotExist): // cboot (R32): the slots themselves say it
		if len(inv.Rootfs.Slots) > 1 && inv.Rootfs.Slots[1].Retries != NoNumber {
			inv.Redundancy = Armed
		}
	default:
		fault(err)
	}
	for k := range inv.Rootfs.Slots {
		s := &inv.Rootfs.Slots[k]
		if v, err := n.variable("RootfsStatusSlot"+letter(s.Number), guid); err == nil && v != 0 {
			s.Status = Unbootable
		}
		if v, err := n.variable("RootfsRetryCount"+letter(s.Number), guid); err == nil && s.Retries == NoNumber {
			s.Retries = int(v & 3)
		}
	}
	// A capsule that waits is announced in OsIndications (bit 2).
	if v, err := n.variable("OsIndications", "8be4df61-93ca-11d2-aa0d-00e098032b8c"); err == nil && v&4 != 0 {
		inv.Capsule = CapsulePending
	}
}

func (n *NVBootctl) vars() string { return filepath.Join(n.o.Root, "/sys/firmware/efi/efivars") }

// uefi reports whether UEFI variables can be seen at all.
func (n *NVBootctl) uefi() bool {
	entries, err := os.ReadDir(n.vars())
	return err == nil && len(entries) > 0
}

// variable reads a UEFI variable: four bytes of attributes, then its value.
func (n *NVBootctl) variable(name, guid string) (uint32, error) {
	raw, err := os.ReadFile(filepath.Join(n.vars(), name+"-"+guid))
	if err != nil {
		return 0, err
	}
	if len(raw) < 5 {
		return 0, fmt.Errorf("UEFI variable %s: %d bytes, want 5 or more", name, len(raw))
	}
	var v [4]byte
	copy(v[:], raw[4:])
	return binary.LittleEndian.Uint32(v[:]), nil
}

func (n *NVBootctl) esrt(inv *Inventory) {
	dir := filepath.Join(n.o.Root, "/sys/firmware/efi/esrt/entries")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		number := func(name string) uint64 {
			raw, err := os.ReadFile(filepath.Join(dir, e.Name(), name))
			if err != nil {
				return 0
			}
			v, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 0, 64)
			if err != nil {
				return 0
			}
			return v
		}
		class, _ := os.ReadFile(filepath.Join(dir, e.Name(), "fw_class"))
		f := Firmware{Class: strings.TrimSpace(string(class)), Version: number("fw_version"), Lowest: number("lowest_supported_fw_version"),
			Attempted: number("last_attempt_version"), AttemptStatus: number("last_attempt_status")}
		inv.ESRT = append(inv.ESRT, f)
		if f.AttemptStatus != 0 && f.Attempted != 0 && inv.Capsule != CapsulePending {
			inv.Capsule = CapsuleFailed
		}
	}
}

// partition finds the block device of a root file system.
func (n *NVBootctl) partition(slot int) string {
	name := "APP"
	if slot == 1 {
		name = "APP_b"
	}
	p, err := filepath.EvalSymlinks(filepath.Join(n.o.Root, "/dev/disk/by-partlabel", name))
	if err != nil {
		return ""
	}
	return p
}

// SetActive says which root file system boots next, and looks whether it took:
// with redundancy not armed the command succeeds and does nothing.
func (n *NVBootctl) SetActive(ctx context.Context, slot int) error {
	_, err := n.run(ctx, "-t", "rootfs", "set-active-boot-slot", strconv.Itoa(slot))
	return err
}

// MarkGood confirms the running system. L4T 35.2.1 took mark-boot-successful
// away; verify is what remains.
func (n *NVBootctl) MarkGood(ctx context.Context) error {
	_, err := n.run(ctx, "verify")
	if err == nil {
		return nil
	}
	if _, old := n.run(ctx, "-t", "rootfs", "mark-boot-successful"); old == nil {
		return nil
	}
	return fmt.Errorf("mark the running slot good: %w", err)
}

// Reboot implements Bootloader.
func (n *NVBootctl) Reboot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	if out, err := exec.CommandContext(ctx, n.o.RebootCommand[0], n.o.RebootCommand[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("reboot: %w: %.300s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
