// Package agent is the program on the device: it keeps the link to the control
// plane, brings the device to its desired state, and sends what it measures.
// It owns the façade (Options, Agent, Enroll) and the loops that tie the
// internal packages together; sim and cmd/skein-agent import it.
//
// Invariants: all durable state goes through slot.Files; loops are separate,
// so a download, a stuck step or a dead link stops neither inference nor
// telemetry; nothing that was refused changes what runs.
package agent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent/internal/budget"
	"github.com/skein-fleet/skein/agent/internal/builder"
	"github.com/skein-fleet/skein/agent/internal/child"
	"github.com/skein-fleet/skein/agent/internal/crash"
	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/host"
	"github.com/skein-fleet/skein/agent/internal/link"
	"github.com/skein-fleet/skein/agent/internal/pki"
	"github.com/skein-fleet/skein/agent/internal/power"
	"github.com/skein-fleet/skein/agent/internal/reconcile"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/agent/internal/stream"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry"
	"github.com/skein-fleet/skein/telemetry/spool"
)

// Facts are what a device is.
type Facts = host.Facts

// Host is the machine that the agent runs on.
type Host interface {
	// Facts is asked when the agent starts and, for the target, from time to time.
	Facts(ctx context.Context) (Facts, error)
	// Readings measures now. What cannot be measured is left out.
	Readings(ctx context.Context) ([]telemetry.Reading, error)
	// DiskFree returns the free bytes where Files are.
	DiskFree() (int64, error)
	// DefaultInterface names the network interface of the default route, empty
	// when there is none.
	DefaultInterface() (string, error)
}

// Options are what an Agent is made of. Host, Runtime and Files are required.
type Options struct {
	// Identity is who this device is; nil reads it from Files.
	Identity *Identity
	// Link to the control plane; nil is MQTT over TLS by MQTTOver, to
	// Identity.MQTTAddress when that is empty.
	Link     Link
	MQTTOver Transport
	// WrapLink, when set, is put around the link, for tests and simulations.
	WrapLink func(Link) Link
	// WrapHTTP, when set, is put around HTTPS, and TuneFetch told of the fetcher
	// before its first use, likewise.
	WrapHTTP  func(http.RoundTripper) http.RoundTripper
	TuneFetch func(*fetch.Fetcher)
	// Dial opens connections of the default link and of HTTPS; nil goes straight
	// or through the proxy that the environment names.
	Dial    Dial
	Host    Host
	Runtime runtime.Runtime
	Files   slot.Files
	// Spool holds telemetry; nil is a bounded one in memory. Run does not close it.
	Spool spool.Spool
	// Fetcher starts skein-fetch for the mirrors that releases name; without its
	// Binary they are not used.
	Fetcher Fetcher
	// Blobs and Metadata are HTTPS to Identity.BlobURL when nil, and the link
	// where that does not get through.
	Blobs    fetch.Source
	Metadata trust.MetadataSource
	Logger   *slog.Logger
	// Now is the device's clock; nil is time.Now. Floor is a time that has
	// certainly passed, such as the build's.
	Now   func() time.Time
	Floor time.Time
	// Zone is where the device stands, for windows and budgets; nil is time.Local.
	Zone *time.Location
	// Version of the agent, for hello.
	Version string

	// Heartbeat is the longest time between two reports; 0 or more than 10
	// minutes means 10 minutes. Half of it is jitter.
	Heartbeat time.Duration
	// TelemetryEvery is the time between two samples (0 means 1 s),
	// BlockEvery between two blocks (0 means 1 min).
	TelemetryEvery, BlockEvery time.Duration
	// CheckEvery is the time between two looks at the runtime and the device's
	// health; 0 means 15 s.
	CheckEvery time.Duration
	// SoakEvery is the time between two looks while a release soaks; 0 means 1 s.
	SoakEvery time.Duration
	// LoadTimeout bounds loading a workload; 0 means 10 minutes.
	LoadTimeout time.Duration

	// LocalSocket is the path of the unix socket for skein-agent status; empty
	// serves none. LogTail gives the newest lines of the agent's log.
	LocalSocket string
	LogTail     func(limit int) []string

	// PeerListen is where this device serves its siblings, HOST:PORT, when its
	// desired state tells it to; empty is nowhere. PeerCache bounds what it fetches
	// for them alone; 0 means 4 GiB.
	PeerListen string
	PeerCache  int64

	// Tap is where applications ask the model that serves.
	Tap TapOptions

	// Agents are the slots of the agent's own binary, where a supervisor starts
	// it; Boot is the machine's boot chain, where it has two root file systems.
	Agents SelfUpdate
	Boot   Bootloader

	// BoardLine is the newest line of what the board tells of itself, LastPanic
	// what the process before this one said when it ended by itself: both go into
	// what is told of a crash. They may be nil.
	BoardLine, LastPanic func() string

	// Power decides how fast the machine runs; nil where it has no power modes.
	// HeadroomLimit bounds a wait for a cooler board; 0 means 10 minutes.
	Power         PowerBoard
	HeadroomLimit time.Duration

	// Engines is how engine plans are tried, and built where an operator made this
	// device a builder; nil does neither.
	Engines *EngineOptions

	// PointHook is called before each durable write of an update, by the names of
	// CrashPoints, for tests.
	PointHook func(name string)
	// StepHook is called before and after each journal step, for tests.
	StepHook func(step ota.Step, state wire.StepState)
}

