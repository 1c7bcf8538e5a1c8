package jetson

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/skein-fleet/skein/telemetry"
	"github.com/skein-fleet/skein/telemetry/probe/tegra"
)

// zone is the temperature of a zone, in °C.
func (b *Board) zone(z Zone) float64 {
	if z.Fixed != 0 {
		return z.Fixed
	}
	t := b.die
	if z.Sink {
		t = b.sink
	}
	return t + z.Offset + z.GPU*b.gpuUtil*dynamic(b.gpuMHz, top(b.model.GPUOPP)) + z.CPU*b.cpuUtil*dynamic(b.cpuMHz, top(b.model.CPUOPP))
}

// Stats is what tegrastats would read on the board now; it is zero on x86 and
// on a board that is dead.
func (b *Board) Stats() tegra.Stats {
	if !b.model.Jetson() || b.dead {
		return tegra.Stats{}
	}
	m := b.model
	s := tegra.Stats{
		RAMUsedMB: new(math.Round(b.usedMB())), RAMTotalMB: new(m.RAMMB), RAMLfb: b.lfb(),
		SwapUsedMB: new(0.0), SwapTotalMB: new(m.SwapMB), SwapCachedMB: new(0.0),
		EMC:     &tegra.Engine{Pct: new(percent(b.emcUtil)), MHz: new(b.emcMHz)},
		GR3D:    b.gr3d(),
		Engines: b.engines(),
		TempsC:  map[string]float64{},
		PowerMW: map[string]tegra.Rail{},
	}
	if m.Grammar.Timestamp {
		s.Time = b.Now().UTC().Format("2006-01-02T15:04:05")
	}
	if m.Key == "nano" {
		s.IRAMUsedKB, s.IRAMTotalKB, s.IRAMLfbKB = new(0.0), new(252.0), new(252.0)
	}
	for i, u := range b.coreUtil {
		core := tegra.Core{Off: true}
		if i < b.mode.Cores {
			core = tegra.Core{Pct: new(percent(u)), MHz: new(b.cpuMHz)}
		}
		s.CPU = append(s.CPU, core)
	}
	b.temps(&s)
	for i, r := range m.Rails {
		now := math.Round(b.rails[i])
		avg := now
		if b.railSamples > 0 {
			avg = math.Round(b.railSum[i] / b.railSamples)
		}
		s.PowerMW[r.Name] = tegra.Rail{Now: now, Avg: &avg}
	}
	return s
}

// Tegrastats prints the board's line in the grammar of its release; it is
// empty on x86 and on a board that is dead.
func (b *Board) Tegrastats() string {
	s := b.Stats()
	if s.Empty() {
		return ""
	}
	return tegra.Format(s, b.model.Grammar)
}

func (b *Board) usedMB() float64 { return b.baseMB + b.claimedMB }

// lfb is the count of largest free blocks, of 4 MB while there are any.
func (b *Board) lfb() *tegra.Lfb {
	free := max(0, b.model.RAMMB-b.usedMB())
	blocks := math.Floor(min(b.freeBlocks, free/4))
	if blocks < 1 {
		return &tegra.Lfb{Blocks: 1, KB: 512}
	}
	return &tegra.Lfb{Blocks: blocks, KB: 4096}
}

// gr3d is the GPU as the release prints it: Thor gives clocks and no load.
func (b *Board) gr3d() *tegra.GPU {
	idle := b.load.GPU == 0
	mhz := b.gpuMHz
	if idle && b.model.GPCs > 1 {
		mhz = 0 // big GPUs are gated while idle
	}
	g := &tegra.GPU{MHz: []*float64{}}
	for range b.model.GPCs {
		g.MHz = append(g.MHz, new(mhz))
	}
	if b.model.Key != "thor" {
		g.Pct = new(percent(b.gpuUtil))
	}
	return g
}

