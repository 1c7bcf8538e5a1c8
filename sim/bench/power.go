package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/chunk"
	"github.com/skein-fleet/skein/ota/slot"
)

// PowerOptions say how often the power is cut.
type PowerOptions struct {
	Cuts     int // 0 means 500
	Seed     uint64
	Parallel int // devices at once, 0 means 16
	Progress func(format string, args ...any)
}

const powerPatience = 2 * time.Minute

// Power cuts the power at sampled disk operations of one update, on the twin of
// the file port, and ends the process at every named point of it; each time it
// asks for a proven end state: old or new answers without the network, and in
// the end the new release is committed, answers and is reported. Bytes that came
// twice are counted at the source.
func Power(ctx context.Context, o PowerOptions) (figures []Figure, err error) {
	if o.Cuts <= 0 {
		o.Cuts = 500
	}
	if o.Parallel <= 0 {
		o.Parallel = 16
	}
	dir, err := os.MkdirTemp("", "skein-bench-power-")
	if err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	w, err := newPowerWorld(ctx, filepath.Join(dir, "trust"))
	if err != nil {
		return nil, err
	}
	b := &powerBench{w: w, o: o}
	if err := b.begin(ctx); err != nil {
		return nil, err
	}
	o.Progress("one update: %d disk operations, %d bytes fetched; %d power cuts", b.ops, b.once, o.Cuts)
	rng := rand.New(rand.NewPCG(o.Seed, 0x706f776572))
	var cuts []powerCut
	for range o.Cuts {
		cuts = append(cuts, powerCut{op: rng.IntN(b.ops + 1), seed: rng.Uint64(), power: true})
	}
	proven, twice, err := b.all(ctx, cuts)
	if err != nil {
		return nil, err
	}
	figures = append(figures, figure("ota.power_cuts_proven", float64(proven), fmt.Sprintf("of_%d", o.Cuts)).atLeast(float64(o.Cuts)),
		figure("ota.power_cut_bytes_twice", float64(twice), "bytes").atMost(chunk.MaxChunk))
	var kills []powerCut
	for _, p := range agent.CrashPoints() {
		if b.passed[p] {
			kills = append(kills, powerCut{point: p})
		}
	}
	o.Progress("killed at %d named points", len(kills))
	if proven, twice, err = b.all(ctx, kills); err != nil {
		return figures, err
	}
	figures = append(figures, figure("ota.kills_proven", float64(proven), fmt.Sprintf("of_%d_points", len(kills))).atLeast(float64(len(kills))),
		figure("ota.kill_bytes_twice", float64(twice), "bytes").atMost(chunk.MaxChunk))
	rate, err := storeRate(ctx, dir)
	return append(figures, figure("ota.store_write_rate", rate, "MiB/s")), err
}

type powerBench struct {
	w      *powerWorld
	o      PowerOptions
	base   *slot.Mem // with release 1 committed
	ops    int
	once   int64 // bytes of an update without a cut
	passed map[string]bool
}

// powerCut is where an update is ended.
type powerCut struct {
	op    int    // disk operation, unless there is a point
	point string // name
	power bool   // what is not synced is lost too
	seed  uint64 // what of it is
}

func (c powerCut) String() string {
	if c.point != "" {
		return "point " + c.point
	}
	return fmt.Sprintf("operation %d, power %d", c.op, c.seed)
}

// begin commits release 1 and measures the update to 2.
func (b *powerBench) begin(ctx context.Context) error {
	files := slot.NewMem()
	d, err := b.w.boot(files, 1, 1, nil)
	if err != nil {
		return err
	}
	d.link.SetOnline(true)
	err = await(ctx, func() bool { return d.done(1) })
	if err = errors.Join(err, d.stop()); err != nil {
		return fmt.Errorf("install the first release: %w", err)
	}
	b.base = files.Crash(0)
	files, b.passed = b.base.Crash(0), map[string]bool{}
	var mu sync.Mutex
	if d, err = b.w.boot(files, 2, 2, func(p string) { mu.Lock(); b.passed[p] = true; mu.Unlock() }); err != nil {
		return err
	}
	d.link.SetOnline(true)
	err = await(ctx, func() bool { return d.done(2) })
	b.ops, b.once = files.Ops(), d.fetched.Load()
	if err = errors.Join(err, d.stop()); err != nil {
		return fmt.Errorf("install the second release: %w", err)
	}
	return nil
}

