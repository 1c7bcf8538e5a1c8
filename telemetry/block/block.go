// Package block packs the samples of many series over about a minute into a
// few hundred bytes, and unpacks them. It owns the byte format (FORMAT.md),
// which is self-contained: a magic with a version, a schema or its id, columns
// of quantised values under an adaptive range coder, a CRC32C.
//
// Invariants: decoding gives exactly the quantised values that were encoded;
// an absent value (NaN) stays absent; the decoder is strict about frame, bounds
// and length, and no input makes it hold more than MaxCells values.
// Probes, spool and ingest import it.
package block

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/telemetry"
)

// Bounds of a block. Encoder and decoder both hold them.
const (
	MaxColumns = 4096
	MaxSlots   = 4096
	MaxCells   = 1 << 20 // columns × slots
	MaxBytes   = 4 << 20
	MaxSchema  = 1 << 20
)

// maxTime and maxStep keep what is left of a time after its regular part
// within maxValue.
const (
	maxTime = 1 << 50
	maxStep = 1 << 36
)

// Errors of this package, wrapped with the detail.
var (
	// ErrCorrupt is returned for bytes that are no block: cut, damaged, or
	// not written by this format's encoder.
	ErrCorrupt = errors.New("not a telemetry block")
	// ErrTooLarge is returned for a block beyond the bounds of this package.
	ErrTooLarge = errors.New("telemetry block too large")
	// ErrUnknownSchema is returned for a block that names a schema which the
	// receiver does not hold; the sender then sends one with its schema.
	ErrUnknownSchema = errors.New("telemetry block names an unknown schema")
	// ErrBadBlock is returned by Encode for columns that do not make a block.
	ErrBadBlock = errors.New("columns do not make a block")
)

// Column is one series with one value per slot; NaN means absent.
type Column struct {
	Series telemetry.Series
	Scale  telemetry.Scale
	Values []float64
}

// Block is a set of columns over common slots.
type Block struct {
	Times   []int64 // unix milliseconds, one per slot; they may jump, even back
	Columns []Column
}

// Samples counts the values that are present.
func (b *Block) Samples() int {
	n := 0
	for _, c := range b.Columns {
		for _, v := range c.Values {
			if !math.IsNaN(v) {
				n++
			}
		}
	}
	return n
}

// Sort puts the columns into the order of their series, which Encode needs.
func (b *Block) Sort() {
	slices.SortFunc(b.Columns, func(x, y Column) int { return x.Series.Compare(y.Series) })
}

// check holds what Encode needs of a block.
func (b *Block) check() error {
	slots := len(b.Times)
	if slots == 0 || len(b.Columns) == 0 {
		return fmt.Errorf("%w: %d slots, %d columns", ErrBadBlock, slots, len(b.Columns))
	}
	if slots > MaxSlots || len(b.Columns) > MaxColumns || slots*len(b.Columns) > MaxCells {
		return fmt.Errorf("%w: %d slots, %d columns", ErrTooLarge, slots, len(b.Columns))
	}
	for _, t := range b.Times {
		if t < -maxTime || t > maxTime {
			return fmt.Errorf("%w: time %d ms", ErrBadBlock, t)
		}
	}
	for i, c := range b.Columns {
		if len(c.Values) != slots {
			return fmt.Errorf("%w: %s has %d values for %d slots", ErrBadBlock, c.Series, len(c.Values), slots)
		}
		if i > 0 && b.Columns[i-1].Series.Compare(c.Series) >= 0 {
			return fmt.Errorf("%w: %s is out of order or twice", ErrBadBlock, c.Series)
		}
	}
	return nil
}

// Builder collects readings into a block. The zero value is ready.
type Builder struct {
	times   []int64
	columns map[string]*Column
}

// Add takes the readings of one tick. Readings of the millisecond of the last
// slot go into it, others open a new one. What the bounds of a block would not
// hold is left out and counted; what cannot be quantised becomes absent.
func (b *Builder) Add(readings []telemetry.Reading) (dropped int) {
	if b.columns == nil {
		b.columns = map[string]*Column{}
	}
	for _, r := range readings {
		at := r.Time.UnixMilli()
		fresh := len(b.times) == 0 || b.times[len(b.times)-1] != at
		key := r.Series.String()
		c := b.columns[key]
		columns, slots := len(b.columns), len(b.times)
		if c == nil {
			columns++
		}
		if fresh {
			slots++
		}
		if columns > MaxColumns || slots > MaxSlots || columns*slots > MaxCells || at < -maxTime || at > maxTime || r.Series.Validate() != nil {
			dropped++
			continue
		}
		if fresh {
			b.times = append(b.times, at)
		}
		if c == nil {
			m, _ := telemetry.Lookup(r.Series.Name)
			c = &Column{Series: r.Series, Scale: m.Scale}
			b.columns[strings.Clone(key)] = c
		}
		for len(c.Values) < slots {
			c.Values = append(c.Values, math.NaN())
		}
		c.Values[slots-1] = r.Value
	}
	return dropped
}

// Slots is the number of ticks collected so far.
func (b *Builder) Slots() int { return len(b.times) }

// Take returns the block of what was collected and starts a new one; ok is
// false when there was nothing.
func (b *Builder) Take() (out *Block, ok bool) {
	if len(b.times) == 0 {
		return nil, false
	}
	out = &Block{Times: b.times}
	for _, c := range b.columns {
		for len(c.Values) < len(b.times) {
			c.Values = append(c.Values, math.NaN())
		}
		out.Columns = append(out.Columns, *c)
	}
	out.Sort()
	*b = Builder{}
	return out, true
}
