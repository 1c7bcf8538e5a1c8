package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/peer"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/proto/wire"
)

const (
	byPeer       = "peer"
	ownCache     = "peer/self"
	peerLook     = time.Minute // how often a cache looks at its addresses, and at a port that it could not have
	maxAddresses = 4
	defaultMiB   = 4096
)

// siblings are the devices at this site that serve blobs, as the held desired
// state names them, and what this device serves them.
type siblings struct {
	cache *peer.Cache // nil: this agent never serves
	wake  signal

	mu     sync.Mutex // guards what follows
	held   string     // digest of the desired state that ways are of
	ways   []fetch.Named
	places []string // where this device serves
}

// connectPeers makes the cache of an agent that may serve its siblings.
func (a *Agent) connectPeers() {
	a.siblings.wake = newSignal()
	if a.opts.PeerListen == "" {
		return
	}
	quota := a.opts.PeerCache
	if quota <= 0 {
		quota = defaultMiB << 20
	}
	a.siblings.cache = peer.NewCache(peer.CacheConfig{
		Files: a.opts.Files, Own: a.blobs, Ways: fetch.NewChain(time.Now, func() []fetch.Named { return a.ways }), Quota: quota,
		Free: a.opts.Host.DiskFree, Reserve: func() int64 { return max(a.budget.Reserve(), diskLow) },
		Admit: a.budget.Download, Logger: a.log,
	})
}

// source is what the fetcher takes from.
func (a *Agent) source() fetch.Source {
	if a.siblings.cache == nil {
		return a.chain
	}
	return a.siblings.cache.Own(a.chain)
}

// peerWays are the ways to the siblings of the held desired state.
func (a *Agent) peerWays() []fetch.Named {
	s := &a.siblings
	st := a.state.Get()
	s.mu.Lock()
	defer s.mu.Unlock()
	if held := string(st.HeldDigest); held != s.held {
		s.held = held
		s.close()
		s.ways = a.waysTo(st.Desired)
	}
	return s.ways
}

// close ends the idle connections of ways. s.mu is held.
func (s *siblings) close() {
	for _, w := range s.ways {
		if c, ok := w.Source.(*peer.Client); ok {
			c.Close()
		}
	}
	s.ways = nil
}

func (a *Agent) waysTo(desired []byte) (out []fetch.Named) {
	if a.siblings.cache != nil {
		out = append(out, fetch.Named{Name: byPeer, Key: ownCache, Source: a.siblings.cache.Source()})
	}
	var d wire.Desired
	if len(desired) == 0 || wire.Unmarshal(desired, &d) != nil || len(d.Grant) == 0 {
		return out
	}
	id := a.identity.Load()
	for _, p := range d.Peers {
		if p.Device == id.DeviceID || len(p.Addresses) == 0 {
			continue
		}
		if d.Cache && p.Device > id.DeviceID {
			continue // two caches that fetch from each other would wait for each other
		}
		out = append(out, fetch.Named{Name: byPeer, Key: byPeer + "/" + p.Device, Patience: peer.Patience, Source: peer.NewClient(peer.ClientConfig{
			Tenant: id.Tenant, Roots: a.roots, Now: a.clock, Cert: a.currentCertificate, Grant: d.Grant, Peer: p,
		})})
	}
	return out
}

func (a *Agent) roots() (*x509.CertPool, error) { return a.identity.Load().Roots() }

// serves returns the addresses at which this device serves its siblings.
func (a *Agent) serves() []string {
	a.siblings.mu.Lock()
	defer a.siblings.mu.Unlock()
	return slices.Clone(a.siblings.places)
}

// heldCache reports whether the held desired state tells this device to serve.
func (a *Agent) heldCache() bool {
	var d wire.Desired
	raw := a.state.Get().Desired
	return len(raw) > 0 && wire.Unmarshal(raw, &d) == nil && d.Cache
}

// peerLoop serves the siblings while the held desired state says so, and tells
// the control plane where.
func (a *Agent) peerLoop(ctx context.Context) error {
	if a.siblings.cache == nil {
		return nil
	}
	var stop func() error // of the server that runs
	var port net.Listener
	defer func() {
		if stop != nil {
			_ = stop() // the agent ends
		}
		a.siblings.mu.Lock()
		defer a.siblings.mu.Unlock()
		a.siblings.close()
	}()
	tick := time.NewTicker(peerLook)
	defer tick.Stop()
	ended := make(chan struct{}, 1)
	for {
		want := a.heldCache()
		if want && stop == nil {
			var err error
			if port, err = net.Listen("tcp", a.opts.PeerListen); err != nil {
				a.log.Warn("cannot serve the site", "error", err)
				a.held.set(byPeer, "this device cannot serve its site: "+err.Error())
			} else {
				a.held.set(byPeer, "")
				stop = a.servePeers(ctx, port, ended)
			}
		} else if !want && stop != nil {
			if err := stop(); err != nil {
				a.log.Warn("stopped to serve the site", "error", err)
			}
			stop = nil
			if err := a.siblings.cache.Drop(); err != nil {
				a.log.Warn("delete the cache", "error", err)
			}
		}
		var places []string
		if stop != nil {
			places = a.places(port.Addr())
		}
		a.tellPlaces(ctx, places)
		select {
		case <-ctx.Done():
			return nil
		case <-a.siblings.wake:
		case <-tick.C:
		case <-ended:
			if stop != nil {
				a.log.Warn("the server of the site ended", "error", stop())
				stop = nil
			}
		}
	}
}

