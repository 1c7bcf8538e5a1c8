package series

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"

	"github.com/skein-fleet/skein/telemetry"
)

// promVersion is the Prometheus release whose PromQL this is; clients choose
// features by it.
const promVersion = "3.16.0"

// errorType is the errorType field of an answer, with its status code.
type errorType struct {
	name string
	code int
}

// The error types of the Prometheus API.
var (
	badData   = errorType{"bad_data", http.StatusBadRequest}
	execution = errorType{"execution", http.StatusUnprocessableEntity}
	canceled  = errorType{"canceled", 499}
	timedOut  = errorType{"timeout", http.StatusServiceUnavailable}
	internal  = errorType{"internal", http.StatusInternalServerError}
	notFound  = errorType{"not_found", http.StatusNotFound}
)

type apiError struct {
	errorType
	err error
}

func (e *apiError) Error() string { return e.err.Error() }
func (e *apiError) Unwrap() error { return e.err }

func badParam(name string, err error) error {
	return &apiError{badData, fmt.Errorf("invalid parameter %q: %w", name, err)}
}

// answer is what an endpoint gives on success.
type answer struct {
	data     any
	warnings annotations.Annotations
	query    string
}

// envelope is the JSON of every answer.
type envelope struct {
	Status    string   `json:"status"`
	Data      any      `json:"data,omitempty"`
	ErrorType string   `json:"errorType,omitempty"`
	Error     string   `json:"error,omitempty"`
	Warnings  []string `json:"warnings,omitempty"`
	Infos     []string `json:"infos,omitempty"`
}

// Handler serves the Prometheus HTTP API under /api/v1/: query, query_range,
// series, labels, label values, metadata and buildinfo. It authorises nobody;
// wrap it.
func (s *Store) Handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, post bool, f func(*http.Request) (answer, error)) {
		mux.HandleFunc("GET /api/v1"+path, s.endpoint(f))
		if post {
			mux.HandleFunc("POST /api/v1"+path, s.endpoint(f))
		}
	}
	handle("/query", true, s.query)
	handle("/query_range", true, s.queryRange)
	handle("/series", true, s.series)
	handle("/labels", true, s.labelNames)
	handle("/label/{name}/values", false, s.labelValues)
	handle("/metadata", false, s.metadata)
	handle("/status/buildinfo", false, s.buildInfo)
	mux.HandleFunc("/api/v1/", s.endpoint(func(r *http.Request) (answer, error) {
		return answer{}, &apiError{notFound, fmt.Errorf("%s %s is not part of this API: it has query, query_range, series, labels, label/NAME/values, metadata and status/buildinfo", r.Method, r.URL.Path)}
	}))
	return mux
}

// maxForm bounds the body of a POST.
const maxForm = 1 << 20

