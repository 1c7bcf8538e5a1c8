package fleet

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/proto/wire"
)

// add makes or refreshes the twin of a device record.
func (f *Fleet) add(d store.Device, certNotAfter time.Time) (*twin, error) {
	key, err := x509.ParsePKIXPublicKey(d.SPKI)
	if err != nil {
		return nil, fmt.Errorf("key of device %s: %w", d.ID, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	tw := f.twins[d.ID]
	if tw == nil {
		tw = &twin{id: d.ID, tenant: d.Tenant}
		f.twins[d.ID] = tw
	}
	tw.mu.Lock()
	defer tw.mu.Unlock()
	if tw.targetChanged { // what it probed since d was read is newer
		d.Target, d.Hardware = tw.dev.Target, tw.dev.Hardware
	}
	f.settle(tw, tw.dev, d)
	if was := (site{tw.tenant, tw.dev.Labels[SiteLabel]}); len(tw.serves) > 0 && (!isCache(d) || was.name != d.Labels[SiteLabel]) {
		delete(f.serving[was], tw.id) // until its next hello
		tw.serves = nil
	}
	tw.dev, tw.key = d, key
	if certNotAfter.After(tw.certNotAfter) {
		tw.certNotAfter = certNotAfter
	}
	return tw, nil
}

// find returns the twin of a device of a tenant, or nil.
func (f *Fleet) find(tenant, id string) *twin {
	f.mu.RLock()
	defer f.mu.RUnlock()
	tw := f.twins[id]
	if tw == nil || tw.tenant != tenant {
		return nil
	}
	return tw
}

func (f *Fleet) all() []*twin {
	f.mu.RLock()
	defer f.mu.RUnlock()
	out := make([]*twin, 0, len(f.twins))
	for _, tw := range f.twins {
		out = append(out, tw)
	}
	return out
}

func (tw *twin) restore(t store.Twin) error {
	tw.mu.Lock()
	defer tw.mu.Unlock()
	tw.lastSeen, tw.boot, tw.agent, tw.clockDoubtful = t.LastSeen, t.Boot, t.Agent, t.ClockDoubtful
	tw.held, tw.fromFuture, tw.reportCounter = t.Held, t.FromFuture, t.ReportCounter
	if len(t.Reported) == 0 {
		return nil
	}
	var r wire.Reported
	if err := wire.Unmarshal(t.Reported, &r); err != nil {
		return fmt.Errorf("stored report of %s: %w", t.Device, err)
	}
	tw.reported, tw.reportedHeld = &r, t.Held.Generation
	return nil
}

// row is what is written behind; the caller holds mu.
func (tw *twin) row() (store.Twin, error) {
	t := store.Twin{Tenant: tw.dev.Tenant, Device: tw.dev.ID, LastSeen: tw.lastSeen, Boot: tw.boot, Agent: tw.agent,
		ClockDoubtful: tw.clockDoubtful, Held: tw.held, FromFuture: tw.fromFuture, ReportCounter: tw.reportCounter}
	if tw.reported != nil {
		b, err := wire.Marshal(tw.reported)
		if err != nil {
			return t, err
		}
		t.Reported = b
	}
	return t, nil
}

// converged says that the device holds exactly what is wanted; the caller holds mu.
func (tw *twin) converged() bool {
	if tw.wanted == nil {
		return tw.held.Generation == wire.Generation{}
	}
	return tw.held.Generation == tw.wanted.Generation && bytes.Equal(tw.held.Digest, tw.wanted.Digest)
}

// reachable says that desired states may be sent; the caller holds mu.
func (tw *twin) reachable() bool {
	return tw.online && !tw.fromFuture && tw.dev.State == store.DeviceActive
}

// seen remembers the messages of the last boots of a device: for each the
// highest counter and which of the 64 below it came. What is older passes; the
// counter of reports and the unique index of events catch it there.
type seen struct {
	boots [3]bootSeen
	next  int
}

type bootSeen struct {
	boot, highest, mask uint64 // bit i: highest-i was seen
}

// add marks id and reports whether it is new.
func (s *seen) add(id wire.MessageID) bool {
	if id.Counter == 0 {
		return true // the last will has none
	}
	for i := range s.boots {
		if b := &s.boots[i]; b.boot == id.Boot && b.highest > 0 {
			return b.add(id.Counter)
		}
	}
	s.boots[s.next] = bootSeen{boot: id.Boot, highest: id.Counter, mask: 1}
	s.next = (s.next + 1) % len(s.boots)
	return true
}

func (b *bootSeen) add(n uint64) bool {
	switch {
	case n > b.highest:
		b.mask = b.mask<<min(n-b.highest, 64) | 1
		b.highest = n
		return true
	case b.highest-n >= 64:
		return true
	}
	bit := uint64(1) << (b.highest - n)
	fresh := b.mask&bit == 0
	b.mask |= bit
	return fresh
}

// has reports whether id was seen, without marking it.
func (s *seen) has(id wire.MessageID) bool {
	c := *s
	return !c.add(id)
}

// rate counts per window.
type rate struct {
	start time.Time
	n     int
}

// over counts one and reports whether more than limit came within window.
func (r *rate) over(now time.Time, window time.Duration, limit int) bool {
	if now.Sub(r.start) >= window {
		r.start, r.n = now, 0
	}
	r.n++
	return r.n > limit
}
