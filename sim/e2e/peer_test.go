package e2e

import (
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/skein-fleet/skein/ota"
	fleetv1 "github.com/skein-fleet/skein/proto/gen/skein/fleet/v1"
)

// asked counts the requests for blobs that leave a site.
type asked struct {
	mu sync.Mutex // guards of
	of map[string]int
}

func (a *asked) wrap(next http.RoundTripper) http.RoundTripper { return countBlobs{next, a} }

func (a *asked) count() map[string]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.of)
}

type countBlobs struct {
	http.RoundTripper
	a *asked
}

// RoundTrip implements http.RoundTripper.
func (c countBlobs) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.Contains(r.URL.Path, "/blobs/") {
		c.a.mu.Lock()
		c.a.of[path.Base(r.URL.Path)]++
		c.a.mu.Unlock()
	}
	return c.RoundTripper.RoundTrip(r)
}

// TestSiteCache: one device of a site is its cache. The others get what they
// install from it alone, it fetches each blob once, for them and for itself,
// and it ends to serve when the operator takes that back.
func TestSiteCache(t *testing.T) {
	t.Parallel()
	s := start(t)
	v1, v2 := s.release("v1", version{bias: 1, pad: 1 << 20}), s.release("v2", version{bias: 2, pad: 3 << 20})
	left := &asked{of: map[string]int{}}
	devices := []*device{s.enroll(), s.enroll(), s.enroll()}
	label := func(d *device, change func(*fleetv1.LabelDeviceRequest)) {
		t.Helper()
		r := &fleetv1.LabelDeviceRequest{Device: d.id}
		change(r)
		if _, err := s.op.Fleet.LabelDevice(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range devices {
		d.opts.PeerListen, d.opts.WrapHTTP = "127.0.0.1:0", left.wrap
		label(d, func(r *fleetv1.LabelDeviceRequest) { r.Set = map[string]string{"site": "lyon"} })
		d.run()
	}
	cache, siblings := devices[0], devices[1:]
	label(cache, func(r *fleetv1.LabelDeviceRequest) { r.Grant = []string{"cache"} })
	until(t, "the cache to say where it serves", func() bool { return len(s.get(cache.id).GetServes()) > 0 })

	byPeer := func(d *device, name string) {
		t.Helper()
		s.settled(d, name)
		st := d.status()
		if len(st.Sources) != 1 || st.Sources[0].Name != "peer" || st.Sources[0].Bytes != st.BytesFetched || st.BytesFetched == 0 {
			t.Errorf("%s: %d bytes, by %+v", name, st.BytesFetched, st.Sources)
		}
	}
	for _, d := range siblings {
		s.assign(d.id, "v1")
	}
	for _, d := range siblings {
		byPeer(d, "v1")
	}
	s.assign(cache.id, "v1")
	byPeer(cache, "v1") // what it had fetched for them

	for _, d := range devices { // all at once
		s.assign(d.id, "v2")
	}
	for _, d := range siblings {
		byPeer(d, "v2")
	}
	s.settled(cache, "v2")
	count := left.count()
	for name, n := range count {
		if n > 1 {
			t.Errorf("%s was asked for %d times", name, n)
		}
	}
	for _, d := range []ota.Digest{s.onnxOf(v1), s.onnxOf(v2), ota.Digest(v1.GetDigest()), ota.Digest(v2.GetDigest())} {
		if _, patched := count[string(d)]; !patched && d != s.onnxOf(v2) { // which may come as a patch
			t.Errorf("%s was not asked for: %q", d.Short(), slices.Collect(maps.Keys(count)))
		}
	}

	label(cache, func(r *fleetv1.LabelDeviceRequest) { r.Take = []string{"cache"} })
	until(t, "the cache to end", func() bool { return len(s.get(cache.id).GetServes()) == 0 })
	s.release("v3", version{bias: 3})
	s.assign(siblings[0].id, "v3")
	s.settled(siblings[0], "v3")
	if st := siblings[0].status(); len(st.Sources) != 1 || st.Sources[0].Name != "https" {
		t.Errorf("without a cache: by %+v", st.Sources)
	}
}
