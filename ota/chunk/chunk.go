// Package chunk saves bytes on the way to a device: content-defined chunk
// indexes, patches against what is installed, and the plan that chooses the
// cheapest way.
//
// Invariants: what comes out is right or it is an error, for every chunk is
// hashed against the index, every base before it is used, and the caller hashes
// the whole; memory use does not depend on the size of an artifact but for its
// index (at most MaxIndex) and the table of a patch; the parsers are strict and
// bounded, for what they read comes from outside; Plan is pure. The formats are
// in FORMAT.md. agent, controlplane and sim import it.
package chunk

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	chunkers "github.com/PlakarKorp/go-cdc-chunkers"
	_ "github.com/PlakarKorp/go-cdc-chunkers/chunkers/fastcdc" // registers the algorithm

	"github.com/skein-fleet/skein/ota"
)

// Sizes of chunks, and what an index is worth.
const (
	MinChunk  = 16 << 10
	MeanChunk = 64 << 10
	MaxChunk  = 256 << 10
	// MinArtifact is the size below which an artifact has no index: a device
	// asks for it whole.
	MinArtifact = 256 << 10
	// MaxIndex is the largest index; an artifact that would have a larger one
	// has none.
	MaxIndex = 8 << 20
)

// What this package returns, wrapped.
var (
	ErrIndex = errors.New("malformed chunk index")
	ErrPatch = errors.New("malformed patch")
	// ErrExpands is returned for a block that holds more than it says.
	ErrExpands = errors.New("block of a patch expands beyond its length")
	ErrBase    = errors.New("patch is for another base")
	ErrChunk   = errors.New("chunk is not what the index says")
	// ErrTooMany is returned by Build for what would have an index above MaxIndex.
	ErrTooMany = errors.New("too many chunks for an index")
)

const (
	indexMagic  = "skeinci1"
	indexHead   = len(indexMagic) + sha256.Size + 8 + 4
	indexEntry  = sha256.Size + 4
	maxChunks   = (MaxIndex - indexHead) / indexEntry
	algorithm   = "fastcdc-v1.0.0"
	mediaPrefix = "application/vnd.skein."
)

// Media types of what this package makes.
const (
	MediaIndex = mediaPrefix + "chunks.v1"
	MediaPatch = mediaPrefix + "patch.v1"
)

// Chunk is one piece of an artifact.
type Chunk struct {
	Sum [sha256.Size]byte
	Len uint32
}

// Index lists the chunks of an artifact in order; together they are all of it.
type Index struct {
	Artifact ota.Digest
	Size     int64
	Chunks   []Chunk
}

// Build reads the artifact d to its end and returns its index. It does not
// check that r holds d; its caller hashes what passes.
func Build(ctx context.Context, d ota.Digest, r io.Reader) (*Index, error) {
	c, err := chunkers.NewChunker(algorithm, r, &chunkers.ChunkerOpts{MinSize: MinChunk, NormalSize: MeanChunk, MaxSize: MaxChunk})
	if err != nil {
		return nil, fmt.Errorf("make chunks of %s: %w", d.Short(), err)
	}
	ix := &Index{Artifact: d}
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		b, err := c.Next()
		if len(b) > 0 {
			if len(ix.Chunks) == maxChunks {
				return nil, fmt.Errorf("make chunks of %s: %w: more than %d", d.Short(), ErrTooMany, maxChunks)
			}
			ix.Chunks = append(ix.Chunks, Chunk{Sum: sha256.Sum256(b), Len: uint32(len(b))})
			ix.Size += int64(len(b))
		}
		if errors.Is(err, io.EOF) {
			return ix, nil
		}
		if err != nil {
			return nil, fmt.Errorf("make chunks of %s at %d: %w", d.Short(), ix.Size, err)
		}
	}
}

