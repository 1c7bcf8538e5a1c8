package series

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/tsdb/chunkenc"

	"github.com/skein-fleet/skein/ota/gate"
	"github.com/skein-fleet/skein/telemetry"
)

// latestAge is how far behind a device's newest reading one of its series may
// be and still count as measured now.
const latestAge = 10 * time.Minute

// Latest returns the newest reading of each series of a device, by series.
// After a restart the readings come from the store again.
func (s *Store) Latest(deviceID string) []telemetry.Reading {
	s.mu.Lock()
	d := s.devices[deviceID]
	s.mu.Unlock()
	if d == nil {
		return s.stored(deviceID)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	newest := int64(math.MinInt64)
	for _, e := range d.series {
		newest = max(newest, e.time)
	}
	var out []telemetry.Reading
	for _, e := range d.series {
		if newest-e.time <= latestAge.Milliseconds() {
			out = append(out, telemetry.Reading{Series: e.own, Time: time.UnixMilli(e.time).UTC(), Value: e.value})
		}
	}
	sortReadings(out)
	return out
}

func sortReadings(rs []telemetry.Reading) {
	slices.SortFunc(rs, func(a, b telemetry.Reading) int { return a.Series.Compare(b.Series) })
}

// stored reads the newest reading of each series of the last hour.
func (s *Store) stored(deviceID string) []telemetry.Reading {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	now := s.opts.Now()
	var out []telemetry.Reading
	newest := time.Time{}
	err := s.each(ctx, now.Add(-time.Hour), now.Add(s.opts.MaxAhead), []*labels.Matcher{deviceMatcher(deviceID)}, func(ls labels.Labels, it chunkenc.Iterator) error {
		r := telemetry.Reading{Series: ownSeries(ls)}
		found := false
		for it.Next() == chunkenc.ValFloat {
			t, v := it.At()
			r.Time, r.Value, found = time.UnixMilli(t).UTC(), v, true
		}
		if found {
			out = append(out, r)
			if r.Time.After(newest) {
				newest = r.Time
			}
		}
		return it.Err()
	})
	if err != nil {
		s.opts.Logger.Warn("read latest readings", "device", deviceID, "err", err)
		return nil
	}
	out = slices.DeleteFunc(out, func(r telemetry.Reading) bool { return newest.Sub(r.Time) > latestAge })
	sortReadings(out)
	return slices.CompactFunc(out, func(a, b telemetry.Reading) bool { return a.Series.Compare(b.Series) == 0 })
}

// ownSeries takes the labels of Source away again.
func ownSeries(ls labels.Labels) telemetry.Series {
	out := telemetry.Series{}
	ls.Range(func(l labels.Label) {
		switch l.Name {
		case labels.MetricName:
			out.Name = l.Value
		case "device", "name", "target", "site":
		default:
			out.Labels = append(out.Labels, telemetry.Label{Name: l.Name, Value: l.Value})
		}
	})
	return out
}

func deviceMatcher(id string) *labels.Matcher {
	return labels.MustNewMatcher(labels.MatchEqual, "device", id)
}

// each calls f for every series that matches, with its samples of the interval.
func (s *Store) each(ctx context.Context, from, to time.Time, ms []*labels.Matcher, f func(labels.Labels, chunkenc.Iterator) error) error {
	mint, maxt := from.UnixMilli(), to.UnixMilli()
	q, err := s.db.Querier(mint, maxt)
	if err != nil {
		return fmt.Errorf("open querier: %w", err)
	}
	defer q.Close()
	set := q.Select(ctx, false, nil, ms...)
	var it chunkenc.Iterator
	for set.Next() {
		at := set.At()
		it = at.Iterator(it)
		if err := f(at.Labels(), it); err != nil {
			return err
		}
	}
	return set.Err()
}

// Stats summarises the samples of one device over [from, to]. The metric is a
// name, or a PromQL selector such as
// skein_inference_latency_p99_seconds{model="meter"}; the samples of all its
// series count together. Nothing measured gives N = 0.
func (s *Store) Stats(ctx context.Context, deviceID, metric string, from, to time.Time) (gate.Stats, error) {
	ms, err := s.parser.ParseMetricSelector(metric)
	if err != nil {
		return gate.Stats{}, fmt.Errorf("metric %q: %w", metric, err)
	}
	if !from.Before(to) {
		return gate.Stats{}, nil
	}
	mint, maxt := from.UnixMilli(), to.UnixMilli()
	var values []float64
	err = s.each(ctx, from, to, append(ms, deviceMatcher(deviceID)), func(_ labels.Labels, it chunkenc.Iterator) error {
		for it.Next() == chunkenc.ValFloat {
			if t, v := it.At(); t >= mint && t <= maxt && !math.IsNaN(v) {
				values = append(values, v)
			}
		}
		return it.Err()
	})
	if err != nil {
		return gate.Stats{}, fmt.Errorf("read %s of %s: %w", metric, deviceID, err)
	}
	return summarise(values), nil
}

// CheckMetric reports what makes text no metric for Stats.
func (s *Store) CheckMetric(metric string) error {
	if _, err := s.parser.ParseMetricSelector(metric); err != nil {
		return fmt.Errorf("metric %q: %w", metric, err)
	}
	return nil
}

func summarise(values []float64) gate.Stats {
	n := len(values)
	if n == 0 {
		return gate.Stats{}
	}
	slices.Sort(values)
	median := values[n/2]
	if n%2 == 0 {
		median = (values[n/2-1] + values[n/2]) / 2
	}
	return gate.Stats{N: n, Median: median, P99: values[min(n-1, int(math.Ceil(0.99*float64(n)))-1)]}
}
