package hil

import (
	"fmt"

	"github.com/skein-fleet/skein/sim/fault"
	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/scenario"
)

// why says what keeps a kind of fault from a process whose clock, disk and
// memory are this machine's.
var why = map[fault.Kind]string{
	fault.Clock1970: "the clock is that of the machine that the agent runs on",
	fault.DiskFull:  "the disk is that of the machine that the agent runs on",
}

// onModel are faults that only a modelled board can have.
var onModel = map[fault.Kind]string{
	fault.Heat:     "nobody heats a real board from here",
	fault.BootTrap: "nobody damages the boot chain of a real board",
}

// Check says whether a script can be played: what cannot is named by line.
func Check(x *scenario.Script, o Options) error {
	for _, s := range x.Steps {
		reason := ""
		switch a := s.Action.(type) {
		case scenario.Fault:
			reason = why[a.Kind]
			if reason == "" && len(o.Boards) > 0 {
				reason = onModel[a.Kind]
			}
		case scenario.Release:
			if a.OS != "" && len(o.Boards) > 0 {
				reason = "a modelled operating system is none for a real board"
			}
		case scenario.Route:
			if len(o.Boards) > 0 {
				reason = "the routes of a real board stay as they are"
			}
		}
		if reason != "" {
			return fmt.Errorf("line %d: %s cannot be played on these devices: %s", s.Line, s.String(), reason)
		}
	}
	if len(o.Boards) > 0 && x.Devices > len(o.Boards) {
		return fmt.Errorf("the scenario has %d devices and there are %d boards: give --device for each", x.Devices, len(o.Boards))
	}
	return nil
}

// Inject puts a fault onto the device now.
func (d *Device) Inject(f fault.Fault) {
	p := d.profile
	switch f.Kind {
	case fault.Cut:
		d.hold(1, 0, 0)
	case fault.Hole:
		d.hold(0, 1, 0)
	case fault.Block:
		d.hold(0, 0, 1)
	case fault.Slow:
		p.Bandwidth, p.Latency = f.Bandwidth, max(p.Latency, f.Latency)
		d.line.Set(p)
	case fault.Lose: // messages are inside of TLS: what is lost is segments
		p.Loss = f.Rate
		d.line.Set(p)
	case fault.Corrupt:
		p.Corrupt = f.Rate
		d.line.Set(p)
	case fault.Heat:
		d.change(func(b *jetson.Board) { b.SetAmbient(f.Celsius) })
	case fault.BootTrap:
		d.change(func(b *jetson.Board) {
			if c := b.Boot(); c != nil {
				c.Trap(jetson.BootTrap(f.Trap))
			}
		})
	case fault.Kill:
		d.Kill(f.Down)
	case fault.Clock1970, fault.DiskFull: // refused by Check
	}
}

// Heal ends a fault.
func (d *Device) Heal(f fault.Fault) {
	switch f.Kind {
	case fault.Cut:
		d.hold(-1, 0, 0)
	case fault.Hole:
		d.hold(0, -1, 0)
	case fault.Block:
		d.hold(0, 0, -1)
	case fault.Slow, fault.Lose, fault.Corrupt:
		d.line.Set(d.profile)
	case fault.Heat:
		d.change(func(b *jetson.Board) { b.SetAmbient(20) })
	case fault.Kill, fault.BootTrap, fault.Clock1970, fault.DiskFull:
	}
}

// hold counts the faults that hold the line.
func (d *Device) hold(cuts, holes, blocks int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cuts, d.holes, d.blocks = max(0, d.cuts+cuts), max(0, d.holes+holes), max(0, d.blocks+blocks)
	d.line.Block(d.blocks > 0)
	if d.cuts > 0 {
		d.line.Cut()
		return
	}
	d.line.Restore()
	if d.holes > 0 {
		d.line.Hole()
	}
}

func (d *Device) change(f func(*jetson.Board)) {
	if d.board == nil {
		return
	}
	if err := d.board.With(f); err != nil {
		d.o.Logger.Warn("change the board", "device", d.Name(), "error", err)
	}
}
