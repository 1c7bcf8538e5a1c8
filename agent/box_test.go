package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/agent/internal/selfupdate"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
)

// A box is a whole machine around the agent: boot firmware with two root file
// systems, a supervisor with two slots for the agent, a disk. Its power can be
// cut at any of their operations; what is on disk and in the firmware stays.

const (
	oldOS = "linux/arm64;sm=8.7;trt=10.3.0;l4t=36.4.3"
	newOS = "linux/arm64;sm=8.7;trt=10.16.2;l4t=39.2.0"
)

var errPower = errors.New("the power went")

// chain is boot firmware: what survives a power cut of a machine with two
// root file systems.
type chain struct {
	mu sync.Mutex // guards what follows
	firmware
}

// firmware is what a chain holds.
type firmware struct {
	active  int
	current int
	image   [2]ota.Digest // empty: nothing that boots
	retries [2]int
	dead    [2]bool // 0xFF
	armed   bool
	capsule bool
	ops     int
	cutAt   int                   // operation that loses the power, 0 never
	cut     func()                // loses it
	off     func()                // restarts the machine
	boots   map[ota.Digest]string // target by image that starts
	good    int                   // slots marked good
}

const retriesMax = 3

func newChain(image ota.Digest) *chain {
	return &chain{firmware: firmware{image: [2]ota.Digest{image, ""}, retries: [2]int{retriesMax, retriesMax}, armed: true, boots: map[ota.Digest]string{image: oldOS}}}
}

// start is the firmware at power-on: it counts a try of the slot and gives it
// up when there are none left.
func (c *chain) start(t testing.TB) (target string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range 4 * retriesMax {
		n := c.active
		if c.dead[n] {
			c.active = 1 - n
			continue
		}
		if c.retries[n] == 0 {
			c.dead[n], c.active = true, 1-n
			continue
		}
		c.retries[n]--
		if target := c.boots[c.image[n]]; target != "" {
			c.current = n
			return target
		}
	}
	t.Fatal("the machine does not start any more")
	return ""
}

// op counts an operation and may lose the power before it; done is called after.
func (c *chain) op() error {
	c.ops++
	if c.cutAt > 0 && c.ops >= c.cutAt {
		if c.cut != nil {
			c.cut()
		}
		return errPower
	}
	return nil
}

func (c *chain) Inventory(context.Context) (BootInventory, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	red := RedundancyArmed
	if !c.armed {
		red = RedundancyUnarmed
	}
	inv := BootInventory{Driver: "test", Redundancy: red, Capsule: CapsuleNone, Rootfs: BootChain{Current: c.current, Active: c.active}, MarksGood: true}
	if c.capsule {
		inv.Capsule = CapsulePending
	}
	for n := range 2 {
		s := BootSlot{Number: n, Status: SlotNormal, Retries: c.retries[n]}
		if c.dead[n] {
			s.Status = SlotUnbootable
		}
		inv.Rootfs.Slots = append(inv.Rootfs.Slots, s)
	}
	return inv, nil
}

func (c *chain) WriteSlot(_ context.Context, n int, image io.Reader, size int64, want ota.Digest) error {
	raw, err := io.ReadAll(image)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n == c.current {
		return errors.New("that slot runs")
	}
	if err := c.op(); err != nil {
		return err
	}
	c.image[n] = "" // half of it
	if err := c.op(); err != nil {
		return err
	}
	if int64(len(raw)) != size || ota.DigestOf(raw) != want {
		return errors.New("other bytes than named")
	}
	c.image[n], c.retries[n] = want, retriesMax
	return c.op()
}

func (c *chain) SetActive(_ context.Context, n int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.op(); err != nil {
		return err
	}
	if c.armed { // else it is a silent no-op
		c.active = n
	}
	return c.op()
}

func (c *chain) MarkGood(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.op(); err != nil {
		return err
	}
	c.retries[c.current] = retriesMax
	c.good++
	return c.op()
}

func (c *chain) Reboot(context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.op(); err != nil {
		return err
	}
	c.off()
	return nil
}

// box is the machine.
type box struct {
	*world
	files  *slot.Mem
	chain  *chain
	agents map[ota.Digest]string // behaviour of agents: good, crash, hang
	point  string                // at which the power goes
	starts []string              // slots of the agent that were started
	boot   uint64
}

