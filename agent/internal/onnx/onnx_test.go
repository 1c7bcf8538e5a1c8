package onnx

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/agent/internal/onnx/onnxtest"
)

func TestRead(t *testing.T) {
	got, err := Read(bytes.NewReader(onnxtest.Affine(2, 1, 4)))
	want := Signature{Inputs: []Tensor{{"x", "FP32", []int64{-1, 4}}}, Outputs: []Tensor{{"y", "FP32", []int64{-1, 4}}}}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v\n%s", err, d)
	}
}

// TestDamaged: what is cut anywhere, or is something else, is refused.
func TestDamaged(t *testing.T) {
	whole := onnxtest.Affine(2, 1, 4)
	for n := range len(whole) - 10 { // the last field is the opset, which is not looked at
		if _, err := Read(bytes.NewReader(whole[:n])); !errors.Is(err, ErrMalformed) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	for _, other := range []string{"", "ftrt engine", "\x3a\xff\xff\xff\xff\x7f", "{\"a\":1}"} {
		if _, err := Read(bytes.NewReader([]byte(other))); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", other, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(onnxtest.Affine(2, 1, 4))
	f.Add([]byte("\x3a\x02\x5a\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Read(bytes.NewReader(b))
		if err == nil && len(s.Outputs) == 0 {
			t.Error("a model without outputs")
		}
	})
}
