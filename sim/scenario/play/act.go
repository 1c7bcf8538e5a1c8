package play

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	releasev1 "github.com/skein-fleet/skein/proto/gen/skein/release/v1"
	rolloutv1 "github.com/skein-fleet/skein/proto/gen/skein/rollout/v1"
	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/scenario"
	"github.com/skein-fleet/skein/telemetry"
)

// The engine's defaults for rollouts: minutes and hours of the field are
// seconds here.
const (
	defaultSoak    = time.Second
	defaultTimeout = 25 * time.Second
	defaultAbort   = 0.2
	deviceSoak     = 1 // seconds
)

// do plays one step.
func (s *stage) do(ctx context.Context, step scenario.Step) error {
	s.note("line %d: %s", step.Line, strings.SplitN(step.String(), " ", 3)[2])
	switch a := step.Action.(type) {
	case scenario.Release:
		return s.release(ctx, a)
	case scenario.Rollout:
		return s.rollout(ctx, a)
	case scenario.Control:
		return s.control(ctx, a)
	case scenario.Policy:
		return patiently(ctx, func(ctx context.Context) error { return s.policy(ctx, a) })
	case scenario.Route:
		for _, d := range s.fleet.Pick(a.To, s.script.Seed) {
			d.SetInterface(a.Interface)
		}
		return nil
	case scenario.Cache:
		return s.cache(ctx, a)
	case scenario.Bundle:
		return s.bundle(ctx, a)
	case scenario.Restart:
		// The broker is embedded in skeind: they die together.
		if err := s.plane.Restart(ctx, a.Down); err != nil {
			return err
		}
		s.note("line %d: skeind is back", step.Line)
		return nil
	}
	return fmt.Errorf("%T cannot be played", step.Action)
}

