package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

// AuditEntry is one line of the audit table: who did what to whom, by which
// rule, with which effect. Before and After are JSON without secrets.
type AuditEntry struct {
	Sequence int64
	Tenant   string
	Time     time.Time
	Actor    string
	Action   string
	Subject  string
	Decision string // allowed or denied
	Rule     string
	Before   string
	After    string
	Error    string
}

// Record is the audit entry of the action that a context belongs to. The
// handler fills it while it works; the first Update under the context writes
// it. It belongs to one goroutine at a time.
type Record struct {
	Entry   AuditEntry
	written bool
}

// Written reports whether the entry is durable.
func (r *Record) Written() bool { return r.written }

type recordKey struct{}

// WithRecord returns ctx carrying the audit record of one action.
func WithRecord(ctx context.Context, r *Record) context.Context {
	return context.WithValue(ctx, recordKey{}, r)
}

func recordFrom(ctx context.Context) *Record {
	r, _ := ctx.Value(recordKey{}).(*Record)
	return r
}

// Note fills subject, before and after of the audit record in ctx, if there is
// one. Values are written as JSON; strings are taken as they are. Call it
// before or inside Update.
func Note(ctx context.Context, subject string, before, after any) {
	r := recordFrom(ctx)
	if r == nil || r.written {
		return
	}
	r.Entry.Subject, r.Entry.Before, r.Entry.After = subject, auditText(before), auditText(after)
}

func auditText(v any) string {
	switch s := v.(type) {
	case nil:
		return ""
	case string:
		return s
	}
	s, err := toJSON(v)
	if err != nil {
		return fmt.Sprintf("%q", fmt.Sprint(v))
	}
	return s
}

// Actor returns who acts under ctx, or "system".
func Actor(ctx context.Context) string {
	if r := recordFrom(ctx); r != nil && r.Entry.Actor != "" {
		return r.Entry.Actor
	}
	return "system"
}

// AddAudit appends an entry; its sequence is given here.
func (tx *Tx) AddAudit(ctx context.Context, e AuditEntry) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO audit (tenant, sequence, time, actor, action, subject, decision, rule, before, after, error)
		VALUES (?1, (SELECT coalesce(max(sequence), 0) + 1 FROM audit WHERE tenant = ?1), ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)`,
		e.Tenant, millis(e.Time), e.Actor, e.Action, e.Subject, e.Decision, e.Rule, e.Before, e.After, e.Error)
	return wrap(err, "write audit entry")
}

// AuditFilter selects audit entries; zero fields select all.
type AuditFilter struct {
	Subject, Actor string
	BeforeSequence int64
	Limit          int
}

// Audit returns entries, newest first.
func (tx *Tx) Audit(ctx context.Context, tenant string, f AuditFilter) ([]AuditEntry, error) {
	rows, err := tx.QueryContext(ctx, `SELECT sequence, tenant, time, actor, action, subject, decision, rule, before, after, error
		FROM audit WHERE tenant = ?1 AND (?2 = '' OR subject = ?2) AND (?3 = '' OR actor = ?3) AND (?4 = 0 OR sequence < ?4)
		ORDER BY sequence DESC LIMIT ?5`, tenant, f.Subject, f.Actor, f.BeforeSequence, f.Limit)
	out, err := collect(rows, err, func(r *sql.Rows) (AuditEntry, error) {
		var e AuditEntry
		var t int64
		err := r.Scan(&e.Sequence, &e.Tenant, &t, &e.Actor, &e.Action, &e.Subject, &e.Decision, &e.Rule, &e.Before, &e.After, &e.Error)
		e.Time = fromMillis(t)
		return e, err
	})
	return out, wrap(err, "read audit entries")
}
