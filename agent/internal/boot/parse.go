package boot

import (
	"bufio"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// dump is what `nvbootctrl [-t rootfs] dump-slots-info` prints.
type dump struct {
	chain   Chain
	version string
	capsule Capsule
	count   int
}

var (
	newSlotRE = regexp.MustCompile(`^slot:\s*(\d+)\s*,(.*)$`)
	oldSlotRE = regexp.MustCompile(`^slot\s+(\d+):(.*)$`)
)

// parseDump reads every known form: R32 (cboot: "slot 0: priority=15
// retry_count=7 successful=1"), and R34 on ("slot: 0,  retry_count: 3,
// status: normal").
func parseDump(text string) (dump, error) {
	d := dump{chain: Chain{Current: NoNumber, Active: NoNumber}, capsule: CapsuleUnknown, count: NoNumber}
	sc := bufio.NewScanner(strings.NewReader(text))
	for sc.Scan() {
		if err := d.line(strings.TrimSpace(sc.Text())); err != nil {
			return d, err
		}
	}
	if err := sc.Err(); err != nil {
		return d, fmt.Errorf("read nvbootctrl's answer: %w", err)
	}
	if len(d.chain.Slots) == 0 {
		return d, fmt.Errorf("nvbootctrl named no slot: %.200q", text)
	}
	if d.chain.Active == NoNumber {
		d.chain.Active = d.chain.Current
	}
	// "num_slots: 1" with two lines: the second exists on paper only.
	if d.count == 1 && len(d.chain.Slots) > 1 {
		d.chain.Slots = d.chain.Slots[:1]
	}
	return d, nil
}

func (d *dump) line(l string) (err error) {
	if m := newSlotRE.FindStringSubmatch(l); m != nil {
		return d.slot(m[1], strings.Split(m[2], ","), ":")
	}
	if m := oldSlotRE.FindStringSubmatch(l); m != nil {
		return d.slot(m[1], strings.Fields(m[2]), "=")
	}
	key, value, ok := strings.Cut(l, ":")
	if !ok {
		return nil // a message between the lines
	}
	value = strings.TrimSpace(value)
	switch strings.ToLower(strings.TrimSpace(key)) {
	case "current version":
		d.version = value
	case "capsule update status":
		d.capsule = capsuleOf(value)
	case "current bootloader slot", "current rootfs slot", "current slot":
		d.chain.Current, err = slotNumber(value)
	case "active bootloader slot", "active rootfs slot", "active slot":
		d.chain.Active, err = slotNumber(value)
	case "num_slots", "num of slots":
		if d.count, err = strconv.Atoi(value); err != nil {
			err = fmt.Errorf("number of slots %.40q", value)
		}
	}
	return err
}

// capsuleOf reads the code of the last capsule.
func capsuleOf(code string) Capsule {
	switch code {
	case "0":
		return CapsuleNone
	case "1":
		return CapsuleApplied
	case "2", "3": // installed and did not boot; not installed
		return CapsuleFailed
	}
	return CapsuleUnknown
}

func slotNumber(s string) (int, error) {
	switch strings.ToUpper(s) {
	case "A", "0":
		return 0, nil
	case "B", "1":
		return 1, nil
	}
	return NoNumber, fmt.Errorf("slot %.40q: want A or B", s)
}

func (d *dump) slot(number string, fields []string, sep string) error {
	n, err := strconv.Atoi(number)
	if err != nil || n > 1 {
		return fmt.Errorf("slot %.40q: want 0 or 1", number)
	}
	s := Slot{Number: n, Status: Unknown, Retries: NoNumber}
	for _, f := range fields {
		key, value, _ := strings.Cut(strings.TrimSpace(f), sep)
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(key) {
		case "status":
			if s.Status = statusOf(value); s.Status == Unknown {
				return fmt.Errorf("slot %d: status %.40q", n, value)
			}
		case "retry_count":
			if s.Retries, err = strconv.Atoi(value); err != nil || s.Retries < 0 {
				return fmt.Errorf("slot %d: retry count %.40q", n, value)
			}
		case "successful":
			// cboot: a slot that was never marked is still bootable while it has
			// retries.
			if value == "1" || s.Retries > 0 {
				s.Status = Normal
			} else if s.Retries == 0 {
				s.Status = Unbootable
			}
		}
	}
	d.chain.Slots = append(d.chain.Slots, s)
	return nil
}

func statusOf(s string) Status {
	switch strings.ToLower(s) {
	case "normal":
		return Normal
	case "unbootable", "invalid":
		return Unbootable
	}
	return Unknown
}
