package broker

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// conn is what mochi sees of a connection. It keeps reads and writes apart:
// mochi sets one deadline for both at each packet it reads, by which a peer
// that pings but never reads would extend the deadline of its own writes for
// ever.
type conn struct {
	net.Conn
	raw   net.Conn // closed without TLS' farewell, which may block for seconds
	id    Identity
	write time.Duration
	heard atomic.Int64 // unix nanoseconds of the last byte read
	// session is set when the broker admitted the connection.
	session uint64
	pace    pacer // of messages; used by the goroutine that reads alone
}

func newConn(c, raw net.Conn, id Identity, write time.Duration) *conn {
	return &conn{Conn: c, raw: raw, id: id, write: write}
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Store(time.Now().UnixNano())
	}
	return n, err
}

// Write has a deadline of its own and closes the connection when it fails,
// since mochi ignores errors of its write loop.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.write)); err != nil {
		return 0, errors.Join(err, c.Close())
	}
	n, err := c.Conn.Write(p)
	if err != nil {
		_ = c.Close()
	}
	return n, err
}

// SetDeadline sets the read deadline alone.
func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

func (c *conn) Close() error { return c.raw.Close() }

// messages is one message-oriented stream, of a websocket.
type messages interface {
	NextReader() (messageType int, r io.Reader, err error)
	WriteMessage(messageType int, data []byte) error
}

// stream makes bytes of binary messages.
type stream struct {
	net.Conn
	m      messages
	r      io.Reader
	binary int
}

var errNotBinary = errors.New("websocket message is not binary")

func (s *stream) Read(p []byte) (int, error) {
	for {
		if s.r == nil {
			kind, r, err := s.m.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != s.binary {
				return 0, errNotBinary
			}
			s.r = r
		}
		n, err := s.r.Read(p)
		if errors.Is(err, io.EOF) {
			s.r = nil
			err = nil
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, err
		}
	}
}

func (s *stream) Write(p []byte) (int, error) {
	if err := s.m.WriteMessage(s.binary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}
