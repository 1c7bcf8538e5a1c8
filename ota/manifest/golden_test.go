package manifest

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func golden(cases int) Golden {
	g := Golden{Version: 1, Input: "image", Shape: []int64{1, 2}, Tolerance: Tolerance{Abs: 0.01}, MinLabelAgreement: 0.95}
	for i := range cases {
		label := i % 3
		out := []float32{0.1, 0.1, 0.1}
		out[label] = 0.8
		g.Cases = append(g.Cases, GoldenCase{Input: []float32{float32(i), 1}, Output: out, Label: label})
	}
	return g
}

func outputs(g Golden) [][]float32 {
	var out [][]float32
	for _, c := range g.Cases {
		out = append(out, append([]float32(nil), c.Output...))
	}
	return out
}

func TestJudge(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for name, c := range map[string]struct {
		change func(g *Golden, out [][]float32) [][]float32
		want   string // "" passes
	}{
		"same":       {func(_ *Golden, out [][]float32) [][]float32 { return out }, ""},
		"within":     {func(_ *Golden, out [][]float32) [][]float32 { out[3][1] += 0.009; return out }, ""},
		"over":       {func(_ *Golden, out [][]float32) [][]float32 { out[3][1] += 0.02; return out }, "differs from the reference by 0.02 in case 3 at 1"},
		"exact":      {func(g *Golden, out [][]float32) [][]float32 { g.Tolerance.Abs = 0; return out }, ""},
		"exact, not": {func(g *Golden, out [][]float32) [][]float32 { g.Tolerance.Abs = 0; out[0][0] += 1e-6; return out }, "differs"},
		"NaN":        {func(_ *Golden, out [][]float32) [][]float32 { out[31][2] = nan; return out }, "case 31: value 2 is NaN"},
		"NaN first":  {func(_ *Golden, out [][]float32) [][]float32 { out[0] = []float32{nan, nan, nan}; return out }, "case 0: value 0 is NaN"},
		"NaN, loosest": {func(g *Golden, out [][]float32) [][]float32 {
			g.Tolerance.Abs = math.MaxFloat64
			g.MinLabelAgreement = 0
			out[1][1] = nan
			return out
		}, "NaN"},
		"Inf, loosest": {func(g *Golden, out [][]float32) [][]float32 {
			g.Tolerance.Abs = math.MaxFloat64
			g.MinLabelAgreement = 0
			out[1][1] = inf
			return out
		}, "+Inf"},
		"too few":         {func(_ *Golden, out [][]float32) [][]float32 { return out[:31] }, "31 outputs for 32 cases"},
		"none":            {func(_ *Golden, out [][]float32) [][]float32 { return nil }, "0 outputs for 32 cases"},
		"short output":    {func(_ *Golden, out [][]float32) [][]float32 { out[2] = out[2][:2]; return out }, "case 2: 2 values, reference has 3"},
		"empty output":    {func(_ *Golden, out [][]float32) [][]float32 { out[2] = nil; return out }, "case 2: 0 values"},
		"labels not used": {func(g *Golden, out [][]float32) [][]float32 { g.MinLabelAgreement = 0; relabel(g, 32); return out }, ""},
		// The device computes what the reference computed: the model is wrong.
		"wrong model":   {func(g *Golden, out [][]float32) [][]float32 { relabel(g, 29); return out }, "label agreement 3 of 32 (9.4 %), need 95 %"},
		"barely right":  {func(g *Golden, out [][]float32) [][]float32 { relabel(g, 1); return out }, ""},
		"barely wrong":  {func(g *Golden, out [][]float32) [][]float32 { relabel(g, 2); return out }, "label agreement 30 of 32"},
		"empty set":     {func(g *Golden, out [][]float32) [][]float32 { g.Cases = nil; return nil }, "nothing is proven"},
		"wrong compute": {func(_ *Golden, out [][]float32) [][]float32 { out[0][0], out[0][1] = out[0][1], out[0][0]; return out }, "differs from the reference by 0.7"},
	} {
		g := golden(32)
		err := g.Judge(c.change(&g, outputs(g)))
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (!errors.Is(err, ErrGolden) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// relabel makes n labels wrong.
func relabel(g *Golden, n int) {
	for i := range n {
		g.Cases[i].Label = (g.Cases[i].Label + 1) % 3
	}
}

func TestGoldenRoundTrip(t *testing.T) {
	want := golden(5)
	b, err := want.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseGolden(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, *got); d != "" {
		t.Error(d)
	}
	for name, change := range map[string]func(g *Golden){
		"version":         func(g *Golden) { g.Version = 2 },
		"no cases":        func(g *Golden) { g.Cases = nil },
		"agreement":       func(g *Golden) { g.MinLabelAgreement = 1.5 },
		"tolerance":       func(g *Golden) { g.Tolerance.Abs = -1 },
		"no shape":        func(g *Golden) { g.Shape = nil },
		"zero shape":      func(g *Golden) { g.Shape = []int64{0} },
		"overflow":        func(g *Golden) { g.Shape = []int64{1 << 62, 1 << 62} },
		"inputs":          func(g *Golden) { g.Cases[1].Input = []float32{1} },
		"no output":       func(g *Golden) { g.Cases[0].Output = nil },
		"outputs differ":  func(g *Golden) { g.Cases[1].Output = []float32{1} },
		"label outside":   func(g *Golden) { g.Cases[1].Label = 3 },
		"label below":     func(g *Golden) { g.Cases[1].Label = -1 },
		"too many shapes": func(g *Golden) { g.Shape = make([]int64, 9) },
	} {
		g := golden(5)
		change(&g)
		if _, err := g.Marshal(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseGolden(f *testing.F) {
	b, err := golden(2).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := ParseGolden(b)
		if err != nil {
			return
		}
		// The reference itself always agrees with the reference.
		if g.MinLabelAgreement == 0 {
			if err := g.Judge(outputs(*g)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