// cache makes devices the caches of their sites, and returns when they serve.
func (s *stage) cache(ctx context.Context, a scenario.Cache) error {
	for _, d := range s.fleet.Pick(a.Of, s.script.Seed) {
		err := patiently(ctx, func(ctx context.Context) error {
			_, err := s.op.Fleet.LabelDevice(ctx, &fleetv1.LabelDeviceRequest{Device: d.ID(), Grant: []string{"cache"}})
			return err
		})
		if err != nil {
			return fmt.Errorf("make %s a cache: %w", d.Name(), err)
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("a cache does not serve"))
	defer cancel()
	for _, d := range s.fleet.Pick(a.Of, s.script.Seed) {
		for {
			r, err := s.op.Fleet.GetDevice(ctx, &fleetv1.GetDeviceRequest{Device: d.ID()})
			if err != nil && !away(err) {
				return err
			}
			if err == nil && len(r.GetDevice().GetServes()) > 0 {
				break
			}
			if !sleep(ctx, lookEvery) {
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// patiently repeats what a person does while the control plane is away.
func patiently(ctx context.Context, act func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := act(ctx)
		if err == nil || !away(err) {
			return err
		}
		if !sleep(ctx, lookEvery) {
			return err
		}
	}
}

// away tells a control plane that cannot be reached from one that says no.
func away(err error) bool {
	text := err.Error()
	return strings.Contains(text, "unavailable") || strings.Contains(text, "connection re") || strings.Contains(text, "EOF")
}

func (s *stage) release(ctx context.Context, a scenario.Release) error {
	s.mu.Lock()
	number := int64(len(s.order) + 1)
	s.mu.Unlock()
	onnx, err := s.o.Workshop.build(a.Defect, number)
	if err != nil {
		return err
	}
	var version string
	var made *made
	err = patiently(ctx, func(ctx context.Context) (err error) {
		if version == "" {
			if version, err = s.op.PushModel(ctx, meter.ModelName, onnx, s.o.Workshop.golden, "scenario release "+a.Name); err != nil {
				return err
			}
		}
		made, err = s.publish(ctx, a, version)
		return err
	})
	if err != nil {
		return err
	}
	if a.Defect == scenario.Broken {
		if err := damage(s.plane.DataDir, ota.DigestOf(onnx)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made[a.Name] = made
	s.order = append(s.order, a.Name)
	return nil
}

// publish makes the release, or finds it when an answer was lost.
func (s *stage) publish(ctx context.Context, a scenario.Release, model string) (*made, error) {
	machine, err := s.systems(ctx, a)
	if err != nil {
		return nil, err
	}
	r, err := s.op.Release(ctx, &releasev1.CreateReleaseRequest{Name: meter.ModelName, Version: a.Name, Model: model, SoakSeconds: deviceSoak, Machine: machine})
	if err != nil {
		got, gerr := s.op.Releases.GetRelease(ctx, &releasev1.GetReleaseRequest{Release: meter.ModelName + "@" + a.Name})
		if gerr != nil {
			return nil, err
		}
		r = got.GetRelease()
	}
	return &made{defect: a.Defect, digest: r.GetDigest(), name: r.GetName() + "@" + r.GetVersion(), version: strconv.FormatInt(r.GetModelVersion(), 10)}, nil
}

// systems uploads the operating systems that a release brings: for each kind of
// Jetson in the fleet one that leads to the same target with another L4T.
func (s *stage) systems(ctx context.Context, a scenario.Release) (out []*releasev1.MachineLayer, err error) {
	if a.OS == "" {
		return nil, nil
	}
	image, err := s.op.Upload(ctx, []byte(jetson.OSImage{L4T: a.OS, Dead: a.DeadOS}.String()))
	if err != nil {
		return nil, err
	}
	devices, err := s.op.Devices(ctx, "")
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, d := range devices {
		before, err := ota.ParseTarget(d.GetTarget())
		if err != nil {
			return nil, fmt.Errorf("target of device %s: %w", d.GetName(), err)
		}
		if before.Attrs["l4t"] == "" || seen[before.String()] {
			continue
		}
		seen[before.String()] = true
		after := ota.Target{OS: before.OS, Arch: before.Arch, Attrs: maps.Clone(before.Attrs)}
		after.Attrs["l4t"] = a.OS
		out = append(out, &releasev1.MachineLayer{Target: before.String(), OsImageDigest: string(image), OsTarget: after.String()})
	}
	return out, nil
}

// damage flips a bit of a blob on the server's disk.
func damage(dataDir string, d ota.Digest) error {
	var file string
	err := filepath.WalkDir(dataDir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && e.Name() == d.Hex() {
			file = path
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("look for blob %s: %w", d.Short(), err)
	}
	if file == "" {
		return fmt.Errorf("blob %s is not below %s", d.Short(), dataDir)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("damage blob: %w", err)
	}
	raw[len(raw)/2] ^= 0x10
	if err := os.Chmod(file, 0o600); err != nil {
		return fmt.Errorf("damage blob: %w", err)
	}
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		return fmt.Errorf("damage blob: %w", err)
	}
	return nil
}

func (s *stage) rollout(ctx context.Context, a scenario.Rollout) error {
	s.mu.Lock()
	made := s.made[a.Release]
	past := false // there is something to compare with
	for _, state := range s.seen.rollouts {
		past = past || state == "done"
	}
	s.mu.Unlock()
	if made == nil {
		return fmt.Errorf("release %s was not made", a.Release)
	}
	spec := s.spec(a, made.name, past)
	return patiently(ctx, func(ctx context.Context) error {
		name := "scenario-" + a.Release
		r, err := s.op.Start(ctx, name, spec)
		if err != nil {
			got, gerr := s.op.Rollouts.GetRollout(ctx, &rolloutv1.GetRolloutRequest{Rollout: name})
			if gerr != nil {
				return err
			}
			r = got.GetRollout()
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.rollouts[a.Release] = r.GetId()
		return nil
	})
}

// spec is the rollout as a person would write it.
func (s *stage) spec(a scenario.Rollout, release string, past bool) map[string]any {
	abort := a.Abort
	if abort == 0 {
		abort = defaultAbort
	}
	soak, timeout := orDefault(a.Soak, defaultSoak), orDefault(a.Timeout, defaultTimeout)
	gate := map[string]any{
		"success": map[string]any{"minPct": 100 * (1 - abort)},
		"abort":   []any{map[string]any{"failure": "ALL", "pct": 100 * abort, "minExecuted": 2}},
	}
	if past {
		gate["metrics"] = []any{map[string]any{"name": telemetry.InferenceP50, "maxRatio": 1.5, "floor": 0.002, "maxRegressedPct": 25, "minSamples": 3}}
		gate["inconclusive"] = "wait"
	}
	sizes := a.Waves
	if len(sizes) == 0 {
		sizes = []scenario.Size{{Count: 2}, {Percent: 25}}
	}
	var waves []any
	for i, size := range append(append([]scenario.Size(nil), sizes...), scenario.Size{}) {
		w := map[string]any{"name": fmt.Sprintf("wave-%d", i+1), "gate": gate, "soak": map[string]any{"min": soak.String()},
			"timeout": map[string]any{"device": timeout.String(), "silent": timeout.String(), "offline": "wait"}}
		switch {
		case size.Count > 0:
			w["limit"] = size.Count
		case size.Percent > 0:
			w["limit"] = strconv.FormatFloat(size.Percent, 'g', -1, 64) + "%"
		}
		waves = append(waves, w)
	}
	spec := map[string]any{"release": release, "waves": waves}
	var ids []string
	for _, d := range s.fleet.Pick(a.To, s.script.Seed) {
		ids = append(ids, d.ID())
	}
	if len(ids) < s.script.Devices {
		spec["selector"] = map[string]any{"devices": ids}
	}
	return spec
}

func orDefault(d, def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return d
}

func (s *stage) control(ctx context.Context, a scenario.Control) error {
	s.mu.Lock()
	id := s.rollouts[a.Release]
	s.mu.Unlock()
	if id == "" {
		return fmt.Errorf("%s %s: its rollout was not started", a.Verb, a.Release)
	}
	const reason = "the scenario says so"
	return patiently(ctx, func(ctx context.Context) (err error) {
		switch a.Verb {
		case "pause":
			_, err = s.op.Rollouts.PauseRollout(ctx, &rolloutv1.PauseRolloutRequest{Rollout: id, Reason: reason})
		case "resume":
			_, err = s.op.Rollouts.ResumeRollout(ctx, &rolloutv1.ResumeRolloutRequest{Rollout: id, Reason: reason})
		case "abort":
			_, err = s.op.Rollouts.AbortRollout(ctx, &rolloutv1.AbortRolloutRequest{Rollout: id, Reason: reason})
		case "approve":
			err = s.approve(ctx, id, reason)
		default:
			err = errors.New("unknown verb " + a.Verb)
		}
		return err
	})
}

// approve passes the gate of the wave that the rollout is in.
func (s *stage) approve(ctx context.Context, id, reason string) error {
	r, err := s.op.Rollouts.GetRollout(ctx, &rolloutv1.GetRolloutRequest{Rollout: id})
	if err != nil {
		return err
	}
	i := int(r.GetRollout().GetCurrentWave())
	waves := r.GetRollout().GetWaves()
	if i < 0 || i >= len(waves) {
		return fmt.Errorf("approve: the rollout is in no wave")
	}
	_, err = s.op.Rollouts.ApproveWave(ctx, &rolloutv1.ApproveWaveRequest{Rollout: id, Wave: waves[i].GetName(), Reason: reason})
	return err
}
