package reconcile

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/agent/internal/state"
	"github.com/skein-fleet/skein/agent/runtime"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// release makes an install of release n under a generation.
func release(n byte, generation uint64) *state.Install {
	return &state.Install{Generation: wire.Generation{Epoch: 1, Counter: generation}, Release: ota.DigestOf([]byte{n}), ParamsDigest: make([]byte, 32)}
}

func wanting(i *state.Install) *Desired {
	return &Desired{Generation: i.Generation, Install: i, ExpiresAt: noon.Add(time.Hour)}
}

func up(i *state.Install, serving bool) runtime.Status {
	return runtime.Status{ID: i.WorkloadID(), Ready: true, Serving: serving}
}

func kinds(ds []Decision) []Kind {
	var out []Kind
	for _, d := range ds {
		out = append(out, d.Kind)
	}
	return out
}

func TestPlan(t *testing.T) {
	one, two, three := release(1, 1), release(2, 2), release(3, 3)
	expired := wanting(two)
	expired.ExpiresAt = noon
	nothing := &Desired{Generation: two.Generation, ExpiresAt: noon.Add(time.Hour)}
	newer := release(1, 5)
	params := release(1, 6)
	params.ParamsDigest = append([]byte{1}, params.ParamsDigest[1:]...)
	for name, c := range map[string]struct {
		desired *Desired
		actual  Actual
		want    []Kind
	}{
		"new device":              {nil, Actual{}, nil},
		"first release":           {wanting(one), Actual{}, []Kind{Start}},
		"as wanted":               {wanting(one), Actual{Current: one, Loaded: []runtime.Status{up(one, true)}}, nil},
		"after a reboot":          {wanting(one), Actual{Current: one}, []Kind{Restore}},
		"loaded, not serving":     {wanting(one), Actual{Current: one, Loaded: []runtime.Status{up(one, false)}}, []Kind{Restore}},
		"serves, not ready":       {wanting(one), Actual{Current: one, Loaded: []runtime.Status{{ID: one.WorkloadID(), Serving: true}}}, []Kind{Restore}},
		"reboot and update":       {wanting(two), Actual{Current: one}, []Kind{Restore, Start}},
		"update":                  {wanting(two), Actual{Current: one, Loaded: []runtime.Status{up(one, true)}}, []Kind{Start}},
		"other parameters":        {wanting(params), Actual{Current: one, Loaded: []runtime.Status{up(one, true)}}, []Kind{Start}},
		"reboot in an update":     {wanting(two), Actual{Current: one, Update: &state.Update{Install: *two}}, []Kind{Restore, Resume}},
		"new one serves already":  {wanting(two), Actual{Current: one, Update: &state.Update{Install: *two}, Loaded: []runtime.Status{up(one, false), up(two, true)}}, []Kind{Resume}},
		"superseded":              {wanting(three), Actual{Current: one, Update: &state.Update{Install: *two}, Loaded: []runtime.Status{up(one, true)}}, []Kind{UndoIt}},
		"back to the old one":     {wanting(newer), Actual{Current: one, Update: &state.Update{Install: *two}, Loaded: []runtime.Status{up(one, true)}}, []Kind{UndoIt}},
		"undo under way":          {wanting(two), Actual{Current: one, Update: &state.Update{Install: *two, Undoing: true, Class: ota.Failed}, Loaded: []runtime.Status{up(one, true)}}, []Kind{UndoIt}},
		"ends the agent":          {wanting(two), Actual{Current: one, Update: &state.Update{Install: *two, Attempts: maxAttempts}, Loaded: []runtime.Status{up(one, true)}}, []Kind{UndoIt}},
		"same under a newer name": {wanting(newer), Actual{Current: one, Loaded: []runtime.Status{up(one, true)}}, []Kind{Adopt}},
		"failed generation":       {wanting(two), Actual{Current: one, Failure: &state.Failure{Generation: two.Generation}, Loaded: []runtime.Status{up(one, true)}}, []Kind{StayBack}},
		"tried again":             {wanting(release(2, 9)), Actual{Current: one, Failure: &state.Failure{Generation: two.Generation}, Loaded: []runtime.Status{up(one, true)}}, []Kind{Start}},
		"expired":                 {expired, Actual{Current: one, Loaded: []runtime.Status{up(one, true)}}, []Kind{Hold}},
		"expired and rebooted":    {expired, Actual{Current: one}, []Kind{Restore, Hold}},
		"nothing wanted":          {nothing, Actual{Current: one, Loaded: []runtime.Status{up(one, true)}}, []Kind{Remove}},
		"nothing wanted, nothing": {nothing, Actual{}, nil},
		"a stray":                 {wanting(one), Actual{Current: one, Loaded: []runtime.Status{up(one, true), up(three, false)}}, []Kind{Unload}},
	} {
		if d := cmp.Diff(c.want, kinds(Plan(c.desired, c.actual, noon))); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// drawn makes any desired and actual state, sensible or not.
func drawn(rt *rapid.T) (*Desired, Actual, time.Time) {
	install := func(name string) *state.Install {
		n := rapid.IntRange(0, 3).Draw(rt, name)
		if n == 0 {
			return nil
		}
		return release(byte(n), uint64(rapid.IntRange(1, 3).Draw(rt, name+" generation")))
	}
	var d *Desired
	if rapid.Bool().Draw(rt, "desired") {
		d = &Desired{Install: install("wanted"), Generation: wire.Generation{Epoch: 1, Counter: 2}, ExpiresAt: noon.Add(time.Duration(rapid.IntRange(-1, 1).Draw(rt, "expiry")) * time.Hour)}
		if d.Install != nil {
			d.Install.Generation = d.Generation
		}
	}
	a := Actual{Current: install("current")}
	if i := install("update"); i != nil {
		a.Update = &state.Update{Install: *i, Undoing: rapid.Bool().Draw(rt, "undoing"), Attempts: rapid.IntRange(0, 4).Draw(rt, "attempts"), Class: ota.Failed}
	}
	if rapid.Bool().Draw(rt, "failure") {
		a.Failure = &state.Failure{Generation: wire.Generation{Epoch: 1, Counter: uint64(rapid.IntRange(1, 3).Draw(rt, "failed"))}}
	}
	serving := rapid.IntRange(0, 3).Draw(rt, "serving")
	for n := 1; n <= 3; n++ {
		if rapid.Bool().Draw(rt, "loaded") {
			a.Loaded = append(a.Loaded, runtime.Status{ID: release(byte(n), 1).WorkloadID(), Serving: n == serving, Ready: rapid.Bool().Draw(rt, "ready")})
		}
	}
	return d, a, noon
}

func TestPlanInvariants(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d, a, now := drawn(rt)
		plan := Plan(d, a, now)
		final := 0
		for i, x := range plan {
			switch x.Kind {
			case Restore:
				if a.Current == nil {
					rt.Fatal("restores nothing")
				}
			case Unload:
				if x.Workload == a.Current.WorkloadID() || a.Update != nil && x.Workload == a.Update.Install.WorkloadID() {
					rt.Fatalf("unloads %s, which is committed or being installed", x.Workload)
				}
			default:
				if final++; i != len(plan)-1 {
					rt.Fatalf("%s is not the last of %v", x.Kind, kinds(plan))
				}
			}
			if x.Kind == Start && (a.Update != nil || !now.Before(d.ExpiresAt) || a.Failure != nil && a.Failure.Generation == d.Generation || d.Install.WorkloadID() == a.Current.WorkloadID()) {
				rt.Fatalf("starts although %+v %+v", d, a)
			}
			if x.Kind == Resume && (a.Update.Undoing || a.Update.Attempts >= maxAttempts) {
				rt.Fatal("resumes what is to be undone")
			}
		}
		if final > 1 {
			rt.Fatalf("%d final decisions: %v", final, kinds(plan))
		}
		if a.Update != nil && final != 1 {
			rt.Fatal("an update under way is forgotten")
		}
	})
}

