// Package sdnotify tells the service manager how the agent does: that it is
// ready, that it is alive, and a line of status. It owns systemd's protocol of
// datagrams on $NOTIFY_SOCKET. What the environment names is taken out of it, so
// that model servers cannot speak for the agent; a supervisor passes it on by
// hand. cmd/skein-agent imports it.
package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Names of the environment.
const (
	socketVariable   = "NOTIFY_SOCKET"
	watchdogVariable = "WATCHDOG_USEC"
	pidVariable      = "WATCHDOG_PID"
)

// Manager is the service manager; nil is none, to which nothing is said.
type Manager struct {
	address  *net.UnixAddr
	watchdog time.Duration
	environ  []string
}

// FromEnvironment returns the manager that started this process or its
// supervisor, nil when there is none, and takes it out of the environment.
func FromEnvironment() *Manager {
	var m *Manager
	if name := os.Getenv(socketVariable); strings.HasPrefix(name, "/") || strings.HasPrefix(name, "@") {
		m = &Manager{address: &net.UnixAddr{Name: name, Net: "unixgram"}}
		for _, v := range []string{socketVariable, watchdogVariable} {
			if value, ok := os.LookupEnv(v); ok {
				m.environ = append(m.environ, v+"="+value)
			}
		}
		if n, err := strconv.ParseInt(os.Getenv(watchdogVariable), 10, 64); err == nil && n > 0 && n < int64(24*time.Hour/time.Microsecond) {
			m.watchdog = time.Duration(n) * time.Microsecond
		}
	}
	for _, v := range []string{socketVariable, watchdogVariable, pidVariable} {
		os.Unsetenv(v)
	}
	return m
}

// Environ is what a process that speaks for the service gets.
func (m *Manager) Environ() []string {
	if m == nil {
		return nil
	}
	return m.environ
}

// Every is the time between two signs of life, 0 when none are wanted: a third
// of what the manager allows, so that one may be late.
func (m *Manager) Every() time.Duration {
	if m == nil {
		return 0
	}
	return m.watchdog / 3
}

// Say sends assignments, as READY=1.
func (m *Manager) Say(assignments ...string) error {
	if m == nil {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, m.address)
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	defer c.Close()
	for i, a := range assignments {
		assignments[i] = strings.ReplaceAll(a, "\n", " ")
	}
	if _, err := c.Write([]byte(strings.Join(assignments, "\n"))); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}

// The assignments.
const (
	Ready    = "READY=1"
	Stopping = "STOPPING=1"
	Alive    = "WATCHDOG=1"
)

// Status is a line for people.
func Status(text string) string { return "STATUS=" + text }

// Live sends signs of life and the status until ctx ends. status is called for
// each and may block: then no sign is sent, and the manager restarts the service.
func (m *Manager) Live(ctx context.Context, status func() string) error {
	every := m.Every()
	if m == nil {
		<-ctx.Done()
		return nil
	}
	if every == 0 {
		every = time.Minute // the status alone
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var failed error
	for {
		say := []string{Status(status())}
		if m.watchdog > 0 {
			say = append(say, Alive)
		}
		if err := m.Say(say...); err != nil {
			failed = errors.Join(err) // the newest is enough
		}
		select {
		case <-ctx.Done():
			return failed
		case <-ticker.C:
		}
	}
}
