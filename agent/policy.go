package agent

import (
	"context"

	"github.com/skein-fleet/skein/agent/internal/budget"
	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry"
)

// openBudget opens the account of bytes and takes up the policy of the desired
// state that is held.
func (a *Agent) openBudget() (err error) {
	a.budget, err = budget.Open(budget.Config{
		Files: a.opts.Files, Clock: a.clock, Zone: a.opts.Zone, Interface: a.opts.Host.DefaultInterface, Waiting: a.notePolicy,
		Free: a.freeWays, Local: a.stick.there,
	})
	if err != nil {
		return err
	}
	if a.budget.Damaged() {
		a.board.Set(health.JournalDamaged, health.Warning, "the account of downloaded bytes was damaged and set aside")
	}
	if raw := a.state.Get().Desired; len(raw) > 0 {
		var d wire.Desired
		if err := wire.Unmarshal(raw, &d); err == nil { // else the reconcile loop says so
			a.usePolicy(&d)
		}
	}
	return nil
}

// usePolicy makes the policy of an accepted desired state count.
func (a *Agent) usePolicy(d *wire.Desired) {
	if err := a.budget.Use(d.Policy); err != nil {
		a.log.Error("take up the policy", "error", err) // it was checked before it was accepted
	}
	a.wishPower(d)
}

// wishPower makes the policy's power mode count.
func (a *Agent) wishPower(d *wire.Desired) {
	if a.power == nil {
		return
	}
	var w *wire.PowerWish
	if d.Policy != nil {
		w = d.Policy.Power
	}
	a.power.Use(w)
}

// notePolicy keeps what the policy makes wait, for reports and explain.
func (a *Agent) notePolicy(h *budget.Hold) {
	window := h != nil && h.Kind != wire.WaitsForAllowance && h.Kind != wire.WaitsForHold
	used := h != nil && h.Kind == wire.WaitsForAllowance
	text := ""
	if h != nil {
		text = h.Error()
	}
	a.board.Update(window, health.WaitingForWindow, health.Info, text)
	a.board.Update(used, health.BudgetUsed, health.Warning, text)
	a.wakeReport.set()
}

// memory returns how much is in use and how much there is, zero when the host
// does not measure it.
func (a *Agent) memory() (used, total int64) {
	ctx, cancel := context.WithTimeout(context.Background(), listTimeout)
	defer cancel()
	all, err := a.opts.Host.Readings(ctx)
	if err != nil {
		return 0, 0
	}
	for _, r := range all {
		switch r.Series.String() {
		case telemetry.MemoryUsed:
			used = int64(r.Value)
		case telemetry.MemoryTotal:
			total = int64(r.Value)
		}
	}
	return used, total
}
