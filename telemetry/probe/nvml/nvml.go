// Package nvml is what the child program skein-nvml says of NVIDIA GPUs, line by
// line, and how that becomes readings. It loads no library itself: the program
// does, in a process of its own, since it needs cgo and a driver may hang or
// crash it.
//
// Invariant: what a GPU does not answer is nil and has no reading, never a zero.
// cmd/skein-nvml writes lines, the agent's host reads them.
package nvml

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/skein-fleet/skein/telemetry"
)

// Exit codes of skein-nvml.
const (
	ExitNoLibrary = 69 // EX_UNAVAILABLE: no libnvidia-ml, or none that this build can load
	ExitNoGPU     = 72 // the library has no GPU
)

// ErrLine is returned for a line that skein-nvml did not write.
var ErrLine = errors.New("not a line of skein-nvml")

// Report is one line.
type Report struct {
	Driver string `json:"driver,omitempty"`
	GPUs   []GPU  `json:"gpus"`
}

// GPU is what one GPU answers.
type GPU struct {
	Index       int      `json:"index"`
	Name        string   `json:"name,omitempty"`
	UUID        string   `json:"uuid,omitempty"`
	Compute     string   `json:"compute_capability,omitempty"` // 8.7
	Utilisation *float64 `json:"utilisation,omitempty"`        // 0 to 1
	MemoryUsed  *uint64  `json:"memory_used,omitempty"`        // bytes
	MemoryTotal *uint64  `json:"memory_total,omitempty"`
	Clock       *uint32  `json:"clock_mhz,omitempty"`
	MemoryClock *uint32  `json:"memory_clock_mhz,omitempty"`
	Power       *float64 `json:"power_watts,omitempty"`
	Celsius     *float64 `json:"celsius,omitempty"`
	Throttle    []string `json:"throttle,omitempty"`  // reasons in force
	Throttles   bool     `json:"throttles,omitempty"` // it says whether there are any
}

const (
	maxLine = 64 << 10
	maxGPUs = 64
)

// Parse reads one line.
func Parse(line []byte) (r Report, err error) {
	if len(line) > maxLine {
		return r, fmt.Errorf("%w: %d bytes", ErrLine, len(line))
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrLine, err)
	}
	if len(r.GPUs) > maxGPUs {
		return Report{}, fmt.Errorf("%w: %d GPUs", ErrLine, len(r.GPUs))
	}
	return r, nil
}

// Readings are the metrics of a report. The first GPU has the names that a
// Jetson's own GPU has.
func (r Report) Readings(at time.Time) (out []telemetry.Reading) {
	for _, g := range r.GPUs {
		add := func(v float64, name string, labels ...string) {
			if g.Index > 0 {
				labels = append(labels, "gpu", strconv.Itoa(g.Index))
			}
			out = append(out, telemetry.Reading{Series: telemetry.NewSeries(name, labels...), Time: at, Value: v})
		}
		if g.Utilisation != nil {
			add(*g.Utilisation, telemetry.GPUUtilization)
		}
		if g.MemoryUsed != nil {
			add(float64(*g.MemoryUsed), telemetry.GPUMemoryUsed)
		}
		if g.MemoryTotal != nil {
			add(float64(*g.MemoryTotal), telemetry.GPUMemoryTotal)
		}
		if g.Clock != nil {
			add(float64(*g.Clock)*1e6, telemetry.GPUFrequency, "gpc", "0")
		}
		if g.MemoryClock != nil {
			add(float64(*g.MemoryClock)*1e6, telemetry.GPUMemoryFrequency)
		}
		if g.Power != nil {
			add(*g.Power, telemetry.Power, "rail", "gpu")
		}
		if g.Celsius != nil {
			add(*g.Celsius, telemetry.Temperature, "zone", "gpu")
		}
		for _, reason := range g.Throttle {
			add(1, telemetry.Throttled, "reason", reason)
		}
	}
	return out
}
