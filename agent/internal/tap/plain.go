package tap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
)

// binaryHeader says where the JSON of a body ends and binary tensors begin.
const binaryHeader = "Inference-Header-Content-Length"

// hopByHop headers belong to one connection; what Connection names does too.
var hopByHop = []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect"}

func refuse(w http.ResponseWriter, status int, reason string) {
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	b, _ := json.Marshal(map[string]string{"error": reason})
	_, _ = w.Write(b) // the client may be gone
}

// servePlain forwards a request of the HTTP protocol.
func (t *Tap) servePlain(w http.ResponseWriter, r *http.Request) {
	rt, no := parsePath(r.Method, r.URL.EscapedPath())
	if no != nil {
		t.stats.refuse(no.status)
		w.Header().Set("Connection", "close") // its body is not read
		refuse(w, no.status, no.reason)
		return
	}
	if r.ContentLength > t.opts.Limits.Body {
		t.stats.refuse(http.StatusRequestEntityTooLarge)
		w.Header().Set("Connection", "close")
		refuse(w, http.StatusRequestEntityTooLarge, "the request is larger than the tap takes: "+strconv.FormatInt(t.opts.Limits.Body, 10)+" bytes")
		return
	}
	infers := rt.call == callInfer || rt.call == callGenerate
	start := time.Now()
	x := &plainRequest{tap: t, w: w, r: r, route: rt, rc: http.NewResponseController(w), start: start}
	if err := x.readBody(); err != nil {
		t.failPlain(x, err)
		return
	}
	defer putBuf(x.buf)
	if infers {
		if err := t.gate.enter(r.Context()); err != nil {
			t.failPlain(x, err)
			return
		}
		defer t.gate.leave()
	}
	if err := t.forwardPlain(x); err != nil {
		t.failPlain(x, err)
	}
}

// plainRequest is one request under way.
type plainRequest struct {
	tap   *Tap
	w     http.ResponseWriter
	r     *http.Request
	route route
	rc    *http.ResponseController
	start time.Time

	buf  []byte // of the pool
	body []byte // the body, or its beginning, in buf
	rest io.Reader

	answering bool // the answer's header is written
	e         runtime.Endpoint
	capture   *capture
}

// readBody reads the body, or as much as fits a buffer, before a server is
// asked: a slow application holds nothing but its own connection.
func (x *plainRequest) readBody() error {
	x.buf = getBuf()
	if x.r.Body == nil || x.r.Body == http.NoBody {
		return nil
	}
	_ = x.rc.SetReadDeadline(x.start.Add(x.tap.opts.Limits.BodyTime)) // HTTP/2 over a closed connection says no
	n := 0
	for n < len(x.buf) {
		m, err := x.r.Body.Read(x.buf[n:])
		n += m
		if errors.Is(err, io.EOF) {
			x.body = x.buf[:n]
			_ = x.rc.SetReadDeadline(time.Time{})
			return nil
		}
		if err != nil {
			putBuf(x.buf)
			return badBody{err}
		}
	}
	x.body = x.buf[:n]
	x.rest = http.MaxBytesReader(x.w, x.r.Body, x.tap.opts.Limits.Body-int64(n))
	return nil
}

// badBody is an error of the application's own sending.
type badBody struct{ error }

func (b badBody) Unwrap() error { return b.error }

// forwardPlain picks a workload, sends the request and copies the answer.
func (t *Tap) forwardPlain(x *plainRequest) error {
	ctx := x.r.Context()
	if x.rest != nil {
		x.rest = &blame{r: x.rest}
	}
	for try := 0; ; try++ {
		e, release, err := t.pick(ctx, x.route.model, x.route.version, x.route.call != callServer)
		if err != nil {
			return err
		}
		x.e = e
		if e.HTTP == "" {
			release()
			return errNoHTTP
		}
		resp, err := t.plain.roundTrip(ctx, e.HTTP, x.exchange())
		if err != nil {
			release()
			if errors.Is(err, errNotSent) && try < 8 && ctx.Err() == nil {
				if pause(ctx, time.Duration(try)*lookEvery) {
					continue
				}
			}
			return err
		}
		err = x.answer(resp)
		resp.Body.Close()
		release()
		return err
	}
}

var errNoHTTP = errors.New("the server of this model speaks gRPC only")

