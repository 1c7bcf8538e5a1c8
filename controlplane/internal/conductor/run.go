package conductor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
	"github.com/skein-fleet/skein/ota/rollout"
)

// run is one rollout that is not over.
type run struct {
	row   store.Rollout // without State, Members and Summary
	spec  rollout.Spec
	state rollout.State
	extra extra
	notes map[string]note // by device

	saved   map[string]string // what the store has of each device
	members string            // what the store has of the waves' members

	evidence     rollout.Evidence
	evidenceNext time.Time             // when to read again
	before       map[string]gate.Stats // by metric and device
}

// extra is kept with the state of a rollout.
type extra struct {
	Waves []span `json:"waves,omitempty"`
}

// span is when a wave ran.
type span struct {
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
}

// note is kept with the record of a device: wall-clock times, and what it was
// told to go back to. Switch times are of the device's own clock, as are its
// measurements.
type note struct {
	Changed     time.Time  `json:"changed,omitzero"`
	Offered     time.Time  `json:"offered,omitzero"`
	SwitchBegan time.Time  `json:"switchBegan,omitzero"`
	SwitchDone  time.Time  `json:"switchDone,omitzero"`
	Back        ota.Digest `json:"back,omitempty"`
}

// record is the JSON of one device in a rollout.
type record struct {
	Exec rollout.Exec `json:"exec"`
	Note note         `json:"note"`
}

// stored is the JSON of a rollout's state; devices and members are apart.
type stored struct {
	State rollout.State `json:"state"`
	Extra extra         `json:"extra"`
}

func loadRun(ctx context.Context, tx *store.Tx, row store.Rollout) (*run, error) {
	r := &run{row: row, notes: map[string]note{}, before: map[string]gate.Stats{}, members: row.Members}
	if err := json.Unmarshal([]byte(row.Spec), &r.spec); err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	var s stored
	if err := json.Unmarshal([]byte(row.State), &s); err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	r.state, r.extra = s.State, s.Extra
	var members [][]string
	if err := json.Unmarshal([]byte(row.Members), &members); err != nil {
		return nil, fmt.Errorf("read members: %w", err)
	}
	for i := range min(len(members), len(r.state.Waves)) {
		r.state.Waves[i].Members = members[i]
	}
	var err error
	if r.saved, err = tx.RolloutDevices(ctx, row.Tenant, row.ID); err != nil {
		return nil, err
	}
	r.state.Exec = make(map[string]rollout.Exec, len(r.saved))
	for id, text := range r.saved {
		var rec record
		if err := json.Unmarshal([]byte(text), &rec); err != nil {
			return nil, fmt.Errorf("read device %s: %w", id, err)
		}
		r.state.Exec[id], r.notes[id] = rec.Exec, rec.Note
	}
	r.row.State, r.row.Members, r.row.Summary = "", "", ""
	return r, nil
}

// draft is what one look at a rollout would change.
type draft struct {
	state     rollout.State
	extra     extra
	notes     map[string]note // changed ones
	touched   map[string]bool // devices whose record may differ from the stored one
	all       bool            // every record may differ
	decisions []store.Decision
	audit     []store.AuditEntry
}

func (r *run) draft() *draft {
	x := r.extra
	x.Waves = slices.Clone(x.Waves)
	return &draft{state: r.state.Clone(), extra: x, notes: map[string]note{}, touched: map[string]bool{}}
}

func (r *run) note(d *draft, id string) note {
	if n, ok := d.notes[id]; ok {
		return n
	}
	return r.notes[id]
}

// decide looks at one rollout: observe, plan, store, send.
func (c *Conductor) decide(ctx context.Context, r *run, views map[string]*fleet.View) error {
	now := c.cfg.Now()
	d := r.draft()
	changed := c.observe(r, d, views, now)
	c.measure(ctx, r, d, now)
	planned := rollout.Plan(r.spec, d.state, c.devices(r, d, views), r.evidence, now)
	for _, dec := range planned {
		if err := d.apply(r, dec, Actor, now); err != nil {
			return err
		}
	}
	if !changed && len(planned) == 0 {
		r.state = d.state // only when devices were last heard, which need not be kept
		return nil
	}
	if err := c.commit(ctx, r, d); err != nil {
		return err
	}
	return c.carryOut(ctx)
}

