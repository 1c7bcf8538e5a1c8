package store

import (
	"context"
	"database/sql"
	"time"
)

// Rollout is a rollout as stored. State, Members and Summary are the
// conductor's JSON.
type Rollout struct {
	Tenant    string
	ID        string
	Name      string
	Spec      string
	Release   string // digest
	Phase     string
	Final     bool
	State     string
	Members   string
	Summary   string
	Created   time.Time
	CreatedBy string
}

const rolloutColumns = `tenant, id, name, spec, release, phase, final, state, members, summary, created, created_by`

func scanRollout(scan func(...any) error) (Rollout, error) {
	var r Rollout
	var created int64
	err := scan(&r.Tenant, &r.ID, &r.Name, &r.Spec, &r.Release, &r.Phase, &r.Final, &r.State, &r.Members, &r.Summary, &created, &r.CreatedBy)
	r.Created = fromMillis(created)
	return r, err
}

// AddRollout stores a new rollout. A taken name is IsUnique.
func (tx *Tx) AddRollout(ctx context.Context, r Rollout) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO rollouts (`+rolloutColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)`, r.Tenant, r.ID, r.Name, r.Spec, r.Release,
		r.Phase, r.Final, r.State, r.Members, r.Summary, millis(r.Created), r.CreatedBy)
	return wrap(err, "store rollout "+r.Name)
}

// UpdateRollout stores what may change of a rollout. Empty Members stay as
// they are.
func (tx *Tx) UpdateRollout(ctx context.Context, r Rollout) error {
	res, err := tx.ExecContext(ctx, `UPDATE rollouts SET phase = ?3, final = ?4, state = ?5, summary = ?6,
		members = CASE WHEN ?7 = '' THEN members ELSE ?7 END WHERE tenant = ?1 AND id = ?2`,
		r.Tenant, r.ID, r.Phase, r.Final, r.State, r.Summary, r.Members)
	return changed(res, err, "rollout "+r.ID)
}

// Rollout returns one rollout, or ErrNotFound.
func (tx *Tx) Rollout(ctx context.Context, tenant, id string) (Rollout, error) {
	r, err := scanRollout(tx.QueryRowContext(ctx, `SELECT `+rolloutColumns+` FROM rollouts WHERE tenant = ? AND id = ?`, tenant, id).Scan)
	return r, oneRow(err, "rollout "+id)
}

// OpenRollouts returns the rollouts of all tenants that are not over, oldest
// first.
func (tx *Tx) OpenRollouts(ctx context.Context) ([]Rollout, error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+rolloutColumns+` FROM rollouts WHERE final = 0 ORDER BY created, id`)
	out, err := collect(rows, err, func(r *sql.Rows) (Rollout, error) { return scanRollout(r.Scan) })
	return out, wrap(err, "read open rollouts")
}

// Rollouts returns the rollouts of a tenant without State and Members, newest
// first.
func (tx *Tx) Rollouts(ctx context.Context, tenant string) ([]Rollout, error) {
	rows, err := tx.QueryContext(ctx, `SELECT tenant, id, name, spec, release, phase, final, '', '', summary, created, created_by
		FROM rollouts WHERE tenant = ? ORDER BY created DESC, id DESC`, tenant)
	out, err := collect(rows, err, func(r *sql.Rows) (Rollout, error) { return scanRollout(r.Scan) })
	return out, wrap(err, "read rollouts")
}

// FindRollouts returns the rollouts of a tenant whose id or name is ref, those
// first, and up to a few whose id begins with it, without State and Members.
func (tx *Tx) FindRollouts(ctx context.Context, tenant, ref string) ([]Rollout, error) {
	rows, err := tx.QueryContext(ctx, `SELECT tenant, id, name, spec, release, phase, final, '', '', summary, created, created_by
		FROM rollouts WHERE tenant = ?1 AND (id = ?2 OR name = ?2 OR id >= ?2 AND id < ?2 || '~')
		ORDER BY id = ?2 OR name = ?2 DESC, created DESC, id DESC LIMIT 5`, tenant, ref)
	out, err := collect(rows, err, func(r *sql.Rows) (Rollout, error) { return scanRollout(r.Scan) })
	return out, wrap(err, "find rollout "+ref)
}

