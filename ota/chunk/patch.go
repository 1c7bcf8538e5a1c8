package chunk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/skein-fleet/skein/ota"
)

const (
	patchMagic   = "skeinpt1"
	patchHead    = len(patchMagic) + 2*(sha256.Size+8)
	patchEntry   = 1 + 1 + 1 + 4 + 8 + 4 + 4
	patchTail    = 4 + 8
	blockSize    = 1 << 20
	windowMargin = 128 << 10
	maxWindow    = blockSize + 2*windowMargin
	maxBlocks    = 1 << 17
	maxPayload   = blockSize + blockSize/8
	dictID       = 1
)

// How a block of the target is made.
const (
	blockCopy   = 1 // the window of the base as it is
	blockStored = 2 // the payload as it is
	blockZstd   = 3
	blockDict   = 4 // zstd with the window of the base as raw dictionary
	blockDelta  = 5 // zstd of packed differences to the window
	blockPlanes = 6 // zstd of planes
)

// Kinds of patches: made mostly by dictionary, or of differences of floats.
const (
	KindDict  = "dict"
	KindFloat = "float"
)

// block is one entry of a patch's table.
type block struct {
	kind          byte
	layout        layout
	length        uint32 // of the target
	window        int64  // in the base
	windowLength  uint32
	payloadLength uint32
	payload       int64 // where it is, in memory only
	target        int64 // likewise
}

// File is one side of a patch. Index may be nil.
type File struct {
	Digest ota.Digest
	Size   int64
	Data   io.ReadSeeker
	Index  *Index
}

// MakePatch writes a patch that makes target out of base, and returns its size
// and kind. Both files are read by blocks; it ends when ctx does. progress, which
// may be nil, is told how much of target is done.
func MakePatch(ctx context.Context, w io.Writer, base, target File, progress func(done int64)) (size int64, kind string, err error) {
	m, err := newMaker(base, target)
	if err != nil {
		return 0, "", err
	}
	defer m.plain.Close()
	out := &counter{w: w}
	head := append([]byte(patchMagic), base.Digest.Sum()...)
	head = binary.BigEndian.AppendUint64(head, uint64(base.Size))
	head = append(head, target.Digest.Sum()...)
	head = binary.BigEndian.AppendUint64(head, uint64(target.Size))
	if _, err := out.Write(head); err != nil {
		return 0, "", fmt.Errorf("write patch: %w", err)
	}
	floats, others := int64(0), int64(0) // bytes of payloads
	var table []byte
	count := uint32(0)
	for at := int64(0); at < target.Size; {
		if ctx.Err() != nil {
			return 0, "", context.Cause(ctx)
		}
		b, payload, err := m.block(at)
		if err != nil {
			return 0, "", fmt.Errorf("make patch at %d: %w", at, err)
		}
		if b.kind == blockDelta {
			floats += int64(len(payload))
		} else {
			others += int64(len(payload))
		}
		if _, err := out.Write(payload); err != nil {
			return 0, "", fmt.Errorf("write patch: %w", err)
		}
		table = append(table, b.kind, byte(b.layout.width), byte(b.layout.align))
		table = binary.BigEndian.AppendUint32(table, b.length)
		table = binary.BigEndian.AppendUint64(table, uint64(b.window))
		table = binary.BigEndian.AppendUint32(table, b.windowLength)
		table = binary.BigEndian.AppendUint32(table, b.payloadLength)
		count++
		at += int64(b.length)
		if progress != nil {
			progress(at)
		}
	}
	table = binary.BigEndian.AppendUint32(table, count)
	table = append(table, patchMagic...)
	if _, err := out.Write(table); err != nil {
		return 0, "", fmt.Errorf("write patch: %w", err)
	}
	if floats > others {
		return out.n, KindFloat, nil
	}
	return out.n, KindDict, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// maker makes blocks.
type maker struct {
	base, target File
	plain        *zstd.Encoder
	inBase       places
	next         int   // chunk of the target where the next block begins
	nextAt       int64 // and where that chunk does
	shift        int64 // from a byte of target to its like in base
	tbuf, wbuf   []byte
	planes       []byte
}

func newMaker(base, target File) (*maker, error) {
	m := &maker{base: base, target: target, tbuf: make([]byte, blockSize), wbuf: make([]byte, maxWindow), planes: make([]byte, 0, maxPacked(blockSize))}
	if base.Index != nil && target.Index != nil {
		m.inBase = findable(base.Index)
	}
	var err error
	m.plain, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("make patch: %w", err)
	}
	return m, nil
}

