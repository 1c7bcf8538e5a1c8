package budget

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/skein-fleet/skein/agent/internal/durable"
	"github.com/skein-fleet/skein/proto/wire"
)

const (
	holdFile = "holds.json"
	// defaultHold is the longest hold where the policy says nothing, mostHold that
	// of any policy.
	defaultHold = time.Hour
	mostHold    = 7 * 24 * time.Hour
	maxHolds    = 16
	maxOwner    = 64
	maxReason   = 256
)

// ErrHold is returned for holds that are not taken, wrapped.
var ErrHold = errors.New("updates cannot be held off")

// held is one hold. Until is by the clock of the device, ends by the time that
// passes while the agent runs, which no step of the clock changes.
type held struct {
	wire.Hold
	ends time.Time
}

// holdBook is the durable form.
type holdBook struct {
	Holds []wire.Hold `json:"holds,omitempty"`
	// Spent is how many seconds of the series of holds are used up by now.
	Spent int64 `json:"spent,omitempty"`
}

// holds are what applications hold off. A series begins with a hold when none
// was held for as long as the cap, or an update went through since; all holds of
// a series together last no longer than the cap.
type holds struct {
	list  []held
	began time.Time // of the series; zero: none
	last  time.Time // when one was last held
}

// openHolds reads what was held before a restart. Where the clock was set since,
// a hold lasts at most as long as it could have.
func (g *Gate) openHolds() error {
	var book holdBook
	_, err := durable.Read(g.cfg.Files, holdFile, &book)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, durable.ErrDamaged) {
		return nil // what nobody remembers is not held
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", holdFile, err)
	}
	now, _ := g.cfg.Clock()
	if len(book.Holds) > 0 {
		g.holds.began = time.Now().Add(-time.Duration(book.Spent) * time.Second)
	}
	for _, h := range book.Holds {
		left := min(time.Duration(h.Until-now.Unix())*time.Second, time.Duration(h.Until-h.Since)*time.Second, mostHold)
		if left > 0 && len(g.holds.list) < maxHolds {
			g.holds.list = append(g.holds.list, held{h, time.Now().Add(left)})
		}
	}
	return nil
}

// cap is the longest series of holds. g.mu is held.
func (g *Gate) holdCap() time.Duration {
	if g.plan.maxHold == 0 {
		return defaultHold
	}
	return max(0, g.plan.maxHold)
}

// live drops holds that ended. g.mu is held.
func (g *Gate) live() []held {
	now := time.Now()
	end := g.holds.began.Add(g.holdCap())
	g.holds.list = slices.DeleteFunc(g.holds.list, func(h held) bool { return !h.ends.After(now) || !end.After(now) })
	if len(g.holds.list) > 0 {
		g.holds.last = now
	}
	return g.holds.list
}

