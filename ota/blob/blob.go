// Package blob is a content-addressed store over slot.Files: blobs named by
// their sha256, and partial blobs that can be resumed.
//
// Invariants: a blob is visible only after its whole content was hashed and is
// durable; memory use does not depend on the size of a blob; a partial never
// grows beyond the size its caller names. agent and controlplane import it.
package blob

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"strings"
	"sync"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
)

// MaxSize is the largest blob, 64 GiB.
const MaxSize = 64 << 30

// What the store returns, wrapped.
var (
	ErrNotFound       = errors.New("no such blob")
	ErrTooLong        = errors.New("blob longer than its size")
	ErrDigestMismatch = errors.New("content is not what the digest says")
	ErrTruncated      = errors.New("blob shorter than its size")
	// ErrOffset is returned when data does not continue the partial.
	ErrOffset = errors.New("offset is not where the partial ends")
)

const (
	blobDir    = "blobs/sha256"
	partialDir = "partial"
	bufSize    = 256 << 10
	// syncEvery divides a partial: it is synced at each multiple before more is
	// written, so in a partial that is longer all below the multiple is durable.
	syncEvery = 256 << 10
)

// Store keeps blobs. It may be used from several goroutines; calls about the
// same digest wait for each other.
type Store struct {
	files     slot.Files
	syncEvery int64
	uses      *uses // nil: not tracked

	mu   sync.Mutex // guards all below
	busy map[ota.Digest]chan struct{}
	// resumed is how much of a partial an earlier process left, 0 when that
	// is not in doubt; what that one wrote last may not have been synced.
	resumed map[ota.Digest]int64
}

// NewStore returns the store in f, below blobs/ and partial/.
func NewStore(f slot.Files) *Store {
	return &Store{files: f, syncEvery: syncEvery, busy: map[ota.Digest]chan struct{}{}, resumed: map[ota.Digest]int64{}}
}

func blobName(d ota.Digest) string    { h := d.Hex(); return blobDir + "/" + h[:2] + "/" + h }
func partialName(d ota.Digest) string { return partialDir + "/" + d.Hex() }

// lock checks d and waits until no other call works on it.
func (s *Store) lock(ctx context.Context, d ota.Digest) (unlock func(), err error) {
	if _, err := ota.ParseDigest(string(d)); err != nil {
		return nil, err
	}
	for {
		s.mu.Lock()
		other, taken := s.busy[d]
		if !taken {
			done := make(chan struct{})
			s.busy[d] = done
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				delete(s.busy, d)
				s.mu.Unlock()
				close(done)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, fmt.Errorf("blob %s: %w", d.Short(), context.Cause(ctx))
		}
	}
}

func size(f io.Seeker) (int64, error) {
	n, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return n, err
}

// Has reports whether the whole blob is there.
func (s *Store) Has(d ota.Digest) bool {
	_, err := s.Size(d)
	return err == nil
}

// Size returns the size of a whole blob, or ErrNotFound.
func (s *Store) Size(d ota.Digest) (int64, error) {
	f, n, err := s.open(d)
	if err != nil {
		return 0, err
	}
	return n, f.Close()
}

// Open returns a whole blob and its size, or ErrNotFound. The caller closes it.
func (s *Store) Open(ctx context.Context, d ota.Digest) (io.ReadSeekCloser, int64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, fmt.Errorf("open blob %s: %w", d.Short(), context.Cause(ctx))
	}
	return s.open(d)
}

func (s *Store) open(d ota.Digest) (io.ReadSeekCloser, int64, error) {
	if _, err := ota.ParseDigest(string(d)); err != nil {
		return nil, 0, err
	}
	absent := s.uses.touch(d) // first: see DeleteUnused
	f, err := s.files.Open(blobName(d))
	if errors.Is(err, fs.ErrNotExist) {
		absent()
		return nil, 0, fmt.Errorf("open blob %s: %w", d.Short(), ErrNotFound)
	}
	if err != nil {
		return nil, 0, err
	}
	n, err := size(f)
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("open blob %s: %w", d.Short(), err), f.Close())
	}
	return f, n, nil
}

