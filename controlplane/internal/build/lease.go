package build

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/engine"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// canBuild says whether a device may build a job with the target that it says
// it has in the container that builds; the reason is empty when it may.
func canBuild(v fleet.View, said string, r engine.Recipe, target ota.Target) (reason string, ok bool) {
	if !isBuilder(v) {
		return "it is not granted the capability " + Capability, false
	}
	own, err := ota.ParseTarget(v.Target)
	if err != nil {
		return "it has not reported its target", false
	}
	if said != "" {
		inside, err := ota.ParseTarget(said)
		switch {
		case err != nil:
			return "it told no target", false
		case inside.OS != own.OS || inside.Arch != own.Arch || inside.Attrs["sm"] != own.Attrs["sm"] || inside.Attrs["module"] != own.Attrs["module"]:
			return fmt.Sprintf("it builds for %s and says that it is %s", inside, own), false
		}
		own = inside
	}
	return r.Builds(target, own)
}

// pick returns the job that a free device should do: the most urgent one that
// it fits and may try now; mu is held.
func (q *Queue) pick(v fleet.View, said string, now time.Time) *job {
	if b := q.builders[place{v.Tenant, v.ID}]; b != nil && now.Before(b.busyUntil) {
		return nil
	}
	for _, j := range q.sorted() {
		if j.Tenant != v.Tenant || j.State != store.BuildQueued {
			continue
		}
		if _, ok := canBuild(v, said, j.recipe, j.target); !ok {
			continue
		}
		if tried(j, v.ID) && (now.Before(j.NotBefore) || q.other(j, v.ID)) {
			continue // another one does it, or it is too soon
		}
		return j
	}
	return nil
}

func tried(j *job, device string) bool {
	return slices.ContainsFunc(j.Tried, func(a store.BuildAttempt) bool { return a.Device == device })
}

// other reports whether an online builder fits the job that has not tried it;
// mu is held.
func (q *Queue) other(j *job, but string) bool {
	return slices.ContainsFunc(q.cfg.Fleet.Capable(j.Tenant, Capability), func(v fleet.View) bool {
		if v.ID == but || !v.Online || tried(j, v.ID) {
			return false
		}
		said := ""
		if b := q.builders[place{v.Tenant, v.ID}]; b != nil {
			said = b.target
		}
		_, ok := canBuild(v, said, j.recipe, j.target)
		return ok
	})
}

// held returns the job that is leased to a device, or nil; mu is held.
func (q *Queue) held(tenant, device string) *job {
	for _, j := range q.jobs {
		if j.Tenant == tenant && j.State == store.BuildLeased && j.Device == device {
			return j
		}
	}
	return nil
}

// lease gives a job to a device, durably; mu is held.
func (q *Queue) lease(ctx context.Context, j *job, device string, now time.Time) error {
	err := q.keep(ctx, j, func(b *store.Build) {
		b.State, b.Device, b.Leased, b.Message = store.BuildLeased, device, now, ""
		b.Attempt++
	})
	if err != nil {
		return err
	}
	j.expires, j.step, j.percent, j.said = now.Add(q.cfg.Life), "", 0, ""
	j.log.reset()
	q.cfg.Logger.Info("build leased", "build", j.ID, "model", fmt.Sprintf("%s@%d", j.Model, j.ModelVersion), "target", j.Target, "device", device, "attempt", j.Attempt)
	return nil
}

// final are classes of failure that another device would not mend.
func final(class string) bool { return class == wire.BuildUnsupported || class == wire.BuildGolden }

