// Package bundle is one file that carries a release over a gap: an OCI image
// layout in a plain tar, with the TUF metadata that lists the release, what is
// attested of it, and desired states signed for named devices.
//
// Invariants: a reader takes nothing but the names that FORMAT.md lists, each
// once, as plain files with true lengths; it never expands, follows or writes
// anything, and its memory does not depend on the size of the blobs. What is
// in a bundle is not trusted for being there: metadata is for trust.Client to
// judge, blobs are hashed. A writer goes on at the byte where an earlier one
// stopped, after it hashed what is there. agent, controlplane and sim import
// it.
package bundle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/ota"
	"github.com/skein-fleet/skein/ota/fetch"
	"github.com/skein-fleet/skein/ota/manifest"
	"github.com/skein-fleet/skein/proto/wire"
)

// Names in a bundle.
const (
	layoutName  = "oci-layout"
	indexName   = "index.json"
	infoName    = "skein/bundle.json"
	metadataDir = "tuf/"
	desiredDir  = "desired/"
	blobDir     = "blobs/sha256/"
)

// Version of the format.
const Version = 1

// Limits of readers.
const (
	MaxHead     = 64 << 20 // all before the first layer
	MaxMetadata = 5 << 20  // one file of metadata
	MaxFiles    = 20000
)

// AnnRefName is the tag of a manifest in an image layout.
const AnnRefName = "org.opencontainers.image.ref.name"

const layoutText = `{"imageLayoutVersion":"1.0.0"}`

// What readers return, wrapped.
var (
	ErrNotBundle = errors.New("not a bundle")
	ErrTruncated = errors.New("truncated bundle")
	ErrName      = errors.New("bundle with a name that it must not have")
	ErrKind      = errors.New("bundle with something that is not a plain file")
	ErrTooLong   = errors.New("bundle with a file that is too long")
	ErrContent   = errors.New("bundle with altered content")
)

// Info is skein/bundle.json.
type Info struct {
	Version int    `json:"version"`
	Release string `json:"release"` // name@version
	// Target is the path under which the TUF targets list the release.
	Target string              `json:"target"`
	Index  manifest.Descriptor `json:"index"`
	// Targets are those whose layers are here; empty: all.
	Targets []string `json:"targets,omitempty"`
	// Layers follow the head in this order.
	Layers []manifest.BlobRef `json:"layers"`
	// Expires is when the metadata does, RFC 3339.
	Expires string `json:"expires"`
	Created string `json:"created"`
	By      string `json:"by,omitempty"` // the program that wrote it
}

// section is a file in the bundle.
type section struct{ at, size int64 }

// Bundle reads one.
type Bundle struct {
	Info Info

	r     io.ReaderAt
	files map[string]section
	head  int64 // bytes before the first layer
}

var (
	metadataRE = regexp.MustCompile(`^[A-Za-z0-9._%+-]{1,100}\.json$`)
	deviceRE   = regexp.MustCompile(`^[a-z0-9]{1,64}\.cose$`)
	hexRE      = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// check says whether a bundle may have a file.
func check(name string, size int64) error {
	limit := int64(MaxMetadata)
	base, dir := name, ""
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		dir, base = name[:i+1], name[i+1:]
	}
	ok := false
	switch {
	case !fs.ValidPath(name) || strings.ContainsRune(name, '\\'):
		return fmt.Errorf("%w: %.100q leads out of it", ErrName, name)
	case name == layoutName || name == indexName || name == infoName:
		ok = true
	case dir == metadataDir:
		ok = metadataRE.MatchString(base)
	case dir == desiredDir:
		ok, limit = deviceRE.MatchString(base), wire.MaxMessage
	case dir == blobDir:
		ok, limit = hexRE.MatchString(base), manifest.MaxBlob
	}
	if !ok {
		return fmt.Errorf("%w: %.100q", ErrName, name)
	}
	if size > limit {
		return fmt.Errorf("%w: %.100q has %d bytes, limit %d", ErrTooLong, name, size, limit)
	}
	return nil
}

