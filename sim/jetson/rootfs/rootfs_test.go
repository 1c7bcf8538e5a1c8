package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/sim/jetson"
)

// TestFiles: what the field shows, byte for byte.
func TestFiles(t *testing.T) {
	read := func(module, jetpack, name string) string {
		m, err := FindModule(module)
		if err != nil {
			t.Fatal(err)
		}
		j, err := FindJetPack(jetpack, m)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := Write(dir, Board{Module: m, JetPack: j, Serial: "1421123456789", BootID: "b"}); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	for _, c := range []struct{ module, jetpack, file, want string }{
		{"orin-nano", "6.2.1", "proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0005-super\x00nvidia,tegra234\x00"},
		{"thor", "7.1", "proc/device-tree/compatible", "nvidia,p4071-0000+p3834-0008\x00nvidia,p3834-0008\x00nvidia,tegra264\x00"},
		{"nano", "4.6.1", "usr/local/cuda/version.txt", "CUDA Version 10.2.300\n"},
		{"xavier-nx", "5.1.1", "var/lib/nvpmodel/status", "pmode:0002"},
	} {
		if diff := cmp.Diff(c.want, read(c.module, c.jetpack, c.file)); diff != "" {
			t.Errorf("%s with %s: %s: %s", c.module, c.jetpack, c.file, diff)
		}
	}
	for jetpack, want := range map[string]string{
		"6.2.1": "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64, DATE: Mon Jun 16 16:07:13 UTC 2025\n",
		"5.1.1": "# R35 (release), REVISION: 3.1, GCID: 41062509, BOARD: t186ref, EABI: aarch64, DATE: Mon Jun 16 16:07:13 UTC 2025\n",
	} {
		if got := read("agx-orin-32gb", jetpack, "etc/nv_tegra_release"); !strings.HasPrefix(got, want) {
			t.Errorf("JetPack %s: %q", jetpack, got)
		}
	}
}

func TestPairs(t *testing.T) {
	nano, err := FindModule("nano")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := FindJetPack("6.0", nano); !errors.Is(err, ErrNoPair) {
		t.Errorf("JetPack 6 on a Nano: %v", err)
	}
	if _, err := FindJetPack("9", nano); !errors.Is(err, ErrUnknown) {
		t.Errorf("JetPack 9: %v", err)
	}
	if _, err := FindModule("tx9"); !errors.Is(err, ErrUnknown) {
		t.Errorf("module tx9: %v", err)
	}
	for _, m := range Modules {
		j, err := FindJetPack("", m)
		if err != nil || !j.Runs(m) {
			t.Errorf("%s has no JetPack of its own: %v", m.Key, err)
		}
		if _, err := jetson.Lookup(m.Model); err != nil {
			t.Errorf("%s: %v", m.Key, err)
		}
	}
	seen := map[string]bool{}
	for _, j := range JetPacks {
		major, _, _ := strings.Cut(j.Name, ".")
		seen[major] = true
	}
	if len(seen) != 4 {
		t.Errorf("JetPacks of %v, want 4 to 7", seen)
	}
}
