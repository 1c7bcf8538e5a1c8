package spool_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry/spool"
	"github.com/skein-fleet/skein/telemetry/spool/spooltest"
)

func openBadger(t testing.TB, o spool.BadgerOptions) *spool.Badger {
	t.Helper()
	if o.Free == nil {
		o.Free = func() (int64, error) { return 1 << 40, nil }
	}
	b, err := spool.OpenBadger(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMemory(t *testing.T) {
	spooltest.Run(t, func(_ testing.TB, o spool.Options) spool.Spool { return spool.NewMemory(o) })
}

func TestBadger(t *testing.T) {
	if testing.Short() {
		t.Skip("opens Badger a hundred times")
	}
	root := t.TempDir()
	spooltest.Run(t, func(t testing.TB, o spool.Options) spool.Spool {
		dir, err := os.MkdirTemp(root, "s")
		if err != nil {
			t.Fatal(err)
		}
		return openBadger(t, spool.BadgerOptions{Options: o, Dir: dir})
	})
}

func fill(t *testing.T, b *spool.Badger, n int) {
	t.Helper()
	for range n {
		if err := b.Append(wire.UpTelemetry, make([]byte, 2000)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadgerKeepsOverReopen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	b := openBadger(t, spool.BadgerOptions{Dir: dir})
	fill(t, b, 5)
	f, err := b.Next()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Ack(f.Seq), b.Close()); err != nil {
		t.Fatal(err)
	}
	b = openBadger(t, spool.BadgerOptions{Dir: dir})
	defer b.Close()
	if st := b.Stats(); st.Frames != 4 || st.Resets != 0 {
		t.Fatalf("%+v", st)
	}
	if g, err := b.Next(); err != nil || g.Seq != f.Seq+1 {
		t.Errorf("seq %d after %d, %v", g.Seq, f.Seq, err)
	}
}

func TestBadgerInUseIsLeftAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	b := openBadger(t, spool.BadgerOptions{Dir: dir})
	fill(t, b, 3)
	if _, err := spool.OpenBadger(spool.BadgerOptions{Dir: dir}); !errors.Is(err, spool.ErrInUse) {
		t.Errorf("second open: %v", err)
	}
	fill(t, b, 1)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b = openBadger(t, spool.BadgerOptions{Dir: dir})
	defer b.Close()
	if st := b.Stats(); st.Frames != 4 || st.Resets != 0 {
		t.Errorf("%+v", st)
	}
}

func TestBadgerReserve(t *testing.T) {
	free := int64(1 << 30)
	b := openBadger(t, spool.BadgerOptions{Dir: t.TempDir(), Reserve: 1 << 20, Free: func() (int64, error) { return free, nil }})
	defer b.Close()
	fill(t, b, 1)
	free = 1 << 20
	if err := b.Append(wire.UpTelemetry, []byte{1}); !errors.Is(err, spool.ErrNoSpace) {
		t.Fatalf("append into the reserve: %v", err)
	}
	if st := b.Stats(); st.Dropped != 1 || st.Frames != 1 {
		t.Errorf("%+v", st)
	}
	free = 1 << 30
	fill(t, b, 1)
}

// damage overwrites the middle of every file of the store that matches.
func damage(t *testing.T, dir, pattern string, junk []byte, at func(size int64) int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no %s in %s: %v", pattern, dir, err)
	}
	for _, name := range files {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(junk, at(st.Size())); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestBadgerNeverHandsOutDamage(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	b := openBadger(t, spool.BadgerOptions{Dir: dir})
	fill(t, b, 20)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	damage(t, dir, "*.vlog", []byte("junk junk junk junk"), func(size int64) int64 { return min(size/2, 21000) })
	b = openBadger(t, spool.BadgerOptions{Dir: dir})
	defer b.Close()
	good := 0
	for {
		f, err := b.Next()
		if errors.Is(err, spool.ErrEmpty) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range f.Payload {
			if c != 0 {
				t.Fatal("damaged payload handed out")
			}
		}
		good++
		if err := b.Ack(f.Seq); err != nil {
			t.Fatal(err)
		}
	}
	st := b.Stats()
	if good == 20 || good+int(st.Damaged) != 20 && st.Resets == 0 {
		t.Errorf("%d good, %+v: 20 were written and one was damaged", good, st)
	}
}

func TestBadgerStartsAfresh(t *testing.T) {
	t.Run("manifest", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "spool")
		b := openBadger(t, spool.BadgerOptions{Dir: dir})
		fill(t, b, 3)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		damage(t, dir, "MANIFEST", []byte("no manifest"), func(int64) int64 { return 0 })
		b = openBadger(t, spool.BadgerOptions{Dir: dir})
		defer b.Close()
		if st := b.Stats(); st.Resets != 1 || st.Frames != 0 {
			t.Errorf("%+v", st)
		}
		fill(t, b, 1)
		if _, err := os.Stat(dir + ".damaged"); err != nil {
			t.Error(err)
		}
	})
	t.Run("crashes", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "spool")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+".opens", []byte("3\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		b := openBadger(t, spool.BadgerOptions{Dir: dir})
		defer b.Close()
		if st := b.Stats(); st.Resets != 1 {
			t.Errorf("a store that ended the process three times is still used: %+v", st)
		}
	})
}
