package tap

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// preface begins an HTTP/2 connection without TLS: no method of HTTP/1.1 does.
const preface = "PRI"

// front takes connections: HTTP/1.1 is answered here, on one goroutine for each
// connection, which is what keeps the tap's share of a request small; HTTP/2 goes
// to net/http.
type front struct {
	tap *Tap
	h2  *handed

	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
	wg    sync.WaitGroup
}

// run accepts until the listener is closed.
func (f *front) run(ctx context.Context, l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() || isFull(err) {
				pause(ctx, 10*time.Millisecond)
				continue
			}
			return err
		}
		f.mu.Lock()
		f.conns[c] = struct{}{}
		f.mu.Unlock()
		f.wg.Go(func() {
			keep := f.serve(ctx, c)
			f.mu.Lock()
			delete(f.conns, c)
			f.mu.Unlock()
			if !keep {
				c.Close()
			}
		})
	}
}

// close ends the connections that are served here.
func (f *front) close() {
	f.mu.Lock()
	for c := range f.conns {
		c.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
}

// serve answers a connection; it reports whether somebody else has it now.
func (f *front) serve(ctx context.Context, c net.Conn) bool {
	in := &clientReader{c: c, left: maxHeader}
	br := bufio.NewReaderSize(in, 16<<10)
	_ = c.SetReadDeadline(time.Now().Add(headerTime))
	if b, _ := br.Peek(len(preface)); string(b) == preface {
		head, _ := br.Peek(br.Buffered())
		_ = c.SetReadDeadline(time.Time{})
		return f.h2.give(&begunConn{Conn: c, begun: head})
	}
	for f.one(ctx, c, in, br) {
		_ = c.SetReadDeadline(time.Now().Add(f.tap.opts.Limits.IdleTime))
		in.left = maxHeader
		if _, err := br.Peek(1); err != nil {
			return false
		}
		_ = c.SetReadDeadline(time.Now().Add(headerTime))
	}
	return false
}

// one answers a request and reports whether another may follow.
func (f *front) one(ctx context.Context, c net.Conn, in *clientReader, br *bufio.Reader) (again bool) {
	w := &plainWriter{c: c, header: http.Header{}}
	r, err := http.ReadRequest(br)
	if err != nil {
		if !in.seen {
			return false // it came and went
		}
		w.close = true
		switch {
		case in.left <= 0:
			refuse(w, http.StatusRequestHeaderFieldsTooLarge, "the header is larger than the tap takes")
		case errors.Is(err, io.EOF), isTimeout(err):
			return false
		default:
			refuse(w, http.StatusBadRequest, "the request is no HTTP")
		}
		w.finish()
		linger(c)
		return false
	}
	in.left = noBound
	w.request(r)
	if reason := odd(r); reason != "" {
		w.close = true
		refuse(w, http.StatusBadRequest, reason)
		w.finish()
		linger(c)
		return false
	}
	if strings.EqualFold(r.Header.Get("Expect"), "100-continue") && r.ContentLength != 0 {
		r.Body = &invited{ReadCloser: r.Body, c: c}
	}
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler {
				f.tap.log.Error("answer an application", "panic", v)
			}
			again = false
		}
	}()
	f.tap.servePlain(w, r.WithContext(ctx))
	if w.finish() != nil {
		return false
	}
	if !drained(c, r.Body) || w.close {
		linger(c)
		return false
	}
	return true
}

// odd says what a server could read in another way than the tap.
func odd(r *http.Request) string {
	if !r.ProtoAtLeast(1, 0) || r.ProtoMajor != 1 {
		return "the protocol version is not HTTP/1"
	}
	for k, vs := range r.Header {
		for _, c := range []byte(k) {
			if c <= ' ' || c >= 0x7f || strings.IndexByte(`()<>@,;:\"/[]?={}`, c) >= 0 {
				return "a header has an odd name"
			}
		}
		for _, v := range vs {
			for _, c := range []byte(v) {
				if c < ' ' && c != '\t' || c == 0x7f {
					return "a header has an odd value"
				}
			}
		}
	}
	return ""
}

// drained reports whether nothing is left of a body; a little is read.
func drained(c net.Conn, body io.ReadCloser) bool {
	if body == nil || body == http.NoBody {
		return true
	}
	if v, ok := body.(*invited); ok && !v.done {
		return false // it was never asked for
	}
	_ = c.SetReadDeadline(time.Now().Add(lingerTime))
	n, err := io.CopyN(io.Discard, body, 256<<10)
	return errors.Is(err, io.EOF) && n < 256<<10
}

const lingerTime = 500 * time.Millisecond

