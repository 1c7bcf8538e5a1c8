package virtual

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/sim/meter/engine"
	"github.com/skein-fleet/skein/sim/meter/onnx"
	"github.com/skein-fleet/skein/sim/plan"
)

// MetaCrashAfter is the metadata key by which a model file makes its server
// die: after so many requests it is gone, as a server with a leak or a bad
// kernel is.
const MetaCrashAfter = "skein.sim.crash-after"

// server is the device's inference server: the engine, and what a model does
// to the process that serves it.
type server struct {
	*engine.Engine

	mu   sync.Mutex // guards what follows
	left map[string]int
	died map[string]bool
}

// inference is what serves the models of a device.
type inference interface {
	runtime.Runtime
	serving(ctx context.Context) string
}

// real are model servers that run on this machine.
type real struct{ agent.Servers }

// newServer makes what serves during one start of the agent, and says how it is
// let go of.
func (d *Device) newServer() (inference, func() error, error) {
	if d.o.Servers == nil {
		return newServer(engine.New(engine.Options{Models: d.o.Models, Pace: d.board.pace, Plans: d.board.plans})), func() error { return nil }, nil
	}
	s, err := d.o.Servers()
	if err != nil {
		return nil, nil, err
	}
	return real{s}, s.Close, nil
}

// target is the board's, or with real servers that of this machine.
func (d *Device) target() ota.Target {
	if d.o.Servers == nil {
		return d.board.target()
	}
	return ota.Target{OS: "linux", Arch: goruntime.GOARCH, Attrs: map[string]string{}}
}

func newServer(e *engine.Engine) *server {
	return &server{Engine: e, left: map[string]int{}, died: map[string]bool{}}
}

// Load implements runtime.Runtime.
func (s *server) Load(ctx context.Context, w runtime.Workload) error {
	if err := s.Engine.Load(ctx, w); err != nil {
		return err
	}
	n, err := crashAfter(filepath.Join(w.Dir, w.ModelFile))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.died, w.ID)
	if n > 0 && s.left[w.ID] <= 0 {
		s.left[w.ID] = n
	}
	return nil
}

func crashAfter(path string) (int, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read model: %w", err)
	}
	m, err := onnx.Parse(plan.Model(raw))
	if err != nil {
		return 0, fmt.Errorf("read model: %w", err)
	}
	text := m.Meta(MetaCrashAfter)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("read model: %s %q is no number", MetaCrashAfter, text)
	}
	return n, nil
}

// serving returns the id of the workload that serves, empty for none.
func (s *server) serving(ctx context.Context) string { return serving(ctx, s.Engine) }

func (s real) serving(ctx context.Context) string { return serving(ctx, s.Servers) }

func serving(ctx context.Context, r runtime.Runtime) string {
	list, err := r.List(ctx)
	if err != nil {
		return ""
	}
	for _, w := range list {
		if w.Serving {
			return w.ID
		}
	}
	return ""
}

// Infer implements runtime.Runtime.
func (s *server) Infer(ctx context.Context, id string, req runtime.Request) (runtime.Response, error) {
	resp, err := s.Engine.Infer(ctx, id, req)
	if err != nil {
		return resp, err
	}
	if id == "" {
		id = s.serving(ctx)
	}
	s.mu.Lock()
	n, mortal := s.left[id]
	if mortal {
		s.left[id] = n - 1
	}
	dies := mortal && n <= 1
	if dies {
		s.died[id] = true
		delete(s.left, id)
	}
	s.mu.Unlock()
	if dies {
		return runtime.Response{}, errors.Join(fmt.Errorf("infer on %s: the server died", id), s.Engine.Unload(ctx, id))
	}
	return resp, nil
}

// Unload implements runtime.Runtime.
func (s *server) Unload(ctx context.Context, id string) error {
	s.mu.Lock()
	delete(s.died, id)
	delete(s.left, id)
	s.mu.Unlock()
	return s.Engine.Unload(ctx, id)
}

// List implements runtime.Runtime.
func (s *server) List(ctx context.Context) ([]runtime.Status, error) {
	list, err := s.Engine.List(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.died {
		list = append(list, runtime.Status{ID: id, Reason: "its process died: signal: segmentation fault"})
	}
	slices.SortFunc(list, func(a, b runtime.Status) int { return strings.Compare(a.ID, b.ID) })
	return list, nil
}
