package jetson

import (
	"errors"
	"fmt"
	"strings"
)

// Retries is how many starts the firmware gives a root file system that nobody
// confirms.
const Retries = 3

// ErrNoBoot is returned when neither root file system starts.
var ErrNoBoot = errors.New("no root file system starts")

// BootTrap is a state of a boot chain in which updates fail in the field.
type BootTrap string

// The traps.
const (
	TrapUnbootable BootTrap = "unbootable" // the other slot is marked 0xFF, for good
	TrapRetries    BootTrap = "retries"    // the other slot has no retries left
	TrapUnarmed    BootTrap = "unarmed"    // a switch of slots is a silent no-op
	TrapCapsule    BootTrap = "capsule"    // an update of the firmware waits
)

// BootTraps lists them.
var BootTraps = []BootTrap{TrapUnbootable, TrapRetries, TrapUnarmed, TrapCapsule}

// OSImage is what a root file system slot holds: the text of an image is
// "l4t=39.2.0", or "l4t=39.2.0 dead" for one that does not start.
type OSImage struct {
	L4T  string
	Dead bool
}

// ParseOSImage reads an image; anything else does not start.
func ParseOSImage(text string) OSImage {
	words := strings.Fields(text)
	i := OSImage{Dead: true}
	if len(words) == 0 {
		return i
	}
	l4t, ok := strings.CutPrefix(words[0], "l4t=")
	return OSImage{L4T: l4t, Dead: !ok || len(words) > 1}
}

// String is the text of an image.
func (i OSImage) String() string {
	if i.Dead {
		return "l4t=" + i.L4T + " dead"
	}
	return "l4t=" + i.L4T
}

// RootSlot is one root file system and what the firmware keeps of it.
type RootSlot struct {
	Image   OSImage
	Retries int
	// Unbootable is RootfsStatusSlot=0xFF: nothing but a person resets it.
	Unbootable bool
}

// BootChain is the firmware of a board with two root file systems (UEFI, L4T
// R35 and later): each start that nobody confirms costs the slot a retry, one
// without any is marked unbootable for good, and the other is started. It
// survives power cuts.
type BootChain struct {
	Slots           [2]RootSlot
	Current, Active int
	Armed           bool // RootfsRedundancyLevel is 1
	Capsule         bool // an update of the firmware waits
	Starts          int
}

// NewBootChain is the chain of a board that runs an L4T, well flashed.
func NewBootChain(l4t string) *BootChain {
	c := &BootChain{Armed: true}
	for n := range c.Slots {
		c.Slots[n] = RootSlot{Image: OSImage{L4T: l4t}, Retries: Retries}
	}
	return c
}

// Start is a power-on: it returns what runs.
func (c *BootChain) Start() (OSImage, error) {
	c.Capsule = false // applied on the way
	c.Starts++
	for range 4 * Retries {
		s := &c.Slots[c.Active]
		switch {
		case s.Unbootable:
			c.Active = 1 - c.Active
			if c.Slots[c.Active].Unbootable {
				return OSImage{}, ErrNoBoot
			}
			continue
		case s.Retries == 0:
			s.Unbootable = true
			c.Active = 1 - c.Active
			continue
		}
		s.Retries--
		if !s.Image.Dead {
			c.Current = c.Active
			return s.Image, nil
		}
	}
	return OSImage{}, ErrNoBoot
}

// Write fills a slot that does not run. The status that a slot has stays: that
// is the trap.
func (c *BootChain) Write(slot int, image OSImage) error {
	if slot < 0 || slot > 1 || slot == c.Current {
		return fmt.Errorf("slot %d runs or is none", slot)
	}
	c.Slots[slot].Image = image
	return nil
}

// SetActive says what starts next; not armed, it does nothing and says nothing.
func (c *BootChain) SetActive(slot int) {
	if c.Armed && (slot == 0 || slot == 1) {
		c.Active = slot
	}
}

// Verify confirms what runs.
func (c *BootChain) Verify() { c.Slots[c.Current].Retries = Retries }

// Trap puts the chain into a state of the field.
func (c *BootChain) Trap(t BootTrap) {
	other := &c.Slots[1-c.Current]
	switch t {
	case TrapUnbootable:
		other.Unbootable = true
	case TrapRetries:
		other.Retries = 0
	case TrapUnarmed:
		c.Armed = false
	case TrapCapsule:
		c.Capsule = true
	}
}
