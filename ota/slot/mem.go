package slot

import (
	"bytes"
	"errors"
	"hash/maphash"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrCut is what every operation returns after the kill point of FailAfter.
var ErrCut = errors.New("power was cut here")

// Mem is the memory twin of a directory. It keeps apart what programs see and
// what is durable: data reaches the disk by Sync of the file, names by a sync
// of their directory. Crash returns one of the states that a power cut may
// leave behind.
type Mem struct {
	tree
	disk *memDisk
}

var _ Files = (*Mem)(nil)

// NewMem returns an empty twin with unlimited space.
func NewMem() *Mem { return newMem(&memDisk{root: newDirNode(), free: -1}) }

func newMem(d *memDisk) *Mem {
	return &Mem{tree: tree{d: d, seed: maphash.MakeSeed()}, disk: d}
}

// Ops returns how many operations on the disk were begun: creates, writes,
// syncs, renames, removals, truncations and directory syncs, not reads.
func (m *Mem) Ops() int {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	return m.disk.ops
}

// FailAfter lets n more operations happen; all later ones, and all reads, do
// nothing and return ErrCut, as if the process had been killed there. A
// negative n removes the kill point.
func (m *Mem) FailAfter(n int) {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	m.disk.cutAt = 0
	m.disk.armed = n >= 0
	if n >= 0 {
		m.disk.cutAt = m.disk.ops + n
	}
}

// Hook calls h before each operation with its kind and name; an error of h is
// returned in place of the operation. A nil h removes it. h must not use m.
func (m *Mem) Hook(h func(op, name string) error) {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	m.disk.hook = h
}

// SetFree limits how many more bytes of file data fit; writes beyond fill the
// rest and return ErrDiskFull. Removing files frees space. Negative means
// unlimited.
func (m *Mem) SetFree(bytes int64) {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	m.disk.free = bytes
}

// Free returns what SetFree left, negative when unlimited.
func (m *Mem) Free() int64 {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	return m.disk.free
}

// Crash returns what the disk holds after a power cut now; seed picks one of
// the legal states. m itself stays as it is, so several seeds can be explored.
func (m *Mem) Crash(seed uint64) *Mem {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	return newMem(m.disk.crash(rand.New(rand.NewPCG(seed, 0x5eed))))
}

// Restart returns the disk as the next process sees it when only the process
// was killed: nothing is lost, and nothing became durable by it. The kill
// point and the hook are gone. m must not be used any more.
func (m *Mem) Restart() *Mem {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	d := m.disk
	return newMem(&memDisk{root: d.root, pending: d.pending, free: d.free})
}

// node is a file or a directory; names point to nodes.
type node struct {
	// A file: data is what programs see, synced what is durable. synced may
	// share memory with data, which therefore only grows in place.
	data, synced []byte
	// A directory: entries as seen, durable as on disk.
	entries, durable map[string]*node
	modified         time.Time
}

func newDirNode() *node {
	return &node{entries: map[string]*node{}, durable: map[string]*node{}}
}

func (n *node) isDir() bool { return n.entries != nil }

// setting is a change of one name in a directory, to is nil for a removal.
type setting struct {
	dir  *node
	name string
	to   *node
}

type memDisk struct {
	mu      sync.Mutex // guards all below and all nodes
	root    *node
	pending [][]setting // changes of names not yet durable, oldest first; the settings of one are atomic
	kept    int         // length of pending after the last forget
	ops     int
	cutAt   int
	armed   bool
	hook    func(op, name string) error
	free    int64
}

// begin counts an operation and says whether it may happen.
func (d *memDisk) begin(op, name string) error {
	if d.dead() {
		return ErrCut
	}
	d.ops++
	if d.hook != nil {
		return d.hook(op, name)
	}
	return nil
}

func (d *memDisk) dead() bool { return d.armed && d.ops >= d.cutAt }

func (d *memDisk) find(name string) (*node, error) {
	n := d.root
	if name == "." {
		return n, nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if !n.isDir() {
			return nil, fs.ErrNotExist
		}
		next, ok := n.entries[part]
		if !ok {
			return nil, fs.ErrNotExist
		}
		n = next
	}
	return n, nil
}

func (d *memDisk) findDir(name string) (*node, error) {
	n, err := d.find(name)
	if err == nil && !n.isDir() {
		return nil, fs.ErrNotExist
	}
	return n, err
}

func (d *memDisk) change(ss ...setting) {
	for _, s := range ss {
		if s.to == nil {
			delete(s.dir.entries, s.name)
		} else {
			s.dir.entries[s.name] = s.to
		}
	}
	d.pending = append(d.pending, ss)
}

func (d *memDisk) create(name string) (handle, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin("create", name); err != nil {
		return nil, err
	}
	dir, err := d.findDir(path.Dir(name))
	if err != nil {
		return nil, err
	}
	base := path.Base(name)
	n, ok := dir.entries[base]
	switch {
	case !ok:
		n = &node{}
		d.change(setting{dir, base, n})
	case n.isDir():
		return nil, errors.New("is a directory")
	default:
		d.resize(n, 0)
	}
	return &memHandle{d: d, n: n, name: name}, nil
}

func (d *memDisk) openAppend(name string) (handle, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead() {
		return nil, ErrCut
	}
	n, err := d.find(name)
	if err != nil {
		return nil, err
	}
	if n.isDir() {
		return nil, errors.New("is a directory")
	}
	return &memHandle{d: d, n: n, name: name}, nil
}

func (d *memDisk) open(name string) (io.ReadSeekCloser, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead() {
		return nil, ErrCut
	}
	n, err := d.find(name)
	if err != nil {
		return nil, err
	}
	if n.isDir() {
		return nil, errors.New("is a directory")
	}
	return memReader{bytes.NewReader(n.data[:len(n.data):len(n.data)])}, nil
}

func (d *memDisk) mkdir(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir, err := d.findDir(path.Dir(name))
	if err != nil {
		return err
	}
	if n, ok := dir.entries[path.Base(name)]; ok {
		if !n.isDir() {
			return errors.New("is a file")
		}
		return fs.ErrExist
	}
	if err := d.begin("mkdir", name); err != nil {
		return err
	}
	d.change(setting{dir, path.Base(name), newDirNode()})
	return nil
}

func (d *memDisk) rename(old, new string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin("rename", new); err != nil {
		return err
	}
	from, err := d.findDir(path.Dir(old))
	if err != nil {
		return err
	}
	to, err := d.findDir(path.Dir(new))
	if err != nil {
		return err
	}
	n, ok := from.entries[path.Base(old)]
	if !ok {
		return fs.ErrNotExist
	}
	if over, ok := to.entries[path.Base(new)]; ok && over != n {
		if over.isDir() {
			return errors.New("target is a directory")
		}
		d.release(int64(len(over.data)))
	}
	d.change(setting{to, path.Base(new), n}, setting{from, path.Base(old), nil})
	return nil
}

func (d *memDisk) removeAll(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin("remove", name); err != nil {
		return err
	}
	dir, err := d.findDir(path.Dir(name))
	if err != nil {
		return err
	}
	if n, ok := dir.entries[path.Base(name)]; ok {
		d.unlink(dir, path.Base(name), n)
	}
	return nil
}

// unlink removes children first, each on its own, as the system does.
func (d *memDisk) unlink(dir *node, name string, n *node) {
	if n.isDir() {
		for _, child := range slices.Sorted(maps.Keys(n.entries)) {
			d.unlink(n, child, n.entries[child])
		}
	}
	d.release(int64(len(n.data)))
	d.change(setting{dir, name, nil})
}

func (d *memDisk) readDir(name string) ([]fs.DirEntry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead() {
		return nil, ErrCut
	}
	n, err := d.findDir(name)
	if err != nil {
		return nil, err
	}
	es := make([]fs.DirEntry, 0, len(n.entries))
	for _, base := range slices.Sorted(maps.Keys(n.entries)) {
		e := n.entries[base]
		es = append(es, memEntry{name: base, dir: e.isDir(), size: int64(len(e.data)), modified: e.modified})
	}
	return es, nil
}

func (d *memDisk) syncDir(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin("syncdir", name); err != nil {
		return err
	}
	n, err := d.findDir(name)
	if err != nil {
		return err
	}
	d.commit(func(dir *node) bool { return dir == n })
	return nil
}

// commit makes the pending settings of the directories in which durable.
func (d *memDisk) commit(in func(dir *node) bool) {
	left := d.pending[:0]
	for _, op := range d.pending {
		var rest []setting
		for _, s := range op {
			if in(s.dir) {
				apply(s)
			} else {
				rest = append(rest, s)
			}
		}
		if len(rest) > 0 {
			left = append(left, rest)
		}
	}
	clear(d.pending[len(left):])
	d.pending = left
	d.forget()
}

// forget drops pending changes inside directories that are gone from the disk
// for good, whenever they have become many.
func (d *memDisk) forget() {
	if len(d.pending) < max(64, 2*d.kept) {
		return
	}
	live := map[*node]bool{}
	var walk func(n *node)
	walk = func(n *node) {
		if live[n] {
			return
		}
		live[n] = true
		for _, c := range n.entries {
			walk(c)
		}
		for _, c := range n.durable {
			walk(c)
		}
	}
	walk(d.root)
	for _, op := range d.pending {
		for _, s := range op {
			if s.to != nil && live[s.dir] {
				walk(s.to)
			}
		}
	}
	d.pending = slices.DeleteFunc(d.pending, func(op []setting) bool {
		return !slices.ContainsFunc(op, func(s setting) bool { return live[s.dir] })
	})
	d.kept = len(d.pending)
}

func apply(s setting) {
	if s.to == nil {
		delete(s.dir.durable, s.name)
	} else {
		s.dir.durable[s.name] = s.to
	}
}

func (d *memDisk) syncAll() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.begin("syncall", "."); err != nil {
		return err
	}
	d.commit(func(*node) bool { return true })
	var walk func(n *node)
	walk = func(n *node) {
		n.flush()
		for _, c := range n.entries {
			walk(c)
		}
	}
	walk(d.root)
	return nil
}

