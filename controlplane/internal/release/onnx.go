package release

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// onnxSummary is what is looked at in an ONNX file: enough to tell a model
// from another file, and to check the golden set against its inputs.
type onnxSummary struct {
	IRVersion uint64
	Inputs    []string // of the graph, initializers apart
	Outputs   []string
	types     map[string]string // of inputs and outputs, such as float32[1,784]
}

// signature lists inputs and outputs with their types, where the model says them.
func (s onnxSummary) signature() (inputs, outputs []string) {
	list := func(names []string) (out []string) {
		for _, n := range names {
			if t := s.types[n]; t != "" {
				n += ": " + t
			}
			out = append(out, n)
		}
		return out
	}
	return list(s.Inputs), list(s.Outputs)
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
	valueInfoType  = 2
	typeTensor     = 1
	tensorElem     = 1
	tensorShape    = 2
	shapeDim       = 1
	dimValue       = 1
	dimParam       = 2
)

// elemTypes are the numbers of TensorProto.DataType.
var elemTypes = map[uint64]string{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
	10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16"}

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
			name, kind, err := p.value(int64(v))
			if kind != "" {
				if s.types == nil {
					s.types = map[string]string{}
				}
				s.types[name] = kind
			}
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

// value reads the name of an input or output, and its type where it is said.
func (p *protoReader) value(size int64) (name, kind string, err error) {
	err = p.fields(p.pos+size, func(field, wire int, v uint64) (err error) {
		switch {
		case field == valueInfoName && wire == wireBytes:
			name, err = p.text(v)
		case field == valueInfoType && wire == wireBytes:
			kind, err = p.tensorType(int64(v))
		}
		return err
	})
	return name, kind, err
}

func (p *protoReader) text(size uint64) (string, error) {
	if size > 4096 {
		return "", fmt.Errorf("a name of %d bytes", size)
	}
	b := make([]byte, size)
	_, err := io.ReadFull(p.br, b)
	p.pos += int64(size)
	return string(b), err
}

// tensorType reads the type of a tensor; other types are "".
func (p *protoReader) tensorType(size int64) (kind string, err error) {
	var dims []string
	shaped := false
	err = p.fields(p.pos+size, func(field, wire int, v uint64) error {
		if field != typeTensor || wire != wireBytes {
			return nil
		}
		return p.fields(p.pos+int64(v), func(field, wire int, v uint64) (err error) {
			switch {
			case field == tensorElem && wire == wireVarint:
				kind = elemTypes[v]
			case field == tensorShape && wire == wireBytes:
				shaped = true
				dims, err = p.shape(int64(v))
			}
			return err
		})
	})
	if kind != "" && shaped {
		kind += "[" + strings.Join(dims, ",") + "]"
	}
	return kind, err
}

func (p *protoReader) shape(size int64) (dims []string, err error) {
	err = p.fields(p.pos+size, func(field, wire int, v uint64) error {
		if field != shapeDim || wire != wireBytes {
			return nil
		}
		dim := "?"
		err := p.fields(p.pos+int64(v), func(field, wire int, v uint64) (err error) {
			switch {
			case field == dimValue && wire == wireVarint:
				dim = strconv.FormatInt(int64(v), 10)
			case field == dimParam && wire == wireBytes:
				dim, err = p.text(v)
			}
			return err
		})
		if dims = append(dims, dim); len(dims) > 64 {
			return errors.New("more than 64 dimensions")
		}
		return err
	})
	return dims, err
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
