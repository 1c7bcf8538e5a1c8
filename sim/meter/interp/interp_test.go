package interp

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/sim/meter/onnx"
)

// chain is a model that runs nodes one after the other on x.
func chain(in []int64, consts []onnx.Tensor, nodes ...onnx.Node) *onnx.Model {
	last := "x"
	for i := range nodes {
		nodes[i].Inputs = append([]string{last}, nodes[i].Inputs...)
		last = nodes[i].Op + "." + string(rune('a'+i))
		nodes[i].Name, nodes[i].Outputs = nodes[i].Op+"-node", []string{last}
	}
	return &onnx.Model{IRVersion: 8, Opset: 17, Graph: onnx.Graph{Nodes: nodes, Initializers: consts,
		Inputs: []onnx.Value{onnx.FloatValue("x", in...)}, Outputs: []onnx.Value{{Name: last, Type: onnx.Float32}}}}
}

func mk(op string, attrs ...onnx.Attr) onnx.Node { return onnx.Node{Op: op, Attrs: attrs} }

func with(n onnx.Node, inputs ...string) onnx.Node {
	n.Inputs = inputs
	return n
}

func run(t *testing.T, m *onnx.Model, shape []int64, data ...float32) (Tensor, Stats, error) {
	t.Helper()
	s, err := Compile(m, Limits{Values: 1 << 20, MACs: 1 << 20})
	if err != nil {
		return Tensor{}, Stats{}, err
	}
	out, st, err := s.Run(t.Context(), []Tensor{{Name: "x", Shape: shape, Data: data}})
	if err != nil {
		return Tensor{}, st, err
	}
	return out[0], st, nil
}

