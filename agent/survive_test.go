package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/agent/internal/enroll/enrolltest"
	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/reconcile"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry/spool"
)

// Inference goes on whatever else breaks, and the device says what did.

// noBlobs is a blob server that cannot be reached.
func noBlobs(context.Context, ota.Digest, int64, int64) (io.ReadCloser, error) {
	return nil, errors.New("connect: no route to host")
}

func (w *world) serveBlobsBy(s sourceFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.source = w
	if s != nil {
		w.source = s
	}
}

func (d *device) reason(part string) bool {
	for _, r := range d.Status().Reasons {
		if strings.Contains(r, part) {
			return true
		}
	}
	return false
}

func TestCrashWhileADownloadWaits(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		w.serveBlobsBy(noBlobs)
		w.want(2, "2")
		settle(20 * time.Minute)
		if !hasCondition(w.last(), health.DownloadWaits) || !d.reason("no route to host") {
			t.Errorf("does not say that it waits: %+v", d.Status().Reasons)
		}
		for range 2 {
			if err := d.runtime.Unload(t.Context(), d.state.Get().Current.WorkloadID()); err != nil {
				t.Fatal(err)
			}
			settle(30 * time.Second)
			if got, err := d.runtime.answer(); err != nil || got != 1 || d.state.Get().Update == nil {
				t.Errorf("while the download waits: %v, %v", got, err)
			}
		}
		w.serveBlobsBy(nil)
		settle(5 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 2 || hasCondition(w.last(), health.DownloadWaits) || d.reason("route") {
			t.Errorf("answers %v, %v, %+v", got, err, d.Status().Reasons)
		}
		crashes := 0
		for _, e := range w.got().events {
			if e.Kind == "crash" {
				crashes++
			}
		}
		if crashes != 2 {
			t.Errorf("%d crashes told, want 2", crashes)
		}
	})
}

// TestRestartsDoNotGrowTheJournal: an update that waits for the network over
// many starts of the agent.
func TestRestartsDoNotGrowTheJournal(t *testing.T) {
	w, base := standard(t)
	files := base
	lines := 0
	for n := range 4 {
		on(t, w, files, func(t *testing.T, d *device) {
			w.want(2, "2")
			settle(time.Minute)
			if d.state.Get().Update == nil {
				t.Fatal("no update under way")
			}
			got := len(d.journal.Entries())
			if n > 0 && got != lines {
				t.Errorf("%d lines after start %d, %d before", got, n, lines)
			}
			lines = got
			files = d.opts.Files.(*slot.Mem)
		}, func(o *Options) { o.Blobs = sourceFunc(noBlobs) })
	}
}

func TestDamagedBlobIsFetchedAgain(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		cur := d.state.Get().Current
		for _, b := range cur.Blobs {
			if err := d.opts.Files.WriteFile("blobs/sha256/"+b.Hex()[:2]+"/"+b.Hex(), []byte("{")); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.opts.Files.WriteFile(cur.Dir()+"/model.onnx", []byte("{")); err != nil {
			t.Fatal(err)
		}
		w.serveBlobsBy(noBlobs)
		if err := d.runtime.Unload(t.Context(), cur.WorkloadID()); err != nil {
			t.Fatal(err)
		}
		settle(10 * time.Minute)
		if !hasCondition(w.last(), health.WorkloadDown) {
			t.Errorf("does not say that it is down: %+v", w.last().Conditions)
		}
		w.serveBlobsBy(nil)
		settle(5 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 1 || hasCondition(w.last(), health.WorkloadDown) {
			t.Errorf("answers %v, %v, %+v", got, err, w.last().Conditions)
		}
	})
}

// hanging does not answer while it hangs.
type hanging struct {
	runtime.Runtime
	mu    sync.Mutex // guards hangs
	hangs string
}

func (h *hanging) hang(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hangs = id
}

func (h *hanging) Infer(ctx context.Context, id string, req runtime.Request) (runtime.Response, error) {
	h.mu.Lock()
	stuck := id == h.hangs
	h.mu.Unlock()
	if stuck {
		<-ctx.Done()
		return runtime.Response{}, ctx.Err()
	}
	return h.Runtime.Infer(ctx, id, req)
}

func TestHangWhileSoakingIsAFailure(t *testing.T) {
	w, base := standard(t)
	var h *hanging
	on(t, w, base, func(t *testing.T, d *device) {
		w.want(2, "2")
		settle(15 * time.Second)
		u := d.state.Get().Update
		if u == nil {
			t.Fatal("not soaking")
		}
		h.hang(u.Install.WorkloadID())
		settle(5 * time.Minute)
		r := w.last()
		if got, err := d.runtime.answer(); err != nil || got != 1 || r.FailureClass != string(ota.Failed) || !strings.Contains(r.Failure, "no answer after") {
			t.Errorf("answers %v, %v; %s: %s", got, err, r.FailureClass, r.Failure)
		}
	}, func(o *Options) {
		h = &hanging{Runtime: o.Runtime}
		o.Runtime = h
	})
}

