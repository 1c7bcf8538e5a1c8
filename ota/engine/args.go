package engine

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Args returns the options of trtexec that a recipe stands for, in a fixed
// order, for a TensorRT version such as 10.3.0. Paths (model, engine, caches,
// plugins) are the caller's. ErrUnsupported is for what that version cannot do.
func (r Recipe) Args(trt string) ([]string, error) {
	major, minor, err := version(trt)
	if err != nil {
		return nil, err
	}
	before := func(a, b int) bool { return major < a || major == a && minor < b }
	var args []string
	switch r.Precision {
	case FP16:
		args = append(args, "--fp16")
	case INT8:
		args = append(args, "--int8", "--fp16")
	case Best:
		args = append(args, "--best")
	}
	if w := r.WorkspaceMiB; w > 0 && before(8, 4) {
		args = append(args, fmt.Sprintf("--workspace=%d", w))
	} else if w > 0 {
		args = append(args, fmt.Sprintf("--memPoolSize=workspace:%d", w))
	}
	if l := r.OptimizationLevel; l != nil {
		if before(8, 6) {
			return nil, fmt.Errorf("%w: optimizationLevel needs TensorRT 8.6, this is %s", ErrUnsupported, trt)
		}
		args = append(args, fmt.Sprintf("--builderOptimizationLevel=%d", *l))
	}
	if r.DLA != nil {
		args = append(args, fmt.Sprintf("--useDLACore=%d", r.DLA.Core))
		if r.DLA.GPUFallback {
			args = append(args, "--allowGPUFallback")
		}
	}
	if r.Strip {
		if before(10, 0) {
			return nil, fmt.Errorf("%w: strip needs TensorRT 10, this is %s", ErrUnsupported, trt)
		}
		args = append(args, "--stripWeights")
	}
	flags, err := r.flagArgs(trt, before)
	if err != nil {
		return nil, err
	}
	return append(append(args, flags...), r.shapeArgs()...), nil
}

func (r Recipe) flagArgs(trt string, before func(a, b int) bool) ([]string, error) {
	var args []string
	for _, f := range slices.Sorted(slices.Values(r.Flags)) {
		since, arg := [2]int{7, 0}, ""
		switch f {
		case "direct-io":
			since, arg = [2]int{8, 0}, "--directIO"
		case "no-tf32":
			arg = "--noTF32"
		case "obey-precision":
			since, arg = [2]int{8, 2}, "--precisionConstraints=obey"
		case "prefer-precision":
			since, arg = [2]int{8, 2}, "--precisionConstraints=prefer"
		case "sparsity":
			since, arg = [2]int{8, 0}, "--sparsity=enable"
		}
		if before(since[0], since[1]) {
			return nil, fmt.Errorf("%w: flag %s needs TensorRT %d.%d, this is %s", ErrUnsupported, f, since[0], since[1], trt)
		}
		args = append(args, arg)
	}
	return args, nil
}

func (r Recipe) shapeArgs() []string {
	if len(r.Shapes) == 0 {
		return nil
	}
	var lists [3][]string
	for _, s := range slices.SortedFunc(slices.Values(r.Shapes), func(a, b Shape) int { return strings.Compare(a.Input, b.Input) }) {
		for i, dims := range [][]int64{s.Min, s.Opt, s.Max} {
			var text []string
			for _, d := range dims {
				text = append(text, strconv.FormatInt(d, 10))
			}
			lists[i] = append(lists[i], s.Input+":"+strings.Join(text, "x"))
		}
	}
	return []string{"--minShapes=" + strings.Join(lists[0], ","), "--optShapes=" + strings.Join(lists[1], ","), "--maxShapes=" + strings.Join(lists[2], ",")}
}

func version(trt string) (major, minor int, err error) {
	if Patch(trt) == "" {
		return 0, 0, fmt.Errorf("%w: TensorRT %q: want a version such as 10.3.0", ErrUnsupported, trt)
	}
	parts := strings.Split(trt, ".")
	major, _ = strconv.Atoi(parts[0]) // Patch has looked at both
	minor, _ = strconv.Atoi(parts[1])
	return major, minor, nil
}
