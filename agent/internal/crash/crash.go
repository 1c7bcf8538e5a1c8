// Package crash keeps what is worth knowing of a start that ends without being
// stopped: the board's last lines, the last lines of the log, and how model
// servers ended. It owns the ring on the disk, the mark by which the next start
// knows that this one was not ended, and the bundle that is made of them, which
// waits until it was sent once.
//
// Invariants: the ring is written once a minute, in a fixed number of small
// files, so that flash bears it; a bundle is bounded, whatever was in the ring;
// one that cannot be read is dropped, never in the way. The root of the agent
// module imports it.
package crash

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/skein-fleet/skein/agent/internal/durable"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// The kinds of a crash.
const (
	OfAgent   = "agent"   // the machine went on
	OfMachine = "machine" // it did not
)

const (
	markFile   = "crash/mark.json"
	bundleFile = "crash/bundle.json"
	ringFiles  = 4

	flushEvery  = time.Minute
	sampleEvery = 5 * time.Second
	perFile     = 16 // lines of the board, at most
	logLines    = 60 // of the log in one file
	maxExits    = 8
	maxLine     = 512
	maxPanic    = 8 << 10
	maxJournal  = 32
	maxLines    = 64 // of board and of log in a bundle
)

// Config of a Recorder. Files, Now, BootID and Version are required.
type Config struct {
	Files   slot.Files
	Now     func() time.Time
	BootID  func() uint64
	Version string
	// Line is the newest line of the board, Log the newest lines of the log,
	// Journal those of the last update. They may be nil.
	Line    func() string
	Log     func(limit int) []string
	Journal func() []wire.StepEntry
	// Panic is what the run-time of the process before said when it ended; nil
	// when that is not kept.
	Panic func() string
	// Failed is told what could not be written.
	Failed func(error)
}

// mark says that a start runs, or was ended.
type mark struct {
	Boot    uint64 `json:"boot"`
	Ended   bool   `json:"ended"`
	Version string `json:"version,omitempty"`
	Crashes uint64 `json:"crashes,omitempty"` // so far
	Begun   int64  `json:"begun"`             // unix milliseconds
}

// part is one file of the ring.
type part struct {
	Seq   uint64   `json:"seq"`
	Time  int64    `json:"time"` // of its last line, unix milliseconds
	Board []string `json:"board,omitempty"`
	Log   []string `json:"log,omitempty"`
	Exits []string `json:"exits,omitempty"`
}

// Recorder keeps the ring of one start.
type Recorder struct {
	cfg  Config
	mark mark

	mu    sync.Mutex // guards what follows
	seq   uint64
	board []string
	exits []string
	dirty bool // something that should not wait for the minute
	found *wire.Crash
}

// Open reads what the start before left, and marks that this one runs. What it
// left becomes a bundle that Pending returns until Sent is called.
func Open(c Config) (*Recorder, error) {
	r := &Recorder{cfg: c}
	var before mark
	_, err := durable.Read(c.Files, markFile, &before)
	known := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, durable.ErrDamaged) {
		return nil, fmt.Errorf("read %s: %w", markFile, err)
	}
	var waiting wire.Crash
	if _, err := durable.Read(c.Files, bundleFile, &waiting); err == nil {
		r.found = &waiting
	}
	parts := r.ring()
	for _, p := range parts {
		r.seq = max(r.seq, p.Seq)
	}
	r.mark = mark{Boot: c.BootID(), Version: c.Version, Crashes: before.Crashes, Begun: c.Now().UnixMilli()}
	if known && !before.Ended {
		r.mark.Crashes++
		b := r.bundle(before, parts)
		if err := durable.Write(c.Files, bundleFile, b); err != nil {
			return r, fmt.Errorf("keep what the last start left: %w", err)
		}
		r.found = b
	}
	return r, durable.Write(c.Files, markFile, r.mark)
}

func ringName(seq uint64) string { return fmt.Sprintf("crash/ring-%d.json", seq%ringFiles) }

