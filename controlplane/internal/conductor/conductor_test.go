package conductor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
)

func TestGoodReleaseReachesEveryDevice(t *testing.T) {
	w := newWorld(t, 10)
	s := w.start(quickSpec, "")
	if s.Name != "m@2" || s.Phase != "running" || s.Waves[0].Devices != 2 || s.Waves[0].InProgress != 2 || s.Waves[1].Devices != 8 {
		t.Errorf("%+v", s)
	}
	w.spin(20 * time.Minute)
	s, xs := w.get("m@2")
	if s.Phase != "succeeded" || s.Healthy != 10 || s.Harmed != 0 || s.Waves[0].Verdict != "pass" || s.Waves[0].State != "passed" {
		t.Errorf("%+v", s)
	}
	if len(s.Waves[0].Evidence) != 2 || s.Waves[0].Started.IsZero() || !s.Waves[0].Ended.After(s.Waves[0].Started) {
		t.Errorf("wave: %+v", s.Waves[0])
	}
	for _, x := range xs {
		if x.State != "healthy" || x.Previous != digest("m@1") || x.Attempts != 1 {
			t.Errorf("%+v", x)
		}
	}
	if d := cmp.Diff(map[string]int{"m@2": 10}, w.running()); d != "" {
		t.Error(d)
	}
	w.checkLog(s.ID)
	if len(w.log) != 10 || w.log[0].RollbackAllowed {
		t.Errorf("log: %+v", w.log)
	}
}

// A release that fails on the device, and one that is only slow, stay in the
// canary, are taken back, and touch nobody else.
func TestBadReleaseStaysInTheCanary(t *testing.T) {
	for how, harmed := range map[string]int{"golden": 0, "slow": 2, "crash": 1} {
		t.Run(how, func(t *testing.T) {
			w := newWorld(t, 10)
			w.breaks = func(r ota.Digest, id string) string {
				if r != digest("m@2") || how == "crash" && id != "d00" && id != "d02" && id != "d04" && id != "d06" && id != "d08" {
					return ""
				}
				return how
			}
			s := w.start(quickSpec, "bad")
			w.spin(30 * time.Minute)
			s, xs := w.get(s.ID)
			if s.Phase != "rolled-back" || s.Healthy != 0 {
				t.Errorf("%+v", s)
			}
			if s.Harmed != harmed {
				t.Errorf("harmed %d, want %d", s.Harmed, harmed)
			}
			touched := map[string]bool{}
			for _, in := range w.log {
				touched[in.Device] = true
				if in.Release == digest("m@1") && !in.RollbackAllowed {
					t.Errorf("a rollback that the device may refuse: %+v", in)
				}
			}
			if len(touched) != 2 {
				t.Errorf("touched %v, want the two canaries", touched)
			}
			for _, x := range xs {
				if x.Wave == "rest" && (x.State != "withdrawn" || x.Attempts != 0) {
					t.Errorf("%+v", x)
				}
			}
			if d := cmp.Diff(map[string]int{"m@1": 10}, w.running()); d != "" {
				t.Error(d)
			}
			w.checkLog(s.ID)
		})
	}
}

// The story is the same whether or not the control plane is killed after each
// step, also between storing a decision and sending it.
func TestRestartAtEveryStep(t *testing.T) {
	story := func(kill int) (Snapshot, []fleet.Intent) {
		w := newWorld(t, 8)
		w.breaks = func(r ota.Digest, _ string) string {
			if r == digest("m@3") {
				return "slow"
			}
			return ""
		}
		id := w.start(quickSpec, "good").ID
		for i := range 60 {
			if kill >= 0 && i%max(1, kill) == 0 {
				w.down = errors.New("killed before it was sent")
				w.step()
				w.down = nil
				w.restart()
			}
			w.step()
			w.now = w.now.Add(10 * time.Second)
		}
		bad := w.start(strings.ReplaceAll(quickSpec, "m@2", "m@3"), "bad").ID
		for i := range 60 {
			if kill >= 0 && i%max(1, kill) == 0 {
				w.down = errors.New("killed before it was sent")
				w.step()
				w.down = nil
				w.restart()
			}
			w.step()
			w.now = w.now.Add(10 * time.Second)
		}
		w.checkLog(id, bad)
		if d := cmp.Diff(map[string]int{"m@2": 8}, w.running()); d != "" {
			t.Error(d)
		}
		s, _ := w.get(bad)
		if good, _ := w.get(id); good.Phase != "succeeded" {
			t.Errorf("the good one: %+v", good)
		}
		return s, w.log
	}
	want, _ := story(-1)
	for _, every := range []int{1, 2, 3, 7} {
		got, _ := story(every)
		if got.Phase != want.Phase || got.Harmed != want.Harmed || got.Phase != "rolled-back" || got.Harmed != 2 {
			t.Errorf("killed every %d steps: %s, %d harmed; undisturbed: %s, %d harmed", every, got.Phase, got.Harmed, want.Phase, want.Harmed)
		}
	}
}

