package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/telemetry/probe/nvml"
)

// TestLibraries builds the program and libraries that behave as those in the
// field do.
func TestLibraries(t *testing.T) {
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("needs a C compiler (cc)")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "skein-nvml")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	library := func(kind string) string {
		path := filepath.Join(dir, kind+".so")
		if out, err := exec.CommandContext(t.Context(), cc, "-shared", "-fPIC", "-D"+kind, "-o", path, "testdata/stub.c").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return path
	}
	identity := nvml.GPU{Name: "Stub GPU", UUID: "GPU-1", Compute: "8.7"}
	full := identity
	full.Utilisation, full.MemoryUsed, full.MemoryTotal = new(0.42), new(uint64(1<<30)), new(uint64(8<<30))
	lean := full
	full.Clock, full.MemoryClock, full.Power, full.Celsius = new(uint32(1300)), new(uint32(3199)), new(12.5), new(51.0)
	full.Throttle, full.Throttles = []string{"power-cap"}, true
	for kind, want := range map[string]nvml.GPU{"FULL": full, "ORIN": identity, "LEAN": lean} {
		out, err := exec.CommandContext(t.Context(), program, "-library", library(kind), "-interval", "1ms", "-lines", "2").Output()
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		lines := bytes.Split(bytes.TrimSpace(out), []byte("\n"))
		if len(lines) != 2 {
			t.Errorf("%s: %d lines", kind, len(lines))
		}
		r, err := nvml.Parse(lines[0])
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(nvml.Report{Driver: "540.4.0", GPUs: []nvml.GPU{want}}, r); diff != "" {
			t.Errorf("%s: %s", kind, diff)
		}
	}
	if err := exec.CommandContext(t.Context(), program, "-library", library("CRASH"), "-lines", "1").Run(); err == nil {
		t.Error("a library that crashes does not end the program")
	}
	exit, ok := errors.AsType[*exec.ExitError](exec.CommandContext(t.Context(), program, "-library", filepath.Join(dir, "none.so")).Run())
	if !ok || exit.ExitCode() != nvml.ExitNoLibrary {
		t.Errorf("without a library: %v", exit)
	}
	hangs(t, program, library("HANG"))
}

// hangs: a driver that hangs makes the program silent, so that the agent's
// deadline for lines is what notices.
func hangs(t *testing.T, program, library string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "-library", library)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err == nil {
		t.Errorf("a library that hangs gave %q", strings.TrimSpace(line))
	}
	if cmd.Wait() == nil || ctx.Err() == nil {
		t.Error("it ended by itself")
	}
}
