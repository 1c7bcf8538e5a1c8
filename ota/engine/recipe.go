// Package engine is what TensorRT engines are made by and known by: the recipe
// of a build, the key under which its result is kept, the record that the
// building device signs and the control plane countersigns, and the errors that
// say why an engine is not for a device.
//
// Invariants: a recipe is a closed document (an unknown key or builder flag is
// an error, never passed on); equal recipes have equal canonical bytes and so
// one digest; an engine is found by its key alone, and a record counts only
// under two signatures, of the device that built and of the control plane that
// checked. It does no I/O and reads no clock. agent, controlplane and sim
// import it.
package engine

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// MaxRecipe bounds the document.
const MaxRecipe = 64 << 10

// ErrRecipe is returned for a recipe that cannot be built anywhere.
var ErrRecipe = errors.New("bad recipe")

// Precisions of a recipe.
const (
	FP32 = "fp32"
	FP16 = "fp16" // and fp32 where it is faster
	INT8 = "int8" // and fp16, fp32 where it is faster; needs a calibration or a quantised model
	Best = "best" // whatever is fastest
)

// Fits that a recipe can ask for: what of a device its engine is bound to.
const (
	// BindLoadable binds to platform, SM and TensorRT to the patch level.
	BindLoadable = "loadable"
	// BindOptimal binds also to module and power mode, for which tactics are timed.
	BindOptimal = "optimal"
)

// Flags is the closed list of builder flags. None of them lets an engine carry
// code of its own.
var Flags = []string{
	"direct-io",        // no reformatting at inputs and outputs
	"no-tf32",          // fp32 is computed as fp32
	"obey-precision",   // layer precisions of the model are kept, else the build fails
	"prefer-precision", // … are kept where a tactic exists
	"sparsity",         // sparse tactics where weights are sparse
}

// Recipe says how to build. Its zero fields are the builder's own choice.
type Recipe struct {
	Version   int    `json:"version"` // 1
	Precision string `json:"precision"`
	// Fit is loadable (the default) or optimal.
	Fit string `json:"fit,omitempty"`
	// Calibration is the cache of an int8 calibration.
	Calibration *Blob `json:"calibration,omitempty"`
	// Shapes are needed for inputs with dimensions that are not fixed.
	Shapes []Shape  `json:"shapes,omitempty"`
	Flags  []string `json:"flags,omitempty"`
	// WorkspaceMiB bounds the scratch memory of a tactic.
	WorkspaceMiB int  `json:"workspaceMiB,omitempty"`
	DLA          *DLA `json:"dla,omitempty"`
	// OptimizationLevel is 0 (fast build) to 5 (fast engine).
	OptimizationLevel *int `json:"optimizationLevel,omitempty"`
	// Strip leaves the weights out of the plan; the device puts them in from the
	// ONNX file (refit). Where that fails or answers wrongly, a full plan is built.
	Strip bool `json:"strip,omitempty"`
	// Plugins are libraries that are loaded with the engine. They are code, so
	// such a recipe is built only when a person's key has signed it.
	Plugins []Blob `json:"plugins,omitempty"`
}

// Blob names what a recipe needs beside the model.
type Blob struct {
	Name   string     `json:"name"`
	Digest ota.Digest `json:"digest"`
	Size   int64      `json:"size"`
}

// Shape is the profile of one input.
type Shape struct {
	Input string  `json:"input"`
	Min   []int64 `json:"min"`
	Opt   []int64 `json:"opt"`
	Max   []int64 `json:"max"`
}

// DLA asks for a deep learning accelerator.
type DLA struct {
	Core        int  `json:"core"`
	GPUFallback bool `json:"gpuFallback,omitempty"` // layers that it cannot do run on the GPU
}

