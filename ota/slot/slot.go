// Package slot owns durable state on disk: one port for durable writes with a
// real directory and a memory twin behind it, and the update journal.
//
// Invariants: a write is either whole and durable or never happened; nothing
// outside the opened directory can be reached; the code that orders write,
// fsync, rename and directory fsync is one and the same for the real directory
// and for the twin, so that what survives a power cut in tests is what was
// shipped. All of ota, agent, controlplane and sim may import it.
package slot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"
)

// Files is the one port for durable writes. Names are relative and separated
// by slashes (fs.ValidPath); anything else, and anything that leads out of the
// directory, is refused. Missing parent directories are made. All methods are
// safe for concurrent use; an AppendFile belongs to one goroutine.
type Files interface {
	// ReadFile returns fs.ErrNotExist when name is absent.
	ReadFile(name string) ([]byte, error)
	// WriteFile replaces name by data, atomically and durably: after a power
	// cut name holds its old content or data.
	WriteFile(name string, data []byte) error
	// Remove deletes name and all below it, durably. Absent is no error.
	Remove(name string) error
	MkdirAll(name string) error
	// ReadDir lists a directory by name; unfinished writes are not shown.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Rename moves a file, durably: both directories are synced. What old
	// holds must have been synced before.
	Rename(old, new string) error
	// OpenAppend opens a file for appending and makes it, durably, if absent.
	OpenAppend(name string) (AppendFile, error)
	Open(name string) (io.ReadSeekCloser, error)
	// Sync makes the whole tree durable, also what others wrote into it.
	Sync() error
	// Path is the path for the operating system, empty in memory.
	Path(name string) string
}

// AppendFile is a file that grows: a journal, a partial download. Written
// bytes are durable after Sync.
type AppendFile interface {
	io.WriteCloser
	Sync() error
	Size() (int64, error)
	Truncate(size int64) error
}

// ErrDiskFull is what every operation returns, wrapped, when space or quota
// ran out. It is ENOSPC.
var ErrDiskFull error = syscall.ENOSPC

// ErrBadName is returned for names that are not relative slash paths or that
// are reserved for unfinished writes.
var ErrBadName = errors.New("not a name inside the directory")

const (
	tempPrefix = ".skein-"
	tempSuffix = ".tmp"
)

// escapes reports whether a name or a link leads out of the directory. The
// library has no error value for it.
func escapes(err error) bool {
	p, ok := errors.AsType[*fs.PathError](err)
	return ok && strings.Contains(p.Err.Error(), "escapes from parent")
}

// wrap says what was tried and makes quota errors match ErrDiskFull, and names
// that lead out ErrBadName.
func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if escapes(err) {
		return fmt.Errorf("%s %s: %w: %w", op, name, ErrBadName, err)
	}
	if errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%s %s: %w: %w", op, name, ErrDiskFull, err)
	}
	return fmt.Errorf("%s %s: %w", op, name, err)
}
