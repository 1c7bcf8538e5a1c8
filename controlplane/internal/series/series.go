// Package series keeps what devices measure in an embedded Prometheus TSDB and
// answers for it: the Prometheus HTTP API, the latest readings of a device, and
// one device's figures over an interval for the gate of a rollout. It is the
// only package that imports the TSDB and PromQL.
//
// Invariants: a device decides nothing about the labels that say whose series
// it is (Source sets them over its own); samples may come late, within the
// out-of-order window, and are never taken from the future, because one sample
// far ahead would make the store refuse all the others; what is not stored is
// counted. The façade and package rpc may import it; nothing below does.
package series

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/compression"

	"github.com/skein-fleet/skein/telemetry"
	"github.com/skein-fleet/skein/telemetry/block"
)

// Options of a store. Zero values mean the defaults that the fields name.
type Options struct {
	Dir        string
	Retention  time.Duration // 15 days
	OutOfOrder time.Duration // how late samples may come: 7 days
	MaxAhead   time.Duration // how far ahead of our clock: 10 minutes
	// MaxSamples bounds what one query may hold in memory: 5 million.
	MaxSamples int
	// Timeout bounds one query: 30 seconds.
	Timeout time.Duration
	// MaxQueries run at a time, the others wait: 8.
	MaxQueries int
	// MaxSeries of one device; further ones are refused: 512.
	MaxSeries int
	Registry  prometheus.Registerer // nil: no metrics of the store
	Logger    *slog.Logger
	Now       func() time.Time
}

func (o *Options) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	def(&o.Retention, 15*24*time.Hour)
	def(&o.OutOfOrder, 7*24*time.Hour)
	def(&o.MaxAhead, 10*time.Minute)
	def(&o.Timeout, 30*time.Second)
	num(&o.MaxSamples, 5_000_000)
	num(&o.MaxQueries, 8)
	num(&o.MaxSeries, 512)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Store is an open store. Close it.
type Store struct {
	opts   Options
	db     *tsdb.DB
	engine *promql.Engine
	parser parser.Parser
	slots  chan struct{}

	readings *prometheus.CounterVec

	mu      sync.Mutex // guards devices and schemas
	devices map[string]*device
	schemas map[block.SchemaID]*block.Schema
}

// Open opens or makes the store in o.Dir. The TSDB compacts by itself until
// Close.
func Open(o Options) (*Store, error) {
	o.setDefaults()
	if err := os.MkdirAll(o.Dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the series folder: %w", err)
	}
	opts := tsdb.DefaultOptions()
	opts.RetentionDuration = o.Retention.Milliseconds()
	opts.OutOfOrderTimeWindow = o.OutOfOrder.Milliseconds()
	opts.WALCompression = compression.Snappy
	opts.WALSegmentSize = 32 << 20
	opts.StripeSize = 2048
	db, err := tsdb.Open(o.Dir, o.Logger, o.Registry, opts, nil)
	if err != nil {
		return nil, fmt.Errorf("open series in %s: %w", o.Dir, err)
	}
	readings := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "skein_series_readings_total", Help: "readings of devices by what became of them"}, []string{"outcome"})
	if o.Registry != nil {
		if err := o.Registry.Register(readings); err != nil {
			return nil, errors.Join(fmt.Errorf("register metrics: %w", err), db.Close())
		}
	}
	p := parser.NewParser(parser.Options{})
	return &Store{
		opts: o, db: db, parser: p, readings: readings, devices: map[string]*device{}, schemas: map[block.SchemaID]*block.Schema{}, slots: make(chan struct{}, o.MaxQueries),
		engine: promql.NewEngine(promql.EngineOpts{
			Logger: o.Logger, Reg: o.Registry, MaxSamples: o.MaxSamples, Timeout: o.Timeout, Parser: p,
			EnableAtModifier: true, EnableNegativeOffset: true, LookbackDelta: 5 * time.Minute,
			NoStepSubqueryIntervalFn: func(int64) int64 { return time.Minute.Milliseconds() },
		}),
	}, nil
}

// Close writes out what is in memory and ends the store.
func (s *Store) Close() error {
	if err := errors.Join(s.engine.Close(), s.db.Close()); err != nil {
		return fmt.Errorf("close series: %w", err)
	}
	return nil
}

