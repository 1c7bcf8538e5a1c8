package bundle

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	stdhash "hash"
	"io"
	"maps"
	"slices"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
)

// Contents is what a bundle is made of, layers apart.
type Contents struct {
	Info     Info
	Layout   []manifest.Descriptor // the release first
	Metadata map[string][]byte     // by file name
	Desired  map[string][]byte     // by device
	Small    [][]byte              // indexes, manifests, configs, documents
}

// Plan is a bundle that can be written: its head, and which layers follow.
type Plan struct {
	Info Info
	head []byte // without the ending
}

// NewPlan lays out a bundle. The same contents give the same bytes.
func NewPlan(c Contents) (*Plan, error) {
	info, err := encodeInfo(c.Info)
	if err != nil {
		return nil, err
	}
	index, err := json.Marshal(manifest.Index{SchemaVersion: 2, MediaType: manifest.MediaIndex, Manifests: c.Layout})
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", indexName, err)
	}
	p := &Plan{Info: c.Info}
	p.add(layoutName, []byte(layoutText))
	p.add(indexName, index)
	p.add(infoName, info)
	for _, name := range slices.Sorted(maps.Keys(c.Metadata)) {
		p.add(metadataDir+name, c.Metadata[name])
	}
	for _, device := range slices.Sorted(maps.Keys(c.Desired)) {
		p.add(desiredDir+device+".cose", c.Desired[device])
	}
	seen := map[ota.Digest]bool{}
	for _, b := range c.Small {
		if d := ota.DigestOf(b); !seen[d] {
			seen[d] = true
			p.add(blobName(d), b)
		}
	}
	// What could not be read back must not be written.
	return PlanOf(p.Head())
}

func (p *Plan) add(name string, data []byte) {
	p.head = append(p.head, header(name, int64(len(data)))...)
	p.head = append(p.head, data...)
	p.head = append(p.head, make([]byte, padded(int64(len(data)))-int64(len(data)))...)
}

// PlanOf reads the plan of a head, as Head returned it or as an interrupted
// copy begins.
func PlanOf(head []byte) (*Plan, error) {
	b, err := OpenHead(bytesAt(head), int64(len(head)))
	if err != nil {
		return nil, err
	}
	if _, err := b.Layout(); err != nil {
		return nil, err
	}
	return &Plan{Info: b.Info, head: head[:b.head:b.head]}, nil
}

// Head returns the head as an archive of its own.
func (p *Plan) Head() []byte { return append(slices.Clone(p.head), ending[:]...) }

// Size returns the size of the whole file.
func (p *Plan) Size() int64 {
	n := int64(len(p.head)) + int64(len(ending))
	for _, l := range p.Info.Layers {
		n += block + padded(l.Size)
	}
	return n
}

// File is where a bundle is written: an *os.File.
type File interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Sync() error
}

// syncEvery bounds what a stick that is pulled out may cost.
const syncEvery = 64 << 20

// Write makes f, which has that many bytes from an earlier try, the whole
// bundle: what is there and right stays, and a layer goes on where it stops.
// Bytes come from src. progress, which may be nil, is told how far it is, and
// how much of that was there already. What was written before an error stays.
func (p *Plan) Write(ctx context.Context, f File, have int64, src fetch.Source, progress func(done, kept int64)) error {
	w := &writer{plan: p, f: f, have: have, src: src, progress: progress}
	if w.progress == nil {
		w.progress = func(int64, int64) {}
	}
	if err := w.headOf(); err != nil {
		return err
	}
	for _, l := range p.Info.Layers {
		if err := w.layer(ctx, l); err != nil {
			return fmt.Errorf("layer %s: %w", l.Digest.Short(), err)
		}
	}
	if err := w.put(ending[:]); err != nil {
		return err
	}
	if err := f.Truncate(w.at); err != nil {
		return fmt.Errorf("end the bundle: %w", err)
	}
	return f.Sync()
}

type writer struct {
	plan     *Plan
	f        File
	at       int64 // all before it is right
	have     int64 // bytes in the file
	kept     int64 // of those before at, what was there
	unsynced int64
	src      fetch.Source
	progress func(done, kept int64)
}

// headOf keeps the head that is there if it is this one.
func (w *writer) headOf() error {
	n := int64(len(w.plan.head))
	if w.have >= n {
		old := make([]byte, n)
		if _, err := w.f.ReadAt(old, 0); err == nil && slices.Equal(old, w.plan.head) {
			w.at, w.kept = n, n
			return nil
		}
	}
	if err := w.cut(0); err != nil {
		return err
	}
	return w.put(w.plan.head)
}

