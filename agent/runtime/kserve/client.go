package kserve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/skein-fleet/skein/agent/runtime"
)

// Client calls a server of the protocol. The zero HTTP client is
// http.DefaultClient. It is safe for concurrent use.
type Client struct {
	URL  string // "http://127.0.0.1:8000"
	HTTP *http.Client
}

// ErrServer is wrapped by every answer that is an error; StatusError holds more.
var ErrServer = errors.New("inference server refused")

// StatusError is an answer other than 200.
type StatusError struct {
	Status  int
	Message string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%v: %d %s: %s", ErrServer, e.Status, http.StatusText(e.Status), e.Message)
}

// Unwrap returns ErrServer.
func (e *StatusError) Unwrap() error { return ErrServer }

// maxAnswer bounds what a server may make the client hold.
const maxAnswer = 64 << 20

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.URL, "/")+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	h := c.HTTP
	if h == nil {
		h = http.DefaultClient
	}
	resp, err := h.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if len(b) > maxAnswer {
		return fmt.Errorf("read answer: more than %d bytes", maxAnswer)
	}
	if resp.StatusCode != http.StatusOK {
		var e errorJSON
		if json.Unmarshal(b, &e) != nil || e.Error == "" {
			e.Error = string(b[:min(len(b), 200)])
		}
		return &StatusError{Status: resp.StatusCode, Message: e.Error}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("decode answer: %w", err)
	}
	return nil
}

func modelPath(model, version string) string {
	p := "/v2/models/" + url.PathEscape(model)
	if version != "" {
		p += "/versions/" + url.PathEscape(version)
	}
	return p
}

// Live asks whether the server runs.
func (c *Client) Live(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, "/v2/health/live", nil, nil)
}

// Ready asks whether the server answers requests.
func (c *Client) Ready(ctx context.Context) error {
	return c.call(ctx, http.MethodGet, "/v2/health/ready", nil, nil)
}

// ModelReady asks for one model; an empty version means the one that serves.
func (c *Client) ModelReady(ctx context.Context, model, version string) error {
	return c.call(ctx, http.MethodGet, modelPath(model, version)+"/ready", nil, nil)
}

// Metadata returns what a model takes and gives.
func (c *Client) Metadata(ctx context.Context, model, version string) (Metadata, error) {
	var m Metadata
	err := c.call(ctx, http.MethodGet, modelPath(model, version), nil, &m)
	return m, err
}

// Infer runs one request; an empty version means the one that serves.
func (c *Client) Infer(ctx context.Context, model, version string, req runtime.Request) (runtime.Response, error) {
	in := inferRequest{ID: req.ID, Inputs: []tensorJSON{}}
	for _, t := range req.Inputs {
		j, err := toJSON(t)
		if err != nil {
			return runtime.Response{}, err
		}
		in.Inputs = append(in.Inputs, j)
	}
	var out inferResponse
	if err := c.call(ctx, http.MethodPost, modelPath(model, version)+"/infer", in, &out); err != nil {
		return runtime.Response{}, fmt.Errorf("infer on %s: %w", model, err)
	}
	resp := runtime.Response{ModelName: out.ModelName, ModelVersion: out.ModelVersion, ID: out.ID}
	for i := range out.Outputs {
		t, err := out.Outputs[i].values()
		if err != nil {
			return runtime.Response{}, fmt.Errorf("infer on %s: %w", model, err)
		}
		resp.Outputs = append(resp.Outputs, t)
	}
	return resp, nil
}
