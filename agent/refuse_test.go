package agent

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// on runs a test on a device with release "1" committed, online.
func on(t *testing.T, w *world, base *slot.Mem, f func(t *testing.T, d *device), change ...func(*Options)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.mu.Lock()
		w.raw, w.reports, w.events, w.hellos, w.blocks, w.offline, w.source, w.metadata = nil, nil, nil, nil, nil, false, w, w.repo.Source()
		w.mu.Unlock()
		d := w.boot(base.Crash(0), change...)
		d.link.SetOnline(true)
		settle(10 * time.Second)
		f(t, d)
		if err := d.stop(t); err != nil {
			t.Error(err)
		}
	})
}

func standard(t *testing.T) (*world, *slot.Mem) {
	w := newWorld(t)
	w.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1})
	w.release("2", model{Bias: 2}, releaseOptions{counter: 2, golden: 2, soak: 30 * time.Second})
	return w, committed(t, w)
}

// TestRefusedDesired: each is refused, changes nothing, is named in an event
// and a condition, and the next honest update works.
func TestRefusedDesired(t *testing.T) {
	w, base := standard(t)
	w.release("0", model{Bias: 9}, releaseOptions{counter: 1, golden: 9})
	_, foreignKey, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := trust.NewSigner(foreignKey)
	if err != nil {
		t.Fatal(err)
	}
	signWith := func(s *trust.Signer, aad string, d wire.Desired) []byte {
		payload, err := wire.Marshal(&d)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := trust.Sign(s, aad, payload)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	honest := func() wire.Desired {
		ref := w.releases["2"]
		return wire.Desired{Device: w.id.DeviceID, Tenant: tenant, Generation: wire.Generation{Epoch: 1, Counter: 2},
			IssuedAt: bubbleStart.Unix(), ExpiresAt: bubbleStart.AddDate(0, 0, 7).Unix(), Release: &ref}
	}
	with := func(change func(*wire.Desired)) []byte {
		d := honest()
		change(&d)
		return signWith(w.director, wire.AADDesired, d)
	}
	cases := map[string]struct {
		raw      []byte
		attack   string
		rejected bool
	}{
		"unsigned":        {[]byte{0xa0}, "unsigned", false},
		"foreign key":     {signWith(foreign, wire.AADDesired, honest()), trust.ClassArbitrary, false},
		"other use":       {signWith(w.director, wire.AADCmd, honest()), trust.ClassArbitrary, false},
		"other device":    {with(func(d *wire.Desired) { d.Device = wire.FormatDeviceID([16]byte{9}) }), trust.ClassWrongDevice, false},
		"other tenant":    {with(func(d *wire.Desired) { d.Tenant = "x" }), trust.ClassWrongDevice, false},
		"replay":          {with(func(d *wire.Desired) { d.Generation.Counter = 0 }), trust.ClassReplay, false},
		"same generation": {with(func(d *wire.Desired) { d.Generation.Counter = 1 }), trust.ClassReplay, false},
		"expired":         {with(func(d *wire.Desired) { d.ExpiresAt = bubbleStart.Unix() }), trust.ClassExpired, false},
		"not in the image repository": {with(func(d *wire.Desired) {
			d.Release = &wire.ReleaseRef{Target: "releases/meter/99", Digest: d.Release.Digest, Length: d.Release.Length, Counter: 99}
		}), trust.ClassDisagreement, true},
		"other digest":  {with(func(d *wire.Desired) { d.Release.Digest = make([]byte, 32) }), trust.ClassDisagreement, true},
		"other length":  {with(func(d *wire.Desired) { d.Release.Length++ }), trust.ClassDisagreement, true},
		"other counter": {with(func(d *wire.Desired) { d.Release.Counter++ }), trust.ClassDisagreement, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			on(t, w, base, func(t *testing.T, d *device) {
				for range 3 { // told once
					d.link.Deliver(wire.DownDesired, c.raw)
					settle(5 * time.Second)
				}
				if got, err := d.runtime.answer(); err != nil || got != 1 {
					t.Errorf("answers %v, %v", got, err)
				}
				if s := d.state.Get(); s.Held.Counter != 1 || s.Update != nil {
					t.Errorf("held %s, update %v", s.Held, s.Update)
				}
				refused := 0
				for _, e := range w.got().events {
					if e.Kind == "refused" {
						refused++
					}
				}
				if !w.event(c.attack) || refused != 1 {
					t.Errorf("no event %q, %d refusals: %+v", c.attack, refused, w.got().events)
				}
				r := w.last()
				if !hasCondition(r, health.TrustRefused) {
					t.Errorf("conditions %+v", r.Conditions)
				}
				if got := r.FailureClass == string(ota.Rejected); got != c.rejected {
					t.Errorf("failure %q %q", r.FailureClass, r.Failure)
				}
				w.want(3, "2")
				settle(2 * time.Minute)
				if got, err := d.runtime.answer(); err != nil || got != 2 {
					t.Errorf("the next honest update: %v, %v", got, err)
				}
				if r := w.last(); hasCondition(r, health.TrustRefused) || r.FailureClass != "" {
					t.Errorf("after the honest update: %+v %q", r.Conditions, r.FailureClass)
				}
			})
		})
	}
}