// giveBack ends an attempt without an engine: the job waits for another device,
// or has failed; mu is held.
func (q *Queue) giveBack(ctx context.Context, j *job, class, message string) error {
	now := q.cfg.Now()
	logDigest := ""
	if text := j.log.all(); len(text) > 0 {
		d, err := q.cfg.Blobs.PutBytes(text)
		if err != nil {
			return fmt.Errorf("keep log of build %s: %w", j.ID, err)
		}
		logDigest = string(d)
	}
	device := j.Device
	err := q.keep(ctx, j, func(b *store.Build) {
		if class != wire.BuildBusy { // a device with no headroom has tried nothing
			b.Tried = append(b.Tried, store.BuildAttempt{Attempt: b.Attempt, Device: b.Device, Class: class, Message: message, Ended: now.UTC()})
		}
		b.State, b.Message, b.Log = store.BuildQueued, class+": "+message, logDigest
		b.NotBefore = now.Add(time.Minute << min(len(b.Tried), 6))
		if final(class) || len(b.Tried) >= q.cfg.Attempts {
			b.State, b.Finished = store.BuildFailed, now
		}
	})
	if err != nil {
		return err
	}
	q.cfg.Logger.Warn("build given back", "build", j.ID, "device", device, "class", class, "message", message, "state", j.State, "attempts", len(j.Tried))
	if j.Open() {
		q.nudge(j, now)
	}
	return nil
}

// nudge tells free builders that fit a job to ask; mu is held.
func (q *Queue) nudge(j *job, now time.Time) {
	for _, v := range q.cfg.Fleet.Capable(j.Tenant, Capability) {
		if !v.Online || q.held(v.Tenant, v.ID) != nil {
			continue
		}
		if _, ok := canBuild(v, "", j.recipe, j.target); ok {
			l := q.none(v.Tenant, v.ID, now, "")
			l.Every = 1
			q.tell(v.Tenant, v.ID, l)
		}
	}
}

// stand is where a device stands: its lease, or that there is nothing for it.
func (q *Queue) stand(tenant, device string, now time.Time) wire.BuildLease {
	v, err := q.cfg.Fleet.Get(tenant, device)
	if err != nil || !isBuilder(v) {
		l := q.none(tenant, device, now, "this device is not granted the capability "+Capability)
		l.State = wire.LeaseDismissed
		return l
	}
	if j := q.held(tenant, device); j != nil {
		return q.granted(j, now)
	}
	return q.none(tenant, device, now, "")
}

// greet tells a builder where it stands, and to ask at once when there is
// something for it; mu is held.
func (q *Queue) greet(v fleet.View, now time.Time) {
	l := q.stand(v.Tenant, v.ID, now)
	if l.State == wire.LeaseNone && q.pick(v, "", now) != nil {
		l.Every = 1
	}
	q.tell(v.Tenant, v.ID, l)
}

func (q *Queue) none(tenant, device string, now time.Time, why string) wire.BuildLease {
	return wire.BuildLease{Device: device, Tenant: tenant, State: wire.LeaseNone, IssuedAt: now.UnixMilli(), ExpiresAt: now.Add(q.cfg.Life).Unix(),
		Every: int64(max(time.Second, q.cfg.Ask) / time.Second), Message: why}
}

// about is a lease that says what became of an attempt.
func (q *Queue) about(tenant, device, id string, attempt uint32, state wire.LeaseState, now time.Time, why string) wire.BuildLease {
	l := q.none(tenant, device, now, why)
	l.State, l.Job, l.Attempt = state, id, attempt
	return l
}

// granted is the lease of a job; mu is held.
func (q *Queue) granted(j *job, now time.Time) wire.BuildLease {
	l := q.about(j.Tenant, j.Device, j.ID, j.Attempt, wire.LeaseBuild, now, "")
	l.ExpiresAt = max(j.expires.Unix(), now.Unix()+1)
	l.Every = int64(max(time.Second, q.cfg.Every) / time.Second)
	sum := func(d string) []byte { return ota.Digest(d).Sum() }
	size := func(d string) int64 {
		n, err := q.cfg.Blobs.Size(ota.Digest(d))
		if err != nil {
			q.cfg.Logger.Error("blob of a build", "build", j.ID, "blob", d, "error", err)
		}
		return n
	}
	w := &wire.BuildWork{Model: j.Model, Version: j.ModelVersion, ONNX: wire.Blob{Digest: sum(j.ONNX), Length: size(j.ONNX), Name: "model.onnx"},
		Recipe: j.raw, Target: j.Target, Key: sum(j.Key), Upload: "/build/" + j.ID + "/", Token: q.token(j), MaxBytes: q.cfg.MaxBytes}
	if j.Golden != "" {
		w.Golden = &wire.Blob{Digest: sum(j.Golden), Length: size(j.Golden), Name: "golden.json"}
	}
	if c := j.recipe.Calibration; c != nil {
		w.Calibration = &wire.Blob{Digest: c.Digest.Sum(), Length: c.Size, Name: c.Name}
	}
	for _, p := range j.recipe.Plugins {
		w.Plugins = append(w.Plugins, wire.Blob{Digest: p.Digest.Sum(), Length: p.Size, Name: p.Name})
	}
	if d, n := q.timing(j); d != "" {
		w.TimingCache = &wire.Blob{Digest: d.Sum(), Length: n, Name: "timing.cache"}
	}
	l.Work = w
	return l
}

