package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	artifactv1 "github.com/skein-fleet/skein/proto/gen/skein/artifact/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/artifact/v1/artifactv1connect"
	auditv1 "github.com/skein-fleet/skein/proto/gen/skein/audit/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/audit/v1/auditv1connect"
	authv1 "github.com/skein-fleet/skein/proto/gen/skein/auth/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/auth/v1/authv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/build/v1/buildv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/fleet/v1/fleetv1connect"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/release/v1/releasev1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/rollout/v1/rolloutv1connect"
	"github.com/skein-fleet/skein/proto/gen/skein/trust/v1/trustv1connect"
)

type fakeReleases struct {
	releasev1connect.UnimplementedReleaseServiceHandler
	f *fake
}

func (r fakeReleases) CreateRelease(context.Context, *releasev1.CreateReleaseRequest) (*releasev1.CreateReleaseResponse, error) {
	return nil, connect.NewError(connect.CodeUnimplemented, errors.New("not in the fake"))
}

func (r fakeReleases) ListReleases(context.Context, *releasev1.ListReleasesRequest) (*releasev1.ListReleasesResponse, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	for _, rel := range r.f.releases {
		rel.Running = 0
		for _, d := range r.f.devices {
			if d.RunningRelease == rel.Digest {
				rel.Running++
			}
		}
	}
	out := &releasev1.ListReleasesResponse{}
	for _, rel := range slices.Backward(r.f.releases) {
		out.Releases = append(out.Releases, proto.CloneOf(rel))
	}
	return out, nil
}

func (r fakeReleases) GetRelease(_ context.Context, q *releasev1.GetReleaseRequest) (*releasev1.GetReleaseResponse, error) {
	for _, rel := range r.f.releases {
		if rel.Digest == q.Release || rel.Name+"@"+rel.Version == q.Release {
			return &releasev1.GetReleaseResponse{Release: proto.CloneOf(rel), Before: "meter@1", Layers: []*releasev1.Layer{
				{Title: "model.onnx", Digest: digest(200), Bytes: 1_214_552, Chunks: 31, IndexBytes: 1_400, SharedBytes: 911_000, Patches: []*releasev1.LayerPatch{{BaseDigest: digest(201), Kind: "float", Bytes: 88_300}}},
				{Title: "golden.json", Digest: digest(300), Bytes: 64_120},
			}}, nil
		}
	}
	return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("no release %q", q.Release))
}

type fakeModels struct {
	artifactv1connect.UnimplementedModelServiceHandler
}

func (fakeModels) ListModels(context.Context, *artifactv1.ListModelsRequest) (*artifactv1.ListModelsResponse, error) {
	return &artifactv1.ListModelsResponse{Models: []*artifactv1.Model{{Name: "digits", LatestVersion: 3, Created: timestamppb.New(time.Now().Add(-80 * time.Hour))}}}, nil
}

func (fakeModels) GetModel(_ context.Context, q *artifactv1.GetModelRequest) (*artifactv1.GetModelResponse, error) {
	if q.Model != "digits" {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("no model %q", q.Model))
	}
	out := &artifactv1.GetModelResponse{Model: &artifactv1.Model{Name: "digits", LatestVersion: 3, Created: timestamppb.New(time.Now().Add(-80 * time.Hour))}}
	for v := range int64(3) {
		out.Versions = append(out.Versions, &artifactv1.ModelVersion{Mirrors: []string{"https://models.example.org/digits/v" + strconv.FormatInt(v+1, 10) + "/digits.onnx"}, Model: "digits", Version: v + 1, Onnx: &artifactv1.Blob{Digest: digest(int(200 + v)), Size: 1_214_552}, Golden: &artifactv1.Blob{Digest: digest(int(300 + v)), Size: 64_120},
			Description: "CNN on MNIST digits", Metadata: map[string]string{"accuracy": "0.9812", "seed": "7"}, Created: timestamppb.New(time.Now().Add(-time.Duration(72-24*v) * time.Hour)), CreatedBy: "user:ci"})
	}
	return out, nil
}

type fakeAudit struct{ f *fake }

func (a fakeAudit) ListEntries(_ context.Context, q *auditv1.ListEntriesRequest) (*auditv1.ListEntriesResponse, error) {
	a.f.mu.Lock()
	defer a.f.mu.Unlock()
	out := &auditv1.ListEntriesResponse{}
	for _, e := range slices.Backward(a.f.audit) {
		if (q.Actor == "" || q.Actor == e.Actor) && (q.Subject == "" || q.Subject == e.Subject) && (q.BeforeSequence == 0 || e.Sequence < q.BeforeSequence) && len(out.Entries) < int(q.Limit) {
			out.Entries = append(out.Entries, proto.CloneOf(e))
		}
	}
	return out, nil
}

type fakeAuth struct {
	authv1connect.UnimplementedAuthServiceHandler
}

func (fakeAuth) WhoAmI(context.Context, *authv1.WhoAmIRequest) (*authv1.WhoAmIResponse, error) {
	return &authv1.WhoAmIResponse{Credential: &authv1.Credential{Id: "c-1", Name: "admin", Role: "admin", Tenant: "default"}, ServerVersion: "0.1.0-fake"}, nil
}