// cut drops what is in the file from an offset on.
func (w *writer) cut(to int64) error {
	w.have, w.at = min(w.have, to), to
	w.kept = min(w.kept, to)
	if err := w.f.Truncate(to); err != nil {
		return fmt.Errorf("drop what is wrong after byte %d: %w", to, err)
	}
	return nil
}

func (w *writer) put(b []byte) error {
	if _, err := w.f.WriteAt(b, w.at); err != nil {
		return fmt.Errorf("write at byte %d: %w", w.at, err)
	}
	w.at += int64(len(b))
	w.unsynced += int64(len(b))
	w.have = max(w.have, w.at)
	w.progress(w.at, w.kept)
	if w.unsynced < syncEvery {
		return nil
	}
	w.unsynced = 0
	return w.f.Sync()
}

func (w *writer) layer(ctx context.Context, l manifest.BlobRef) error {
	begin := w.at
	err := w.tryLayer(ctx, l)
	if errors.Is(err, ErrContent) && w.kept > begin { // what was there may have been wrong
		if err := w.cut(begin); err != nil {
			return err
		}
		err = w.tryLayer(ctx, l)
	}
	if errors.Is(err, ErrContent) {
		return errors.Join(err, w.cut(begin)) // nothing wrong stays for the next try
	}
	return err
}

// tryLayer keeps or writes the header and the body of one layer.
func (w *writer) tryLayer(ctx context.Context, l manifest.BlobRef) error {
	h := header(blobName(l.Digest), l.Size)
	old := make([]byte, block)
	if w.have >= w.at+block {
		if _, err := w.f.ReadAt(old, w.at); err != nil {
			return fmt.Errorf("read what is there: %w", err)
		}
	}
	if slices.Equal(old, h) {
		w.at += block
		w.kept = w.at
	} else if err := errors.Join(w.cut(w.at), w.put(h)); err != nil {
		return err
	}
	body := w.at
	sum := sha256.New()
	there := min(max(0, w.have-body), l.Size)
	if there > 0 {
		n, err := hashInto(ctx, sum, io.NewSectionReader(w.f, body, there), func(n int64) { w.progress(body+n, body+n) })
		if err != nil {
			return err
		}
		w.at += n
		w.kept = w.at
	}
	if there < l.Size {
		if err := w.cut(w.at); err != nil { // what is after it is not known
			return err
		}
	}
	if err := w.fill(ctx, l, sum, there); err != nil {
		return err
	}
	if got := ota.DigestFromSum([sha256.Size]byte(sum.Sum(nil))); got != l.Digest {
		return fmt.Errorf("%w: it is %s", ErrContent, got.Short())
	}
	pad := padded(l.Size) - l.Size
	return w.put(make([]byte, pad))
}

// fill brings the rest of a body.
func (w *writer) fill(ctx context.Context, l manifest.BlobRef, sum stdhash.Hash, from int64) error {
	if from >= l.Size {
		return nil
	}
	r, err := w.src.Open(ctx, l.Digest, from, l.Size-from)
	if err != nil {
		return err
	}
	defer r.Close()
	buf := make([]byte, 256<<10)
	for left := l.Size - from; left > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, rerr := r.Read(buf[:min(left, int64(len(buf)))])
		if n > 0 {
			sum.Write(buf[:n])
			left -= int64(n)
			if err := w.put(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case left == 0:
		case errors.Is(rerr, io.EOF):
			return fmt.Errorf("%w: the answer ended %d bytes early", io.ErrUnexpectedEOF, left)
		case rerr != nil:
			return rerr
		}
	}
	return nil
}

// hash returns the digest of all of r.
func hash(ctx context.Context, r io.Reader, progress func(n int64)) (ota.Digest, error) {
	h := sha256.New()
	_, err := hashInto(ctx, h, r, progress)
	return ota.DigestFromSum([sha256.Size]byte(h.Sum(nil))), err
}

func hashInto(ctx context.Context, h stdhash.Hash, r io.Reader, progress func(n int64)) (n int64, err error) {
	buf := make([]byte, 256<<10)
	for {
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		got, err := r.Read(buf)
		h.Write(buf[:got])
		n += int64(got)
		progress(n)
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, fmt.Errorf("read bundle: %w", err)
		}
	}
}

// bytesAt reads at offsets of bytes in memory.
type bytesAt []byte

// ReadAt implements io.ReaderAt.
func (b bytesAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
