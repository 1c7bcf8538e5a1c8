package conductor

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota/gate"
	"github.com/skein-fleet/skein/ota/rollout"
)

// Request says what to roll out. Spec is the JSON of ota/rollout/SPEC.md, in
// which release and rollbackTo may be name@version; without waves it gets the
// default ones.
type Request struct {
	Tenant string
	Spec   []byte
	Name   string // empty: from the release
	By     string
}

// readSpec reads, resolves, fills and checks a spec.
func (c *Conductor) readSpec(ctx context.Context, tenant string, raw []byte) (rollout.Spec, error) {
	spec, err := rollout.Decode(raw)
	if err != nil {
		return spec, fmt.Errorf("%w: spec: %w", ErrInvalid, err)
	}
	if spec.Release == "" {
		return spec, fmt.Errorf("%w: spec: release: name the release, as name@version or digest", ErrInvalid)
	}
	if spec.Release, err = c.cfg.Releases.Resolve(ctx, tenant, string(spec.Release)); err != nil {
		return spec, fmt.Errorf("spec: release: %w", err)
	}
	if spec.RollbackTo != "" && spec.RollbackTo != rollout.Previous {
		to, err := c.cfg.Releases.Resolve(ctx, tenant, spec.RollbackTo)
		if err != nil {
			return spec, fmt.Errorf("spec: rollbackTo: %w", err)
		}
		spec.RollbackTo = string(to)
	}
	if len(spec.Waves) == 0 {
		spec.Waves = rollout.Default(spec.Release).Waves
	}
	errs := []error{spec.Validate()}
	spec = spec.Normalize()
	soak := c.cfg.Releases.Soak(tenant, spec.Release)
	for i, w := range spec.Waves {
		if time.Duration(w.Timeout.Device) <= soak {
			errs = append(errs, &rollout.FieldError{Path: fmt.Sprintf("waves[%d].timeout.device", i),
				Msg: fmt.Sprintf("%s is not longer than the release soaks on a device (%s): every device would time out", w.Timeout.Device, soak)})
		}
		for j, m := range w.Gate.Metrics {
			path := fmt.Sprintf("waves[%d].gate.metrics[%d].name", i, j)
			if c.cfg.Measures == nil {
				errs = append(errs, &rollout.FieldError{Path: path, Msg: "nothing is measured here: the control plane runs without telemetry"})
			} else if err := c.cfg.Measures.CheckMetric(m.Name); err != nil {
				errs = append(errs, &rollout.FieldError{Path: path, Msg: err.Error()})
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return spec, fmt.Errorf("%w: spec: %w", ErrInvalid, err)
	}
	return spec, nil
}

// Start begins a rollout and makes its first decisions before it returns.
func (c *Conductor) Start(ctx context.Context, q Request) (Snapshot, error) {
	spec, err := c.readSpec(ctx, q.Tenant, q.Spec)
	if err != nil {
		return Snapshot{}, err
	}
	if len(q.Name) > 100 || strings.ContainsAny(q.Name, "\n\r") {
		return Snapshot{}, fmt.Errorf("%w: a name has at most 100 characters on one line", ErrInvalid)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.insert(ctx, q, spec)
	if err != nil {
		return Snapshot{}, err
	}
	c.runs = append(c.runs, r)
	c.cfg.Logger.Info("rollout starts", "rollout", r.row.Name, "id", r.row.ID, "release", c.cfg.Releases.Name(q.Tenant, spec.Release), "by", q.By)
	if err := c.lookNow(ctx, r); err != nil {
		c.cfg.Logger.Error("conduct rollouts", "rollout", r.row.Name, "err", err) // it is stored, and goes on at the next look
	}
	return c.snapshot(r), nil
}

// insert stores a new rollout under a name that is free.
func (c *Conductor) insert(ctx context.Context, q Request, spec rollout.Spec) (*run, error) {
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode spec: %w", err)
	}
	id := "r" + strings.ToLower(rand.Text()[:15])
	r := &run{spec: spec, state: rollout.New(id), notes: map[string]note{}, saved: map[string]string{}, before: map[string]gate.Stats{}}
	r.row = store.Rollout{Tenant: q.Tenant, ID: id, Name: q.Name, Spec: string(text), Release: string(spec.Release), Created: c.cfg.Now(), CreatedBy: q.By}
	base := c.cfg.Releases.Name(q.Tenant, spec.Release)
	for i := 1; ; i++ {
		if q.Name == "" {
			r.row.Name = base
			if i > 1 {
				r.row.Name = fmt.Sprintf("%s-%d", base, i)
			}
		}
		row, err := r.encode(r.draft())
		if err != nil {
			return nil, err
		}
		row.Members = "[]"
		err = c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
			store.Note(ctx, id, nil, map[string]any{"name": row.Name, "release": spec.Release, "spec": json.RawMessage(text)})
			return tx.AddRollout(ctx, row)
		})
		switch {
		case err == nil:
			r.members = row.Members
			return r, nil
		case !store.IsUnique(err):
			return nil, err
		case q.Name != "":
			return nil, fmt.Errorf("rollout %q: %w: choose another name", q.Name, ErrExists)
		case i == 1000:
			return nil, fmt.Errorf("rollout %q: %w: name it", base, ErrExists)
		}
	}
}

