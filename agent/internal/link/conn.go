package link

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent/internal/pki"
	"github.com/skein-fleet/skein/proto/wire"
)

// watchedConn remembers why reading ended, because paho keeps only the text,
// refuses packets that are too long before paho makes room for them, and closes
// without waiting for the peer.
type watchedConn struct {
	net.Conn
	raw    net.Conn
	heard  atomic.Bool // something was read
	frames frames      // of the one reader

	mu  sync.Mutex // guards err
	err error
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Store(true)
		if ferr := c.frames.see(p[:n]); ferr != nil {
			n, err = 0, ferr
		}
	}
	if err != nil {
		c.mu.Lock()
		if c.err == nil {
			c.err = err
		}
		c.mu.Unlock()
	}
	return n, err
}

// Write looks for an alert when writing fails before anything was read: a peer
// that refuses our certificate after the handshake sends one and closes, and
// the CONNECT may be what fails first.
func (c *watchedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil && !c.heard.Load() {
		_ = c.Conn.SetReadDeadline(time.Now().Add(alertWait)) // else Read ends by the deadline of the handshake
		_, _ = c.Read(make([]byte, 1))                        // the error is kept by Read
	}
	return n, err
}

// Close closes the raw connection: tls.Conn.Close may wait 5 s for a peer that
// does not read.
func (c *watchedConn) Close() error { return c.raw.Close() }

// explain adds what the connection itself saw to an error of paho.
func (c *watchedConn) explain(err error) error {
	if err == nil {
		err = errors.New("connection ended")
	}
	if c == nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case pki.RefusedByPeer(c.err):
		return fmt.Errorf("%w: %w", ErrRefused, c.err)
	case errors.Is(c.err, errPacket):
		return c.err
	}
	return err
}

// packetOverhead is what a packet has beside the payload.
const packetOverhead = 4096

// errPacket marks packets that no honest broker sends.
var errPacket = errors.New("the broker sends a packet that is refused")

// frames follows the packets in the bytes that are read.
type frames struct {
	left     int  // bytes of the packet's body that are to come
	inLength bool // the type was read, the length not yet
	length   int
	shift    int
}

func (f *frames) see(p []byte) error {
	for len(p) > 0 {
		if f.left > 0 {
			n := min(f.left, len(p))
			f.left -= n
			p = p[n:]
			continue
		}
		b := p[0]
		p = p[1:]
		if !f.inLength {
			f.inLength, f.length, f.shift = true, 0, 0
			continue
		}
		f.length |= int(b&0x7f) << f.shift
		f.shift += 7
		switch {
		case f.length > wire.MaxMessage+packetOverhead:
			return fmt.Errorf("%w: %d bytes or more, limit %d", errPacket, f.length, wire.MaxMessage+packetOverhead)
		case b&0x80 == 0:
			f.inLength, f.left = false, f.length
		case f.shift > 21:
			return fmt.Errorf("%w: its length does not end", errPacket)
		}
	}
	return nil
}
