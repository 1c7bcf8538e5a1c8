// Package builder builds engines for others on a device that an operator made a
// builder. It owns the life of a lease: asking, heartbeats, the streamed log,
// cancelling, and the result that is repeated until the control plane has taken
// it. What is built, how it is measured and proven is in job.go.
//
// Invariants: it asks for work only after it was told that it may; it builds for
// no target but the one that it finds on itself; a lease that nobody renews ends
// the work by the device's own monotonic clock; nothing of a job survives its
// end, nor a start of the agent. Only the root of the agent module imports it.
package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/engine"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/proto/wire"
)

// Headroom is asked before what heats the board and takes its memory.
type Headroom interface {
	// Headroom returns when there is room for a heavy step, and says while it
	// waits why; the error is that of ctx.
	Headroom(ctx context.Context, step string) error
}

// Blobs brings what a job needs.
type Blobs interface {
	Fetch(ctx context.Context, d manifest.Descriptor) error
	Open(ctx context.Context, d ota.Digest) (io.ReadCloser, error)
}

// Server answers inputs with a plan that it loads for that.
type Server interface {
	// Answers loads the plan FILE of DIR, asks all inputs and unloads it. It
	// returns ErrNoServer when it cannot load plans at all.
	Answers(ctx context.Context, dir, file string, g *manifest.Golden) ([][]float32, error)
}

// ErrNoServer is returned by a Server that does not serve plans.
var ErrNoServer = errors.New("no server that loads plans")

// Config is what a Builder works with. Headroom, Server, Power and Logger may
// be left out.
type Config struct {
	Device string
	// Probe returns the device's whole target with the software of the place
	// where the tool runs.
	Probe    func(ctx context.Context) (ota.Target, error)
	Tool     *engine.Tool
	Dir      string // scratch folder of the operating system
	Blobs    Blobs
	Server   Server
	Headroom Headroom
	Power    func() float64 // watts of the board now, 0 when not known
	// Upload puts a file of the device at a path of the device port.
	Upload func(ctx context.Context, path, token, file string) error
	Send   func(ctx context.Context, m *wire.Build) error
	Sign   func(r wire.EngineRecord) ([]byte, error)
	Image  string // digest of the image that the tool runs in, for the record
	Now    func() time.Time
	Logger *slog.Logger
	// MeasureFor is how long an engine is timed; 0 means 5 s.
	MeasureFor time.Duration
}

// Builder follows leases. Make it with New and call Run once.
type Builder struct {
	c      Config
	leases chan wire.BuildLease

	mu     sync.Mutex // guards what follows
	status Status
}

// Status is what a builder does now.
type Status struct {
	Allowed bool
	Job     string
	Step    string
	Message string
	Built   int // jobs done and failed since the start of the agent
	Failed  int
}

// New returns a builder that does nothing yet.
func New(c Config) *Builder {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.MeasureFor = cmp.Or(c.MeasureFor, 5*time.Second)
	return &Builder{c: c, leases: make(chan wire.BuildLease, 8)}
}

// Lease takes a lease whose signature was checked. It does not block.
func (b *Builder) Lease(l wire.BuildLease) {
	select {
	case b.leases <- l:
	default: // level-triggered: it comes again
	}
}

// Status returns what it does.
func (b *Builder) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

func (b *Builder) note(f func(s *Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.status)
}

const (
	defaultEvery = 30 * time.Second
	leastEvery   = time.Second
	logEvery     = 2 * time.Second
)

// loop is the state of Run.
type loop struct {
	*Builder
	allowed bool
	every   time.Duration
	newest  wire.BuildLease
	job     *job        // that is worked on
	last    *wire.Build // what is repeated: the result of a job
}

// Run follows leases until ctx ends.
func (b *Builder) Run(ctx context.Context) error {
	// What a start before this one left is of no use: its lease goes elsewhere.
	if err := os.RemoveAll(b.c.Dir); err != nil {
		return fmt.Errorf("clear %s: %w", b.c.Dir, err)
	}
	l := &loop{Builder: b, every: defaultEvery}
	defer func() { l.drop(ctx, context.Canceled) }()
	say := time.NewTimer(time.Hour)
	defer say.Stop()
	logs := time.NewTicker(logEvery)
	defer logs.Stop()
	for {
		var done chan *wire.Build
		var expired <-chan time.Time
		if l.job != nil {
			done, expired = l.job.done, l.job.expiry.C
		}
		select {
		case <-ctx.Done():
			return nil
		case lease := <-b.leases:
			if l.follow(ctx, lease) {
				say.Reset(0)
			} else {
				say.Reset(l.pause())
			}
			continue
		case <-expired:
			l.drop(ctx, errExpired)
		case m := <-done:
			l.finish(m)
			say.Reset(0)
			continue
		case <-logs.C:
			l.sendLog(ctx)
			continue
		case <-say.C:
			l.speak(ctx)
		}
		say.Reset(l.pause())
	}
}

