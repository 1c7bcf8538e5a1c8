package build

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/attest"
	"github.com/skein-fleet/skein/ota/engine"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// errRefused is a result that does not count; the attempt has failed.
type errRefused struct {
	class string
	err   error
}

func (e errRefused) Error() string { return e.err.Error() }
func (e errRefused) Unwrap() error { return e.err }

// done takes the result of an attempt, or ends the attempt with why not; mu is
// held.
func (q *Queue) done(ctx context.Context, j *job, m wire.Build, now time.Time) error {
	tenant, device := j.Tenant, j.Device
	err := q.accept(ctx, j, m.Record, now)
	if refused, ok := errors.AsType[errRefused](err); ok {
		if refused.class == wire.BuildTransfer { // what is missing may still come
			j.said = refused.Error()
			l := q.granted(j, now)
			l.Message = refused.Error()
			q.tell(tenant, device, l)
			return nil
		}
		if err := q.cfg.Fleet.Noticed(ctx, tenant, device, "engine-refused", fmt.Sprintf("build %s: %v", j.ID, refused), ""); err != nil {
			return err
		}
		if err := q.giveBack(ctx, j, refused.class, cut(refused.Error())); err != nil {
			return err
		}
		q.tell(tenant, device, q.about(tenant, device, m.Job, m.Attempt, wire.LeaseStop, now, "refused: "+refused.Error()))
		return nil
	}
	if err != nil {
		return err
	}
	q.tell(tenant, device, q.about(tenant, device, m.Job, m.Attempt, wire.LeaseStored, now, ""))
	return nil
}

// accept checks what was built, countersigns its record and keeps both; mu is
// held.
func (q *Queue) accept(ctx context.Context, j *job, signed []byte, now time.Time) error {
	key, err := q.cfg.Fleet.Key(j.Tenant, j.Device)
	if err != nil {
		return err
	}
	r, err := engine.Verify([]crypto.PublicKey{key}, signed)
	if err != nil {
		return errRefused{wire.BuildTool, err}
	}
	if err := j.matches(r); err != nil {
		return errRefused{wire.BuildMismatch, err}
	}
	if err := q.uploadsOf(r); err != nil {
		return err
	}
	if j.Golden != "" {
		raw, err := q.cfg.Blobs.ReadAll(ctx, ota.Digest(j.Golden), manifest.MaxGolden)
		if err != nil {
			return err
		}
		set, err := manifest.ParseGolden(raw)
		if err != nil {
			return err
		}
		if err := engine.Prove(r, set); err != nil {
			return errRefused{wire.BuildGolden, err}
		}
	}
	director, err := q.cfg.Director()
	if err != nil {
		return err
	}
	// A device that is no builder any more has built for itself alone.
	scope := ""
	v, err := q.cfg.Fleet.Get(j.Tenant, j.Device)
	if err != nil {
		return err
	}
	if !isBuilder(v) {
		scope = j.Device
	}
	seal, err := engine.Seal(director, j.Tenant, signed, key, scope, now)
	if err != nil {
		return errRefused{wire.BuildTool, err}
	}
	e, err := q.write(j, r, director, seal, now)
	if err != nil {
		return err
	}
	e.Scope = scope
	if e.BuilderKey, err = x509.MarshalPKIXPublicKey(key); err != nil {
		return err
	}
	record, err := q.cfg.Blobs.PutBytes(signed)
	if err != nil {
		return err
	}
	e.Record = string(record)
	err = q.keep(ctx, j, func(b *store.Build) {
		b.State, b.Finished, b.Message, b.Log = store.BuildDone, now, "", e.Log
		if scope != "" {
			b.State, b.Message = store.BuildFailed, "the device lost the capability "+Capability+" while it built: the engine serves there alone"
		}
	}, func(tx *store.Tx) error { return tx.AddEngine(ctx, e) })
	if store.IsUnique(err) {
		return errRefused{wire.BuildStopped, fmt.Errorf("%w: an engine with this key", ErrExists)}
	}
	if err == nil {
		q.cfg.Logger.Info("engine built", "build", j.ID, "engine", j.Key, "record", engine.Summary(r))
	}
	return err
}

// matches checks that a record is about this attempt.
func (j *job) matches(r wire.EngineRecord) error {
	same := func(what string, sum []byte, want string) error {
		if want == "" && len(sum) == 0 || bytes.Equal(sum, ota.Digest(want).Sum()) {
			return nil
		}
		return fmt.Errorf("record has another %s than the lease", what)
	}
	if err := errors.Join(same("key", r.Key, j.Key), same("ONNX file", r.ONNX, j.ONNX), same("golden set", r.Golden, j.Golden), same("recipe", r.Recipe, j.Recipe)); err != nil {
		return err
	}
	probed, err := ota.ParseTarget(r.Probed)
	if err != nil {
		return err
	}
	reason, fits := j.recipe.Builds(j.target, probed)
	switch {
	case r.Job != j.ID || r.Attempt != j.Attempt || r.Device != j.Device:
		return fmt.Errorf("record is of attempt %d of build %s by %s", r.Attempt, r.Job, r.Device)
	case r.Model != j.Model || r.Version != j.ModelVersion || r.Target != j.Target:
		return fmt.Errorf("record is of %s@%d for %s", r.Model, r.Version, r.Target)
	case !fits:
		return fmt.Errorf("built on %s: %s", probed, reason)
	case r.Stripped && !j.recipe.Strip:
		return errors.New("the plan is stripped of its weights, and the recipe does not ask for that")
	case j.recipe.Strip && !r.Stripped && r.Fallback == "":
		return errors.New("the recipe asks for a stripped plan, and the record does not say why it is a full one")
	}
	return nil
}