const (
	maxHeartbeat = 10 * time.Minute
	journalFile  = "journal/update.log"
	memorySpool  = 4 << 20
	clockSlack   = 5 * time.Minute
)

// Agent is one device. Make it with New, then call Run once.
type Agent struct {
	opts    Options
	log     *slog.Logger
	known   atomic.Pointer[Facts]
	started time.Time

	identity atomic.Pointer[Identity]
	signer   *trust.Signer
	http     *http.Client
	link     link.Link
	spool    spool.Spool
	state    *state.Store
	counter  *state.Counter
	journal  *slot.Journal
	trust    *trust.Client
	blobs    *blob.Store
	fetcher  *fetch.Fetcher
	chain    *fetch.Chain // what fetcher takes from
	mirrors  *child.Source
	ways     []fetch.Named // of chain, by cost
	overLink *stream.Source
	// httpsWorks: trust metadata came by HTTPS; httpsBrought: the bytes that had
	// come by it when it was last seen blocked, of the health loop alone.
	httpsWorks   atomic.Bool
	httpsBrought int64
	budget       *budget.Gate
	builder      *builder.Builder // nil where nothing is built
	exec         *reconcile.Executor
	board        *health.Board
	power        *power.Manager // nil without power modes
	ended        traces
	crashes      atomic.Pointer[crash.Recorder] // nil before Run, and where the disk could not be read

	ids       ids
	conn      connection
	inbox     inbox
	watching  lease
	measured  measuredServers
	golden    goldenShare
	tap       tapping
	held      holdReason
	stick     *stick
	siblings  siblings
	carrying  trust.MetadataSource // of the bundle that is judged; of the accept loop alone
	strangers strangers            // of the accept loop alone
	served    bool                 // the committed workload served; of the reconcile loop alone

	boots bootTruth
	hand  atomic.Pointer[context.CancelCauseFunc] // ends Run

	wakeReconcile, wakeReport, wakeEvents, wakeSpool, wakeRenew signal
}

// New prepares an agent: it opens the state and starts nothing.
func New(o Options) (*Agent, error) {
	if o.Host == nil || o.Runtime == nil || o.Files == nil {
		return nil, errors.New("agent: Host, Runtime and Files are required")
	}
	o = withDefaults(o)
	if o.Identity == nil {
		id, err := LoadIdentity(o.Files)
		if err != nil {
			return nil, err
		}
		o.Identity = id
	}
	// Its certificate was made before now, whatever the clock says.
	if leaf, err := o.Identity.Leaf(); err == nil && leaf.NotBefore.After(o.Floor) {
		o.Floor = leaf.NotBefore
	}
	a := &Agent{
		opts: o, spool: o.Spool, blobs: blob.NewStore(o.Files),
		log:           o.Logger.With("device", o.Identity.DeviceID),
		wakeReconcile: newSignal(), wakeReport: newSignal(), wakeEvents: newSignal(), wakeSpool: newSignal(), wakeRenew: newSignal(),
	}
	a.identity.Store(o.Identity)
	a.started = o.Now()
	a.conn.set("connecting", nil, a.started)
	a.inbox.wake = newSignal()
	a.stick = newStick()
	a.board = health.NewBoard(o.Now, func() {
		a.wakeReport.set()
		a.wakeEvents.set()
	})
	if err := checkPeerListen(o.PeerListen); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	if err := a.open(); err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	return a, nil
}