// Open reads the directory of a bundle of that many bytes and what describes
// it. Blobs are not hashed: see Verify.
func Open(r io.ReaderAt, size int64) (*Bundle, error) {
	b, at, err := openHead(r, size)
	if err != nil {
		return nil, err
	}
	for _, l := range b.Info.Layers {
		name, length, end, err := readHeader(r, at, size)
		if err != nil {
			return nil, err
		}
		if end || name != blobName(l.Digest) || length != l.Size {
			return nil, fmt.Errorf("%w: layer %s of %d bytes should be at byte %d", ErrContent, l.Digest.Short(), l.Size, at)
		}
		if err := fits(name, at, length, size); err != nil {
			return nil, err
		}
		b.files[name] = section{at + block, length}
		if at += block + padded(length); at > size {
			return nil, fmt.Errorf("%w: it has %d bytes", ErrTruncated, size)
		}
	}
	tail := make([]byte, len(ending))
	if at+int64(len(tail)) > size {
		return nil, fmt.Errorf("%w: it has %d bytes, its end is missing", ErrTruncated, size)
	}
	if _, err := r.ReadAt(tail, at); err != nil {
		return nil, readError(at, err)
	}
	if at+int64(len(tail)) != size || [len(ending)]byte(tail) != ending {
		return nil, fmt.Errorf("%w: there is more than its files after byte %d", ErrContent, at)
	}
	return b, nil
}

// OpenHead reads a bundle up to its first layer: the beginning of one that is
// not complete, or one whose layers travel apart.
func OpenHead(r io.ReaderAt, size int64) (*Bundle, error) {
	b, _, err := openHead(r, size)
	return b, err
}

// openHead reads the files before the layers; the info says where they end.
func openHead(r io.ReaderAt, size int64) (*Bundle, int64, error) {
	b := &Bundle{r: r, files: map[string]section{}}
	layers := map[string]bool{}
	at := int64(0)
	for {
		if at > 0 && at+block > size && b.complete() == nil {
			break // an interrupted copy that ends where its layers begin
		}
		name, length, end, err := readHeader(r, at, size)
		if err != nil {
			return nil, 0, err
		}
		if end || layers[name] {
			break
		}
		if err := b.take(name, at, length, size); err != nil {
			return nil, 0, err
		}
		if name == infoName {
			if err := b.readInfo(layers); err != nil {
				return nil, 0, err
			}
		}
		at += block + padded(length)
		if at > MaxHead || len(b.files) > MaxFiles {
			return nil, 0, fmt.Errorf("%w: more than %d bytes or %d files stand before its layers", ErrTooLong, MaxHead, MaxFiles)
		}
	}
	b.head = at
	return b, at, b.complete()
}

// take notes one file of the head.
func (b *Bundle) take(name string, at, length, size int64) error {
	if err := check(name, length); err != nil {
		return err
	}
	if err := fits(name, at, length, size); err != nil {
		return err
	}
	if _, twice := b.files[name]; twice {
		return fmt.Errorf("%w: %.100q is there twice", ErrName, name)
	}
	b.files[name] = section{at + block, length}
	return nil
}

func (b *Bundle) complete() error {
	for _, name := range []string{layoutName, indexName, infoName, blobName(b.Info.Index.Digest)} {
		if _, ok := b.files[name]; !ok {
			return fmt.Errorf("%w: it has no %s", ErrNotBundle, name)
		}
	}
	return nil
}

func (b *Bundle) readInfo(layers map[string]bool) error {
	raw, err := b.read(infoName, MaxMetadata)
	if err != nil {
		return err
	}
	if err := manifest.Decode(raw, MaxMetadata, &b.Info); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrNotBundle, infoName, err)
	}
	i := b.Info
	if i.Version != Version {
		return fmt.Errorf("%w: it is of version %d, this program reads %d", ErrNotBundle, i.Version, Version)
	}
	if err := i.Index.Validate(); err != nil || i.Index.Size > manifest.MaxIndex {
		return fmt.Errorf("%w: %s: unusable index", ErrNotBundle, infoName)
	}
	if len(i.Layers) > MaxFiles {
		return fmt.Errorf("%w: %d layers", ErrTooLong, len(i.Layers))
	}
	for _, l := range i.Layers {
		if _, err := ota.ParseDigest(string(l.Digest)); err != nil || l.Size < 0 || l.Size > manifest.MaxBlob {
			return fmt.Errorf("%w: layer %.80q of %d bytes", ErrTooLong, l.Digest, l.Size)
		}
		if layers[blobName(l.Digest)] {
			return fmt.Errorf("%w: layer %s is listed twice", ErrName, l.Digest)
		}
		layers[blobName(l.Digest)] = true
	}
	return nil
}

func blobName(d ota.Digest) string { return blobDir + d.Hex() }

// read returns a whole small file.
func (b *Bundle) read(name string, limit int64) ([]byte, error) {
	s, ok := b.files[name]
	if !ok {
		return nil, fmt.Errorf("bundle has no %s: %w", name, fs.ErrNotExist)
	}
	if s.size > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, limit %d", ErrTooLong, name, s.size, limit)
	}
	raw := make([]byte, s.size)
	if _, err := io.ReadFull(io.NewSectionReader(b.r, s.at, s.size), raw); err != nil {
		return nil, readError(s.at, err)
	}
	return raw, nil
}

