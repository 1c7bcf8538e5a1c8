package e2e

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	buildv1 "github.com/skein-fleet/skein/proto/gen/skein/build/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/build/v1/buildv1connect"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/plane"
	"github.com/skein-fleet/skein/sim/virtual"
)

type token string

func (b token) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+string(b))
	return http.DefaultTransport.RoundTrip(r)
}

// TestEngineOfTheFleet: a virtual Orin Nano that is a builder builds an engine,
// which another of the same target downloads and serves.
func TestEngineOfTheFleet(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	p, err := plane.InProcess(ctx, t.TempDir(), "127.0.0.1:0", log)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	op := p.Operator()
	mix, err := jetson.ParseMix("orin-nano=2,nano=1")
	if err != nil {
		t.Fatal(err)
	}
	fleet, err := virtual.NewFleet(ctx, virtual.FleetOptions{Devices: 3, Mix: mix, Dir: t.TempDir(), ServerURL: p.DeviceURL, Pace: virtual.Brisk(), Logger: log,
		Claim: func(ctx context.Context, labels map[string]string) (string, error) { return op.Claim(ctx, 1, labels) }})
	if err != nil {
		t.Fatal(err)
	}
	defer fleet.Close()
	run, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- fleet.Run(run) }()
	defer func() { stop(); <-done }()
	until := func(what string, ok func() bool) {
		t.Helper()
		for !ok() {
			select {
			case <-ctx.Done():
				t.Fatalf("not seen: %s", what)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	until("three devices online", func() bool { d, err := op.Devices(ctx, "state=online"); return err == nil && len(d) == 3 })
	var orins []*virtual.Device
	for _, d := range fleet.Devices() {
		if d.Model() == "orin-nano" {
			orins = append(orins, d)
		}
	}
	if _, err := op.Fleet.LabelDevice(ctx, &fleetv1.LabelDeviceRequest{Device: orins[0].ID(), Grant: []string{"builder"}}); err != nil {
		t.Fatal(err)
	}
	orins[0].Kill(0) // it learns that it is one at its next hello
	onnx, err := meter.Linear([]float32{1, 2, 0, 1}, []float32{0, 0}, 2, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	golden, err := manifest.Golden{Version: 1, Input: meter.InputName, Shape: []int64{1, 2}, Tolerance: manifest.Tolerance{Abs: 0.01},
		Cases: []manifest.GoldenCase{{Input: []float32{3, 4}, Output: []float32{11, 4}}}}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	version, err := op.PushModel(ctx, "linear", onnx, golden, "")
	if err != nil {
		t.Fatal(err)
	}
	builds := buildv1connect.NewBuildServiceClient(&http.Client{Transport: token(p.Token)}, p.URL)
	const target = "linux/arm64;sm=8.7;trt=10.3.0"
	if _, err := builds.BuildEngines(ctx, &buildv1.BuildEnginesRequest{Model: version, Recipe: "fp16", Targets: []string{target}}); err != nil {
		t.Fatal(err)
	}
	var last *buildv1.Engine
	defer func() { t.Log(last) }()
	until("a built engine", func() bool {
		l, err := builds.ListBuilds(ctx, &buildv1.ListBuildsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(l.GetBuilds(), func(e *buildv1.Engine) bool {
			last = e
			return e.GetState() == buildv1.EngineState_ENGINE_STATE_BUILT && e.GetRecord().GetLatencyP50Ms() > 0 && e.GetBuilderId() == orins[0].ID()
		})
	})
	rel, err := op.Release(ctx, &releasev1.CreateReleaseRequest{Name: "linear", Model: version, Recipe: "fp16", Targets: []string{target}})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]any{"name": "all", "soak": map[string]any{"min": "1s"}, "gate": map[string]any{"success": map[string]any{"minPct": 60}}}
	if _, err := op.Start(ctx, "engine", map[string]any{"release": rel.GetDigest(), "selector": map[string]any{}, "waves": []any{all}}); err != nil {
		t.Fatal(err)
	}
	digest, err := ota.ParseDigest(rel.GetDigest())
	if err != nil {
		t.Fatal(err)
	}
	until("both serve the engine, and the Nano does not", func() bool {
		n := 0
		for _, d := range fleet.Devices() {
			serves := d.Serves(ctx, digest)
			if serves && d.Model() != "orin-nano" {
				t.Fatalf("a %s serves the engine of an Orin Nano", d.Model())
			}
			if serves {
				n++
			}
		}
		return n == 2
	})
}