func (b *Board) engines() map[string]tegra.Engine {
	out := map[string]tegra.Engine{}
	listed := b.model.Grammar.ListGPC // these releases list idle engines too
	for _, e := range b.model.Engines {
		key := strings.ToLower(strings.TrimSuffix(e.Name, "_FREQ"))
		dla := strings.HasPrefix(key, "nvdla0") && b.load.DLA > 0
		switch {
		case e.Always:
			out[key] = tegra.Engine{MHz: new(e.MHz)}
		case dla && listed:
			out[key] = tegra.Engine{Pct: new(percent(b.load.DLA)), MHz: new(e.MHz)}
		case dla:
			out[key] = tegra.Engine{MHz: new(e.MHz)}
		case e.Zero:
			out[key] = tegra.Engine{MHz: new(0.0)}
		case listed:
			out[key] = tegra.Engine{Off: true}
		}
	}
	return out
}

func (b *Board) temps(s *tegra.Stats) {
	highest := math.Inf(-1)
	for _, z := range b.model.Zones {
		if z.Gated && b.load.GPU == 0 {
			if b.model.Grammar.ZonesGated {
				s.ZonesOff = append(s.ZonesOff, z.Name)
			}
			continue
		}
		t := b.quantise(b.zone(z))
		if z.Max {
			t = highest
		}
		if z.Fixed == 0 {
			highest = max(highest, t)
		}
		s.TempsC[z.Name] = t
	}
}

// quantise rounds as the sensors do and cuts after three decimals as
// tegrastats does.
func (b *Board) quantise(t float64) float64 {
	q := b.model.Thermal.Quantum
	return math.Trunc(math.Round(t/q)*q*1000) / 1000
}

func percent(u float64) float64 { return math.Round(100 * u) }

// Readings is what the agent's probes would read on the board: its tegrastats
// line through the real parser, and what comes from elsewhere.
func (b *Board) Readings(at time.Time) []telemetry.Reading {
	if b.dead {
		return nil
	}
	out := tegra.Readings(b.Tegrastats(), at)
	add := func(name string, v float64, labels ...string) {
		out = append(out, telemetry.Reading{Series: telemetry.NewSeries(name, labels...), Time: at, Value: v})
	}
	throttled := 0.0
	if b.Throttled() {
		throttled = 1
	}
	add(telemetry.Throttled, throttled, "reason", "thermal")
	add(telemetry.ThrottleEvents, float64(b.throttles), "reason", "thermal")
	add(telemetry.Uptime, math.Floor(b.uptime.Seconds()))
	if b.model.Jetson() {
		return out
	}
	const mib = 1 << 20
	add(telemetry.MemoryUsed, math.Round(b.usedMB())*mib)
	add(telemetry.MemoryTotal, b.model.RAMMB*mib)
	add(telemetry.GPUUtilization, percent(b.gpuUtil)/100)
	add(telemetry.GPUFrequency, b.gpuMHz*1e6, "gpc", "0")
	add(telemetry.CPUCoresOnline, float64(b.mode.Cores))
	for i, u := range b.coreUtil[:b.mode.Cores] {
		add(telemetry.CPUUtilization, percent(u)/100, "core", telemetry.Index(i))
		add(telemetry.CPUFrequency, b.cpuMHz*1e6, "core", telemetry.Index(i))
	}
	for _, z := range b.model.Zones {
		add(telemetry.Temperature, b.quantise(b.zone(z)), "zone", z.Name)
	}
	total := 0.0
	for i, r := range b.model.Rails {
		add(telemetry.Power, math.Round(b.rails[i])/1000, "rail", r.Name)
		total += math.Round(b.rails[i]) / 1000
	}
	add(telemetry.PowerTotal, total)
	return out
}

// NvTegraRelease is the first line of /etc/nv_tegra_release, "" on x86.
func (b *Board) NvTegraRelease() string {
	major, rest, ok := strings.Cut(b.model.L4T, ".")
	if !ok {
		return ""
	}
	board := "generic"
	switch b.model.Key {
	case "nano":
		board = "t210ref"
	case "xavier-nx":
		board = "t186ref"
	}
	return fmt.Sprintf("# R%s (release), REVISION: %s, GCID: %d, BOARD: %s, EABI: aarch64, DATE: Mon Jun 16 16:07:13 UTC 2025", major, rest, 40000000+b.model.MemGB, board)
}

// NvpmodelQuery is what nvpmodel -q prints.
func (b *Board) NvpmodelQuery() string {
	if !b.model.Jetson() {
		return ""
	}
	return fmt.Sprintf("NV Power Mode: %s\n%d\n", b.mode.Name, b.mode.ID)
}
