package tap

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Sample is a request with its answer, as they were sent.
type Sample struct {
	Time     time.Time `json:"time"`
	Model    string    `json:"model"`
	Version  string    `json:"version"`
	Protocol string    `json:"protocol"` // http or grpc
	Request  []byte    `json:"request"`  // in base64, where it is JSON
	Response []byte    `json:"response"`
	// JSON bodies may be followed by binary tensors: where those begin, -1 for none.
	RequestJSON  int           `json:"request_json"`
	ResponseJSON int           `json:"response_json"`
	Outcome      string        `json:"outcome"`
	Latency      time.Duration `json:"latency_ns"`
}

func (s Sample) size() int64 { return int64(len(s.Request) + len(s.Response) + 128) }

func sampleOf(c *capture) Sample {
	s := Sample{Time: c.at, Model: c.e.ReleaseModel, Version: c.e.ReleaseVersion, Protocol: "http", Request: c.request, Response: c.response,
		RequestJSON: c.reqJSON, ResponseJSON: c.respJSON, Outcome: c.outcome.String(), Latency: c.took}
	if c.proto == protoGRPC {
		s.Protocol, s.RequestJSON, s.ResponseJSON = "grpc", -1, -1
	}
	return s
}

// Sampler keeps the newest of randomly chosen requests, in bounded memory.
type Sampler struct {
	share    float64
	maxBytes int64

	mu    sync.Mutex // guards what follows
	kept  []Sample   // oldest first
	bytes int64
	taken int64
}

// Sample keeps a share of the requests, in up to maxBytes, until it is stopped.
// One sampler works at a time; a new one ends the one before.
func (t *Tap) Sample(share float64, maxBytes int64) (s *Sampler, stop func()) {
	s = &Sampler{share: share, maxBytes: maxBytes}
	t.side.sampler.Store(s)
	return s, func() { t.side.sampler.CompareAndSwap(s, nil) }
}

func (s *Sampler) wants() bool { return rand.Float64() < s.share }

func (s *Sampler) add(one Sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken++
	if one.size() > s.maxBytes {
		return
	}
	s.kept, s.bytes = append(s.kept, one), s.bytes+one.size()
	drop := 0
	for s.bytes > s.maxBytes {
		s.bytes -= s.kept[drop].size()
		drop++
	}
	s.kept = slices.Delete(s.kept, 0, drop)
}

// Take returns what is kept, oldest first, and keeps none of it.
func (s *Sampler) Take() []Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.kept
	s.kept, s.bytes = nil, 0
	return out
}