// Metadata returns a file of the TUF metadata; it is a trust.MetadataSource.
func (b *Bundle) Metadata(ctx context.Context, name string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	return b.read(metadataDir+name, MaxMetadata)
}

// Desired returns the desired state that the director signed for a device;
// fs.ErrNotExist when it signed none.
func (b *Bundle) Desired(device string) ([]byte, error) {
	return b.read(desiredDir+device+".cose", wire.MaxMessage)
}

// Devices lists the devices with a desired state.
func (b *Bundle) Devices() []string {
	var out []string
	for name := range b.files {
		if id, ok := strings.CutPrefix(name, desiredDir); ok {
			out = append(out, strings.TrimSuffix(id, ".cose"))
		}
	}
	slices.Sort(out)
	return out
}

// Size returns the size of a blob, and whether it is here.
func (b *Bundle) Size(d ota.Digest) (int64, bool) {
	s, ok := b.files[blobName(d)]
	return s.size, ok
}

// At returns a blob to read from, and whether it is here.
func (b *Bundle) At(d ota.Digest) (*io.SectionReader, bool) {
	s, ok := b.files[blobName(d)]
	return io.NewSectionReader(b.r, s.at, s.size), ok
}

// Small returns a whole small blob, hashed.
func (b *Bundle) Small(d ota.Digest, limit int64) ([]byte, error) {
	raw, err := b.read(blobName(d), limit)
	if err != nil {
		return nil, err
	}
	if ota.DigestOf(raw) != d {
		return nil, fmt.Errorf("%w: blob %s", ErrContent, d)
	}
	return raw, nil
}

// Open implements fetch.Source.
func (b *Bundle) Open(ctx context.Context, d ota.Digest, offset, length int64) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	s, ok := b.files[blobName(d)]
	if !ok {
		return nil, fmt.Errorf("%w: bundle has no blob %s", fetch.ErrNotFound, d.Short())
	}
	if offset < 0 || length <= 0 || offset > s.size {
		return nil, fmt.Errorf("%w: range %d+%d of blob %s, %d bytes", fetch.ErrNotFound, offset, length, d.Short(), s.size)
	}
	return io.NopCloser(io.NewSectionReader(b.r, s.at+offset, min(length, s.size-offset))), nil
}

// Layout returns the entries of the image layout's index: the release first,
// then what refers to it.
func (b *Bundle) Layout() ([]manifest.Descriptor, error) {
	raw, err := b.read(indexName, manifest.MaxIndex)
	if err != nil {
		return nil, err
	}
	var ix manifest.Index
	if err := manifest.Decode(raw, manifest.MaxIndex, &ix); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrNotBundle, indexName, err)
	}
	if len(ix.Manifests) == 0 || ix.Manifests[0].Digest != b.Info.Index.Digest {
		return nil, fmt.Errorf("%w: %s does not begin with the release", ErrNotBundle, indexName)
	}
	for _, d := range ix.Manifests {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrNotBundle, indexName, err)
		}
	}
	return ix.Manifests, nil
}

// Head returns all before the first layer, as an archive of its own.
func (b *Bundle) Head() ([]byte, error) {
	raw := make([]byte, b.head, b.head+int64(len(ending)))
	if _, err := io.ReadFull(io.NewSectionReader(b.r, 0, b.head), raw); err != nil {
		return nil, readError(0, err)
	}
	return append(raw, ending[:]...), nil
}

// Verify hashes every blob. progress, which may be nil, is told how many bytes
// were hashed of how many.
func (b *Bundle) Verify(ctx context.Context, progress func(done, total int64)) error {
	var total, done int64
	var names []string
	for name, s := range b.files {
		if strings.HasPrefix(name, blobDir) {
			names = append(names, name)
			total += s.size
		}
	}
	slices.SortFunc(names, func(x, y string) int { return int(b.files[x].at/block - b.files[y].at/block) })
	for _, name := range names {
		s := b.files[name]
		sum, err := hash(ctx, io.NewSectionReader(b.r, s.at, s.size), func(n int64) {
			if progress != nil {
				progress(done+n, total)
			}
		})
		if err != nil {
			return err
		}
		if want := strings.TrimPrefix(name, blobDir); sum.Hex() != want {
			return fmt.Errorf("%w: blob %s is %s", ErrContent, want[:12], sum.Short())
		}
		done += s.size
	}
	return nil
}

// encodeInfo is skein/bundle.json.
func encodeInfo(i Info) ([]byte, error) {
	i.Version = Version
	raw, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", infoName, err)
	}
	return append(raw, '\n'), nil
}
