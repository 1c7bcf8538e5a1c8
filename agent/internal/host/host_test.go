package host

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/skein-fleet/skein/telemetry"
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

var orinNano = map[string]string{
	"etc/nv_tegra_release":                           "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64, DATE: Mon Jun 16 16:07:13 UTC 2025\n# KERNEL_VARIANT: oot\n",
	"proc/device-tree/model":                         "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\x00",
	"proc/device-tree/compatible":                    "nvidia,p3768-0000+p3767-0005-super\x00nvidia,tegra234\x00",
	"proc/device-tree/serial-number":                 "1421123456789\x00",
	"proc/sys/kernel/random/boot_id":                 "6f1f7f0e-2b6c-4a4b-9a38-0a3b2f2a5d11\n",
	"proc/meminfo":                                   "MemTotal:        7802332 kB\nMemAvailable:    5000000 kB\nSwapTotal: 3901164 kB\nSwapFree: 3901164 kB\n",
	"proc/uptime":                                    "1234.56 2000.00\n",
	"proc/net/dev":                                   "Inter-|   Receive\n face |bytes\n    lo: 10 0 0 0 0 0 0 0 10 0 0 0 0 0 0 0\n  eth0: 1000 1 0 0 0 0 0 0 2000 1 0 0 0 0 0 0\n",
	"usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0": "",
	"usr/lib/aarch64-linux-gnu/libnvinfer.so.10":     "",
	"usr/local/cuda/version.json":                    `{"cuda" : {"name" : "CUDA SDK", "version" : "12.6.68"}}`,
	"sys/class/thermal/thermal_zone0/type":           "cpu-thermal\n",
	"sys/class/thermal/thermal_zone0/temp":           "48312\n",
	"sys/class/thermal/thermal_zone1/type":           "cv0-thermal\n",
	"sys/class/thermal/thermal_zone1/temp":           "-256000\n",
}

func TestJetsonFacts(t *testing.T) {
	f, err := New(Options{Root: tree(t, orinNano), Arch: "arm64"}).Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := f.Target.String(), "linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;l4t=36.4.4;mem=8;dla=0;module=orin-nano-8gb"; got != want {
		t.Errorf("target %s, want %s", got, want)
	}
	if f.Serial != "1421123456789" || f.Hardware != "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super" || f.BootID == 0 {
		t.Errorf("%+v", f)
	}
}

func TestPlainHostFacts(t *testing.T) {
	f, err := New(Options{Root: tree(t, map[string]string{"sys/class/dmi/id/sys_vendor": "ACME", "sys/class/dmi/id/product_name": "Box"}), Arch: "amd64"}).Facts(t.Context())
	if err != nil || f.Target.String() != "linux/amd64;ort=1" || f.Hardware != "ACME Box" {
		t.Errorf("%+v %v", f, err)
	}
}

func value(t *testing.T, rs []telemetry.Reading, name string, labels ...string) (float64, bool) {
	t.Helper()
	want := telemetry.NewSeries(name, labels...)
	for _, r := range rs {
		if r.Series.Compare(want) == 0 {
			return r.Value, true
		}
	}
	return 0, false
}

func TestProcReadings(t *testing.T) {
	root := tree(t, orinNano)
	m := New(Options{Root: root})
	stat := func(text string) []telemetry.Reading {
		if err := os.WriteFile(filepath.Join(root, "proc/stat"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		rs, err := m.Readings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return rs
	}
	if _, ok := value(t, stat("cpu 1 1 1 1\ncpu0 100 0 0 100 0 0 0 0 0 0\n"), telemetry.CPUUtilization, "core", "0"); ok {
		t.Error("one look gives no utilisation")
	}
	rs := stat("cpu 1 1 1 1\ncpu0 130 0 0 170 0 0 0 0 0 0\n")
	for _, c := range []struct {
		want   float64
		name   string
		labels []string
	}{
		{0.3, telemetry.CPUUtilization, []string{"core", "0"}}, {1, telemetry.CPUCoresOnline, nil},
		{7802332 * 1024, telemetry.MemoryTotal, nil}, {2802332 * 1024, telemetry.MemoryUsed, nil}, {0, telemetry.SwapUsed, nil},
		{48.312, telemetry.Temperature, []string{"zone", "cpu"}}, {1234.56, telemetry.Uptime, nil},
		{1000, telemetry.NetworkReceived, []string{"interface", "eth0"}}, {2000, telemetry.NetworkSent, []string{"interface", "eth0"}},
	} {
		if got, ok := value(t, rs, c.name, c.labels...); !ok || got != c.want {
			t.Errorf("%s %v: %v %v, want %v", c.name, c.labels, got, ok, c.want)
		}
	}
	if _, ok := value(t, rs, telemetry.Temperature, "zone", "cv0"); ok {
		t.Error("a zone that is powered down has a reading")
	}
	if _, ok := value(t, rs, telemetry.DiskTotal, "mount", "state"); !ok {
		t.Error("no disk reading")
	}
}

// TestTegrastats runs a child that prints real lines and then ends.
func TestTegrastats(t *testing.T) {
	const line = "RAM 1892/7620MB (lfb 8x4MB) SWAP 0/3810MB (cached 0MB) CPU [2%@729,0%@729,0%@729,1%@729,0%@729,0%@729] GR3D_FREQ 0% cpu@48.312C gpu@47.5C VDD_IN 4792mW/4792mW"
	m := New(Options{Root: tree(t, orinNano), Tegrastats: []string{"/bin/sh", "-c", "echo '" + line + "'; sleep 60"}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	deadline := time.Now().Add(10 * time.Second)
	for {
		rs, err := m.Readings(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := value(t, rs, telemetry.Power, "rail", "VDD_IN"); ok {
			if got != 4.792 {
				t.Errorf("VDD_IN %v", got)
			}
			if _, ok := value(t, rs, telemetry.Uptime); !ok {
				t.Error("what tegrastats does not say is missing")
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no reading from tegrastats")
		}
		<-time.After(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
