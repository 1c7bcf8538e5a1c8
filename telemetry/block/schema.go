package block

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"github.com/skein-fleet/skein/telemetry"
)

// SchemaID names a schema: the first eight bytes of the sha256 of its bytes.
type SchemaID [8]byte

// String is the id in hex.
func (id SchemaID) String() string { return hex.EncodeToString(id[:]) }

// Spec is one column of a schema.
type Spec struct {
	Series telemetry.Series
	Scale  telemetry.Scale
}

// Schema is the list of columns of a block, in the order of their series. It
// hardly ever changes on a device, so most blocks name it by its id.
type Schema struct {
	specs []Spec
	bytes []byte
	id    SchemaID
}

// Specs returns the columns; they may not be changed.
func (s *Schema) Specs() []Spec { return s.specs }

// ID returns the schema's name.
func (s *Schema) ID() SchemaID { return s.id }

// Bytes returns the schema's encoding; it may not be changed.
func (s *Schema) Bytes() []byte { return s.bytes }

// NewSchema makes the schema of the given columns, which must be in order.
func NewSchema(specs []Spec) (*Schema, error) {
	if len(specs) == 0 || len(specs) > MaxColumns {
		return nil, fmt.Errorf("%w: schema of %d columns", ErrTooLarge, len(specs))
	}
	out := binary.AppendUvarint(nil, uint64(len(specs)))
	last := ""
	for i, c := range specs {
		if err := c.Series.Validate(); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBadBlock, err)
		}
		if c.Scale.Mul == 0 || c.Scale.Div == 0 {
			return nil, fmt.Errorf("%w: %s has scale %d/%d", ErrBadBlock, c.Series, c.Scale.Mul, c.Scale.Div)
		}
		if i > 0 && specs[i-1].Series.Compare(c.Series) >= 0 {
			return nil, fmt.Errorf("%w: %s is out of order or twice", ErrBadBlock, c.Series)
		}
		text := c.Series.String()
		if len(text) > telemetry.MaxSeriesText {
			return nil, fmt.Errorf("%w: series text of %d bytes", ErrTooLarge, len(text))
		}
		shared := commonPrefix(last, text)
		out = binary.AppendUvarint(out, uint64(shared))
		out = binary.AppendUvarint(out, uint64(len(text)-shared))
		out = append(out, text[shared:]...)
		out = binary.AppendUvarint(out, uint64(c.Scale.Mul))
		out = binary.AppendUvarint(out, uint64(c.Scale.Div))
		last = text
	}
	if len(out) > MaxSchema {
		return nil, fmt.Errorf("%w: schema of %d bytes", ErrTooLarge, len(out))
	}
	return &Schema{specs: specs, bytes: out, id: idOf(out)}, nil
}

func idOf(b []byte) SchemaID {
	sum := sha256.Sum256(b)
	return SchemaID(sum[:8])
}

func commonPrefix(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// ParseSchema reads the bytes of a schema. Only canonical bytes are accepted,
// so a schema has one id.
func ParseSchema(data []byte) (*Schema, error) {
	if len(data) > MaxSchema {
		return nil, fmt.Errorf("%w: schema of %d bytes", ErrTooLarge, len(data))
	}
	r := cursor{b: data}
	n := r.uvarint(MaxColumns)
	if r.err == nil && n*4 > uint64(len(data)) {
		r.err = fmt.Errorf("%w: schema claims %d columns in %d bytes", ErrCorrupt, n, len(data))
	}
	var specs []Spec
	last := ""
	for range n {
		shared := r.uvarint(uint64(len(last)))
		more := r.uvarint(telemetry.MaxSeriesText - shared)
		suffix := r.take(more)
		mul, div := r.uvarint(1<<32-1), r.uvarint(1<<32-1)
		if r.err != nil {
			break
		}
		last = last[:shared] + string(suffix)
		series, err := telemetry.ParseSeries(last)
		if err != nil {
			return nil, fmt.Errorf("%w: schema: %w", ErrCorrupt, err)
		}
		specs = append(specs, Spec{series, telemetry.Scale{Mul: uint32(mul), Div: uint32(div)}})
	}
	if r.err != nil {
		return nil, r.err
	}
	s, err := NewSchema(specs)
	if err != nil {
		return nil, fmt.Errorf("%w: schema: %w", ErrCorrupt, err)
	}
	if !bytes.Equal(s.bytes, data) {
		return nil, fmt.Errorf("%w: schema bytes are not canonical", ErrCorrupt)
	}
	return s, nil
}

// cursor reads varints and bytes; its first error stays.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) uvarint(most uint64) uint64 {
	if c.err != nil {
		return 0
	}
	v, n := binary.Uvarint(c.b)
	if n <= 0 || v > most || n > 1 && c.b[n-1] == 0 {
		c.err = fmt.Errorf("%w: bad number", ErrCorrupt)
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) take(n uint64) []byte {
	if c.err == nil && n > uint64(len(c.b)) {
		c.err = fmt.Errorf("%w: cut", ErrCorrupt)
	}
	if c.err != nil {
		return nil
	}
	out := c.b[:n]
	c.b = c.b[n:]
	return out
}
