package store

import (
	"context"
	"database/sql"
	"time"
)

// maxCrashes is how many of a device are kept.
const maxCrashes = 16

// Crash is one crash as the device sent it.
type Crash struct {
	Number   uint64
	Received time.Time
	Body     []byte
}

// PutCrash stores one and forgets the oldest beyond the bound. The same number
// again changes nothing: a device sends it until it is acknowledged.
func (tx *Tx) PutCrash(ctx context.Context, tenant, device string, c Crash) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO crashes (tenant, device, number, received, body) VALUES (?,?,?,?,?)
		ON CONFLICT (tenant, device, number) DO NOTHING`, tenant, device, int64(c.Number), millis(c.Received), c.Body)
	if err == nil {
		_, err = tx.ExecContext(ctx, `DELETE FROM crashes WHERE tenant = ? AND device = ? AND number NOT IN
			(SELECT number FROM crashes WHERE tenant = ? AND device = ? ORDER BY received DESC, number DESC LIMIT ?)`, tenant, device, tenant, device, maxCrashes)
	}
	return wrap(err, "store crash of "+device)
}

// Crashes returns those of a device, newest first.
func (tx *Tx) Crashes(ctx context.Context, tenant, device string) ([]Crash, error) {
	rows, err := tx.QueryContext(ctx, `SELECT number, received, body FROM crashes WHERE tenant = ? AND device = ? ORDER BY received DESC, number DESC`, tenant, device)
	out, err := collect(rows, err, func(r *sql.Rows) (Crash, error) {
		var c Crash
		var number, received int64
		err := r.Scan(&number, &received, &c.Body)
		c.Number, c.Received = uint64(number), time.UnixMilli(received)
		return c, err
	})
	return out, wrap(err, "read crashes of "+device)
}
