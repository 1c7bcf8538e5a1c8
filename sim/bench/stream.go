package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/runtime/mock"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/sim/fault/shaper"
	"github.com/skein-fleet/skein/sim/plane"
	"github.com/skein-fleet/skein/telemetry"
)

// StreamOptions describe the line and what goes over it.
type StreamOptions struct {
	MiB       int
	Bandwidth int64         // bytes per second
	Delay     time.Duration // one way
	Lose      float64       // share of the messages with blocks
	Skeind    []string      // command that starts skeind
	Dir       string        // for the data; empty: a temporary folder
	Progress  func(format string, args ...any)
}

const (
	streamGoal    = 0.7
	streamTarget  = "linux/amd64;ort=1"
	streamTimeout = 15 * time.Minute
)

// Stream measures one artifact over MQTT alone against the same one over HTTPS,
// each through a line of its own of the same make.
func Stream(ctx context.Context, o StreamOptions) (figures []Figure, err error) {
	dir, err := os.MkdirTemp(o.Dir, "skein-bench-stream-")
	if err != nil {
		return nil, fmt.Errorf("make a data folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &agentRun{o: AgentOptions{Skeind: o.Skeind, Progress: o.Progress}, dir: dir}
	if r.plane, err = plane.Child(ctx, o.Skeind, filepath.Join(dir, "skeind")); err != nil {
		return nil, err
	}
	defer r.plane.Close()
	release, err := r.largeRelease(ctx, int64(o.MiB)<<20, streamTarget)
	if err != nil {
		return nil, err
	}
	https := &streamDevice{run: r, o: o, name: "https"}
	link := &streamDevice{run: r, o: o, name: "mqtt", blocked: true}
	for _, d := range []*streamDevice{https, link} {
		if err := d.install(ctx, release); err != nil {
			return r.figures, fmt.Errorf("by %s: %w", d.name, err)
		}
		r.add(figure(d.name+"_goodput", d.goodput()/1e6, "MB/s"))
	}
	whole := float64(int64(o.MiB) << 20)
	r.add(figure("mqtt_goodput_of_https", link.goodput()/https.goodput(), "ratio").atLeast(streamGoal))
	r.add(figure("mqtt_messages_lost", float64(link.lost)/float64(link.came), "ratio"))
	r.add(figure("mqtt_sent_again", (float64(link.bytes)-whole)/whole, "ratio"))
	return r.figures, nil
}

// streamDevice is a real agent in this process behind a bad line.
type streamDevice struct {
	run     *agentRun
	o       StreamOptions
	name    string
	blocked bool // HTTPS does not get through

	mu         sync.Mutex // guards what follows
	began, had time.Time  // of the fetch step
	fetched    chan struct{}
	rng        *rand.Rand
	came, lost int   // messages with blocks
	bytes      int64 // of blocks, before any is lost
}

func (d *streamDevice) goodput() float64 {
	return float64(int64(d.o.MiB)<<20) / d.had.Sub(d.began).Seconds()
}

// install enrols a device and returns when it runs the release, which it got
// by the one way alone.
func (d *streamDevice) install(ctx context.Context, release string) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, streamTimeout, fmt.Errorf("not installed after %s", streamTimeout))
	defer cancel()
	files, err := slot.OpenDir(filepath.Join(d.run.dir, d.name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, files.Close()) }()
	op := d.run.plane.Operator()
	claim, err := op.Claim(ctx, 1, nil)
	if err != nil {
		return err
	}
	id, err := agent.Enroll(ctx, agent.EnrollOptions{ServerURL: d.run.plane.DeviceURL, Claim: claim, Name: d.name, Serial: d.name, Target: streamTarget, Files: files})
	if err != nil {
		return err
	}
	a, err := d.agent(id, files)
	if err != nil {
		return err
	}
	actx, stop := context.WithCancel(ctx)
	var agents sync.WaitGroup
	defer agents.Wait()
	defer stop()
	ended := make(chan error, 1)
	agents.Go(func() { ended <- a.Run(actx) })
	if _, err := op.Fleet.AssignRelease(ctx, &fleetv1.AssignReleaseRequest{Device: id.DeviceID, Release: release}); err != nil {
		return fmt.Errorf("assign the release: %w", err)
	}
	d.run.o.Progress("%s: the device fetches", d.name)
	select {
	case <-d.fetched:
	case err := <-ended:
		return fmt.Errorf("the agent ended: %w", err)
	case <-ctx.Done():
		return fmt.Errorf("%w: %s %q", context.Cause(ctx), a.Status().Summary, a.Status().Reasons)
	}
	for a.Status().Running != release {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", context.Cause(ctx), a.Status().Summary)
		case <-time.After(100 * time.Millisecond):
		}
	}
	for _, s := range a.Status().Sources {
		if s.Name != d.name {
			return fmt.Errorf("%d bytes came by %s", s.Bytes, s.Name)
		}
	}
	return nil
}

