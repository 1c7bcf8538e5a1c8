package tap

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// notes is an observer that keeps all.
type notes struct {
	mu  sync.Mutex
	all []Observation
}

func (n *notes) Observe(o Observation) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, o)
}

func (n *notes) list() []Observation {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]Observation(nil), n.all...)
}

func TestObserve(t *testing.T) {
	b := newBench(t, Limits{})
	m := startModel(t, "meter", "3", 100)
	b.fleet.load("a", endpoint(m, "meter", "3"))
	b.fleet.use("a")
	var n notes
	b.tap.Observe(1, &n)
	if code, _ := b.ask("POST", "/v2/models/meter/infer", inferBody("q", 5)); code != 200 {
		t.Fatal(code)
	}
	if _, err := b.rpc.ModelInfer(t.Context(), inferRPC("meter", "", "q", 6)); err != nil {
		t.Fatal(err)
	}
	// A binary tensor, and a body that is none.
	raw := binary.LittleEndian.AppendUint32(nil, math.Float32bits(7))
	head := `{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"parameters":{"binary_data_size":4}}]}`
	req, _ := http.NewRequest("POST", "http://tap/v2/models/meter/infer", strings.NewReader(head+string(raw)))
	req.Header.Set(binaryHeader, strconv.Itoa(len(head)))
	resp, err := b.plain.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if code, _ := b.ask("POST", "/v2/models/meter/infer", "{"); code != 400 {
		t.Fatal(code)
	}
	if err := b.tap.Post(t.Context(), []byte(`{"model":"meter","latency_ms":3,"outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[0.25,0.75]}]}`)); err != nil {
		t.Fatal(err)
	}
	until(t, "observations", func() bool { return len(n.list()) == 5 })
	in := map[float64]bool{}
	for _, o := range n.list() {
		if o.Model != "meter" || o.Version != "3" {
			t.Errorf("%+v", o)
		}
		switch {
		case o.Source == SourcePosted:
			if c, ok := o.Outputs[0].Confidence(); !ok || c != 0.75 || o.Latency != 3*time.Millisecond {
				t.Errorf("%+v", o)
			}
		case o.Outcome == "ok":
			in[o.Inputs[0].Values[0]] = true
			if len(o.Outputs[0].Values) != 2 || o.Outputs[0].Class() != 0 {
				t.Errorf("%+v", o)
			}
		case o.Outcome != "invalid":
			t.Errorf("%+v", o)
		}
	}
	if !in[5] || !in[6] || !in[7] {
		t.Errorf("inputs %v", in)
	}
	for _, bad := range []string{"", "{", `{"model":"other"}`, `{"model":"meter","version":"9"}`, `{"model":"meter","outcome":"odd"}`, `{"model":"meter","latency_ms":-1}`,
		`{"model":"meter","outputs":[{"name":"y","datatype":"FP32","shape":[3],"data":[1]}]}`, `{"model":"meter","outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":["x"]}]}`} {
		if err := b.tap.Post(t.Context(), []byte(bad)); !errors.Is(err, ErrObservation) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestShadow(t *testing.T) {
	b := newBench(t, Limits{})
	champion, challenger := startModel(t, "meter", "1", 0), startModel(t, "inner", "5", 1)
	b.fleet.load("a", endpoint(champion, "meter", "1"))
	b.fleet.load("b", endpoint(challenger, "meter", "2"))
	b.fleet.use("a")
	look, stop := b.tap.Mirror(Shadow{ID: "b", Share: 1, PerSecond: 1000})
	for i := range 4 {
		if i%2 == 0 {
			code, body := b.ask("POST", "/v2/models/meter/infer", inferBody("q", 5))
			if code != 200 || !strings.Contains(body, `"model_version":"1"`) {
				t.Fatalf("%d %s", code, body)
			}
		} else if r, err := b.rpc.ModelInfer(t.Context(), inferRPC("meter", "", "q", -2)); err != nil || r.GetModelVersion() != "1" {
			t.Fatalf("%v %v", r, err)
		}
		until(t, "comparison", func() bool { c := look(); return c.Compared+c.Failed == int64(i+1) })
	}
	// 5 against 6: the same class; -2 and 0 against -1 and 0: the same too.
	if c := look(); c.Compared != 4 || c.Disagreed != 0 || c.MaxDiff != 1 || c.Challenger <= 0 || c.Champion <= 0 {
		t.Errorf("%+v", c)
	}
	if _, err := b.rpc.ModelInfer(t.Context(), inferRPC("meter", "", "q", -0.5)); err != nil { // -0.5 against 0.5
		t.Fatal(err)
	}
	until(t, "disagreement", func() bool { return look().Disagreed == 1 })
	challenger.srv.Close()
	if code, _ := b.ask("POST", "/v2/models/meter/infer", inferBody("q", 5)); code != 200 {
		t.Fatal(code)
	}
	until(t, "failure", func() bool { return look().Failed == 1 })
	if s := look().String(); !strings.Contains(s, "5 requests compared, 1 with another class") || !strings.Contains(s, "1 failed") {
		t.Error(s)
	}
	stop()
	before := challenger.answered.Load()
	if code, _ := b.ask("POST", "/v2/models/meter/infer", inferBody("q", 5)); code != 200 || challenger.answered.Load() != before {
		t.Error(code)
	}
	until(t, "release", func() bool { return b.fleet.pins() == 0 })
}

// TestShed: under load the mirror goes first, then sampling, and the requests
// last, at their stated bound.
func TestShed(t *testing.T) {
	b := newBench(t, Limits{Concurrent: 8, Queued: 2, QueueTime: time.Hour})
	m, challenger := startModel(t, "meter", "1", 0), startModel(t, "meter", "2", 0)
	m.hold = make(chan struct{})
	b.fleet.load("a", endpoint(m, "meter", "1"))
	b.fleet.load("b", endpoint(challenger, "meter", "2"))
	b.fleet.use("a")
	for n, want := range map[int][2]bool{4: {true, true}, 5: {false, true}, 6: {false, true}, 7: {false, false}} {
		g := newGate(Limits{Concurrent: 8}.withDefaults())
		for range n {
			if err := g.enter(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if mirror, sample := g.pressure(); mirror != want[0] || sample != want[1] {
			t.Errorf("%d of 8: %v %v", n, mirror, sample)
		}
	}
	look, stop := b.tap.Mirror(Shadow{ID: "b", Share: 1, PerSecond: 1000})
	defer stop()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if code, body := b.ask("POST", "/v2/models/meter/infer", inferBody("q", 1)); code != 200 {
				t.Errorf("%d %s", code, body)
			}
		})
	}
	until(t, "a full tap", func() bool { return b.tap.gate.inFlight() == 8 && b.tap.gate.queued.Load() == 2 })
	resp, err := b.plain.Post("http://tap/v2/models/meter/infer", "application/json", strings.NewReader(inferBody("q", 1)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("%s %v", resp.Status, resp.Header)
	}
	close(m.hold)
	wg.Wait()
	until(t, "eleven counted requests", func() bool { return counted(b.tap.Snapshot()) == 11 })
	if c := look(); c.Dropped == 0 {
		t.Errorf("%+v", c)
	}
	if s := b.tap.Snapshot(); s.Counts[len(s.Counts)-1].Outcomes["ok"] != 10 || s.Counts[0].Outcomes["shed"] != 1 {
		t.Errorf("%+v", s)
	}
}

func TestSample(t *testing.T) {
	b := newBench(t, Limits{})
	m := startModel(t, "meter", "1", 0)
	b.fleet.load("a", endpoint(m, "meter", "1"))
	b.fleet.use("a")
	s, stop := b.tap.Sample(1, 1000)
	for i := range 20 {
		if code, _ := b.ask("POST", "/v2/models/meter/infer", inferBody(strconv.Itoa(i), 1)); code != 200 {
			t.Fatal(code)
		}
	}
	until(t, "samples", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.taken == 20 })
	kept := s.Take()
	var size int64
	for _, one := range kept {
		size += one.size()
	}
	if len(kept) == 0 || size > 1000 || !strings.Contains(string(kept[len(kept)-1].Request), `"id":"19"`) || !strings.Contains(string(kept[len(kept)-1].Response), `"id":"19"`) {
		t.Errorf("%d samples of %d bytes", len(kept), size)
	}
	if len(s.Take()) != 0 {
		t.Error("they are kept twice")
	}
	stop()
	if code, _ := b.ask("POST", "/v2/models/meter/infer", inferBody("x", 1)); code != 200 || b.tap.side.sampler.Load() != nil {
		t.Error(code)
	}
}

func TestHalf(t *testing.T) {
	for h, want := range map[uint16]float64{0x3c00: 1, 0xc000: -2, 0x0001: math.Ldexp(1, -24), 0x7bff: 65504, 0x7c00: math.Inf(1), 0: 0} {
		if got := half(h); got != want {
			t.Errorf("%#x: %v, want %v", h, got, want)
		}
	}
}

// TestQuantile: a quantile of the buckets is within a tenth of the exact one.
func TestQuantile(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(int64(leastTime), int64(2*time.Minute)).Draw(t, "d"))
		if got := bucketTime(bucketOf(d)); math.Abs(float64(got-d)) > 0.1*float64(d)+float64(leastTime)/10 {
			t.Fatalf("%s is taken for %s", d, got)
		}
	})
}
