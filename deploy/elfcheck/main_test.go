package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestCheck takes a Go binary without cgo and refuses what is not one.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	src, bin := filepath.Join(dir, "main.go"), filepath.Join(dir, "bin")
	if err := os.WriteFile(src, []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", bin, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOOS=linux", "GOARCH=arm64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := check(bin, "arm64", true, 25_000_000); err != nil {
		t.Error(err)
	}
	if err := check(bin, "amd64", true, 1000); err == nil || !strings.Contains(err.Error(), "want amd64") || !strings.Contains(err.Error(), "want less than 1000") {
		t.Errorf("%v", err)
	}
	if err := check(src, "arm64", true, 0); err == nil {
		t.Error("a text is no binary")
	}
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil || runtime.GOARCH != "amd64" {
		t.Skip("no shell for amd64 here")
	}
	if err := check(shell, "amd64", true, 0); err == nil || !strings.Contains(err.Error(), "not static") {
		t.Errorf("%s: %v", shell, err)
	}
}
