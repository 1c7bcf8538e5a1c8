package triton

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/skein-fleet/skein/agent/internal/serving"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
	"github.com/skein-fleet/skein/proto/gen/inference"
)

// Control loads, unloads and measures models of one server. It speaks gRPC,
// and HTTP to a server that was built without.
type Control struct {
	grpc *kserve.GRPC
	http *kserve.Client
}

// NewControl returns the control of a generation's server, whose key it holds.
func NewControl(g *serving.Generation, key string) *Control {
	return &Control{
		grpc: kserve.NewGRPC(g.Ports.GRPC, g.H2C, map[string]string{grpcPrefix + keyHeader: key}),
		http: &kserve.Client{URL: "http://" + g.Ports.HTTP, HTTP: kserve.WithHeader(g.Client, map[string]string{keyHeader: key})},
	}
}

// either asks over gRPC, and over HTTP where nobody speaks that.
func either(ctx context.Context, overGRPC, overHTTP func(context.Context) error) error {
	err := kserve.Failed(overGRPC(ctx))
	if err == nil || ctx.Err() != nil {
		return err
	}
	st, answered := errors.AsType[*kserve.StatusError](err)
	if answered && st.Status != http.StatusNotImplemented {
		return err
	}
	return overHTTP(ctx)
}

// Load loads a model of the repository. It returns when Triton says that it is done.
func (c *Control) Load(ctx context.Context, model string) error {
	return either(ctx, func(ctx context.Context) error {
		_, err := c.grpc.Service().RepositoryModelLoad(ctx, &inference.RepositoryModelLoadRequest{ModelName: model})
		return err
	}, func(ctx context.Context) error { return c.http.LoadModel(ctx, model) })
}

// Unload unloads a model.
func (c *Control) Unload(ctx context.Context, model string) error {
	return either(ctx, func(ctx context.Context) error {
		_, err := c.grpc.Service().RepositoryModelUnload(ctx, &inference.RepositoryModelUnloadRequest{ModelName: model})
		return err
	}, func(ctx context.Context) error { return c.http.UnloadModel(ctx, model) })
}

// Index lists the models of the repository.
func (c *Control) Index(ctx context.Context) (list []kserve.IndexEntry, err error) {
	err = either(ctx, func(ctx context.Context) error {
		r, err := c.grpc.Service().RepositoryIndex(ctx, &inference.RepositoryIndexRequest{})
		for _, m := range r.GetModels() {
			list = append(list, kserve.IndexEntry{Name: m.GetName(), Version: m.GetVersion(), State: m.GetState(), Reason: m.GetReason()})
		}
		return err
	}, func(ctx context.Context) (err error) {
		list, err = c.http.Index(ctx)
		return err
	})
	return list, err
}

// state is what the index says of a model, with its reason.
func (c *Control) state(ctx context.Context, model, version string) (state, reason string) {
	list, err := c.Index(ctx)
	if err != nil {
		return "", err.Error()
	}
	for _, m := range list {
		if m.Name == model && (m.Version == version || m.Version == "") {
			return m.State, m.Reason
		}
	}
	return "UNKNOWN", fmt.Sprintf("the repository lists no version %s of it", version)
}
