package serving

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
)

// Caller asks a server; kserve.Client does over HTTP, kserve.GRPC over gRPC.
type Caller interface {
	Ready(ctx context.Context) error
	ModelReady(ctx context.Context, model, version string) error
	Metadata(ctx context.Context, model, version string) (kserve.Metadata, error)
	Infer(ctx context.Context, model, version string, req runtime.Request) (runtime.Response, error)
}

// Generation is one start of a server, as a dialect sees it.
type Generation struct {
	Name     string
	Workload runtime.Workload
	// Folder is the dialect's own, for this generation alone; nothing else is in it.
	Folder string
	Ports  Ports
	// Speaks are the protocols that the server was told to speak.
	HTTP, GRPC, Metrics bool
	Call                Caller
	Client              *http.Client  // HTTP/1.1
	H2C                 *http.Client  // HTTP/2 without TLS, for gRPC
	Every               time.Duration // between two looks at a starting server

	args []string
	env  map[string]string
}

// Command is what the release or the device starts the server with; it is empty
// for an image's own command.
func (g *Generation) Command() []string { return g.args }

// Start is what a dialect adds to the command of a server.
type Start struct {
	Args       []string // after those of the release
	Dirs       []string // that it reads besides the staged files
	Repository string   // for {repository}
	GRPC       bool     // it listens there, whatever its command says
	Metrics    bool
}

// Served is how a server that is ready knows the model.
type Served struct {
	Model, Version string
	Signature      runtime.Signature
}

// Dialect is how a kind of server is asked for its model.
type Dialect interface {
	// Prepare makes what the server reads before it starts.
	Prepare(ctx context.Context, g *Generation) (Start, error)
	// Await returns when the server answers for its model. An error is final.
	Await(ctx context.Context, g *Generation) (Served, error)
	// Leave takes the model out before the server is stopped.
	Leave(ctx context.Context, g *Generation) error
}

// V2 is any server of the KServe v2 protocol that has its one model from its
// start.
type V2 struct{}

// Prepare has nothing to do.
func (V2) Prepare(context.Context, *Generation) (Start, error) { return Start{}, nil }

// Leave has nothing to do.
func (V2) Leave(context.Context, *Generation) error { return nil }

// lookTime bounds one question to a server.
const lookTime = 5 * time.Second

// Await asks for the model under the release's name and version; a server that
// is ready as a whole may know it without a version.
func (V2) Await(ctx context.Context, g *Generation) (Served, error) {
	w := g.Workload
	return Poll(ctx, g.Every, func(ctx context.Context) (Served, error) {
		err := g.Call.ModelReady(ctx, w.Model, w.Version)
		if err == nil {
			return Describe(ctx, g, w.Model, w.Version), nil
		}
		_, answered := errors.AsType[*kserve.StatusError](err)
		if !answered || w.Version == "" || g.Call.Ready(ctx) != nil {
			return Served{}, err
		}
		if again := g.Call.ModelReady(ctx, w.Model, ""); again != nil {
			return Served{}, fmt.Errorf("the server is ready and its model %q is not: %w", w.Model, again)
		}
		return Describe(ctx, g, w.Model, ""), nil
	})
}

// Describe asks what a model that is ready takes; a server that does not say
// has an empty signature.
func Describe(ctx context.Context, g *Generation, model, version string) Served {
	s := Served{Model: model, Version: version}
	m, err := g.Call.Metadata(ctx, model, version)
	if err != nil {
		return s
	}
	info := func(list []kserve.TensorInfo) []runtime.TensorInfo {
		out := make([]runtime.TensorInfo, 0, len(list))
		for _, t := range list {
			out = append(out, runtime.TensorInfo(t))
		}
		return out
	}
	s.Signature = runtime.Signature{Inputs: info(m.Inputs), Outputs: info(m.Outputs)}
	return s
}

// Poll asks until look answers or ctx ends.
func Poll(ctx context.Context, every time.Duration, look func(context.Context) (Served, error)) (Served, error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last error
	for {
		select {
		case <-ctx.Done():
			return Served{}, fmt.Errorf("%w (last answer: %w)", ctx.Err(), cmp.Or(last, errors.New("none")))
		case <-tick.C:
		}
		one, cancel := context.WithTimeout(ctx, lookTime)
		s, err := look(one)
		cancel()
		if err == nil || errors.Is(err, runtime.ErrIncompatible) {
			return s, err
		}
		if ctx.Err() == nil {
			last = err
		}
	}
}

// Measurer is a Dialect whose servers count what they do. It fills the fields
// of m that the server knows.
type Measurer interface {
	Measure(ctx context.Context, g *Generation, s Served, m *runtime.Server) error
}
