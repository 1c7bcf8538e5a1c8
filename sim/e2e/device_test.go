package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/meter/engine"
	"github.com/skein-fleet/skein/telemetry"
	"github.com/skein-fleet/skein/telemetry/block"
)

// device is the real agent with an application that asks its model all the time.
type device struct {
	t      testing.TB
	id     string
	files  *disk
	engine *engine.Engine
	tap    *tap
	opts   agent.Options
	stop   func() // ends agent and application and waits; again does nothing

	agent atomic.Pointer[agent.Agent]
	app   application
}

// disk is a folder that can be full.
type disk struct {
	slot.Files
	full atomic.Bool
}

func (d *disk) check(name string) error {
	if d.full.Load() {
		return fmt.Errorf("write %s: %w", name, slot.ErrDiskFull)
	}
	return nil
}

// WriteFile implements slot.Files.
func (d *disk) WriteFile(name string, data []byte) error {
	if err := d.check(name); err != nil {
		return err
	}
	return d.Files.WriteFile(name, data)
}

// OpenAppend implements slot.Files.
func (d *disk) OpenAppend(name string) (slot.AppendFile, error) {
	f, err := d.Files.OpenAppend(name)
	if err != nil {
		return nil, err
	}
	return &appendFile{f, d, name}, nil
}

type appendFile struct {
	slot.AppendFile
	disk *disk
	name string
}

// Write implements slot.AppendFile.
func (f *appendFile) Write(p []byte) (int, error) {
	if err := f.disk.check(f.name); err != nil {
		return 0, err
	}
	return f.AppendFile.Write(p)
}

// Facts implements agent.Host.
func (d *device) Facts(context.Context) (agent.Facts, error) {
	target, err := ota.ParseTarget(testTarget)
	return agent.Facts{Target: target, Hardware: "test bench", Serial: d.id, BootID: 7}, err
}

// Readings implements agent.Host.
func (d *device) Readings(context.Context) ([]telemetry.Reading, error) {
	return []telemetry.Reading{{Series: telemetry.NewSeries(telemetry.GPUUtilization), Time: time.Now(), Value: 0.5}}, nil
}

// DefaultInterface implements agent.Host.
func (d *device) DefaultInterface() (string, error) { return "eth0", nil }

// DiskFree implements agent.Host.
func (d *device) DiskFree() (int64, error) {
	if d.files.full.Load() {
		return 0, nil
	}
	return 16 << 30, nil
}

// enroll makes a device with a claim of its own, over HTTPS as the agent does.
func (s *server) enroll(change ...func(*agent.EnrollOptions)) *device {
	s.t.Helper()
	files, err := slot.OpenDir(filepath.Join(s.t.TempDir(), "device"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { files.Close() })
	d := &device{t: s.t, files: &disk{Files: files}, tap: &tap{}, stop: func() {}}
	o := agent.EnrollOptions{ServerURL: s.url, Claim: s.claim(1), Name: "cam-" + fmt.Sprint(serials.Add(1)), Serial: "S1", Target: testTarget, Files: d.files}
	for _, c := range change {
		c(&o)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	id, err := agent.Enroll(ctx, o)
	if err != nil {
		s.t.Fatal(err)
	}
	d.id = id.DeviceID
	d.opts = agent.Options{
		Identity: id, Host: d, Files: d.files, WrapLink: d.tap.wrap, Logger: logger(), Version: "e2e", Now: o.Now, Floor: o.Floor,
		Heartbeat: time.Second, TelemetryEvery: 500 * time.Millisecond, BlockEvery: time.Second, CheckEvery: 200 * time.Millisecond, SoakEvery: 20 * time.Millisecond,
	}
	if o.Now == nil { // the default link judges by the agent's clock, and waits longer
		d.opts.Link, err = agent.NewMQTTLink(agent.MQTTOptions{Identity: id, BackoffMin: 20 * time.Millisecond, BackoffMax: 300 * time.Millisecond})
		if err != nil {
			s.t.Fatal(err)
		}
	}
	s.t.Cleanup(func() { d.stop() })
	return d
}

var serials atomic.Int64

// run boots the device.
func (d *device) run() *device {
	d.t.Helper()
	d.engine = engine.New(engine.Options{})
	d.opts.Runtime = d.engine
	a, err := agent.New(d.opts)
	if err != nil {
		d.t.Fatal(err)
	}
	d.agent.Store(a)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.Run(ctx); err != nil {
			d.t.Errorf("agent: %v", err)
		}
	})
	wg.Go(func() { d.app.run(ctx, d.engine) })
	d.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	return d
}

