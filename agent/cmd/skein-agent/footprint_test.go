package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/internal/enroll/enrolltest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
)

const (
	maxBinary = 25_000_000
	maxIdleMB = 30
)

// TestFootprint builds the shipped binaries and measures the idle agent with
// its durable spool open and a sample every second. It takes half a minute.
func TestFootprint(t *testing.T) {
	if os.Getenv("SKEIN_SLOW") == "" {
		t.Skip("set SKEIN_SLOW=1 to measure the shipped binary")
	}
	dir := t.TempDir()
	for arch, name := range map[string]string{"arm64": "agent-arm64", "": "agent"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), ".")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if arch != "" {
			cmd.Env = append(cmd.Env, "GOARCH="+arch)
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes", name, st.Size())
		if st.Size() > maxBinary {
			t.Errorf("%s has %d bytes, at most %d", name, st.Size(), maxBinary)
		}
	}
	state := filepath.Join(dir, "state")
	enrolled(t, state)
	cmd := exec.Command(filepath.Join(dir, "agent"), "run", "--state", state, "--socket", filepath.Join(dir, "sock"), "--runtime", "mock", "--block-every", "5s")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	}()
	<-time.After(25 * time.Second)
	proc := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid))
	raw, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(string(raw), "\n") {
		if f := strings.Fields(line); len(f) > 1 && (f[0] == "VmRSS:" || f[0] == "RssAnon:" || f[0] == "Threads:") {
			t.Log(line)
			if kib, err := strconv.Atoi(f[1]); err == nil && f[0] == "VmRSS:" && kib > maxIdleMB<<10 {
				t.Errorf("idle resident memory %d KiB, at most %d MiB", kib, maxIdleMB)
			}
		}
	}
	stat, err := os.ReadFile(filepath.Join(proc, "stat"))
	if err != nil {
		t.Fatal(err)
	}
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+2:])
	t.Logf("CPU ticks (user, system, 100 a second) in 25 s: %s %s", f[11], f[12])
}

// enrolled makes a state folder with an identity.
func enrolled(t *testing.T, state string) {
	t.Helper()
	repoDir := t.TempDir()
	if _, err := trust.InitDev(repoDir, "skein.local", time.Now()); err != nil {
		t.Fatal(err)
	}
	repo, err := trust.OpenRepo(repoDir)
	if err != nil {
		t.Fatal(err)
	}
	s := enrolltest.New(t, time.Now())
	s.Set(func(s *enrolltest.Server) { s.TrustRoot, s.MQTTAddress = repo.Root(), "127.0.0.1:1" })
	files, err := slot.OpenDir(state)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	if _, err := agent.Enroll(t.Context(), agent.EnrollOptions{ServerURL: s.URL, Claim: s.Claim, Name: "cam", Target: "linux/arm64", Files: files}); err != nil {
		t.Fatal(err)
	}
}
