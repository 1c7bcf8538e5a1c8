package peer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
)

// CacheConfig is what a Cache is made of.
type CacheConfig struct {
	Files slot.Files  // of the device; the cache is below Folder
	Own   *blob.Store // of the device's own releases
	// Ways are where the cache gets what it lacks, without peers.
	Ways  fetch.Source
	Quota int64
	// Free returns the free bytes of the disk, negative for unknown, and
	// Reserve how many of them are not for the cache.
	Free    func() (int64, error)
	Reserve func() int64
	// Admit returns when bytes may come, with a context that ends when they may
	// no more; nil is at once.
	Admit  func(ctx context.Context) (context.Context, context.CancelFunc, error)
	Logger *slog.Logger
	Now    func() time.Time
}

const (
	maxPulls = 4                     // at a time
	lookAt   = 25 * time.Millisecond // how often a reader looks at what grows
	// lingers is how long the device's own transfer of a blob counts as under
	// way after a connection ended: it tries again soon.
	lingers = 10 * time.Second
)

// Cache keeps what it fetches for siblings, each blob once, and gives what the
// device has itself from where that lies. Its methods may be called from
// several goroutines.
type Cache struct {
	cfg   CacheConfig
	store *blob.Store
	fetch *fetch.Fetcher
	slots chan struct{}
	work  sync.WaitGroup

	mu    sync.Mutex // guards what follows
	ctx   context.Context
	pulls map[ota.Digest]*pull
	own   map[ota.Digest]*ownTransfer
	used  map[ota.Digest]uint64 // when last asked for, by count
	count uint64
}

// pull is one fetch for siblings.
type pull struct {
	size int64
	done chan struct{}
	err  error // after done
}

// ownTransfer is what the device fetches for itself.
type ownTransfer struct {
	open  int
	ended time.Time
}

// NewCache returns a cache that pulls nothing until Run.
func NewCache(c CacheConfig) *Cache {
	if c.Admit == nil {
		c.Admit = func(ctx context.Context) (context.Context, context.CancelFunc, error) {
			ctx, cancel := context.WithCancel(ctx)
			return ctx, cancel, nil
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	store := blob.NewStore(Below(c.Files, Folder))
	return &Cache{
		cfg: c, store: store, fetch: &fetch.Fetcher{Store: store, Source: c.Ways},
		slots: make(chan struct{}, maxPulls),
		pulls: map[ota.Digest]*pull{}, own: map[ota.Digest]*ownTransfer{}, used: map[ota.Digest]uint64{},
	}
}

// Run lets the cache pull until ctx ends, and waits for what it pulls.
func (c *Cache) Run(ctx context.Context) {
	c.mu.Lock()
	c.ctx = ctx
	c.mu.Unlock()
	<-ctx.Done()
	c.mu.Lock()
	c.ctx = nil
	c.mu.Unlock()
	c.work.Wait()
}

// spawn runs do while the cache serves, and reports whether it does.
func (c *Cache) spawn(do func(ctx context.Context)) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spawnLocked(do)
}

// spawnLocked is spawn; c.mu is held.
func (c *Cache) spawnLocked(do func(ctx context.Context)) bool {
	run := c.ctx
	if run == nil || run.Err() != nil {
		return false
	}
	c.work.Go(func() { do(run) })
	return true
}

// DropUnsynced is blob.Store.DropUnsynced for what was being pulled.
func (c *Cache) DropUnsynced() error { return c.store.DropUnsynced() }

// Drop deletes all that was fetched for siblings. Run has ended.
func (c *Cache) Drop() error { return c.cfg.Files.Remove(Folder) }

// Own is s with the device's own transfers known to the cache, so that no blob
// is fetched for siblings that is coming anyway.
func (c *Cache) Own(s fetch.Source) fetch.Source { return ownSource{s, c} }

type ownSource struct {
	fetch.Source
	c *Cache
}

// Open implements fetch.Source.
func (o ownSource) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	end := o.c.begin(d)
	r, err := o.Source.Open(ctx, d, offset, length)
	if err != nil {
		end()
		return nil, err
	}
	return &ownReader{r, end}, nil
}

// Blame implements fetch.Blamer.
func (o ownSource) Blame(d ota.Digest) { fetch.Blame(o.Source, d) }

type ownReader struct {
	io.ReadCloser
	end func()
}

// Close implements io.Closer.
func (r *ownReader) Close() error {
	r.end()
	return r.ReadCloser.Close()
}

// PassedOver passes on what the source skipped.
func (r *ownReader) PassedOver() int64 {
	if p, ok := r.ReadCloser.(interface{ PassedOver() int64 }); ok {
		return p.PassedOver()
	}
	return 0
}

// begin notes a transfer of the device's own and returns what ends it.
func (c *Cache) begin(d ota.Digest) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.cfg.Now()
	for k, t := range c.own {
		if t.open == 0 && now.Sub(t.ended) > lingers {
			delete(c.own, k)
		}
	}
	t := c.own[d]
	if t == nil {
		t = &ownTransfer{}
		c.own[d] = t
	}
	t.open++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		t.open--
		t.ended = c.cfg.Now()
	})
}

