package engine

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/internal/target"
	recipes "github.com/skein-fleet/skein/ota/engine"
)

// DefaultTrtexec is where the JetPack's packages put it.
const DefaultTrtexec = "/usr/src/tensorrt/bin/trtexec"

// Tool drives trtexec.
type Tool struct {
	Runner  Runner
	Trtexec string // path; empty is DefaultTrtexec
	// Refit is the command that puts weights back into a stripped plan, with
	// {plan}, {onnx} and {out} in it; empty is Python's TensorRT. trtexec itself
	// cannot: it runs a stripped plan without its weights, and passes.
	Refit []string
	// Available returns the free bytes of memory, 0 when that is not known. A
	// command during which it falls below Reserve is ended before the kernel
	// ends something else. CheckEvery is how often it is asked; 0 is a second.
	Available  func() int64
	Reserve    int64
	CheckEvery time.Duration
}

// Errors of a run, wrapped with what TensorRT said.
var (
	// ErrTool is returned when trtexec cannot be run or ended otherwise than it
	// should without saying why.
	ErrTool = errors.New("trtexec did not do it")
	// ErrMemory is returned when memory did not suffice.
	ErrMemory = errors.New("not enough memory for TensorRT")
	// ErrCannotBuild is returned for a model or recipe that this TensorRT does
	// not build: trying again is useless.
	ErrCannotBuild = errors.New("this TensorRT cannot build it")
	// ErrUnloadable is returned for a plan that does not load here: trying again
	// is useless.
	ErrUnloadable = errors.New("the engine does not load here")
)

// Failure is a run that failed, with the reason in plain words.
type Failure struct {
	Err     error
	Finding Finding
}

func (f *Failure) Error() string { return fmt.Sprintf("%v: %s", f.Err, f.Finding) }
func (f *Failure) Unwrap() error { return f.Err }

// Job is one build.
type Job struct {
	Recipe   recipes.Recipe
	TensorRT string // of the tool
	// Paths. TimingCache is read and written where it is not empty.
	ONNX, Plan, TimingCache, Calibration string
	Plugins                              []string
	Full                                 bool      // a full plan though the recipe strips
	Log                                  io.Writer // gets the output as it comes
}

const tailLines = 200

// run runs the tool and reads what it prints.
func (t *Tool) run(ctx context.Context, argv []string, log io.Writer) (Result, []string, Exit, error) {
	p := NewParser()
	tail := make([]string, 0, tailLines)
	pr, pw := io.Pipe()
	read := make(chan error, 1)
	go func() {
		read <- eachLine(pr, func(line string) {
			p.Line(line)
			if len(tail) == tailLines {
				tail = slices.Delete(tail, 0, 1)
			}
			tail = append(tail, line)
		})
	}()
	out := io.Writer(pw)
	if log != nil {
		fmt.Fprintf(log, "$ %s\n", strings.Join(argv, " "))
		out = io.MultiWriter(pw, log)
	}
	guarded, stop := t.guard(ctx)
	e, err := t.Runner.Run(guarded, argv, out)
	low := context.Cause(guarded)
	stop()
	pw.Close()
	rerr := <-read
	switch {
	case ctx.Err() != nil:
		return p.Result(), tail, e, context.Cause(ctx)
	case errors.Is(low, ErrMemory):
		return p.Result(), tail, e, low
	case err != nil:
		return p.Result(), tail, e, fmt.Errorf("%w: %w", ErrTool, err)
	}
	return p.Result(), tail, e, rerr
}

// guard ends the context when memory runs out.
func (t *Tool) guard(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	if t.Available == nil {
		return ctx, func() { cancel(nil) }
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(cmp.Or(t.CheckEvery, time.Second))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if free := t.Available(); free > 0 && free < t.Reserve {
					cancel(fmt.Errorf("%w: %d MiB are free, %d MiB must stay so: it was ended before the kernel would end something else", ErrMemory, free>>20, t.Reserve>>20))
				}
			}
		}
	}()
	return ctx, func() { cancel(nil); <-done }
}

