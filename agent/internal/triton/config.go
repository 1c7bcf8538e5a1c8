package triton

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/prototext"

	"github.com/skein-fleet/skein/agent/internal/onnx"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/proto/gen/inference"
)

const maxConfig = 1 << 20

// configOf is the configuration of a model: what the release ships, once it
// fits the model, or what the model says.
func configOf(w runtime.Workload) ([]byte, error) {
	sig := onnx.Signature{}
	if w.Format == "onnx" {
		var err error
		if sig, err = onnx.ReadFile(filepath.Join(w.Dir, w.ModelFile)); err != nil {
			if errors.Is(err, onnx.ErrMalformed) {
				err = fmt.Errorf("%w: %w", runtime.ErrIncompatible, err)
			}
			return nil, err
		}
	}
	name := filepath.Join(w.Dir, configFile)
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return generate(w, sig), nil
	case err != nil:
		return nil, err
	case info.Size() > maxConfig:
		return nil, fmt.Errorf("%w: %s has %d bytes, at most %d", runtime.ErrIncompatible, configFile, info.Size(), maxConfig)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if err := check(raw, w, sig); err != nil {
		return nil, fmt.Errorf("%w: %s of the release: %w", runtime.ErrIncompatible, configFile, err)
	}
	return raw, nil
}

// backendOf is which of Triton's backends runs a format.
func backendOf(format string) string {
	if format == "plan" {
		return "tensorrt"
	}
	return "onnxruntime"
}

// generate writes a configuration. The batch is a dimension of the model like
// any other (max_batch_size 0), so that what the golden set gives is what the
// model takes. What an engine takes is in the engine, and Triton reads it there.
func generate(w runtime.Workload, sig onnx.Signature) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "name: %q\nbackend: %q\nmax_batch_size: 0\ndefault_model_filename: %q\n", w.Model, backendOf(w.Format), defaultName(w.Format))
	fmt.Fprintf(&b, "version_policy { specific { versions: [ %s ] } }\n", versionOf(w.Version))
	list := func(field string, ts []onnx.Tensor) {
		for _, t := range ts {
			dims := make([]string, len(t.Shape))
			for i, d := range t.Shape {
				dims[i] = strconv.FormatInt(d, 10)
			}
			fmt.Fprintf(&b, "%s {\n  name: %q\n  data_type: %s\n  dims: [ %s ]\n}\n", field, t.Name, configType(t.Datatype), strings.Join(dims, ", "))
		}
	}
	list("input", sig.Inputs)
	list("output", sig.Outputs)
	return []byte(b.String())
}

// configType is a datatype of the protocol as configurations name it.
func configType(datatype string) string {
	if datatype == "BYTES" {
		return "TYPE_STRING"
	}
	return "TYPE_" + datatype
}

// check holds a shipped configuration to the workload and to its model.
func check(raw []byte, w runtime.Workload, sig onnx.Signature) error {
	var c inference.ModelConfig
	if err := (prototext.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("it cannot be read: %w", err)
	}
	if n := c.GetName(); n != "" && n != w.Model {
		return fmt.Errorf("it is of model %q, the release serves %q", n, w.Model)
	}
	if n := c.GetVersionPolicy().GetSpecific(); n != nil && !slices.Contains(n.GetVersions(), number(versionOf(w.Version))) {
		return fmt.Errorf("it serves versions %v, the release is version %s", n.GetVersions(), versionOf(w.Version))
	}
	if backend := c.GetBackend(); backend != "" && backend != backendOf(w.Format) {
		return nil // a backend that reads the model by itself, as python does
	}
	if p := c.GetPlatform(); p != "" && p != platformOf(w.Format) {
		return fmt.Errorf("platform %q does not run a model of format %s: want %s", p, w.Format, platformOf(w.Format))
	}
	if w.Format != "onnx" {
		return nil
	}
	for _, in := range c.GetInput() {
		if err := agrees("input", in.GetName(), in.GetDataType(), in.GetDims(), c.GetMaxBatchSize() > 0, in.GetReshape() != nil, sig.Inputs); err != nil {
			return err
		}
	}
	for _, out := range c.GetOutput() {
		if err := agrees("output", out.GetName(), out.GetDataType(), out.GetDims(), c.GetMaxBatchSize() > 0, out.GetReshape() != nil, sig.Outputs); err != nil {
			return err
		}
	}
	if n := len(c.GetInput()); n > 0 && n < len(sig.Inputs) {
		return fmt.Errorf("it has %d inputs, the model has %d", n, len(sig.Inputs))
	}
	return nil
}

func platformOf(format string) string {
	if format == "plan" {
		return "tensorrt_plan"
	}
	return "onnxruntime_onnx"
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

// agrees finds a tensor of the configuration in the model.
func agrees(what, name string, datatype inference.DataType, dims []int64, batched, reshaped bool, model []onnx.Tensor) error {
	i := slices.IndexFunc(model, func(t onnx.Tensor) bool { return t.Name == name })
	if i < 0 {
		return fmt.Errorf("%s %q: the model has %s", what, name, names(model))
	}
	t := model[i]
	if configType(t.Datatype) != datatype.String() {
		return fmt.Errorf("%s %q is %s, in the model it is %s", what, name, datatype, configType(t.Datatype))
	}
	if reshaped {
		return nil
	}
	if batched {
		dims = append([]int64{-1}, dims...)
	}
	fits := len(dims) == len(t.Shape)
	for k := 0; fits && k < len(dims); k++ {
		fits = dims[k] == t.Shape[k] || dims[k] < 0 || t.Shape[k] < 0
	}
	if !fits {
		return fmt.Errorf("%s %q has shape %v, in the model it is %v", what, name, dims, t.Shape)
	}
	return nil
}

func names(ts []onnx.Tensor) string {
	out := make([]string, len(ts))
	for i, t := range ts {
		out[i] = strconv.Quote(t.Name)
	}
	return strings.Join(out, ", ")
}
