// Package build is the queue of engine builds: which engines exist, which are
// wanted, which device builds which now, and what became of it.
//
// Invariants: an engine is known by its key and built once; at most one build
// of a key is open, and a device has at most one lease; a lease goes only to an
// active device that an operator granted the builder capability and whose own
// probed target, reduced by the recipe, is exactly the one wanted; nothing is
// leased before that is stored; an engine is kept only after the device's
// signature, its golden result, and the digest and length of each upload were
// checked. The link is level-triggered: each message is answered with where the
// device stands, so a lost one never matters. It knows fleet, models and blobs
// through the small interfaces below; the façade, release and rpc import it.
package build

import (
	"cmp"
	"context"
	"crypto"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/controlplane/internal/turns"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/engine"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// Capability lets a device build engines that others load.
const Capability = "builder"

// What callers tell apart.
var (
	ErrUnknown = errors.New("not found")
	ErrInvalid = errors.New("invalid")
	ErrState   = errors.New("not in this state")
	ErrExists  = errors.New("exists already")
)

// Fleet is what the queue asks of devices.
type Fleet interface {
	Get(tenant, id string) (fleet.View, error)
	Snapshot(tenant string) []fleet.View
	Capable(tenant, capability string) []fleet.View
	Key(tenant, id string) (crypto.PublicKey, error)
	Noticed(ctx context.Context, tenant, device, kind, message, attack string) error
}

// Models knows model versions by NAME@VERSION.
type Models interface {
	Version(ctx context.Context, tenant, text string) (store.ModelVersion, error)
	Versions(ctx context.Context, tenant, name string) ([]store.ModelVersion, error)
}

// Link sends to devices; a device without a session is an error.
type Link interface {
	Publish(ctx context.Context, device string, kind wire.Kind, payload []byte) error
}

// Config of a Queue. All without a default stated are required.
type Config struct {
	Store  *store.DB
	Fleet  Fleet
	Models Models
	Blobs  *blob.Store
	Link   Link
	// Director signs leases and seals, and statements about engines.
	Director func() (*trust.Signer, error)
	// Allowed says whether a person's key has signed a recipe for a model: nil,
	// or what to do. It is asked of recipes with plugins.
	Allowed func(model string, recipe ota.Digest) error
	// Domain names devices in statements; Version this program.
	Domain, Version string
	Logger          *slog.Logger
	Now             func() time.Time // time.Now

	Life     time.Duration // of a lease without a word: 2 min
	Every    time.Duration // between heartbeats of a builder: 20 s
	Ask      time.Duration // between asks of a free builder: 60 s
	Longest  time.Duration // one attempt: 6 h
	Attempts int           // of a build: 4
	MaxBytes int64         // of an engine: 8 GiB
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Life = cmp.Or(c.Life, 2*time.Minute)
	c.Every = cmp.Or(c.Every, 20*time.Second)
	c.Ask = cmp.Or(c.Ask, time.Minute)
	c.Longest = cmp.Or(c.Longest, 6*time.Hour)
	c.Attempts = cmp.Or(c.Attempts, 4)
	c.MaxBytes = cmp.Or(c.MaxBytes, 8<<30)
}

// Queue is all builds of one control plane.
type Queue struct {
	cfg    Config
	secret []byte                               // tokens for uploads are made from it; a new one with each start
	out    *turns.Queue[place, wire.BuildLease] // the newest answer to each device

	mu       sync.Mutex // guards all below; held while a change is made durable
	jobs     map[jobID]*job
	builders map[place]*builder
	changed  chan struct{} // closed and made anew at each change
}

type jobID struct{ tenant, id string }

// place is a device of a tenant.
type place struct{ tenant, device string }

// job is an open build with what is known of it in memory alone.
type job struct {
	store.Build
	recipe  engine.Recipe
	raw     []byte // its canonical form
	target  ota.Target
	expires time.Time // of the lease
	step    string
	percent uint8
	said    string
	log     tail
}

// builder is what a device last did here.
type builder struct {
	heard, told time.Time
	target      string // as it said
	busyUntil   time.Time
}

// New returns an empty queue; Load fills it.
func New(cfg Config) (*Queue, error) {
	cfg.setDefaults()
	if cfg.Store == nil || cfg.Fleet == nil || cfg.Models == nil || cfg.Blobs == nil || cfg.Link == nil || cfg.Director == nil || cfg.Allowed == nil {
		return nil, errors.New("build needs Store, Fleet, Models, Blobs, Link, Director and Allowed")
	}
	q := &Queue{cfg: cfg, secret: make([]byte, 32), jobs: map[jobID]*job{}, builders: map[place]*builder{}, changed: make(chan struct{})}
	_, _ = rand.Read(q.secret) // never fails
	q.out = turns.New[place](func(_, newest wire.BuildLease) wire.BuildLease { return newest })
	return q, nil
}

// Load reads what is open. A lease lives on: its device has a full life to say
// a word.
func (q *Queue) Load(ctx context.Context) error {
	var rows []store.Build
	if err := q.cfg.Store.View(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.OpenBuilds(ctx)
		return err
	}); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, b := range rows {
		j, err := q.open(ctx, b)
		if err != nil {
			return err
		}
		if b.State == store.BuildLeased {
			j.expires = q.cfg.Now().Add(q.cfg.Life)
		}
	}
	return nil
}

