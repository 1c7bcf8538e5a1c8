package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/skein-fleet/skein/controlplane"
)

// TestDeviceDiskFull: a full disk is a condition, the update fails or waits,
// what runs goes on, and with space the next update is installed.
func TestDeviceDiskFull(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.release("v1", version{bias: 1})
	d := s.boot("v1")
	s.release("v2", version{bias: 2, pad: 64 << 10})
	d.files.full.Store(true)
	s.assign(d.id, "v2")
	until(t, "disk-full on the device", func() bool { return d.condition("disk-full") != "" })
	until(t, "disk-low at the control plane or on the device", func() bool { return d.condition("disk-low") != "" })
	d.serves()
	if d.status().RunningName != "meter@v1" {
		t.Errorf("runs %s", d.status().RunningName)
	}
	d.files.full.Store(false)
	until(t, "an end of the update", func() bool {
		v := s.get(d.id)
		return v.GetPhase() == "failed" && strings.Contains(v.GetFailure(), "no space") || s.runs(d.id, "v2")
	})
	s.release("v3", version{bias: 3})
	s.settle(d, "v3")
	until(t, "the conditions to go", func() bool { return d.condition("disk-full") == "" && s.condition(d.id, "disk-full") == "" })
	d.serves()
	s.kept(d)
}

// TestServerDiskFull fills the server's file system: what cannot be stored is
// not acknowledged, reading and inference go on, and nothing is lost.
func TestServerDiskFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		t.Skip("needs root on Linux, to mount a small file system")
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
		t.Skipf("no small file system here: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	}()
	s := start(t, func(c *controlplane.Config) { c.DataDir = filepath.Join(dir, "data") })
	defer func() { s.stop() }()
	s.release("v1", version{bias: 1})
	s.release("v2", version{bias: 2})
	d := s.boot("v1")
	ballast := filepath.Join(dir, "ballast")
	fill(t, ballast)
	if _, err := s.op.Upload(t.Context(), make([]byte, 1<<20)); err == nil {
		t.Error("an upload onto a full disk was acknowledged")
	}
	err := s.tryAssign(d.id, "v2")
	var acknowledged string
	if err == nil {
		acknowledged = "v2" // SQLite had room in its files
	} else {
		acknowledged = "v1"
	}
	if got := s.get(d.id).GetDesiredReleaseName(); got != "meter@"+acknowledged {
		t.Errorf("assign said %v, wanted is %s", err, got)
	}
	d.serves()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	s.restart()
	if got := s.get(d.id).GetDesiredReleaseName(); got != "meter@"+acknowledged {
		t.Errorf("after a restart wanted is %s, acknowledged was %s", got, acknowledged)
	}
	s.release("v3", version{bias: 3})
	s.settle(d, "v3")
	d.serves()
	s.kept(d)
}

// fill writes until there is no space left.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
