package virtual

import (
	"context"
	"maps"
	"net"
	"net/url"
	"slices"
	"sync"
	"syscall"

	"github.com/skein-fleet/skein/sim/fault/shaper"
)

// firewall stands between a device and the HTTPS port of its control plane.
type firewall struct {
	mu      sync.Mutex // guards what follows
	blocked int        // faults that hold it shut
	through map[*passing]bool
}

// passing is a connection that was let through.
type passing struct {
	net.Conn
	f *firewall
}

// Close implements net.Conn.
func (p *passing) Close() error {
	p.f.mu.Lock()
	delete(p.f.through, p)
	p.f.mu.Unlock()
	return p.Conn.Close()
}

// set adds a fault that holds it shut, or takes one away. What had passed is
// broken off.
func (f *firewall) set(n int) {
	f.mu.Lock()
	f.blocked = max(0, f.blocked+n)
	var broken []*passing
	if f.blocked > 0 {
		broken = slices.Collect(maps.Keys(f.through))
	}
	f.mu.Unlock()
	for _, p := range broken {
		_ = p.Close()
	}
}

func (f *firewall) dial(ctx context.Context, network, address string, dial shaper.DialFunc) (net.Conn, error) {
	refused := &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	f.mu.Lock()
	shut := f.blocked > 0
	f.mu.Unlock()
	if shut {
		return nil, refused
	}
	c, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	p := &passing{c, f}
	f.mu.Lock()
	shut = f.blocked > 0
	if f.through == nil {
		f.through = map[*passing]bool{}
	}
	f.through[p] = true
	f.mu.Unlock()
	if shut { // meanwhile
		_ = p.Close()
		return nil, refused
	}
	return p, nil
}

// isHTTPS reports whether an address is the control plane's HTTPS port.
func (d *Device) isHTTPS(address string) bool {
	u, err := url.Parse(d.o.ServerURL)
	return err == nil && u.Host == address
}
