package budget

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/durable"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// Config of a Gate. Files and Clock are required.
type Config struct {
	Files slot.Files
	// Clock returns the time to judge by and whether it is doubtful.
	Clock func() (now time.Time, doubtful bool)
	// Zone is the device's own; nil is UTC.
	Zone *time.Location
	// Interface returns the network interface of the default route, empty when
	// there is none. It may be nil.
	Interface func() (string, error)
	// Free says that there are ways to bytes that no allowance counts, such as
	// peers. It may be nil.
	Free func() bool
	// Local says that bytes come from a medium in the machine, so that no window
	// for downloads holds them up either. It may be nil.
	Local func() bool
	// Waiting is told what an update waits for, nil when it goes on. It must
	// not call the gate.
	Waiting func(*Hold)
}

const (
	// lookEvery is the longest time between two looks at clock and route while
	// something waits or comes: both may change without notice.
	lookEvery = 15 * time.Second
	// routeLife is how long the interface of the default route is taken as known.
	routeLife = 5 * time.Second
)

// Gate lets an update go on when its policy allows. Its methods may be called
// from several goroutines.
type Gate struct {
	cfg     Config
	damaged bool
	bucket  fetch.Bucket

	mu      sync.Mutex // guards what follows
	plan    *plan
	acc     accounts
	credit  map[key]int64 // counted durably and not come yet
	iface   string
	ifaceAt time.Time
	told    *Hold
	changed chan struct{} // closed when policy or accounts change
	running map[*admission]struct{}
	// exhausted is an allowance without which a download goes on, by ways that
	// none counts.
	exhausted *Hold
	holds     holds // of applications
}

// Open reads the account; it starts nothing.
func Open(c Config) (*Gate, error) {
	if c.Files == nil || c.Clock == nil {
		return nil, errors.New("budget: Files and Clock are required")
	}
	if c.Zone == nil {
		c.Zone = time.UTC
	}
	if c.Interface == nil {
		c.Interface = func() (string, error) { return "", nil }
	}
	if c.Free == nil {
		c.Free = func() bool { return false }
	}
	if c.Local == nil {
		c.Local = func() bool { return false }
	}
	if c.Waiting == nil {
		c.Waiting = func(*Hold) {}
	}
	acc, damaged, err := openAccounts(c.Files)
	if err != nil {
		return nil, err
	}
	g := &Gate{cfg: c, damaged: damaged, acc: acc, plan: &plan{zone: c.Zone}, credit: map[key]int64{},
		changed: make(chan struct{}), running: map[*admission]struct{}{}}
	return g, g.openHolds()
}

// Damaged reports whether the account could not be read whole.
func (g *Gate) Damaged() bool { return g.damaged }

// Use makes p the policy. What waits looks again.
func (g *Gate) Use(p *wire.Policy) error {
	next, err := read(p, g.cfg.Zone)
	if err != nil {
		return err
	}
	g.bucket.Set(next.rate)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.plan = next
	g.wake()
	return nil
}

// wake lets all that waits look again. g.mu is held.
func (g *Gate) wake() {
	close(g.changed)
	g.changed = make(chan struct{})
}

// Reserve is how many bytes of the disk the policy wants free, 0 for no word.
func (g *Gate) Reserve() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.plan.reserve
}

// admission is a download under way.
type admission struct{ cancel context.CancelCauseFunc }

// Download returns when bytes may come. The context that it returns ends, with
// a *Hold as its cause, when they may no more; the caller calls stop.
func (g *Gate) Download(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if err := g.await(ctx, g.downloadHold); err != nil {
		return nil, nil, err
	}
	dctx, cancel := context.WithCancelCause(ctx)
	a := &admission{cancel}
	g.mu.Lock()
	g.running[a] = struct{}{}
	g.mu.Unlock()
	var watch sync.WaitGroup
	watch.Go(func() { g.watch(dctx, a) })
	return dctx, func() {
		cancel(nil)
		watch.Wait()
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.running, a)
		if len(g.running) == 0 {
			g.exhausted = nil
			g.tell(nil)
		}
	}, nil
}

// Apply returns when the release may be put to work.
func (g *Gate) Apply(ctx context.Context) error {
	if err := g.await(ctx, g.applyHold); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.applied()
	return nil
}

