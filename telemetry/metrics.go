package telemetry

import "math"

// Kind says how a metric's values are read.
type Kind string

// The kinds. A counter only grows, except when what counts restarts.
const (
	Gauge   Kind = "gauge"
	Counter Kind = "counter"
)

// Scale is the step to which values of a metric are quantised on the wire:
// value = n × Mul / Div for a whole number n. It is declared, not guessed, so
// that packing and unpacking is exact from the first quantisation on.
type Scale struct {
	Mul uint32
	Div uint32
}

// maxQuantum keeps quantised values where float64 is exact and deltas of
// deltas cannot overflow.
const maxQuantum = 1 << 52

// Quantise returns the nearest step; ok is false for NaN, infinities and
// values beyond 2^52 steps, which have no place in a block.
func (s Scale) Quantise(v float64) (n int64, ok bool) {
	if s.Mul == 0 || s.Div == 0 {
		return 0, false
	}
	q := math.RoundToEven(v * float64(s.Div) / float64(s.Mul))
	if math.IsNaN(q) || q > maxQuantum || q < -maxQuantum {
		return 0, false
	}
	return int64(q), true
}

// Value returns the value of step n.
func (s Scale) Value(n int64) float64 { return float64(n) * float64(s.Mul) / float64(s.Div) }

// Metric describes one metric name.
type Metric struct {
	Name   string
	Unit   string
	Kind   Kind
	Scale  Scale
	Labels []string // label names that its series may carry
	Help   string
}

// The metric names. They follow Prometheus conventions: base units, the unit
// in the name, _total on counters.
const (
	GPUUtilization      = "skein_device_gpu_utilization_ratio"
	GPUFrequency        = "skein_device_gpu_frequency_hertz"
	GPUMemoryUsed       = "skein_device_gpu_memory_used_bytes"
	GPUMemoryTotal      = "skein_device_gpu_memory_total_bytes"
	GPUMemoryFrequency  = "skein_device_gpu_memory_frequency_hertz"
	CPUUtilization      = "skein_device_cpu_utilization_ratio"
	CPUFrequency        = "skein_device_cpu_frequency_hertz"
	CPUCoresOnline      = "skein_device_cpu_cores_online"
	MemoryUsed          = "skein_device_memory_used_bytes"
	MemoryTotal         = "skein_device_memory_total_bytes"
	MemoryLargestFree   = "skein_device_memory_largest_free_block_bytes"
	SwapUsed            = "skein_device_swap_used_bytes"
	SwapTotal           = "skein_device_swap_total_bytes"
	EMCUtilization      = "skein_device_emc_utilization_ratio"
	EMCFrequency        = "skein_device_emc_frequency_hertz"
	EngineUtilization   = "skein_device_engine_utilization_ratio"
	EngineFrequency     = "skein_device_engine_frequency_hertz"
	Temperature         = "skein_device_temperature_celsius"
	Power               = "skein_device_power_watts"
	PowerTotal          = "skein_device_power_total_watts"
	Throttled           = "skein_device_throttled"
	ThrottleEvents      = "skein_device_throttle_events_total"
	FanDuty             = "skein_device_fan_duty_ratio"
	FanSpeed            = "skein_device_fan_speed_rpm"
	DiskUsed            = "skein_device_disk_used_bytes"
	DiskTotal           = "skein_device_disk_total_bytes"
	NetworkReceived     = "skein_device_network_received_bytes_total"
	NetworkSent         = "skein_device_network_sent_bytes_total"
	Uptime              = "skein_device_uptime_seconds"
	ClockOffset         = "skein_device_clock_offset_seconds"
	UnknownTokens       = "skein_device_tegrastats_unknown_tokens"
	AgentMemory         = "skein_agent_resident_memory_bytes"
	AgentCPU            = "skein_agent_cpu_seconds_total"
	InferenceRequests   = "skein_inference_requests_total"
	InferenceLatency    = "skein_inference_latency_seconds"
	InferenceMean       = "skein_inference_latency_mean_seconds"
	InferenceP50        = "skein_inference_latency_p50_seconds"
	InferenceP99        = "skein_inference_latency_p99_seconds"
	InferenceInFlight   = "skein_inference_in_flight"
	InferenceCost       = "skein_inference_cost_dollars_total"
	InferenceConfidence = "skein_inference_confidence_ratio"
	ServerMemory        = "skein_inference_server_memory_bytes"
	ServerRestarts      = "skein_inference_server_restarts_total"
	GoldenAccuracy      = "skein_inference_golden_accuracy_ratio"
)

