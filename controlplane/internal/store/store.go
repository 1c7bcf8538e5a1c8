// Package store keeps the control plane's durable state in SQLite (WAL, one
// writer, several readers). It owns the schema and its migrations, SQLite and
// goose. Invariants: every row belongs to a tenant and every query names it; a
// transaction that Update returned nil for survives kill -9 and power loss;
// secrets are stored only hashed or encrypted by the caller. Any package of the
// control plane may import it; one file holds one area.
package store

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver
)

// ErrNotFound is returned when a row that was asked for by key is absent.
var ErrNotFound = errors.New("not found")

// ErrConflict is returned when a unique value is taken or a row changed meanwhile.
var ErrConflict = errors.New("conflict")

// DefaultTenant is the tenant of a fresh installation.
const DefaultTenant = "default"

//go:embed migrations/*.sql
var migrations embed.FS

// DB is the database of one control plane.
type DB struct {
	write *sql.DB
	read  *sql.DB
}

// Open opens or creates the database file and brings its schema up to date.
func Open(ctx context.Context, path string) (*DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	// Made here, as SQLite gives its log the mode of the database.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = errors.Join(f.Chmod(0o600), f.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	write, err := sql.Open("sqlite", dsn(path, "synchronous(FULL)"))
	if err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	write.SetMaxOpenConns(1)
	if err := migrate(ctx, write); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), write.Close())
	}
	read, err := sql.Open("sqlite", dsn(path, "query_only(1)"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), write.Close())
	}
	read.SetMaxOpenConns(4)
	return &DB{write: write, read: read}, nil
}

func dsn(path, pragma string) string {
	q := url.Values{"_txlock": {"immediate"}, "_pragma": {
		"busy_timeout(10000)", "journal_mode(WAL)", "foreign_keys(1)", pragma,
	}}
	if pragma == "query_only(1)" {
		q.Set("_txlock", "deferred")
	}
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + q.Encode()
}

func migrate(ctx context.Context, db *sql.DB) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, sub)
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate schema: %w", err)
	}
	return nil
}

// Close closes the database; no transaction may be running.
func (db *DB) Close() error { return errors.Join(db.read.Close(), db.write.Close()) }

// Ping reports whether the database answers.
func (db *DB) Ping(ctx context.Context) error {
	return db.View(ctx, func(tx *Tx) error {
		_, err := tx.Setting(ctx, DefaultTenant, "epoch")
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	})
}

// Tx is a transaction; its methods are the queries of all areas.
type Tx struct{ *sql.Tx }

// Update runs f in the one write transaction and makes it durable. An audit
// record in ctx that was not written yet is written in the same transaction,
// after f, so that an action and its trace live or die together.
func (db *DB) Update(ctx context.Context, f func(*Tx) error) error {
	tx, err := db.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	t := &Tx{tx}
	rec := recordFrom(ctx)
	pending := rec != nil && !rec.written
	err = f(t)
	if err == nil && pending {
		err = t.AddAudit(ctx, rec.Entry)
	}
	if err != nil {
		return errors.Join(err, ignoreDone(tx.Rollback()))
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if pending {
		rec.written = true
	}
	return nil
}

// View runs f on a consistent snapshot; f must not write.
func (db *DB) View(ctx context.Context, f func(*Tx) error) error {
	tx, err := db.read.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin read: %w", err)
	}
	return errors.Join(f(&Tx{tx}), ignoreDone(tx.Rollback()))
}

// ignoreDone drops the error of ending a transaction that a cancelled context
// has already ended.
func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// Setting returns one setting, or ErrNotFound.
func (tx *Tx) Setting(ctx context.Context, tenant, key string) (string, error) {
	var v string
	err := tx.QueryRowContext(ctx, `SELECT value FROM settings WHERE tenant = ? AND key = ?`, tenant, key).Scan(&v)
	return v, oneRow(err, "setting "+key)
}

// SetSetting stores one setting.
func (tx *Tx) SetSetting(ctx context.Context, tenant, key, value string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO settings (tenant, key, value) VALUES (?, ?, ?)
		ON CONFLICT (tenant, key) DO UPDATE SET value = excluded.value`, tenant, key, value)
	return wrap(err, "store setting "+key)
}

func wrap(err error, what string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

func oneRow(err error, what string) error {
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	return wrap(err, "read "+what)
}

// changed turns "no row matched" into ErrNotFound.
func changed(res sql.Result, err error, what string) error {
	if err != nil {
		return fmt.Errorf("change %s: %w", what, err)
	}
	n, err := res.RowsAffected()
	if err != nil {
		return fmt.Errorf("change %s: %w", what, err)
	}
	if n == 0 {
		return fmt.Errorf("change %s: %w", what, ErrNotFound)
	}
	return nil
}

// collect scans all rows with scan and closes them.
func collect[T any](rows *sql.Rows, err error, scan func(*sql.Rows) (T, error)) (out []T, e error) {
	if err != nil {
		return nil, err
	}
	defer func() { e = errors.Join(e, rows.Close()) }()
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// jsonText is a value kept as JSON in a text column.
type jsonText[T any] struct{ v *T }

func (j jsonText[T]) Scan(src any) error {
	switch s := src.(type) {
	case string:
		return json.Unmarshal([]byte(s), j.v)
	case []byte:
		return json.Unmarshal(s, j.v)
	}
	return fmt.Errorf("JSON column holds %T", src)
}

func toJSON(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}