// pause is the time to the next word, with jitter for asks.
func (l *loop) pause() time.Duration {
	if l.job == nil && l.last == nil {
		return l.every/2 + rand.N(l.every/2+1)
	}
	return l.every
}

var (
	errExpired = errors.New("the lease ran out: nobody renewed it")
	errStopped = errors.New("stopped by the control plane")
)

// follow does what a lease says; now says that the device answers at once.
func (l *loop) follow(ctx context.Context, lease wire.BuildLease) (now bool) {
	if lease.IssuedAt < l.newest.IssuedAt || lease.Job == l.newest.Job && lease.Attempt < l.newest.Attempt {
		return false // an older one came late
	}
	l.newest = lease
	if lease.Every > 0 {
		l.every = max(time.Duration(lease.Every)*time.Second, leastEvery)
	}
	l.allowed = lease.State != wire.LeaseDismissed
	l.note(func(s *Status) { s.Allowed = l.allowed })
	switch lease.State {
	case wire.LeaseDismissed:
		l.drop(ctx, errStopped)
		l.last = nil
	case wire.LeaseNone, wire.LeaseStored, wire.LeaseStop:
		if l.job != nil && (lease.State == wire.LeaseNone || lease.Job == l.job.lease.Job) {
			l.drop(ctx, errStopped)
		}
		if l.last != nil && (lease.Job == "" || lease.Job == l.last.Job) {
			l.last = nil
			return lease.State == wire.LeaseStored // there may be more
		}
	case wire.LeaseBuild:
		return l.take(ctx, lease)
	}
	return false
}

// take starts a job, or goes on with it.
func (l *loop) take(ctx context.Context, lease wire.BuildLease) bool {
	if lease.Work == nil || lease.Job == "" {
		return false
	}
	life := time.Duration(lease.ExpiresAt-lease.IssuedAt/1000) * time.Second
	if life <= 0 {
		return false
	}
	if l.job != nil && l.job.lease.Job == lease.Job && l.job.lease.Attempt == lease.Attempt {
		l.job.expiry.Reset(life)
		l.job.renew(lease.Work.Token)
		return false
	}
	if l.last != nil && l.last.Job == lease.Job && l.last.Attempt == lease.Attempt {
		return true // it is done: say so again
	}
	l.drop(ctx, errStopped)
	l.last = nil
	l.job = newJob(ctx, &l.c, lease, life)
	l.note(func(s *Status) { s.Job, s.Step, s.Message = lease.Job, "fetch", "" })
	return true
}

// drop ends the job under way and forgets it.
func (l *loop) drop(_ context.Context, cause error) {
	if l.job == nil {
		return
	}
	l.c.Logger.Info("build ends", "job", l.job.lease.Job, "cause", cause)
	l.job.cancel(cause)
	<-l.job.done
	l.job.close()
	l.job = nil
	l.note(func(s *Status) { s.Job, s.Step, s.Message = "", "", cause.Error() })
}

// finish keeps the result, to be said until it is answered.
func (l *loop) finish(m *wire.Build) {
	l.note(func(s *Status) {
		s.Job, s.Step, s.Message = "", "", m.Message
		if m.Kind == wire.BuildDone {
			s.Built++
		} else {
			s.Failed++
		}
	})
	l.job.close()
	l.job, l.last = nil, m
}

// speak says where things stand.
func (l *loop) speak(ctx context.Context) {
	var m wire.Build
	switch {
	case l.last != nil:
		m = *l.last
	case l.job != nil:
		m = l.job.heartbeat()
		l.note(func(s *Status) { s.Step, s.Message = m.Step, m.Message })
	case l.allowed:
		t, err := l.c.Probe(ctx)
		if err != nil {
			l.c.Logger.Warn("this device cannot build now", "error", err)
			l.note(func(s *Status) { s.Message = err.Error() })
			return
		}
		m = wire.Build{Kind: wire.BuildAsk, Target: t.String()}
	default:
		return
	}
	l.send(ctx, &m)
}

func (l *loop) send(ctx context.Context, m *wire.Build) {
	if err := l.c.Send(ctx, m); err != nil && ctx.Err() == nil {
		l.c.Logger.Debug("build message not sent", "error", err) // it is repeated
	}
}

func (l *loop) sendLog(ctx context.Context) {
	if l.job == nil || l.job.log == nil {
		return
	}
	offset, data := l.job.log.next()
	if len(data) == 0 {
		return
	}
	l.send(ctx, &wire.Build{Kind: wire.BuildLog, Job: l.job.lease.Job, Attempt: l.job.lease.Attempt, Offset: offset, Data: data})
}
