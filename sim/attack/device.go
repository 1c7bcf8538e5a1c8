package attack

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/sim/fault/shaper"
	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/meter/engine"
	"github.com/skein-fleet/skein/telemetry"
)

// deviceOptions change a victim before it boots.
type deviceOptions struct {
	clock    func(time.Time) time.Time // of the device, given the true time
	hook     func(d *device, step ota.Step, st wire.StepState)
	onLoad   func(d *device, w runtime.Workload) // just before the runtime reads the files
	patience time.Duration                       // of downloads that bring nothing: the window
	ownLink  bool                                // the agent makes its link itself, and judges certificates by its own floor
}

// device is the victim: the real agent, a runtime that computes, and an
// application that asks its model all the time.
type device struct {
	w    *world
	o    deviceOptions
	id   string
	dir  string // holds the state folder and nothing else
	line *shaper.Link
	man  *man
	app  application
	trap

	identity *agent.Identity
	files    *slot.Dir

	mu     sync.Mutex // guards what follows
	agent  *agent.Agent
	engine *engine.Engine
	power  *power
	stop   func() error
	dials  []time.Time
}

func (d *device) state() string { return filepath.Join(d.dir, "state") }

// newDevice enrols a device over HTTPS, as the agent does.
func newDevice(ctx context.Context, w *world, o deviceOptions) (*device, error) {
	w.mu.Lock()
	w.devices++
	n := w.devices
	w.mu.Unlock()
	d := &device{w: w, o: o, dir: filepath.Join(w.dir, fmt.Sprintf("device-%d", n)), line: shaper.New(shaper.Profile{}, uint64(n)), man: &man{}}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, err
	}
	files, err := slot.OpenDir(d.state())
	if err != nil {
		return nil, err
	}
	d.files = files
	d.identity, err = agent.Enroll(ctx, agent.EnrollOptions{
		ServerURL: w.plane.DeviceURL, Claim: w.claim, Name: fmt.Sprintf("victim-%d-%d", w.n, n), Serial: fmt.Sprint(n),
		Target: targetText, Files: files, Now: d.now,
	})
	if err != nil {
		return nil, errors.Join(err, files.Close())
	}
	d.id = d.identity.DeviceID
	return d, nil
}

// now is the device's clock.
func (d *device) now() time.Time {
	t := d.w.now()
	d.mu.Lock()
	clock := d.o.clock
	d.mu.Unlock()
	if clock != nil {
		return clock(t)
	}
	return t
}

// setClock changes the device's clock.
func (d *device) setClock(f func(time.Time) time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.o.clock = f
}

// boot starts agent and application.
func (d *device) boot() error {
	d.app.dark.Store(false)
	p := &power{Files: d.files}
	e := engine.New(engine.Options{})
	d.man.mu.Lock()
	d.man.hand = nil
	d.man.mu.Unlock()
	var link agent.Link
	if !d.o.ownLink {
		var err error
		if link, err = agent.NewMQTTLink(agent.MQTTOptions{Identity: d.identity, Dial: d.dial, Now: d.now, BackoffMin: 20 * time.Millisecond, BackoffMax: linkBackoff}); err != nil {
			return err
		}
	}
	a, err := agent.New(agent.Options{
		Identity: d.identity, Link: link, WrapLink: d.man.wrapLink, WrapHTTP: d.man.wrapHTTP, TuneFetch: d.tune, Dial: d.dial,
		Host: host{d}, Runtime: &serving{e, d}, Files: p, Logger: d.w.log, Now: d.now, Version: "attack",
		Heartbeat: time.Second, TelemetryEvery: time.Minute, BlockEvery: time.Minute, CheckEvery: 200 * time.Millisecond, SoakEvery: 20 * time.Millisecond,
		StepHook: func(step ota.Step, st wire.StepState) {
			if d.o.hook != nil {
				d.o.hook(d, step, st)
			}
		},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { ended <- a.Run(ctx) })
	wg.Go(func() { d.app.run(ctx, e) })
	d.mu.Lock()
	defer d.mu.Unlock()
	d.agent, d.engine, d.power = a, e, p
	d.stop = sync.OnceValue(func() error {
		cancel()
		wg.Wait()
		err := <-ended
		if p.off.Load() {
			return nil // it says that the power went
		}
		return err
	})
	return nil
}

// linkBackoff is the longest pause of the link between two tries.
const linkBackoff = 300 * time.Millisecond

// tune makes the fetcher as impatient as a test needs.
func (d *device) tune(f *fetch.Fetcher) {
	f.BaseWait, f.MaxWait, f.Window = 20*time.Millisecond, fetchBackoff, 10*time.Second
	if d.o.patience > 0 {
		f.Window, f.Attempts = d.o.patience, 3
	}
}

// fetchBackoff is the longest pause of a download between two tries.
const fetchBackoff = 200 * time.Millisecond

// kill takes the power away: nothing is written any more.
func (d *device) kill() {
	d.mu.Lock()
	p := d.power
	d.mu.Unlock()
	p.off.Store(true)
	d.app.rest()
	d.app.dark.Store(true)
}

// halt ends agent and application and waits.
func (d *device) halt() error {
	d.mu.Lock()
	stop := d.stop
	d.mu.Unlock()
	if stop == nil {
		return nil
	}
	return stop()
}

// reboot ends what runs and boots again.
func (d *device) reboot() error {
	if err := d.halt(); err != nil {
		return fmt.Errorf("stop the agent: %w", err)
	}
	d.app.rest()
	return d.boot()
}

func (d *device) status() agent.Status {
	d.mu.Lock()
	a := d.agent
	d.mu.Unlock()
	return a.Status()
}

// condition is the message of a condition that the agent holds, or its name.
func (d *device) condition(name string) string {
	for _, c := range d.status().Conditions {
		if c.Name == name {
			return c.Name + ": " + c.Message
		}
	}
	return ""
}

// serving is the runtime of the board, with an ear for the attacker.
type serving struct {
	*engine.Engine
	d *device
}

// Load implements runtime.Runtime.
func (s *serving) Load(ctx context.Context, w runtime.Workload) error {
	if s.d.o.onLoad != nil {
		s.d.o.onLoad(s.d, w)
	}
	return s.Engine.Load(ctx, w)
}

// host is the board as the agent sees it.
type host struct{ d *device }

// Facts implements agent.Host.
func (h host) Facts(context.Context) (agent.Facts, error) {
	t, err := ota.ParseTarget(targetText)
	return agent.Facts{Target: t, Hardware: "test bench", Serial: h.d.identity.Serial}, err
}

// Readings implements agent.Host.
func (h host) Readings(context.Context) ([]telemetry.Reading, error) {
	return []telemetry.Reading{{Series: telemetry.NewSeries(telemetry.GPUUtilization), Time: h.d.now(), Value: 0.5}}, nil
}

// DefaultInterface implements agent.Host.
func (host) DefaultInterface() (string, error) { return "eth0", nil }

// DiskFree implements agent.Host.
func (h host) DiskFree() (int64, error) { return 16 << 30, nil }

// application asks the serving model all the time and keeps what is odd.
type application struct {
	mu      sync.Mutex // guards what follows
	answers int64
	counts  map[int]int64 // answers by the model that gave them
	last    int
	at      time.Time     // of the last answer
	gap     time.Duration // the longest without an answer, while one was expected
	fault   error
	served  bool
	dark    atomic.Bool // the power is off: nothing answers
}

const askEvery = 10 * time.Millisecond

func (a *application) run(ctx context.Context, r runtime.Inferer) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	in := []runtime.Tensor{{Name: meter.InputName, Shape: []int64{1, inputs}, Data: make([]float32, inputs)}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		resp, err := r.Infer(ctx, "", runtime.Request{Inputs: in})
		if ctx.Err() != nil {
			return
		}
		if !a.dark.Load() {
			a.note(resp, err)
		}
	}
}

