package release

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// onnxSummary is what is looked at in an ONNX file: enough to tell a model
// from another file, and to check the golden set against its inputs.
type onnxSummary struct {
	IRVersion uint64
	Inputs    []string // of the graph, initializers apart
	Outputs   []string
}

// The fields of onnx.proto that are read.
const (
	modelIRVersion = 1
	modelGraph     = 7
	modelOpset     = 8
	graphNode      = 1
	graphInput     = 11
	graphOutput    = 12
	valueInfoName  = 1
)

// The wire types of protobuf.
const (
	wireVarint = 0
	wire64     = 1
	wireBytes  = 2
	wire32     = 5
)

var errONNX = errors.New("not an ONNX model")

// readONNX reads the outline of a model, passing over weights without reading
// them.
func readONNX(r io.ReadSeeker, size int64) (onnxSummary, error) {
	var s onnxSummary
	p := &protoReader{r: r, br: bufio.NewReaderSize(r, 4096)}
	nodes, opsets, graphs := 0, 0, 0
	err := p.fields(size, func(field int, kind int, v uint64) error {
		switch {
		case field == modelIRVersion && kind == wireVarint:
			s.IRVersion = v
		case field == modelOpset && kind == wireBytes:
			opsets++
		case field == modelGraph && kind == wireBytes:
			graphs++
			n, err := p.graph(int64(v), &s)
			nodes += n
			return err
		}
		return nil
	})
	switch {
	case err != nil:
		return s, fmt.Errorf("%w: %w", errONNX, err)
	case s.IRVersion == 0 || s.IRVersion > 1000:
		return s, fmt.Errorf("%w: no ir_version at its beginning", errONNX)
	case graphs != 1:
		return s, fmt.Errorf("%w: %d graphs, want 1", errONNX, graphs)
	case opsets == 0:
		return s, fmt.Errorf("%w: it imports no operator set", errONNX)
	case nodes == 0 || len(s.Outputs) == 0:
		return s, fmt.Errorf("%w: its graph has %d nodes and %d outputs", errONNX, nodes, len(s.Outputs))
	}
	return s, nil
}

func (p *protoReader) graph(size int64, s *onnxSummary) (nodes int, err error) {
	err = p.fields(p.pos+size, func(field, kind int, v uint64) error {
		if kind != wireBytes {
			return nil
		}
		switch field {
		case graphNode:
			nodes++
		case graphInput, graphOutput:
			name, err := p.valueName(int64(v))
			if field == graphInput {
				s.Inputs = append(s.Inputs, name)
			} else {
				s.Outputs = append(s.Outputs, name)
			}
			if len(s.Inputs)+len(s.Outputs) > 10000 {
				return errors.New("more than 10000 inputs and outputs")
			}
			return err
		}
		return nil
	})
	return nodes, err
}

func (p *protoReader) valueName(size int64) (name string, err error) {
	err = p.fields(p.pos+size, func(field, kind int, v uint64) error {
		if field != valueInfoName || kind != wireBytes {
			return nil
		}
		if v > 4096 {
			return fmt.Errorf("a name of %d bytes", v)
		}
		b := make([]byte, v)
		_, err := io.ReadFull(p.br, b)
		p.pos += int64(v)
		name = string(b)
		return err
	})
	return name, err
}

// protoReader walks protobuf fields of a file.
type protoReader struct {
	r   io.ReadSeeker
	br  *bufio.Reader
	pos int64
}

// fields calls f for each field up to end. For wireBytes, v is the length, and
// f may read any part of the field; the rest is passed over.
func (p *protoReader) fields(end int64, f func(field, kind int, v uint64) error) error {
	for p.pos < end {
		at := p.pos
		tag, err := p.varint()
		if err != nil {
			return err
		}
		field, kind := int(tag>>3), int(tag&7)
		if field < 1 || field > 1<<20 {
			return fmt.Errorf("byte %d: no protobuf field", at)
		}
		var v uint64
		skip := int64(0)
		switch kind {
		case wireVarint, wireBytes:
			if v, err = p.varint(); err != nil {
				return err
			}
		case wire64:
			skip = 8
		case wire32:
			skip = 4
		default:
			return fmt.Errorf("byte %d: no protobuf field", at)
		}
		if kind == wireBytes {
			if v > uint64(end-p.pos) {
				return fmt.Errorf("byte %d: field %d of %d bytes is longer than what holds it: the file is cut short or damaged", at, field, v)
			}
			skip = int64(v)
		}
		next := p.pos + skip
		if err := f(field, kind, v); err != nil {
			return err
		}
		if err := p.skip(next - p.pos); err != nil {
			return err
		}
	}
	if p.pos != end {
		return fmt.Errorf("byte %d: a field is longer than what holds it", end)
	}
	return nil
}

func (p *protoReader) varint() (uint64, error) {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		b, err := p.br.ReadByte()
		if err != nil {
			return 0, errors.New("the file is cut short")
		}
		p.pos++
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, fmt.Errorf("byte %d: no protobuf number", p.pos)
}

func (p *protoReader) skip(n int64) error {
	if n <= 0 {
		return nil
	}
	if n <= int64(p.br.Buffered()) {
		_, err := p.br.Discard(int(n))
		p.pos += n
		return err
	}
	p.pos += n
	if _, err := p.r.Seek(p.pos, io.SeekStart); err != nil {
		return fmt.Errorf("seek to byte %d: %w", p.pos, err)
	}
	p.br.Reset(p.r)
	return nil
}