func TestPauseHoldsOffersAndClocks(t *testing.T) {
	w := newWorld(t, 10)
	id := w.start(quickSpec, "").ID
	w.spin(30 * time.Second)
	if s, err := w.c.Pause(t.Context(), tenant, id, "user:admin", "storm"); err != nil || s.Phase != "paused" || s.Reason != "paused by user:admin: storm" {
		t.Fatalf("%+v %v", s, err)
	}
	before := len(w.log)
	w.spin(time.Hour)
	w.restart()
	w.spin(time.Hour)
	if len(w.log) != before {
		t.Errorf("%d messages were sent during a pause", len(w.log)-before)
	}
	if _, err := w.c.Pause(t.Context(), tenant, id, "user:admin", ""); !errors.Is(err, ErrState) {
		t.Errorf("paused twice: %v", err)
	}
	lines, err := w.c.Explain(t.Context(), tenant, id)
	if err != nil || !strings.Contains(lines[0], "paused since") {
		t.Errorf("%v %v", lines, err)
	}
	if _, err := w.c.Resume(t.Context(), tenant, id, "user:admin", ""); err != nil {
		t.Fatal(err)
	}
	w.spin(20 * time.Minute)
	if s, _ := w.get(id); s.Phase != "succeeded" {
		t.Errorf("%+v", s)
	}
	if _, err := w.c.Abort(t.Context(), tenant, id, "user:admin", ""); !errors.Is(err, ErrState) {
		t.Errorf("aborted after its end: %v", err)
	}
}

func TestAbortByAPersonTakesBackWithoutHarm(t *testing.T) {
	w := newWorld(t, 10)
	id := w.start(quickSpec, "").ID
	w.spin(2 * time.Minute)
	if _, err := w.c.Abort(t.Context(), tenant, id, "user:admin", "changed my mind"); err != nil {
		t.Fatal(err)
	}
	w.spin(5 * time.Minute)
	s, _ := w.get(id)
	if s.Phase != "rolled-back" || s.Harmed != 0 || !strings.Contains(s.Reason, "changed my mind") || s.RolledBack == 0 {
		t.Errorf("%+v", s)
	}
	if d := cmp.Diff(map[string]int{"m@1": 10}, w.running()); d != "" {
		t.Error(d)
	}
	w.checkLog(id)
}

func TestManualApproval(t *testing.T) {
	w := newWorld(t, 4)
	spec := strings.Replace(quickSpec, `"gate":{`, `"gate":{"approval":"manual",`, 1)
	id := w.start(spec, "").ID
	if _, err := w.c.Approve(t.Context(), tenant, id, "canary", "user:admin", ""); !errors.Is(err, ErrState) {
		t.Errorf("approved before the verdict: %v", err)
	}
	w.spin(20 * time.Minute)
	if s, _ := w.get(id); s.Waves[0].State != "passed" || s.Waves[1].State != "waiting" {
		t.Errorf("%+v", s.Waves)
	}
	if _, err := w.c.Approve(t.Context(), tenant, id, "nope", "user:admin", ""); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if _, err := w.c.Approve(t.Context(), tenant, id, "", "user:admin", "seen it"); err != nil {
		t.Fatal(err)
	}
	w.spin(20 * time.Minute)
	if s, _ := w.get(id); s.Phase != "succeeded" {
		t.Errorf("%+v", s)
	}
}