func (a *application) note(resp runtime.Response, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	switch {
	case errors.Is(err, runtime.ErrNotLoaded) && !a.served:
		return
	case err != nil:
		if a.fault == nil {
			a.fault = err
		}
		return
	}
	if a.served {
		a.gap = max(a.gap, now.Sub(a.at))
	}
	a.served, a.at, a.last = true, now, int(resp.Outputs[0].Data[0])
	a.answers++
	if a.counts == nil {
		a.counts = map[int]int64{}
	}
	a.counts[a.last]++
}

// rest is told that the device stops on purpose.
func (a *application) rest() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.served = false
}

// mark forgets what was, and begins to watch.
func (a *application) mark() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts, a.gap, a.fault = map[int]int64{}, 0, nil
	a.at = time.Now()
}

// seen are the answers since the mark by model, the longest gap, and the first
// failure.
func (a *application) seen() (counts map[int]int64, gap time.Duration, fault error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	counts = map[int]int64{}
	maps.Copy(counts, a.counts)
	gap = a.gap
	if a.served {
		gap = max(gap, time.Since(a.at))
	}
	return counts, gap, a.fault
}

// power is the disk as one boot sees it: nothing reaches it after the power went.
type power struct {
	slot.Files
	off atomic.Bool
}

var errPower = errors.New("the power is off")

func (p *power) on() error {
	if p.off.Load() {
		return errPower
	}
	return nil
}

// WriteFile implements slot.Files.
func (p *power) WriteFile(name string, data []byte) error {
	if err := p.on(); err != nil {
		return err
	}
	return p.Files.WriteFile(name, data)
}

// Remove implements slot.Files.
func (p *power) Remove(name string) error {
	if err := p.on(); err != nil {
		return err
	}
	return p.Files.Remove(name)
}

// Rename implements slot.Files.
func (p *power) Rename(from, to string) error {
	if err := p.on(); err != nil {
		return err
	}
	return p.Files.Rename(from, to)
}

// MkdirAll implements slot.Files.
func (p *power) MkdirAll(name string) error {
	if err := p.on(); err != nil {
		return err
	}
	return p.Files.MkdirAll(name)
}

// OpenAppend implements slot.Files.
func (p *power) OpenAppend(name string) (slot.AppendFile, error) {
	if err := p.on(); err != nil {
		return nil, err
	}
	f, err := p.Files.OpenAppend(name)
	if err != nil {
		return nil, err
	}
	return &powered{f, p}, nil
}

type powered struct {
	slot.AppendFile
	p *power
}

// Write implements slot.AppendFile.
func (f *powered) Write(b []byte) (int, error) {
	if err := f.p.on(); err != nil {
		return 0, err
	}
	return f.AppendFile.Write(b)
}

// Truncate implements slot.AppendFile.
func (f *powered) Truncate(size int64) error {
	if err := f.p.on(); err != nil {
		return err
	}
	return f.AppendFile.Truncate(size)
}
