package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/skein-fleet/skein/proto/wire"
)

// BadgerOptions configure the durable driver.
type BadgerOptions struct {
	Options
	Dir string
	// Reserve is the free space below which nothing is appended, because
	// Badger faults on a full file system; 0 means 64 MiB.
	Reserve int64
	// Free returns the free bytes of the file system; nil asks statfs.
	Free func() (int64, error)
}

const (
	defaultReserve = 64 << 20
	maxCrashes     = 3   // opens without a healthy use after which the store is moved aside
	gcEvery        = 512 // acks between collections of the value log
)

// Badger is the durable driver. Writes survive the end of the process; the
// newest may be lost by a power cut.
type Badger struct {
	opts BadgerOptions
	db   *badger.DB
	lock *os.File // held while open

	mu      sync.Mutex // guards what follows and serialises writes
	index   []entry    // in order of seq
	next    uint64
	stats   Stats
	acks    int
	healthy bool
	closed  bool
}

// entry is what memory keeps of a waiting frame.
type entry struct {
	seq   uint64
	size  int64
	tried bool
}

// OpenBadger opens the store in o.Dir. One that does not open, or that ended
// the process several times in a row, is moved to DIR.damaged (an older one
// there is removed) and a fresh one takes its place.
func OpenBadger(o BadgerOptions) (*Badger, error) {
	if o.Reserve <= 0 {
		o.Reserve = defaultReserve
	}
	if o.Free == nil {
		o.Free = func() (int64, error) { return statfsFree(o.Dir) }
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make spool folder: %w", err)
	}
	b := &Badger{opts: o}
	if free, err := o.Free(); err == nil && free < o.Reserve/4 {
		return nil, fmt.Errorf("open spool: %w: %d bytes free", ErrNoSpace, free)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	b.lock = lock
	if err := b.openGuarded(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return b, nil
}

// openGuarded opens the store; one that does not open, or that ended the
// process several times in a row, is moved aside first.
func (b *Badger) openGuarded() error {
	crashes := b.crashCount()
	if crashes >= maxCrashes {
		if err := b.moveAside(); err != nil {
			return err
		}
		crashes = 0
	}
	if err := b.setCrashCount(crashes + 1); err != nil {
		return err
	}
	if err := b.openStore(); err != nil {
		if err := b.moveAside(); err != nil {
			return err
		}
		if err := b.openStore(); err != nil {
			return fmt.Errorf("open fresh spool: %w", err)
		}
	}
	return nil
}

func (b *Badger) openStore() (err error) {
	defer func() { // Badger panics on some damage instead of returning it
		if p := recover(); p != nil {
			err = fmt.Errorf("open spool: %v", p)
		}
	}()
	db, err := badger.Open(smallOptions(b.opts.Dir))
	if err != nil {
		return fmt.Errorf("open spool: %w", err)
	}
	b.db, b.index, b.next = db, nil, 0
	if err := b.loadIndex(); err != nil {
		return errors.Join(err, db.Close())
	}
	return nil
}

// smallOptions keep resident memory near 10 MB (docs/BENCHMARKS.md has the figures).
func smallOptions(dir string) badger.Options {
	return badger.DefaultOptions(dir).
		WithMemTableSize(2 << 20).WithNumMemtables(2).
		WithNumLevelZeroTables(2).WithNumLevelZeroTablesStall(4).
		WithBaseTableSize(1 << 20).WithBaseLevelSize(4 << 20).
		WithValueLogFileSize(8 << 20).WithValueThreshold(512).
		WithBlockCacheSize(0).WithIndexCacheSize(0).
		WithNumCompactors(2).WithCompression(options.None).
		WithDetectConflicts(false).WithMetricsEnabled(false).
		WithLogger(nil)
}

func (b *Badger) loadIndex() error {
	b.stats.Frames, b.stats.Bytes = 0, 0
	return b.db.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{PrefetchValues: false})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			item := it.Item()
			if len(item.Key()) != 8 {
				return fmt.Errorf("open spool: key of %d bytes", len(item.Key()))
			}
			seq := binary.BigEndian.Uint64(item.Key())
			size := item.ValueSize()
			b.index = append(b.index, entry{seq: seq, size: size, tried: item.UserMeta()&flagThinned != 0})
			b.stats.Frames++
			b.stats.Bytes += size
			b.next = seq
		}
		return nil
	})
}

func key(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

// Append adds a message at the end.
func (b *Badger) Append(kind wire.Kind, payload []byte) error {
	size := frameSize(kind, payload)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return ErrClosed
	}
	if size > b.opts.maxBytes() {
		b.stats.Dropped++
		return fmt.Errorf("%w: %d bytes, bound %d", ErrTooLarge, size, b.opts.maxBytes())
	}
	free, err := b.opts.Free()
	if err != nil {
		return fmt.Errorf("ask free space for the spool: %w", err)
	}
	if free < b.opts.Reserve+size {
		b.stats.Dropped++
		return fmt.Errorf("spool: %w: %d bytes free, reserve %d", ErrNoSpace, free, b.opts.Reserve)
	}
	if err := b.makeRoom(size); err != nil {
		return err
	}
	seq := b.next + 1
	if err := b.set(seq, encodeFrame(kind, payload, false), 0); err != nil {
		return fmt.Errorf("append to the spool: %w", err)
	}
	b.next = seq
	b.index = append(b.index, entry{seq: seq, size: size})
	b.stats.Frames++
	b.stats.Bytes += size
	return nil
}

