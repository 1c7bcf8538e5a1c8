package reconcile

import (
	"errors"
	"strings"
	"testing"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota/manifest"
)

func TestSignature(t *testing.T) {
	g := &manifest.Golden{Input: "x", Shape: []int64{1, 4}, Cases: []manifest.GoldenCase{{Output: make([]float32, 2)}}}
	in := func(name string, shape ...int64) runtime.TensorInfo {
		return runtime.TensorInfo{Name: name, Datatype: "FP32", Shape: shape}
	}
	for name, c := range map[string]struct {
		in, out []runtime.TensorInfo
		want    string
	}{
		"fits":            {[]runtime.TensorInfo{in("x", -1, 4)}, []runtime.TensorInfo{in("y", -1, 2)}, ""},
		"fixed batch":     {[]runtime.TensorInfo{in("x", 1, 4)}, []runtime.TensorInfo{in("y", 1, 2)}, ""},
		"no shapes":       {[]runtime.TensorInfo{in("x")}, nil, ""},
		"other name":      {[]runtime.TensorInfo{in("image", -1, 4)}, nil, `the model takes "image" FP32 [-1 4]: no input has this name`},
		"other size":      {[]runtime.TensorInfo{in("x", -1, 5)}, nil, "the shapes differ"},
		"other rank":      {[]runtime.TensorInfo{in("x", 4)}, nil, "the shapes differ"},
		"more inputs":     {[]runtime.TensorInfo{in("x", 1, 4), in("z", 1)}, nil, "it needs all of them"},
		"other output":    {[]runtime.TensorInfo{in("x", 1, 4)}, []runtime.TensorInfo{in("y", 1, 3)}, `gives "y" FP32 [1 3], the golden set wants 2 values`},
		"unsized outputs": {[]runtime.TensorInfo{in("x", 1, 4)}, []runtime.TensorInfo{in("y", -1, -1)}, ""},
	} {
		err := fitsGolden(runtime.Signature{Inputs: c.in, Outputs: c.out}, g)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: got %v", name, err)
		case c.want != "" && (!errors.Is(err, runtime.ErrIncompatible) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}
