package rollout

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Outlook is what a rollout would do, for `rollout plan`.
type Outlook struct {
	Selected int           `json:"selected"` // devices that match the selector
	Already  []string      `json:"already,omitempty"`
	Waves    []WaveOutlook `json:"waves"`
	Never    []NeverDevice `json:"never,omitempty"`
	Warnings []string      `json:"warnings,omitempty"`
}

// WaveOutlook is one wave of an Outlook.
type WaveOutlook struct {
	Name    string          `json:"name"`
	Devices int             `json:"devices"`
	Offline int             `json:"offline"` // of them, now
	Targets []TargetOutlook `json:"targets"`
}

// TargetOutlook lists the devices of one target in a wave, in the order of offers.
type TargetOutlook struct {
	Target  string   `json:"target"`
	Devices []string `json:"devices"`
}

// NeverDevice is a device that cannot get the release, and why.
type NeverDevice struct {
	Device string `json:"device"`
	Reason string `json:"reason"`
}

// Preview draws the waves as a rollout with this id would if it started now.
func Preview(id string, spec Spec, fleet []Device) Outlook {
	p := newPlanner(spec, New(id), fleet, Evidence{}, time.Time{})
	out := Outlook{Waves: make([]WaveOutlook, len(p.spec.Waves))}
	assigned := make(map[string]bool, len(fleet))
	byTarget := make([]map[string]int, len(p.spec.Waves)) // target -> index in Targets
	for i, w := range p.spec.Waves {
		out.Waves[i].Name, byTarget[i] = w.Name, map[string]int{}
	}
	for _, a := range p.assignment() {
		assigned[a.Device] = true
		d := p.dev[a.Device]
		if a.Already {
			out.Already = append(out.Already, a.Device)
			continue
		}
		if d.Incompatible != "" {
			continue
		}
		w := &out.Waves[a.Wave]
		w.Devices++
		if !d.Online {
			w.Offline++
		}
		at, ok := byTarget[a.Wave][d.Target]
		if !ok {
			at = len(w.Targets)
			byTarget[a.Wave][d.Target] = at
			w.Targets = append(w.Targets, TargetOutlook{Target: d.Target})
		}
		w.Targets[at].Devices = append(w.Targets[at].Devices, a.Device)
	}
	for i := range out.Waves {
		slices.SortFunc(out.Waves[i].Targets, func(a, b TargetOutlook) int { return cmp.Compare(a.Target, b.Target) })
	}
	for i := range p.fleet {
		d := &p.fleet[i]
		if p.dev[d.ID] != d || !p.sel.match(d) {
			continue
		}
		out.Selected++
		switch {
		case d.Release == p.spec.Release:
			if !assigned[d.ID] {
				out.Already = append(out.Already, d.ID)
			}
		case d.Incompatible != "":
			out.Never = append(out.Never, NeverDevice{d.ID, d.Incompatible})
		case !assigned[d.ID]:
			out.Never = append(out.Never, NeverDevice{d.ID, "no wave takes it: every wave that matches has a limit and is full"})
		}
	}
	slices.Sort(out.Already)
	slices.SortFunc(out.Never, func(a, b NeverDevice) int { return cmp.Compare(a.Device, b.Device) })
	out.Warnings = p.warnings(out)
	return out
}

// warnings names what is allowed, and yet will not do what its author expects.
func (p *planner) warnings(out Outlook) []string {
	var ws []string
	add := func(format string, args ...any) { ws = append(ws, fmt.Sprintf(format, args...)) }
	if out.Selected == 0 {
		add("the selector (%s) matches no device", p.spec.Selector)
	}
	for i, w := range p.spec.Waves {
		n := out.Waves[i].Devices
		if n == 0 {
			add("wave %q is empty and will pass at once", w.Name)
			continue
		}
		if int(w.Gate.Success.MinExecuted) > n {
			add("wave %q has %d devices, its gate asks for %d executed: the verdict can only be inconclusive", w.Name, n, w.Gate.Success.MinExecuted)
		}
		for j, r := range w.Gate.Abort {
			if int(max(r.MinExecuted, r.Count)) > n {
				add("wave %q has %d devices, gate.abort[%d] asks for %d: it can never act", w.Name, n, j, max(r.MinExecuted, r.Count))
			}
		}
		if off := out.Waves[i].Offline; off == n && w.Timeout.Offline != OfflineCount {
			add("every device of wave %q is offline", w.Name)
		}
		ws = append(ws, p.budgetConflicts(w)...)
	}
	return ws
}

// budgetConflicts names groups whose budget leaves no device to be updated even
// when all of them are available.
func (p *planner) budgetConflicts(w Wave) []string {
	groups := map[string]int{}
	for i := range p.fleet {
		if d := &p.fleet[i]; p.dev[d.ID] == d && p.sel.match(d) {
			groups[d.values(w.Budget.GroupBy)]++
		}
	}
	conflicts, largest := 0, 0
	for _, n := range groups {
		if w.Budget.room(group{total: n}) < 1 {
			conflicts++
			largest = max(largest, n)
		}
	}
	if conflicts == 0 {
		return nil
	}
	return []string{fmt.Sprintf("wave %q: the budget (minAvailable %s) leaves nothing to update in %d groups of up to %d devices",
		w.Name, w.Budget.MinAvailable, conflicts, largest)}
}
