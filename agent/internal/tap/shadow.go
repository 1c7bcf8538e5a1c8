package tap

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
)

// Shadow says what is mirrored to which workload.
type Shadow struct {
	ID        string        // the challenger's workload
	Share     float64       // of the requests
	PerSecond float64       // at most so many of them; 0 is 20
	Deadline  time.Duration // for an answer; 0 is 5 s
}

// Comparison is how a challenger answered beside the champion.
type Comparison struct {
	Compared  int64   // both answered
	Failed    int64   // the challenger gave no good answer
	Dropped   int64   // not mirrored, because there was too much to do
	Disagreed int64   // another class, or another shape, than the champion's
	MaxDiff   float64 // largest absolute difference of two values
	// Means over what was compared.
	Champion, Challenger time.Duration
	LastFailure          string
}

// String says it in one line of the journal.
func (c Comparison) String() string {
	s := fmt.Sprintf("shadow: %d requests compared, %d with another class, largest difference %.3g, %s against %s",
		c.Compared, c.Disagreed, c.MaxDiff, c.Challenger.Round(10*time.Microsecond), c.Champion.Round(10*time.Microsecond))
	if c.Failed > 0 {
		s += fmt.Sprintf(", %d failed: %s", c.Failed, c.LastFailure)
	}
	if c.Dropped > 0 {
		s += fmt.Sprintf(", %d not mirrored for load", c.Dropped)
	}
	return s
}

// shadow mirrors to one challenger, one request at a time.
type shadow struct {
	Shadow
	tap     *Tap
	plain   *plainPool // connections of its own
	h2      *http.Transport
	dropped atomic.Int64

	mu         sync.Mutex // guards what follows
	allowed    float64    // requests that may be mirrored now
	counted    time.Time
	c          Comparison
	champion   time.Duration // sums
	challenger time.Duration
	stopped    bool
}

// Mirror sends a share of the requests to a challenger too, until stop is
// called. Its answers are compared and counted, and never returned. One mirror
// works at a time; a new one ends the one before.
func (t *Tap) Mirror(s Shadow) (look func() Comparison, stop func()) {
	s.PerSecond = cmp.Or(s.PerSecond, 20)
	s.Deadline = cmp.Or(s.Deadline, 5*time.Second)
	sh := &shadow{Shadow: s, tap: t, plain: newPlainPool(1), h2: newH2(), allowed: 1, counted: time.Now()}
	t.side.shadow.Store(sh)
	return sh.look, func() {
		t.side.shadow.CompareAndSwap(sh, nil)
		sh.mu.Lock()
		sh.stopped = true
		sh.mu.Unlock()
		sh.plain.close()
		sh.h2.CloseIdleConnections()
	}
}

func (s *shadow) look() Comparison {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.c
	c.Dropped = s.dropped.Load()
	if c.Compared > 0 {
		c.Champion, c.Challenger = s.champion/time.Duration(c.Compared), s.challenger/time.Duration(c.Compared)
	}
	return c
}