// align moves shift to where the block's content lies in the base, by the first
// chunk that both have.
func (m *maker) align(at, end int64) {
	if len(m.inBase.sorted) == 0 {
		return
	}
	found := false
	for m.next < len(m.target.Index.Chunks) && m.nextAt < end {
		c := &m.target.Index.Chunks[m.next]
		if p, ok := m.inBase.find(c); ok && !found && m.nextAt+int64(c.Len) > at {
			m.shift, found = p.offset-m.nextAt, true
		}
		if m.nextAt+int64(c.Len) > end {
			return // it reaches into the next block
		}
		m.nextAt += int64(c.Len)
		m.next++
	}
}

func readAt(r io.ReadSeeker, at int64, b []byte) error {
	if _, err := r.Seek(at, io.SeekStart); err != nil {
		return err
	}
	_, err := io.ReadFull(r, b)
	return err
}

// block makes the block of the target at a byte: whatever is smallest.
func (m *maker) block(at int64) (block, []byte, error) {
	t := m.tbuf[:min(blockSize, m.target.Size-at)]
	if err := readAt(m.target.Data, at, t); err != nil {
		return block{}, nil, fmt.Errorf("read target: %w", err)
	}
	m.align(at, at+int64(len(t)))
	from, to := at+m.shift-windowMargin, at+m.shift+int64(len(t))+windowMargin
	from, to = min(max(from, 0), m.base.Size), max(min(to, m.base.Size), 0)
	if from >= to {
		from, to = 0, 0
	}
	w := m.wbuf[:to-from]
	if err := readAt(m.base.Data, from, w); err != nil {
		return block{}, nil, fmt.Errorf("read base: %w", err)
	}
	best := block{kind: blockStored}
	payload := t
	offer := func(b block, p []byte) {
		if len(p) < len(payload) {
			best, payload = b, p
		}
	}
	finish := func() (block, []byte, error) {
		best.length, best.payloadLength = uint32(len(t)), uint32(len(payload))
		return best, payload, nil
	}
	if like := at + m.shift - from; like >= 0 && like+int64(len(t)) <= int64(len(w)) {
		b := w[like : like+int64(len(t))]
		at := block{kind: blockCopy, window: from + like, windowLength: uint32(len(b))}
		if bytes.Equal(t, b) {
			offer(at, nil)
			return finish()
		}
		l, _ := guess(t, b)
		if l.width > 0 {
			m.planes = packDelta(m.planes[:0], t, b, l)
			at.kind, at.layout = blockDelta, l
			offer(at, m.plain.EncodeAll(m.planes, nil))
			offer(at, m.byPart(m.planes, l, len(t)))
		}
	}
	if len(payload) < len(t)/50 {
		return finish()
	}
	if len(w) > 0 {
		p, err := withDict(t, w)
		if err != nil {
			return block{}, nil, err
		}
		if len(p) < len(payload)+len(payload)/100 { // the simpler one, when it makes no difference
			best, payload = block{kind: blockDict, window: from, windowLength: uint32(len(w))}, p
		}
	} else {
		offer(block{kind: blockZstd}, m.plain.EncodeAll(t, nil))
	}
	if len(payload) > len(t)/2 {
		if l, share := guess(t, nil); l.width > 0 && share < 1 {
			m.planes = packPlanes(m.planes[:0], t, l)
			offer(block{kind: blockPlanes, layout: l}, m.plain.EncodeAll(m.planes, nil))
		}
	}
	return finish()
}

// byPart compresses the bits and each plane of a packed difference alone: their
// bytes are spread differently, and one frame has one code for 128 KiB.
func (m *maker) byPart(packed []byte, l layout, length int) []byte {
	n := (length - l.align) / l.width
	bits := (n + 7) / 8
	plane := (len(packed) - bits) / l.width // the edges, at most a few bytes, fall into the last
	out := m.plain.EncodeAll(packed[:bits], nil)
	for p := range l.width {
		end := bits + (p+1)*plane
		if p == l.width-1 {
			end = len(packed)
		}
		out = m.plain.EncodeAll(packed[bits+p*plane:end], out)
	}
	return out
}

func withDict(t, window []byte) ([]byte, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(4<<20), zstd.WithEncoderDictRaw(dictID, window))
	if err != nil {
		return nil, fmt.Errorf("compress with a dictionary: %w", err)
	}
	p := enc.EncodeAll(t, nil)
	return p, enc.Close()
}

