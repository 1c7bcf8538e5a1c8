package blob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/slot"
	"pgregory.net/rapid"
)

func both(t *testing.T, test func(t *testing.T, s *Store, f slot.Files)) {
	t.Run("dir", func(t *testing.T) {
		d, err := slot.OpenDir(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		test(t, NewStore(d), d)
	})
	t.Run("mem", func(t *testing.T) {
		m := slot.NewMem()
		test(t, NewStore(m), m)
	})
}

func read(t *testing.T, s *Store, d ota.Digest) string {
	t.Helper()
	f, n, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil || int64(len(b)) != n {
		t.Fatalf("%d bytes, size %d: %v", len(b), n, err)
	}
	return string(b)
}

func TestResume(t *testing.T) {
	both(t, func(t *testing.T, s *Store, _ slot.Files) {
		content := strings.Repeat("0123456789", 100)
		d, size := ota.DigestOf([]byte(content)), int64(len(content))
		if _, _, err := s.Open(t.Context(), d); !errors.Is(err, ErrNotFound) {
			t.Errorf("absent blob: %v", err)
		}
		cut := errors.New("link lost")
		n, err := s.Append(t.Context(), d, 0, size, io.MultiReader(strings.NewReader(content[:300]), iotest.ErrReader(cut)))
		if n != 300 || !errors.Is(err, cut) {
			t.Fatalf("took %d, %v", n, err)
		}
		if at, err := s.Partial(d); at != 300 || err != nil {
			t.Fatalf("partial at %d, %v", at, err)
		}
		if s.Has(d) {
			t.Error("a partial is visible")
		}
		if err := s.Finish(t.Context(), d, size); !errors.Is(err, ErrTruncated) {
			t.Errorf("finished a part: %v", err)
		}
		for _, wrong := range []int64{0, 299, 301} {
			if _, err := s.Append(t.Context(), d, wrong, size, strings.NewReader("x")); !errors.Is(err, ErrOffset) {
				t.Errorf("append at %d: %v", wrong, err)
			}
		}
		if n, err := s.Append(t.Context(), d, 300, size, strings.NewReader(content[300:])); n != size-300 || err != nil {
			t.Fatalf("took %d, %v", n, err)
		}
		for range 2 {
			if err := s.Finish(t.Context(), d, size); err != nil {
				t.Fatal(err)
			}
		}
		if got := read(t, s, d); got != content {
			t.Error("content changed")
		}
		if at, err := s.Partial(d); at != 0 || err != nil {
			t.Errorf("partial left: %d, %v", at, err)
		}
	})
}

func TestRefuses(t *testing.T) {
	both(t, func(t *testing.T, s *Store, _ slot.Files) {
		d := ota.DigestOf([]byte("right"))
		// Endless data stops at the size.
		endless := &counting{r: forever{}}
		n, err := s.Append(t.Context(), d, 0, 5, endless)
		if n != 5 || !errors.Is(err, ErrTooLong) || endless.n > 6 {
			t.Errorf("took %d of %d read, %v", n, endless.n, err)
		}
		if at, _ := s.Partial(d); at != 5 {
			t.Errorf("partial has %d bytes", at)
		}
		// Its content is wrong, so it is dropped and can be fetched again.
		if err := s.Finish(t.Context(), d, 5); !errors.Is(err, ErrDigestMismatch) {
			t.Errorf("wrong content: %v", err)
		}
		if at, err := s.Partial(d); at != 0 || s.Has(d) {
			t.Errorf("wrong content kept: %d bytes, %v", at, err)
		}
		if n, err := s.Append(t.Context(), d, 0, 5, strings.NewReader("right")); n != 5 || err != nil {
			t.Fatal(n, err)
		}
		if _, err := s.Append(t.Context(), d, 5, 3, strings.NewReader("")); !errors.Is(err, ErrTooLong) {
			t.Errorf("partial longer than the size: %v", err)
		}
		if err := s.Finish(t.Context(), d, 5); err != nil {
			t.Error(err)
		}
		if err := s.Put(t.Context(), d, strings.NewReader("wrong")); !errors.Is(err, ErrDigestMismatch) {
			t.Errorf("put wrong content: %v", err)
		}
		if read(t, s, d) != "right" {
			t.Error("a wrong put changed the blob")
		}
		for _, size := range []int64{-1, MaxSize + 1} {
			if _, err := s.Append(t.Context(), d, 0, size, strings.NewReader("")); !errors.Is(err, ErrTooLong) {
				t.Errorf("size %d: %v", size, err)
			}
		}
		for _, bad := range []ota.Digest{"", "sha256:", "sha256:../../etc/passwd", "sha512:" + ota.Digest(strings.Repeat("a", 64)), ota.Digest(strings.ToUpper(string(d)))} {
			_, appendErr := s.Append(t.Context(), bad, 0, 1, strings.NewReader("x"))
			_, sizeErr := s.Size(bad)
			_, partErr := s.Partial(bad)
			for op, err := range map[string]error{"append": appendErr, "size": sizeErr, "partial": partErr,
				"finish": s.Finish(t.Context(), bad, 1), "put": s.Put(t.Context(), bad, strings.NewReader("x")), "delete": s.Delete(bad)} {
				if !errors.Is(err, ota.ErrBadDigest) {
					t.Errorf("%s %q: %v", op, bad, err)
				}
			}
			if s.Path(bad) != "" {
				t.Errorf("path of %q: %s", bad, s.Path(bad))
			}
		}
	})
}

func TestSmall(t *testing.T) {
	both(t, func(t *testing.T, s *Store, f slot.Files) {
		d, err := s.PutBytes([]byte("manifest"))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := s.PutBytes([]byte("manifest")); again != d || err != nil {
			t.Error(again, err)
		}
		if b, err := s.ReadAll(t.Context(), d, 100); string(b) != "manifest" {
			t.Errorf("%q, %v", b, err)
		}
		if _, err := s.ReadAll(t.Context(), d, 3); !errors.Is(err, ErrTooLong) {
			t.Errorf("over the limit: %v", err)
		}
		empty := ota.DigestOf(nil)
		if err := s.Finish(t.Context(), empty, 0); err != nil || !s.Has(empty) {
			t.Errorf("empty blob: %v", err)
		}
		if err := s.Finish(t.Context(), d, 0); err == nil {
			t.Error("finished with a wrong size")
		}
		if err := s.Verify(t.Context(), d); err != nil {
			t.Error(err)
		}
		if err := f.WriteFile(blobName(d), []byte("manifesT")); err != nil {
			t.Fatal(err)
		}
		if err := s.Verify(t.Context(), d); !errors.Is(err, ErrDigestMismatch) {
			t.Errorf("a changed bit on disk: %v", err)
		}
		if _, err := s.ReadAll(t.Context(), d, 100); !errors.Is(err, ErrDigestMismatch) {
			t.Errorf("a changed bit on disk: %v", err)
		}
	})
}

func TestGarbage(t *testing.T) {
	both(t, func(t *testing.T, s *Store, f slot.Files) {
		for _, err := range s.Garbage(func(ota.Digest) bool { return false }) {
			t.Error("empty store:", err)
		}
		live := map[ota.Digest]bool{}
		var want []Info
		for i := range 20 {
			b := bytes.Repeat([]byte{byte(i)}, i)
			d, err := s.PutBytes(b)
			if err != nil {
				t.Fatal(err)
			}
			if i%2 == 0 {
				live[d] = true
			} else {
				want = append(want, Info{Digest: d, Size: int64(i)})
			}
		}
		part := ota.DigestOf([]byte("part"))
		if _, err := s.Append(t.Context(), part, 0, 4, strings.NewReader("pa")); err != nil {
			t.Fatal(err)
		}
		want = append(want, Info{Digest: part, Size: 2, Partial: true})
		for _, foreign := range []string{"partial/readme", "blobs/sha256/zz/x", "blobs/sha256/ab/" + strings.Repeat("c", 64)} {
			if err := f.WriteFile(foreign, nil); err != nil {
				t.Fatal(err)
			}
		}
		got := map[Info]bool{}
		for i, err := range s.Garbage(func(d ota.Digest) bool { return live[d] }) {
			if err != nil {
				t.Fatal(err)
			}
			i.Modified = time.Time{}
			got[i] = true
		}
		wantSet := map[Info]bool{}
		for _, i := range want {
			wantSet[i] = true
			if err := s.Delete(i.Digest); err != nil {
				t.Error(err)
			}
		}
		if d := cmp.Diff(wantSet, got); d != "" {
			t.Error(d)
		}
		left := 0
		for i, err := range s.List() {
			if err != nil || !live[i.Digest] {
				t.Error(i, err)
			}
			left++
		}
		if left != len(live) {
			t.Errorf("%d left, want %d", left, len(live))
		}
		for range s.List() {
			break // stopping early must not panic
		}
	})
}

func TestCancel(t *testing.T) {
	s := NewStore(slot.NewMem())
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("shutting down")
	d := ota.DigestOf([]byte("x"))
	n, err := s.Append(ctx, d, 0, MaxSize, readerFunc(func(p []byte) (int, error) { cancel(why); return len(p), nil }))
	if n == 0 || !errors.Is(err, why) {
		t.Errorf("took %d, %v", n, err)
	}
	if err := s.Put(ctx, d, strings.NewReader("x")); !errors.Is(err, why) {
		t.Errorf("put: %v", err)
	}
}

// TestOthersWait: two calls about one blob never mix.
func TestOthersWait(t *testing.T) {
	s := NewStore(slot.NewMem())
	d := ota.DigestOf([]byte("right"))
	pr, pw := io.Pipe()
	done := make(chan error)
	go func() {
		_, err := s.Append(t.Context(), d, 0, 5, pr)
		done <- err
	}()
	if _, err := pw.Write([]byte("ri")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Append(ctx, d, 2, 5, strings.NewReader("ght")); !errors.Is(err, context.Canceled) {
		t.Errorf("did not wait: %v", err)
	}
	if other := ota.DigestOf([]byte("other")); s.Put(t.Context(), other, strings.NewReader("other")) != nil {
		t.Error("another blob had to wait")
	}
	if _, err := pw.Write([]byte("ght")); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := s.Finish(t.Context(), d, 5); err != nil {
		t.Error(err)
	}
}

// TestConstantMemory streams a large blob to a real disk and bounds all that
// is allocated on the way.
func TestConstantMemory(t *testing.T) {
	size := int64(256 << 20)
	if testing.Short() {
		size = 32 << 20
	}
	dir, err := slot.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	s := NewStore(dir)
	d := digestOfStream(t, size)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	half := size / 2
	stream := stream(size)
	if n, err := s.Append(t.Context(), d, 0, size, io.LimitReader(stream, half)); n != half || err != nil {
		t.Fatal(n, err)
	}
	if n, err := s.Append(t.Context(), d, half, size, stream); n != size-half || err != nil {
		t.Fatal(n, err)
	}
	if err := s.Finish(t.Context(), d, size); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20 {
		t.Errorf("allocated %d KiB for %d MiB of data", used>>10, size>>20)
	}
	if n, err := s.Size(d); n != size || err != nil {
		t.Error(n, err)
	}
}

// TestAcrossPowerCuts: cut anywhere in append, finish or put, the store shows
// only whole blobs, and the download goes on from what is left or starts over.
func TestAcrossPowerCuts(t *testing.T) {
	content := make([]byte, 3000)
	for i := range content {
		content[i] = byte(i * 7)
	}
	d, size := ota.DigestOf(content), int64(len(content))
	rapid.Check(t, func(t *rapid.T) {
		m := slot.NewMem()
		m.FailAfter(rapid.IntRange(0, 25).Draw(t, "cut"))
		s := NewStore(m)
		s.syncEvery = 1000
		ctx := context.Background()
		step := int64(rapid.IntRange(400, 3000).Draw(t, "step"))
		finished := false
		for at := int64(0); ; {
			n, err := s.Append(ctx, d, at, size, bytes.NewReader(content[at:min(at+step, size)]))
			if err != nil {
				break
			}
			if at += n; at == size {
				finished = s.Finish(ctx, d, size) == nil
				break
			}
		}
		if rapid.Bool().Draw(t, "only killed") {
			m = m.Restart()
		} else {
			m = m.Crash(rapid.Uint64().Draw(t, "seed"))
		}
		s = NewStore(m)
		s.syncEvery = 1000
		if finished && !s.Has(d) {
			t.Fatal("finished, yet gone")
		}
		if s.Has(d) {
			if err := s.Verify(ctx, d); err != nil {
				t.Fatal("visible, yet not whole:", err)
			}
			return
		}
		for try := 0; ; try++ {
			at, err := s.Partial(d)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Append(ctx, d, at, size, bytes.NewReader(content[at:])); err != nil {
				t.Fatal(err)
			}
			err = s.Finish(ctx, d, size)
			if err == nil {
				break
			}
			// A torn tail that was not synced is found by the hash, once, and
			// costs no more than what was not synced.
			if !errors.Is(err, ErrDigestMismatch) || try > 0 {
				t.Fatal(err)
			}
			if left, _ := s.Partial(d); left != max(at-1, 0)/1000*1000 {
				t.Fatalf("resumed at %d, wrong, %d bytes left", at, left)
			}
		}
		if err := s.Verify(ctx, d); err != nil {
			t.Fatal(err)
		}
	})
}

func TestDiskFull(t *testing.T) {
	m := slot.NewMem()
	m.SetFree(100)
	s := NewStore(m)
	content := bytes.Repeat([]byte("x"), 150)
	d := ota.DigestOf(content)
	n, err := s.Append(t.Context(), d, 0, 150, bytes.NewReader(content))
	if n != 100 || !errors.Is(err, slot.ErrDiskFull) {
		t.Fatalf("took %d, %v", n, err)
	}
	m.SetFree(1000)
	if _, err := s.Append(t.Context(), d, 100, 150, bytes.NewReader(content[100:])); err != nil {
		t.Fatal(err)
	}
	if err := s.Finish(t.Context(), d, 150); err != nil {
		t.Fatal(err)
	}
	m.SetFree(10)
	if err := s.Put(t.Context(), ota.DigestOf([]byte("y")), bytes.NewReader(content)); !errors.Is(err, slot.ErrDiskFull) || m.Free() != 10 {
		t.Errorf("put: %v, %d bytes free", err, m.Free())
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type forever struct{}

func (forever) Read(p []byte) (int, error) { return len(p), nil }

type counting struct {
	r io.Reader
	n int
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

func stream(size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
}

func digestOfStream(t *testing.T, size int64) ota.Digest {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, stream(size)); err != nil {
		t.Fatal(err)
	}
	return ota.DigestFromSum([32]byte(h.Sum(nil)))
}

// TestWrongBeginning: an earlier process got wrong bytes from a bad source;
// cutting the tail does not help, so the second time all goes.
func TestWrongBeginning(t *testing.T) {
	m := slot.NewMem()
	content := bytes.Repeat([]byte("abcdefgh"), 500)
	d, size := ota.DigestOf(content), int64(len(content))
	first := NewStore(m)
	if _, err := first.Append(t.Context(), d, 0, size, bytes.NewReader(make([]byte, 2500))); err != nil {
		t.Fatal(err)
	}
	s := NewStore(m.Restart())
	s.syncEvery = 1000
	for _, want := range []int64{2000, 0} {
		at, err := s.Partial(d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Append(t.Context(), d, at, size, bytes.NewReader(content[at:])); err != nil {
			t.Fatal(err)
		}
		if err := s.Finish(t.Context(), d, size); !errors.Is(err, ErrDigestMismatch) {
			t.Fatalf("got %v", err)
		}
		if left, _ := s.Partial(d); left != want {
			t.Fatalf("%d bytes left, want %d", left, want)
		}
	}
	if err := s.Put(t.Context(), d, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

// TestDropUnsynced: after a power cut nothing is fetched behind a torn end.
func TestDropUnsynced(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 1000)
	d := ota.DigestOf(data)
	files := slot.NewMem()
	s := NewStore(files)
	s.syncEvery = 1000
	if err := s.DropUnsynced(); err != nil { // nothing there
		t.Fatal(err)
	}
	if _, err := s.Append(t.Context(), d, 0, int64(len(data)), bytes.NewReader(data[:4321])); err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(20) {
		left := NewStore(files.Crash(seed))
		left.syncEvery = 1000
		if err := left.DropUnsynced(); err != nil {
			t.Fatal(err)
		}
		n, err := left.Partial(d)
		if err != nil || n != 4000 {
			t.Fatalf("%d bytes stay, %v", n, err)
		}
		if _, err := left.Append(t.Context(), d, n, int64(len(data)), bytes.NewReader(data[n:])); err != nil {
			t.Fatal(err)
		}
		if err := left.Finish(t.Context(), d, int64(len(data))); err != nil {
			t.Fatal(err)
		}
	}
}
