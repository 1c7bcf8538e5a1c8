package fleet

import (
	"errors"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/controlplane/internal/policy"
	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

// TestPolicy: a changed policy is a new generation of exactly the devices that
// it is for, survives a restart, moves with a replaced device, and follows the
// site.
func TestPolicy(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		w := newWorld(t, dir)
		if err := w.Load(ctx, 1); err != nil {
			t.Fatal(err)
		}
		stop := w.run(t)
		d := ota.DigestOf([]byte("release"))
		w.rel[d] = nil
		lyon, turin, idle := w.enrol(t, "a", "lyon"), w.enrol(t, "b", "turin"), w.enrol(t, "c", "lyon")
		for _, id := range []string{lyon, turin} {
			if err := w.SetDesired(ctx, tenant, id, &d, false, "r1"); err != nil {
				t.Fatal(err)
			}
			w.hello(t, id, wire.Held{})
		}
		policyOf := func(id string) *wire.Policy {
			t.Helper()
			v, err := w.Get(tenant, id)
			if err != nil {
				t.Fatal(err)
			}
			w.tap.await(t, id, v.Wanted)
			got, _ := w.tap.last(id)
			if got.Rollout != "r1" && id != idle {
				t.Errorf("the rollout of %s is lost: %q", id, got.Rollout)
			}
			return got.Policy
		}
		set := func(want int, settings ...policy.Setting) {
			t.Helper()
			if n, err := w.SetPolicy(ctx, tenant, settings, nil); err != nil || n != want {
				t.Fatalf("%d devices, want %d: %v", n, want, err)
			}
		}
		if p := policyOf(lyon); p != nil {
			t.Errorf("without a policy: %+v", p)
		}
		set(1, policy.Setting{Scope: policy.Site, Subject: "lyon", Key: policy.DownloadWindow, Value: "mon-fri 22:00-06:00"})
		set(2, policy.Setting{Scope: policy.Fleet, Key: policy.DeviceRate, Value: "1MB/s"}, policy.Setting{Scope: policy.Fleet, Key: policy.FleetRate, Value: "10MB/s"})
		set(0, policy.Setting{Scope: policy.Fleet, Key: policy.DeviceRate, Value: "1000KB/s"}) // the same
		want := &wire.Policy{Download: []wire.Schedule{{Windows: "Mon-Fri 22:00-06:00"}}, Rate: 1e6}
		if diff := cmp.Diff(want, policyOf(lyon)); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(&wire.Policy{Rate: 1e6}, policyOf(turin)); diff != "" {
			t.Error(diff)
		}
		// All or none.
		bad := []policy.Setting{{Scope: policy.Fleet, Key: policy.Zone, Value: "UTC"}, {Scope: policy.Fleet, Key: policy.Reserve, Value: "x"}}
		if _, err := w.SetPolicy(ctx, tenant, bad, nil); !errors.Is(err, policy.ErrInvalid) {
			t.Errorf("%v", err)
		}
		if _, err := w.SetPolicy(ctx, tenant, []policy.Setting{{Scope: policy.Device, Subject: "nobody", Key: policy.Zone, Value: "UTC"}}, nil); !errors.Is(err, ErrUnknownDevice) {
			t.Errorf("%v", err)
		}
		if n := len(w.Policy(tenant)); n != 3 {
			t.Errorf("%d settings", n)
		}
		// An operator's word is added, and stays with that desired state.
		if err := w.SetDesiredAll(ctx, tenant, []Intent{{Device: lyon, Release: d, Rollout: "r1", Extra: policy.Extra{Apply: "Sun 02:00-03:00", Now: true}, Again: true}}); err != nil {
			t.Fatal(err)
		}
		set(2, policy.Setting{Scope: policy.Fleet, Key: policy.Zone, Value: "Europe/Paris"})
		want = &wire.Policy{Download: []wire.Schedule{{Windows: "Mon-Fri 22:00-06:00", Zone: "Europe/Paris"}}, Apply: []wire.Schedule{{Windows: "Sun 02:00-03:00"}},
			Zone: "Europe/Paris", Rate: 1e6, Now: true}
		if diff := cmp.Diff(want, policyOf(lyon)); diff != "" {
			t.Error(diff)
		}
		// What is set for a device goes with it to its replacement.
		set(1, policy.Setting{Scope: policy.Device, Subject: lyon, Key: policy.DeviceRate, Value: "unlimited"})
		if _, err := w.Replace(ctx, tenant, lyon, idle); err != nil {
			t.Fatal(err)
		}
		w.hello(t, idle, wire.Held{})
		want = &wire.Policy{Download: []wire.Schedule{{Windows: "Mon-Fri 22:00-06:00", Zone: "Europe/Paris"}}, Zone: "Europe/Paris"}
		if diff := cmp.Diff(want, policyOf(idle)); diff != "" {
			t.Error(diff)
		}
		// The site is what the label says.
		if _, err := w.Label(ctx, tenant, turin, Edit{Set: map[string]string{"site": "lyon"}}); err != nil {
			t.Fatal(err)
		}
		if p := policyOf(turin); len(p.Download) != 1 {
			t.Errorf("after the move %+v", p)
		}
		before := w.Policy(tenant)
		stop()

		w = newWorld(t, dir)
		if err := w.Load(ctx, 1); err != nil {
			t.Fatal(err)
		}
		defer w.run(t)()
		w.rel[d] = nil
		if diff := cmp.Diff(before, w.Policy(tenant)); diff != "" {
			t.Error(diff)
		}
		// All of a place at once; the generation of what is converged changes no more.
		n, err := w.SetPolicy(ctx, tenant, nil, []policy.Setting{{Scope: policy.Site, Subject: "lyon"}})
		if err != nil || n != 2 {
			t.Errorf("%d devices, %v", n, err)
		}
		n, err = w.SetPolicy(ctx, tenant, nil, []policy.Setting{{Scope: policy.Site, Subject: "lyon"}, {Scope: policy.Fleet, Key: policy.Reserve}})
		if err != nil || n != 0 {
			t.Errorf("again: %d devices, %v", n, err)
		}
		err = w.db.View(ctx, func(tx *store.Tx) error {
			rows, err := tx.Policies(ctx, tenant)
			if len(rows) != len(w.Policy(tenant)) {
				t.Errorf("%d rows, %d settings", len(rows), len(w.Policy(tenant)))
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}
