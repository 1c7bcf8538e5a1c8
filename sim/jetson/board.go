package jetson

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/skein-fleet/skein/ota"
)

// Load is what the board is asked to do, as shares (0 to 1) of what its model
// can do at top clocks in its strongest mode.
type Load struct {
	CPU float64
	GPU float64
	EMC float64
	DLA float64
}

// Inferring is the load of an application that kept inference busy for so long
// of dt, beside what it does itself (decoding, resizing, drawing).
func Inferring(busy, dt time.Duration) Load {
	share := min(1, float64(busy)/float64(max(dt, time.Millisecond)))
	return Load{GPU: 0.25 + 0.6*share, CPU: 0.2 + 0.3*share, EMC: 0.15 + 0.4*share}
}

// Options of a board. The zero value is a healthy one at 20 °C.
type Options struct {
	Seed    uint64
	Start   time.Time // the true time at which the board boots
	Mode    string    // power mode by name; the model's default when empty
	Ambient float64   // °C; 20 when zero
	Clock   Clock
	// HeatRate is how many times as fast as on a real board heat flows, for
	// short runs; 1 when zero.
	HeatRate float64
}

// Board is one modelled board.
type Board struct {
	model   *Model
	serial  string
	rng     *rand.Rand
	mode    Mode
	ambient float64

	start  time.Time
	uptime time.Duration // since the last boot
	age    time.Duration // since New
	clock  clockState

	heatRate  float64
	die, sink float64 // °C
	cap       int     // OPPs that throttling takes away from the top of the cap
	hot       bool    // clocks halved
	dead      bool    // switched itself off
	throttles int     // times that throttling began

	load             Load
	gpuMHz, cpuMHz   float64
	emcMHz           float64
	gpuUtil, cpuUtil float64
	emcUtil          float64
	coreUtil         []float64
	rails            []float64 // mW
	railSum          []float64 // for the average since boot
	railSamples      float64

	baseMB, claimedMB float64
	freeBlocks        float64

	chain *BootChain // nil on boards without two root file systems
	l4t   string     // of the system that runs, when not the model's
}

// New returns a booted, idle board in thermal equilibrium.
func New(m *Model, o Options) (*Board, error) {
	b := &Board{
		model: m, start: o.Start, ambient: o.Ambient, heatRate: o.HeatRate,
		rng: rand.New(rand.NewPCG(o.Seed, 0x6a6574736f6e)), // "jetson"
	}
	if b.ambient == 0 {
		b.ambient = 20
	}
	if b.heatRate <= 0 {
		b.heatRate = 1
	}
	name := o.Mode
	if name == "" {
		name = m.DefaultMode
	}
	if err := b.SetMode(name); err != nil {
		return nil, err
	}
	b.serial = fmt.Sprintf("14%011d", b.rng.Int64N(100_000_000_000))
	b.baseMB = m.RAMMB * (0.12 + 0.06*b.rng.Float64())
	if m.Jetson() {
		b.chain = NewBootChain(m.L4T)
	}
	b.clock.start(o.Clock, b.rng)
	b.boot()
	b.govern()
	power := b.power()
	b.sink = b.ambient + power*m.Thermal.SinkToAir
	b.die = b.sink + power*m.Thermal.DieToSink
	return b, nil
}

// boot resets what a reboot resets; heat, mode and clock stay.
func (b *Board) boot() {
	b.uptime, b.dead, b.cap, b.hot = 0, false, 0, false
	b.load = Load{}
	b.claimedMB = 0
	b.freeBlocks = b.model.RAMMB / 16
	b.coreUtil = make([]float64, b.model.Cores)
	b.rails = make([]float64, len(b.model.Rails))
	b.railSum = make([]float64, len(b.model.Rails))
	b.railSamples = 0
}

// Model returns the board's model; it is shared and may not be changed.
func (b *Board) Model() *Model { return b.model }