// ring reads its files, the oldest first.
func (r *Recorder) ring() (out []part) {
	for i := range uint64(ringFiles) {
		var p part
		if _, err := durable.Read(r.cfg.Files, ringName(i), &p); err != nil {
			continue
		}
		at := len(out)
		for at > 0 && out[at-1].Seq > p.Seq {
			at--
		}
		out = append(out[:at], append([]part{p}, out[at:]...)...)
	}
	return out
}

// bundle is what is known of the start before, whose mark is before.
func (r *Recorder) bundle(before mark, parts []part) *wire.Crash {
	c := &wire.Crash{Number: r.mark.Crashes, Kind: OfAgent, Time: before.Begun, Found: r.cfg.Now().UnixMilli(), Agent: before.Version}
	if boot := r.cfg.BootID(); boot == 0 || boot != before.Boot {
		c.Kind = OfMachine
	}
	for _, p := range parts {
		if p.Time < before.Begun && p.Time != 0 && before.Begun-p.Time > int64(time.Hour/time.Millisecond) {
			continue // of long before
		}
		c.Tegrastats, c.Log, c.Exits = append(c.Tegrastats, p.Board...), append(c.Log, p.Log...), append(c.Exits, p.Exits...)
		c.Time = max(c.Time, p.Time)
	}
	c.Tegrastats, c.Log, c.Exits = last(c.Tegrastats, maxLines), last(c.Log, maxLines), last(c.Exits, maxExits)
	if r.cfg.Panic != nil {
		c.Panic = cut(r.cfg.Panic(), maxPanic)
	}
	if r.cfg.Journal != nil {
		j := r.cfg.Journal()
		c.Journal = j[max(0, len(j)-maxJournal):]
	}
	return c
}

func last(lines []string, n int) []string { return lines[max(0, len(lines)-n):] }

// cut keeps whole runes.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}

// Pending is what still has to be sent, nil for nothing.
func (r *Recorder) Pending() *wire.Crash {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.found
}

// Sent forgets a bundle that was acknowledged.
func (r *Recorder) Sent(number uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.found == nil || r.found.Number != number {
		return nil
	}
	if err := r.cfg.Files.Remove(bundleFile); err != nil {
		return fmt.Errorf("forget crash %d: %w", number, err)
	}
	r.found = nil
	return nil
}

// Exit notes how a model server ended.
func (r *Recorder) Exit(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exits = last(append(r.exits, cut(r.cfg.Now().UTC().Format(time.RFC3339)+" "+text, maxLine)), maxExits)
	r.dirty = true
}

// Run keeps the ring until ctx ends.
func (r *Recorder) Run(ctx context.Context) error {
	sample, flush := time.NewTicker(sampleEvery), time.NewTicker(flushEvery)
	defer sample.Stop()
	defer flush.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sample.C:
			r.take()
			r.mu.Lock()
			soon := r.dirty
			r.mu.Unlock()
			if !soon {
				continue
			}
		case <-flush.C:
		}
		if err := r.flush(); err != nil && r.cfg.Failed != nil {
			r.cfg.Failed(err)
		}
	}
}

// take keeps the newest line of the board.
func (r *Recorder) take() {
	if r.cfg.Line == nil {
		return
	}
	line := r.cfg.Line()
	if line == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.board = last(append(r.board, r.cfg.Now().UTC().Format(time.RFC3339)+" "+cut(line, maxLine)), perFile)
}

// flush writes the next file of the ring.
func (r *Recorder) flush() error {
	r.mu.Lock()
	p := part{Seq: r.seq + 1, Time: r.cfg.Now().UnixMilli(), Board: r.board, Exits: r.exits}
	r.mu.Unlock()
	if r.cfg.Log != nil {
		for _, l := range r.cfg.Log(logLines) {
			p.Log = append(p.Log, cut(l, maxLine))
		}
	}
	// Each file holds the newest lines of the log: the one before need not.
	if err := durable.Write(r.cfg.Files, ringName(p.Seq), p); err != nil {
		return fmt.Errorf("write the ring: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq, r.board, r.exits, r.dirty = p.Seq, nil, nil, false
	return nil
}

// End marks that this start was ended and not broken off.
func (r *Recorder) End() error {
	m := r.mark
	m.Ended = true
	return durable.Write(r.cfg.Files, markFile, m)
}
