package play

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	rolloutv1 "github.com/skein-fleet/skein/proto/gen/skein/rollout/v1"
	"github.com/skein-fleet/skein/sim/fault"
	"github.com/skein-fleet/skein/sim/scenario"
)

// snapshot is one look at the world.
type snapshot struct {
	on         map[string][]int           // release -> numbers of devices that serve it
	devices    map[string]*fleetv1.Device // by name, as the control plane says; nil: it did not answer
	rollouts   map[string]string          // release -> state
	harmed     map[int]bool               // devices that ever served a bad release
	throttled  int
	dead       int
	served     int64
	dropped    int64
	lost       int64
	lostKnown  bool
	lostDetail string
}

// look takes a snapshot. What the control plane does not answer is unknown.
func (s *stage) look(ctx context.Context, _ time.Duration) {
	s.mu.Lock()
	releases := map[string]made{}
	for name, m := range s.made {
		releases[name] = *m
	}
	rollouts := maps.Clone(s.rollouts)
	s.mu.Unlock()
	n := snapshot{on: map[string][]int{}, harmed: s.seen.harmed, rollouts: map[string]string{}}
	if n.harmed == nil {
		n.harmed = map[int]bool{}
	}
	for _, d := range s.fleet.Devices() {
		n.board(ctx, d, releases)
	}
	n.ask(ctx, s, rollouts)
	s.mu.Lock()
	s.seen = n
	s.mu.Unlock()
}

// board takes in what one device itself knows.
func (n *snapshot) board(ctx context.Context, d Device, releases map[string]made) {
	w := d.Work()
	n.dropped += w.Errors
	for _, c := range w.Requests {
		n.served += c
	}
	if d.Dead() {
		n.dead++
	} else if d.Throttled() {
		n.throttled++
	}
	for name, m := range releases {
		if d.Serves(ctx, ota.Digest(m.digest)) {
			n.on[name] = append(n.on[name], d.Number())
		}
		if m.defect != scenario.Good && w.Requests[m.version] > 0 {
			n.harmed[d.Number()] = true
		}
	}
}

// ask takes in what the control plane says.
func (n *snapshot) ask(ctx context.Context, s *stage, rollouts map[string]string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	devices, err := s.op.Devices(ctx, "")
	if err != nil {
		return
	}
	byName := map[string]*fleetv1.Device{}
	for _, d := range devices {
		byName[d.GetName()] = d
	}
	for release, id := range rollouts {
		r, err := s.op.Rollouts.GetRollout(ctx, &rolloutv1.GetRolloutRequest{Rollout: id})
		if err != nil {
			return
		}
		n.rollouts[release] = stateOf(r.GetRollout().GetPhase())
	}
	n.devices = byName
}

// stateOf says a phase in the words of scenarios. A rollout that is still
// taking releases back is not aborted yet.
func stateOf(phase string) string {
	switch phase {
	case "pending", "running":
		return "running"
	case "aborted", "rolled-back":
		return "aborted"
	case "succeeded":
		return "done"
	}
	return phase
}

// holds asks a condition of the latest look. known is false when the control
// plane would have to say and did not.
func (s *stage) holds(e scenario.Expect) (holds, known bool, detail string) {
	switch c := e.Cond.(type) {
	case scenario.ReleaseOn:
		holds, detail = s.releaseOn(c)
		known = true
	case scenario.RolloutState:
		state, ok := s.seen.rollouts[c.Release]
		holds, known, detail = state == c.State, s.seen.devices != nil, "it is "+state
		if !ok {
			detail = "it has not started"
		}
	case scenario.Count:
		n, ok := s.quantity(c.Quantity)
		holds, known, detail = c.Op.Holds(n, c.N), ok, fmt.Sprintf("%s is %g", c.Quantity, n)
		if c.Quantity == scenario.Lost && s.seen.lostDetail != "" {
			detail += ": " + s.seen.lostDetail
		}
	case scenario.Health:
		// With not, none of the devices may have it.
		all, some, text := s.health(c)
		holds, known, detail = all, s.seen.devices != nil, text
		if e.Not {
			return !some, known, detail
		}
	}
	if !known {
		detail = "the control plane does not answer"
	}
	return holds != e.Not, known, detail
}

func (s *stage) releaseOn(c scenario.ReleaseOn) (bool, string) {
	on := s.seen.on[c.Release]
	detail := fmt.Sprintf("%s is on %d of %d", c.Release, len(on), s.script.Devices)
	switch {
	case c.All:
		return len(on) == s.script.Devices, detail
	case !c.Named:
		return c.Op.Holds(float64(len(on)), float64(c.Count)), detail
	}
	for _, d := range s.fleet.Pick(c.Devices, s.script.Seed) {
		if !slices.Contains(on, d.Number()) {
			return false, fmt.Sprintf("%s is not on device %d", c.Release, d.Number())
		}
	}
	return true, detail
}