// blame marks errors of the application's side of a body that streams.
type blame struct{ r io.Reader }

func (b *blame) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = badBody{err}
	}
	return n, err
}

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// exchange writes the request as its server gets it.
func (x *plainRequest) exchange() exchange {
	h := x.r.Header
	infers := x.route.call == callInfer || x.route.call == callModel
	head := make([]byte, 0, 1024)
	head = append(head, x.r.Method...)
	head = append(head, ' ')
	head = append(head, x.route.target(x.e.Model, x.e.Version)...)
	if q := x.r.URL.RawQuery; q != "" {
		head = append(append(head, '?'), q...)
	}
	head = append(head, " HTTP/1.1\r\nHost: "...)
	head = append(head, x.e.HTTP...)
	head = append(head, "\r\n"...)
	drop := connectionNames(h)
	for k, vs := range h {
		if drop[k] || isHop(k) || k == "Content-Length" || k == "Accept-Encoding" && infers && mapped(x.e) {
			continue
		}
		for _, v := range vs {
			head = append(append(append(append(head, k...), ": "...), v...), "\r\n"...)
		}
	}
	ex := exchange{method: x.r.Method, body: x.body, rest: x.rest}
	switch {
	case x.r.ContentLength > 0 || x.r.Method == http.MethodPost && x.rest == nil:
		n := x.r.ContentLength
		if x.rest == nil {
			n = int64(len(x.body))
		}
		head = append(head, "Content-Length: "...)
		head = strconv.AppendInt(head, n, 10)
		head = append(head, "\r\n"...)
	case x.rest != nil:
		head = append(head, "Transfer-Encoding: chunked\r\n"...)
		ex.chunked = true
	}
	ex.head = append(head, "\r\n"...)
	return ex
}

func isHop(k string) bool {
	return slices.Contains(hopByHop, k)
}

func connectionNames(h http.Header) map[string]bool {
	var out map[string]bool
	for _, v := range h["Connection"] {
		for name := range strings.SplitSeq(v, ",") {
			if out == nil {
				out = map[string]bool{}
			}
			out[textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name))] = true
		}
	}
	return out
}

// answer copies the server's answer.
func (x *plainRequest) answer(resp *http.Response) error {
	t := x.tap
	if x.route.call == callInfer {
		x.capture = t.side.plan(x.e, x.body, x.rest == nil)
	}
	buf := getBuf()
	defer putBuf(buf)
	var first []byte
	var err error
	streams := resp.ContentLength < 0
	if !streams {
		var n int
		n, err = readUpTo(resp.Body, buf, resp.ContentLength)
		if err != nil && !errors.Is(err, io.EOF) {
			return errors.New("the server broke its answer off")
		}
		first = buf[:n]
	}
	delta := 0
	changed := first
	if mapped(x.e) && x.route.call != callServer && x.route.call != callGenerate && !streams && resp.Header.Get("Content-Encoding") == "" {
		changed = x.rename(first, resp)
		delta = len(changed) - len(first)
	}
	h := x.w.Header()
	drop := connectionNames(resp.Header)
	for k, vs := range resp.Header {
		if !drop[k] && !isHop(k) && k != "Content-Length" {
			h[k] = vs
		}
	}
	if !streams {
		h["Content-Length"] = []string{strconv.FormatInt(resp.ContentLength+int64(delta), 10)}
	}
	for k := range resp.Trailer {
		h.Add("Trailer", k)
	}
	_ = x.rc.SetWriteDeadline(time.Now().Add(writeTime))
	x.w.WriteHeader(resp.StatusCode)
	x.answering = true
	x.capture.take(first)
	if _, err := x.w.Write(changed); err != nil {
		return badBody{err}
	}
	if err == nil && (streams || int64(len(first)) < resp.ContentLength) {
		if err := x.copyRest(resp.Body, buf, streams); err != nil {
			return err
		}
	}
	maps.Copy(h, resp.Trailer)
	t.finishPlain(x, resp)
	return nil
}

// readUpTo reads what is announced, or a buffer full of it; io.EOF says that
// the body ended.
func readUpTo(r io.Reader, buf []byte, announced int64) (int, error) {
	n := 0
	for n < len(buf) {
		m, err := r.Read(buf[n:])
		n += m
		if err != nil {
			return n, err
		}
		if m == 0 && int64(n) == announced {
			return n, nil
		}
	}
	return n, nil
}

