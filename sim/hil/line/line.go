// Package line is the network line of a device that is another process, maybe
// on another machine: an HTTP proxy that knows CONNECT only and stands for the
// cable. Faults of the line happen in it. It owns the way from names that
// devices use to addresses that this process can reach. Only sim imports it.
//
// Invariant: nothing passes that is not in the table of names, so a device sees
// no other network through it.
package line

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/sim/fault/shaper"
)

// Options describe a line.
type Options struct {
	// Hosts maps the host of what a device asks for to the host to dial.
	Hosts   map[string]string
	Profile shaper.Profile
	Seed    uint64
	// HTTPS is the port that Block shuts.
	HTTPS string
}

// Line is the proxy of one device.
type Line struct {
	o    Options
	l    net.Listener
	link *shaper.Link

	mu      sync.Mutex // guards what follows
	blocked bool
	https   map[net.Conn]bool // connections to the HTTPS port
	passed  atomic.Int64
}

// New listens on an address, as 127.0.0.1:0; Run serves.
func New(addr string, o Options) (*Line, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("open the device's line: %w", err)
	}
	return &Line{o: o, l: l, link: shaper.New(o.Profile, o.Seed), https: map[net.Conn]bool{}}, nil
}

// Port is where the proxy listens.
func (l *Line) Port() int { return l.l.Addr().(*net.TCPAddr).Port }

// URL is what a device on this machine takes for its proxy.
func (l *Line) URL() string { return fmt.Sprintf("http://127.0.0.1:%d", l.Port()) }

// Received is what came over the line to the device.
func (l *Line) Received() int64 { return l.link.Received() }

// Connections counts connections that were made.
func (l *Line) Connections() int64 { return l.passed.Load() }

// Cut breaks every connection and lets none be made until Restore.
func (l *Line) Cut() { l.link.Cut() }

// Hole keeps connections and lets nothing pass until Restore.
func (l *Line) Hole() { l.link.Hole() }

// Restore ends Cut and Hole.
func (l *Line) Restore() { l.link.Restore() }

// Set makes the line worse or better.
func (l *Line) Set(p shaper.Profile) { l.link.Set(p) }

// Block shuts the HTTPS port and breaks its connections, or opens it again.
func (l *Line) Block(yes bool) {
	l.mu.Lock()
	l.blocked = yes
	var broken []net.Conn
	if yes {
		for c := range l.https {
			broken = append(broken, c)
		}
	}
	l.mu.Unlock()
	for _, c := range broken {
		_ = c.Close() // that is the fault
	}
}

// Run serves until ctx ends, and joins what it started.
func (l *Line) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { l.l.Close() })()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve the device's line: %w", err)
		}
		wg.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			l.serve(ctx, c)
		})
	}
}

// Close gives the port back where Run was never called.
func (l *Line) Close() error {
	if err := l.l.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

const requestTimeout = 10 * time.Second

func (l *Line) serve(ctx context.Context, c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(requestTimeout))
	in := bufio.NewReader(c)
	req, err := http.ReadRequest(in)
	if err != nil {
		return
	}
	refuse := func(status int) { fmt.Fprintf(c, "HTTP/1.1 %d %s\r\n\r\n", status, http.StatusText(status)) }
	if req.Method != http.MethodConnect {
		refuse(http.StatusMethodNotAllowed)
		return
	}
	host, port, err := net.SplitHostPort(req.Host)
	to, known := l.o.Hosts[host]
	if err != nil || !known {
		refuse(http.StatusForbidden)
		return
	}
	if l.hold(port, c) {
		refuse(http.StatusForbidden)
		return
	}
	defer l.drop(c)
	var d net.Dialer
	up, err := l.link.Dial(d.DialContext)(ctx, "tcp", net.JoinHostPort(to, port))
	if err != nil {
		refuse(http.StatusBadGateway)
		return
	}
	defer up.Close()
	if _, err := io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	_ = c.SetDeadline(time.Time{})
	l.passed.Add(1)
	join(c, in, up)
}

// hold notes a connection to the HTTPS port, and says whether that is shut.
func (l *Line) hold(port string, c net.Conn) (shut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if port != l.o.HTTPS {
		return false
	}
	if !l.blocked {
		l.https[c] = true
	}
	return l.blocked
}

func (l *Line) drop(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.https, c)
}

// join passes bytes until either side ends.
func join(c net.Conn, in io.Reader, up net.Conn) {
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(up, in) // its end is what is waited for
		_ = up.Close()
	})
	wg.Go(func() {
		_, _ = io.Copy(c, up)
		_ = c.Close()
	})
	wg.Wait()
}
