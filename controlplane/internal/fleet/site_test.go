package fleet

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/proto/wire"
)

func TestPrivate(t *testing.T) {
	for a, want := range map[string]bool{
		"10.0.0.7:7443": true, "192.168.1.2:1": true, "172.16.0.1:7443": true, "[fd00::7]:7443": true, "127.0.0.1:7443": true, "100.64.3.1:7443": true,
		"8.8.8.8:443": false, "[2001:db8::1]:443": false, "169.254.169.254:80": false, "224.0.0.1:7443": false, "0.0.0.0:7443": false,
		"10.0.0.7": false, "10.0.0.7:0": false, "host:7443": false, "[fe80::1%eth0]:7443": false, "": false,
	} {
		if got := private(a); got != want {
			t.Errorf("%q: %v, want %v", a, got, want)
		}
	}
}

// offer is a hello of a device that serves its site.
func (w *world) offer(t *testing.T, id string, addresses ...string) {
	t.Helper()
	w.count[id]++
	b, err := wire.Marshal(&wire.Hello{ID: wire.MessageID{Boot: 1, Counter: w.count[id]}, Target: "linux/amd64;ort=1", Peer: addresses})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Message(t.Context(), tenant, id, wire.UpHello, b); err != nil {
		t.Fatal(err)
	}
}

// wantedOf reads the desired state that a device would be sent.
func (w *world) wantedOf(t *testing.T, id string) (d wire.Desired) {
	t.Helper()
	tw := w.find(tenant, id)
	tw.mu.Lock()
	defer tw.mu.Unlock()
	if tw.wanted == nil {
		t.Fatalf("nothing is wanted of %s", id)
	}
	if err := wire.Unmarshal(tw.wanted.Payload, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestSite(t *testing.T) {
	w := newWorld(t, t.TempDir())
	defer w.run(t)()
	w.rel[release(1)], w.rel[release(2)] = nil, nil
	cache, a, b, far := w.enrol(t, "cache", "lyon"), w.enrol(t, "a", "lyon"), w.enrol(t, "b", "lyon"), w.enrol(t, "far", "paris")
	assign := func(n byte, ids ...string) {
		t.Helper()
		r := release(n)
		for _, id := range ids {
			if err := w.SetDesired(t.Context(), tenant, id, &r, false, ""); err != nil {
				t.Fatal(err)
			}
		}
	}

	// An offer without the capability is not taken, and told.
	w.offer(t, cache, "10.0.0.7:7443")
	assign(1, a)
	if d := w.wantedOf(t, a); len(d.Peers) != 0 || d.Grant != nil {
		t.Errorf("peers %v from a device without the capability", d.Peers)
	}
	if w.SiteReleases(cache) != nil {
		t.Error("a device without the capability reads what its site runs")
	}

	// The capability is a generation of its own, also for a device with nothing to run.
	if _, err := w.Label(t.Context(), tenant, cache, Edit{Grant: []string{"cache"}}); err != nil {
		t.Fatal(err)
	}
	if d := w.wantedOf(t, cache); !d.Cache || d.Release != nil || len(d.Peers) != 0 {
		t.Errorf("the cache is to be %+v", d)
	}
	w.offer(t, cache, "10.0.0.7:7443", "8.8.8.8:443")
	if v, err := w.Get(tenant, cache); err != nil || !slices.Equal(v.Serves, []string{"10.0.0.7:7443"}) {
		t.Errorf("serves at %v, %v", v.Serves, err)
	}
	assign(2, a, b, far)
	for _, id := range []string{a, b} {
		d := w.wantedOf(t, id)
		var g wire.Grant
		if err := wire.Unmarshal(d.Grant, &g); err != nil {
			t.Fatal(err)
		}
		want := wire.Grant{Device: id, Tenant: tenant, Release: release(2).Sum(), ExpiresAt: d.ExpiresAt}
		if diff := cmp.Diff(want, g); diff != "" || d.Cache || len(d.Peers) != 1 || d.Peers[0].Device != cache {
			t.Errorf("peers %v, grant %s", d.Peers, diff)
		}
	}
	if d := w.wantedOf(t, far); len(d.Peers) != 0 {
		t.Errorf("peers %v of another site", d.Peers)
	}
	if got := w.SiteReleases(cache); !slices.Contains(got, release(2)) {
		t.Errorf("the cache may read %v", got)
	}
	if w.SiteReleases(a) != nil {
		t.Error("a device that is no cache reads what its site runs")
	}

	// A cache that moves, or is revoked, leaves with the next generation; it
	// makes none.
	before := w.wantedOf(t, a).Generation
	w.offer(t, cache) // serves no more
	assign(2, a)
	if g := w.wantedOf(t, a).Generation; g != before {
		t.Errorf("generation %s after the cache went, was %s", g, before)
	}
	w.offer(t, cache, "10.0.0.8:7443")
	if _, _, err := w.Revoke(t.Context(), tenant, cache, "stolen"); err != nil {
		t.Fatal(err)
	}
	assign(1, a)
	if d := w.wantedOf(t, a); len(d.Peers) != 0 {
		t.Errorf("peers %v after the cache was revoked", d.Peers)
	}
	if w.SiteReleases(cache) != nil {
		t.Error("a revoked cache reads what its site runs")
	}
}
