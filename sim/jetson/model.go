// Package jetson models Jetson boards and an x86 box well enough to try a fleet
// on: power modes by name, clocks, heat and throttling, power rails, memory,
// a doubtful wall clock, and tegrastats lines in the grammar of the board's own
// release. README.md says where each number comes from.
//
// Invariants: a Board changes only in Step and in the setters; time is data;
// equal seed and equal calls give equal boards, byte for byte. It is not safe
// for concurrent use. Only sim and its commands import it.
package jetson

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/telemetry/probe/tegra"
)

// Errors of this package, wrapped with the name that was asked for.
var (
	ErrUnknownModel = errors.New("unknown board model")
	ErrUnknownMode  = errors.New("unknown power mode")
	ErrNoMemory     = errors.New("not enough memory on the board")
)

// Mode is one power mode of nvpmodel. Policies name it; its number differs
// between modules and means nothing elsewhere.
type Mode struct {
	Name  string
	ID    int
	Cores int     // cores that stay on
	CPU   float64 // caps in MHz
	GPU   float64
	EMC   float64
}

// Model describes a kind of board; the table Models holds them all.
type Model struct {
	Key     string // "orin-nano"
	Product string // device-tree model string, or the vendor's name
	Module  string // board id, "p3767-0005"

	// Target attributes; L4T is empty on x86.
	L4T, SM, TensorRT, CUDA string
	MemGB, DLA              int

	RAMMB, SwapMB float64
	Cores         int
	GPCs          int
	CPUOPP        []float64 // MHz, ascending
	GPUOPP        []float64
	EMCOPP        []float64
	Modes         []Mode
	DefaultMode   string

	Thermal Thermal
	Rails   []Rail
	Zones   []Zone
	Engines []Engine
	Grammar tegra.Grammar

	// Latency is the service time of one inference at the caps of the default
	// mode, relative to an Orin Nano in its 15W mode.
	Latency float64
	// MemoryBound is the share of an inference that waits for memory: it
	// scales with the EMC clock, the rest with the GPU clock.
	MemoryBound float64
}

// Thermal is a two-node model: the die and the heat sink.
type Thermal struct {
	DieToSink  float64 // K/W
	SinkToAir  float64 // K/W
	DieTau     float64 // seconds
	SinkTau    float64 // seconds
	Passive    float64 // °C at which clocks step down
	Hysteresis float64
	Hot        float64 // °C at which clocks are halved
	Critical   float64 // °C at which the board switches itself off
	Quantum    float64 // step of the sensors, °C
}

// Rail is one measured power rail: what it draws idle, and in addition with
// GPU, CPU and memory busy at top clocks, in mW. An Input rail carries all
// others, so its own figures are what the others do not cover.
type Rail struct {
	Name                string
	Idle, GPU, CPU, EMC float64
	Input               bool
}

// Zone is one thermal zone: the die (or the sink) plus what its own block
// heats it, in kelvin at full load.
type Zone struct {
	Name   string
	Offset float64
	GPU    float64
	CPU    float64
	Sink   bool
	Fixed  float64 // printed as this constant (PMIC)
	Max    bool    // the highest of the zones before it (tj)
	Gated  bool    // without power while the GPU is idle
}

// Engine is one fixed-function engine: its clock while it works, and whether
// it is always on. Name is as printed.
type Engine struct {
	Name   string
	MHz    float64
	Always bool
	Zero   bool // printed as "@0" while idle instead of "off"
}

// Lookup returns the model of a key.
func Lookup(key string) (*Model, error) {
	for i := range Models {
		if Models[i].Key == key {
			return &Models[i], nil
		}
	}
	return nil, fmt.Errorf("%w %q: want one of %s", ErrUnknownModel, key, strings.Join(Keys(), ", "))
}

// Keys lists the keys of all models.
func Keys() []string {
	var out []string
	for _, m := range Models {
		out = append(out, m.Key)
	}
	return out
}

// Jetson reports that the model is a Jetson, so that it prints tegrastats.
func (m *Model) Jetson() bool { return m.L4T != "" }

// Mode returns the power mode of a name.
func (m *Model) Mode(name string) (Mode, error) {
	i := slices.IndexFunc(m.Modes, func(x Mode) bool { return x.Name == name })
	if i < 0 {
		var names []string
		for _, x := range m.Modes {
			names = append(names, x.Name)
		}
		return Mode{}, fmt.Errorf("%w %q on %s: want one of %s", ErrUnknownMode, name, m.Key, strings.Join(names, ", "))
	}
	return m.Modes[i], nil
}

// tuned names the modules as the agent's table does, by key.
var tuned = map[string]string{
	"nano": "nano-4gb", "xavier-nx": "xavier-nx-8gb", "orin-nano": "orin-nano-8gb", "orin-nx": "orin-nx-16gb", "agx-orin": "agx-orin-64gb", "thor": "thor-t5000",
}

// Tuned is the module's name in targets, empty for what is no Jetson.
func (m *Model) Tuned() string { return tuned[m.Key] }

// Target is what an engine for this board is bound to, without the power mode.
func (m *Model) Target() ota.Target {
	if !m.Jetson() {
		return ota.Target{OS: "linux", Arch: "amd64", Attrs: map[string]string{"ort": "1"}}
	}
	return ota.Target{OS: "linux", Arch: "arm64", Attrs: map[string]string{
		"sm": m.SM, "trt": m.TensorRT, "cuda": m.CUDA, "l4t": m.L4T,
		"mem": strconv.Itoa(m.MemGB), "dla": strconv.Itoa(m.DLA), "module": m.Tuned(),
	}}
}
