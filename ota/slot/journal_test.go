package slot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
	"pgregory.net/rapid"
)

func entry(i int) Entry {
	return Entry{Update: fmt.Sprintf("u%d", i/9), Step: ota.Steps[i%len(ota.Steps)], State: wire.StepState(1 + i%4),
		Release: ota.DigestOf([]byte{byte(i)}), Message: strings.Repeat("m", i*7), Time: time.Date(2026, 1, 1, 0, 0, i, 0, time.UTC)}
}

func TestJournal(t *testing.T) {
	both(t, func(t *testing.T, f Files) {
		var want []Entry
		for round := range 3 {
			j, err := OpenJournal(f, "update/journal")
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, j.Entries()); d != "" {
				t.Errorf("round %d:\n%s", round, d)
			}
			for i := range 4 {
				e := entry(round*4 + i)
				if err := j.Append(e); err != nil {
					t.Fatal(err)
				}
				want = append(want, e)
			}
			if j.Torn() != 0 || j.Damaged() {
				t.Error("torn or damaged")
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			if err := j.Append(entry(0)); !errors.Is(err, os.ErrClosed) {
				t.Errorf("append after close: %v", err)
			}
		}
		j, err := OpenJournal(f, "update/journal")
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Reset(); err != nil {
			t.Fatal(err)
		}
		if err := j.Append(entry(1)); err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		if j, err = OpenJournal(f, "update/journal"); err != nil || len(j.Entries()) != 1 {
			t.Errorf("after reset: %v, %v", j.Entries(), err)
		}
		j.Close()
	})
}

// TestJournalAcrossCrash: after a power cut at any operation the journal is
// the entries whose append returned, and at most the one under way; a second
// cut while it is opened changes nothing.
func TestJournalAcrossCrash(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := NewMem()
		m.FailAfter(rapid.IntRange(0, 40).Draw(t, "cut"))
		var done []Entry
		var underway *Entry
		reset := false
		if j, err := OpenJournal(m, "journal"); err == nil {
			for i := range rapid.IntRange(0, 14).Draw(t, "entries") {
				if rapid.IntRange(0, 9).Draw(t, "reset") == 0 {
					if j.Reset() != nil {
						reset = true
						break
					}
					done = nil
				}
				e := entry(i)
				if j.Append(e) != nil {
					underway = &e
					break
				}
				done = append(done, e)
			}
		}
		if rapid.Bool().Draw(t, "only killed") {
			m = m.Restart()
		} else {
			m = m.Crash(rapid.Uint64().Draw(t, "seed"))
		}
		for range 2 {
			j, err := OpenJournal(m, "journal")
			if err != nil {
				t.Fatal(err)
			}
			got := j.Entries()
			ok := cmp.Equal(got, done) || len(got) == 0 && len(done) == 0 || reset && len(got) == 0
			if underway != nil {
				ok = ok || cmp.Equal(got, append(done[:len(done):len(done)], *underway))
			}
			if !ok || j.Damaged() {
				t.Fatalf("damaged %v, journal\n%v\nappended\n%v", j.Damaged(), got, done)
			}
			// What was read is acted on, so it must survive the next cut.
			done, underway, reset = got, nil, false
			m = m.Crash(rapid.Uint64().Draw(t, "next seed"))
		}
	})
}

// TestJournalGoesOnAfterErrors: a failed append leaves nothing behind.
func TestJournalGoesOnAfterErrors(t *testing.T) {
	m := NewMem()
	j, err := OpenJournal(m, "journal")
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Append(entry(0)); err != nil {
		t.Fatal(err)
	}
	m.SetFree(20)
	if err := j.Append(entry(5)); !errors.Is(err, ErrDiskFull) {
		t.Fatalf("got %v", err)
	}
	m.SetFree(1000)
	if err := j.Append(entry(2)); err != nil {
		t.Fatal(err)
	}
	again, err := OpenJournal(m, "journal")
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range []*Journal{j, again} {
		if d := cmp.Diff([]Entry{entry(0), entry(2)}, j.Entries()); d != "" {
			t.Error(d)
		}
	}
	long := entry(1)
	long.Message = strings.Repeat("é", MaxMessage)
	if err := again.Append(long); err == nil {
		if got := again.Entries()[2].Message; len(got) > MaxMessage || !strings.HasPrefix(long.Message, got) {
			t.Errorf("message of %d bytes", len(got))
		}
	}
	long = Entry{Update: strings.Repeat("u", maxLine)}
	if err := again.Append(long); !errors.Is(err, ErrBadEntry) {
		t.Errorf("entry over the limit: %v", err)
	}
}