// linger reads on for a moment, so that the answer is not lost by a reset.
func linger(c net.Conn) {
	if cw, ok := c.(interface{ CloseWrite() error }); ok && cw.CloseWrite() != nil {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, c, 1<<20)
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// clientReader bounds the bytes of a header.
type clientReader struct {
	c    net.Conn
	left int64
	seen bool
}

func (r *clientReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, errors.New("header too large")
	}
	n, err := r.c.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	r.seen = r.seen || n > 0
	return n, err
}

// invited asks for a body that the application holds back until it is wanted.
type invited struct {
	io.ReadCloser
	c    net.Conn
	done bool
}

func (b *invited) Read(p []byte) (int, error) {
	if !b.done {
		b.done = true
		if _, err := io.WriteString(b.c, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return 0, err
		}
	}
	return b.ReadCloser.Read(p)
}

// plainWriter writes one answer.
type plainWriter struct {
	c       net.Conn
	header  http.Header
	head    bool // of a HEAD request
	old     bool // of an HTTP/1.0 client
	close   bool // the connection ends with this answer
	status  int
	begun   bool
	chunked bool
}

func (w *plainWriter) request(r *http.Request) {
	w.head, w.old = r.Method == http.MethodHead, !r.ProtoAtLeast(1, 1)
	w.close = r.Close
}

// Header is the answer's header.
func (w *plainWriter) Header() http.Header { return w.header }

// WriteHeader sets the status; the header goes with the first bytes of the body.
func (w *plainWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

// SetReadDeadline and SetWriteDeadline are those of the connection.
func (w *plainWriter) SetReadDeadline(t time.Time) error { return w.c.SetReadDeadline(t) }

// SetWriteDeadline bounds writing.
func (w *plainWriter) SetWriteDeadline(t time.Time) error { return w.c.SetWriteDeadline(t) }

// FlushError does nothing: every write goes out at once.
func (w *plainWriter) FlushError() error { return nil }

// Write sends a piece of the body.
func (w *plainWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var v net.Buffers
	if !w.begun {
		v = append(v, w.first())
	}
	switch {
	case w.head:
	case w.chunked:
		v = append(v, strconv.AppendInt(nil, int64(len(p)), 16), []byte("\r\n"), p, []byte("\r\n"))
	default:
		v = append(v, p)
	}
	if _, err := v.WriteTo(w.c); err != nil {
		return 0, err
	}
	return len(p), nil
}

// first is the status line and the header.
func (w *plainWriter) first() []byte {
	w.begun = true
	if w.status == 0 {
		w.status = http.StatusOK
	}
	h := w.header
	for _, v := range h["Connection"] {
		w.close = w.close || strings.EqualFold(v, "close")
	}
	bodiless := w.status == http.StatusNoContent || w.status == http.StatusNotModified
	if _, ok := h["Content-Length"]; !ok && !bodiless {
		if w.old {
			w.close = true
		} else {
			w.chunked = true
		}
	}
	b := make([]byte, 0, 512)
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(w.status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(w.status)...)
	b = append(b, "\r\n"...)
	for k, vs := range h {
		if k == "Connection" {
			continue
		}
		for _, v := range vs {
			b = append(append(append(append(b, k...), ": "...), v...), "\r\n"...)
		}
	}
	switch {
	case w.close:
		b = append(b, "Connection: close\r\n"...)
	case w.old:
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	if w.chunked {
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	return append(b, "\r\n"...)
}

// finish ends the answer.
func (w *plainWriter) finish() error {
	_ = w.c.SetWriteDeadline(time.Now().Add(writeTime))
	var b []byte
	if !w.begun {
		if _, ok := w.header["Content-Length"]; !ok {
			w.header.Set("Content-Length", "0")
		}
		b = w.first()
	}
	if w.chunked && !w.head {
		b = append(b, "0\r\n"...)
		for _, k := range w.header["Trailer"] {
			for _, v := range w.header[k] {
				b = append(append(append(append(b, k...), ": "...), v...), "\r\n"...)
			}
		}
		b = append(b, "\r\n"...)
	}
	if len(b) == 0 {
		return nil
	}
	_, err := w.c.Write(b)
	return err
}

// begunConn is a connection of which some bytes were read.
type begunConn struct {
	net.Conn
	begun []byte
}

func (c *begunConn) Read(p []byte) (int, error) {
	if len(c.begun) > 0 {
		n := copy(p, c.begun)
		c.begun = c.begun[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// handed is a listener of connections that are given to it.
type handed struct {
	addr  net.Addr
	conns chan net.Conn
	ended chan struct{}
	once  sync.Once
}

func (h *handed) give(c net.Conn) bool {
	select {
	case h.conns <- c:
		return true
	case <-h.ended:
		return false
	}
}

// Accept returns the next connection.
func (h *handed) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.ended:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (h *handed) Close() error {
	h.once.Do(func() { close(h.ended) })
	return nil
}

// Addr is the address of the whole.
func (h *handed) Addr() net.Addr { return h.addr }
