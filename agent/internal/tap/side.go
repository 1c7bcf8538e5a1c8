package tap

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
)

// protocol of a captured request.
type protocol uint8

const (
	protoHTTP protocol = iota + 1
	protoGRPC
)

const (
	maxCapture   = 256 << 10 // bytes of a request, or answer, that is taken
	observeQueue = 64
	mirrorQueue  = 16
	sweepEvery   = time.Second
)

// capture is a request with its answer, as they went through the tap.
type capture struct {
	e                         runtime.Endpoint
	proto                     protocol
	request, response         []byte
	reqJSON, respJSON         int // where the JSON of HTTP bodies ends, -1 at their end
	reqEncoding, respEncoding string
	outcome                   outcome
	at                        time.Time
	took                      time.Duration
	whole                     bool // nothing of it is missing
	mirror, observe, sample   bool
}

// take keeps a piece of the answer.
func (c *capture) take(p []byte) {
	if c == nil || !c.whole {
		return
	}
	if len(c.response)+len(p) > maxCapture {
		c.whole, c.request, c.response = false, nil, nil
		return
	}
	c.response = append(c.response, p...)
}

// side takes requests and answers on the side, off the way of the requests.
type side struct {
	tap      *Tap
	watchers atomic.Pointer[watchers]

	observations chan *capture
	mirrored     chan *capture
	shadow       atomic.Pointer[shadow]
	sampler      atomic.Pointer[Sampler]

	observed, unobserved, unsampled, unreadable atomic.Int64
}

// watchers are who observes, and how much.
type watchers struct {
	all   []Observer
	share float64
}

// SideCounts say what was taken on the side, and what was left out.
type SideCounts struct {
	Observed    int64 // decoded and handed on
	NotObserved int64 // left out under pressure
	NotSampled  int64
	Unreadable  int64 // not decoded: another form than tensors
}

func newSide(t *Tap) *side {
	return &side{tap: t, observations: make(chan *capture, observeQueue), mirrored: make(chan *capture, mirrorQueue)}
}

// Observe hands a share of the requests and answers to all of these from now on.
func (t *Tap) Observe(share float64, all ...Observer) {
	t.side.watchers.Store(&watchers{all: all, share: share})
}

func (s *side) counts() SideCounts {
	return SideCounts{Observed: s.observed.Load(), NotObserved: s.unobserved.Load(), NotSampled: s.unsampled.Load(), Unreadable: s.unreadable.Load()}
}

// plan decides before an answer is read whether it is taken; nil takes nothing.
func (s *side) plan(e runtime.Endpoint, request []byte, whole bool) *capture {
	w, sh, sa := s.watchers.Load(), s.shadow.Load(), s.sampler.Load()
	if w == nil && sh == nil && sa == nil {
		return nil
	}
	mirrorMay, sampleMay := s.tap.gate.pressure()
	c := &capture{e: e, whole: whole && len(request) <= maxCapture}
	if sh != nil && sh.wants(e) {
		if c.mirror = mirrorMay; !mirrorMay {
			sh.dropped.Add(1)
		}
	}
	if w != nil && rand.Float64() < w.share {
		if c.observe = sampleMay; !sampleMay {
			s.unobserved.Add(1)
		}
	}
	if sa != nil && sa.wants() {
		if c.sample = sampleMay; !sampleMay {
			s.unsampled.Add(1)
		}
	}
	if !c.whole || !c.mirror && !c.observe && !c.sample {
		return nil
	}
	c.request = append([]byte(nil), request...)
	return c
}

// finish hands a capture on, or drops it where the queues are full.
func (s *side) finish(c *capture, o outcome, took time.Duration, fill func(*capture)) {
	if c == nil || !c.whole || len(c.request) > maxCapture {
		return
	}
	fill(c)
	c.outcome, c.took, c.at = o, took, time.Now()
	if c.mirror && o == outcomeOK {
		select {
		case s.mirrored <- c:
		default:
			if sh := s.shadow.Load(); sh != nil {
				sh.dropped.Add(1)
			}
		}
	}
	if c.observe || c.sample {
		select {
		case s.observations <- c:
		default:
			if c.observe {
				s.unobserved.Add(1)
			}
			if c.sample {
				s.unsampled.Add(1)
			}
		}
	}
}

// run does what is to be done with captures until ctx ends.
func (s *side) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case c := <-s.observations:
				s.look(c)
			}
		}
	})
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case c := <-s.mirrored:
				if sh := s.shadow.Load(); sh != nil {
					sh.try(ctx, c)
				}
			}
		}
	})
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s.tap.plain.sweep(now)
		}
	}
}

// look decodes a capture for those who observe, and keeps it as a sample.
func (s *side) look(c *capture) {
	if sa := s.sampler.Load(); sa != nil && c.sample {
		sa.add(sampleOf(c))
	}
	w := s.watchers.Load()
	if w == nil || !c.observe {
		return
	}
	o := Observation{Time: c.at, Model: c.e.ReleaseModel, Version: c.e.ReleaseVersion, Source: SourceTap, Outcome: c.outcome.String(), Latency: c.took}
	if c.outcome == outcomeOK {
		var err error
		if o.Inputs, err = c.inputs(); err == nil {
			o.Outputs, err = c.outputs()
		}
		if err != nil {
			s.unreadable.Add(1)
			return
		}
	}
	s.observed.Add(1)
	for _, one := range w.all {
		one.Observe(o)
	}
}