func TestNewerRolloutTakesDevicesOver(t *testing.T) {
	w := newWorld(t, 6)
	old := w.start(quickSpec, "old").ID
	w.step()
	young := w.start(strings.ReplaceAll(quickSpec, "m@2", "m@3"), "young").ID
	w.spin(30 * time.Minute)
	o, oxs := w.get(old)
	y, _ := w.get(young)
	if y.Phase != "succeeded" || y.Healthy != 6 {
		t.Errorf("young: %+v", y)
	}
	if o.Phase == "running" || o.Harmed != 0 {
		t.Errorf("old: %+v", o)
	}
	for _, x := range oxs {
		if x.Class != ota.Superseded {
			t.Errorf("%+v", x)
		}
	}
	if d := cmp.Diff(map[string]int{"m@3": 6}, w.running()); d != "" {
		t.Error(d)
	}
	w.checkLog(old, young)
}

// A person who assigns another release to a device that is being updated takes
// it out of the rollout, which goes on without it.
func TestAssignmentByHandWins(t *testing.T) {
	w := newWorld(t, 6)
	id := w.start(quickSpec, "").ID
	w.spin(120 * time.Second) // the rest has its offers
	_, xs := w.get(id)
	mine := xs[len(xs)-1].Device
	if err := w.SetDesiredAll(t.Context(), tenant, []fleet.Intent{{Device: mine, Release: digest("m@3")}}); err != nil {
		t.Fatal(err)
	}
	w.log = w.log[:len(w.log)-1] // it is no decision of the rollout
	w.spin(20 * time.Minute)
	s, xs := w.get(id)
	if last := xs[len(xs)-1]; last.Class != ota.Superseded || last.State != "withdrawn" || !strings.Contains(last.Message, "by hand") {
		t.Errorf("%+v", last)
	}
	if d := cmp.Diff(map[string]int{"m@2": 5, "m@3": 1}, w.running()); d != "" || s.Phase != "succeeded" || s.Harmed != 0 {
		t.Errorf("%s %+v", d, s)
	}
	w.checkLog(id)
}

func TestSerialRolloutWaits(t *testing.T) {
	w := newWorld(t, 4)
	old := w.start(quickSpec, "old").ID
	w.step()
	spec := strings.Replace(strings.ReplaceAll(quickSpec, "m@2", "m@3"), `{"release"`, `{"supersede":"serial","release"`, 1)
	young := w.start(spec, "young").ID
	w.step()
	if s, _ := w.get(young); s.Waves[0].InProgress != 0 {
		t.Errorf("a serial rollout did not wait: %+v", s)
	}
	w.spin(time.Hour)
	o, _ := w.get(old)
	y, _ := w.get(young)
	if o.Phase != "succeeded" || y.Phase != "succeeded" {
		t.Errorf("old %s, young %s", o.Phase, y.Phase)
	}
	w.checkLog(old, young)
}

func TestRefusedByTheFleetIsARejection(t *testing.T) {
	w := newWorld(t, 8)
	id := w.start(strings.Replace(quickSpec, `"minPct":90`, `"minPct":50`, 1), "").ID
	_, xs := w.get(id)
	w.refuse[xs[len(xs)-1].Device] = fmt.Errorf("%w: device wants camera", fleet.ErrParameter)
	w.spin(20 * time.Minute)
	s, xs := w.get(id)
	last := xs[len(xs)-1]
	if last.State != "failed" || last.Class != ota.Rejected || !strings.Contains(last.Message, "camera") {
		t.Errorf("%+v", last)
	}
	if s.Healthy != 7 || s.Harmed != 0 {
		t.Errorf("%+v", s)
	}
}

func TestRetryIsANewAttemptOnTheDevice(t *testing.T) {
	w := newWorld(t, 2)
	tries := map[string]int{}
	w.breaks = func(r ota.Digest, id string) string {
		if r == digest("m@2") && tries[id] == 0 {
			return "crash"
		}
		return ""
	}
	spec := `{"release":"m@2","retry":{"perFailure":{"FAILED":2},"backoff":"1m"},"waves":[{"name":"all","gate":{"success":{"minPct":100}}}]}`
	id := w.start(spec, "").ID
	for range 100 {
		w.step()
		for d, v := range w.dev {
			if strings.HasSuffix(v.Rollout, "#2") {
				tries[d] = 1
			}
		}
		w.now = w.now.Add(10 * time.Second)
	}
	s, xs := w.get(id)
	if s.Phase != "succeeded" || xs[0].Attempts != 2 {
		t.Errorf("%+v %+v", s, xs)
	}
	w.checkLog(id)
}