// Serial is the module's serial number, drawn from the seed.
func (b *Board) Serial() string { return b.serial }

// Target is what an engine for this board is bound to.
func (b *Board) Target() ota.Target {
	t := b.model.Target()
	if b.model.Jetson() {
		t.Attrs["mode"] = b.mode.Name
	}
	if b.l4t != "" {
		t.Attrs["l4t"] = b.l4t
	}
	return t
}

// Boot returns the boot chain, nil on boards without two root file systems.
func (b *Board) Boot() *BootChain { return b.chain }

// PowerOn lets the boot chain start a system; without one nothing changes.
func (b *Board) PowerOn() error {
	if b.chain == nil {
		return nil
	}
	image, err := b.chain.Start()
	if err == nil {
		b.l4t = image.L4T
	}
	return err
}

// Mode is the name of the power mode in force.
func (b *Board) Mode() string { return b.mode.Name }

// SetMode changes the power mode by its name.
func (b *Board) SetMode(name string) error {
	m, err := b.model.Mode(name)
	if err != nil {
		return err
	}
	b.mode = m
	return nil
}

// SetAmbient changes the temperature of the air (°C); this is the heat fault.
func (b *Board) SetAmbient(celsius float64) { b.ambient = celsius }

// Ambient returns the temperature of the air.
func (b *Board) Ambient() float64 { return b.ambient }

// Dead reports that the board switched itself off at its critical
// temperature; it stays silent until PowerCycle.
func (b *Board) Dead() bool { return b.dead }

// PowerCycle takes the power away and gives it back: the board boots, with the
// heat it has. A board without an RTC battery loses its clock.
func (b *Board) PowerCycle() {
	b.boot()
	b.clock.reboot(b.TrueNow())
}

// Claim takes memory for an application (a model, its second version) and
// fails with ErrNoMemory when the board has not enough.
func (b *Board) Claim(mb float64) error {
	if free := b.model.RAMMB - b.baseMB - b.claimedMB; mb > free {
		return fmt.Errorf("%w: %.0f MB wanted, %.0f MB free on %s", ErrNoMemory, mb, free, b.model.Key)
	}
	b.claimedMB += mb
	return nil
}

// Release gives claimed memory back.
func (b *Board) Release(mb float64) { b.claimedMB = max(0, b.claimedMB-mb) }

// Uptime is the time since the board booted.
func (b *Board) Uptime() time.Duration { return b.uptime }

// Die is the temperature of the die, in °C.
func (b *Board) Die() float64 { return b.die }

// Throttled reports that heat holds the clocks down.
func (b *Board) Throttled() bool { return b.cap > 0 || b.hot }

// ThrottleEvents counts how often throttling began.
func (b *Board) ThrottleEvents() int { return b.throttles }

// Step lets dt pass under a load. Long steps are split, so that heat and
// throttling stay right; a step of an hour costs some hundred small ones.
func (b *Board) Step(dt time.Duration, load Load) {
	const most = 256
	n := max(1, min(most, int(math.Ceil(dt.Seconds()))))
	part := dt / time.Duration(n)
	b.load = Load{clamp(load.CPU), clamp(load.GPU), clamp(load.EMC), clamp(load.DLA)}
	for i := range n {
		if i == n-1 {
			part = dt - part*time.Duration(n-1)
		}
		b.step(part)
	}
	b.noise()
}

func (b *Board) step(dt time.Duration) {
	b.age += dt
	b.clock.step(dt, b.TrueNow())
	sec := dt.Seconds()
	if b.dead {
		b.heat(0, sec*b.heatRate)
		return
	}
	b.uptime += dt
	b.govern()
	b.heat(b.power(), sec*b.heatRate)
	b.throttle()
	for i, mw := range b.rails {
		b.railSum[i] += mw
	}
	b.railSamples++
	// The largest free blocks wear away as memory fragments over the days.
	floor := b.model.RAMMB / 1000
	b.freeBlocks = floor + (b.freeBlocks-floor)*math.Exp(-sec/86400)
}

