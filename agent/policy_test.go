package agent

import (
	"context"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry"
)

// The bubble's clock begins on Saturday, 2000-01-01 00:00 UTC.

func under(p wire.Policy) func(*wire.Desired) { return func(d *wire.Desired) { d.Policy = &p } }

func utc(windows string) []wire.Schedule { return []wire.Schedule{{Windows: windows, Zone: "UTC"}} }

// big publishes a release 9 with a file that no chunk saves.
func (w *world) big(n int) {
	w.release("9", model{Bias: 9}, releaseOptions{counter: 9, golden: 9, soak: 3 * time.Second, extra: []manifest.Descriptor{w.stored("big.bin", noise(7, n))}})
}

func (w *world) transfer() wire.PolicyState {
	if r := w.last(); r != nil && r.Policy != nil {
		return *r.Policy
	}
	return wire.PolicyState{}
}

func bias(t *testing.T, d *device, want float32, when string) {
	t.Helper()
	if got, err := d.runtime.answer(); err != nil || got != want {
		t.Errorf("%s: answers %v, %v, want %v", when, got, err, want)
	}
}

// TestUpdateWaitsForItsWindows: bytes come in the download window, the release
// is put to work in the apply window, what waits is said everywhere, and what
// is committed serves throughout.
func TestUpdateWaitsForItsWindows(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		w.want(2, "2", under(wire.Policy{Download: utc("02:00-03:00"), Apply: utc("05:00-06:00")}))
		settle(time.Hour)
		before := w.got().fetched
		s := w.transfer()
		if s.Waits != wire.WaitsForDownloadWindow || s.Until != bubbleStart.Add(2*time.Hour).Unix() || !hasCondition(w.last(), health.WaitingForWindow) ||
			w.last().Phase != wire.PhaseUpdating || !d.reason("until Sat 2000-01-01 02:00 UTC") {
			t.Errorf("before the download window: %+v, %q", s, d.Status().Reasons)
		}
		bias(t, d, 1, "while the download waits")
		settle(90 * time.Minute)
		if now := w.got().fetched; now == before {
			t.Error("nothing came in the window")
		}
		if s := w.transfer(); s.Waits != wire.WaitsForApplyWindow || s.Until != bubbleStart.Add(5*time.Hour).Unix() || w.last().Step != string(ota.StepStage) {
			t.Errorf("before the apply window: %+v at %s", s, w.last().Step)
		}
		if err := d.runtime.Unload(t.Context(), d.state.Get().Current.WorkloadID()); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		bias(t, d, 1, "restored while the release waits")
		settle(2*time.Hour + 40*time.Minute)
		bias(t, d, 2, "in the apply window")
		if s := w.transfer(); s.Waits != 0 || hasCondition(w.last(), health.WaitingForWindow) || w.last().Phase != wire.PhaseIdle {
			t.Errorf("after it: %+v", s)
		}
	})
}

// TestSoakOutlastsItsWindow: what began in the window is not interrupted by its
// end, and not by a restart after it.
func TestSoakOutlastsItsWindow(t *testing.T) {
	for _, restart := range []bool{false, true} {
		w, base := standard(t)
		w.release("3", model{Bias: 3}, releaseOptions{counter: 3, golden: 3, soak: time.Hour})
		on(t, w, base, func(t *testing.T, d *device) {
			w.want(2, "3", under(wire.Policy{Apply: utc("00:00-00:30")}))
			settle(20 * time.Minute)
			if step := w.last().Step; step != string(ota.StepSoak) {
				t.Fatalf("at %s", step)
			}
			settle(20 * time.Minute) // the window is over
			if restart {
				if err := d.stop(t); err != nil {
					t.Fatal(err)
				}
				again := w.boot(d.opts.Files)
				defer func() {
					if err := again.stop(t); err != nil {
						t.Error(err)
					}
				}()
				again.link.SetOnline(true)
				d.runtime = again.runtime
			}
			settle(70 * time.Minute)
			bias(t, d, 3, "after its soak")
			if r := w.last(); r.Phase != wire.PhaseIdle || r.FailureClass != "" {
				t.Errorf("restart %t: %s, %s", restart, r.Phase, r.Failure)
			}
			if restart { // on stops the first one
				d.cancel, d.done = func() {}, make(chan error, 1)
				d.done <- nil
			}
		})
	}
}

