package meter_test

import (
	"context"
	"fmt"
	"log"

	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/meter/digits"
)

// Train on the first digits only, export, and make the golden set.
func Example() {
	ctx := context.Background()
	d, err := digits.Load(ctx, "")
	if err != nil {
		log.Fatal(err)
	}
	m, metrics, err := meter.Train(ctx, meter.TrainOptions{Data: d, Seed: 1, Steps: 100})
	if err != nil {
		log.Fatal(err)
	}
	file, err := m.ONNX(meter.ExportOptions{Version: 1})
	if err != nil {
		log.Fatal(err)
	}
	golden, err := m.Golden(meter.GoldenOptions{Set: &d.Test, MinLabelAgreement: 0.8})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(metrics.Accuracy > 0.85, len(file) < 30_000, len(golden.Cases))
	// Output: true true 32
}
