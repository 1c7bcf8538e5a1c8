// Package trtexec is a trtexec for virtual Jetsons: it builds plans that load
// only on the SM and TensorRT that built them, prints what the trtexec of the
// board's TensorRT prints, and takes its times from the board's model. It owns
// the tables of published times. A build is not reproducible: tactics, and with
// them times, differ from one to the next. The packages of sim and its commands
// import it.
package trtexec

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/meter/interp"
	"github.com/skein-fleet/skein/sim/meter/onnx"
	"github.com/skein-fleet/skein/sim/plan"
)

// Board is where it runs.
type Board struct {
	Model *jetson.Model
	Mode  string // the model's default when empty
	// TensorRT of the container that it runs in; the board's own when empty.
	TensorRT string
	// Module is the name by which engines are tuned; the model's own when empty.
	Module string
	// Heat and load change what it measures; nil is a cool board of its own.
	Factor func() float64
	// Now stamps the log; nil is time.Now.
	Now func() time.Time
	// Wait lets the time of a build pass, shortened as the simulation likes;
	// nil lets none pass.
	Wait func(ctx context.Context, d time.Duration) error
}

// Exits of Run besides 0 and 1.
const (
	exitFailed = 1
	// ExitCrash stands for a death by SIGSEGV, which a process of its own dies of.
	ExitCrash = 139
)

// options are those that are understood.
type options struct {
	onnx, load, save, cache, calib, inputs, output string
	precision                                      string
	dla                                            bool
	fallback, strip, verbose, skip                 bool
	iterations                                     int
	seconds                                        float64
}

// run is one call.
type run struct {
	options
	b    Board
	on   plan.Board
	out  io.Writer
	args []string
	now  func() time.Time
}

// Run does what the arguments say (without the program's name) and returns the
// exit code.
func Run(ctx context.Context, b Board, args []string, out io.Writer) int {
	if b.Mode == "" {
		b.Mode = b.Model.DefaultMode
	}
	r := &run{b: b, out: out, args: args, now: b.Now}
	if r.now == nil {
		r.now = time.Now
	}
	r.on = On(b)
	r.banner("RUNNING")
	if err := r.parse(); err != nil {
		return r.fail(err)
	}
	err := r.do(ctx)
	if err != nil {
		return r.fail(err)
	}
	r.banner("PASSED")
	return 0
}

// On is the board as plans see it.
func On(b Board) plan.Board {
	on := plan.Board{TensorRT: b.TensorRT, SM: b.Model.SM, Module: b.Module, Mode: b.Mode}
	if on.TensorRT == "" {
		on.TensorRT = b.Model.TensorRT
	}
	if on.Module == "" {
		on.Module = b.Model.Tuned()
	}
	if on.Mode == "" {
		on.Mode = b.Model.DefaultMode
	}
	return on
}

func (r *run) atLeast(major, minor int) bool {
	parts := strings.Split(r.on.TensorRT+".0", ".")
	a, _ := strconv.Atoi(parts[0])
	b, _ := strconv.Atoi(parts[1])
	return a > major || a == major && b >= minor
}

// number is the version as TensorRT numbers it.
func (r *run) number() string {
	parts := strings.Split(r.on.TensorRT+".0.0", ".")
	n := [3]int{}
	for i := range n {
		n[i], _ = strconv.Atoi(parts[i])
	}
	if n[0] >= 10 {
		return strconv.Itoa(n[0]*10000 + n[1]*100 + n[2])
	}
	return strconv.Itoa(n[0]*1000 + n[1]*100 + n[2])
}

func (r *run) banner(word string) {
	version := ""
	if r.atLeast(8, 0) {
		version = " [TensorRT v" + r.number() + "]"
	}
	fmt.Fprintf(r.out, "&&&& %s TensorRT.trtexec%s # /usr/src/tensorrt/bin/trtexec %s\n", word, version, strings.Join(r.args, " "))
}

