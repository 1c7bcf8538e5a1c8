package store

import (
	"context"
	"database/sql"
	"slices"
	"time"
)

// ModelVersion is one immutable version of a model.
type ModelVersion struct {
	Tenant      string
	Name        string
	Version     int64
	ONNX        string // digest
	ONNXSize    int64
	Golden      string // digest
	GoldenSize  int64
	Description string
	Metadata    map[string]string
	Mirrors     []string // sources of the ONNX file outside Skein
	Created     time.Time
	CreatedBy   string
}

const modelColumns = `tenant, name, version, onnx, onnx_size, golden, golden_size, description, metadata, mirrors, created, created_by`

func scanModel(scan func(...any) error) (ModelVersion, error) {
	var m ModelVersion
	var created int64
	err := scan(&m.Tenant, &m.Name, &m.Version, &m.ONNX, &m.ONNXSize, &m.Golden, &m.GoldenSize, &m.Description,
		jsonText[map[string]string]{&m.Metadata}, jsonText[[]string]{&m.Mirrors}, &created, &m.CreatedBy)
	m.Created = fromMillis(created)
	return m, err
}

// AddModelVersion stores m as the next version of its model and returns it with
// its number.
func (tx *Tx) AddModelVersion(ctx context.Context, m ModelVersion) (ModelVersion, error) {
	err := tx.QueryRowContext(ctx, `SELECT coalesce(max(version), 0) + 1 FROM models WHERE tenant = ? AND name = ?`, m.Tenant, m.Name).Scan(&m.Version)
	if err != nil {
		return m, wrap(err, "number a version of model "+m.Name)
	}
	if m.Metadata == nil {
		m.Metadata = map[string]string{}
	}
	meta, err := toJSON(m.Metadata)
	if err != nil {
		return m, wrap(err, "encode metadata")
	}
	mirrors, err := toJSON(slices.Concat([]string{}, m.Mirrors))
	if err != nil {
		return m, wrap(err, "encode mirrors")
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO models (`+modelColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)`, m.Tenant, m.Name, m.Version, m.ONNX, m.ONNXSize,
		m.Golden, m.GoldenSize, m.Description, meta, mirrors, millis(m.Created), m.CreatedBy)
	return m, wrap(err, "store model "+m.Name)
}

// ModelByContent returns the version of a model made of these blobs, or
// ErrNotFound.
func (tx *Tx) ModelByContent(ctx context.Context, tenant, name, onnx, golden string) (ModelVersion, error) {
	m, err := scanModel(tx.QueryRowContext(ctx, `SELECT `+modelColumns+` FROM models WHERE tenant = ? AND name = ? AND onnx = ? AND golden = ?`,
		tenant, name, onnx, golden).Scan)
	return m, oneRow(err, "model "+name)
}

// ModelVersions returns the versions of a model, or of all models when name is
// empty: by name, newest first.
func (tx *Tx) ModelVersions(ctx context.Context, tenant, name string) ([]ModelVersion, error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+modelColumns+` FROM models WHERE tenant = ?1 AND (?2 = '' OR name = ?2) ORDER BY name, version DESC`, tenant, name)
	out, err := collect(rows, err, func(r *sql.Rows) (ModelVersion, error) { return scanModel(r.Scan) })
	return out, wrap(err, "read models")
}