// TestNewerSupersedesWhatWaits, also one that waits for nothing, and going back.
func TestNewerSupersedesWhatWaits(t *testing.T) {
	w, base := standard(t)
	w.release("3", model{Bias: 3}, releaseOptions{counter: 3, golden: 3})
	on(t, w, base, func(t *testing.T, d *device) {
		closed := wire.Policy{Download: utc("20:00-21:00"), Apply: utc("22:00-23:00")}
		w.want(2, "2", under(closed))
		settle(time.Hour)
		if w.transfer().Waits == 0 {
			t.Fatal("it does not wait")
		}
		now := closed
		now.Now = true
		w.want(3, "3", under(now))
		settle(5 * time.Minute)
		bias(t, d, 3, "by an operator's word")
		w.want(4, "2", under(closed), func(d *wire.Desired) { d.RollbackAllowed = true })
		settle(time.Hour)
		bias(t, d, 3, "while the next one waits")
		w.want(5, "2", func(d *wire.Desired) { d.RollbackAllowed = true }) // the policy is lifted
		settle(5 * time.Minute)
		bias(t, d, 2, "without a policy")
		if r := w.last(); r.Policy != nil || r.Phase != wire.PhaseIdle {
			t.Errorf("%+v", r.Policy)
		}
	})
}

// TestAllowanceOverDays: a download takes as many days as its allowance wants,
// no more comes on any of them, restarts give nothing back, and another link
// class is free.
func TestAllowanceOverDays(t *testing.T) {
	const perDay = 1 << 20
	w, base := standard(t)
	w.big(5 << 19) // 2.5 MiB
	policy := wire.Policy{Zone: "UTC", Metered: []string{"wwan*"}, Allowances: []wire.Allowance{{Class: wire.Metered, Period: wire.PerDay, Bytes: perDay}}}
	on(t, w, base, func(t *testing.T, d *device) {
		d.opts.Host.(*board).iface.Store("wwan0")
		w.want(2, "9", under(policy))
		at := w.got().fetched
		for day := range 2 {
			settle(20 * time.Hour)
			now := w.got().fetched
			if came := now - at; came > perDay || came < perDay*9/10 {
				t.Errorf("day %d: %d bytes", day, came)
			}
			at = now
			if s := w.transfer(); s.Waits != wire.WaitsForAllowance || s.Interface != "wwan0" || s.Class != wire.Metered || !hasCondition(w.last(), health.BudgetUsed) ||
				len(s.Used) != 1 || s.Used[0].Bytes != perDay || s.Until != bubbleStart.AddDate(0, 0, day+1).Unix() {
				t.Errorf("day %d: %+v", day, s)
			}
			bias(t, d, 1, "while it waits")
			settle(4*time.Hour - time.Minute) // to the last minute of the day
			at = w.got().fetched
			settle(time.Minute)
		}
		settle(time.Hour)
		bias(t, d, 9, "on the third day")
	})
}

func TestOtherLinkIsFree(t *testing.T) {
	w, base := standard(t)
	w.big(1 << 20)
	on(t, w, base, func(t *testing.T, d *device) {
		d.opts.Host.(*board).iface.Store("wwan0")
		none := wire.Policy{Metered: []string{"wwan*"}, Allowances: []wire.Allowance{{Class: wire.Metered, Period: wire.PerMonth, Bytes: 0}}}
		w.want(2, "9", under(none))
		settle(time.Hour)
		if !d.reason("no bytes may come over metered links, and wwan0 is one") {
			t.Errorf("%q", d.Status().Reasons)
		}
		d.opts.Host.(*board).iface.Store("eth0")
		settle(3 * time.Minute)
		bias(t, d, 9, "over the cable")
	})
}

// TestRefusedPolicy: what this agent cannot keep to is refused as a whole, and
// said.
func TestRefusedPolicy(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		w.want(2, "2", under(wire.Policy{Apply: utc("every full moon")}))
		settle(time.Minute)
		if r := w.last(); r.FailureClass != string(ota.Rejected) || !strings.Contains(r.Failure, "apply window") {
			t.Errorf("%s: %s", r.FailureClass, r.Failure)
		}
		bias(t, d, 1, "after the refusal")
		w.want(3, "2", under(wire.Policy{Apply: utc("00:00-24:00")}))
		settle(time.Minute)
		bias(t, d, 2, "with the next")
	})
}

