package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/skein-fleet/skein/sim/fault"
	"github.com/skein-fleet/skein/sim/fault/shaper"
	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/meter/digits"
	"github.com/skein-fleet/skein/sim/plane"
	"github.com/skein-fleet/skein/sim/scenario/play"
	"github.com/skein-fleet/skein/sim/virtual"
)

type runOptions struct {
	devices   int
	mix       string
	seed      uint64
	faults    []string
	scenarios []string
	server    string
	claim     string
	http      string
	skeind    string
	duration  time.Duration
	data      string
	digits    string
	perSecond int
	blocks    time.Duration
	events    string
	stretch   float64
	tune      func(*play.Options) // of scenarios
}

func (a *app) runCmd() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "run a fleet of virtual Jetsons, or scenario files",
		Long: `run starts virtual Jetsons: each one is the real agent on a modelled board, with an
application that reads meters. They enrol at the skeind that --server and --claim
name, or at one in this process. Faults strike as --fault says.

With --scenario each file is run on a fleet and a skeind of its own, and the exit
code is 3 when an expectation failed.`,
		Example: `  skein-sim run --devices 60 --seed 1
  skein-sim run --devices 20 --mix nano=10,orin-nano=10 --fault cut:device=3:at=10s:for=20s
  skein-sim run --devices 5 --server https://skein.example:8443 --claim skein1.…
  skein-sim run --scenario lost-messages.scn --scenario heat.scn
  skein-sim run --scenario sim/scenario/testdata/ota-*.txtar`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(o.scenarios) > 0 {
				o.scenarios = append(o.scenarios, args...) // what a shell made of a pattern
				return a.runScenarios(cmd.Context(), o)
			}
			if err := noArgs(cmd, args); err != nil {
				return err
			}
			return a.runFleet(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.devices, "devices", 60, "how many")
	f.StringVar(&o.mix, "mix", "default", "boards: default, or as in nano=10,orin-nano=20")
	f.Uint64Var(&o.seed, "seed", 1, "equal seeds give equal fleets and faults")
	f.StringArrayVar(&o.faults, "fault", nil, "fault, as in cut:device=3:at=10s:for=20s (repeatable; grammar in sim/scenario/README.md)")
	f.StringArrayVar(&o.scenarios, "scenario", nil, "scenario file to run (repeatable; arguments are more of them)")
	f.StringVar(&o.server, "server", "", "device address of a running skeind, https://HOST:PORT; empty runs one in this process")
	f.StringVar(&o.claim, "claim", "", "claim token for --server, as printed by skein token create")
	f.StringVar(&o.http, "http", "127.0.0.1:8080", "API and dashboard of the skeind in this process")
	f.StringVar(&o.skeind, "skeind", "", "skeind binary for scenarios that kill it; empty looks beside this program and in PATH")
	f.DurationVar(&o.duration, "duration", 0, "end after so long; 0 means until interrupted")
	f.StringVar(&o.data, "data", "", "folder for all data; empty: a temporary one, removed at the end")
	f.StringVar(&o.digits, "digits", "", "folder of the MNIST files; empty looks in the module cache")
	f.IntVar(&o.perSecond, "per-second", 8, "inference requests per second and device")
	f.DurationVar(&o.blocks, "block-every", 5*time.Second, "time between two blocks of telemetry")
	f.Float64Var(&o.stretch, "stretch", 1, "with --scenario: multiply the script's times, for a slow machine")
	f.StringVar(&o.events, "events", "", "with --scenario: file for the log of events")
	return cmd
}

// runFleet runs devices until the duration is over or ctx ends.
func (a *app) runFleet(ctx context.Context, o runOptions) (err error) {
	faults, mix, err := o.parse()
	if err != nil {
		return usageError{err}
	}
	dir, remove, err := dataDir(o.data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	var seen *digits.Set // nobody looks without an application
	if o.perSecond > 0 {
		d, err := digits.Load(ctx, o.digits)
		if err != nil {
			return err
		}
		seen = &d.Test
	}
	fo := virtual.FleetOptions{
		Devices: o.devices, Mix: mix, Seed: o.seed, Dir: filepath.Join(dir, "devices"), ServerURL: o.server,
		Claim:  func(context.Context, map[string]string) (string, error) { return o.claim, nil },
		Digits: seen, PerSecond: o.perSecond, Logger: a.logger(),
		Network: func(n int) shaper.Profile { return virtual.Networks[n%len(virtual.Networks)] },
		Pace:    virtual.Pace{TelemetryEvery: time.Second, BlockEvery: o.blocks, Heartbeat: 30 * time.Second, CheckEvery: time.Second},
	}
	if o.server == "" {
		p, err := plane.InProcess(ctx, filepath.Join(dir, "skeind"), o.http, a.logger())
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.Close()) }()
		op := p.Operator()
		fo.ServerURL = p.DeviceURL
		fo.Claim = func(ctx context.Context, labels map[string]string) (string, error) {
			return op.Claim(ctx, o.devices, labels)
		}
		fmt.Fprintf(a.stderr, "dashboard %s, devices %s\ncommand line: skein login --server %s --token %s\n", p.URL, p.DeviceURL, p.URL, p.Token)
	}
	fleet, err := virtual.NewFleet(ctx, fo)
	if err != nil {
		return err
	}
	err = a.live(ctx, fleet, faults, o.duration)
	return errors.Join(err, fleet.Close(), a.summarise(fleet))
}

