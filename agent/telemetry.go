package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/skein-fleet/skein/agent/internal/health"
	"github.com/skein-fleet/skein/proto/wire"
	"github.com/skein-fleet/skein/telemetry"
	"github.com/skein-fleet/skein/telemetry/block"
	"github.com/skein-fleet/skein/telemetry/spool"
)

const (
	maxWatch    = 5 * time.Minute
	schemaEvery = 30 // blocks after which the schema is sent again unasked
	thinFactor  = 10 // a thinned block keeps one slot of so many
	hotCelsius  = 95.0
	coolCelsius = 90.0
)

// lease is how long the device is being watched.
type lease struct {
	mu    sync.Mutex // guards until
	until time.Time
}

func (l *lease) extend(to time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if to.After(l.until) {
		l.until = to
	}
}

func (l *lease) active(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.Before(l.until)
}

// sampleLoop measures and packs blocks into the spool. It needs no network.
func (a *Agent) sampleLoop(ctx context.Context) error {
	ticker := time.NewTicker(a.opts.TelemetryEvery)
	defer ticker.Stop()
	var builder block.Builder
	// The first block ends at a random moment: a fleet that started together
	// does not send together.
	flush := a.opts.Now().Add(a.opts.BlockEvery/2 + rand.N(a.opts.BlockEvery/2+1))
	for {
		select {
		case <-ctx.Done():
			a.flush(&builder)
			return nil
		case <-ticker.C:
		}
		readings, err := a.opts.Host.Readings(ctx)
		if err != nil && ctx.Err() == nil {
			a.log.Debug("readings", "error", err)
		}
		now := a.opts.Now()
		readings = append(readings, a.ownReadings(now)...)
		a.noteHeat(readings)
		builder.Add(readings)
		if behind := flush.Sub(now); behind > 2*a.opts.BlockEvery { // the clock stepped back
			flush = now
		}
		if !now.Before(flush) || a.watching.active(now) || builder.Slots() >= block.MaxSlots/2 {
			a.flush(&builder)
			flush = now.Add(a.opts.BlockEvery)
		}
	}
}

// flush packs what was collected, with its schema, so that each block can be
// read alone for as long as it waits.
func (a *Agent) flush(b *block.Builder) {
	blk, ok := b.Take()
	if !ok {
		return
	}
	data, _, err := block.Encode(blk, true)
	if err == nil {
		var payload []byte
		if payload, err = wire.Marshal(&wire.Telemetry{ID: a.ids.next(), Block: data}); err == nil {
			err = a.spool.Append(wire.UpTelemetry, payload)
		}
	}
	if err != nil {
		a.log.Warn("spool telemetry", "error", err)
	}
	st := a.spool.Stats()
	if st.Dropped+st.Thinned+st.Damaged > 0 {
		a.board.Set(health.SpoolDropping, health.Warning, fmt.Sprintf("%d messages thinned, %d dropped, %d damaged since the start", st.Thinned, st.Dropped, st.Damaged))
	}
	a.wakeSpool.set()
}

// SpoolOptions returns the options for a spool of an agent: bounded, and
// thinned to one sample of ten before anything is dropped.
func SpoolOptions(maxBytes int64) spool.Options {
	return spool.Options{MaxBytes: maxBytes, Thin: thin}
}

// thin keeps one slot of thinFactor of a telemetry message.
func thin(kind wire.Kind, payload []byte) ([]byte, bool) {
	var t wire.Telemetry
	if kind != wire.UpTelemetry || wire.Unmarshal(payload, &t) != nil {
		return nil, false
	}
	b, err := block.Decode(t.Block, nil)
	if err != nil || len(b.Times) < 2 {
		return nil, false
	}
	small := &block.Block{}
	for i := 0; i < len(b.Times); i += thinFactor {
		small.Times = append(small.Times, b.Times[i])
	}
	for _, c := range b.Columns {
		kept := block.Column{Series: c.Series, Scale: c.Scale}
		for i := 0; i < len(b.Times); i += thinFactor {
			// The first value that is there in the span, so that a series
			// which is measured rarely does not vanish.
			v := math.NaN()
			for k := i; k < min(i+thinFactor, len(b.Times)) && math.IsNaN(v); k++ {
				v = c.Values[k]
			}
			kept.Values = append(kept.Values, v)
		}
		small.Columns = append(small.Columns, kept)
	}
	if t.Block, _, err = block.Encode(small, true); err != nil {
		return nil, false
	}
	out, err := wire.Marshal(&t)
	return out, err == nil
}

