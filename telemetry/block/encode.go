package block

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// Header bytes.
const (
	magic      = "SKB"
	version    = 1
	flagInline = 1 // the schema follows, not its id
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode packs a block, whose columns must be in order (Sort). With inline the
// schema travels along; without, only its id, and the receiver must hold it.
// Values that cannot be quantised (infinities, beyond 2^52 steps) are packed as
// absent.
func Encode(b *Block, inline bool) ([]byte, *Schema, error) {
	if err := b.check(); err != nil {
		return nil, nil, err
	}
	specs := make([]Spec, len(b.Columns))
	for i, c := range b.Columns {
		specs[i] = Spec{c.Series, c.Scale}
	}
	schema, err := NewSchema(specs)
	if err != nil {
		return nil, nil, err
	}
	out, err := EncodeWith(schema, b, inline)
	return out, schema, err
}

// EncodeWith packs a block of a schema made before, which spares the work of
// making it for every block.
func EncodeWith(schema *Schema, b *Block, inline bool) ([]byte, error) {
	if err := b.check(); err != nil {
		return nil, err
	}
	if len(schema.specs) != len(b.Columns) {
		return nil, fmt.Errorf("%w: %d columns, schema has %d", ErrBadBlock, len(b.Columns), len(schema.specs))
	}
	out := append(make([]byte, 0, 64+len(b.Times)*len(b.Columns)), magic...)
	out = append(out, version, byte(toBit(inline)*flagInline))
	if inline {
		out = binary.AppendUvarint(out, uint64(len(schema.bytes)))
		out = append(out, schema.bytes...)
	} else {
		out = append(out, schema.id[:]...)
	}
	out = binary.AppendUvarint(out, uint64(len(b.Times)))
	t0, step := b.Times[0], regularStep(b.Times)
	out = binary.AppendVarint(out, t0)
	out = binary.AppendVarint(out, step)

	e := &rangeEncoder{hi: 1<<32 - 1, out: out}
	m := newModel()
	v := make([]int64, len(b.Times))
	for i, t := range b.Times {
		v[i] = t - t0 - int64(i)*step
	}
	m.encodeColumn(e, v)
	here := make([]bool, len(b.Times))
	for i, c := range b.Columns {
		if schema.specs[i].Scale != c.Scale || schema.specs[i].Series.Compare(c.Series) != 0 {
			return nil, fmt.Errorf("%w: %s is not column %d of the schema", ErrBadBlock, c.Series, i)
		}
		v = v[:0]
		for k, x := range c.Values {
			n, ok := c.Scale.Quantise(x)
			if here[k] = ok; ok {
				v = append(v, n)
			}
		}
		m.encodePresence(e, here, len(v))
		if len(v) > 0 {
			m.encodeColumn(e, v)
		}
	}
	out = e.finish()
	return binary.LittleEndian.AppendUint32(out, crc32.Checksum(out, castagnoli)), nil
}

// regularStep is the step of a line through the first and last times.
func regularStep(times []int64) int64 {
	if len(times) < 2 {
		return 0
	}
	step := int64(math.Round(float64(times[len(times)-1]-times[0]) / float64(len(times)-1)))
	if step > maxStep || step < -maxStep {
		return 0
	}
	return step
}

func (m *model) encodePresence(e *rangeEncoder, here []bool, n int) {
	e.bit(&m.present[0], toBit(n == len(here)))
	if n == len(here) {
		return
	}
	e.bit(&m.present[1], toBit(n == 0))
	if n == 0 {
		return
	}
	before := 1
	for _, h := range here {
		e.bit(&m.slot[before], toBit(h))
		before = toBit(h)
	}
}