// PutRolloutDevices stores the records of devices in a rollout.
func (tx *Tx) PutRolloutDevices(ctx context.Context, tenant, rollout string, execs map[string]string) error {
	if len(execs) == 0 {
		return nil
	}
	stmt, err := tx.PrepareContext(ctx, `INSERT INTO rollout_devices (tenant, rollout, device, exec) VALUES (?,?,?,?)
		ON CONFLICT (tenant, rollout, device) DO UPDATE SET exec = excluded.exec`)
	if err != nil {
		return wrap(err, "store devices of rollout "+rollout)
	}
	defer stmt.Close()
	for device, exec := range execs {
		if _, err := stmt.ExecContext(ctx, tenant, rollout, device, exec); err != nil {
			return wrap(err, "store device "+device+" of rollout "+rollout)
		}
	}
	return nil
}

// RolloutDevices returns the records of the devices of a rollout.
func (tx *Tx) RolloutDevices(ctx context.Context, tenant, rollout string) (map[string]string, error) {
	rows, err := tx.QueryContext(ctx, `SELECT device, exec FROM rollout_devices WHERE tenant = ? AND rollout = ?`, tenant, rollout)
	out := map[string]string{}
	_, err = collect(rows, err, func(r *sql.Rows) (struct{}, error) {
		var device, exec string
		err := r.Scan(&device, &exec)
		out[device] = exec
		return struct{}{}, err
	})
	return out, wrap(err, "read devices of rollout "+rollout)
}

// The values of Decision.Sent.
const (
	DecisionWaits = iota
	DecisionSent
	DecisionNothing // changes the state only
	DecisionRefused // the fleet would not take it; Error says why
)

// Decision is one decision of a rollout. Its sequence orders all decisions of
// a tenant.
type Decision struct {
	Tenant   string
	Sequence int64
	Rollout  string
	Time     time.Time
	Actor    string
	Kind     string
	Device   string
	Body     string // JSON
	Sent     int
	Error    string
}

// AddDecisions appends decisions of one tenant and numbers them in place.
func (tx *Tx) AddDecisions(ctx context.Context, tenant string, ds []Decision) error {
	if len(ds) == 0 {
		return nil
	}
	var last int64
	if err := tx.QueryRowContext(ctx, `SELECT coalesce(max(sequence), 0) FROM rollout_decisions WHERE tenant = ?`, tenant).Scan(&last); err != nil {
		return wrap(err, "number decisions")
	}
	stmt, err := tx.PrepareContext(ctx, `INSERT INTO rollout_decisions (tenant, sequence, rollout, time, actor, kind, device, body, sent, error) VALUES (?,?,?,?,?,?,?,?,?,?)`)
	if err != nil {
		return wrap(err, "store decisions")
	}
	defer stmt.Close()
	for i := range ds {
		d := &ds[i]
		d.Tenant, d.Sequence = tenant, last+1+int64(i)
		if _, err := stmt.ExecContext(ctx, tenant, d.Sequence, d.Rollout, millis(d.Time), d.Actor, d.Kind, d.Device, d.Body, d.Sent, d.Error); err != nil {
			return wrap(err, "store decision "+d.Kind)
		}
	}
	return nil
}

// MarkDecision notes what became of a decision.
func (tx *Tx) MarkDecision(ctx context.Context, tenant string, sequence int64, sent int, reason string) error {
	res, err := tx.ExecContext(ctx, `UPDATE rollout_decisions SET sent = ?, error = ? WHERE tenant = ? AND sequence = ?`, sent, reason, tenant, sequence)
	return changed(res, err, "decision")
}

const decisionColumns = `tenant, sequence, rollout, time, actor, kind, device, body, sent, error`

func scanDecision(r *sql.Rows) (Decision, error) {
	var d Decision
	var t int64
	err := r.Scan(&d.Tenant, &d.Sequence, &d.Rollout, &t, &d.Actor, &d.Kind, &d.Device, &d.Body, &d.Sent, &d.Error)
	d.Time = fromMillis(t)
	return d, err
}

// WaitingDecisions returns what is still to be carried out, in order.
func (tx *Tx) WaitingDecisions(ctx context.Context) ([]Decision, error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+decisionColumns+` FROM rollout_decisions WHERE sent = 0 ORDER BY tenant, sequence`)
	out, err := collect(rows, err, scanDecision)
	return out, wrap(err, "read waiting decisions")
}

// Decisions returns the newest decisions of a rollout, oldest first.
func (tx *Tx) Decisions(ctx context.Context, tenant, rollout string, limit int) ([]Decision, error) {
	rows, err := tx.QueryContext(ctx, `SELECT * FROM (SELECT `+decisionColumns+` FROM rollout_decisions WHERE tenant = ? AND rollout = ?
		ORDER BY sequence DESC LIMIT ?) ORDER BY sequence`, tenant, rollout, limit)
	out, err := collect(rows, err, scanDecision)
	return out, wrap(err, "read decisions of rollout "+rollout)
}
