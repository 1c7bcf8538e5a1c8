package board

import (
	"fmt"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/sim/jetson"
)

// nvbootctrl answers as the program of the board's release does; mu is held.
func (b *Board) nvbootctrl(args []string) answer {
	c := b.b.Boot()
	if c == nil {
		return answer{Err: "nvbootctrl: no boot chain\n", Code: 1}
	}
	rootfs := false
	if i := slices.Index(args, "-t"); i >= 0 && i+1 < len(args) {
		rootfs = args[i+1] == "rootfs"
		args = slices.Delete(slices.Clone(args), i, i+2)
	}
	old := strings.HasPrefix(b.o.JetPack.L4T, "32.")
	switch {
	case len(args) == 1 && args[0] == "dump-slots-info":
		return answer{Out: b.dump(c, rootfs, old)}
	case len(args) == 2 && args[0] == "set-active-boot-slot" && (args[1] == "0" || args[1] == "1"):
		if rootfs {
			c.SetActive(int(args[1][0] - '0'))
		}
	case len(args) == 1 && args[0] == "verify" && !old:
		c.Verify()
	case len(args) == 1 && args[0] == "mark-boot-successful" && old:
		c.Verify()
	case len(args) == 1 && args[0] == "get-current-slot":
		return answer{Out: fmt.Sprintln(c.Current)}
	default:
		return answer{Err: "nvbootctrl: unknown command: " + strings.Join(args, " ") + "\n", Code: 1}
	}
	if err := b.showChain(); err != nil {
		return answer{Err: err.Error() + "\n", Code: 1}
	}
	return answer{}
}

// dump is dump-slots-info: of cboot without root file systems A/B for R32, of
// UEFI else.
func (b *Board) dump(c *jetson.BootChain, rootfs, old bool) string {
	var s strings.Builder
	letter := func(n int) string { return string("AB"[n]) }
	if old {
		fmt.Fprint(&s, "Current bootloader slot: A\nActive bootloader slot: A\nnum_slots: 1\nslot 0: priority=15 retry_count=7 successful=1\nslot 1: priority=14 retry_count=7 successful=0\n")
		return s.String()
	}
	kind := "bootloader"
	if rootfs {
		kind = "rootfs"
	} else {
		capsule := 0
		fmt.Fprintf(&s, "Current version: %s\nCapsule update status: %d\n", c.Slots[c.Current].Image.L4T, capsule)
	}
	fmt.Fprintf(&s, "Current %s slot: %s\nActive %s slot: %s\nnum_slots: 2\n", kind, letter(c.Current), kind, letter(c.Active))
	for n, slot := range c.Slots {
		status := "normal"
		if slot.Unbootable {
			status = "unbootable"
		}
		if rootfs {
			fmt.Fprintf(&s, "slot: %d,             retry_count: %d,             status: %s\n", n, slot.Retries, status)
			continue
		}
		fmt.Fprintf(&s, "slot: %d,             status: normal\n", n)
	}
	return s.String()
}
