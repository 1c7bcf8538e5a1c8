// Package virtual runs the real agent on a modelled board: the agent's link,
// updates and telemetry are those of the shipped program, the board under it
// (heat, clocks, memory, tegrastats, network, disk, wall clock) is modelled, and
// an application reads meters on it with real digits. It owns the life of such
// devices and the injection of faults. Packages of sim import it.
package virtual

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/sim/fault/shaper"
	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/meter/digits"
	"github.com/skein-fleet/skein/sim/meter/engine"
	"github.com/skein-fleet/skein/telemetry"
)

// Options describe one virtual device.
type Options struct {
	Number int    // from 1; it makes the name and, with Seed, every draw
	Model  string // key of a jetson.Model
	Seed   uint64
	Labels map[string]string

	ServerURL string // device port of skeind
	Claim     string // claim token; used when Files hold no identity
	Files     slot.Files
	Models    *engine.Models // parsed models shared by a fleet
	Digits    *digits.Set    // what the cameras see
	PerSecond int            // inference requests per second
	Network   shaper.Profile
	Logger    *slog.Logger

	TelemetryEvery, BlockEvery, Heartbeat, CheckEvery time.Duration
	HeatRate                                          float64 // of jetson.Options
	// Servers makes the runtime of one start of the agent, on a device whose
	// model servers really run on this machine: it has this machine's target and
	// no board's pace. nil is the modelled server.
	Servers func() (agent.Servers, error)
	// Zone is where the device stands; nil is UTC.
	Zone *time.Location
	// Interface is that of the default route at first; empty is eth0.
	Interface string
}

// Device is one virtual device. Its methods are safe for concurrent use.
type Device struct {
	o        Options
	name     string
	board    *board
	storage  *storage
	line     *shaper.Link
	radio    *radio
	firewall firewall
	revive   chan struct{} // a person gives a dead board its power back

	mu      sync.Mutex // guards what follows
	agent   *agent.Agent
	server  inference
	id      string
	off     context.CancelFunc // takes the power away
	disk    *disk              // of this boot
	downFor time.Duration
	starts  int
	reboot  bool   // the machine restarts, not its agent alone
	iface   string // of the default route
	cuts    int    // faults that hold the line down
	holes   int    // and those that let nothing pass
}

// New makes a device; it boots in Run.
func New(o Options) (*Device, error) {
	model, err := jetson.Lookup(o.Model)
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	seed := o.Seed ^ uint64(o.Number)*0x9e3779b97f4a7c15
	start := time.Now()
	b, err := jetson.New(model, jetson.Options{Seed: seed, Start: start, HeatRate: o.HeatRate})
	if err != nil {
		return nil, fmt.Errorf("device %d: %w", o.Number, err)
	}
	return &Device{
		o: o, name: fmt.Sprintf("cam-%03d", o.Number), board: newBoard(b, start), storage: &storage{Files: o.Files},
		iface: cmp.Or(o.Interface, "eth0"),
		line:  shaper.New(o.Network, seed), radio: &radio{rng: rand.New(rand.NewPCG(seed, 0x726164696f))}, revive: make(chan struct{}, 1),
	}, nil
}

// Run boots the device and keeps it running until ctx ends. A power cut stops
// everything on it at once and boots it again.
func (d *Device) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		var dark error
		d.mu.Lock()
		again := d.starts == 0 || d.reboot // else the agent alone was killed
		d.reboot = false
		d.mu.Unlock()
		d.board.with(func(b *jetson.Board) {
			if c := b.Boot(); again || c != nil && c.Active != c.Current {
				dark = b.PowerOn()
			}
		})
		if dark != nil {
			return fmt.Errorf("device %s: %w", d.name, dark)
		}
		power, off := context.WithCancel(ctx)
		disk := &disk{storage: d.storage}
		d.mu.Lock()
		d.off, d.disk = off, disk
		server, letGo, err := d.newServer()
		if err != nil {
			d.mu.Unlock()
			off()
			return fmt.Errorf("device %s: %w", d.name, err)
		}
		d.server = server
		d.starts++
		d.mu.Unlock()
		err = errors.Join(d.boot(power, disk, server), letGo())
		off()
		d.mu.Lock()
		if ctx.Err() == nil { // else they stay for a last look
			d.agent, d.server = nil, nil // what was loaded is gone with the power
		}
		down, dead := d.downFor, d.Dead()
		d.downFor = 0
		d.mu.Unlock()
		switch {
		case errors.Is(err, slot.ErrDiskFull): // it is started again, as its supervisor does
			d.o.Logger.Warn("agent ended", "name", d.name, "err", err)
			down = max(down, time.Second)
		case err != nil && ctx.Err() == nil:
			return fmt.Errorf("device %s: %w", d.name, err)
		}
		if dead {
			select {
			case <-ctx.Done():
			case <-d.revive:
			}
		}
		wait(ctx, down)
		d.board.reboot(time.Now())
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// boot enrols if need be and runs the agent and the application until the
// power goes. It returns nil when it went.
func (d *Device) boot(ctx context.Context, disk *disk, server inference) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { d.live(ctx, server) })
	identity, err := d.enroll(ctx, disk)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	a, err := agent.New(agent.Options{
		Identity: identity, Host: host{d}, Runtime: server, Files: disk, Dial: d.dial, WrapLink: d.radio.wrap,
		Engines: d.engines(), Boot: d.bootloader(), Power: d.power(), BoardLine: d.Tegrastats, PeerListen: "127.0.0.1:0", PeerCache: 256 << 20, Logger: d.o.Logger.With("name", d.name), Now: d.now, Zone: cmp.Or(d.o.Zone, time.UTC), Version: "sim",
		Heartbeat: d.o.Heartbeat, TelemetryEvery: d.o.TelemetryEvery, BlockEvery: d.o.BlockEvery, CheckEvery: d.o.CheckEvery,
	})
	if err != nil {
		return d.unlessOff(disk, err)
	}
	d.mu.Lock()
	d.agent, d.id = a, identity.DeviceID
	d.mu.Unlock()
	return d.unlessOff(disk, a.Run(ctx))
}

