package conductor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skein-fleet/skein/controlplane/internal/fleet"
	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/gate"
	"github.com/skein-fleet/skein/ota/rollout"
	"github.com/skein-fleet/skein/proto/wire"
)

const tenant = store.DefaultTenant

func digest(name string) ota.Digest { return ota.DigestOf([]byte(name)) }

// world is a small fleet that behaves as its releases say, a conductor, and a
// clock that only moves when told.
type world struct {
	t     testing.TB
	now   time.Time
	db    *store.DB
	c     *Conductor
	order []string
	dev   map[string]*fleet.View
	log   []fleet.Intent // what the fleet took, in order
	// breaks says how a release behaves on a device: "", "golden", "slow",
	// "crash" (fails after the switch), "hang" (never answers).
	breaks func(release ota.Digest, device string) string
	refuse map[string]error // by device, what the fleet says to a desired state
	down   error            // the fleet takes nothing
	policy []policy.Setting
	stage  map[string]int
	since  map[string]time.Time // of the last switch
}

func newWorld(t testing.TB, devices int) *world {
	t.Helper()
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "skein.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{t: t, now: time.Date(2026, 11, 24, 8, 0, 0, 0, time.UTC), db: db, dev: map[string]*fleet.View{}, stage: map[string]int{}, since: map[string]time.Time{},
		refuse: map[string]error{}, breaks: func(ota.Digest, string) string { return "" }}
	targets := []string{"linux/arm64;sm=8.7", "linux/arm64;sm=7.2"}
	for i := range devices {
		id := fmt.Sprintf("d%02d", i)
		w.order = append(w.order, id)
		w.dev[id] = &fleet.View{Tenant: tenant, ID: id, Name: "jetson-" + id, Target: targets[i%2], State: fleet.Online, Online: true, LastSeen: w.now,
			Reported: true, Converged: true, Running: digest("m@1"), WantedRelease: digest("m@1"), Wanted: wire.Generation{Epoch: 1, Counter: 1},
			Held: wire.Generation{Epoch: 1, Counter: 1}, ReportedHeld: wire.Generation{Epoch: 1, Counter: 1}, Phase: wire.PhaseIdle, HighestCounter: 1}
	}
	w.restart()
	return w
}

