package meter_test

import (
	"context"
	"fmt"
	"log"

	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/meter/digits"
)

// Train for a moment, export, and make the golden set.
func Example() {
	ctx := context.Background()
	d, err := digits.Load(ctx, "")
	if err != nil {
		log.Fatal(err)
	}
	d.Test.Images, d.Test.Labels = d.Test.Images[:500], d.Test.Labels[:500]
	m, metrics, err := meter.Train(ctx, meter.TrainOptions{Data: d, Seed: 1, Steps: 60})
	if err != nil {
		log.Fatal(err)
	}
	file, err := m.ONNX(meter.ExportOptions{Version: 1})
	if err != nil {
		log.Fatal(err)
	}
	golden, err := m.Golden(meter.GoldenOptions{Set: &d.Test, MinLabelAgreement: 0.7})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(metrics.Accuracy > 0.8, len(file) < 30_000, len(golden.Cases))
	// Output: true true 32
}
