package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/skein-fleet/skein/proto/wire"
)

func open(t *testing.T) *DB {
	t.Helper()
	db, err := Open(t.Context(), filepath.Join(t.TempDir(), "a b%20c", "skein.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func update(t *testing.T, db *DB, f func(*Tx) error) {
	t.Helper()
	if err := db.Update(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

func TestDeviceRoundTrip(t *testing.T) {
	db := open(t)
	d := Device{Tenant: "t", ID: "d1", Name: "n", Serial: "s", Hardware: "h", Labels: map[string]string{"site": "lyon"}, Capabilities: []string{"cache"},
		Target: "linux/amd64", State: DeviceActive, SPKI: []byte{1}, SPKIHash: []byte{2}, SealKey: []byte{3}, Token: "tok", Enrolled: time.UnixMilli(1700000000123).UTC(),
		RevokedWhy: "w", ReplacedBy: "r"}
	update(t, db, func(tx *Tx) error { return tx.PutDevice(t.Context(), d) })
	err := db.View(t.Context(), func(tx *Tx) error {
		got, err := tx.Device(t.Context(), "t", "d1")
		if diff := cmp.Diff(d, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		if _, err := tx.Device(t.Context(), "other", "d1"); !errors.Is(err, ErrNotFound) {
			t.Errorf("another tenant sees the device: %v", err)
		}
		if _, err := tx.DeviceByKey(t.Context(), "other", []byte{2}); !errors.Is(err, ErrNotFound) {
			t.Errorf("another tenant sees the key: %v", err)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	d2 := d
	d2.ID = "d2"
	if err := db.Update(t.Context(), func(tx *Tx) error { return tx.PutDevice(t.Context(), d2) }); !IsUnique(err) {
		t.Errorf("two devices with one key: %v", err)
	}
}

func TestViewCannotWrite(t *testing.T) {
	db := open(t)
	err := db.View(t.Context(), func(tx *Tx) error { return tx.SetSetting(t.Context(), "t", "k", "v") })
	if err == nil {
		t.Fatal("a view wrote")
	}
}

func TestTokenIsUsedOnce(t *testing.T) {
	db := open(t)
	update(t, db, func(tx *Tx) error {
		return tx.AddToken(t.Context(), Token{Tenant: "t", ID: "a", Hash: []byte{1}, Uses: 3, Expires: time.Now()})
	})
	var mu sync.Mutex
	var wins, losses int
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			err := db.Update(t.Context(), func(tx *Tx) error { return tx.UseToken(t.Context(), "t", "a") })
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				wins++
			case errors.Is(err, ErrConflict):
				losses++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if wins != 3 || losses != 17 {
		t.Errorf("%d uses and %d refusals, want 3 and 17", wins, losses)
	}
}

func TestAuditLivesAndDiesWithItsAction(t *testing.T) {
	db := open(t)
	rec := &Record{Entry: AuditEntry{Tenant: "t", Time: time.UnixMilli(5).UTC(), Actor: "a", Action: "x", Decision: "allowed"}}
	ctx := WithRecord(t.Context(), rec)
	boom := errors.New("boom")
	if err := db.Update(ctx, func(*Tx) error { return boom }); !errors.Is(err, boom) || rec.Written() {
		t.Fatalf("err %v, written %v", err, rec.Written())
	}
	for range 2 { // the second transaction of one action adds no second entry
		if err := db.Update(ctx, func(tx *Tx) error {
			Note(ctx, "s", nil, map[string]int{"n": 1})
			return tx.SetSetting(ctx, "t", "k", "v")
		}); err != nil {
			t.Fatal(err)
		}
	}
	var got []AuditEntry
	if err := db.View(ctx, func(tx *Tx) (err error) {
		got, err = tx.Audit(ctx, "t", AuditFilter{Limit: 10})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := []AuditEntry{{Sequence: 1, Tenant: "t", Time: time.UnixMilli(5).UTC(), Actor: "a", Action: "x", Subject: "s", Decision: "allowed", After: `{"n":1}`}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAppenderGroupsAndKeeps(t *testing.T) {
	db := open(t)
	var batches int
	a := NewAppender(db, func(ctx context.Context, tx *Tx, rows []Event) error {
		batches++
		return tx.AddEvents(ctx, rows)
	})
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			e := Event{Tenant: "t", Device: "d", ID: wire.MessageID{Boot: 1 << 63, Counter: uint64(i%100) + 1}, Kind: "k"}
			if err := a.Append(t.Context(), e); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	cancel()
	run.Wait()
	if err := a.Append(t.Context(), Event{}); !errors.Is(err, ErrClosed) {
		t.Errorf("append after the end: %v", err)
	}
	var got []Event
	if err := db.View(t.Context(), func(tx *Tx) (err error) {
		got, err = tx.Events(t.Context(), "t", "d", 1000)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(got) != 100 || got[0].ID.Boot != 1<<63 {
		t.Errorf("%d events, want each of 100 messages once", len(got))
	}
	if batches >= 200 {
		t.Errorf("%d transactions for 200 rows", batches)
	}
	if err := db.Update(t.Context(), func(tx *Tx) error { return tx.TrimEvents(t.Context(), "t", []string{"none", "d"}, 10) }); err != nil {
		t.Fatal(err)
	}
	if err := db.View(t.Context(), func(tx *Tx) (err error) {
		got, err = tx.Events(t.Context(), "t", "d", 1000)
		return err
	}); err != nil || len(got) != 10 {
		t.Errorf("%d events after trimming to 10: %v", len(got), err)
	}
}

func TestTwinDesiredParameterRoundTrip(t *testing.T) {
	db := open(t)
	ctx := t.Context()
	tw := Twin{Tenant: "t", Device: "d", LastSeen: time.UnixMilli(7).UTC(), Boot: 1 << 63, Agent: "v", ClockDoubtful: true,
		Held: wire.Held{Generation: wire.Generation{Epoch: 1, Counter: 2}, Digest: []byte{4}}, FromFuture: true, ReportCounter: 9, Reported: []byte{5}}
	de := Desired{Tenant: "t", Device: "d", Generation: wire.Generation{Epoch: 1, Counter: 3}, Release: "r", RollbackAllowed: true, Rollout: "o",
		Payload: []byte{1}, Digest: []byte{2}, ParamsDigest: []byte{3}, Expires: time.UnixMilli(8).UTC()}
	pa := Parameter{Scope: 2, Subject: "lyon", Key: "k", Value: []byte("v"), Secret: true}
	for range 2 {
		update(t, db, func(tx *Tx) error {
			return errors.Join(tx.PutTwins(ctx, []Twin{tw}), tx.PutDesired(ctx, de), tx.PutParameter(ctx, "t", pa, time.Now()))
		})
	}
	if err := db.View(ctx, func(tx *Tx) error {
		twins, err1 := tx.Twins(ctx, "t")
		des, err2 := tx.AllDesired(ctx, "t")
		pas, err3 := tx.Parameters(ctx, "t")
		if diff := cmp.Diff([]any{[]Twin{tw}, []Desired{de}, []Parameter{pa}}, []any{twins, des, pas}); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
		return errors.Join(err1, err2, err3)
	}); err != nil {
		t.Fatal(err)
	}
}

// Nobody else on the host reads the database, its log included.
func TestFilesArePrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "skein.db")
	db, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(t.Context(), func(tx *Tx) error { return tx.SetSetting(t.Context(), "t", "k", "v") }); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", filepath.Base(name), info.Mode(), err)
		}
	}
}