// TestSupersededBeforeItRan: the newest desired state comes between the plan
// and the first step.
func TestSupersededBeforeItRan(t *testing.T) {
	w, base := standard(t)
	synctest.Test(t, func(t *testing.T) {
		f := base.Crash(0)
		a, err := New(Options{Identity: w.id, Link: NewMemoryLink(w.receive), Host: &board{files: f, clock: time.Now}, Runtime: newFakeRuntime(f),
			Files: f, Blobs: sourceFunc(noBlobs), Metadata: w.meta})
		if err != nil {
			t.Fatal(err)
		}
		defer a.journal.Close()
		ref := w.releases["2"]
		old := &state.Install{Release: ota.DigestFromSum([32]byte(ref.Digest)), Length: ref.Length, Counter: ref.Counter, TUFTarget: ref.Target}
		a.exec.Supersede("another", wire.Generation{Epoch: 9})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := a.exec.Do(ctx, reconcile.Decision{Kind: reconcile.Start, Install: old}); err != nil {
			t.Fatal(err)
		}
		if s := a.state.Get(); s.Update != nil || s.Failure == nil || s.Failure.Class != ota.Superseded {
			t.Errorf("%+v, %+v", s.Update, s.Failure)
		}
		// The newest itself may be begun before Supersede is told of it.
		newer := *old
		newer.Generation = wire.Generation{Epoch: 10}
		if err := a.exec.Do(ctx, reconcile.Decision{Kind: reconcile.Start, Install: &newer}); !errors.Is(err, reconcile.ErrInterrupted) {
			t.Errorf("it does not wait for its bytes: %v, %+v", err, a.state.Get().Failure)
		}
	})
}

// brokenSpool takes and gives nothing.
type brokenSpool struct{ spool.Spool }

func (brokenSpool) Append(wire.Kind, []byte) error { return syscall.EIO }
func (brokenSpool) Next() (spool.Frame, error)     { return spool.Frame{}, syscall.EIO }

func TestBrokenSpoolAndSocketDoNotEndTheAgent(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		settle(5 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 1 {
			t.Errorf("answers %v, %v", got, err)
		}
		for _, c := range []string{health.SpoolFailing, health.LocalSocket} {
			if !hasCondition(w.last(), c) {
				t.Errorf("does not say %s: %+v", c, w.last().Conditions)
			}
		}
	}, func(o *Options) {
		o.Spool = brokenSpool{spool.NewMemory(spool.Options{})}
		o.LocalSocket = filepath.Join("/proc", "nowhere", "agent.sock")
	})
}

// TestReadOnlyDisk: what a kernel makes of a flash that fails.
func TestReadOnlyDisk(t *testing.T) {
	w, base := standard(t)
	files := base.Crash(0)
	readOnly := true
	var mu sync.Mutex // guards readOnly
	files.Hook(func(string, string) error {
		mu.Lock()
		defer mu.Unlock()
		if readOnly {
			return syscall.EROFS
		}
		return nil
	})
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		d := w.boot(files)
		d.link.SetOnline(true)
		settle(time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 1 {
			t.Errorf("answers %v, %v", got, err)
		}
		if r := w.last(); !hasCondition(r, health.DiskFailing) || string(r.Running) != string(w.releases["1"].Digest) {
			t.Errorf("reports %+v", r)
		}
		mu.Lock()
		readOnly = false
		mu.Unlock()
		w.want(2, "2")
		settle(5 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 2 || hasCondition(w.last(), health.DiskFailing) {
			t.Errorf("after the repair: %v, %v, %+v", got, err, w.last().Conditions)
		}
		if err := d.stop(t); err != nil {
			t.Error(err)
		}
	})
}

