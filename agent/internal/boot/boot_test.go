package boot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/ota"
)

func TestParseDump(t *testing.T) {
	n := NoNumber
	for name, c := range map[string]struct {
		text string
		want dump
	}{
		"R36 boot firmware": {
			"Current version: 36.4.7\nCapsule update status: 0\nCurrent bootloader slot: B\nActive bootloader slot: B\nnum_slots: 2\nslot: 0,             status: normal\nslot: 1,             status: normal\n",
			dump{Chain{1, 1, []Slot{{0, Normal, n, ""}, {1, Normal, n, ""}}}, "36.4.7", CapsuleNone, 2}},
		"R35.4 after a capsule": {
			"Current version: 35.4.1\nCapsule update status: 1\nCurrent bootloader slot: A\nActive bootloader slot: A\nnum_slots: 2\nslot: 0,             status: normal\nslot: 1,             status: normal\n",
			dump{Chain{0, 0, []Slot{{0, Normal, n, ""}, {1, Normal, n, ""}}}, "35.4.1", CapsuleApplied, 2}},
		"R36 root file systems, one given up": {
			"Current rootfs slot: A\nActive rootfs slot: A\nnum_slots: 2\nslot: 0,             retry_count: 3,             status: normal\nslot: 1,             retry_count: 0,             status: unbootable\n",
			dump{Chain{0, 0, []Slot{{0, Normal, 3, ""}, {1, Unbootable, 0, ""}}}, "", CapsuleUnknown, 2}},
		"R32 cboot without a second root file system": {
			"Current bootloader slot: A\nActive bootloader slot: A\nnum_slots: 1\nslot 0: priority=15 retry_count=7 successful=1\nslot 1: priority=14 retry_count=7 successful=0\n",
			dump{Chain{0, 0, []Slot{{0, Normal, 7, ""}}}, "", CapsuleUnknown, 1}},
		"without the active slot": {
			"Current rootfs slot: B\nnum of slots: 2\nslot: 0, retry_count: 3, status: normal\nslot: 1, retry_count: 1, status: normal\n",
			dump{Chain{1, 1, []Slot{{0, Normal, 3, ""}, {1, Normal, 1, ""}}}, "", CapsuleUnknown, 2}},
	} {
		got, err := parseDump(c.text)
		if d := cmp.Diff(c.want, got, cmp.AllowUnexported(dump{})); d != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, d)
		}
	}
	for name, text := range map[string]string{
		"nothing": "", "an error": "Error: cannot open /dev/mem\n", "slot C": "Current rootfs slot: C\nslot: 0, status: normal\n",
		"slot 2": "slot: 2, status: normal\n", "unknown status": "slot: 0, status: sleepy\n", "bad count": "slot: 0, retry_count: x, status: normal\n",
	} {
		if d, err := parseDump(text); err == nil {
			t.Errorf("%s is read as %+v", name, d)
		}
	}
}

// TestSamples reads what real machines printed, where the samples are.
func TestSamples(t *testing.T) {
	raw, err := os.ReadFile("testdata/nvbootctrl.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for part := range strings.SplitSeq(string(raw), "--- ") {
		title, text, ok := strings.Cut(part, "\n")
		if !ok {
			continue
		}
		n++
		d, err := parseDump(text)
		if err != nil || d.chain.Current == NoNumber || len(d.chain.Slots) == 0 {
			t.Errorf("%s: %+v, %v", title, d, err)
		}
	}
	if n != 4 {
		t.Errorf("%d samples", n)
	}
}

func FuzzParseDump(f *testing.F) {
	f.Add("Current rootfs slot: A\nslot: 0, retry_count: 3, status: normal\n")
	f.Add("num_slots: 1\nslot 0: priority=15 retry_count=7 successful=1\n")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDump(text)
		if err == nil && len(d.chain.Slots) == 0 {
			t.Error("no slots and no error")
		}
	})
}

// machine is a fake root: nvbootctrl, efivars, partitions.
type machine struct {
	t    *testing.T
	root string
}

