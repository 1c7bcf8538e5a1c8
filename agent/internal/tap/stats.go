package tap

import (
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
)

// outcome is how a request ended.
type outcome uint8

const (
	outcomeOK          outcome = iota
	outcomeInvalid             // the application's fault
	outcomeError               // the server's
	outcomeShed                // too much at a time
	outcomeUnavailable         // nothing served
	outcomeCanceled            // the application did not wait
	outcomes
)

var outcomeNames = [outcomes]string{"ok", "invalid", "error", "shed", "unavailable", "canceled"}

func (o outcome) String() string { return outcomeNames[o] }

func outcomeOfHTTP(status int) outcome {
	switch {
	case status < 400:
		return outcomeOK
	case status < 500:
		return outcomeInvalid
	case status == http.StatusServiceUnavailable:
		return outcomeUnavailable
	}
	return outcomeError
}

// Latencies are kept in buckets that grow by a tenth, from 10 µs to 4 minutes.
const (
	buckets   = 180
	growth    = 1.1
	leastTime = 10 * time.Microsecond
)

var logGrowth = math.Log(growth)

func bucketOf(d time.Duration) int {
	if d <= leastTime {
		return 0
	}
	return min(buckets-1, 1+int(math.Log(float64(d)/float64(leastTime))/logGrowth))
}

// bucketTime is the middle of a bucket.
func bucketTime(i int) time.Duration {
	if i == 0 {
		return leastTime
	}
	return time.Duration(float64(leastTime) * math.Pow(growth, float64(i)-0.5))
}

// served counts the requests of one model version.
type served struct {
	model, version string
	outcomes       [outcomes]atomic.Int64
	nanos          atomic.Int64 // of those answered well
	hist           [buckets]atomic.Int64
}

const maxServed = 16 // model versions that are counted apart

type stats struct {
	refused atomic.Int64 // requests that were never forwarded: paths, methods, model control

	last atomic.Pointer[served] // what was counted last

	mu  sync.Mutex // guards all
	all []*served  // oldest first
}

func newStats() *stats { return &stats{} }

func (s *stats) refuse(int) { s.refused.Add(1) }

// count notes one request. Names come from releases, never from applications.
func (s *stats) count(e runtime.Endpoint, o outcome, took time.Duration) {
	v := s.of(e.ReleaseModel, e.ReleaseVersion)
	v.outcomes[o].Add(1)
	if o == outcomeOK {
		v.nanos.Add(int64(took))
		v.hist[bucketOf(took)].Add(1)
	}
}

func (s *stats) of(model, version string) *served {
	if v := s.last.Load(); v != nil && v.model == model && v.version == version {
		return v
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.all, func(v *served) bool { return v.model == model && v.version == version })
	if i < 0 {
		if len(s.all) >= maxServed {
			s.all = slices.Delete(s.all, 0, 1)
		}
		s.all = append(s.all, &served{model: model, version: version})
		i = len(s.all) - 1
	}
	v := s.all[i]
	s.last.Store(v)
	return v
}

// Counts are the requests of one model version since the tap started. A model
// without a name stands for requests that reached no server.
type Counts struct {
	Model, Version string
	Outcomes       map[string]int64
	Total          time.Duration // of those answered well
	hist           [buckets]int64
}

// Snapshot is what the tap counted.
type Snapshot struct {
	Counts   []Counts
	Refused  int64
	InFlight int
	Side     SideCounts
}

// Snapshot returns the counters.
func (t *Tap) Snapshot() Snapshot {
	out := Snapshot{Refused: t.stats.refused.Load(), InFlight: t.gate.inFlight(), Side: t.side.counts()}
	t.stats.mu.Lock()
	defer t.stats.mu.Unlock()
	for _, v := range t.stats.all {
		c := Counts{Model: v.model, Version: v.version, Outcomes: map[string]int64{}, Total: time.Duration(v.nanos.Load())}
		for o := range outcomes {
			if n := v.outcomes[o].Load(); n > 0 {
				c.Outcomes[o.String()] = n
			}
		}
		for i := range v.hist {
			c.hist[i] = v.hist[i].Load()
		}
		out.Counts = append(out.Counts, c)
	}
	slices.SortFunc(out.Counts, func(a, b Counts) int {
		if c := strings.Compare(a.Model, b.Model); c != 0 {
			return c
		}
		return strings.Compare(a.Version, b.Version)
	})
	return out
}

// Since returns what was counted after an older snapshot of the same version.
func (c Counts) Since(old Counts) Counts {
	out := Counts{Model: c.Model, Version: c.Version, Outcomes: map[string]int64{}, Total: c.Total - old.Total}
	for k, n := range c.Outcomes {
		if d := n - old.Outcomes[k]; d > 0 {
			out.Outcomes[k] = d
		}
	}
	for i := range c.hist {
		out.hist[i] = c.hist[i] - old.hist[i]
	}
	if out.Answered() < 0 { // counted anew meanwhile
		return c
	}
	return out
}

// Answered is how many requests were answered well.
func (c Counts) Answered() int64 {
	var n int64
	for _, v := range c.hist {
		n += v
	}
	return n
}

// Mean is the mean time of an answer.
func (c Counts) Mean() time.Duration {
	n := c.Answered()
	if n <= 0 {
		return 0
	}
	return c.Total / time.Duration(n)
}

// Quantile is the time within which a share of the answers came, to 5 %.
func (c Counts) Quantile(q float64) time.Duration {
	n := c.Answered()
	if n <= 0 {
		return 0
	}
	rank := min(n, max(1, int64(math.Ceil(q*float64(n)))))
	for i, v := range c.hist {
		if rank -= v; rank <= 0 {
			return bucketTime(i)
		}
	}
	return bucketTime(buckets - 1)
}
