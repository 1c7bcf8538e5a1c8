package blob

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/skein-fleet/skein/ota"
)

// Adopt is AdoptThrough with nobody else reading.
func (s *Store) Adopt(ctx context.Context, name string, d ota.Digest) (size int64, err error) {
	return s.AdoptThrough(ctx, name, d, func(io.Reader) error { return nil })
}

// AdoptThrough makes the file name, in the same Files and outside blobs/ and
// partial/,
// the blob d: for uploads whose digest is only known at their end. The file is
// hashed and synced first; when it is not what d says it stays as it is and the
// error is ErrDigestMismatch. A blob that is there already is no error, and the
// file is removed. Nobody may write to the file meanwhile. While the file is
// hashed, read sees it too, as far as it wants; its error ends it.
func (s *Store) AdoptThrough(ctx context.Context, name string, d ota.Digest, read func(io.Reader) error) (size int64, err error) {
	unlock, err := s.lock(ctx, d)
	if err != nil {
		return 0, err
	}
	defer unlock()
	f, err := s.files.Open(name)
	if err != nil {
		return 0, err
	}
	h := sha256.New()
	seen := &seenReader{ctx: ctx, r: f, h: h}
	err = read(seen)
	if err == nil {
		_, err = hashOf(ctx, h, f)
	}
	if err == nil {
		size, err = f.Seek(0, io.SeekCurrent)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, fmt.Errorf("hash %s: %w", name, err)
	}
	if got := ota.DigestFromSum([sha256.Size]byte(h.Sum(nil))); got != d {
		return size, fmt.Errorf("%s is %s, not %s: %w", name, got.Short(), d.Short(), ErrDigestMismatch)
	}
	if have, err := s.Size(d); err == nil && have == size {
		return size, s.files.Remove(name)
	}
	a, err := s.files.OpenAppend(name)
	if err != nil {
		return size, err
	}
	if err := errors.Join(a.Sync(), a.Close()); err != nil {
		return size, fmt.Errorf("sync %s: %w", name, err)
	}
	s.uses.touch(d) // it may have been written long ago
	return size, s.files.Rename(name, blobName(d))
}

// seenReader hashes what passes.
type seenReader struct {
	ctx context.Context
	r   io.Reader
	h   hash.Hash
}

// Read implements io.Reader.
func (s *seenReader) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	n, err := s.r.Read(p)
	s.h.Write(p[:n])
	return n, err
}
