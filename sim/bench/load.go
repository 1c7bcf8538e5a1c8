package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/skein-fleet/skein/sim/load"
	"github.com/skein-fleet/skein/sim/plane"
)

// LoadOptions say what to put onto a control plane.
type LoadOptions struct {
	Skeind   []string // command that starts skeind
	Devices  int
	Interval time.Duration // between two reports of one device
	Rounds   int           // reports of each device
	Settle   time.Duration // longest wait for memory to settle
	Progress func(format string, args ...any)
}

const (
	greetPerSecond = 400
	memoryGoal     = 80 // KiB a device
)

// loadRun is one measurement.
type loadRun struct {
	o       LoadOptions
	plane   *plane.Plane
	fleet   *load.Fleet
	figures []Figure

	// KiB resident; steady is the mean over the second half of the reports.
	empty, known, connected, steady float64
}

// Load starts skeind as a child process with everything embedded, enrols and
// connects devices, lets them report, and measures.
func Load(ctx context.Context, o LoadOptions) (figures []Figure, err error) {
	dir, err := os.MkdirTemp("", "skein-bench-")
	if err != nil {
		return nil, fmt.Errorf("make a data folder: %w", err)
	}
	defer os.RemoveAll(dir)
	r := &loadRun{o: o}
	if r.plane, err = plane.Child(ctx, o.Skeind, filepath.Join(dir, "skeind")); err != nil {
		return nil, err
	}
	defer r.plane.Close()
	for _, step := range []func(context.Context) error{r.enrol, r.connect, r.report, r.burst} {
		if err := step(ctx); err != nil {
			return r.figures, err
		}
	}
	stats := r.fleet.Stats()
	r.fleet.Close()
	r.add(figure("errors", float64(stats.Failed.Load()), "count").atMost(0))
	if err := stats.FirstError(); err != nil {
		o.Progress("first error: %v", err)
	}
	return r.figures, nil
}

func (r *loadRun) add(f Figure) {
	r.figures = append(r.figures, f)
	r.o.Progress("%s", f)
}

func (r *loadRun) settle(ctx context.Context, what string) (float64, error) {
	rss, err := settle(ctx, r.plane.PID(), r.o.Settle)
	r.o.Progress("skeind has %.1f MiB resident %s", rss/1024, what)
	return rss, err
}

func (r *loadRun) enrol(ctx context.Context) (err error) {
	if r.empty, err = r.settle(ctx, "empty"); err != nil {
		return err
	}
	claim, err := r.plane.Operator().Claim(ctx, r.o.Devices, nil)
	if err != nil {
		return err
	}
	r.fleet = load.New(load.Options{ServerURL: r.plane.DeviceURL, Claim: claim, Devices: r.o.Devices})
	start := time.Now()
	if err := r.fleet.Enroll(ctx); err != nil {
		return err
	}
	r.add(figure("enrolments_per_second", float64(r.o.Devices)/time.Since(start).Seconds(), "1/s"))
	r.known, err = r.settle(ctx, "with all devices enrolled")
	return err
}

func (r *loadRun) connect(ctx context.Context) (err error) {
	start := time.Now()
	if err := r.fleet.Connect(ctx); err != nil {
		return err
	}
	r.add(figure("connects_per_second", float64(r.o.Devices)/time.Since(start).Seconds(), "1/s"))
	r.connected, err = r.settle(ctx, "with all devices connected and silent")
	return err
}

