package tap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
)

const (
	service = "/inference.GRPCInferenceService/"
	health  = "/grpc.health.v1.Health/"
)

// methods are those that are forwarded, and whether their request names a model.
var methods = map[string]bool{
	service + "ServerLive": false, service + "ServerReady": false, service + "ServerMetadata": false,
	service + "ModelReady": true, service + "ModelMetadata": true, service + "ModelConfig": true, service + "ModelStatistics": true,
	service + "ModelInfer": true, service + "ModelStreamInfer": true,
	health + "Check": false,
}

const (
	methodInfer  = service + "ModelInfer"
	methodStream = service + "ModelStreamInfer"
)

// Codes of gRPC that the tap gives.
const (
	codeOK                = 0
	codeCancelled         = 1
	codeInvalidArgument   = 3
	codeNotFound          = 5
	codePermissionDenied  = 7
	codeResourceExhausted = 8
	codeUnimplemented     = 12
	codeUnavailable       = 14
)

var errNoGRPC = errors.New("the server of this model speaks HTTP only")

// rpcError is an answer that the tap gives itself.
type rpcError struct {
	code   int
	reason string
}

func (e *rpcError) Error() string { return e.reason }

// rpcCode gives the status for an error of the tap's own.
func rpcCode(err error) (int, outcome) {
	if e, ok := errors.AsType[*rpcError](err); ok {
		return e.code, outcomeInvalid
	}
	status, o := classify(err)
	switch status {
	case http.StatusNotFound:
		return codeNotFound, o
	case http.StatusRequestEntityTooLarge:
		return codeResourceExhausted, o
	case http.StatusRequestTimeout:
		return codeInvalidArgument, o
	case http.StatusNotImplemented:
		return codeUnimplemented, o
	}
	return codeUnavailable, o
}

// endRPC ends a call with a status of the tap's.
func endRPC(w http.ResponseWriter, started bool, code int, reason string) {
	h, prefix := w.Header(), ""
	if started {
		prefix = http.TrailerPrefix
	} else {
		h.Set("Content-Type", "application/grpc")
	}
	h.Set(prefix+"Grpc-Status", strconv.Itoa(code))
	h.Set(prefix+"Grpc-Message", percentEncode(reason))
	if !started {
		w.WriteHeader(http.StatusOK)
	}
}

// percentEncode writes a status message as gRPC wants it.
func percentEncode(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// serveGRPC forwards a call.
func (t *Tap) serveGRPC(w http.ResponseWriter, r *http.Request) {
	method := r.URL.EscapedPath()
	named, ok := methods[method]
	if !ok || r.Method != http.MethodPost {
		t.stats.refuse(http.StatusForbidden)
		if strings.HasPrefix(method, service) {
			endRPC(w, false, codePermissionDenied, forbidden.reason)
		} else {
			endRPC(w, false, codeUnimplemented, "the tap serves inference.GRPCInferenceService")
		}
		return
	}
	if method == methodStream {
		t.serveStream(w, r)
		return
	}
	x := &unary{tap: t, w: w, r: r, rc: http.NewResponseController(w), method: method, named: named, start: time.Now()}
	defer x.free()
	if err := x.do(); err != nil {
		x.fail(err)
	}
}

// unary is one call with one request.
type unary struct {
	tap    *Tap
	w      http.ResponseWriter
	r      *http.Request
	rc     *http.ResponseController
	method string
	named  bool
	start  time.Time

	msg            *message
	model, version string
	e              runtime.Endpoint
	started        bool
	capture        *capture
}

func (x *unary) free() {
	if x.msg != nil {
		x.msg.free()
	}
}

func (x *unary) do() (err error) {
	t := x.tap
	_ = x.rc.SetReadDeadline(x.start.Add(t.opts.Limits.BodyTime))
	rd := &messageReader{r: x.r.Body, gate: t.gate, most: t.opts.Limits.Body, encoding: x.r.Header.Get("Grpc-Encoding")}
	if x.msg, err = rd.next(); err != nil {
		if errors.Is(err, io.EOF) {
			err = &rpcError{codeInvalidArgument, "the call has no request"}
		}
		return err
	}
	if err := rd.ended(); err != nil {
		return err
	}
	_ = x.rc.SetReadDeadline(time.Time{})
	if x.named {
		if x.model, x.version, err = x.msg.names(); err != nil {
			return err
		}
	}
	if x.method == methodInfer {
		if err := t.gate.enter(x.r.Context()); err != nil {
			return err
		}
		defer t.gate.leave()
	}
	return x.forward()
}

func (x *unary) forward() error {
	t, ctx := x.tap, x.r.Context()
	for try := 0; ; try++ {
		e, release, err := t.pick(ctx, x.model, x.version, x.named)
		if err != nil {
			return err
		}
		x.e = e
		if e.GRPC == "" {
			release()
			return errNoGRPC
		}
		frame, err := x.frame()
		if err != nil {
			release()
			return err
		}
		resp, err := t.h2.RoundTrip(grpcRequest(ctx, e.GRPC, x.method, x.r.Header, bytes.NewReader(frame), int64(len(frame))))
		if err != nil {
			release()
			if notSent(err) && try < 8 && pause(ctx, time.Duration(try)*lookEvery) {
				continue
			}
			return serverError(ctx, err)
		}
		err = x.answer(resp)
		resp.Body.Close()
		release()
		return err
	}
}

// serverError is an error of the way to the server.
func serverError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if notSent(err) {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	return fmt.Errorf("ask the server: %w", err)
}

// frame is the request as its server gets it.
func (x *unary) frame() ([]byte, error) {
	if !x.named || !mapped(x.e) {
		return x.msg.raw(), nil
	}
	plain, err := x.msg.plain()
	if err != nil {
		return nil, err
	}
	return frameOf(withNames(plain, x.e.Model, x.e.Version)), nil
}

func grpcRequest(ctx context.Context, addr, method string, h http.Header, body io.Reader, n int64) *http.Request {
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+method, body)
	req.ContentLength = n
	drop := connectionNames(h)
	for k, vs := range h {
		if !drop[k] && !isHop(k) && k != "Content-Length" {
			req.Header[k] = vs
		}
	}
	req.Header.Set("Te", "trailers")
	if _, ok := h["User-Agent"]; !ok {
		req.Header.Set("User-Agent", "")
	}
	return req
}

