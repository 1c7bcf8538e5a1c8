package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/agent/internal/tap"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry"
)

// TapOptions are the endpoint that applications talk to.
type TapOptions struct {
	// Listen is unix:PATH or HOST:PORT on loopback; empty serves none.
	Listen string
	Limits TapLimits
	// Listening, when set, is told the address once the tap answers.
	Listening func(net.Addr)
}

// TapLimits bound what applications may take; a zero field is its default.
type TapLimits = tap.Limits

// tapping is the tap and what was last read of it.
type tapping struct {
	tap  *tap.Tap
	seen confidence
	mu   sync.Mutex // guards what follows
	last tap.Snapshot
	addr string
}

// ErrNoTap is returned where the runtime's workloads have no endpoints to
// forward to.
var ErrNoTap = errors.New("this runtime has no servers that a tap could forward to")

// openTap makes the tap.
func (a *Agent) openTap() error {
	o := a.opts.Tap
	if o.Listen == "" {
		return nil
	}
	ends, ok := a.opts.Runtime.(runtime.Endpoints)
	if !ok {
		return fmt.Errorf("tap on %s: %w", o.Listen, ErrNoTap)
	}
	t, err := tap.New(tap.Options{Endpoints: ends, Loaded: a.provenWorkloads, Listen: o.Listen, Logger: a.log, Limits: o.Limits, Listening: func(at net.Addr) {
		a.board.Clear(health.Tap)
		a.tap.mu.Lock()
		a.tap.addr = at.Network() + ":" + at.String()
		a.tap.mu.Unlock()
		if o.Listening != nil {
			o.Listening(at)
		}
	}})
	if err != nil {
		return err
	}
	t.Observe(observedShare, &a.tap.seen)
	a.tap.tap = t
	return nil
}

// observedShare of the requests is decoded.
const observedShare = 0.05

// tapLoop serves applications. Without it the device goes on: what serves can
// be reached again once the address is free.
func (a *Agent) tapLoop(ctx context.Context) error {
	t := a.tap.tap
	if t == nil {
		return nil
	}
	for {
		err := t.Run(ctx)
		if ctx.Err() != nil {
			return nil
		}
		a.log.Warn("tap", "error", err, "again", retryMax)
		a.board.Set(health.Tap, health.Critical, fmt.Sprintf("applications get no answers on %s: %v", a.opts.Tap.Listen, err))
		if !pause(ctx, retryMax) {
			return nil
		}
	}
}

// provenWorkloads are those that have answered their golden sets on this device
// and may still be loaded: applications may ask for them by version.
func (a *Agent) provenWorkloads(context.Context) []string {
	s := a.state.Get()
	var out []string
	for _, i := range []*state.Install{s.Current, s.Previous} {
		if i != nil {
			out = append(out, i.WorkloadID())
		}
	}
	return out
}

const (
	shadowRequests = 100
	shadowSeconds  = 60
	shadowEvery    = 100 * time.Millisecond
)

// ErrDisagrees is returned for a new workload whose answers to live requests
// differ more from those of the old one than its release allows.
var ErrDisagrees = errors.New("the new workload disagrees with the old one on live requests")

// shadow mirrors live requests to a proven workload before it gets any, where
// its release asks for that, and says how the answers compare.
func (a *Agent) shadow(ctx context.Context, i *state.Install) (string, error) {
	if i.Spec == nil || i.Spec.Shadow == nil {
		return "", nil
	}
	want, t := i.Spec.Shadow, a.tap.tap
	if t == nil {
		return "shadow: this device has no tap", nil
	}
	_, release, err := a.opts.Runtime.(runtime.Endpoints).Acquire(ctx, "")
	if errors.Is(err, runtime.ErrNotLoaded) {
		return "shadow: nothing serves to compare with", nil
	}
	if err != nil {
		return "", err
	}
	release()
	need := int64(cmp.Or(want.Requests, shadowRequests))
	look, stop := t.Mirror(tap.Shadow{ID: i.WorkloadID(), Share: want.Share, PerSecond: want.PerSecond})
	defer stop()
	end := time.NewTimer(time.Duration(cmp.Or(want.Seconds, shadowSeconds)) * time.Second)
	defer end.Stop()
	tick := time.NewTicker(shadowEvery)
	defer tick.Stop()
	for over := false; !over; {
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-end.C:
			over = true
		case <-tick.C:
			c := look()
			over = c.Compared+c.Failed >= need
		}
	}
	c := look()
	n := c.Compared + c.Failed
	if n == 0 {
		return "shadow: no request came", nil
	}
	if limit := want.MaxDisagree; limit != nil && float64(c.Disagreed+c.Failed) > *limit*float64(n) {
		return c.String(), fmt.Errorf("%w: %s", ErrDisagrees, c)
	}
	return c.String(), nil
}

