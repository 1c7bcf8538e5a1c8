package store

import (
	"context"
	"database/sql"
	"time"
)

// PolicySetting is one setting at one scope.
type PolicySetting struct {
	Scope   int    // 1 fleet, 2 site, 3 device
	Subject string // site or device id
	Key     string
	Value   string
}

// PutPolicy stores one setting.
func (tx *Tx) PutPolicy(ctx context.Context, tenant string, p PolicySetting, now time.Time) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO policies (tenant, scope, subject, key, value, updated) VALUES (?,?,?,?,?,?)
		ON CONFLICT (tenant, scope, subject, key) DO UPDATE SET value = excluded.value, updated = excluded.updated`,
		tenant, p.Scope, p.Subject, p.Key, p.Value, millis(now))
	return wrap(err, "store policy setting "+p.Key)
}

// DeletePolicy removes one setting; an absent one is no error.
func (tx *Tx) DeletePolicy(ctx context.Context, tenant string, p PolicySetting) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM policies WHERE tenant = ? AND scope = ? AND subject = ? AND key = ?`, tenant, p.Scope, p.Subject, p.Key)
	return wrap(err, "remove policy setting "+p.Key)
}

// Policies returns all settings of a tenant.
func (tx *Tx) Policies(ctx context.Context, tenant string) ([]PolicySetting, error) {
	rows, err := tx.QueryContext(ctx, `SELECT scope, subject, key, value FROM policies WHERE tenant = ? ORDER BY scope, subject, key`, tenant)
	out, err := collect(rows, err, func(r *sql.Rows) (PolicySetting, error) {
		var p PolicySetting
		return p, r.Scan(&p.Scope, &p.Subject, &p.Key, &p.Value)
	})
	return out, wrap(err, "read policy settings")
}
