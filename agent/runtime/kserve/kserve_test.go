package kserve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/skein-fleet/skein/agent/runtime"
)

// doubler answers twice its input, and its versions can be told apart.
type doubler struct{ err error }

func (d doubler) Infer(_ context.Context, id string, req runtime.Request) (runtime.Response, error) {
	if d.err != nil {
		return runtime.Response{}, d.err
	}
	out := runtime.Tensor{Name: "y", Shape: req.Inputs[0].Shape}
	for _, v := range req.Inputs[0].Data {
		out.Data = append(out.Data, 2*v)
	}
	version := map[string]string{"": "2", "w1": "1", "w2": "2"}[id]
	return runtime.Response{ModelName: "m", ModelVersion: version, ID: req.ID,
		Outputs: []runtime.Tensor{out, {Name: "z", Shape: []int64{1}, Data: []float32{7}}}}, nil
}

func options(err error) Options {
	io := []TensorInfo{{Name: "x", Datatype: DatatypeFP32, Shape: []int64{-1, 2}}}
	return Options{Inferer: doubler{err}, Name: "test", Version: "1", MaxBody: 4096, Models: func(context.Context) ([]Model, error) {
		return []Model{
			{Name: "m", Version: "1", ID: "w1", Ready: true, Platform: "onnx", Inputs: io},
			{Name: "m", Version: "2", ID: "w2", Ready: true, Serving: true, Platform: "onnx", Inputs: io},
			{Name: "cold", Version: "1", ID: "w3"},
		}, nil
	}}
}

func TestClientAndServer(t *testing.T) {
	s := httptest.NewServer(NewHandler(options(nil)))
	defer s.Close()
	c := &Client{URL: s.URL + "/", HTTP: s.Client()}
	ctx := t.Context()
	if err := errors.Join(c.Live(ctx), c.Ready(ctx), c.ModelReady(ctx, "m", ""), c.ModelReady(ctx, "m", "1")); err != nil {
		t.Fatal(err)
	}
	meta, err := c.Metadata(ctx, "m", "")
	if err != nil || !slices.Equal(meta.Versions, []string{"1", "2"}) || len(meta.Inputs) != 1 {
		t.Errorf("metadata: %+v, %v", meta, err)
	}
	for version, want := range map[string]string{"": "2", "1": "1", "2": "2"} {
		in := runtime.Tensor{Name: "x", Shape: []int64{2, 2}, Data: []float32{1, -0.1, 3e-38, 16777216}}
		got, err := c.Infer(ctx, "m", version, runtime.Request{ID: "q", Inputs: []runtime.Tensor{in}})
		if err != nil {
			t.Fatal(err)
		}
		if got.ModelVersion != want || got.ID != "q" || !slices.Equal(got.Outputs[0].Data, []float32{2, -0.2, 6e-38, 33554432}) {
			t.Errorf("version %q: got %+v", version, got)
		}
	}
	for path, want := range map[string]int{"nobody": 404, "cold": 404} {
		var se *StatusError
		if err := c.ModelReady(ctx, path, ""); !errors.As(err, &se) || se.Status != want || !errors.Is(err, ErrServer) {
			t.Errorf("ready of %s: got %v", path, err)
		}
	}
	if err := c.ModelReady(ctx, "cold", "1"); err == nil {
		t.Error("a cold model is ready")
	}
	nan := runtime.Request{Inputs: []runtime.Tensor{{Name: "x", Shape: []int64{1, 2}, Data: []float32{float32(math.NaN()), 0}}}}
	if _, err := c.Infer(ctx, "m", "", nan); !errors.Is(err, ErrBadTensor) {
		t.Errorf("NaN: got %v", err)
	}
}

func post(h http.Handler, path, body string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
	return w
}

func input(shape, data string) string {
	return fmt.Sprintf(`{"id":"q","inputs":[{"name":"x","datatype":"FP32","shape":%s,"data":%s}]}`, shape, data)
}

