package agent

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/agent/internal/host"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// TestReserveOnARealDisk is TestReserveHolds on a small file system, which the
// kernel counts: somebody else fills it in the middle of a download.
func TestReserveOnARealDisk(t *testing.T) {
	const size, reserve = 160 << 20, 64 << 20
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=160m"); err != nil {
		t.Skipf("no small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	files, err := slot.OpenDir(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	w := newWorld(t)
	w.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1})
	w.big(30 << 20)
	machine := host.New(host.Options{Root: t.TempDir(), StateDir: filepath.Join(dir, "state")})
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		d := w.boot(files, func(o *Options) { o.Host = &onMachine{board{files: files, clock: time.Now}, machine} })
		d.link.SetOnline(true)
		w.want(1, "1")
		settle(time.Minute)
		bias(t, d, 1, "at first")
		others := false
		w.serveBlobsBy(func(ctx context.Context, b ota.Digest, offset, length int64) (io.ReadCloser, error) {
			r, err := w.Open(ctx, b, offset, length)
			return readFunc{r, func(p []byte) (int, error) {
				n, err := r.Read(p)
				if offset += int64(n); offset > 10<<20 && !others {
					others = true
					if err := os.WriteFile(filepath.Join(dir, "recording"), make([]byte, 75<<20), 0o600); err != nil {
						t.Error(err)
					}
				}
				return n, err
			}}, err
		})
		w.want(2, "9", under(wire.Policy{Reserve: reserve}))
		settle(20 * time.Minute)
		if r := w.last(); r.FailureClass != string(ota.Failed) || !strings.Contains(r.Failure, "stay in reserve") {
			t.Errorf("%s: %s", r.FailureClass, r.Failure)
		}
		if free, err := machine.DiskFree(); err != nil || free < reserve || free > size {
			t.Errorf("%d bytes are free, %v", free, err)
		}
		if err := d.state.Change(func(s *state.State) { s.Starts++ }); err != nil {
			t.Errorf("state cannot be written: %v", err)
		}
		bias(t, d, 1, "after it")
		if err := os.Remove(filepath.Join(dir, "recording")); err != nil {
			t.Error(err)
		}
		w.serveBlobsBy(nil)
		w.want(3, "9", under(wire.Policy{Reserve: reserve}))
		settle(5 * time.Minute)
		bias(t, d, 9, "with room again")
		if err := d.stop(t); err != nil {
			t.Error(err)
		}
	})
}

// onMachine is a board whose disk is that of the machine.
type onMachine struct {
	board
	machine *host.Machine
}

func (h *onMachine) DiskFree() (int64, error) { return h.machine.DiskFree() }
