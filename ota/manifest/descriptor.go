// Package manifest is the form of a release: an OCI image index with one
// manifest per target in the CNCF ModelPack shape, the golden set that proves
// a model on a device, and the parameters a release declares.
//
// Invariants: parsers are strict and bounded, for what they read comes from
// outside; what Build writes, the parsers read, and any OCI tool too. It does
// no I/O of its own. agent, controlplane and the ota packages import it.
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/skein-fleet/skein/ota"
)

// Media types of a release.
const (
	MediaIndex    = "application/vnd.oci.image.index.v1+json"
	MediaManifest = "application/vnd.oci.image.manifest.v1+json"
	MediaArtifact = "application/vnd.cncf.model.manifest.v1+json"
	MediaConfig   = "application/vnd.cncf.model.config.v1+json"
	MediaWeights  = "application/vnd.cncf.model.weight.v1.raw"
	MediaGolden   = "application/vnd.skein.golden.v1+json"
	// MediaSource is the ONNX file beside a plan that was stripped of its weights.
	MediaSource = "application/vnd.skein.engine.source.v1+onnx"
)

// Annotations of a release.
const (
	AnnName         = "dev.skein.name"
	AnnVersion      = "dev.skein.version"
	AnnCounter      = "dev.skein.counter"
	AnnModel        = "dev.skein.model"
	AnnModelVersion = "dev.skein.model.version"
	AnnSoak         = "dev.skein.soak"
	AnnParameters   = "dev.skein.parameters"
	AnnTarget       = "dev.skein.target"
	AnnRecipe       = "dev.skein.recipe"  // digest of what made it, when nobody's hand did
	AnnChunks       = "dev.skein.chunks"  // of a layer: its chunk index
	AnnPatches      = "dev.skein.patches" // of a layer: ways to make it from an older one
	AnnEngine       = "dev.skein.engine"  // of a plan: its sealed record, of package ota/engine
	AnnStripped     = "dev.skein.engine.stripped"
	AnnTitle        = "org.opencontainers.image.title"
)

// Limits of the parsers.
const (
	MaxIndex    = 4 << 20
	MaxManifest = 4 << 20
	MaxEntries  = 1024      // manifests of an index, layers of a manifest
	MaxBlob     = 64 << 30  // size of one blob
	MaxCounter  = 1<<53 - 1 // of a release: what every JSON reader keeps exactly
	maxDepth    = 16
	maxText     = 64 << 10 // one annotation
)

// What the parsers return, wrapped.
var (
	ErrMalformed = errors.New("malformed release")
	ErrNoTarget  = errors.New("release has nothing for this device")
	// ErrName is returned for what should be a plain name and could be a path.
	ErrName = fmt.Errorf("%w: not a plain name", ErrMalformed)
	// ErrTwice is returned where one name or key stands for two things.
	ErrTwice = fmt.Errorf("%w: named twice", ErrMalformed)
)

