package attack

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/chunk"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// stolen is what the thief's own repository left in the device's trusted set;
// rotating the keys voids it.
var stolen = []string{"state/trust/"}

func rotateAll(ctx context.Context, s *scene) error {
	return s.w.rotate(ctx, "targets", "snapshot", "timestamp", "director")
}

// all is an attack by somebody with every key, so that only what the device
// itself looks at is left.
func all(name, row, class, refuser string, strike func(context.Context, *scene) error) Attack {
	return Attack{Name: name, Row: row, Class: class, Refuser: refuser, strike: strike, mayAlter: stolen, place: own, lift: rotateAll}
}

// releaseAttacks are those of a release that is rightly signed, since all keys
// were stolen, and made to harm.
func releaseAttacks() []Attack {
	title := func(text string) func(context.Context, *scene) error {
		return ships(func(f *fake) error { annotate(f.layers[0], manifest.AnnTitle, text); return nil })
	}
	return []Attack{
		{Name: "wrong-hardware", Row: "wrong hardware", Class: trust.ClassWrongHardware, Refuser: "the device's own probed target, not the server's word",
			strike: func(ctx context.Context, s *scene) error { return s.w.assign(ctx, s.d.id, foreign) }},
		all("mix-and-match-engine", "mix-and-match", trust.ClassWrongHardware, "a manifest says its target itself, and it must be the one of the index",
			ships(func(f *fake) error {
				field(f.man, "annotations")[manifest.AnnTarget] = otherBoard
				return nil
			})),
		all("wrong-software", "wrong software", trust.ClassWrongSoftware, "the index says its own name and version, and they must be those of the signed path",
			ships(func(f *fake) error { field(f.index, "annotations")[manifest.AnnName] = other; return nil })),
		all("wrong-counter", "wrong software", trust.ClassWrongSoftware, "the index says its own counter",
			ships(func(f *fake) error {
				field(f.index, "annotations")[manifest.AnnCounter] = "1"
				return nil
			})),
		all("path-parent", "path traversal", trust.ClassPath, "titles of layers are plain file names", title("../../../evil.onnx")),
		all("path-absolute", "path traversal", trust.ClassPath, "titles of layers are plain file names", title("/etc/evil.onnx")),
		all("path-device", "path traversal", trust.ClassPath, "titles of layers are plain file names", title(`..\evil:con.onnx`)),
		all("path-release-name", "path traversal", trust.ClassPath, "names of releases are plain names",
			ships(func(f *fake) error {
				field(f.index, "annotations")[manifest.AnnVersion] = "../../66"
				return nil
			})),
		{Name: "path-target", Row: "path traversal", Class: trust.ClassDisagreement, Refuser: "TUF paths are relative and lead nowhere else",
			strike: orders(bait, func(_ *scene, d *wire.Desired) { d.Release.Target = "../../../etc/passwd" })},
		all("two-files-of-one-name", "bad input", trust.ClassTwice, "a file name stands once in a manifest, in any case",
			ships(func(f *fake) error {
				evil := []byte("evil")
				f.layers = append(f.layers, layer(manifest.MediaWeights, "MODEL.onnx", f.put(evil), len(evil)))
				return nil
			})),
		all("two-keys-of-one-name", "bad input", trust.ClassTwice, "a key stands once in a release's JSON",
			func(ctx context.Context, s *scene) error {
				f, err := newFake(s)
				if err != nil {
					return err
				}
				index, err := f.seal()
				if err != nil {
					return err
				}
				s.onlyHTTPS()
				return f.ship(ctx, bytes.Replace(index, []byte(`"schemaVersion":2`), []byte(`"schemaVersion":2,"manifests":[]`), 1))
			}),
	}
}

// patched gives the model of a fake release a patch from what the device runs,
// and withholds the model itself.
func patched(make func(f *fake, base, target ota.Digest, baseSize, targetSize int64) ([]byte, error)) func(context.Context, *scene) error {
	return ships(func(f *fake) error {
		m, err := f.s.w.manifest(running)
		if err != nil {
			return err
		}
		base, _, err := m.Weights()
		if err != nil {
			return err
		}
		target := ota.Digest(fmt.Sprint(f.layers[0]["digest"]))
		size := int64(len(f.blobs[target]))
		patch, err := make(f, base.Digest, target, base.Size, size)
		if err != nil {
			return err
		}
		list, err := json.Marshal([]manifest.Patch{{Base: base.Digest, Digest: f.put(patch), Size: int64(len(patch)), Kind: chunk.KindDict}})
		if err != nil {
			return err
		}
		annotate(f.layers[0], manifest.AnnPatches, string(list))
		f.blobs[target] = nil
		return nil
	})
}

