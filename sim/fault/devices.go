package fault

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"github.com/skein-fleet/skein/sim/jetson"
)

// Devices says which devices are meant. The zero value means all. Devices are
// numbered from 1.
type Devices struct {
	Ranges  []Range // "3", "1-5,8"
	Percent float64 // "10%": so many, drawn by seed, at least one
	Any     int     // "any3": three, drawn by seed
	Model   string  // "orin-nano": all boards of a model
}

// Range is an inclusive range of device numbers.
type Range struct{ From, To int }

// MaxDevices bounds device numbers.
const MaxDevices = 1_000_000

// ParseDevices reads all, 3, 1-5,8, 10%, any3, or a board model.
func ParseDevices(s string) (Devices, error) {
	switch {
	case s == "all":
		return Devices{}, nil
	case strings.HasSuffix(s, "%"):
		pct, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
		if err != nil || !(pct > 0 && pct <= 100) {
			return Devices{}, errors.New("want a share above 0% up to 100%")
		}
		return Devices{Percent: pct}, nil
	case strings.HasPrefix(s, "any"):
		n, err := count(s[len("any"):])
		if err != nil {
			return Devices{}, err
		}
		return Devices{Any: n}, nil
	case s != "" && (s[0] < '0' || s[0] > '9'):
		m, err := jetson.Lookup(s)
		if err != nil {
			return Devices{}, fmt.Errorf("want all, a number, 1-5,8, 10%%, any3 or a board model: %w", err)
		}
		return Devices{Model: m.Key}, nil
	}
	var d Devices
	for part := range strings.SplitSeq(s, ",") {
		from, to, ranged := strings.Cut(part, "-")
		a, err := count(from)
		b := a
		if err == nil && ranged {
			b, err = count(to)
		}
		if err != nil || b < a || len(d.Ranges) == 10000 {
			return Devices{}, errors.New("want device numbers from 1 up, as in 3 or 1-5,8")
		}
		d.Ranges = append(d.Ranges, Range{a, b})
	}
	return d, nil
}

// String is the text that ParseDevices reads.
func (d Devices) String() string {
	if t := d.text(); t != "" {
		return t
	}
	return "all"
}

func (d Devices) text() string {
	switch {
	case d.Percent > 0:
		return strconv.FormatFloat(d.Percent, 'g', -1, 64) + "%"
	case d.Any > 0:
		return "any" + strconv.Itoa(d.Any)
	case d.Model != "":
		return d.Model
	}
	var parts []string
	for _, r := range d.Ranges {
		if r.From == r.To {
			parts = append(parts, strconv.Itoa(r.From))
			continue
		}
		parts = append(parts, fmt.Sprintf("%d-%d", r.From, r.To))
	}
	return strings.Join(parts, ",")
}

// Pick returns the numbers (from 1, ascending) of the devices meant in a fleet
// whose boards are models[0…]; draws come from the seed.
func (d Devices) Pick(models []string, seed uint64) []int {
	n := len(models)
	var out []int
	for i := range n {
		if d.Model == "" || models[i] == d.Model {
			out = append(out, i+1)
		}
	}
	if len(d.Ranges) > 0 {
		return slices.DeleteFunc(out, func(i int) bool {
			return !slices.ContainsFunc(d.Ranges, func(r Range) bool { return r.From <= i && i <= r.To })
		})
	}
	want := d.Any
	if d.Percent > 0 {
		want = max(1, int(math.Round(d.Percent/100*float64(n))))
	}
	if want == 0 || want >= len(out) {
		return out
	}
	rng := rand.New(rand.NewPCG(seed, 0x6661756c74)) // "fault"
	rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	out = out[:want]
	slices.Sort(out)
	return out
}
