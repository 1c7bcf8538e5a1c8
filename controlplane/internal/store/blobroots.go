package store

import (
	"context"
	"database/sql"
)

// blobRoots are the columns that refer to blobs. A test holds that no column
// that looks like one is missing.
func blobRoots() []string {
	return []string{"models.onnx", "models.golden", "releases.digest", "registry_manifests.digest", "registry_tags.digest", "registry_blobs.digest"}
}

// BlobRoots returns the digests of all blobs that a row of any tenant refers to.
func (tx *Tx) BlobRoots(ctx context.Context) ([]string, error) {
	rows, err := tx.QueryContext(ctx, `SELECT onnx FROM models UNION SELECT golden FROM models UNION SELECT digest FROM releases
		UNION SELECT digest FROM registry_manifests UNION SELECT digest FROM registry_tags UNION SELECT digest FROM registry_blobs`)
	out, err := collect(rows, err, func(r *sql.Rows) (string, error) {
		var d string
		return d, r.Scan(&d)
	})
	return out, wrap(err, "read what refers to blobs")
}