// Path returns where the blob lies for the operating system, empty in memory.
// It is there only if Has says so.
func (s *Store) Path(d ota.Digest) string {
	if _, err := ota.ParseDigest(string(d)); err != nil {
		return ""
	}
	return s.files.Path(blobName(d))
}

// Delete removes the blob and its partial. Absent is no error.
func (s *Store) Delete(d ota.Digest) error {
	unlock, err := s.lock(context.Background(), d)
	if err != nil {
		return err
	}
	defer unlock()
	return errors.Join(s.files.Remove(blobName(d)), s.removePartial(d))
}

// Partial returns how many bytes of d are there to resume from, 0 when none.
func (s *Store) Partial(d ota.Digest) (int64, error) {
	if _, err := ota.ParseDigest(string(d)); err != nil {
		return 0, err
	}
	f, err := s.files.Open(partialName(d))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := size(f)
	return n, errors.Join(err, f.Close())
}

// DropUnsynced cuts every partial to what was synced for certain, less than
// syncEvery from its end. It is for a machine that started anew, before
// anything is appended: a power cut may have torn the end, and what is fetched
// after a torn end would have to be fetched again with it.
func (s *Store) DropUnsynced() error {
	entries, err := s.files.ReadDir(partialDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list partials: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			continue
		}
		f, err := s.files.OpenAppend(partialDir + "/" + e.Name())
		if err != nil {
			return fmt.Errorf("partial %s: %w", e.Name(), err)
		}
		n, err := f.Size()
		if over := n % s.syncEvery; err == nil && over > 0 {
			err = errors.Join(f.Truncate(n-over), f.Sync())
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("partial %s: %w", e.Name(), err)
		}
	}
	return nil
}

// Append adds what r holds to the partial of d, whose whole size is size, and
// returns how many bytes it took. offset must be where the partial ends
// (ErrOffset). It stops at size: when r holds more, the rest is not written
// and the error is ErrTooLong. What was read before an error of r is kept and
// durable, so that a later Append can go on from there.
func (s *Store) Append(ctx context.Context, d ota.Digest, offset, size int64, r io.Reader) (n int64, err error) {
	if size < 0 || size > MaxSize {
		return 0, fmt.Errorf("blob %s of %d bytes: %w: limit %d", d.Short(), size, ErrTooLong, int64(MaxSize))
	}
	unlock, err := s.lock(ctx, d)
	if err != nil {
		return 0, err
	}
	defer unlock()
	f, err := s.files.OpenAppend(partialName(d))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	have, err := f.Size()
	if err != nil {
		return 0, fmt.Errorf("partial %s: %w", d.Short(), err)
	}
	if have > size {
		return 0, fmt.Errorf("partial %s has %d bytes of %d: %w", d.Short(), have, size, ErrTooLong)
	}
	if have != offset {
		return 0, fmt.Errorf("partial %s has %d bytes, got data for %d: %w", d.Short(), have, offset, ErrOffset)
	}
	s.mu.Lock()
	if _, known := s.resumed[d]; !known {
		s.resumed[d] = offset
	}
	s.mu.Unlock()
	n, err = s.appendTo(ctx, f, r, offset, size)
	if err != nil {
		return n, fmt.Errorf("blob %s at %d: %w", d.Short(), offset+n, err)
	}
	return n, nil
}

// appendTo copies r to f, which has offset bytes, until it has size, and syncs.
func (s *Store) appendTo(ctx context.Context, f slot.AppendFile, r io.Reader, offset, size int64) (n int64, err error) {
	buf := make([]byte, bufSize)
	synced := int64(0)
	defer func() {
		if n > synced {
			err = errors.Join(err, f.Sync())
		}
	}()
	for {
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		at := offset + n
		// One byte more than fits tells an end from endless data.
		most := min(int64(len(buf)), size-at+1)
		if at < size {
			most = min(most, s.syncEvery-at%s.syncEvery)
		}
		got, rerr := r.Read(buf[:most])
		over := int64(got) > size-at
		if over {
			got = int(size - at)
		}
		w, werr := 0, error(nil)
		if got > 0 {
			w, werr = f.Write(buf[:got])
			n += int64(w)
		}
		if werr == nil && w > 0 && (offset+n)%s.syncEvery == 0 {
			werr = f.Sync()
			synced = n
		}
		switch {
		case werr != nil:
			return n, werr
		case over:
			return n, ErrTooLong
		case errors.Is(rerr, io.EOF):
			return n, nil
		case rerr != nil:
			return n, rerr
		}
	}
}

