package target

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree writes a small root file system.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func probe(t *testing.T, files map[string]string, run Run) Info {
	t.Helper()
	i, err := Probe(t.Context(), Options{Root: tree(t, files), Arch: "arm64", Run: run})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func lines(t *testing.T, name string) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for l := range strings.SplitSeq(string(raw), "\n") {
		if l != "" {
			out = append(out, l)
		}
	}
	return out
}

const orinConf = "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< POWER_MODEL ID=3 NAME=7W >\n< PM_CONFIG DEFAULT=1 >\n"

func orinNano() map[string]string {
	return map[string]string{
		"etc/nv_tegra_release":                           "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64, DATE: Mon Jun 16 16:07:13 UTC 2025\n# KERNEL_VARIANT: oot\n",
		"proc/device-tree/model":                         "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\x00",
		"proc/device-tree/compatible":                    "nvidia,p3768-0000+p3767-0005-super\x00nvidia,tegra234\x00",
		"proc/device-tree/serial-number":                 "1421123456789\x00",
		"proc/meminfo":                                   "MemTotal:        7802332 kB\nMemAvailable:    5000000 kB\n",
		"usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": "",
		"usr/lib/aarch64-linux-gnu/libnvinfer.so.10":     "",
		"usr/local/cuda/version.json":                    `{"cuda" : {"name" : "CUDA SDK", "version" : "12.6.68"}}`,
		"etc/nvpmodel.conf":                              orinConf,
		"var/lib/nvpmodel/status":                        "pmode:0002",
	}
}

func TestOrinNano(t *testing.T) {
	i := probe(t, orinNano(), nil)
	if got, want := i.Target.String(), "linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;l4t=36.4.4;mem=8;dla=0;module=orin-nano-8gb;mode=MAXN_SUPER"; got != want {
		t.Errorf("target %s\nwant   %s", got, want)
	}
	if i.JetPack != "6.2.1" || i.Board != "p3767-0005" || i.Serial != "1421123456789" || i.Ships.TensorRT != "10.3.0" {
		t.Errorf("%+v", i)
	}
}

// TestEveryModule makes a root for each board of the table, as its device tree
// and memory show it, and finds it again.
func TestEveryModule(t *testing.T) {
	tab, err := readTables()
	if err != nil {
		t.Fatal(err)
	}
	if len(tab.boards) < 28 {
		t.Fatalf("only %d boards", len(tab.boards))
	}
	for _, b := range tab.boards {
		var chip chipRow
		for _, c := range tab.chips {
			if c.chip == b.chip {
				chip = c
			}
		}
		for way, files := range map[string]map[string]string{
			"device tree":   {"proc/device-tree/compatible": "nvidia,p0000-0000+" + b.id + "\x00" + chip.compatible + "\x00"},
			"file name":     {"proc/device-tree/compatible": chip.compatible + "\x00", "proc/device-tree/nvidia,dtsfilename": "/arch/arm64/tegra-" + b.id + "-p9999-0000.dts"},
			"board ids":     {"proc/device-tree/compatible": chip.compatible + "\x00", "proc/device-tree/nvidia,boardids": b.id[1:5] + ":" + b.id[6:] + ":B01"},
			"specification": {"proc/device-tree/compatible": chip.compatible + "\x00", "etc/nv_boot_control.conf": "TNSPEC " + b.id[1:5] + "-300-" + b.id[6:] + "-M.2-1-1-x-\nCOMPATIBLE_SPEC " + b.id[1:5] + "--" + b.id[6:] + "--1--x-\n"},
		} {
			files["proc/meminfo"] = fmt.Sprintf("MemTotal: %d kB\n", int64(float64(b.ramGiB)*0.92*(1<<20)))
			i := probe(t, files, nil)
			want := fmt.Sprintf("linux/arm64;sm=%s;mem=%d;dla=%d;module=%s", chip.sm, b.ramGiB, b.dla, b.name)
			if got := i.Target.String(); got != want {
				t.Errorf("%s by its %s: %s, want %s", b.id, way, got, want)
			}
		}
	}
}

