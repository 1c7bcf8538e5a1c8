package slot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestCrashIsHarsh proves that the twin does show what careless code loses:
// each outcome below must appear for some seed.
func TestCrashIsHarsh(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 8)
	// Renamed before the data was synced, directory not synced.
	m := NewMem()
	if err := m.WriteFile("f", []byte("old")); err != nil {
		t.Fatal(err)
	}
	h, err := m.d.create("temp")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := m.d.rename("temp", "f"); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for seed := range uint64(2000) {
		got, err := m.Crash(seed).ReadFile("f")
		switch {
		case err != nil:
			t.Fatal("a file that was durable is gone:", err)
		case string(got) == "old":
			seen["rename missing"] = true
		case bytes.Equal(got, content):
			seen["all arrived"] = true
		case len(got) == 0:
			seen["empty"] = true
		case bytes.HasPrefix(content, got):
			seen["cut short"] = true
		case bytes.Contains(got, make([]byte, tearBlock)):
			seen["hole of zeros"] = true
		}
	}
	want := map[string]bool{"rename missing": true, "all arrived": true, "empty": true, "cut short": true, "hole of zeros": true}
	if d := cmp.Diff(want, seen); d != "" {
		t.Error(d)
	}
	// A file whose directory was not synced may be gone; a removal may not have happened.
	m = NewMem()
	h, err = m.d.create("new")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Sync(); err != nil {
		t.Fatal(err)
	}
	gone, there := false, false
	for seed := range uint64(50) {
		_, err := m.Crash(seed).ReadFile("new")
		gone, there = gone || errors.Is(err, fs.ErrNotExist), there || err == nil
	}
	if !gone || !there {
		t.Errorf("unsynced name: gone %v, there %v", gone, there)
	}
}

// TestCrashKeepsWhatIsDurable: after a sync of everything no seed loses anything.
func TestCrashKeepsWhatIsDurable(t *testing.T) {
	m := NewMem()
	h, err := m.d.create("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Write([]byte("data")); err != nil {
		t.Fatal(err)
	}
	if err := m.Sync(); err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(100) {
		if got, err := m.Crash(seed).ReadFile("a"); string(got) != "data" {
			t.Fatalf("seed %d: %q, %v", seed, got, err)
		}
	}
}

// TestWriteFileAcrossCrash is the promise of WriteFile: cut at any operation,
// in any legal state, each file has its old or its new content, and what
// WriteFile had returned for has the new one.
func TestWriteFileAcrossCrash(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := NewMem()
		durable := map[string]string{}
		names := []string{"a", "b", "d/a", "d/e/c"}
		for i := range rapid.IntRange(1, 6).Draw(t, "writes before") {
			name := rapid.SampledFrom(names).Draw(t, "name")
			durable[name] = fmt.Sprintf("%s version %d %s", name, i, bytes.Repeat([]byte("x"), i*9))
			if err := m.WriteFile(name, []byte(durable[name])); err != nil {
				t.Fatal(err)
			}
		}
		m.FailAfter(rapid.IntRange(0, 9).Draw(t, "cut"))
		name := rapid.SampledFrom(names).Draw(t, "last")
		fresh := "the new content, " + string(bytes.Repeat([]byte("n"), 40))
		var err error
		removed := rapid.Bool().Draw(t, "remove")
		if removed {
			fresh = ""
			err = m.Remove(name)
		} else {
			err = m.WriteFile(name, []byte(fresh))
		}
		after := m.Crash(rapid.Uint64().Draw(t, "seed"))
		if rapid.Bool().Draw(t, "second cut") {
			after = after.Crash(rapid.Uint64().Draw(t, "second seed"))
		}
		for _, n := range names {
			got, rerr := after.ReadFile(n)
			if rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				t.Fatal(rerr)
			}
			old, had := durable[n]
			isOld := had && rerr == nil && string(got) == old || !had && rerr != nil
			isNew := n == name && (rerr == nil && !removed && string(got) == fresh || removed && rerr != nil)
			if n == name && err == nil && !isNew {
				t.Fatalf("%s: returned, yet lost: %q, %v", n, got, rerr)
			}
			if !isOld && !isNew {
				t.Fatalf("%s: neither old nor new: %q, %v", n, got, rerr)
			}
		}
	})
}

// TestRenameAcrossCrash: a file on its way is under its old name, its new one
// or, between two directories, both; never under none, never changed.
func TestRenameAcrossCrash(t *testing.T) {
	for cut := range 8 {
		for seed := range uint64(200) {
			m := NewMem()
			if err := m.WriteFile("partial/x", []byte("whole content")); err != nil {
				t.Fatal(err)
			}
			m.FailAfter(cut)
			err := m.Rename("partial/x", "blobs/ab/x")
			after := m.Crash(seed)
			old, oldErr := after.ReadFile("partial/x")
			moved, newErr := after.ReadFile("blobs/ab/x")
			for _, f := range []struct {
				b   []byte
				err error
			}{{old, oldErr}, {moved, newErr}} {
				if f.err == nil && string(f.b) != "whole content" {
					t.Fatalf("cut %d, seed %d: %q", cut, seed, f.b)
				}
			}
			if oldErr != nil && newErr != nil {
				t.Fatalf("cut %d, seed %d: lost under both names", cut, seed)
			}
			if err == nil && (newErr != nil || oldErr == nil) {
				t.Fatalf("cut %d, seed %d: returned, yet not durable", cut, seed)
			}
		}
	}
}

// TestRestartLosesNothing: kill -9 is not a power cut.
func TestRestartLosesNothing(t *testing.T) {
	m := NewMem()
	a, err := m.OpenAppend("f")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Write([]byte("unsynced")); err != nil {
		t.Fatal(err)
	}
	again := m.Restart()
	if got, err := again.ReadFile("f"); string(got) != "unsynced" {
		t.Errorf("got %q, %v", got, err)
	}
	lost := false
	for seed := range uint64(50) {
		got, _ := again.Crash(seed).ReadFile("f")
		lost = lost || string(got) != "unsynced"
	}
	if !lost {
		t.Error("restarting made it durable")
	}
}

// TestTwinDoesNotGrow: a long life of small updates costs the twin no memory.
func TestTwinDoesNotGrow(t *testing.T) {
	m := NewMem()
	for i := range 500 {
		for _, name := range []string{"model", "golden", "labels"} {
			if err := m.WriteFile(fmt.Sprintf("staged/%d/x/%s", i, name), []byte(name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := m.Remove(fmt.Sprintf("staged/%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(m.disk.pending); n > 128 {
		t.Errorf("%d pending changes of directories that are gone", n)
	}
}