func (r *run) say(level, format string, args ...any) {
	fmt.Fprintf(r.out, "[%s] [%s] %s\n", r.now().Format("01/02/2006-15:04:05"), level, fmt.Sprintf(format, args...))
}

func (r *run) fail(err error) int {
	if l, ok := errors.AsType[*plan.LoadError](err); ok {
		for _, line := range l.Lines {
			level, text, _ := strings.Cut(line, ": ")
			r.say("E", "[TRT] %s: %s", level, text)
		}
		if l.Crash {
			return ExitCrash
		}
		r.say("E", "Engine deserialization failed")
		r.say("E", "Got invalid engine!")
	} else {
		r.say("E", "%v", err)
	}
	r.banner("FAILED")
	return exitFailed
}

func (r *run) parse() error {
	r.precision, r.iterations, r.seconds = "fp32", 10, 3
	for _, a := range r.args {
		key, value, _ := strings.Cut(a, "=")
		switch key {
		case "--onnx":
			r.onnx = value
		case "--loadEngine":
			r.load = value
		case "--saveEngine":
			r.save = value
		case "--timingCacheFile":
			r.cache = value
		case "--calib":
			r.calib = value
		case "--loadInputs":
			_, r.inputs, _ = strings.Cut(value, ":")
		case "--exportOutput":
			r.output = value
		case "--int8":
			r.precision = "int8"
		case "--best":
			r.precision = "best"
		case "--fp16":
			if r.precision == "fp32" {
				r.precision = "fp16"
			}
		case "--useDLACore":
			r.dla = true
		case "--allowGPUFallback":
			r.fallback = true
		case "--stripWeights":
			if !r.atLeast(10, 0) {
				return fmt.Errorf("Unknown option: %s", a)
			}
			r.strip = true
		case "--skipInference":
			if !r.atLeast(8, 6) {
				return fmt.Errorf("Unknown option: %s", a)
			}
			r.skip = true
		case "--buildOnly":
			if r.atLeast(10, 0) {
				return fmt.Errorf("Unknown option: %s", a)
			}
			r.skip = true
		case "--verbose":
			r.verbose = true
		case "--iterations":
			r.iterations, _ = strconv.Atoi(value)
		case "--duration":
			r.seconds = float(value)
		case "--warmUp", "--avgRuns", "--memPoolSize", "--workspace", "--builderOptimizationLevel", "--directIO", "--noTF32", "--precisionConstraints",
			"--sparsity", "--minShapes", "--optShapes", "--maxShapes", "--help", "--percentile", "--useSpinWait", "--dynamicPlugins", "--plugins", "--refit":
		default:
			return fmt.Errorf("Unknown option: %s", a)
		}
	}
	return nil
}

func (r *run) do(ctx context.Context) error {
	if slices.Contains(r.args, "--help") {
		return nil
	}
	r.say("I", "=== Device Information ===")
	r.say("I", "Selected Device: %s", r.b.Model.Product)
	r.say("I", "Compute Capability: %s", r.on.SM)
	r.say("I", "TensorRT version: %s", r.on.TensorRT)
	raw, err := r.engine(ctx)
	if err != nil || r.onnx != "" && r.skip {
		return err
	}
	p, warning, err := plan.Load(raw, r.on)
	if warning != "" {
		r.say("W", "[TRT] %s", warning)
	}
	if err != nil {
		return err
	}
	r.say("I", "Engine deserialized in 0.0213 sec.")
	return r.infer(ctx, p)
}

// engine builds a plan, or reads one.
func (r *run) engine(ctx context.Context) ([]byte, error) {
	switch {
	case r.onnx != "":
		return r.build(ctx)
	case r.load == "":
		return nil, errors.New("Model missing or format not recognized")
	}
	raw, err := os.ReadFile(r.load)
	if err != nil {
		return nil, fmt.Errorf("Error opening engine file: %s", r.load)
	}
	return raw, nil
}

func place(dla bool) string {
	if dla {
		return "dla"
	}
	return "gpu"
}