// Source says whose readings they are. Its fields become the labels device,
// name, target and site; an empty one makes none.
type Source struct {
	Device string
	Name   string
	Target string
	Site   string
}

// Appended counts what became of the readings of one Append.
type Appended struct {
	Stored int
	Late   int // older than the window
	Ahead  int // from the future
	Other  int // the same time with another value, or no canonical series
	Excess int // over the number of series that one device may have
}

// Refused is how many readings were not stored.
func (a Appended) Refused() int { return a.Late + a.Ahead + a.Other + a.Excess }

// count keeps the outcome for the metrics.
func (s *Store) count(n Appended) {
	for outcome, k := range map[string]int{"stored": n.Stored, "late": n.Late, "ahead": n.Ahead, "excess": n.Excess, "other": n.Other} {
		if k > 0 {
			s.readings.WithLabelValues(outcome).Add(float64(k))
		}
	}
}

// device holds what the store remembers of one device in memory.
type device struct {
	mu     sync.Mutex // guards what follows
	source Source
	series map[string]*entry // by the text of the device's own series
}

// entry is one series with its latest value.
type entry struct {
	own    telemetry.Series
	labels labels.Labels
	ref    storage.SeriesRef
	time   int64
	value  float64
}

// Append stores readings of one device. Readings that the store cannot take are
// counted and do not spoil the others; an error means that none was stored.
func (s *Store) Append(ctx context.Context, src Source, readings []telemetry.Reading) (Appended, error) {
	var n Appended
	if src.Device == "" {
		return n, errors.New("append readings: no device")
	}
	s.mu.Lock()
	d := s.devices[src.Device]
	if d == nil {
		d = &device{series: map[string]*entry{}}
		s.devices[src.Device] = d
	}
	s.mu.Unlock()

	d.mu.Lock()
	defer d.mu.Unlock()
	if d.source != src {
		d.source = src
		for _, e := range d.series {
			e.labels, e.ref = src.labels(e.own), 0
		}
	}
	app := s.db.Appender(ctx)
	ahead := s.opts.Now().Add(s.opts.MaxAhead).UnixMilli()
	for _, r := range readings {
		if err := s.appendOne(app, d, src, r, ahead, &n); err != nil {
			return Appended{}, errors.Join(fmt.Errorf("append readings of %s: %w", src.Device, err), app.Rollback())
		}
	}
	if err := app.Commit(); err != nil {
		return Appended{}, fmt.Errorf("commit readings of %s: %w", src.Device, err)
	}
	return n, nil
}

func (s *Store) appendOne(app storage.Appender, d *device, src Source, r telemetry.Reading, ahead int64, n *Appended) error {
	t := r.Time.UnixMilli()
	if t > ahead {
		n.Ahead++
		return nil
	}
	key := r.Series.String()
	e := d.series[key]
	if e == nil {
		switch {
		case len(d.series) >= s.opts.MaxSeries:
			n.Excess++
			return nil
		case r.Series.Validate() != nil:
			n.Other++
			return nil
		}
		e = &entry{own: r.Series, labels: src.labels(r.Series), time: math.MinInt64}
	}
	ref, err := app.Append(e.ref, e.labels, t, r.Value)
	switch {
	case errors.Is(err, storage.ErrTooOldSample), errors.Is(err, storage.ErrOutOfBounds), errors.Is(err, storage.ErrOutOfOrderSample):
		n.Late++
		return nil
	case errors.Is(err, storage.ErrDuplicateSampleForTimestamp):
		n.Other++
		return nil
	case err != nil:
		return err
	}
	n.Stored++
	e.ref = ref
	if t > e.time {
		e.time, e.value = t, r.Value
	}
	d.series[key] = e
	return nil
}

// labels returns the labels of a device's series in the store.
func (src Source) labels(own telemetry.Series) labels.Labels {
	b := labels.NewScratchBuilder(len(own.Labels) + 5)
	b.Add(labels.MetricName, own.Name)
	for _, l := range own.Labels {
		switch l.Name {
		case "device", "name", "target", "site", labels.MetricName:
		default:
			b.Add(l.Name, l.Value)
		}
	}
	for name, value := range map[string]string{"device": src.Device, "name": src.Name, "target": src.Target, "site": src.Site} {
		if value != "" {
			b.Add(name, value)
		}
	}
	b.Sort()
	return b.Labels()
}