// TestCompatible reads real device trees.
func TestCompatible(t *testing.T) {
	want := map[string]string{"T5000": "thor-t5000", "Orin Nano 8GB dev kit": "orin-nano-8gb"}
	for _, l := range lines(t, "compatible.tsv")[1:] {
		cells := strings.Split(l, "\t")
		i := probe(t, map[string]string{"proc/device-tree/compatible": strings.ReplaceAll(cells[0], "|", "\x00") + "\x00", "proc/device-tree/model": cells[1] + "\x00"}, nil)
		if got := i.Target.Attrs["module"]; got != want[cells[2]] || got == "" {
			t.Errorf("%s: module %q, want %q", cells[2], got, want[cells[2]])
		}
	}
}

// TestT4000: it shares the device tree's string with the T5000.
func TestT4000(t *testing.T) {
	files := map[string]string{"proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\x00nvidia,p3834-0008\x00nvidia,tegra264\x00"}
	for kib, want := range map[int]string{128771840: "thor-t5000", 62 << 20: "thor-t4000"} {
		files["proc/meminfo"] = fmt.Sprintf("MemTotal: %d kB\n", kib)
		if got := probe(t, files, nil).Target.Attrs["module"]; got != want {
			t.Errorf("%d kB: %s, want %s", kib, got, want)
		}
	}
}

