package virtual

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/meter/engine"
	"github.com/skein-fleet/skein/telemetry"
)

// honestMACs is the cost of one inference of the honest meter model; a model
// that computes more takes proportionally longer on the board.
const (
	honestMACs    = 600_000
	honestLatency = 4 * time.Millisecond // on an Orin Nano in its 15W mode
)

// board is a jetson.Board with a lock, the work that the application asks of
// it, and the latencies that came out.
type board struct {
	mu        sync.Mutex // guards all below
	b         *jetson.Board
	last      time.Time     // until when the board has lived
	busy      time.Duration // inference time since the last step
	latencies map[string][]time.Duration
	requests  map[requestKey]int64
	wrong     map[string]int64
}

// requestKey names a counter of requests.
type requestKey struct{ version, outcome string }

func newBoard(b *jetson.Board, start time.Time) *board {
	return &board{b: b, last: start, latencies: map[string][]time.Duration{}, requests: map[requestKey]int64{}, wrong: map[string]int64{}}
}

// latencyKey carries where pace leaves the latency of one application request.
type latencyKey struct{}

// pace books the latency that the board would have needed.
func (b *board) pace(ctx context.Context, c engine.Cost) (time.Duration, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	d := b.b.Latency(time.Duration(float64(honestLatency) * float64(c.MACs) / honestMACs))
	b.busy += d
	if out, ok := ctx.Value(latencyKey{}).(*time.Duration); ok {
		*out = d
	}
	return d, nil
}

// record keeps one request of the application; version is that which answered.
func (b *board) record(version string, latency time.Duration, right bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.requests[requestKey{version, "error"}]++
		return
	}
	b.requests[requestKey{version, "ok"}]++
	b.latencies[version] = append(b.latencies[version], latency)
	if !right {
		b.wrong[version]++
	}
}

// live lets the time up to now pass, under the load that the application made.
func (b *board) live(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	dt := now.Sub(b.last)
	if dt <= 0 {
		return
	}
	b.b.Step(dt, jetson.Inferring(b.busy, dt))
	b.busy = 0
	b.last = now
}

// reboot switches the board off and on; it was off until now.
func (b *board) reboot(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Step(max(0, now.Sub(b.last)), jetson.Load{})
	b.last = now
	b.b.PowerCycle()
	clear(b.latencies)
	b.busy = 0
}

// now is what the board's wall clock shows.
func (b *board) now(at time.Time) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Now().Add(max(0, at.Sub(b.last)))
}

// with runs f on the board under the lock.
func (b *board) with(f func(*jetson.Board)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b.b)
}

func (b *board) target() ota.Target {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Target()
}

// readings is the board's own readings and those of its inference server since
// the last call.
func (b *board) readings(at time.Time) []telemetry.Reading {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.b.Readings(at)
	add := func(v float64, name string, pairs ...string) {
		pairs = append(pairs, "model", meter.ModelName)
		out = append(out, telemetry.Reading{Series: telemetry.NewSeries(name, pairs...), Time: at, Value: v})
	}
	for _, version := range slices.Sorted(maps.Keys(b.latencies)) {
		all := b.latencies[version]
		slices.Sort(all)
		var sum time.Duration
		for _, d := range all {
			sum += d
		}
		add(all[len(all)/2].Seconds(), telemetry.InferenceP50, "version", version)
		add(all[min(len(all)-1, len(all)*99/100)].Seconds(), telemetry.InferenceP99, "version", version)
		add((sum / time.Duration(len(all))).Seconds(), telemetry.InferenceMean, "version", version)
	}
	clear(b.latencies)
	for k, n := range b.requests {
		add(float64(n), telemetry.InferenceRequests, "version", k.version, "outcome", k.outcome)
	}
	return out
}