func hasCondition(r *wire.Reported, name string) bool {
	for _, c := range r.Conditions {
		if c.Name == name {
			return true
		}
	}
	return false
}

// TestRollback: a lower release counter needs the director's leave.
func TestRollback(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		w.want(2, "2")
		settle(2 * time.Minute)
		w.want(3, "1")
		settle(time.Minute)
		if got, _ := d.runtime.answer(); got != 2 || !w.event(trust.ClassRollback) || w.last().FailureClass != string(ota.Rejected) {
			t.Errorf("answers %v, events %+v", got, w.got().events)
		}
		w.want(4, "1", func(d *wire.Desired) { d.RollbackAllowed = true })
		settle(time.Minute)
		r := w.last()
		if got, err := d.runtime.answer(); err != nil || got != 1 || r.HighestCounter != 2 || r.RunningCounter != 1 {
			t.Errorf("answers %v, %v; report %+v", got, err, r)
		}
		if w.got().fetched == 0 {
			t.Error("nothing was fetched at all")
		}
	})
}

// TestAnotherName: counters are of a name, so a device may go to a younger
// product and follow its releases.
func TestAnotherName(t *testing.T) {
	w, base := standard(t)
	w.release("gate1", model{Bias: 5}, releaseOptions{counter: 1, golden: 5, name: "gate"})
	w.release("gate2", model{Bias: 6}, releaseOptions{counter: 2, golden: 6, name: "gate"})
	on(t, w, base, func(t *testing.T, d *device) {
		w.want(2, "2")
		settle(2 * time.Minute)
		for i, version := range []string{"gate1", "gate2"} {
			w.want(uint64(3+i), version)
			settle(2 * time.Minute)
			if got, err := d.runtime.answer(); err != nil || got != float32(5+i) {
				t.Errorf("%s: answers %v, %v; report %+v", version, got, err, w.last())
			}
		}
		w.want(5, "gate1")
		settle(2 * time.Minute)
		if got, _ := d.runtime.answer(); got != 6 || !w.event(trust.ClassRollback) {
			t.Errorf("went back to an older release of the same name: answers %v", got)
		}
	})
}

func TestBadBlobs(t *testing.T) {
	w, base := standard(t)
	damage := func(change func([]byte) []byte) sourceFunc {
		return func(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
			r, err := w.Open(ctx, d, offset, length)
			if err != nil || length < 200 {
				return r, err
			}
			raw, err := io.ReadAll(r)
			if err != nil {
				return nil, err
			}
			return io.NopCloser(strings.NewReader(string(change(raw)))), r.Close()
		}
	}
	for name, c := range map[string]struct {
		source sourceFunc
		cause  string
	}{
		"corrupt": {damage(func(b []byte) []byte { b[100] ^= 1; return b }), "digest"},
		"endless": {damage(func(b []byte) []byte { return append(b, b...) }), ""},
		"cut":     {damage(func(b []byte) []byte { return b[:len(b)/2] }), ""},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, w, base, func(t *testing.T, d *device) {
				w.mu.Lock()
				w.source = c.source
				w.mu.Unlock()
				w.want(2, "2")
				settle(10 * time.Minute)
				got, err := d.runtime.answer()
				if err != nil {
					t.Fatal(err)
				}
				if c.cause == "" { // cured by resuming, or what is beyond the length is left unread
					if got != 2 {
						t.Errorf("answers %v; %+v", got, w.last())
					}
					return
				}
				if r := w.last(); got != 1 || r.FailureClass != string(ota.Failed) || !strings.Contains(r.Failure, c.cause) {
					t.Errorf("answers %v, failure %s %q", got, r.FailureClass, r.Failure)
				}
				w.mu.Lock()
				w.source = w
				w.mu.Unlock()
				w.want(3, "2")
				settle(2 * time.Minute)
				if got, err := d.runtime.answer(); err != nil || got != 2 {
					t.Errorf("the next honest update: %v, %v", got, err)
				}
			})
		})
	}
}

