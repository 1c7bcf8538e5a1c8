package chunk

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Way is how an artifact comes to a device.
type Way string

// The ways.
const (
	Here     Way = "here"   // it is in the store
	ByPatch  Way = "patch"  // a patch against an installed artifact
	ByChunks Way = "chunks" // the chunks that installed artifacts lack
	Full     Way = "full"   // all of it
)

// Artifact is what is wanted, with what there is of it.
type Artifact struct {
	Digest  ota.Digest
	Size    int64
	Here    bool
	Partial int64 // its first bytes are in the store
	// Index may be nil: then there are no chunks to choose. IndexBytes is what
	// getting it costs, or cost in this plan.
	Index      *Index
	IndexBytes int64
}

// Offer is a patch, with how much of it is in the store.
type Offer struct {
	manifest.Patch
	Have int64
}

// Installed is an artifact in the store whose bytes may be used. Index may be nil.
type Installed struct {
	Digest ota.Digest
	Size   int64
	Index  *Index
}

// Choice is one way and the bytes it takes from the network.
type Choice struct {
	Way   Way
	Bytes int64
	// Patch is set for that way, and Reused, the bytes that need not travel,
	// for chunks.
	Patch  manifest.Patch
	Reused int64
}

// String says the choice in a few words.
func (c Choice) String() string {
	switch c.Way {
	case ByPatch:
		return fmt.Sprintf("%s patch against %s", c.Patch.Kind, c.Patch.Base.Short())
	case Here:
		return "already here"
	}
	return string(c.Way)
}

// Plan returns the ways for an artifact, the cheapest first. The others are
// what to fall back to; the last one always works.
func Plan(a Artifact, patches []Offer, have []Installed) []Choice {
	if a.Here || slices.ContainsFunc(have, func(i Installed) bool { return i.Digest == a.Digest && i.Size == a.Size }) {
		return []Choice{{Way: Here}}
	}
	partial := min(max(a.Partial, 0), a.Size)
	full := Choice{Way: Full, Bytes: a.Size - partial}
	var out []Choice
	for _, p := range patches {
		if slices.ContainsFunc(have, func(i Installed) bool { return i.Digest == p.Base }) {
			out = append(out, Choice{Way: ByPatch, Bytes: p.Size - min(max(p.Have, 0), p.Size), Patch: p.Patch})
		}
	}
	if c, ok := byChunks(a, partial, have); ok {
		out = append(out, c)
	}
	out = slices.DeleteFunc(out, func(c Choice) bool { return c.Bytes >= full.Bytes })
	slices.SortStableFunc(out, func(x, y Choice) int { return cmp.Compare(x.Bytes, y.Bytes) })
	return append(out, full)
}

func byChunks(a Artifact, partial int64, have []Installed) (Choice, bool) {
	if a.Index == nil || a.Index.Artifact != a.Digest || a.Index.Size != a.Size {
		return Choice{}, false
	}
	p := findable(indexesOf(have)...)
	c := Choice{Way: ByChunks, Bytes: a.IndexBytes}
	at := int64(0)
	for i := range a.Index.Chunks {
		ch := &a.Index.Chunks[i]
		at += int64(ch.Len)
		if at <= partial {
			continue
		}
		if _, ok := p.find(ch); ok {
			c.Reused += int64(ch.Len)
		} else {
			c.Bytes += int64(ch.Len) // a chunk that is there in part comes again, to be hashed
		}
	}
	return c, c.Reused > 0
}

func indexesOf(have []Installed) []*Index {
	out := make([]*Index, len(have))
	for i, h := range have {
		if h.Index != nil && h.Index.Artifact == h.Digest && h.Index.Size == h.Size {
			out[i] = h.Index
		}
	}
	return out
}
