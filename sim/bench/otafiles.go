package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/chunk"
)

// otaCase is one kind of update.
type otaCase struct {
	name string
	make func() (base, target []byte)
}

const otaLayers = 20

// otaCases are files of about n bytes; the same every time.
func otaCases(n int) []otaCase {
	return []otaCase{
		{"moved_5pct_fp16", func() (base, target []byte) { return weightFiles(n, 2, moved(0.05)) }},
		{"moved_5pct_fp32", func() (base, target []byte) { return weightFiles(n, 4, moved(0.05)) }},
		{"layer_1_of_20_fp32", func() (base, target []byte) {
			return weightFiles(n, 4, func(r *rand.Rand, layer int, w float64) float64 {
				if layer == 7 {
					return r.NormFloat64() * 0.05
				}
				return w
			})
		}},
		{"new_bias_fp32", func() (base, target []byte) {
			at := -1
			return weightFiles(n, 4, func(r *rand.Rand, layer int, w float64) float64 {
				if layer != otaLayers-1 {
					return w
				}
				if at++; at >= 1000 {
					return w
				}
				return w + r.NormFloat64()*0.01
			})
		}},
		{"container_rebuild", func() (base, target []byte) { return containerFiles(n) }},
	}
}

func moved(share float64) func(*rand.Rand, int, float64) float64 {
	return func(r *rand.Rand, _ int, w float64) float64 {
		if r.Float64() < share {
			return w + r.NormFloat64()*5e-5
		}
		return w
	}
}

// weightFiles are two safetensors files of 20 layers; change says how each
// weight moves.
func weightFiles(n, width int, change func(r *rand.Rand, layer int, w float64) float64) (base, target []byte) {
	per := n / otaLayers / width
	type tensor struct {
		DType   string `json:"dtype"`
		Shape   []int  `json:"shape"`
		Offsets [2]int `json:"data_offsets"`
	}
	head := map[string]tensor{}
	for l := range otaLayers {
		head[fmt.Sprintf("layers.%d.weight", l)] = tensor{fmt.Sprintf("F%d", 8*width), []int{per}, [2]int{l * per * width, (l + 1) * per * width}}
	}
	text, err := json.Marshal(head)
	if err != nil {
		panic(err) // of a map of our own
	}
	base = binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
	base = append(base, text...)
	target = bytes.Clone(base)
	init, moves := rand.New(rand.NewPCG(1, 1)), rand.New(rand.NewPCG(2, 2))
	put := func(b []byte, w float64) []byte {
		if width == 2 {
			return binary.LittleEndian.AppendUint16(b, half(float32(w)))
		}
		return binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(w)))
	}
	for l := range otaLayers {
		for range per {
			w := init.NormFloat64() * 0.05
			base = put(base, w)
			target = put(target, change(moves, l, w))
		}
	}
	return base, target
}

// half rounds to fp16; what is too small becomes zero.
func half(f float32) uint16 {
	b := math.Float32bits(f)
	sign := uint16(b >> 16 & 0x8000)
	exp := int(b>>23&0xff) - 127 + 15
	if exp <= 0 {
		return sign
	}
	if exp >= 31 {
		return sign | 0x7c00
	}
	// Rounding up may carry into the exponent, which is right.
	return sign | uint16(exp)<<10 + uint16((b&0x7fffff+0x1000)>>13)
}

// containerFiles are a layer of 100 parts and its rebuild: 8 of them are other
// bytes, and 4 KiB come in between.
func containerFiles(n int) (base, target []byte) {
	part := n / 100
	noise := func(seed byte, n int) []byte {
		b := make([]byte, n)
		rand.NewChaCha8([32]byte{seed}).Read(b)
		return b
	}
	base = noise(1, 100*part)
	target = bytes.Clone(base)
	for i := range 8 {
		copy(target[(3+12*i)*part:], noise(byte(10+i), part))
	}
	return base, slices.Concat(target[:30*part], noise(3, 4096), target[30*part:])
}

// chunkSize is what a store of compressed chunks costs, as casync and desync
// keep them: the index of 40 bytes a chunk, and each missing chunk by zstd.
func chunkSize(ctx context.Context, base, target []byte) (int64, error) {
	have, err := chunk.Build(ctx, ota.DigestOf(base), bytes.NewReader(base))
	if err != nil {
		return 0, err
	}
	want, err := chunk.Build(ctx, ota.DigestOf(target), bytes.NewReader(target))
	if err != nil {
		return 0, err
	}
	enc, err := zstd.NewWriter(io.Discard, zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		return 0, fmt.Errorf("compress chunks: %w", err)
	}
	seen := map[[32]byte]bool{}
	for _, c := range have.Chunks {
		seen[c.Sum] = true
	}
	n, at := int64(40*len(want.Chunks)), 0
	for _, c := range want.Chunks {
		if !seen[c.Sum] {
			seen[c.Sum] = true
			n += int64(len(enc.EncodeAll(target[at:at+int(c.Len)], nil)))
		}
		at += int(c.Len)
	}
	return n, enc.Close()
}