// coming reports whether the device fetches d for itself. c.mu is held.
func (c *Cache) coming(d ota.Digest) bool {
	t := c.own[d]
	if t == nil || t.open > 0 {
		return t != nil
	}
	if c.cfg.Now().Sub(t.ended) > lingers {
		return false
	}
	n, err := c.cfg.Own.Partial(d) // none: it came and is gone, as a patch that was applied
	return err == nil && n > 0
}

// Source gives the device what the cache has or pulls already, and nothing else.
func (c *Cache) Source() fetch.Source { return cacheSource{c} }

type cacheSource struct{ c *Cache }

// Open implements fetch.Source.
func (s cacheSource) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	c := s.c
	c.mu.Lock()
	p := c.pulls[d]
	c.mu.Unlock()
	if p == nil && !c.store.Has(d) {
		return nil, fmt.Errorf("%w: nobody at this site asked for it", fetch.ErrNotFound)
	}
	c.touch(d)
	g := &growing{ctx: ctx, store: c.store, blob: d, pull: p}
	if err := g.start(offset); err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.LimitReader(g, length), g}, nil
}

func (c *Cache) touch(d ota.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count++
	c.used[d] = c.count
}

// Open returns the blob of desc from offset on, as soon as there is a byte of
// it: from the device's own blobs, from what was fetched before, from what is
// being fetched, or by fetching it. The reader ends with an error when the rest
// does not come.
func (c *Cache) Open(ctx context.Context, desc manifest.Descriptor, offset int64) (io.ReadCloser, error) {
	for _, s := range []*blob.Store{c.cfg.Own, c.store} {
		if n, err := s.Size(desc.Digest); err == nil && n == desc.Size {
			if s == c.store {
				c.touch(desc.Digest)
			}
			g := &growing{ctx: ctx, store: s, blob: desc.Digest}
			if err := g.start(offset); err != nil {
				return nil, err
			}
			return g, nil
		}
	}
	for {
		g, err := c.join(ctx, desc)
		if err != nil {
			return nil, err
		}
		err = g.start(offset)
		if err == nil {
			return g, nil
		}
		if g.pull != nil || !errors.Is(err, errStopped) {
			return nil, err
		}
		// The device gave its own transfer up: it is fetched for siblings then.
	}
}

// join takes part in the transfer that is under way, or begins one.
func (c *Cache) join(ctx context.Context, desc manifest.Descriptor) (*growing, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := desc.Digest
	p := c.pulls[d]
	if p == nil && c.coming(d) {
		return &growing{ctx: ctx, store: c.cfg.Own, blob: d, alive: func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.coming(d)
		}}, nil
	}
	if p == nil {
		if err := c.makeRoom(desc); err != nil {
			return nil, err
		}
		p = &pull{size: desc.Size, done: make(chan struct{})}
		if !c.spawnLocked(func(ctx context.Context) { c.pull(ctx, desc, p) }) {
			return nil, errStopped
		}
		c.pulls[d] = p
		c.count++
		c.used[d] = c.count
	}
	return &growing{ctx: ctx, store: c.store, blob: d, pull: p}, nil
}

// Keep copies a blob of the device that it is about to delete, as a patch that
// was applied: siblings may want it too. Where that does not work they fetch it.
func (c *Cache) Keep(ctx context.Context, d ota.Digest) {
	size, err := c.cfg.Own.Size(d)
	if err != nil {
		return
	}
	desc := manifest.Descriptor{Digest: d, Size: size}
	p := &pull{size: size, done: make(chan struct{})}
	c.mu.Lock()
	if c.ctx == nil || c.pulls[d] != nil || c.store.Has(d) || c.makeRoom(desc) != nil {
		c.mu.Unlock()
		return
	}
	c.pulls[d] = p
	c.count++
	c.used[d] = c.count
	c.mu.Unlock()
	r, _, err := c.cfg.Own.Open(ctx, d)
	if err == nil {
		err = errors.Join(c.store.Put(ctx, d, r), r.Close())
	}
	c.ended(d, p, err)
}

// ended ends a pull.
func (c *Cache) ended(d ota.Digest, p *pull, err error) {
	if err != nil {
		c.cfg.Logger.Info("a blob for siblings does not come", "blob", d.Short(), "error", err)
	}
	c.mu.Lock()
	p.err = err
	delete(c.pulls, d)
	c.mu.Unlock()
	close(p.done)
}

// pull fetches one blob.
func (c *Cache) pull(ctx context.Context, desc manifest.Descriptor, p *pull) {
	err := c.bring(ctx, desc)
	if errors.Is(err, slot.ErrDiskFull) || errors.Is(err, blob.ErrDigestMismatch) {
		err = errors.Join(err, c.store.Delete(desc.Digest))
	}
	c.ended(desc.Digest, p, err)
}

