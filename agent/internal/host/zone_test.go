package host

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestZone(t *testing.T) {
	for _, c := range []struct{ link, file, want string }{
		{"/usr/share/zoneinfo/Europe/Paris", "", "Europe/Paris"},
		{"../usr/share/zoneinfo/Asia/Tokyo", "Europe/Paris\n", "Asia/Tokyo"},
		{"", "Europe/Paris\n", "Europe/Paris"},
		{"/somewhere/else", "Mars\n", time.Local.String()},
		{"", "", time.Local.String()},
	} {
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if c.link != "" {
			if err := os.Symlink(c.link, filepath.Join(root, "etc/localtime")); err != nil {
				t.Fatal(err)
			}
		}
		if c.file != "" {
			if err := os.WriteFile(filepath.Join(root, "etc/timezone"), []byte(c.file), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := (&Machine{opts: Options{Root: root}}).Zone().String(); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}
