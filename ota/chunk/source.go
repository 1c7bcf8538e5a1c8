package chunk

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sort"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
)

// Opener opens a blob of the local store and returns its size. The caller
// closes it.
type Opener func(ctx context.Context, d ota.Digest) (io.ReadSeekCloser, int64, error)

// FromChunks is the source of one artifact that takes from the installed ones
// what they have, and the rest, in ranges as long as possible, from remote.
// Every chunk is hashed before a byte of it is given out. An installed chunk
// that is damaged comes from remote; a remote one that is not what the index
// says ends it with ErrChunk.
func FromChunks(ix *Index, have []Installed, open Opener, remote fetch.Source) fetch.Source {
	return &chunkSource{ix: ix, have: have, found: findable(indexesOf(have)...), open: open, remote: remote}
}

type chunkSource struct {
	ix     *Index
	have   []Installed
	found  places
	open   Opener
	remote fetch.Source
}

// Open implements fetch.Source.
func (s *chunkSource) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	if d != s.ix.Artifact || offset < 0 || length < 0 || offset+length > s.ix.Size {
		return nil, fmt.Errorf("%w: %s %d+%d is not in the index of %s", fetch.ErrUnusable, d.Short(), offset, length, s.ix.Artifact.Short())
	}
	r := &chunkReader{s: s, ctx: ctx, files: map[ota.Digest]io.ReadSeekCloser{}, skip: offset, buf: make([]byte, MaxChunk)}
	for r.next < len(s.ix.Chunks) && r.skip >= int64(s.ix.Chunks[r.next].Len) {
		r.skip -= int64(s.ix.Chunks[r.next].Len)
		r.at += int64(s.ix.Chunks[r.next].Len)
		r.next++
	}
	return r, nil
}

// chunkReader gives out one chunk after the other.
type chunkReader struct {
	s     *chunkSource
	ctx   context.Context
	next  int   // chunk
	at    int64 // where it begins
	skip  int64 // bytes of it that are not wanted
	buf   []byte
	ready []byte // of buf
	files map[ota.Digest]io.ReadSeekCloser

	remote    io.ReadCloser // gives bytes up to chunk remoteEnd
	remoteEnd int
}

// Read implements io.Reader.
func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.ready) == 0 {
		if r.next == len(r.s.ix.Chunks) {
			return 0, io.EOF
		}
		if r.ctx.Err() != nil {
			return 0, context.Cause(r.ctx)
		}
		c := &r.s.ix.Chunks[r.next]
		b := r.buf[:c.Len]
		if !r.local(c, b) {
			if err := r.fetch(c, b); err != nil {
				return 0, err
			}
		}
		r.next++
		r.at += int64(c.Len)
		r.ready, r.skip = b[r.skip:], 0
	}
	n := copy(p, r.ready)
	r.ready = r.ready[n:]
	return n, nil
}

// local fills b from an installed artifact, if one has the chunk, whole.
func (r *chunkReader) local(c *Chunk, b []byte) bool {
	if r.remote != nil && r.next < r.remoteEnd {
		return false // it is on its way
	}
	at, ok := r.s.found.find(c)
	if !ok {
		return false
	}
	d := r.s.have[at.which].Digest
	f, ok := r.files[d]
	if !ok {
		var err error
		if f, _, err = r.s.open(r.ctx, d); err != nil {
			return false
		}
		r.files[d] = f
	}
	return readAt(f, at.offset, b) == nil && sha256.Sum256(b) == c.Sum
}

// fetch fills b from remote.
func (r *chunkReader) fetch(c *Chunk, b []byte) error {
	if r.remote == nil || r.next >= r.remoteEnd {
		if err := r.begin(); err != nil {
			return err
		}
	}
	if _, err := io.ReadFull(r.remote, b); err != nil {
		return fmt.Errorf("chunk %d: %w", r.next, err)
	}
	if sha256.Sum256(b) != c.Sum {
		fetch.Blame(r.s.remote, r.s.ix.Artifact)
		return fmt.Errorf("%w: %w: chunk %d of %s", fetch.ErrUnusable, ErrChunk, r.next, r.s.ix.Artifact.Short())
	}
	return nil
}

// begin asks remote for all chunks from the next one to the next installed one.
func (r *chunkReader) begin() error {
	length, end := int64(0), r.next
	for ; end < len(r.s.ix.Chunks); end++ {
		if _, ok := r.s.found.find(&r.s.ix.Chunks[end]); ok && end > r.next {
			break
		}
		length += int64(r.s.ix.Chunks[end].Len)
	}
	if err := r.closeRemote(); err != nil {
		return err
	}
	body, err := r.s.remote.Open(r.ctx, r.s.ix.Artifact, r.at, length)
	if err != nil {
		return err
	}
	r.remote, r.remoteEnd = body, end
	return nil
}

func (r *chunkReader) closeRemote() error {
	if r.remote == nil {
		return nil
	}
	err := r.remote.Close()
	r.remote = nil
	return err
}

// Close implements io.Closer.
func (r *chunkReader) Close() error {
	errs := []error{r.closeRemote()}
	for _, f := range r.files {
		errs = append(errs, f.Close())
	}
	clear(r.files)
	return errors.Join(errs...)
}

// FromPatch is the source of the target of p, made from the base, whose digest
// the caller has checked; it takes nothing from the network. base has the size
// that the patch says, or the error is ErrBase.
func FromPatch(p *Patch, base io.ReadSeeker, size int64) (fetch.Source, error) {
	if size != p.BaseSize {
		return nil, fmt.Errorf("%w: base of %d bytes, the patch is for %d", ErrBase, size, p.BaseSize)
	}
	return &patchSource{p, base}, nil
}

type patchSource struct {
	patch *Patch
	base  io.ReadSeeker
}

// Open implements fetch.Source.
func (s *patchSource) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	if d != s.patch.Target || offset < 0 || length < 0 || offset+length > s.patch.TargetSize {
		return nil, fmt.Errorf("%w: %w: it does not make %s %d+%d", fetch.ErrUnusable, ErrPatch, d.Short(), offset, length)
	}
	blocks := s.patch.blocks
	r := &patchReader{ctx: ctx, make: applier{patch: s.patch, base: s.base}, buf: make([]byte, blockSize)}
	r.next = sort.Search(len(blocks), func(i int) bool { return blocks[i].target+int64(blocks[i].length) > offset })
	if r.next < len(blocks) {
		r.skip = offset - blocks[r.next].target
	}
	return r, nil
}

// patchReader gives out one block after the other.
type patchReader struct {
	ctx   context.Context
	make  applier
	next  int
	skip  int64
	buf   []byte
	ready []byte
}

// Read implements io.Reader.
func (r *patchReader) Read(p []byte) (int, error) {
	for len(r.ready) == 0 {
		if r.next == len(r.make.patch.blocks) {
			return 0, io.EOF
		}
		if r.ctx.Err() != nil {
			return 0, context.Cause(r.ctx)
		}
		b, err := r.make.make(r.next, r.buf)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", fetch.ErrUnusable, err)
		}
		r.next++
		r.ready, r.skip = b[r.skip:], 0
	}
	n := copy(p, r.ready)
	r.ready = r.ready[n:]
	return n, nil
}

// Close implements io.Closer.
func (r *patchReader) Close() error {
	r.make.close()
	return nil
}
