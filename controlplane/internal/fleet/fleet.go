// Package fleet is the twin of every device: what it should run, what it says
// it runs, and the level-triggered loop that makes the two meet.
//
// Invariants: a desired state is durable before it is sent, and its generation
// only grows; a device that holds a generation from the future gets nothing
// until a person confirms; reports count only when signed by the device's own
// key with a counter not seen before; repeats change nothing; what a device
// says of itself grants no capability. Twins live in memory and reported state
// is written behind; a report lost by a crash comes again with the next hello.
// The façade, conductor and rpc may import it; it knows the broker and the
// releases only through the small interfaces below.
package fleet

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/controlplane/internal/vault"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/proto/wire"
)

// Errors that callers tell apart.
var (
	ErrUnknownDevice = errors.New("no such device")
	ErrAmbiguous     = errors.New("more than one device matches")
	ErrRevoked       = errors.New("device is revoked")
	ErrPending       = errors.New("device waits for approval")
	ErrFromFuture    = errors.New("device holds a generation from the future; confirm it first")
	ErrParameter     = errors.New("parameter does not fit")
	ErrInvalid       = errors.New("invalid")
	ErrKnown         = errors.New("it, or a newer one, was taken before")
	ErrOffline       = errors.New("device is not connected")
)

// Link carries messages to devices. Publish may block for a few seconds and
// returns an error wrapping ErrOffline for a device without a session; Kick
// ends the live session of a device, if there is one.
type Link interface {
	Publish(ctx context.Context, device string, kind wire.Kind, payload []byte) error
	Kick(device string) bool
}

// Releases knows releases by digest. Ref returns the reference as listed in
// the TUF targets and the declared parameters.
type Releases interface {
	Ref(ctx context.Context, tenant string, d ota.Digest) (wire.ReleaseRef, []manifest.ParamDecl, error)
}

// Telemetry takes the blocks of devices. An error means the block is not kept
// and the device shall send it again.
type Telemetry interface {
	Telemetry(ctx context.Context, v View, block []byte) error
}

// Director signs for devices.
type Director interface {
	Sign(aad string, payload []byte) ([]byte, error)
}

// Config of a Fleet. Store, Releases, Director and Vault are required.
type Config struct {
	Store     *store.DB
	Releases  Releases
	Telemetry Telemetry // nil: telemetry is counted and dropped
	Director  Director
	Vault     *vault.Vault
	Logger    *slog.Logger
	Registry  prometheus.Registerer
	Now       func() time.Time

	// DesiredLife is how long a desired state may start an install: 7 days.
	// It is issued anew when less than half is left.
	DesiredLife time.Duration
	// Resend is the pause between two sendings of the same desired state to a
	// device that does not take it: 30 s, doubled by jitter at most.
	Resend time.Duration
	// Workers publish; a stuck device holds one until the write deadline of its
	// connection ends it, so there are many: 256.
	Workers int
	// FlushEvery is the longest time that reported state stays in memory alone: 1 s.
	FlushEvery time.Duration
	// HellosPerSecond above which devices are told to slow down: 500.
	HellosPerSecond int
	// KeepEvents of each device: 1000.
	KeepEvents int
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	for _, d := range []struct {
		at  *time.Duration
		def time.Duration
	}{{&c.DesiredLife, 7 * 24 * time.Hour}, {&c.Resend, 30 * time.Second}, {&c.FlushEvery, time.Second}} {
		if *d.at == 0 {
			*d.at = d.def
		}
	}
	for _, n := range []struct {
		at  *int
		def int
	}{{&c.Workers, 256}, {&c.HellosPerSecond, 500}, {&c.KeepEvents, 1000}} {
		if *n.at == 0 {
			*n.at = n.def
		}
	}
}

// Fleet is all devices of one control plane.
type Fleet struct {
	cfg     Config
	metrics *metrics
	events  *store.Appender[store.Event]
	queue   *queue
	subs    subscribers
	epoch   uint64

	// change serialises everything that makes a desired state or changes a
	// device's record; it is taken before mu and before any twin's mu.
	change sync.Mutex
	params map[string][]store.Parameter // by tenant, guarded by change
	policy map[string][]policy.Setting  // likewise
	rates  atomic.Pointer[map[string]policy.Rates]

	mu    sync.RWMutex // guards twins, dirty, link and hello rate
	twins map[string]*twin
	// The devices of each site, and of them the caches that told where they serve.
	sites, serving map[site]members
	dirty          map[*twin]struct{}
	link           Link
	hello          rate
}

