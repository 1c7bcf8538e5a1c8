package onnx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
)

func sample() *Model {
	t := FloatTensor("", []float32{1, 2}, 2)
	return &Model{
		IRVersion: 8, Opset: 17, Producer: "skein", ProducerVersion: "1", Version: 3, Doc: "a sample",
		Metadata: []Property{{"run", "r-1"}, {"dataset", "sha256:00"}},
		Graph: Graph{
			Name: "g",
			Nodes: []Node{
				{Name: "c", Op: "Conv", Inputs: []string{"x", "w", ""}, Outputs: []string{"y"}, Attrs: []Attr{
					Ints("pads", 1, 1, 1, 1), Int("group", 1), {Name: "f", Type: AttrFloat, F: 0.5},
					{Name: "s", Type: AttrString, S: "NOTSET"}, {Name: "fs", Type: AttrFloats, Floats: []float32{1, -2}},
					{Name: "ss", Type: AttrStrings, Strings: []string{"a", ""}}, {Name: "t", Type: AttrTensor, T: &t},
				}},
				{Name: "r", Op: "Reshape", Inputs: []string{"y", "shape"}, Outputs: []string{"z"}},
			},
			Initializers: []Tensor{
				FloatTensor("w", []float32{1, 2, 3, 4}, 1, 1, 2, 2), IntTensor("shape", []int64{0, -1}, 2),
			},
			Inputs:  []Value{FloatValue("x", -1, 1, 4, 4)},
			Outputs: []Value{FloatValue("z", -1, 25), FloatValue("y", -1, 1, 5, 5)},
		},
	}
}

func TestRoundTrip(t *testing.T) {
	b := sample().Marshal()
	got, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(), got); diff != "" {
		t.Errorf("-wrote +read:\n%s", diff)
	}
	if !bytes.Equal(b, got.Marshal()) {
		t.Error("the second writing differs from the first")
	}
}

// TestOtherEncodings reads what other writers make of the same values: typed
// data in place of raw, packed or not.
func TestOtherEncodings(t *testing.T) {
	tensor := func(fields ...[]byte) Tensor {
		var got Tensor
		if err := got.parse(field{num: 5, typ: protowire.BytesType, raw: bytes.Join(fields, nil)}); err != nil {
			t.Fatal(err)
		}
		return got
	}
	packed := []byte{0, 0, 128, 63, 0, 0, 0, 64}
	one := protowire.AppendFixed32(protowire.AppendTag(nil, 4, protowire.Fixed32Type), 0x3f800000)
	two := protowire.AppendFixed32(protowire.AppendTag(nil, 4, protowire.Fixed32Type), 0x40000000)
	name := putString(nil, 8, "t")
	want := FloatTensor("t", []float32{1, 2}, 2)
	for i, got := range []Tensor{
		tensor(putInt(nil, 1, 2), putInt(nil, 2, 1), putBytes(nil, 4, packed), name),
		tensor(putBytes(nil, 1, []byte{2}), one, putInt(nil, 2, 1), two, name),
	} {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("floats %d: -want +got:\n%s", i, diff)
		}
	}
	got := tensor(putInt(nil, 1, 3), putInt(nil, 2, 7), putBytes(nil, 7, []byte{1, 2, 3}), name)
	if diff := cmp.Diff(IntTensor("t", []int64{1, 2, 3}, 3), got); diff != "" {
		t.Errorf("integers: -want +got:\n%s", diff)
	}
}

func TestRefuses(t *testing.T) {
	change := func(f func(*Model)) []byte {
		m := sample()
		f(m)
		return m.Marshal()
	}
	b := sample().Marshal()
	for want, in := range map[string][]byte{
		"0 graphs":                 nil,
		"field":                    b[:len(b)-3],
		"functions":                putBytes(bytes.Clone(b), 25, nil),
		"2 graphs":                 putBytes(bytes.Clone(b), 7, nil),
		"IR version":               change(func(m *Model) { m.IRVersion = 1 }),
		"there twice":              change(func(m *Model) { m.Metadata[1].Key = "run" }),
		"needs 4 values":           change(func(m *Model) { m.Graph.Initializers[0].Floats = []float32{1} }),
		"too large":                change(func(m *Model) { m.Graph.Initializers[0].Shape = []int64{1 << 20, 1 << 20} }),
		"negative":                 change(func(m *Model) { m.Graph.Initializers[0].Shape = []int64{-1, -4} }),
		"element type 2":           change(func(m *Model) { m.Graph.Initializers[0].Type = 2 }),
		"no name of its own":       change(func(m *Model) { m.Graph.Initializers[0].Name = "shape" }),
		"nothing before it makes":  change(func(m *Model) { m.Graph.Nodes[0].Inputs[0] = "z" }),
		"a second time":            change(func(m *Model) { m.Graph.Nodes[1].Outputs[0] = "y" }),
		"nothing makes the output": change(func(m *Model) { m.Graph.Outputs[0].Name = "q" }),
		"no output":                change(func(m *Model) { m.Graph.Outputs = nil }),
		"at most 4096":             change(func(m *Model) { m.Graph.Nodes[0].Name = strings.Repeat("n", 5000) }),
		"more than 8 dimensions":   change(func(m *Model) { m.Graph.Inputs[0] = FloatValue("x", 1, 1, 1, 1, 1, 1, 1, 1, 1) }),
		"more than 32 attributes":  change(func(m *Model) { m.Graph.Nodes[0].Attrs = make32() }),
		"not UTF-8":                change(func(m *Model) { m.Producer = "\xff" }),
	} {
		_, err := Parse(in)
		if !errors.Is(err, ErrBadModel) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

func make32() []Attr {
	var list []Attr
	for range 33 {
		list = append(list, Int("a", 1))
	}
	return list
}

// TestPromisesCostNothing gives lengths and shapes far beyond the bytes there.
func TestPromisesCostNothing(t *testing.T) {
	huge := protowire.AppendVarint(protowire.AppendTag(nil, 7, protowire.BytesType), 1<<40)
	tensor := putBytes(putInt(putInt(nil, 1, 1<<27), 2, 1), 9, []byte{1, 2, 3, 4})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, b := range [][]byte{huge, putBytes(nil, 7, putBytes(nil, 5, tensor))} {
		if _, err := Parse(b); !errors.Is(err, ErrBadModel) {
			t.Errorf("got %v", err)
		}
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Errorf("%d bytes allocated for %d bytes of input", got, len(huge)+len(tensor))
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample().Marshal())
	f.Add(binary.LittleEndian.AppendUint64([]byte{0x3a, 0x08}, 7))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrBadModel) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		again, err := Parse(m.Marshal())
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v", err)
		}
		if !bytes.Equal(m.Marshal(), again.Marshal()) {
			t.Fatal("a second reading differs")
		}
	})
}
