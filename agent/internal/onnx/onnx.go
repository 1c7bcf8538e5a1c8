// Package onnx reads what an ONNX model takes and gives, and nothing else of
// it: weights are skipped, so that a model of gigabytes costs a buffer. It
// imports nothing of the agent; what writes server configuration imports it.
package onnx

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"google.golang.org/protobuf/encoding/protowire"
)

// ErrMalformed is returned for what is no ONNX model.
var ErrMalformed = errors.New("not an ONNX model")

// Tensor is an input or output. A size of -1 is the caller's choice.
type Tensor struct {
	Name     string
	Datatype string // as in the KServe v2 protocol
	Shape    []int64
}

// Signature is what a model takes and gives.
type Signature struct {
	Inputs, Outputs []Tensor
}

// Field numbers of onnx.proto.
const (
	modelGraph                            = 7
	graphInitializer, graphInput          = 5, 11
	graphOutput                           = 12
	tensorName                            = 8
	valueName, valueType                  = 1, 2
	typeTensor                            = 1
	tensorElem, tensorShape               = 1, 2
	shapeDim, dimValue                    = 1, 1
	maxName, maxValue, maxTensors, maxDim = 4 << 10, 64 << 10, 4096, 64
)

var datatypes = map[uint64]string{
	1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
	10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 16: "BF16",
}

// ReadFile reads the signature of a model file.
func ReadFile(name string) (Signature, error) {
	f, err := os.Open(name)
	if err != nil {
		return Signature{}, err
	}
	defer f.Close()
	s, err := Read(f)
	if err != nil {
		return Signature{}, fmt.Errorf("read %s: %w", name, err)
	}
	return s, nil
}

// Read reads the signature of a model.
func Read(r io.Reader) (Signature, error) {
	var s Signature
	p := &parser{r: bufio.NewReaderSize(r, 64<<10)}
	found := false
	weights := map[string]bool{}
	err := p.fields(-1, func(num protowire.Number, size int64) error {
		if num != modelGraph {
			return p.skip(size)
		}
		found = true
		return p.fields(size, func(num protowire.Number, size int64) error { return p.graph(&s, weights, num, size) })
	})
	if err != nil {
		return Signature{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if !found {
		return Signature{}, fmt.Errorf("%w: it has no graph", ErrMalformed)
	}
	// Older models list their weights as inputs too.
	inputs := s.Inputs[:0]
	for _, t := range s.Inputs {
		if !weights[t.Name] {
			inputs = append(inputs, t)
		}
	}
	s.Inputs = inputs
	if len(s.Outputs) == 0 {
		return Signature{}, fmt.Errorf("%w: its graph has no output", ErrMalformed)
	}
	return s, nil
}

// parser reads fields from a stream.
type parser struct {
	r  *bufio.Reader
	at int64
}

// fields calls f for each field of the next size bytes (all, when negative); f
// reads or skips the bytes of a length-delimited one. Others are skipped.
func (p *parser) fields(size int64, f func(num protowire.Number, size int64) error) error {
	end := p.at + size
	for size < 0 || p.at < end {
		tag, err := p.varint()
		if size < 0 && errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		num, typ := protowire.DecodeTag(tag)
		if num < 1 {
			return errors.New("field number 0")
		}
		switch typ {
		case protowire.VarintType:
			_, err = p.varint()
		case protowire.Fixed32Type:
			err = p.skip(4)
		case protowire.Fixed64Type:
			err = p.skip(8)
		case protowire.BytesType:
			err = p.bytes(end, size >= 0, num, f)
		default:
			err = fmt.Errorf("wire type %d", typ)
		}
		if err != nil {
			return err
		}
	}
	if size >= 0 && p.at != end {
		return errors.New("a field is longer than what holds it")
	}
	return nil
}

func (p *parser) bytes(end int64, bounded bool, num protowire.Number, f func(protowire.Number, int64) error) error {
	n, err := p.varint()
	if err != nil {
		return noEOF(err)
	}
	if n > 1<<40 || bounded && int64(n) > end-p.at {
		return errors.New("a field is longer than what holds it")
	}
	want := p.at + int64(n)
	if err := f(num, int64(n)); err != nil {
		return noEOF(err)
	}
	if p.at != want {
		return errors.New("a field is not what it should be")
	}
	return nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (p *parser) varint() (uint64, error) {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		b, err := p.r.ReadByte()
		if err != nil {
			if shift > 0 {
				err = noEOF(err)
			}
			return 0, err
		}
		p.at++
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, errors.New("a number is too long")
}

func (p *parser) skip(n int64) error {
	for n > 0 {
		k, err := p.r.Discard(int(min(n, 1<<30)))
		p.at += int64(k)
		n -= int64(k)
		if err != nil {
			return noEOF(err)
		}
	}
	return nil
}

// read takes a field into memory.
func (p *parser) read(n, limit int64) ([]byte, error) {
	if n > limit {
		return nil, fmt.Errorf("a field of %d bytes, at most %d", n, limit)
	}
	b := make([]byte, n)
	k, err := io.ReadFull(p.r, b)
	p.at += int64(k)
	return b, noEOF(err)
}

func (p *parser) graph(s *Signature, weights map[string]bool, num protowire.Number, size int64) error {
	if len(s.Inputs)+len(s.Outputs) > maxTensors {
		return fmt.Errorf("more than %d inputs and outputs", maxTensors)
	}
	switch num {
	case graphInitializer:
		return p.fields(size, func(num protowire.Number, size int64) error {
			if num != tensorName {
				return p.skip(size)
			}
			name, err := p.read(size, maxName)
			weights[string(name)] = true
			return err
		})
	case graphInput, graphOutput:
		raw, err := p.read(size, maxValue)
		if err != nil {
			return err
		}
		t, err := valueInfo(raw)
		if err != nil {
			return err
		}
		if num == graphInput {
			s.Inputs = append(s.Inputs, t)
		} else {
			s.Outputs = append(s.Outputs, t)
		}
		return nil
	}
	return p.skip(size)
}

// each calls f for the fields of a message in memory.
func each(b []byte, f func(num protowire.Number, v uint64, sub []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		var v uint64
		var sub []byte
		switch typ {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			sub, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if err := f(num, v, sub); err != nil {
			return err
		}
	}
	return nil
}

func valueInfo(raw []byte) (Tensor, error) {
	t := Tensor{Shape: []int64{}}
	err := each(raw, func(num protowire.Number, _ uint64, sub []byte) error {
		switch num {
		case valueName:
			t.Name = string(sub)
		case valueType:
			return each(sub, func(num protowire.Number, _ uint64, sub []byte) error {
				if num != typeTensor {
					return nil
				}
				return tensorType(&t, sub)
			})
		}
		return nil
	})
	if err == nil && t.Name == "" {
		err = errors.New("an input or output without a name")
	}
	return t, err
}

func tensorType(t *Tensor, raw []byte) error {
	return each(raw, func(num protowire.Number, v uint64, sub []byte) error {
		switch num {
		case tensorElem:
			t.Datatype = datatypes[v]
		case tensorShape:
			return each(sub, func(num protowire.Number, _ uint64, sub []byte) error {
				if num != shapeDim {
					return nil
				}
				if len(t.Shape) >= maxDim {
					return fmt.Errorf("more than %d dimensions", maxDim)
				}
				size := int64(-1)
				err := each(sub, func(num protowire.Number, v uint64, _ []byte) error {
					if num == dimValue && v > 0 && v < 1<<40 {
						size = int64(v)
					}
					return nil
				})
				t.Shape = append(t.Shape, size)
				return err
			})
		}
		return nil
	})
}
