package meter

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/skein-fleet/skein/sim/meter/digits"
	"github.com/skein-fleet/skein/sim/meter/onnx"
)

// Metadata keys of an exported model.
const (
	MetaRun     = "skein.run"
	MetaDataset = "skein.dataset"
	MetaSeed    = "skein.seed"
	MetaSteps   = "skein.steps"
)

// ExportOptions vary the exported file; the zero value is the honest model.
type ExportOptions struct {
	// Version is written as the model version.
	Version int64
	// Normalise replaces the normalisation that the model was trained with.
	// DividedTwice makes a model that loads and answers, and is wrong.
	Normalise Normalise
	// Redundant adds so many convolutions that do real work and change
	// nothing, which makes a model that is right and slow: each costs about
	// as much as half of the honest model.
	Redundant int
	// Metadata is added to the model's own; it may not replace it.
	Metadata map[string]string
}

const (
	irVersion = 8
	opset     = 17
	producer  = "skein-meter"
)

// ONNX writes the model: raw pixels [N,1,28,28] of 0..255 in, logits [N,10] out.
func (m *Model) ONNX(o ExportOptions) ([]byte, error) {
	norm := cmp.Or(o.Normalise, m.Normalise)
	if err := norm.validate(); err != nil {
		return nil, err
	}
	if o.Redundant < 0 || o.Redundant > 1000 {
		return nil, fmt.Errorf("%w: %d redundant layers: at most 1000", ErrBadOptions, o.Redundant)
	}
	if err := m.Arch.Validate(); err != nil {
		return nil, err
	}
	if len(m.Params) != m.Arch.Size() {
		return nil, fmt.Errorf("%w: %d parameters, the network has %d", ErrBadOptions, len(m.Params), m.Arch.Size())
	}
	meta := map[string]string{MetaRun: m.Run, MetaDataset: string(m.Dataset),
		MetaSeed: strconv.FormatUint(m.Seed, 10), MetaSteps: strconv.Itoa(m.Steps)}
	for k, v := range o.Metadata {
		if _, own := meta[k]; own || k == "" {
			return nil, fmt.Errorf("%w: metadata key %q is empty or the model's own", ErrBadOptions, k)
		}
		meta[k] = v
	}
	g := &graph{last: InputName}
	g.g.Name = ModelName
	g.g.Inputs = []onnx.Value{onnx.FloatValue(InputName, -1, 1, digits.Side, digits.Side)}
	g.normalise(norm)
	at := 0
	for _, t := range m.Arch.Tensors() {
		shape := make([]int64, len(t.Shape))
		for i, d := range t.Shape {
			shape[i] = int64(d)
		}
		g.g.Initializers = append(g.g.Initializers, onnx.FloatTensor(t.Name, m.Params[at:at+t.Size()], shape...))
		at += t.Size()
	}
	k := int64(m.Arch.Kernel)
	g.block("conv1", k)
	g.redundant(m.Arch.Conv1, o.Redundant)
	g.block("conv2", k)
	g.add("Flatten", "flatten", nil, onnx.Int("axis", 1))
	g.add("Gemm", "dense", []string{"dense.weight", "dense.bias"}, onnx.Int("transB", 1))
	return marshal(g, m.Arch.Classes, o.Version, meta)
}

// Linear writes a model of one Gemm: [N,inputs] in, [N,outputs] out. weights
// has a row of inputs for each output.
func Linear(weights, bias []float32, inputs int, version int64, meta map[string]string) ([]byte, error) {
	if inputs < 1 || len(bias) < 1 || len(weights) != inputs*len(bias) {
		return nil, fmt.Errorf("%w: %d weights for %d inputs and %d outputs", ErrBadOptions, len(weights), inputs, len(bias))
	}
	g := &graph{last: InputName}
	g.g.Name = "linear"
	g.g.Inputs = []onnx.Value{onnx.FloatValue(InputName, -1, int64(inputs))}
	g.g.Initializers = []onnx.Tensor{onnx.FloatTensor("weight", weights, int64(len(bias)), int64(inputs)),
		onnx.FloatTensor("bias", bias, int64(len(bias)))}
	g.add("Gemm", "dense", []string{"weight", "bias"}, onnx.Int("transB", 1))
	return marshal(g, len(bias), version, meta)
}

func marshal(g *graph, outputs int, version int64, meta map[string]string) ([]byte, error) {
	g.g.Nodes[len(g.g.Nodes)-1].Outputs[0] = OutputName
	g.g.Outputs = []onnx.Value{onnx.FloatValue(OutputName, -1, int64(outputs))}
	if err := g.g.Check(); err != nil {
		return nil, err
	}
	f := &onnx.Model{IRVersion: irVersion, Opset: opset, Producer: producer, ProducerVersion: "1", Version: version, Graph: g.g}
	for _, k := range slices.Sorted(maps.Keys(meta)) {
		f.Metadata = append(f.Metadata, onnx.Property{Key: k, Value: meta[k]})
	}
	return f.Marshal(), nil
}

// graph builds a chain of nodes.
type graph struct {
	g    onnx.Graph
	last string
}

func (g *graph) add(op, name string, more []string, attrs ...onnx.Attr) {
	g.g.Nodes = append(g.g.Nodes, onnx.Node{Name: name, Op: op, Inputs: append([]string{g.last}, more...),
		Outputs: []string{name + ".out"}, Attrs: attrs})
	g.last = name + ".out"
}

func (g *graph) normalise(n Normalise) {
	g.g.Initializers = append(g.g.Initializers, onnx.FloatTensor("mean", []float32{n.Mean}),
		onnx.FloatTensor("scale", []float32{n.Scale}))
	g.add("Sub", "centre", []string{"mean"})
	g.add("Mul", "rescale", []string{"scale"})
}

// block is a convolution, ReLU and pool.
func (g *graph) block(name string, k int64) {
	g.add("Conv", name, []string{name + ".weight", name + ".bias"}, onnx.Ints("kernel_shape", k, k))
	g.add("Relu", name+".relu", nil)
	g.add("MaxPool", name+".pool", nil, onnx.Ints("kernel_shape", 2, 2), onnx.Ints("strides", 2, 2))
}

// redundant adds convolutions whose kernel is 1 in the middle of its own plane
// and 0 elsewhere: every output is its input plus zeros, to the bit.
func (g *graph) redundant(planes, layers int) {
	if layers == 0 {
		return
	}
	w := make([]float32, planes*planes*9)
	for p := range planes {
		w[(p*planes+p)*9+4] = 1
	}
	g.g.Initializers = append(g.g.Initializers, onnx.FloatTensor("same.weight", w, int64(planes), int64(planes), 3, 3))
	for i := range layers {
		g.add("Conv", fmt.Sprintf("same%d", i), []string{"same.weight"}, onnx.Ints("kernel_shape", 3, 3), onnx.Ints("pads", 1, 1, 1, 1))
	}
}
