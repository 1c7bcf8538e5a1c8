package chunk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
)

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// weights are floats as training leaves them.
func weights(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, 4*n)
	for range n {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(float32(r.NormFloat64()*0.05)))
	}
	return b
}

// tuned moves a share of the weights a little.
func tuned(seed uint64, b []byte, share float64) []byte {
	r := rand.New(rand.NewPCG(seed, 2))
	out := bytes.Clone(b)
	for at := 0; at+4 <= len(out); at += 4 {
		if r.Float64() < share {
			v := math.Float32frombits(binary.LittleEndian.Uint32(out[at:]))
			binary.LittleEndian.PutUint32(out[at:], math.Float32bits(v+float32(r.NormFloat64()*5e-5)))
		}
	}
	return out
}

func index(t testing.TB, b []byte) *Index {
	t.Helper()
	ix, err := Build(context.Background(), ota.DigestOf(b), bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return ix
}

func asFile(t testing.TB, b []byte) File {
	return File{Digest: ota.DigestOf(b), Size: int64(len(b)), Data: bytes.NewReader(b), Index: index(t, b)}
}

func makePatch(t testing.TB, base, target []byte) ([]byte, string) {
	t.Helper()
	var out bytes.Buffer
	n, kind, err := MakePatch(context.Background(), &out, asFile(t, base), asFile(t, target), nil)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(out.Len()) {
		t.Fatalf("size %d, wrote %d", n, out.Len())
	}
	return out.Bytes(), kind
}

// apply makes the target from an offset.
func apply(patch, base []byte, target ota.Digest, size, offset int64) ([]byte, error) {
	p, err := OpenPatch(bytes.NewReader(patch), int64(len(patch)))
	if err != nil {
		return nil, err
	}
	src, err := FromPatch(p, bytes.NewReader(base), int64(len(base)))
	if err != nil {
		return nil, err
	}
	r, err := src.Open(context.Background(), target, offset, size-offset)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

type pair struct{ base, target []byte }

func drawPair(t *rapid.T) pair {
	size := rapid.SampledFrom([]int{0, 1, 3, 7, 1000, 70_000, 300_001, 1 << 20, 1<<20 + 5}).Draw(t, "size")
	seed := rapid.Uint64Range(1, 1000).Draw(t, "seed")
	base := noise(seed, size)
	if rapid.Bool().Draw(t, "floats") {
		base = weights(seed, size/4+1)
	}
	target := bytes.Clone(base)
	for range rapid.IntRange(0, 4).Draw(t, "changes") {
		at := rapid.IntRange(0, len(target)).Draw(t, "at")
		n := rapid.IntRange(0, 100_000).Draw(t, "n")
		switch rapid.SampledFrom([]string{"insert", "cut", "replace", "tune", "double", "fresh"}).Draw(t, "how") {
		case "insert":
			target = slices.Concat(target[:at], noise(seed+1, n), target[at:])
		case "cut":
			target = slices.Concat(target[:at], target[min(len(target), at+n):])
		case "replace":
			copy(target[at:], noise(seed+2, n))
		case "tune":
			target = tuned(seed, target, 0.05)
		case "double":
			target = slices.Concat(target, target)
		case "fresh":
			target = noise(seed+3, n)
		}
	}
	return pair{base, target}
}

func TestAnyPairIsMadeAnewFromAnyByte(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPair(t)
		var out bytes.Buffer
		withIndex := rapid.Bool().Draw(t, "index")
		b, a := File{Digest: ota.DigestOf(p.base), Size: int64(len(p.base)), Data: bytes.NewReader(p.base)}, File{Digest: ota.DigestOf(p.target), Size: int64(len(p.target)), Data: bytes.NewReader(p.target)}
		if withIndex {
			b.Index, _ = Build(context.Background(), b.Digest, bytes.NewReader(p.base))
			a.Index, _ = Build(context.Background(), a.Digest, bytes.NewReader(p.target))
		}
		if _, _, err := MakePatch(context.Background(), &out, b, a, nil); err != nil {
			t.Fatal(err)
		}
		offset := int64(rapid.IntRange(0, len(p.target)).Draw(t, "offset"))
		got, err := apply(out.Bytes(), p.base, a.Digest, a.Size, offset)
		if err != nil || !bytes.Equal(got, p.target[offset:]) {
			t.Fatalf("from %d of %d: %d bytes, %v", offset, len(p.target), len(got), err)
		}
		if most := len(p.target) + 200 + 24*(len(p.target)>>20+1); out.Len() > most {
			t.Errorf("a patch of %d bytes for %d", out.Len(), len(p.target))
		}
	})
}

