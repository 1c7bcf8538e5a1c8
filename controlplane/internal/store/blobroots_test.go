package store

import (
	"database/sql"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestBlobRootsAreAll reads the schema: a column that may hold the digest of a
// blob is a root, or named here with the reason why not.
func TestBlobRootsAreAll(t *testing.T) {
	others := map[string]string{
		"desired.release":                  "releases.digest has it",
		"desired.digest":                   "of a desired state",
		"desired.params_digest":            "of parameters",
		"desired.policy_digest":            "of a policy",
		"twins.held_digest":                "of a desired state",
		"events.release":                   "what happened",
		"rollouts.release":                 "releases.digest has it",
		"rollout_devices.rollout":          "an id",
		"rollout_decisions.rollout":        "an id",
		"desired.rollout":                  "an id",
		"releases.model":                   "a name",
		"releases.model_version":           "a number",
		"models.onnx_size":                 "a size",
		"models.golden_size":               "a size",
		"registry_manifests.artifact_type": "a media type",
		"registry_manifests.subject":       "may be absent by the rules of the registry",
	}
	db, err := Open(t.Context(), filepath.Join(t.TempDir(), "skein.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(t.Context(), func(tx *Tx) error {
		rows, err := tx.QueryContext(t.Context(), `SELECT m.name || '.' || c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table'`)
		columns, err := collect(rows, err, func(r *sql.Rows) (string, error) {
			var s string
			return s, r.Scan(&s)
		})
		for _, c := range columns {
			_, name, _ := strings.Cut(c, ".")
			looks := slices.ContainsFunc([]string{"digest", "blob", "onnx", "golden", "release", "index", "artifact", "subject", "sha"}, func(p string) bool { return strings.Contains(name, p) })
			if !looks || slices.Contains(blobRoots, c) || others[c] != "" || slices.Contains([]string{"parameters.subject", "policies.subject", "audit.subject"}, c) {
				continue
			}
			t.Errorf("%s looks like the digest of a blob: is it one that must be kept?", c)
		}
		for _, r := range blobRoots {
			if !slices.Contains(columns, r) {
				t.Errorf("%s is no column", r)
			}
		}
		_, rerr := tx.BlobRoots(t.Context())
		if err == nil {
			err = rerr
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