// report lets the fleet say hello and then report as in the field, while the
// write-behind of reported state is watched.
func (r *loadRun) report(ctx context.Context) (err error) {
	r.fleet.Greet(ctx, greetPerSecond)
	if err := r.fleet.Settled(ctx); err != nil {
		return err
	}
	stats := r.fleet.Stats()
	stats.TakeAcks()
	span := time.Duration(r.o.Rounds) * r.o.Interval
	r.o.Progress("%d devices report every %s for %s", r.o.Devices, r.o.Interval, span)
	cpu, err := cpuSeconds(r.plane.PID())
	if err != nil {
		return err
	}
	before, start := stats.Acked.Load(), time.Now()
	cruise, stop := context.WithTimeout(ctx, span)
	defer stop()
	w := &writeBehind{}
	var wg sync.WaitGroup
	wg.Go(func() { w.watch(cruise, r.plane.URL, r.plane.Token) })
	var resident []float64
	wg.Go(func() { resident = sample(cruise, r.plane.PID(), span/2) })
	r.fleet.Cruise(cruise, r.o.Interval)
	wg.Wait()
	if len(resident) == 0 {
		return errors.Join(ctx.Err(), errors.New("the reports ended before memory could be measured"))
	}
	if err := r.fleet.Settled(ctx); err != nil {
		return err
	}
	took := time.Since(start).Seconds()
	spent, err := cpuSeconds(r.plane.PID())
	if err != nil {
		return err
	}
	r.add(figure("messages_per_second_steady", float64(stats.Acked.Load()-before)/took, "1/s"))
	r.add(figure("cpu_steady", 100*(spent-cpu)/took, "%_of_one_core"))
	acks := stats.TakeAcks()
	r.add(figure("report_acknowledged_p50", percentile(acks, 0.5), "ms"))
	r.add(figure("report_acknowledged_p99", percentile(acks, 0.99), "ms"))
	r.add(figure("report_stored_p99", percentile(acks, 0.99)+w.longest(), "ms"))
	for _, rss := range resident {
		r.steady += rss / float64(len(resident))
	}
	n := float64(r.o.Devices)
	r.add(figure("rss_empty", r.empty/1024, "MiB"))
	r.add(figure("rss_loaded", r.steady/1024, "MiB"))
	r.add(figure("rss_per_device", (r.steady-r.empty)/n, "KiB").atMost(memoryGoal))
	r.add(figure("rss_per_device_peak", (slices.Max(resident)-r.empty)/n, "KiB").atMost(memoryGoal))
	r.add(figure("rss_per_device_enrolled", (r.known-r.empty)/n, "KiB"))
	r.add(figure("rss_per_device_broker", (r.connected-r.known)/n, "KiB"))
	return nil
}

// burst lets everybody speak at once: reports, then events, which are
// acknowledged when they are stored.
func (r *loadRun) burst(ctx context.Context) error {
	stats := r.fleet.Stats()
	took := r.fleet.Burst(ctx, func(i int) error { return r.fleet.Report(i, true) })
	r.add(figure("messages_per_second_reports", float64(r.o.Devices)/took.Seconds(), "1/s"))
	stats.TakeAcks()
	took = r.fleet.Burst(ctx, r.fleet.Event)
	r.add(figure("messages_per_second_events", float64(r.o.Devices)/took.Seconds(), "1/s"))
	r.add(figure("event_stored_p99_burst", percentile(stats.TakeAcks(), 0.99), "ms"))
	return ctx.Err()
}

// writeBehind watches how far reported state is behind: skeind writes it in
// batches, and counts what it has written.
type writeBehind struct {
	mu   sync.Mutex // guards gaps
	gaps []time.Duration
}

// watch looks for the moments at which the count grew.
func (w *writeBehind) watch(ctx context.Context, url, token string) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last float64
	var at time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		n, err := metric(ctx, url, token, "skein_fleet_flushed_total")
		if err != nil || n <= last {
			continue
		}
		now := time.Now()
		if !at.IsZero() {
			w.mu.Lock()
			w.gaps = append(w.gaps, now.Sub(at))
			w.mu.Unlock()
		}
		last, at = n, now
	}
}

// longest is the 99th percentile of the time between two writes: what is
// acknowledged right after one began waits no longer than for the next one's end.
func (w *writeBehind) longest() float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return percentile(w.gaps, 0.99)
}