func TestADamagedPatchOrBaseNeverPassesForTheTarget(t *testing.T) {
	base := slices.Concat(weights(1, 400_000), noise(2, 300_000))
	target := slices.Concat(tuned(3, base[:1_600_000], 0.3), noise(4, 5000), base[1_600_000:], noise(5, 200_000))
	patch, _ := makePatch(t, base, target)
	opened, err := OpenPatch(bytes.NewReader(patch), int64(len(patch)))
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []byte{blockDelta, blockDict} {
		if !slices.ContainsFunc(opened.blocks, func(b block) bool { return b.kind == kind }) {
			t.Fatalf("no block of kind %d", kind)
		}
	}
	d, size := ota.DigestOf(target), int64(len(target))
	rapid.Check(t, func(t *rapid.T) {
		p, b := bytes.Clone(patch), bytes.Clone(base)
		victim := p
		if rapid.Bool().Draw(t, "base") {
			victim = b
		} else if rapid.Bool().Draw(t, "table") {
			victim = p[len(p)-100:]
		}
		victim[rapid.IntRange(0, len(victim)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
		if rapid.IntRange(0, 9).Draw(t, "cut") == 0 {
			p = p[:rapid.IntRange(0, len(p)).Draw(t, "to")]
		}
		got, err := apply(p, b, d, size, 0)
		// The whole is hashed by blob.Finish: what must hold here is that it
		// ends, within bounds, and that what is right by hash is right.
		if int64(len(got)) > size {
			t.Fatalf("%d bytes of %d, %v", len(got), size, err)
		}
		if err == nil && ota.DigestOf(got) == d && !bytes.Equal(got, target) {
			t.Fatal("impossible")
		}
	})
}

func TestPatchesAreSmall(t *testing.T) {
	w := weights(1, 1<<20)
	layers := noise(2, 4<<20)
	rebuilt := slices.Concat(layers[:1<<20], noise(3, 4096), layers[1<<20:2<<20], noise(4, 256<<10), layers[2<<20+256<<10:])
	far := slices.Concat(noise(5, 700_000), layers) // moved by more than the margin of the window
	for name, c := range map[string]struct {
		base, target []byte
		kind         string
		most         float64
	}{
		"5 % of weights moved":        {w, tuned(1, w, 0.05), KindFloat, 0.042},
		"20 % of weights moved":       {w, tuned(1, w, 0.2), KindFloat, 0.15},
		"every weight moved":          {w, tuned(1, w, 1), KindFloat, 0.58},
		"weights after an odd header": {slices.Concat([]byte("abc"), w), slices.Concat([]byte("abc"), tuned(1, w, 0.05)), KindFloat, 0.042},
		"rebuilt layers":              {layers, rebuilt, KindDict, 0.075},
		"moved far":                   {layers, far, KindDict, 0.16},
		"the same":                    {layers, layers, KindDict, 0.0001},
	} {
		patch, kind := makePatch(t, c.base, c.target)
		share := float64(len(patch)) / float64(len(c.target))
		if share > c.most || kind != c.kind {
			t.Errorf("%s: %s patch of %.2f %%, want %s, at most %.2f %%", name, kind, 100*share, c.kind, 100*c.most)
		}
	}
}

func TestLiesOfPatchesAreNamed(t *testing.T) {
	base, target := noise(1, 10_000), noise(2, 20_000)
	patch, _ := makePatch(t, base, target)
	lie := func(f func(p []byte) []byte) error {
		_, err := apply(f(bytes.Clone(patch)), base, ota.DigestOf(target), int64(len(target)), 0)
		return err
	}
	entry := len(patch) - patchTail - patchEntry
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bomb := enc.EncodeAll(make([]byte, 64<<20), nil)
	withPayload := func(p []byte) []byte {
		e := bytes.Clone(p[entry:])
		e[0], e[1], e[2] = blockZstd, 0, 0
		clear(e[7:19])
		binary.BigEndian.PutUint32(e[19:], uint32(len(bomb)))
		return slices.Concat(p[:patchHead], bomb, e)
	}
	for name, c := range map[string]struct {
		lie  func(p []byte) []byte
		want error
	}{
		"empty":                {func([]byte) []byte { return nil }, ErrPatch},
		"cut short":            {func(p []byte) []byte { return p[:len(p)-1] }, ErrPatch},
		"longer target":        {func(p []byte) []byte { p[patchHead-1]++; return p }, ErrPatch},
		"endless target":       {func(p []byte) []byte { p[patchHead-8] = 0x7f; return p }, ErrPatch},
		"negative target":      {func(p []byte) []byte { p[patchHead-8] = 0xff; return p }, ErrPatch},
		"many blocks":          {func(p []byte) []byte { p[len(p)-patchTail] = 0xff; return p }, ErrPatch},
		"unknown kind":         {func(p []byte) []byte { p[entry] = 99; return p }, ErrPatch},
		"huge block":           {func(p []byte) []byte { p[entry+3] = 0x10; return p }, ErrPatch},
		"no block":             {func(p []byte) []byte { clear(p[entry+3 : entry+7]); return p }, ErrPatch},
		"window past the base": {func(p []byte) []byte { p[entry+13] = 0xff; return p }, ErrPatch},
		"window below zero":    {func(p []byte) []byte { p[entry+7] = 0xff; return p }, ErrPatch},
		"huge window":          {func(p []byte) []byte { p[entry+15] = 0x70; return p }, ErrPatch},
		"longer payload":       {func(p []byte) []byte { p[entry+22]++; return p }, ErrPatch},
		"decompression bomb":   {withPayload, ErrExpands},
	} {
		if err := lie(c.lie); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	p, err := OpenPatch(bytes.NewReader(patch), int64(len(patch)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := FromPatch(p, bytes.NewReader(base), 9999); !errors.Is(err, ErrBase) {
		t.Errorf("another base: %v", err)
	}
	src, err := FromPatch(p, bytes.NewReader(base), 10_000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := src.Open(t.Context(), ota.DigestOf(base), 0, 5); !errors.Is(err, fetch.ErrUnusable) {
		t.Errorf("another target: %v", err)
	}
}

func TestIndexCoversAndIsStrict(t *testing.T) {
	b := noise(1, 3_000_000)
	ix := index(t, b)
	if n := len(ix.Chunks); n < 20 || n > 90 {
		t.Errorf("%d chunks", n)
	}
	raw := ix.Marshal()
	back, err := ParseIndex(raw)
	if err != nil || cmp.Diff(ix, back) != "" {
		t.Fatalf("%v %s", err, cmp.Diff(ix, back))
	}
	if !bytes.Equal(index(t, b).Marshal(), raw) {
		t.Error("the same bytes have two indexes")
	}
	for name, lie := range map[string]func(b []byte) []byte{
		"magic":             func(b []byte) []byte { b[0] = 'x'; return b },
		"longer file":       func(b []byte) []byte { b[47]++; return b },
		"one chunk fewer":   func(b []byte) []byte { return b[:len(b)-indexEntry] },
		"cut":               func(b []byte) []byte { return b[:len(b)-1] },
		"more":              func(b []byte) []byte { return append(b, 0) },
		"empty chunk":       func(b []byte) []byte { clear(b[len(b)-4:]); return b },
		"huge chunk":        func(b []byte) []byte { b[len(b)-4] = 0xff; return b },
		"count":             func(b []byte) []byte { b[48] = 0xff; return b },
		"nothing":           func([]byte) []byte { return nil },
		"too long":          func([]byte) []byte { return make([]byte, MaxIndex+1) },
		"small inner chunk": func(b []byte) []byte { binary.BigEndian.PutUint32(b[indexHead+32:], 5); return b },
	} {
		if _, err := ParseIndex(lie(bytes.Clone(raw))); !errors.Is(err, ErrIndex) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if ix := index(t, nil); ix.Size != 0 || len(ix.Chunks) != 0 {
		t.Errorf("index of nothing: %+v", ix)
	}
	cut := &Index{}
	if _, err := Build(t.Context(), ota.DigestOf(b), io.MultiReader(bytes.NewReader(b[:100_000]), errReader{})); !errors.Is(err, errRead) {
		t.Errorf("%v, %v", cut, err)
	}
}

var errRead = errors.New("disk on fire")

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errRead }

// remoteSource counts, and may lie.
type remoteSource struct {
	data   []byte
	asked  int
	sent   int64
	damage int64 // byte that is wrong, -1 none
}

func (r *remoteSource) Open(_ context.Context, _ ota.Digest, offset, length int64) (io.ReadCloser, error) {
	r.asked++
	r.sent += length
	b := bytes.Clone(r.data[offset : offset+length])
	if r.damage >= offset && r.damage < offset+length {
		b[r.damage-offset] ^= 1
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

func opener(blobs ...[]byte) Opener {
	return func(_ context.Context, d ota.Digest) (io.ReadSeekCloser, int64, error) {
		for _, b := range blobs {
			if ota.DigestOf(b) == d {
				return nopCloser{bytes.NewReader(b)}, int64(len(b)), nil
			}
		}
		return nil, 0, errors.New("not here")
	}
}

func installed(t testing.TB, b []byte) Installed {
	return Installed{Digest: ota.DigestOf(b), Size: int64(len(b)), Index: index(t, b)}
}

func TestChunksTakeOnlyWhatIsMissing(t *testing.T) {
	old := noise(1, 4<<20)
	target := slices.Concat(old[:1_500_000], noise(2, 300_000), old[1_500_000:])
	ix, d, size := index(t, target), ota.DigestOf(target), int64(len(target))
	have := []Installed{installed(t, old)}
	plan := Plan(Artifact{Digest: d, Size: size, Index: ix}, nil, have)
	if len(plan) != 2 || plan[0].Way != ByChunks || plan[0].Bytes > 700_000 || plan[1].Way != Full {
		t.Fatalf("plan %+v", plan)
	}
	for _, offset := range []int64{0, 1, 1_499_999, 1_600_000, size - 1, size} {
		remote := &remoteSource{data: target, damage: -1}
		r, err := FromChunks(ix, have, opener(old), remote).Open(t.Context(), d, offset, size-offset)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil || !bytes.Equal(got, target[offset:]) {
			t.Errorf("from %d: %d bytes, %v", offset, len(got), err)
		}
		want := Plan(Artifact{Digest: d, Size: size, Index: ix, Partial: offset}, nil, have)[0].Bytes
		if remote.sent != want || remote.asked > 1 {
			t.Errorf("from %d: %d bytes in %d requests, planned %d", offset, remote.sent, remote.asked, want)
		}
	}
}

func TestDamagedChunksAreNeverGivenOut(t *testing.T) {
	old := noise(1, 2<<20)
	target := slices.Concat(noise(2, 300_000), old)
	ix, d := index(t, target), ota.DigestOf(target)
	have := []Installed{installed(t, old)}
	damaged := bytes.Clone(old)
	damaged[1<<20] ^= 1
	open := func(context.Context, ota.Digest) (io.ReadSeekCloser, int64, error) {
		return nopCloser{bytes.NewReader(damaged)}, int64(len(damaged)), nil
	}
	r, err := FromChunks(ix, have, open, &remoteSource{data: target, damage: -1}).Open(t.Context(), d, 0, ix.Size)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, target) {
		t.Errorf("a damaged installed chunk: %d bytes, %v", len(got), err)
	}
	r, err = FromChunks(ix, have, opener(old), &remoteSource{data: target, damage: 100_000}).Open(t.Context(), d, 0, ix.Size)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if !errors.Is(err, ErrChunk) || !errors.Is(err, fetch.ErrUnusable) || !bytes.Equal(got, target[:len(got)]) || len(got) > 100_000 {
		t.Errorf("a damaged remote chunk: %d bytes, %v", len(got), err)
	}
}

func TestPlanTakesTheCheapest(t *testing.T) {
	old, target := noise(1, 1<<20), noise(2, 1<<20)
	half := slices.Concat(old[:600_000], target[600_000:])
	d, size := ota.DigestOf(half), int64(len(half))
	ix := index(t, half)
	have := []Installed{installed(t, old)}
	patch := func(base []byte, n int64) Offer {
		return Offer{Patch: manifest.Patch{Base: ota.DigestOf(base), Digest: "p", Size: n, Kind: KindDict}}
	}
	ways := func(cs []Choice) (out []Way) {
		for _, c := range cs {
			out = append(out, c.Way)
		}
		return out
	}
	for name, c := range map[string]struct {
		a       Artifact
		patches []Offer
		have    []Installed
		want    []Way
		bytes   int64
	}{
		"nothing installed":   {Artifact{Digest: d, Size: size, Index: ix}, []Offer{patch(old, 9)}, nil, []Way{Full}, size},
		"here":                {Artifact{Digest: d, Size: size, Here: true}, nil, nil, []Way{Here}, 0},
		"another file has it": {Artifact{Digest: d, Size: size}, nil, []Installed{{Digest: d, Size: size}}, []Way{Here}, 0},
		"patch":               {Artifact{Digest: d, Size: size, Index: ix}, []Offer{patch(target, 5), patch(old, 90)}, have, []Way{ByPatch, ByChunks, Full}, 90},
		"large patch":         {Artifact{Digest: d, Size: size, Index: ix}, []Offer{patch(old, size-1)}, have, []Way{ByChunks, ByPatch, Full}, -1},
		"useless patch":       {Artifact{Digest: d, Size: size}, []Offer{patch(old, size+5)}, have, []Way{Full}, size},
		"part is here":        {Artifact{Digest: d, Size: size, Partial: size - 10}, []Offer{patch(old, 90)}, have, []Way{Full}, 10},
		"patch is here":       {Artifact{Digest: d, Size: size, Partial: size - 10}, []Offer{{patch(old, 90).Patch, 90}}, have, []Way{ByPatch, Full}, 0},
		"index of another":    {Artifact{Digest: d, Size: size, Index: have[0].Index}, nil, have, []Way{Full}, size},
		"costly index":        {Artifact{Digest: d, Size: size, Index: ix, IndexBytes: size}, nil, have, []Way{Full}, size},
	} {
		got := Plan(c.a, c.patches, c.have)
		if diff := cmp.Diff(c.want, ways(got)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if c.bytes >= 0 && got[0].Bytes != c.bytes {
			t.Errorf("%s: %d bytes, want %d", name, got[0].Bytes, c.bytes)
		}
	}
}

func TestApplyingTakesLittleMemory(t *testing.T) {
	base := weights(1, 4<<20/4)
	target := slices.Concat(tuned(1, base, 0.3), noise(1, 2<<20), base)
	patch, _ := makePatch(t, base, target)
	p, err := OpenPatch(bytes.NewReader(patch), int64(len(patch)))
	if err != nil {
		t.Fatal(err)
	}
	src, err := FromPatch(p, bytes.NewReader(base), int64(len(base)))
	if err != nil {
		t.Fatal(err)
	}
	r, err := src.Open(t.Context(), p.Target, 0, p.TargetSize)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, peak := m.HeapAlloc, uint64(0)
	buf := make([]byte, 512<<10)
	for {
		_, err := r.Read(buf)
		runtime.GC()
		runtime.ReadMemStats(&m)
		peak = max(peak, m.HeapAlloc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if used := int64(peak) - int64(before); used > 24<<20 {
		t.Errorf("%d bytes live while applying", used)
	}
}

// TestChunksOfLargeArtifactsTakeLittleMemory: indexes as large as they may be,
// of the artifact and of the two releases that are installed.
func TestChunksOfLargeArtifactsTakeLittleMemory(t *testing.T) {
	large := func(seed uint64) *Index {
		ix := &Index{Artifact: ota.DigestOf([]byte{byte(seed)}), Chunks: make([]Chunk, maxChunks)}
		r := rand.New(rand.NewPCG(seed, seed))
		for i := range ix.Chunks {
			binary.BigEndian.PutUint64(ix.Chunks[i].Sum[:], r.Uint64())
			ix.Chunks[i].Len = MeanChunk
			ix.Size += MeanChunk
		}
		return ix
	}
	raw := large(3).Marshal()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	ix, err := ParseIndex(raw)
	if err != nil {
		t.Fatal(err)
	}
	var have []Installed
	for seed := range uint64(2) {
		old := large(seed)
		copy(old.Chunks[:maxChunks/4], ix.Chunks[int(seed)*maxChunks/4:])
		have = append(have, Installed{old.Artifact, old.Size, old})
	}
	src := FromChunks(ix, have, nil, nil)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if used := int64(after.HeapAlloc) - int64(before.HeapAlloc); used > 40<<20 {
		t.Errorf("%d bytes live", used)
	}
	if plan := Plan(Artifact{Digest: ix.Artifact, Size: ix.Size, Index: ix}, nil, have); plan[0].Reused < ix.Size/3 || plan[0].Reused > ix.Size*2/3 {
		t.Errorf("%+v", plan[0])
	}
	runtime.KeepAlive(src)
	runtime.KeepAlive(raw)
}

func FuzzParseIndex(f *testing.F) {
	f.Add(index(f, noise(1, 300_000)).Marshal())
	f.Add(index(f, nil).Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		ix, err := ParseIndex(b)
		if err != nil {
			return
		}
		if !bytes.Equal(ix.Marshal(), b) {
			t.Error("two forms of one index")
		}
		n := int64(0)
		for _, c := range ix.Chunks {
			n += int64(c.Len)
		}
		if n != ix.Size {
			t.Errorf("covers %d of %d", n, ix.Size)
		}
	})
}

func FuzzPatch(f *testing.F) {
	base := noise(1, 5000)
	for _, target := range [][]byte{nil, base, noise(2, 300), slices.Concat(base[:2000], []byte("x"), base[2000:]), bytes.Repeat([]byte{7}, 9000)} {
		p, _ := makePatch(f, base, target)
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := OpenPatch(bytes.NewReader(b), int64(len(b)))
		if err != nil || p.TargetSize > 8<<20 {
			return
		}
		got, _ := apply(b, base, p.Target, p.TargetSize, 0)
		if int64(len(got)) > p.TargetSize {
			t.Errorf("%d bytes of %d", len(got), p.TargetSize)
		}
	})
}

func FuzzFloats(f *testing.F) {
	f.Add([]byte("0123456789abcdef"), []byte("fedcba9876543210"), 4, 1)
	f.Fuzz(func(t *testing.T, target, base []byte, width, align int) {
		n := min(len(target), len(base))
		if width != 2 && width != 4 || align < 0 || align >= width || align > n {
			return
		}
		target, base = target[:n], base[:n]
		l, back := layout{width, align}, make([]byte, n)
		packed := packDelta(nil, target, base, l)
		if len(packed) > maxPacked(n) || !unpackDelta(back, packed, base, l) || !bytes.Equal(back, target) {
			t.Fatalf("%v: %x became %x", l, target, back)
		}
		clear(back)
		planes := packPlanes(nil, target, l)
		unpackPlanes(back, planes, l)
		if len(planes) != n || !bytes.Equal(back, target) {
			t.Fatalf("%v: %x became %x in planes", l, target, back)
		}
		_ = unpackDelta(back, target, base, l) // whatever it is, it is refused or fits
	})
}
