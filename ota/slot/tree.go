package slot

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"maps"
	"path"
	"strings"
	"sync"
)

// disk is what a file system does in one step. Nothing but sync and syncDir
// makes anything durable.
type disk interface {
	create(name string) (handle, error)     // for writing, truncated
	openAppend(name string) (handle, error) // fs.ErrNotExist when absent
	open(name string) (io.ReadSeekCloser, error)
	mkdir(name string) error // fs.ErrExist when there
	rename(old, new string) error
	removeAll(name string) error
	readDir(name string) ([]fs.DirEntry, error)
	syncDir(name string) error
	syncAll() error
	path(name string) string
}

type handle interface {
	AppendFile
}

// tree turns a disk into Files: it owns the order of steps that makes writes
// atomic and durable.
type tree struct {
	d    disk
	seed maphash.Seed
	// locks serialise writers of the same name, so that they can share one
	// temporary name and leave at most one unfinished file behind.
	locks [64]sync.Mutex

	dirs sync.Mutex // serialises mkdirAll and guards what follows
	// durable holds directories whose names this process has synced; a
	// directory that an earlier process made may not be durable yet.
	durable map[string]bool
}

func (t *tree) lock(name string) *sync.Mutex {
	return &t.locks[maphash.String(t.seed, name)%uint64(len(t.locks))]
}

func check(name string) error {
	base := path.Base(name)
	if !fs.ValidPath(name) || strings.ContainsAny(name, "\\\x00") || isTemp(base) {
		return fmt.Errorf("%w: %q", ErrBadName, name)
	}
	return nil
}

func isTemp(base string) bool {
	return strings.HasPrefix(base, tempPrefix) && strings.HasSuffix(base, tempSuffix)
}

// ReadFile implements Files.
func (t *tree) ReadFile(name string) ([]byte, error) {
	f, err := t.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return b, wrap("read", name, err)
}

// Open implements Files.
func (t *tree) Open(name string) (io.ReadSeekCloser, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	f, err := t.d.open(name)
	if err != nil {
		return nil, wrap("open", name, err)
	}
	return f, nil
}

// WriteFile implements Files: temporary file, write, fsync, close, rename,
// fsync of the directory.
func (t *tree) WriteFile(name string, data []byte) error {
	if err := check(name); err != nil {
		return err
	}
	mu := t.lock(name)
	mu.Lock()
	defer mu.Unlock()
	dir := path.Dir(name)
	if err := t.mkdirAll(dir); err != nil {
		return err
	}
	temp := path.Join(dir, tempPrefix+path.Base(name)+tempSuffix)
	if err := t.writeTemp(temp, data); err != nil {
		// Best effort: the space matters when the disk is full.
		_ = t.d.removeAll(temp)
		return wrap("write", name, err)
	}
	if err := t.d.rename(temp, name); err != nil {
		_ = t.d.removeAll(temp)
		return wrap("write", name, err)
	}
	return wrap("write", name, t.d.syncDir(dir))
}

func (t *tree) writeTemp(temp string, data []byte) error {
	f, err := t.d.create(temp)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Remove implements Files.
func (t *tree) Remove(name string) error {
	if err := check(name); err != nil {
		return err
	}
	if name == "." {
		return fmt.Errorf("%w: will not remove the whole directory", ErrBadName)
	}
	t.forget(name)
	if err := t.d.removeAll(name); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return wrap("remove", name, err)
	}
	err := t.d.syncDir(path.Dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return wrap("remove", name, err)
}

// MkdirAll implements Files.
func (t *tree) MkdirAll(name string) error {
	if err := check(name); err != nil {
		return err
	}
	return t.mkdirAll(name)
}

// mkdirAll makes each missing part. When it returns, the names of all parts are
// durable, whoever made them.
func (t *tree) mkdirAll(name string) error {
	t.dirs.Lock()
	defer t.dirs.Unlock()
	return t.makeDirs(name)
}

func (t *tree) makeDirs(name string) error {
	if name == "." {
		return nil
	}
	if t.durable[name] && errors.Is(t.d.mkdir(name), fs.ErrExist) {
		return nil
	}
	if err := t.makeDirs(path.Dir(name)); err != nil {
		return err
	}
	if err := t.d.mkdir(name); err != nil && !errors.Is(err, fs.ErrExist) {
		return wrap("make directory", name, err)
	}
	if err := t.d.syncDir(path.Dir(name)); err != nil {
		return wrap("make directory", name, err)
	}
	if t.durable == nil {
		t.durable = map[string]bool{}
	}
	t.durable[name] = true
	return nil
}

// forget drops what is known of a name that is going away, and of all below it.
func (t *tree) forget(name string) {
	t.dirs.Lock()
	defer t.dirs.Unlock()
	maps.DeleteFunc(t.durable, func(dir string, _ bool) bool {
		return dir == name || strings.HasPrefix(dir, name+"/")
	})
}

// ReadDir implements Files.
func (t *tree) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	all, err := t.d.readDir(name)
	if err != nil {
		return nil, wrap("list", name, err)
	}
	shown := make([]fs.DirEntry, 0, len(all))
	for _, e := range all {
		if !isTemp(e.Name()) {
			shown = append(shown, e)
		}
	}
	return shown, nil
}

// Rename implements Files. The directory that gains the name is synced first:
// a power cut between the two leaves the file under both names, never under
// none.
func (t *tree) Rename(old, new string) error {
	if err := errors.Join(check(old), check(new)); err != nil {
		return err
	}
	if err := t.mkdirAll(path.Dir(new)); err != nil {
		return err
	}
	t.forget(old)
	if err := t.d.rename(old, new); err != nil {
		return wrap("rename "+old+" to", new, err)
	}
	err := t.d.syncDir(path.Dir(new))
	if err == nil && path.Dir(old) != path.Dir(new) {
		err = t.d.syncDir(path.Dir(old))
	}
	return wrap("rename "+old+" to", new, err)
}

// OpenAppend implements Files.
func (t *tree) OpenAppend(name string) (AppendFile, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	mu := t.lock(name)
	mu.Lock()
	defer mu.Unlock()
	f, err := t.d.openAppend(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, wrap("append to", name, err)
	}
	// One that is there may have been made by a process that was killed before
	// it made the name durable.
	if derr := t.mkdirAll(path.Dir(name)); derr != nil {
		if err == nil {
			derr = errors.Join(derr, f.Close())
		}
		return nil, derr
	}
	if err != nil {
		f, err = t.d.create(name)
	}
	if err != nil {
		return nil, wrap("append to", name, err)
	}
	if err := t.d.syncDir(path.Dir(name)); err != nil {
		return nil, wrap("append to", name, errors.Join(err, f.Close()))
	}
	return f, nil
}

// Sync implements Files.
func (t *tree) Sync() error { return wrap("sync", t.d.path("."), t.d.syncAll()) }

// Path implements Files.
func (t *tree) Path(name string) string { return t.d.path(name) }