func TestStartAndPlanRefuseWithReasons(t *testing.T) {
	w := newWorld(t, 4)
	for spec, want := range map[string]string{
		`{`:                 "read rollout spec",
		`{}`:                "name the release",
		`{"release":"m@9"}`: "not found",
		`{"relase":"m@2"}`:  "unknown field",
		`{"release":"m@2","waves":[{"name":"a","gate":{"metrics":[{"name":"nope","maxRatio":2}]}}]}`: "waves[0].gate.metrics[0].name: no such metric",
		`{"release":"m@2","waves":[{"name":"a","timeout":{"device":"20s"}}]}`:                        "waves[0].timeout.device: 20s is not longer than the release soaks",
		`{"release":"m@2","rollbackTo":"m@2"}`:                                                       "rollbackTo",
	} {
		if _, err := w.c.Start(t.Context(), Request{Tenant: tenant, Spec: []byte(spec)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", spec, err, want)
		}
		if _, err := w.c.Plan(t.Context(), tenant, []byte(spec)); err == nil {
			t.Errorf("%s: planned", spec)
		}
	}
	w.start(quickSpec, "twice")
	if _, err := w.c.Start(t.Context(), Request{Tenant: tenant, Spec: []byte(quickSpec), Name: "twice"}); !errors.Is(err, ErrExists) {
		t.Error(err)
	}
	if s := w.start(quickSpec, ""); s.Name != "m@2" {
		t.Error(s.Name)
	}
	if s := w.start(quickSpec, ""); s.Name != "m@2-2" {
		t.Error(s.Name)
	}
	if _, _, err := w.c.Get(t.Context(), tenant, "absent"); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if _, _, err := w.c.Get(t.Context(), "other", "twice"); !errors.Is(err, ErrUnknown) {
		t.Errorf("another tenant sees it: %v", err)
	}
}

func TestPlanIsADryRun(t *testing.T) {
	w := newWorld(t, 10)
	w.dev["d00"].Target = "linux/arm64;sm=5.3"
	w.dev["d01"].Running = digest("m@2")
	w.refuse["d02"] = fmt.Errorf("%w: camera is required", fleet.ErrParameter)
	o, err := w.c.Plan(t.Context(), tenant, []byte(quickSpec))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, u := range o.Unreachable {
		got[u.Device+" "+u.Name] = u.Reason
	}
	if len(got) != 2 || !strings.Contains(got["d00 jetson-d00"], "sm=8.7") || !strings.Contains(got["d02 jetson-d02"], "camera") {
		t.Errorf("%v", got)
	}
	n, bytes := 0, int64(0)
	for _, x := range o.Waves {
		n += len(x.Devices)
		bytes += x.Bytes
	}
	if len(o.Waves) != 2 || n != 8 || bytes != 8000 {
		t.Errorf("%+v", o.Waves)
	}
	if len(w.log) != 0 {
		t.Error("a dry run sent something")
	}
	if ss, err := w.c.List(t.Context(), tenant); len(ss) != 0 || err != nil {
		t.Errorf("a dry run is stored: %v %v", ss, err)
	}
}

func TestEveryDecisionIsInTheAuditTable(t *testing.T) {
	w := newWorld(t, 4)
	w.start(quickSpec, "")
	w.spin(20 * time.Minute)
	var es []store.AuditEntry
	if err := w.db.View(t.Context(), func(tx *store.Tx) (err error) {
		es, err = tx.Audit(t.Context(), tenant, store.AuditFilter{Actor: Actor, Limit: 1000})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, e := range es {
		count[e.Action]++
	}
	want := map[string]int{"rollout/assign": 1, "rollout/start-wave": 2, "rollout/offer": 4, "rollout/start-soak": 2, "rollout/wave-verdict": 2, "rollout/succeed": 1}
	if d := cmp.Diff(want, count); d != "" {
		t.Error(d)
	}
}

// Watchers see the rollout now, then on change, and the end; and Run conducts
// by itself.
func TestRunAndWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4)
		w.now = time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		id := w.start(quickSpec, "").ID
		go func() { done <- w.c.Run(ctx) }()
		clock := time.NewTicker(10 * time.Second)
		defer clock.Stop()
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case <-clock.C:
					w.c.mu.Lock()
					w.now = time.Now()
					w.live()
					w.c.mu.Unlock()
				}
			}
		}()
		var phases []string
		seen := map[string]string{}
		err := w.c.Watch(ctx, tenant, id, func(s Snapshot, xs []Execution) error {
			phases = append(phases, s.Phase)
			if len(phases) == 1 && len(xs) != 4 {
				t.Errorf("first message has %d devices", len(xs))
			}
			for _, x := range xs {
				seen[x.Device] = x.State
			}
			return nil
		})
		if err != nil || phases[len(phases)-1] != "succeeded" || len(phases) < 5 {
			t.Errorf("%v %v", phases, err)
		}
		for d, st := range seen {
			if st != "healthy" {
				t.Errorf("%s: last seen %s", d, st)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := w.c.Watch(ctx, tenant, id, func(Snapshot, []Execution) error { return nil }); err == nil {
			t.Error("a watch under an ended context reports success")
		}
	})
}