func withDefaults(o Options) Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Zone == nil {
		o.Zone = time.Local
	}
	if o.Heartbeat <= 0 || o.Heartbeat > maxHeartbeat {
		o.Heartbeat = maxHeartbeat
	}
	o.TelemetryEvery = orDefault(o.TelemetryEvery, time.Second)
	o.BlockEvery = orDefault(o.BlockEvery, time.Minute)
	o.CheckEvery = orDefault(o.CheckEvery, 15*time.Second)
	o.SoakEvery = orDefault(o.SoakEvery, time.Second)
	if o.Spool == nil {
		o.Spool = spool.NewMemory(SpoolOptions(memorySpool))
	}
	return o
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// open reads the durable state and connects the parts.
func (a *Agent) open() (err error) {
	o := a.opts
	if a.state, err = state.Open(o.Files); err != nil {
		return err
	}
	if a.journal, err = slot.OpenJournal(o.Files, journalFile); err != nil {
		return err
	}
	a.board.Update(a.journal.Damaged() || a.state.Damaged(), health.JournalDamaged, health.Warning, "the agent's state was damaged and set aside; the control plane tells it again")
	if a.trust, err = trust.NewClient(o.Files, o.Identity.TrustRoot); err != nil {
		return err
	}
	if a.signer, err = trust.NewSigner(o.Identity.Key); err != nil {
		return err
	}
	a.counter = state.NewCounter(a.state, a.now)
	if err := errors.Join(a.openTraces(), a.openPower()); err != nil {
		return err
	}
	if err := a.openBudget(); err != nil {
		return err
	}
	if err := errors.Join(a.connectParts(), a.openTap()); err != nil {
		return err
	}
	if w, ok := o.Runtime.(runtime.Watcher); ok {
		w.Watch(a.observeServer)
	}
	a.exec = reconcile.NewExecutor(reconcile.Config{
		Files: o.Files, Blobs: a.blobs, Fetch: a.fetcher, Journal: a.journal, State: a.state, Runtime: o.Runtime,
		Logger: a.log, Target: func() ota.Target { return a.facts().Target }, Params: a.openParams, Agrees: a.agrees,
		BytesBy: a.chain.Bytes, Free: o.Host.DiskFree, Reserve: a.budget.Reserve, Memory: a.memory, Gate: a.budget, Headroom: a.headroom, Engines: a.engines(), Now: o.Now, LoadTimeout: o.LoadTimeout, SoakEvery: o.SoakEvery,
		Hook: o.StepHook, Observe: a.observeStep, Proven: a.observeProof, Shadow: a.shadow,
		Agents: agentsOf(o.Agents), Boot: a.bootOf(o.Boot), BootID: func() uint64 { return a.facts().BootID }, Restart: a.handOver, Point: o.PointHook,
		Offer: a.mirrors.Offer, Spent: a.spent, Yield: a.yield, Waiting: a.noteWaiting, Tend: a.tend, TendEvery: o.CheckEvery, Refused: a.noteRefused,
	})
	return nil
}

// connectParts makes what talks to the control plane.
func (a *Agent) connectParts() error {
	o := a.opts
	roots := a.roots
	if _, err := roots(); err != nil {
		return err
	}
	cert := a.currentCertificate
	if o.Blobs == nil || o.Metadata == nil || o.Identity.BlobURL != "" {
		dial := pki.Dial(o.Dial)
		if dial == nil {
			dial = pki.ProxyDial(nil)
		}
		name, err := hostOf(o.Identity.BlobURL)
		if err != nil {
			return err
		}
		a.http = pki.HTTPClient(pki.ClientConfig(roots, name, a.clock, cert), dial)
		if o.WrapHTTP != nil {
			a.http.Transport = o.WrapHTTP(a.http.Transport)
		}
	}
	a.connectTransfer()
	a.fetcher = &fetch.Fetcher{Store: a.blobs, Source: a.source()}
	if o.TuneFetch != nil {
		o.TuneFetch(a.fetcher)
	}
	a.link = o.Link
	if a.link == nil {
		l, err := newMQTTLink(MQTTOptions{Identity: o.Identity, Transport: o.MQTTOver, Dial: o.Dial}, a.clock, roots, cert)
		if err != nil {
			return err
		}
		a.link = l
	}
	if o.WrapLink != nil {
		a.link = o.WrapLink(a.link)
	}
	return nil
}