// Finish hashes the whole partial of d and, if it is what d says, makes it
// visible as a blob. A wrong content returns ErrDigestMismatch and is dropped:
// at first only what an earlier process may have left unsynced and all after
// it, since a power cut explains that; when it is wrong again, or nothing was
// left by an earlier process, all of it. A short one is kept and returns
// ErrTruncated. A blob that is there already is no error.
func (s *Store) Finish(ctx context.Context, d ota.Digest, size int64) error {
	unlock, err := s.lock(ctx, d)
	if err != nil {
		return err
	}
	defer unlock()
	return s.finish(ctx, d, size)
}

func (s *Store) finish(ctx context.Context, d ota.Digest, want int64) error {
	f, err := s.files.Open(partialName(d))
	if errors.Is(err, fs.ErrNotExist) {
		if have, err := s.Size(d); err == nil && have == want {
			return nil
		}
		if want != 0 {
			return fmt.Errorf("finish blob %s: 0 bytes of %d: %w", d.Short(), want, ErrTruncated)
		}
		return s.finishEmpty(d)
	}
	if err != nil {
		return err
	}
	h := sha256.New()
	n, err := hashOf(ctx, h, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("hash blob %s: %w", d.Short(), err)
	}
	switch {
	case n < want:
		return fmt.Errorf("finish blob %s: %d bytes of %d: %w", d.Short(), n, want, ErrTruncated)
	case n > want:
		return s.drop(d, fmt.Errorf("finish blob %s: %d bytes, want %d: %w", d.Short(), n, want, ErrTooLong))
	}
	if got := ota.DigestFromSum([sha256.Size]byte(h.Sum(nil))); got != d {
		return s.dropTail(d, want, fmt.Errorf("finish blob %s: content is %s: %w", d.Short(), got.Short(), ErrDigestMismatch))
	}
	if err := s.publish(d); err != nil {
		return err
	}
	s.forget(d)
	return nil
}

func (s *Store) finishEmpty(d ota.Digest) error {
	if ota.DigestOf(nil) != d {
		return fmt.Errorf("finish blob %s: content is empty: %w", d.Short(), ErrDigestMismatch)
	}
	return s.files.WriteFile(blobName(d), nil)
}

// publish syncs the partial, which a killed process may have left unsynced,
// and renames it into place.
func (s *Store) publish(d ota.Digest) error {
	f, err := s.files.OpenAppend(partialName(d))
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("sync blob %s: %w", d.Short(), err)
	}
	s.uses.touch(d)
	return s.files.Rename(partialName(d), blobName(d))
}

func (s *Store) drop(d ota.Digest, cause error) error {
	return errors.Join(cause, s.removePartial(d))
}

func (s *Store) removePartial(d ota.Digest) error {
	s.forget(d)
	return s.files.Remove(partialName(d))
}

func (s *Store) forget(d ota.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.resumed, d)
}

// dropTail cuts a wrong partial back to what was synced for certain before
// this process, or drops it.
func (s *Store) dropTail(d ota.Digest, size int64, cause error) error {
	s.mu.Lock()
	begun, known := s.resumed[d]
	if !known {
		begun = size
	}
	keep := max(begun-1, 0) / s.syncEvery * s.syncEvery
	if keep == 0 {
		s.mu.Unlock()
		return s.drop(d, cause)
	}
	s.resumed[d] = 0 // wrong once more: not the tail's fault
	s.mu.Unlock()
	f, err := s.files.OpenAppend(partialName(d))
	if err != nil {
		return errors.Join(cause, err)
	}
	return errors.Join(cause, f.Truncate(keep), f.Sync(), f.Close())
}

