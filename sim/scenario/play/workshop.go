package play

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"

	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/meter/digits"
	"github.com/skein-fleet/skein/sim/meter/onnx"
	"github.com/skein-fleet/skein/sim/scenario"
	"github.com/skein-fleet/skein/sim/virtual"
)

// Workshop makes the models of scenarios: one real training, and bad copies of
// its result. It is read-only and may be shared by many runs.
type Workshop struct {
	model  *meter.Model
	golden []byte
	test   *digits.Set
}

const (
	// trainingSteps suffice for a model that passes its golden set; a scenario
	// is not about the last per cent.
	trainingSteps = 700
	// crashAfter lets the golden set pass (32 cases at load, 32 to prove) and
	// ends the server in its first seconds of work.
	crashAfter = 40
	slowLayers = 12
)

// NewWorkshop trains the model. An empty dir looks for the digits.
func NewWorkshop(ctx context.Context, dir string) (*Workshop, error) {
	d, err := digits.Load(ctx, dir)
	if err != nil {
		return nil, err
	}
	m, _, err := meter.Train(ctx, meter.TrainOptions{Data: d, Seed: 1, Steps: trainingSteps})
	if err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	golden, err := m.Golden(meter.GoldenOptions{Set: &d.Test, Seed: 1})
	if err != nil {
		return nil, fmt.Errorf("make golden set: %w", err)
	}
	raw, err := json.Marshal(golden)
	if err != nil {
		return nil, err
	}
	return &Workshop{model: m, golden: raw, test: &d.Test}, nil
}

// build writes the model file of a release with its defect. number makes each
// file differ. A corrupt release is a good one; its bytes are damaged later.
func (w *Workshop) build(defect scenario.Defect, number int64) ([]byte, error) {
	o := meter.ExportOptions{Version: number, Metadata: map[string]string{}}
	switch defect {
	case scenario.Wrong:
		o.Normalise = meter.DividedTwice()
	case scenario.Slower:
		o.Redundant = slowLayers
	case scenario.Crash:
		maps.Copy(o.Metadata, map[string]string{virtual.MetaCrashAfter: strconv.Itoa(crashAfter)})
	}
	raw, err := w.model.ONNX(o)
	if err != nil || defect != scenario.Refused {
		return raw, err
	}
	// An operator that no device here knows.
	m, err := onnx.Parse(raw)
	if err != nil {
		return nil, err
	}
	for i := range m.Graph.Nodes {
		if m.Graph.Nodes[i].Op == "Relu" {
			m.Graph.Nodes[i].Op = "Celu"
		}
	}
	return m.Marshal(), nil
}
