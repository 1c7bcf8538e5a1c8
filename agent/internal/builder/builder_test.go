package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/agent/internal/engine"
	"github.com/skein-fleet/skein/ota"
	recipes "github.com/skein-fleet/skein/ota/engine"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/proto/wire"
)

const (
	device = "aaaaaaaaaaaaaaaaaaaaaaaaaa"
	orin   = "linux/arm64;sm=8.7;trt=10.3.0;cuda=12.6;mem=8;dla=0;module=orin-nano-8gb;mode=25W"
)

// bench is a builder with its control plane and its trtexec, all of paper.
type bench struct {
	t     *testing.T
	b     *Builder
	dir   string
	blobs map[ota.Digest][]byte

	mu      sync.Mutex // guards what follows
	sent    []wire.Build
	uploads map[string][]byte
	tokens  []string
	record  wire.EngineRecord
	argv    [][]string
	answer  float32       // what the whole plan answers, to each input
	refit   error         // why a stripped plan does not come to life
	slow    time.Duration // of a build
	fail    func(argv []string, out io.Writer) bool
}

func newBench(t *testing.T, probed string) *bench {
	w := &bench{t: t, dir: filepath.Join(t.TempDir(), "build"), blobs: map[ota.Digest][]byte{}, uploads: map[string][]byte{}, answer: 1}
	target, err := ota.ParseTarget(probed)
	if err != nil {
		t.Fatal(err)
	}
	w.b = New(Config{
		Device: device, Dir: w.dir, Blobs: w, MeasureFor: time.Second, Power: func() float64 { return 12.5 },
		Probe: func(context.Context) (ota.Target, error) { return target, nil },
		Tool:  &engine.Tool{Runner: w, Trtexec: "trtexec", Refit: []string{"refit", "{plan}", "{onnx}", "{out}"}},
		Upload: func(_ context.Context, path, token, file string) error {
			raw, err := os.ReadFile(file)
			w.mu.Lock()
			defer w.mu.Unlock()
			w.uploads[path], w.tokens = raw, append(w.tokens, token)
			return err
		},
		Send: func(_ context.Context, m *wire.Build) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.sent = append(w.sent, *m)
			return nil
		},
		Sign: func(r wire.EngineRecord) ([]byte, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.record = r
			return []byte("signed"), recipes.Validate(r)
		},
	})
	return w
}

func (w *bench) put(b []byte) *wire.Blob {
	d := ota.DigestOf(b)
	w.blobs[d] = b
	return &wire.Blob{Digest: d.Sum(), Length: int64(len(b))}
}

func (w *bench) Fetch(_ context.Context, d manifest.Descriptor) error {
	if w.blobs[d.Digest] == nil {
		return errors.New("no such blob")
	}
	return nil
}

func (w *bench) Open(_ context.Context, d ota.Digest) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(w.blobs[d])), nil
}