func (b *Badger) set(seq uint64, frame []byte, meta byte) error {
	return b.db.Update(func(txn *badger.Txn) error {
		return txn.SetEntry(badger.NewEntry(key(seq), frame).WithMeta(meta))
	})
}

// makeRoom thins, then drops, the oldest until size fits. Caller holds mu.
func (b *Badger) makeRoom(size int64) error {
	over := func() bool { return b.stats.Bytes+size > b.opts.maxBytes() }
	for i := 0; i < len(b.index) && over() && b.opts.Thin != nil; i++ {
		if b.index[i].tried {
			continue
		}
		if err := b.thin(&b.index[i]); err != nil {
			return err
		}
	}
	for over() && len(b.index) > 0 {
		b.stats.Dropped++
		if err := b.removeAt(0); err != nil {
			return err
		}
	}
	return nil
}

func (b *Badger) thin(e *entry) error {
	e.tried = true
	kind, payload, _, err := b.read(e.seq)
	if err != nil {
		return nil // a damaged frame is counted when it is met by Next
	}
	small, ok := b.opts.Thin(kind, payload)
	if !ok || len(small) >= len(payload) {
		return nil
	}
	if err := b.set(e.seq, encodeFrame(kind, small, true), flagThinned); err != nil {
		return fmt.Errorf("thin a spooled message: %w", err)
	}
	size := frameSize(kind, small)
	b.stats.Bytes -= e.size - size
	e.size = size
	b.stats.Thinned++
	return nil
}

func (b *Badger) read(seq uint64) (kind wire.Kind, payload []byte, thinned bool, err error) {
	err = b.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(key(seq))
		if err != nil {
			return err
		}
		raw, err := item.ValueCopy(nil)
		if err != nil {
			return err
		}
		kind, payload, thinned, err = decodeFrame(raw)
		return err
	})
	return kind, payload, thinned, err
}

func (b *Badger) removeAt(i int) error {
	e := b.index[i]
	if err := b.db.Update(func(txn *badger.Txn) error { return txn.Delete(key(e.seq)) }); err != nil {
		return fmt.Errorf("take a message out of the spool: %w", err)
	}
	b.stats.Bytes -= e.size
	b.stats.Frames--
	if i == 0 {
		b.index = b.index[1:]
	} else {
		b.index = append(b.index[:i], b.index[i+1:]...)
	}
	return nil
}

// Next returns the oldest message that checks; damaged ones are dropped and counted.
func (b *Badger) Next() (Frame, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return Frame{}, ErrClosed
	}
	for len(b.index) > 0 {
		e := b.index[0]
		kind, payload, _, err := b.read(e.seq)
		if err == nil {
			return Frame{Seq: e.seq, Kind: kind, Payload: payload}, nil
		}
		b.stats.Damaged++
		if err := b.removeAt(0); err != nil {
			return Frame{}, err
		}
	}
	return Frame{}, ErrEmpty
}

// Ack forgets a message.
func (b *Badger) Ack(seq uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return ErrClosed
	}
	for i := range b.index {
		if b.index[i].seq != seq {
			continue
		}
		if err := b.removeAt(i); err != nil {
			return err
		}
		break
	}
	if !b.healthy { // written, read and deleted: this store works
		b.healthy = true
		if err := b.setCrashCount(0); err != nil {
			return err
		}
	}
	if b.acks++; b.acks%gcEvery == 0 {
		if err := b.db.RunValueLogGC(0.5); err != nil && !errors.Is(err, badger.ErrNoRewrite) && !errors.Is(err, badger.ErrRejected) {
			return fmt.Errorf("collect the spool's value log: %w", err)
		}
	}
	return nil
}

// Stats returns the counts so far.
func (b *Badger) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stats
}

// Close flushes and closes the store.
func (b *Badger) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	defer b.lock.Close()
	if err := b.db.Close(); err != nil {
		return fmt.Errorf("close spool: %w", err)
	}
	return b.setCrashCount(0)
}

// lockDir takes the lock of a spool's folder, in a file beside it. Badger has
// one of its own, but its error looks like any damage, and what is only in use
// must never be moved aside.
func lockDir(dir string) (*os.File, error) {
	name := filepath.Clean(dir) + ".lock"
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock spool: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(fmt.Errorf("lock spool %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// The number of opens since the store was last seen healthy, in a file beside
// the folder: a panic inside Badger ends the process and cannot be caught.
func (b *Badger) crashFile() string { return filepath.Clean(b.opts.Dir) + ".opens" }

func (b *Badger) crashCount() int {
	raw, err := os.ReadFile(b.crashFile())
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return 0
	}
	return n
}

func (b *Badger) setCrashCount(n int) error {
	if err := os.WriteFile(b.crashFile(), []byte(strconv.Itoa(n)+"\n"), 0o600); err != nil {
		return fmt.Errorf("note that the spool was opened: %w", err)
	}
	return nil
}

func (b *Badger) moveAside() error {
	aside := filepath.Clean(b.opts.Dir) + ".damaged"
	if err := os.RemoveAll(aside); err != nil {
		return fmt.Errorf("remove older damaged spool: %w", err)
	}
	if err := os.Rename(b.opts.Dir, aside); err != nil {
		return fmt.Errorf("move damaged spool aside: %w", err)
	}
	if err := os.MkdirAll(b.opts.Dir, 0o700); err != nil {
		return fmt.Errorf("make spool folder: %w", err)
	}
	b.stats.Resets++
	return nil
}

func statfsFree(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}