// Run works until ctx ends. It returns nil then, or what kept it from going on.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.hand.Store(&cancel)
	if err := a.start(ctx); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	defer a.closeHTTP()
	defer a.journal.Close()
	var wg sync.WaitGroup
	loop := func(name string, run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("agent: %s: %w", name, err))
			}
		})
	}
	loop("link", a.runLink)
	loop("desired state", a.acceptLoop)
	loop("reconcile", a.reconcileLoop)
	loop("report", a.reportLoop)
	loop("events", a.eventLoop)
	loop("samples", a.sampleLoop)
	loop("telemetry", a.sendLoop)
	loop("health", a.healthLoop)
	loop("certificate", a.renewLoop)
	loop("local socket", a.serveLocal)
	loop("trial", a.trialLoop)
	loop("boot chain", a.bootLoop)
	loop("peers", a.peerLoop)
	loop("builder", a.buildLoop)
	loop("tap", a.tapLoop)
	loop("power", a.powerLoop)
	loop("crashes", a.crashLoop)
	<-ctx.Done()
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		if errors.Is(cause, ErrHandover) {
			a.endCrash()
		}
		return cause
	}
	a.endCrash()
	return nil
}

// start learns what the device is and counts this start. A disk that cannot be
// written, full or read-only, does not keep the committed release from serving.
func (a *Agent) start(ctx context.Context) (err error) {
	known, err := a.opts.Host.Facts(ctx)
	if err != nil {
		return fmt.Errorf("learn what this device is: %w", err)
	}
	a.known.Store(&known)
	if boot := a.facts().BootID; boot == 0 || boot != a.state.Get().Boot { // the power may have been cut
		if err := a.blobs.DropUnsynced(); err != nil {
			a.noteDisk(err)
		}
		if err := a.dropUnsyncedCache(); err != nil {
			a.noteDisk(err)
		}
	}
	err = a.state.Change(func(s *state.State) { s.Starts, s.Boot = s.Starts+1, a.facts().BootID })
	a.noteDisk(err)
	if err := a.ids.boot(a.opts.Identity.DeviceID, a.facts().BootID, a.state.Get().Starts, err == nil); err != nil {
		return err
	}
	a.openCrash()
	if err := a.exec.NoteStart(); err != nil {
		a.noteDisk(err)
	}
	return a.settleAgent()
}

// facts are what the device is; nothing before Run has learnt it.
func (a *Agent) facts() Facts {
	if f := a.known.Load(); f != nil {
		return *f
	}
	return Facts{}
}

func (a *Agent) closeHTTP() {
	if a.http != nil {
		a.http.CloseIdleConnections()
	}
}

// clock returns the time to judge by, and whether the device's clock is
// doubtful: then it is the trusted floor and what passed since the start.
func (a *Agent) clock() (time.Time, bool) {
	now := a.opts.Now()
	floor := a.opts.Floor
	if t := a.trust.TrustedTime(); t.After(floor) {
		floor = t
	}
	if now.Add(clockSlack).Before(floor) {
		return floor.Add(max(0, now.Sub(a.started))), true
	}
	return now, false
}

func (a *Agent) now() time.Time {
	t, _ := a.clock()
	return t
}

// ids hands out message ids of this start of the agent.
type ids struct {
	bootID  atomic.Uint64
	counter atomic.Uint64
}

// boot makes the id of this start. It follows from the host's boot id where
// there is one, so that a seeded simulation repeats itself; the number of
// starts makes it differ for each start of the agent within one boot.
func (i *ids) boot(device string, hostBoot, starts uint64, durable bool) error {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], hostBoot)
	binary.BigEndian.PutUint64(b[8:], starts)
	if hostBoot == 0 || !durable {
		if _, err := rand.Read(b[:]); err != nil {
			return fmt.Errorf("make boot id: %w", err)
		}
	}
	sum := sha256.Sum256(append([]byte("skein/boot/"+device+"/"), b[:]...))
	i.bootID.Store(binary.BigEndian.Uint64(sum[:8]))
	return nil
}

func (i *ids) next() wire.MessageID {
	return wire.MessageID{Boot: i.bootID.Load(), Counter: i.counter.Add(1)}
}

// signal wakes one loop; many sets before it looks are one.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) set() {
	select {
	case s <- struct{}{}:
	default:
	}
}
