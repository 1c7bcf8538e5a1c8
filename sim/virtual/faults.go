package virtual

import (
	"time"

	"github.com/skein-fleet/skein/sim/fault"
	"github.com/skein-fleet/skein/sim/fault/shaper"
	"github.com/skein-fleet/skein/sim/jetson"
)

// Inject puts a fault onto the device now. Its times are the caller's matter,
// except for how long a kill keeps the device down.
func (d *Device) Inject(f fault.Fault) {
	p := d.o.Network
	switch f.Kind {
	case fault.Cut:
		d.hold(1, 0)
	case fault.Hole:
		d.hold(0, 1)
	case fault.Block:
		d.firewall.set(1)
	case fault.Slow:
		p.Bandwidth, p.Latency = f.Bandwidth, max(p.Latency, f.Latency)
		d.line.Set(p)
	case fault.Lose:
		d.radio.setLoss(f.Rate)
	case fault.Corrupt:
		p.Corrupt = f.Rate
		d.line.Set(p)
	case fault.DiskFull:
		d.disk.fill(f.Free)
	case fault.Heat:
		d.board.with(func(b *jetson.Board) { b.SetAmbient(f.Celsius) })
	case fault.Clock1970:
		sync := f.Sync
		if sync == 0 {
			sync = -1
		}
		d.board.with(func(b *jetson.Board) { b.ResetClock(sync) })
	case fault.BootTrap:
		d.board.with(func(b *jetson.Board) {
			if c := b.Boot(); c != nil {
				c.Trap(jetson.BootTrap(f.Trap))
			}
		})
	case fault.Kill:
		d.Kill(f.Down)
	}
}

// Heal ends a fault.
func (d *Device) Heal(f fault.Fault) {
	switch f.Kind {
	case fault.Cut:
		d.hold(-1, 0)
	case fault.Hole:
		d.hold(0, -1)
	case fault.Block:
		d.firewall.set(-1)
	case fault.Slow, fault.Corrupt:
		d.line.Set(d.o.Network)
	case fault.Lose:
		d.radio.setLoss(0)
	case fault.DiskFull:
		d.disk.empty()
	case fault.Heat:
		d.board.with(func(b *jetson.Board) { b.SetAmbient(20) })
		select {
		case d.revive <- struct{}{}:
		default:
		}
	case fault.Clock1970:
		d.board.with(func(b *jetson.Board) { b.ResetClock(0) })
	case fault.Kill, fault.BootTrap:
	}
}

// hold counts the faults that hold the line: cuts and holes.
func (d *Device) hold(cuts, holes int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cuts, d.holes = max(0, d.cuts+cuts), max(0, d.holes+holes)
	d.setLine()
}

// setLine makes the line what the faults say; mu is held.
func (d *Device) setLine() {
	if d.cuts > 0 {
		d.line.Cut()
		return
	}
	d.line.Restore()
	if d.holes > 0 {
		d.line.Hole()
	}
}

// Kill takes the power away for so long: nothing is written any more, the
// connections break without a word, and what ran is gone.
func (d *Device) Kill(down time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.off == nil || d.disk.off.Load() {
		return
	}
	d.downFor = down
	d.disk.off.Store(true)
	d.line.Cut()
	d.off()
	d.setLine() // for the next boot
}

// Networks are the lines that sites have; device n gets the one at n modulo
// their number. Bandwidth is generous, since many devices share one machine.
var Networks = []shaper.Profile{
	{Latency: 2 * time.Millisecond, Bandwidth: 12 << 20},
	{Latency: 8 * time.Millisecond, Jitter: 4 * time.Millisecond, Bandwidth: 4 << 20},
	{Latency: 40 * time.Millisecond, Jitter: 30 * time.Millisecond, Bandwidth: 1 << 20, Loss: 0.005},
}
