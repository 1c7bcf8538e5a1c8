// Package engine is a runtime driver that runs ONNX models in this process, on
// package interp: what a virtual board uses in place of containers. It owns
// the life of loaded models on one board and the hooks by which the board
// makes itself felt: a memory limit, and a pace that turns computing into the
// board's latency. The packages of sim import it.
package engine

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
	"github.com/skein-fleet/skein/sim/meter/interp"
	"github.com/skein-fleet/skein/sim/meter/onnx"
	"github.com/skein-fleet/skein/sim/plan"
)

// Cost is what one inference took on this machine.
type Cost struct {
	ID      string        // workload
	Elapsed time.Duration // computing
	MACs    int64         // multiply-accumulates
}

// Options configure an Engine. The zero value is usable.
type Options struct {
	// MemoryMiB returns what the board has for models now; nil means no limit.
	MemoryMiB func() int
	// Pace is called after each computation and before its answer. It may wait
	// (on whatever clock the board has) and returns the latency to book. An
	// error fails the request. Nil books the time that computing took.
	Pace func(ctx context.Context, c Cost) (time.Duration, error)
	// Models shares parsed models between the engines of many boards; nil
	// makes one of its own.
	Models *Models
	// Limits bound one run.
	Limits interp.Limits
	// Plans says what plans of virtual Jetsons load on; nil serves ONNX only.
	Plans func() plan.Board
}

// Engine implements runtime.Runtime.
type Engine struct {
	o Options

	mu      sync.Mutex // guards what follows
	loaded  map[string]*workload
	serving string
}

var _ runtime.Runtime = (*Engine)(nil)

type workload struct {
	w       runtime.Workload
	s       *interp.Session
	bytes   int64
	held    int64 // MiB that it counts for
	count   atomic.Int64
	failed  atomic.Int64
	latency atomic.Int64 // sum, nanoseconds
	macs    atomic.Int64
}

// New returns an engine with nothing loaded.
func New(o Options) *Engine {
	if o.Models == nil {
		o.Models = &Models{}
	}
	return &Engine{o: o, loaded: map[string]*workload{}}
}

// Load reads the model and runs it once on zeros, so that what can only fail
// when it runs fails here.
func (e *Engine) Load(ctx context.Context, w runtime.Workload) error {
	if e.get(w.ID) != nil {
		return nil
	}
	l, err := e.prepare(ctx, w)
	if err != nil {
		return fmt.Errorf("load %s: %w", w.ID, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.loaded[w.ID] != nil {
		return nil
	}
	if e.o.MemoryMiB != nil {
		used := l.held
		for _, other := range e.loaded {
			used += other.held
		}
		if limit := e.o.MemoryMiB(); used > int64(limit) {
			return fmt.Errorf("load %s: %w: %d MiB would be in use, the board has %d", w.ID, runtime.ErrNoCapacity, used, limit)
		}
	}
	e.loaded[w.ID] = l
	return nil
}

func (e *Engine) prepare(ctx context.Context, w runtime.Workload) (*workload, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	unpack := func(b []byte) ([]byte, error) { return b, nil }
	switch {
	case w.Format == "plan" && e.o.Plans != nil:
		unpack = e.unpack
	case w.Format != "onnx":
		return nil, fmt.Errorf("%w: format %q: this runtime reads onnx", runtime.ErrIncompatible, w.Format)
	}
	if !filepath.IsLocal(w.ModelFile) {
		return nil, fmt.Errorf("%w: the model file %q is not inside of the release", runtime.ErrIncompatible, w.ModelFile)
	}
	s, err := e.o.Models.load(filepath.Join(w.Dir, w.ModelFile), e.o.Limits, unpack)
	if err != nil {
		return nil, err
	}
	values, err := tryOut(ctx, s)
	if err != nil {
		return nil, err
	}
	l := &workload{w: w, s: s, bytes: s.WeightBytes() + 4*values}
	l.held = max(int64(w.MemoryMiB), (l.bytes+1<<20-1)>>20)
	return l, nil
}

// unpack takes the model out of a plan, where the plan loads here.
func (e *Engine) unpack(b []byte) ([]byte, error) {
	p, _, err := plan.Load(b, e.o.Plans())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", runtime.ErrIncompatible, err)
	}
	return p.ONNX, nil
}

// tryOut runs a model on one example of zeros.
func tryOut(ctx context.Context, s *interp.Session) (values int64, err error) {
	var in []interp.Tensor
	inputs, _ := s.Signature()
	for _, v := range inputs {
		t := interp.Tensor{Name: v.Name}
		for _, d := range v.Shape {
			t.Shape = append(t.Shape, max(d.Size, 1)) // 1 for what the caller chooses
		}
		n, err := onnx.Elements(t.Shape)
		if err != nil || n > 1<<24 {
			return 0, fmt.Errorf("%w: input %q is too large: %v", runtime.ErrIncompatible, v.Name, t.Shape)
		}
		t.Data = make([]float32, n)
		in = append(in, t)
	}
	_, st, err := s.Run(ctx, in)
	switch {
	case err == nil:
		return st.Values, nil
	case ctx.Err() != nil:
		return 0, err
	}
	return 0, fmt.Errorf("%w: a trial run: %w", runtime.ErrIncompatible, err)
}

// get returns a loaded workload or nil; an empty id means the serving one.
func (e *Engine) get(id string) *workload {
	e.mu.Lock()
	defer e.mu.Unlock()
	if id == "" {
		id = e.serving
	}
	return e.loaded[id]
}

// Switch sends requests without an id to id. Those that run go on where they are.
func (e *Engine) Switch(_ context.Context, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.loaded[id] == nil {
		return fmt.Errorf("switch to %s: %w", id, runtime.ErrNotLoaded)
	}
	e.serving = id
	return nil
}

// Unload forgets id; requests that run on it are answered.
func (e *Engine) Unload(_ context.Context, id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.loaded, id)
	if e.serving == id {
		e.serving = ""
	}
	return nil
}