// boot enrols a device, runs it and brings it to a release.
func (s *server) boot(name string, change ...func(*agent.EnrollOptions)) *device {
	s.t.Helper()
	d := s.enroll(change...).run()
	s.settle(d, name)
	return d
}

// settle assigns a release and waits until the device serves it and the
// control plane knows.
func (s *server) settle(d *device, name string) {
	s.t.Helper()
	s.assign(d.id, name)
	s.settled(d, name)
}

func (s *server) settled(d *device, name string) {
	s.t.Helper()
	defer func() {
		if s.t.Failed() {
			s.t.Logf("device: %s %q", d.status().Summary, d.status().Reasons)
		}
	}()
	until(s.t, "the device to run meter@"+name, func() bool { return s.runs(d.id, name) && d.status().RunningName == "meter@"+name })
}

func (d *device) status() agent.Status { return d.agent.Load().Status() }

// condition is the message of a condition that the agent holds, empty for none.
func (d *device) condition(name string) string {
	for _, c := range d.status().Conditions {
		if c.Name == name {
			return orDefault(c.Message, name)
		}
	}
	return ""
}

// condition is the same as the control plane knows it.
func (s *server) condition(device, name string) string {
	for _, c := range s.get(device).GetConditions() {
		if c.GetName() == name {
			return orDefault(c.GetMessage(), name)
		}
	}
	return ""
}

// serves checks that inference never failed and goes on now.
func (d *device) serves() {
	d.t.Helper()
	n := d.app.answers.Load()
	until(d.t, "more answers of the model", func() bool { return d.app.answers.Load() > n+2 })
	if err := d.app.fault.Load(); err != nil {
		d.t.Fatalf("inference failed: %v", *err)
	}
}

// application asks the serving model all the time.
type application struct {
	answers atomic.Int64
	bias    atomic.Int64 // of the last answer
	fault   atomic.Pointer[error]
}

func (a *application) run(ctx context.Context, r runtime.Inferer) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	served := false
	in := []runtime.Tensor{{Name: meter.InputName, Shape: []int64{1, 4}, Data: []float32{0, 0, 0, 0}}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		resp, err := r.Infer(ctx, "", runtime.Request{Inputs: in})
		switch {
		case ctx.Err() != nil || errors.Is(err, runtime.ErrNotLoaded) && !served:
		case err != nil:
			a.fault.CompareAndSwap(nil, &err)
		default:
			served = true
			a.bias.Store(int64(resp.Outputs[0].Data[0]))
			a.answers.Add(1)
		}
	}
}

// tap stands on the device's line: it says things in the control plane's
// place, drops messages, and remembers what was said and acknowledged.
type tap struct {
	mu      sync.Mutex // guards what follows
	handler *agent.LinkHandler
	drop    func(wire.Kind) bool
	down    [][]byte     // desired states that came
	events  []wire.Event // acknowledged
	blocks  [][]byte     // of telemetry, acknowledged
}

func (p *tap) wrap(l agent.Link) agent.Link { return &tapped{l, p} }

type tapped struct {
	agent.Link
	p *tap
}

// Run implements agent.Link.
func (l *tapped) Run(ctx context.Context, h agent.LinkHandler) error {
	deliver := h.Message
	h.Message = func(kind wire.Kind, payload []byte) {
		l.p.mu.Lock()
		lost := l.p.drop != nil && l.p.drop(kind)
		if kind == wire.DownDesired && !lost {
			l.p.down = append(l.p.down, payload)
		}
		l.p.mu.Unlock()
		if !lost {
			deliver(kind, payload)
		}
	}
	direct := h
	direct.Message = deliver
	l.p.mu.Lock()
	l.p.handler = &direct
	l.p.mu.Unlock()
	return l.Link.Run(ctx, h)
}

