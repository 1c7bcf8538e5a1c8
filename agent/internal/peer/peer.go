// Package peer lets devices of one site give each other the blobs of releases.
// It owns the server of a cache, with the blobs that it fetches for others
// (Cache, Server), and the way to blobs that a sibling has (Client).
//
// Invariants: both sides show their device certificate and are of one tenant;
// nobody gets a blob that the director's grant does not cover; what a cache
// fetches for others stays below its quota, apart from the device's own blobs;
// nothing that came from a peer counts before its hash was checked, which the
// fetcher does. The agent imports it.
package peer

import (
	"errors"
	"io"
	"io/fs"

	"github.com/skein-fleet/skein/ota/slot"
)

// Folder is where a cache keeps what it fetches for others.
const Folder = "cache"

// GrantHeader carries the director's grant, base64url without padding.
const GrantHeader = "Skein-Grant"

const blobPath = "/v1/blobs/"

// ErrNoRoom is returned when a blob does not fit below the quota, or would take
// the last space of the disk.
var ErrNoRoom = errors.New("no room in the cache")

// below is a folder of f as Files of its own.
type below struct {
	f   slot.Files
	dir string
}

// Below returns the folder dir of f as Files.
func Below(f slot.Files, dir string) slot.Files { return below{f, dir} }

// name puts a name below the folder. What is no valid name stays one.
func (b below) name(n string) string {
	if n == "." {
		return b.dir
	}
	if !fs.ValidPath(n) {
		return n
	}
	return b.dir + "/" + n
}

// ReadFile implements slot.Files.
func (b below) ReadFile(n string) ([]byte, error) { return b.f.ReadFile(b.name(n)) }

// WriteFile implements slot.Files.
func (b below) WriteFile(n string, data []byte) error { return b.f.WriteFile(b.name(n), data) }

// Remove implements slot.Files.
func (b below) Remove(n string) error { return b.f.Remove(b.name(n)) }

// MkdirAll implements slot.Files.
func (b below) MkdirAll(n string) error { return b.f.MkdirAll(b.name(n)) }

// ReadDir implements slot.Files.
func (b below) ReadDir(n string) ([]fs.DirEntry, error) { return b.f.ReadDir(b.name(n)) }

// Rename implements slot.Files.
func (b below) Rename(from, to string) error { return b.f.Rename(b.name(from), b.name(to)) }

// OpenAppend implements slot.Files.
func (b below) OpenAppend(n string) (slot.AppendFile, error) { return b.f.OpenAppend(b.name(n)) }

// Open implements slot.Files.
func (b below) Open(n string) (io.ReadSeekCloser, error) { return b.f.Open(b.name(n)) }

// Sync implements slot.Files.
func (b below) Sync() error { return b.f.Sync() }

// Path implements slot.Files.
func (b below) Path(n string) string { return b.f.Path(b.name(n)) }