// TestBadReleases: what loads but answers wrongly, cannot load, is for another
// target, or dies while it soaks never replaces what runs.
func TestBadReleases(t *testing.T) {
	w, base := standard(t)
	w.release("wrong", model{Bias: 7}, releaseOptions{counter: 3, golden: 2})
	w.release("incompatible", model{Fault: "incompatible"}, releaseOptions{counter: 4, golden: 2})
	w.release("orin-nx", model{Bias: 2}, releaseOptions{counter: 5, golden: 2, target: "linux/arm64;sm=7.2"})
	w.release("dies", model{Bias: 2, CrashPast: 9}, releaseOptions{counter: 6, golden: 2, soak: time.Minute})
	for name, c := range map[string]struct {
		class ota.FailureClass
		step  ota.Step
		cause string
	}{
		"wrong":        {ota.Failed, ota.StepProve, "output differs"},
		"incompatible": {ota.Rejected, ota.StepLoad, "operator Foo"},
		"orin-nx":      {ota.Rejected, ota.StepFetch, "sm=7.2"},
		"dies":         {ota.Failed, ota.StepSoak, "crashed"},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, w, base, func(t *testing.T, d *device) {
				w.want(2, name)
				settle(2 * time.Minute)
				r := w.last()
				if got, err := d.runtime.answer(); err != nil || got != 1 {
					t.Errorf("answers %v, %v", got, err)
				}
				if r.FailureClass != string(c.class) || !strings.HasPrefix(r.Failure, string(c.step)) || !strings.Contains(r.Failure, c.cause) || r.Phase != wire.PhaseFailed {
					t.Errorf("%s %s %q, phase %s", r.FailureClass, r.Step, r.Failure, r.Phase)
				}
				if strings.Contains(r.Failure, "\n") {
					t.Errorf("the cause has several lines: %q", r.Failure)
				}
				if len(d.runtime.models()) != 1 || !hasCondition(r, health.UpdateFailed) {
					t.Errorf("loaded %v, conditions %+v", d.runtime.models(), r.Conditions)
				}
				last := r.Journal[len(r.Journal)-1]
				if last.Step != string(ota.StepFetch) || last.State != wire.StepUndone {
					t.Errorf("journal ends with %s %s", last.Step, last.State)
				}
				st := d.Status()
				if !strings.Contains(st.Summary, "failed here") || len(st.Reasons) == 0 {
					t.Errorf("explain: %s %v", st.Summary, st.Reasons)
				}
				settle(time.Hour) // it is not tried again by itself
				if n := d.state.Get().Updates; n != 2 {
					t.Errorf("%d updates", n)
				}
			})
		})
	}
}

// TestCauseSurvivesReboot: so does the failure after a rollback.
func TestCauseSurvivesReboot(t *testing.T) {
	w, base := standard(t)
	w.release("wrong", model{Bias: 7}, releaseOptions{counter: 3, golden: 2})
	var files *slot.Mem
	on(t, w, base, func(t *testing.T, d *device) {
		w.want(2, "wrong")
		settle(time.Minute)
		files = d.opts.Files.(*slot.Mem)
	})
	on(t, w, files, func(t *testing.T, d *device) {
		r := w.last()
		if r.FailureClass != string(ota.Failed) || r.Step != "prove" || !strings.Contains(r.Failure, "prove") || string(r.FailedRelease) != string(w.releases["wrong"].Digest) || r.Phase != wire.PhaseFailed {
			t.Errorf("after the reboot: %+v", r)
		}
	})
}

