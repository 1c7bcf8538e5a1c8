package series

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/ota/gate"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry"
	"github.com/skein-fleet/skein/telemetry/block"
)

var t0 = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func openStore(t *testing.T, dir string, now time.Time) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newStore(t *testing.T) *Store {
	t.Helper()
	s := openStore(t, t.TempDir(), t0)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func power(rail string, at time.Time, v float64) telemetry.Reading {
	return telemetry.Reading{Series: telemetry.NewSeries(telemetry.Power, "rail", rail), Time: at, Value: v}
}

func appendAll(t *testing.T, s *Store, src Source, rs ...telemetry.Reading) Appended {
	t.Helper()
	n, err := s.Append(t.Context(), src, rs)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var cam = Source{Device: "d1", Name: "cam-1", Target: "linux/arm64;sm=8.7", Site: "lab"}

func TestAppendCountsWhatItRefuses(t *testing.T) {
	s := newStore(t)
	n := appendAll(t, s, cam,
		power("VDD_IN", t0, 5), power("VDD_IN", t0, 5), power("VDD_IN", t0.Add(-26*time.Hour), 4),
		power("VDD_IN", t0.Add(-30*24*time.Hour), 4), power("VDD_IN", t0.Add(time.Hour), 9),
		power("VDD_IN", time.Unix(0, 0), 1), telemetry.Reading{Series: telemetry.Series{Name: "bad name"}, Time: t0})
	want := Appended{Stored: 3, Late: 2, Ahead: 1, Other: 1}
	if d := cmp.Diff(want, n); d != "" {
		t.Error(d)
	}
	if n.Refused() != 4 {
		t.Errorf("refused %d, want 4", n.Refused())
	}
}

func TestSeriesOfOneDeviceAreBounded(t *testing.T) {
	s := newStore(t)
	s.opts.MaxSeries = 3
	var rs []telemetry.Reading
	for i := range 5 {
		rs = append(rs, power(fmt.Sprint("R", i), t0, 1))
	}
	if n := appendAll(t, s, cam, rs...); n.Stored != 3 || n.Excess != 2 {
		t.Errorf("%+v, want 3 stored and 2 in excess", n)
	}
}

func TestDeviceCannotSpeakForAnother(t *testing.T) {
	s := newStore(t)
	lie := telemetry.Reading{Series: telemetry.NewSeries(telemetry.PowerTotal, "device", "d2", "site", "elsewhere"), Time: t0, Value: 1}
	appendAll(t, s, cam, lie)
	got := get(t, s, "/api/v1/series?match[]="+telemetry.PowerTotal, 200)
	want := `{"status":"success","data":[{"__name__":"skein_device_power_total_watts","device":"d1","name":"cam-1","site":"lab","target":"linux/arm64;sm=8.7"}]}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestLatestSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir, t0)
	appendAll(t, s, cam, power("A", t0.Add(-time.Minute), 1), power("A", t0, 2), power("B", t0, 3), power("C", t0.Add(-30*time.Minute), 7))
	// What comes late is stored, and is not the latest.
	appendAll(t, s, cam, power("A", t0.Add(-2*time.Hour), 9))
	want := []telemetry.Reading{power("A", t0, 2), power("B", t0, 3)}
	if d := cmp.Diff(want, s.Latest("d1")); d != "" {
		t.Error(d)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openStore(t, dir, t0)
	defer s.Close()
	if d := cmp.Diff(want, s.Latest("d1")); d != "" {
		t.Errorf("after restart: %s", d)
	}
	if rs := s.Latest("d2"); len(rs) != 0 {
		t.Errorf("an unknown device has readings: %v", rs)
	}
}

func TestStatsOfOneDevice(t *testing.T) {
	s := newStore(t)
	for i := range 100 {
		at := t0.Add(time.Duration(i-200) * time.Second)
		appendAll(t, s, cam, telemetry.Reading{Series: telemetry.NewSeries(telemetry.InferenceP50, "model", "m"), Time: at, Value: float64(i + 1)})
		appendAll(t, s, Source{Device: "other"}, telemetry.Reading{Series: telemetry.NewSeries(telemetry.InferenceP50, "model", "m"), Time: at, Value: 1e6})
	}
	from, to := t0.Add(-200*time.Second), t0.Add(-101*time.Second)
	for _, tc := range []struct {
		metric   string
		from, to time.Time
		want     gate.Stats
	}{
		{telemetry.InferenceP50, from, to, gate.Stats{N: 100, Median: 50.5, P99: 99}},
		{telemetry.InferenceP50 + `{model="m"}`, from, to, gate.Stats{N: 100, Median: 50.5, P99: 99}},
		{telemetry.InferenceP50 + `{model="n"}`, from, to, gate.Stats{}},
		{telemetry.InferenceP50, from, from.Add(2 * time.Second), gate.Stats{N: 3, Median: 2, P99: 3}},
		{telemetry.InferenceP50, to, from, gate.Stats{}},
	} {
		got, err := s.Stats(t.Context(), "d1", tc.metric, tc.from, tc.to)
		if err != nil || got != tc.want {
			t.Errorf("%s [%v, %v]: %+v, %v; want %+v", tc.metric, tc.from, tc.to, got, err, tc.want)
		}
	}
	if _, err := s.Stats(t.Context(), "d1", "rate(x[5m])", from, to); err == nil {
		t.Error("an expression passed for a metric")
	}
}

func get(t *testing.T, s *Store, target string, code int) string {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
	if w.Code != code {
		t.Errorf("%s: status %d, want %d: %s", target, w.Code, code, w.Body)
	}
	return w.Body.String()
}

// The expected texts are what Prometheus 3.16 answers for the same data.
func TestAPIShapes(t *testing.T) {
	s := newStore(t)
	src := Source{Device: "d1"}
	for i := range 3 {
		appendAll(t, s, src, power("A", t0.Add(time.Duration(i-2)*time.Minute), float64(i)+0.5), power("B", t0.Add(time.Duration(i-2)*time.Minute), 4))
	}
	q := func(path string, kv ...string) string {
		v := url.Values{}
		for i := 0; i < len(kv); i += 2 {
			v.Add(kv[i], kv[i+1])
		}
		return path + "?" + v.Encode()
	}
	at, from := fmt.Sprint(t0.Unix()), fmt.Sprint(t0.Add(-2*time.Minute).Unix())
	for _, tc := range []struct {
		target string
		code   int
		want   string
	}{
		{q("/api/v1/query", "query", "skein_device_power_watts", "time", at), 200,
			`{"status":"success","data":{"resultType":"vector","result":[{"metric":{"__name__":"skein_device_power_watts","device":"d1","rail":"A"},"value":[1793534400,"2.5"]},{"metric":{"__name__":"skein_device_power_watts","device":"d1","rail":"B"},"value":[1793534400,"4"]}]}}`},
		{q("/api/v1/query", "query", "skein_device_power_watts", "time", at, "limit", "1"), 200,
			`{"status":"success","data":{"resultType":"vector","result":[{"metric":{"__name__":"skein_device_power_watts","device":"d1","rail":"A"},"value":[1793534400,"2.5"]}]},"warnings":["results truncated due to limit"]}`},
		{q("/api/v1/query", "query", "1/0", "time", at), 200, `{"status":"success","data":{"resultType":"scalar","result":[1793534400,"+Inf"]}}`},
		{q("/api/v1/query", "query", "nothing", "time", at), 200, `{"status":"success","data":{"resultType":"vector","result":[]}}`},
		{q("/api/v1/query", "query", `sum(skein_device_power_watts offset 1m)`, "time", "2026-11-01T12:00:00Z"), 200,
			`{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1793534400,"5.5"]}]}}`},
		{q("/api/v1/query_range", "query", `skein_device_power_watts{rail="A"}`, "start", from, "end", at, "step", "60"), 200,
			`{"status":"success","data":{"resultType":"matrix","result":[{"metric":{"__name__":"skein_device_power_watts","device":"d1","rail":"A"},"values":[[1793534280,"0.5"],[1793534340,"1.5"],[1793534400,"2.5"]]}]}}`},
		{q("/api/v1/query_range", "query", "x", "start", at, "end", from, "step", "60"), 400,
			`{"status":"error","errorType":"bad_data","error":"invalid parameter \"end\": end timestamp must not be before start time"}`},
		{q("/api/v1/query_range", "query", "x", "start", from, "end", at, "step", "0"), 400,
			`{"status":"error","errorType":"bad_data","error":"invalid parameter \"step\": zero or negative query resolution step widths are not accepted. Try a positive integer"}`},
		{q("/api/v1/query_range", "query", "x", "start", "0", "end", at, "step", "1"), 400,
			`{"status":"error","errorType":"bad_data","error":"exceeded maximum resolution of 11,000 points per timeseries. Try decreasing the query resolution (?step=XX)"}`},
		{q("/api/v1/query", "query", "x", "time", "soon"), 400,
			`{"status":"error","errorType":"bad_data","error":"invalid parameter \"time\": invalid time value for 'time': cannot parse \"soon\" to a valid timestamp"}`},
		{q("/api/v1/query", "query", "sum("), 400,
			`{"status":"error","errorType":"bad_data","error":"invalid parameter \"query\": 1:5: parse error: unclosed left parenthesis"}`},
		{q("/api/v1/query", "query", `label_replace(skein_device_power_watts,"rail","x","","")`, "time", at), 422,
			`{"status":"error","errorType":"execution","error":"vector cannot contain metrics with the same labelset"}`},
		{"/api/v1/series", 400, `{"status":"error","errorType":"bad_data","error":"no match[] parameter provided"}`},
		{q("/api/v1/series", "match[]", `{rail=~".*"}`), 400,
			`{"status":"error","errorType":"bad_data","error":"invalid parameter \"match[]\": match[] must contain at least one non-empty matcher"}`},
		{q("/api/v1/series", "match[]", `{rail="A"}`, "match[]", `{device="d1"}`, "limit", "1"), 200,
			`{"status":"success","data":[{"__name__":"skein_device_power_watts","device":"d1","rail":"A"}],"warnings":["results truncated due to limit"]}`},
		{"/api/v1/labels", 200, `{"status":"success","data":["__name__","device","rail"]}`},
		{"/api/v1/label/rail/values", 200, `{"status":"success","data":["A","B"]}`},
		{q("/api/v1/label/rail/values", "match[]", `{rail="B"}`), 200, `{"status":"success","data":["B"]}`},
		{"/api/v1/label/none/values", 200, `{"status":"success","data":[]}`},
		{q("/api/v1/metadata", "metric", telemetry.FanSpeed), 200,
			`{"status":"success","data":{"skein_device_fan_speed_rpm":[{"type":"gauge","help":"fan speed","unit":"rpm"}]}}`},
	} {
		if got := get(t, s, tc.target, tc.code); got != tc.want {
			t.Errorf("%s\ngot  %s\nwant %s", tc.target, got, tc.want)
		}
	}
	var info struct{ Data map[string]string }
	if err := json.Unmarshal([]byte(get(t, s, "/api/v1/status/buildinfo", 200)), &info); err != nil || info.Data["version"] == "" {
		t.Errorf("buildinfo: %v %v", info, err)
	}
	if body := get(t, s, "/api/v1/rules", 404); !strings.Contains(body, `"errorType":"not_found"`) {
		t.Errorf("unknown endpoint: %s", body)
	}
}

func TestPostedFormAndSampleLimit(t *testing.T) {
	s := newStore(t)
	appendAll(t, s, cam, power("A", t0, 1))
	post := func(s *Store, v url.Values) (int, string) {
		r := httptest.NewRequest(http.MethodPost, "/api/v1/query", strings.NewReader(v.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, r)
		return w.Code, w.Body.String()
	}
	if code, body := post(s, url.Values{"query": {"count(skein_device_power_watts)"}}); code != 200 || !strings.Contains(body, `"1"`) {
		t.Errorf("%d %s", code, body)
	}
	small, err := Open(Options{Dir: t.TempDir(), MaxSamples: 10, Now: func() time.Time { return t0 }})
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	for i := range 50 {
		appendAll(t, small, cam, power("A", t0.Add(time.Duration(i-50)*time.Second), 1))
	}
	code, body := post(small, url.Values{"query": {"max_over_time(skein_device_power_watts[5m])"}})
	if code != http.StatusUnprocessableEntity || !strings.Contains(body, "too many samples") {
		t.Errorf("%d %s", code, body)
	}
}

func TestTelemetryBlocks(t *testing.T) {
	s := newStore(t)
	var b block.Builder
	b.Add([]telemetry.Reading{power("A", t0.Add(-time.Second), 1.25), power("B", t0.Add(-time.Second), 2)})
	b.Add([]telemetry.Reading{power("A", t0, 1.5)})
	blk, ok := b.Take()
	if !ok {
		t.Fatal("no block")
	}
	whole, _, err := block.Encode(blk, true)
	if err != nil {
		t.Fatal(err)
	}
	bare, _, err := block.Encode(blk, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.AppendBlock(t.Context(), cam, bare); !errors.Is(err, block.ErrUnknownSchema) || errors.Is(err, wire.ErrMalformed) {
		t.Errorf("a block with a schema never seen: %v", err)
	}
	for _, data := range [][]byte{whole, bare, whole} {
		if n, err := s.AppendBlock(t.Context(), cam, data); err != nil || n.Stored != 3 {
			t.Errorf("%+v %v", n, err)
		}
	}
	whole[len(whole)/2] ^= 1
	if _, err := s.AppendBlock(t.Context(), cam, whole); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("a damaged block: %v", err)
	}
	want := []telemetry.Reading{power("A", t0, 1.5), power("B", t0.Add(-time.Second), 2)}
	if d := cmp.Diff(want, s.Latest("d1")); d != "" {
		t.Error(d)
	}
}