// Run is trtexec.
func (w *bench) Run(ctx context.Context, argv []string, out io.Writer) (engine.Exit, error) {
	w.mu.Lock()
	w.argv = append(w.argv, argv)
	refit, slow, fail, answer := w.refit, w.slow, w.fail, w.answer
	w.mu.Unlock()
	if fail != nil && fail(argv, out) {
		return engine.Exit{Code: 1}, nil
	}
	arg := func(name string) string {
		for _, a := range argv {
			if v, ok := strings.CutPrefix(a, "--"+name+"="); ok {
				return v
			}
		}
		return ""
	}
	if argv[0] == "refit" {
		if refit != nil {
			fmt.Fprintln(out, refit)
			return engine.Exit{Code: 1}, nil
		}
		return engine.Exit{}, os.WriteFile(argv[3], []byte("whole plan"), 0o600)
	}
	if save := arg("saveEngine"); save != "" {
		select {
		case <-ctx.Done():
			return engine.Exit{Code: -1, Signal: "killed"}, nil
		case <-time.After(slow):
		}
		if cache := arg("timingCacheFile"); cache != "" {
			if err := os.WriteFile(cache, []byte("cache"), 0o600); err != nil {
				return engine.Exit{}, err
			}
		}
		fmt.Fprintln(out, "[I] Engine built in 10 sec.")
		if err := os.WriteFile(save, []byte("plan of "+strings.Join(argv, " ")), 0o600); err != nil {
			return engine.Exit{}, err
		}
	}
	if path := arg("exportOutput"); path != "" {
		raw, err := json.Marshal([]map[string]any{{"name": "y", "values": []float32{answer, 0}}})
		if err == nil {
			err = os.WriteFile(path, raw, 0o600)
		}
		if err != nil {
			return engine.Exit{}, err
		}
	}
	fmt.Fprint(out, "[I] Throughput: 100 qps\n[I] Latency: min = 9 ms, max = 12 ms, mean = 10 ms, median = 10 ms, percentile(99%) = 11 ms\n"+
		"[W] * GPU compute time is unstable, with coefficient of variance = 2%.\n&&&& PASSED TensorRT.trtexec [TensorRT v100300] # x\n")
	return engine.Exit{}, nil
}

// lease asks for a build.
func (w *bench) lease(r recipes.Recipe, target string) wire.BuildLease {
	w.t.Helper()
	golden, err := manifest.Golden{Version: 1, Input: "x", Shape: []int64{1, 2}, Tolerance: manifest.Tolerance{Abs: 0.01}, MinLabelAgreement: 1,
		Cases: []manifest.GoldenCase{{Input: []float32{1, 2}, Output: []float32{1, 0}}, {Input: []float32{3, 4}, Output: []float32{1, 0}}}}.Marshal()
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := r.Canonical()
	if err != nil {
		w.t.Fatal(err)
	}
	t, err := ota.ParseTarget(target)
	if err != nil {
		w.t.Fatal(err)
	}
	work := &wire.BuildWork{Model: "meter", Version: 3, ONNX: *w.put([]byte("onnx")), Golden: w.put(golden), Recipe: raw, Target: target, Upload: "/build/j1/", Token: "one", MaxBytes: 1 << 20}
	digest, err := r.Digest()
	if err != nil {
		w.t.Fatal(err)
	}
	work.Key = recipes.Key(recipes.VersionDigest(ota.DigestOf([]byte("onnx")), ota.DigestOf(golden)), digest, t).Sum()
	return wire.BuildLease{Device: device, State: wire.LeaseBuild, IssuedAt: 1_000_000, ExpiresAt: 1000 + 600, Every: 10, Job: "j1", Attempt: 1, Work: work}
}

func (w *bench) last(kind wire.BuildKind) *wire.Build {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := len(w.sent) - 1; i >= 0; i-- {
		if w.sent[i].Kind == kind {
			return &w.sent[i]
		}
	}
	return nil
}

func (w *bench) count(kind wire.BuildKind) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.sent {
		if m.Kind == kind {
			n++
		}
	}
	return n
}

// in runs f beside the builder, in fake time.
func in(t *testing.T, probed string, f func(w *bench)) {
	synctest.Test(t, func(t *testing.T) {
		w := newBench(t, probed)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- w.b.Run(ctx) }()
		f(w)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(w.dir, "job")); !os.IsNotExist(err) {
			t.Errorf("something is left of the job: %v", err)
		}
	})
}

var fp16 = recipes.Recipe{Version: 1, Precision: recipes.FP16}

const target = "linux/arm64;sm=8.7;trt=10.3.0"

