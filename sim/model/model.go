// Package model runs a fleet of modelled devices under the real rollout planner
// in fake time: a week of a thousand devices in seconds. It owns the queue of
// events, the devices' behaviour (lines that fail, downloads, updates with
// their failures, heat) and the log.
//
// Invariants: no clock, no goroutine and no map order has an effect; every draw
// comes from the seed, so equal options give byte-equal logs. The devices are
// models, not the agent: what the agent does is tested with real agents
// (packages virtual and scenario/play). The packages of sim import it.
package model

import (
	"container/heap"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
	"github.com/skein-fleet/skein/ota/rollout"
	"github.com/skein-fleet/skein/sim/jetson"
)

// Options say what to run.
type Options struct {
	Devices int
	Mix     jetson.Mix // the default mix when empty
	Days    int
	Seed    uint64
	Log     io.Writer // a line for everything that happens; nil: none
}

// Result is what became of the fleet.
type Result struct {
	Devices  int            `json:"devices"`
	Days     int            `json:"days"`
	Seed     uint64         `json:"seed"`
	Events   int            `json:"events"`
	Lines    int            `json:"log_lines"`
	Releases map[string]int `json:"devices_per_release"`
	Rollouts []Outcome      `json:"rollouts"`
}

// Outcome is what became of one rollout.
type Outcome struct {
	Release string        `json:"release"`
	Defect  Defect        `json:"defect,omitempty"`
	Phase   rollout.Phase `json:"phase"`
	Reason  string        `json:"reason,omitempty"`
	Canary  int           `json:"canary_devices"`
	Harmed  int           `json:"devices_harmed"` // served it though it was bad
	Outside int           `json:"devices_harmed_outside_canary"`
	Hours   float64       `json:"hours"`
}

// Defect says how a release is bad.
type Defect string

// The defects of modelled releases.
const (
	Good    Defect = ""
	Wrong   Defect = "wrong"   // fails its golden set
	Slow    Defect = "slow"    // right, and nine times the latency
	Crashes Defect = "crash"   // its server dies while the device watches it
	Refused Defect = "refused" // no device can load it
)

var defects = []Defect{Wrong, Slow, Crashes, Refused}

// When the simulated week begins, and what happens at which hour of a day.
var epoch = time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)

const (
	releaseHour = 9
	outageDay   = 2 // of every seven: the control plane is away in the middle of a rollout
	outageHour  = 10
	outageTime  = 15 * time.Minute
	planEvery   = 10 * time.Second
	tickEvery   = time.Minute
	heartbeat   = 10 * time.Minute
)

// world is one run.
type world struct {
	o       Options
	now     time.Time
	queue   queue
	seq     int
	events  int
	lines   int
	err     error // of the log
	rng     *rand.Rand
	devices []*device
	byID    map[string]*device

	releases []release
	live     *running // the rollout that runs
	outcomes []Outcome
	planDue  bool // a plan is scheduled
	away     bool // the control plane is
}

// release is one version of the model.
type release struct {
	name   string
	digest ota.Digest
	defect Defect
	bytes  int64
}

// running is a rollout in motion.
type running struct {
	id      string
	release *release
	spec    rollout.Spec
	state   rollout.State
	began   time.Time
	harmed  map[string]bool
}

// Run runs the fleet for so many days.
func Run(o Options) (Result, error) {
	if o.Devices < 1 || o.Days < 1 || o.Devices > 100_000 || o.Days > 366 {
		return Result{}, errors.New("want 1 to 100000 devices and 1 to 366 days")
	}
	if len(o.Mix) == 0 {
		o.Mix = jetson.DefaultMix
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	w := &world{o: o, now: epoch, rng: rand.New(rand.NewPCG(o.Seed, 0x6d6f64656c)), byID: map[string]*device{}}
	if err := w.build(); err != nil {
		return Result{}, err
	}
	for day := range o.Days {
		at := epoch.AddDate(0, 0, day)
		w.at(at.Add(releaseHour*time.Hour), w.nextRelease)
		if day%7 == outageDay {
			w.at(at.Add(outageHour*time.Hour), w.outage)
		}
		for hour := range 24 {
			w.at(at.Add(time.Duration(hour)*time.Hour), w.weather)
		}
	}
	w.run(epoch.AddDate(0, 0, o.Days))
	return w.result(), w.err
}

// run lets events happen until end.
func (w *world) run(end time.Time) {
	for len(w.queue) > 0 && w.err == nil {
		e := heap.Pop(&w.queue).(*event)
		if !e.at.Before(end) {
			break
		}
		w.now = e.at
		w.events++
		e.do()
	}
	w.now = end
	if w.live != nil {
		w.finish()
	}
}

// event is something that will happen; of two at one time the first made is first.
type event struct {
	at  time.Time
	seq int
	do  func()
}

type queue []*event

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	if !q[i].at.Equal(q[j].at) {
		return q[i].at.Before(q[j].at)
	}
	return q[i].seq < q[j].seq
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface.
func (q *queue) Push(x any) { *q = append(*q, x.(*event)) }

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	old := *q
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return e
}

func (w *world) at(t time.Time, do func()) {
	w.seq++
	heap.Push(&w.queue, &event{at: t, seq: w.seq, do: do})
}

func (w *world) after(d time.Duration, do func()) { w.at(w.now.Add(d), do) }

// log writes a line.
func (w *world) log(format string, args ...any) {
	w.lines++
	_, err := fmt.Fprintf(w.o.Log, "%s %s\n", w.now.Format("01-02T15:04:05.000"), fmt.Sprintf(format, args...))
	w.err = errors.Join(w.err, err)
}

func (w *world) result() Result {
	r := Result{Devices: w.o.Devices, Days: w.o.Days, Seed: w.o.Seed, Events: w.events, Lines: w.lines, Releases: map[string]int{}, Rollouts: w.outcomes}
	for _, d := range w.devices {
		r.Releases[w.nameOf(d.runs)]++
	}
	return r
}

func (w *world) nameOf(d ota.Digest) string {
	for _, r := range w.releases {
		if r.digest == d {
			return r.name
		}
	}
	return "nothing"
}

// evidence is what telemetry says of the devices that serve the live release.
func (w *world) evidence() rollout.Evidence {
	pairs := map[string]gate.Pair{}
	for _, d := range w.devices {
		if d.runs == w.live.release.digest && !d.switchedAt.IsZero() {
			pairs[d.id] = d.latency(w.now, w.live.release.defect)
		}
	}
	return rollout.Evidence{Metrics: map[string]map[string]gate.Pair{metricName: pairs}}
}
