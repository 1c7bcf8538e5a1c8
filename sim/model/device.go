package model

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
	"github.com/skein-fleet/skein/ota/rollout"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/sim/jetson"
)

// site is a place with a line and a climate of its own.
type site struct {
	name      string
	bandwidth float64 // bytes per second of one device
	latency   time.Duration
	loss      float64 // of messages
	warmth    float64 // °C of the year's mean
}

var sites = []site{
	{"lyon", 4 << 20, 15 * time.Millisecond, 0.001, 14},
	{"turin", 2 << 20, 25 * time.Millisecond, 0.005, 15},
	{"ghent", 8 << 20, 10 * time.Millisecond, 0.001, 11},
	{"porto", 512 << 10, 60 * time.Millisecond, 0.02, 17},
	{"graz", 1 << 20, 40 * time.Millisecond, 0.01, 10},
	{"aarhus", 256 << 10, 90 * time.Millisecond, 0.05, 8},
}

// wish is what the control plane wants of a device.
type wish struct {
	release ota.Digest
	rollout string
	attempt int
	back    bool
}

// device is one modelled device.
type device struct {
	id, name, target string
	labels           map[string]string
	site             *site
	board            *jetson.Board
	rng              *rand.Rand

	online      bool
	lastSeen    time.Time
	onlineSince time.Time
	line        int // counts ups and downs, so that what was on its way is lost

	runs         ota.Digest
	wanted, held ota.Generation
	wish         wish // of wanted
	accepted     wish // of held
	report       rollout.Report
	unsaid       bool // report has not reached the control plane

	switchedAt    time.Time // to the live release
	medianBefore  float64
	throttledLast bool
}

const (
	meanUp   = 40 * time.Hour
	meanDown = 25 * time.Minute
	baseline = 0.004 // seconds of one inference on an Orin Nano
	perHour  = 8 * 3600
	mishap   = 0.004 // share of updates that fail for reasons of the device
)

// build makes the devices. Each draws from a source of its own.
func (w *world) build() error {
	for i, key := range w.o.Mix.Assign(w.o.Devices, w.o.Seed) {
		m, err := jetson.Lookup(key)
		if err != nil {
			return err
		}
		b, err := jetson.New(m, jetson.Options{Seed: w.o.Seed ^ uint64(i+1)*0x9e3779b97f4a7c15, Start: epoch})
		if err != nil {
			return err
		}
		d := &device{
			name: fmt.Sprintf("cam-%05d", i+1), target: m.Target().String(), site: &sites[i%len(sites)], board: b,
			rng: rand.New(rand.NewPCG(w.o.Seed, uint64(i+1))), online: true, lastSeen: epoch, onlineSince: epoch,
		}
		var raw [16]byte
		for j := range raw {
			raw[j] = byte(d.rng.Uint32())
		}
		d.id = wire.FormatDeviceID(raw)
		d.labels = map[string]string{"site": d.site.name}
		w.devices = append(w.devices, d)
		w.byID[d.id] = d
		w.after(d.draw(meanUp), func() { w.drop(d) })
		w.after(d.draw(heartbeat), func() { w.beat(d) })
	}
	return nil
}

// draw is an exponential time around a mean.
func (d *device) draw(mean time.Duration) time.Duration {
	return time.Duration(d.rng.ExpFloat64() * float64(mean)).Round(time.Millisecond)
}

// spread is d within a quarter around it.
func (d *device) spread(t time.Duration) time.Duration {
	return time.Duration(float64(t) * (0.75 + d.rng.Float64()/2)).Round(time.Millisecond)
}

// view is the device as the planner sees it.
func (d *device) view() rollout.Device {
	return rollout.Device{ID: d.id, Labels: d.labels, Target: d.target, Online: d.online, LastSeen: d.lastSeen, OnlineSince: d.onlineSince,
		Release: d.runs, Held: d.held, Wanted: d.wanted}
}

// drop takes the line away, and brings it back some time later.
func (w *world) drop(d *device) {
	d.online = false
	d.line++
	w.log("%s offline", d.name)
	w.wake(planEvery)
	w.after(d.draw(meanDown)+time.Second, func() {
		d.online, d.onlineSince = true, w.now
		w.log("%s online", d.name)
		w.greet(d)
		w.after(d.draw(meanUp), func() { w.drop(d) })
	})
}

// beat is the heartbeat: the control plane sees what the device holds.
func (w *world) beat(d *device) {
	w.greet(d)
	w.after(d.spread(heartbeat), func() { w.beat(d) })
}

// greet tells the control plane what the device holds and did; it answers with
// what it wants, if that is something else.
func (w *world) greet(d *device) {
	if !d.online || w.away {
		return
	}
	d.lastSeen = w.now
	if d.unsaid {
		w.say(d, d.report)
	} else {
		w.heard(d, rollout.Report{Attempt: d.accepted.attempt}, d.accepted.rollout)
	}
	if d.held != d.wanted {
		w.send(d)
	}
	w.wake(planEvery)
}

// send puts the desired state onto the line, which may lose it: then the next
// heartbeat brings it again.
func (w *world) send(d *device) {
	if !d.online || d.rng.Float64() < d.site.loss {
		return
	}
	line, gen, want := d.line, d.wanted, d.wish
	w.after(d.spread(d.site.latency), func() {
		if d.line == line && d.held.Compare(gen) < 0 {
			d.held, d.accepted = gen, want
			w.install(d, gen)
		}
	})
}