func (d *memDisk) path(string) string { return "" }

func (n *node) flush() { n.synced = n.data[:len(n.data):len(n.data)] }

func (d *memDisk) release(n int64) {
	if d.free >= 0 {
		d.free += n
	}
}

// resize changes the length of a file and gives back space.
func (d *memDisk) resize(n *node, size int64) {
	old := int64(len(n.data))
	switch {
	case size < old && size < int64(len(n.synced)):
		n.data = slices.Clone(n.data[:size])
	case size < old:
		n.data = n.data[:size:size]
	case size > old:
		n.data = append(n.data, make([]byte, size-old)...)
	}
	d.release(old - size)
}

type memHandle struct {
	d      *memDisk
	n      *node
	name   string
	closed bool
}

// Write implements io.Writer.
func (h *memHandle) Write(p []byte) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if err := h.begin("write"); err != nil {
		return 0, err
	}
	fit := p
	if free := h.d.free; free >= 0 && int64(len(p)) > free {
		fit = p[:free]
	}
	h.n.data = append(h.n.data, fit...)
	h.n.modified = time.Now()
	h.d.release(-int64(len(fit)))
	if len(fit) < len(p) {
		return len(fit), ErrDiskFull
	}
	return len(p), nil
}

func (h *memHandle) begin(op string) error {
	if h.closed {
		return fs.ErrClosed
	}
	return h.d.begin(op, h.name)
}