// TestPlanConverges carries decisions out in a model where updates succeed or
// fail at will: it comes to rest, on what is wanted or on what ran before.
func TestPlanConverges(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		d, a, now := drawn(rt)
		for round := 0; ; round++ {
			if round > 8 {
				rt.Fatalf("no rest: %v", kinds(Plan(d, a, now)))
			}
			moved := false
			for _, x := range Plan(d, a, now) {
				switch x.Kind {
				case Restore:
					a.Loaded = serve(a.Loaded, a.Current.WorkloadID())
				case Unload:
					a.Loaded = without(a.Loaded, x.Workload)
				case UndoIt:
					a.Failure = &state.Failure{Generation: a.Update.Install.Generation, Class: x.Class}
					a.Loaded = without(a.Loaded, a.Update.Install.WorkloadID())
					a.Update = nil
				case Start, Resume:
					i := x.Install
					if x.Kind == Resume {
						i = &a.Update.Install
					}
					if rapid.Bool().Draw(rt, "succeeds") {
						a.Current, a.Update, a.Failure = i, nil, nil
						a.Loaded = serve(a.Loaded, i.WorkloadID())
					} else {
						a.Update, a.Failure = nil, &state.Failure{Generation: i.Generation}
					}
				case Remove:
					a.Loaded = without(a.Loaded, a.Current.WorkloadID())
					a.Current = nil
				case Adopt:
					next := *a.Current
					next.Generation = x.Install.Generation
					a.Current = &next
				case Hold, StayBack:
					continue
				}
				moved = true
			}
			if !moved {
				break
			}
		}
		if a.Current != nil && (len(a.Loaded) != 1 || !a.Loaded[0].Serving || a.Loaded[0].ID != a.Current.WorkloadID()) || a.Current == nil && len(a.Loaded) != 0 {
			rt.Fatalf("at rest with %+v for %+v", a.Loaded, a.Current)
		}
		if d != nil && a.Current.WorkloadID() != d.Install.WorkloadID() && a.Failure == nil && now.Before(d.ExpiresAt) {
			rt.Fatal("at rest on another release without a failure and without an expiry")
		}
	})
}

func serve(list []runtime.Status, id string) []runtime.Status {
	out := without(list, id)
	for i := range out {
		out[i].Serving = false
	}
	return append(out, runtime.Status{ID: id, Ready: true, Serving: true})
}

func without(list []runtime.Status, id string) []runtime.Status {
	var out []runtime.Status
	for _, s := range list {
		if s.ID != id {
			out = append(out, s)
		}
	}
	return out
}
