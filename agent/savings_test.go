package agent

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/chunk"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/slot"
	"github.com/skein-fleet/skein/proto/wire"
)

// Two files beside the model change from release 1 to 2: one whose blocks are
// cheapest as a patch, one whose chunks are.

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// stored puts a file of a release where devices fetch it.
func (w *world) stored(title string, b []byte) manifest.Descriptor {
	w.t.Helper()
	d, err := w.blobs.PutBytes(b)
	if err != nil {
		w.t.Fatal(err)
	}
	return manifest.Descriptor{MediaType: "application/octet-stream", Digest: d, Size: int64(len(b)), Annotations: map[string]string{manifest.AnnTitle: title}}
}

func (w *world) index(b []byte) *manifest.BlobRef {
	w.t.Helper()
	ix, err := chunk.Build(context.Background(), ota.DigestOf(b), bytes.NewReader(b))
	if err != nil {
		w.t.Fatal(err)
	}
	d := w.stored("", ix.Marshal())
	return &manifest.BlobRef{Digest: d.Digest, Size: d.Size}
}

func (w *world) patch(base, target []byte) manifest.Patch {
	w.t.Helper()
	var out bytes.Buffer
	file := func(b []byte) chunk.File {
		return chunk.File{Digest: ota.DigestOf(b), Size: int64(len(b)), Data: bytes.NewReader(b)}
	}
	_, kind, err := chunk.MakePatch(context.Background(), &out, file(base), file(target), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	d := w.stored("", out.Bytes())
	return manifest.Patch{Base: ota.DigestOf(base), Digest: d.Digest, Size: d.Size, Kind: kind}
}

type files struct{ edited, rebuilt, edited2, rebuilt2 []byte }

func someFiles(n int) files {
	f := files{edited: noise(1, n), rebuilt: noise(2, n)}
	f.edited2 = bytes.Clone(f.edited)
	for i := 0; i < n; i += 3000 {
		f.edited2[i] ^= 1
	}
	f.rebuilt2 = slices.Concat(f.rebuilt[:n/2], noise(3, 20_000), f.rebuilt[n/2:])
	return f
}

// releases publishes both; change may spoil what saves bytes.
func (f files) releases(w *world, change func(edited, rebuilt *manifest.Savings)) {
	first := []manifest.Descriptor{w.stored("edited.bin", f.edited), w.stored("rebuilt.bin", f.rebuilt)}
	w.release("1", model{Bias: 1}, releaseOptions{counter: 1, golden: 1, soak: 3 * time.Second, extra: first})
	second := []manifest.Descriptor{w.stored("edited.bin", f.edited2), w.stored("rebuilt.bin", f.rebuilt2)}
	edited := manifest.Savings{Chunks: w.index(f.edited2), Patches: []manifest.Patch{w.patch(f.edited, f.edited2)}}
	rebuilt := manifest.Savings{Chunks: w.index(f.rebuilt2)}
	change(&edited, &rebuilt)
	w.release("2", model{Bias: 2}, releaseOptions{counter: 2, golden: 2, soak: 3 * time.Second, extra: second,
		savings: map[ota.Digest]manifest.Savings{second[0].Digest: edited, second[1].Digest: rebuilt}})
}

// update brings a device from 1 to 2 and returns the fetch step's message.
func (w *world) update(t *testing.T, f files) (told string, fetched int64) {
	w.t = t
	base := committed(t, w)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		d := w.boot(base)
		d.link.SetOnline(true)
		before := w.got().fetched
		w.want(2, "2")
		settle(5 * time.Minute)
		if got, err := d.runtime.answer(); err != nil || got != 2 {
			t.Fatalf("answers %v, %v: %s", got, err, w.last().Failure)
		}
		for _, b := range [][]byte{f.edited2, f.rebuilt2} {
			if err := d.blobs.Verify(t.Context(), ota.DigestOf(b)); err != nil {
				t.Error(err)
			}
		}
		for _, e := range w.last().Journal {
			if e.Step == string(ota.StepFetch) && e.State == wire.StepDone {
				told = e.Message
			}
		}
		fetched = w.got().fetched - before
		if r := w.last(); r.BytesFetched > fetched {
			t.Errorf("reported %d bytes, asked for %d", r.BytesFetched, fetched)
		}
		if err := d.stop(t); err != nil {
			t.Error(err)
		}
	})
	return told, fetched
}

func TestUpdatesTakeTheCheapestWay(t *testing.T) {
	f := someFiles(600_000)
	whole := int64(len(f.edited2) + len(f.rebuilt2))
	w := newWorld(t)
	f.releases(w, func(*manifest.Savings, *manifest.Savings) {})
	told, fetched := w.update(t, f)
	if fetched > whole/3 {
		t.Errorf("fetched %d of %d bytes", fetched, whole)
	}
	var real, predicted int64
	if n, err := fmt.Sscanf(told, "%d bytes, %d predicted", &real, &predicted); n != 2 || real != predicted || real != fetched {
		t.Errorf("told %q, %d fetched, %v", told, fetched, err)
	}
	for _, want := range []string{"edited.bin", "patch against", "rebuilt.bin", "by chunks"} {
		if !strings.Contains(told, want) {
			t.Errorf("told %q, want %q in it", told, want)
		}
	}
}

