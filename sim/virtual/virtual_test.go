package virtual

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	goruntime "runtime"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/sim/fault"
	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/meter"
	"github.com/skein-fleet/skein/sim/meter/engine"
)

func TestDisk(t *testing.T) {
	s := &storage{Files: slot.NewMem()}
	d := &disk{storage: s}
	if err := d.WriteFile("a", []byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	if s.free() != healthyFree {
		t.Errorf("free %d", s.free())
	}
	s.fill(4)
	if err := d.WriteFile("a", []byte("abc")); err != nil {
		t.Errorf("3 bytes into 4: %v", err)
	}
	if err := d.WriteFile("a", []byte("xyz")); !errors.Is(err, slot.ErrDiskFull) || s.free() != 0 {
		t.Errorf("3 bytes into 1: %v, %d free", err, s.free())
	}
	f, err := d.OpenAppend("log")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, slot.ErrDiskFull) {
		t.Errorf("append: %v", err)
	}
	s.empty()
	if _, err := f.Write([]byte("x")); err != nil {
		t.Errorf("append with room: %v", err)
	}
	d.off.Store(true)
	_, werr := f.Write([]byte("y"))
	_, rerr := d.ReadFile("a")
	for what, err := range map[string]error{"append": werr, "read": rerr, "write": d.WriteFile("a", nil), "remove": d.Remove("a"), "rename": d.Rename("a", "b"), "sync": d.Sync(), "truncate": f.Truncate(0), "folder": d.MkdirAll("c")} {
		if !errors.Is(err, errPower) {
			t.Errorf("%s without power: %v", what, err)
		}
	}
	next := &disk{storage: s}
	if b, err := next.ReadFile("a"); err != nil || string(b) != "abc" {
		t.Errorf("the next boot reads %q, %v", b, err)
	}
	if b, err := next.ReadFile("log"); err != nil || string(b) != "x" {
		t.Errorf("the next boot reads %q, %v", b, err)
	}
}

func TestRadioLosesWhatComesDown(t *testing.T) {
	r := &radio{rng: rand.New(rand.NewPCG(1, 2))}
	got := 0
	ctx, cancel := context.WithCancel(t.Context())
	inner := agent.NewMemoryLink(nil)
	inner.SetOnline(true)
	link := r.wrap(inner)
	connected := make(chan struct{})
	done := make(chan error)
	go func() {
		done <- link.Run(ctx, agent.LinkHandler{
			NextID:    func() wire.MessageID { return wire.MessageID{} },
			Connected: func(context.Context) { close(connected) }, Disconnected: func(error) {},
			Message: func(wire.Kind, []byte) { got++ },
		})
	}()
	<-connected
	r.setLoss(0.3)
	for range 1000 {
		inner.Deliver(wire.DownDesired, nil)
	}
	if got < 620 || got > 780 || int64(1000-got) != r.lost {
		t.Errorf("%d of 1000 arrived, %d counted as lost", got, r.lost)
	}
	r.setLoss(0)
	inner.Deliver(wire.DownDesired, nil)
	before := got
	event, err := wire.Marshal(&wire.Event{Kind: "step", Message: "m"})
	if err != nil {
		t.Fatal(err)
	}
	if err := link.Publish(ctx, wire.UpEvent, event); err != nil || len(r.events) != 1 || r.events[0].Message != "m" {
		t.Errorf("%v, acknowledged %v", err, r.events)
	}
	inner.SetOnline(false)
	if err := link.Publish(ctx, wire.UpEvent, event); err == nil || len(r.events) != 1 {
		t.Errorf("offline: %v, acknowledged %v", err, r.events)
	}
	cancel()
	if err := <-done; err != nil || before == 0 {
		t.Error(err)
	}
}

// TestServerDies after as many requests as its model says, and can be loaded again.
func TestServerDies(t *testing.T) {
	dir := t.TempDir()
	raw, err := meter.Linear([]float32{2}, []float32{0}, 1, 1, map[string]string{MetaCrashAfter: "3"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "m.onnx"), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	s := newServer(engine.New(engine.Options{}))
	ctx := t.Context()
	w := runtime.Workload{ID: "w", Model: "m", Version: "1", Dir: dir, ModelFile: "m.onnx", Format: "onnx"}
	req := runtime.Request{Inputs: []runtime.Tensor{{Name: meter.InputName, Shape: []int64{1, 1}, Data: []float32{1}}}}
	for round := range 2 {
		if err := errors.Join(s.Load(ctx, w), s.Switch(ctx, "w")); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			if _, err := s.Infer(ctx, "", req); (err == nil) != (i < 2) {
				t.Errorf("round %d, request %d: %v", round, i+1, err)
			}
		}
		if _, err := s.Infer(ctx, "", req); !errors.Is(err, runtime.ErrNotLoaded) {
			t.Errorf("a dead server answers %v", err)
		}
		if list, err := s.List(ctx); err != nil || len(list) != 1 || list[0].Ready || list[0].Reason == "" {
			t.Errorf("%v, %v", list, err)
		}
	}
}

// TestPowerWithoutControlPlane: a device that finds no control plane can be
// killed and goes on trying, and ends when it is told to.
func TestPowerWithoutControlPlane(t *testing.T) {
	d, err := New(Options{Number: 1, Model: "orin-nano", Seed: 1, ServerURL: "https://127.0.0.1:1", Claim: "skein1.bad", Files: slot.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Run(t.Context()); !errors.Is(err, agent.ErrBadClaim) {
		t.Errorf("a bad claim: %v", err)
	}
	d.o.Claim = "skein1.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	for start := d.Starts(); d.Starts() < start+3; {
		d.Kill(0)
		goruntime.Gosched() // it is another goroutine that counts
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestFaultsHoldAndEnd: a kill in the middle of a cut does not mend the line.
func TestFaultsHoldAndEnd(t *testing.T) {
	d, err := New(Options{Number: 1, Model: "nano", Seed: 1, Files: slot.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	dials := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		c, err := d.dial(ctx, "tcp", "127.0.0.1:1")
		if err == nil {
			c.Close()
		}
		return err
	}
	cut := fault.Fault{Kind: fault.Cut}
	d.Inject(cut)
	d.Inject(cut)
	d.disk, d.off = &disk{storage: d.storage}, func() {}
	d.Kill(0)
	d.Heal(cut)
	if d.cuts != 1 || dials() == nil {
		t.Errorf("%d cuts hold the line", d.cuts)
	}
	d.Heal(cut)
	if d.cuts != 0 {
		t.Errorf("%d cuts hold the line", d.cuts)
	}
	d.Inject(fault.Fault{Kind: fault.Hole})
	if err := dials(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a dial into a hole: %v", err)
	}
	d.Inject(fault.Fault{Kind: fault.Clock1970})
	if now := d.now(); now.Year() != 1970 {
		t.Errorf("the clock shows %v", now)
	}
	d.Inject(fault.Fault{Kind: fault.DiskFull, Free: 7})
	if free, err := (host{d}).DiskFree(); err != nil || free != 7 {
		t.Errorf("%d free, %v", free, err)
	}
	d.Inject(fault.Fault{Kind: fault.Heat, Celsius: 60})
	d.board.with(func(b *jetson.Board) {
		if b.Ambient() != 60 {
			t.Errorf("%v °C", b.Ambient())
		}
	})
}
