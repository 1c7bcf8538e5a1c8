package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota/gate"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	rolloutv1 "github.com/skein-fleet/skein/proto/gen/skein/rollout/v1"
	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/telemetry"
)

// chapter is one version of the model and what should become of it.
type chapter struct {
	name        string
	description string
	export      meter.ExportOptions
	ends        string // phase in which its rollout must end
	gate        bool   // compare with the device's own past
}

// The three versions. Redundant is how many layers of needless work v2b has.
func chapters() []chapter {
	return []chapter{
		{name: "v1", description: "honest", export: meter.ExportOptions{Version: 1}, ends: "succeeded"},
		{name: "v2", description: "wrong: pixels divided by 255 twice", export: meter.ExportOptions{Version: 2, Normalise: meter.DividedTwice()}, ends: "rolled-back", gate: true},
		{name: "v2b", description: "right but slow: needless layers", export: meter.ExportOptions{Version: 3, Redundant: 12}, ends: "rolled-back", gate: true},
	}
}

// spec is the rollout of the demo: soaks of seconds where a real fleet takes
// hours, all else as a person would write it.
func spec(release string, gate bool) map[string]any {
	judged := func(minPct float64) map[string]any {
		g := map[string]any{
			"success": map[string]any{"minPct": minPct},
			"abort":   []any{map[string]any{"failure": "ALL", "pct": 20, "minExecuted": 2}},
		}
		if gate {
			g["metrics"] = []any{map[string]any{
				"name": telemetry.InferenceP50, "maxRatio": 1.5, "floor": 0.002, "maxRegressedPct": 25, "minSamples": 4,
			}}
			g["inconclusive"] = "wait"
		}
		return g
	}
	timeout := map[string]any{"device": "60s", "silent": "30s", "offline": "skip"}
	return map[string]any{
		"release": release,
		"waves": []any{
			map[string]any{"name": "canary", "perTarget": 2, "soak": map[string]any{"min": "5s"}, "gate": judged(95), "timeout": timeout},
			map[string]any{"name": "quarter", "limit": "25%", "stratifyBy": []any{"target"}, "soak": map[string]any{"min": "3s"}, "gate": judged(95), "timeout": timeout},
			map[string]any{"name": "rest", "gate": judged(95), "timeout": timeout},
		},
	}
}

// tell trains the model and rolls out its three versions.
func (s *story) tell(ctx context.Context) error {
	s.say("training the meter reader on %d digits", len(s.digits.Train.Images))
	last := time.Now()
	model, metrics, err := meter.Train(ctx, meter.TrainOptions{Data: s.digits, Seed: s.o.Seed, Progress: func(p meter.Progress) {
		if time.Since(last) > 2*time.Second {
			last = time.Now()
			s.say("  step %d of %d, loss %.3f", p.Step, p.Steps, p.Loss)
		}
	}})
	if err != nil {
		return fmt.Errorf("train: %w", err)
	}
	s.say("trained: %.2f %% of %d test digits right, in %.1f s", 100*metrics.Accuracy, len(s.digits.Test.Images), metrics.Elapsed.Seconds())
	s.report.Accuracy = metrics.Accuracy
	golden, err := model.Golden(meter.GoldenOptions{Set: &s.digits.Test, Seed: s.o.Seed})
	if err != nil {
		return fmt.Errorf("make golden set: %w", err)
	}
	goldenJSON, err := json.Marshal(golden)
	if err != nil {
		return err
	}
	if err := s.await(ctx, "every device online", func(f fleetView) bool { return f.online == len(s.fleet.Devices()) }); err != nil {
		return err
	}
	for _, c := range chapters() {
		if err := s.rollOut(ctx, c, model, goldenJSON); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// rollOut makes a release of one version and follows its rollout.
func (s *story) rollOut(ctx context.Context, c chapter, model *meter.Model, golden []byte) error {
	before := s.bytesReceived()
	began := time.Now()
	onnx, err := model.ONNX(c.export)
	if err != nil {
		return err
	}
	version, err := s.op.PushModel(ctx, meter.ModelName, onnx, golden, c.description)
	if err != nil {
		return err
	}
	req := &releasev1.CreateReleaseRequest{Name: "meter", Version: c.name, Model: version, SoakSeconds: 1}
	if err := s.boxes.serve(ctx, s.op, req); err != nil {
		return err
	}
	release, err := s.op.Release(ctx, req)
	if err != nil {
		return err
	}
	name := release.GetName() + "@" + release.GetVersion()
	s.say("%s (%s): %s of ONNX, release for %d targets, signed", name, c.description, gate.Figure(float64(len(onnx)), "bytes"), len(release.GetTargets()))
	started, err := s.op.Start(ctx, "demo-"+c.name, spec(name, c.gate))
	if err != nil {
		return err
	}
	var shown string
	end, err := s.op.Wait(ctx, started.GetId(), func(r *rolloutv1.Rollout) {
		if line := waves(r); line != shown {
			shown = line
			s.say("  %s", line)
		}
	})
	if err != nil {
		return err
	}
	if end.GetPhase() != c.ends {
		return fmt.Errorf("rollout ended %s (%s), should be %s", end.GetPhase(), end.GetReason(), c.ends)
	}
	serving := name
	if c.ends != "succeeded" {
		serving = "meter@v1"
		s.say("  stopped: %s", end.GetReason())
	}
	err = s.await(ctx, "every device serving "+serving, func(f fleetView) bool {
		return f.running[serving] == len(s.fleet.Devices()) && f.converging == 0
	})
	if err != nil {
		return err
	}
	if err := s.boxes.check(ctx, s.say); err != nil {
		return err
	}
	s.report.add(c, end, time.Since(began), s.bytesReceived()-before)
	s.say("%s: all %d devices serve %s", name, len(s.fleet.Devices()), serving)
	return nil
}

// waves is one line about a rollout.
func waves(r *rolloutv1.Rollout) string {
	parts := []string{r.GetPhase()}
	for _, w := range r.GetWaves() {
		if w.GetState() == "waiting" {
			continue
		}
		text := fmt.Sprintf("%s %d/%d healthy", w.GetName(), w.GetHealthy(), w.GetDevices())
		if w.GetFailed() > 0 {
			text += fmt.Sprintf(", %d failed", w.GetFailed())
		}
		if w.GetRolledBack() > 0 {
			text += fmt.Sprintf(", %d taken back", w.GetRolledBack())
		}
		if w.GetState() != "running" {
			text += " (" + w.GetState() + ")"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, " · ")
}

// fleetView is what the story asks of the fleet.
type fleetView struct {
	online, converging int
	running            map[string]int
}

// await polls the control plane until ok; a person would look at the dashboard.
func (s *story) await(ctx context.Context, what string, ok func(fleetView) bool) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		devices, err := s.op.Devices(ctx, "")
		if err != nil {
			return err
		}
		f := fleetView{running: map[string]int{}}
		for _, d := range devices {
			if d.GetState().String() == "DEVICE_STATE_ONLINE" {
				f.online++
			}
			if d.GetRunningRelease() != d.GetDesiredRelease() || d.GetPhase() == "updating" {
				f.converging++
			}
			f.running[d.GetRunningReleaseName()]++
		}
		if ok(f) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %d of %d online, %d converging, running %v: %w",
				what, f.online, len(s.fleet.Devices()), f.converging, f.running, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

func (s *story) bytesReceived() (n int64) {
	for _, d := range s.fleet.Devices() {
		n += d.BytesReceived()
	}
	return n
}
