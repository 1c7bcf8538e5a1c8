// Package board gives a modelled Jetson to programs of other processes: a tree
// of files, and the board's own executables (tegrastats, nvpmodel, nvbootctrl,
// reboot), which are links to a program that calls Main and ask the model over a
// unix socket. It owns the life of the model (heat, clocks, boot chain) while
// such programs run.
//
// Invariants: files and executables say the same as the model; a board changes
// only by time, by its programs, and by the setters. Only sim and its commands
// import it.
package board

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/sim/jetson"
	"github.com/skein-fleet/skein/sim/jetson/rootfs"
)

// Options describe a board.
type Options struct {
	Dir      string // for its files: root, bin
	Socket   string // unix socket of the model; keep it short
	Module   rootfs.Module
	JetPack  rootfs.JetPack
	Seed     uint64
	HeatRate float64
	// Program is what the executables are links to; empty makes none.
	Program string
	// Reboot is called when a program on the board restarts it.
	Reboot func()
}

// Board is a modelled board with files and executables. Its methods are safe
// for concurrent use.
type Board struct {
	o Options

	mu   sync.Mutex // guards what follows
	b    *jetson.Board
	last time.Time
	busy time.Duration // inference time since the last step
	boot int
}

const step = 250 * time.Millisecond

// New makes the board's files and executables; it lives in Run.
func New(o Options) (*Board, error) {
	model, err := jetson.Lookup(o.Module.Model)
	if err != nil {
		return nil, err
	}
	if o.Reboot == nil {
		o.Reboot = func() {}
	}
	now := time.Now()
	b, err := jetson.New(model, jetson.Options{Seed: o.Seed, Start: now, HeatRate: o.HeatRate})
	if err != nil {
		return nil, err
	}
	x := &Board{o: o, b: b, last: now}
	if c := b.Boot(); c != nil {
		*c = *jetson.NewBootChain(o.JetPack.L4T)
	}
	if err := x.executables(); err != nil {
		return nil, err
	}
	return x, x.PowerOn()
}

// Root is the tree that stands for /.
func (b *Board) Root() string { return filepath.Join(b.o.Dir, "root") }

// Bin holds the board's executables.
func (b *Board) Bin() string { return filepath.Join(b.o.Dir, "bin") }

// Socket is where the executables find the model.
func (b *Board) Socket() string { return b.o.Socket }

// Environment lets programs on the board find its executables.
func (b *Board) Environment() []string {
	return []string{SocketVariable + "=" + b.o.Socket, "PATH=" + b.Bin() + string(os.PathListSeparator) + os.Getenv("PATH")}
}

func (b *Board) executables() error {
	if err := os.MkdirAll(b.Bin(), 0o755); err != nil {
		return fmt.Errorf("make the board's executables: %w", err)
	}
	if b.o.Program == "" {
		return nil
	}
	for _, name := range Tools {
		link := filepath.Join(b.Bin(), name)
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("make the board's executables: %w", err)
		}
		if err := os.Symlink(b.o.Program, link); err != nil {
			return fmt.Errorf("make the board's executables: %w", err)
		}
	}
	return nil
}

// PowerOn starts the system that the boot chain leads to, and writes its files.
func (b *Board) PowerOn() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	jp := b.o.JetPack
	if c := b.b.Boot(); c != nil {
		if err := b.readSlots(c); err != nil {
			return err
		}
		image, err := c.Start()
		if err != nil {
			return err
		}
		jp.L4T = image.L4T
	}
	b.boot++
	tree := rootfs.Board{Module: b.o.Module, JetPack: jp, Serial: b.b.Serial(), Mode: b.b.Mode(),
		BootID: fmt.Sprintf("%08x-0000-4000-8000-%012x", b.o.Seed&0xffffffff, b.boot)}
	if err := rootfs.Write(b.Root(), tree); err != nil {
		return err
	}
	return b.showChain()
}

// Off is a board without power: it cools and forgets what reboots forget.
func (b *Board) Off(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Step(d, jetson.Load{})
	b.last = time.Now()
	b.b.PowerCycle()
	b.busy = 0
}

// slots are the partitions of the root file systems.
func (b *Board) slot(n int) string {
	return filepath.Join(b.Root(), "dev/disk/by-partlabel", []string{"APP", "APP_b"}[n])
}

// readSlots takes in what was written to the partitions since the last start.
func (b *Board) readSlots(c *jetson.BootChain) error {
	if err := os.MkdirAll(filepath.Dir(b.slot(0)), 0o755); err != nil {
		return fmt.Errorf("make the board's partitions: %w", err)
	}
	for n := range c.Slots {
		raw, err := os.ReadFile(b.slot(n))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("read the board's partitions: %w", err)
		}
		if len(raw) > 0 {
			c.Slots[n].Image = jetson.ParseOSImage(string(raw[:min(len(raw), 4<<10)]))
		}
		if err := os.WriteFile(b.slot(n), nil, 0o644); err != nil {
			return fmt.Errorf("make the board's partitions: %w", err)
		}
	}
	return nil
}

