// Package plane runs a control plane for simulations: in this process, or the
// real skeind as a child process that can be killed and started again. It owns
// the child's life and its addresses, which stay the same over restarts. The
// packages of sim import it.
package plane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/controlplane"
	"github.com/skein-fleet/skein/sim/operator"
)

// ErrNoProcess is returned by Restart when there is no process of its own to kill.
var ErrNoProcess = errors.New("this control plane is no child process, so it cannot be killed")

const (
	startTimeout = 60 * time.Second
	stopTimeout  = 20 * time.Second
)

// Plane is a running control plane. Close ends it.
type Plane struct {
	URL       string // people: API, metrics
	DeviceURL string // devices: enrolment, blobs
	MQTT      string // host:port
	Token     string // of an administrator
	DataDir   string

	command []string // nil: in this process
	log     *os.File
	cancel  context.CancelFunc
	ended   chan struct{} // in this process: closed when it ended
	err     error         // why; read it after ended

	mu    sync.Mutex // guards child
	child *child
}

type child struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// Operator acts on it as its administrator.
func (p *Plane) Operator() *operator.Operator { return operator.New(p.URL, p.Token) }

// InProcess runs a control plane in this process with its data in dir. An
// empty httpAddr means any free port. Tune changes its configuration.
func InProcess(ctx context.Context, dir, httpAddr string, logger *slog.Logger, tune ...func(*controlplane.Config)) (*Plane, error) {
	if httpAddr == "" {
		httpAddr = "127.0.0.1:0"
	}
	cfg := controlplane.DefaultConfig()
	cfg.DataDir, cfg.HTTPAddr, cfg.DeviceAddr, cfg.MQTTAddr, cfg.DebugAddr = dir, httpAddr, "127.0.0.1:0", "127.0.0.1:0", ""
	for _, f := range tune {
		f(&cfg)
	}
	server, err := controlplane.New(cfg, logger)
	if err != nil {
		return nil, fmt.Errorf("start skeind: %w", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	p := &Plane{DataDir: dir, Token: server.AdminToken(), cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		p.err = server.Run(ctx)
	}()
	select {
	case <-server.Ready():
	case <-p.ended:
		cancel()
		return nil, fmt.Errorf("start skeind: %w", p.err)
	}
	http.DefaultClient.CloseIdleConnections() // to what was there before
	a := server.Addrs()
	p.URL, p.DeviceURL, p.MQTT = "http://"+a.HTTP.String(), "https://"+a.Device.String(), a.MQTT.String()
	return p, nil
}

// Child starts command, which is skeind or takes its flags, as a child process
// with its data in dir and its log in dir's skeind.log.
func Child(ctx context.Context, command []string, dir string) (*Plane, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	addrs, err := freeAddrs(3)
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(dir, "skeind.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of skeind: %w", err)
	}
	p := &Plane{
		URL: "http://" + addrs[0], DeviceURL: "https://" + addrs[1], MQTT: addrs[2], DataDir: dir, log: log,
		command: append(append([]string(nil), command...), "--data-dir", dir, "--http-addr", addrs[0], "--device-addr", addrs[1],
			"--mqtt-addr", addrs[2], "--debug-addr", "", "--log-level", "warn"),
	}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	token, err := os.ReadFile(filepath.Join(dir, "admin.token"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read the administrator's token: %w", err), p.Close())
	}
	p.Token = strings.TrimSpace(string(token))
	return p, nil
}

// freeAddrs finds ports that nobody listens on now.
func freeAddrs(n int) ([]string, error) {
	var out []string
	var held []net.Listener
	defer func() {
		for _, l := range held {
			_ = l.Close() // it was only held
		}
	}()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		held = append(held, l)
		out = append(out, l.Addr().String())
	}
	return out, nil
}

// start runs the command and waits until it is ready.
func (p *Plane) start(ctx context.Context) error {
	cmd := exec.Command(p.command[0], p.command[1:]...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.command[0], err)
	}
	c := &child{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		_ = cmd.Wait() // its end is what is waited for; the log says why
	}()
	p.mu.Lock()
	p.child = c
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		if p.ready(ctx) {
			http.DefaultClient.CloseIdleConnections() // to what was there before
			return nil
		}
		select {
		case <-c.done:
			return fmt.Errorf("%s ended at its start: %s", p.command[0], p.tail())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w: %s", p.command[0], ctx.Err(), p.tail())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p *Plane) ready(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close()) == nil && resp.StatusCode == http.StatusOK
}

// tail is the end of the child's log.
func (p *Plane) tail() string {
	raw, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-5):], []byte("\n")))
}

// PID is the child's process id, 0 for a control plane in this process.
func (p *Plane) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.child == nil {
		return 0
	}
	return p.child.cmd.Process.Pid
}

// Restart kills the child without warning (kill -9), waits for down, and starts
// it again on the same addresses. It returns when it is ready.
func (p *Plane) Restart(ctx context.Context, down time.Duration) error {
	p.mu.Lock()
	c := p.child
	p.mu.Unlock()
	if c == nil {
		return ErrNoProcess
	}
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill skeind: %w", err)
	}
	<-c.done
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(down):
	}
	return p.start(ctx)
}

// Close stops the control plane in order and waits for its end.
func (p *Plane) Close() error {
	if p.ended != nil {
		p.cancel()
		<-p.ended
		return p.err
	}
	p.mu.Lock()
	c := p.child
	p.child = nil
	p.mu.Unlock()
	var err error
	if c != nil {
		if err = c.cmd.Process.Signal(os.Interrupt); errors.Is(err, os.ErrProcessDone) {
			err = nil
		}
		select {
		case <-c.done:
		case <-time.After(stopTimeout):
			err = errors.Join(errors.New("skeind did not stop in time and was killed"), c.cmd.Process.Kill())
			<-c.done
		}
	}
	return errors.Join(err, p.log.Close())
}

// FindSkeind looks for the skeind binary: beside this program, then in PATH.
func FindSkeind() (string, error) {
	self, err := os.Executable()
	if err == nil {
		beside := filepath.Join(filepath.Dir(self), "skeind")
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath("skeind")
	if err != nil {
		return "", errors.New("skeind is neither beside this program nor in PATH: build it with make build, or name it with --skeind")
	}
	return path, nil
}
