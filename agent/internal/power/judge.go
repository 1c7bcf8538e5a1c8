package power

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/proto/wire"
)

const (
	// rateOver is the time over which events are counted.
	rateOver = 10 * time.Minute
	// Instantaneous comparators (OC3 on Orin and Thor) trip in normal work: one
	// Orin counted 27,390 in an hour under load. What is more than twice that
	// costs speed.
	instantPerHour = 60_000
	// near is how close to its trip a zone may be before heavy work waits.
	near = 3000
	// The modules' own supply is 5 V; 158055 on the vendor's forum shows one that
	// falls to 4.70 V behind a thin cable, and is then called over-current.
	nominal5V, least5V = 5000, 4750
)

// view is what follows from the newest samples.
type view struct {
	wire.Power
	advice []string // for the condition, one for each of Throttle
}

// judge says what holds the board back. Samples are in order, the newest last.
func judge(samples []sample) view {
	if len(samples) == 0 {
		return view{}
	}
	now := samples[len(samples)-1]
	v := view{Power: wire.Power{Mode: now.Mode, Modes: now.Modes, Clocks: now.Clocks, Fan: now.Fan}}
	v.heat(now)
	v.current(samples)
	v.voltage(now)
	return v
}

func (v *view) add(name, detail, advice string) {
	v.Throttle = append(v.Throttle, wire.Throttle{Name: name, Detail: detail})
	v.advice = append(v.advice, detail+": "+advice)
}

func (v *view) heat(now sample) {
	const advice = "look after fan, heat sink and air, or set a lower power mode"
	over := ""
	for _, z := range now.Zones {
		if z.TripMilliC <= 0 {
			continue
		}
		if left := z.TripMilliC - z.MilliC; v.Zone == "" || left < v.Headroom {
			v.Zone, v.Headroom = z.Name, left
		}
		if z.MilliC >= z.TripMilliC && over == "" {
			over = fmt.Sprintf("%s is at %.1f °C, its trip is at %.1f °C", z.Name, float64(z.MilliC)/1000, float64(z.TripMilliC)/1000)
		}
	}
	switch {
	case over != "":
		v.add("heat", over, advice)
	case len(now.Coolers) > 0:
		v.add("heat", "the kernel holds clocks down by "+strings.Join(now.Coolers, ", "), advice)
	}
}

// current judges the counters by their rate.
func (v *view) current(samples []sample) {
	now := samples[len(samples)-1]
	for _, name := range slices.Sorted(maps.Keys(now.OverCurrent)) {
		n := now.OverCurrent[name]
		c := wire.OverCurrent{Name: name, Count: n, PerHour: perHour(samples, name)}
		v.OverCurrent = append(v.OverCurrent, c)
		switch instant := name == "oc3"; {
		case c.PerHour == 0 || instant && c.PerHour < instantPerHour:
		case instant:
			v.add("over-current", fmt.Sprintf("%s counts %d events an hour", name, c.PerHour),
				"some are normal under load, so many cost speed: set a lower power mode, or a supply that gives more")
		default:
			v.add("over-current", fmt.Sprintf("%s counts %d events an hour", name, c.PerHour),
				"the supply or its cable is too weak for what the module draws; it is not the model's fault. A lower power mode avoids it")
		}
	}
}

// perHour is the rate of a counter over the newest samples. A counter that fell
// began anew.
func perHour(samples []sample, name string) uint64 {
	now := samples[len(samples)-1]
	var events uint64
	first := len(samples) - 1
	for i := len(samples) - 1; i > 0; i-- {
		if now.at.Sub(samples[i-1].at) > rateOver {
			break
		}
		a, had := samples[i-1].OverCurrent[name]
		b := samples[i].OverCurrent[name]
		if had && b >= a {
			events += b - a
		}
		first = i - 1
	}
	span := now.at.Sub(samples[first].at)
	if span <= 0 {
		return 0
	}
	return uint64(float64(events) / span.Hours())
}

func (v *view) voltage(now sample) {
	for _, r := range now.Rails {
		least := cmp.Or(r.Least, map[bool]int64{true: least5V}[r.MilliVolt > nominal5V*7/10 && r.MilliVolt < nominal5V*6/5])
		if least > 0 && r.MilliVolt < least {
			v.add("under-voltage", fmt.Sprintf("%s is at %.2f V, less than %.2f V", r.Name, float64(r.MilliVolt)/1000, float64(least)/1000),
				"use a shorter or thicker cable, or a stronger supply; clocks are held down meanwhile, and the module may restart")
		}
	}
}

// busy says why heavy work should wait, empty for no reason.
func (v view) busy() string {
	switch {
	case len(v.Throttle) > 0 && v.Throttle[0].Name != "over-current":
		return v.Throttle[0].Detail
	case v.Zone != "" && v.Headroom < near:
		return fmt.Sprintf("%s is %.1f K below its trip", v.Zone, float64(v.Headroom)/1000)
	}
	return ""
}