// heat moves both thermal nodes by sec under watts, by implicit Euler, which
// no step length makes unstable.
func (b *Board) heat(watts, sec float64) {
	t := b.model.Thermal
	cd, cs := t.DieTau/t.DieToSink, t.SinkTau/t.SinkToAir
	g, h := 1/t.DieToSink, 1/t.SinkToAir
	// (cd/dt+g)·die - g·sink = cd/dt·die0 + P
	// -g·die + (cs/dt+g+h)·sink = cs/dt·sink0 + h·ambient
	a11, a22 := cd/sec+g, cs/sec+g+h
	r1, r2 := cd/sec*b.die+watts, cs/sec*b.sink+h*b.ambient
	det := a11*a22 - g*g
	if sec <= 0 || det == 0 {
		return
	}
	b.die, b.sink = (r1*a22+g*r2)/det, (a11*r2+g*r1)/det
}

// throttle is the step-wise governor: one OPP down per poll above the passive
// trip, one up below the trip less its hysteresis; halved above the hot trip;
// off at the critical one.
func (b *Board) throttle() {
	t := b.model.Thermal
	was := b.Throttled()
	hottest := b.die
	for _, z := range b.model.Zones {
		if z.Fixed == 0 && !z.Max && !z.Sink {
			hottest = max(hottest, b.zone(z))
		}
	}
	switch {
	case hottest >= t.Critical:
		b.dead = true
		b.gpuUtil, b.cpuUtil, b.emcUtil = 0, 0, 0
	case hottest >= t.Passive:
		b.cap = min(b.cap+1, len(b.model.GPUOPP)-1)
	case hottest < t.Passive-t.Hysteresis && b.cap > 0:
		b.cap--
	}
	if hottest >= t.Hot {
		b.hot = true
	} else if hottest < t.Hot-t.Hysteresis {
		b.hot = false
	}
	if !was && b.Throttled() {
		b.throttles++
	}
}

// caps returns the highest clocks now allowed by mode and heat.
func (b *Board) caps() (cpu, gpu, emc float64) {
	gpu = capped(b.model.GPUOPP, b.mode.GPU, b.cap)
	cpu = capped(b.model.CPUOPP, b.mode.CPU, b.cap)
	if b.hot {
		gpu, cpu = floorOPP(b.model.GPUOPP, gpu/2), floorOPP(b.model.CPUOPP, cpu/2)
	}
	return cpu, gpu, floorOPP(b.model.EMCOPP, b.mode.EMC)
}

// govern picks clocks for the load, as the kernel's governors do: the lowest
// that leave some headroom, within the caps.
func (b *Board) govern() {
	cpuCap, gpuCap, emcCap := b.caps()
	m := b.model
	b.gpuMHz, b.gpuUtil = pick(m.GPUOPP, gpuCap, b.load.GPU)
	b.emcMHz, b.emcUtil = pick(m.EMCOPP, emcCap, b.load.EMC)
	// CPU demand is of all cores; the cores that are on share it.
	share := b.load.CPU * float64(m.Cores) / float64(b.mode.Cores)
	b.cpuMHz, b.cpuUtil = pick(m.CPUOPP, cpuCap, share)
}

// power returns the heat of the module in watts and sets the rails.
func (b *Board) power() float64 {
	if len(b.rails) == 0 {
		return 0
	}
	m := b.model
	gpu := b.gpuUtil * dynamic(b.gpuMHz, top(m.GPUOPP))
	cpu := b.cpuUtil * dynamic(b.cpuMHz, top(m.CPUOPP)) * float64(b.mode.Cores) / float64(m.Cores)
	emc := b.emcUtil * dynamic(b.emcMHz, top(m.EMCOPP))
	total, input := 0.0, -1
	for i, r := range m.Rails {
		mw := r.Idle + r.GPU*gpu + r.CPU*cpu + r.EMC*emc
		if b.load.DLA > 0 && m.DLA > 0 && i == 1 { // the rail of CPU and CV
			mw += 7600 * b.load.DLA * m.mostGPU() / 25000
		}
		b.rails[i] = mw
		total += mw
		if r.Input {
			input = i
		}
	}
	if input >= 0 {
		b.rails[input] = total
	}
	return total / 1000
}

