package meter

import (
	"cmp"
	"fmt"
	"math/rand/v2"

	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/sim/meter/digits"
)

// GoldenOptions say what a golden set holds. Zero fields take the default in
// brackets.
type GoldenOptions struct {
	Set   *digits.Set // digits with the right labels; needed
	Cases int         // [32]
	Seed  uint64      // chooses the digits
	// Tolerance bounds the difference of logits between a device and the
	// reference [1e-3].
	Tolerance float64
	// MinLabelAgreement is the share of digits that must be read right [0.9].
	MinLabelAgreement float64
}

// Golden makes the set that proves the model on a device. The reference
// outputs are those of the trained network, not of an exported file, and the
// labels are the truth: so a fault of the export is caught by both. Digits are
// drawn so that each label comes about equally often. A model that does not
// pass its own set is refused with manifest.ErrGolden.
func (m *Model) Golden(o GoldenOptions) (*manifest.Golden, error) {
	o.Cases = cmp.Or(o.Cases, 32)
	if o.Set == nil || len(o.Set.Images) != len(o.Set.Labels) || o.Cases < 1 || o.Cases > len(o.Set.Images) {
		return nil, fmt.Errorf("%w: a golden set of %d cases needs at least as many labelled digits", ErrBadOptions, o.Cases)
	}
	g := &manifest.Golden{
		Version: 1, Input: InputName, Shape: []int64{1, 1, digits.Side, digits.Side},
		Tolerance:         manifest.Tolerance{Abs: cmp.Or(o.Tolerance, 1e-3)},
		MinLabelAgreement: cmp.Or(o.MinLabelAgreement, 0.9),
	}
	var outputs [][]float32
	for _, i := range draw(o.Set.Labels, o.Cases, o.Seed) {
		img := &o.Set.Images[i]
		logits, err := m.Logits(img)
		if err != nil {
			return nil, err
		}
		outputs = append(outputs, logits)
		g.Cases = append(g.Cases, manifest.GoldenCase{Input: img.Floats(nil), Output: logits, Label: int(o.Set.Labels[i])})
	}
	if err := g.Validate(); err != nil {
		return nil, err
	}
	if err := g.Judge(outputs); err != nil {
		return nil, fmt.Errorf("the model itself does not pass: %w", err)
	}
	return g, nil
}

// draw chooses n indices, going round the labels.
func draw(labels []byte, n int, seed uint64) []int {
	rng := rand.New(rand.NewPCG(seed, 0x676f6c64656e))
	byLabel := make([][]int, 10)
	for _, i := range rng.Perm(len(labels)) {
		byLabel[labels[i]%10] = append(byLabel[labels[i]%10], i)
	}
	var out []int
	for round := 0; len(out) < n; round++ {
		for _, list := range byLabel {
			if round < len(list) && len(out) < n {
				out = append(out, list[round])
			}
		}
	}
	return out
}
