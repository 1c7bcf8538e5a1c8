package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/skein-fleet/skein/proto/wire"
)

// Twin is what a device last said of itself.
type Twin struct {
	Tenant        string
	Device        string
	LastSeen      time.Time
	Boot          uint64
	Agent         string
	ClockDoubtful bool
	Held          wire.Held
	FromFuture    bool
	ReportCounter uint64
	Reported      []byte // CBOR of wire.Reported, empty before the first report
}

// PutTwins stores what devices last said.
func (tx *Tx) PutTwins(ctx context.Context, twins []Twin) error {
	st, err := tx.PrepareContext(ctx, `INSERT INTO twins (tenant, device, last_seen, boot, agent, clock_doubtful, held_epoch, held_counter, held_digest,
		from_future, report_counter, reported) VALUES (?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT (tenant, device) DO UPDATE SET
		last_seen = excluded.last_seen, boot = excluded.boot, agent = excluded.agent, clock_doubtful = excluded.clock_doubtful,
		held_epoch = excluded.held_epoch, held_counter = excluded.held_counter, held_digest = excluded.held_digest,
		from_future = excluded.from_future, report_counter = excluded.report_counter, reported = excluded.reported`)
	if err != nil {
		return wrap(err, "store twins")
	}
	defer st.Close()
	for _, t := range twins {
		_, err := st.ExecContext(ctx, t.Tenant, t.Device, millis(t.LastSeen), int64(t.Boot), t.Agent, t.ClockDoubtful,
			int64(t.Held.Generation.Epoch), int64(t.Held.Generation.Counter), notNil(t.Held.Digest), t.FromFuture, int64(t.ReportCounter), notNil(t.Reported))
		if err != nil {
			return wrap(err, "store twin of "+t.Device)
		}
	}
	return nil
}

// Twins returns what every device of a tenant last said.
func (tx *Tx) Twins(ctx context.Context, tenant string) ([]Twin, error) {
	rows, err := tx.QueryContext(ctx, `SELECT device, last_seen, boot, agent, clock_doubtful, held_epoch, held_counter, held_digest, from_future,
		report_counter, reported FROM twins WHERE tenant = ?`, tenant)
	out, err := collect(rows, err, func(r *sql.Rows) (Twin, error) {
		t := Twin{Tenant: tenant}
		var seen, boot, epoch, counter, reports int64
		err := r.Scan(&t.Device, &seen, &boot, &t.Agent, &t.ClockDoubtful, &epoch, &counter, &t.Held.Digest, &t.FromFuture, &reports, &t.Reported)
		t.LastSeen, t.Boot, t.ReportCounter = fromMillis(seen), uint64(boot), uint64(reports)
		t.Held.Generation = wire.Generation{Epoch: uint64(epoch), Counter: uint64(counter)}
		return t, err
	})
	return out, wrap(err, "read twins")
}

// Event is something that happened on or to a device.
type Event struct {
	Tenant   string
	Device   string
	Sequence int64 // given by AddEvents
	ID       wire.MessageID
	Time     time.Time // by the device's clock
	Received time.Time
	Kind     string
	Message  string
	Release  string
	Step     string
	Attack   string
}

// AddEvents appends events; repeats of a device's message are dropped.
func (tx *Tx) AddEvents(ctx context.Context, events []Event) error {
	st, err := tx.PrepareContext(ctx, `INSERT INTO events (tenant, device, sequence, boot, counter, time, received, kind, message, release, step, attack)
		VALUES (?1, ?2, (SELECT coalesce(max(sequence), 0) + 1 FROM events WHERE tenant = ?1 AND device = ?2), ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
		ON CONFLICT DO NOTHING`)
	if err != nil {
		return wrap(err, "store events")
	}
	defer st.Close()
	for _, e := range events {
		_, err := st.ExecContext(ctx, e.Tenant, e.Device, int64(e.ID.Boot), int64(e.ID.Counter), millis(e.Time), millis(e.Received),
			e.Kind, e.Message, e.Release, e.Step, e.Attack)
		if err != nil {
			return wrap(err, "store event of "+e.Device)
		}
	}
	return nil
}

// Events returns the newest events of a device, newest first.
func (tx *Tx) Events(ctx context.Context, tenant, device string, limit int) ([]Event, error) {
	rows, err := tx.QueryContext(ctx, `SELECT sequence, boot, counter, time, received, kind, message, release, step, attack
		FROM events WHERE tenant = ? AND device = ? ORDER BY sequence DESC LIMIT ?`, tenant, device, limit)
	out, err := collect(rows, err, func(r *sql.Rows) (Event, error) {
		e := Event{Tenant: tenant, Device: device}
		var boot, counter, t, received int64
		err := r.Scan(&e.Sequence, &boot, &counter, &t, &received, &e.Kind, &e.Message, &e.Release, &e.Step, &e.Attack)
		e.ID = wire.MessageID{Boot: uint64(boot), Counter: uint64(counter)}
		e.Time, e.Received = fromMillis(t), fromMillis(received)
		return e, err
	})
	return out, wrap(err, "read events of "+device)
}

// TrimEvents keeps the newest keep events of each of the devices.
func (tx *Tx) TrimEvents(ctx context.Context, tenant string, devices []string, keep int) error {
	st, err := tx.PrepareContext(ctx, `DELETE FROM events WHERE tenant = ?1 AND device = ?2 AND sequence <=
		(SELECT max(sequence) FROM events WHERE tenant = ?1 AND device = ?2) - ?3`)
	if err != nil {
		return wrap(err, "trim events")
	}
	defer st.Close()
	for _, d := range devices {
		if _, err := st.ExecContext(ctx, tenant, d, keep); err != nil {
			return wrap(err, "trim events of "+d)
		}
	}
	return nil
}