// mostGPU is the largest share of a rail that the GPU draws, in mW: modules with
// larger GPUs have larger DLAs.
func (m *Model) mostGPU() (most float64) {
	for _, r := range m.Rails {
		most = max(most, r.GPU)
	}
	return most
}

// Overload is demand over capacity of the GPU at the clocks now allowed;
// above 1 work piles up.
func (b *Board) Overload() float64 {
	_, gpu, _ := b.caps()
	return b.load.GPU * top(b.model.GPUOPP) / gpu
}

// LatencyFactor is how long one inference takes now, relative to an Orin Nano
// in its 15W mode: the model's own figure, slowed by a weaker power mode and
// by throttling. Clocks that are low only for want of work do not count.
func (b *Board) LatencyFactor() float64 {
	m := b.model
	def, err := m.Mode(m.DefaultMode)
	if err != nil {
		return m.Latency
	}
	_, gpu, emc := b.caps()
	defGPU, defEMC := floorOPP(m.GPUOPP, def.GPU), floorOPP(m.EMCOPP, def.EMC)
	return m.Latency * ((1-m.MemoryBound)*defGPU/gpu + m.MemoryBound*defEMC/emc)
}

// Latency draws the time of one inference that takes base on an Orin Nano in
// its 15W mode: lognormal around base × LatencyFactor with p99 about 1.1 of
// the median, and rarely (1 in 20,000) thirty times as long.
func (b *Board) Latency(base time.Duration) time.Duration {
	f := b.LatencyFactor() * math.Exp(0.041*b.rng.NormFloat64())
	if b.rng.IntN(20000) == 0 {
		f *= 30
	}
	return time.Duration(float64(base) * f)
}

// noise draws what varies from one reading to the next.
func (b *Board) noise() {
	for i := range b.coreUtil {
		b.coreUtil[i] = 0
		if i < b.mode.Cores && !b.dead {
			b.coreUtil[i] = clamp(b.cpuUtil + 0.03*b.rng.NormFloat64()*min(1, 0.2+b.cpuUtil))
		}
	}
	for i := range b.rails {
		b.rails[i] *= 1 + 0.004*b.rng.NormFloat64()
	}
}

// dynamic is the share of top dynamic power at a clock: f·V², with the
// voltage falling to 60 % at rest.
func dynamic(mhz, most float64) float64 {
	f := mhz / most
	v := 0.6 + 0.4*f
	return f * v * v
}

// pick returns the lowest OPP within limit that serves demand (a share of the
// top OPP) at no more than 85 % load, and the load it then has.
func pick(opp []float64, limit, demand float64) (mhz, util float64) {
	need := demand * top(opp)
	for _, f := range opp {
		if mhz = f; f >= limit || need <= 0.85*f {
			break
		}
	}
	return mhz, clamp(need / mhz)
}

// capped is the OPP that is down steps below the highest one within limit.
func capped(opp []float64, limit float64, down int) float64 {
	i := 0
	for i+1 < len(opp) && opp[i+1] <= limit {
		i++
	}
	return opp[max(0, i-down)]
}

func floorOPP(opp []float64, limit float64) float64 { return capped(opp, limit, 0) }

func top(opp []float64) float64 { return opp[len(opp)-1] }

func clamp(v float64) float64 { return max(0, min(1, v)) }

// Watts is the power of the whole module now.
func (b *Board) Watts() float64 { return b.power() }
