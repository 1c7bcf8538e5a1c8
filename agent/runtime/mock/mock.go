// Package mock is a runtime whose behaviour the workload itself tells: a file
// mock.json in its folder says how it loads, how fast and how rightly it
// answers, and when it crashes. It is shipped, so that a rollout can be tried
// on any machine without a model. It keeps the contract of package runtime
// (the conformance suite runs on it); tests and the agent's command import it.
package mock

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
)

// SpecFile is the name of the file that tells a workload's behaviour.
const SpecFile = "mock.json"

// ErrCrashed is returned by Infer after the workload has crashed. Load starts
// it afresh.
var ErrCrashed = errors.New("workload crashed")

// Spec is the behaviour of one workload. The zero value loads at once and
// answers rightly.
type Spec struct {
	// LoadError makes Load fail: "incompatible", "capacity", or any other
	// text, which becomes the error's.
	LoadError string `json:"load_error,omitempty"`
	// LoadDelay is how long Load takes.
	LoadDelay Duration `json:"load_delay,omitzero"`
	// NeverReady makes Load wait until its context ends.
	NeverReady bool `json:"never_ready,omitempty"`
	// Latency is how long each Infer takes.
	Latency Duration `json:"latency,omitzero"`
	// Wrong makes every answer wrong: the outputs are in reverse order.
	Wrong bool `json:"wrong,omitempty"`
	// CrashAfter is the number of requests that are answered before the
	// workload crashes; 0 means never.
	CrashAfter int `json:"crash_after,omitempty"`
	// Classes is the number of outputs, 10 when zero. Salt makes models differ.
	Classes int `json:"classes,omitempty"`
	Salt    int `json:"salt,omitempty"`
}

// Duration is a time.Duration that reads and writes "1.5s" in JSON.
type Duration time.Duration

// MarshalText returns the text of time.Duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads; negative ones are refused.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err == nil && v < 0 {
		err = fmt.Errorf("duration %s is negative", v)
	}
	*d = Duration(v)
	return err
}