// The form of a patch; see ota/chunk/FORMAT.md.
const (
	patchMagic = "skeinpt1"
	byZstd     = 3
	maxBlock   = 1 << 20
)

// patchOf writes a patch of zstd blocks: payloads with the lengths that they
// claim.
func patchOf(base, target ota.Digest, baseSize, targetSize int64, payloads [][]byte, lengths []uint32) []byte {
	b := append([]byte(patchMagic), base.Sum()...)
	b = binary.BigEndian.AppendUint64(b, uint64(baseSize))
	b = append(b, target.Sum()...)
	b = binary.BigEndian.AppendUint64(b, uint64(targetSize))
	for _, p := range payloads {
		b = append(b, p...)
	}
	for i, p := range payloads {
		b = append(b, byZstd, 0, 0)
		b = binary.BigEndian.AppendUint32(b, lengths[i])
		b = binary.BigEndian.AppendUint64(b, 0)
		b = binary.BigEndian.AppendUint32(b, 0)
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(payloads)))
	return append(b, patchMagic...)
}

// bomb is a zstd frame of 256 MiB of zeros.
func bomb() ([]byte, error) {
	var b bytes.Buffer
	e, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, err
	}
	zeros := make([]byte, 1<<20)
	for range 256 {
		if _, err := e.Write(zeros); err != nil {
			return nil, err
		}
	}
	if err := e.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// patchAttacks are those with what saves bytes: patches and chunk indexes.
func patchAttacks() []Attack {
	return []Attack{
		all("decompression-bomb", "bad input", trust.ClassBomb, "a block of a patch has room for its own length",
			patched(func(_ *fake, base, target ota.Digest, baseSize, targetSize int64) ([]byte, error) {
				b, err := bomb()
				return patchOf(base, target, baseSize, targetSize, [][]byte{b}, []uint32{uint32(targetSize)}), err
			})),
		all("wrong-base", "bad input", trust.ClassWrongBase, "a patch names its base, which is hashed before",
			patched(func(_ *fake, _, target ota.Digest, baseSize, targetSize int64) ([]byte, error) {
				return patchOf(ota.DigestOf([]byte("else")), target, baseSize, targetSize, [][]byte{{}}, []uint32{uint32(targetSize)}), nil
			})),
		all("lying-patch", "bad input", trust.ClassBadPatch, "the lengths of a patch must fit each other",
			patched(func(_ *fake, base, target ota.Digest, baseSize, targetSize int64) ([]byte, error) {
				return patchOf(base, target, baseSize, targetSize, [][]byte{{1, 2, 3}}, []uint32{maxBlock + 1}), nil
			})),
		all("patch-to-other-content", "bad input", trust.ClassWrongHash, "what a patch makes is hashed as any blob",
			patched(func(_ *fake, base, target ota.Digest, baseSize, targetSize int64) ([]byte, error) {
				e, err := zstd.NewWriter(nil)
				if err != nil {
					return nil, err
				}
				return patchOf(base, target, baseSize, targetSize, [][]byte{e.EncodeAll(make([]byte, targetSize), nil)}, []uint32{uint32(targetSize)}), nil
			})),
		all("index-not-covering", "bad input", trust.ClassBadIndex, "the chunks of an index must cover the file", ships(shortIndex)),
	}
}

// shortIndex gives the model a chunk index that ends before the model does, and
// withholds the model.
func shortIndex(f *fake) error {
	target := ota.Digest(fmt.Sprint(f.layers[0]["digest"]))
	ix, err := chunk.Build(context.Background(), target, bytes.NewReader(f.blobs[target]))
	if err != nil {
		return err
	}
	ix.Chunks = ix.Chunks[:len(ix.Chunks)-1]
	raw := ix.Marshal()
	ref, err := json.Marshal(manifest.BlobRef{Digest: f.put(raw), Size: int64(len(raw))})
	if err != nil {
		return err
	}
	annotate(f.layers[0], manifest.AnnChunks, string(ref))
	f.blobs[target] = nil
	return nil
}
