package hil

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skein-fleet/skein/proto/gen/skein/agentlocal/v1/agentlocalv1connect"
)

// local runs the agent on this machine.
type local struct{ d *Device }

const stopTimeout = 15 * time.Second

func (l *local) start(context.Context) (*process, error) {
	d := l.d
	claim, bin := filepath.Join(d.dir, "claim"), ""
	if err := os.WriteFile(claim, []byte(d.claim), 0o600); err != nil {
		return nil, fmt.Errorf("write the claim: %w", err)
	}
	var env []string
	if d.board != nil {
		env, bin = d.board.Environment(), d.board.Bin()
	}
	words := append(append([]string(nil), d.o.Emulator...), d.o.Agent)
	words = append(words, d.flags(d.state(), d.socket(), claim, serveCommand(d.o.Program), bin)...)
	log, err := os.OpenFile(filepath.Join(d.dir, "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the agent's log: %w", err)
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append(append(os.Environ(), env...), "HTTPS_PROXY="+d.line.URL())
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what it starts is in its session
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the agent: %w", err), log.Close())
	}
	pid := cmd.Process.Pid
	p := &process{done: make(chan struct{})}
	p.kill = func() { killSession(pid) }
	p.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		time.AfterFunc(stopTimeout, func() {
			select {
			case <-p.done:
			default:
				killSession(pid)
			}
		})
	})
	go func() {
		err := cmd.Wait()
		killSession(pid) // what it left behind
		if err != nil {
			err = fmt.Errorf("%w: %s", err, tail(log.Name()))
		}
		p.err = errors.Join(err, log.Close())
		close(p.done)
	}()
	return p, nil
}

func (l *local) carry(_ context.Context, file string) (string, error) { return file, nil }

func (l *local) close() error { return nil }

// tail is the end of a log.
func tail(name string) string {
	raw, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return strings.Join(lines[max(0, len(lines)-4):], "\n")
}

// killSession kills every process of a session, its leader first.
func killSession(sid int) {
	_ = syscall.Kill(sid, syscall.SIGKILL)
	for range 3 { // one may start another meanwhile
		members := session(sid)
		for _, pid := range members {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(members) == 0 {
			return
		}
	}
}

// session lists the living processes of a session.
func session(sid int) (out []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		_, rest, ok := strings.Cut(string(raw[strings.LastIndexByte(string(raw), ')')+1:]), " ")
		f := strings.Fields(rest) // state ppid pgrp session
		if !ok || len(f) < 4 || f[0] == "Z" || f[3] != strconv.Itoa(sid) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name))); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// local is the agent's unix socket.
func (d *Device) local() agentlocalv1connect.LocalServiceClient {
	h := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // agents come and go
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.socket())
		},
	}}
	return agentlocalv1connect.NewLocalServiceClient(h, "http://skein-agent")
}
