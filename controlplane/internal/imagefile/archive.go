package imagefile

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// maxEntries bounds the files of an archive.
const maxEntries = 100_000

// files are the entries of a layout or archive by their clean names.
type files struct {
	root *os.Root // a folder
	file *os.File // a tar archive
	temp string   // what was unpacked of it
	at   map[string]span
	open []*os.File
}

type span struct {
	offset, size int64
	link         string // another entry has the content
}

func openFiles(name string) (*files, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	if info.IsDir() {
		root, err := os.OpenRoot(name)
		if err != nil {
			return nil, fmt.Errorf("read image: %w", err)
		}
		return &files{root: root}, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	a := &files{file: f, at: map[string]span{}}
	if err := a.plain(); err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", name, err), a.Close())
	}
	if err := a.scan(); err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", name, err), a.Close())
	}
	return a, nil
}

// plain unpacks an archive that is compressed as a whole, since its entries are
// read out of order.
func (a *files) plain() error {
	magic := make([]byte, 2)
	if _, err := a.file.ReadAt(magic, 0); err != nil || !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return nil // scan says what is wrong with it
	}
	z, err := gzip.NewReader(a.file)
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp("", "skein-image-*.tar")
	if err != nil {
		return err
	}
	packed := a.file
	a.file, a.temp = temp, temp.Name()
	_, err = io.Copy(temp, z)
	if err == nil {
		_, err = temp.Seek(0, io.SeekStart)
	}
	return errors.Join(err, packed.Close())
}

// scan notes where each entry lies. A tar reader takes no byte in advance, so
// the file stands at the entry's first.
func (a *files) scan() error {
	r := tar.NewReader(a.file)
	for range maxEntries {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: it is no tar archive: %w", ErrImage, err)
		}
		at, err := a.file.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			a.at[name] = span{offset: at, size: h.Size}
		case tar.TypeSymlink:
			a.at[name] = span{link: path.Join(path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			a.at[name] = span{link: path.Clean(h.Linkname)}
		}
	}
	return fmt.Errorf("%w: more than %d entries", ErrImage, maxEntries)
}

// section returns the content of an entry, fs.ErrNotExist when there is none.
func (a *files) section(name string) (*io.SectionReader, error) {
	name = path.Clean(name)
	if a.root != nil {
		f, err := a.root.Open(name)
		if err != nil {
			return nil, err
		}
		a.open = append(a.open, f)
		info, err := f.Stat()
		if err != nil || !info.Mode().IsRegular() {
			return nil, errors.Join(fmt.Errorf("%w: %s is no file", ErrImage, name), err)
		}
		return io.NewSectionReader(f, 0, info.Size()), nil
	}
	s, ok := a.at[name]
	for range 8 { // of links
		if !ok || s.link == "" {
			break
		}
		s, ok = a.at[s.link]
	}
	if !ok || s.link != "" || strings.HasPrefix(name, "..") {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return io.NewSectionReader(a.file, s.offset, s.size), nil
}

// small reads an entry that must not be large.
func (a *files) small(name string, limit int64) ([]byte, error) {
	s, err := a.section(name)
	if err != nil {
		return nil, err
	}
	if s.Size() > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, at most %d", ErrImage, name, s.Size(), limit)
	}
	return io.ReadAll(s)
}

// Close lets go of all, and removes what was unpacked.
func (a *files) Close() error {
	var errs []error
	for _, f := range a.open {
		errs = append(errs, f.Close())
	}
	if a.root != nil {
		errs = append(errs, a.root.Close())
	}
	if a.file != nil {
		errs = append(errs, a.file.Close())
	}
	if a.temp != "" {
		errs = append(errs, os.Remove(a.temp))
	}
	return errors.Join(errs...)
}
