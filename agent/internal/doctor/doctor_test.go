package doctor

import (
	"context"
	"errors"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// tree makes files below a new root.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// orin is an Orin Nano in good order.
func orin() map[string]string {
	return map[string]string{
		"etc/nv_tegra_release":                       "# R36 (release), REVISION: 4.4, GCID: 41062509, BOARD: generic, EABI: aarch64, DATE: Mon Jun 16 16:07:13 UTC 2025\n",
		"proc/device-tree/model":                     "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\x00",
		"proc/device-tree/compatible":                "nvidia,p3768-0000+p3767-0005-super\x00nvidia,p3767-0005\x00nvidia,tegra234\x00",
		"proc/device-tree/serial-number":             "1421223000001\x00",
		"proc/net/route":                             "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\neth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\n",
		"proc/meminfo":                               "MemTotal:        7802880 kB\nSwapTotal:       3901440 kB\n",
		"proc/sys/user/max_user_namespaces":          "29912\n",
		"proc/sys/kernel/osrelease":                  "5.15.148-tegra\n",
		"sys/fs/cgroup/cgroup.controllers":           "cpuset cpu io memory pids\n",
		"sys/class/rtc/rtc0/since_epoch":             "1795521600\n",
		"etc/cdi/nvidia.yaml":                        "cdiVersion: 0.5.0\n",
		"etc/nvpmodel.conf":                          "< POWER_MODEL ID=1 NAME=25W >\n",
		"lib/modules/5.15.148-tegra/modules.builtin": "kernel/net/bridge/br_netfilter.ko\nkernel/net/netfilter/xt_addrtype.ko\nkernel/net/ipv4/netfilter/iptable_raw.ko\n",
	}
}

func options(t *testing.T, files map[string]string) Options {
	return Options{Root: tree(t, files), StateDir: filepath.Join(t.TempDir(), "state"), Now: func() time.Time { return now }, Floor: now.Add(-time.Hour), IsRoot: true,
		LookPath: func(name string) (string, error) { return "/usr/sbin/" + name, nil },
		Run: func(_ context.Context, name string, _ ...string) ([]byte, error) {
			if name == "nvpmodel" {
				return []byte("NV Power Mode: 25W\n1\n"), nil
			}
			return nil, errors.New("not found")
		}}
}

func find(all []Finding, check string) Finding {
	for _, f := range all {
		if f.Check == check && f.Severity != OK {
			return f
		}
	}
	for _, f := range all {
		if f.Check == check {
			return f
		}
	}
	return Finding{}
}

func TestGoodBoard(t *testing.T) {
	for _, f := range Examine(t.Context(), options(t, orin())) {
		if f.Severity == Error || f.Severity == Warning && f.Check != "disk" {
			t.Errorf("%+v", f)
		}
		if f.Severity != OK && f.Fix == "" {
			t.Errorf("%s: no fix", f.Check)
		}
	}
}

// Each defect is found, and its fix named.
func TestDefects(t *testing.T) {
	for _, c := range []struct {
		check    string
		severity Severity
		fix      string
		change   func(*Options, map[string]string)
	}{
		{"clock", Error, "NTP", func(o *Options, _ map[string]string) { o.Now = func() time.Time { return time.Unix(60, 0) } }},
		{"rtc", Warning, "coin cell", func(_ *Options, f map[string]string) { f["sys/class/rtc/rtc0/since_epoch"] = "14\n" }},
		{"rtc", Warning, "floor", func(_ *Options, f map[string]string) { delete(f, "sys/class/rtc/rtc0/since_epoch") }},
		{"l4t", Warning, "nvidia-l4t-core", func(_ *Options, f map[string]string) { delete(f, "etc/nv_tegra_release") }},
		{"network", Warning, "connect", func(_ *Options, f map[string]string) { delete(f, "proc/net/route") }},
		{"cgroup-memory", Warning, "cgroup_enable=memory", func(_ *Options, f map[string]string) { f["sys/fs/cgroup/cgroup.controllers"] = "cpu io\n" }},
		{"gpu", Warning, "nvidia-ctk", func(_ *Options, f map[string]string) { delete(f, "etc/cdi/nvidia.yaml") }},
		{"iptables", Note, "host's network", func(_ *Options, f map[string]string) { delete(f, "lib/modules/5.15.148-tegra/modules.builtin") }},
		{"nvpmodel", Warning, "nvpmodel", func(_ *Options, f map[string]string) { delete(f, "etc/nvpmodel.conf") }},
		{"tegrastats", Warning, "nvidia-l4t-tools", func(o *Options, _ map[string]string) {
			o.LookPath = func(string) (string, error) { return "", errors.New("no") }
		}},
		{"memory", Note, "swap", func(_ *Options, f map[string]string) { f["proc/meminfo"] = "MemTotal: 3964928 kB\nSwapTotal: 0 kB\n" }},
		{"user-namespaces", Note, "sysctl", func(_ *Options, f map[string]string) { f["proc/sys/user/max_user_namespaces"] = "0\n" }},
		{"containerd", Note, "containerd 1.6", func(o *Options, _ map[string]string) { o.Containerd = "run/containerd/containerd.sock" }},
		{"server", Error, "https://", func(o *Options, _ map[string]string) { o.Server = "fleet.example.com" }},
		{"server", Error, "firewall", func(o *Options, _ map[string]string) {
			o.Server = "https://10.9.9.9:8443"
			o.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no route to host") }
		}},
		{"server", Error, "DNS", func(o *Options, _ map[string]string) {
			o.Server = "https://fleet.example.com:8443"
			o.Dial = func(context.Context, string, string) (net.Conn, error) {
				return nil, &net.DNSError{Err: "no such host", Name: "fleet"}
			}
		}},
	} {
		files := orin()
		o := options(t, files)
		c.change(&o, files)
		o.Root = tree(t, files)
		got := find(Examine(t.Context(), o), c.check)
		if got.Severity != c.severity || !strings.Contains(got.Fix, c.fix) {
			t.Errorf("%s: %+v, want %s with %q", c.check, got, c.severity, c.fix)
		}
	}
}

func TestPermissions(t *testing.T) {
	o := options(t, orin())
	if err := errors.Join(os.MkdirAll(filepath.Join(o.StateDir, "identity"), 0o755), os.WriteFile(filepath.Join(o.StateDir, "identity/key.pem"), nil, 0o644), os.Chmod(o.StateDir, 0o777)); err != nil {
		t.Fatal(err)
	}
	all := Examine(t.Context(), o)
	for _, check := range []string{"state", "key"} {
		if f := find(all, check); f.Severity != Error || !strings.Contains(f.Fix, "chmod") {
			t.Errorf("%+v", f)
		}
	}
	if Worst(all) != Error || Worst(nil) != OK {
		t.Error("worst is wrong")
	}
}

func TestServerAnswers(t *testing.T) {
	s := httptest.NewTLSServer(nil)
	defer s.Close()
	o := options(t, orin())
	o.Server = s.URL
	if f := find(Examine(t.Context(), o), "server"); f.Severity != OK {
		t.Errorf("%+v", f)
	}
	plain := httptest.NewServer(nil)
	defer plain.Close()
	o.Server = "https" + strings.TrimPrefix(plain.URL, "http")
	if f := find(Examine(t.Context(), o), "server"); f.Severity != Error || !strings.Contains(f.Message, "TLS 1.3") {
		t.Errorf("%+v", f)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	o.Listen = []string{l.Addr().String()}
	if f := find(Examine(t.Context(), o), "ports"); f.Severity != Warning {
		t.Errorf("%+v", f)
	}
}
