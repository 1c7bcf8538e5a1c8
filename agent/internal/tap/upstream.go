package tap

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

const (
	dialTime = 2 * time.Second
	// answerTime bounds one exchange with a server, its answer included.
	answerTime = 5 * time.Minute
	// idleMax is shorter than what servers keep idle connections for.
	idleMax = 3 * time.Second
)

// errNotSent is wrapped by errors from before the first byte reached the server.
var errNotSent = errors.New("nothing was sent")

// plainPool keeps HTTP/1.1 connections to servers. Requests are written and
// answers read by the caller's goroutine: that is what makes it fast.
type plainPool struct {
	max    int
	dialer net.Dialer

	mu     sync.Mutex // guards what follows
	idle   map[string][]*plainConn
	closed bool
}

func newPlainPool(most int) *plainPool {
	return &plainPool{max: most, dialer: net.Dialer{Timeout: dialTime, KeepAlive: -1}, idle: map[string][]*plainConn{}}
}

// plainConn is one connection.
type plainConn struct {
	net.Conn
	raw  syscall.RawConn
	br   *bufio.Reader
	addr string
	used time.Time
	left int64 // what may still be read; a bound of header bytes
	seen bool  // a byte of the answer was read
}

func (c *plainConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("the server's answer has too large a header")
	}
	n, err := c.Conn.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	c.seen = c.seen || n > 0
	return n, err
}

// get returns a connection that the server has not closed.
func (p *plainPool) get(ctx context.Context, addr string) (c *plainConn, reused bool, err error) {
	for {
		c := p.take(addr)
		if c == nil {
			break
		}
		if time.Since(c.used) < idleMax && c.quiet() {
			return c, true, nil
		}
		c.Close()
	}
	nc, err := p.dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, false, fmt.Errorf("%w: connect to the server: %w", errNotSent, err)
	}
	raw, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		nc.Close()
		return nil, false, fmt.Errorf("%w: %w", errNotSent, err)
	}
	c = &plainConn{Conn: nc, raw: raw, addr: addr}
	c.br = bufio.NewReaderSize(c, 16<<10)
	return c, false, nil
}

func (p *plainPool) take(addr string) *plainConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.idle[addr]
	if len(list) == 0 {
		return nil
	}
	c := list[len(list)-1]
	p.idle[addr] = list[:len(list)-1]
	return c
}

// quiet reports whether the connection is open with nothing to read: what comes
// unasked is no answer to the next request.
func (c *plainConn) quiet() bool {
	if c.br.Buffered() > 0 {
		return false
	}
	quiet := false
	err := c.raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = errors.Is(err, syscall.EAGAIN)
		return true
	})
	return err == nil && quiet
}

func (p *plainPool) put(c *plainConn) {
	c.used = time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || len(p.idle[c.addr]) >= p.max {
		c.Close()
		return
	}
	p.idle[c.addr] = append(p.idle[c.addr], c)
}

// sweep closes what was idle for too long; close all.
func (p *plainPool) sweep(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for addr, list := range p.idle {
		kept := list[:0]
		for _, c := range list {
			if now.Sub(c.used) < idleMax && !p.closed {
				kept = append(kept, c)
			} else {
				c.Close()
			}
		}
		clear(list[len(kept):])
		p.idle[addr] = kept
		if len(kept) == 0 {
			delete(p.idle, addr)
		}
	}
}

func (p *plainPool) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.sweep(time.Time{})
}

const (
	maxUpstreamHeader = 256 << 10
	noBound           = int64(1) << 62
)

// exchange sends a request and returns the answer, whose body the caller reads
// and closes. head is the request line and header; body what is known of the
// body, and rest, when set, what follows it, in chunks if chunked.
type exchange struct {
	method  string
	head    []byte
	body    []byte
	rest    io.Reader
	chunked bool
}

