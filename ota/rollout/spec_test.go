package rollout

import (
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/ota"
)

// full uses every field of the format that is supported.
const full = `{
  "release": "sha256:fb04dcb6970e4c3d1873de51fd5a50d7bb46b3383113602665c350ec40b5f990",
  "selector": {
    "labels": {"site": "lyon"},
    "match": [{"label": "ring", "op": "in", "values": ["early", "late"]}, {"label": "tier", "op": "!=", "values": ["gold"]}],
    "targets": ["linux/arm64;sm=8.7"],
    "devices": ["a", "b"]
  },
  "waves": [
    {
      "name": "canary", "perTarget": 2, "stratifyBy": ["site"], "order": "hash",
      "ramp": {"kind": "exponential", "initial": 2, "factor": 1.5, "maxPerMinute": 60, "maxInFlight": 10, "maxConcurrentDownloads": 5},
      "soak": {"min": "10m", "max": "1h", "minSamples": 30},
      "gate": {
        "success": {"minPct": 95, "of": "total", "minExecuted": 2},
        "abort": [{"failure": "ALL", "pct": 12.5, "minExecuted": 4}, {"failure": "SILENT", "count": 1}],
        "metrics": [{"name": "latency_ms", "stat": "p99", "maxRatio": 1.2, "floor": 5, "maxRegressedPct": 25, "minSamples": 30, "minDevices": 3}],
        "approval": "manual", "inconclusive": "wait"
      },
      "budget": {"groupBy": ["site", "target"], "minAvailable": "50%", "maxUnavailable": 3},
      "timeout": {"device": "1h", "step": "10m", "silent": "5m", "offline": "count"}
    },
    {"name": "quarter", "selector": {"labels": {"site": "lyon"}}, "limit": "25%", "ramp": {"kind": "linear", "initial": 1, "factor": 2}},
    {"name": "rest"}
  ],
  "retry": {"perFailure": {"FAILED": 2, "TIMED_OUT": 1}, "backoff": "1m", "perDeviceMax": 2, "fleetBudget": 50},
  "onAbort": {"queued": "cancel", "inProgress": "finish", "done": "keep"},
  "rollbackTo": "previous", "lateJoiners": "never", "supersede": "serial"
}`

func TestDecodeEveryField(t *testing.T) {
	s, err := Decode([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, back); diff != "" {
		t.Errorf("changed on the way through JSON: %s", diff)
	}
	var unused []string
	zeroFields("", reflect.ValueOf(s), &unused)
	slices.Sort(unused)
	if diff := cmp.Diff([]string{"schedule.applyWindow", "schedule.downloadWindow", "schedule.end", "schedule.endBehavior", "schedule.now", "schedule.start", "schedule.tz", "waves[0].gate.abort[0].count", "waves[0].limit", "waves[0].ramp.maxBytesPerSecond", "waves[0].selector.devices", "waves[0].selector.labels", "waves[0].selector.match", "waves[0].selector.targets"}, unused); diff != "" {
		t.Errorf("fields that the example leaves out: %s", diff)
	}
}

// zeroFields lists the fields that hold nothing, so that a new field must be
// added to the example and to SPEC.md.
func zeroFields(path string, v reflect.Value, out *[]string) {
	switch {
	case v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[Amount]():
		for _, name := range fieldNames(v.Type()) {
			for i := range v.NumField() {
				if tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ","); tag == name {
					zeroFields(strings.TrimPrefix(path+"."+name, "."), v.Field(i), out)
				}
			}
		}
	case v.Kind() == reflect.Pointer && !v.IsNil():
		zeroFields(path, v.Elem(), out)
	case v.Kind() == reflect.Slice && v.Len() > 0 && v.Index(0).Kind() == reflect.Struct:
		zeroFields(path+"[0]", v.Index(0), out)
	case v.IsZero():
		*out = append(*out, path)
	}
}

func TestEveryFieldIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("SPEC.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []any{Spec{}, Wave{}, Selector{}, Requirement{}, Ramp{}, Soak{}, Gate{}, Success{}, AbortRule{}, MetricRule{}, Budget{}, Timeout{}, Retry{}, OnAbort{}} {
		for _, name := range fieldNames(reflect.TypeOf(x)) {
			if !strings.Contains(string(doc), "`"+name+"`") {
				t.Errorf("SPEC.md does not describe %T field %s", x, name)
			}
		}
	}
	_, rest, ok := strings.Cut(string(doc), "```json\n")
	example, _, _ := strings.Cut(rest, "```")
	s, err := Decode([]byte(example))
	if !ok || err != nil {
		t.Fatalf("the example of SPEC.md: %v", err)
	}
	if err := s.Validate(); err != nil {
		t.Errorf("the example of SPEC.md: %v", err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, tt := range []struct{ in, path, msg string }{
		{`{"relase": "x"}`, "relase", "unknown field; known here: release, selector"},
		{`{"waves": [{"name": "a"}, {"name": "b", "ramp": {"maxInflight": 3}}]}`, "waves[1].ramp.maxInflight", "unknown field"},
		{`{"waves": [{"name": "a", "limit": 0}]}`, "waves[0].limit", "at least 1"},
		{`{"waves": [{"name": "a", "limit": "0%"}]}`, "waves[0].limit", "0%"},
		{`{"waves": [{"name": "a", "limit": "101%"}]}`, "waves[0].limit", "101%"},
		{`{"waves": [{"name": "a", "limit": "NaN%"}]}`, "waves[0].limit", "NaN%"},
		{`{"waves": [{"name": "a", "limit": 2.5}]}`, "waves[0].limit", "number of devices"},
		{`{"waves": [{"name": "a", "perTarget": 0}]}`, "waves[0].perTarget", "at least 1"},
		{`{"waves": [{"name": "a", "soak": {"min": 60}}]}`, "waves[0].soak.min", `"90s"`},
		{`{"waves": [{"name": "a", "soak": {"min": "-1s"}}]}`, "waves[0].soak.min", "-1s"},
		{`{"waves": {"name": "a"}}`, "waves", "want a list"},
		{`{"waves": ["a"]}`, "waves[0]", "want an object"},
		{`{"waves": [{"name": 3}]}`, "waves[0].name", "want text"},
		{`{"waves": null}`, "waves", "leave the field out"},
		{`{"release": "a", "release": "b"}`, "release", "given twice"},
		{`{"retry": {"perFailure": {"FAILED": -1}}}`, "retry.perFailure.FAILED", "at least 1"},
		{`{"waves": [{"gate": {"success": {"minPct": "90"}}}]}`, "waves[0].gate.success.minPct", "want a number"},
		{`[]`, "", "want an object"},
	} {
		_, err := Decode([]byte(tt.in))
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Path != tt.path || !strings.Contains(fe.Msg, tt.msg) {
			t.Errorf("%s: %v; want %s: …%s…", tt.in, err, tt.path, tt.msg)
		}
	}
	for _, in := range []string{``, `{`, `{} {}`, `{"a"`, strings.Repeat(" ", MaxSpecBytes) + "{}"} {
		if _, err := Decode([]byte(in)); err == nil {
			t.Errorf("%.20q was accepted", in)
		}
	}
}

func TestValidate(t *testing.T) {
	const base = `{"release": "sha256:fb04dcb6970e4c3d1873de51fd5a50d7bb46b3383113602665c350ec40b5f990", "waves": [{"name": "a" %}] #}`
	for _, tt := range []struct{ wave, top, path, msg string }{
		{"", "", "", ""},
		{``, `, "schedule": {"start": "2027-01-01T00:00:00Z"}`, "schedule.start", "not supported: schedule.start"},
		{``, `, "schedule": {"endBehavior": "finish"}`, "schedule.endBehavior", "not supported"},
		{``, `, "schedule": {"downloadWindow": "Mon-Fri 22:00"}`, "schedule.downloadWindow", "want FROM-TO"},
		{``, `, "schedule": {"applyWindow": "02:00-05:00", "tz": "Mars"}`, "schedule.tz", "no time zone"},
		{``, `, "schedule": {"applyWindow": "02:00-05:00", "now": true}`, "schedule.applyWindow", "waits for no window"},
		{``, `, "schedule": {"applyWindow": "02:00-05:00", "tz": "device"}`, "", ""},
		{`, "ramp": {"maxBytesPerSecond": 5}`, "", "waves[0].ramp.maxBytesPerSecond", "not supported: waves[0].ramp.maxBytesPerSecond"},
		{`, "gate": {"approval": "webhook"}`, "", "waves[0].gate.approval", "not supported"},
		{`, "gate": {"approval": "maybe"}`, "", "waves[0].gate.approval", "want one of"},
		{`, "limit": 3, "perTarget": 2`, "", "waves[0].perTarget", "one of them"},
		{`, "stratifyBy": ["site"]`, "", "waves[0].stratifyBy", "nothing to draw"},
		{`, "limit": 3, "stratifyBy": ["site", "site"]`, "", "waves[0].stratifyBy[1]", "once"},
		{`, "order": "name"`, "", "waves[0].order", "hash"},
		{`, "ramp": {"kind": "linear", "factor": 2}`, "", "waves[0].ramp.initial", "starts from"},
		{`, "ramp": {"kind": "exponential", "initial": 1, "factor": 1}`, "", "waves[0].ramp.factor", "more than 1"},
		{`, "ramp": {"kind": "linear", "initial": 1, "factor": 1.5}`, "", "waves[0].ramp.factor", "whole number"},
		{`, "ramp": {"factor": 2}`, "", "waves[0].ramp.factor", "no factor"},
		{`, "soak": {"min": "2h", "max": "1h"}`, "", "waves[0].soak.max", "shorter"},
		{`, "soak": {"minSamples": 5}`, "", "waves[0].soak.minSamples", "gate.metrics"},
		{`, "gate": {"success": {"minPct": 101}}`, "", "waves[0].gate.success.minPct", "0 to 100"},
		{`, "gate": {"abort": [{"failure": "OOPS", "pct": 3}]}`, "", "waves[0].gate.abort[0].failure", "want one of"},
		{`, "gate": {"abort": [{"failure": "SUPERSEDED", "pct": 3}]}`, "", "waves[0].gate.abort[0].failure", "want one of"},
		{`, "gate": {"abort": [{"failure": "ALL"}]}`, "", "waves[0].gate.abort[0]", "pct or count"},
		{`, "gate": {"abort": [{"failure": "ALL", "pct": 3, "count": 3}]}`, "", "waves[0].gate.abort[0]", "pct or count"},
		{`, "gate": {"metrics": [{"name": "x", "maxRatio": 0.5, "floor": 0}]}`, "", "waves[0].gate.metrics[0].maxRatio", "at least 1"},
		{`, "gate": {"metrics": [{"name": "x", "maxRatio": 2, "floor": -1}]}`, "", "waves[0].gate.metrics[0].floor", "at least 0"},
		{`, "gate": {"metrics": [{"name": "x", "maxRatio": 2, "floor": 0}, {"name": "x", "maxRatio": 2, "floor": 0}]}`, "", "waves[0].gate.metrics[1].name", "once"},
		{`, "budget": {"groupBy": ["site"]}`, "", "waves[0].budget", "bound nothing"},
		{`, "budget": {"minAvailable": "100%"}`, "", "waves[0].budget.minAvailable", "no device"},
		{`, "timeout": {"device": "1m", "step": "1h"}`, "", "waves[0].timeout.step", "never act"},
		{`, "timeout": {"offline": "hope"}`, "", "waves[0].timeout.offline", "want one of"},
		{`}, {"name": "a"`, "", "waves[1].name", "earlier wave"},
		{`}, {"limit": 2`, "", "waves[1].name", "has a name"},
		{`, "selector": {"match": [{"label": "a", "op": "~", "values": ["b"]}]}`, "", "waves[0].selector.match[0].op", "want one of"},
		{`, "selector": {"match": [{"label": "a", "op": "=", "values": ["b", "c"]}]}`, "", "waves[0].selector.match[0].values", "one value"},
		{`, "selector": {"targets": ["jetson"]}`, "", "waves[0].selector.targets[0]", "os/arch"},
		{``, `, "retry": {"perFailure": {"REJECTED": 1}}`, "retry.perFailure.REJECTED", "never offered"},
		{``, `, "retry": {"perFailure": {"SILENT": 1}}`, "retry.perFailure.SILENT", "want one of"},
		{``, `, "onAbort": {"queued": "finish"}`, "onAbort.queued", "want one of"},
		{``, `, "onAbort": {"done": "cancel"}`, "onAbort.done", "want one of"},
		{``, `, "rollbackTo": "v1"`, "rollbackTo", "previous"},
		{``, `, "lateJoiners": "sometimes"`, "lateJoiners", "want one of"},
		{``, `, "supersede": "oldest"`, "supersede", "want one of"},
	} {
		in := strings.NewReplacer("%", tt.wave, "#", tt.top).Replace(base)
		s, err := Decode([]byte(in))
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		err = s.Validate()
		if tt.path == "" {
			if err != nil {
				t.Errorf("%s: %v", in, err)
			}
			continue
		}
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Path != tt.path || !strings.Contains(fe.Msg, tt.msg) {
			t.Errorf("%s%s: %v; want %s: …%s…", tt.wave, tt.top, err, tt.path, tt.msg)
		}
	}
	if err := (Spec{}).Validate(); err == nil || strings.Count(err.Error(), "\n") != 1 {
		t.Errorf("an empty spec: %v; want both complaints", err)
	}
}

func TestDefaultIsValidAndExplicit(t *testing.T) {
	s := Default(v2)
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, s.Normalize()); diff != "" {
		t.Errorf("Normalize changes a normal spec: %s", diff)
	}
}