// Whatever devices do, whenever the control plane is killed or the fleet takes
// nothing: what is stored as sent is what was sent, a rollout ends, and after
// its end every device runs the release before it or the new one, as recorded.
func TestDecisionsStoredAreDecisionsCarriedOut(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(t, rapid.IntRange(1, 9).Draw(rt, "devices"))
		how := map[string]string{}
		for _, id := range w.order {
			how[id] = rapid.SampledFrom([]string{"", "", "", "golden", "crash", "hang", "slow"}).Draw(rt, id)
		}
		w.breaks = func(r ota.Digest, id string) string {
			if r == digest("m@1") {
				return ""
			}
			return how[id]
		}
		id := w.start(quickSpec, "").ID
		for range 40 {
			switch rapid.SampledFrom([]string{"step", "step", "step", "kill", "down", "offline", "pause", "resume"}).Draw(rt, "event") {
			case "kill":
				w.restart()
			case "down":
				w.down = errors.New("disk full")
				w.step()
				w.down = nil
			case "offline":
				v := w.dev[rapid.SampledFrom(w.order).Draw(rt, "device")]
				v.Online = !v.Online
			case "pause":
				if _, err := w.c.Pause(t.Context(), tenant, id, "user:a", ""); err != nil && !errors.Is(err, ErrState) {
					rt.Fatal(err)
				}
			case "resume":
				if _, err := w.c.Resume(t.Context(), tenant, id, "user:a", ""); err != nil && !errors.Is(err, ErrState) {
					rt.Fatal(err)
				}
			}
			w.step()
			w.now = w.now.Add(time.Duration(rapid.IntRange(1, 90).Draw(rt, "seconds")) * time.Second)
		}
		if s, _ := w.get(id); s.Phase == "paused" {
			if _, err := w.c.Resume(t.Context(), tenant, id, "user:a", ""); err != nil {
				rt.Fatal(err)
			}
		}
		for _, v := range w.dev {
			v.Online = true
		}
		for range 100 {
			w.step()
			w.now = w.now.Add(time.Minute)
		}
		s, xs := w.get(id)
		if s.Phase == "paused" { // an inconclusive gate waits for a person
			if _, err := w.c.Abort(t.Context(), tenant, id, "user:a", ""); err != nil {
				rt.Fatal(err)
			}
			for range 60 {
				w.step()
				w.now = w.now.Add(time.Minute)
			}
			s, xs = w.get(id)
		}
		if s.Ended.IsZero() {
			rt.Fatalf("never ended: %+v", s)
		}
		for _, x := range xs {
			v := w.dev[x.Device]
			if x.State == "healthy" != (v.Running == digest("m@2")) && how[x.Device] != "crash" {
				rt.Errorf("%s is recorded %s and runs %s", x.Device, x.State, w.Name(tenant, v.Running))
			}
		}
		w.checkLog(id)
		after := maps.Clone(w.running())
		w.restart()
		for range 20 {
			w.step()
			w.now = w.now.Add(time.Minute)
		}
		if d := cmp.Diff(after, w.running()); d != "" {
			rt.Errorf("something moved after the end: %s", d)
		}
	})
}
