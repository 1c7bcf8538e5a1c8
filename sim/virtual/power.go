package virtual

import (
	"context"
	"errors"
	"fmt"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/sim/jetson"
)

// powerBoard is the power of a device as the agent sees it.
type powerBoard struct{ d *Device }

// power returns nil for boards without power modes.
func (d *Device) power() agent.PowerBoard {
	has := false
	d.board.with(func(b *jetson.Board) { has = b.Model().Jetson() && len(b.Model().Modes) > 0 })
	if !has {
		return nil
	}
	return powerBoard{d}
}

// Read implements agent.PowerBoard.
func (p powerBoard) Read(context.Context) (r agent.PowerReading, err error) {
	p.d.board.with(func(b *jetson.Board) {
		m := b.Model()
		r.Mode, r.Clocks, r.Fan = b.Mode(), wire.ClocksDynamic, "quiet"
		for _, mode := range m.Modes {
			r.Modes = append(r.Modes, mode.Name)
		}
		r.Zones = []agent.PowerZone{{Name: "tj", MilliC: int64(b.Die() * 1000), TripMilliC: int64(m.Thermal.Passive * 1000)}}
		if b.Throttled() {
			r.Coolers = []string{"devfreq-gpu"}
		}
	})
	return r, nil
}

// SetMode implements agent.PowerBoard. A mode with other processors than the one
// in force comes with a restart of the machine, as on real boards.
func (p powerBoard) SetMode(ctx context.Context, name string, restart bool) (err error) {
	needs := false
	p.d.board.with(func(b *jetson.Board) {
		now, nerr := b.Model().Mode(b.Mode())
		next, merr := b.Model().Mode(name)
		if err = errors.Join(nerr, merr); err != nil {
			err = fmt.Errorf("%w: %w", agent.ErrPowerUnknown, err)
			return
		}
		needs = next.Cores != now.Cores
		if needs && !restart {
			err = agent.ErrPowerNeedsReboot
			return
		}
		err = b.SetMode(name)
	})
	if err != nil || !needs {
		return err
	}
	return bootloader{p.d}.Reboot(ctx)
}

// SetClocks implements agent.PowerBoard; the model's governor cannot be held.
func (p powerBoard) SetClocks(_ context.Context, c wire.Clocks) error {
	return fmt.Errorf("clocks %s: %w", c, agent.ErrPowerUnsupported)
}

// SetFan implements agent.PowerBoard; the model has none.
func (p powerBoard) SetFan(_ context.Context, profile string) error {
	return fmt.Errorf("fan profile %s: %w", profile, agent.ErrPowerUnsupported)
}
