package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/skein-fleet/skein/proto/wire"
)

// Desired is the newest desired state of a device, as signed.
type Desired struct {
	Tenant          string
	Device          string
	Generation      wire.Generation
	Release         string // digest, empty: nothing
	RollbackAllowed bool
	Rollout         string
	Payload         []byte // COSE_Sign1 as sent
	Digest          []byte // sha256 of the CBOR inside
	ParamsDigest    []byte
	PolicyDigest    []byte // of the policy in it, empty: none
	Extra           string // what its rollout or an operator adds to the policy, JSON
	Expires         time.Time
}

// PutDesired stores the newest desired state of a device.
func (tx *Tx) PutDesired(ctx context.Context, d Desired) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO desired (tenant, device, epoch, counter, release, rollback, rollout, payload, digest, params_digest, policy_digest, extra, expires)
		VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (tenant, device) DO UPDATE SET epoch = excluded.epoch, counter = excluded.counter,
		release = excluded.release, rollback = excluded.rollback, rollout = excluded.rollout, payload = excluded.payload,
		digest = excluded.digest, params_digest = excluded.params_digest, policy_digest = excluded.policy_digest, extra = excluded.extra, expires = excluded.expires`,
		d.Tenant, d.Device, int64(d.Generation.Epoch), int64(d.Generation.Counter), d.Release, d.RollbackAllowed, d.Rollout, d.Payload, d.Digest,
		notNil(d.ParamsDigest), notNil(d.PolicyDigest), d.Extra, millis(d.Expires))
	return wrap(err, "store desired state of "+d.Device)
}

// AllDesired returns the desired state of every device of a tenant.
func (tx *Tx) AllDesired(ctx context.Context, tenant string) ([]Desired, error) {
	rows, err := tx.QueryContext(ctx, `SELECT device, epoch, counter, release, rollback, rollout, payload, digest, params_digest, policy_digest, extra, expires
		FROM desired WHERE tenant = ?`, tenant)
	out, err := collect(rows, err, func(r *sql.Rows) (Desired, error) {
		d := Desired{Tenant: tenant}
		var epoch, counter, expires int64
		err := r.Scan(&d.Device, &epoch, &counter, &d.Release, &d.RollbackAllowed, &d.Rollout, &d.Payload, &d.Digest, &d.ParamsDigest, &d.PolicyDigest, &d.Extra, &expires)
		d.Generation = wire.Generation{Epoch: uint64(epoch), Counter: uint64(counter)}
		d.Expires = fromMillis(expires)
		return d, err
	})
	return out, wrap(err, "read desired states")
}

// Parameter is one value at one scope.
type Parameter struct {
	Scope   int    // 1 fleet, 2 site, 3 device
	Subject string // site or device id
	Key     string
	Value   []byte // encrypted when Secret
	Secret  bool
}

// PutParameter stores one value.
func (tx *Tx) PutParameter(ctx context.Context, tenant string, p Parameter, now time.Time) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO parameters (tenant, scope, subject, key, value, secret, updated) VALUES (?,?,?,?,?,?,?)
		ON CONFLICT (tenant, scope, subject, key) DO UPDATE SET value = excluded.value, secret = excluded.secret, updated = excluded.updated`,
		tenant, p.Scope, p.Subject, p.Key, notNil(p.Value), p.Secret, millis(now))
	return wrap(err, "store parameter "+p.Key)
}

// DeleteParameter removes one value; an absent one is no error.
func (tx *Tx) DeleteParameter(ctx context.Context, tenant string, p Parameter) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM parameters WHERE tenant = ? AND scope = ? AND subject = ? AND key = ?`, tenant, p.Scope, p.Subject, p.Key)
	return wrap(err, "remove parameter "+p.Key)
}

// Parameters returns all values of a tenant.
func (tx *Tx) Parameters(ctx context.Context, tenant string) ([]Parameter, error) {
	rows, err := tx.QueryContext(ctx, `SELECT scope, subject, key, value, secret FROM parameters WHERE tenant = ? ORDER BY scope, subject, key`, tenant)
	out, err := collect(rows, err, func(r *sql.Rows) (Parameter, error) {
		var p Parameter
		return p, r.Scan(&p.Scope, &p.Subject, &p.Key, &p.Value, &p.Secret)
	})
	return out, wrap(err, "read parameters")
}