// uploadsOf checks that what a record names is here, in its length.
func (q *Queue) uploadsOf(r wire.EngineRecord) error {
	parts := []wire.Blob{{Name: "engine", Digest: r.Digest, Length: r.Size}, r.Log}
	if r.TimingCache != nil {
		parts = append(parts, *r.TimingCache)
	}
	for _, p := range parts {
		if len(p.Digest) != 32 {
			return errRefused{wire.BuildTool, fmt.Errorf("%q has no digest", p.Name)}
		}
		n, err := q.cfg.Blobs.Size(ota.DigestFromSum([32]byte(p.Digest)))
		if err != nil {
			return errRefused{wire.BuildTransfer, fmt.Errorf("%s %x was not uploaded: PUT it first", p.Name, p.Digest[:6])}
		}
		if n != p.Length || n > q.cfg.MaxBytes {
			return errRefused{wire.BuildTool, fmt.Errorf("%s has %d bytes, the record says %d, at most %d", p.Name, n, p.Length, q.cfg.MaxBytes)}
		}
	}
	return nil
}

// write stores seal and provenance and returns the row of the engine.
func (q *Queue) write(j *job, r wire.EngineRecord, director *trust.Signer, seal []byte, now time.Time) (store.Engine, error) {
	digest := func(sum []byte) string { return string(ota.DigestFromSum([32]byte(sum))) }
	sealAt, err := q.cfg.Blobs.PutBytes(seal)
	if err != nil {
		return store.Engine{}, err
	}
	st, err := q.statement(j, r, sealAt)
	if err != nil {
		return store.Engine{}, err
	}
	raw, err := attest.Sign(director, st)
	if err != nil {
		return store.Engine{}, err
	}
	statementAt, err := q.cfg.Blobs.PutBytes(raw)
	if err != nil {
		return store.Engine{}, err
	}
	e := store.Engine{Tenant: j.Tenant, Key: j.Key, Model: j.Model, ModelVersion: j.ModelVersion, Recipe: j.Recipe, Target: j.Target,
		Plan: digest(r.Digest), Seal: string(sealAt), Provenance: string(statementAt), Log: digest(r.Log.Digest), Build: j.ID, TimingClass: timingClass(r.Probed), Created: now}
	if r.TimingCache != nil {
		e.Timing, e.TimingSize = digest(r.TimingCache.Digest), r.TimingCache.Length
	}
	return e, nil
}

// statement is the provenance of an engine: what it was built from, where, and
// how it did there.
func (q *Queue) statement(j *job, r wire.EngineRecord, seal ota.Digest) (attest.Statement, error) {
	var recipe map[string]any
	if err := json.Unmarshal(j.raw, &recipe); err != nil {
		return attest.Statement{}, fmt.Errorf("recipe of build %s: %w", j.ID, err)
	}
	of := func(name string, sum []byte, media string) attest.Resource {
		return attest.Of(name, ota.DigestFromSum([32]byte(sum)), media)
	}
	num := func(f float64) string { return strconv.FormatFloat(f, 'g', 6, 64) }
	measured := map[string]string{"latencyP50Ms": num(r.LatencyP50), "latencyP99Ms": num(r.LatencyP99), "throughputPerSecond": num(r.Throughput)}
	if r.Power > 0 {
		measured["powerWatts"] = num(r.Power)
	}
	if r.Mode != "" {
		measured["powerMode"] = r.Mode
	}
	if p := r.Proof; p != nil {
		measured["goldenCases"], measured["goldenAgreed"] = strconv.FormatInt(p.Cases, 10), strconv.FormatInt(p.Agreed, 10)
		measured["goldenMaxAbs"] = num(p.MaxAbs)
	}
	if r.Fallback != "" {
		measured["fullPlanBecause"] = r.Fallback
	}
	inputs := []attest.Resource{of("model.onnx", r.ONNX, manifest.MediaWeights)}
	if len(r.Golden) == 32 {
		inputs = append(inputs, of("golden.json", r.Golden, manifest.MediaGolden))
	}
	if c := j.recipe.Calibration; c != nil {
		inputs = append(inputs, attest.Of(c.Name, c.Digest, ""))
	}
	for _, p := range j.recipe.Plugins {
		inputs = append(inputs, attest.Of(p.Name, p.Digest, ""))
	}
	record := attest.Of("engine-record", seal, "application/cose")
	record.Annotations = measured
	by := []attest.Resource{record, of("build.log", r.Log.Digest, "text/plain")}
	if r.TimingCache != nil {
		by = append(by, of("timing.cache", r.TimingCache.Digest, ""))
	}
	return attest.NewStatement([]attest.Resource{of("model.plan", r.Digest, manifest.MediaWeights)}, attest.Provenance{
		BuildDefinition: attest.BuildDefinition{BuildType: attest.BuildEngine,
			ExternalParameters:   map[string]any{"model": fmt.Sprintf("%s@%d", r.Model, r.Version), "recipe": recipe, "target": r.Target},
			InternalParameters:   map[string]any{"key": j.Key, "probed": r.Probed, "tensorrt": r.TensorRT, "image": r.Image, "command": r.Command, "attempt": r.Attempt},
			ResolvedDependencies: inputs},
		RunDetails: attest.RunDetails{
			Builder:    attest.Builder{ID: wire.SpiffeID(q.cfg.Domain, j.Tenant, j.Device), Version: map[string]string{"skeind": q.cfg.Version, "go": runtime.Version(), "tensorrt": r.TensorRT}},
			Metadata:   attest.Metadata{InvocationID: j.ID, StartedOn: attest.Stamp(time.Unix(r.Started, 0)), FinishedOn: attest.Stamp(time.Unix(r.Finished, 0))},
			Byproducts: by}}), nil
}
