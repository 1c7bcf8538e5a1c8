package host

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/skein-fleet/skein/telemetry"
)

// proc collects readings from /proc and /sys.
type proc struct {
	m   *Machine
	now time.Time
	out []telemetry.Reading
}

func (p *proc) add(v float64, name string, labels ...string) {
	p.out = append(p.out, telemetry.Reading{Series: telemetry.NewSeries(name, labels...), Time: p.now, Value: v})
}

func (p *proc) lines(name string, each func(fields []string)) {
	raw, err := os.ReadFile(p.m.path(name))
	if err != nil {
		return
	}
	for l := range bytes.Lines(raw) {
		if f := strings.Fields(string(l)); len(f) > 0 {
			each(f)
		}
	}
}

// cpuTimes are the busy and whole ticks of each core.
type cpuTimes map[string][2]uint64

// cpu gives the share of time in which each core was busy since the last call;
// the first call gives none.
func (p *proc) cpu() {
	now := cpuTimes{}
	online := 0
	p.lines("proc/stat", func(f []string) {
		core, ok := strings.CutPrefix(f[0], "cpu")
		if !ok || core == "" || len(f) < 5 {
			return
		}
		var all, idle uint64
		for i, text := range f[1:min(len(f), 9)] { // guest time is in user time already
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				return
			}
			all += n
			if i == 3 || i == 4 { // idle, iowait
				idle += n
			}
		}
		online++
		now[core] = [2]uint64{all - idle, all}
	})
	p.m.mu.Lock()
	prev := p.m.prev
	p.m.prev = now
	p.m.mu.Unlock()
	for core, t := range now {
		if old, ok := prev[core]; ok && t[1] > old[1] && t[0] >= old[0] {
			p.add(float64(t[0]-old[0])/float64(t[1]-old[1]), telemetry.CPUUtilization, "core", core)
		}
	}
	if online > 0 {
		p.add(float64(online), telemetry.CPUCoresOnline)
	}
}

func (p *proc) memory() {
	mem := p.m.meminfo()
	if total := mem["MemTotal"]; total > 0 {
		p.add(float64(total)*1024, telemetry.MemoryTotal)
		p.add(float64(total-min(total, mem["MemAvailable"]))*1024, telemetry.MemoryUsed)
	}
	if total, ok := mem["SwapTotal"]; ok {
		p.add(float64(total)*1024, telemetry.SwapTotal)
		p.add(float64(total-min(total, mem["SwapFree"]))*1024, telemetry.SwapUsed)
	}
}

// thermal reads the zones by type, never by index. A zone whose block is
// powered down gives an error or an impossible value, and has no reading.
func (p *proc) thermal() {
	zones, _ := filepath.Glob(p.m.path("sys/class/thermal/thermal_zone*"))
	seen := map[string]bool{}
	for _, dir := range zones {
		kind, err := os.ReadFile(filepath.Join(dir, "type"))
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, "temp"))
		if err != nil {
			continue
		}
		milli, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		if err != nil || milli < -100_000 || milli > 250_000 {
			continue
		}
		zone := strings.TrimSuffix(strings.ToLower(strings.TrimSpace(string(kind))), "-thermal")
		if zone == "" || seen[zone] {
			continue
		}
		seen[zone] = true
		p.add(float64(milli)/1000, telemetry.Temperature, "zone", zone)
	}
}

func (p *proc) disk() {
	dir := p.m.opts.StateDir
	if dir == "" {
		dir = p.m.opts.Root
	}
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return
	}
	p.add(float64(st.Blocks)*float64(st.Bsize), telemetry.DiskTotal, "mount", "state")
	p.add(float64(st.Blocks-st.Bfree)*float64(st.Bsize), telemetry.DiskUsed, "mount", "state")
}

func (p *proc) network() {
	p.lines("proc/net/dev", func(f []string) {
		name, ok := strings.CutSuffix(f[0], ":")
		if !ok || name == "lo" || len(f) < 10 || strings.HasPrefix(name, "veth") {
			return
		}
		in, err := strconv.ParseFloat(f[1], 64)
		out, err2 := strconv.ParseFloat(f[9], 64)
		if err == nil && err2 == nil {
			p.add(in, telemetry.NetworkReceived, "interface", name)
			p.add(out, telemetry.NetworkSent, "interface", name)
		}
	})
}

func (p *proc) uptime() {
	p.lines("proc/uptime", func(f []string) {
		if up, err := strconv.ParseFloat(f[0], 64); err == nil {
			p.add(up, telemetry.Uptime)
		}
	})
}