// tapReadings are what applications asked since the last reading.
func (a *Agent) tapReadings(now time.Time) []telemetry.Reading {
	t := a.tap.tap
	if t == nil {
		return nil
	}
	at := func(v float64, name string, labels ...string) telemetry.Reading {
		return telemetry.Reading{Series: telemetry.NewSeries(name, labels...), Time: now, Value: v}
	}
	s := t.Snapshot()
	a.tap.mu.Lock()
	defer a.tap.mu.Unlock()
	var out []telemetry.Reading
	for _, c := range s.Counts {
		for outcome, n := range c.Outcomes {
			out = append(out, at(float64(n), telemetry.InferenceRequests, "model", c.Model, "version", c.Version, "outcome", outcome))
		}
		var old tap.Counts
		for _, o := range a.tap.last.Counts {
			if o.Model == c.Model && o.Version == c.Version {
				old = o
			}
		}
		d := c.Since(old)
		if d.Answered() == 0 {
			continue
		}
		labels := []string{"model", c.Model, "version", c.Version}
		out = append(out, at(d.Mean().Seconds(), telemetry.InferenceMean, labels...),
			at(d.Quantile(0.5).Seconds(), telemetry.InferenceP50, labels...),
			at(d.Quantile(0.99).Seconds(), telemetry.InferenceP99, labels...))
	}
	if n := len(s.Counts); n > 0 {
		out = append(out, at(float64(s.InFlight), telemetry.InferenceInFlight, "model", s.Counts[n-1].Model))
	}
	a.tap.last = s
	return append(out, a.tap.seen.readings(now)...)
}

// reportedTap is what applications asked since the start, nil without a tap.
func (a *Agent) reportedTap() *wire.Tap {
	if a.tap.tap == nil {
		return nil
	}
	s := a.tap.tap.Snapshot()
	a.tap.mu.Lock()
	out := &wire.Tap{Address: a.tap.addr, Refused: uint64(s.Refused)}
	a.tap.mu.Unlock()
	for _, c := range s.Counts {
		n := func(outcomes ...string) (sum uint64) {
			for _, o := range outcomes {
				sum += uint64(c.Outcomes[o])
			}
			return sum
		}
		out.Asked = append(out.Asked, wire.Asked{Model: c.Model, Version: c.Version, OK: n("ok"), Invalid: n("invalid"), Failed: n("error", "unavailable", "canceled"), Shed: n("shed"),
			P50: uint64(c.Quantile(0.5).Microseconds()), P99: uint64(c.Quantile(0.99).Microseconds())})
	}
	return out
}

// confidence observes how sure a model is of its answers.
type confidence struct {
	mu  sync.Mutex // guards sum
	sum map[[2]string]*confidenceSum
}

type confidenceSum struct {
	total float64
	n     int
}

// Observe counts the confidence of a classification's first output.
func (c *confidence) Observe(o tap.Observation) {
	if len(o.Outputs) == 0 {
		return
	}
	share, ok := o.Outputs[0].Confidence()
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := [2]string{o.Model, o.Version}
	if c.sum == nil {
		c.sum = map[[2]string]*confidenceSum{}
	}
	if c.sum[key] == nil {
		c.sum[key] = &confidenceSum{}
	}
	c.sum[key].total += share
	c.sum[key].n++
}

// readings are the means since the last ones.
func (c *confidence) readings(now time.Time) []telemetry.Reading {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []telemetry.Reading
	for key, s := range c.sum {
		out = append(out, telemetry.Reading{Series: telemetry.NewSeries(telemetry.InferenceConfidence, "model", key[0], "version", key[1]), Time: now, Value: s.total / float64(s.n)})
	}
	clear(c.sum)
	return out
}

// ServeTap answers applications on o.Listen from what ends gives, until ctx
// ends: the tap alone, without an agent around it, for measurements.
func ServeTap(ctx context.Context, ends runtime.Endpoints, o TapOptions) error {
	t, err := tap.New(tap.Options{Endpoints: ends, Listen: o.Listen, Limits: o.Limits, Listening: o.Listening})
	if err != nil {
		return err
	}
	t.Observe(observedShare, new(confidence))
	return t.Run(ctx)
}

// errTapOff is told where nothing can be observed or sampled.
var errTapOff = errors.New("this agent has no tap (--tap)")

// observePosted takes an observation of an application that asks its model itself.
func (a *Agent) observePosted(ctx context.Context, raw []byte) error {
	if a.tap.tap == nil {
		return errTapOff
	}
	return a.tap.tap.Post(ctx, raw)
}

const (
	sampleMemory = 8 << 20
	sampleEvery  = 200 * time.Millisecond
)

// sampleRequests writes a share of the requests as they come, a JSON object
// each line, until ctx ends. What does not fit its memory between two looks is
// left out, the oldest first. One at a time: a later call ends the one before.
func (a *Agent) sampleRequests(ctx context.Context, share float64, w io.Writer) error {
	if a.tap.tap == nil {
		return errTapOff
	}
	s, stop := a.tap.tap.Sample(share, sampleMemory)
	defer stop()
	if _, err := w.Write(nil); err != nil { // the header: it samples from here on
		return nil
	}
	enc := json.NewEncoder(w)
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for over := false; !over; {
		select {
		case <-ctx.Done():
			over = true
		case <-tick.C:
		}
		for _, one := range s.Take() {
			if err := enc.Encode(one); err != nil {
				return nil // who asked is gone
			}
		}
	}
	return nil
}