func TestSupersede(t *testing.T) {
	w, base := standard(t)
	w.release("3", model{Bias: 3}, releaseOptions{counter: 3, golden: 3})
	t.Run("stuck load", func(t *testing.T) {
		on(t, w, base, func(t *testing.T, d *device) {
			stuck := make(chan struct{})
			d.runtime.mu.Lock()
			d.runtime.block = stuck
			d.runtime.mu.Unlock()
			w.want(2, "2")
			settle(time.Minute)
			if s := d.state.Get(); s.Update == nil {
				t.Fatal("no update under way")
			}
			d.runtime.mu.Lock()
			d.runtime.block = nil
			d.runtime.mu.Unlock()
			w.want(3, "3")
			settle(time.Minute)
			if got, err := d.runtime.answer(); err != nil || got != 3 || w.last().FailureClass != "" {
				t.Errorf("answers %v, %v, failure %q", got, err, w.last().Failure)
			}
		})
	})
	t.Run("back to what runs while soaking", func(t *testing.T) {
		on(t, w, base, func(t *testing.T, d *device) {
			w.want(2, "2")
			settle(15 * time.Second)
			if got, err := d.runtime.answer(); err != nil || got != 2 {
				t.Fatalf("not soaking: %v, %v", got, err)
			}
			w.want(3, "1", func(d *wire.Desired) { d.RollbackAllowed = true })
			settle(time.Minute)
			r := w.last()
			if got, err := d.runtime.answer(); err != nil || got != 1 || r.FailureClass != string(ota.Superseded) || r.Phase != wire.PhaseIdle {
				t.Errorf("answers %v, %v; %s %s", got, err, r.FailureClass, r.Phase)
			}
		})
	})
	t.Run("nothing wanted", func(t *testing.T) {
		on(t, w, base, func(t *testing.T, d *device) {
			w.want(2, "")
			settle(time.Minute)
			if len(d.runtime.models()) != 0 || w.last().Running != nil || w.last().Phase != wire.PhaseIdle {
				t.Errorf("loaded %v, %+v", d.runtime.models(), w.last())
			}
		})
	})
}

func TestNoCapacityUnloadsTheOldFirst(t *testing.T) {
	w, base := standard(t)
	w.release("wrong", model{Bias: 7}, releaseOptions{counter: 3, golden: 2})
	on(t, w, base, func(t *testing.T, d *device) {
		d.runtime.mu.Lock()
		d.runtime.room.Store(1)
		d.runtime.mu.Unlock()
		w.want(2, "wrong")
		settle(time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 1 {
			t.Errorf("after the failed one: %v, %v", got, err)
		}
		w.want(3, "2")
		settle(2 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 2 {
			t.Errorf("answers %v, %v", got, err)
		}
		// That inference stops, why and for how long is told before it does.
		journal := w.last().Journal
		if !slices.ContainsFunc(journal, func(l wire.StepEntry) bool {
			return l.Step == string(ota.StepLoad) && l.State == wire.StepStarted && strings.HasPrefix(l.Message, "swap policy auto: ") && strings.Contains(l.Message, "is unloaded first and nothing answers for ")
		}) {
			t.Errorf("journal %+v", journal)
		}
	})
}

func TestParameters(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		seal, err := sealPublic(d.identity.Load())
		if err != nil {
			t.Fatal(err)
		}
		param := func(url string) func(*wire.Desired) {
			sealed, err := trust.Seal(seal, trust.SealAAD(w.id.DeviceID, "camera.url"), []byte(url))
			if err != nil {
				t.Fatal(err)
			}
			return func(d *wire.Desired) {
				d.Params = []wire.Param{{Key: "camera.url", Value: sealed, Secret: true}, {Key: "rate", Value: []byte("5")}}
			}
		}
		before := d.fetcher.BytesFetched()
		for i, url := range []string{"rtsp://a", "rtsp://b"} {
			w.want(uint64(2+i), "1", param(url))
			settle(time.Minute)
			want := manifest.ParamsDigest([]wire.Param{{Key: "camera.url", Value: []byte(url)}, {Key: "rate", Value: []byte("5")}})
			r := w.last()
			if string(r.ParamsDigest) != string(want) || r.FailureClass != "" || len(d.runtime.models()) != 1 {
				t.Fatalf("digest %x, want %x; %s; %v", r.ParamsDigest, want, r.Failure, d.runtime.models())
			}
			for _, l := range d.runtime.models() {
				if l.params["camera.url"] != url || l.params["rate"] != "5" || l.answered == 0 {
					t.Errorf("workload got %v, answered %d", l.params, l.answered)
				}
			}
		}
		if d.fetcher.BytesFetched() != before {
			t.Error("a change of parameters fetched bytes")
		}
		// A secret that is sealed to somebody else.
		w.want(9, "1", func(d *wire.Desired) {
			d.Params = []wire.Param{{Key: "camera.url", Value: make([]byte, 64), Secret: true}}
		})
		settle(time.Minute)
		if r := w.last(); r.FailureClass != string(ota.Rejected) || !strings.Contains(r.Failure, "camera.url") {
			t.Errorf("%s %q", r.FailureClass, r.Failure)
		}
	})
}