func newMachine(t *testing.T, firmware, rootfs string) *machine {
	m := &machine{t, t.TempDir()}
	m.write("firmware", firmware)
	m.write("rootfs", rootfs)
	m.write("nvbootctrl", `#!/bin/sh
d=$(dirname "$0")
echo "$*" >> "$d/calls"
case "$*" in
"dump-slots-info") cat "$d/firmware" ;;
"-t rootfs dump-slots-info") cat "$d/rootfs" ;;
verify) [ ! -e "$d/no-verify" ] ;;
"-t rootfs set-active-boot-slot 1"|"-t rootfs mark-boot-successful") ;;
*) echo "unknown command" >&2; exit 1 ;;
esac
`)
	if err := os.Chmod(filepath.Join(m.root, "nvbootctrl"), 0o700); err != nil {
		t.Fatal(err)
	}
	m.variable("RootfsRedundancyLevel", 1)
	return m
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) variable(name string, value byte) {
	id := guid
	if name == "OsIndications" {
		id = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
	}
	m.write("sys/firmware/efi/efivars/"+name+"-"+id, "\x07\x00\x00\x00"+string([]byte{value})+"\x00\x00\x00")
}

func (m *machine) driver() *NVBootctl {
	m.t.Helper()
	d, err := NewNVBootctl(NVOptions{Root: m.root, Command: filepath.Join(m.root, "nvbootctrl"), RebootCommand: []string{"true"}})
	if err != nil {
		m.t.Fatal(err)
	}
	return d
}

const (
	goodFirmware = "Current version: 36.4.7\nCapsule update status: 1\nCurrent bootloader slot: A\nActive bootloader slot: A\nnum_slots: 2\nslot: 0,             status: normal\nslot: 1,             status: normal\n"
	goodRootfs   = "Current rootfs slot: A\nActive rootfs slot: A\nnum_slots: 2\nslot: 0,             retry_count: 3,             status: normal\nslot: 1,             retry_count: 3,             status: normal\n"
)

func TestTraps(t *testing.T) {
	for name, c := range map[string]struct {
		rootfs string
		change func(m *machine)
		want   []string // names, none for a chain that is fit
		repair string
	}{
		"fit": {goodRootfs, func(*machine) {}, nil, ""},
		"0xFF that nvbootctrl does not show": {goodRootfs, func(m *machine) { m.variable("RootfsStatusSlotB", 0xff) }, []string{TrapUnbootable},
			"printf '\\x07\\x00\\x00\\x00\\x00\\x00\\x00\\x00' > /sys/firmware/efi/efivars/RootfsStatusSlotB-781e084c-a330-417c-b678-38e696380cb9"},
		"given up":            {strings.Replace(goodRootfs, "slot: 1,             retry_count: 3,             status: normal", "slot: 1, retry_count: 0, status: unbootable", 1), func(*machine) {}, []string{TrapUnbootable}, "chattr -i"},
		"no retries":          {strings.Replace(goodRootfs, "slot: 1,             retry_count: 3", "slot: 1, retry_count: 0", 1), func(*machine) {}, []string{TrapRetries}, "RootfsRetryCountB"},
		"running, no retries": {strings.Replace(goodRootfs, "slot: 0,             retry_count: 3", "slot: 0, retry_count: 0", 1), func(*machine) {}, []string{TrapRunning}, "nvbootctrl verify"},
		"redundancy is 0":     {goodRootfs, func(m *machine) { m.variable("RootfsRedundancyLevel", 0) }, []string{TrapNotArmed}, "ROOTFS_AB=1"},
		"redundancy was never set": {goodRootfs, func(m *machine) {
			os.Remove(filepath.Join(m.root, "sys/firmware/efi/efivars/RootfsRedundancyLevel-"+guid))
			m.variable("BootChainFwCurrent", 0)
		}, []string{TrapNotArmed}, "ROOTFS_AB=1"},
		"one slot":       {"Current rootfs slot: A\nnum_slots: 1\nslot: 0, status: normal\n", func(*machine) {}, []string{TrapNoSlots}, "ROOTFS_AB=1"},
		"capsule waits":  {goodRootfs, func(m *machine) { m.variable("OsIndications", 4) }, []string{TrapCapsulePending}, "reboot now"},
		"capsule failed": {goodRootfs, func(m *machine) { m.write("firmware", strings.Replace(goodFirmware, "status: 1", "status: 3", 1)) }, []string{TrapCapsuleFailed}, "TNSPEC"},
		"ESRT says failed": {goodRootfs, func(m *machine) {
			m.write("sys/firmware/efi/esrt/entries/entry0/last_attempt_status", "6\n")
			m.write("sys/firmware/efi/esrt/entries/entry0/last_attempt_version", "2359303\n")
		}, []string{TrapCapsuleFailed}, "nvidia-l4t-bootloader"},
		"a switch waits": {strings.Replace(goodRootfs, "Active rootfs slot: A", "Active rootfs slot: B", 1), func(*machine) {}, []string{TrapMidSwitch}, "set-active-boot-slot 0"},
		"unreadable":     {"Error: must be root\n", func(*machine) {}, []string{TrapUnreadable}, "as root"},
	} {
		m := newMachine(t, goodFirmware, c.rootfs)
		c.change(m)
		inv, err := m.driver().Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		var text strings.Builder
		for _, trap := range inv.Traps() {
			got = append(got, trap.Name)
			text.WriteString(trap.String())
		}
		if d := cmp.Diff(c.want, got); d != "" || !strings.Contains(text.String(), c.repair) {
			t.Errorf("%s: %s\n%s", name, d, text.String())
		}
		if err := inv.Ready(); (err == nil) != (len(c.want) == 0) || err != nil && !errors.Is(err, ErrTrap) {
			t.Errorf("%s: ready: %v", name, err)
		}
	}
}