// say reports, when the line is there; else it is said on the next connection.
func (w *world) say(d *device, r rollout.Report) {
	r.Attempt = d.accepted.attempt
	d.report, d.unsaid = r, true
	if !d.online || d.rng.Float64() < d.site.loss {
		return
	}
	line, of := d.line, d.accepted.rollout
	w.after(d.spread(d.site.latency), func() {
		if d.line == line && !w.away {
			if d.report == r {
				d.unsaid = false
			}
			w.heard(d, r, of)
		}
	})
}

// install works on what was accepted, step by step, until something newer is.
func (w *world) install(d *device, gen ota.Generation) {
	want := d.accepted
	if want.release == d.runs {
		status := rollout.Done
		if want.back {
			status = rollout.Restored
		}
		w.say(d, rollout.Report{Status: status, Step: ota.StepCommit})
		return
	}
	if want.back {
		w.after(d.spread(20*time.Second), func() {
			if d.held == gen {
				w.log("%s is back on %s", d.name, w.nameOf(want.release))
				d.runs = want.release
				w.say(d, rollout.Report{Status: rollout.Restored, Step: ota.StepCommit})
			}
		})
		return
	}
	w.fetch(d, gen, float64(w.release(want.release).bytes))
}

func (w *world) release(d ota.Digest) *release {
	for i := range w.releases {
		if w.releases[i].digest == d {
			return &w.releases[i]
		}
	}
	return nil
}

// fetch downloads while the line is there, and goes on where it was.
func (w *world) fetch(d *device, gen ota.Generation, left float64) {
	w.say(d, rollout.Report{Status: rollout.Accepted, Step: ota.StepFetch})
	const slice = 15 * time.Second
	var next func()
	next = func() {
		if d.held != gen {
			return
		}
		if d.online {
			left -= d.site.bandwidth * slice.Seconds()
		}
		if left > 0 {
			w.after(slice, next)
			return
		}
		w.after(d.spread(10*time.Second), func() { w.prove(d, gen) })
	}
	w.after(time.Duration(min(1, left/(d.site.bandwidth*slice.Seconds()))*float64(slice)).Round(time.Millisecond), next)
}

// prove loads the release and runs its golden set.
func (w *world) prove(d *device, gen ota.Generation) {
	if d.held != gen {
		return
	}
	r := w.release(d.accepted.release)
	switch {
	case r.defect == Refused:
		w.fail(d, ota.StepLoad, ota.Rejected, "the model needs an operator that this device has not")
	case r.defect == Wrong:
		w.fail(d, ota.StepProve, ota.Failed, "golden set failed")
	case d.rng.Float64() < mishap:
		w.fail(d, ota.StepLoad, ota.Failed, "not ready after 10 minutes")
	default:
		w.say(d, rollout.Report{Status: rollout.Accepted, Step: ota.StepProve})
		w.after(d.spread(5*time.Second), func() { w.flip(d, gen, r) })
	}
}

func (w *world) fail(d *device, step ota.Step, class ota.FailureClass, why string) {
	w.log("%s fails %s at %s: %s", d.name, w.nameOf(d.accepted.release), step, why)
	w.say(d, rollout.Report{Status: rollout.FailedState, Step: step, Class: class, Detail: why})
}

// flip serves the release, soaks it and commits it.
func (w *world) flip(d *device, gen ota.Generation, r *release) {
	if d.held != gen {
		return
	}
	before := d.runs
	d.runs, d.switchedAt = r.digest, w.now
	d.medianBefore = baseline * d.board.LatencyFactor() * (0.97 + 0.06*d.rng.Float64())
	if r.defect != Good && w.live != nil && w.live.release == r {
		w.live.harmed[d.id] = true
	}
	w.say(d, rollout.Report{Status: rollout.Healthy, Step: ota.StepSoak})
	w.after(d.spread(2*time.Minute), func() {
		if d.held != gen {
			return
		}
		if r.defect == Crashes && d.rng.Float64() < 0.9 {
			d.runs, d.switchedAt = before, time.Time{}
			w.fail(d, ota.StepSoak, ota.Failed, "the new workload is gone")
			return
		}
		w.say(d, rollout.Report{Status: rollout.Done, Step: ota.StepCommit})
	})
}

// latency compares before and after the switch.
func (d *device) latency(now time.Time, defect Defect) gate.Pair {
	n := int(now.Sub(d.switchedAt).Hours() * perHour)
	after := baseline * d.board.LatencyFactor()
	if defect == Slow {
		after *= 9
	}
	return gate.Pair{Before: gate.Stats{N: perHour, Median: d.medianBefore, P99: d.medianBefore * 1.1}, After: gate.Stats{N: n, Median: after, P99: after * 1.1}}
}

// weather lets an hour pass on every board, under the load of that hour and
// the air of that site.
func (w *world) weather() {
	hour := float64(w.now.Hour())
	sun := math.Cos((hour - 15) / 24 * 2 * math.Pi)
	for _, d := range w.devices {
		d.board.SetAmbient(d.site.warmth + 12 + 8*sun + 3*d.rng.NormFloat64())
		load := 0.35 + 0.25*sun
		d.board.Step(time.Hour, jetson.Load{GPU: load, CPU: load / 2, EMC: load / 2})
		if hot := d.board.Throttled(); hot != d.throttledLast {
			d.throttledLast = hot
			w.log("%s throttled %v at %.1f °C", d.name, hot, d.board.Die())
		}
		if d.board.Dead() {
			w.log("%s switched itself off and is started again", d.name)
			d.board.PowerCycle()
		}
	}
}
