package slot

import (
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Dir is a directory of the operating system as Files. Files are readable by
// their owner only.
type Dir struct {
	tree
	root *os.Root
}

var _ Files = (*Dir)(nil)

// OpenDir opens dir and makes it if it is absent. Close it when done.
func OpenDir(dir string) (*Dir, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	if err := os.MkdirAll(abs, 0o700); err != nil {
		return nil, wrap("open", dir, err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, wrap("open", dir, err)
	}
	return &Dir{tree: tree{d: osDisk{root: root}, seed: maphash.MakeSeed()}, root: root}, nil
}

// Close releases the directory; nothing is lost by not calling it.
func (d *Dir) Close() error { return d.root.Close() }

// osDisk is a disk behind os.Root, so that no name and no link leads out.
type osDisk struct{ root *os.Root }

type osHandle struct{ *os.File }

// Size implements AppendFile.
func (h osHandle) Size() (int64, error) {
	st, err := h.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (o osDisk) create(name string) (handle, error) {
	return o.openFile(name, os.O_CREATE|os.O_TRUNC)
}

func (o osDisk) openAppend(name string) (handle, error) { return o.openFile(name, 0) }

func (o osDisk) openFile(name string, flags int) (handle, error) {
	f, err := o.root.OpenFile(filepath.FromSlash(name), flags|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	return osHandle{f}, nil
}

func (o osDisk) open(name string) (io.ReadSeekCloser, error) {
	f, err := o.root.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (o osDisk) mkdir(name string) error { return o.root.Mkdir(filepath.FromSlash(name), 0o700) }

func (o osDisk) rename(old, new string) error {
	return o.root.Rename(filepath.FromSlash(old), filepath.FromSlash(new))
}

func (o osDisk) removeAll(name string) error { return o.root.RemoveAll(filepath.FromSlash(name)) }

func (o osDisk) readDir(name string) ([]fs.DirEntry, error) {
	f, err := o.root.Open(filepath.FromSlash(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	es, err := f.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(es, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return es, nil
}

func (o osDisk) syncDir(name string) error {
	f, err := o.root.Open(filepath.FromSlash(name))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (o osDisk) syncAll() error {
	f, err := o.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return syncFS(f)
}

func (o osDisk) path(name string) string {
	return filepath.Join(o.root.Name(), filepath.FromSlash(name))
}