var inputRE = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_./-]{0,127}$`)

// Preset returns the recipe that a precision alone stands for.
func Preset(precision string) (Recipe, error) {
	r := Recipe{Version: 1, Precision: precision}
	return r, r.Validate()
}

// ParseRecipe reads a recipe, strictly: no unknown key, none twice, nothing
// after the document.
func ParseRecipe(raw []byte) (Recipe, error) {
	var r Recipe
	// Twice-given keys first: the decoder below takes the last of them.
	if err := manifest.Decode(raw, MaxRecipe, new(any)); err != nil {
		return Recipe{}, fmt.Errorf("%w: %w", ErrRecipe, err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return Recipe{}, fmt.Errorf("%w: %w", ErrRecipe, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Recipe{}, fmt.Errorf("%w: something follows the document", ErrRecipe)
	}
	if err := r.Validate(); err != nil {
		return Recipe{}, err
	}
	return r, nil
}

// Validate checks what can be checked without a device.
func (r Recipe) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrRecipe, fmt.Sprintf(format, args...))
	}
	switch {
	case r.Version != 1:
		return bad("version %d, this program reads 1", r.Version)
	case !slices.Contains([]string{FP32, FP16, INT8, Best}, r.Precision):
		return bad("precision %q: want fp32, fp16, int8 or best", r.Precision)
	case r.Fit != "" && r.Fit != BindLoadable && r.Fit != BindOptimal:
		return bad("fit %q: want loadable or optimal", r.Fit)
	case r.Calibration != nil && r.Precision != INT8 && r.Precision != Best:
		return bad("a calibration is for int8 or best, not for %s", r.Precision)
	case r.WorkspaceMiB < 0 || r.WorkspaceMiB > 1<<20:
		return bad("workspace of %d MiB: want 0 to %d", r.WorkspaceMiB, 1<<20)
	case r.DLA != nil && (r.DLA.Core < 0 || r.DLA.Core > 1):
		return bad("DLA core %d: want 0 or 1", r.DLA.Core)
	case r.DLA != nil && r.Precision == FP32:
		return bad("a DLA computes fp16 or int8, not fp32")
	case r.DLA != nil && r.Strip:
		return bad("a plan for a DLA cannot be stripped of its weights")
	case r.OptimizationLevel != nil && (*r.OptimizationLevel < 0 || *r.OptimizationLevel > 5):
		return bad("optimization level %d: want 0 to 5", *r.OptimizationLevel)
	case len(r.Plugins) > 16:
		return bad("%d plugins, at most 16", len(r.Plugins))
	}
	for i, f := range r.Flags {
		if !slices.Contains(Flags, f) {
			return bad("flag %q: want one of %s", f, strings.Join(Flags, ", "))
		}
		if slices.Contains(r.Flags[:i], f) {
			return bad("flag %q is given twice", f)
		}
	}
	if slices.Contains(r.Flags, "obey-precision") && slices.Contains(r.Flags, "prefer-precision") {
		return bad("obey-precision and prefer-precision exclude each other")
	}
	return cmp.Or(r.checkShapes(bad), r.checkBlobs(bad))
}

func (r Recipe) checkShapes(bad func(string, ...any) error) error {
	if len(r.Shapes) > 64 {
		return bad("shapes of %d inputs, at most 64", len(r.Shapes))
	}
	seen := map[string]bool{}
	for _, s := range r.Shapes {
		if !inputRE.MatchString(s.Input) || seen[s.Input] {
			return bad("shape of input %.60q: want a name, and each once", s.Input)
		}
		seen[s.Input] = true
		if len(s.Min) == 0 || len(s.Min) > 8 || len(s.Opt) != len(s.Min) || len(s.Max) != len(s.Min) {
			return bad("shape of input %s: min, opt and max want the same number of dimensions, 1 to 8", s.Input)
		}
		for i := range s.Min {
			if s.Min[i] < 1 || s.Opt[i] < s.Min[i] || s.Max[i] < s.Opt[i] || s.Max[i] > 1<<24 {
				return bad("shape of input %s: dimension %d: want 1 <= min <= opt <= max", s.Input, i)
			}
		}
	}
	return nil
}

func (r Recipe) checkBlobs(bad func(string, ...any) error) error {
	blobs := r.Plugins
	if r.Calibration != nil {
		blobs = append(slices.Clone(blobs), *r.Calibration)
	}
	for _, b := range blobs {
		if _, err := ota.ParseDigest(string(b.Digest)); err != nil {
			return bad("%.60q: %v", b.Name, err)
		}
		if b.Size < 1 || b.Size > manifest.MaxBlob {
			return bad("%.60q: size %d", b.Name, b.Size)
		}
		if b.Name == "" || len(b.Name) > 255 || strings.ContainsAny(b.Name, "/\\\x00") || strings.HasPrefix(b.Name, ".") {
			return bad("%.60q is not a plain file name", b.Name)
		}
	}
	return nil
}

// Canonical returns the one form of a valid recipe: sorted lists, defaults left
// out, no spaces. Its sha256 is the recipe's digest.
func (r Recipe) Canonical() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	if r.Fit == BindLoadable {
		r.Fit = ""
	}
	r.Flags = slices.Sorted(slices.Values(r.Flags))
	r.Shapes = slices.SortedFunc(slices.Values(r.Shapes), func(a, b Shape) int { return strings.Compare(a.Input, b.Input) })
	r.Plugins = slices.SortedFunc(slices.Values(r.Plugins), func(a, b Blob) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("write recipe: %w", err)
	}
	return b, nil
}

// Digest names a valid recipe.
func (r Recipe) Digest() (ota.Digest, error) {
	b, err := r.Canonical()
	if err != nil {
		return "", err
	}
	return ota.DigestOf(b), nil
}

// String is a recipe in a few words, for people.
func (r Recipe) String() string {
	words := []string{r.Precision}
	if r.DLA != nil {
		words = append(words, fmt.Sprintf("dla%d", r.DLA.Core))
	}
	if r.Strip {
		words = append(words, "stripped")
	}
	if r.Fit == BindOptimal {
		words = append(words, "optimal")
	}
	words = append(words, slices.Sorted(slices.Values(r.Flags))...)
	if r.OptimizationLevel != nil {
		words = append(words, fmt.Sprintf("O%d", *r.OptimizationLevel))
	}
	if len(r.Plugins) > 0 {
		words = append(words, fmt.Sprintf("%d plugins", len(r.Plugins)))
	}
	return strings.Join(words, " ")
}
