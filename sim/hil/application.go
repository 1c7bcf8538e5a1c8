package hil

import (
	"context"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/meter/digits"
	"github.com/skein-fleet/skein/sim/virtual"
)

// work is what the application on a device did so far.
type work struct {
	requests, wrong map[string]int64 // by model version
	errors          int64
	served          bool // something answered since the boot
	last            ota.Digest
	lastAt          time.Time
}

const (
	tickEvery = 250 * time.Millisecond
	// honestLatency is what an inference of the meter model costs on the board.
	honestLatency = 4 * time.Millisecond
	inferTimeout  = 2 * time.Second
)

// tap is the socket at which applications on the device ask the model.
func (d *Device) tap() string { return tapOf(d.socket()) }

// tapOf is the agent's own choice of a socket beside its local one.
func tapOf(socket string) string { return strings.TrimSuffix(socket, ".sock") + "-tap.sock" }

// apply is the application: it reads meters at a rate and checks the answers
// against the truth.
func (d *Device) apply(ctx context.Context) {
	if d.fleet.PerSecond == 0 || d.fleet.Digits == nil {
		return
	}
	rng := rand.New(rand.NewPCG(d.fleet.Seed, uint64(d.n)))
	client := &http.Client{Timeout: inferTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 2,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.tap())
		}}}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		release := ota.Digest(d.status(ctx).GetDevice().GetRunningRelease())
		if release == "" {
			continue // nothing was ever installed
		}
		for range max(1, d.fleet.PerSecond/int(time.Second/tickEvery)) {
			d.ask(ctx, client, rng, release)
		}
	}
}

// ask sends one request and books what came of it.
func (d *Device) ask(ctx context.Context, h *http.Client, rng *rand.Rand, release ota.Digest) {
	test := d.fleet.Digits
	i := rng.IntN(len(test.Images))
	k := kserve.Client{URL: "http://tap", HTTP: h}
	d.mu.Lock()
	before := d.process
	d.mu.Unlock()
	resp, err := k.Infer(ctx, meter.ModelName, "", runtime.Request{
		Inputs: []runtime.Tensor{{Name: meter.InputName, Shape: []int64{1, 1, digits.Side, digits.Side}, Data: test.Images[i].Floats(nil)}},
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	if ctx.Err() != nil || before == nil || d.process != before || d.killed {
		return // the device goes down or came up meanwhile
	}
	w := &d.work
	if err != nil {
		if w.served {
			w.errors++
		}
		return
	}
	if w.requests == nil {
		w.requests, w.wrong = map[string]int64{}, map[string]int64{}
	}
	if !d.booted.IsZero() {
		d.boot, d.booted = time.Since(d.booted), time.Time{}
	}
	version := resp.ModelVersion
	w.served, w.last, w.lastAt = true, release, time.Now()
	w.requests[version]++
	if len(resp.Outputs) != 1 || meter.Label(resp.Outputs[0].Data) != int(test.Labels[i]) {
		w.wrong[version]++
	}
	if d.board != nil {
		d.board.Busy(honestLatency)
	}
}

// answers reports whether the workload of a release answered just now.
func (d *Device) answers(release ota.Digest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.work.last == release && time.Since(d.work.lastAt) < 3*time.Second
}

// Work implements play.Device.
func (d *Device) Work() virtual.Work {
	d.mu.Lock()
	defer d.mu.Unlock()
	w := virtual.Work{Requests: map[string]int64{}, Wrong: map[string]int64{}, Errors: d.work.errors}
	maps.Copy(w.Requests, d.work.requests)
	maps.Copy(w.Wrong, d.work.wrong)
	return w
}