func hashOf(ctx context.Context, h hash.Hash, r io.Reader) (n int64, err error) {
	buf := make([]byte, bufSize)
	for {
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		got, err := r.Read(buf)
		h.Write(buf[:got])
		n += int64(got)
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, err
		}
	}
}

// Put stores all of r under d. A partial of d is replaced. Nothing is kept
// when the content is wrong or r fails.
func (s *Store) Put(ctx context.Context, d ota.Digest, r io.Reader) error {
	unlock, err := s.lock(ctx, d)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.removePartial(d); err != nil {
		return err
	}
	f, err := s.files.OpenAppend(partialName(d))
	if err != nil {
		return err
	}
	n, err := s.appendTo(ctx, f, r, 0, MaxSize)
	if err := errors.Join(err, f.Close()); err != nil {
		return s.drop(d, fmt.Errorf("put blob %s: %w", d.Short(), err))
	}
	return s.finish(ctx, d, n)
}

// PutBytes stores b and returns its digest.
func (s *Store) PutBytes(b []byte) (ota.Digest, error) {
	d := ota.DigestOf(b)
	if n, err := s.Size(d); err == nil && n == int64(len(b)) {
		return d, nil
	}
	return d, s.files.WriteFile(blobName(d), b)
}

// ReadAll returns the whole blob d, which must not be larger than limit
// (ErrTooLong): for indexes, manifests and other small ones. The content is
// hashed again.
func (s *Store) ReadAll(ctx context.Context, d ota.Digest, limit int64) ([]byte, error) {
	f, n, err := s.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if n > limit {
		return nil, fmt.Errorf("read blob %s: %d bytes, limit %d: %w", d.Short(), n, limit, ErrTooLong)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read blob %s: %w", d.Short(), err)
	}
	if got := ota.DigestOf(b); got != d {
		return nil, fmt.Errorf("read blob %s: content is %s: %w", d.Short(), got.Short(), ErrDigestMismatch)
	}
	return b, nil
}

// Verify hashes the stored blob d again, for a scrub or before use.
func (s *Store) Verify(ctx context.Context, d ota.Digest) error {
	f, _, err := s.Open(ctx, d)
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = hashOf(ctx, h, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("hash blob %s: %w", d.Short(), err)
	}
	if got := ota.DigestFromSum([sha256.Size]byte(h.Sum(nil))); got != d {
		return fmt.Errorf("blob %s: content is %s: %w", d.Short(), got.Short(), ErrDigestMismatch)
	}
	return nil
}

// Info is one file of the store.
type Info struct {
	Digest  ota.Digest
	Size    int64
	Partial bool
	// Modified is when it was last written to.
	Modified time.Time
}

// List yields all whole blobs in order of digest; it stops after an error.
func (s *Store) List() iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		dirs, err := s.files.ReadDir(blobDir)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				yield(Info{}, err)
			}
			return
		}
		for _, dir := range dirs {
			if !dir.IsDir() {
				continue
			}
			if !s.list(blobDir+"/"+dir.Name(), false, yield) {
				return
			}
		}
	}
}

// list yields the files of one directory that are named by a digest.
func (s *Store) list(dir string, partial bool, yield func(Info, error) bool) bool {
	files, err := s.files.ReadDir(dir)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) || yield(Info{}, err) && false
	}
	for _, e := range files {
		d, err := ota.ParseDigest("sha256:" + e.Name())
		if err != nil || e.IsDir() || !partial && !strings.HasSuffix(dir, "/"+e.Name()[:2]) {
			continue
		}
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since
		}
		if err != nil {
			yield(Info{}, err)
			return false
		}
		if !yield(Info{Digest: d, Size: st.Size(), Partial: partial, Modified: st.ModTime()}, nil) {
			return false
		}
	}
	return true
}

// Garbage yields blobs and partials that live does not want. The caller
// deletes them, or not.
func (s *Store) Garbage(live func(ota.Digest) bool) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		dead := func(i Info, err error) bool { return err == nil && live(i.Digest) || yield(i, err) }
		for i, err := range s.List() {
			if !dead(i, err) {
				return
			}
		}
		s.list(partialDir, true, dead)
	}
}
