package attack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/ota/trust"
	"github.com/skein-fleet/skein/proto/wire"
)

// parts are the blobs of the bait below its manifest: layers and what saves
// bytes of them.
func (s *scene) parts() (layers, savings []manifest.Descriptor, err error) {
	m, err := s.w.manifest(bait)
	if err != nil {
		return nil, nil, err
	}
	for _, l := range m.Layers {
		save, err := l.Savings()
		if err != nil {
			return nil, nil, err
		}
		if save.Chunks != nil {
			savings = append(savings, save.Chunks.Descriptor("chunks"))
		}
		for _, p := range save.Patches {
			savings = append(savings, manifest.BlobRef{Digest: p.Digest, Size: p.Size}.Descriptor("patch"))
		}
	}
	return m.Layers, savings, nil
}

// mirror lets the attacker answer over HTTPS for all blobs below the manifest of
// the bait.
func mirror(how func(r *http.Request, size int64) *http.Response) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		layers, savings, err := s.parts()
		if err != nil {
			return err
		}
		sizes := map[ota.Digest]int64{}
		for _, d := range append(layers, savings...) {
			sizes[d.Digest] = d.Size
		}
		s.d.man.setAnswer(func(r *http.Request, next http.RoundTripper) (*http.Response, error) {
			size, ok := sizes[blobOf(r)]
			if !ok {
				return next.RoundTrip(r)
			}
			return how(r, size), nil
		})
		return s.bait(ctx)
	}
}

// spoils is mirror, and there is no other way to bytes.
func spoils(how func(r *http.Request, size int64) *http.Response) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		s.onlyHTTPS()
		return mirror(how)(ctx, s)
	}
}

// onlyHTTPS leaves the device no other way to bytes than HTTPS: requests over
// the link are refused in the control plane's place.
func (s *scene) onlyHTTPS() {
	s.d.man.mu.Lock()
	defer s.d.man.mu.Unlock()
	s.d.man.up = func(kind wire.Kind, payload []byte) ([]byte, bool) {
		if kind != wire.UpGet {
			return payload, true
		}
		var g wire.Get
		if wire.Unmarshal(payload, &g) == nil && !g.Stop {
			if raw, err := wire.Marshal(&wire.Chunk{Stream: g.Stream, Seq: g.Seq, Refused: wire.RefusedForbidden, Message: "refused by the attacker"}); err == nil {
				s.d.man.say(wire.DownChunk, raw)
			}
		}
		return nil, false
	}
}

// contentAttacks are those of a mirror, or of whoever stands before it: the
// metadata is honest, the bytes are not.
func contentAttacks() []Attack {
	const hash = "every blob is hashed before it is visible"
	return []Attack{
		{Name: "junk-mirror", Row: "malicious mirror", Class: trust.ClassWrongHash, Refuser: hash,
			strike: spoils(func(r *http.Request, size int64) *http.Response {
				return serve(r, bytes.Repeat([]byte("junk"), int(size/4)+1)[:size])
			})},
		{Name: "endless-blob", Row: "endless data", Class: trust.ClassEndless, Refuser: "reading stops at the signed length; no length is said",
			strike: spoils(func(r *http.Request, _ int64) *http.Response { return ranged(r, endless{}, -1) })},
		{Name: "endless-blob-declared", Row: "endless data", Class: trust.ClassEndless, Refuser: "reading stops at the signed length; 1 TiB is said",
			strike: spoils(func(r *http.Request, _ int64) *http.Response { return ranged(r, endless{}, 1<<40) })},
		{Name: "lying-length", Row: "endless data", Class: trust.ClassEndless, Refuser: "the signed length counts, not the one that is said",
			strike: spoils(func(r *http.Request, size int64) *http.Response {
				// As many bytes as the length says are wrong, and more follow.
				return ranged(r, io.LimitReader(endless{}, size+1), size+1)
			})},
		{Name: "partial-bundle", Row: "partial bundle", Class: trust.ClassWithheld, Refuser: "a release is installed whole or not at all", strike: partialBundle},
		{Name: "withheld-release", Row: "partial bundle", Class: trust.ClassWithheld, Refuser: "a release is installed whole or not at all",
			strike: spoils(func(r *http.Request, _ int64) *http.Response {
				return reply(r, http.StatusNotFound, strings.NewReader("gone"), -1)
			})},
		{Name: "junk-mirror-other-way", Row: "malicious mirror", Class: trust.ClassWrongHash, Refuser: hash + "; who gave wrong bytes is avoided, and the link brings them", Heals: true,
			strike: mirror(func(r *http.Request, size int64) *http.Response {
				return serve(r, bytes.Repeat([]byte("junk"), int(size/4)+1)[:size])
			})},
		{Name: "stalling-mirror-other-way", Row: "malicious mirror", Class: "mqtt", where: "bytes by source in the transfer report", Refuser: "a way that brings nothing is avoided, and the link brings the bytes", Heals: true,
			device: func(o *deviceOptions) { o.patience = time.Second },
			strike: mirror(func(r *http.Request, size int64) *http.Response { return ranged(r, &drip{ctx: r.Context()}, size) }),
			named:  func(ctx context.Context, s *scene) (bool, error) { return s.broughtBy(ctx, s.a.Class) }},
		{Name: "other-blob", Row: "malicious mirror", Class: trust.ClassWrongHash, Refuser: hash + ": the model of another release in its place",
			strike: func(ctx context.Context, s *scene) error {
				evil, err := s.w.model(older)
				if err != nil {
					return err
				}
				return spoils(func(r *http.Request, _ int64) *http.Response { return serve(r, evil) })(ctx, s)
			}},
	}
}

