package meter

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/sim/meter/digits"
	"github.com/skein-fleet/skein/sim/meter/interp"
)

// prove does what a device does with a golden set: one case after the other.
func prove(t *testing.T, s *interp.Session, g *manifest.Golden) error {
	t.Helper()
	var outputs [][]float32
	for _, c := range g.Cases {
		in := interp.Tensor{Name: g.Input, Shape: g.Shape, Data: c.Input}
		out, _, err := s.Run(t.Context(), []interp.Tensor{in})
		if err != nil {
			t.Fatal(err)
		}
		outputs = append(outputs, out[0].Data)
	}
	return g.Judge(outputs)
}

func TestGoldenTellsGoodFromBad(t *testing.T) {
	m, d := trained(t)
	// The short training is not held to the share of the full one.
	made, err := m.Golden(GoldenOptions{Set: &d.Test, Seed: 5, MinLabelAgreement: 0.8})
	if err != nil {
		t.Fatal(err)
	}
	b, err := made.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	g, err := manifest.ParseGolden(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(made, g); diff != "" {
		t.Errorf("-made +read:\n%s", diff)
	}
	if err := prove(t, session(t, m, ExportOptions{}), g); err != nil {
		t.Errorf("the honest model: %v", err)
	}
	if err := prove(t, session(t, m, ExportOptions{Redundant: 3}), g); err != nil {
		t.Errorf("the slow model is right: %v", err)
	}
	if err := prove(t, session(t, m, ExportOptions{Normalise: DividedTwice()}), g); !errors.Is(err, manifest.ErrGolden) {
		t.Errorf("the wrong normalisation: got %v", err)
	}
	other := *m
	other.Params = append([]float32(nil), m.Params...)
	for i := range other.Params {
		other.Params[i] *= 1.01
	}
	if err := prove(t, session(t, &other, ExportOptions{}), g); !errors.Is(err, manifest.ErrGolden) {
		t.Errorf("weights that are 1 %% off: got %v", err)
	}
}

func TestGoldenRefusals(t *testing.T) {
	m, d := trained(t)
	blind := *m
	blind.Normalise = DividedTwice()
	if _, err := blind.Golden(GoldenOptions{Set: &d.Test}); !errors.Is(err, manifest.ErrGolden) {
		t.Errorf("a model that is wrong: got %v", err)
	}
	for _, o := range []GoldenOptions{{}, {Set: &d.Test, Cases: 10001}, {Set: &digits.Set{}}} {
		if _, err := m.Golden(o); !errors.Is(err, ErrBadOptions) {
			t.Errorf("%d cases: got %v", o.Cases, err)
		}
	}
}

func TestDrawIsBalanced(t *testing.T) {
	d := load(t)
	var count [10]int
	for _, i := range draw(d.Test.Labels, 30, 1) {
		count[d.Test.Labels[i]]++
	}
	if count != [10]int{3, 3, 3, 3, 3, 3, 3, 3, 3, 3} {
		t.Errorf("labels drawn: %v", count)
	}
}