// binary is an agent binary for this machine.
func binaryOf(body string) []byte {
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(h[16:], 2)
	binary.LittleEndian.PutUint16(h[18:], elfMachine)
	binary.LittleEndian.PutUint32(h[20:], 1)
	binary.LittleEndian.PutUint64(h[24:], 0x400000)
	binary.LittleEndian.PutUint16(h[52:], 64)
	binary.LittleEndian.PutUint16(h[54:], 56)
	binary.LittleEndian.PutUint16(h[58:], 64)
	return append(h, body...)
}

// put stores a file of the release.
func (w *world) put(b []byte) ota.Digest {
	w.t.Helper()
	d, err := w.blobs.PutBytes(b)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func (b *box) agentLayer(behaviour string) manifest.Descriptor {
	raw := binaryOf(behaviour)
	d := b.put(raw)
	b.agents[d] = behaviour
	return manifest.AgentLayer(d, int64(len(raw)))
}

// image makes an OS image that starts as target, or does not start when that
// is empty.
func (b *box) image(name, target string) ota.Digest {
	d := b.put([]byte(name))
	b.chain.boots[d] = target
	return d
}

func (b *box) osLayer(name, starts, after string) manifest.Descriptor {
	t, err := ota.ParseTarget(after)
	if err != nil {
		b.t.Fatal(err)
	}
	return manifest.OSLayer(b.image(name, starts), int64(len(name)), t)
}

func newBox(t *testing.T) *box {
	w := newWorld(t)
	b := &box{world: w, files: slot.NewMem(), agents: map[ota.Digest]string{}}
	b.chain = newChain(w.put([]byte("factory image")))
	return b
}

// run lets the machine run for a while of fake time, through restarts, and
// switches it off at the end. After a power cut it is over at once.
func (b *box) run(t *testing.T, online bool, d time.Duration) (last *device, cut bool) {
	b.t = t
	end := time.Now().Add(d)
	for time.Now().Before(end) && !cut {
		target := b.chain.start(t)
		b.boot++
		restart := make(chan struct{})
		var once sync.Once
		b.chain.off = func() { once.Do(func() { close(restart) }) }
		lost := make(chan struct{})
		var gone sync.Once
		lose := func() {
			b.files.FailAfter(0)
			gone.Do(func() { close(lost) })
		}
		b.chain.cut = lose
		last, cut = b.session(t, target, online, end, restart, lost, lose)
	}
	return last, cut
}

// session is one start of the machine: the supervisor starts agents.
func (b *box) session(t *testing.T, target string, online bool, end time.Time, restart, lost chan struct{}, lose func()) (last *device, cut bool) {
	for time.Now().Before(end) {
		slots, err := selfupdate.Open(b.files)
		if err != nil {
			return last, true
		}
		name, err := slots.Choose(t.Context(), time.Now())
		if err != nil {
			return last, true
		}
		b.starts = append(b.starts, name)
		switch b.agents[slots.Record().Slots[name].Digest] {
		case "crash":
			if slots.Ended("exit status 2: panic: boom") != nil {
				return last, true
			}
			settle(2 * time.Second)
			continue
		case "hang":
			settle(5 * time.Minute)
			if slots.GiveUp("the new agent did not check in within 5m0s", time.Now()) != nil {
				return last, true
			}
			continue
		}
		tg, err := ota.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		dev, err := b.tryBoot(b.files, func(o *Options) {
			o.Host = &boxHost{board{files: b.files, clock: time.Now}, tg, b.boot}
			o.Agents, o.Boot = &selfupdate.Self{Slots: slots, Slot: name, Program: "/proc/self/exe"}, b.chain
			o.Runtime.(*fakeRuntime).l4t = tg.Attrs["l4t"]
			o.PointHook = func(p string) {
				if p == b.point {
					lose()
				}
			}
		})
		if err != nil {
			return last, true
		}
		last = dev
		dev.link.SetOnline(online)
		timer := time.NewTimer(time.Until(end))
		again := false
		select {
		case <-timer.C:
		case <-restart:
		case <-lost:
			cut = true
		case err := <-dev.done:
			dev.done <- err
			again = errors.Is(err, ErrHandover)
			if !again {
				cut = true
			}
		}
		timer.Stop()
		dev.cancel()
		if err := <-dev.done; err != nil && !errors.Is(err, ErrHandover) && !errors.Is(err, slot.ErrCut) {
			t.Fatal(err)
		}
		if !again {
			return last, cut
		}
	}
	return last, cut
}

type boxHost struct {
	board
	target ota.Target
	boot   uint64
}

func (h *boxHost) Facts(context.Context) (Facts, error) {
	return Facts{Target: h.target, Hardware: "box", Serial: "S1", BootID: h.boot}, nil
}

// begin brings the box to release 1 and returns it switched off, its disk whole.
func (b *box) begin(t *testing.T) {
	t.Helper()
	b.release("1", model{Bias: 1, L4T: "36.4.3"}, releaseOptions{counter: 1, golden: 1, target: oldOS})
	synctest.Test(t, func(t *testing.T) {
		b.t = t
		b.want(1, "1")
		d, _ := b.run(t, true, time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 1 {
			t.Fatalf("answers %v, %v", got, err)
		}
	})
	b.files = b.files.Crash(0)
}

// outcome is how a box ended.
type outcome struct {
	answer  float32
	os      string
	slot    string // of the agent
	class   string
	failure string
	running string
}

// update lets the box go to release 2 for a while and says how it ended.
func (b *box) update(t *testing.T, d time.Duration) (o outcome) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b.t = t
		b.want(2, "2")
		dev, _ := b.run(t, true, d)
		o = b.outcome(t, dev)
	})
	return o
}