// health says whether all and whether some of the devices report a condition.
func (s *stage) health(c scenario.Health) (all, some bool, detail string) {
	devices := s.fleet.Devices()
	if c.Devices.String() != (fault.Devices{}).String() {
		devices = s.fleet.Pick(c.Devices, s.script.Seed)
	}
	all = len(devices) > 0
	var with, without []string
	for _, d := range devices {
		if slices.ContainsFunc(s.seen.devices[d.Name()].GetConditions(), func(h *fleetv1.Condition) bool { return h.GetName() == c.Condition }) {
			with = append(with, d.Name())
			continue
		}
		all = false
		without = append(without, d.Name())
	}
	return all, len(with) > 0, fmt.Sprintf("%s on %v, not on %v", c.Condition, with, without)
}

// quantity measures over the fleet.
func (s *stage) quantity(q scenario.Quantity) (n float64, known bool) {
	known = s.seen.devices != nil
	count := func(is func(*fleetv1.Device) bool) float64 {
		n := 0
		for _, d := range s.seen.devices {
			if is(d) {
				n++
			}
		}
		return float64(n)
	}
	switch q {
	case scenario.Harmed:
		return float64(len(s.seen.harmed)), true
	case scenario.Throttled:
		return float64(s.seen.throttled), true
	case scenario.Dead:
		return float64(s.seen.dead), true
	case scenario.Served:
		return float64(s.seen.served), true
	case scenario.Dropped:
		return float64(s.seen.dropped), true
	case scenario.Offline:
		return count(func(d *fleetv1.Device) bool { return d.GetState() != fleetv1.DeviceState_DEVICE_STATE_ONLINE }), known
	case scenario.Failed:
		return count(func(d *fleetv1.Device) bool { return d.GetPhase() == "failed" }), known
	case scenario.PeerBytes, scenario.HTTPSBytes, scenario.MQTTBytes:
		way, _ := strings.CutSuffix(string(q), "-bytes")
		for _, d := range s.seen.devices {
			for _, b := range d.GetSources() {
				if b.GetName() == way {
					n += float64(b.GetBytes())
				}
			}
		}
		return n, known
	case scenario.Incidents:
		return count((*fleetv1.Device).GetGenerationFromFuture), known
	case scenario.Lost:
		return float64(s.seen.lost), s.seen.lostKnown
	}
	return 0, false
}

// countLost asks the control plane for everything that it has acknowledged:
// enrolled devices, releases, rollouts, and every event of every device.
func (s *stage) countLost(ctx context.Context) {
	var missing []string
	err := patiently(ctx, func(ctx context.Context) error {
		missing = nil
		devices, err := s.op.Devices(ctx, "")
		if err != nil {
			return err
		}
		known := map[string]bool{}
		for _, d := range devices {
			known[d.GetId()] = true
		}
		for _, d := range s.fleet.Devices() {
			if id := d.ID(); id != "" && !known[id] {
				missing = append(missing, "device "+d.Name())
				continue
			}
			gone, err := s.lostEvents(ctx, d)
			if err != nil {
				return err
			}
			missing = append(missing, gone...)
		}
		gone, err := s.lostActs(ctx)
		missing = append(missing, gone...)
		return err
	})
	if err != nil {
		s.note("count what was lost: %v", err)
		return
	}
	s.seen.lost, s.seen.lostKnown = int64(len(missing)), true
	s.seen.lostDetail = strings.Join(missing[:min(len(missing), 5)], ", ")
}

// eventKey names an event for comparison.
func eventKey(unixMilli int64, kind, step, message string) string {
	return fmt.Sprintf("%d %s %s %s", unixMilli, kind, step, message)
}

func (s *stage) lostEvents(ctx context.Context, d Device) ([]string, error) {
	acknowledged := d.Acknowledged()
	if len(acknowledged) == 0 {
		return nil, nil
	}
	r, err := s.op.Fleet.ListDeviceEvents(ctx, &fleetv1.ListDeviceEventsRequest{Device: d.ID(), Limit: 1000})
	if err != nil {
		return nil, err
	}
	stored := map[string]int{}
	for _, e := range r.GetEvents() {
		stored[eventKey(e.GetTime().AsTime().UnixMilli(), e.GetKind(), e.GetStep(), e.GetMessage())]++
	}
	var missing []string
	for _, e := range acknowledged {
		key := eventKey(e.Time, e.Kind, e.Step, e.Message)
		if stored[key]--; stored[key] < 0 {
			missing = append(missing, "event of "+d.Name()+": "+key)
		}
	}
	return missing, nil
}

// lostActs are releases and rollouts that the control plane no longer has.
func (s *stage) lostActs(ctx context.Context) (missing []string, err error) {
	releases, err := s.op.Releases.ListReleases(ctx, &releasev1.ListReleasesRequest{})
	if err != nil {
		return nil, err
	}
	rollouts, err := s.op.Rollouts.ListRollouts(ctx, &rolloutv1.ListRolloutsRequest{})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, m := range s.made {
		if !slices.ContainsFunc(releases.GetReleases(), func(r *releasev1.Release) bool { return r.GetDigest() == m.digest }) {
			missing = append(missing, "release "+name)
		}
	}
	for name, id := range s.rollouts {
		if !slices.ContainsFunc(rollouts.GetRollouts(), func(r *rolloutv1.Rollout) bool { return r.GetId() == id }) {
			missing = append(missing, "rollout of "+name)
		}
	}
	return missing, nil
}