func TestBuild(t *testing.T) {
	in(t, orin, func(w *bench) {
		time.Sleep(time.Minute)
		if n := w.count(wire.BuildAsk); n != 0 {
			t.Fatalf("it asked %d times, and nobody said that it may", n)
		}
		w.b.Lease(wire.BuildLease{State: wire.LeaseNone, IssuedAt: 999_000, Every: 5})
		time.Sleep(time.Minute)
		if m := w.last(wire.BuildAsk); m == nil || m.Target != orin {
			t.Fatalf("ask %+v", m)
		}
		w.slow = 100 * time.Second
		w.b.Lease(w.lease(fp16, target))
		time.Sleep(50 * time.Second)
		if m := w.last(wire.BuildHeartbeat); m == nil || m.Step != "build" || m.Job != "j1" || w.count(wire.BuildHeartbeat) < 4 {
			t.Fatalf("heartbeat %+v", m)
		}
		again := w.lease(fp16, target)
		again.IssuedAt, again.ExpiresAt, again.Work.Token = 2_000_000, 2600, "two"
		w.b.Lease(again)
		time.Sleep(100 * time.Second)
		m := w.last(wire.BuildDone)
		if m == nil || string(m.Record) != "signed" || m.Attempt != 1 {
			t.Fatalf("done %+v, failed %+v", m, w.last(wire.BuildFailed))
		}
		r := w.record
		if r.LatencyP50 != 10 || r.LatencyP99 != 11 || r.Throughput != 100 || r.Power != 12.5 || r.Mode != "25W" || r.Proof == nil || r.Proof.Agreed != 2 || len(r.Warnings) != 1 ||
			r.Probed != orin || r.Target != target || r.TimingCache == nil || r.Stripped || r.Command[0] != "trtexec" {
			t.Errorf("record %+v", r)
		}
		if string(w.uploads["/build/j1/cache"]) != "cache" || ota.DigestOf(w.uploads["/build/j1/plan"]).Hex() != fmt.Sprintf("%x", r.Digest) || !bytes.Contains(w.uploads["/build/j1/log"], []byte("Engine built in")) {
			t.Errorf("uploads %q", w.uploads)
		}
		if w.tokens[0] != "two" {
			t.Errorf("token %q is of the older lease", w.tokens[0])
		}
		if l := w.last(wire.BuildLog); l == nil || len(l.Data) == 0 {
			t.Error("no line of the log was streamed")
		}
		n := w.count(wire.BuildDone)
		time.Sleep(25 * time.Second)
		if w.count(wire.BuildDone) <= n {
			t.Error("the result is not repeated")
		}
		w.b.Lease(wire.BuildLease{State: wire.LeaseStored, IssuedAt: 3_000_000, Every: 5, Job: "j1", Attempt: 1})
		time.Sleep(time.Second)
		n = w.count(wire.BuildDone)
		time.Sleep(time.Minute)
		if w.count(wire.BuildDone) != n || w.b.Status().Built != 1 {
			t.Error("the result is repeated after it was stored")
		}
	})
}

// TestNotMine: a device builds for no target but its own, and for no key but
// the right one.
func TestNotMine(t *testing.T) {
	for name, c := range map[string]struct {
		probed string
		change func(l *wire.BuildLease)
		class  string
	}{
		"x86 for a Jetson":  {"linux/amd64;sm=9.0;trt=10.3.0", nil, wire.BuildMismatch},
		"another TensorRT":  {strings.Replace(orin, "10.3.0", "10.7.0", 1), nil, wire.BuildMismatch},
		"no TensorRT":       {"linux/amd64;ort=1", nil, wire.BuildMismatch},
		"another key":       {orin, func(l *wire.BuildLease) { l.Work.Key[0] ^= 1 }, wire.BuildMismatch},
		"recipe is garbage": {orin, func(l *wire.BuildLease) { l.Work.Recipe = []byte("{}") }, wire.BuildUnsupported},
		"no such model":     {orin, func(l *wire.BuildLease) { l.Work.ONNX.Digest = make([]byte, 32) }, wire.BuildMismatch},
	} {
		in(t, c.probed, func(w *bench) {
			l := w.lease(fp16, target)
			if c.change != nil {
				c.change(&l)
			}
			w.b.Lease(l)
			time.Sleep(time.Second)
			if m := w.last(wire.BuildFailed); m == nil || m.Class != c.class || m.Message == "" {
				t.Errorf("%s: %+v", name, m)
			}
			if len(w.argv) != 0 || len(w.uploads) != 0 {
				t.Errorf("%s: something was run or uploaded", name)
			}
		})
	}
}

