package host

import (
	"os"
	"path/filepath"
	"testing"
)

func TestDefaultInterface(t *testing.T) {
	const header = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
	for _, c := range []struct{ name, v4, v6, want string }{
		{"none", header, "", ""},
		{"no files", "", "", ""},
		{"wired before modem", header +
			"wwan0\t00000000\t0100000A\t0003\t0\t0\t700\t00000000\t0\t0\t0\n" +
			"eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n" +
			"eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n", "", "eth0"},
		{"down", header + "eth0\t00000000\t0101A8C0\t0002\t0\t0\t100\t00000000\t0\t0\t0\n" +
			"ppp0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n", "", "ppp0"},
		{"IPv6 alone", header,
			"00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 wlan0\n" +
				"00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo\n", "wlan0"},
		{"nonsense", "a b c\n\n", "x y\n", ""},
	} {
		root := t.TempDir()
		if c.v4+c.v6 != "" {
			if err := os.MkdirAll(filepath.Join(root, "proc/net"), 0o755); err != nil {
				t.Fatal(err)
			}
			for file, text := range map[string]string{"route": c.v4, "ipv6_route": c.v6} {
				if err := os.WriteFile(filepath.Join(root, "proc/net", file), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		m := &Machine{opts: Options{Root: root}}
		if got, err := m.DefaultInterface(); err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.want)
		}
	}
}
