package tegra

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/skein-fleet/skein/telemetry"
)

// Readings parses a line and maps it to the vocabulary; at is the time that
// the agent saw it, for the line's own stamp is local time without a zone.
func Readings(line string, at time.Time) []telemetry.Reading {
	s := Parse(line)
	return s.Readings(at)
}

// Readings maps a line to the vocabulary. Percentages become ratios, MHz
// hertz, MB bytes, mW watts. What was not printed gives no reading.
//
// Zones are lower case without a closing "-thermal" or "-therm", so that CPU
// of R32 and cpu-thermal of a mainline kernel are one series; if that would
// make two zones of one line the same, both keep their printed names. The PMIC
// zone is left out while it shows its constant (100 °C, or 50 °C since R32.6).
// Rails keep their printed names, without the unconnected NC.
func (s *Stats) Readings(at time.Time) []telemetry.Reading {
	r := readings{at: at}
	r.memory(s)
	r.cpu(s)
	if g := s.GR3D; g != nil {
		r.add(telemetry.GPUUtilization, g.Pct, percent)
		for i, mhz := range g.MHz {
			r.add(telemetry.GPUFrequency, mhz, mega, "gpc", telemetry.Index(i))
		}
	}
	if e := s.EMC; e != nil {
		r.add(telemetry.EMCUtilization, e.Pct, percent)
		r.add(telemetry.EMCFrequency, e.MHz, mega)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Engines)) {
		e := s.Engines[name]
		r.add(telemetry.EngineUtilization, e.Pct, percent, "engine", name)
		r.add(telemetry.EngineFrequency, e.MHz, mega, "engine", name)
	}
	r.zones(s)
	for _, name := range slices.Sorted(maps.Keys(s.PowerMW)) {
		if plainName(name) != "NC" {
			r.add(telemetry.Power, new(s.PowerMW[name].Now), milli, "rail", name)
		}
	}
	r.add(telemetry.PowerTotal, s.TotalMW(), milli)
	if !s.Empty() {
		r.add(telemetry.UnknownTokens, new(float64(s.UnknownCount)), one)
	}
	return r.out
}

// What tegrastats prints, in base units.
var (
	percent = telemetry.Scale{Mul: 1, Div: 100}
	milli   = telemetry.Scale{Mul: 1, Div: 1000}
	one     = telemetry.Scale{Mul: 1, Div: 1}
	kib     = telemetry.Scale{Mul: 1 << 10, Div: 1}
	mib     = telemetry.Scale{Mul: 1 << 20, Div: 1}
	mega    = telemetry.Scale{Mul: 1e6, Div: 1}
)

type readings struct {
	at  time.Time
	out []telemetry.Reading
}

func (r *readings) add(name string, v *float64, unit telemetry.Scale, labels ...string) {
	if v == nil {
		return
	}
	r.out = append(r.out, telemetry.Reading{Series: telemetry.NewSeries(name, labels...), Time: r.at, Value: *v * float64(unit.Mul) / float64(unit.Div)})
}

func (r *readings) memory(s *Stats) {
	r.add(telemetry.MemoryUsed, s.RAMUsedMB, mib)
	r.add(telemetry.MemoryTotal, s.RAMTotalMB, mib)
	if s.RAMLfb != nil {
		r.add(telemetry.MemoryLargestFree, new(s.RAMLfb.Blocks*s.RAMLfb.KB), kib)
	}
	r.add(telemetry.SwapUsed, s.SwapUsedMB, mib)
	r.add(telemetry.SwapTotal, s.SwapTotalMB, mib)
}

func (r *readings) cpu(s *Stats) {
	if len(s.CPU) == 0 {
		return
	}
	online := 0.0
	for i, c := range s.CPU {
		if c.Pct != nil {
			online++
		}
		r.add(telemetry.CPUUtilization, c.Pct, percent, "core", telemetry.Index(i))
		r.add(telemetry.CPUFrequency, c.MHz, mega, "core", telemetry.Index(i))
	}
	r.add(telemetry.CPUCoresOnline, &online, one)
}

func (r *readings) zones(s *Stats) {
	names := slices.Sorted(maps.Keys(s.TempsC))
	taken := map[string]int{}
	for _, n := range names {
		taken[normalZone(n)]++
	}
	for _, n := range names {
		t, zone := s.TempsC[n], normalZone(n)
		if zone == "pmic" && (t == 100 || t == 50) {
			continue
		}
		if taken[zone] > 1 {
			zone = n
		}
		r.add(telemetry.Temperature, &t, one, "zone", zone)
	}
}

func normalZone(name string) string {
	n := strings.ToLower(name)
	return strings.TrimSuffix(strings.TrimSuffix(n, "-thermal"), "-therm")
}

// inputRails carry the whole module; the first one that is there counts.
var inputRails = []string{"POM_5V_IN", "VDD_IN", "VIN"}

// TotalMW returns the power of the module: its input rail, or the sum of all
// rails where it has none (AGX Xavier, AGX Orin), without NC and without the
// rails that VIN_SYS_5V0 already holds.
func (s *Stats) TotalMW() *float64 {
	for _, name := range inputRails {
		if r, ok := s.PowerMW[name]; ok {
			return new(r.Now)
		}
	}
	if len(s.PowerMW) == 0 {
		return nil
	}
	sum := 0.0
	_, has5V := s.PowerMW["VIN_SYS_5V0"]
	for name, r := range s.PowerMW {
		if plainName(name) == "NC" || has5V && name == "VDDQ_VDD2_1V8AO" {
			continue
		}
		sum += r.Now
	}
	return &sum
}