// fakeLine is one made-up series.
type fakeLine struct {
	name             string
	labels           [][2]string
	mean, swing, per float64
}

var fakeSeries = []fakeLine{
	{"skein_device_temperature_celsius", [][2]string{{"zone", "cpu"}}, 52, 4, 400}, {"skein_device_temperature_celsius", [][2]string{{"zone", "gpu"}}, 56, 6, 520},
	{"skein_device_temperature_celsius", [][2]string{{"zone", "tj"}}, 58, 6, 500}, {"skein_device_gpu_utilization_ratio", nil, 0.6, 0.3, 240},
	{"skein_device_cpu_utilization_ratio", [][2]string{{"core", "0"}}, 0.3, 0.1, 100}, {"skein_device_emc_utilization_ratio", nil, 0.2, 0.05, 140},
	{"skein_device_power_total_watts", nil, 9.4, 1.8, 240}, {"skein_device_power_watts", [][2]string{{"rail", "VDD_CPU_GPU_CV"}}, 4.2, 1.2, 240}, {"skein_device_power_watts", [][2]string{{"rail", "VDD_SOC"}}, 2.1, 0.3, 300},
	{"skein_device_memory_used_bytes", nil, 4.1e9, 2e8, 900}, {"skein_device_memory_total_bytes", nil, 8.0e9, 0, 1}, {"skein_inference_latency_p50_seconds", [][2]string{{"model", "digits"}, {"version", "2"}}, 0.0041, 0.0004, 300},
	{"skein_inference_latency_p99_seconds", [][2]string{{"model", "digits"}, {"version", "2"}}, 0.0092, 0.0016, 200}, {"skein_inference_requests_total", [][2]string{{"version", "2"}, {"outcome", "ok"}}, 14, 2, 350},
}

func (l fakeLine) text() string {
	parts := make([]string, 0, len(l.labels))
	for _, p := range l.labels {
		parts = append(parts, p[0]+"="+strconv.Quote(p[1]))
	}
	if len(parts) == 0 {
		return l.name
	}
	return l.name + "{" + strings.Join(parts, ",") + "}"
}

func (l fakeLine) at(t float64) float64 {
	return l.mean + l.swing*math.Sin(t/l.per*2*math.Pi) + l.swing*0.2*math.Sin(t/7)
}

func serveRange(w http.ResponseWriter, r *http.Request) {
	num := func(key string) float64 { v, _ := strconv.ParseFloat(r.FormValue(key), 64); return v }
	type series struct {
		Metric map[string]string `json:"metric"`
		Values [][2]any          `json:"values"`
	}
	result := []series{}
	for _, l := range fakeSeries {
		if !strings.Contains(r.FormValue("query"), l.name+"{") {
			continue
		}
		s := series{Metric: map[string]string{}}
		for _, p := range l.labels {
			s.Metric[p[0]] = p[1]
		}
		for t := num("start"); t <= num("end"); t += num("step") {
			s.Values = append(s.Values, [2]any{t, strconv.FormatFloat(l.at(t), 'g', -1, 64)})
		}
		result = append(result, s)
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"status": "success", "data": map[string]any{"resultType": "matrix", "result": result}})
}

// handler is the fake's whole HTTP surface, behind the login.
func (f *fake) handler(pages http.Handler) http.Handler {
	api := http.NewServeMux()
	mount := func(path string, h http.Handler) { api.Handle(path, h) }
	mount(fleetv1connect.NewFleetServiceHandler(f))
	mount(rolloutv1connect.NewRolloutServiceHandler(f))
	mount(releasev1connect.NewReleaseServiceHandler(fakeReleases{f: f}))
	mount(artifactv1connect.NewModelServiceHandler(fakeModels{}))
	mount(buildv1connect.NewBuildServiceHandler(fakeBuilds{f: f}))
	mount(auditv1connect.NewAuditServiceHandler(fakeAudit{f}))
	mount(trustv1connect.NewTrustServiceHandler(fakeTrust{}))
	mount(authv1connect.NewAuthServiceHandler(fakeAuth{}))
	api.HandleFunc("GET /api/v1/query_range", serveRange)
	mux := http.NewServeMux()
	guard := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, err := r.Cookie("skein_session"); err != nil || c.Value != fakeToken {
			_ = connect.NewErrorWriter().Write(w, r, connect.NewError(connect.CodeUnauthenticated, errors.New("log in first")))
			return
		}
		api.ServeHTTP(w, r)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := api.Handler(r); pattern != "" {
			guard(w, r)
			return
		}
		pages.ServeHTTP(w, r)
	})
	cookie := func(value string, age int) *http.Cookie {
		return &http.Cookie{Name: "skein_session", Value: value, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode, MaxAge: age}
	}
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Token string }
		if json.NewDecoder(r.Body).Decode(&in) != nil || in.Token != fakeToken {
			http.Error(w, "unknown token", http.StatusUnauthorized)
			return
		}
		http.SetCookie(w, cookie(fakeToken, 3600))
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /logout", func(w http.ResponseWriter, _ *http.Request) {
		http.SetCookie(w, cookie("", -1))
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}