// copyRest copies what streams, each piece as it comes.
func (x *plainRequest) copyRest(from io.Reader, buf []byte, flush bool) error {
	for {
		n, err := from.Read(buf)
		if n > 0 {
			x.capture.take(buf[:n])
			_ = x.rc.SetWriteDeadline(time.Now().Add(writeTime))
			if _, werr := x.w.Write(buf[:n]); werr != nil {
				return badBody{werr}
			}
			if flush {
				if ferr := x.rc.Flush(); ferr != nil {
					return badBody{ferr}
				}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return errors.New("the server broke its answer off")
		}
	}
}

// rename puts the release's names into an answer, and its header right.
func (x *plainRequest) rename(body []byte, resp *http.Response) []byte {
	jsonPart := body
	n, err := strconv.Atoi(resp.Header.Get(binaryHeader))
	binary := err == nil && n >= 0 && n <= len(body)
	if binary {
		jsonPart = body[:n]
	}
	out := renameJSON(jsonPart, x.e)
	if binary {
		resp.Header.Set(binaryHeader, strconv.Itoa(len(out)))
		out = append(out[:len(out):len(out)], body[n:]...)
		return out
	}
	return append(out[:len(out):len(out)], body[len(jsonPart):]...)
}

// finishPlain counts an answered request and hands on what was taken of it.
func (t *Tap) finishPlain(x *plainRequest, resp *http.Response) {
	if x.route.call != callInfer && x.route.call != callGenerate {
		return
	}
	took := time.Since(x.start)
	o := outcomeOfHTTP(resp.StatusCode)
	t.stats.count(x.e, o, took)
	t.side.finish(x.capture, o, took, func(c *capture) {
		c.proto = protoHTTP
		c.reqJSON, c.respJSON = headerLength(x.r.Header), headerLength(resp.Header)
		c.reqEncoding, c.respEncoding = x.r.Header.Get("Content-Encoding"), resp.Header.Get("Content-Encoding")
	})
}

func headerLength(h http.Header) int {
	n, err := strconv.Atoi(h.Get(binaryHeader))
	if err != nil {
		return -1
	}
	return n
}

// failPlain answers a request that got none, or breaks its answer off.
func (t *Tap) failPlain(x *plainRequest, err error) {
	status, o := classify(err)
	if x.route.call == callInfer || x.route.call == callGenerate {
		t.stats.count(x.e, o, time.Since(x.start))
	}
	if x.answering || x.r.Context().Err() != nil {
		panic(http.ErrAbortHandler) // the application must not take a part for the whole
	}
	if x.rest != nil || status == http.StatusRequestTimeout {
		x.w.Header().Set("Connection", "close")
	}
	refuse(x.w, status, err.Error())
}

// classify gives the answer for an error of the tap's own.
func classify(err error) (status int, o outcome) {
	var tooLarge *http.MaxBytesError
	var bad badBody
	switch {
	case errors.As(err, &tooLarge):
		return http.StatusRequestEntityTooLarge, outcomeInvalid
	case errors.As(err, &bad):
		return http.StatusRequestTimeout, outcomeInvalid
	case errors.Is(err, errNoModel):
		return http.StatusNotFound, outcomeInvalid
	case errors.Is(err, errBusy):
		return http.StatusServiceUnavailable, outcomeShed
	case errors.Is(err, runtime.ErrNotLoaded), errors.Is(err, errNotSent):
		return http.StatusServiceUnavailable, outcomeUnavailable
	case errors.Is(err, errNoHTTP), errors.Is(err, errNoGRPC):
		return http.StatusNotImplemented, outcomeInvalid
	case errors.Is(err, context.Canceled):
		return http.StatusBadGateway, outcomeCanceled
	}
	return http.StatusBadGateway, outcomeError
}

// renameJSON replaces the names at the top level of a JSON object.
func renameJSON(in []byte, e runtime.Endpoint) []byte {
	quote := func(s string) []byte { b, _ := json.Marshal(s); return b }
	name, version := quote(e.ReleaseModel), quote(e.ReleaseVersion)
	return replaceTop(in, map[string][]byte{
		"model_name": name, "model_version": version, "name": name,
		"versions": bytes.Join([][]byte{[]byte("["), version, []byte("]")}, nil),
	})
}