// Marshal returns the one form of an index.
func (ix *Index) Marshal() []byte {
	b := make([]byte, 0, indexHead+len(ix.Chunks)*indexEntry)
	b = append(b, indexMagic...)
	b = append(b, ix.Artifact.Sum()...)
	b = binary.BigEndian.AppendUint64(b, uint64(ix.Size))
	b = binary.BigEndian.AppendUint32(b, uint32(len(ix.Chunks)))
	for _, c := range ix.Chunks {
		b = append(b, c.Sum[:]...)
		b = binary.BigEndian.AppendUint32(b, c.Len)
	}
	return b
}

// ParseIndex reads an index: its chunks cover the artifact exactly, none is
// larger than MaxChunk, and none but the last is smaller than MinChunk.
func ParseIndex(b []byte) (*Index, error) {
	bad := func(format string, args ...any) (*Index, error) {
		return nil, fmt.Errorf("%w: %s", ErrIndex, fmt.Sprintf(format, args...))
	}
	if len(b) < indexHead || len(b) > MaxIndex || !bytes.HasPrefix(b, []byte(indexMagic)) {
		return bad("%d bytes that do not begin with %s", len(b), indexMagic)
	}
	rest := b[len(indexMagic):]
	ix := &Index{Artifact: ota.DigestFromSum([sha256.Size]byte(rest)), Size: int64(binary.BigEndian.Uint64(rest[sha256.Size:]))}
	n := int64(binary.BigEndian.Uint32(rest[sha256.Size+8:]))
	rest = rest[sha256.Size+12:]
	if n*int64(indexEntry) != int64(len(rest)) {
		return bad("%d chunks in %d bytes", n, len(rest))
	}
	ix.Chunks = make([]Chunk, n)
	covered := int64(0)
	for i := range ix.Chunks {
		c := Chunk{Sum: [sha256.Size]byte(rest), Len: binary.BigEndian.Uint32(rest[sha256.Size:])}
		if c.Len == 0 || c.Len > MaxChunk || c.Len < MinChunk && int64(i) < n-1 {
			return bad("chunk %d of %d bytes, want %d to %d", i, c.Len, MinChunk, MaxChunk)
		}
		covered += int64(c.Len)
		ix.Chunks[i] = c
		rest = rest[indexEntry:]
	}
	if covered != ix.Size {
		return bad("chunks cover %d bytes of %d", covered, ix.Size)
	}
	return ix, nil
}

// place is where a chunk lies: in which artifact, as which chunk, at which byte.
type place struct {
	which, chunk int32
	offset       int64
}

// places finds chunks by their sum. It is sorted, not a map, which would take
// three times the memory.
type places struct {
	indexes []*Index
	sorted  []place
}

func findable(indexes ...*Index) places {
	n := 0
	for _, ix := range indexes {
		if ix != nil {
			n += len(ix.Chunks)
		}
	}
	p := places{indexes, make([]place, 0, n)}
	for which, ix := range indexes {
		if ix == nil {
			continue
		}
		at := int64(0)
		for i, c := range ix.Chunks {
			p.sorted = append(p.sorted, place{int32(which), int32(i), at})
			at += int64(c.Len)
		}
	}
	slices.SortFunc(p.sorted, func(a, b place) int {
		return cmp.Or(bytes.Compare(p.sum(a), p.sum(b)), cmp.Compare(a.which, b.which), cmp.Compare(a.chunk, b.chunk))
	})
	return p
}

func (p places) sum(at place) []byte { return p.indexes[at.which].Chunks[at.chunk].Sum[:] }

func (p places) find(c *Chunk) (place, bool) {
	i, ok := slices.BinarySearchFunc(p.sorted, c, func(at place, c *Chunk) int { return bytes.Compare(p.sum(at), c.Sum[:]) })
	if !ok {
		return place{}, false
	}
	at := p.sorted[i]
	return at, p.indexes[at.which].Chunks[at.chunk].Len == c.Len
}

// Shared returns how many bytes of ix lie in the others already.
func (ix *Index) Shared(others ...*Index) int64 {
	p, n := findable(others...), int64(0)
	for i := range ix.Chunks {
		if _, ok := p.find(&ix.Chunks[i]); ok {
			n += int64(ix.Chunks[i].Len)
		}
	}
	return n
}