// TestReserveHolds: while a download fills the disk, and others with it, what
// state, journal and telemetry need stays free; the update fails by name.
func TestReserveHolds(t *testing.T) {
	const reserve = 64 << 20
	w, base := standard(t)
	w.big(30 << 20)
	on(t, w, base, func(t *testing.T, d *device) {
		files := d.opts.Files.(*slot.Mem)
		crowded := false
		w.serveBlobsBy(func(ctx context.Context, b ota.Digest, offset, length int64) (io.ReadCloser, error) {
			r, err := w.Open(ctx, b, offset, length)
			return readFunc{r, func(p []byte) (int, error) {
				n, err := r.Read(p)
				if offset += int64(n); offset > 10<<20 && !crowded { // somebody else writes too
					crowded = true
					files.SetFree(files.Free() - 85<<20)
				}
				return n, err
			}}, err
		})
		w.want(2, "9", under(wire.Policy{Reserve: reserve}))
		settle(20 * time.Minute)
		r := w.last()
		if r.FailureClass != string(ota.Failed) || !strings.Contains(r.Failure, "stay in reserve") {
			t.Errorf("%s: %s", r.FailureClass, r.Failure)
		}
		if files.Free() < reserve-(4<<20) {
			t.Errorf("%d bytes stay free", files.Free())
		}
		if err := d.state.Change(func(s *state.State) { s.Starts++ }); err != nil {
			t.Errorf("state cannot be written: %v", err)
		}
		bias(t, d, 1, "after it")
	}, func(o *Options) {
		files := o.Files.(*slot.Mem)
		files.SetFree(reserve + 100<<20)
		o.Host = &tight{board{files: files, clock: time.Now}, files}
	})
}

type readFunc struct {
	io.Closer
	read func([]byte) (int, error)
}

func (r readFunc) Read(p []byte) (int, error) { return r.read(p) }

// tight says how much is really free.
type tight struct {
	board
	mem *slot.Mem
}

func (h *tight) DiskFree() (int64, error) { return h.mem.Free(), nil }

// TestMemoryPreflight: before the first byte of it, a model that no memory of
// this machine holds is rejected, and one that fits only alone is noted.
func TestMemoryPreflight(t *testing.T) {
	w, base := standard(t)
	w.release("8", model{Bias: 8, Pad: noise(5, 3<<20)}, releaseOptions{counter: 8, golden: 8})
	var h *measured
	on(t, w, base, func(t *testing.T, d *device) {
		before := w.got().fetched
		w.want(2, "8")
		settle(time.Minute)
		if r := w.last(); r.FailureClass != string(ota.Rejected) || !strings.Contains(r.Failure, "bytes of weights, the memory 1048576") {
			t.Errorf("%s: %s", r.FailureClass, r.Failure)
		}
		if n := w.got().fetched - before; n > 64<<10 {
			t.Errorf("%d bytes were fetched of it", n)
		}
		bias(t, d, 1, "after the refusal")
		h.total.Store(8 << 20)
		w.want(3, "8")
		settle(time.Minute)
		bias(t, d, 8, "with more memory")
		noted := false
		for _, l := range w.last().Journal {
			noted = noted || l.Step == string(ota.StepFetch) && strings.Contains(l.Message, "the old one is unloaded first")
		}
		if !noted {
			t.Errorf("journal %+v", w.last().Journal)
		}
	}, func(o *Options) {
		h = &measured{board: board{files: o.Files, clock: time.Now}}
		h.total.Store(1 << 20)
		o.Host = h
	})
}

// measured is a board that says how much memory it has; all but 1 MiB of it is
// in use.
type measured struct {
	board
	total atomic.Int64
}

func (m *measured) Readings(context.Context) ([]telemetry.Reading, error) {
	n := float64(m.total.Load())
	return []telemetry.Reading{
		{Series: telemetry.NewSeries(telemetry.MemoryTotal), Time: time.Now(), Value: n},
		{Series: telemetry.NewSeries(telemetry.MemoryUsed), Time: time.Now(), Value: max(0, n-1<<20)},
	}, nil
}