func (b *box) outcome(t *testing.T, dev *device) outcome {
	var o outcome
	var err error
	if o.answer, err = dev.runtime.answer(); err != nil {
		t.Errorf("in the end: %v", err)
	}
	r := b.last()
	o.os, o.class, o.failure = dev.facts().Target.Attrs["l4t"], r.FailureClass, r.Failure
	o.slot = dev.opts.Agents.Record().Active
	if dev.opts.Agents.Record().Trial != nil {
		o.slot += " and a trial"
	}
	for v, ref := range b.releases {
		if bytes.Equal(r.Running, ref.Digest) {
			o.running = v
		}
	}
	if dev.state.Get().Update != nil {
		t.Errorf("an update is still under way: %+v", dev.state.Get().Update)
	}
	return o
}

func (b *box) reset() {
	b.mu.Lock()
	b.raw, b.link, b.reports, b.events, b.hellos, b.blocks = nil, nil, nil, nil, nil, nil
	b.mu.Unlock()
	b.starts, b.point = nil, ""
}

func check(t *testing.T, got, want outcome) {
	t.Helper()
	if !strings.Contains(got.failure, want.failure) {
		t.Errorf("failure %q, want %q in it", got.failure, want.failure)
	}
	got.failure, want.failure = "", ""
	if got != want {
		t.Errorf("ended %+v, want %+v", got, want)
	}
}

func TestAgentUpdate(t *testing.T) {
	for name, c := range map[string]struct {
		agent string
		model model
		want  outcome
	}{
		"good":                    {"good", model{Bias: 2}, outcome{2, "36.4.3", "a", "", "", "2"}},
		"crashes":                 {"crash", model{Bias: 2}, outcome{1, "36.4.3", "factory", "FAILED", "panic: boom", "1"}},
		"hangs":                   {"hang", model{Bias: 2}, outcome{1, "36.4.3", "factory", "FAILED", "did not check in within", "1"}},
		"good, but not its model": {"good", model{Bias: 7}, outcome{1, "36.4.3", "factory", "FAILED", "golden set failed", "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			b.begin(t)
			b.release("2", c.model, releaseOptions{counter: 2, golden: 2, target: oldOS, soak: 3 * time.Second,
				machine: map[string][]manifest.Descriptor{oldOS: {b.agentLayer(c.agent)}}})
			check(t, b.update(t, 15*time.Minute), c.want)
		})
	}
}

