package fleet

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/store"
)

const (
	flushBatch = 1000 // bounds one write-behind transaction
	trimBatch  = 200  // and one that removes old events
)

// touched marks a twin for the next flush and tells subscribers.
func (f *Fleet) touched(tw *twin) {
	f.mu.Lock()
	f.dirty[tw] = struct{}{}
	f.mu.Unlock()
	f.notify(tw.id)
}

// every calls do at each interval until ctx ends, and logs what goes wrong.
func (f *Fleet) every(ctx context.Context, interval time.Duration, what string, do func(context.Context) error) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := do(ctx); err != nil && ctx.Err() == nil {
				f.cfg.Logger.Error(what, "error", err)
			}
		}
	}
}

// Flush writes all reported state that is in memory alone. What could not be
// written stays marked.
func (f *Fleet) Flush(ctx context.Context) error {
	f.mu.Lock()
	dirty := f.dirty
	f.dirty = map[*twin]struct{}{}
	f.mu.Unlock()
	batch := make([]*twin, 0, min(len(dirty), flushBatch))
	var errs []error
	flush := func() {
		if len(batch) == 0 {
			return
		}
		if err := f.flushBatch(ctx, batch); err != nil {
			errs = append(errs, err)
			f.mu.Lock()
			for _, tw := range batch {
				f.dirty[tw] = struct{}{}
			}
			f.mu.Unlock()
		}
		batch = batch[:0]
	}
	for tw := range dirty {
		if batch = append(batch, tw); len(batch) == flushBatch {
			flush()
		}
	}
	flush()
	return errors.Join(errs...)
}

func (f *Fleet) flushBatch(ctx context.Context, batch []*twin) error {
	rows := make([]store.Twin, 0, len(batch))
	var probed []*twin
	for _, tw := range batch {
		tw.mu.Lock()
		row, err := tw.row()
		if tw.targetChanged {
			probed = append(probed, tw)
		}
		tw.mu.Unlock()
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	if err := f.cfg.Store.Update(ctx, func(tx *store.Tx) error { return tx.PutTwins(ctx, rows) }); err != nil {
		return err
	}
	f.metrics.flushed.Add(float64(len(rows)))
	return f.keepProbed(ctx, probed)
}

// keepProbed stores what devices found out about themselves in their records.
func (f *Fleet) keepProbed(ctx context.Context, probed []*twin) error {
	if len(probed) == 0 {
		return nil
	}
	f.change.Lock() // records are changed under it alone
	defer f.change.Unlock()
	devices := make([]store.Device, len(probed))
	for i, tw := range probed {
		tw.mu.Lock()
		devices[i], tw.targetChanged = tw.dev, false
		tw.mu.Unlock()
	}
	err := f.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		for _, d := range devices {
			if err := tx.PutDevice(ctx, d); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		for _, tw := range probed {
			tw.mu.Lock()
			tw.targetChanged = true
			tw.mu.Unlock()
		}
	}
	return err
}

// trim keeps the newest events of each device. It works in small transactions, so that nobody waits
// long for the writer.
func (f *Fleet) trim(ctx context.Context) error {
	byTenant := map[string][]string{}
	for _, tw := range f.all() {
		byTenant[tw.tenant] = append(byTenant[tw.tenant], tw.id)
	}
	for tenant, ids := range byTenant {
		for some := range slices.Chunk(ids, trimBatch) {
			if err := f.cfg.Store.Update(ctx, func(tx *store.Tx) error { return tx.TrimEvents(ctx, tenant, some, f.cfg.KeepEvents) }); err != nil {
				return err
			}
		}
	}
	return nil
}
