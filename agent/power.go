package agent

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/power"
	"github.com/skein-fleet/skein/proto/wire"
)

// PowerBoard is the part of a machine that decides how fast it runs.
type PowerBoard = power.Board

// What a PowerBoard tells.
type (
	PowerReading = power.Reading
	PowerZone    = power.Zone
	PowerRail    = power.Rail
)

// Errors of a PowerBoard.
var (
	ErrPowerNeedsReboot = power.ErrNeedsReboot
	ErrPowerUnknown     = power.ErrUnknown
	ErrPowerUnsupported = power.ErrUnsupported
)

// openPower makes the manager of the board's power, where it has one.
func (a *Agent) openPower() (err error) {
	if a.opts.Power == nil {
		return nil
	}
	a.power, err = power.New(power.Config{
		Board: a.opts.Power, Files: a.opts.Files, Conditions: a.board, Logger: a.log, Every: a.opts.CheckEvery, Limit: a.opts.HeadroomLimit,
		Busy: a.applying, Held: a.mayNotRestart, BootID: func() uint64 { return a.facts().BootID }, Changed: a.wakeReport.set,
	})
	return err
}

func (a *Agent) powerLoop(ctx context.Context) error {
	if a.power == nil {
		return nil
	}
	return a.power.Run(ctx)
}

// applying says that an update is put to work now.
func (a *Agent) applying() string {
	if u := a.state.Get().Update; u != nil && a.exec.Applying() {
		return "an update is under way"
	}
	return ""
}

// mayNotRestart says why the machine may not be restarted now.
func (a *Agent) mayNotRestart() string {
	if a.state.Get().Update != nil {
		return "it waits for the update under way"
	}
	if h := a.budget.ApplyHeld(); h != nil {
		if h.Kind == wire.WaitsForHold {
			return "an application holds it off until " + h.Until.UTC().Format(time.RFC3339)
		}
		return "it waits for the window in which releases may be applied"
	}
	return ""
}

// headroom waits before heavy work until the board is fit for it.
func (a *Agent) headroom(ctx context.Context, work string) (note string, err error) {
	if a.power == nil {
		return "", nil
	}
	return a.power.Headroom(ctx, work)
}

// reportedPower is how the board runs, nil where it does not tell.
func (a *Agent) reportedPower() *wire.Power {
	if a.power == nil {
		return nil
	}
	return a.power.State()
}

// holdOff keeps releases from being put to work, by the word of an application.
func (a *Agent) holdOff(owner, reason string, d time.Duration) (wire.Hold, bool, error) {
	h, capped, err := a.budget.HoldOff(owner, reason, d)
	if err == nil {
		a.log.Info("an application holds updates off", "owner", owner, "reason", reason, "until", time.Unix(h.Until, 0).UTC())
		a.noteHolds()
	}
	return h, capped, err
}

func (a *Agent) releaseHold(owner string) (int, error) {
	n, err := a.budget.ReleaseHold(owner)
	if n > 0 {
		a.log.Info("updates are no longer held off", "owner", owner, "holds", n)
	}
	a.noteHolds()
	return n, err
}

// noteHeldOff clears what ended by itself.
func (a *Agent) noteHeldOff() {
	if a.board.Holds(health.UpdateOnHold) && len(a.budget.Holds()) > 0 {
		return
	}
	if held := len(a.budget.Holds()) > 0; held != a.board.Holds(health.UpdateOnHold) {
		a.noteHolds()
	}
}

// noteHolds keeps the condition of what applications hold off.
func (a *Agent) noteHolds() {
	var parts []string
	for _, h := range a.budget.Holds() {
		parts = append(parts, fmt.Sprintf("%s holds updates off until %s: %s", h.Owner, time.Unix(h.Until, 0).UTC().Format(time.RFC3339), h.Reason))
	}
	a.board.Update(len(parts) > 0, health.UpdateOnHold, health.Info, strings.Join(parts, "; "))
	a.wakeReport.set()
}