// timing finds a timing cache for the device that has the job.
func (q *Queue) timing(j *job) (d ota.Digest, n int64) {
	v, err := q.cfg.Fleet.Get(j.Tenant, j.Device)
	if err != nil {
		return "", 0
	}
	err = q.cfg.Store.View(context.Background(), func(tx *store.Tx) error {
		text, size, err := tx.TimingCache(context.Background(), j.Tenant, timingClass(v.Target))
		d, n = ota.Digest(text), size
		return err
	})
	if err != nil || !q.cfg.Blobs.Has(d) {
		return "", 0
	}
	return d, n
}

// timingClass names the devices for which one timing cache is good: same SM,
// TensorRT, module and power mode, for tactics are timed.
func timingClass(target string) string {
	t, err := ota.ParseTarget(target)
	if err != nil {
		return ""
	}
	c := ota.Target{OS: t.OS, Arch: t.Arch, Attrs: map[string]string{}}
	for _, k := range []string{"sm", "module", "mode"} {
		if v := t.Attrs[k]; v != "" {
			c.Attrs[k] = v
		}
	}
	if p := engine.Patch(t.Attrs["trt"]); p != "" {
		c.Attrs["trt"] = p
	}
	return c.String()
}

// token proves that an upload belongs to the lease; it is made from it, so
// nothing is stored, and a restart makes new ones.
func (q *Queue) token(j *job) string {
	m := hmac.New(sha256.New, q.secret)
	for _, part := range []string{j.Tenant, j.ID, strconv.FormatUint(uint64(j.Attempt), 10), j.Device} {
		m.Write([]byte(part + "\n"))
	}
	return hex.EncodeToString(m.Sum(nil))
}

// MayRead lets the device that has a lease read what it builds from.
func (q *Queue) MayRead(tenant, device string, d ota.Digest) bool {
	q.mu.Lock()
	j := q.held(tenant, device)
	if j == nil {
		q.mu.Unlock()
		return false
	}
	inputs := []ota.Digest{ota.Digest(j.ONNX), ota.Digest(j.Golden)}
	if j.recipe.Calibration != nil {
		inputs = append(inputs, j.recipe.Calibration.Digest)
	}
	for _, p := range j.recipe.Plugins {
		inputs = append(inputs, p.Digest)
	}
	q.mu.Unlock()
	if slices.Contains(inputs, d) {
		return true
	}
	cache, _ := q.timing(&job{Build: store.Build{Tenant: tenant, Device: device}})
	return cache != "" && cache == d
}

// tell queues an answer; the newest of a device wins.
func (q *Queue) tell(tenant, device string, l wire.BuildLease) {
	p := place{tenant, device}
	b := q.builders[p]
	if b == nil {
		b = &builder{}
		q.builders[p] = b
	}
	b.told = q.cfg.Now()
	q.out.Add(p, l)
}

// publish signs and sends an answer.
func (q *Queue) publish(ctx context.Context, l wire.BuildLease) {
	err := func() error {
		director, err := q.cfg.Director()
		if err != nil {
			return err
		}
		payload, err := wire.Marshal(&l)
		if err != nil {
			return err
		}
		signed, err := trust.Sign(director, wire.AADBuild, payload)
		if err != nil {
			return err
		}
		return q.cfg.Link.Publish(ctx, l.Device, wire.DownBuild, signed)
	}()
	if err != nil && ctx.Err() == nil {
		q.cfg.Logger.Debug("answer builder", "device", l.Device, "state", l.State.String(), "error", err)
	}
}
