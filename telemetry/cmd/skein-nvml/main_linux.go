//go:build cgo && linux

package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	lib "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/skein-fleet/skein/telemetry/probe/nvml"
)

func main() {
	path := flag.String("library", "libnvidia-ml.so.1", "the library, by name or path")
	every := flag.Duration("interval", time.Second, "time between two lines")
	lines := flag.Int("lines", 0, "end after so many lines; 0 means never")
	flag.Parse()
	if flag.NArg() > 0 || *every <= 0 {
		fmt.Fprintln(os.Stderr, "usage: skein-nvml [-library FILE] [-interval TIME] [-lines N]")
		os.Exit(2)
	}
	os.Exit(run(os.Stdout, os.Stderr, *path, *every, *lines))
}

// run writes lines until the reader is gone.
func run(out, errs io.Writer, path string, every time.Duration, lines int) int {
	api := lib.New(lib.WithLibraryPath(path))
	if r := api.Init(); r != lib.SUCCESS {
		fmt.Fprintf(errs, "skein-nvml: load %s: %s\n", path, text(r))
		return nvml.ExitNoLibrary
	}
	defer api.Shutdown()
	p := &prober{api: api, has: map[string]bool{}}
	n, r := api.DeviceGetCount()
	if r != lib.SUCCESS || n == 0 {
		fmt.Fprintf(errs, "skein-nvml: no GPU: %d, %s\n", n, text(r))
		return nvml.ExitNoGPU
	}
	enc := json.NewEncoder(out)
	for i := 0; lines == 0 || i < lines; i++ {
		if i > 0 {
			time.Sleep(every)
		}
		if err := enc.Encode(p.report(n)); err != nil {
			return 0 // nobody reads any more
		}
	}
	return 0
}

// text names an error without asking the library, which may lack the function.
func text(r lib.Return) string { return fmt.Sprintf("NVML error %d", r) }

// prober asks what there is.
type prober struct {
	api lib.Interface
	has map[string]bool
}

// can reports whether the library has a function: calling one that it lacks
// ends the process.
func (p *prober) can(symbol string) bool {
	has, known := p.has[symbol]
	if !known {
		has = p.api.Extensions().LookupSymbol(symbol) == nil
		p.has[symbol] = has
	}
	return has
}

func (p *prober) report(n int) nvml.Report {
	r := nvml.Report{GPUs: []nvml.GPU{}}
	if p.can("nvmlSystemGetDriverVersion") {
		if v, ret := p.api.SystemGetDriverVersion(); ret == lib.SUCCESS {
			r.Driver = v
		}
	}
	for i := range n {
		d, ret := p.api.DeviceGetHandleByIndex(i)
		if ret != lib.SUCCESS {
			continue
		}
		g := nvml.GPU{Index: i}
		p.identity(d, &g)
		p.load(d, &g)
		p.heat(d, &g)
		r.GPUs = append(r.GPUs, g)
	}
	return r
}

func (p *prober) identity(d lib.Device, g *nvml.GPU) {
	if p.can("nvmlDeviceGetName") {
		if v, r := d.GetName(); r == lib.SUCCESS {
			g.Name = v
		}
	}
	if p.can("nvmlDeviceGetUUID") {
		if v, r := d.GetUUID(); r == lib.SUCCESS {
			g.UUID = v
		}
	}
	if p.can("nvmlDeviceGetCudaComputeCapability") {
		if major, minor, r := d.GetCudaComputeCapability(); r == lib.SUCCESS {
			g.Compute = fmt.Sprintf("%d.%d", major, minor)
		}
	}
}

func (p *prober) load(d lib.Device, g *nvml.GPU) {
	if p.can("nvmlDeviceGetUtilizationRates") {
		if v, r := d.GetUtilizationRates(); r == lib.SUCCESS {
			g.Utilisation = new(float64(v.Gpu) / 100)
		}
	}
	if p.can("nvmlDeviceGetMemoryInfo") {
		if v, r := d.GetMemoryInfo(); r == lib.SUCCESS {
			g.MemoryUsed, g.MemoryTotal = new(v.Used), new(v.Total)
		}
	}
	if p.can("nvmlDeviceGetClockInfo") {
		if v, r := d.GetClockInfo(lib.CLOCK_GRAPHICS); r == lib.SUCCESS {
			g.Clock = new(v)
		}
		if v, r := d.GetClockInfo(lib.CLOCK_MEM); r == lib.SUCCESS {
			g.MemoryClock = new(v)
		}
	}
}

// throttles names the reasons that hold clocks down; idle and a chosen clock
// are none.
var throttles = []struct {
	bit  uint64
	name string
}{
	{lib.ClocksThrottleReasonSwPowerCap, "power-cap"}, {lib.ClocksThrottleReasonHwSlowdown, "hardware"},
	{lib.ClocksThrottleReasonSwThermalSlowdown, "heat"}, {lib.ClocksThrottleReasonHwThermalSlowdown, "heat-hardware"},
	{lib.ClocksThrottleReasonHwPowerBrakeSlowdown, "power-brake"},
}

func (p *prober) heat(d lib.Device, g *nvml.GPU) {
	if p.can("nvmlDeviceGetPowerUsage") {
		if v, r := d.GetPowerUsage(); r == lib.SUCCESS {
			g.Power = new(float64(v) / 1000)
		}
	}
	if p.can("nvmlDeviceGetTemperature") {
		if v, r := d.GetTemperature(lib.TEMPERATURE_GPU); r == lib.SUCCESS {
			g.Celsius = new(float64(v))
		}
	}
	if p.can("nvmlDeviceGetCurrentClocksThrottleReasons") {
		if v, r := d.GetCurrentClocksThrottleReasons(); r == lib.SUCCESS {
			g.Throttles = true
			for _, t := range throttles {
				if v&t.bit != 0 {
					g.Throttle = append(g.Throttle, t.name)
				}
			}
		}
	}
}