// Patch is a patch whose table was read and checked.
type Patch struct {
	Base, Target         ota.Digest
	BaseSize, TargetSize int64

	data   io.ReadSeeker
	blocks []block
}

// OpenPatch reads the table of a patch of size bytes in r, which it keeps: all
// lengths must fit each other, the base and the limits.
func OpenPatch(r io.ReadSeeker, size int64) (*Patch, error) {
	bad := func(format string, args ...any) (*Patch, error) {
		return nil, fmt.Errorf("%w: %s", ErrPatch, fmt.Sprintf(format, args...))
	}
	if size < int64(patchHead+patchTail) {
		return bad("%d bytes", size)
	}
	head, tail := make([]byte, patchHead), make([]byte, patchTail)
	if err := errors.Join(readAt(r, 0, head), readAt(r, size-int64(patchTail), tail)); err != nil {
		return nil, fmt.Errorf("read patch: %w", err)
	}
	if !bytes.HasPrefix(head, []byte(patchMagic)) || string(tail[4:]) != patchMagic {
		return bad("it does not begin and end with %s", patchMagic)
	}
	p := &Patch{data: r}
	head = head[len(patchMagic):]
	p.Base, p.BaseSize = ota.DigestFromSum([sha256.Size]byte(head)), int64(binary.BigEndian.Uint64(head[sha256.Size:]))
	head = head[sha256.Size+8:]
	p.Target, p.TargetSize = ota.DigestFromSum([sha256.Size]byte(head)), int64(binary.BigEndian.Uint64(head[sha256.Size:]))
	n := int64(binary.BigEndian.Uint32(tail))
	payloads := size - int64(patchTail) - n*int64(patchEntry)
	if n > maxBlocks || payloads < int64(patchHead) || p.BaseSize < 0 || p.TargetSize < 0 {
		return bad("%d blocks, base of %d bytes, target of %d", n, p.BaseSize, p.TargetSize)
	}
	table := make([]byte, n*int64(patchEntry))
	if err := readAt(r, payloads, table); err != nil {
		return nil, fmt.Errorf("read patch: %w", err)
	}
	return p, p.readTable(table, payloads)
}

func (p *Patch) readTable(table []byte, payloads int64) error {
	at, target := int64(patchHead), int64(0)
	p.blocks = make([]block, 0, len(table)/patchEntry)
	for ; len(table) > 0; table = table[patchEntry:] {
		b := block{kind: table[0], layout: layout{int(table[1]), int(table[2])}, length: binary.BigEndian.Uint32(table[3:]),
			window: int64(binary.BigEndian.Uint64(table[7:])), windowLength: binary.BigEndian.Uint32(table[15:]),
			payloadLength: binary.BigEndian.Uint32(table[19:]), payload: at, target: target}
		if !b.fits(p.BaseSize) {
			return fmt.Errorf("%w: block %d: kind %d of %d bytes from %d bytes, window %d+%d in a base of %d", ErrPatch,
				len(p.blocks), b.kind, b.length, b.payloadLength, b.window, b.windowLength, p.BaseSize)
		}
		at += int64(b.payloadLength)
		target += int64(b.length)
		p.blocks = append(p.blocks, b)
	}
	if at != payloads || target != p.TargetSize {
		return fmt.Errorf("%w: blocks make %d bytes of %d and their payloads end at %d of %d", ErrPatch, target, p.TargetSize, at, payloads)
	}
	return nil
}

// fits reports whether the numbers of a block are possible.
func (b block) fits(base int64) bool {
	if b.length == 0 || b.length > blockSize || b.payloadLength > maxPayload || b.windowLength > maxWindow ||
		b.window < 0 || b.window > base-int64(b.windowLength) {
		return false
	}
	noLayout := b.layout == layout{}
	isLayout := (b.layout.width == 2 || b.layout.width == 4) && b.layout.align < b.layout.width && b.layout.align <= int(b.length)
	switch b.kind {
	case blockCopy:
		return noLayout && b.payloadLength == 0 && b.windowLength == b.length
	case blockStored:
		return noLayout && b.payloadLength == b.length && b.windowLength == 0
	case blockZstd:
		return noLayout && b.windowLength == 0
	case blockDict:
		return noLayout && b.windowLength > 0
	case blockDelta:
		return isLayout && b.windowLength == b.length
	case blockPlanes:
		return isLayout && b.windowLength == 0
	}
	return false
}