// TestStripped: the stripped engine, behind the golden set; else the full one.
func TestStripped(t *testing.T) {
	strip := fp16
	strip.Strip = true
	in(t, orin, func(w *bench) {
		w.b.Lease(w.lease(strip, target))
		time.Sleep(time.Minute)
		if w.last(wire.BuildDone) == nil || !w.record.Stripped || w.record.Fallback != "" || !strings.Contains(strings.Join(w.record.Command, " "), "--stripWeights") {
			t.Errorf("%+v %+v", w.record, w.last(wire.BuildFailed))
		}
	})
	in(t, orin, func(w *bench) {
		w.refit = errors.New("AssertionError: weights are missing")
		w.b.Lease(w.lease(strip, target))
		time.Sleep(time.Minute)
		if w.last(wire.BuildDone) == nil || w.record.Stripped || !strings.Contains(w.record.Fallback, "refit") || strings.Contains(strings.Join(w.record.Command, " "), "--stripWeights") {
			t.Errorf("%+v %+v", w.record, w.last(wire.BuildFailed))
		}
	})
}

// TestFailures name who could do better.
func TestFailures(t *testing.T) {
	say := func(text string) func([]string, io.Writer) bool {
		return func(_ []string, out io.Writer) bool { fmt.Fprintln(out, text); return true }
	}
	for class, prepare := range map[string]func(w *bench){
		wire.BuildMemory:      func(w *bench) { w.fail = say("[E] Error Code 2: OutOfMemory (no further information)") },
		wire.BuildUnsupported: func(w *bench) { w.fail = say("[E] Failed to parse onnx file") },
		wire.BuildTool:        func(w *bench) { w.fail = say("something else") },
		wire.BuildGolden:      func(w *bench) { w.answer = 7 },
	} {
		in(t, orin, func(w *bench) {
			prepare(w)
			w.b.Lease(w.lease(fp16, target))
			time.Sleep(time.Minute)
			if m := w.last(wire.BuildFailed); m == nil || m.Class != class {
				t.Errorf("%s: %+v", class, m)
			}
			if len(w.uploads) != 0 {
				t.Errorf("%s: a bad engine was uploaded", class)
			}
		})
	}
}

// TestLeaseEnds: nobody renews it, it is stopped, or the device is dismissed.
func TestLeaseEnds(t *testing.T) {
	for name, end := range map[string]func(w *bench){
		"runs out": func(*bench) { time.Sleep(700 * time.Second) },
		"stopped": func(w *bench) {
			w.b.Lease(wire.BuildLease{State: wire.LeaseStop, IssuedAt: 2_000_000, Job: "j1", Attempt: 1})
		},
		"dismissed": func(w *bench) { w.b.Lease(wire.BuildLease{State: wire.LeaseDismissed, IssuedAt: 2_000_000}) },
	} {
		in(t, orin, func(w *bench) {
			w.slow = time.Hour
			w.b.Lease(w.lease(fp16, target))
			time.Sleep(30 * time.Second)
			if w.b.Status().Job != "j1" {
				t.Errorf("%s: not begun", name)
			}
			end(w)
			time.Sleep(time.Second)
			if s := w.b.Status(); s.Job != "" || len(w.uploads) != 0 {
				t.Errorf("%s: %+v", name, s)
			}
			old := w.lease(fp16, target)
			old.IssuedAt = 500_000
			w.b.Lease(old) // comes late
			time.Sleep(time.Second)
			if w.b.Status().Job != "" {
				t.Errorf("%s: an older lease was followed", name)
			}
		})
	}
}
