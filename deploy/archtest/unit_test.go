package archtest

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestUnitSecurity holds the exposure of the agent's service, as systemd reckons
// it from 0 (nothing) to 10, and prints it. `make unit-security` shows the items.
func TestUnitSecurity(t *testing.T) {
	const most = 4.9
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	unit := filepath.Join("..", "systemd", "skein-agent.service")
	out, err := exec.CommandContext(t.Context(), tool, "security", "--offline=true", "--no-pager", unit).CombinedOutput()
	if err != nil && strings.Contains(string(out), "unrecognized option") {
		t.Skip("this systemd-analyze does not know --offline")
	}
	g := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+) (\S+)`).FindSubmatch(out)
	if g == nil {
		t.Fatalf("systemd-analyze security: %v\n%s", err, out)
	}
	score, err := strconv.ParseFloat(string(g[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("systemd-analyze security: %s %s", g[1], g[2])
	if score > most {
		t.Errorf("exposure %s, want at most %.1f: make unit-security says what counts", g[1], most)
	}
}