// restart throws the conductor away and loads a new one from the store.
func (w *world) restart() {
	w.t.Helper()
	c, err := New(Config{Store: w.db, Fleet: w, Releases: w, Measures: w, Now: func() time.Time { return w.now }, EvidenceEvery: time.Second})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := c.Load(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.c = c
}

func (w *world) Snapshot(string) []fleet.View {
	var out []fleet.View
	for _, id := range w.order {
		out = append(out, *w.dev[id])
	}
	return out
}

func (w *world) Subscribe(ctx context.Context) <-chan string {
	ch := make(chan string)
	go func() { <-ctx.Done(); close(ch) }()
	return ch
}

func (w *world) Policy(string) []policy.Setting { return w.policy }

func (w *world) Check(_ context.Context, _, id string, _ ota.Digest) error { return w.refuse[id] }

func (w *world) SetDesiredAll(_ context.Context, _ string, intents []fleet.Intent) error {
	if w.down != nil {
		return w.down
	}
	for _, in := range intents {
		if err := w.refuse[in.Device]; err != nil {
			return err
		}
	}
	for _, in := range intents {
		v := w.dev[in.Device]
		if v.WantedRelease == in.Release && v.Rollout == in.Rollout && v.WantedRollbackAllow == in.RollbackAllowed {
			continue
		}
		w.log = append(w.log, in)
		v.WantedRelease, v.Rollout, v.WantedRollbackAllow = in.Release, in.Rollout, in.RollbackAllowed
		v.Wanted.Counter++
		v.Converged = false
		w.stage[in.Device] = 0
	}
	return nil
}

// live lets every device do the next thing of its update.
func (w *world) live() {
	for _, id := range w.order {
		v := w.dev[id]
		if !v.Online {
			continue
		}
		how := w.breaks(v.WantedRelease, id)
		if how == "hang" && v.WantedRelease != v.Running {
			continue
		}
		v.LastSeen = w.now
		if !v.Converged {
			v.Converged, v.Held = true, v.Wanted // a heartbeat; the report comes later
			continue
		}
		if v.ReportedHeld != v.Held {
			v.ReportedHeld, v.Phase = v.Held, wire.PhaseIdle
			continue
		}
		if v.Running == v.WantedRelease && v.Phase != wire.PhaseUpdating || v.Phase == wire.PhaseFailed {
			continue
		}
		if v.Phase, v.Transfer = wire.PhaseUpdating, nil; how == "wait" {
			v.Step, v.Transfer = "fetch", &wire.PolicyState{Class: wire.Metered, Zone: "Europe/Paris", Waits: wire.WaitsForAllowance, Until: 1795561200}
			continue
		}
		w.stage[id]++
		switch {
		case how == "golden" && w.stage[id] == 2:
			w.fail(v, "REJECTED", "prove: golden set failed: label agreement 3 of 32")
		case how == "crash" && w.stage[id] == 3:
			w.fail(v, "FAILED", "soak: the workload ended")
		case w.stage[id] == 1:
			v.Step = "fetch"
		case w.stage[id] == 2:
			v.Step = "soak"
			w.since[id] = w.now
			v.Journal = []wire.StepEntry{{Step: "switch", State: wire.StepStarted, Release: v.WantedRelease.Sum(), Time: w.now.UnixMilli()},
				{Step: "switch", State: wire.StepDone, Release: v.WantedRelease.Sum(), Time: w.now.UnixMilli()}}
		default:
			v.Step, v.Phase, v.Running = "commit", wire.PhaseIdle, v.WantedRelease
			v.HighestCounter = max(v.HighestCounter, w.Counter(tenant, v.Running))
		}
	}
}

func (w *world) fail(v *fleet.View, class, why string) {
	v.Phase, v.FailedRelease, v.FailureClass, v.Failure = wire.PhaseFailed, v.WantedRelease, class, why
}

var names = []string{"m@1", "m@2", "m@3"}

func (w *world) Resolve(_ context.Context, _, text string) (ota.Digest, error) {
	for _, n := range names {
		if text == n || text == string(digest(n)) {
			return digest(n), nil
		}
	}
	return "", fmt.Errorf("release %q: not found", text)
}

func (w *world) Name(_ string, d ota.Digest) string {
	for _, n := range names {
		if d == digest(n) {
			return n
		}
	}
	return d.Short()
}

func (w *world) Counter(_ string, d ota.Digest) uint64 {
	return uint64(slices.IndexFunc(names, func(n string) bool { return d == digest(n) }) + 1)
}

func (w *world) Soak(string, ota.Digest) time.Duration { return 30 * time.Second }

func (w *world) Fits(_ string, _ ota.Digest, target string) (int64, error) {
	if strings.Contains(target, "sm=5.3") {
		return 0, errors.New("release has nothing for this device: made for sm=8.7")
	}
	return 1000, nil
}

func (w *world) CheckMetric(metric string) error {
	if metric != "latency" {
		return errors.New("no such metric")
	}
	return nil
}

// Stats: one sample a second, 10 ms, and 30 ms where the release is slow.
func (w *world) Stats(_ context.Context, id, _ string, from, to time.Time) (gate.Stats, error) {
	since, ok := w.since[id]
	n := int(min(to.Sub(from), w.now.Sub(from)) / time.Second)
	v := 0.010
	if ok && !from.Before(since) && w.breaks(w.dev[id].WantedRelease, id) == "slow" {
		v = 0.030
	}
	return gate.Stats{N: max(n, 0), Median: v, P99: v}, nil
}

// spin runs conductor and fleet for a while of their time.
func (w *world) spin(d time.Duration) {
	w.t.Helper()
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(10 * time.Second) {
		w.step()
	}
}

func (w *world) step() {
	w.t.Helper()
	w.live()
	if err := w.c.Step(w.t.Context()); err != nil && w.down == nil {
		w.t.Fatal(err)
	}
}

const quickSpec = `{"release":"m@2","waves":[
 {"name":"canary","perTarget":1,"soak":{"min":"1m"},"gate":{"success":{"minPct":100},"abort":[{"failure":"ALL","count":1}],
  "metrics":[{"name":"latency","maxRatio":1.5,"floor":0.005,"minSamples":10}]},"timeout":{"device":"10m","silent":"5m"}},
 {"name":"rest","soak":{"min":"1m"},"gate":{"success":{"minPct":90},"abort":[{"failure":"ALL","pct":30,"minExecuted":2}]},"timeout":{"device":"10m","silent":"5m"}}]}`

func (w *world) start(spec, name string) Snapshot {
	w.t.Helper()
	s, err := w.c.Start(w.t.Context(), Request{Tenant: tenant, Spec: []byte(spec), Name: name, By: "user:admin"})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) get(ref string) (Snapshot, []Execution) {
	w.t.Helper()
	s, xs, err := w.c.Get(w.t.Context(), tenant, ref)
	if err != nil {
		w.t.Fatal(err)
	}
	return s, xs
}

// running counts devices by what they run.
func (w *world) running() map[string]int {
	out := map[string]int{}
	for _, v := range w.dev {
		out[w.Name(tenant, v.Running)]++
	}
	return out
}

// checkLog holds the property: what was stored as sent is what the fleet was
// given, in the same order, and nothing waits.
func (w *world) checkLog(refs ...string) {
	w.t.Helper()
	var want []string
	err := w.db.View(w.t.Context(), func(tx *store.Tx) error {
		var all []store.Decision
		for _, ref := range refs {
			ds, err := tx.Decisions(w.t.Context(), tenant, ref, 100000)
			if err != nil {
				return err
			}
			all = append(all, ds...)
		}
		slices.SortFunc(all, func(a, b store.Decision) int { return int(a.Sequence - b.Sequence) })
		for _, d := range all {
			var dec rollout.Decision
			if err := json.Unmarshal([]byte(d.Body), &dec); err != nil {
				return err
			}
			switch {
			case dec.Kind.Sends() && d.Sent == store.DecisionWaits:
				w.t.Errorf("decision %d (%s) still waits", d.Sequence, dec)
			case dec.Kind.Sends() && d.Sent == store.DecisionSent:
				want = append(want, d.Device+" "+w.Name(tenant, dec.Release))
			case !dec.Kind.Sends() && d.Sent != store.DecisionNothing:
				w.t.Errorf("decision %d (%s) is marked %d", d.Sequence, dec, d.Sent)
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	var got []string
	for _, in := range w.log {
		got = append(got, in.Device+" "+w.Name(tenant, in.Release))
	}
	if !slices.Equal(got, want) {
		w.t.Errorf("the fleet was given\n%v\nstored as sent\n%v", got, want)
	}
}