// sendLoop sends what the spool holds, in order, each acknowledged before the
// next, whenever the link is up.
func (a *Agent) sendLoop(ctx context.Context) error {
	var sent schemas
	var connection uint64
	for {
		up, changed := a.conn.up()
		if n := a.conn.count(); n != connection {
			connection, sent = n, schemas{} // the other side may have restarted
		}
		f, err := a.spool.Next()
		if !up || errors.Is(err, spool.ErrEmpty) {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			case <-a.wakeSpool:
			}
			continue
		}
		if err != nil {
			if !a.spoolFailed(ctx, err) {
				return nil
			}
			continue
		}
		payload, id, bare := sent.strip(f)
		err = a.publish(ctx, f.Kind, payload)
		switch {
		case err == nil:
			sent.acknowledged(id, bare)
		case errors.Is(err, wire.ErrMalformed): // too large for the link: it can never be sent
			a.log.Warn("drop telemetry", "error", err)
		case ctx.Err() != nil:
			return nil
		default:
			if !pause(ctx, time.Second+rand.N(4*time.Second)) {
				return nil
			}
			continue
		}
		if err := a.spool.Ack(f.Seq); err != nil {
			if !a.spoolFailed(ctx, err) {
				return nil
			}
			continue // it is sent again, and dropped there as a repeat
		}
		a.board.Clear(health.SpoolFailing)
	}
}

// spoolFailed says so and waits; it reports whether to go on. Telemetry that is
// stuck is no reason to end what serves.
func (a *Agent) spoolFailed(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	a.log.Warn("read the spool", "error", err)
	a.board.Set(health.SpoolFailing, health.Warning, "telemetry does not leave the spool: "+err.Error())
	return pause(ctx, retryMax/2+rand.N(retryMax/2))
}

// schemas remembers which schema the other side holds on this connection.
type schemas struct {
	id    block.SchemaID
	known bool
	bare  int // blocks sent without it since
}

// strip leaves the schema out of a block when the other side has it.
func (s *schemas) strip(f spool.Frame) (payload []byte, id block.SchemaID, bare bool) {
	var t wire.Telemetry
	if f.Kind != wire.UpTelemetry || wire.Unmarshal(f.Payload, &t) != nil {
		return f.Payload, id, false
	}
	b, err := block.Decode(t.Block, nil)
	if err != nil {
		return f.Payload, id, false
	}
	data, schema, err := block.Encode(b, false)
	if err != nil {
		return f.Payload, id, false
	}
	id = schema.ID()
	if !s.known || s.id != id || s.bare >= schemaEvery {
		return f.Payload, id, false
	}
	t.Block = data
	small, err := wire.Marshal(&t)
	if err != nil {
		return f.Payload, id, false
	}
	return small, id, true
}

func (s *schemas) acknowledged(id block.SchemaID, bare bool) {
	if bare {
		s.bare++
		return
	}
	*s = schemas{id: id, known: id != block.SchemaID{}}
}

// ownReadings are what the agent measures of itself and of its workload.
func (a *Agent) ownReadings(now time.Time) []telemetry.Reading {
	at := func(v float64, name string, labels ...string) telemetry.Reading {
		return telemetry.Reading{Series: telemetry.NewSeries(name, labels...), Time: now, Value: v}
	}
	var out []telemetry.Reading
	if a.opts.LocalSocket != "" { // a process of its own, not one of many in a simulation
		if rss, ok := residentBytes(); ok {
			out = append(out, at(rss, telemetry.AgentMemory))
		}
		var ru syscall.Rusage
		if syscall.Getrusage(syscall.RUSAGE_SELF, &ru) == nil {
			out = append(out, at(float64(ru.Utime.Nano()+ru.Stime.Nano())/1e9, telemetry.AgentCPU))
		}
	}
	if t := a.trust.TrustedTime(); !t.IsZero() {
		out = append(out, at(a.opts.Now().Sub(t).Seconds(), telemetry.ClockOffset))
	}
	out = append(out, a.tapReadings(now)...)
	out = append(out, a.serverReadings(now)...)
	a.golden.mu.Lock()
	defer a.golden.mu.Unlock()
	if a.golden.known {
		out = append(out, at(a.golden.share, telemetry.GoldenAccuracy, "model", a.golden.model, "version", a.golden.version))
	}
	return out
}

// residentBytes reads the resident size of this process.
func residentBytes() (float64, bool) {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, false
	}
	fields := bytes.Fields(raw)
	if len(fields) < 2 {
		return 0, false
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	return float64(pages) * float64(os.Getpagesize()), err == nil
}

// noteHeat keeps the conditions of heat and throttling.
func (a *Agent) noteHeat(readings []telemetry.Reading) {
	hottest, zone := math.Inf(-1), ""
	var throttled []string
	for _, r := range readings {
		switch r.Series.Name {
		case telemetry.Temperature:
			if r.Value > hottest {
				hottest, zone = r.Value, r.Series.Get("zone")
			}
		case telemetry.Throttled:
			if r.Value > 0 {
				throttled = append(throttled, r.Series.Get("reason"))
			}
		}
	}
	switch {
	case hottest >= hotCelsius:
		if !a.board.Holds(health.Overheating) { // the message of the first reading: it would change every second
			a.board.Set(health.Overheating, health.Warning, fmt.Sprintf("%s is at %.0f °C", zone, hottest))
		}
	case hottest < coolCelsius:
		a.board.Clear(health.Overheating)
	}
	if len(throttled) > 0 && !a.board.Holds(health.Throttled) {
		reason := strings.Join(throttled, ", ")
		a.board.Set(health.Throttled, health.Warning, "clocks are held down: "+reason)
		a.board.Event(wire.Event{ID: a.ids.next(), Kind: "throttle", Message: reason})
	} else if len(throttled) == 0 {
		a.board.Clear(health.Throttled)
	}
}