// TestStrangersDoNotCauseRefreshes: messages that nobody known has signed.
func TestStrangersDoNotCauseRefreshes(t *testing.T) {
	w, base := standard(t)
	refreshes := 0
	on(t, w, base, func(t *testing.T, d *device) {
		real := w.director
		w.director = newWorld(t).director
		w.mu.Lock()
		refreshes = 0
		w.mu.Unlock()
		for n := range 30 {
			w.want(uint64(100+n), "2")
			settle(time.Second)
		}
		w.mu.Lock()
		got := refreshes
		w.mu.Unlock()
		if got > 2 {
			t.Errorf("%d refreshes for 30 messages of a stranger", got)
		}
		w.director = real
		w.want(200, "2")
		settle(2 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 2 {
			t.Errorf("the next honest update: %v, %v", got, err)
		}
	}, func(o *Options) {
		meta := o.Metadata
		o.Metadata = func(ctx context.Context, name string) ([]byte, error) {
			if name == "timestamp.json" {
				w.mu.Lock()
				refreshes++
				w.mu.Unlock()
			}
			return meta(ctx, name)
		}
	})
}

// reconnecting counts how often a new connection is asked for.
type reconnecting struct {
	*MemoryLink
	asked atomic.Int64
}

func (r *reconnecting) Reconnect() { r.asked.Add(1) }

// TestRenewedCertificateIsShown: the session of the old certificate ends, and a
// new CA is believed without a restart.
func TestRenewedCertificateIsShown(t *testing.T) {
	s := enrolltest.New(t, time.Now())
	s.Set(func(s *enrolltest.Server) { s.TrustRoot, s.MQTTAddress = newWorld(t).repo.Root(), "127.0.0.1:1" })
	f := slot.NewMem()
	id, err := Enroll(t.Context(), EnrollOptions{ServerURL: s.URL, Claim: s.Claim, Name: "cam", Serial: "S1", Target: testTarget, Files: f})
	if err != nil {
		t.Fatal(err)
	}
	l := &reconnecting{MemoryLink: NewMemoryLink(func(wire.Kind, []byte) error { return nil })}
	a, err := New(Options{Identity: id, Link: l, Host: &board{files: f, clock: time.Now}, Runtime: newFakeRuntime(f), Files: f})
	if err != nil {
		t.Fatal(err)
	}
	defer a.journal.Close()
	if err := a.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l.asked.Load() != 1 || bytes.Equal(a.identity.Load().Certificate[0], id.Certificate[0]) {
		t.Errorf("asked for %d new connections", l.asked.Load())
	}
	if err := a.renew(t.Context()); err != nil { // over a connection of the new one
		t.Fatal(err)
	}
}

// TestDamagedStateKeepsServing: what is committed survives a damaged file.
func TestDamagedStateKeepsServing(t *testing.T) {
	w, base := standard(t)
	for name, text := range map[string]string{"torn": `{"sha`, "one byte": ""} {
		t.Run(name, func(t *testing.T) {
			files := base.Crash(0)
			raw, err := files.ReadFile("state/agent.json")
			if err != nil {
				t.Fatal(err)
			}
			if text == "" {
				text = strings.Replace(string(raw), `"version":"1"`, `"version":"7"`, 1)
			}
			if text == string(raw) {
				t.Fatal("nothing is damaged")
			}
			if err := files.WriteFile("state/agent.json", []byte(text)); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				d := w.boot(files)
				settle(time.Minute) // without the network
				if got, err := d.runtime.answer(); err != nil || got != 1 || d.Status().RunningName != "meter@1" {
					t.Errorf("answers %v, %v as %s", got, err, d.Status().RunningName)
				}
				w.want(2, "2")
				d.link.SetOnline(true)
				settle(5 * time.Minute)
				if got, err := d.runtime.answer(); err != nil || got != 2 || !hasCondition(w.last(), health.JournalDamaged) {
					t.Errorf("answers %v, %v; %+v", got, err, w.last().Conditions)
				}
				if err := d.stop(t); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// crowded has room only while none of some blobs is in the store.
type crowded struct {
	board
	blobs []ota.Digest
}

func (c *crowded) DiskFree() (int64, error) {
	for _, d := range c.blobs {
		if _, err := c.files.ReadFile("blobs/sha256/" + d.Hex()[:2] + "/" + d.Hex()); err == nil {
			return 0, nil
		}
	}
	return 1 << 40, nil
}

// TestLeftoversMakeRoom: what a failed update left on the disk does not fail
// the next one.
func TestLeftoversMakeRoom(t *testing.T) {
	w, base := standard(t)
	junk := []byte("weights of an update that failed")
	var c *crowded
	on(t, w, base, func(t *testing.T, d *device) {
		left, err := d.blobs.PutBytes(junk)
		if err != nil {
			t.Fatal(err)
		}
		c.blobs = []ota.Digest{left}
		w.want(2, "2")
		settle(5 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 2 || w.last().FailureClass != "" {
			t.Errorf("answers %v, %v; %s", got, err, w.last().Failure)
		}
	}, func(o *Options) {
		c = &crowded{board: board{files: o.Files, clock: time.Now}}
		o.Host = c
	})
}

// TestSlowDownLapses: the control plane is spared for a time, not for ever.
func TestSlowDownLapses(t *testing.T) {
	var h holdReason
	h.slow(time.Hour, bubbleStart.Add(slowFor))
	if got := h.slowness(bubbleStart.Add(slowFor - 1)); got != time.Hour {
		t.Errorf("stretched by %s", got)
	}
	if got := h.slowness(bubbleStart.Add(slowFor)); got != 0 {
		t.Errorf("for ever stretched by %s", got)
	}
}

// TestReplaysDoNotFillTheQueue: a broker that sends an old command again and
// again is told of, and does not push other events out.
func TestReplaysDoNotFillTheQueue(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		payload, err := wire.Marshal(&wire.Cmd{Device: w.id.DeviceID, Counter: 1, Kind: wire.CmdReport, ExpiresAt: time.Now().Add(time.Hour).Unix()})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := trust.Sign(w.director, wire.AADCmd, payload)
		if err != nil {
			t.Fatal(err)
		}
		for range 500 {
			d.link.Deliver(wire.DownCmd, raw)
			settle(10 * time.Millisecond)
		}
		settle(10 * time.Second)
		refused := 0
		for _, e := range w.got().events {
			if e.Kind == "refused" && e.Attack == trust.ClassReplay {
				refused++
			}
		}
		if refused == 0 || refused > maxRefusals || hasCondition(w.last(), health.EventsDropped) {
			t.Errorf("%d events, %+v", refused, w.last().Conditions)
		}
	})
}