// build makes a plan.
func (r *run) build(ctx context.Context) ([]byte, error) {
	raw, err := os.ReadFile(r.onnx)
	if err != nil {
		return nil, fmt.Errorf("Could not open file %s", r.onnx)
	}
	m, err := onnx.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("Failed to parse onnx file: %v", err)
	}
	if r.dla && r.b.Model.DLA == 0 {
		return nil, errors.New("Cannot create DLA engine, 0 not available")
	}
	s, err := interp.Compile(m, interp.Limits{})
	if err != nil {
		return nil, fmt.Errorf("Failed to parse onnx file: %v", err)
	}
	if r.dla {
		r.placement(m)
	}
	known := r.readCache(raw)
	took := buildTime(r.b, r.precision, len(raw))
	if known {
		took /= 6
	}
	if r.b.Wait != nil {
		if err := r.b.Wait(ctx, took); err != nil {
			return nil, err
		}
	}
	macs, err := r.macs(ctx, s)
	if err != nil {
		return nil, err
	}
	n := costOf(m, r.onnx, r.precision, place(r.dla), macs)
	b, err := plan.Plan{ONNX: raw, Header: plan.Header{TensorRT: r.on.TensorRT, SM: r.on.SM, Module: r.on.Module, Mode: r.on.Mode,
		Precision: r.precision, Network: n.name, DLA: r.dla, Stripped: r.strip}}.Marshal()
	if err != nil {
		return nil, err
	}
	r.say("I", "Engine built in %.4g sec.", took.Seconds())
	if r.atLeast(10, 0) {
		r.say("I", "Created engine with size: %.4g MiB", float64(len(b))/(1<<20))
	}
	if r.cache != "" {
		if err := os.WriteFile(r.cache, []byte(r.cacheKey(raw)), 0o644); err != nil {
			return nil, err
		}
	}
	if r.save == "" {
		return b, nil
	}
	return b, os.WriteFile(r.save, b, 0o644)
}

// cacheKey is what a timing cache is good for: this model on this board in this
// mode.
func (r *run) cacheKey(raw []byte) string {
	return fmt.Sprintf("timing cache %x %s %s %s %s\n", sha256.Sum256(raw), r.on.TensorRT, r.on.SM, r.on.Module, r.on.Mode)
}

func (r *run) readCache(raw []byte) bool {
	if r.cache == "" {
		return false
	}
	have, err := os.ReadFile(r.cache)
	if err != nil {
		return false
	}
	if string(have) != r.cacheKey(raw) {
		r.say("W", "[TRT] Timing cache does not match the current device or TensorRT version and is ignored.")
		return false
	}
	r.say("I", "Loaded %d bytes of timing cache from %s", len(have), r.cache)
	return true
}

// buildTime follows figures from the field: minutes on an Orin Nano, more on
// older boards and for int8.
func buildTime(b Board, precision string, size int) time.Duration {
	minutes := 2.5 * b.Model.Latency / 0.67 * (0.2 + float64(size)/(6<<20))
	if precision == "int8" || precision == "best" {
		minutes *= 1.5
	}
	return time.Duration(minutes * float64(time.Minute))
}

// placement says which nodes a DLA takes, as a verbose build does.
func (r *run) placement(m *onnx.Model) {
	on, off := 0, 0
	for _, n := range m.Graph.Nodes {
		switch n.Op {
		case "Conv", "Relu", "MaxPool", "Gemm", "Add", "BatchNormalization":
			on++
			continue
		}
		off++
		r.say("W", "[TRT] %s: DLA cores do not support %s operation.", n.Outputs[0], n.Op)
		r.say("V", "[TRT] [GpuLayer] %s: %s", strings.ToUpper(n.Op), n.Outputs[0])
	}
	r.say("V", "[TRT] Number of DLA node candidates offloaded : %d out of %d", on, on)
	r.say("V", "[TRT] {ForeignNode[%s]} successfully offloaded to DLA.", r.onnx)
}