// TestAgentForAnotherMachine refuses a wrong binary before anything is switched,
// and a downgrade by the release's counter.
func TestAgentForAnotherMachine(t *testing.T) {
	b := newBox(t)
	b.begin(t)
	foreign := binaryOf("foreign")
	binary.LittleEndian.PutUint16(foreign[18:], 0x08) // MIPS
	b.release("2", model{Bias: 2}, releaseOptions{counter: 2, golden: 2, target: oldOS,
		machine: map[string][]manifest.Descriptor{oldOS: {manifest.AgentLayer(b.put(foreign), int64(len(foreign)))}}})
	check(t, b.update(t, 5*time.Minute), outcome{1, "36.4.3", "factory", "REJECTED", "not for this machine", "1"})
	for _, s := range b.starts {
		if s != selfupdate.Factory {
			t.Errorf("started %v", b.starts)
		}
	}
	if !b.event("wrong-hardware") {
		t.Error("no event names the attack")
	}
}

func TestAgentDowngradeIsRefused(t *testing.T) {
	b := newBox(t)
	b.begin(t)
	b.release("2", model{Bias: 2}, releaseOptions{counter: 2, golden: 2, target: oldOS, machine: map[string][]manifest.Descriptor{oldOS: {b.agentLayer("good")}}})
	check(t, b.update(t, 5*time.Minute), outcome{2, "36.4.3", "a", "", "", "2"})
	synctest.Test(t, func(t *testing.T) {
		b.t = t
		b.want(3, "1") // older, and no way back was allowed
		dev, _ := b.run(t, true, 5*time.Minute)
		got := b.outcome(t, dev)
		if got.answer != 2 || got.slot != "a" || !b.event("rollback") {
			t.Errorf("after a downgrade: %+v", got)
		}
	})
}

// TestAgentWithoutSupervisor refuses a release that brings an agent where
// nothing can start it, and names the repair.
func TestAgentWithoutSupervisor(t *testing.T) {
	b := newBox(t)
	b.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1, machine: map[string][]manifest.Descriptor{"linux/arm64": {b.agentLayer("good")}}})
	synctest.Test(t, func(t *testing.T) {
		b.t = t
		d := b.world.boot(b.files)
		d.link.SetOnline(true)
		b.want(1, "1")
		settle(time.Minute)
		if r := b.last(); r.FailureClass != "REJECTED" || !strings.Contains(r.Failure, "skein-agent supervise") {
			t.Errorf("%s: %s", r.FailureClass, r.Failure)
		}
		if err := d.stop(t); err != nil {
			t.Error(err)
		}
	})
}

// osRelease is release 2: an OS image, the engine made for it, and an agent.
func (b *box) osRelease(image manifest.Descriptor, engine model, agent bool) {
	layers := []manifest.Descriptor{image}
	after := []manifest.Descriptor{image}
	if agent {
		l := b.agentLayer("good")
		layers, after = append(layers, l), append(after, l)
	}
	b.release("2", model{Bias: 99, L4T: "36.4.3"}, releaseOptions{counter: 2, golden: 2, target: oldOS, soak: 3 * time.Second,
		machine: map[string][]manifest.Descriptor{oldOS: layers, newOS: after}, further: map[string]model{newOS: engine}})
}