// lookNow decides for one rollout outside the ordinary step.
func (c *Conductor) lookNow(ctx context.Context, r *run) error {
	ctx = store.WithRecord(ctx, nil)
	if err := c.carryOut(ctx); err != nil {
		return err
	}
	err := c.decide(ctx, r, c.views(r.row.Tenant))
	c.nudge() // older rollouts may have lost devices to it
	return err
}

// Pause stops offers and clocks of a rollout.
func (c *Conductor) Pause(ctx context.Context, tenant, ref, by, reason string) (Snapshot, error) {
	return c.act(ctx, tenant, ref, by, rollout.Decision{Kind: rollout.Pause, Reason: because("paused", by, reason)})
}

// Resume lets a paused rollout go on.
func (c *Conductor) Resume(ctx context.Context, tenant, ref, by, reason string) (Snapshot, error) {
	return c.act(ctx, tenant, ref, by, rollout.Decision{Kind: rollout.Resume, Reason: because("resumed", by, reason)})
}

// Abort ends a rollout as its spec says.
func (c *Conductor) Abort(ctx context.Context, tenant, ref, by, reason string) (Snapshot, error) {
	return c.act(ctx, tenant, ref, by, rollout.Decision{Kind: rollout.Abort, Reason: because("aborted", by, reason)})
}

// Approve passes the gate of a wave that waits for a person. An empty wave is
// the current one.
func (c *Conductor) Approve(ctx context.Context, tenant, ref, wave, by, reason string) (Snapshot, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.running(ctx, tenant, ref)
	if err != nil {
		return Snapshot{}, err
	}
	w := r.state.Wave
	if wave != "" {
		w = -1
		for i := range r.spec.Waves {
			if r.spec.Waves[i].Name == wave {
				w = i
			}
		}
		if w < 0 {
			return Snapshot{}, fmt.Errorf("%w: rollout %s has no wave %q", ErrInvalid, r.row.Name, wave)
		}
	}
	return c.actOn(ctx, r, by, rollout.Decision{Kind: rollout.Approve, Wave: w, Reason: because("approved", by, reason)})
}

func because(what, by, reason string) string {
	text := what + " by " + by
	if reason != "" {
		text += ": " + reason
	}
	return text
}

func (c *Conductor) act(ctx context.Context, tenant, ref, by string, d rollout.Decision) (Snapshot, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.running(ctx, tenant, ref)
	if err != nil {
		return Snapshot{}, err
	}
	d.Wave = r.state.Wave
	return c.actOn(ctx, r, by, d)
}

// running finds a rollout that is not over. The caller holds mu.
func (c *Conductor) running(ctx context.Context, tenant, ref string) (*run, error) {
	row, err := c.lookup(ctx, tenant, ref)
	if err != nil {
		return nil, err
	}
	if r := c.find(row.ID); r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("%w: rollout %s is over (%s)", ErrState, row.Name, row.Phase)
}

// actOn takes a person's decision into a rollout.
func (c *Conductor) actOn(ctx context.Context, r *run, by string, dec rollout.Decision) (Snapshot, error) {
	if err := c.carryOut(ctx); err != nil {
		return Snapshot{}, err
	}
	dec.At = c.cfg.Now()
	d := r.draft()
	was := d.state.Phase
	if err := d.apply(r, dec, by, dec.At); err != nil {
		return Snapshot{}, err
	}
	if len(d.decisions) == 0 {
		return Snapshot{}, fmt.Errorf("%w: rollout %s is %s: %s", ErrState, r.row.Name, was, refusal(dec.Kind, r))
	}
	store.Note(ctx, r.row.ID, map[string]any{"phase": was}, map[string]any{"phase": d.state.Phase, "decision": dec.Kind, "wave": dec.Wave, "reason": dec.Reason})
	if err := c.commit(ctx, r, d); err != nil {
		return Snapshot{}, err
	}
	if err := c.lookNow(ctx, r); err != nil {
		c.cfg.Logger.Error("conduct rollouts", "rollout", r.row.Name, "err", err) // what the person decided is stored, and goes on at the next look
	}
	return c.snapshot(r), nil
}

// refusal says why a person's decision does not fit.
func refusal(k rollout.Kind, r *run) string {
	switch k {
	case rollout.Pause:
		return "only a running rollout can be paused"
	case rollout.Resume:
		return "only a paused rollout can be resumed"
	case rollout.Approve:
		return "the wave has no verdict to approve yet, or is approved already"
	}
	return "it is ending already"
}

// Wave is one wave of a plan.
type Wave struct {
	Name     string
	ByTarget map[string]int
	Devices  []string
	Bytes    int64
}

// Unreachable is a device that can never get the release, and why.
type Unreachable struct{ Device, Name, Reason string }

// Outlook is what a rollout would do.
type Outlook struct {
	Spec        rollout.Spec // with every default
	Waves       []Wave
	Unreachable []Unreachable
	Notes       []string
}

