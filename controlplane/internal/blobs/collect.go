package blobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/blob"
	"github.com/skein-fleet/skein/ota/manifest"
)

// LeastGrace is the shortest time for which a blob is kept after it was last
// used: who uploads or finds one has that long to refer to it.
const LeastGrace = time.Hour

// ErrGrace is returned for a shorter grace time.
var ErrGrace = errors.New("grace time is too short")

// Collect says what to collect. Roots is required.
type Collect struct {
	// Roots returns what models, releases and the registry refer to. What these
	// blobs name, as far as they are JSON, and chunk indexes, are found from them.
	Roots func(ctx context.Context) ([]ota.Digest, error)
	// Index returns the chunk index of a blob; Forget drops its place once the
	// blob is gone. Both may be nil.
	Index  func(d ota.Digest) (ota.Digest, bool)
	Forget func(d ota.Digest) error
	// Grace is how long a blob is kept after it was last used.
	Grace  time.Duration
	DryRun bool
}

// Collected is what a collection did, or would do.
type Collected struct {
	Removed []Garbage
	Bytes   int64
	// Kept is all that stays; InGrace of it only for the grace time.
	Kept, InGrace int
	KeptBytes     int64
}

// Garbage is one blob that nothing refers to.
type Garbage struct {
	Digest  ota.Digest
	Size    int64
	Touched time.Time
}

// Collect removes blobs that nothing refers to and that were not used within
// the grace time. Uploads under way are files of their own and not looked at.
// The store tracks use. A reference that is made while it runs counts, because
// whoever makes it has asked for the blob just before.
func (s *Server) Collect(ctx context.Context, c Collect) (Collected, error) {
	var out Collected
	if c.Grace < LeastGrace {
		return out, fmt.Errorf("%w: %s: want at least %s", ErrGrace, c.Grace, LeastGrace)
	}
	before := s.opts.Now().Add(-c.Grace)
	live, err := s.mark(ctx, c)
	if err != nil {
		return out, err
	}
	var dead []blob.Info
	for i, err := range s.store.List() {
		switch {
		case err != nil:
			return out, fmt.Errorf("list blobs: %w", err)
		case live[i.Digest]:
			out.Kept++
			out.KeptBytes += i.Size
		default:
			dead = append(dead, i)
		}
	}
	for _, i := range dead {
		if ctx.Err() != nil {
			return out, context.Cause(ctx)
		}
		touched := s.store.LastUse(i)
		gone := !touched.After(before)
		if gone && !c.DryRun {
			if gone, err = s.store.DeleteUnused(i, before); err != nil {
				return out, err
			}
		}
		if !gone {
			out.Kept++
			out.InGrace++
			out.KeptBytes += i.Size
			continue
		}
		out.Removed = append(out.Removed, Garbage{i.Digest, i.Size, touched})
		out.Bytes += i.Size
		if !c.DryRun && c.Forget != nil {
			if err := c.Forget(i.Digest); err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

var digestRE = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// mark returns everything that can be reached from the roots. A document that
// is reached keeps all digests that it mentions, whatever its form: manifests,
// indexes, annotations and attestations of today and of later.
func (s *Server) mark(ctx context.Context, c Collect) (map[ota.Digest]bool, error) {
	pending, err := c.Roots(ctx)
	if err != nil {
		return nil, fmt.Errorf("collect garbage: %w", err)
	}
	live := map[ota.Digest]bool{}
	for len(pending) > 0 {
		d := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		if live[d] {
			continue
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		live[d] = true
		if c.Index != nil {
			if ix, ok := c.Index(d); ok {
				pending = append(pending, ix)
			}
		}
		named, err := s.named(ctx, d)
		if err != nil {
			return nil, err
		}
		pending = append(pending, named...)
	}
	return live, nil
}

// named returns the digests that a blob mentions, if it is a document.
func (s *Server) named(ctx context.Context, d ota.Digest) ([]ota.Digest, error) {
	size, err := s.store.Size(d)
	if errors.Is(err, blob.ErrNotFound) || err == nil && size > max(manifest.MaxIndex, manifest.MaxManifest) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("collect garbage: %w", err)
	}
	raw, err := s.store.ReadAll(ctx, d, max(manifest.MaxIndex, manifest.MaxManifest))
	if err != nil {
		return nil, fmt.Errorf("collect garbage: %w", err)
	}
	if t := bytes.TrimLeft(raw, " \t\r\n"); len(t) == 0 || t[0] != '{' && t[0] != '[' {
		return nil, nil
	}
	var out []ota.Digest
	for _, m := range digestRE.FindAll(raw, -1) {
		out = append(out, ota.Digest(m))
	}
	return out, nil
}
