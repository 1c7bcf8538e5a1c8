package store

import (
	"context"
	"database/sql"
	"strings"
)

// blobRoots are the columns that refer to blobs. A test holds that no column
// that looks like one is missing.
var blobRoots = []string{"models.onnx", "models.golden", "releases.digest", "registry_manifests.digest", "registry_tags.digest", "registry_blobs.digest",
	"recipes.digest", "builds.onnx", "builds.golden", "builds.recipe", "builds.log",
	"engines.recipe", "engines.plan", "engines.record", "engines.seal", "engines.provenance", "engines.timing", "engines.log"}

// BlobRoots returns the digests of all blobs that a row of any tenant refers to.
func (tx *Tx) BlobRoots(ctx context.Context) ([]string, error) {
	var selects []string
	for _, c := range blobRoots {
		table, column, _ := strings.Cut(c, ".")
		selects = append(selects, "SELECT "+column+" FROM "+table+" WHERE "+column+" <> ''")
	}
	rows, err := tx.QueryContext(ctx, strings.Join(selects, " UNION "))
	out, err := collect(rows, err, func(r *sql.Rows) (string, error) {
		var d string
		return d, r.Scan(&d)
	})
	return out, wrap(err, "read what refers to blobs")
}
