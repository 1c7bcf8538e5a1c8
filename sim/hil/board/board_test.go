package board

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/jetson/rootfs"
)

func newBoard(t *testing.T, module, jetpack string, reboot func()) *Board {
	t.Helper()
	m, err := rootfs.FindModule(module)
	if err != nil {
		t.Fatal(err)
	}
	jp, err := rootfs.FindJetPack(jetpack, m)
	if err != nil {
		t.Fatal(err)
	}
	short, err := os.MkdirTemp("", "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	b, err := New(Options{Dir: t.TempDir(), Socket: filepath.Join(short, "s"), Module: m, JetPack: jp, Seed: 1, Program: "/bin/true", Reboot: reboot})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Setenv(SocketVariable, b.Socket())
	for deadline := time.Now().Add(10 * time.Second); ; <-time.After(time.Millisecond) {
		if c, err := net.Dial("unix", b.Socket()); err == nil { // the file is there a moment earlier
			c.Close()
			return b
		}
		if time.Now().After(deadline) {
			t.Fatal("the board does not listen")
		}
	}
}

func tool(t *testing.T, words ...string) (code int, out string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code = Main(t.Context(), words, &stdout, &stderr)
	return code, stdout.String() + stderr.String()
}

func TestTools(t *testing.T) {
	rebooted := make(chan bool, 1)
	b := newBoard(t, "orin-nano", "6.2.1", func() { rebooted <- true })
	for _, c := range []struct {
		want string
		code int
		args []string
	}{
		{"NV Power Mode: 25W\n1\n", 0, []string{"nvpmodel", "-q"}},
		{"NVPM ERROR: Invalid power mode id 9", 255, []string{"nvpmodel", "-m", "9"}},
		{"", 0, []string{"/bin/nvpmodel", "-m", "0"}},
		{"NV Power Mode: 15W\n0\n", 0, []string{"nvpmodel", "-q"}},
		{"Current rootfs slot: A\nActive rootfs slot: A\n", 0, []string{"nvbootctrl", "-t", "rootfs", "dump-slots-info"}},
		{"", 0, []string{"nvbootctrl", "-t", "rootfs", "set-active-boot-slot", "1"}},
		{"Active rootfs slot: B\n", 0, []string{"nvbootctrl", "-t", "rootfs", "dump-slots-info"}},
		{"unknown command", 1, []string{"nvbootctrl", "explode"}},
	} {
		if code, out := tool(t, c.args...); code != c.code || !strings.Contains(out, c.want) {
			t.Errorf("%v: exit code %d, %q lacks %q", c.args, code, out, c.want)
		}
	}
	if raw, err := os.ReadFile(filepath.Join(b.Root(), "var/lib/nvpmodel/status")); err != nil || string(raw) != "pmode:0000" {
		t.Errorf("the mode's file: %q %v", raw, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var lines bytes.Buffer
	if code := Main(ctx, []string{"tegrastats", "--interval", "10"}, &lines, &lines); code != 0 && code != 1 || strings.Count(lines.String(), "RAM ") < 2 {
		t.Errorf("tegrastats: %d %q", code, lines.String())
	}
	if code, out := tool(t, "reboot"); code != 0 {
		t.Errorf("reboot: %q", out)
	}
	<-rebooted
}

// TestSystemUpdate: what is written to the other partition runs after a restart
// into it, and a trap shows in the UEFI variables.
func TestSystemUpdate(t *testing.T) {
	b := newBoard(t, "orin-nano", "6.2.1", nil)
	if err := os.WriteFile(b.slot(1), []byte(jetson.OSImage{L4T: "39.2.0"}.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, out := tool(t, "nvbootctrl", "-t", "rootfs", "set-active-boot-slot", "1"); code != 0 {
		t.Fatal(out)
	}
	b.Off(time.Second)
	if err := b.PowerOn(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(b.Root(), "etc/nv_tegra_release"))
	if err != nil || !strings.HasPrefix(string(raw), "# R39 (release), REVISION: 2.0,") {
		t.Errorf("%q %v", raw, err)
	}
	if err := b.With(func(m *jetson.Board) { m.Boot().Trap(jetson.TrapUnbootable) }); err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(b.Root(), "sys/firmware/efi/efivars/RootfsStatusSlotA-*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%v %v", found, err)
	}
	if raw, err := os.ReadFile(found[0]); err != nil || raw[4] != 0xff {
		t.Errorf("the variable of the slot: %v %v", raw, err)
	}
}

func TestNoBoard(t *testing.T) {
	t.Setenv(SocketVariable, filepath.Join(t.TempDir(), "none"))
	if code, out := tool(t, "nvpmodel", "-q"); code != 1 || !strings.Contains(out, "there is no board") {
		t.Errorf("%d %q", code, out)
	}
}