func TestSelectors(t *testing.T) {
	d := Device{ID: "a", Target: "linux/arm64;sm=8.7;trt=10.3.0", Labels: map[string]string{"site": "lyon", "ring": "early"}}
	for text, want := range map[string]bool{
		"": true, "site=lyon": true, "site=oslo": false, "site!=oslo": true, "site != lyon": false, "tier!=gold": true, "tier=gold": false,
		"ring in (early,late)": true, "ring in(late)": false, "ring notin (late)": true, "tier notin (x)": true, "site=lyon, ring in (early, late)": true,
		"site=lyon,ring in (late)": false,
	} {
		s, err := ParseSelector(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := newMatcher(s).match(&d); got != want {
			t.Errorf("%q matches: %v", text, got)
		}
		back, err := ParseSelector(s.String())
		if text != "" && (err != nil || cmp.Diff(s, back) != "") {
			t.Errorf("%q prints as %q, which reads as %v (%v)", text, s.String(), back, err)
		}
	}
	for _, bad := range []string{"site", "=lyon", "site=", "site in lyon", "site in ()", "site==lyon", "a=b,,c=d", "site in (a", "a b=c"} {
		if s, err := ParseSelector(bad); err == nil {
			t.Errorf("%q was read as %v", bad, s)
		}
	}
	for target, want := range map[string]bool{"linux/arm64": true, "linux/arm64;sm=8.7": true, "linux/arm64;sm=7.2": false, "linux/amd64": false} {
		if got := newMatcher(Selector{Targets: []string{target}}).match(&d); got != want {
			t.Errorf("target %s matches: %v", target, got)
		}
	}
	if newMatcher(Selector{Devices: []string{"b"}}).match(&d) {
		t.Error("a list of devices matches another one")
	}
}

func TestClockStandsStillInPauses(t *testing.T) {
	s := New("r")
	at := func(m int) time.Time { return epoch.Add(time.Duration(m) * time.Minute) }
	for _, d := range []Decision{{Kind: Assign, Waves: 1, At: at(0)}, {Kind: Pause, At: at(10)}, {Kind: Pause, At: at(11)},
		{Kind: Resume, At: at(40)}, {Kind: Resume, At: at(41)}, {Kind: Pause, At: at(50)}} {
		s.Apply(d)
	}
	for m, want := range map[int]int{0: 0, 5: 5, 10: 10, 20: 10, 40: 10, 50: 20, 90: 20} {
		if got := s.Clock(at(m)); got != time.Duration(want)*time.Minute {
			t.Errorf("after %d minutes the clock shows %s, want %d minutes", m, got, want)
		}
	}
}

func TestEmptyIsLeftOut(t *testing.T) {
	for in, want := range map[string]string{
		`{"release": "r", "retry": {"perFailure": {}}}`:              `{"release":"r"}`,
		`{"release": "r", "waves": []}`:                              `{"release":"r"}`,
		`{"release": "r", "waves": [{"gate": {"abort": []}}]}`:       `{"release":"r","waves":[{"name":""}]}`,
		`{"release": "r", "waves": [{"budget": {"groupBy": []}}]}`:   `{"release":"r","waves":[{"name":""}]}`,
		`{"release": "r", "retry": {"perFailure": {"rejected": 2}}}`: `{"release":"r","retry":{"perFailure":{"rejected":2}}}`,
		`{"release": "r", "waves": [{"gate": {"success": {}}}]}`:     `{"release":"r","waves":[{"name":"","gate":{"success":{"minPct":0}}}]}`,
	} {
		s, err := Decode([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if string(b) != want {
			t.Errorf("%s: written back as %s, want %s", in, b, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(full))
	def, _ := json.Marshal(Default(v2))
	f.Add(def)
	f.Add([]byte(`{"waves": [{"limit": "25%"}], "schedule": {"x": [1, {}]}}`))
	f.Add([]byte(`{"retry": {"perFailure": {"FAILED": 1}}, "rollbackTo": ""}`))
	f.Add([]byte(`{"retry": {"perFailure": {}}, "waves": [{"gate": {"abort": []}, "budget": {"groupBy": []}}]}`))
	fleet := devices(6)
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := Decode(in)
		if err != nil {
			return
		}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		back, err := Decode(b)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, b)
		}
		if b2, _ := json.Marshal(back); string(b) != string(b2) {
			t.Fatalf("changed on the way:\n%s\n%s", b, b2)
		}
		if s.Validate() != nil {
			return
		}
		if err := s.Normalize().Validate(); err != nil {
			t.Fatalf("a valid spec is not with its defaults: %v", err)
		}
		state := Apply(New("r"), Plan(s, New("r"), fleet, Evidence{}, epoch)...)
		for _, d := range Plan(s, state, fleet, Evidence{}, epoch) {
			if state.Phase.Final() || d.Kind == Offer {
				t.Fatalf("decided again: %s", d)
			}
		}
		Preview("r", s, fleet)
		Explain(s, state, fleet, Evidence{}, epoch.Add(time.Hour), fleet[0].ID)
	})
}

func benchFleet(n int) []Device {
	fleet := devices(n)
	for i := range fleet {
		fleet[i].ID = ota.DigestOf([]byte(fleet[i].ID)).Hex()[:26]
		fleet[i].LastSeen = epoch
	}
	return fleet
}

func BenchmarkPlanFirst100k(b *testing.B) {
	fleet, spec := benchFleet(100_000), Default(v2)
	b.ReportAllocs()
	for b.Loop() {
		if ds := Plan(spec, New("r"), fleet, Evidence{}, epoch); len(ds) != 2+6 {
			b.Fatalf("%d decisions", len(ds))
		}
	}
}

// Everything may go at once: 100,000 offers in one plan.
func BenchmarkPlanOfferAll100k(b *testing.B) {
	fleet, spec := benchFleet(100_000), simple()
	b.ReportAllocs()
	for b.Loop() {
		if ds := Plan(spec, New("r"), fleet, Evidence{}, epoch); len(ds) != 2+len(fleet) {
			b.Fatalf("%d decisions", len(ds))
		}
	}
}

// The last wave runs with budgets and a metric gate, and nothing is to be done.
func BenchmarkPlanSteady100k(b *testing.B) {
	fleet, spec := benchFleet(100_000), simple()
	spec.Waves[0].Ramp.MaxInFlight = 500
	spec.Waves[0].Budget = Budget{GroupBy: []string{"site", "target"}, MaxUnavailable: Percent(10)}
	spec.Waves[0].Gate.Metrics = []MetricRule{{Name: "latency_ms", MaxRatio: 1.5, Floor: 2}}
	state := Apply(New("r"), Plan(spec, New("r"), fleet, Evidence{}, epoch)...)
	b.ReportAllocs()
	for b.Loop() {
		if ds := Plan(spec, state, fleet, Evidence{}, epoch); len(ds) != 0 {
			b.Fatalf("%d decisions", len(ds))
		}
	}
}