// Publish implements agent.Link.
func (l *tapped) Publish(ctx context.Context, kind wire.Kind, payload []byte) error {
	err := l.Link.Publish(ctx, kind, payload)
	if err != nil {
		return err
	}
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	switch kind {
	case wire.UpEvent:
		var e wire.Event
		if err := wire.Unmarshal(payload, &e); err != nil {
			return fmt.Errorf("own event: %w", err)
		}
		l.p.events = append(l.p.events, e)
	case wire.UpTelemetry:
		var m wire.Telemetry
		if err := wire.Unmarshal(payload, &m); err != nil {
			return fmt.Errorf("own telemetry: %w", err)
		}
		l.p.blocks = append(l.p.blocks, m.Block)
	}
	return nil
}

// say hands the device a message as if the control plane had sent it.
func (p *tap) say(kind wire.Kind, payload []byte) {
	p.mu.Lock()
	h := p.handler
	p.mu.Unlock()
	h.Message(kind, payload)
}

// desired are the desired states that came down, oldest first.
func (p *tap) desired() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([][]byte(nil), p.down...)
}

// acknowledged are the events that the control plane has taken.
func (p *tap) acknowledged() []wire.Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]wire.Event(nil), p.events...)
}

// samples are the times in unix milliseconds at which the acknowledged blocks
// say something of a series.
func (p *tap) samples(t testing.TB, name string) (out []int64) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	schemas := map[block.SchemaID]*block.Schema{}
	for _, b := range p.blocks {
		r, err := block.NewReader(b, func(id block.SchemaID) *block.Schema { return schemas[id] })
		if err != nil {
			t.Fatal(err)
		}
		schemas[r.Schema().ID()] = r.Schema()
		values := make([]float64, len(r.Times()))
		for _, spec := range r.Schema().Specs() {
			if err := r.Next(values); err != nil {
				t.Fatal(err)
			}
			for i, v := range values {
				if spec.Series.Name == name && !math.IsNaN(v) {
					out = append(out, r.Times()[i])
				}
			}
		}
	}
	return out
}

// keptSamples checks that the control plane answers with every sample of a
// series that it acknowledged.
func (s *server) keptSamples(d *device) {
	s.t.Helper()
	var want []int64
	until(s.t, "acknowledged telemetry", func() bool {
		want = d.tap.samples(s.t, telemetry.GPUUtilization)
		return len(want) > 0
	})
	query := url.QueryEscape(telemetry.GPUUtilization + `{device="` + d.id + `"}[1h]`)
	status, body := s.get1(&http.Client{Transport: bearer(s.token)}, s.http, "/api/v1/query?query="+query)
	var answer struct {
		Data struct {
			Result []struct{ Values [][2]any }
		}
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != 200 {
		s.t.Fatalf("query: %d %s, %v", status, body, err)
	}
	have := map[int64]bool{}
	for _, r := range answer.Data.Result {
		for _, v := range r.Values {
			have[int64(math.Round(1000*v[0].(float64)))] = true
		}
	}
	missing := 0
	for _, at := range want {
		if !have[at] {
			missing++
		}
	}
	if missing > 0 {
		s.t.Errorf("%d of %d acknowledged samples are lost", missing, len(want))
	}
}

// kept checks that the control plane has every event and sample that it
// acknowledged.
func (s *server) kept(d *device) {
	s.t.Helper()
	s.keptSamples(d)
	acknowledged := d.tap.acknowledged() // before the control plane is asked
	have := map[string]int{}
	for _, e := range s.events(d.id) {
		have[fmt.Sprint(e.GetKind(), e.GetStep(), e.GetMessage(), e.GetTime().AsTime().UnixMilli())]++
	}
	for _, e := range acknowledged {
		key := fmt.Sprint(e.Kind, e.Step, e.Message, e.Time)
		if have[key]--; have[key] < 0 {
			s.t.Errorf("acknowledged event is lost: %s %s %q", e.Kind, e.Step, strings.TrimSpace(e.Message))
		}
	}
}