// all makes the cuts, some at a time. It returns how many ended as they should
// and the most bytes that one made come twice.
func (b *powerBench) all(ctx context.Context, cuts []powerCut) (proven int, twice int64, err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := make(chan powerCut)
	for range b.o.Parallel {
		wg.Go(func() {
			for c := range next {
				extra, cerr := b.cut(ctx, c)
				mu.Lock()
				if cerr != nil {
					b.o.Progress("%s: %v", c, cerr)
				} else {
					proven++
				}
				if extra > twice {
					twice = extra
				}
				mu.Unlock()
			}
		})
	}
	for _, c := range cuts {
		select {
		case next <- c:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return proven, twice, ctx.Err()
}

// cut runs one update to its cut and the machine from there to the end.
func (b *powerBench) cut(ctx context.Context, c powerCut) (twice int64, err error) {
	files := b.base.Crash(0)
	over := make(chan struct{})
	var once sync.Once
	lose := func() { once.Do(func() { close(over) }) }
	if c.point == "" {
		files.FailAfter(c.op)
	}
	d, err := b.w.boot(files, 2, 2, func(p string) {
		if p == c.point {
			files.FailAfter(0)
			lose()
		}
	})
	var fetched int64
	if err == nil {
		d.link.SetOnline(true)
		err = await(ctx, func() bool {
			select {
			case <-over:
				return true
			default:
				return c.point == "" && files.Ops() >= c.op || d.done(2)
			}
		})
		fetched = d.fetched.Load()
		if serr := d.stop(); serr != nil && !errors.Is(serr, slot.ErrCut) {
			err = errors.Join(err, serr)
		}
	}
	if err != nil && !errors.Is(err, slot.ErrCut) {
		return 0, err
	}
	left, boot := files.Restart(), uint64(2)
	if c.power {
		left, boot = files.Crash(c.seed), 3
	}
	again, err := b.after(ctx, left, boot)
	return fetched + again - b.once, err
}

// after starts the device on what the cut left.
func (b *powerBench) after(ctx context.Context, left *slot.Mem, boot uint64) (fetched int64, err error) {
	d, err := b.w.boot(left, 2, boot, nil)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	d.offline.Store(true)
	if err := await(ctx, func() bool { _, err := d.runtime.answer(); return err == nil }); err != nil {
		return d.fetched.Load(), fmt.Errorf("nothing answers without the network: %w", err)
	}
	if got, _ := d.runtime.answer(); got != 1 && got != 2 {
		return d.fetched.Load(), fmt.Errorf("release %v answers without the network", got)
	}
	d.offline.Store(false)
	d.link.SetOnline(true)
	if err := await(ctx, func() bool { return d.done(2) }); err != nil {
		return d.fetched.Load(), fmt.Errorf("not where it should be in the end: %+v: %w", d.Status().Summary, err)
	}
	return d.fetched.Load(), nil
}

func await(ctx context.Context, cond func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, powerPatience, fmt.Errorf("waited %s", powerPatience))
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// storeRate is how fast a download can be written to this disk, with its syncs.
func storeRate(ctx context.Context, dir string) (float64, error) {
	files, err := slot.OpenDir(filepath.Join(dir, "rate"))
	if err != nil {
		return 0, err
	}
	data := make([]byte, 64<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	store, began := blob.NewStore(files), time.Now()
	_, err = store.Append(ctx, ota.DigestOf(data), 0, int64(len(data)), pieces(data))
	took := time.Since(began)
	return 64 / took.Seconds(), errors.Join(err, files.Close())
}

// pieces gives data as a network does.
func pieces(data []byte) *piecesReader { return &piecesReader{data} }

type piecesReader struct{ rest []byte }

// Read implements io.Reader.
func (p *piecesReader) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.rest[:min(len(p.rest), 32<<10)])
	p.rest = p.rest[n:]
	return n, nil
}