// await returns when hold says nothing, and tells what it says meanwhile.
func (g *Gate) await(ctx context.Context, hold func() (*Hold, time.Time)) error {
	told := false
	for {
		g.mu.Lock()
		h, next := hold()
		changed := g.changed
		if h != nil || told {
			g.tell(h)
			told = true
		}
		g.mu.Unlock()
		if h == nil {
			return nil
		}
		if !g.sleep(ctx, next, changed) {
			g.mu.Lock()
			g.tell(nil)
			g.mu.Unlock()
			return context.Cause(ctx)
		}
	}
}

// watch ends a download when it may not go on.
func (g *Gate) watch(ctx context.Context, a *admission) {
	for {
		g.mu.Lock()
		h, next := g.downloadHold()
		changed := g.changed
		if h == nil {
			g.tell(g.exhausted)
		}
		g.mu.Unlock()
		if h != nil {
			a.cancel(h)
			return
		}
		if !g.sleep(ctx, next, changed) {
			return
		}
	}
}

// sleep waits for the next change, at most lookEvery; false when ctx ended.
func (g *Gate) sleep(ctx context.Context, next time.Time, changed <-chan struct{}) bool {
	wait := lookEvery
	if now, _ := g.cfg.Clock(); !next.IsZero() {
		wait = max(time.Millisecond, min(wait, next.Sub(now)))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
	case <-changed:
	}
	return true
}

// tell passes on what waits, once. g.mu is held.
func (g *Gate) tell(h *Hold) {
	if g.told.same(h) {
		return
	}
	g.told = h
	g.cfg.Waiting(h)
}

// downloadHold returns what holds downloads up now, and when to look again.
// g.mu is held.
func (g *Gate) downloadHold() (*Hold, time.Time) {
	g.exhausted = nil
	if g.plan.now || g.cfg.Local() {
		return nil, time.Time{}
	}
	now, doubtful := g.cfg.Clock()
	h, next := g.plan.window(wire.WaitsForDownloadWindow, now, doubtful)
	if h != nil {
		return h, next
	}
	_, h = g.left(g.class(now), now, doubtful)
	if h == nil {
		return nil, next
	}
	if g.cfg.Free() {
		g.exhausted = h
		return nil, next
	}
	return h, h.Until
}

// applyHold is the same for putting a release to work. g.mu is held.
func (g *Gate) applyHold() (*Hold, time.Time) {
	if g.plan.now {
		return nil, time.Time{}
	}
	now, doubtful := g.cfg.Clock()
	h, next := g.plan.window(wire.WaitsForApplyWindow, now, doubtful)
	if held := g.hold(g.plan.zone); held != nil && h == nil {
		return held, held.Until
	}
	return h, next
}

// class returns what the default route costs now. g.mu is held.
func (g *Gate) class(now time.Time) wire.LinkClass {
	if age := now.Sub(g.ifaceAt); age < 0 || age >= routeLife {
		name, err := g.cfg.Interface()
		if err != nil {
			name = ""
		}
		g.iface, g.ifaceAt = name, now
	}
	return g.plan.class(g.iface)
}

// left returns how many bytes may still come over links of a class, -1 for no
// bound, and what has to be waited for when none may. g.mu is held.
func (g *Gate) left(class wire.LinkClass, now time.Time, doubtful bool) (int64, *Hold) {
	least := int64(-1)
	if !slices.ContainsFunc(g.plan.allowances, func(a wire.Allowance) bool { return a.Class == class }) {
		return least, nil
	}
	var hold *Hold
	keys := g.acc.keys(class, now, g.plan.zone, doubtful)
	for _, a := range g.plan.allowances {
		if a.Class != class {
			continue
		}
		k := keys[a.Period-1]
		n := max(0, a.Bytes-g.acc.Used[k.text()]+g.credit[k])
		if least < 0 || n < least {
			least = n
		}
		if n > 0 {
			continue
		}
		h := &Hold{Kind: wire.WaitsForAllowance, zone: g.plan.zone, Until: ends(a.Period, now, g.plan.zone),
			why: fmt.Sprintf("the download waits: all %d bytes that may come over %s links in the %s %s are used up,", a.Bytes, class, a.Period, k.name)}
		switch {
		case a.Bytes == 0:
			h.Until, h.why = time.Time{}, fmt.Sprintf("the download waits: no bytes may come over %s links, and %s is one", class, g.linkText())
		case doubtful:
			h.Until, h.why = time.Time{}, h.why+" and the clock is doubtful, so that no new one begins,"
		}
		// The one that takes longest decides.
		if hold == nil || h.Until.IsZero() || !hold.Until.IsZero() && h.Until.After(hold.Until) {
			hold = h
		}
	}
	return least, hold
}

