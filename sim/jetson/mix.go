package jetson

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
)

// Share is how many boards of a model a mix holds.
type Share struct {
	Key   string
	Count int
}

// Mix is a distribution of board models.
type Mix []Share

// DefaultMix is a city's fleet of 60: mostly small boards at the edge, some
// big ones where several cameras meet, a few servers; at least three of each
// target, so that a canary wave of two leaves one to compare with.
var DefaultMix = Mix{
	{"nano", 8}, {"xavier-nx", 9}, {"orin-nano", 18}, {"orin-nx", 8}, {"agx-orin", 8}, {"thor", 3}, {"x86", 6},
}

// ParseMix reads "default" or "nano=10,orin-nano=20"; a bare key counts 1.
func ParseMix(text string) (Mix, error) {
	if text == "" || text == "default" {
		return slices.Clone(DefaultMix), nil
	}
	var mix Mix
	for part := range strings.SplitSeq(text, ",") {
		key, count, given := strings.Cut(strings.TrimSpace(part), "=")
		n := 1
		if given {
			var err error
			if n, err = strconv.Atoi(count); err != nil || n < 1 || n > 1_000_000 {
				return nil, fmt.Errorf("mix %q: %q: want a count from 1 to 1000000, as in nano=10", text, part)
			}
		}
		if _, err := Lookup(key); err != nil {
			return nil, fmt.Errorf("mix %q: %w", text, err)
		}
		if slices.ContainsFunc(mix, func(s Share) bool { return s.Key == key }) {
			return nil, fmt.Errorf("mix %q: %s stands twice", text, key)
		}
		mix = append(mix, Share{key, n})
	}
	return mix, nil
}

// String is the text that ParseMix reads.
func (m Mix) String() string {
	var parts []string
	for _, s := range m {
		parts = append(parts, s.Key+"="+strconv.Itoa(s.Count))
	}
	return strings.Join(parts, ",")
}

// Total is the number of boards in the mix.
func (m Mix) Total() int {
	n := 0
	for _, s := range m {
		n += s.Count
	}
	return n
}

// Assign gives n devices their models: the mix scaled to n by largest
// remainders, in an order drawn from the seed.
func (m Mix) Assign(n int, seed uint64) []string {
	total := m.Total()
	if total == 0 || n <= 0 {
		return nil
	}
	out := make([]string, 0, n)
	order := make([]int, len(m))
	for i, s := range m {
		order[i] = i
		for range s.Count * n / total {
			out = append(out, s.Key)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return m[b].Count*n%total - m[a].Count*n%total })
	for i := 0; len(out) < n; i++ {
		out = append(out, m[order[i%len(order)]].Key)
	}
	rng := rand.New(rand.NewPCG(seed, 0x6d6978)) // "mix"
	rng.Shuffle(n, func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}
