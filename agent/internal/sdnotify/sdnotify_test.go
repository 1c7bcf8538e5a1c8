package sdnotify

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// listen is a service manager.
func listen(t *testing.T) (path string, next func() string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "n") // socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return path, func() string {
		buf := make([]byte, 4096)
		if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
}

func TestManager(t *testing.T) {
	path, next := listen(t)
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "60000")
	t.Setenv("WATCHDOG_PID", "1")
	m := FromEnvironment()
	if os.Getenv("NOTIFY_SOCKET") != "" || os.Getenv("WATCHDOG_USEC") != "" {
		t.Error("a model server could speak for the agent")
	}
	if m.Every() != 20*time.Millisecond || !slices.Contains(m.Environ(), "NOTIFY_SOCKET="+path) || len(m.Environ()) != 2 {
		t.Errorf("%s %q", m.Every(), m.Environ())
	}
	if err := m.Say(Ready, Status("two\nlines")); err != nil {
		t.Fatal(err)
	}
	if got := next(); got != "READY=1\nSTATUS=two lines" {
		t.Errorf("%q", got)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Live(ctx, func() string { return "fine" }) }()
	for range 3 {
		if got := next(); got != "STATUS=fine\nWATCHDOG=1" {
			t.Errorf("%q", got)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A status that hangs sends no sign of life.
func TestHangingStatus(t *testing.T) {
	path, next := listen(t)
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000")
	m := FromEnvironment()
	ctx, stop := context.WithCancel(t.Context())
	release, asked := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- m.Live(ctx, func() string {
			close(asked)
			<-release
			return "late"
		})
	}()
	<-asked
	stop()
	close(release)
	if got := next(); !strings.HasPrefix(got, "STATUS=late") {
		t.Errorf("%q was sent while the status hung", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNoManager(t *testing.T) {
	for _, name := range []string{"", "relative"} {
		t.Setenv("NOTIFY_SOCKET", name)
		m := FromEnvironment()
		if m != nil || m.Say(Ready) != nil || m.Every() != 0 || m.Environ() != nil {
			t.Errorf("%q: %+v", name, m)
		}
	}
}