// TestSpoiltSavingsFallBack: whatever is wrong with what saves bytes, the
// release arrives.
func TestSpoiltSavingsFallBack(t *testing.T) {
	f := someFiles(400_000)
	other := noise(9, 400_000)
	for name, c := range map[string]struct {
		spoil func(w *world, edited, rebuilt *manifest.Savings)
		told  string
	}{
		"patch is gone": {func(w *world, e, _ *manifest.Savings) { _ = w.blobs.Delete(e.Patches[0].Digest) }, "edited.bin 400000 of 400000 by full after float patch"},
		"patch is no patch": {func(w *world, e, _ *manifest.Savings) {
			e.Patches[0].Digest = w.stored("", noise(5, int(e.Patches[0].Size))).Digest
		}, "by full after float patch"},
		"patch from another base": {func(w *world, e, _ *manifest.Savings) {
			p := w.patch(other, f.edited2)
			e.Patches[0].Digest, e.Patches[0].Size = p.Digest, p.Size
		}, "edited.bin"},
		"patch to another file": {func(w *world, e, _ *manifest.Savings) {
			p := w.patch(f.edited, bytes.Repeat(f.edited[:100], 4000))
			e.Patches[0].Digest, e.Patches[0].Size = p.Digest, p.Size
		}, "by full after float patch"},
		"index is gone": {func(w *world, _, r *manifest.Savings) { _ = w.blobs.Delete(r.Chunks.Digest) }, " of 420000 by full"},
		"index is none": {func(w *world, _, r *manifest.Savings) {
			r.Chunks.Digest = w.stored("", noise(6, int(r.Chunks.Size))).Digest
		}, " of 420000 by full"},
		"index of another":  {func(w *world, _, r *manifest.Savings) { *r.Chunks = *w.index(f.edited) }, " of 420000 by full"},
		"index lies":        {func(w *world, _, r *manifest.Savings) { r.Chunks.Digest = w.lyingIndex(f.rebuilt2) }, "by full after chunks"},
		"index is too long": {func(w *world, _, r *manifest.Savings) { r.Chunks.Size = chunk.MaxIndex + 1 }, " of 420000 by full"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			f.releases(w, func(edited, rebuilt *manifest.Savings) {
				edited.Chunks = nil
				c.spoil(w, edited, rebuilt)
			})
			if told, _ := w.update(t, f); !strings.Contains(told, c.told) {
				t.Errorf("told %q, want %q in it", told, c.told)
			}
		})
	}
}

// lyingIndex has one wrong sum.
func (w *world) lyingIndex(b []byte) ota.Digest {
	ix, err := chunk.Build(context.Background(), ota.DigestOf(b), bytes.NewReader(b))
	if err != nil {
		w.t.Fatal(err)
	}
	ix.Chunks[len(ix.Chunks)/2].Sum[5] ^= 1
	return w.stored("", ix.Marshal()).Digest
}

// TestPowerCutWalkWithSavings is the walk over an update that uses a patch and
// chunks, at every fifth operation.
func TestPowerCutWalkWithSavings(t *testing.T) {
	f := someFiles(300_000)
	w := newWorld(t)
	f.releases(w, func(*manifest.Savings, *manifest.Savings) {})
	ww := &walkWorld{world: w, base: committed(t, w), end: 2}
	total := ww.cutAt(t, func(*slot.Mem, *Options) {}).Ops()
	stride := 5
	if testing.Short() {
		stride = 23
	}
	for n := 0; n <= total; n += stride {
		ww.walk(t, fmt.Sprintf("operation %d of %d", n, total), func(files *slot.Mem, _ *Options) { files.FailAfter(n) })
	}
}

// TestKilledFetchCostsAtMostOneChunkTwice: the agent is killed at operations
// spread over the update; both runs together bring what one brings, and at most
// one chunk more.
func TestKilledFetchCostsAtMostOneChunkTwice(t *testing.T) {
	f := someFiles(600_000)
	w := newWorld(t)
	f.releases(w, func(*manifest.Savings, *manifest.Savings) {})
	base := committed(t, w)
	run := func(files *slot.Mem, cut int, seconds time.Duration) (fetched int64, done bool) {
		ww := &walkWorld{world: w}
		ww.reset()
		synctest.Test(t, func(t *testing.T) {
			w.t = t
			d := w.boot(files)
			d.link.SetOnline(true)
			w.want(2, "2")
			if cut >= 0 {
				files.FailAfter(cut)
			}
			settle(seconds)
			got, err := d.runtime.answer()
			fetched, done = d.fetcher.BytesFetched(), err == nil && got == 2
			d.cancel()
			<-d.done // the error of a cut disk, or nil
		})
		return fetched, done
	}
	whole := base.Crash(0)
	once, done := run(whole, -1, 5*time.Minute)
	if !done || once < 10_000 {
		t.Fatalf("uncut: %d bytes, done %v", once, done)
	}
	twice := int64(0)
	for cut := 0; cut < whole.Ops(); cut += 3 {
		files := base.Crash(0)
		first, _ := run(files, cut, time.Second)
		second, done := run(files.Restart(), -1, 5*time.Minute)
		if !done || first+second > once+chunk.MaxChunk {
			t.Errorf("killed at operation %d: %d and %d bytes for %d, done %v", cut, first, second, once, done)
		}
		twice = max(twice, first+second-once)
	}
	t.Logf("at most %d bytes came twice", twice)
}
