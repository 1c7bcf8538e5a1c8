package slot

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// both runs a conformance test against the real directory and the twin.
func both(t *testing.T, test func(t *testing.T, f Files)) {
	t.Run("dir", func(t *testing.T) {
		d, err := OpenDir(filepath.Join(t.TempDir(), "a", "b"))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		test(t, d)
	})
	t.Run("mem", func(t *testing.T) { test(t, NewMem()) })
}

func names(t *testing.T, f Files, dir string) []string {
	t.Helper()
	es, err := f.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, e := range es {
		n := e.Name()
		if e.IsDir() {
			n += "/"
		}
		out = append(out, n)
	}
	return out
}

func TestFiles(t *testing.T) {
	both(t, func(t *testing.T, f Files) {
		if _, err := f.ReadFile("none"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("absent file: %v", err)
		}
		if _, err := f.ReadDir("none"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("absent directory: %v", err)
		}
		for _, content := range []string{"one", "", "three, longer than one"} {
			if err := f.WriteFile("d/e/file", []byte(content)); err != nil {
				t.Fatal(err)
			}
			got, err := f.ReadFile("d/e/file")
			if err != nil || string(got) != content {
				t.Errorf("got %q, %v", got, err)
			}
		}
		if err := f.MkdirAll("d/empty/x"); err != nil {
			t.Fatal(err)
		}
		if err := f.MkdirAll("d/empty/x"); err != nil {
			t.Error("making it twice:", err)
		}
		if d := cmp.Diff([]string{"e/", "empty/"}, names(t, f, "d")); d != "" {
			t.Error(d)
		}
		if err := f.Rename("d/e/file", "other/place/name"); err != nil {
			t.Fatal(err)
		}
		if err := f.WriteFile("d/e/file", []byte("new")); err != nil {
			t.Fatal(err)
		}
		if err := f.Rename("d/e/file", "other/place/name"); err != nil {
			t.Fatal("over a file:", err)
		}
		if got, err := f.ReadFile("other/place/name"); string(got) != "new" {
			t.Errorf("got %q, %v", got, err)
		}
		if err := f.Rename("d/e/file", "x"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("renamed what is absent: %v", err)
		}
		if err := f.Rename("other", "d/moved"); err != nil {
			t.Fatal("a directory:", err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		for _, gone := range []string{"d/moved/place/name", "d", "d", "never/was"} {
			if err := f.Remove(gone); err != nil {
				t.Errorf("remove %s: %v", gone, err)
			}
		}
		if d := cmp.Diff([]string{}, names(t, f, ".")); d != "" {
			t.Error(d)
		}
	})
}

func TestAppendFile(t *testing.T) {
	both(t, func(t *testing.T, f Files) {
		for i, part := range []string{"abc", "def"} {
			a, err := f.OpenAppend("logs/a")
			if err != nil {
				t.Fatal(err)
			}
			if n, err := a.Size(); n != int64(3*i) || err != nil {
				t.Errorf("size %d, %v", n, err)
			}
			if _, err := a.Write([]byte(part)); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(a.Sync(), a.Close()); err != nil {
				t.Fatal(err)
			}
		}
		a, err := f.OpenAppend("logs/a")
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Truncate(4); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Write([]byte("XY")); err != nil {
			t.Fatal(err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Write([]byte("z")); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
		r, err := f.Open("logs/a")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if n, err := r.Seek(2, io.SeekStart); n != 2 || err != nil {
			t.Error(n, err)
		}
		if got, err := io.ReadAll(r); string(got) != "cdXY" {
			t.Errorf("got %q, %v", got, err)
		}
	})
}

func TestNothingOutside(t *testing.T) {
	both(t, func(t *testing.T, f Files) {
		for _, name := range []string{"", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "a//b", "./a", "a/", `a\b`, "a\x00b", ".skein-a.tmp", "d/.skein-a.tmp"} {
			_, readErr := f.ReadFile(name)
			_, openErr := f.Open(name)
			_, appendErr := f.OpenAppend(name)
			_, listErr := f.ReadDir(name)
			for op, err := range map[string]error{
				"read": readErr, "open": openErr, "append": appendErr, "list": listErr,
				"write": f.WriteFile(name, nil), "remove": f.Remove(name), "mkdir": f.MkdirAll(name),
				"rename from": f.Rename(name, "x"), "rename to": f.Rename("x", name),
			} {
				if !errors.Is(err, ErrBadName) {
					t.Errorf("%s %q: %v", op, name, err)
				}
			}
		}
		if err := f.Remove("."); !errors.Is(err, ErrBadName) {
			t.Errorf("removed everything: %v", err)
		}
	})
}

func TestLinksDoNotLeadOut(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := os.Symlink(outside, d.Path("link")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadFile("link/secret"); err == nil {
		t.Error("read through a link")
	}
	if err := d.WriteFile("link/new", nil); err == nil {
		t.Error("wrote through a link")
	}
	if err := d.Remove("link"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(outside, "secret")); err != nil {
		t.Error("removing the link removed what it points to:", err)
	}
}

func TestPrivate(t *testing.T) {
	d, err := OpenDir(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.WriteFile("keys/k", []byte("k")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{".": 0o700, "keys": 0o700, "keys/k": 0o600} {
		st, err := os.Stat(d.Path(name))
		if err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
}

func TestLeftoversAreHidden(t *testing.T) {
	both(t, func(t *testing.T, f Files) {
		h, err := diskOf(f).create(".skein-x.tmp")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Write([]byte("half")); err != nil {
			t.Fatal(err)
		}
		h.Close()
		if got := names(t, f, "."); len(got) != 0 {
			t.Errorf("shown: %v", got)
		}
		if err := f.WriteFile("x", []byte("whole")); err != nil {
			t.Fatal(err)
		}
		all, err := diskOf(f).readDir(".")
		if err != nil || len(all) != 1 {
			t.Errorf("left over: %v, %v", all, err)
		}
	})
}

func diskOf(f Files) disk {
	switch f := f.(type) {
	case *Dir:
		return f.d
	case *Mem:
		return f.d
	}
	return nil
}

func TestConcurrentWriters(t *testing.T) {
	both(t, func(t *testing.T, f Files) {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for range 10 {
					if err := f.WriteFile("same", bytes.Repeat([]byte{byte('a' + i)}, 100)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		got, err := f.ReadFile("same")
		if err != nil || len(got) != 100 || strings.Trim(string(got), string(got[0])) != "" {
			t.Errorf("mixed content %q, %v", got, err)
		}
	})
}

func TestDiskFull(t *testing.T) {
	m := NewMem()
	if err := m.WriteFile("keep", []byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	m.SetFree(5)
	err := m.WriteFile("keep", []byte("9876543210"))
	if !errors.Is(err, ErrDiskFull) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if got, err := m.ReadFile("keep"); string(got) != "0123456789" {
		t.Errorf("old content lost: %q, %v", got, err)
	}
	if m.Free() != 5 {
		t.Errorf("%d bytes free, the unfinished file was not removed", m.Free())
	}
	a, err := m.OpenAppend("log")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := a.Write([]byte("0123456")); n != 5 || !errors.Is(err, ErrDiskFull) {
		t.Errorf("wrote %d, %v", n, err)
	}
	if err := m.Remove("keep"); err != nil || m.Free() != 10 {
		t.Errorf("%d free, %v", m.Free(), err)
	}
	if _, err := a.Write([]byte("56")); err != nil {
		t.Error(err)
	}
	if quota := wrap("write", "x", syscall.EDQUOT); !errors.Is(quota, ErrDiskFull) {
		t.Errorf("quota: %v", quota)
	}
}

// TestKillPoints: FailAfter stops at exactly each operation of a write.
func TestKillPoints(t *testing.T) {
	var ops []string
	m := NewMem()
	m.Hook(func(op, name string) error { ops = append(ops, op+" "+name); return nil })
	if err := m.WriteFile("d/f", []byte("x")); err != nil {
		t.Fatal(err)
	}
	want := []string{"mkdir d", "syncdir .", "create d/.skein-f.tmp", "write d/.skein-f.tmp", "sync d/.skein-f.tmp", "rename d/f", "syncdir d"}
	if d := cmp.Diff(want, ops); d != "" {
		t.Fatalf("the order of a durable write changed:\n%s", d)
	}
	for n := range len(want) {
		m := NewMem()
		m.FailAfter(n)
		if err := m.WriteFile("d/f", []byte("x")); !errors.Is(err, ErrCut) || m.Ops() != n {
			t.Errorf("after %d operations: %d, %v", n, m.Ops(), err)
		}
		if _, err := m.ReadFile("d/f"); !errors.Is(err, ErrCut) {
			t.Errorf("read after the cut: %v", err)
		}
		_, err := m.Restart().ReadFile("d/f")
		if visible := err == nil; visible != (n >= 6) {
			t.Errorf("killed after %d operations: file visible: %v", n, visible)
		}
	}
	boom := errors.New("boom")
	m.Hook(func(op, _ string) error {
		if op == "sync" {
			return boom
		}
		return nil
	})
	if err := m.WriteFile("d/f", []byte("y")); !errors.Is(err, boom) {
		t.Errorf("a failed sync was not reported: %v", err)
	}
	if got, _ := m.ReadFile("d/f"); string(got) != "x" {
		t.Errorf("content %q though the sync failed", got)
	}
}