func (s *Store) endpoint(f func(*http.Request) (answer, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		env, code := envelope{Status: "success"}, http.StatusOK
		var a answer
		err := r.ParseForm()
		if err != nil {
			err = &apiError{badData, fmt.Errorf("error parsing form values: %w", err)}
		} else {
			a, err = f(r)
		}
		if err != nil {
			ae := typed(err)
			env, code = envelope{Status: "error", ErrorType: ae.name, Error: ae.Error()}, ae.code
		} else {
			env.Data = a.data
			env.Warnings, env.Infos = a.warnings.AsStrings(a.query, 10, 10)
		}
		body, err := json.Marshal(env)
		if err != nil {
			s.opts.Logger.Error("encode query answer", "err", err)
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = w.Write(body) // the client may be gone; nothing to be done
	}
}

// typed gives an error the type that Prometheus would.
func typed(err error) *apiError {
	if ae, ok := errors.AsType[*apiError](err); ok {
		return ae
	}
	if _, ok := errors.AsType[promql.ErrQueryCanceled](err); ok {
		return &apiError{canceled, err}
	}
	if _, ok := errors.AsType[promql.ErrQueryTimeout](err); ok {
		return &apiError{timedOut, err}
	}
	if _, ok := errors.AsType[promql.ErrStorage](err); ok {
		return &apiError{internal, err}
	}
	if errors.Is(err, context.Canceled) {
		return &apiError{canceled, err}
	}
	return &apiError{execution, err}
}

func (s *Store) query(r *http.Request) (answer, error) {
	limit, err := limitParam(r)
	if err != nil {
		return answer{}, err
	}
	at, err := timeParam(r, "time", s.opts.Now())
	if err != nil {
		return answer{}, err
	}
	return s.exec(r, limit, func(ctx context.Context, text string) (promql.Query, error) {
		return s.engine.NewInstantQuery(ctx, s.db, nil, text, at)
	})
}

func (s *Store) queryRange(r *http.Request) (answer, error) {
	limit, err := limitParam(r)
	if err != nil {
		return answer{}, err
	}
	start, err := parseTime(r.FormValue("start"))
	if err != nil {
		return answer{}, badParam("start", err)
	}
	end, err := parseTime(r.FormValue("end"))
	if err != nil {
		return answer{}, badParam("end", err)
	}
	if end.Before(start) {
		return answer{}, badParam("end", errors.New("end timestamp must not be before start time"))
	}
	step, err := parseDuration(r.FormValue("step"))
	if err != nil {
		return answer{}, badParam("step", err)
	}
	if step <= 0 {
		return answer{}, badParam("step", errors.New("zero or negative query resolution step widths are not accepted. Try a positive integer"))
	}
	if end.Sub(start)/step > 11000 {
		return answer{}, &apiError{badData, errors.New("exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)")}
	}
	return s.exec(r, limit, func(ctx context.Context, text string) (promql.Query, error) {
		return s.engine.NewRangeQuery(ctx, s.db, nil, text, start, end, step)
	})
}

// exec runs a query when its turn comes.
func (s *Store) exec(r *http.Request, limit int, build func(context.Context, string) (promql.Query, error)) (answer, error) {
	ctx, timeout := r.Context(), s.opts.Timeout
	if text := r.FormValue("timeout"); text != "" {
		d, err := parseDuration(text)
		if err != nil {
			return answer{}, badParam("timeout", err)
		}
		timeout = min(timeout, d)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return answer{}, &apiError{timedOut, errors.New("query timed out in query queue: others are running, try again")}
	}
	text := r.FormValue("query")
	q, err := build(ctx, text)
	if err != nil {
		return answer{}, badParam("query", err)
	}
	defer q.Close()
	res := q.Exec(ctx)
	if res.Err != nil {
		return answer{}, res.Err
	}
	a := answer{warnings: res.Warnings, query: text}
	value := truncate(res.Value, limit, &a)
	// The values point into buffers of the query, so encode before it closes.
	raw, err := json.Marshal(value)
	if err != nil {
		return answer{}, &apiError{internal, err}
	}
	a.data = struct {
		ResultType parser.ValueType `json:"resultType"`
		Result     json.RawMessage  `json:"result"`
	}{value.Type(), raw}
	return a, nil
}

func truncate(v parser.Value, limit int, a *answer) parser.Value {
	switch x := v.(type) {
	case promql.Vector:
		if limit > 0 && len(x) > limit {
			a.truncated()
			return x[:limit]
		}
		if x == nil {
			return promql.Vector{}
		}
	case promql.Matrix:
		if limit > 0 && len(x) > limit {
			a.truncated()
			return x[:limit]
		}
		if x == nil {
			return promql.Matrix{}
		}
	}
	return v
}

func (a *answer) truncated() {
	a.warnings = a.warnings.Add(errors.New("results truncated due to limit"))
}

func (s *Store) series(r *http.Request) (answer, error) {
	if len(r.Form["match[]"]) == 0 {
		return answer{}, &apiError{badData, errors.New("no match[] parameter provided")}
	}
	q, sets, limit, err := s.open(r)
	if err != nil {
		return answer{}, err
	}
	defer q.Close()
	ctx := r.Context()
	hints := &storage.SelectHints{Func: "series", Start: q.from, End: q.to}
	found := make([]storage.SeriesSet, 0, len(sets))
	for _, ms := range sets {
		found = append(found, q.Select(ctx, true, hints, ms...))
	}
	set := storage.NewMergeSeriesSet(found, 0, storage.ChainedSeriesMerge)
	a, out := answer{}, []labels.Labels{}
	for set.Next() {
		if err := ctx.Err(); err != nil {
			return answer{}, err
		}
		if limit > 0 && len(out) == limit {
			a.truncated()
			break
		}
		out = append(out, set.At().Labels())
	}
	if err := set.Err(); err != nil {
		return answer{}, err
	}
	a.data = out
	return a, nil
}

func (s *Store) labelNames(r *http.Request) (answer, error) {
	return s.labelQuery(r, func(q storage.Querier, ms []*labels.Matcher) ([]string, annotations.Annotations, error) {
		return q.LabelNames(r.Context(), &storage.LabelHints{}, ms...)
	})
}

func (s *Store) labelValues(r *http.Request) (answer, error) {
	name := r.PathValue("name")
	if name == "" {
		return answer{}, &apiError{badData, fmt.Errorf("invalid label name: %q", name)}
	}
	return s.labelQuery(r, func(q storage.Querier, ms []*labels.Matcher) ([]string, annotations.Annotations, error) {
		return q.LabelValues(r.Context(), name, &storage.LabelHints{}, ms...)
	})
}

// labelQuery joins what each set of matchers gives.
func (s *Store) labelQuery(r *http.Request, f func(storage.Querier, []*labels.Matcher) ([]string, annotations.Annotations, error)) (answer, error) {
	q, sets, limit, err := s.open(r)
	if err != nil {
		return answer{}, err
	}
	defer q.Close()
	if len(sets) == 0 {
		sets = [][]*labels.Matcher{nil}
	}
	a, out := answer{}, []string{}
	for _, ms := range sets {
		vals, warnings, err := f(q, ms)
		if err != nil {
			return answer{}, &apiError{execution, err}
		}
		a.warnings = a.warnings.Merge(warnings)
		out = append(out, vals...)
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if limit > 0 && len(out) > limit {
		out = out[:limit]
		a.truncated()
	}
	a.data = out
	return a, nil
}

// interval is a querier with the times it was opened for.
type interval struct {
	storage.Querier
	from, to int64
}

// open reads match[], start, end and limit, and opens a querier over them.
func (s *Store) open(r *http.Request) (q interval, sets [][]*labels.Matcher, limit int, err error) {
	if limit, err = limitParam(r); err != nil {
		return q, nil, 0, err
	}
	start, err := timeParam(r, "start", minTime)
	if err != nil {
		return q, nil, 0, err
	}
	end, err := timeParam(r, "end", maxTime)
	if err != nil {
		return q, nil, 0, err
	}
	if sets, err = s.matchers(r.Form["match[]"]); err != nil {
		return q, nil, 0, badParam("match[]", err)
	}
	q.from, q.to = start.UnixMilli(), end.UnixMilli()
	if q.Querier, err = s.db.Querier(q.from, q.to); err != nil {
		return q, nil, 0, &apiError{execution, err}
	}
	return q, sets, limit, nil
}

func (s *Store) matchers(texts []string) ([][]*labels.Matcher, error) {
	sets, err := s.parser.ParseMetricSelectors(texts)
	if err != nil {
		return nil, err
	}
	for _, ms := range sets {
		if !slices.ContainsFunc(ms, func(m *labels.Matcher) bool { return !m.Matches("") }) {
			return nil, errors.New("match[] must contain at least one non-empty matcher")
		}
	}
	return sets, nil
}

// metadata answers from the vocabulary: it is the same for every device.
func (s *Store) metadata(r *http.Request) (answer, error) {
	limit, err := limitParam(r)
	if err != nil {
		return answer{}, err
	}
	type meta struct {
		Type string `json:"type"`
		Help string `json:"help"`
		Unit string `json:"unit"`
	}
	out := map[string][]meta{}
	for _, m := range telemetry.Metrics {
		if want := r.FormValue("metric"); want != "" && want != m.Name || limit > 0 && len(out) == limit {
			continue
		}
		out[m.Name] = []meta{{string(m.Kind), m.Help, m.Unit}}
	}
	return answer{data: out}, nil
}

func (s *Store) buildInfo(*http.Request) (answer, error) {
	return answer{data: map[string]string{
		"version": promVersion, "revision": "skeind", "branch": "", "buildUser": "", "buildDate": "",
		"goVersion": strings.TrimPrefix(runtime.Version(), "go"),
	}}, nil
}