// judge makes an error of a run that did not pass. kind is what its errors are
// when the log does not say that memory or the tool was at fault.
func judge(r Result, tail []string, e Exit, kind error) error {
	if e.Code == 0 && r.Verdict != Failed {
		return nil
	}
	all, err := Explain(strings.NewReader(strings.Join(tail, "\n")))
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(f Finding) bool { return f.Warning })
	f := Finding{Class: Unknown, Message: "trtexec failed without an error that is known", Advice: "read its log"}
	switch {
	case e.OOM:
		f = Finding{Class: NoMemory, Message: "the kernel ended trtexec for memory", Advice: "unload something else, add swap, or lower workspaceMiB in the recipe"}
	case len(all) > 0:
		f = all[0]
	case e.Signal != "":
		f = Finding{Class: Crashed, Message: "TensorRT crashed (" + e.Signal + ")", Advice: "a plan of another version or device often does that; build it for this target"}
	case len(r.Errors) > 0:
		f.Message, f.Line = "trtexec: "+r.Errors[0], r.Errors[0]
	}
	switch f.Class {
	case NoMemory:
		kind = ErrMemory
	case NoGPU, BadOption:
		kind = ErrTool
	case Unknown:
		if errors.Is(kind, ErrCannotBuild) {
			kind = ErrTool
		}
	}
	return &Failure{Err: kind, Finding: f}
}

func (t *Tool) trtexec() string { return cmp.Or(t.Trtexec, DefaultTrtexec) }

// Software asks what is installed where the tool runs: in a container its own
// libraries, which the host's say nothing about.
func (t *Tool) Software(ctx context.Context) (target.Software, error) {
	var out bytes.Buffer
	_, err := t.Runner.Run(ctx, target.ImageCommand(), &out)
	if err != nil {
		return target.Software{}, fmt.Errorf("ask the image for its libraries: %w", err)
	}
	s := target.ParseImage(out.String())
	// trtexec may be elsewhere than the script looks.
	if r, _, _, err := t.run(ctx, []string{t.trtexec(), "--help"}, nil); err == nil && r.TensorRT != "" {
		s.TensorRT = r.TensorRT
	}
	return s, ctx.Err()
}

// Args is the command line of a build.
func (t *Tool) Args(j Job) ([]string, error) {
	r := j.Recipe
	if j.Full {
		r.Strip = false
	}
	args, err := r.Args(j.TensorRT)
	if err != nil {
		return nil, err
	}
	argv := append([]string{t.trtexec(), "--onnx=" + j.ONNX, "--saveEngine=" + j.Plan}, args...)
	if j.TimingCache != "" && atLeast(j.TensorRT, 8, 0) {
		argv = append(argv, "--timingCacheFile="+j.TimingCache)
	}
	if j.Calibration != "" {
		argv = append(argv, "--calib="+j.Calibration)
	}
	for _, p := range j.Plugins {
		if atLeast(j.TensorRT, 8, 6) {
			argv = append(argv, "--dynamicPlugins="+p)
		} else {
			argv = append(argv, "--plugins="+p)
		}
	}
	if r.DLA != nil {
		argv = append(argv, "--verbose") // or nothing says what runs where
	}
	if atLeast(j.TensorRT, 8, 6) {
		return append(argv, "--skipInference"), nil
	}
	return append(argv, "--buildOnly"), nil
}

func atLeast(version string, major, minor int) bool {
	parts := strings.SplitN(version, ".", 3)
	if len(parts) < 2 {
		return false
	}
	a, errA := strconv.Atoi(parts[0])
	b, errB := strconv.Atoi(parts[1])
	return errA == nil && errB == nil && (a > major || a == major && b >= minor)
}

// Build builds a plan.
func (t *Tool) Build(ctx context.Context, j Job) (Result, error) {
	argv, err := t.Args(j)
	if err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrCannotBuild, err)
	}
	r, tail, e, err := t.run(ctx, argv, j.Log)
	if err != nil {
		return r, err
	}
	return r, judge(r, tail, e, ErrCannotBuild)
}

// Trial loads a plan in a child and runs it once. ErrUnloadable is its verdict
// on the plan; a crash is one too.
func (t *Tool) Trial(ctx context.Context, plan string, timeout time.Duration) (Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, &Failure{Err: ErrUnloadable, Finding: Finding{Class: TimedOut,
		Message: fmt.Sprintf("the engine was not loaded after %s", timeout), Advice: "TensorRT hangs on it: build it for this target"}})
	defer cancel()
	r, tail, e, err := t.run(ctx, []string{t.trtexec(), "--loadEngine=" + plan, "--warmUp=0", "--duration=0", "--iterations=1", "--avgRuns=1"}, nil)
	if err != nil {
		return r, err
	}
	return r, judge(r, tail, e, ErrUnloadable)
}