func TestNVBootctlActs(t *testing.T) {
	m := newMachine(t, goodFirmware, goodRootfs)
	m.write("no-verify", "")
	d := m.driver()
	if err := errors.Join(d.SetActive(t.Context(), 1), d.MarkGood(t.Context()), d.Reboot(t.Context())); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(m.root, "calls"))
	if want := "-t rootfs set-active-boot-slot 1\nverify\n-t rootfs mark-boot-successful\n"; err != nil || string(raw) != want {
		t.Errorf("calls %q, %v", raw, err)
	}
	if err := d.SetActive(t.Context(), 0); err == nil || !strings.Contains(err.Error(), "unknown command") {
		t.Errorf("a refused command: %v", err)
	}
	if _, err := NewNVBootctl(NVOptions{Command: filepath.Join(m.root, "none")}); !errors.Is(err, ErrNone) {
		t.Errorf("without the command: %v", err)
	}
}

func TestWriteSlot(t *testing.T) {
	m := newMachine(t, goodFirmware, goodRootfs)
	m.write("dev/nvme0n1p2", strings.Repeat("old", 2<<20))
	m.write("dev/disk/by-partlabel/x", "")
	if err := os.Symlink("../../nvme0n1p2", filepath.Join(m.root, "dev/disk/by-partlabel/APP_b")); err != nil {
		t.Fatal(err)
	}
	image := bytes.Repeat([]byte("new image "), 300_000)
	d, want := m.driver(), ota.DigestOf(image)
	if err := d.WriteSlot(t.Context(), 1, bytes.NewReader(image), int64(len(image)), want); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(m.root, "dev/nvme0n1p2"))
	if err != nil || !bytes.HasPrefix(raw, image) || len(raw) != 6<<20 {
		t.Errorf("the slot holds %d bytes, %v", len(raw), err)
	}
	for name, err := range map[string]error{
		"the running slot":       d.WriteSlot(t.Context(), 0, bytes.NewReader(image), int64(len(image)), want),
		"an image cut short":     d.WriteSlot(t.Context(), 1, bytes.NewReader(image[:9]), int64(len(image)), want),
		"an image too long":      d.WriteSlot(t.Context(), 1, bytes.NewReader(image), 7<<20, want),
		"other bytes than named": d.WriteSlot(t.Context(), 1, bytes.NewReader(image), int64(len(image)), ota.DigestOf(nil)),
	} {
		if err == nil {
			t.Errorf("%s was written", name)
		}
	}
}

// liar takes all and keeps nothing, as a dying disk does.
type liar struct{ *bytes.Reader }

func (liar) Write(p []byte) (int, error) { return len(p), nil }
func (liar) Sync() error                 { return nil }

func TestReadBack(t *testing.T) {
	image := []byte("an image")
	err := fill(context.Background(), liar{bytes.NewReader(make([]byte, 64))}, bytes.NewReader(image), int64(len(image)), ota.DigestOf(image))
	if !errors.Is(err, ErrReadBack) {
		t.Errorf("a disk that lies: %v", err)
	}
}

var _ io.ReadWriteSeeker = liar{}