// parse reads the flags that have a grammar.
func (o *runOptions) parse() ([]fault.Fault, jetson.Mix, error) {
	if o.devices < 1 || o.devices > 10_000 {
		return nil, nil, fmt.Errorf("--devices %d: want 1 to 10000", o.devices)
	}
	if (o.server == "") != (o.claim == "") {
		return nil, nil, errors.New("--server and --claim belong together")
	}
	mix, err := jetson.ParseMix(o.mix)
	if err != nil {
		return nil, nil, fmt.Errorf("--mix: %w", err)
	}
	var faults []fault.Fault
	for _, text := range o.faults {
		f, err := fault.Parse(text)
		if err != nil {
			return nil, nil, fmt.Errorf("--fault %s: %w", text, err)
		}
		faults = append(faults, f)
	}
	return faults, mix, nil
}

// dataDir returns the folder for data and what to do with it at the end.
func dataDir(dir string) (string, func() error, error) {
	if dir != "" {
		return dir, func() error { return nil }, os.MkdirAll(dir, 0o755)
	}
	dir, err := os.MkdirTemp("", "skein-sim-")
	if err != nil {
		return "", nil, fmt.Errorf("make a data folder: %w", err)
	}
	return dir, func() error { return os.RemoveAll(dir) }, nil
}

// live runs the fleet with its faults and shows one line of status.
func (a *app) live(ctx context.Context, fleet *virtual.Fleet, faults []fault.Fault, length time.Duration) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	start := time.Now()
	var end <-chan time.Time
	if length > 0 {
		t := time.NewTimer(length)
		defer t.Stop()
		end = t.C
	}
	done := make(chan error, 1)
	go func() { done <- fleet.Run(ctx) }()
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, x := range faults {
		wg.Go(func() {
			if sleep(ctx, x.At) {
				fleet.Suffer(ctx, x, uint64(i), func(text string) { a.line(start, text) })
			}
		})
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done: // an interrupt is the usual end
			return err
		case <-end:
			stop()
			end = nil
		case <-tick.C:
			fmt.Fprintf(a.stderr, "\r\x1b[K%5.0fs  %s", time.Since(start).Seconds(), view(fleet))
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (a *app) line(start time.Time, text string) {
	fmt.Fprintf(a.stderr, "\r\x1b[K%5.1fs  %s\n", time.Since(start).Seconds(), text)
}

// fleetView is what a fleet looks like at one moment.
type fleetView struct {
	Devices   int            `json:"devices"`
	Connected int            `json:"connected"`
	Releases  map[string]int `json:"devices_per_release"`
	Updating  int            `json:"updating"`
	Failed    int            `json:"failed"`
	Throttled int            `json:"throttled"`
	Dead      int            `json:"dead"`
	Requests  int64          `json:"inference_requests"`
	Dropped   int64          `json:"inference_requests_dropped"`
	Restarts  int            `json:"restarts"`
	Bytes     int64          `json:"bytes_received_by_devices"`
}

func view(fleet *virtual.Fleet) fleetView {
	v := fleetView{Releases: map[string]int{}}
	for _, d := range fleet.Devices() {
		v.add(d)
	}
	return v
}

func (v *fleetView) add(d *virtual.Device) {
	v.Devices++
	v.Restarts += max(0, d.Starts()-1)
	v.Bytes += d.BytesReceived()
	if d.Dead() {
		v.Dead++
	} else if d.Throttled() {
		v.Throttled++
	}
	w := d.Work()
	v.Dropped += w.Errors
	for _, n := range w.Requests {
		v.Requests += n
	}
	st, ok := d.Status()
	if !ok {
		return
	}
	if st.Link == "connected" {
		v.Connected++
	}
	if st.RunningName != "" {
		v.Releases[st.RunningName]++
	}
	switch st.Phase.String() {
	case "updating":
		v.Updating++
	case "failed":
		v.Failed++
	}
}

// String is the line of status.
func (v fleetView) String() string {
	text := fmt.Sprintf("%d of %d connected, %d updating, %d failed, %d requests, %d dropped, on %v", v.Connected, v.Devices, v.Updating, v.Failed, v.Requests, v.Dropped, v.Releases)
	if v.Throttled+v.Dead > 0 {
		text += fmt.Sprintf(", %d throttled, %d dead", v.Throttled, v.Dead)
	}
	return text
}

// summarise prints what became of the fleet. Its agents have ended.
func (a *app) summarise(fleet *virtual.Fleet) error {
	v := view(fleet)
	fmt.Fprint(a.stderr, "\r\x1b[K")
	return a.emit(v, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "devices    %d, restarted %d times\nreleases   %v\nrequests   %d answered, %d dropped\nreceived   %d bytes over all lines\n",
			v.Devices, v.Restarts, v.Releases, v.Requests, v.Dropped, v.Bytes)
		return err
	})
}
