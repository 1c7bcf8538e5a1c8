package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/agent/runtime/kserve"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// listening is a runtime whose workloads listen, each with a server of its own.
type listening struct {
	*containers
	mu      sync.Mutex // guards servers
	servers map[string]*httptest.Server
	names   map[string]runtime.Workload
}

func (l *listening) Load(ctx context.Context, w runtime.Workload) error {
	if err := l.containers.Load(ctx, w); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.servers[w.ID] == nil {
		m := kserve.Model{Name: w.Model, Version: w.Version, ID: w.ID, Ready: true, Serving: true}
		l.servers[w.ID] = httptest.NewServer(kserve.NewHandler(kserve.Options{Inferer: only{l, w.ID}, Models: func(context.Context) ([]kserve.Model, error) { return []kserve.Model{m}, nil }}))
		l.names[w.ID] = w
	}
	return nil
}

// only answers for one workload.
type only struct {
	l  *listening
	id string
}

func (o only) Infer(ctx context.Context, _ string, req runtime.Request) (runtime.Response, error) {
	resp, err := o.l.containers.Infer(ctx, o.id, req)
	o.l.mu.Lock()
	w := o.l.names[o.id]
	o.l.mu.Unlock()
	resp.ModelName, resp.ModelVersion = w.Model, w.Version
	return resp, err
}

func (l *listening) Acquire(_ context.Context, id string) (runtime.Endpoint, func(), error) {
	l.fakeRuntime.mu.Lock()
	if id == "" {
		id = l.serving
	}
	loaded := l.loaded[id] != nil
	l.fakeRuntime.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	s, w := l.servers[id], l.names[id]
	if !loaded || s == nil {
		return runtime.Endpoint{}, nil, runtime.ErrNotLoaded
	}
	return runtime.Endpoint{ID: id, HTTP: s.Listener.Addr().String(), Model: w.Model, Version: w.Version, ReleaseModel: w.Model, ReleaseVersion: w.Version}, func() {}, nil
}

// tapWorld is a device with a tap, version 1 committed, in real time.
func tapWorld(t *testing.T, next model, spec manifest.Workload) (w *world, d *device, ask func() (string, error)) {
	t.Helper()
	w = newWorld(t)
	w.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1, machine: w.image(manifest.Workload{}, "base")})
	w.release("2", next, releaseOptions{counter: 2, golden: next.Bias, machine: w.image(spec, "base")})
	start := time.Now()
	now := func() time.Time { return bubbleStart.Add(time.Hour + time.Since(start)) }
	rt := &listening{servers: map[string]*httptest.Server{}, names: map[string]runtime.Workload{}}
	sock := filepath.Join(t.TempDir(), "tap.sock")
	files, err := slot.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	d = w.boot(files, func(o *Options) {
		rt.containers = &containers{fakeRuntime: o.Runtime.(*fakeRuntime)}
		o.Runtime, o.Now, o.SoakEvery, o.TelemetryEvery = rt, now, 50*time.Millisecond, 100*time.Millisecond
		o.Tap, o.LocalSocket = TapOptions{Listen: "unix:" + sock}, filepath.Join(filepath.Dir(sock), "agent.sock")
	})
	t.Cleanup(func() {
		if err := errors.Join(d.stop(t), files.Close()); err != nil {
			t.Error(err)
		}
		for _, s := range rt.servers {
			s.Close()
		}
	})
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", sock)
	}}}
	t.Cleanup(client.CloseIdleConnections)
	ask = func() (string, error) {
		resp, err := client.Post("http://tap/v2/models/meter/infer", "application/json", strings.NewReader(`{"inputs":[{"name":"x","datatype":"FP32","shape":[1,3],"data":[0,1,-1]}]}`))
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", resp.Status, b)
		}
		return string(b), err
	}
	d.link.SetOnline(true)
	w.want(1, "1", func(d *wire.Desired) { d.IssuedAt, d.ExpiresAt = now().Unix(), now().AddDate(0, 0, 7).Unix() })
	soon(t, "version 1", func() bool {
		a, err := ask()
		return err == nil && strings.Contains(a, `[1,3,-1]`)
	})
	w.want(2, "2", func(d *wire.Desired) { d.IssuedAt, d.ExpiresAt = now().Unix(), now().AddDate(0, 0, 7).Unix() })
	return w, d, ask
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); <-time.After(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not come", what)
		}
	}
}

