package attack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

// answerFunc answers a request in the control plane's place; next asks it.
type answerFunc func(r *http.Request, next http.RoundTripper) (*http.Response, error)

// man is the attacker on the line of one device: he reads, changes, drops and
// invents what is said over HTTPS and over the link, inside of TLS.
type man struct {
	mu     sync.Mutex // guards what follows
	answer answerFunc
	down   func(wire.Kind, []byte) (changed []byte, pass bool)
	up     func(wire.Kind, []byte) (changed []byte, pass bool)
	asked  []asking
	heard  map[wire.Kind][][]byte // payloads that went up, newest last
	hand   *agent.LinkHandler
	link   agent.Link
}

// asking is one request that the device made.
type asking struct {
	path string // of HTTPS, or mqtt/ and the kind of a message
	at   time.Time
}

const maxHeard = 64

// gone makes the man honest.
func (m *man) gone() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answer, m.down, m.up = nil, nil, nil
}

func (m *man) setAnswer(f answerFunc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.answer = f
}

func (m *man) setDown(f func(wire.Kind, []byte) ([]byte, bool)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = f
}

// requests are those for paths that begin so, since a time.
func (m *man) requests(prefix string, since time.Time) (out []time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, a := range m.asked {
		if strings.HasPrefix(a.path, prefix) && !a.at.Before(since) {
			out = append(out, a.at)
		}
	}
	return out
}

// wrapHTTP stands around the agent's HTTPS.
func (m *man) wrapHTTP(next http.RoundTripper) http.RoundTripper { return &onHTTP{m, next} }

type onHTTP struct {
	m    *man
	next http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (o *onHTTP) RoundTrip(r *http.Request) (*http.Response, error) {
	o.m.mu.Lock()
	o.m.asked = append(o.m.asked, asking{r.URL.Path, time.Now()})
	answer := o.m.answer
	o.m.mu.Unlock()
	if answer == nil {
		return o.next.RoundTrip(r)
	}
	return answer(r, o.next)
}

// CloseIdleConnections is passed on.
func (o *onHTTP) CloseIdleConnections() {
	if c, ok := o.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// blobOf is the blob that a request asks for, or "".
func blobOf(r *http.Request) ota.Digest {
	d, ok := strings.CutPrefix(r.URL.Path, "/v2/skein/blobs/")
	if !ok {
		return ""
	}
	return ota.Digest(d)
}

// fileOf is the metadata file that a request asks for, or "".
func fileOf(r *http.Request) string {
	name, _ := strings.CutPrefix(r.URL.Path, "/tuf/")
	if name == r.URL.Path {
		return ""
	}
	return name
}

// reply is an answer; a negative length leaves the length unsaid.
func reply(r *http.Request, status int, body io.Reader, length int64) *http.Response {
	return &http.Response{
		Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(body), ContentLength: length, Request: r,
	}
}

// serve answers with content, in the range that is asked for.
func serve(r *http.Request, content []byte) *http.Response {
	span, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes=")
	from, to, cut := strings.Cut(span, "-")
	first, err := strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	if !ok || !cut || err != nil || err2 != nil || first >= int64(len(content)) {
		return reply(r, http.StatusOK, bytes.NewReader(content), int64(len(content)))
	}
	part := content[first:min(last+1, int64(len(content)))]
	resp := reply(r, http.StatusPartialContent, bytes.NewReader(part), int64(len(part)))
	resp.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, first+int64(len(part))-1, len(content)))
	return resp
}

// ranged is an answer to a request for a range whose body is the attacker's.
func ranged(r *http.Request, body io.Reader, length int64) *http.Response {
	from, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("Range"), "bytes="), "-")
	resp := reply(r, http.StatusPartialContent, body, length)
	resp.Header.Set("Content-Range", "bytes "+from+"-/*")
	return resp
}

// files answers requests for metadata from a set; names that stand in it with
// nil are not there.
func files(set map[string][]byte) answerFunc {
	return func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		name := fileOf(r)
		raw, ok := set[name]
		switch {
		case name == "" || !ok:
			return next.RoundTrip(r)
		case raw == nil:
			return reply(r, http.StatusNotFound, strings.NewReader("not there"), -1), nil
		}
		return serve(r, raw), nil
	}
}

// blobs answers requests for blobs from a set, and withholds those that stand
// in it with nil.
func blobs(set map[ota.Digest][]byte) answerFunc {
	return func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		raw, ok := set[blobOf(r)]
		switch {
		case blobOf(r) == "" || !ok:
			return next.RoundTrip(r)
		case raw == nil:
			return reply(r, http.StatusNotFound, strings.NewReader("not there"), -1), nil
		}
		return serve(r, raw), nil
	}
}

// both asks a first and then b, for what a leaves to the control plane.
func both(a, b answerFunc) answerFunc {
	return func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
		return a(r, roundTrip(func(r *http.Request) (*http.Response, error) { return b(r, next) }))
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// wrapLink stands around the agent's link.
func (m *man) wrapLink(l agent.Link) agent.Link {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.link = l
	return &onLink{l, m}
}

type onLink struct {
	agent.Link
	m *man
}

// Run implements agent.Link.
func (l *onLink) Run(ctx context.Context, h agent.LinkHandler) error {
	direct := h
	l.m.mu.Lock()
	l.m.hand = &direct
	l.m.mu.Unlock()
	deliver := h.Message
	h.Message = func(kind wire.Kind, payload []byte) {
		l.m.mu.Lock()
		down := l.m.down
		l.m.mu.Unlock()
		pass := true
		if down != nil {
			payload, pass = down(kind, payload)
		}
		if pass {
			deliver(kind, payload)
		}
	}
	return l.Link.Run(ctx, h)
}

// Publish implements agent.Link. What the man drops, the device takes for sent.
func (l *onLink) Publish(ctx context.Context, kind wire.Kind, payload []byte) error {
	l.m.mu.Lock()
	if l.m.heard == nil {
		l.m.heard = map[wire.Kind][][]byte{}
	}
	kept := append(l.m.heard[kind], bytes.Clone(payload))
	l.m.heard[kind] = kept[max(0, len(kept)-maxHeard):]
	l.m.asked = append(l.m.asked, asking{"mqtt/" + string(kind), time.Now()})
	up := l.m.up
	l.m.mu.Unlock()
	if up != nil {
		changed, pass := up(kind, payload)
		if !pass {
			return nil
		}
		payload = changed
	}
	return l.Link.Publish(ctx, kind, payload)
}

// SlowDown passes the control plane's wish on.
func (l *onLink) SlowDown(d time.Duration) {
	if s, ok := l.Link.(interface{ SlowDown(time.Duration) }); ok {
		s.SlowDown(d)
	}
}

// say hands the device a message in the control plane's place, once its link
// runs.
func (m *man) say(kind wire.Kind, payload []byte) {
	for {
		m.mu.Lock()
		h := m.hand
		m.mu.Unlock()
		if h != nil {
			h.Message(kind, payload)
			return
		}
		pause(context.Background(), look)
	}
}

// claim tells the control plane something in the device's place.
func (m *man) claim(ctx context.Context, kind wire.Kind, payload []byte) error {
	m.mu.Lock()
	l := m.link
	m.mu.Unlock()
	return l.Publish(ctx, kind, payload)
}

// sent are the payloads of a kind that the device sent.
func (m *man) sent(kind wire.Kind) [][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([][]byte(nil), m.heard[kind]...)
}
