// Package budget holds an update to the policy that came with the desired
// state: windows for downloading and for applying, allowances of bytes by day
// and month for each class of link, and a rate. It owns the durable account of
// what was used.
//
// Invariants: bytes are counted, durably, before they come, so that a power cut
// refunds none; each day and month of the calendar has an account of its own,
// so that a clock that jumps about grants no allowance twice, and while the
// clock is doubtful no new one begins; what was exempt (bringing back the
// committed release, a way back, an operator's word) is counted and never held
// up. Only the root of the agent module imports it.
package budget

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota/window"
	"github.com/skein-fleet/skein/proto/wire"
)

// ErrPolicy is what Check returns, wrapped.
var ErrPolicy = errors.New("policy cannot be kept to")

// MinRate is the least rate that a policy may set: with less, transfers would
// be given up as stalled.
const MinRate = 4 << 10

// plan is a policy, read.
type plan struct {
	download, apply []window.Local
	zone            *time.Location
	metered         []string
	allowances      []wire.Allowance
	rate, reserve   int64
	now             bool
	maxHold         time.Duration // 0: the agent's own, negative: none
}

// Check reports what in p this agent cannot keep to, or nil. A nil p binds to
// nothing.
func Check(p *wire.Policy) error {
	_, err := read(p, time.UTC)
	return err
}

// read returns the plan of p on a device in zone.
func read(p *wire.Policy, zone *time.Location) (*plan, error) {
	out := &plan{zone: zone}
	if p == nil {
		return out, nil
	}
	var err error
	if out.zone, err = zoneOf(p.Zone, zone); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	if out.download, err = locals(p.Download, zone); err != nil {
		return nil, fmt.Errorf("%w: download window: %w", ErrPolicy, err)
	}
	if out.apply, err = locals(p.Apply, zone); err != nil {
		return nil, fmt.Errorf("%w: apply window: %w", ErrPolicy, err)
	}
	for _, pattern := range p.Metered {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("%w: pattern of interfaces %q: %w", ErrPolicy, pattern, err)
		}
	}
	for _, a := range p.Allowances {
		if a.Class != wire.Metered && a.Class != wire.Unmetered || a.Period != wire.PerDay && a.Period != wire.PerMonth || a.Bytes < 0 {
			return nil, fmt.Errorf("%w: allowance of %d bytes, %s, per %s", ErrPolicy, a.Bytes, a.Class, a.Period)
		}
	}
	if p.Rate < 0 || p.Rate > 0 && p.Rate < MinRate {
		return nil, fmt.Errorf("%w: %d bytes a second: want at least %d", ErrPolicy, p.Rate, MinRate)
	}
	if p.Reserve < 0 {
		return nil, fmt.Errorf("%w: a reserve of %d bytes", ErrPolicy, p.Reserve)
	}
	out.metered, out.allowances = slices.Clone(p.Metered), slices.Clone(p.Allowances)
	out.rate, out.reserve, out.now = p.Rate, p.Reserve, p.Now
	if f := p.EngineFit; f != "" && f != "loadable" && f != "optimal" {
		return nil, fmt.Errorf("%w: engine fit %q: want loadable or optimal", ErrPolicy, f)
	}
	if p.MaxHold < -1 || p.MaxHold > int64(mostHold/time.Second) {
		return nil, fmt.Errorf("%w: holds of %d seconds", ErrPolicy, p.MaxHold)
	}
	out.maxHold = time.Duration(p.MaxHold) * time.Second
	return out, nil
}

func zoneOf(name string, device *time.Location) (*time.Location, error) {
	if name == "" {
		return device, nil
	}
	return window.Zone(name)
}

func locals(in []wire.Schedule, device *time.Location) ([]window.Local, error) {
	var out []window.Local
	for _, s := range in {
		set, err := window.Parse(s.Windows)
		if err != nil {
			return nil, err
		}
		zone, err := zoneOf(s.Zone, device)
		if err != nil {
			return nil, err
		}
		if !set.Always() {
			out = append(out, window.Local{Set: set, Zone: zone})
		}
	}
	return out, nil
}

// binds reports whether the plan restrains anything.
func (p *plan) binds() bool {
	return len(p.download)+len(p.apply)+len(p.allowances) > 0 || p.rate > 0 || p.reserve > 0
}

// class returns what the link behind an interface costs. Where patterns are
// declared, an interface that is not known is taken to cost.
func (p *plan) class(iface string) wire.LinkClass {
	if len(p.metered) == 0 {
		return wire.Unmetered
	}
	if iface == "" {
		return wire.Metered
	}
	for _, pattern := range p.metered {
		if ok, err := path.Match(pattern, iface); err == nil && ok {
			return wire.Metered
		}
	}
	return wire.Unmetered
}

// Hold is what an update waits for.
type Hold struct {
	Kind wire.WaitKind
	// Until is when it may go on, as far as is known now; zero: not in sight.
	Until time.Time
	why   string
	zone  *time.Location
}

// Error implements error; it says what waits and until when.
func (h *Hold) Error() string {
	if h.Until.IsZero() {
		return h.why + "; an end is not in sight"
	}
	return h.why + " until " + h.Until.In(h.zone).Format("Mon 2006-01-02 15:04 MST")
}

// same reports whether both say the same.
func (h *Hold) same(o *Hold) bool {
	if h == nil || o == nil {
		return h == o
	}
	return h.Kind == o.Kind && h.Until.Equal(o.Until) && h.why == o.why
}

// window returns the hold of closed windows, and when that changes.
func (p *plan) window(kind wire.WaitKind, at time.Time, doubtful bool) (*Hold, time.Time) {
	sets, what := p.download, "the download waits for its window"
	if kind == wire.WaitsForApplyWindow {
		sets, what = p.apply, "the release is here and waits for the window in which it may be applied"
	}
	if p.now {
		return nil, time.Time{}
	}
	open, changes := window.All(sets, at)
	if open {
		return nil, changes
	}
	if doubtful {
		what += " (by the trusted time, since the clock is doubtful)"
	}
	h := &Hold{Kind: kind, Until: changes, why: what + " " + windowsText(sets) + ",", zone: p.zone}
	return h, changes
}

func windowsText(sets []window.Local) string {
	var text strings.Builder
	for i, s := range sets {
		if i > 0 {
			text.WriteString(" and ")
		}
		text.WriteString("(" + s.Set.String() + " " + s.Zone.String() + ")")
	}
	return text.String()
}
