package kserve

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/skein-fleet/skein/agent/runtime"
)

// Options configure a handler.
type Options struct {
	Inferer runtime.Inferer
	// Models lists what is loaded. Of several versions of one name at most
	// one is Serving.
	Models func(ctx context.Context) ([]Model, error)
	// MaxBody bounds a request in bytes, 16 MiB when 0.
	MaxBody int64
	// Name and Version are told to clients.
	Name, Version string
}

// NewHandler returns the protocol's HTTP endpoints, all below /v2.
func NewHandler(o Options) http.Handler {
	o.MaxBody = cmp.Or(o.MaxBody, 16<<20)
	o.Name = cmp.Or(o.Name, "skein")
	h := &handler{o: o}
	m := http.NewServeMux()
	m.HandleFunc("GET /v2", h.server)
	m.HandleFunc("GET /v2/{$}", h.server)
	m.HandleFunc("GET /v2/health/live", h.live)
	m.HandleFunc("GET /v2/health/ready", h.ready)
	for _, model := range []string{"/v2/models/{model}", "/v2/models/{model}/versions/{version}"} {
		m.HandleFunc("GET "+model, h.metadata)
		m.HandleFunc("GET "+model+"/ready", h.modelReady)
		m.HandleFunc("POST "+model+"/infer", h.infer)
	}
	m.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, &statusError{http.StatusNotFound, fmt.Errorf("no endpoint %s %s", r.Method, r.URL.Path)})
	})
	return m
}

type handler struct{ o Options }

// statusError is an error with the HTTP status that it is told with.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// statusOf maps errors to HTTP.
func statusOf(err error) int {
	var s *statusError
	switch {
	case errors.As(err, &s):
		return s.status
	case errors.Is(err, runtime.ErrNotLoaded), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return http.StatusServiceUnavailable
	case errors.Is(err, ErrBadTensor), errors.Is(err, runtime.ErrBadRequest):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

func fail(w http.ResponseWriter, err error) { reply(w, statusOf(err), errorJSON{err.Error()}) }

func reply(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be written as JSON"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(b) // the client may be gone
}

func (h *handler) server(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, ServerInfo{Name: h.o.Name, Version: h.o.Version, Extensions: []string{}})
}

func (h *handler) live(w http.ResponseWriter, _ *http.Request) {
	reply(w, http.StatusOK, map[string]bool{"live": true})
}

// ready is true when something serves and what serves is ready.
func (h *handler) ready(w http.ResponseWriter, r *http.Request) {
	models, err := h.o.Models(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	yes := slices.ContainsFunc(models, func(m Model) bool { return m.Serving && m.Ready })
	reply(w, readyStatus(yes), map[string]bool{"ready": yes})
}

// readyStatus: the protocol wants 200 for true and a client error for false.
func readyStatus(yes bool) int {
	if yes {
		return http.StatusOK
	}
	return http.StatusBadRequest
}

// find returns the model that a request names and all versions of its name.
func (h *handler) find(r *http.Request) (Model, []string, error) {
	name, version := r.PathValue("model"), r.PathValue("version")
	models, err := h.o.Models(r.Context())
	if err != nil {
		return Model{}, nil, err
	}
	var versions []string
	at := -1
	for i, m := range models {
		if m.Name != name {
			continue
		}
		versions = append(versions, m.Version)
		if version == "" && m.Serving || version != "" && m.Version == version {
			at = i
		}
	}
	switch {
	case at >= 0:
		return models[at], versions, nil
	case len(versions) == 0:
		return Model{}, nil, &statusError{http.StatusNotFound, fmt.Errorf("no model %q", name)}
	case version == "":
		return Model{}, nil, &statusError{http.StatusNotFound, fmt.Errorf("no version of model %q serves; loaded are %q", name, versions)}
	}
	return Model{}, nil, &statusError{http.StatusNotFound, fmt.Errorf("no version %q of model %q; loaded are %q", version, name, versions)}
}

func (h *handler) metadata(w http.ResponseWriter, r *http.Request) {
	m, versions, err := h.find(r)
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, http.StatusOK, Metadata{Name: m.Name, Versions: versions, Platform: m.Platform, Inputs: nonNil(m.Inputs), Outputs: nonNil(m.Outputs)})
}

func nonNil(list []TensorInfo) []TensorInfo { return append([]TensorInfo{}, list...) }

func (h *handler) modelReady(w http.ResponseWriter, r *http.Request) {
	m, _, err := h.find(r)
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, readyStatus(m.Ready), map[string]any{"name": m.Name, "ready": m.Ready})
}

