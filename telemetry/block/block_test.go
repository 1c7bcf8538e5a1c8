package block

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"hash/crc32"
	"io"
	"math"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/telemetry"
)

var update = flag.Bool("update", false, "write testdata/vectors.json anew")

var nans = cmpopts.EquateNaNs()

// quantised is what decoding must give: every value at its step.
func quantised(b *Block) *Block {
	out := &Block{Times: b.Times}
	for _, c := range b.Columns {
		q := Column{Series: c.Series, Scale: c.Scale}
		for _, v := range c.Values {
			n, ok := c.Scale.Quantise(v)
			if v = math.NaN(); ok {
				v = c.Scale.Value(n)
			}
			q.Values = append(q.Values, v)
		}
		out.Columns = append(out.Columns, q)
	}
	return out
}

func holding(s *Schema) func(SchemaID) *Schema {
	return func(id SchemaID) *Schema {
		if id == s.ID() {
			return s
		}
		return nil
	}
}

// drawBlock draws blocks of every shape: constants, ramps, noise, jumps to the
// ends of the range, gaps, clocks that jump.
func drawBlock(t *rapid.T) *Block {
	slots := rapid.IntRange(1, 70).Draw(t, "slots")
	b := &Block{Times: make([]int64, slots)}
	at := rapid.Int64Range(-maxTime/2, maxTime/2).Draw(t, "start")
	for i := range b.Times {
		b.Times[i] = at
		at += rapid.OneOf(rapid.Just(int64(1000)), rapid.Int64Range(-5, 2000), rapid.Just(int64(1780000000000))).Draw(t, "dt")
		at = max(-maxTime, min(maxTime, at))
	}
	for i := range rapid.IntRange(1, 6).Draw(t, "columns") {
		c := Column{
			Series: telemetry.NewSeries("m", "i", telemetry.Index(i)),
			Scale:  rapid.SampledFrom([]telemetry.Scale{{Mul: 1, Div: 1}, {Mul: 1, Div: 8}, {Mul: 1 << 20, Div: 1}, {Mul: 1, Div: 255}}).Draw(t, "scale"),
		}
		value := rapid.OneOf(
			rapid.Just(42.0), rapid.Float64Range(0, 100), rapid.Float64Range(-1e15, 1e15),
			rapid.SampledFrom([]float64{math.NaN(), math.Inf(1), 0, 1 << 52, -(1 << 52), 1e300}))
		v := value.Draw(t, "first")
		for range slots {
			if rapid.IntRange(0, 2).Draw(t, "keep") == 0 {
				v = value.Draw(t, "value")
			}
			c.Values = append(c.Values, v)
		}
		b.Columns = append(b.Columns, c)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := drawBlock(rt)
		inline := rapid.Bool().Draw(rt, "inline")
		data, schema, err := Encode(b, inline)
		if err != nil {
			rt.Fatal(err)
		}
		lookup := holding(schema)
		if inline {
			lookup = nil
		}
		got, err := Decode(data, lookup)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(quantised(b), got, nans); diff != "" {
			rt.Fatal(diff)
		}
		again, _, err := Encode(got, inline)
		if err != nil || !bytes.Equal(again, data) {
			rt.Fatalf("encoding what was decoded gives other bytes (%v)", err)
		}
	})
}

func sampleBlock() *Block {
	b := &Block{}
	for i := range 60 {
		b.Times = append(b.Times, 1780000000000+int64(i)*1000)
	}
	add := func(name string, f func(i int) float64, labels ...string) {
		m, _ := telemetry.Lookup(name)
		c := Column{Series: telemetry.NewSeries(name, labels...), Scale: m.Scale}
		for i := range 60 {
			c.Values = append(c.Values, f(i))
		}
		b.Columns = append(b.Columns, c)
	}
	add(telemetry.Temperature, func(i int) float64 { return 45 + float64(i*i%7)/8 }, "zone", "cpu")
	add(telemetry.Temperature, func(int) float64 { return math.NaN() }, "zone", "gpu")
	add(telemetry.GPUUtilization, func(i int) float64 { return float64(i*37%100) / 100 })
	add(telemetry.Uptime, func(i int) float64 { return float64(1000 + i) })
	add(telemetry.MemoryTotal, func(int) float64 { return 7620 << 20 })
	add(telemetry.EMCUtilization, func(i int) float64 {
		if i > 20 && i < 30 {
			return math.NaN()
		}
		return 0.25
	})
	b.Sort()
	return b
}