func (r *run) macs(ctx context.Context, s *interp.Session) (int64, error) {
	var in []interp.Tensor
	inputs, _ := s.Signature()
	for _, v := range inputs {
		t := interp.Tensor{Name: v.Name}
		for _, d := range v.Shape {
			t.Shape = append(t.Shape, max(d.Size, 1))
		}
		n, err := onnx.Elements(t.Shape)
		if err != nil {
			return 0, err
		}
		t.Data = make([]float32, n)
		in = append(in, t)
	}
	_, st, err := s.Run(ctx, in)
	if err != nil {
		return 0, fmt.Errorf("Failed to parse onnx file: %v", err)
	}
	return st.MACs, nil
}

// factor is how slow the board is, relative to the reference.
func (r *run) factor() (float64, error) {
	if r.b.Factor != nil {
		return r.b.Factor(), nil
	}
	b, err := jetson.New(r.b.Model, jetson.Options{Seed: 1, Mode: r.b.Mode})
	if err != nil {
		return 0, err
	}
	return b.LatencyFactor(), nil
}

// infer runs the plan and prints its times.
func (r *run) infer(ctx context.Context, p plan.Plan) error {
	m, err := onnx.Parse(p.ONNX)
	if err != nil {
		return &plan.LoadError{Crash: true}
	}
	s, err := interp.Compile(m, interp.Limits{})
	if err != nil {
		return &plan.LoadError{Crash: true}
	}
	if r.inputs != "" || r.output != "" {
		if err := r.once(ctx, s); err != nil {
			return err
		}
	}
	macs, err := r.macs(ctx, s)
	if err != nil {
		return err
	}
	n := costOf(m, p.Network, p.Precision, place(p.DLA), macs)
	factor, err := r.factor()
	if err != nil {
		return err
	}
	ms := n.cost.Seconds() * 1000 * factor * p.Speed
	runs := max(r.iterations, int(min(r.seconds*1000/max(ms, 0.01), 2000)), 1)
	r.print(samples(ms, runs))
	return nil
}

// samples draws times around a median, as locked clocks have them.
func samples(ms float64, n int) []float64 {
	out := make([]float64, n)
	for i := range out {
		out[i] = ms * math.Exp(0.012*rand.NormFloat64())
	}
	slices.Sort(out)
	return out
}

// Refit puts the weights of an ONNX file into a stripped plan: what a real
// device does by Python's TensorRT.
func Refit(path, source, out string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the stripped plan: %w", err)
	}
	weights, err := os.ReadFile(source)
	if err != nil {
		return fmt.Errorf("read the weights: %w", err)
	}
	full, err := plan.Refit(raw, weights)
	if err != nil {
		return err
	}
	return os.WriteFile(out, full, 0o644)
}

// Measure times a network on a board as a run of five builds does, for
// Published.
func Measure(ctx context.Context) func(board *jetson.Model, mode, network, precision, place string) (ms, watts float64, err error) {
	return func(board *jetson.Model, mode, network, precision, place string) (float64, float64, error) {
		n, ok := find(network, precision, place)
		if !ok {
			return 0, 0, fmt.Errorf("no costs of %s %s on %s", network, precision, place)
		}
		w, err := watts(board, mode, n.load)
		if err != nil {
			return 0, 0, err
		}
		b, err := jetson.New(board, jetson.Options{Seed: 1, Mode: mode})
		if err != nil {
			return 0, 0, err
		}
		// The median of five builds, for each draws tactics of its own.
		var all []float64
		for range 5 {
			p, err := plan.Plan{Header: plan.Header{TensorRT: board.TensorRT, SM: board.SM}}.Marshal()
			if err != nil {
				return 0, 0, err
			}
			loaded, _, err := plan.Load(p, plan.Board{TensorRT: board.TensorRT, SM: board.SM})
			if err != nil {
				return 0, 0, err
			}
			s := samples(n.cost.Seconds()*1000*b.LatencyFactor()*loaded.Speed, 200)
			all = append(all, s[len(s)/2])
		}
		slices.Sort(all)
		return all[2], w, ctx.Err()
	}
}