// showChain brings the UEFI variables to what the boot chain is; mu is held.
func (b *Board) showChain() error {
	if c := b.b.Boot(); c != nil {
		return rootfs.SetVariables(b.Root(), c)
	}
	return nil
}

// Run lets time pass on the board and answers its programs until ctx ends.
func (b *Board) Run(ctx context.Context) error {
	l, err := net.Listen("unix", b.o.Socket)
	if err != nil {
		return fmt.Errorf("open the board's socket: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { b.live(ctx) })
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("answer the board's programs: %w", err)
		}
		wg.Go(func() {
			defer c.Close()
			defer context.AfterFunc(ctx, func() { c.Close() })()
			b.serve(c)
		})
	}
}

func (b *Board) live(ctx context.Context) {
	tick := time.NewTicker(step)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			b.step(now)
		}
	}
}

func (b *Board) step(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	dt := now.Sub(b.last)
	if dt <= 0 {
		return
	}
	b.b.Step(dt, jetson.Inferring(b.busy, dt))
	b.busy = 0
	b.last = now
}

// Busy books the board's own latency of an inference that costs base on an
// Orin Nano in its 15W mode.
func (b *Board) Busy(base time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.busy += b.b.Latency(base)
}

// With runs f on the model and shows what it did to the boot chain.
func (b *Board) With(f func(*jetson.Board)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b.b)
	return b.showChain()
}

// SetRoute puts the default route onto an interface.
func (b *Board) SetRoute(name string) error {
	if err := os.WriteFile(filepath.Join(b.Root(), "proc/net/route"), []byte(rootfs.Route(name)), 0o644); err != nil {
		return fmt.Errorf("set the board's route: %w", err)
	}
	return nil
}

// call is what a program asks; answer what it prints and ends with.
type call struct {
	Tool string   `json:"tool"`
	Args []string `json:"args"`
}

type answer struct {
	Out  string `json:"out,omitempty"`
	Err  string `json:"err,omitempty"`
	Code int    `json:"code,omitempty"`
}

// serve answers the calls of one program, one after another.
func (b *Board) serve(c io.ReadWriter) {
	in := bufio.NewScanner(c)
	out := json.NewEncoder(c)
	for in.Scan() {
		var q call
		if err := json.Unmarshal(in.Bytes(), &q); err != nil {
			return
		}
		if out.Encode(b.answer(q)) != nil {
			return
		}
	}
}

func (b *Board) answer(q call) answer {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch q.Tool {
	case "tegrastats":
		return answer{Out: b.b.Tegrastats() + "\n"}
	case "nvpmodel":
		return b.nvpmodel(q.Args)
	case "nvbootctrl":
		return b.nvbootctrl(q.Args)
	case "reboot":
		go b.o.Reboot()
		return answer{}
	}
	return answer{Err: q.Tool + ": not on this board\n", Code: 127}
}

func (b *Board) nvpmodel(args []string) answer {
	model := b.b.Model()
	switch {
	case len(args) == 1 && args[0] == "-q":
		out := b.b.NvpmodelQuery()
		if strings.HasPrefix(b.o.JetPack.L4T, "32.") {
			out = "NVPM VERB: Config file: /etc/nvpmodel.conf\nNVPM VERB: parsing done for /etc/nvpmodel.conf\nNV Fan Mode:quiet\nNVPM VERB: Current mode: " + out
		}
		return answer{Out: out}
	case len(args) == 2 && args[0] == "-m":
		for _, m := range model.Modes {
			if fmt.Sprint(m.ID) != args[1] {
				continue
			}
			if err := b.b.SetMode(m.Name); err != nil {
				return answer{Err: "NVPM ERROR: " + err.Error() + "\n", Code: 255}
			}
			if err := os.WriteFile(filepath.Join(b.Root(), "var/lib/nvpmodel/status"), fmt.Appendf(nil, "pmode:%04d", m.ID), 0o644); err != nil {
				return answer{Err: "NVPM ERROR: " + err.Error() + "\n", Code: 255}
			}
			return answer{}
		}
		return answer{Err: "NVPM ERROR: Invalid power mode id " + args[1] + "\n", Code: 255}
	case len(args) > 0 && args[0] == "-p":
		var s strings.Builder
		for _, m := range model.Modes {
			fmt.Fprintf(&s, "POWER_MODEL: ID=%d NAME=%s\n", m.ID, m.Name)
		}
		mode, err := model.Mode(model.DefaultMode)
		if err == nil {
			fmt.Fprintf(&s, "===================\nPM_CONFIG: DEFAULT=%s(%d)\n", mode.Name, mode.ID)
		}
		return answer{Out: s.String()}
	}
	return answer{Err: "NVPM ERROR: Error parsing arguments\nUsage: nvpmodel -q | -m ID | -p --verbose\n", Code: 255}
}
