package archtest

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the stored dependency lists")

// TestBinaryDependencies compares the modules linked into each shipped binary
// with the stored list, so that a new dependency is seen in review. Rewrite the
// lists with: go test ./deploy/archtest -run BinaryDependencies -update
func TestBinaryDependencies(t *testing.T) {
	for name, pkg := range map[string]string{
		"skein-agent": "./agent/cmd/skein-agent", "skeind": "./controlplane/cmd/skeind",
		"skein": "./controlplane/cmd/skein", "skein-sim": "./sim/cmd/skein-sim", "skein-signer": "./ota/cmd/skein-signer",
	} {
		cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", pkg)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list %s: %v", pkg, err)
		}
		got := strings.Fields(string(out))
		slices.Sort(got)
		got = slices.Compact(got)
		path := filepath.Join("testdata", name+".deps")
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(strings.Join(got, "\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		stored, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := strings.Fields(string(stored))
		for _, m := range got {
			if !slices.Contains(want, m) {
				t.Errorf("%s links %s, which %s does not list", name, m, path)
			}
		}
		for _, m := range want {
			if !slices.Contains(got, m) {
				t.Errorf("%s lists %s, which %s no longer links", path, m, name)
			}
		}
	}
}
