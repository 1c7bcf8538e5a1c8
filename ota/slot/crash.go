package slot

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// tearBlock is how much of a file is written as one; smaller than any real
// sector, so that tests meet tears that hardware rarely shows.
const tearBlock = 16

// crash builds one disk that a power cut may leave. Changes of names that were
// not synced survive as a prefix in the order in which they were made, as on a
// journalling file system, or as any subset, as POSIX allows; a rename within
// one sync is never half done. Data that was not synced survives whole, not at
// all, or torn: cut short, or with holes of zeros or of what stood there.
func (d *memDisk) crash(rng *rand.Rand) *memDisk {
	kept := map[*node]map[string]*node{} // directories changed by surviving ops
	entries := func(dir *node) map[string]*node {
		if kept[dir] == nil {
			kept[dir] = maps.Clone(dir.durable)
		}
		return kept[dir]
	}
	subset := rng.IntN(2) == 0
	prefix := rng.IntN(len(d.pending) + 1)
	for i, op := range d.pending {
		if subset && rng.IntN(2) == 0 || !subset && i >= prefix {
			continue
		}
		for _, s := range op {
			if s.to == nil {
				delete(entries(s.dir), s.name)
			} else {
				entries(s.dir)[s.name] = s.to
			}
		}
	}
	used := int64(0)
	copies := map[*node]*node{} // one node may stand under two names after a half-synced rename
	var build func(n *node) *node
	build = func(n *node) *node {
		if c, ok := copies[n]; ok {
			return c
		}
		c := &node{modified: n.modified}
		copies[n] = c
		if !n.isDir() {
			c.data = tear(rng, n.synced, n.data)
			c.flush()
			used += int64(len(c.data))
			return c
		}
		c.entries, c.durable = map[string]*node{}, map[string]*node{}
		from := n.durable
		if k, ok := kept[n]; ok {
			from = k
		}
		for _, name := range slices.Sorted(maps.Keys(from)) {
			child := build(from[name])
			c.entries[name], c.durable[name] = child, child
		}
		return c
	}
	before := d.root.bytes()
	next := &memDisk{root: build(d.root), free: d.free}
	if next.free >= 0 {
		next.free = max(0, next.free+before-used)
	}
	return next
}

// bytes returns how much file data is in use below n.
func (n *node) bytes() int64 {
	total := int64(len(n.data))
	for _, c := range n.entries {
		total += c.bytes()
	}
	return total
}

// tear mixes durable content and content that was written but not synced.
func tear(rng *rand.Rand, synced, data []byte) []byte {
	if len(synced) == len(data) && slices.Equal(synced, data) {
		return slices.Clone(data)
	}
	switch rng.IntN(4) {
	case 0:
		return slices.Clone(synced)
	case 1:
		return slices.Clone(data)
	}
	lo, hi := min(len(synced), len(data)), max(len(synced), len(data))
	out := make([]byte, lo+rng.IntN(hi-lo+1))
	for at := 0; at < len(out); at += tearBlock {
		block := out[at:min(at+tearBlock, len(out))]
		from := data
		if rng.IntN(3) == 0 {
			from = synced // beyond its end: zeros
		}
		if at < len(from) {
			copy(block, from[at:])
		}
	}
	return out
}