// TestShadowBeforeSwitch: a release that asks for it is compared on live
// requests before it gets any; no request fails and the journal says how it went.
func TestShadowBeforeSwitch(t *testing.T) {
	w, d, ask := tapWorld(t, model{Bias: 1.5}, manifest.Workload{Shadow: &manifest.Shadow{Share: 1, PerSecond: 1000, Requests: 5, MaxDisagree: new(0.0)}})
	soon(t, "version 2", func() bool {
		a, err := ask()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(a, "[1.5,3.5,-0.5]")
	})
	soon(t, "commit", func() bool { r := w.last(); return r != nil && r.RunningCounter == 2 })
	noted := false
	for _, e := range w.last().Journal {
		noted = noted || e.Step == "prove" && strings.Contains(e.Message, "shadow: ") && strings.Contains(e.Message, " 0 with another class, largest difference 0.5")
	}
	if !noted {
		t.Errorf("%+v", w.last().Journal)
	}
	if s := d.Agent.tap.tap.Snapshot(); len(s.Counts) != 2 && len(s.Counts) != 3 {
		t.Errorf("%+v", s)
	}
	soon(t, "what was asked, in the status", func() bool {
		t := d.Agent.Status().Tap
		return t != nil && strings.HasPrefix(t.Address, "unix:") && len(t.Asked) > 0 && t.Asked[len(t.Asked)-1].Version == "2" && t.Asked[len(t.Asked)-1].OK > 0
	})
	soon(t, "telemetry of requests", func() bool {
		for _, r := range d.Agent.tapReadings(time.Now()) {
			if r.Series.Name == "skein_inference_requests_total" && r.Series.Get("version") == "2" && r.Value > 0 {
				return true
			}
		}
		return false
	})
}

// TestShadowDisagrees: a workload that answers its golden set, and live requests
// not as the release allows, gets none; the old one answers all the time.
func TestShadowDisagrees(t *testing.T) {
	w, _, ask := tapWorld(t, model{Bias: 1.5, CrashPast: 4}, manifest.Workload{Shadow: &manifest.Shadow{Share: 1, PerSecond: 1000, Requests: 3, MaxDisagree: new(0.1)}})
	soon(t, "the failure", func() bool {
		if a, err := ask(); err != nil || !strings.Contains(a, "[1,3,-1]") {
			t.Fatal(a, err)
		}
		r := w.last()
		return r != nil && strings.Contains(r.Failure, ErrDisagrees.Error())
	})
	if r := w.last(); r.RunningCounter != 1 || !strings.HasPrefix(r.Failure, "prove: ") {
		t.Errorf("%+v", r)
	}
}

// TestPostedAndSampled: an application that asks its model itself posts what it
// saw to the local socket; a script reads samples from it.
func TestPostedAndSampled(t *testing.T) {
	_, d, ask := tapWorld(t, model{Bias: 1.5}, manifest.Workload{})
	soon(t, "version 2", func() bool { a, err := ask(); return err == nil && strings.Contains(a, "[1.5,3.5,-0.5]") })
	local := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", d.Agent.opts.LocalSocket)
	}}}
	defer local.CloseIdleConnections()
	post := func(body string) int {
		resp, err := local.Post("http://a/v1/observations", "application/json", strings.NewReader(body))
		if err != nil {
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	soon(t, "the socket", func() bool {
		return post(`{"model":"meter","latency_ms":1,"outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[0.1,0.9]}]}`) == http.StatusNoContent
	})
	if code := post(`{"model":"other"}`); code != http.StatusBadRequest {
		t.Errorf("another model: %d", code)
	}
	if code := post(`{`); code != http.StatusBadRequest {
		t.Errorf("no JSON: %d", code)
	}
	resp, err := local.Get("http://a/v1/samples?seconds=60&share=1")
	if err == nil {
		defer resp.Body.Close()
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	if _, err := ask(); err != nil {
		t.Fatal(err)
	}
	var one struct {
		Model    string `json:"model"`
		Response []byte `json:"response"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&one); err != nil || one.Model != "meter" || !strings.Contains(string(one.Response), "[1.5,3.5,-0.5]") {
		t.Errorf("%+v %v", one, err)
	}
	if bad, err := local.Get("http://a/v1/samples?seconds=0&share=2"); err != nil || bad.StatusCode != http.StatusBadRequest {
		t.Errorf("%v %v", bad, err)
	} else {
		bad.Body.Close()
	}
}
