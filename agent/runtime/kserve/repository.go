package kserve

import (
	"context"
	"net/http"
	"net/url"
)

// IndexEntry is one model of a server's repository. State is READY,
// UNAVAILABLE, LOADING, UNLOADING or empty.
type IndexEntry struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	State   string `json:"state"`
	Reason  string `json:"reason"`
}

// Index lists the models of the repository, loaded or not.
func (c *Client) Index(ctx context.Context) ([]IndexEntry, error) {
	var out []IndexEntry
	err := c.call(ctx, http.MethodPost, "/v2/repository/index", struct{}{}, &out)
	return out, err
}

// LoadModel asks the server to load a model of its repository.
func (c *Client) LoadModel(ctx context.Context, model string) error {
	return c.call(ctx, http.MethodPost, "/v2/repository/models/"+url.PathEscape(model)+"/load", struct{}{}, nil)
}

// UnloadModel asks it to unload one.
func (c *Client) UnloadModel(ctx context.Context, model string) error {
	return c.call(ctx, http.MethodPost, "/v2/repository/models/"+url.PathEscape(model)+"/unload", struct{}{}, nil)
}

// Statistics is what a server counts of one model, since it was loaded.
type Statistics struct {
	Name       string         `json:"name"`
	Version    string         `json:"version"`
	Inferences uint64         `json:"inference_count"`
	Executions uint64         `json:"execution_count"`
	Times      InferenceTimes `json:"inference_stats"`
}

// InferenceTimes are sums over requests.
type InferenceTimes struct {
	Success Times `json:"success"`
	Fail    Times `json:"fail"`
	Queue   Times `json:"queue"`
	Compute Times `json:"compute_infer"`
}

// Times is a number of requests and their time.
type Times struct {
	Count uint64 `json:"count"`
	NS    uint64 `json:"ns"`
}

// Statistics asks for the counters of one model.
func (c *Client) Statistics(ctx context.Context, model, version string) ([]Statistics, error) {
	var out struct {
		Stats []Statistics `json:"model_stats"`
	}
	err := c.call(ctx, http.MethodGet, modelPath(model, version)+"/stats", nil, &out)
	return out.Stats, err
}
