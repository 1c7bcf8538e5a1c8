package tap

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
)

// Sources of observations.
const (
	SourceTap    = "tap"    // seen as it went by
	SourcePosted = "posted" // told by an application
)

// Tensor is an input or output with its values as numbers; a datatype that
// holds none, such as BYTES, has no values.
type Tensor struct {
	Name     string
	Datatype string
	Shape    []int64
	Values   []float64
}

// Observation is one inference, as observers see it.
type Observation struct {
	Time            time.Time
	Model, Version  string
	Source          string
	Outcome         string
	Latency         time.Duration
	Inputs, Outputs []Tensor
}

// Observer is told of inferences, one at a time, off their way. What it is told
// it may keep.
type Observer interface {
	Observe(o Observation)
}

// ErrObservation is returned for a posted observation that is none.
var ErrObservation = errors.New("bad observation")

// MaxObservation bounds a posted observation in bytes.
const MaxObservation = 1 << 20

// postedForm is what applications post.
type postedForm struct {
	Model     string     `json:"model"`
	Version   string     `json:"version"`
	Outcome   string     `json:"outcome"`
	LatencyMS float64    `json:"latency_ms"`
	Inputs    []jsonItem `json:"inputs"`
	Outputs   []jsonItem `json:"outputs"`
}

// Post takes an observation from an application that asks its model itself: a
// JSON object with model, version, outcome (ok, invalid or error), latency_ms,
// inputs and outputs in the form of the protocol.
func (t *Tap) Post(ctx context.Context, raw []byte) error {
	var p postedForm
	if len(raw) > MaxObservation {
		return fmt.Errorf("%w: more than %d bytes", ErrObservation, MaxObservation)
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("%w: %w", ErrObservation, err)
	}
	i := slices.Index(outcomeNames[:outcomeError+1], p.Outcome)
	if p.Outcome == "" {
		i = int(outcomeOK)
	}
	if i < 0 {
		return fmt.Errorf("%w: outcome %q: want ok, invalid or error", ErrObservation, p.Outcome)
	}
	if p.LatencyMS < 0 || p.LatencyMS > float64(time.Hour/time.Millisecond) || math.IsNaN(p.LatencyMS) {
		return fmt.Errorf("%w: latency_ms %v", ErrObservation, p.LatencyMS)
	}
	e, release, err := t.opts.Endpoints.Acquire(ctx, "")
	if err == nil {
		release()
	}
	if err != nil || e.ReleaseModel != p.Model || p.Version != "" && e.ReleaseVersion != p.Version {
		return fmt.Errorf("%w: model %q version %q: %w", ErrObservation, p.Model, p.Version, errNoModel)
	}
	o := Observation{Time: time.Now(), Model: p.Model, Version: e.ReleaseVersion, Source: SourcePosted, Outcome: outcomeNames[i], Latency: time.Duration(p.LatencyMS * float64(time.Millisecond))}
	if o.Inputs, err = jsonTensors(p.Inputs, nil); err == nil {
		o.Outputs, err = jsonTensors(p.Outputs, nil)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrObservation, err)
	}
	t.stats.count(runtime.Endpoint{ReleaseModel: o.Model, ReleaseVersion: o.Version}, outcome(i), o.Latency)
	if w := t.side.watchers.Load(); w != nil {
		t.side.observed.Add(1)
		for _, one := range w.all {
			one.Observe(o)
		}
	}
	return nil
}

// Class is the index of the highest value, -1 without any.
func (t Tensor) Class() int {
	best := -1
	for i, v := range t.Values {
		if !math.IsNaN(v) && (best < 0 || v > t.Values[best]) {
			best = i
		}
	}
	return best
}

// Confidence is the share of the highest value of a classification: the values
// themselves where they are shares, else their softmax.
func (t Tensor) Confidence() (float64, bool) {
	c := t.Class()
	if c < 0 || len(t.Values) < 2 || !strings.HasPrefix(t.Datatype, "FP") {
		return 0, false
	}
	sum, shares := 0.0, true
	for _, v := range t.Values {
		sum += v
		shares = shares && v >= 0 && v <= 1
	}
	if shares && math.Abs(sum-1) < 0.01 {
		return t.Values[c], true
	}
	denominator := 0.0
	for _, v := range t.Values {
		denominator += math.Exp(v - t.Values[c])
	}
	return 1 / denominator, !math.IsNaN(denominator)
}
