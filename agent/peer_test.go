package agent

import (
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/agent/internal/peer"
	"github.com/skein-fleet/skein/proto/wire"
)

// TestWaysToPeers: a device takes from the peers that it is given, with a
// grant; of two caches only one takes from the other; none takes from itself.
func TestWaysToPeers(t *testing.T) {
	low, self, high := wire.FormatDeviceID([16]byte{1}), wire.FormatDeviceID([16]byte{2}), wire.FormatDeviceID([16]byte{3})
	all := []wire.Peer{{Device: low, Addresses: []string{"10.0.0.1:7443"}}, {Device: self, Addresses: []string{"10.0.0.2:7443"}}, {Device: high, Addresses: []string{"10.0.0.3:7443"}}}
	for name, c := range map[string]struct {
		desired wire.Desired
		serves  bool // the agent may serve
		want    []string
	}{
		"plain":         {wire.Desired{Peers: all, Grant: []byte{1}}, false, []string{"peer/" + low, "peer/" + high}},
		"no grant":      {wire.Desired{Peers: all}, false, nil},
		"no address":    {wire.Desired{Peers: []wire.Peer{{Device: low}}, Grant: []byte{1}}, false, nil},
		"cache":         {wire.Desired{Peers: all, Grant: []byte{1}, Cache: true}, true, []string{ownCache, "peer/" + low}},
		"may be one":    {wire.Desired{Peers: all, Grant: []byte{1}}, true, []string{ownCache, "peer/" + low, "peer/" + high}},
		"cache, no one": {wire.Desired{Cache: true}, true, []string{ownCache}},
	} {
		a := &Agent{}
		a.identity.Store(&Identity{DeviceID: self, Tenant: "default"})
		if c.serves {
			a.siblings.cache = peer.NewCache(peer.CacheConfig{})
		}
		raw, err := wire.Marshal(&c.desired)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, w := range a.waysTo(raw) {
			if w.Name != byPeer {
				t.Errorf("%s: a way named %s", name, w.Name)
			}
			got = append(got, w.Key)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if n := len(a.waysTo([]byte("junk"))); n > 1 {
			t.Errorf("%s: %d ways from junk", name, n)
		}
	}
}

// TestPlaces: only addresses of private networks are told.
func TestPlaces(t *testing.T) {
	host := &board{}
	host.iface.Store("eth0")
	a := &Agent{log: slog.New(slog.DiscardHandler), opts: Options{Host: host}}
	if got := a.places(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5}); len(got) != 1 || got[0] != "127.0.0.1:5" {
		t.Errorf("of one address: %q", got)
	}
	got := a.places(&net.TCPAddr{IP: net.IPv6unspecified, Port: 7443})
	if len(got) > maxAddresses {
		t.Errorf("%d addresses", len(got))
	}
	for _, text := range got {
		if p, err := netip.ParseAddrPort(text); err != nil || p.Port() != 7443 || !localNet(net.IP(p.Addr().AsSlice())) {
			t.Errorf("address %s: %v", text, err)
		}
	}
	for text, want := range map[string]bool{"10.1.2.3": true, "192.168.0.9": true, "100.64.0.1": true, "100.128.0.1": false, "8.8.8.8": false, "fd00::1": true, "2001:db8::1": false} {
		if localNet(net.ParseIP(text)) != want {
			t.Errorf("%s: want private %v", text, want)
		}
	}
	for text, ok := range map[string]bool{"": true, ":7443": true, "10.0.0.1:0": true, "7443": false, "host": false} {
		if err := checkPeerListen(text); (err == nil) != ok {
			t.Errorf("listen at %q: %v", text, err)
		}
	}
}