// TestUnknownBoards still get a target.
func TestUnknownBoards(t *testing.T) {
	smi := func(_ context.Context, name string, _ ...string) ([]byte, error) {
		if name == "nvidia-smi" {
			return []byte("NVIDIA Thor Next, 12.1\n"), nil
		}
		return nil, errors.New("not installed")
	}
	for _, c := range []struct {
		name, compatible, model, want string
	}{
		{"new module of a known chip", "nvidia,p3768-0000+p3767-0042\x00nvidia,tegra234", "x", "linux/arm64;sm=8.7;dla=0;module=p3767-0042"},
		{"new chip", "nvidia,p5000-0000+p4999-0001\x00nvidia,tegra300", "x", "linux/arm64;sm=12.1;dla=0;module=p4999-0001"},
		{"no board id", "acme,box\x00nvidia,tegra234", "ACME Box (v2)", "linux/arm64;sm=8.7;dla=0;module=acme-box-v2"},
	} {
		i := probe(t, map[string]string{"proc/device-tree/compatible": c.compatible + "\x00", "proc/device-tree/model": c.model}, smi)
		if got := i.Target.String(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestJetPacks identifies every JetPack from 4.6 to 7 by its own first line.
func TestJetPacks(t *testing.T) {
	sample := lines(t, "nv_tegra_release.txt")
	want := []string{"32.7.1 4.6.1", "32.6.1 4.6", "34.1.1 5.0", "35.2.1 5.1", "35.3.1 5.1.1", "36.4.4 6.2.1", "38.2.0 7.0", "38.4.0 7.1"}
	if len(sample) != len(want) {
		t.Fatalf("%d lines, %d answers", len(sample), len(want))
	}
	for n, line := range sample {
		i := probe(t, map[string]string{"etc/nv_tegra_release": line}, nil)
		if got := i.Target.Attrs["l4t"] + " " + i.JetPack; got != want[n] {
			t.Errorf("%s: %s, want %s", line, got, want[n])
		}
	}
	for l4t, want := range map[string]string{
		"32.7.6": "4.6.6", "32.5": "4.5", "35.1.0": "5.0.2", "35.4.1": "5.1.2", "35.5.0": "5.1.3", "35.6.0": "5.1.4", "35.6.4": "5.1.6",
		"36.3.0": "6.0", "36.4.0": "6.1", "36.4.3": "6.2", "36.4.7": "6.2.1", "36.5.0": "6.2.2", "38.2.2": "7.0", "39.2.0": "7.2", "51.0.0": "",
	} {
		major, rest, _ := strings.Cut(l4t, ".")
		i := probe(t, map[string]string{"etc/nv_tegra_release": fmt.Sprintf("# R%s (release), REVISION: %s, GCID: 1, BOARD: generic, EABI: aarch64, DATE: x", major, rest)}, nil)
		if i.JetPack != want || i.Target.Attrs["l4t"] != l4t {
			t.Errorf("L4T %s: JetPack %q, want %q (%s)", l4t, i.JetPack, want, i.Target)
		}
	}
	for _, v := range lines(t, "l4t-core-versions.txt") {
		i := probe(t, map[string]string{"var/lib/dpkg/status": "Package: zlib1g\nVersion: 1:1.2\n\nPackage: nvidia-l4t-core\nStatus: install ok installed\nVersion: " + v + "\n"}, nil)
		if got, _, _ := strings.Cut(v, "-"); i.Target.Attrs["l4t"] != got {
			t.Errorf("package %s: l4t %q", v, i.Target.Attrs["l4t"])
		}
	}
}

func TestModes(t *testing.T) {
	want := map[string]string{
		"Orin Nano 8GB super": "25W", "AGX Orin 32GB": "MODE_40W", "Xavier NX": "MODE_15W_6CORE", "AGX Orin / Orin MAXN": "MAXN", "R32 verbose form": "MODE_15W_6CORE",
	}
	text, name := map[string]string{}, ""
	for _, l := range lines(t, "nvpmodel-q.txt") {
		if rest, ok := strings.CutPrefix(l, "--- "); ok {
			name = rest
			continue
		}
		text[name] += l + "\n"
	}
	got := map[string]string{}
	for n, q := range text {
		got[n] = ParseModeQuery(q)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := ParseModeQuery("NVPM ERROR: Error opening /etc/nvpmodel.conf"); got != "" {
		t.Errorf("an error is mode %q", got)
	}

	files := orinNano()
	delete(files, "var/lib/nvpmodel/status")
	query := func(_ context.Context, name string, args ...string) ([]byte, error) {
		if name != "nvpmodel" || len(args) != 1 || args[0] != "-q" {
			return nil, fmt.Errorf("%s %v", name, args)
		}
		return []byte("NV Power Mode[3]: 7W\n3\n"), nil
	}
	if got := probe(t, files, query).Target.Attrs["mode"]; got != "7W" {
		t.Errorf("asked: %q", got)
	}
	if got := probe(t, files, nil).Target.Attrs["mode"]; got != "25W" {
		t.Errorf("default: %q", got)
	}
}

func TestPlainHosts(t *testing.T) {
	root := tree(t, map[string]string{
		"sys/class/dmi/id/sys_vendor": "ACME", "sys/class/dmi/id/product_name": "Box",
		"usr/lib/x86_64-linux-gnu/libnvinfer.so.10.7.0":                             "",
		"usr/local/lib/python3.10/dist-packages/onnxruntime_gpu-1.20.1.dist-info/x": "",
	})
	i, err := Probe(t.Context(), Options{Root: root, Arch: "amd64"})
	if err != nil || i.Target.String() != "linux/amd64;ort=1.20.1" || i.Model != "ACME Box" {
		t.Errorf("%+v %v", i, err)
	}
	i, err = Probe(t.Context(), Options{Root: root, Arch: "amd64", Run: func(context.Context, string, ...string) ([]byte, error) {
		return []byte("NVIDIA H100 80GB HBM3, 9.0\n"), nil
	}})
	if want := "linux/amd64;sm=9.0;trt=10.7.0;ort=1.20.1;module=nvidia-h100-80gb-hbm3"; err != nil || i.Target.String() != want {
		t.Errorf("%s, want %s (%v)", i.Target, want, err)
	}
	if i, err = Probe(t.Context(), Options{Root: t.TempDir(), Arch: "amd64"}); err != nil || i.Target.String() != "linux/amd64;ort=1" {
		t.Errorf("an empty host: %s %v", i.Target, err)
	}
}

// TestL4TFromThePackage: some images come without /etc/nv_tegra_release.
func TestL4TFromThePackage(t *testing.T) {
	for text, want := range map[string]string{
		"Package: adduser\nVersion: 3.118-1\n\nPackage: nvidia-l4t-core\nStatus: install ok installed\nVersion: 36.4.4-20250616085344\nDescription: x\n\nPackage: zip\nVersion: 1.0-2\n": "36.4.4",
		"Package: nvidia-l4t-core\nVersion: 38.4.0-20251230160601\n":                     "38.4.0",
		"Package: nvidia-l4t-core\nVersion: unknown\n\nPackage: zip\nVersion: 3.0.0-1\n": "",
		"Package: nvidia-l4t-core-tools\nVersion: 36.4.4-20250616085344\n":               "",
	} {
		if got := probe(t, map[string]string{"var/lib/dpkg/status": text}, nil).Target.Attrs["l4t"]; got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
