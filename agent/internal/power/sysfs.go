package power

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/proto/wire"
)

func (t *Tools) glob(pattern string) []string {
	found, err := filepath.Glob(t.path(pattern))
	if err != nil { // the pattern is ours
		return nil
	}
	return found
}

// clocks says whether the GPU and all processors are held at their highest
// clock, 0 where the kernel does not show them.
func (t *Tools) clocks() wire.Clocks {
	known, locked := false, true
	look := func(low, high string) {
		a, ok1 := t.number(low)
		b, ok2 := t.number(high)
		if ok1 && ok2 {
			known = true
			locked = locked && a == b
		}
	}
	for _, pattern := range []string{"sys/class/devfreq/*.gpu", "sys/class/devfreq/*.g[mpva]*b", "sys/class/devfreq/gpu-gpc-*"} {
		for _, dir := range t.glob(pattern) {
			look(filepath.Join(dir, "min_freq"), filepath.Join(dir, "max_freq"))
		}
	}
	for _, dir := range t.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq") {
		look(filepath.Join(dir, "scaling_min_freq"), filepath.Join(dir, "scaling_max_freq"))
	}
	switch {
	case !known:
		return 0
	case locked:
		return wire.ClocksLocked
	}
	return wire.ClocksDynamic
}

// zones are found by type, never by index. A zone whose block has no power
// cannot be read, or shows −256 °C.
func (t *Tools) zones() (out []Zone) {
	for _, dir := range t.glob("sys/class/thermal/thermal_zone*") {
		temp, ok := t.number(filepath.Join(dir, "temp"))
		if !ok || temp <= -200_000 {
			continue
		}
		z := Zone{Name: t.text(filepath.Join(dir, "type")), MilliC: temp}
		trips, err := filepath.Glob(filepath.Join(dir, "trip_point_*_type"))
		if err != nil {
			continue
		}
		for _, path := range trips {
			// Active trips start fans; critical ones come when all is late.
			if kind := t.text(path); kind != "passive" && kind != "hot" {
				continue
			}
			trip, ok := t.number(strings.TrimSuffix(path, "type") + "temp")
			if ok && trip > 0 && trip < 125_000 && (z.TripMilliC == 0 || trip < z.TripMilliC) {
				z.TripMilliC = trip
			}
		}
		out = append(out, z)
	}
	return out
}

var coolerRE = regexp.MustCompile(`(?i)throttl|cpufreq|devfreq|cpu-balanced|gpu-balanced|emergency`)

// coolers are cooling devices other than fans that are at work.
func (t *Tools) coolers() (out []string) {
	for _, dir := range t.glob("sys/class/thermal/cooling_device*") {
		kind := t.text(filepath.Join(dir, "type"))
		if n, ok := t.number(filepath.Join(dir, "cur_state")); ok && n > 0 && coolerRE.MatchString(kind) {
			out = append(out, kind)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

var counterRE = regexp.MustCompile(`^(oc\d+)_event_cnt$`)

// overCurrent are the counters of soctherm.
func (t *Tools) overCurrent() map[string]uint64 {
	out := map[string]uint64{}
	for _, pattern := range []string{"sys/class/hwmon/hwmon*/oc*_event_cnt", "sys/devices/platform/*soctherm*/*/oc*_event_cnt", "sys/devices/platform/*soctherm*/oc*_event_cnt"} {
		for _, path := range t.glob(pattern) {
			g := counterRE.FindStringSubmatch(filepath.Base(path))
			if n, ok := t.number(path); ok && g != nil && n >= 0 {
				out[g[1]] = max(out[g[1]], uint64(n))
			}
		}
	}
	return out
}

// inputRails are the supplies of whole modules.
var inputRails = []string{"VDD_IN", "POM_5V_IN", "VIN", "VIN_SYS_5V0"}

// rails are the module's supplies, as its power monitors measure them.
func (t *Tools) rails() (out []Rail) {
	for _, label := range t.glob("sys/class/hwmon/hwmon*/in*_label") {
		name := t.text(label)
		if !slices.Contains(inputRails, name) {
			continue
		}
		base := strings.TrimSuffix(label, "_label")
		mv, ok := t.number(base + "_input")
		if !ok || mv <= 0 {
			continue
		}
		least, _ := t.number(base + "_min")
		out = append(out, Rail{Name: name, MilliVolt: mv, Least: max(0, least)})
	}
	return out
}
