package tap

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// errBusy is returned when the tap has more to do than it may.
var errBusy = errors.New("the tap has as many requests as it takes")

// gate bounds the requests that are answered at a time, those that wait, and
// the memory that they take.
type gate struct {
	limits Limits
	places chan struct{}
	queued atomic.Int64
	memory atomic.Int64
}

func newGate(l Limits) *gate {
	return &gate{limits: l, places: make(chan struct{}, l.Concurrent)}
}

// enter takes a place; leave gives it back.
func (g *gate) enter(ctx context.Context) error {
	select {
	case g.places <- struct{}{}:
		return nil
	default:
	}
	if g.queued.Add(1) > int64(g.limits.Queued) {
		g.queued.Add(-1)
		return errBusy
	}
	defer g.queued.Add(-1)
	timer := time.NewTimer(g.limits.QueueTime)
	defer timer.Stop()
	select {
	case g.places <- struct{}{}:
		return nil
	case <-timer.C:
		return errBusy
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gate) leave() { <-g.places }

func (g *gate) inFlight() int { return len(g.places) }

// Pressure is how much of the tap's capacity is in use: from half of it on the
// mirror gets nothing, from three quarters on sampling neither.
func (g *gate) pressure() (mirror, sample bool) {
	n := len(g.places) * 4
	most := cap(g.places)
	return n <= 2*most, n <= 3*most
}

// hold counts memory; it refuses what is over the bound.
func (g *gate) hold(n int64) error {
	if g.memory.Add(n) > g.limits.Memory {
		g.memory.Add(-n)
		return errBusy
	}
	return nil
}

func (g *gate) release(n int64) { g.memory.Add(-n) }

// isFull says whether the process has no file left for a connection.
func isFull(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED)
}

// limitListener closes connections over its bound at once.
type limitListener struct {
	net.Listener
	free chan struct{}
}

func (l *limitListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.free <- struct{}{}:
			return &limitedConn{Conn: c, done: sync.OnceFunc(func() { <-l.free })}, nil
		default:
			c.Close()
		}
	}
}

type limitedConn struct {
	net.Conn
	done func()
}

// CloseWrite ends what is sent, where the connection can.
func (c *limitedConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

func (c *limitedConn) Close() error {
	c.done()
	return c.Conn.Close()
}
