// Package triton drives NVIDIA Triton: it writes the model repository of a
// release, starts the server in explicit model-control mode, and loads, unloads
// and measures through the v2 protocol. It owns the repository's layout, the
// generated configuration and the key to model control.
//
// Policy: each workload generation has a Triton of its own, with ports of its
// own. So a model that crashes or leaks takes no other one along, memory of a
// load over a load is never lost (the process ends), and two versions never
// share a server whose repository changes under them. The price is one CUDA
// context for each of the two while an update goes on.
//
// Invariants: the server listens on loopback; repository, shared-memory, trace
// and log control answer only to a random key that is made for each generation
// and kept in a file that the agent's user alone reads; a load counts when the
// model is ready, not when the call says so. It implements serving.Dialect;
// the agent's command imports it.
package triton

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
)

// Dialect implements serving.Dialect.
type Dialect struct {
	// ExitTimeout is how long a server that is asked to end waits for requests
	// and open connections, 2 s when 0: it is asked when it has no request.
	ExitTimeout time.Duration
}

var _ serving.Dialect = Dialect{}

const (
	keyFile   = "control-key"
	keyHeader = "skein-control"
	// grpcPrefix is what Triton puts before the header's name in gRPC.
	grpcPrefix = "triton-grpc-protocol-"
	// restricted is what only the agent may do.
	restricted = "model-repository,shared-memory,trace,logging"
)

// Prepare writes the repository and says how Triton is started. What stands
// here comes after the release's own arguments, and wins.
func (d Dialect) Prepare(_ context.Context, g *serving.Generation) (serving.Start, error) {
	repository := filepath.Join(g.Folder, "repository")
	if err := os.Mkdir(repository, 0o755); err != nil {
		return serving.Start{}, fmt.Errorf("make the model repository: %w", err)
	}
	if err := writeRepository(repository, g.Workload); err != nil {
		return serving.Start{}, err
	}
	key := rand.Text()
	if err := os.WriteFile(filepath.Join(g.Folder, keyFile), []byte(key), 0o600); err != nil {
		return serving.Start{}, fmt.Errorf("keep the key to model control: %w", err)
	}
	exit := d.ExitTimeout
	if exit <= 0 {
		exit = 2 * time.Second
	}
	guard := fmt.Sprintf("%s:%s=%s", restricted, keyHeader, key)
	args := []string{
		"--model-repository=" + repository, "--model-control-mode=explicit", "--exit-on-error=true",
		fmt.Sprintf("--exit-timeout-secs=%d", max(1, int(exit.Seconds()))),
		"--http-restricted-api=" + guard, "--grpc-restricted-protocol=" + guard,
	}
	for _, l := range []struct{ flag, addr string }{{"http", g.Ports.HTTP}, {"grpc", g.Ports.GRPC}, {"metrics", g.Ports.Metrics}} {
		host, port, err := net.SplitHostPort(l.addr)
		if err != nil {
			return serving.Start{}, fmt.Errorf("%s port: %w", l.flag, err)
		}
		args = append(args, "--allow-"+l.flag+"=true", "--"+l.flag+"-address="+host, "--"+l.flag+"-port="+port)
	}
	if len(g.Command()) == 0 {
		args = append([]string{"tritonserver"}, args...) // as in NVIDIA's images
	}
	g.HTTP = true
	return serving.Start{Args: args, Dirs: []string{repository}, Repository: repository, GRPC: true, Metrics: true}, nil
}

// control is the key's holder.
func control(g *serving.Generation) (*Control, error) {
	key, err := os.ReadFile(filepath.Join(g.Folder, keyFile))
	if err != nil {
		return nil, fmt.Errorf("read the key to model control: %w", err)
	}
	return NewControl(g, string(key)), nil
}

// Await loads the model once the server lives and returns when it is ready.
func (Dialect) Await(ctx context.Context, g *serving.Generation) (serving.Served, error) {
	c, err := control(g)
	if err != nil {
		return serving.Served{}, err
	}
	w := g.Workload
	live := kserve.Client{URL: "http://" + g.Ports.HTTP, HTTP: g.Client}
	if _, err := serving.Poll(ctx, g.Every, func(ctx context.Context) (serving.Served, error) {
		return serving.Served{}, live.Live(ctx)
	}); err != nil {
		return serving.Served{}, err
	}
	version := versionOf(w.Version)
	if g.Call.ModelReady(ctx, w.Model, version) != nil { // else the agent before this one loaded it
		if err := c.Load(ctx, w.Model); err != nil {
			return serving.Served{}, refused(w.Model, err)
		}
	}
	for looks := 0; ; looks++ {
		err := g.Call.ModelReady(ctx, w.Model, version)
		if err == nil {
			return serving.Describe(ctx, g, w.Model, version), nil
		}
		if ctx.Err() != nil {
			return serving.Served{}, fmt.Errorf("%w (last answer: %w)", ctx.Err(), err)
		}
		if state, reason := c.state(ctx, w.Model, version); state == "UNAVAILABLE" || looks >= patience {
			return serving.Served{}, fmt.Errorf("%w: Triton says that it loaded model %s, and it is not ready (%s): %s", runtime.ErrIncompatible, w.Model, strings.ToLower(state), reason)
		}
		timer := time.NewTimer(g.Every)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// patience is how many looks a model has to become ready after its load was
// said to be done.
const patience = 100

// memoryWords are in what Triton and its backends say when memory runs out.
var memoryWords = []string{"out of memory", "bad_alloc", "failed to allocate", "nvmap", "cannot allocate memory", "outofmemory"}

// refused grades the error of a load.
func refused(model string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	st, ok := errors.AsType[*kserve.StatusError](err)
	if !ok {
		return fmt.Errorf("load %s: %w", model, err)
	}
	text := strings.ToLower(st.Message)
	for _, word := range memoryWords {
		if strings.Contains(text, word) {
			return fmt.Errorf("%w: Triton cannot load model %s: %s", runtime.ErrNoCapacity, model, st.Message)
		}
	}
	return fmt.Errorf("%w: Triton cannot load model %s: %s", runtime.ErrIncompatible, model, st.Message)
}

// Leave unloads the model, so that what it holds is given back in order.
func (Dialect) Leave(ctx context.Context, g *serving.Generation) error {
	c, err := control(g)
	if err != nil {
		return err
	}
	return c.Unload(ctx, g.Workload.Model)
}