// apply changes the draft as the decision says, and keeps it for the store.
func (d *draft) apply(r *run, dec rollout.Decision, actor string, now time.Time) error {
	if !d.state.Apply(dec) {
		return nil
	}
	body, err := json.Marshal(dec)
	if err != nil {
		return fmt.Errorf("encode decision: %w", err)
	}
	sent := store.DecisionNothing
	if dec.Kind.Sends() {
		sent = store.DecisionWaits
	}
	d.decisions = append(d.decisions, store.Decision{Rollout: r.row.ID, Time: dec.At, Actor: actor, Kind: string(dec.Kind), Device: dec.Device, Body: string(body), Sent: sent})
	if dec.Device != "" {
		n := r.note(d, dec.Device)
		n.Changed = now
		switch dec.Kind {
		case rollout.Offer:
			n = note{Changed: now, Offered: dec.At}
		case rollout.Withdraw, rollout.Rollback:
			n.Back = dec.Release
		}
		d.notes[dec.Device], d.touched[dec.Device] = n, true
	}
	switch dec.Kind {
	case rollout.Assign:
		for _, a := range dec.Assign {
			d.touched[a.Device] = true
		}
		d.extra.Waves = append(d.extra.Waves, make([]span, max(0, len(d.state.Waves)-len(d.extra.Waves)))...)
	case rollout.StartWave:
		d.extra.Waves[dec.Wave].Started = dec.At
		d.all = true // the queue of the wave starts
	case rollout.WaveVerdict:
		if dec.Verdict != gate.Inconclusive {
			d.extra.Waves[dec.Wave].Ended = dec.At
		}
	case rollout.Abort:
		d.all = true // everything queued was cancelled
	}
	d.audit = append(d.audit, auditOf(r, dec, actor)...)
	return nil
}

// auditOf gives the audit entries of one decision. What a person did is in the
// audit table already, by the call itself.
func auditOf(r *run, dec rollout.Decision, actor string) []store.AuditEntry {
	if actor != Actor {
		return nil
	}
	subject := r.row.ID
	if dec.Device != "" {
		subject = dec.Device
	}
	after := map[string]any{"rollout": r.row.ID, "wave": dec.Wave, "reason": dec.Reason}
	if dec.Kind.Sends() {
		after["release"] = dec.Release
	}
	if dec.Kind == rollout.Assign {
		after["devices"] = len(dec.Assign)
	}
	text, err := json.Marshal(after)
	if err != nil {
		text = []byte(dec.String())
	}
	return []store.AuditEntry{{Tenant: r.row.Tenant, Time: dec.At, Actor: actor, Action: "rollout/" + string(dec.Kind), Subject: subject,
		Decision: "allowed", Rule: "spec of rollout " + r.row.Name, After: string(text)}}
}

// commit makes a draft durable and takes it over.
func (c *Conductor) commit(ctx context.Context, r *run, d *draft) error {
	execs := map[string]string{}
	for id, e := range d.state.Exec {
		if !d.all && !d.touched[id] {
			continue
		}
		e.HeardAt = 0 // comes again with the next word of the device
		text, err := json.Marshal(record{e, r.note(d, id)})
		if err != nil {
			return fmt.Errorf("encode device %s: %w", id, err)
		}
		if r.saved[id] != string(text) {
			execs[id] = string(text)
		}
	}
	row, err := r.encode(d)
	if err != nil {
		return err
	}
	err = c.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		errs := []error{tx.UpdateRollout(ctx, row), tx.PutRolloutDevices(ctx, row.Tenant, row.ID, execs), tx.AddDecisions(ctx, row.Tenant, d.decisions)}
		for _, e := range d.audit {
			errs = append(errs, tx.AddAudit(ctx, e))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return err
	}
	c.adopt(r, d, row, execs)
	return nil
}

// encode returns the row of the rollout after the draft.
func (r *run) encode(d *draft) (store.Rollout, error) {
	row := r.row
	bare := d.state
	bare.Exec, bare.Waves = nil, slices.Clone(d.state.Waves)
	members := make([][]string, len(bare.Waves))
	for i := range bare.Waves {
		members[i], bare.Waves[i].Members = bare.Waves[i].Members, nil
	}
	state, err1 := json.Marshal(stored{bare, d.extra})
	lists, err2 := json.Marshal(members)
	summary, err3 := json.Marshal(summarise(r, d.state, d.extra))
	if err := errors.Join(err1, err2, err3); err != nil {
		return row, fmt.Errorf("encode state: %w", err)
	}
	row.Phase, row.Final = string(d.state.Phase), d.state.Phase.Final()
	row.State, row.Summary = string(state), string(summary)
	if string(lists) != r.members {
		row.Members = string(lists)
	}
	return row, nil
}

// adopt takes over what was stored.
func (c *Conductor) adopt(r *run, d *draft, row store.Rollout, execs map[string]string) {
	phase := r.state.Phase
	r.state, r.extra = d.state, d.extra
	r.row.Phase, r.row.Final = row.Phase, row.Final
	maps.Copy(r.notes, d.notes)
	maps.Copy(r.saved, execs)
	if row.Members != "" {
		r.members = row.Members
	}
	for _, dec := range d.decisions {
		if dec.Sent == store.DecisionWaits {
			c.waiting = append(c.waiting, dec)
		}
	}
	if phase != r.state.Phase {
		c.cfg.Logger.Info("rollout "+string(r.state.Phase), "rollout", r.row.Name, "id", r.row.ID, "reason", r.state.Reason)
	}
	c.hub.publish(r.row.ID, slices.Collect(maps.Keys(execs)))
}