func (g *Gate) linkText() string {
	if g.iface == "" {
		return "the link, whose interface is not known,"
	}
	return g.iface
}

// charge is bytes that were counted.
type charge struct {
	n    int64
	keys [2]key // empty: there was nothing to count against
}

// take counts n bytes, or as many as may come, durably before it returns. What
// is exempt is counted and not bound.
func (g *Gate) take(n int64, exempt bool) (charge, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, doubtful := g.cfg.Clock()
	class := g.class(now)
	exempt = exempt || g.plan.now
	left, hold := g.left(class, now, doubtful)
	switch {
	case left < 0:
		return charge{n: n}, nil
	case hold != nil && !exempt:
		g.wake()
		return charge{}, hold
	case !exempt:
		n = min(n, left)
	}
	c := charge{n, g.acc.keys(class, now, g.plan.zone, doubtful)}
	credit := min(g.credit[c.keys[0]], g.credit[c.keys[1]])
	if credit < n {
		more := max(n-credit, g.quantum(class))
		if !exempt {
			more = min(more, left-credit)
		}
		if err := g.count(c.keys, more); err != nil {
			return charge{}, err
		}
	}
	for _, k := range c.keys {
		g.credit[k] -= n
	}
	return c, nil
}

// count makes more bytes durable and gives them as credit. g.mu is held.
func (g *Gate) count(keys [2]key, more int64) error {
	next := g.acc.charge(keys, more)
	if err := durable.Write(g.cfg.Files, fileName, next); err != nil {
		return fmt.Errorf("count %d bytes: %w", more, err)
	}
	if len(next.Used) != len(g.acc.Used) {
		// Best effort, as for all state: once a day is often enough.
		_ = durable.WriteCopy(g.cfg.Files, fileName, next)
	}
	g.acc = next
	for k := range g.credit {
		if k != keys[0] && k != keys[1] {
			delete(g.credit, k) // of another day or link: it stays counted
		}
	}
	for _, k := range keys {
		g.credit[k] += more
	}
	return nil
}

// giveBack returns n bytes of c that did not come. They stay counted on the
// disk and are taken first.
func (g *Gate) giveBack(c charge, n int64) {
	if n <= 0 || c.keys[0].name == "" {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, k := range c.keys {
		g.credit[k] += n
	}
}

// quantum is how many bytes are counted in one durable write: a share of the
// least allowance, so that a power cut costs little of it.
func (g *Gate) quantum(class wire.LinkClass) int64 {
	const least, most = 16 << 10, 4 << 20
	q := int64(most)
	for _, a := range g.plan.allowances {
		if a.Class == class {
			q = min(q, a.Bytes/64)
		}
	}
	return max(q, least)
}

// State is what the policy makes of the update, nil when no policy binds.
func (g *Gate) State() *wire.PolicyState {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.plan.binds() && len(g.live()) == 0 {
		return nil
	}
	now, doubtful := g.cfg.Clock()
	s := &wire.PolicyState{Class: g.class(now), Zone: g.cfg.Zone.String()}
	s.Interface = g.iface
	for _, a := range g.plan.allowances {
		k := g.acc.keys(a.Class, now, g.plan.zone, doubtful)[a.Period-1]
		s.Used = append(s.Used, wire.Usage{Class: a.Class, Period: a.Period, Name: k.name, Bytes: max(0, g.acc.Used[k.text()]-g.credit[k]), Limit: a.Bytes})
	}
	if h := g.told; h != nil {
		s.Waits = h.Kind
		if !h.Until.IsZero() {
			s.Until = h.Until.Unix()
		}
	}
	s.Holds = g.heldOff()
	return s
}

// Waits returns what the update waits for, nil for nothing.
func (g *Gate) Waits() *Hold {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.told
}