func TestDamagedJournal(t *testing.T) {
	m := NewMem()
	j, err := OpenJournal(m, "journal")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := j.Append(entry(i)); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := m.ReadFile("journal")
	if err != nil {
		t.Fatal(err)
	}
	raw[bytes.IndexByte(raw, '\n')+20] ^= 1 // in the second line
	if err := m.WriteFile("journal", raw); err != nil {
		t.Fatal(err)
	}
	j, err = OpenJournal(m, "journal")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]Entry{entry(0)}, j.Entries()); d != "" || !j.Damaged() {
		t.Errorf("damaged %v\n%s", j.Damaged(), d)
	}
	if kept, err := m.ReadFile("journal.damaged"); !bytes.Equal(kept, raw) {
		t.Errorf("damaged file not kept: %v", err)
	}
}

// TestJournalFormat pins the bytes on disk.
func TestJournalFormat(t *testing.T) {
	line, err := encode(Entry{Update: "u1", Step: ota.StepProve, State: wire.StepFailed, Message: "why", Time: time.Unix(0, 0).UTC()})
	if err != nil {
		t.Fatal(err)
	}
	const want = `c5d22b83 {"update":"u1","step":"prove","state":3,"message":"why","time":"1970-01-01T00:00:00Z"}` + "\n"
	if got := string(line); got != want {
		t.Errorf("got  %swant %s", got, want)
	}
	if e, ok := decodeLine(line); !ok || e.Message != "why" {
		t.Errorf("read back %v, %v", e, ok)
	}
}

func FuzzJournal(f *testing.F) {
	line, err := encode(entry(3))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Add(append(bytes.Clone(line), line[:20]...))
	f.Add(append([]byte("garbage\n"), line...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := NewMem()
		if err := m.WriteFile("journal", raw); err != nil {
			t.Fatal(err)
		}
		j, err := OpenJournal(m, "journal")
		if err != nil {
			t.Fatal(err)
		}
		before := j.Entries()
		if err := j.Append(entry(1)); err != nil {
			t.Fatal(err)
		}
		again, err := OpenJournal(m, "journal")
		if err != nil {
			t.Fatal(err)
		}
		if got := again.Entries(); len(got) != len(before)+1 || again.Damaged() || again.Torn() != 0 {
			t.Fatalf("%d entries before, %d after one append", len(before), len(got))
		}
	})
}

// TestJournalOnReadOnlyDisk: it is read, and written once that is possible.
func TestJournalOnReadOnlyDisk(t *testing.T) {
	f := NewMem()
	j, err := OpenJournal(f, "j/log")
	if err != nil {
		t.Fatal(err)
	}
	first, second := Entry{Update: "u", Step: ota.StepFetch, State: wire.StepStarted}, Entry{Update: "u", Step: ota.StepFetch, State: wire.StepDone}
	if err := errors.Join(j.Append(first), j.Close()); err != nil {
		t.Fatal(err)
	}
	f.Hook(func(string, string) error { return syscall.EROFS })
	if j, err = OpenJournal(f, "j/log"); err != nil || len(j.Entries()) != 1 {
		t.Fatalf("read-only: %v", err)
	}
	if err := j.Append(second); !errors.Is(err, syscall.EROFS) {
		t.Errorf("append: %v", err)
	}
	f.Hook(nil)
	if err := j.Append(second); err != nil {
		t.Fatal(err)
	}
	// A reset that stops half-way leaves a journal that works again later.
	f.Hook(func(op, _ string) error {
		if op == "sync" {
			return syscall.EIO
		}
		return nil
	})
	if err := j.Reset(); err == nil {
		t.Error("reset on a broken disk")
	}
	f.Hook(nil)
	if err := errors.Join(j.Append(second), j.Close()); err != nil {
		t.Errorf("after the repair: %v", err)
	}
	if err := j.Append(second); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}
