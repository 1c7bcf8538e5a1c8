package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"
)

// ReleaseTarget is the manifest of a release for one target.
type ReleaseTarget struct {
	Target   string `json:"target"`
	Manifest string `json:"manifest"` // digest
	Bytes    int64  `json:"bytes"`    // what a device of the target fetches
}

// Release is one release.
type Release struct {
	Tenant       string
	Digest       string // of the OCI index
	Name         string
	Version      string
	Counter      uint64
	Length       int64 // of the OCI index
	Model        string
	ModelVersion int64
	Targets      []ReleaseTarget
	Parameters   json.RawMessage // declarations
	Bytes        int64
	Soak         time.Duration
	Ready        bool // listed in the TUF targets
	Created      time.Time
	CreatedBy    string
	Publisher    string // whose bundle it came in; empty: made here
}

const releaseColumns = `tenant, digest, name, version, counter, length, model, model_version, targets, parameters, bytes, soak, ready, created, created_by, publisher`

func scanRelease(scan func(...any) error) (Release, error) {
	var r Release
	var counter, soak, created int64
	var parameters string
	err := scan(&r.Tenant, &r.Digest, &r.Name, &r.Version, &counter, &r.Length, &r.Model, &r.ModelVersion, jsonText[[]ReleaseTarget]{&r.Targets},
		&parameters, &r.Bytes, &soak, &r.Ready, &created, &r.CreatedBy, &r.Publisher)
	r.Counter, r.Soak, r.Created = uint64(counter), time.Duration(soak)*time.Millisecond, fromMillis(created)
	r.Parameters = json.RawMessage(parameters)
	return r, err
}

// AddRelease stores a release. A taken version or counter is IsUnique.
func (tx *Tx) AddRelease(ctx context.Context, r Release) error {
	targets, err := toJSON(r.Targets)
	if err != nil {
		return wrap(err, "encode targets")
	}
	if len(r.Parameters) == 0 {
		r.Parameters = json.RawMessage("[]")
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO releases (`+releaseColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`, r.Tenant, r.Digest, r.Name, r.Version,
		int64(r.Counter), r.Length, r.Model, r.ModelVersion, targets, string(r.Parameters), r.Bytes, r.Soak.Milliseconds(), r.Ready, millis(r.Created), r.CreatedBy, r.Publisher)
	return wrap(err, "store release "+r.Name+"@"+r.Version)
}

// SetReleaseReady notes that a release is listed in the TUF targets.
func (tx *Tx) SetReleaseReady(ctx context.Context, tenant, digest string) error {
	res, err := tx.ExecContext(ctx, `UPDATE releases SET ready = 1 WHERE tenant = ? AND digest = ?`, tenant, digest)
	return changed(res, err, "release "+digest)
}

// LastRelease returns the release of a name with the highest counter, or ErrNotFound.
func (tx *Tx) LastRelease(ctx context.Context, tenant, name string) (Release, error) {
	r, err := scanRelease(tx.QueryRowContext(ctx, `SELECT `+releaseColumns+` FROM releases WHERE tenant = ? AND name = ? ORDER BY counter DESC LIMIT 1`, tenant, name).Scan)
	return r, oneRow(err, "release "+name)
}

// Releases returns the releases of a tenant, newest first.
func (tx *Tx) Releases(ctx context.Context, tenant string) ([]Release, error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+releaseColumns+` FROM releases WHERE tenant = ? ORDER BY created DESC, name, counter DESC`, tenant)
	out, err := collect(rows, err, func(r *sql.Rows) (Release, error) { return scanRelease(r.Scan) })
	return out, wrap(err, "read releases")
}

// PendingReleases returns the releases of all tenants that are not ready,
// oldest first.
func (tx *Tx) PendingReleases(ctx context.Context) ([]Release, error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+releaseColumns+` FROM releases WHERE ready = 0 ORDER BY created, counter`)
	out, err := collect(rows, err, func(r *sql.Rows) (Release, error) { return scanRelease(r.Scan) })
	return out, wrap(err, "read pending releases")
}

// ReleaseTenants returns the tenants that have releases.
func (tx *Tx) ReleaseTenants(ctx context.Context) ([]string, error) {
	rows, err := tx.QueryContext(ctx, `SELECT DISTINCT tenant FROM releases ORDER BY 1`)
	out, err := collect(rows, err, func(r *sql.Rows) (string, error) {
		var t string
		return t, r.Scan(&t)
	})
	return out, wrap(err, "read tenants of releases")
}