// unlessOff drops an error that only says that the power went.
func (d *Device) unlessOff(disk *disk, err error) error {
	if disk.off.Load() {
		return nil
	}
	return err
}

// enroll tries until the control plane answers, as a box that was just plugged
// in does.
func (d *Device) enroll(ctx context.Context, disk *disk) (*agent.Identity, error) {
	for attempt := 0; ; attempt++ {
		id, err := agent.Enroll(ctx, agent.EnrollOptions{
			ServerURL: d.o.ServerURL, Claim: d.o.Claim, Name: d.name, Serial: d.serial(), Labels: d.o.Labels,
			Target: d.target().String(), Hardware: d.hardware(), Files: disk, Dial: d.dial, Now: d.now,
		})
		if err == nil || ctx.Err() != nil || errors.Is(err, agent.ErrBadClaim) || errors.Is(err, agent.ErrClaimRefused) {
			return id, err
		}
		d.o.Logger.Warn("enrol", "name", d.name, "err", err)
		wait(ctx, rand.N(time.Second<<min(attempt, 5)))
	}
}

const step = 250 * time.Millisecond

// live lets time pass on the board and runs its application. A board that
// switches itself off takes the power of everything on it.
func (d *Device) live(ctx context.Context, server inference) {
	app := &application{
		board: d.board, infer: server, test: d.o.Digits, perTick: max(1, d.o.PerSecond/int(time.Second/step)),
		rng: rand.New(rand.NewPCG(d.o.Seed, uint64(d.o.Number))),
	}
	if d.o.PerSecond == 0 || d.o.Digits == nil {
		app.perTick = 0
	}
	tick := time.NewTicker(step)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			app.tick(ctx)
			d.board.live(time.Now())
			if d.Dead() {
				d.Kill(0)
				return
			}
		}
	}
}

func (d *Device) dial(ctx context.Context, network, address string) (net.Conn, error) {
	var base net.Dialer
	if !d.isHTTPS(address) {
		return d.line.Dial(base.DialContext)(ctx, network, address)
	}
	return d.firewall.dial(ctx, network, address, d.line.Dial(base.DialContext))
}

func (d *Device) now() time.Time { return d.board.now(time.Now()) }

func (d *Device) serial() (s string) {
	d.board.with(func(b *jetson.Board) { s = b.Serial() })
	return s
}

func (d *Device) hardware() (s string) {
	d.board.with(func(b *jetson.Board) { s = b.Model().Product })
	return s
}

// host is the board as the agent sees it.
type host struct{ d *Device }

// Facts implements agent.Host.
func (h host) Facts(context.Context) (agent.Facts, error) {
	h.d.mu.Lock()
	starts := h.d.starts
	h.d.mu.Unlock()
	return agent.Facts{
		Target: h.d.target(), Hardware: h.d.hardware(), Serial: h.d.serial(),
		BootID: h.d.o.Seed<<32 ^ uint64(h.d.o.Number)<<12 ^ uint64(starts),
	}, nil
}

// Readings implements agent.Host.
func (h host) Readings(context.Context) ([]telemetry.Reading, error) {
	return h.d.board.readings(h.d.now()), nil
}

// DiskFree implements agent.Host.
func (h host) DiskFree() (int64, error) { return h.d.storage.free(), nil }

// DefaultInterface implements agent.Host.
func (h host) DefaultInterface() (string, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	return h.d.iface, nil
}

// SetInterface changes the network interface of the default route, as when the
// cable is pulled and a modem takes over.
func (d *Device) SetInterface(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.iface = name
}

// Labels gives device number n of a fleet its labels: a site and a ring.
func Labels(n int) map[string]string {
	sites := []string{"lyon", "turin", "ghent", "porto", "graz", "aarhus"}
	ring := "broad"
	if n%5 == 0 {
		ring = "early"
	}
	return map[string]string{"site": sites[n%len(sites)], "ring": ring, "rack": strconv.Itoa(n % 4)}
}