// servePeers starts the server; stop ends it and returns why it ended before.
func (a *Agent) servePeers(ctx context.Context, l net.Listener, ended chan<- struct{}) (stop func() error) {
	id := a.identity.Load()
	s := peer.NewServer(peer.ServerConfig{
		Cache: a.siblings.cache, Tenant: id.Tenant, Roots: a.roots, Now: a.clock, Cert: a.currentCertificate,
		Keys: a.trust.DirectorKeys, IndexSize: a.indexSize, Logger: a.log,
	})
	ctx, cancel := context.WithCancel(ctx)
	var err error
	var wg sync.WaitGroup
	wg.Go(func() {
		if err = s.Serve(ctx, l); err != nil {
			select {
			case ended <- struct{}{}:
			default:
			}
		}
	})
	a.log.Info("serving the site", "address", l.Addr().String())
	return func() error {
		cancel()
		wg.Wait()
		return err
	}
}

// tellPlaces says hello again when the addresses have changed.
func (a *Agent) tellPlaces(ctx context.Context, places []string) {
	a.siblings.mu.Lock()
	same := slices.Equal(a.siblings.places, places)
	a.siblings.places = places
	a.siblings.mu.Unlock()
	if up, _ := a.conn.up(); same || !up {
		return // each connection begins with a hello
	}
	if err := a.hello(ctx); err != nil && !errors.Is(err, ErrOffline) {
		a.log.Warn("hello", "error", err)
	}
}

// places are the addresses of a listener that siblings can reach: of private
// networks, the interface of the default route first.
func (a *Agent) places(addr net.Addr) []string {
	t, ok := addr.(*net.TCPAddr)
	if !ok {
		return nil
	}
	if !t.IP.IsUnspecified() {
		return []string{netip.AddrPortFrom(t.AddrPort().Addr().Unmap(), t.AddrPort().Port()).String()}
	}
	first, _ := a.opts.Host.DefaultInterface() // unknown: in the order of the system
	all, err := net.Interfaces()
	if err != nil {
		a.log.Warn("list network interfaces", "error", err)
		return nil
	}
	slices.SortStableFunc(all, func(x, y net.Interface) int {
		switch {
		case x.Name == first && y.Name != first:
			return -1
		case y.Name == first && x.Name != first:
			return 1
		}
		return 0
	})
	var out []string
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, n := range addrs {
			if ip, ok := n.(*net.IPNet); ok && localNet(ip.IP) && len(out) < maxAddresses {
				out = append(out, net.JoinHostPort(ip.IP.String(), strconv.Itoa(t.Port)))
			}
		}
	}
	return out
}

var carrierNet = &net.IPNet{IP: net.IPv4(100, 64, 0, 0).To4(), Mask: net.CIDRMask(10, 32)} // RFC 6598

func localNet(ip net.IP) bool { return ip.IsPrivate() || carrierNet.Contains(ip) }

// indexSize returns the length of a release's index as far as this device
// knows, 0 when it does not.
func (a *Agent) indexSize(release ota.Digest) int64 {
	var d wire.Desired
	if raw := a.state.Get().Desired; len(raw) > 0 && wire.Unmarshal(raw, &d) == nil && d.Release != nil {
		if own, err := releaseDigest(d.Release); err == nil && own == release {
			return d.Release.Length
		}
	}
	for _, path := range a.trust.Targets() {
		if info, err := a.trust.Target(path); err == nil && info.Digest == release {
			return info.Length
		}
	}
	return 0
}

// checkPeerListen refuses an address that cannot be listened at.
func checkPeerListen(address string) error {
	if address == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("address for peers %q: want HOST:PORT or :PORT: %w", address, err)
	}
	return nil
}

func (a *Agent) dropUnsyncedCache() error {
	if a.siblings.cache == nil {
		return nil
	}
	return a.siblings.cache.DropUnsynced()
}

// spent keeps a patch for siblings that was applied here.
func (a *Agent) spent(ctx context.Context, patch ota.Digest) {
	if a.siblings.cache != nil {
		a.siblings.cache.Keep(ctx, patch)
	}
}

// yield deletes what is kept for siblings, since the device needs the space.
func (a *Agent) yield(bytes int64) bool {
	if a.siblings.cache == nil {
		return false
	}
	n, err := a.siblings.cache.Yield(bytes)
	if err != nil {
		a.log.Warn("make room for the device's own release", "error", err)
	}
	return n > 0
}
