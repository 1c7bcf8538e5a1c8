package rollout

import (
	"fmt"
	"math"
	"time"

	"github.com/skein-fleet/skein/ota"
)

// holdup names what keeps a queued device from being offered the release now.
type holdup int

const (
	free holdup = iota
	isOffline
	inBackoff
	heldByOlder
	outsideWindow
	overBudget
	slotsFull // from here on the whole wave is held up
	downloadsFull
	rateFull
)

// pace knows how much of a wave's ramp and budget is used.
type pace struct {
	spec      Wave
	inFlight  int
	downloads int
	succeeded int // in this wave
	lastMin   int // offers in the last minute
	groups    map[string]*group
}

type group struct{ total, unavailable int }

// newPace counts in-flight devices and budgets over all waves of the rollout.
func (p *planner) newPace(w int) *pace {
	c := &pace{spec: p.spec.Waves[w]}
	budget := !c.spec.Budget.MinAvailable.IsZero() || !c.spec.Budget.MaxUnavailable.IsZero()
	if budget {
		c.groups = map[string]*group{}
	}
	for i := range p.st.Waves {
		if i > p.st.Wave && !budget {
			break
		}
		rows := p.members(i)
		for j := range rows {
			e, d := p.exec(&rows[j]), rows[j].d
			if e.Wave != i {
				continue
			}
			c.count(e, i == w)
			if budget && d != nil {
				g := c.group(d)
				g.total++
				if unavailable(e, d) {
					g.unavailable++
				}
			}
		}
	}
	for _, o := range p.st.Offers {
		if o.At > p.clock-time.Minute {
			c.lastMin += o.N
		}
	}
	return c
}

func (c *pace) count(e Exec, thisWave bool) {
	if e.InFlight() && e.Waits == "" {
		c.inFlight++
		if e.Step == "" || e.Step == ota.StepFetch {
			c.downloads++
		}
	}
	if thisWave && e.Succeeded() {
		c.succeeded++
	}
}

func (c *pace) group(d *Device) *group {
	k := d.values(c.spec.Budget.GroupBy)
	g := c.groups[k]
	if g == nil {
		g = &group{}
		c.groups[k] = g
	}
	return g
}

// unavailable reports whether a device counts against a disruption budget.
func unavailable(e Exec, d *Device) bool {
	lost := d.Newer == "" && e.Attempts > 0 && e.Status == FailedState && (e.Class == ota.Silent || e.Class == ota.TimedOut) && !e.Confirmed
	return !d.Online || e.InFlight() || e.Status == RollingBack || lost
}

// room returns how many more devices of the group may become unavailable.
func (b Budget) room(g group) int {
	n := math.MaxInt
	if !b.MaxUnavailable.IsZero() {
		n = min(n, b.MaxUnavailable.Down(g.total)-g.unavailable)
	}
	if !b.MinAvailable.IsZero() {
		n = min(n, g.total-g.unavailable-b.MinAvailable.Up(g.total))
	}
	return n
}

// slots returns how many devices may be in flight after so many successes.
func (r Ramp) slots(succeeded int) int {
	n := math.MaxInt
	if r.Initial > 0 {
		n = int(r.Initial)
		for left := succeeded; r.Kind != RampFixed && left >= n && n < math.MaxInt32; {
			left -= n
			if r.Kind == RampLinear {
				n += int(r.Factor)
			} else {
				n = max(n+1, int(float64(n)*r.Factor))
			}
		}
	}
	if r.MaxInFlight > 0 {
		n = min(n, int(r.MaxInFlight))
	}
	return n
}

// holdup returns what keeps a queued device of the wave waiting.
func (p *planner) holdup(c *pace, e Exec, d *Device) holdup {
	r := c.spec.Ramp
	switch {
	case !e.Immediate && c.inFlight >= r.slots(c.succeeded):
		return slotsFull
	case !e.Immediate && r.MaxConcurrentDownloads > 0 && c.downloads >= int(r.MaxConcurrentDownloads):
		return downloadsFull
	case !e.Immediate && r.MaxPerMinute > 0 && c.lastMin >= int(r.MaxPerMinute):
		return rateFull
	case !d.Online:
		return isOffline
	case p.clock < e.NotBefore:
		return inBackoff
	case d.Older != "" && p.spec.Supersede == SupersedeSerial:
		return heldByOlder
	case d.Outside != "":
		return outsideWindow
	case c.groups != nil && c.spec.Budget.room(*c.group(d)) < 1:
		return overBudget
	}
	return free
}

// offer hands the release to queued devices of the current wave, in order, as
// far as ramp and budget go.
func (p *planner) offer() {
	w := p.st.Wave
	c, reason := p.newPace(w), fmt.Sprintf("wave %q", p.spec.Waves[w].Name)
	rows := p.members(w)
	for i := range rows {
		id, d, e := rows[i].id, rows[i].d, p.exec(&rows[i])
		if e.Wave != w || e.Status != Queued || d == nil {
			continue
		}
		h := p.holdup(c, e, d)
		if h >= slotsFull && p.spec.LateJoiners != JoinImmediate {
			return
		}
		if h != free {
			continue
		}
		p.emit(Decision{Kind: Offer, Wave: w, Device: id, Release: p.spec.Release, Before: d.Release, Reason: reason})
		c.inFlight++
		c.downloads++
		c.lastMin++
		if c.groups != nil {
			c.group(d).unavailable++
		}
	}
}
