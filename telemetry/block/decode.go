package block

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
)

// Header is what a block says before its columns.
type Header struct {
	Schema SchemaID
	Inline []byte // the schema's bytes, when they travel along
	Slots  int
	Bytes  int
}

// ReadHeader checks the frame of a block (magic, version, checksum) and
// returns its header without unpacking anything.
func ReadHeader(data []byte) (Header, error) {
	h, _, _, _, err := open(data)
	return h, err
}

func open(data []byte) (h Header, t0, step int64, body []byte, err error) {
	fail := func(format string, args ...any) (Header, int64, int64, []byte, error) {
		return Header{}, 0, 0, nil, fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
	}
	if len(data) > MaxBytes {
		return Header{}, 0, 0, nil, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(data), MaxBytes)
	}
	const least = len(magic) + 2 + 4
	if len(data) < least || string(data[:len(magic)]) != magic {
		return fail("no magic")
	}
	if data[len(magic)] != version {
		return fail("version %d, this program reads %d", data[len(magic)], version)
	}
	body, sum := data[:len(data)-4], binary.LittleEndian.Uint32(data[len(data)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return fail("checksum differs")
	}
	flags := body[len(magic)+1]
	c := cursor{b: body[len(magic)+2:]}
	h.Bytes = len(data)
	switch flags {
	case flagInline:
		h.Inline = c.take(c.uvarint(MaxSchema))
		h.Schema = idOf(h.Inline)
	case 0:
		copy(h.Schema[:], c.take(uint64(len(h.Schema))))
	default:
		return fail("flags %#x", flags)
	}
	h.Slots = int(c.uvarint(MaxSlots))
	t0, step = c.varint(maxTime), c.varint(maxStep)
	if c.err != nil {
		return Header{}, 0, 0, nil, c.err
	}
	if h.Slots == 0 || len(c.b) == 0 {
		return fail("no slots")
	}
	return h, t0, step, c.b, nil
}

// varint reads a zig-zag number of at most the given magnitude.
func (c *cursor) varint(most int64) int64 {
	u := c.uvarint(uint64(most)<<1 | 1)
	v := int64(u>>1) ^ -int64(u&1)
	if v < -most || v > most {
		c.err = fmt.Errorf("%w: bad number", ErrCorrupt)
	}
	return v
}

// Reader unpacks a block column by column, in bounded memory.
type Reader struct {
	schema *Schema
	times  []int64
	d      *rangeDecoder
	m      *model
	next   int
	ints   []int64
	here   []bool
	err    error
}

// NewReader opens a block. A block without its schema is looked up by id with
// lookup, which may be nil; a nil schema gives ErrUnknownSchema.
func NewReader(data []byte, lookup func(SchemaID) *Schema) (*Reader, error) {
	h, t0, step, body, err := open(data)
	if err != nil {
		return nil, err
	}
	r := &Reader{d: newRangeDecoder(body), m: newModel()}
	if lookup != nil {
		r.schema = lookup(h.Schema)
	}
	if r.schema == nil && h.Inline != nil {
		if r.schema, err = ParseSchema(h.Inline); err != nil {
			return nil, err
		}
	}
	if r.schema == nil {
		return nil, fmt.Errorf("%w: %s", ErrUnknownSchema, h.Schema)
	}
	if h.Slots*len(r.schema.specs) > MaxCells {
		return nil, fmt.Errorf("%w: %d slots of %d columns", ErrTooLarge, h.Slots, len(r.schema.specs))
	}
	r.ints = make([]int64, h.Slots)
	if !r.m.decodeColumn(r.d, r.ints) {
		return nil, fmt.Errorf("%w: times", ErrCorrupt)
	}
	r.times = make([]int64, h.Slots)
	for i, v := range r.ints {
		if r.times[i] = t0 + int64(i)*step + v; r.times[i] > maxTime || r.times[i] < -maxTime {
			return nil, fmt.Errorf("%w: time %d ms", ErrCorrupt, r.times[i])
		}
	}
	if r.times[0] != t0 || regularStep(r.times) != step {
		return nil, fmt.Errorf("%w: times do not fit their step", ErrCorrupt)
	}
	r.here = make([]bool, h.Slots)
	return r, nil
}

// Schema returns the schema of the block.
func (r *Reader) Schema() *Schema { return r.schema }

// Times returns the time of each slot in unix milliseconds.
func (r *Reader) Times() []int64 { return r.times }

// Next unpacks the next column into values, one per slot, NaN where absent.
// After the last column it returns io.EOF; any other error is ErrCorrupt and
// stays.
func (r *Reader) Next(values []float64) error {
	if r.err != nil {
		return r.err
	}
	if len(values) != len(r.times) {
		return fmt.Errorf("unpack column: room for %d values, block has %d slots", len(values), len(r.times))
	}
	if r.next == len(r.schema.specs) {
		r.err = io.EOF
		if !r.d.exact() {
			r.err = fmt.Errorf("%w: bytes after the last column", ErrCorrupt)
		}
		return r.err
	}
	spec := r.schema.specs[r.next]
	n, ok := r.m.decodePresence(r.d, r.here)
	ints := r.ints[:n]
	if ok && n > 0 {
		ok = r.m.decodeColumn(r.d, ints)
	}
	if !ok || r.d.starved() {
		r.err = fmt.Errorf("%w: column %d (%s)", ErrCorrupt, r.next, spec.Series)
		return r.err
	}
	k := 0
	for i, h := range r.here {
		values[i] = math.NaN()
		if h {
			values[i] = spec.Scale.Value(ints[k])
			k++
		}
	}
	r.next++
	return nil
}

func (m *model) decodePresence(d *rangeDecoder, here []bool) (n int, ok bool) {
	all := d.bit(&m.present[0]) == 1
	none := !all && d.bit(&m.present[1]) == 1
	before := 1
	for i := range here {
		h := all
		if !all && !none {
			before = d.bit(&m.slot[before])
			h = before == 1
		}
		if here[i] = h; h {
			n++
		}
	}
	return n, all || none == (n == 0) && n < len(here)
}

// Decode unpacks a whole block.
func Decode(data []byte, lookup func(SchemaID) *Schema) (*Block, error) {
	r, err := NewReader(data, lookup)
	if err != nil {
		return nil, err
	}
	b := &Block{Times: r.times}
	for _, spec := range r.schema.specs {
		c := Column{Series: spec.Series, Scale: spec.Scale, Values: make([]float64, len(r.times))}
		if err := r.Next(c.Values); err != nil {
			return nil, err
		}
		b.Columns = append(b.Columns, c)
	}
	if err := r.Next(make([]float64, len(r.times))); err != io.EOF {
		return nil, err
	}
	return b, nil
}
