package store

import (
	"context"
	"database/sql"
	"time"
)

// RegistryManifest is a manifest or index in a repository of the registry.
type RegistryManifest struct {
	Tenant       string
	Repo         string
	Digest       string
	MediaType    string
	ArtifactType string
	Subject      string // digest of what it refers to, or empty
	Size         int64
	Annotations  map[string]string
	Own          bool // made by skein
	Created      time.Time
}

const registryColumns = `tenant, repo, digest, media_type, artifact_type, subject, size, annotations, own, created`

func scanRegistry(scan func(...any) error) (RegistryManifest, error) {
	var m RegistryManifest
	var created int64
	err := scan(&m.Tenant, &m.Repo, &m.Digest, &m.MediaType, &m.ArtifactType, &m.Subject, &m.Size, jsonText[map[string]string]{&m.Annotations}, &m.Own, &created)
	m.Created = fromMillis(created)
	return m, err
}

// PutRegistryManifest stores a manifest; what is there already stays as it is.
func (tx *Tx) PutRegistryManifest(ctx context.Context, m RegistryManifest) error {
	if m.Annotations == nil {
		m.Annotations = map[string]string{}
	}
	text, err := toJSON(m.Annotations)
	if err != nil {
		return wrap(err, "encode annotations")
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO registry_manifests (`+registryColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING`,
		m.Tenant, m.Repo, m.Digest, m.MediaType, m.ArtifactType, m.Subject, m.Size, text, m.Own, millis(m.Created))
	return wrap(err, "store manifest "+m.Digest)
}

// RegistryManifest returns one manifest by digest or tag, or ErrNotFound.
func (tx *Tx) RegistryManifest(ctx context.Context, tenant, repo, ref string) (RegistryManifest, error) {
	m, err := scanRegistry(tx.QueryRowContext(ctx, `SELECT `+registryColumns+` FROM registry_manifests WHERE tenant = ?1 AND repo = ?2 AND digest =
		coalesce((SELECT digest FROM registry_tags WHERE tenant = ?1 AND repo = ?2 AND tag = ?3), ?3)`, tenant, repo, ref).Scan)
	return m, oneRow(err, "manifest "+repo+":"+ref)
}

// RegistryReferrers returns the manifests of a repository that refer to subject,
// oldest first.
func (tx *Tx) RegistryReferrers(ctx context.Context, tenant, repo, subject string) ([]RegistryManifest, error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+registryColumns+` FROM registry_manifests WHERE tenant = ? AND repo = ? AND subject = ? AND subject <> '' ORDER BY created, digest`, tenant, repo, subject)
	out, err := collect(rows, err, func(r *sql.Rows) (RegistryManifest, error) { return scanRegistry(r.Scan) })
	return out, wrap(err, "read referrers")
}

// DeleteRegistryManifest removes a manifest and the tags that name it.
func (tx *Tx) DeleteRegistryManifest(ctx context.Context, tenant, repo, digest string) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM registry_tags WHERE tenant = ? AND repo = ? AND digest = ?`, tenant, repo, digest); err != nil {
		return wrap(err, "delete tags of "+digest)
	}
	res, err := tx.ExecContext(ctx, `DELETE FROM registry_manifests WHERE tenant = ? AND repo = ? AND digest = ?`, tenant, repo, digest)
	return changed(res, err, "manifest "+digest)
}

// SetRegistryTag makes tag name a manifest.
func (tx *Tx) SetRegistryTag(ctx context.Context, tenant, repo, tag, digest string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO registry_tags (tenant, repo, tag, digest) VALUES (?,?,?,?)
		ON CONFLICT (tenant, repo, tag) DO UPDATE SET digest = excluded.digest`, tenant, repo, tag, digest)
	return wrap(err, "store tag "+tag)
}

// DeleteRegistryTag removes a tag, or returns ErrNotFound.
func (tx *Tx) DeleteRegistryTag(ctx context.Context, tenant, repo, tag string) error {
	res, err := tx.ExecContext(ctx, `DELETE FROM registry_tags WHERE tenant = ? AND repo = ? AND tag = ?`, tenant, repo, tag)
	return changed(res, err, "tag "+tag)
}

// RegistryTags returns the tags of a repository in byte order.
func (tx *Tx) RegistryTags(ctx context.Context, tenant, repo string) ([]string, error) {
	rows, err := tx.QueryContext(ctx, `SELECT tag FROM registry_tags WHERE tenant = ? AND repo = ? ORDER BY tag`, tenant, repo)
	out, err := collect(rows, err, func(r *sql.Rows) (string, error) {
		var t string
		return t, r.Scan(&t)
	})
	return out, wrap(err, "read tags")
}