func sealPublic(id *Identity) ([]byte, error) {
	k, err := ecdh.X25519().NewPrivateKey(id.SealKey)
	if err != nil {
		return nil, err
	}
	return k.PublicKey().Bytes(), nil
}

func (w *world) command(t *testing.T, c wire.Cmd) {
	t.Helper()
	if c.Device == "" {
		c.Device = w.id.DeviceID
	}
	if c.ExpiresAt == 0 {
		c.ExpiresAt = time.Now().Add(time.Minute).Unix()
	}
	payload, err := wire.Marshal(&c)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := trust.Sign(w.director, wire.AADCmd, payload)
	if err != nil {
		t.Fatal(err)
	}
	w.link.Deliver(wire.DownCmd, raw)
	settle(5 * time.Second)
}

func TestCommands(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		settle(time.Minute)
		n := len(w.got().reports)
		w.command(t, wire.Cmd{Counter: 5, Kind: wire.CmdReport})
		if len(w.got().reports) != n+1 {
			t.Errorf("%d reports after the command, %d before", len(w.got().reports), n)
		}
		for name, c := range map[string]struct {
			cmd    wire.Cmd
			attack string
		}{
			"again":        {wire.Cmd{Counter: 5, Kind: wire.CmdReport}, trust.ClassReplay},
			"expired":      {wire.Cmd{Counter: 6, Kind: wire.CmdReport, ExpiresAt: bubbleStart.Unix()}, trust.ClassExpired},
			"other device": {wire.Cmd{Counter: 7, Kind: wire.CmdReport, Device: wire.FormatDeviceID([16]byte{9})}, trust.ClassWrongDevice},
		} {
			w.command(t, c.cmd)
			if !w.event(c.attack) {
				t.Errorf("%s: no event %s", name, c.attack)
			}
		}
		blocks := len(w.got().blocks)
		w.command(t, wire.Cmd{Counter: 8, Kind: wire.CmdWatch, Seconds: 3600})
		settle(55 * time.Second)
		if got := len(w.got().blocks) - blocks; got < 5 {
			t.Errorf("%d blocks in a minute of being watched", got)
		}
		settle(10 * time.Minute)
		blocks = len(w.got().blocks)
		settle(5 * time.Minute)
		if got := len(w.got().blocks) - blocks; got > 6 {
			t.Errorf("%d blocks in 5 minutes after the lease", got)
		}
		w.command(t, wire.Cmd{Counter: 9, Kind: wire.CmdSlowDown, Seconds: 1800})
		settle(10 * time.Minute) // the heartbeat that waits already
		n = len(w.got().reports)
		settle(29 * time.Minute)
		if got := len(w.got().reports) - n; got > 1 {
			t.Errorf("%d reports in 29 minutes after slow down", got)
		}
	})
}

func TestHeartbeatAndOffline(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		settle(time.Minute)
		n := len(w.got().reports)
		settle(time.Hour)
		beats := len(w.got().reports) - n
		if beats < 6 || beats > 13 {
			t.Errorf("%d heartbeats in an hour", beats)
		}
		last := w.got().reports[len(w.got().reports)-1]
		if last.Full != nil || last.Held.Generation.Counter != 1 || last.Counter <= w.got().reports[len(w.got().reports)-2].Counter {
			t.Errorf("heartbeat %+v", last)
		}
		d.link.SetOnline(false)
		blocks := len(w.got().blocks)
		settle(24 * time.Hour)
		if got, err := d.runtime.answer(); err != nil || got != 1 {
			t.Errorf("offline: %v, %v", got, err)
		}
		if st := d.Status(); st.Link != "offline" || st.SpoolFrames < 20*60 {
			t.Errorf("offline: %s, %d blocks wait", st.Link, st.SpoolFrames)
		}
		d.link.SetOnline(true)
		settle(time.Minute)
		if len(w.got().hellos) != 2 || len(w.got().blocks)-blocks < 20*60 {
			t.Errorf("%d hellos, %d blocks", len(w.got().hellos), len(w.got().blocks)-blocks)
		}
		var seen uint64
		for _, b := range w.got().blocks {
			if b.ID.Counter <= seen {
				t.Fatalf("block %d after %d", b.ID.Counter, seen)
			}
			seen = b.ID.Counter
		}
	}, func(o *Options) { o.TelemetryEvery, o.CheckEvery = 30*time.Second, time.Minute })
}

