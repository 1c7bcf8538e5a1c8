// Package ortcheck holds the ONNX writer and the interpreter against the
// reference implementations: onnx.checker and ONNX Runtime, from PyPI. It has
// tests only. Set SKEIN_SLOW=1 to let them install a Python environment of
// about 250 MB in the user's cache folder; -short leaves them out.
package ortcheck

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/meter/digits"
	"github.com/skein-fleet/skein/sim/meter/interp"
	"github.com/skein-fleet/skein/sim/meter/onnx"
)

// packages are pinned, so that the oracle does not change under the test.
var packages = []string{"onnx==1.23.2", "onnxruntime==1.32.0", "numpy==2.4.6"}

// python returns an interpreter with the packages, or skips and says why.
func python(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("-short")
	}
	if os.Getenv("SKEIN_SLOW") == "" {
		t.Skip("set SKEIN_SLOW=1 to check against ONNX Runtime (it installs Python packages into the cache folder)")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("no cache folder: %v", err)
	}
	env := filepath.Join(cache, "skein", "ort-1")
	bin := filepath.Join(env, "bin", "python")
	done := filepath.Join(env, "installed")
	if b, err := os.ReadFile(done); err == nil && string(b) == strings.Join(packages, " ") {
		return bin
	}
	for _, args := range [][]string{
		{"python3", "-m", "venv", env},
		append([]string{bin, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--only-binary=:all:"}, packages...),
	} {
		if out, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("cannot install the oracle: %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	if err := os.WriteFile(done, []byte(strings.Join(packages, " ")), 0o600); err != nil {
		t.Fatal(err)
	}
	return bin
}

// oneCase is a model and what to run it on.
type oneCase struct {
	name  string
	model []byte
	in    interp.Tensor
	tol   float64
}

// compare runs all cases in one Python process.
func compare(t *testing.T, cases []oneCase) {
	py := python(t)
	dir := t.TempDir()
	for _, c := range cases {
		raw := binary.LittleEndian.AppendUint32(nil, uint32(len(c.in.Shape)))
		for _, d := range c.in.Shape {
			raw = binary.LittleEndian.AppendUint32(raw, uint32(d))
		}
		for _, v := range c.in.Data {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
		}
		write(t, filepath.Join(dir, c.name+".onnx"), c.model)
		write(t, filepath.Join(dir, c.name+".in"), raw)
	}
	_, self, _, _ := runtime.Caller(0)
	out, err := exec.CommandContext(t.Context(), py, filepath.Join(filepath.Dir(self), "oracle.py"), dir).CombinedOutput()
	if err != nil {
		t.Fatalf("the oracle refuses: %v\n%s", err, out)
	}
	t.Logf("%d models accepted\n%s", len(cases), out)
	for _, c := range cases {
		s, err := interp.Load(c.model, interp.Limits{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got, _, err := s.Run(t.Context(), []interp.Tensor{c.in})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, c.name+".out"))
		if err != nil {
			t.Fatal(err)
		}
		shape, want := tensor(b)
		if !slices.Equal(shape, got[0].Shape) || len(want) != len(got[0].Data) {
			t.Errorf("%s: shape %v, ONNX Runtime %v", c.name, got[0].Shape, shape)
			continue
		}
		worst := 0.0
		for i := range want {
			worst = max(worst, math.Abs(float64(want[i])-float64(got[0].Data[i])))
		}
		if !(worst <= c.tol) {
			t.Errorf("%s: %v off ONNX Runtime", c.name, worst)
		}
		t.Logf("%s: %v off at most", c.name, worst)
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func tensor(b []byte) (shape []int64, data []float32) {
	rank := binary.LittleEndian.Uint32(b)
	b = b[4:]
	for range rank {
		shape = append(shape, int64(binary.LittleEndian.Uint32(b)))
		b = b[4:]
	}
	for ; len(b) > 0; b = b[4:] {
		data = append(data, math.Float32frombits(binary.LittleEndian.Uint32(b)))
	}
	return shape, data
}

// TestMeter checks the demo's models: honest, wrong and slow, and a linear one.
func TestMeter(t *testing.T) {
	python(t)
	d, err := digits.Load(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	m, met, err := meter.Train(t.Context(), meter.TrainOptions{Data: d, Seed: 1, Steps: 400})
	if err != nil {
		t.Fatal(err)
	}
	in := interp.Tensor{Name: meter.InputName, Shape: []int64{500, 1, digits.Side, digits.Side}}
	for i := range 500 {
		in.Data = d.Test.Images[i].Floats(in.Data)
	}
	cases := []oneCase{}
	for name, o := range map[string]meter.ExportOptions{
		"v1": {Version: 1}, "v2": {Version: 2, Normalise: meter.DividedTwice()}, "v2b": {Version: 3, Redundant: 4},
	} {
		b, err := m.ONNX(o)
		if err != nil {
			t.Fatal(err)
		}
		cases = append(cases, oneCase{name, b, in, 1e-4})
	}
	lin, err := meter.Linear(m.Params[:20], []float32{1, -1}, 10, 1, map[string]string{"a": "b"})
	if err != nil {
		t.Fatal(err)
	}
	cases = append(cases, oneCase{"linear", lin, interp.Tensor{Name: meter.InputName, Shape: []int64{2, 10}, Data: m.Params[40:60]}, 1e-5})
	compare(t, cases)
	t.Logf("accuracy %.4f after %d steps", met.Accuracy, met.Steps)
}

// TestOperators compares each operator, over its attributes.
func TestOperators(t *testing.T) {
	python(t)
	rng := rand.New(rand.NewPCG(1, 1))
	noise := func(n int64) []float32 {
		out := make([]float32, n)
		for i := range out {
			out[i] = float32(rng.NormFloat64())
		}
		return out
	}
	var cases []oneCase
	one := func(name string, in []int64, outRank int, op string, consts []onnx.Tensor, attrs ...onnx.Attr) {
		n, err := onnx.Elements(in)
		if err != nil {
			t.Fatal(err)
		}
		inputs := []string{"x"}
		for _, c := range consts {
			inputs = append(inputs, c.Name)
		}
		y := onnx.Value{Name: "y", Type: onnx.Float32, HasShape: true}
		for range outRank {
			y.Shape = append(y.Shape, onnx.Dim{Size: -1, Name: "d" + string(rune('0'+len(y.Shape)))})
		}
		m := &onnx.Model{IRVersion: 8, Opset: 17, Producer: "test", Graph: onnx.Graph{Name: "g", Initializers: consts,
			Nodes:  []onnx.Node{{Name: "n", Op: op, Inputs: inputs, Outputs: []string{"y"}, Attrs: attrs}},
			Inputs: []onnx.Value{onnx.FloatValue("x", in...)}, Outputs: []onnx.Value{y}}}
		cases = append(cases, oneCase{name, m.Marshal(), interp.Tensor{Name: "x", Shape: in, Data: noise(int64(n))}, 1e-5})
	}
	floats := func(name string, shape ...int64) onnx.Tensor {
		n, _ := onnx.Elements(shape)
		return onnx.FloatTensor(name, noise(int64(n)), shape...)
	}
	text := func(name, v string) onnx.Attr { return onnx.Attr{Name: name, Type: onnx.AttrString, S: v} }
	real := func(name string, v float32) onnx.Attr { return onnx.Attr{Name: name, Type: onnx.AttrFloat, F: v} }

	x := []int64{2, 4, 9, 10}
	w, b := floats("w", 6, 4, 3, 2), floats("b", 6)
	one("conv", x, 4, "Conv", []onnx.Tensor{w, b})
	one("conv-nobias", x, 4, "Conv", []onnx.Tensor{w}, onnx.Ints("kernel_shape", 3, 2))
	one("conv-pads", x, 4, "Conv", []onnx.Tensor{w, b}, onnx.Ints("pads", 1, 0, 2, 1), onnx.Ints("strides", 2, 1))
	one("conv-dilated", x, 4, "Conv", []onnx.Tensor{w, b}, onnx.Ints("dilations", 2, 3))
	one("conv-upper", x, 4, "Conv", []onnx.Tensor{w, b}, text("auto_pad", "SAME_UPPER"), onnx.Ints("strides", 2, 2))
	one("conv-lower", x, 4, "Conv", []onnx.Tensor{w, b}, text("auto_pad", "SAME_LOWER"), onnx.Ints("strides", 1, 3))
	one("conv-valid", x, 4, "Conv", []onnx.Tensor{w, b}, text("auto_pad", "VALID"))
	one("conv-groups", x, 4, "Conv", []onnx.Tensor{floats("w", 6, 2, 3, 3), b}, onnx.Int("group", 2), onnx.Ints("pads", 1, 1, 1, 1))
	one("conv-depthwise", x, 4, "Conv", []onnx.Tensor{floats("w", 4, 1, 3, 3)}, onnx.Int("group", 4))
	one("pool", x, 4, "MaxPool", nil, onnx.Ints("kernel_shape", 2, 2), onnx.Ints("strides", 2, 2))
	one("pool-3", x, 4, "MaxPool", nil, onnx.Ints("kernel_shape", 3, 3), onnx.Ints("strides", 2, 2), onnx.Ints("pads", 1, 1, 1, 1))
	one("pool-ceil", x, 4, "MaxPool", nil, onnx.Ints("kernel_shape", 2, 2), onnx.Ints("strides", 2, 2), onnx.Int("ceil_mode", 1))
	one("pool-ceil-pads", x, 4, "MaxPool", nil, onnx.Ints("kernel_shape", 3, 2), onnx.Ints("strides", 2, 3), onnx.Int("ceil_mode", 1), onnx.Ints("pads", 1, 1, 1, 1))
	one("pool-dilated", x, 4, "MaxPool", nil, onnx.Ints("kernel_shape", 2, 3), onnx.Ints("dilations", 2, 2))
	one("pool-same", x, 4, "MaxPool", nil, onnx.Ints("kernel_shape", 3, 3), onnx.Ints("strides", 2, 2), text("auto_pad", "SAME_UPPER"))
	m := []int64{5, 7}
	one("gemm", m, 2, "Gemm", []onnx.Tensor{floats("w", 7, 3), floats("b", 3)})
	one("gemm-trans", m, 2, "Gemm", []onnx.Tensor{floats("w", 3, 5), floats("b", 7, 1)}, onnx.Int("transA", 1), onnx.Int("transB", 1), real("alpha", 0.5), real("beta", -2))
	one("gemm-nobias", m, 2, "Gemm", []onnx.Tensor{floats("w", 7, 3)})
	one("gemm-scalar", m, 2, "Gemm", []onnx.Tensor{floats("w", 7, 3), floats("b")})
	one("matmul", m, 2, "MatMul", []onnx.Tensor{floats("w", 7, 4)})
	one("matmul-4", x, 4, "MatMul", []onnx.Tensor{floats("w", 10, 3)})
	for _, op := range []string{"Add", "Sub", "Mul", "Div"} {
		one(op+"-scalar", x, 4, op, []onnx.Tensor{floats("w")})
		one(op+"-row", x, 4, op, []onnx.Tensor{floats("w", 10)})
		one(op+"-planes", x, 4, op, []onnx.Tensor{floats("w", 4, 1, 1)})
		one(op+"-both", []int64{4, 1, 3}, 4, op, []onnx.Tensor{floats("w", 2, 1, 5, 1)})
	}
	one("relu", x, 4, "Relu", nil)
	one("identity", x, 4, "Identity", nil)
	one("softmax", x, 4, "Softmax", nil)
	one("softmax-1", x, 4, "Softmax", nil, onnx.Int("axis", 1))
	one("flatten", x, 2, "Flatten", nil)
	one("flatten-0", x, 2, "Flatten", nil, onnx.Int("axis", 0))
	one("flatten-last", x, 2, "Flatten", nil, onnx.Int("axis", -1))
	one("reshape", x, 3, "Reshape", []onnx.Tensor{onnx.IntTensor("s", []int64{0, -1, 5}, 3)})
	compare(t, cases)
}