// roundTrip runs one exchange. An error that wraps errNotSent may be tried again.
func (p *plainPool) roundTrip(ctx context.Context, addr string, x exchange) (*http.Response, error) {
	c, reused, err := p.get(ctx, addr)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(answerTime))
	// When the application goes, so does its request.
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	fail := func(err error) error {
		stop()
		c.Close()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	c.left, c.seen = maxUpstreamHeader, false
	sent, werr := c.send(x)
	if werr != nil && sent == 0 {
		return nil, fail(fmt.Errorf("%w: %w", errNotSent, werr))
	}
	if bad, ok := errors.AsType[badBody](werr); ok { // the application's side of it broke
		return nil, fail(bad)
	}
	resp, err := c.readAnswer(x.method)
	if err != nil {
		if werr != nil {
			err = werr
		}
		if reused && !c.seen && idempotent(x.method) && x.rest == nil {
			err = fmt.Errorf("%w: %w", errNotSent, err)
		}
		return nil, fail(fmt.Errorf("ask the server: %w", err))
	}
	c.left = noBound
	resp.Body = &answerBody{ReadCloser: resp.Body, c: c, pool: p, stop: stop, keep: !resp.Close && werr == nil}
	return resp, nil
}

// idempotent methods change nothing: the protocol uses GET and HEAD for questions.
func idempotent(method string) bool { return method == http.MethodGet || method == http.MethodHead }

// send writes the request, header and what is known of the body at once.
func (c *plainConn) send(x exchange) (int64, error) {
	if !x.chunked {
		v := net.Buffers{x.head, x.body}
		n, err := v.WriteTo(c.Conn)
		if err != nil || x.rest == nil {
			return n, err
		}
		buf := getBuf()
		defer putBuf(buf)
		m, err := io.CopyBuffer(onlyWriter{c.Conn}, x.rest, buf)
		return n + m, err
	}
	n, err := c.Conn.Write(x.head)
	if err != nil {
		return int64(n), err
	}
	w := &chunkWriter{w: c.Conn}
	if len(x.body) > 0 {
		if _, err := w.Write(x.body); err != nil {
			return int64(n), err
		}
	}
	if x.rest != nil {
		buf := getBuf()
		defer putBuf(buf)
		if _, err := io.CopyBuffer(w, x.rest, buf); err != nil {
			return int64(n), err
		}
	}
	_, err = io.WriteString(c.Conn, "0\r\n\r\n")
	return int64(n), err
}

type onlyWriter struct{ io.Writer }

// chunkWriter writes each piece as one chunk.
type chunkWriter struct{ w net.Conn }

func (w *chunkWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	v := net.Buffers{fmt.Appendf(nil, "%x\r\n", len(p)), p, []byte("\r\n")}
	if _, err := v.WriteTo(w.w); err != nil {
		return 0, err
	}
	return len(p), nil
}

// readAnswer reads a header, past interim answers.
func (c *plainConn) readAnswer(method string) (*http.Response, error) {
	for range 8 {
		resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= 200 {
			return resp, nil
		}
		if resp.StatusCode == http.StatusSwitchingProtocols {
			break
		}
	}
	return nil, errors.New("the server answers with another protocol")
}

// answerBody gives the connection back when all of it was read.
type answerBody struct {
	io.ReadCloser
	c    *plainConn
	pool *plainPool
	stop func() bool
	keep bool
	done bool
}

func (b *answerBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !b.done {
		b.end(errors.Is(err, io.EOF))
	}
	return n, err
}

func (b *answerBody) end(whole bool) {
	b.done = true
	// A stop that came too late has set a deadline in the past.
	if b.stop() && whole && b.keep {
		b.pool.put(b.c)
		return
	}
	b.c.Close()
}

// Close ends the connection when there is more to read.
func (b *answerBody) Close() error {
	if !b.done {
		b.end(false)
	}
	return nil
}

const bufSize = 64 << 10

var bufs = sync.Pool{New: func() any { return new([bufSize]byte) }}

func getBuf() []byte  { return bufs.Get().(*[bufSize]byte)[:] }
func putBuf(b []byte) { bufs.Put((*[bufSize]byte)(b[:bufSize])) }