func (d *streamDevice) agent(id *agent.Identity, files slot.Files) (*agent.Agent, error) {
	u, err := url.Parse(id.BlobURL)
	if err != nil {
		return nil, fmt.Errorf("blob address: %w", err)
	}
	line := shaper.New(shaper.Profile{Latency: d.o.Delay, Bandwidth: d.o.Bandwidth, Buffer: 4 << 20}, 1)
	direct := line.Dial((&net.Dialer{}).DialContext)
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		if d.blocked && address == u.Host {
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
		}
		return direct(ctx, network, address)
	}
	d.fetched, d.rng = make(chan struct{}), rand.New(rand.NewPCG(1, 1))
	link, err := agent.NewMQTTLink(agent.MQTTOptions{Identity: id, Dial: agent.Dial(direct)})
	if err != nil {
		return nil, err
	}
	return agent.New(agent.Options{
		Identity: id, Link: link, WrapLink: func(l agent.Link) agent.Link { return lossyLink{l, d} }, Dial: dial, Host: streamHost{}, Files: files,
		Runtime: mock.New(mock.Options{}), Logger: slog.New(slog.DiscardHandler), StepHook: d.step, SoakEvery: 100 * time.Millisecond,
	})
}

// step notes when the fetch step begins and ends.
func (d *streamDevice) step(step ota.Step, state wire.StepState) {
	if step != ota.StepFetch {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case state == wire.StepStarted:
		d.began = time.Now()
	case state == wire.StepDone && d.had.IsZero():
		d.had = time.Now()
		close(d.fetched)
	}
}

// lossyLink loses messages with blocks after they crossed the line.
type lossyLink struct {
	agent.Link
	d *streamDevice
}

// Run implements agent.Link.
func (l lossyLink) Run(ctx context.Context, h agent.LinkHandler) error {
	deliver := h.Message
	h.Message = func(kind wire.Kind, payload []byte) {
		if kind != wire.DownChunk || !l.d.loses(payload) {
			deliver(kind, payload)
		}
	}
	return l.Link.Run(ctx, h)
}

func (d *streamDevice) loses(payload []byte) bool {
	var c wire.Chunk
	if wire.Unmarshal(payload, &c) != nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.came++
	d.bytes += int64(len(c.Data))
	if d.rng.Float64() >= d.o.Lose {
		return false
	}
	d.lost++
	return true
}

// streamHost is a machine without anything to measure.
type streamHost struct{}

// Facts implements agent.Host.
func (streamHost) Facts(context.Context) (agent.Facts, error) {
	target, err := ota.ParseTarget(streamTarget)
	return agent.Facts{Target: target, Hardware: "bench", BootID: 1}, err
}

// Readings implements agent.Host.
func (streamHost) Readings(context.Context) ([]telemetry.Reading, error) { return nil, nil }

// DiskFree implements agent.Host.
func (streamHost) DiskFree() (int64, error) { return -1, nil }

// DefaultInterface implements agent.Host.
func (streamHost) DefaultInterface() (string, error) { return "eth0", nil }
