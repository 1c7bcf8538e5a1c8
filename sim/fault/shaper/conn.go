package shaper

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

func failure(op string, err error) error { return &net.OpError{Op: op, Net: "shaped", Err: err} }

// conn is a connection over a line.
type conn struct {
	net.Conn
	link     *Link
	up, down line

	readBy, writeBy deadline

	bury   sync.Once
	dead   chan struct{} // closed by reset: both directions are gone
	once   sync.Once
	closed chan struct{} // closed by Close
}

// reset breaks the connection at once.
func (c *conn) reset() {
	c.bury.Do(func() {
		close(c.dead)
		c.Conn.Close()
		c.link.mu.Lock()
		delete(c.link.conns, c)
		c.link.mu.Unlock()
	})
}

// Close ends reading and writing; what was written still leaves.
func (c *conn) Close() error {
	var err error
	c.once.Do(func() {
		close(c.closed)
		err = c.Conn.SetWriteDeadline(time.Now().Add(linger))
	})
	return err
}

// Write puts p onto the line and waits only while the line is full.
func (c *conn) Write(p []byte) (int, error) {
	total := 0
	for {
		_, _, size, changed := c.up.head()
		select {
		case <-c.dead:
			return total, failure("write", syscall.ECONNRESET)
		case <-c.closed:
			return total, net.ErrClosed
		case <-c.writeBy.passed():
			return total, failure("write", os.ErrDeadlineExceeded)
		default:
		}
		profile := c.link.Profile()
		if most := profile.buffer(); size < most {
			n := min(len(p), most-size)
			c.link.stalls.Add(c.up.add(profile, p[:n], nil))
			total += n
			if p = p[n:]; len(p) == 0 {
				return total, nil
			}
			continue
		}
		select {
		case <-changed:
		case <-c.dead:
		case <-c.closed:
		case <-c.writeBy.passed():
		}
	}
}

// Read waits for the next segment to arrive.
func (c *conn) Read(p []byte) (int, error) {
	for {
		h, ok, _, changed := c.down.head()
		select {
		case <-c.closed:
			return 0, net.ErrClosed
		case <-c.readBy.passed():
			return 0, failure("read", os.ErrDeadlineExceeded)
		default:
		}
		if ok && !time.Now().Before(h.due) && c.passing() {
			if len(h.data) == 0 && h.err != nil {
				return 0, h.err
			}
			n := copy(p, h.data)
			c.down.take(n)
			c.link.received.Add(int64(n))
			return n, nil
		}
		select {
		case <-c.dead:
			return 0, failure("read", syscall.ECONNRESET)
		default:
		}
		c.await(ok, h.due, changed, c.readBy.passed(), c.closed)
	}
}

// passing reports that the line is no black hole now.
func (c *conn) passing() bool {
	_, open := c.link.state()
	select {
	case <-open:
		return true
	default:
		return false
	}
}

// await waits until the head piece may pass, or until one of the channels (nil
// ones never) or a reset ends the wait.
func (c *conn) await(have bool, due time.Time, a, b, d <-chan struct{}) {
	var timer <-chan time.Time
	var open <-chan struct{}
	if have {
		if until := time.Until(due); until > 0 {
			t := time.NewTimer(until)
			defer t.Stop()
			timer = t.C
		} else {
			_, open = c.link.state()
		}
	}
	select {
	case <-timer:
	case <-open:
	case <-a:
	case <-b:
	case <-d:
	case <-c.dead:
	}
}

// pumpUp carries what was written to the inner connection. After Close it
// empties the line, within the linger time, and ends the connection.
func (c *conn) pumpUp() {
	defer c.reset()
	closed := c.closed
	late := make(chan struct{})
	for {
		h, ok, _, changed := c.up.head()
		select {
		case <-c.dead:
			return
		case <-late:
			return
		case <-closed:
			closed = nil
			t := time.AfterFunc(linger, func() { close(late) })
			defer t.Stop()
		default:
		}
		switch {
		case !ok && closed == nil:
			return
		case ok && !time.Now().Before(h.due) && c.passing():
			n, err := c.Conn.Write(h.data)
			c.link.sent.Add(int64(n))
			if err != nil {
				return
			}
			c.up.take(len(h.data))
		default:
			c.await(ok, h.due, changed, closed, late)
		}
	}
}

// pumpDown carries what the inner connection receives onto the line.
func (c *conn) pumpDown() {
	buf := make([]byte, 16<<10)
	for {
		_, _, size, changed := c.down.head()
		if size >= c.link.Profile().buffer() {
			select {
			case <-changed:
			case <-c.dead:
				return
			case <-c.closed:
				return
			}
			continue
		}
		n, err := c.Conn.Read(buf)
		select {
		case <-c.dead:
			return // the error is the reset's own
		default:
		}
		if err == nil || n > 0 {
			c.link.stalls.Add(c.down.add(c.link.Profile(), buf[:n], nil))
		}
		if err != nil {
			if err == io.ErrClosedPipe {
				err = io.EOF
			}
			c.down.add(c.link.Profile(), nil, err)
			return
		}
	}
}

// SetDeadline sets both deadlines.
func (c *conn) SetDeadline(t time.Time) error {
	c.readBy.set(t)
	c.writeBy.set(t)
	return nil
}

// SetReadDeadline bounds Read.
func (c *conn) SetReadDeadline(t time.Time) error { c.readBy.set(t); return nil }

// SetWriteDeadline bounds Write.
func (c *conn) SetWriteDeadline(t time.Time) error { c.writeBy.set(t); return nil }

// deadline is a channel that is closed when a settable time has come.
type deadline struct {
	mu    sync.Mutex // guards what follows
	timer *time.Timer
	over  chan struct{}
}

func (d *deadline) init() { d.over = make(chan struct{}) }

func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.over
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	// Whoever waits on the old channel must look again, so it is closed; the
	// callers' loops then find the new one open.
	old := d.over
	d.over = make(chan struct{})
	select {
	case <-old:
	default:
		close(old)
	}
	if t.IsZero() {
		return
	}
	over := d.over
	if until := time.Until(t); until > 0 {
		d.timer = time.AfterFunc(until, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.over == over {
				close(over)
			}
		})
		return
	}
	close(over)
}