// open makes the job of a stored build; mu is held.
func (q *Queue) open(ctx context.Context, b store.Build) (*job, error) {
	raw, err := q.cfg.Blobs.ReadAll(ctx, ota.Digest(b.Recipe), engine.MaxRecipe)
	if err != nil {
		return nil, fmt.Errorf("recipe of build %s: %w", b.ID, err)
	}
	j := &job{Build: b, raw: raw}
	if j.recipe, err = engine.ParseRecipe(raw); err != nil {
		return nil, fmt.Errorf("build %s: %w", b.ID, err)
	}
	if j.target, err = ota.ParseTarget(b.Target); err != nil {
		return nil, fmt.Errorf("build %s: %w", b.ID, err)
	}
	q.jobs[jobID{b.Tenant, b.ID}] = j
	return j, nil
}

// Run answers devices and watches leases until ctx ends.
func (q *Queue) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { q.answer(ctx) })
	}
	t := time.NewTicker(min(q.cfg.Life/4, 5*time.Second))
	defer t.Stop()
	for {
		if err := q.Tick(ctx); err != nil && ctx.Err() == nil {
			q.cfg.Logger.Error("look after builds", "error", err)
		}
		select {
		case <-ctx.Done():
			q.out.Close()
			wg.Wait()
			return nil
		case <-t.C:
		}
	}
}

// answer sends what waits until the queue of answers is closed.
func (q *Queue) answer(ctx context.Context) {
	for {
		p, l, ok := q.out.Take()
		if !ok {
			return
		}
		q.publish(ctx, l)
		q.out.Done(p)
	}
}

// Tick ends leases that ran out, and reminds builders that were not heard of.
func (q *Queue) Tick(ctx context.Context) error {
	now := q.cfg.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	var errs []error
	for _, j := range q.sorted() {
		if j.State != store.BuildLeased {
			continue
		}
		switch {
		case now.After(j.Leased.Add(q.cfg.Longest)):
			errs = append(errs, q.giveBack(ctx, j, wire.BuildTimeout, fmt.Sprintf("not done within %s", q.cfg.Longest)))
		case now.After(j.expires):
			errs = append(errs, q.giveBack(ctx, j, wire.BuildTimeout, fmt.Sprintf("nothing heard of the device for %s", q.cfg.Life)))
		}
	}
	for _, tenant := range q.tenants() {
		for _, v := range q.cfg.Fleet.Capable(tenant, Capability) {
			if v.Online && q.silent(v, now) {
				q.greet(v, now)
			}
		}
	}
	return errors.Join(errs...)
}

// tenants are those with open builds or builders that spoke; mu is held.
func (q *Queue) tenants() []string {
	seen := map[string]bool{store.DefaultTenant: true}
	for id := range q.jobs {
		seen[id.tenant] = true
	}
	for p := range q.builders {
		seen[p.tenant] = true
	}
	out := make([]string, 0, len(seen))
	for t := range seen {
		out = append(out, t)
	}
	slices.Sort(out)
	return out
}

// silent says that a builder should be reminded; mu is held.
func (q *Queue) silent(v fleet.View, now time.Time) bool {
	b := q.builders[place{v.Tenant, v.ID}]
	return b == nil || now.Sub(b.heard) > 2*q.cfg.Ask && now.Sub(b.told) > q.cfg.Ask
}

func isBuilder(v fleet.View) bool {
	return v.State != fleet.Revoked && v.State != fleet.Pending && slices.Contains(v.Capabilities, Capability)
}

// sorted are the open jobs: urgent ones first, then the oldest; mu is held.
func (q *Queue) sorted() []*job {
	out := make([]*job, 0, len(q.jobs))
	for _, j := range q.jobs {
		out = append(out, j)
	}
	slices.SortFunc(out, func(a, b *job) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return out
}

// keep makes a changed job durable, and forgets it when it is closed; mu is
// held. On an error the job in memory is as before.
func (q *Queue) keep(ctx context.Context, j *job, change func(*store.Build), more ...func(*store.Tx) error) error {
	b := j.Build
	b.Tried = slices.Clone(b.Tried)
	change(&b)
	err := q.cfg.Store.Update(ctx, func(tx *store.Tx) error {
		for _, f := range more {
			if err := f(tx); err != nil {
				return err
			}
		}
		return tx.PutBuild(ctx, b)
	})
	if err != nil {
		return err
	}
	j.Build = b
	if !b.Open() {
		delete(q.jobs, jobID{b.Tenant, b.ID})
	}
	q.notify()
	return nil
}

// notify wakes who waits for a change; mu is held.
func (q *Queue) notify() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// Changed returns a channel that is closed at the next change.
func (q *Queue) Changed() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.changed
}

func newID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return "b" + strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))[:11]
}
