package stream

import (
	"time"
)

// Pace is what a device knows of the way to the server: how fast blocks come
// and how long an answer takes at best. All streams of a device share one; the
// zero value knows nothing.
type Pace struct {
	least       time.Duration // fastest answer
	leastAt     time.Time
	smooth, dev time.Duration // of answers, for the timeout
	slack       time.Duration // how long silences lately were that lost nothing
	rate        [2]float64    // bytes per second at best, in this bucket and the one before
	bucket      time.Time     // when this one began
	probing     bool          // the window is small, to measure least again
	drained     time.Time     // when no more than that was on its way
	probed      time.Duration // fastest answer to what was asked for since
	probes      int           // how many there were
}

const (
	firstTimeout = 3 * time.Second
	leastTimeout = 500 * time.Millisecond
	mostTimeout  = 15 * time.Second
	leastLasts   = 30 * time.Second // then least is measured again
	enoughProbes = 4
	leastBucket  = time.Second
	firstWindow  = 32 << 10
	firstRun     = 2
	mostRun      = 64 << 10 / Block
	answerTime   = 20 * time.Millisecond
)

// answered takes the time that an answer took, and how many bytes came in it.
func (p *Pace) answered(now time.Time, took time.Duration, bytes int64) {
	took = max(took, 100*time.Microsecond)
	p.slack -= p.slack / 32
	if p.smooth == 0 {
		p.smooth, p.dev = took, took/2
	} else {
		p.dev += ((took - p.smooth).Abs() - p.dev) / 4
		p.smooth += (took - p.smooth) / 8
	}
	p.probe(now, took)
	if now.Sub(p.bucket) > max(leastBucket, 10*p.least) {
		p.rate[1], p.rate[0], p.bucket = p.rate[0], 0, now
	}
	p.rate[0] = max(p.rate[0], float64(bytes)/took.Seconds())
}

// probe keeps the fastest answer. Because an answer waits behind those before
// it, it is measured again now and then while there are few.
func (p *Pace) probe(now time.Time, took time.Duration) {
	if p.least == 0 || took <= p.least {
		p.least, p.leastAt = took, now
	}
	if !p.probing {
		if now.Sub(p.leastAt) > leastLasts {
			p.probing, p.drained, p.probed, p.probes = true, time.Time{}, 0, 0
		}
		return
	}
	if p.drained.IsZero() || now.Add(-took).Before(p.drained) {
		return
	}
	if p.probes++; p.probed == 0 || took < p.probed {
		p.probed = took
	}
	if p.probes >= enoughProbes {
		p.least, p.leastAt, p.probing = p.probed, now, false
	}
}

// isDrained is told when no more is on its way than the window allows.
func (p *Pace) isDrained(now time.Time) {
	if p.probing && p.drained.IsZero() {
		p.drained = now
	}
}

// Forget drops what is known: the next way may be another one, and what broke
// the last one off may have been too much.
func (p *Pace) Forget() { *p = Pace{} }

// Rate is the best rate lately, in bytes per second.
func (p *Pace) Rate() float64 { return max(p.rate[0], p.rate[1]) }

// window is how many bytes to have on the way: twice what fills the way, so
// that a way that became faster shows, and a queue stays short.
func (p *Pace) window() int64 {
	full := p.Rate() * p.least.Seconds()
	if full == 0 {
		return firstWindow
	}
	if p.probing {
		return int64(full / 2)
	}
	return int64(2 * full)
}

// timeout is how long silence lasts before what is on its way is lost.
func (p *Pace) timeout(silences int) time.Duration {
	d := firstTimeout
	if p.smooth > 0 {
		d = max(p.smooth+4*p.dev, leastTimeout) + 2*p.slack
	}
	return min(d<<min(silences, 6), mostTimeout)
}

// reordering is how long something may come after what was asked for later.
func (p *Pace) reordering() time.Duration { return max(p.least, leastTimeout) }

// run is how many blocks one answer may hold: what comes in some 20 ms, so
// that on a slow way one message does not fill the line for seconds.
func (p *Pace) run() int {
	rate := p.Rate()
	if rate == 0 {
		return firstRun
	}
	return min(max(int(rate*answerTime.Seconds())/Block, 1), mostRun)
}