// Sync implements AppendFile.
func (h *memHandle) Sync() error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if err := h.begin("sync"); err != nil {
		return err
	}
	h.n.flush()
	return nil
}

// Size implements AppendFile.
func (h *memHandle) Size() (int64, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if h.d.dead() {
		return 0, ErrCut
	}
	return int64(len(h.n.data)), nil
}

// Truncate implements AppendFile.
func (h *memHandle) Truncate(size int64) error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	if err := h.begin("truncate"); err != nil {
		return err
	}
	if size < 0 {
		return fs.ErrInvalid
	}
	h.d.resize(h.n, size)
	return nil
}

// Close implements io.Closer; it makes nothing durable.
func (h *memHandle) Close() error {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	h.closed = true
	return nil
}

type memReader struct{ *bytes.Reader }

// Close implements io.Closer.
func (memReader) Close() error { return nil }

type memEntry struct {
	name     string
	dir      bool
	size     int64
	modified time.Time
}

// The methods below implement fs.DirEntry and fs.FileInfo.

func (e memEntry) Name() string               { return e.name }
func (e memEntry) IsDir() bool                { return e.dir }
func (e memEntry) Info() (fs.FileInfo, error) { return e, nil }
func (e memEntry) Size() int64                { return e.size }
func (e memEntry) ModTime() time.Time         { return e.modified }
func (e memEntry) Sys() any                   { return nil }
func (e memEntry) Type() fs.FileMode          { return e.Mode().Type() }
func (e memEntry) Mode() fs.FileMode {
	if e.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}