// Measure times a plan for so long after a warm-up.
func (t *Tool) Measure(ctx context.Context, plan string, warm, span time.Duration, log io.Writer) (Result, error) {
	argv := []string{t.trtexec(), "--loadEngine=" + plan, fmt.Sprintf("--warmUp=%d", warm.Milliseconds()), fmt.Sprintf("--duration=%d", int(max(span.Seconds(), 1)))}
	r, tail, e, err := t.run(ctx, argv, log)
	if err != nil {
		return r, err
	}
	if err := judge(r, tail, e, ErrUnloadable); err != nil {
		return r, err
	}
	if r.Latency == nil || r.Throughput == 0 {
		return r, fmt.Errorf("%w: it printed no latency and throughput", ErrTool)
	}
	return r, nil
}

// refitScript puts the weights of an ONNX file into a stripped plan, with the
// bindings that come with TensorRT 10.
const refitScript = `import sys
import tensorrt as trt
plan, onnx, out = sys.argv[1:4]
log = trt.Logger(trt.Logger.WARNING)
engine = trt.Runtime(log).deserialize_cuda_engine(open(plan, "rb").read())
assert engine is not None, "Engine deserialization failed"
refitter = trt.Refitter(engine, log)
assert trt.OnnxParserRefitter(refitter, log).refit_from_file(onnx), "the ONNX file does not fit the plan"
assert refitter.refit_cuda_engine(), "weights are missing"
config = engine.create_serialization_config()
config.flags &= ~(1 << int(trt.SerializationFlag.EXCLUDE_WEIGHTS))
open(out, "wb").write(engine.serialize_with_config(config))
`

// RefitPlan puts the weights of onnx into a stripped plan and writes the whole
// one to out.
func (t *Tool) RefitPlan(ctx context.Context, plan, onnx, out string, log io.Writer) error {
	command := t.Refit
	if len(command) == 0 {
		command = []string{"python3", "-c", refitScript, "{plan}", "{onnx}", "{out}"}
	}
	argv := make([]string, len(command))
	for i, w := range command {
		argv[i] = strings.NewReplacer("{plan}", plan, "{onnx}", onnx, "{out}", out).Replace(w)
	}
	r, tail, e, err := t.run(ctx, argv, log)
	if err != nil {
		return fmt.Errorf("refit: %w", err)
	}
	if err := judge(r, tail, e, ErrUnloadable); err != nil {
		return fmt.Errorf("refit: %w", err)
	}
	return nil
}

// Answer runs a plan once on one input, by files in dir, and returns its first
// output. It starts a process for each question: a server is faster.
func (t *Tool) Answer(ctx context.Context, plan, dir, input string, values []float32) ([]float32, error) {
	in, out := filepath.Join(dir, "input.bin"), filepath.Join(dir, "output.json")
	raw := make([]byte, 0, 4*len(values))
	for _, v := range values {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(v))
	}
	if err := os.WriteFile(in, raw, 0o600); err != nil {
		return nil, fmt.Errorf("write the input: %w", err)
	}
	if err := os.Remove(out); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove an old output: %w", err)
	}
	r, tail, e, err := t.run(ctx, []string{t.trtexec(), "--loadEngine=" + plan, "--loadInputs=" + input + ":" + in, "--exportOutput=" + out,
		"--warmUp=0", "--duration=0", "--iterations=1"}, nil)
	if err != nil {
		return nil, err
	}
	if err := judge(r, tail, e, ErrUnloadable); err != nil {
		return nil, err
	}
	if raw, err = os.ReadFile(out); err != nil {
		return nil, fmt.Errorf("%w: it wrote no output: %w", ErrTool, err)
	}
	var outputs []struct {
		Values []float32 `json:"values"`
	}
	if err := json.Unmarshal(raw, &outputs); err != nil || len(outputs) == 0 {
		return nil, fmt.Errorf("%w: its output cannot be read: %w", ErrTool, err)
	}
	return outputs[0].Values, nil
}
