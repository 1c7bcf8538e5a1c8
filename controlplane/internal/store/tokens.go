package store

import (
	"context"
	"database/sql"
	"time"
)

// Token is a claim token; its secret is stored hashed.
type Token struct {
	Tenant      string
	ID          string
	Hash        []byte // sha256 of the secret
	Uses        int
	Used        int
	Expires     time.Time
	Labels      map[string]string
	Serials     []string
	AutoApprove bool
	Revoked     bool
	Created     time.Time
	CreatedBy   string
}

const tokenColumns = `tenant, id, hash, uses, used, expires, labels, serials, auto_approve, revoked, created, created_by`

func scanToken(scan func(...any) error) (Token, error) {
	var t Token
	var expires, created int64
	err := scan(&t.Tenant, &t.ID, &t.Hash, &t.Uses, &t.Used, &expires, jsonText[map[string]string]{&t.Labels}, jsonText[[]string]{&t.Serials},
		&t.AutoApprove, &t.Revoked, &created, &t.CreatedBy)
	t.Expires, t.Created = fromMillis(expires), fromMillis(created)
	return t, err
}

// AddToken stores a new token.
func (tx *Tx) AddToken(ctx context.Context, t Token) error {
	if t.Labels == nil {
		t.Labels = map[string]string{}
	}
	if t.Serials == nil {
		t.Serials = []string{}
	}
	labels, err := toJSON(t.Labels)
	if err != nil {
		return wrap(err, "encode labels")
	}
	serials, err := toJSON(t.Serials)
	if err != nil {
		return wrap(err, "encode serials")
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO tokens (`+tokenColumns+`) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)`,
		t.Tenant, t.ID, t.Hash, t.Uses, t.Used, millis(t.Expires), labels, serials, t.AutoApprove, t.Revoked, millis(t.Created), t.CreatedBy)
	return wrap(err, "store token "+t.ID)
}

// TokenByHash returns the token with this hash, or ErrNotFound. The secret
// names the tenant here, as a device does not know it yet.
func (tx *Tx) TokenByHash(ctx context.Context, hash []byte) (Token, error) {
	t, err := scanToken(tx.QueryRowContext(ctx, `SELECT `+tokenColumns+` FROM tokens WHERE hash = ?`, hash).Scan)
	return t, oneRow(err, "token")
}

// Token returns a token by id, or ErrNotFound.
func (tx *Tx) Token(ctx context.Context, tenant, id string) (Token, error) {
	t, err := scanToken(tx.QueryRowContext(ctx, `SELECT `+tokenColumns+` FROM tokens WHERE tenant = ? AND id = ?`, tenant, id).Scan)
	return t, oneRow(err, "token "+id)
}

// Tokens returns the tokens of a tenant, newest first.
func (tx *Tx) Tokens(ctx context.Context, tenant string) ([]Token, error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+tokenColumns+` FROM tokens WHERE tenant = ? ORDER BY created DESC, id`, tenant)
	out, err := collect(rows, err, func(r *sql.Rows) (Token, error) { return scanToken(r.Scan) })
	return out, wrap(err, "read tokens")
}

// UseToken counts one use; it returns ErrConflict when none is left.
func (tx *Tx) UseToken(ctx context.Context, tenant, id string) error {
	res, err := tx.ExecContext(ctx, `UPDATE tokens SET used = used + 1 WHERE tenant = ? AND id = ? AND used < uses AND revoked = 0`, tenant, id)
	if err != nil {
		return wrap(err, "use token "+id)
	}
	n, err := res.RowsAffected()
	if err == nil && n == 0 {
		err = ErrConflict
	}
	return wrap(err, "use token "+id)
}

// RevokeToken makes a token useless.
func (tx *Tx) RevokeToken(ctx context.Context, tenant, id string) error {
	res, err := tx.ExecContext(ctx, `UPDATE tokens SET revoked = 1 WHERE tenant = ? AND id = ?`, tenant, id)
	return changed(res, err, "token "+id)
}

// Credential lets a person or program in; its token is stored hashed.
type Credential struct {
	Tenant  string
	ID      string
	Name    string
	Role    string
	Hash    []byte
	Created time.Time
	Expires time.Time // zero: never
	Revoked bool
}

const credentialColumns = `tenant, id, name, role, hash, created, expires, revoked`

func scanCredential(scan func(...any) error) (Credential, error) {
	var c Credential
	var created, expires int64
	err := scan(&c.Tenant, &c.ID, &c.Name, &c.Role, &c.Hash, &created, &expires, &c.Revoked)
	c.Created, c.Expires = fromMillis(created), fromMillis(expires)
	return c, err
}

// AddCredential stores a new credential.
func (tx *Tx) AddCredential(ctx context.Context, c Credential) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO credentials (`+credentialColumns+`) VALUES (?,?,?,?,?,?,?,?)`,
		c.Tenant, c.ID, c.Name, c.Role, c.Hash, millis(c.Created), millis(c.Expires), c.Revoked)
	return wrap(err, "store credential "+c.Name)
}

// CredentialByHash returns the credential with this hash, or ErrNotFound. The
// token names the tenant here.
func (tx *Tx) CredentialByHash(ctx context.Context, hash []byte) (Credential, error) {
	c, err := scanCredential(tx.QueryRowContext(ctx, `SELECT `+credentialColumns+` FROM credentials WHERE hash = ?`, hash).Scan)
	return c, oneRow(err, "credential")
}

// Credential returns a credential by id, or ErrNotFound.
func (tx *Tx) Credential(ctx context.Context, tenant, id string) (Credential, error) {
	c, err := scanCredential(tx.QueryRowContext(ctx, `SELECT `+credentialColumns+` FROM credentials WHERE tenant = ? AND id = ?`, tenant, id).Scan)
	return c, oneRow(err, "credential "+id)
}

// Credentials returns the credentials of a tenant, oldest first.
func (tx *Tx) Credentials(ctx context.Context, tenant string) ([]Credential, error) {
	rows, err := tx.QueryContext(ctx, `SELECT `+credentialColumns+` FROM credentials WHERE tenant = ? ORDER BY created, id`, tenant)
	out, err := collect(rows, err, func(r *sql.Rows) (Credential, error) { return scanCredential(r.Scan) })
	return out, wrap(err, "read credentials")
}

// RevokeCredential makes a credential useless.
func (tx *Tx) RevokeCredential(ctx context.Context, tenant, id string) error {
	res, err := tx.ExecContext(ctx, `UPDATE credentials SET revoked = 1 WHERE tenant = ? AND id = ?`, tenant, id)
	return changed(res, err, "credential "+id)
}