// Metrics lists every metric that devices send, with its scale. Temperatures
// are kept to 1/8 °C and power to 10 mW: both below what the sensors resolve
// (0.5 °C, 1 %), and coarse enough that noise does not fill the link.
var Metrics = []Metric{
	{GPUUtilization, "ratio", Gauge, Scale{1, 100}, nil, "share of time in which the GPU was busy"},
	{GPUFrequency, "hertz", Gauge, Scale{1e6, 1}, []string{"gpc"}, "clock of each graphics processing cluster"},
	{GPUMemoryUsed, "bytes", Gauge, Scale{1 << 20, 1}, []string{"gpu"}, "memory of a discrete GPU in use"},
	{GPUMemoryTotal, "bytes", Gauge, Scale{1 << 20, 1}, []string{"gpu"}, "memory of a discrete GPU"},
	{GPUMemoryFrequency, "hertz", Gauge, Scale{1e6, 1}, []string{"gpu"}, "memory clock of a discrete GPU"},
	{CPUUtilization, "ratio", Gauge, Scale{1, 100}, []string{"core"}, "share of time in which a core was busy; absent while the core is off"},
	{CPUFrequency, "hertz", Gauge, Scale{1e6, 1}, []string{"core"}, "clock of a core"},
	{CPUCoresOnline, "", Gauge, Scale{1, 1}, nil, "cores that are powered"},
	{MemoryUsed, "bytes", Gauge, Scale{1 << 20, 1}, nil, "memory in use, shared by CPU and GPU"},
	{MemoryTotal, "bytes", Gauge, Scale{1 << 20, 1}, nil, "memory available to applications"},
	{MemoryLargestFree, "bytes", Gauge, Scale{1 << 10, 1}, nil, "all free blocks of the largest size together; small means fragmented"},
	{SwapUsed, "bytes", Gauge, Scale{1 << 20, 1}, nil, "swap in use"},
	{SwapTotal, "bytes", Gauge, Scale{1 << 20, 1}, nil, "swap configured"},
	{EMCUtilization, "ratio", Gauge, Scale{1, 100}, nil, "share of memory bandwidth in use at the current clock"},
	{EMCFrequency, "hertz", Gauge, Scale{1e6, 1}, nil, "memory controller clock"},
	{EngineUtilization, "ratio", Gauge, Scale{1, 100}, []string{"engine"}, "share of time in which a fixed-function engine was busy"},
	{EngineFrequency, "hertz", Gauge, Scale{1e6, 1}, []string{"engine"}, "clock of a fixed-function engine; absent while it is off"},
	{Temperature, "celsius", Gauge, Scale{1, 8}, []string{"zone"}, "temperature of a thermal zone; absent while its block is powered down"},
	{Power, "watts", Gauge, Scale{1, 100}, []string{"rail"}, "power drawn from one rail now"},
	{PowerTotal, "watts", Gauge, Scale{1, 100}, nil, "power of the module, from its input rail or the sum of its rails"},
	{Throttled, "", Gauge, Scale{1, 1}, []string{"reason"}, "1 while clocks are held down"},
	{ThrottleEvents, "", Counter, Scale{1, 1}, []string{"reason"}, "times the hardware held clocks down"},
	{FanDuty, "ratio", Gauge, Scale{1, 255}, nil, "fan PWM duty"},
	{FanSpeed, "rpm", Gauge, Scale{1, 1}, nil, "fan speed"},
	{DiskUsed, "bytes", Gauge, Scale{1 << 20, 1}, []string{"mount"}, "space in use"},
	{DiskTotal, "bytes", Gauge, Scale{1 << 20, 1}, []string{"mount"}, "space of the file system"},
	{NetworkReceived, "bytes", Counter, Scale{1, 1}, []string{"interface"}, "bytes received"},
	{NetworkSent, "bytes", Counter, Scale{1, 1}, []string{"interface"}, "bytes sent"},
	{Uptime, "seconds", Gauge, Scale{1, 1}, nil, "time since boot"},
	{ClockOffset, "seconds", Gauge, Scale{1, 1000}, nil, "wall clock against the last trusted time"},
	{UnknownTokens, "", Gauge, Scale{1, 1}, nil, "tokens of the last tegrastats line that the parser could not place"},
	{AgentMemory, "bytes", Gauge, Scale{1 << 10, 1}, nil, "resident memory of the agent"},
	{AgentCPU, "seconds", Counter, Scale{1, 100}, nil, "CPU time of the agent"},
	{InferenceRequests, "", Counter, Scale{1, 1}, []string{"model", "version", "outcome"}, "requests answered"},
	{InferenceMean, "seconds", Gauge, Scale{1, 100000}, []string{"model", "version"}, "mean latency of the last interval"},
	{InferenceP50, "seconds", Gauge, Scale{1, 100000}, []string{"model", "version"}, "median latency of the last interval"},
	{InferenceP99, "seconds", Gauge, Scale{1, 100000}, []string{"model", "version"}, "99th percentile of latency of the last interval"},
	{InferenceInFlight, "", Gauge, Scale{1, 1}, []string{"model"}, "requests being answered"},
	{InferenceCost, "dollars", Counter, Scale{1, 1000000}, []string{"model", "version"}, "cost of the inferences so far"},
	{InferenceConfidence, "ratio", Gauge, Scale{1, 10000}, []string{"model", "version"}, "mean share of the winning class in the classifications that were looked at"},
	{ServerMemory, "bytes", Gauge, Scale{1 << 20, 1}, []string{"model", "version"}, "memory of the model server"},
	{ServerRestarts, "", Counter, Scale{1, 1}, []string{"model", "version"}, "times the model server was started again by itself"},
	{GoldenAccuracy, "ratio", Gauge, Scale{1, 10000}, []string{"model", "version"}, "share of the golden set answered within tolerance"},
}

// defaultScale packs a metric that the table does not know: a thousandth.
var defaultScale = Scale{1, 1000}

// Lookup returns the description of a metric name. An unknown name gets a
// gauge with a step of a thousandth, and ok is false.
func Lookup(name string) (m Metric, ok bool) {
	for i := range Metrics {
		if Metrics[i].Name == name {
			return Metrics[i], true
		}
	}
	return Metric{Name: name, Kind: Gauge, Scale: defaultScale}, false
}
