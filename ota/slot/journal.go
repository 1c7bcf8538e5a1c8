package slot

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

// Limits of the journal.
const (
	MaxMessage   = 4 << 10 // bytes of Entry.Message; the rest is cut off
	maxLine      = 64 << 10
	damagedStamp = ".damaged"
)

// ErrBadEntry is returned for an entry that cannot be written.
var ErrBadEntry = errors.New("entry does not fit the journal")

// Entry is one line of the update journal.
type Entry struct {
	Update  string         `json:"update"` // names one attempt; all its lines carry it
	Step    ota.Step       `json:"step"`
	State   wire.StepState `json:"state"`
	Release ota.Digest     `json:"release,omitzero"`
	Message string         `json:"message,omitzero"`
	Time    time.Time      `json:"time"`
}

// Journal is an append-only file of entries, see FORMAT.md. Its methods may be
// called from several goroutines; only one Journal may be open on a file.
type Journal struct {
	files Files
	name  string

	mu      sync.Mutex // guards all below
	file    AppendFile // nil while it could not be opened
	closed  bool
	entries []Entry
	good    int64 // bytes that are whole lines
	dirty   bool  // an Append failed: cut back to good first
	torn    int
	damaged bool
}

// OpenJournal opens or makes the journal. A torn last line, what a power cut
// leaves of an append that had not returned, is cut off. If whole lines follow
// a broken one, the file was damaged in another way: what is before the damage
// is kept, the whole file is set aside as NAME.damaged, and Damaged says so.
// On a read-only disk the journal can be read, and Append tries anew.
func OpenJournal(f Files, name string) (*Journal, error) {
	raw, err := f.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	entries, good, damaged := decode(raw)
	if damaged {
		if err := f.WriteFile(name+damagedStamp, raw); err != nil && !errors.Is(err, syscall.EROFS) {
			return nil, fmt.Errorf("set damaged journal aside: %w", err)
		}
	}
	j := &Journal{files: f, name: name, entries: entries, good: good, torn: len(raw) - int(good), damaged: damaged}
	if err := j.open(); err != nil && !errors.Is(err, syscall.EROFS) {
		return nil, err
	}
	return j, nil
}

func (j *Journal) open() error {
	file, err := j.files.OpenAppend(j.name)
	if err != nil {
		return fmt.Errorf("open journal: %w", err)
	}
	size, err := file.Size()
	if err == nil && size > j.good {
		err = file.Truncate(j.good)
	}
	// A process killed between write and sync leaves lines that are read but
	// not durable; they are acted on from here, so they are synced.
	if err == nil && size > 0 {
		err = file.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("open journal %s: %w", j.name, err), file.Close())
	}
	j.file = file
	return nil
}

// Append writes e and returns when it is durable. After an error the entry is
// not in Entries; it is not in the file either once the next Append or
// OpenJournal has succeeded, unless that was a power cut after the write.
func (j *Journal) Append(e Entry) error {
	if len(e.Message) > MaxMessage {
		e.Message = strings.ToValidUTF8(e.Message[:MaxMessage], "")
	}
	line, err := encode(e)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return fmt.Errorf("append to journal %s: %w", j.name, fs.ErrClosed)
	}
	if j.file == nil { // the disk could not be written when it was opened
		if err := j.open(); err != nil {
			return err
		}
	}
	if j.dirty {
		if err := j.file.Truncate(j.good); err != nil {
			return wrap("cut back journal", j.name, err)
		}
		j.dirty = false
	}
	j.dirty = true
	if _, err := j.file.Write(line); err != nil {
		return wrap("append to journal", j.name, err)
	}
	if err := j.file.Sync(); err != nil {
		return wrap("append to journal", j.name, err)
	}
	j.dirty = false
	j.good += int64(len(line))
	j.entries = append(j.entries, e)
	return nil
}

// Entries returns all entries, oldest first.
func (j *Journal) Entries() []Entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.entries)
}

// Torn returns how many bytes OpenJournal cut off.
func (j *Journal) Torn() int { return j.torn }

// Damaged reports whether OpenJournal met damage that no power cut explains;
// the file as found lies beside the journal as NAME.damaged.
func (j *Journal) Damaged() bool { return j.damaged }

// Reset empties the journal, atomically and durably.
func (j *Journal) Reset() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.files.WriteFile(j.name, nil); err != nil {
		return fmt.Errorf("reset journal: %w", err)
	}
	if j.file != nil {
		// The old file is gone from the directory; nothing in it matters.
		_ = j.file.Close()
		j.file = nil
	}
	j.entries, j.good, j.dirty = nil, 0, false
	return j.open()
}

// Close releases the file; all that was appended is durable already.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	if j.file == nil {
		return nil
	}
	err := j.file.Close()
	j.file = nil
	return err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode returns the line of e: checksum, space, JSON, newline.
func encode(e Entry) ([]byte, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadEntry, err)
	}
	if len(body)+10 > maxLine {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", ErrBadEntry, len(body), maxLine-10)
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(body, castagnoli), body), nil
}

// decode returns the entries before the first broken line, where that line
// begins, and whether a whole line follows it.
func decode(raw []byte) (entries []Entry, good int64, damaged bool) {
	broken := false
	for line := range bytes.Lines(raw) {
		e, ok := decodeLine(line)
		switch {
		case ok && broken:
			return entries, good, true
		case ok:
			entries = append(entries, e)
			good += int64(len(line))
		default:
			broken = true
		}
	}
	return entries, good, false
}

func decodeLine(line []byte) (Entry, bool) {
	body, whole := bytes.CutSuffix(line, []byte("\n"))
	if !whole || len(line) > maxLine || len(body) < 10 || body[8] != ' ' {
		return Entry{}, false
	}
	var sum [4]byte
	if _, err := hex.Decode(sum[:], body[:8]); err != nil {
		return Entry{}, false
	}
	body = body[9:]
	want := uint32(sum[0])<<24 | uint32(sum[1])<<16 | uint32(sum[2])<<8 | uint32(sum[3])
	if crc32.Checksum(body, castagnoli) != want {
		return Entry{}, false
	}
	var e Entry
	if err := json.Unmarshal(body, &e); err != nil {
		return Entry{}, false
	}
	return e, true
}