// TestLostMessages loses what goes down: the next heartbeat brings it again.
func TestLostMessages(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		n := 0
		w.mu.Lock()
		w.link = NewMemoryLink(nil) // deliveries go nowhere
		w.mu.Unlock()
		w.want(2, "2")
		settle(30 * time.Minute)
		for _, r := range w.got().reports {
			if r.Held.Generation.Counter == 1 {
				n++
			}
		}
		if got, _ := d.runtime.answer(); got != 1 || n == 0 {
			t.Fatalf("answers %v without having heard of it; %d reports with the old generation", got, n)
		}
		w.mu.Lock()
		w.link = d.link
		w.mu.Unlock()
		settle(15 * time.Minute) // the next heartbeat
		if got, err := d.runtime.answer(); err != nil || got != 2 {
			t.Errorf("answers %v, %v", got, err)
		}
	})
}

// TestClockIn1970 boots with a clock at the epoch: the device says so, takes
// its desired state and judges expiry at the trusted time.
func TestClockIn1970(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		if !w.got().hellos[0].Clock.Doubtful || !hasCondition(w.last(), health.ClockDoubtful) {
			t.Errorf("hello %+v, conditions %+v", w.got().hellos[0], w.last().Conditions)
		}
		w.want(2, "2")
		settle(2 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 2 {
			t.Errorf("answers %v, %v", got, err)
		}
	}, func(o *Options) {
		o.Now = func() time.Time { return time.Now().Add(-bubbleStart.Sub(time.Unix(0, 0))) }
	})
}

// TestTrustServerDown: what cannot be verified yet waits, and says so.
func TestTrustServerDown(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		w.unplug(true)
		w.want(2, "2")
		settle(5 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 1 || !hasCondition(w.last(), health.TrustStale) {
			t.Errorf("answers %v, %v, conditions %+v", got, err, w.last().Conditions)
		}
		if st := d.Status(); !strings.Contains(fmt.Sprint(st.Reasons), "no network") {
			t.Errorf("explain %v", st.Reasons)
		}
		w.unplug(false)
		settle(5 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 2 || hasCondition(w.last(), health.TrustStale) {
			t.Errorf("answers %v, %v, conditions %+v", got, err, w.last().Conditions)
		}
	})
}

// TestCrashedWorkloadIsRestored: the runtime forgets the committed workload.
func TestCrashedWorkloadIsRestored(t *testing.T) {
	w, base := standard(t)
	on(t, w, base, func(t *testing.T, d *device) {
		if err := d.runtime.Unload(t.Context(), d.state.Get().Current.WorkloadID()); err != nil {
			t.Fatal(err)
		}
		settle(30 * time.Second)
		if got, err := d.runtime.answer(); err != nil || got != 1 || hasCondition(w.last(), health.WorkloadDown) {
			t.Errorf("answers %v, %v, %+v", got, err, w.last().Conditions)
		}
		crashes := 0
		for _, e := range w.got().events {
			if e.Kind == "crash" {
				crashes++
			}
		}
		if crashes != 1 {
			t.Errorf("%d crash events, want 1", crashes)
		}
		// Its staged file is damaged too: it is laid out again.
		dir := d.state.Get().Current.Dir()
		if err := d.opts.Files.WriteFile(dir+"/model.onnx", []byte("{")); err != nil {
			t.Fatal(err)
		}
		if err := d.runtime.Unload(t.Context(), d.state.Get().Current.WorkloadID()); err != nil {
			t.Fatal(err)
		}
		settle(30 * time.Second)
		if got, err := d.runtime.answer(); err != nil || got != 1 {
			t.Errorf("with a damaged file: %v, %v", got, err)
		}
	})
}

func TestNewNeedsItsParts(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("an agent without host, runtime and files")
	}
	f := slot.NewMem()
	if _, err := New(Options{Host: &board{files: f, clock: time.Now}, Runtime: newFakeRuntime(f), Files: f}); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("no identity: %v", err)
	}
}