// RegistryTag is a name of a manifest in a repository.
type RegistryTag struct {
	Tag      string
	Manifest RegistryManifest
}

// RegistryTagged returns all that people pushed and tagged, by repository and
// tag.
func (tx *Tx) RegistryTagged(ctx context.Context, tenant string) ([]RegistryTag, error) {
	rows, err := tx.QueryContext(ctx, `SELECT t.tag, m.tenant, m.repo, m.digest, m.media_type, m.artifact_type, m.subject, m.size, m.annotations, m.own, m.created
		FROM registry_tags t JOIN registry_manifests m USING (tenant, repo, digest) WHERE t.tenant = ? AND NOT m.own ORDER BY t.repo, t.tag`, tenant)
	out, err := collect(rows, err, func(r *sql.Rows) (t RegistryTag, err error) {
		t.Manifest, err = scanRegistry(func(into ...any) error { return r.Scan(append([]any{&t.Tag}, into...)...) })
		return t, err
	})
	return out, wrap(err, "read tags")
}

// RegistryHasRepo reports whether anything was pushed to a repository.
func (tx *Tx) RegistryHasRepo(ctx context.Context, tenant, repo string) (bool, error) {
	var n int
	err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM registry_manifests WHERE tenant = ?1 AND repo = ?2) OR
		EXISTS (SELECT 1 FROM registry_blobs WHERE tenant = ?1 AND repo = ?2)`, tenant, repo).Scan(&n)
	return n == 1, wrap(err, "look up repository "+repo)
}

// LinkRegistryBlob makes a repository show a blob.
func (tx *Tx) LinkRegistryBlob(ctx context.Context, tenant, repo, digest string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO registry_blobs (tenant, repo, digest) VALUES (?,?,?) ON CONFLICT DO NOTHING`, tenant, repo, digest)
	return wrap(err, "link blob "+digest)
}

// UnlinkRegistryBlob ends that, or returns ErrNotFound.
func (tx *Tx) UnlinkRegistryBlob(ctx context.Context, tenant, repo, digest string) error {
	res, err := tx.ExecContext(ctx, `DELETE FROM registry_blobs WHERE tenant = ? AND repo = ? AND digest = ?`, tenant, repo, digest)
	return changed(res, err, "blob "+digest)
}

// RegistryHasBlob reports whether a repository shows a blob.
func (tx *Tx) RegistryHasBlob(ctx context.Context, tenant, repo, digest string) (bool, error) {
	var n int
	err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM registry_blobs WHERE tenant = ? AND repo = ? AND digest = ?)`, tenant, repo, digest).Scan(&n)
	return n == 1, wrap(err, "look up blob "+digest)
}

// Publisher is another control plane whose bundles are taken.
type Publisher struct {
	Tenant  string
	Name    string
	Root    []byte // TUF root as it was given
	Added   time.Time
	AddedBy string
}

// AddPublisher stores a publisher; a taken name is IsUnique.
func (tx *Tx) AddPublisher(ctx context.Context, p Publisher) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO publishers (tenant, name, root, added, added_by) VALUES (?,?,?,?,?)`, p.Tenant, p.Name, p.Root, millis(p.Added), p.AddedBy)
	return wrap(err, "store publisher "+p.Name)
}

// RemovePublisher removes a publisher, or returns ErrNotFound.
func (tx *Tx) RemovePublisher(ctx context.Context, tenant, name string) error {
	res, err := tx.ExecContext(ctx, `DELETE FROM publishers WHERE tenant = ? AND name = ?`, tenant, name)
	return changed(res, err, "publisher "+name)
}

// Publishers returns the publishers of a tenant by name.
func (tx *Tx) Publishers(ctx context.Context, tenant string) ([]Publisher, error) {
	rows, err := tx.QueryContext(ctx, `SELECT tenant, name, root, added, added_by FROM publishers WHERE tenant = ? ORDER BY name`, tenant)
	out, err := collect(rows, err, func(r *sql.Rows) (Publisher, error) {
		var p Publisher
		var added int64
		err := r.Scan(&p.Tenant, &p.Name, &p.Root, &added, &p.AddedBy)
		p.Added = fromMillis(added)
		return p, err
	})
	return out, wrap(err, "read publishers")
}
