package web

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	buildv1 "github.com/skein-fleet/skein/proto/gen/skein/build/v1"
	"github.com/skein-fleet/skein/proto/gen/skein/build/v1/buildv1connect"
)

type fakeBuilds struct {
	buildv1connect.UnimplementedBuildServiceHandler
	f *fake
}

// GetMatrix has an engine in every state.
func (b fakeBuilds) GetMatrix(context.Context, *buildv1.GetMatrixRequest) (*buildv1.GetMatrixResponse, error) {
	b.f.mu.Lock()
	defer b.f.mu.Unlock()
	id := ""
	for k, d := range b.f.devices {
		if d.Name == "cam-001" {
			id = k
		}
	}
	engine := func(target string, state buildv1.EngineState, change func(*buildv1.Engine)) *buildv1.Engine {
		e := &buildv1.Engine{Model: "digits", ModelVersion: 3, Recipe: "fp16", Target: target, State: state, Devices: 40}
		if change != nil {
			change(e)
		}
		return e
	}
	return &buildv1.GetMatrixResponse{Engines: []*buildv1.Engine{
		engine("linux/amd64;ort=1", buildv1.EngineState_ENGINE_STATE_UNNEEDED, func(e *buildv1.Engine) { e.Reason = "it has no TensorRT and takes the ONNX file" }),
		engine("linux/arm64;sm=8.7;trt=10.3.0", buildv1.EngineState_ENGINE_STATE_BUILT, func(e *buildv1.Engine) {
			e.Builder, e.BuilderId = "cam-001", id
			e.Record = &buildv1.Record{PlanDigest: digest(950), Bytes: 8_300_000, LatencyP50Ms: 4.91, LatencyP99Ms: 5.2, PowerWatts: 14.8, GoldenCases: 32, GoldenAgreed: 32,
				Finished: timestamppb.New(time.Now().Add(-3 * time.Hour))}
		}),
		engine("linux/arm64;sm=7.2;trt=8.5.2", buildv1.EngineState_ENGINE_STATE_BUILDING, func(e *buildv1.Engine) {
			e.Builder, e.BuilderId, e.Step, e.Percent, e.Said = "cam-001", id, "build", 40, "timing tactics"
		}),
		engine("linux/arm64;sm=5.3;trt=8.2.1", buildv1.EngineState_ENGINE_STATE_MISSING, func(e *buildv1.Engine) { e.Reason = "no builder for linux/arm64;sm=5.3;trt=8.2.1" }),
		engine("linux/arm64;sm=11.0;trt=10.13.3", buildv1.EngineState_ENGINE_STATE_REFUSED, func(e *buildv1.Engine) {
			e.Reason, e.Attempts = "golden: output differs from the reference by 0.3, tolerance 0.02", []*buildv1.Attempt{{Attempt: 1, Device: "cam-002", Class: "golden"}}
		}),
	}}, nil
}