// answer copies the server's answer, message by message where names change.
func (x *unary) answer(resp *http.Response) error {
	t := x.tap
	if x.method == methodInfer {
		x.capture = t.side.plan(x.e, nil, true)
	}
	copyHeader(x.w.Header(), resp.Header)
	rename := x.method == methodInfer && mapped(x.e)
	if err := x.copyAnswer(resp, rename); err != nil {
		return err
	}
	code := copyTrailers(x.w.Header(), resp)
	if x.method == methodInfer {
		took := time.Since(x.start)
		o := outcomeOfRPC(code)
		t.stats.count(x.e, o, took)
		if x.capture != nil {
			x.capture.request = append(x.capture.request, x.msg.raw()...)
		}
		t.side.finish(x.capture, o, took, func(c *capture) {
			c.proto = protoGRPC
			c.reqEncoding, c.respEncoding = x.r.Header.Get("Grpc-Encoding"), resp.Header.Get("Grpc-Encoding")
		})
	}
	return nil
}

func (x *unary) copyAnswer(resp *http.Response, rename bool) error {
	x.started = true
	if rename {
		rd := &messageReader{r: resp.Body, gate: x.tap.gate, most: x.tap.opts.Limits.Body, encoding: resp.Header.Get("Grpc-Encoding")}
		for {
			m, err := rd.next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			plain, err := m.plain()
			if err == nil {
				b := frameOf(withNames(plain, x.e.ReleaseModel, x.e.ReleaseVersion))
				x.capture.take(b)
				_, err = x.w.Write(b)
			}
			m.free()
			if err != nil {
				return err
			}
		}
	}
	buf := getBuf()
	defer putBuf(buf)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			x.capture.take(buf[:n])
			if _, werr := x.w.Write(buf[:n]); werr != nil {
				return badBody{werr}
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the server broke its answer off: %w", err)
		}
	}
}

func copyHeader(to, from http.Header) {
	for k, vs := range from {
		if !isHop(k) && k != "Content-Length" {
			to[k] = vs
		}
	}
}

// copyTrailers puts the answer's trailers behind it and returns its status.
func copyTrailers(to http.Header, resp *http.Response) int {
	for k, vs := range resp.Trailer {
		to[http.TrailerPrefix+k] = vs
	}
	status := resp.Trailer.Get("Grpc-Status")
	if status == "" {
		status = resp.Header.Get("Grpc-Status")
	}
	code, err := strconv.Atoi(status)
	if err != nil {
		return 2 // unknown
	}
	return code
}

func outcomeOfRPC(code int) outcome {
	switch code {
	case codeOK:
		return outcomeOK
	case codeCancelled:
		return outcomeCanceled
	case codeInvalidArgument, codeNotFound, 6, 9, 11, codeUnimplemented:
		return outcomeInvalid
	case codeUnavailable:
		return outcomeUnavailable
	}
	return outcomeError
}

func (x *unary) fail(err error) {
	code, o := rpcCode(err)
	if x.method == methodInfer {
		x.tap.stats.count(x.e, o, time.Since(x.start))
	}
	if x.r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
	endRPC(x.w, x.started, code, err.Error())
}
