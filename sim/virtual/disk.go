package virtual

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"

	"github.com/skein-fleet/skein/ota/slot"
)

// storage is what a device's disk is made of and what is wrong with it. It
// outlives power cuts.
type storage struct {
	slot.Files
	full atomic.Bool
	left atomic.Int64
}

// healthyFree is what DiskFree says of a device without the fault.
const healthyFree = 16 << 30

func (s *storage) fill(free int64) {
	s.left.Store(free)
	s.full.Store(true)
}

func (s *storage) empty() { s.full.Store(false) }

func (s *storage) free() int64 {
	if s.full.Load() {
		return max(0, s.left.Load())
	}
	return healthyFree
}

// take accounts for n more bytes.
func (s *storage) take(name string, n int) error {
	if s.full.Load() && s.left.Add(-int64(n)) < 0 {
		s.left.Store(0)
		return fmt.Errorf("write %s: %w", name, slot.ErrDiskFull)
	}
	return nil
}

// errPower is what every operation returns after the power went.
var errPower = errors.New("the power is off")

// disk is the storage as one boot of the device sees it: while it is full,
// writes beyond the bytes left fail as ENOSPC does, and from the moment the
// power goes nothing reaches it any more, as with kill -9. What is stored
// stays readable.
type disk struct {
	*storage
	off atomic.Bool
}

func (d *disk) powered() error {
	if d.off.Load() {
		return errPower
	}
	return nil
}

// ReadFile implements slot.Files.
func (d *disk) ReadFile(name string) ([]byte, error) {
	if err := d.powered(); err != nil {
		return nil, err
	}
	return d.Files.ReadFile(name)
}

// WriteFile implements slot.Files.
func (d *disk) WriteFile(name string, data []byte) error {
	if err := errors.Join(d.powered(), d.take(name, len(data))); err != nil {
		return err
	}
	return d.Files.WriteFile(name, data)
}

// Remove implements slot.Files.
func (d *disk) Remove(name string) error {
	if err := d.powered(); err != nil {
		return err
	}
	return d.Files.Remove(name)
}

// MkdirAll implements slot.Files.
func (d *disk) MkdirAll(name string) error {
	if err := d.powered(); err != nil {
		return err
	}
	return d.Files.MkdirAll(name)
}

// ReadDir implements slot.Files.
func (d *disk) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := d.powered(); err != nil {
		return nil, err
	}
	return d.Files.ReadDir(name)
}

// Rename implements slot.Files.
func (d *disk) Rename(from, to string) error {
	if err := d.powered(); err != nil {
		return err
	}
	return d.Files.Rename(from, to)
}

// Open implements slot.Files.
func (d *disk) Open(name string) (io.ReadSeekCloser, error) {
	if err := d.powered(); err != nil {
		return nil, err
	}
	return d.Files.Open(name)
}

// Sync implements slot.Files.
func (d *disk) Sync() error {
	if err := d.powered(); err != nil {
		return err
	}
	return d.Files.Sync()
}

// OpenAppend implements slot.Files.
func (d *disk) OpenAppend(name string) (slot.AppendFile, error) {
	if err := d.powered(); err != nil {
		return nil, err
	}
	f, err := d.Files.OpenAppend(name)
	if err != nil {
		return nil, err
	}
	return &appendFile{AppendFile: f, disk: d, name: name}, nil
}

type appendFile struct {
	slot.AppendFile
	disk *disk
	name string
}

// Write implements slot.AppendFile.
func (f *appendFile) Write(p []byte) (int, error) {
	if err := errors.Join(f.disk.powered(), f.disk.take(f.name, len(p))); err != nil {
		return 0, err
	}
	return f.AppendFile.Write(p)
}

// Truncate implements slot.AppendFile.
func (f *appendFile) Truncate(size int64) error {
	if err := f.disk.powered(); err != nil {
		return err
	}
	return f.AppendFile.Truncate(size)
}
