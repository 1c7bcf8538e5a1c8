package fleet

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/skein-fleet/skein/controlplane/internal/store"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/proto/wire"
)

// CacheCapability lets a device serve the blobs of its site.
const CacheCapability = "cache"

const (
	maxPeers         = 3 // in a desired state
	maxPeerAddresses = 4
)

// site is a place of a tenant; devices without the label are at none.
type site struct{ tenant, name string }

// members are the devices of a site.
type members map[string]*twin

// settle moves a device to the site that its record says. f.mu is held.
func (f *Fleet) settle(tw *twin, was, is store.Device) {
	from, to := site{was.Tenant, was.Labels[SiteLabel]}, site{is.Tenant, is.Labels[SiteLabel]}
	if from != to && from.name != "" {
		delete(f.sites[from], tw.id)
	}
	if to.name == "" {
		return
	}
	if f.sites[to] == nil {
		f.sites[to] = members{}
	}
	f.sites[to][tw.id] = tw
}

func isCache(d store.Device) bool {
	return d.State == store.DeviceActive && slices.Contains(d.Capabilities, CacheCapability)
}

// at returns the members of the site of a device record.
func (f *Fleet) at(d store.Device) []*twin {
	name := d.Labels[SiteLabel]
	if name == "" {
		return nil
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	m := f.sites[site{d.Tenant, name}]
	out := make([]*twin, 0, len(m))
	for _, tw := range m {
		out = append(out, tw)
	}
	return out
}

// befriend tells a device whether it serves its site, and gives it the caches
// there with a grant that they honour. The list is advice: it is made with a
// generation and makes none.
func (f *Fleet) befriend(d *wire.Desired, dev store.Device, release ota.Digest) error {
	d.Cache = isCache(dev)
	if release == "" {
		return nil
	}
	if d.Peers = f.peers(dev); len(d.Peers) == 0 {
		return nil
	}
	payload, err := wire.Marshal(&wire.Grant{Device: dev.ID, Tenant: dev.Tenant, Release: release.Sum(), ExpiresAt: d.ExpiresAt})
	if err != nil {
		return err
	}
	if d.Grant, err = f.cfg.Director.Sign(wire.AADGrant, payload); err != nil {
		return fmt.Errorf("sign a grant for %s: %w", dev.ID, err)
	}
	return nil
}

// peers returns the caches of a device's site in an order of its own, so that
// they share the load.
func (f *Fleet) peers(dev store.Device) []wire.Peer {
	type candidate struct {
		wire.Peer
		order uint64
	}
	var all []candidate
	for _, tw := range f.caches(dev) {
		if tw.id == dev.ID {
			continue
		}
		tw.mu.Lock()
		addresses, ok := tw.serves, isCache(tw.dev) && tw.online
		tw.mu.Unlock()
		if !ok || len(addresses) == 0 {
			continue
		}
		sum := sha256.Sum256([]byte(dev.ID + "/" + tw.id))
		all = append(all, candidate{wire.Peer{Device: tw.id, Addresses: addresses}, binary.BigEndian.Uint64(sum[:8])})
	}
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(a.order, b.order) })
	out := make([]wire.Peer, 0, maxPeers)
	for _, c := range all[:min(len(all), maxPeers)] {
		out = append(out, c.Peer)
	}
	return out
}

// caches returns the devices of a site that told where they serve.
func (f *Fleet) caches(dev store.Device) []*twin {
	name := dev.Labels[SiteLabel]
	if name == "" {
		return nil
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	m := f.serving[site{dev.Tenant, name}]
	out := make([]*twin, 0, len(m))
	for _, tw := range m {
		out = append(out, tw)
	}
	return out
}

// SiteReleases returns the releases that the devices at the site of a cache
// run, should run, or were told to run before; none for other devices.
func (f *Fleet) SiteReleases(device string) []ota.Digest {
	f.mu.RLock()
	tw := f.twins[device]
	f.mu.RUnlock()
	if tw == nil {
		return nil
	}
	tw.mu.Lock()
	dev := tw.dev
	tw.mu.Unlock()
	if !isCache(dev) {
		return nil
	}
	var out []ota.Digest
	add := func(d ota.Digest) {
		if d != "" && !slices.Contains(out, d) {
			out = append(out, d)
		}
	}
	for _, m := range f.at(dev) {
		m.mu.Lock()
		if m.dev.State == store.DeviceActive {
			if m.wanted != nil {
				add(ota.Digest(m.wanted.Release))
			}
			if m.reported != nil {
				add(digestOf(m.reported.Running))
			}
			add(m.before)
		}
		m.mu.Unlock()
	}
	return out
}

// offered takes the addresses at which a device says it serves its site: of a
// cache alone, and only addresses of private networks. It says what was odd.
func (f *Fleet) offered(tw *twin, addresses []string) (odd error) {
	tw.mu.Lock()
	dev := tw.dev
	tw.mu.Unlock()
	var good []string
	switch {
	case len(addresses) == 0:
	case !isCache(dev):
		odd = errors.New("it offers to serve its site and has no capability for that")
	case len(addresses) > maxPeerAddresses:
		odd = fmt.Errorf("it says %d addresses at which it serves, the limit is %d", len(addresses), maxPeerAddresses)
	default:
		for _, a := range addresses {
			if !private(a) {
				odd = fmt.Errorf("it says that it serves its site at %.60q, which is no address of a private network", a)
				continue
			}
			good = append(good, a)
		}
	}
	tw.mu.Lock()
	tw.serves = good
	tw.mu.Unlock()
	where := site{dev.Tenant, dev.Labels[SiteLabel]}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(good) == 0 || where.name == "" {
		delete(f.serving[where], tw.id)
		return odd
	}
	if f.serving[where] == nil {
		f.serving[where] = members{}
	}
	f.serving[where][tw.id] = tw
	return odd
}

var shared = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

// private reports whether a is IP:PORT of a private network, or of the host itself.
func private(a string) bool {
	ap, err := netip.ParseAddrPort(a)
	if err != nil || ap.Port() == 0 || ap.Addr().Zone() != "" {
		return false
	}
	ip := ap.Addr().Unmap()
	return ip.IsPrivate() || ip.IsLoopback() || shared.Contains(ip)
}