func (h *handler) infer(w http.ResponseWriter, r *http.Request) {
	m, _, err := h.find(r)
	if err != nil {
		fail(w, err)
		return
	}
	in, err := h.read(w, r, m)
	if err != nil {
		fail(w, err)
		return
	}
	req := runtime.Request{ID: in.ID}
	for i := range in.Inputs {
		t, err := in.Inputs[i].tensor()
		if err != nil {
			fail(w, err)
			return
		}
		req.Inputs = append(req.Inputs, t)
	}
	// Without a version the request goes to whatever serves when it starts, so
	// that a switch meanwhile loses nothing.
	id := m.ID
	if r.PathValue("version") == "" {
		id = ""
	}
	resp, err := h.o.Inferer.Infer(r.Context(), id, req)
	if err != nil {
		fail(w, err)
		return
	}
	out, err := answer(in, resp)
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, http.StatusOK, out)
}

// read decodes the body and holds it to what is known of the model's inputs.
func (h *handler) read(w http.ResponseWriter, r *http.Request, m Model) (*inferRequest, error) {
	if r.Header.Get("Inference-Header-Content-Length") != "" {
		return nil, &statusError{http.StatusBadRequest, errors.New("binary tensors are not served: send JSON")}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.o.MaxBody))
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return nil, &statusError{http.StatusRequestEntityTooLarge, fmt.Errorf("the request is larger than %d bytes", tooLarge.Limit)}
	}
	if err != nil {
		return nil, &statusError{http.StatusBadRequest, fmt.Errorf("read request: %w", err)}
	}
	var in inferRequest
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, &statusError{http.StatusBadRequest, fmt.Errorf("the request is no inference request: %w", err)}
	}
	if len(in.Inputs) == 0 {
		return nil, &statusError{http.StatusBadRequest, errors.New("the request has no inputs")}
	}
	if len(m.Inputs) > 0 {
		if err := checkInputs(in.Inputs, m.Inputs); err != nil {
			return nil, &statusError{http.StatusBadRequest, err}
		}
	}
	return &in, nil
}

func checkInputs(got []tensorJSON, want []TensorInfo) error {
	if len(got) != len(want) {
		return fmt.Errorf("the request has %d inputs, the model takes %d", len(got), len(want))
	}
	for _, w := range want {
		at := slices.IndexFunc(got, func(t tensorJSON) bool { return t.Name == w.Name })
		if at < 0 {
			return fmt.Errorf("the request lacks the input %q", w.Name)
		}
		if !slices.EqualFunc(got[at].Shape, w.Shape, func(g, w int64) bool { return w < 0 || g == w }) {
			return fmt.Errorf("the input %q has shape %v, the model takes %v", w.Name, got[at].Shape, w.Shape)
		}
	}
	return nil
}

// answer keeps the outputs that were asked for, in that order, or all.
func answer(in *inferRequest, resp runtime.Response) (*inferResponse, error) {
	out := &inferResponse{ModelName: resp.ModelName, ModelVersion: resp.ModelVersion, ID: resp.ID, Outputs: []tensorJSON{}}
	chosen := resp.Outputs
	if len(in.Outputs) > 0 {
		chosen = nil
		for _, o := range in.Outputs {
			at := slices.IndexFunc(resp.Outputs, func(t runtime.Tensor) bool { return t.Name == o.Name })
			if at < 0 {
				return nil, &statusError{http.StatusBadRequest, fmt.Errorf("the model has no output %q", o.Name)}
			}
			chosen = append(chosen, resp.Outputs[at])
		}
	}
	for _, t := range chosen {
		j, err := toJSON(t)
		if err != nil {
			return nil, &statusError{http.StatusInternalServerError, fmt.Errorf("the model answered: %w", err)}
		}
		out.Outputs = append(out.Outputs, j)
	}
	return out, nil
}