// List returns what is loaded, in order of ID.
func (e *Engine) List(context.Context) ([]runtime.Status, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]runtime.Status, 0, len(e.loaded))
	for id := range e.loaded {
		list = append(list, runtime.Status{ID: id, Ready: true, Serving: e.serving == id})
	}
	slices.SortFunc(list, func(a, b runtime.Status) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// Infer runs the model.
func (e *Engine) Infer(ctx context.Context, id string, req runtime.Request) (runtime.Response, error) {
	l := e.get(id)
	if l == nil {
		return runtime.Response{}, fmt.Errorf("infer on %q: %w", id, runtime.ErrNotLoaded)
	}
	resp, took, err := e.infer(ctx, l, req)
	if err != nil {
		l.failed.Add(1)
		return runtime.Response{}, fmt.Errorf("infer on %s: %w", l.w.ID, err)
	}
	l.count.Add(1)
	l.latency.Add(int64(took))
	return resp, nil
}

func (e *Engine) infer(ctx context.Context, l *workload, req runtime.Request) (runtime.Response, time.Duration, error) {
	in := make([]interp.Tensor, len(req.Inputs))
	for i, t := range req.Inputs {
		in[i] = interp.Tensor{Name: t.Name, Shape: t.Shape, Data: t.Data}
	}
	start := time.Now()
	out, st, err := l.s.Run(ctx, in)
	took := time.Since(start)
	if errors.Is(err, interp.ErrInput) || errors.Is(err, interp.ErrShape) || errors.Is(err, interp.ErrTooLarge) {
		err = fmt.Errorf("%w: %w", runtime.ErrBadRequest, err)
	}
	if err != nil {
		return runtime.Response{}, 0, err
	}
	l.macs.Add(st.MACs)
	if e.o.Pace != nil {
		if took, err = e.o.Pace(ctx, Cost{ID: l.w.ID, Elapsed: took, MACs: st.MACs}); err != nil {
			return runtime.Response{}, 0, err
		}
	}
	resp := runtime.Response{ModelName: l.w.Model, ModelVersion: l.w.Version, ID: req.ID}
	for _, t := range out {
		resp.Outputs = append(resp.Outputs, runtime.Tensor{Name: t.Name, Shape: t.Shape, Data: t.Data})
	}
	return resp, took, nil
}

// Stats count the requests of one loaded workload.
type Stats struct {
	Requests, Failures int64
	Latency            time.Duration // sum over the answered requests
	MACs               int64
	Bytes              int64 // weights and the tensors of one run
}

// Stats returns the counts of a workload; false when it is not loaded.
func (e *Engine) Stats(id string) (Stats, bool) {
	l := e.get(id)
	if l == nil {
		return Stats{}, false
	}
	return Stats{Requests: l.count.Load(), Failures: l.failed.Load(), Latency: time.Duration(l.latency.Load()),
		MACs: l.macs.Load(), Bytes: l.bytes}, true
}

// Served lists what is loaded for package kserve.
func (e *Engine) Served(context.Context) ([]kserve.Model, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]kserve.Model, 0, len(e.loaded))
	for id, l := range e.loaded {
		inputs, outputs := l.s.Signature()
		list = append(list, kserve.Model{Name: l.w.Model, Version: l.w.Version, ID: id, Ready: true, Serving: e.serving == id,
			Platform: "onnx", Inputs: infos(inputs), Outputs: infos(outputs)})
	}
	slices.SortFunc(list, func(a, b kserve.Model) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Version, b.Version), strings.Compare(a.ID, b.ID))
	})
	return list, nil
}

func infos(values []onnx.Value) []kserve.TensorInfo {
	var list []kserve.TensorInfo
	for _, v := range values {
		info := kserve.TensorInfo{Name: v.Name, Datatype: kserve.DatatypeFP32, Shape: []int64{}}
		for _, d := range v.Shape {
			info.Shape = append(info.Shape, d.Size)
		}
		list = append(list, info)
	}
	return list
}

// Models keeps parsed models by the digest of their file, so that a thousand
// boards hold one copy. The zero value is ready for use; it forgets nothing.
type Models struct {
	mu       sync.Mutex // guards sessions
	sessions map[[sha256.Size]byte]*interp.Session
}

// load reads a file. The bytes are read each time: a file that was damaged
// on one board's disk is not hidden by another's good one.
func (m *Models) load(path string, limits interp.Limits, unpack func([]byte) ([]byte, error)) (*interp.Session, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open model: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, onnx.MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read model: %w", err)
	}
	if b, err = unpack(b); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.sessions[sum]; s != nil {
		return s, nil
	}
	s, err := interp.Load(b, limits)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", runtime.ErrIncompatible, filepath.Base(path), err)
	}
	if m.sessions == nil {
		m.sessions = map[[sha256.Size]byte]*interp.Session{}
	}
	m.sessions[sum] = s
	return s, nil
}
