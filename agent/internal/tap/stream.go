package tap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
)

// stream is one ModelStreamInfer call. Each of its requests goes to what serves
// at that moment: after a switch the old server gets no more, finishes what it
// has, and the answers of both go to the application.
type stream struct {
	tap    *Tap
	w      http.ResponseWriter
	r      *http.Request
	rc     *http.ResponseController
	ctx    context.Context
	cancel context.CancelCauseFunc
	legs   sync.WaitGroup

	mu      sync.Mutex // guards what follows, and writing to w
	started bool
	last    *http.Response // of the leg that ended last
}

// leg is the part of a stream that one server answers.
type leg struct {
	e       runtime.Endpoint
	release func()
	pipe    *io.PipeWriter
	closed  atomic.Bool  // its requests were ended here
	asked   atomic.Int64 // when the last request was sent, in Unix nanoseconds
}

// end tells the server that no request follows.
func (l *leg) end(err error) {
	l.closed.Store(true)
	_ = l.pipe.CloseWithError(err)
}

// errOver ends the reading of requests when the server ended the stream.
var errOver = errors.New("the server ended the stream")

func (t *Tap) serveStream(w http.ResponseWriter, r *http.Request) {
	if err := t.gate.enter(r.Context()); err != nil {
		code, o := rpcCode(err)
		t.stats.count(runtime.Endpoint{}, o, 0)
		endRPC(w, false, code, err.Error())
		return
	}
	defer t.gate.leave()
	s := &stream{tap: t, w: w, r: r, rc: http.NewResponseController(w)}
	_ = s.rc.SetReadDeadline(time.Time{})
	_ = s.rc.SetWriteDeadline(time.Time{})
	s.ctx, s.cancel = context.WithCancelCause(r.Context())
	defer s.cancel(nil)
	err := s.run()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil || errors.Is(err, errOver) {
		err = context.Cause(s.ctx)
	}
	if errors.Is(err, errOver) {
		err = nil
	}
	if r.Context().Err() != nil {
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		code, _ := rpcCode(err)
		endRPC(w, s.started, code, err.Error())
		return
	}
	if s.last == nil { // no request came
		endRPC(w, s.started, codeOK, "")
		return
	}
	if !s.started {
		copyHeader(w.Header(), s.last.Header)
	}
	copyTrailers(w.Header(), s.last)
}

// run reads requests until the application sends no more, and waits for the answers.
func (s *stream) run() (err error) {
	var at *leg
	defer func() {
		if at != nil {
			at.end(err) // nil is the end of the requests
		}
		if err != nil {
			s.cancel(err)
		}
		s.legs.Wait()
	}()
	// A server that ended the stream with an error ends the reading too.
	stop := context.AfterFunc(s.ctx, func() { _ = s.rc.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	rd := &messageReader{r: s.r.Body, gate: s.tap.gate, most: s.tap.opts.Limits.Body, encoding: s.r.Header.Get("Grpc-Encoding")}
	for {
		m, err := rd.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if cause := context.Cause(s.ctx); cause != nil {
				return cause
			}
			return err
		}
		at, err = s.forward(at, m)
		m.free()
		if err != nil {
			return err
		}
	}
}

// forward sends one request to what serves it, on the leg at or a new one.
func (s *stream) forward(at *leg, m *message) (*leg, error) {
	model, version, err := m.names()
	if err != nil {
		return at, err
	}
	e, release, err := s.tap.pick(s.ctx, model, version, true)
	if err != nil {
		return at, err
	}
	if e.GRPC == "" {
		release()
		return at, errNoGRPC
	}
	if at != nil && at.e == e {
		release()
	} else {
		if at != nil {
			at.end(nil) // its server finishes what it has
		}
		at = s.begin(e, release)
	}
	frame := m.raw()
	if mapped(e) {
		plain, err := m.plain()
		if err != nil {
			return at, err
		}
		frame = frameOf(withNames(plain, e.Model, e.Version))
	}
	at.asked.Store(time.Now().UnixNano())
	if _, err := at.pipe.Write(frame); err != nil {
		return at, fmt.Errorf("%w: %w", errOver, err)
	}
	return at, nil
}

// begin opens a leg to a server.
func (s *stream) begin(e runtime.Endpoint, release func()) *leg {
	pr, pw := io.Pipe()
	l := &leg{e: e, release: release, pipe: pw}
	s.legs.Go(func() {
		defer release()
		err := s.answer(l, pr)
		switch {
		case err != nil:
			s.cancel(err)
		case !l.closed.Load():
			s.cancel(errOver)
		}
		_ = pr.CloseWithError(errors.Join(io.ErrClosedPipe, err))
	})
	return l
}

// answer copies the answers of one leg.
func (s *stream) answer(l *leg, requests io.Reader) error {
	resp, err := s.tap.h2.RoundTrip(grpcRequest(s.ctx, l.e.GRPC, methodStream, s.r.Header, requests, -1))
	if err != nil {
		return serverError(s.ctx, err)
	}
	defer resp.Body.Close()
	rd := &messageReader{r: resp.Body, gate: s.tap.gate, most: s.tap.opts.Limits.Body, encoding: resp.Header.Get("Grpc-Encoding")}
	for {
		m, err := rd.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return serverError(s.ctx, err)
		}
		frame := m.raw()
		if mapped(l.e) {
			if plain, perr := m.plain(); perr == nil {
				frame = frameOf(withNamesInside(plain, l.e.ReleaseModel, l.e.ReleaseVersion))
			}
		}
		err = s.write(resp, frame)
		m.free()
		if err != nil {
			return err
		}
		s.tap.stats.count(l.e, outcomeOK, time.Since(time.Unix(0, l.asked.Load())))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	code := statusOf(resp)
	if s.last == nil || statusOf(s.last) == codeOK { // the first error is the stream's
		s.last = resp
	}
	if code != codeOK {
		s.tap.stats.count(l.e, outcomeOfRPC(code), 0)
	}
	return nil
}

func statusOf(resp *http.Response) int { return copyTrailers(http.Header{}, resp) }

// write sends one answer to the application.
func (s *stream) write(resp *http.Response, frame []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		copyHeader(s.w.Header(), resp.Header)
		s.started = true
	}
	_ = s.rc.SetWriteDeadline(time.Now().Add(writeTime))
	if _, err := s.w.Write(frame); err != nil {
		return badBody{err}
	}
	if err := s.rc.Flush(); err != nil {
		return badBody{err}
	}
	return nil
}
