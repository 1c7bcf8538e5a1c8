package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota/manifest"
)

// takes refuses a model whose server says that it takes something else than
// the golden set gives: no request would be answered.
func (x *Executor) takes(ctx context.Context, id string, g *manifest.Golden) error {
	d, ok := x.Runtime.(runtime.Describer)
	if !ok {
		return nil
	}
	sig, err := d.Describe(ctx, id)
	if err != nil {
		return fmt.Errorf("ask what the model takes: %w", err)
	}
	if len(sig.Inputs) == 0 {
		return nil // the server does not say
	}
	return fitsGolden(sig, g)
}

func fitsGolden(sig runtime.Signature, g *manifest.Golden) error {
	bad := func(why string) error {
		return fmt.Errorf("%w: wrong signature: the golden set gives %q %v, the model takes %s: %s",
			runtime.ErrIncompatible, g.Input, g.Shape, describe(sig.Inputs), why)
	}
	i := slices.IndexFunc(sig.Inputs, func(t runtime.TensorInfo) bool { return t.Name == g.Input })
	if i < 0 {
		return bad("no input has this name")
	}
	if len(sig.Inputs) > 1 {
		return bad("it needs all of them")
	}
	shape := sig.Inputs[i].Shape
	fits := len(shape) == len(g.Shape)
	for k := 0; fits && k < len(shape); k++ {
		fits = shape[k] < 0 || shape[k] == g.Shape[k]
	}
	if !fits && len(shape) > 0 { // a server without shapes says nothing
		return bad("the shapes differ")
	}
	if len(sig.Outputs) == 0 || len(g.Cases) == 0 {
		return nil
	}
	n := int64(1)
	for _, d := range sig.Outputs[0].Shape {
		if d < 0 {
			return nil // its size is known when it answers
		}
		n *= d
	}
	if want := int64(len(g.Cases[0].Output)); len(sig.Outputs[0].Shape) > 0 && n != want {
		return fmt.Errorf("%w: wrong signature: the model gives %s, the golden set wants %d values", runtime.ErrIncompatible, describe(sig.Outputs[:1]), want)
	}
	return nil
}

func describe(list []runtime.TensorInfo) string {
	out := make([]string, len(list))
	for i, t := range list {
		out[i] = fmt.Sprintf("%q %s %v", t.Name, t.Datatype, t.Shape)
	}
	return strings.Join(out, ", ")
}