func TestInferRequests(t *testing.T) {
	h := NewHandler(options(nil))
	for name, c := range map[string]struct {
		body   string
		status int
		want   string
	}{
		"flat":           {input("[2,2]", "[1,2,3,4]"), 200, `"data":[2,4,6,8]`},
		"nested":         {input("[2,2]", " [[1,2],[3,4]]"), 200, `"data":[2,4,6,8]`},
		"no rows":        {input("[0,2]", "[]"), 200, `"data":[]`},
		"chosen output":  {strings.TrimSuffix(input("[1,2]", "[1,2]"), "}") + `,"outputs":[{"name":"z"}]}`, 200, `"outputs":[{"name":"z","shape":[1],"datatype":"FP32","data":[7]}]`},
		"unknown output": {strings.TrimSuffix(input("[1,2]", "[1,2]"), "}") + `,"outputs":[{"name":"q"}]}`, 400, "no output"},
		"too deep":       {input("[2,2]", "[[[1,2,3,4]]]"), 400, "deeper"},
		"ragged":         {input("[2,2]", "[[1,2],[3]]"), 400, "needs 4 values"},
		"mixed":          {input("[2,2]", "[[1,2],3,4]"), 400, "list of numbers"},
		"short":          {input("[2,2]", "[1,2,3]"), 400, "needs 4 values"},
		"null":           {input("[1,2]", "[1,null]"), 400, "null"},
		"text":           {input("[1,2]", `["1","2"]`), 400, "data"},
		"beyond float32": {input("[1,2]", "[1e39,1]"), 400, "data"},
		"wrong shape":    {input("[1,3]", "[1,2,3]"), 400, "the model takes [-1 2]"},
		"negative":       {input("[-1,2]", "[1,2]"), 400, "shape"},
		"huge shape":     {input("[4000000000,2]", "[1,2]"), 400, "shape"},
		"other datatype": {strings.Replace(input("[1,2]", "[1,2]"), "FP32", "INT8", 1), 400, "only FP32"},
		"other name":     {strings.Replace(input("[1,2]", "[1,2]"), `"x"`, `"w"`, 1), 400, "lacks the input"},
		"no inputs":      {`{"inputs":[]}`, 400, "no inputs"},
		"not JSON":       {"{", 400, "no inference request"},
		"too large":      {input("[1,2]", strings.Repeat(" ", 5000)+"[1,2]"), 413, "larger than 4096"},
	} {
		w := post(h, "/v2/models/m/infer", c.body)
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s: got %d %s", name, w.Code, w.Body)
		}
		if w.Code != 200 {
			var e errorJSON
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Error == "" {
				t.Errorf("%s: an error without the protocol's form: %s", name, w.Body)
			}
		}
	}
}

func TestStatusOfErrors(t *testing.T) {
	for err, want := range map[error]int{
		runtime.ErrNotLoaded: 503, runtime.ErrBadRequest: 400, context.DeadlineExceeded: 503, errors.New("boom"): 500,
	} {
		if w := post(NewHandler(options(fmt.Errorf("infer: %w", err))), "/v2/models/m/infer", input("[1,2]", "[1,2]")); w.Code != want {
			t.Errorf("%v: got %d, want %d", err, w.Code, want)
		}
	}
	h := NewHandler(options(nil))
	for path, want := range map[string]int{"/v2": 200, "/v2/": 200, "/v2/health/live": 200, "/v2/health/ready": 200,
		"/v2/models/m/versions/9": 404, "/v2/models/cold": 404, "/v2/models/cold/versions/1": 200,
		"/v2/models/cold/versions/1/ready": 400, "/other": 404, "/v2/models/m/infer": 404} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want || !json.Valid(w.Body.Bytes()) {
			t.Errorf("GET %s: got %d %s, want %d", path, w.Code, w.Body, want)
		}
	}
}

func FuzzInfer(f *testing.F) {
	f.Add([]byte(input("[2,2]", "[[1,2],[3,4]]")))
	f.Add([]byte(input("[0,2]", "[]")))
	f.Add([]byte(`{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[null]}]}`))
	h := NewHandler(options(nil))
	f.Fuzz(func(t *testing.T, body []byte) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v2/models/m/infer", bytes.NewReader(body)))
		if !json.Valid(w.Body.Bytes()) {
			t.Fatalf("answer %d is not JSON: %q", w.Code, w.Body)
		}
		switch w.Code {
		case 200, 400, 413:
		case 500: // twice a float32 may be infinite
			if !strings.Contains(w.Body.String(), "Inf") {
				t.Fatalf("answer %s", w.Body)
			}
		default:
			t.Fatalf("status %d", w.Code)
		}
	})
}
