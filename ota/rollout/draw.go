package rollout

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"strings"
)

// rank is the place of a device in a rollout's draw: even over devices, the
// same on every machine, and another one in every rollout.
func rank(rollout, device string) uint64 {
	var buf [96]byte
	b := append(append(append(buf[:0], rollout...), 0), device...)
	sum := sha256.Sum256(b)
	return binary.BigEndian.Uint64(sum[:8])
}

// draw returns the devices in the order of the draw: those online first, since
// a wave drawn from devices that are away shows nothing.
func (p *planner) draw(devices []*Device) []*Device {
	type ranked struct {
		d    *Device
		rank uint64
	}
	all := make([]ranked, len(devices))
	for i, d := range devices {
		all[i] = ranked{d, rank(p.st.ID, d.ID)}
	}
	slices.SortFunc(all, func(a, b ranked) int {
		if a.d.Online != b.d.Online {
			if a.d.Online {
				return -1
			}
			return 1
		}
		if a.rank != b.rank {
			return cmp.Compare(a.rank, b.rank)
		}
		return cmp.Compare(a.d.ID, b.d.ID)
	})
	out := make([]*Device, len(all))
	for i := range all {
		out[i] = all[i].d
	}
	return out
}

// value returns what a device has under a key of stratifyBy or groupBy.
func (d *Device) value(key string) string {
	if key == "target" {
		return d.Target
	}
	return d.Labels[key]
}

func (d *Device) values(keys []string) string {
	switch len(keys) {
	case 0:
		return ""
	case 1:
		return d.value(keys[0])
	}
	var b strings.Builder
	for _, k := range keys {
		b.WriteString(d.value(k))
		b.WriteByte(0)
	}
	return b.String()
}

// assignment draws the waves. Devices that run the release already, or never
// can, take no place of a limited wave: they are listed with the last wave that
// takes every device.
func (p *planner) assignment() []Assignment {
	var pool, rest []*Device
	for i := range p.fleet {
		d := &p.fleet[i]
		switch {
		case p.dev[d.ID] != d || !p.sel.match(d):
		case d.Release == p.spec.Release || d.Incompatible != "":
			rest = append(rest, d)
		default:
			pool = append(pool, d)
		}
	}
	pool, rest = p.draw(pool), p.draw(rest)
	out := make([]Assignment, 0, len(pool)+len(rest))
	taken := make(map[string]bool, len(pool))
	for w, spec := range p.spec.Waves {
		var matching, free []*Device
		for _, d := range pool {
			if p.waves[w].match(d) {
				matching = append(matching, d)
				if !taken[d.ID] {
					free = append(free, d)
				}
			}
		}
		picked := free
		switch {
		case spec.PerTarget > 0:
			picked = perTarget(free, int(spec.PerTarget), spec.StratifyBy)
		case !spec.Limit.IsZero():
			picked = pick(free, spec.Limit.Up(len(matching)), spec.StratifyBy)
		}
		for _, d := range picked {
			taken[d.ID] = true
			out = append(out, Assignment{Device: d.ID, Wave: w})
		}
	}
	for _, d := range rest {
		if w := p.openWave(d); w >= 0 {
			out = append(out, Assignment{Device: d.ID, Wave: w, Already: d.Release == p.spec.Release})
		}
	}
	return out
}

// strata groups devices by keys; both the groups and the devices in them keep
// a stable order.
func strata(devices []*Device, keys []string) [][]*Device {
	groups := map[string][]*Device{}
	for _, d := range devices {
		k := d.values(keys)
		groups[k] = append(groups[k], d)
	}
	out := make([][]*Device, 0, len(groups))
	for _, k := range slices.Sorted(maps.Keys(groups)) {
		out = append(out, groups[k])
	}
	return out
}

func perTarget(devices []*Device, n int, stratify []string) []*Device {
	chosen := map[*Device]bool{}
	for _, g := range strata(devices, []string{"target"}) {
		for _, d := range pick(g, n, stratify) {
			chosen[d] = true
		}
	}
	return inOrder(devices, chosen)
}

// pick takes n devices, from each stratum its share by largest remainder.
func pick(devices []*Device, n int, stratify []string) []*Device {
	if n >= len(devices) {
		return devices
	}
	if len(stratify) == 0 {
		return devices[:n]
	}
	groups := strata(devices, stratify)
	share, order := make([]int, len(groups)), make([]int, len(groups))
	left := n
	for i, g := range groups {
		share[i] = n * len(g) / len(devices)
		left -= share[i]
		order[i] = i
	}
	remainder := func(i int) int { return n * len(groups[i]) % len(devices) }
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(remainder(b), remainder(a)) })
	for _, i := range order[:left] {
		share[i]++
	}
	chosen := map[*Device]bool{}
	for i, g := range groups {
		for _, d := range g[:share[i]] {
			chosen[d] = true
		}
	}
	return inOrder(devices, chosen)
}

func inOrder(devices []*Device, chosen map[*Device]bool) []*Device {
	out := make([]*Device, 0, len(chosen))
	for _, d := range devices {
		if chosen[d] {
			out = append(out, d)
		}
	}
	return out
}