func TestOSUpdate(t *testing.T) {
	good := model{Bias: 2, L4T: "39.2.0"}
	for name, c := range map[string]struct {
		starts, after string
		engine        model
		prepare       func(b *box)
		want          outcome
	}{
		"good":                         {newOS, newOS, good, nil, outcome{2, "39.2.0", "factory", "", "", "2"}},
		"does not start":               {"", newOS, good, nil, outcome{1, "36.4.3", "factory", "FAILED", "slot B did not start", "1"}},
		"is another than was promised": {"linux/arm64;sm=8.7;trt=10.3.0;l4t=36.5.0", newOS, good, nil, outcome{1, "36.4.3", "factory", "FAILED", "it was to make this device", "1"}},
		"its engine answers wrongly":   {newOS, newOS, model{Bias: 7, L4T: "39.2.0"}, nil, outcome{1, "36.4.3", "factory", "FAILED", "golden set failed", "1"}},
		"its engine does not load":     {newOS, newOS, model{Bias: 2, L4T: "38.0.0"}, nil, outcome{1, "36.4.3", "factory", "REJECTED", "engine made for L4T 38.0.0", "1"}},
		"slot given up for good":       {newOS, newOS, good, func(b *box) { b.chain.dead[1] = true }, outcome{1, "36.4.3", "factory", "REJECTED", "RootfsStatusSlotB", "1"}},
		"redundancy never armed":       {newOS, newOS, good, func(b *box) { b.chain.armed = false }, outcome{1, "36.4.3", "factory", "REJECTED", "ROOTFS_AB=1", "1"}},
		"no retries":                   {newOS, newOS, good, func(b *box) { b.chain.retries[1] = 0 }, outcome{1, "36.4.3", "factory", "REJECTED", "no boot retries left", "1"}},
		"capsule waits":                {newOS, newOS, good, func(b *box) { b.chain.capsule = true }, outcome{1, "36.4.3", "factory", "REJECTED", "update of the boot firmware waits", "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			b.begin(t)
			b.osRelease(b.osLayer("image 39", c.starts, c.after), c.engine, false)
			if c.prepare != nil {
				c.prepare(b)
			}
			check(t, b.update(t, 15*time.Minute), c.want)
			if c.want.os == "39.2.0" && (b.chain.current != 1 || b.chain.good == 0) {
				t.Errorf("slot %d runs, marked good %d times", b.chain.current, b.chain.good)
			}
			if c.want.class == "REJECTED" && c.prepare != nil && b.chain.image[1] != "" {
				t.Error("the slot was written")
			}
			b.mu.Lock()
			boots := b.reports[len(b.reports)-1].Full
			b.mu.Unlock()
			if c.prepare != nil && boots != nil && (boots.Boot == nil || len(boots.Boot.Traps) == 0) {
				t.Errorf("the report names no trap: %+v", boots.Boot)
			}
		})
	}
}

// TestOSAndAgentPowerCut cuts the power at every named point, at every
// operation of the boot chain, and at operations of the disk, through an update
// of operating system, agent and engine in one release: good and bad.
func TestOSAndAgentPowerCut(t *testing.T) {
	for name, c := range map[string]struct {
		engine model
		image  string
		want   outcome
	}{
		"good": {model{Bias: 2, L4T: "39.2.0"}, newOS, outcome{2, "39.2.0", "a", "", "", "2"}},
		"bad":  {model{Bias: 7, L4T: "39.2.0"}, newOS, outcome{1, "36.4.3", "factory", "FAILED", "golden set failed", "1"}},
		"dead": {model{Bias: 2, L4T: "39.2.0"}, "", outcome{1, "36.4.3", "factory", "FAILED", "slot B did not start", "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			b.begin(t)
			b.osRelease(b.osLayer("image 39", c.image, newOS), c.engine, true)
			b.chain.retries = [2]int{retriesMax, retriesMax}
			base, kept := b.files, b.chain.firmware
			copyOf := func() {
				b.reset()
				b.files = base.Crash(0)
				b.chain = &chain{firmware: kept}
			}
			walk := func(at string, arm func()) (reached bool) {
				ok := t.Run(at, func(t *testing.T) {
					copyOf()
					arm()
					synctest.Test(t, func(t *testing.T) {
						b.t = t
						b.want(2, "2")
						_, reached = b.run(t, true, 15*time.Minute)
					})
					b.point, b.chain.cutAt = "", 0
					b.files = b.files.Crash(uint64(len(at)))
					// First without the network, then with it.
					synctest.Test(t, func(t *testing.T) {
						b.t = t
						b.unplug(true)
						dev, _ := b.run(t, false, 5*time.Minute)
						if got, err := dev.runtime.answer(); err != nil || got != 1 && got != 2 {
							t.Errorf("offline after the cut: answers %v, %v on L4T %s", got, err, dev.facts().Target.Attrs["l4t"])
						}
						b.unplug(false)
					})
					b.files = b.files.Crash(0)
					check(t, b.update(t, 15*time.Minute), c.want)
				})
				return reached && ok
			}
			points := 0
			for _, p := range CrashPoints() {
				if walk("point "+p, func() { b.point = p }) {
					points++
				}
			}
			if points < 20 {
				t.Errorf("only %d named points are passed", points)
			}
			for n := 1; ; n++ {
				if !walk(fmt.Sprintf("boot chain operation %d", n), func() { b.chain.cutAt = n }) {
					break
				}
			}
			stride := 11
			if testing.Short() {
				stride = 61
			}
			for n := 0; ; n += stride {
				if !walk(fmt.Sprintf("disk operation %d", n), func() { b.files.FailAfter(n) }) {
					break
				}
			}
		})
	}
}