// maxChecks bounds the devices whose parameters a dry run renders.
const maxChecks = 10_000

// Plan is a dry run: nothing is stored or sent.
func (c *Conductor) Plan(ctx context.Context, tenant string, raw []byte) (Outlook, error) {
	spec, err := c.readSpec(ctx, tenant, raw)
	if err != nil {
		return Outlook{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	views := c.views(tenant)
	r := &run{row: store.Rollout{Tenant: tenant}, spec: spec, state: rollout.New("plan")}
	fleetNow := c.devices(r, r.draft(), views)
	p := rollout.Preview("plan", spec, fleetNow)
	out := Outlook{Spec: spec, Notes: p.Warnings}
	name := func(id string) string { return views[id].Name }
	checked := 0
	for _, w := range p.Waves {
		wave := Wave{Name: w.Name, ByTarget: map[string]int{}}
		for _, t := range w.Targets {
			wave.ByTarget[t.Target] += len(t.Devices)
			bytes, err := c.cfg.Releases.Fits(tenant, spec.Release, t.Target)
			if err != nil {
				return Outlook{}, err
			}
			wave.Bytes += bytes * int64(len(t.Devices))
			wave.Devices = append(wave.Devices, t.Devices...)
			for _, id := range t.Devices {
				if checked++; checked > maxChecks {
					break
				}
				if err := c.cfg.Fleet.Check(ctx, tenant, id, spec.Release); err != nil {
					out.Unreachable = append(out.Unreachable, Unreachable{id, name(id), err.Error()})
				}
			}
		}
		out.Waves = append(out.Waves, wave)
	}
	for _, n := range p.Never {
		out.Unreachable = append(out.Unreachable, Unreachable{n.Device, name(n.Device), n.Reason})
	}
	out.Notes = append(out.Notes, c.planNotes(tenant, spec, p, views)...)
	if checked > maxChecks {
		out.Notes = append(out.Notes, fmt.Sprintf("parameters were checked on %d devices only", maxChecks))
	}
	return out, nil
}

func (c *Conductor) planNotes(tenant string, spec rollout.Spec, p rollout.Outlook, views map[string]*fleet.View) []string {
	var notes []string
	add := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	for _, w := range spec.Waves {
		if w.PerTarget > 0 || !w.Limit.IsZero() {
			add("devices of limited waves are drawn when the rollout starts: those listed are an example")
			break
		}
	}
	if len(p.Already) > 0 {
		add("%d devices run the release already", len(p.Already))
	}
	counter, newer := c.cfg.Releases.Counter(tenant, spec.Release), 0
	for _, v := range views {
		if v.HighestCounter > counter && v.Running != "" {
			newer++
		}
	}
	if newer > 0 {
		add("%d devices have run a release with a higher counter than %s: those that run one now are allowed to go back", newer, c.cfg.Releases.Name(tenant, spec.Release))
	}
	for _, other := range c.runs {
		if other.row.Tenant != tenant || other.state.Phase.Final() {
			continue
		}
		verb := "this one takes over the devices that both select"
		if spec.Supersede == rollout.SupersedeSerial {
			verb = "this one waits for the devices that both select"
		}
		add("rollout %s is %s: %s", other.row.Name, other.state.Phase, verb)
	}
	var least time.Duration
	for _, w := range spec.Waves {
		least += time.Duration(w.Soak.Min)
	}
	add("takes at least %s of soak", least)
	return notes
}

// Explain says what holds a rollout up now; the first line is the answer.
func (c *Conductor) Explain(ctx context.Context, tenant, ref string) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	row, err := c.lookup(ctx, tenant, ref)
	if err != nil {
		return nil, err
	}
	r := c.find(row.ID)
	if r == nil {
		var s Snapshot
		if err := json.Unmarshal([]byte(row.Summary), &s); err != nil {
			return nil, fmt.Errorf("read rollout %s: %w", row.Name, err)
		}
		return []string{s.Phase + ": " + s.Reason}, nil
	}
	lines := rollout.Explain(r.spec, r.state, c.devices(r, r.draft(), c.views(tenant)), r.evidence, c.cfg.Now(), "")
	if n := len(c.waiting); n > 0 {
		lines = append(lines, fmt.Sprintf("%d decisions wait to be sent: the fleet does not take them now, see the log", n))
	}
	return lines, nil
}

// ExplainDevice says what the running rollouts do with a device, nothing when
// none has it.
func (c *Conductor) ExplainDevice(_ context.Context, tenant, deviceID string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	var views map[string]*fleet.View
	for _, r := range c.runs {
		if _, has := r.state.Exec[deviceID]; !has || r.row.Tenant != tenant || r.state.Phase.Final() {
			continue
		}
		if views == nil {
			views = c.views(tenant)
		}
		for _, line := range rollout.Explain(r.spec, r.state, c.devices(r, r.draft(), views), r.evidence, c.cfg.Now(), deviceID) {
			out = append(out, "rollout "+r.row.Name+": "+line)
		}
	}
	return out
}
