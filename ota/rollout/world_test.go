package rollout

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
)

// The releases of the tests.
var (
	v0, v1, v2 = ota.DigestOf([]byte("v0")), ota.DigestOf([]byte("v1")), ota.DigestOf([]byte("v2"))
	epoch      = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// temper says how an actor meets the release.
type temper string

const (
	good     temper = "good"
	slow     temper = "slow"     // takes ten times as long
	failing  temper = "failing"  // fails while it proves the release, and undoes
	lateFail temper = "lateFail" // fails after it was done
	refusing temper = "refusing" // rejects it
	silent   temper = "silent"   // dies at the switch
	stuck    temper = "stuck"    // never gets past fetch
	slower   temper = "slower"   // works, with three times the latency
)

// actor is one device of the test world, honest about what it runs.
type actor struct {
	temper  temper
	runs    ota.Digest
	desired ota.Digest
	attempt int
	left    int // ticks of work left; -1: idle
	waits   int // ticks for which it says that it waits for a window
	dead    bool
	samples int
}

// world runs a rollout against actors in steps of one tick, and checks the
// invariants at each decision.
type world struct {
	spec     Spec
	state    State
	fleet    []Device
	actors   map[string]*actor
	now      time.Time
	tick     time.Duration
	rng      *rand.Rand
	log      []Decision
	first    map[string]ota.Digest // what a device ran at its first offer
	offers   map[string]int
	again    map[string]int  // retries and late assignments that allow one more offer
	times    []time.Duration // of all offers, by steady
	steady   time.Duration   // what passed since the start without pauses, whatever the clock says
	joined   bool            // somebody joined late
	rejected map[string]bool
	left     map[string]bool                  // was retired once
	check    func(w *world, d Decision) error // before d is applied
	err      error
}

func newWorld(spec Spec, fleet []Device, tempers map[string]temper) *world {
	w := &world{spec: spec.Normalize(), state: New("r1"), fleet: fleet, actors: map[string]*actor{}, now: epoch,
		tick: 10 * time.Second, rng: rand.New(rand.NewPCG(1, 2)), first: map[string]ota.Digest{},
		offers: map[string]int{}, again: map[string]int{}, rejected: map[string]bool{}, left: map[string]bool{}}
	for i := range fleet {
		fleet[i].LastSeen, fleet[i].OnlineSince = epoch, epoch
		w.actors[fleet[i].ID] = &actor{temper: tempers[fleet[i].ID], runs: fleet[i].Release, desired: fleet[i].Release, left: -1}
	}
	return w
}

func (w *world) evidence() Evidence {
	m := map[string]gate.Pair{}
	for id, a := range w.actors {
		p := gate.Pair{Before: gate.Stats{N: 100, Median: 10, P99: 20}, After: gate.Stats{N: a.samples, Median: 10, P99: 20}}
		if a.temper == slower {
			p.After.Median, p.After.P99 = 30, 60
		}
		if a.samples > 0 {
			m[id] = p
		}
	}
	return Evidence{Metrics: map[string]map[string]gate.Pair{"latency_ms": m}}
}

func (w *world) plan() []Decision { return Plan(w.spec, w.state, w.fleet, w.evidence(), w.now) }

// conduct plans, applies and delivers.
func (w *world) conduct() {
	for _, d := range w.plan() {
		w.do(d)
	}
}

func (w *world) do(d Decision) {
	d.At = w.now
	if w.check != nil && w.err == nil {
		if err := w.check(w, d); err != nil {
			w.err = fmt.Errorf("at %s, %s: %w", w.state.Clock(w.now), d, err)
		}
	}
	if !w.state.Apply(d) {
		return
	}
	w.log = append(w.log, d)
	a := w.actors[d.Device]
	switch d.Kind {
	case Offer:
		if _, seen := w.first[d.Device]; !seen {
			w.first[d.Device] = a.runs
		}
		w.offers[d.Device]++
		w.times = append(w.times, w.steady)
		a.desired, a.attempt, a.left = d.Release, w.state.Exec[d.Device].Attempts, 4
		if a.temper == slow {
			a.left = 40
		}
	case Withdraw, Rollback:
		a.desired, a.left = d.Release, 2
	case RetryLater:
		w.again[d.Device]++
	case MarkRejected:
		w.rejected[d.Device] = true
	case Assign:
		for _, as := range d.Assign {
			w.again[as.Device]++
		}
		w.joined = w.joined || len(w.log) > 1
	}
}

func (w *world) say(id string, a *actor, st Status, step ota.Step, class ota.FailureClass, detail string) {
	w.state.Observe(Report{Device: id, At: w.now, Attempt: a.attempt, Status: st, Step: step, Class: class, Detail: detail})
	if class == ota.Rejected && w.state.Exec[id].Class == ota.Rejected {
		w.rejected[id] = true
	}
}

// act lets one device work for one tick.
func (w *world) act(d *Device) {
	a := w.actors[d.ID]
	if a.dead || !d.Online {
		return
	}
	d.LastSeen = w.now
	if a.runs == w.spec.Release {
		a.samples++
		if a.temper == lateFail && a.samples == 5 {
			a.runs, a.desired = w.first[d.ID], w.first[d.ID]
			w.say(d.ID, a, FailedState, ota.StepSoak, ota.Failed, "crashed")
			return
		}
	}
	if a.left < 0 {
		return
	}
	if a.left--; a.desired != w.spec.Release { // on the way back
		if a.left < 0 {
			a.runs = a.desired
			w.state.Observe(Report{Device: d.ID, At: w.now, Status: Restored})
		}
		d.Release = a.runs
		return
	}
	w.advance(d, a)
	d.Release = a.runs
}

func (w *world) advance(d *Device, a *actor) {
	switch {
	case a.waits > 0 && a.left >= 2 && a.temper != refusing:
		a.waits--
		a.left++
		w.state.Observe(Report{Device: d.ID, At: w.now, Attempt: a.attempt, Status: Accepted, Step: ota.StepFetch, Waits: "waits for its window"})
	case a.temper == refusing:
		a.left = -1
		w.say(d.ID, a, FailedState, ota.StepVerify, ota.Rejected, "wrong target")
	case a.temper == stuck:
		a.left++
		w.say(d.ID, a, Accepted, ota.StepFetch, "", "")
	case a.left > 2:
		w.say(d.ID, a, Accepted, ota.StepFetch, "", "")
	case a.left == 2 && a.temper == failing:
		a.left = -1
		w.say(d.ID, a, FailedState, ota.StepProve, ota.Failed, "golden set differs")
	case a.left == 2:
		w.say(d.ID, a, Accepted, ota.StepLoad, "", "")
	case a.left == 1:
		a.runs = w.spec.Release
		w.say(d.ID, a, Accepted, ota.StepSwitch, "", "")
		if a.temper == silent {
			a.dead, d.Online = true, false
		}
	case a.left == 0:
		w.say(d.ID, a, Healthy, ota.StepSoak, "", "")
	default:
		w.say(d.ID, a, Done, ota.StepCommit, "", "")
	}
}

// step lets time pass, devices work, and the conductor plan.
func (w *world) step() {
	w.now = w.now.Add(w.tick)
	if w.state.Phase != Paused {
		w.steady += w.tick
	}
	for i := range w.fleet {
		w.act(&w.fleet[i])
	}
	w.conduct()
}

// run steps until the rollout ends or n ticks have passed.
func (w *world) run(n int) *world {
	for i := 0; i < n && !w.state.Phase.Final(); i++ {
		w.step()
	}
	return w
}

func (w *world) setOnline(id string, online bool) {
	for i := range w.fleet {
		if d := &w.fleet[i]; d.ID == id && d.Online != online && !w.actors[id].dead {
			d.Online = online
			if online {
				d.OnlineSince, d.LastSeen = w.now, w.now
			}
		}
	}
}

func (w *world) count(k Kind) int {
	n := 0
	for _, d := range w.log {
		if d.Kind == k {
			n++
		}
	}
	return n
}

// devices makes n devices on v1 in two sites and three targets, all good.
func devices(n int) []Device {
	targets := []string{"linux/arm64;sm=8.7;trt=10.3.0", "linux/arm64;sm=7.2;trt=8.5.2", "linux/amd64;ort=1"}
	out := make([]Device, n)
	for i := range out {
		out[i] = Device{ID: fmt.Sprintf("d%03d", i), Online: true, Release: v1, Target: targets[i%3],
			Labels: map[string]string{"site": []string{"lyon", "oslo"}[i/3%2]}}
	}
	return out
}

func all(fleet []Device, t temper) map[string]temper {
	m := map[string]temper{}
	for _, d := range fleet {
		m[d.ID] = t
	}
	return m
}

// simple is one wave of everything, without soak or abort rules.
func simple() Spec {
	return Spec{Release: v2, Waves: []Wave{{Name: "all", Gate: Gate{Success: &Success{MinPct: 0}},
		Timeout: Timeout{Device: Duration(10 * time.Minute), Silent: Duration(2 * time.Minute)}}}}
}