// TestOperatorsByHand has small examples whose answers were worked out on
// paper; package ortcheck compares many more with ONNX Runtime.
func TestOperatorsByHand(t *testing.T) {
	f := onnx.FloatTensor
	for name, c := range map[string]struct {
		m     *onnx.Model
		shape []int64
		data  []float32
		want  Tensor
		macs  int64
	}{
		"conv": {chain([]int64{1, 1, 3, 3}, []onnx.Tensor{f("w", []float32{1, 0, 0, 2}, 1, 1, 2, 2), f("b", []float32{10}, 1)},
			with(mk("Conv"), "w", "b")), []int64{1, 1, 3, 3}, []float32{1, 2, 3, 4, 5, 6, 7, 8, 9},
			Tensor{Shape: []int64{1, 1, 2, 2}, Data: []float32{21, 24, 30, 33}}, 16},
		"pool": {chain([]int64{1, 1, 2, 4}, nil, mk("MaxPool", onnx.Ints("kernel_shape", 2, 2), onnx.Ints("strides", 2, 2))),
			[]int64{1, 1, 2, 4}, []float32{-1, -2, 3, 4, -3, -4, 9, 0}, Tensor{Shape: []int64{1, 1, 1, 2}, Data: []float32{-1, 9}}, 0},
		"gemm": {chain([]int64{-1, 2}, []onnx.Tensor{f("w", []float32{1, 2, 3, 4}, 2, 2), f("b", []float32{1, 1}, 2)}, with(mk("Gemm"), "w", "b")),
			[]int64{1, 2}, []float32{1, 1}, Tensor{Shape: []int64{1, 2}, Data: []float32{5, 7}}, 4},
		"matmul, relu": {chain([]int64{-1, 2}, []onnx.Tensor{f("w", []float32{1, -1, 0, 1}, 2, 2)}, with(mk("MatMul"), "w"), mk("Relu")),
			[]int64{2, 2}, []float32{1, 2, -3, 0}, Tensor{Shape: []int64{2, 2}, Data: []float32{1, 1, 0, 3}}, 8},
		"softmax": {chain([]int64{2}, nil, mk("Softmax")), []int64{2}, []float32{0, float32(math.Log(3))},
			Tensor{Shape: []int64{2}, Data: []float32{0.25, 0.75}}, 0},
		"reshape": {chain([]int64{2, 3}, []onnx.Tensor{onnx.IntTensor("s", []int64{-1, 2}, 2)}, with(mk("Reshape"), "s")),
			[]int64{2, 3}, []float32{1, 2, 3, 4, 5, 6}, Tensor{Shape: []int64{3, 2}, Data: []float32{1, 2, 3, 4, 5, 6}}, 0},
		"spread": {chain([]int64{2, 1}, []onnx.Tensor{f("w", []float32{10, 20}, 1, 2)}, with(mk("Div"), "w")),
			[]int64{2, 1}, []float32{10, 40}, Tensor{Shape: []int64{2, 2}, Data: []float32{1, 0.5, 4, 2}}, 0},
	} {
		got, st, err := run(t, c.m, c.shape, c.data...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !slices.Equal(got.Shape, c.want.Shape) || !slices.EqualFunc(got.Data, c.want.Data, func(a, b float32) bool {
			return math.Abs(float64(a-b)) < 1e-6
		}) || st.MACs != c.macs {
			t.Errorf("%s: got %v and %d MACs, want %v and %d", name, got, st.MACs, c.want, c.macs)
		}
	}
}

func TestConstantNode(t *testing.T) {
	m := chain([]int64{2}, nil, with(mk("Add"), "c"))
	ten := onnx.FloatTensor("", []float32{10})
	m.Graph.Nodes = append([]onnx.Node{{Op: "Constant", Outputs: []string{"c"},
		Attrs: []onnx.Attr{{Name: "value", Type: onnx.AttrTensor, T: &ten}}}}, m.Graph.Nodes...)
	got, _, err := run(t, m, []int64{2}, 1, 2)
	if err != nil || !slices.Equal(got.Data, []float32{11, 12}) {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestCompileNamesWhatItLacks(t *testing.T) {
	w := []onnx.Tensor{onnx.FloatTensor("w", make([]float32, 4), 2, 2), onnx.IntTensor("i", []int64{2}, 1)}
	old := chain([]int64{2}, nil, mk("Relu"))
	old.Opset = 9
	for want, m := range map[string]*onnx.Model{
		`node 1 "Gelu-node" (Gelu)`:       chain([]int64{2}, nil, mk("Relu"), mk("Gelu")),
		"attribute fancy":                 chain([]int64{2}, nil, mk("Relu", onnx.Int("fancy", 1))),
		"operator set 9":                  old,
		"attribute group has type 7":      chain([]int64{1, 1, 2, 2}, w, with(mk("Conv", onnx.Ints("group", 1)), "w")),
		"two-dimensional":                 chain([]int64{1, 1, 2, 2}, w, with(mk("Conv"), "w")),
		"want 2 (two dimensions)":         chain([]int64{1, 1, 2}, nil, mk("MaxPool", onnx.Ints("kernel_shape", 2))),
		"no kernel_shape":                 chain([]int64{1, 1, 2, 2}, nil, mk("MaxPool")),
		"only 0 is built":                 chain([]int64{1, 1, 2, 2}, nil, mk("MaxPool", onnx.Ints("kernel_shape", 2, 2), onnx.Int("storage_order", 1))),
		"not an int64 constant":           chain([]int64{2}, w, with(mk("Reshape"), "w")),
		`input "i" is not float32`:        chain([]int64{2}, w, with(mk("Add"), "i")),
		"want 2 to 2 and one":             chain([]int64{2}, w, mk("MatMul")),
		"nothing before it makes":         chain([]int64{2}, w, with(mk("Add"), "missing")),
		"attribute strides is [0 0]":      chain([]int64{1, 1, 2, 2}, nil, mk("MaxPool", onnx.Ints("kernel_shape", 2, 2), onnx.Ints("strides", 0, 0))),
		"attribute pads is [-1 -1 -1 -1]": chain([]int64{1, 1, 2, 2}, nil, mk("MaxPool", onnx.Ints("kernel_shape", 2, 2), onnx.Ints("pads", -1, -1, -1, -1))),
	} {
		_, err := Compile(m, Limits{})
		if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, ErrUnsupported) && !errors.Is(err, onnx.ErrBadModel) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

func TestRunRefuses(t *testing.T) {
	w := []onnx.Tensor{onnx.FloatTensor("w", make([]float32, 6), 2, 3)}
	if _, _, err := run(t, chain([]int64{-1, 3}, w, with(mk("MatMul"), "w")), []int64{1, 3}, 1, 2, 3); !errors.Is(err, ErrShape) {
		t.Errorf("matrices that do not fit: got %v", err)
	}
	if _, _, err := run(t, chain([]int64{-1, 2}, w, with(mk("Add"), "w")), []int64{1, 2}, 1, 2); !errors.Is(err, ErrShape) {
		t.Errorf("shapes that do not stretch: got %v", err)
	}
	big := []onnx.Tensor{onnx.FloatTensor("w", make([]float32, 2000), 2000, 1)}
	if _, _, err := run(t, chain([]int64{1, 2000}, big, with(mk("Add"), "w")), []int64{1, 2000}, make([]float32, 2000)...); !errors.Is(err, ErrTooLarge) {
		t.Errorf("two thousand become four million: got %v", err)
	}
	if _, _, err := run(t, chain([]int64{-1, 1}, []onnx.Tensor{onnx.FloatTensor("w", make([]float32, 2000), 1, 2000)},
		with(mk("MatMul"), "w")), []int64{1000, 1}, make([]float32, 1000)...); !errors.Is(err, ErrTooLarge) {
		t.Errorf("two million multiplications: got %v", err)
	}
	s, err := Compile(chain([]int64{-1, 2}, nil, mk("Relu")), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	good := Tensor{Name: "x", Shape: []int64{1, 2}, Data: []float32{1, 2}}
	for name, in := range map[string][]Tensor{
		"none": nil, "two": {good, good}, "other name": {{Name: "y", Shape: good.Shape, Data: good.Data}},
		"rank": {{Name: "x", Shape: []int64{2}, Data: good.Data}}, "size": {{Name: "x", Shape: []int64{2, 1}, Data: good.Data}},
		"short": {{Name: "x", Shape: []int64{2, 2}, Data: good.Data}}, "negative": {{Name: "x", Shape: []int64{-1, 2}, Data: good.Data}},
	} {
		if _, _, err := s.Run(t.Context(), in); !errors.Is(err, ErrInput) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := s.Run(ctx, []Tensor{good}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

func TestRunsBesideEachOther(t *testing.T) {
	w := []onnx.Tensor{onnx.FloatTensor("w", []float32{1, 1, 1, 1}, 2, 2)}
	s, err := Compile(chain([]int64{-1, 2}, w, with(mk("MatMul"), "w"), mk("Relu")), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				rows, v := int64(1+(g+i)%5), float32(g*1000+i)
				data := slices.Repeat([]float32{v}, int(rows)*2)
				out, _, err := s.Run(context.Background(), []Tensor{{Name: "x", Shape: []int64{rows, 2}, Data: data}})
				if err != nil {
					t.Error(err)
					return
				}
				if diff := cmp.Diff(slices.Repeat([]float32{2 * v}, int(rows)*2), out[0].Data); diff != "" {
					t.Error(diff)
					return
				}
			}
		})
	}
	wg.Wait()
}

// FuzzModel loads hostile bytes and runs what loads: no panic, no error
// without a type, no more memory than the limits allow.
func FuzzModel(f *testing.F) {
	w := onnx.FloatTensor("w", []float32{1, 0, 0, 2}, 1, 1, 2, 2)
	f.Add(chain([]int64{-1, 1, 4, 4}, []onnx.Tensor{w, onnx.IntTensor("s", []int64{0, -1}, 2)},
		with(mk("Conv", onnx.Ints("pads", 1, 1, 0, 0), onnx.Ints("strides", 2, 1), onnx.Int("group", 1)), "w"), mk("Relu"),
		mk("MaxPool", onnx.Ints("kernel_shape", 2, 2), onnx.Int("ceil_mode", 1)), with(mk("Reshape"), "s"), mk("Softmax", onnx.Int("axis", 1))).Marshal())
	f.Add(chain([]int64{-1, 2}, []onnx.Tensor{onnx.FloatTensor("w", []float32{1, 2, 3, 4}, 2, 2), onnx.FloatTensor("b", []float32{1}, 1)},
		with(mk("Gemm", onnx.Int("transA", 1)), "w", "b"), with(mk("MatMul"), "w"), with(mk("Sub"), "b"), mk("Flatten"), mk("Identity")).Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Load(b, Limits{Values: 1 << 16, MACs: 1 << 18})
		if err != nil {
			if !errors.Is(err, ErrUnsupported) && !errors.Is(err, onnx.ErrBadModel) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		var in []Tensor
		inputs, _ := s.Signature()
		for _, v := range inputs {
			x := Tensor{Name: v.Name}
			for _, d := range v.Shape {
				x.Shape = append(x.Shape, max(d.Size, -d.Size*2))
			}
			n, err := onnx.Elements(x.Shape)
			if err != nil || n > 1<<16 {
				return
			}
			x.Data = make([]float32, n)
			in = append(in, x)
		}
		for range 2 { // the second on warm buffers
			out, _, err := s.Run(t.Context(), in)
			if err != nil {
				if !errors.Is(err, ErrShape) && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrInput) {
					t.Fatalf("untyped error %v", err)
				}
				return
			}
			for _, o := range out {
				if n, err := onnx.Elements(o.Shape); err != nil || n != len(o.Data) {
					t.Fatalf("output of shape %v with %d values", o.Shape, len(o.Data))
				}
			}
		}
	})
}