// TestEveryDamageIsFound flips every bit and cuts at every length.
func TestEveryDamageIsFound(t *testing.T) {
	data, schema, err := Encode(sampleBlock(), true)
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(data) * 8 {
		bad := bytes.Clone(data)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := Decode(bad, holding(schema)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d flipped: %v", i, err)
		}
	}
	for i := range data {
		if _, err := Decode(data[:i], holding(schema)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v", i, err)
		}
	}
	// With a right checksum the frame must still be used up.
	for _, tail := range [][]byte{{0}, {0xff}, {0, 0, 0, 0, 0}} {
		if _, err := Decode(seal(append(bytes.Clone(data[:len(data)-4]), tail...)), nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes more: %v", len(tail), err)
		}
	}
}

// seal appends the checksum that a hostile sender would.
func seal(body []byte) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(body), crc32.Checksum(body, castagnoli))
}

func TestHostileClaims(t *testing.T) {
	head := []byte{'S', 'K', 'B', 1, 1}
	inline := func(schema []byte, rest ...byte) []byte {
		out := binary.AppendUvarint(bytes.Clone(head), uint64(len(schema)))
		return append(append(out, schema...), rest...)
	}
	columns := binary.AppendUvarint(nil, 1<<32)
	one, err := NewSchema([]Spec{{telemetry.NewSeries("m"), telemetry.Scale{Mul: 1, Div: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string][]byte{
		"2^32 columns":       inline(columns, 1, 0, 0, 0),
		"4096 of 3 bytes":    inline(binary.AppendUvarint(nil, 4096), 1, 0, 0, 0),
		"no slots":           inline(one.bytes, 0, 0, 0, 0),
		"many slots":         inline(one.bytes, 0xff, 0xff, 0x7f, 0, 0, 0),
		"schema beyond end":  append(bytes.Clone(head), 0xff, 0x7f, 1, 2),
		"long number":        append(bytes.Clone(head), 0x80, 0x00),
		"step out of bounds": inline(one.bytes, 2, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0),
		"flags":              {'S', 'K', 'B', 1, 2, 0, 0, 0},
		"version":            {'S', 'K', 'B', 2, 0, 0, 0, 0},
		"zeros":              inline(one.bytes, append([]byte{60, 0, 0}, make([]byte, 1000)...)...),
	}
	for name, body := range tests {
		if _, err := Decode(seal(body), nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Decode(make([]byte, MaxBytes+1), nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too many bytes: %v", err)
	}
}

func TestUnknownSchema(t *testing.T) {
	b := sampleBlock()
	data, schema, err := Encode(b, false)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Decode(data, nil); !errors.Is(err, ErrUnknownSchema) {
		t.Errorf("without schema: %v", err)
	}
	h, err := ReadHeader(data)
	if err != nil || h.Schema != schema.ID() || h.Slots != 60 || h.Inline != nil {
		t.Errorf("header %+v, %v", h, err)
	}
	again, err := ParseSchema(schema.Bytes())
	if err != nil || again.ID() != schema.ID() {
		t.Fatalf("schema does not survive its bytes: %v", err)
	}
	if _, err := Decode(data, holding(again)); err != nil {
		t.Error(err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(*Block){
		"no slots":     func(b *Block) { b.Times = nil },
		"no columns":   func(b *Block) { b.Columns = nil },
		"unequal":      func(b *Block) { b.Columns[0].Values = b.Columns[0].Values[1:] },
		"twice":        func(b *Block) { b.Columns[1].Series = b.Columns[0].Series },
		"out of order": func(b *Block) { b.Columns[0], b.Columns[1] = b.Columns[1], b.Columns[0] },
		"no scale":     func(b *Block) { b.Columns[0].Scale = telemetry.Scale{} },
		"bad name":     func(b *Block) { b.Columns[0].Series.Name = "0" },
		"time":         func(b *Block) { b.Times[0] = math.MaxInt64 },
	} {
		b := sampleBlock()
		change(b)
		if _, _, err := Encode(b, true); !errors.Is(err, ErrBadBlock) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := &Block{Times: make([]int64, MaxSlots+1), Columns: []Column{{}}}
	if _, _, err := Encode(b, true); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too many slots: %v", err)
	}
}

func TestBuilder(t *testing.T) {
	var x Builder
	at := time.UnixMilli(5000)
	temp := func(at time.Time, zone string, v float64) telemetry.Reading {
		return telemetry.Reading{Series: telemetry.NewSeries(telemetry.Temperature, "zone", zone), Time: at, Value: v}
	}
	if _, ok := x.Take(); ok {
		t.Error("an empty builder gives a block")
	}
	x.Add([]telemetry.Reading{temp(at, "gpu", 40), temp(at, "cpu", 41)})
	x.Add([]telemetry.Reading{temp(at.Add(time.Second), "cpu", 42)})
	dropped := x.Add([]telemetry.Reading{temp(at.Add(2*time.Second), "tj", 43), {Series: telemetry.Series{Name: "0"}, Time: at}})
	if dropped != 1 || x.Slots() != 3 {
		t.Errorf("%d dropped, %d slots", dropped, x.Slots())
	}
	got, ok := x.Take()
	if !ok || x.Slots() != 0 {
		t.Fatal("Take")
	}
	nan, scale := math.NaN(), telemetry.Scale{Mul: 1, Div: 8}
	want := &Block{Times: []int64{5000, 6000, 7000}, Columns: []Column{
		{telemetry.NewSeries(telemetry.Temperature, "zone", "cpu"), scale, []float64{41, 42, nan}},
		{telemetry.NewSeries(telemetry.Temperature, "zone", "gpu"), scale, []float64{40, nan, nan}},
		{telemetry.NewSeries(telemetry.Temperature, "zone", "tj"), scale, []float64{nan, nan, 43}},
	}}
	if diff := cmp.Diff(want, got, nans); diff != "" {
		t.Error(diff)
	}
	if got.Samples() != 4 {
		t.Errorf("%d samples", got.Samples())
	}
	data, _, err := Encode(got, true)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Decode(data, nil)
	if err != nil || cmp.Diff(want, back, nans) != "" {
		t.Errorf("%v %v", back, err)
	}
}

// vector is one golden block, with values as quantised steps.
type vector struct {
	Name    string         `json:"name"`
	Inline  bool           `json:"inline"`
	Schema  string         `json:"schema_hex"`
	Block   string         `json:"block_hex"`
	Times   []int64        `json:"times_ms"`
	Columns []vectorColumn `json:"columns"`
}

type vectorColumn struct {
	Series string   `json:"series"`
	Mul    uint32   `json:"mul"`
	Div    uint32   `json:"div"`
	Steps  []*int64 `json:"steps"` // null is absent
}

// TestGoldenVectors holds the bytes of the format. Whoever changes them makes
// a new version.
func TestGoldenVectors(t *testing.T) {
	const file = "testdata/vectors.json"
	if *update {
		writeVectors(t, file)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors) < 5 {
		t.Fatalf("%d vectors", len(vectors))
	}
	for _, v := range vectors {
		want := &Block{Times: v.Times}
		for _, c := range v.Columns {
			s, err := telemetry.ParseSeries(c.Series)
			if err != nil {
				t.Fatal(err)
			}
			col := Column{Series: s, Scale: telemetry.Scale{Mul: c.Mul, Div: c.Div}}
			for _, n := range c.Steps {
				x := math.NaN()
				if n != nil {
					x = col.Scale.Value(*n)
				}
				col.Values = append(col.Values, x)
			}
			want.Columns = append(want.Columns, col)
		}
		data, schema, err := Encode(want, v.Inline)
		if err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		if got := hex.EncodeToString(data); got != v.Block {
			t.Errorf("%s: encodes to\n%s, want\n%s", v.Name, got, v.Block)
		}
		if got := hex.EncodeToString(schema.Bytes()); got != v.Schema {
			t.Errorf("%s: schema %s, want %s", v.Name, got, v.Schema)
		}
		bytes, err := hex.DecodeString(v.Block)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(bytes, holding(schema))
		if err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		if diff := cmp.Diff(want, got, nans); diff != "" {
			t.Errorf("%s: %s", v.Name, diff)
		}
	}
}

func writeVectors(t *testing.T, file string) {
	blocks := map[string]*Block{"sample": sampleBlock()}
	one := func(scale telemetry.Scale, times []int64, values ...float64) *Block {
		return &Block{Times: times, Columns: []Column{{telemetry.NewSeries("m", "label", "a\"b"), scale, values}}}
	}
	whole := telemetry.Scale{Mul: 1, Div: 1}
	blocks["one value"] = one(whole, []int64{0}, 7)
	blocks["clock jumps"] = one(telemetry.Scale{Mul: 1, Div: 8}, []int64{0, 1000, 1780000000000, 1780000001003}, -1, math.NaN(), 0.125, 2)
	blocks["ends of the range"] = one(whole, []int64{5, 6, 7, 9}, 1<<52, -(1 << 52), 0, 1)
	blocks["ramp"] = one(whole, []int64{-3000, -2000, -1000, 0, 1000}, 10, 13, 16, 19, 23)
	var out []vector
	for _, name := range []string{"sample", "one value", "clock jumps", "ends of the range", "ramp"} {
		for _, inline := range []bool{true, false} {
			b := blocks[name]
			data, schema, err := Encode(b, inline)
			if err != nil {
				t.Fatal(err)
			}
			v := vector{Name: name, Inline: inline, Schema: hex.EncodeToString(schema.Bytes()), Block: hex.EncodeToString(data), Times: b.Times}
			for _, c := range b.Columns {
				col := vectorColumn{Series: c.Series.String(), Mul: c.Scale.Mul, Div: c.Scale.Div}
				for _, x := range c.Values {
					var n *int64
					if q, ok := c.Scale.Quantise(x); ok {
						n = &q
					}
					col.Steps = append(col.Steps, n)
				}
				v.Columns = append(v.Columns, col)
			}
			out = append(out, v)
		}
	}
	text, err := json.MarshalIndent(out, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, inline := range []bool{true, false} {
		data, _, err := Encode(sampleBlock(), inline)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data[:len(data)-4])
	}
	_, schema, err := Encode(sampleBlock(), true)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		// The checksum is made right, so that the fuzzer reaches what is behind.
		data := seal(body)
		h, err := ReadHeader(data)
		if err != nil {
			return
		}
		b, err := Decode(data, holding(schema))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnknownSchema) && !errors.Is(err, ErrTooLarge) {
				t.Fatal(err)
			}
			return
		}
		if len(b.Times) != h.Slots || len(b.Times)*len(b.Columns) > MaxCells {
			t.Fatalf("%d slots, header says %d", len(b.Times), h.Slots)
		}
		again, _, err := Encode(b, true)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Decode(again, nil)
		if err != nil || cmp.Diff(b, back, nans) != "" {
			t.Fatalf("what was decoded does not survive: %v", err)
		}
	})
}

func FuzzParseSchema(f *testing.F) {
	_, schema, err := Encode(sampleBlock(), true)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(schema.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSchema(data)
		if err == nil && !bytes.Equal(s.Bytes(), data) {
			t.Fatal("a schema has two encodings")
		}
	})
}

func TestReaderNeedsRightRoom(t *testing.T) {
	data, _, err := Encode(sampleBlock(), true)
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(data, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Next(make([]float64, 3)); err == nil {
		t.Error("a short slice was taken")
	}
	values := make([]float64, len(r.Times()))
	for range r.Schema().Specs() {
		if err := r.Next(values); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := r.Next(values); err != io.EOF {
			t.Errorf("after the last column: %v", err)
		}
	}
}