// ReadSpec reads the behaviour from a workload's folder. Without a file it is
// the zero Spec; unknown keys are refused.
func ReadSpec(dir string) (Spec, error) {
	f, err := os.Open(filepath.Join(dir, SpecFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Spec{}, nil
	}
	if err != nil {
		return Spec{}, fmt.Errorf("open mock spec: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return Spec{}, fmt.Errorf("read mock spec: %w", err)
	}
	var s Spec
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return Spec{}, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if s.Classes < 0 || s.Classes > 1<<16 || s.CrashAfter < 0 {
		return Spec{}, fmt.Errorf("read %s: classes %d (0..65536) or crash_after %d is out of range", f.Name(), s.Classes, s.CrashAfter)
	}
	return s, nil
}

// Answer is the right answer of a mock model to an input: what a golden set
// for it holds. The greatest output is at the label (sum of the values, cut to a whole number,
// plus salt) modulo the number of classes.
func (s Spec) Answer(input []float32) []float32 {
	var sum float64
	for _, v := range input {
		sum += float64(v)
	}
	n := cmp.Or(s.Classes, 10)
	label := int(sum+float64(s.Salt)) % n
	if label < 0 {
		label += n
	}
	out := make([]float32, n)
	for i := range out {
		out[i] = 1 / float32(1+(i-label+n)%n)
	}
	return out
}

// Options configure a Runtime. The zero value is usable.
type Options struct {
	// MemoryMiB limits the sum of the declared needs; 0 means no limit.
	MemoryMiB int
}

// New returns a runtime with nothing loaded.
func New(o Options) *Runtime {
	return &Runtime{limit: o.MemoryMiB, loaded: map[string]*workload{}}
}

// Runtime implements runtime.Runtime.
type Runtime struct {
	limit int

	mu      sync.Mutex // guards what follows and the workloads' fields
	loaded  map[string]*workload
	serving string
}

var _ runtime.Runtime = (*Runtime)(nil)

type workload struct {
	w        runtime.Workload
	spec     Spec
	ready    bool
	reason   string
	requests int
}

// Load reads the spec and does as it says.
func (r *Runtime) Load(ctx context.Context, w runtime.Workload) error {
	spec, err := ReadSpec(w.Dir)
	if err != nil {
		return fmt.Errorf("load %s: %w: %w", w.ID, runtime.ErrIncompatible, err)
	}
	l, err := r.admit(w, spec)
	if err != nil || l == nil {
		return err
	}
	if err := bringUp(ctx, spec); err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.loaded[w.ID] == l {
			delete(r.loaded, w.ID)
			if r.serving == w.ID {
				r.serving = ""
			}
		}
		return fmt.Errorf("load %s: %w", w.ID, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l.ready, l.reason = true, ""
	return nil
}

// admit makes room; it returns nil when the workload is loaded and well.
func (r *Runtime) admit(w runtime.Workload, spec Spec) (*workload, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.loaded[w.ID]; l != nil && l.ready {
		return nil, nil
	}
	used := w.MemoryMiB
	for id, l := range r.loaded {
		if id != w.ID {
			used += l.w.MemoryMiB
		}
	}
	if r.limit > 0 && used > r.limit {
		return nil, fmt.Errorf("load %s: %w: %d MiB would be in use, the limit is %d", w.ID, runtime.ErrNoCapacity, used, r.limit)
	}
	l := &workload{w: w, spec: spec, reason: "loading"}
	r.loaded[w.ID] = l
	return l, nil
}

func bringUp(ctx context.Context, s Spec) error {
	switch {
	case s.NeverReady:
		<-ctx.Done()
		return fmt.Errorf("wait for the workload to be ready: %w", ctx.Err())
	default:
		if err := wait(ctx, s.LoadDelay); err != nil {
			return fmt.Errorf("wait for the workload to be ready: %w", err)
		}
	}
	switch s.LoadError {
	case "":
		return nil
	case "incompatible":
		return fmt.Errorf("%w: the spec says so", runtime.ErrIncompatible)
	case "capacity":
		return fmt.Errorf("%w: the spec says so", runtime.ErrNoCapacity)
	}
	return errors.New(s.LoadError)
}

func wait(ctx context.Context, d Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(time.Duration(d))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Switch makes id the one that serves.
func (r *Runtime) Switch(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.loaded[id]; l == nil || !l.ready {
		return fmt.Errorf("switch to %s: %w", id, runtime.ErrNotLoaded)
	}
	r.serving = id
	return nil
}

// Unload forgets id. Requests on it that run already are answered.
func (r *Runtime) Unload(_ context.Context, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.loaded, id)
	if r.serving == id {
		r.serving = ""
	}
	return nil
}

// List returns what is loaded, crashed workloads too.
func (r *Runtime) List(context.Context) ([]runtime.Status, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]runtime.Status, 0, len(r.loaded))
	for id, l := range r.loaded {
		list = append(list, runtime.Status{ID: id, Ready: l.ready, Serving: r.serving == id, Reason: l.reason})
	}
	slices.SortFunc(list, func(a, b runtime.Status) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}

// Infer answers as the spec says.
func (r *Runtime) Infer(ctx context.Context, id string, req runtime.Request) (runtime.Response, error) {
	l, err := r.begin(id)
	if err != nil {
		return runtime.Response{}, err
	}
	if err := wait(ctx, l.spec.Latency); err != nil {
		return runtime.Response{}, fmt.Errorf("infer on %s: %w", l.w.ID, err)
	}
	if len(req.Inputs) != 1 {
		return runtime.Response{}, fmt.Errorf("infer on %s: %w: %d inputs: want one", l.w.ID, runtime.ErrBadRequest, len(req.Inputs))
	}
	in := req.Inputs[0]
	n := int64(1)
	for _, d := range in.Shape {
		if d < 0 || d > 1<<24 || n*d > 1<<24 {
			return runtime.Response{}, fmt.Errorf("infer on %s: %w: input %q has shape %v", l.w.ID, runtime.ErrBadRequest, in.Name, in.Shape)
		}
		n *= d
	}
	if n != int64(len(in.Data)) {
		return runtime.Response{}, fmt.Errorf("infer on %s: %w: input %q has shape %v and %d values", l.w.ID, runtime.ErrBadRequest, in.Name, in.Shape, len(in.Data))
	}
	out := l.spec.Answer(in.Data)
	if l.spec.Wrong {
		slices.Reverse(out)
	}
	return runtime.Response{ModelName: l.w.Model, ModelVersion: l.w.Version, ID: req.ID,
		Outputs: []runtime.Tensor{{Name: "logits", Shape: []int64{1, int64(len(out))}, Data: out}}}, nil
}

// begin counts the request and crashes the workload when its time has come.
func (r *Runtime) begin(id string) (*workload, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.loaded[cmp.Or(id, r.serving)]
	if l == nil || !l.ready && l.requests == 0 {
		return nil, fmt.Errorf("infer on %q: %w", id, runtime.ErrNotLoaded)
	}
	if l.ready && l.spec.CrashAfter > 0 && l.requests >= l.spec.CrashAfter {
		l.ready, l.reason = false, fmt.Sprintf("crashed after %d requests", l.requests)
	}
	if !l.ready {
		return nil, fmt.Errorf("infer on %s: %w: %s", l.w.ID, ErrCrashed, l.reason)
	}
	l.requests++
	return l, nil
}

// Requests returns how many requests a loaded workload has taken.
func (r *Runtime) Requests(id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.loaded[id]; l != nil {
		return l.requests
	}
	return 0
}
