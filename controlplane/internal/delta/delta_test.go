package delta

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/chunk"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
)

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

type world struct {
	*testing.T
	files *slot.Mem
	store *blob.Store
	maker *Maker
}

func newWorld(t *testing.T, c Config) *world {
	t.Helper()
	w := &world{T: t, files: slot.NewMem()}
	w.store = blob.NewStore(w.files)
	c.Files, c.Blobs = w.files, w.store
	var err error
	if w.maker, err = New(c); err != nil {
		t.Fatal(err)
	}
	return w
}

// upload adopts content as an upload does.
func (w *world) upload(b []byte) manifest.Descriptor {
	w.Helper()
	f, err := w.files.OpenAppend("uploads/x")
	if err != nil {
		w.Fatal(err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		w.Fatal(err)
	}
	d := ota.DigestOf(b)
	if n, err := w.maker.Adopt(w.Context(), "uploads/x", d); err != nil || n != int64(len(b)) {
		w.Fatalf("adopted %d of %d bytes, %v", n, len(b), err)
	}
	return manifest.Descriptor{MediaType: manifest.MediaWeights, Digest: d, Size: int64(len(b))}
}

func TestIndexIsMadeWhileStoring(t *testing.T) {
	w := newWorld(t, Config{})
	b := noise(1, 1<<20)
	l := w.upload(b)
	want, err := chunk.Build(t.Context(), l.Digest, bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if !w.store.Has(ota.DigestOf(want.Marshal())) {
		t.Error("the index is not stored with the artifact")
	}
	ix, ref, err := w.maker.Index(t.Context(), l.Digest, l.Size)
	if err != nil || cmp.Diff(want, ix) != "" || ref.Digest != ota.DigestOf(want.Marshal()) {
		t.Errorf("%v %v %s", ref, err, cmp.Diff(want, ix))
	}
	// Lost or damaged, it is made again.
	for _, damage := range []func() error{
		func() error { return w.store.Delete(ref.Digest) },
		func() error { return w.files.WriteFile(pointerName(l.Digest), []byte("{")) },
		func() error { return w.files.Remove("chunks") },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, again, err := w.maker.Index(t.Context(), l.Digest, l.Size); err != nil || again != ref || !w.store.Has(ref.Digest) {
			t.Errorf("%v, %v", again, err)
		}
	}
	small := w.upload(noise(2, chunk.MinArtifact-1))
	if ix, _, err := w.maker.Index(t.Context(), small.Digest, small.Size); ix != nil || err != nil {
		t.Errorf("a small artifact has an index: %v", err)
	}
}

func TestAWrongDigestKeepsTheUpload(t *testing.T) {
	w := newWorld(t, Config{})
	if err := w.files.WriteFile("uploads/x", noise(1, 500_000)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.maker.Adopt(t.Context(), "uploads/x", ota.DigestOf(nil)); !errors.Is(err, blob.ErrDigestMismatch) {
		t.Errorf("%v", err)
	}
	if _, err := w.files.ReadFile("uploads/x"); err != nil {
		t.Error(err)
	}
	if _, err := w.files.ReadDir("chunks"); err == nil {
		t.Error("an index of a wrong digest is remembered")
	}
}

func TestSavingsListWhatPays(t *testing.T) {
	w := newWorld(t, Config{})
	old := noise(1, 2<<20)
	edited := bytes.Clone(old)
	for i := 0; i < len(edited); i += 4096 { // scattered: chunks save nothing
		edited[i] ^= 1
	}
	a, b, other := w.upload(old), w.upload(edited), w.upload(noise(9, 2<<20))
	s, err := w.maker.Savings(t.Context(), b, []manifest.Descriptor{a, other, b})
	if err != nil {
		t.Fatal(err)
	}
	if s.Chunks == nil || len(s.Patches) != 1 || s.Patches[0].Base != a.Digest || s.Patches[0].Size > 100_000 {
		t.Fatalf("%+v", s)
	}
	if !w.store.Has(s.Patches[0].Digest) {
		t.Error("the patch is not stored")
	}
	again, err := w.maker.Savings(t.Context(), b, []manifest.Descriptor{a})
	if err != nil || cmp.Diff(s, again) != "" {
		t.Errorf("made again it differs: %v %s", err, cmp.Diff(s, again))
	}
	if left, _ := w.files.ReadDir("patches"); len(left) != 0 {
		t.Errorf("%d files left", len(left))
	}
}

func TestWhatCannotBeMadeIsLeftOut(t *testing.T) {
	w := newWorld(t, Config{PatchTime: time.Nanosecond})
	old := noise(1, 400_000)
	a, b := w.upload(old), w.upload(slices.Concat(old, []byte("more")))
	gone := manifest.Descriptor{Digest: ota.DigestOf([]byte("gone")), Size: 400_000}
	s, err := w.maker.Savings(t.Context(), b, []manifest.Descriptor{gone, a})
	if err != nil || s.Chunks == nil || len(s.Patches) != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.maker.Savings(ctx, b, []manifest.Descriptor{a}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
