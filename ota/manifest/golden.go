package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
)

// ErrGolden is returned by Judge for outputs that do not prove the model.
var ErrGolden = errors.New("golden set failed")

// Limits of a golden set.
const (
	MaxGolden      = 64 << 20
	MaxGoldenCases = 10000
)

// Golden proves a model on the device that will run it: inputs, the outputs of
// the reference and the right labels. Two questions are kept apart: label
// agreement says whether the model is right, tolerance whether the device
// computes the same as the reference did.
type Golden struct {
	Version int          `json:"version"` // 1
	Input   string       `json:"input"`   // name of the input tensor
	Shape   []int64      `json:"shape"`   // of one case as it is sent, with its batch dimension
	Cases   []GoldenCase `json:"cases"`
	// Tolerance bounds how far an output may be from the reference.
	Tolerance Tolerance `json:"tolerance"`
	// MinLabelAgreement is the share of cases, 0 to 1, whose largest output
	// must be at the label; 0 does not judge labels.
	MinLabelAgreement float64 `json:"min_label_agreement"`
}

// GoldenCase is one input with its reference output.
type GoldenCase struct {
	Input  []float32 `json:"input"`
	Output []float32 `json:"output"`
	Label  int       `json:"label"`
}

// Tolerance bounds the difference of outputs.
type Tolerance struct {
	Abs float64 `json:"abs"`
}

// ParseGolden reads and checks a golden set.
func ParseGolden(b []byte) (*Golden, error) {
	var g Golden
	if err := decode(b, MaxGolden, &g); err != nil {
		return nil, fmt.Errorf("read golden set: %w", err)
	}
	if err := g.Validate(); err != nil {
		return nil, fmt.Errorf("read golden set: %w", err)
	}
	return &g, nil
}

// Marshal returns the JSON form of a valid set.
func (g Golden) Marshal() ([]byte, error) {
	if err := g.Validate(); err != nil {
		return nil, fmt.Errorf("write golden set: %w", err)
	}
	return json.Marshal(g)
}

// Validate checks that the set can prove something.
func (g Golden) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
	if g.Version != 1 {
		return bad("version %d, this program reads 1", g.Version)
	}
	if len(g.Cases) == 0 || len(g.Cases) > MaxGoldenCases {
		return bad("%d cases, want 1 to %d", len(g.Cases), MaxGoldenCases)
	}
	if g.MinLabelAgreement < 0 || g.MinLabelAgreement > 1 || g.Tolerance.Abs < 0 {
		return bad("label agreement %v, tolerance %v: want 0 to 1, and not negative", g.MinLabelAgreement, g.Tolerance.Abs)
	}
	want := int64(1)
	if len(g.Shape) == 0 || len(g.Shape) > 8 {
		return bad("shape of %d dimensions, want 1 to 8", len(g.Shape))
	}
	for _, n := range g.Shape {
		if n < 1 || n > MaxGolden/want {
			return bad("shape %v", g.Shape)
		}
		want *= n
	}
	outputs := len(g.Cases[0].Output)
	for i, c := range g.Cases {
		if int64(len(c.Input)) != want {
			return bad("case %d: %d inputs, shape %v has %d", i, len(c.Input), g.Shape, want)
		}
		if len(c.Output) == 0 || len(c.Output) != outputs {
			return bad("case %d: %d outputs, case 0 has %d", i, len(c.Output), outputs)
		}
		if g.MinLabelAgreement > 0 && (c.Label < 0 || c.Label >= outputs) {
			return bad("case %d: label %d of %d outputs", i, c.Label, outputs)
		}
	}
	return nil
}

// Score is how outputs compare with a set.
type Score struct {
	Agreed   int     // cases whose largest output is at the label
	MaxAbs   float64 // the largest difference from the reference, of Case at At
	Case, At int
}

// Compare scores the outputs of all cases, in order. The error is ErrGolden for
// outputs that cannot be compared.
func (g Golden) Compare(outputs [][]float32) (Score, error) {
	if len(outputs) != len(g.Cases) {
		return Score{}, fmt.Errorf("%w: %d outputs for %d cases", ErrGolden, len(outputs), len(g.Cases))
	}
	if len(g.Cases) == 0 {
		return Score{}, fmt.Errorf("%w: no cases, so nothing is proven", ErrGolden)
	}
	var s Score
	for i, c := range g.Cases {
		out := outputs[i]
		if len(out) != len(c.Output) {
			return Score{}, fmt.Errorf("%w: case %d: %d values, reference has %d", ErrGolden, i, len(out), len(c.Output))
		}
		top := 0
		for k, v := range out {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return Score{}, fmt.Errorf("%w: case %d: value %d is %v", ErrGolden, i, k, v)
			}
			if v > out[top] {
				top = k
			}
			if d := math.Abs(float64(v) - float64(c.Output[k])); d > s.MaxAbs || math.IsNaN(d) {
				s.MaxAbs, s.Case, s.At = d, i, k
			}
		}
		if top == c.Label {
			s.Agreed++
		}
	}
	return s, nil
}

// Judge compares the outputs of all cases, in order, with the set. The error
// is ErrGolden and says by how much what is missed.
func (g Golden) Judge(outputs [][]float32) error {
	s, err := g.Compare(outputs)
	if err != nil {
		return err
	}
	var faults []error
	if share := float64(s.Agreed) / float64(len(g.Cases)); share < g.MinLabelAgreement {
		faults = append(faults, fmt.Errorf("%w: label agreement %d of %d (%.1f %%), need %.4g %%", ErrGolden, s.Agreed, len(g.Cases), 100*share, 100*g.MinLabelAgreement))
	}
	if !(s.MaxAbs <= g.Tolerance.Abs) {
		faults = append(faults, fmt.Errorf("%w: output differs from the reference by %.4g in case %d at %d (%v, reference %v), tolerance %.4g",
			ErrGolden, s.MaxAbs, s.Case, s.At, outputs[s.Case][s.At], g.Cases[s.Case].Output[s.At], g.Tolerance.Abs))
	}
	return errors.Join(faults...)
}
