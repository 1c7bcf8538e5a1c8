package host

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/telemetry"
)

// script is a child that counts its starts in a file.
func script(t *testing.T, body string) (command []string, starts func() int) {
	t.Helper()
	count := filepath.Join(t.TempDir(), "starts")
	return []string{"/bin/sh", "-c", "echo x >> " + count + "\n" + body}, func() int {
		raw, err := os.ReadFile(count)
		if err != nil {
			return 0
		}
		return strings.Count(string(raw), "x")
	}
}

func keep(t *testing.T, command []string, until func(*Machine) bool) {
	t.Helper()
	m := New(Options{Root: tree(t, orinNano), NVML: command, NVMLSilence: 200 * time.Millisecond, Tegrastats: []string{"/bin/sleep", "60"}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	for deadline := time.Now().Add(20 * time.Second); !until(m); <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come to that")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNVML takes readings from the child, and only those that nobody else has.
func TestNVML(t *testing.T) {
	command, _ := script(t, `while :; do echo '{"gpus":[{"index":0,"utilisation":0.42,"celsius":77,"memory_used":1048576}]}'; sleep 0.05; done`)
	keep(t, command, func(m *Machine) bool {
		rs, err := m.Readings(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got, ok := value(t, rs, telemetry.GPUUtilization)
		if !ok {
			return false
		}
		if used, _ := value(t, rs, telemetry.GPUMemoryUsed); got != 0.42 || used != 1<<20 {
			t.Errorf("%v %v", got, used)
		}
		if cpu, ok := value(t, rs, telemetry.Temperature, "zone", "cpu"); !ok || cpu != 48.312 {
			t.Errorf("the zone of the kernel: %v %v", cpu, ok)
		}
		return true
	})
}

// TestNVMLFaults: one that hangs is killed and one that crashes or babbles ends;
// all are started again, later. One that says that there is no GPU is not.
func TestNVMLFaults(t *testing.T) {
	for name, body := range map[string]string{"hang": "sleep 60", "crash": "kill -SEGV $$", "babble": "echo nonsense; sleep 60"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			command, starts := script(t, body)
			keep(t, command, func(*Machine) bool { return starts() >= 2 })
		})
	}
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		command, starts := script(t, "exit 69")
		begun := time.Now()
		keep(t, command, func(*Machine) bool { return starts() > 0 && time.Since(begun) > restartMin+time.Second })
		if starts() != 1 {
			t.Errorf("started %d times", starts())
		}
	})
}