// wants chooses requests to the champion, within share and rate.
func (s *shadow) wants(e runtime.Endpoint) bool {
	if e.ID == s.ID || rand.Float64() >= s.Share {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.allowed = min(max(1, s.PerSecond), s.allowed+now.Sub(s.counted).Seconds()*s.PerSecond)
	s.counted = now
	if s.allowed < 1 {
		return false
	}
	s.allowed--
	return true
}

// try asks the challenger and compares.
func (s *shadow) try(ctx context.Context, c *capture) {
	ctx, cancel := context.WithTimeout(ctx, s.Deadline)
	defer cancel()
	other := &capture{e: c.e, proto: c.proto, whole: true, reqJSON: -1, respJSON: -1}
	took, err := s.ask(ctx, c, other)
	var mine, its []Tensor
	if err == nil {
		if mine, err = c.outputs(); err == nil {
			its, err = other.outputs()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	if err != nil {
		s.c.Failed++
		s.c.LastFailure = err.Error()
		return
	}
	s.c.Compared++
	s.champion, s.challenger = s.champion+c.took, s.challenger+took
	diff, same := compare(mine, its)
	s.c.MaxDiff = max(s.c.MaxDiff, diff)
	if !same {
		s.c.Disagreed++
	}
}

// compare returns the largest difference of values, and whether both name the
// same class in every output.
func compare(a, b []Tensor) (diff float64, same bool) {
	same = len(a) == len(b)
	for _, x := range a {
		i := slices.IndexFunc(b, func(t Tensor) bool { return t.Name == x.Name })
		if i < 0 || len(b[i].Values) != len(x.Values) {
			same = false
			continue
		}
		for k, v := range x.Values {
			if d := math.Abs(v - b[i].Values[k]); !math.IsNaN(d) {
				diff = max(diff, d)
			} else if math.IsNaN(v) != math.IsNaN(b[i].Values[k]) {
				same = false
			}
		}
		same = same && x.Class() == b[i].Class()
	}
	return diff, same
}

// ask sends a captured request to the challenger.
func (s *shadow) ask(ctx context.Context, c, other *capture) (time.Duration, error) {
	e, release, err := s.tap.opts.Endpoints.Acquire(ctx, s.ID)
	if err != nil {
		return 0, err
	}
	defer release()
	start := time.Now()
	if c.proto == protoGRPC {
		return s.askRPC(ctx, e, c, other, start)
	}
	if e.HTTP == "" {
		return 0, errNoHTTP
	}
	var head strings.Builder
	fmt.Fprintf(&head, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n",
		route{call: callInfer, tail: "infer"}.target(e.Model, e.Version), e.HTTP, len(c.request))
	if c.reqJSON >= 0 {
		fmt.Fprintf(&head, "%s: %d\r\n", binaryHeader, c.reqJSON)
	}
	if c.reqEncoding != "" {
		fmt.Fprintf(&head, "Content-Encoding: %s\r\n", c.reqEncoding)
	}
	head.WriteString("\r\n")
	resp, err := s.plain.roundTrip(ctx, e.HTTP, exchange{method: http.MethodPost, head: []byte(head.String()), body: c.request})
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if err := other.read(resp.Body); err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("it answers %s: %.200s", resp.Status, other.response)
	}
	other.respJSON, other.respEncoding = headerLength(resp.Header), resp.Header.Get("Content-Encoding")
	return time.Since(start), nil
}

func (s *shadow) askRPC(ctx context.Context, e runtime.Endpoint, c, other *capture, start time.Time) (time.Duration, error) {
	if e.GRPC == "" {
		return 0, errNoGRPC
	}
	m := &message{buf: c.request, encoding: c.reqEncoding, most: 16 * maxCapture}
	plain, err := m.plain()
	if err != nil {
		return 0, err
	}
	frame := frameOf(withNames(plain, e.Model, e.Version))
	h := http.Header{"Content-Type": {"application/grpc"}}
	resp, err := s.h2.RoundTrip(grpcRequest(ctx, e.GRPC, methodInfer, h, bytes.NewReader(frame), int64(len(frame))))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if err := other.read(resp.Body); err != nil {
		return 0, err
	}
	if code := statusOf(resp); code != codeOK {
		return 0, errors.New("it answers with the gRPC status " + strconv.Itoa(code) + ": " + cmp.Or(resp.Trailer.Get("Grpc-Message"), resp.Header.Get("Grpc-Message")))
	}
	other.respEncoding = resp.Header.Get("Grpc-Encoding")
	return time.Since(start), nil
}

// read takes a whole answer.
func (c *capture) read(r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, maxCapture+1))
	if err != nil {
		return err
	}
	if len(b) > maxCapture {
		return errors.New("its answer is too large to compare")
	}
	c.response = b
	return nil
}