// HoldOff keeps releases from being put to work for d, or less where the policy
// allows less. A second hold of one owner replaces the first.
func (g *Gate) HoldOff(owner, reason string, d time.Duration) (h wire.Hold, capped bool, err error) {
	switch {
	case owner == "" || len(owner) > maxOwner || !utf8.ValidString(owner):
		return h, false, fmt.Errorf("%w: say who holds, in at most %d bytes", ErrHold, maxOwner)
	case reason == "" || len(reason) > maxReason || !utf8.ValidString(reason):
		return h, false, fmt.Errorf("%w: give a reason, in at most %d bytes: people read it", ErrHold, maxReason)
	case d <= 0:
		return h, false, fmt.Errorf("%w: for %s: want a time", ErrHold, d)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	most := g.holdCap()
	if most == 0 {
		return h, false, fmt.Errorf("%w: the policy of this device allows none", ErrHold)
	}
	now := time.Now()
	list := g.live()
	if len(list) == 0 && (g.holds.began.IsZero() || now.Sub(g.holds.last) >= most) {
		g.holds.began = now
	}
	left := g.holds.began.Add(most).Sub(now)
	if left < time.Second {
		return h, false, fmt.Errorf("%w any longer: they were for %s, which is all that the policy allows before the next update", ErrHold, most)
	}
	if d > left {
		d, capped = left, true
	}
	clock, _ := g.cfg.Clock()
	h = wire.Hold{Owner: owner, Reason: reason, Since: clock.Unix(), Until: clock.Add(d).Unix()}
	next := slices.DeleteFunc(slices.Clone(list), func(o held) bool { return o.Owner == owner })
	if len(next) >= maxHolds {
		return h, false, fmt.Errorf("%w: %d applications do already", ErrHold, maxHolds)
	}
	if i := slices.IndexFunc(list, func(o held) bool { return o.Owner == owner }); i >= 0 {
		h.Since = min(h.Since, list[i].Since)
	}
	next = append(next, held{h, now.Add(d)})
	if err := g.keepHolds(next); err != nil {
		return h, false, err
	}
	g.holds.last = now
	g.wake()
	return h, capped, nil
}

// ReleaseHold ends the hold of an owner, all of them for an empty one.
func (g *Gate) ReleaseHold(owner string) (released int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := g.live()
	next := slices.DeleteFunc(slices.Clone(list), func(o held) bool { return owner == "" || o.Owner == owner })
	if len(next) == len(list) {
		return 0, nil
	}
	if err := g.keepHolds(next); err != nil {
		return 0, err
	}
	g.wake()
	return len(list) - len(next), nil
}

// keepHolds makes them durable and then the ones that count. g.mu is held.
func (g *Gate) keepHolds(next []held) error {
	book := holdBook{Spent: int64(time.Since(g.holds.began) / time.Second)}
	for _, h := range next {
		book.Holds = append(book.Holds, h.Hold)
	}
	if err := durable.Write(g.cfg.Files, holdFile, book); err != nil {
		return fmt.Errorf("remember what is held off: %w", err)
	}
	g.holds.list = next
	return nil
}

// Holds are what applications hold off now, the one that lasts longest first.
func (g *Gate) Holds() []wire.Hold {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.heldOff()
}

// heldOff is Holds. g.mu is held.
func (g *Gate) heldOff() []wire.Hold {
	list := slices.Clone(g.live())
	slices.SortFunc(list, func(a, b held) int { return cmp.Or(b.ends.Compare(a.ends), cmp.Compare(a.Owner, b.Owner)) })
	var out []wire.Hold
	for _, h := range list {
		out = append(out, h.Hold)
	}
	return out
}

// applied begins a new series: an update went through. g.mu is held.
func (g *Gate) applied() {
	if len(g.live()) == 0 {
		g.holds.began = time.Time{}
	}
}

// hold says what an application holds off, nil for nothing. g.mu is held.
func (g *Gate) hold(zone *time.Location) *Hold {
	list := g.heldOff()
	if len(list) == 0 {
		return nil
	}
	h := list[0]
	left := time.Duration(0)
	for _, l := range g.holds.list {
		left = max(left, time.Until(l.ends))
	}
	now, _ := g.cfg.Clock()
	until := now.Add(left).Truncate(time.Second).Add(time.Second)
	return &Hold{Kind: wire.WaitsForHold, Until: min2(until, time.Unix(h.Until, 0)), zone: zone,
		why: fmt.Sprintf("the release is here and %s holds it off: %s;", h.Owner, h.Reason)}
}

// min2 is the earlier of two times that are a second apart: the one that does
// not change with each look. Else the first counts.
func min2(now, said time.Time) time.Time {
	if d := now.Sub(said); d >= -2*time.Second && d <= 2*time.Second {
		return said
	}
	return now
}

// ApplyHeld says why nothing may be put to work now, nil when it may.
func (g *Gate) ApplyHeld() *Hold {
	g.mu.Lock()
	defer g.mu.Unlock()
	h, _ := g.applyHold()
	return h
}
