package manifest

import (
	"encoding/json"
	"fmt"
	"maps"

	"github.com/skein-fleet/skein/ota"
)

// MaxPatches of one layer.
const MaxPatches = 16

// BlobRef names a blob that is not a layer.
type BlobRef struct {
	Digest ota.Digest `json:"digest"`
	Size   int64      `json:"size"`
}

// Patch names a blob that makes a layer out of an older artifact.
type Patch struct {
	Base   ota.Digest `json:"base"`
	Digest ota.Digest `json:"digest"`
	Size   int64      `json:"size"`
	Kind   string     `json:"kind"`
}

// Savings are the blobs that bring a layer with fewer bytes than it has. They
// are annotations of the layer, so the release's digest covers them.
type Savings struct {
	Chunks  *BlobRef // the chunk index
	Patches []Patch
}

func (s Savings) annotate(d Descriptor) (Descriptor, error) {
	if s.Chunks == nil && len(s.Patches) == 0 {
		return d, nil
	}
	d.Annotations = maps.Clone(d.Annotations)
	if d.Annotations == nil {
		d.Annotations = map[string]string{}
	}
	if s.Chunks != nil {
		b, err := json.Marshal(s.Chunks)
		if err != nil {
			return d, fmt.Errorf("write %s: %w", AnnChunks, err)
		}
		d.Annotations[AnnChunks] = string(b)
	}
	if len(s.Patches) > 0 {
		b, err := json.Marshal(s.Patches)
		if err != nil {
			return d, fmt.Errorf("write %s: %w", AnnPatches, err)
		}
		d.Annotations[AnnPatches] = string(b)
	}
	return d, nil
}

// Savings reads the annotations of a layer; without any it returns none.
func (d Descriptor) Savings() (s Savings, err error) {
	if text, ok := d.Annotations[AnnChunks]; ok {
		s.Chunks = &BlobRef{}
		if err := decode([]byte(text), maxText, s.Chunks); err != nil {
			return Savings{}, fmt.Errorf("annotation %s: %w", AnnChunks, err)
		}
		if err := s.Chunks.check(); err != nil {
			return Savings{}, fmt.Errorf("annotation %s: %w", AnnChunks, err)
		}
	}
	text, ok := d.Annotations[AnnPatches]
	if !ok {
		return s, nil
	}
	if err := decode([]byte(text), maxText, &s.Patches); err != nil {
		return Savings{}, fmt.Errorf("annotation %s: %w", AnnPatches, err)
	}
	if len(s.Patches) > MaxPatches {
		return Savings{}, fmt.Errorf("annotation %s: %w: %d patches, limit %d", AnnPatches, ErrMalformed, len(s.Patches), MaxPatches)
	}
	for i, p := range s.Patches {
		if err := (BlobRef{p.Digest, p.Size}).check(); err != nil {
			return Savings{}, fmt.Errorf("annotation %s: patch %d: %w", AnnPatches, i, err)
		}
		if _, err := ota.ParseDigest(string(p.Base)); err != nil || p.Base == d.Digest {
			return Savings{}, fmt.Errorf("annotation %s: patch %d: %w: base %.80q", AnnPatches, i, ErrMalformed, p.Base)
		}
		if p.Kind == "" || len(p.Kind) > 32 {
			return Savings{}, fmt.Errorf("annotation %s: patch %d: %w: kind %.40q", AnnPatches, i, ErrMalformed, p.Kind)
		}
	}
	return s, nil
}

func (b BlobRef) check() error {
	if _, err := ota.ParseDigest(string(b.Digest)); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if b.Size < 1 || b.Size > MaxBlob {
		return fmt.Errorf("%w: size %d, want 1 to %d", ErrMalformed, b.Size, int64(MaxBlob))
	}
	return nil
}

// Descriptor returns what is fetched.
func (b BlobRef) Descriptor(mediaType string) Descriptor {
	return Descriptor{MediaType: mediaType, Digest: b.Digest, Size: b.Size}
}
