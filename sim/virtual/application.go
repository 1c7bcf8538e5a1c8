package virtual

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/meter/digits"
)

// Work is what the application on a device did so far.
type Work struct {
	// Requests and Wrong count answered requests and wrong answers by model version.
	Requests map[string]int64
	Wrong    map[string]int64
	// Errors counts requests that got no answer after the first one had.
	Errors int64
}

// application reads meters: it asks the serving workload for digits at a rate
// and checks the answers against the truth.
type application struct {
	board   *board
	infer   runtime.Inferer
	test    *digits.Set
	perTick int
	rng     *rand.Rand
	input   []float32
	served  bool // something answered since the boot
}

// tick runs the requests of one step.
func (a *application) tick(ctx context.Context) {
	for range a.perTick {
		i := a.rng.IntN(len(a.test.Images))
		a.input = a.test.Images[i].Floats(a.input[:0])
		var latency time.Duration
		resp, err := a.infer.Infer(context.WithValue(ctx, latencyKey{}, &latency), "", runtime.Request{
			Inputs: []runtime.Tensor{{Name: meter.InputName, Shape: []int64{1, 1, digits.Side, digits.Side}, Data: a.input}},
		})
		if errors.Is(err, runtime.ErrNotLoaded) && !a.served || ctx.Err() != nil {
			return // nothing serves yet, or the device goes down
		}
		a.served = a.served || err == nil
		right := err == nil && len(resp.Outputs) == 1 && meter.Label(resp.Outputs[0].Data) == int(a.test.Labels[i])
		a.board.record(resp.ModelVersion, latency, right, err)
	}
}

// work returns the counts of the application.
func (b *board) work() Work {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := Work{Requests: map[string]int64{}, Wrong: map[string]int64{}}
	for k, n := range b.requests {
		if k.outcome == "ok" {
			w.Requests[k.version] = n
		} else {
			w.Errors += n
		}
	}
	maps.Copy(w.Wrong, b.wrong)
	return w
}