// twin is one device in memory.
type twin struct {
	id, tenant string // never change

	mu sync.Mutex // guards all below

	dev          store.Device
	key          crypto.PublicKey
	certNotAfter time.Time

	online        bool
	session       uint64 // of the broker, 0: none known
	connection    uint64 // of the device, within boot
	boot          uint64
	lastSeen      time.Time
	agent         string
	serves        []string // addresses, of a cache; never changed in place
	clockDoubtful bool

	held       wire.Held
	fromFuture bool
	wanted     *store.Desired // never changed in place
	before     ota.Digest     // release wanted before that one; for grants, not durable
	sentAt     time.Time
	sendAfter  time.Time

	reportCounter uint64
	reported      *wire.Reported  // never changed in place
	reportedHeld  wire.Generation // held when reported was sent
	seen          seen
	noise         rate
	moves         rate
	targetChanged bool
}

// New returns an empty Fleet; Load fills it.
func New(cfg Config) (*Fleet, error) {
	cfg.setDefaults()
	if cfg.Store == nil || cfg.Releases == nil || cfg.Director == nil || cfg.Vault == nil {
		return nil, errors.New("fleet needs Store, Releases, Director and Vault")
	}
	f := &Fleet{
		cfg: cfg, metrics: newMetrics(cfg.Registry), queue: newQueue(),
		params: map[string][]store.Parameter{}, policy: map[string][]policy.Setting{}, twins: map[string]*twin{}, sites: map[site]members{}, serving: map[site]members{}, dirty: map[*twin]struct{}{}, epoch: 1,
	}
	f.events = store.NewAppender(cfg.Store, func(ctx context.Context, tx *store.Tx, rows []store.Event) error { return tx.AddEvents(ctx, rows) })
	return f, nil
}

// SetLink gives the way to devices; without one nothing is sent.
func (f *Fleet) SetLink(l Link) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.link = l
}

// Load reads all tenants from the store. Epoch is the epoch of generations
// made from now on; a restore from backup has raised it.
func (f *Fleet) Load(ctx context.Context, epoch uint64) error {
	f.change.Lock()
	defer f.change.Unlock()
	f.epoch = epoch
	return f.cfg.Store.View(ctx, func(tx *store.Tx) error {
		tenants, err := tx.Tenants(ctx)
		if err != nil {
			return err
		}
		for _, t := range tenants {
			if err := f.loadTenant(ctx, tx, t); err != nil {
				return fmt.Errorf("load tenant %s: %w", t, err)
			}
		}
		return nil
	})
}

func (f *Fleet) loadTenant(ctx context.Context, tx *store.Tx, tenant string) error {
	devices, err := tx.Devices(ctx, tenant)
	if err != nil {
		return err
	}
	expiries, err := tx.CertificateExpiries(ctx, tenant)
	if err != nil {
		return err
	}
	for _, d := range devices {
		if _, err := f.add(d, expiries[d.ID]); err != nil {
			return err
		}
	}
	twins, err := tx.Twins(ctx, tenant)
	if err != nil {
		return err
	}
	for _, t := range twins {
		if tw := f.find(tenant, t.Device); tw != nil {
			if err := tw.restore(t); err != nil {
				return err
			}
		}
	}
	desired, err := tx.AllDesired(ctx, tenant)
	if err != nil {
		return err
	}
	for _, d := range desired {
		if tw := f.find(tenant, d.Device); tw != nil {
			tw.wanted = &d
		}
	}
	if f.policy[tenant], err = loadPolicy(ctx, tx, tenant); err != nil {
		return err
	}
	f.shareOut(tenant, f.policy[tenant])
	f.params[tenant], err = tx.Parameters(ctx, tenant)
	return err
}

// Run works until ctx ends: it sends, re-sends and writes behind.
func (f *Fleet) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range f.cfg.Workers {
		wg.Go(func() { f.sendLoop(ctx) })
	}
	wg.Go(func() {
		f.every(ctx, min(f.cfg.Resend/4, 2*time.Second), "look at the devices", func(context.Context) error { f.sweep(); return nil })
	})
	wg.Go(func() { f.every(ctx, f.cfg.FlushEvery, "write reported state", f.Flush) })
	wg.Go(func() { f.every(ctx, time.Hour, "trim events", f.trim) })
	<-ctx.Done()
	f.queue.Close()
	wg.Wait()
	return nil
}

// RunEvents stores events until ctx ends; it must outlive every caller of Message.
func (f *Fleet) RunEvents(ctx context.Context) error { return f.events.Run(ctx) }