// Descriptor names a blob, as in OCI.
type Descriptor struct {
	MediaType    string     `json:"mediaType"`
	ArtifactType string     `json:"artifactType,omitempty"`
	Digest       ota.Digest `json:"digest"`
	Size         int64      `json:"size"`
	// URLs are sources outside Skein, its mirrors, in the form of skein-fetch.
	URLs        []string          `json:"urls,omitempty"`
	Platform    *Platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Platform is the OCI platform of a manifest; the whole target is in the
// annotation dev.skein.target.
type Platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// Title returns the file name of a layer, for example model.onnx.
func (d Descriptor) Title() string { return d.Annotations[AnnTitle] }

// Validate checks what a reader must know before it fetches the blob.
func (d Descriptor) Validate() error {
	if d.MediaType == "" {
		return fmt.Errorf("%w: descriptor without mediaType", ErrMalformed)
	}
	if _, err := ota.ParseDigest(string(d.Digest)); err != nil {
		return fmt.Errorf("%w: descriptor: %w", ErrMalformed, err)
	}
	if d.Size < 0 || d.Size > MaxBlob {
		return fmt.Errorf("%w: descriptor %s: size %d, want 0 to %d", ErrMalformed, d.Digest.Short(), d.Size, int64(MaxBlob))
	}
	if t := d.Title(); t != "" && !plainName(t) {
		return fmt.Errorf("%w: descriptor %s: title %q is not a plain file name", ErrName, d.Digest.Short(), t)
	}
	if err := CheckMirrors(d.URLs); err != nil {
		return fmt.Errorf("descriptor %s: %w", d.Digest.Short(), err)
	}
	return checkAnnotations(d.Annotations)
}

// Limits of mirrors.
const (
	MaxMirrors = 8
	maxMirror  = 2048
)

// CheckMirrors checks sources outside Skein: http or https, behind s3::, gcs::
// or git:: where it is one of these. A release is public to all its devices, so
// none may carry a secret.
func CheckMirrors(urls []string) error {
	if len(urls) > MaxMirrors {
		return fmt.Errorf("%w: %d mirrors, limit %d", ErrMalformed, len(urls), MaxMirrors)
	}
	for _, text := range urls {
		kind, rest, forced := strings.Cut(text, "::")
		if !forced {
			kind, rest = "", text
		}
		u, err := url.Parse(rest)
		switch {
		case len(text) > maxMirror || err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || !slices.Contains([]string{"", "s3", "gcs", "git"}, kind):
			return fmt.Errorf("%w: mirror %.100q: want http:// or https://, with s3::, gcs:: or git:: before it where it is one of these, and at most %d bytes", ErrMalformed, text, maxMirror)
		case u.User != nil || u.Query().Has("aws_access_key_id") || u.Query().Has("aws_access_key_secret") || u.Query().Has("sshkey"):
			return fmt.Errorf("%w: mirror at %s carries a secret, and every device of the release would read it: give the devices credentials of their own", ErrMalformed, u.Host)
		}
	}
	return nil
}

// plainName reports whether s can be a file name and nothing else.
func plainName(s string) bool {
	return len(s) <= 255 && s != "." && s != ".." && !strings.ContainsFunc(s, func(r rune) bool {
		return r < ' ' || r == '/' || r == '\\' || r == ':' || r == 0x7f
	})
}

func checkAnnotations(as map[string]string) error {
	if len(as) > 64 {
		return fmt.Errorf("%w: %d annotations, limit 64", ErrMalformed, len(as))
	}
	for k, v := range as {
		if k == "" || len(k) > 256 || len(v) > maxText {
			return fmt.Errorf("%w: annotation %.40q is too long or has no name", ErrMalformed, k)
		}
	}
	return nil
}

// decode reads one JSON value into v: bounded in size and depth, nothing
// after it, no key twice, not even in another case. Unknown keys are allowed,
// as OCI asks; the digest covers them.
func decode(b []byte, limit int, v any) error {
	if len(b) > limit {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrMalformed, len(b), limit)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if err := scan(dec, 0); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: bytes after the document", ErrMalformed)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

func scan(dec *json.Decoder, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("deeper than %d", maxDepth)
	}
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	switch tok {
	case json.Delim('['):
		for dec.More() {
			if err := scan(dec, depth+1); err != nil {
				return err
			}
		}
	case json.Delim('{'):
		seen := map[string]bool{}
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return err
			}
			name := fmt.Sprint(key)
			// Upper case first: encoding/json takes the long s for an s, and the
			// sign of the kelvin for a k.
			if folded := strings.ToLower(strings.ToUpper(name)); seen[folded] {
				return fmt.Errorf("%w: key %.40q", ErrTwice, name)
			} else {
				seen[folded] = true
			}
			if err := scan(dec, depth+1); err != nil {
				return err
			}
		}
	default:
		return nil
	}
	_, err = dec.Token() // the closing delimiter
	return err
}

// Decode reads one JSON value from outside as the parsers here do, for other
// documents that travel with a release.
func Decode(b []byte, limit int, v any) error { return decode(b, limit, v) }
