package agent

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestBundleOfNoFile: a named pipe without a writer is refused, not waited for.
func TestBundleOfNoFile(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe.skein")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Skip("no named pipes here:", err)
	}
	for _, path := range []string{pipe, dir} {
		if _, err := new(Agent).openBundle(path); err == nil || !strings.Contains(err.Error(), "not a plain file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