// partialBundle delivers the model and withholds the golden set without which
// it is not proven.
func partialBundle(ctx context.Context, s *scene) error {
	layers, savings, err := s.parts()
	if err != nil {
		return err
	}
	set := map[ota.Digest][]byte{}
	for _, l := range append(layers, savings...) {
		if l.MediaType != manifest.MediaWeights {
			set[l.Digest] = nil
		}
	}
	if len(set) == 0 {
		return errors.New("the release has nothing but its model")
	}
	s.d.man.setAnswer(blobs(set))
	s.onlyHTTPS()
	return s.bait(ctx)
}

// fake is a release of the attacker's: all keys are his, and the device's own
// reading of it is what is left.
type fake struct {
	s       *scene
	blobs   map[ota.Digest][]byte
	index   map[string]any
	man     map[string]any
	layers  []map[string]any
	path    string
	counter uint64
}

// put keeps a blob.
func (f *fake) put(content []byte) ota.Digest {
	d := ota.DigestOf(content)
	f.blobs[d] = content
	return d
}

func layer(mediaType, title string, d ota.Digest, size int) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": string(d), "size": size, "annotations": map[string]any{manifest.AnnTitle: title}}
}

// newFake is a release like the bait, with a model of the attacker's that
// answers the golden set of the bait rightly.
func newFake(s *scene) (*fake, error) {
	f := &fake{s: s, blobs: map[ota.Digest][]byte{}, path: s.w.releases[bait].path(), counter: s.w.releases[bait].counter + 50}
	model, err := s.w.marked(bait, "evil")
	if err != nil {
		return nil, err
	}
	g, err := golden(bait)
	if err != nil {
		return nil, err
	}
	f.layers = []map[string]any{
		layer(manifest.MediaWeights, "model.onnx", f.put(model), len(model)),
		layer(manifest.MediaGolden, "golden.json", f.put(g), len(g)),
	}
	config := []byte("{}")
	f.man = map[string]any{"schemaVersion": 2, "mediaType": manifest.MediaManifest, "artifactType": manifest.MediaArtifact,
		"config":      map[string]any{"mediaType": manifest.MediaConfig, "digest": string(f.put(config)), "size": len(config)},
		"annotations": map[string]any{manifest.AnnTarget: targetText}}
	f.index = map[string]any{"schemaVersion": 2, "mediaType": manifest.MediaIndex, "artifactType": manifest.MediaArtifact,
		"annotations": map[string]any{manifest.AnnName: product, manifest.AnnVersion: "66", manifest.AnnCounter: fmt.Sprint(f.counter), manifest.AnnModel: product}}
	f.path = fmt.Sprintf("releases/%s/66", product)
	return f, nil
}

// seal finishes manifest and index and returns the index.
func (f *fake) seal() ([]byte, error) {
	f.man["layers"] = f.layers
	m, err := canonical(f.man)
	if err != nil {
		return nil, err
	}
	f.index["manifests"] = []any{map[string]any{"mediaType": manifest.MediaManifest, "digest": string(f.put(m)), "size": len(m),
		"annotations": map[string]any{manifest.AnnTarget: targetText}}}
	return canonical(f.index)
}

// ship lists the index in the stolen repository, serves all of it, and orders
// it with the stolen key of the director.
func (f *fake) ship(ctx context.Context, index []byte) error {
	s := f.s
	d := f.put(index)
	if err := s.thief.lists(ctx, s.w, f.path, index, f.counter); err != nil {
		return fmt.Errorf("list the release: %w", err)
	}
	set, err := s.thief.served()
	if err != nil {
		return err
	}
	s.d.man.setAnswer(both(files(set), blobs(f.blobs)))
	by, err := s.thief.director()
	if err != nil {
		return err
	}
	return s.order(by, s.desired(bait, func(w *wire.Desired) {
		w.Release = &wire.ReleaseRef{Target: f.path, Digest: d.Sum(), Length: int64(len(index)), Counter: f.counter}
	}))
}

// ships is a strike with a changed fake release.
func ships(change func(f *fake) error) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		f, err := newFake(s)
		if err != nil {
			return err
		}
		if err := change(f); err != nil {
			return err
		}
		index, err := f.seal()
		if err != nil {
			return err
		}
		s.onlyHTTPS()
		return f.ship(ctx, index)
	}
}

// annotate changes an annotation of a layer.
func annotate(l map[string]any, key, value string) { field(l, "annotations")[key] = value }