func (c *Cache) bring(ctx context.Context, desc manifest.Descriptor) error {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	ctx, stop, err := c.cfg.Admit(ctx)
	if err != nil {
		return err
	}
	defer stop()
	return c.fetch.Fetch(ctx, desc)
}

// makeRoom deletes what was not asked for for longest until desc fits. c.mu is held.
func (c *Cache) makeRoom(desc manifest.Descriptor) error {
	if desc.Size > c.cfg.Quota {
		return fmt.Errorf("%w: a blob of %d MiB, the cache is for %d MiB", ErrNoRoom, desc.Size>>20, c.cfg.Quota>>20)
	}
	var total, pending int64
	for _, p := range c.pulls {
		total += p.size
	}
	var all []blob.Info
	for i, err := range c.store.Garbage(func(ota.Digest) bool { return false }) {
		if err != nil {
			return fmt.Errorf("list the cache: %w", err)
		}
		if p := c.pulls[i.Digest]; p != nil {
			pending -= i.Size // of what is promised, that much is there
			continue
		}
		if i.Digest == desc.Digest { // it goes on from here
			pending -= i.Size
			continue
		}
		total += i.Size
		all = append(all, i)
	}
	for _, p := range c.pulls {
		pending += p.size
	}
	c.byUse(all)
	for {
		free, err := c.cfg.Free()
		fits := err != nil || free < 0 || free-pending-desc.Size >= c.cfg.Reserve()
		if total+desc.Size <= c.cfg.Quota && fits {
			return nil
		}
		if len(all) == 0 {
			return fmt.Errorf("%w: %d MiB of the disk are free", ErrNoRoom, free>>20)
		}
		if err := c.store.Delete(all[0].Digest); err != nil {
			return fmt.Errorf("make room in the cache: %w", err)
		}
		total -= all[0].Size
		delete(c.used, all[0].Digest)
		all = all[1:]
	}
}

// byUse sorts what may be deleted: first what the device has itself by now, then
// what was not asked for for longest. c.mu is held.
func (c *Cache) byUse(all []blob.Info) {
	slices.SortFunc(all, func(a, b blob.Info) int {
		ha, hb := c.cfg.Own.Has(a.Digest), c.cfg.Own.Has(b.Digest)
		if ha != hb {
			if ha {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(c.used[a.Digest], c.used[b.Digest]), a.Modified.Compare(b.Modified))
	})
}

// Yield deletes what is kept for siblings, so many bytes of it where there are
// that many, and returns how many it were.
func (c *Cache) Yield(bytes int64) (deleted int64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []blob.Info
	for i, err := range c.store.Garbage(func(d ota.Digest) bool { return c.pulls[d] != nil }) {
		if err != nil {
			return 0, fmt.Errorf("list the cache: %w", err)
		}
		all = append(all, i)
	}
	c.byUse(all)
	for _, i := range all {
		if deleted >= bytes {
			break
		}
		if err := c.store.Delete(i.Digest); err != nil {
			return deleted, err
		}
		delete(c.used, i.Digest)
		deleted += i.Size
	}
	return deleted, nil
}

// ReadAll returns a small blob: of an index of unknown size too, where desc has
// size 0.
func (c *Cache) ReadAll(ctx context.Context, desc manifest.Descriptor, limit int64) ([]byte, error) {
	for _, s := range []*blob.Store{c.cfg.Own, c.store} {
		if b, err := s.ReadAll(ctx, desc.Digest, limit); err == nil {
			return b, nil
		}
	}
	if desc.Size == 0 {
		return c.readUnsized(ctx, desc.Digest, limit)
	}
	r, err := c.Open(ctx, desc, 0)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err := errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	if ota.DigestOf(b) != desc.Digest {
		return nil, fmt.Errorf("read %s: %w", desc.Digest.Short(), blob.ErrDigestMismatch)
	}
	return b, nil
}

// readUnsized asks for more than there can be and takes what comes.
func (c *Cache) readUnsized(ctx context.Context, d ota.Digest, limit int64) ([]byte, error) {
	ctx, stop, err := c.cfg.Admit(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	r, err := c.cfg.Ways.Open(ctx, d, 0, limit)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	closed := r.Close()
	if ota.DigestOf(b) != d {
		if err := errors.Join(err, closed); err != nil {
			return nil, err
		}
		fetch.Blame(c.cfg.Ways, d)
		return nil, fmt.Errorf("read %s: %w", d.Short(), blob.ErrDigestMismatch)
	}
	c.mu.Lock()
	err = c.makeRoom(manifest.Descriptor{Digest: d, Size: int64(len(b))})
	c.mu.Unlock()
	if err == nil {
		_, err = c.store.PutBytes(b)
	}
	if err != nil {
		c.cfg.Logger.Info("an index is not kept for siblings", "blob", d.Short(), "error", err)
	}
	return b, nil
}