// applier makes blocks of a target; it keeps its buffers.
type applier struct {
	patch   *Patch
	base    io.ReadSeeker
	plain   *zstd.Decoder
	window  []byte
	payload []byte
	planes  []byte
}

// make writes block i to dst, which has room for it, and returns it.
func (a *applier) make(i int, dst []byte) ([]byte, error) {
	b := a.patch.blocks[i]
	dst = dst[:b.length]
	a.window, a.payload = grown(a.window, int(b.windowLength)), grown(a.payload, int(b.payloadLength))
	if err := readAt(a.base, b.window, a.window); err != nil {
		return nil, fmt.Errorf("read base at %d: %w", b.window, err)
	}
	if err := readAt(a.patch.data, b.payload, a.payload); err != nil {
		return nil, fmt.Errorf("read patch at %d: %w", b.payload, err)
	}
	switch b.kind {
	case blockCopy:
		copy(dst, a.window)
	case blockStored:
		copy(dst, a.payload)
	case blockZstd:
		return dst, a.fill(dst, i)
	case blockDict:
		d, err := zstd.NewReader(nil, decoderOptions(zstd.WithDecoderDictRaw(dictID, a.window))...)
		if err != nil {
			return nil, fmt.Errorf("%w: block %d: %w", ErrPatch, i, err)
		}
		defer d.Close()
		got, err := expand(d, dst, a.payload, i)
		return dst, exactly(got, dst, err, i)
	case blockPlanes:
		a.planes = grown(a.planes, int(b.length))
		if err := a.fill(a.planes, i); err != nil {
			return nil, err
		}
		unpackPlanes(dst, a.planes, b.layout)
	case blockDelta:
		a.planes = grown(a.planes, maxPacked(int(b.length)))
		got, err := a.expand(a.planes, i)
		if err != nil {
			return nil, err
		}
		if !unpackDelta(dst, got, a.window, b.layout) {
			return nil, fmt.Errorf("%w: block %d: %d bytes of differences do not fit %d", ErrPatch, i, len(got), b.length)
		}
	}
	return dst, nil
}

func grown(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

func decoderOptions(more ...zstd.DOption) []zstd.DOption {
	return append(more, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(8<<20), zstd.WithDecodeAllCapLimit(true))
}

// expand returns the payload of block i without its compression, in the place
// of room, which holds the most that it may be.
func (a *applier) expand(room []byte, i int) ([]byte, error) {
	if a.plain == nil {
		var err error
		if a.plain, err = zstd.NewReader(nil, decoderOptions()...); err != nil {
			return nil, fmt.Errorf("%w: block %d: %w", ErrPatch, i, err)
		}
	}
	return expand(a.plain, room, a.payload, i)
}

// fill is expand to exactly dst.
func (a *applier) fill(dst []byte, i int) error {
	got, err := a.expand(dst, i)
	return exactly(got, dst, err, i)
}

func expand(d *zstd.Decoder, room, payload []byte, i int) ([]byte, error) {
	got, err := d.DecodeAll(payload, room[:0:len(room)])
	switch {
	case errors.Is(err, zstd.ErrDecoderSizeExceeded), errors.Is(err, zstd.ErrWindowSizeExceeded):
		return nil, fmt.Errorf("%w: block %d of at most %d bytes: %w", ErrExpands, i, len(room), err)
	case err != nil && expands(d, payload, len(room)):
		return nil, fmt.Errorf("%w: block %d of at most %d bytes: %w", ErrExpands, i, len(room), err)
	case err != nil:
		return nil, fmt.Errorf("%w: block %d: %w", ErrPatch, i, err)
	}
	return got, nil
}

// expands reports whether a payload that could not be decompressed into its
// room holds more: the decoder gives several errors for that. No more is read
// than shows it.
func expands(d *zstd.Decoder, payload []byte, room int) bool {
	if d.Reset(bytes.NewReader(payload)) != nil {
		return false
	}
	n, _ := io.CopyN(io.Discard, d, int64(room)+1) // what it ends with was told before
	return n > int64(room)
}

func exactly(got, dst []byte, err error, i int) error {
	if err == nil && len(got) != len(dst) {
		err = fmt.Errorf("%w: block %d has %d bytes, says %d", ErrPatch, i, len(got), len(dst))
	}
	copy(dst, got) // the same place, unless the decoder took another
	return err
}

func (a *applier) close() {
	if a.plain != nil {
		a.plain.Close()
	}
}
